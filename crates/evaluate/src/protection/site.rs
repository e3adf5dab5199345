//! Where a check is carried out: an owner with a secret model, and what everybody does.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use super::Seen;
use super::model::{self, SecretModel};
use super::wire::{Given, Seen as Request, ask, man_in_the_middle};
use crate::owner::{Grounds, Owner, POLICY, SEALED};
use crate::processes::{DeploymentError, Said, Service, failed, free_address, said};

pub(super) const ATTESTATION: &str = "/.well-known/occlude/attestation";
pub(super) const CHANNEL: &str = "/.well-known/occlude/channel";

/// The id of everybody's model.
pub(super) const MODEL: &str = "classifier";

/// An owner's deployment, and its model in the clear.
pub(super) struct Site {
    pub(super) owner: Owner,
    pub(super) model: SecretModel,
}

impl Site {
    pub(super) fn new(grounds: &Grounds) -> Result<Self, DeploymentError> {
        Self::of(grounds, model::classifier(1))
    }

    /// Somebody else who uses the same software: the operator, as an owner.
    pub(super) fn operator(&self) -> Result<Self, DeploymentError> {
        Self::of(&self.owner.grounds, model::classifier(2))
    }

    /// The same with another model.
    pub(super) fn of(grounds: &Grounds, model: SecretModel) -> Result<Self, DeploymentError> {
        let folder = grounds.running.folder()?;
        let plain = folder.at("model.onnx");
        std::fs::write(&plain, &model.onnx).map_err(failed("writing the model"))?;
        Ok(Self {
            owner: Owner::new(grounds, &plain, MODEL)?,
            model,
        })
    }

    /// Seals this owner's model once more.
    pub(super) fn seal(&self, output: &str, id: &str, version: u64) -> Result<(), DeploymentError> {
        self.seal_with(output, id, version, &[])
    }

    /// The same with more arguments of `occlude seal`.
    pub(super) fn seal_with(
        &self,
        output: &str,
        id: &str,
        version: u64,
        more: &[&str],
    ) -> Result<(), DeploymentError> {
        let folder = self.owner.grounds.running.folder()?;
        let plain = folder.at("model.onnx");
        std::fs::write(&plain, &self.model.onnx).map_err(failed("writing the model"))?;
        self.owner.seal_with(&plain, output, id, version, more)
    }

    /// A server that has to serve.
    pub(super) fn serve(&self) -> Result<Service, DeploymentError> {
        self.owner.serve(SEALED, &[])
    }

    /// A user asks, under the policy that knows this owner.
    pub(super) fn infer(&self, url: &str, input: &[f32]) -> Result<Said, DeploymentError> {
        self.infer_under(POLICY, url, input)
    }

    /// A user asks, under some policy.
    pub(super) fn infer_under(
        &self,
        policy: &str,
        url: &str,
        input: &[f32],
    ) -> Result<Said, DeploymentError> {
        self.infer_with("input.npy", policy, url, input)
    }

    /// The same with an input file of one's own, for several users at once.
    pub(super) fn infer_with(
        &self,
        name: &str,
        policy: &str,
        url: &str,
        input: &[f32],
    ) -> Result<Said, DeploymentError> {
        const DOING: &str = "asking for an answer";
        let npy = self.owner.at(name);
        std::fs::write(&npy, model::npy(input)).map_err(failed(DOING))?;
        let (policy, input) = (
            self.owner.text(policy),
            format!("{}={}", model::INPUT, npy.display()),
        );
        let infer = [
            "infer", url, "--model", MODEL, "--policy", &policy, "--input", &input, "--json",
        ];
        self.owner.grounds.binary.said(DOING, &infer)
    }

    /// An answer that has to be there, and be right.
    pub(super) fn must_infer(&self, url: &str, input: &[f32]) -> Result<(), DeploymentError> {
        let said = self.infer(url, input)?;
        if said.code == 0 && self.is_right(&said, input) {
            return Ok(());
        }
        Err(failed("asking for an answer")(said.reason()))
    }

    /// Whether an answer is the model's, by arithmetic on the weights in the clear.
    pub(super) fn is_right(&self, said: &Said, input: &[f32]) -> bool {
        let expected = model::expected(&self.model, input);
        model::probabilities(&said.out).is_some_and(|found| model::is_close(&found, &expected))
    }

    /// A user's proxy before a server.
    pub(super) fn proxy(
        &self,
        server: &Service,
        more: &[&str],
    ) -> Result<Service, DeploymentError> {
        let address = free_address()?;
        let (url, listen, policy) = (server.url(), address.to_string(), self.owner.text(POLICY));
        let proxy = ["proxy", &url, "--policy", &policy, "--listen", &listen];
        let proxy = self
            .owner
            .grounds
            .binary
            .command(&[&proxy[..], more].concat());
        self.owner
            .spawn(proxy, address)?
            .listening("starting a proxy")
    }

    /// A policy file of this owner's users that says more.
    pub(super) fn policy(
        &self,
        name: &'static str,
        minimum_version: u64,
        more: &str,
    ) -> Result<&'static str, DeploymentError> {
        let text = self.owner.user_policy(minimum_version, more);
        std::fs::write(self.owner.at(name), text).map_err(failed("writing a policy"))?;
        Ok(name)
    }

    /// A command, started by a shell that says something first.
    pub(super) fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("sh");
        self.owner.grounds.binary.prepare(&mut shell);
        shell.args(["-c", script]).current_dir(self.owner.folder());
        shell
    }

    /// The binary's path, fit for a shell of this site.
    pub(super) fn binary(&self) -> Result<PathBuf, DeploymentError> {
        // A link to oneself means another program in another process.
        let path = &self.owner.grounds.binary.path;
        path.canonicalize().map_err(failed("finding the binary"))
    }
}

/// What a refusal looks like: the exit code, and a part of the reason.
pub(super) fn refused(said: &Said, code: i32, reason: &str) -> Result<String, String> {
    if said.code == code && said.err.contains(reason) {
        return Ok(tidy(said));
    }
    Err(match said.code {
        0 => "an answer was given".to_owned(),
        other => format!("exit code {other}: {}", said.reason()),
    })
}

/// No answer, or the model's.
pub(super) fn right_or_none(site: &Site, said: &Said, input: &[f32]) -> Result<String, String> {
    match said.code {
        0 if site.is_right(said, input) => Ok("the right answer".to_owned()),
        0 => Err("a wrong answer was given".to_owned()),
        _ => Ok(tidy(said)),
    }
}

/// Why a command failed, without addresses, which are others each time.
pub(super) fn tidy(said: &Said) -> String {
    let words = said.reason().trim_start_matches("occlude: ").split(' ');
    let words = words.map(|word| match word.split_once("http://127.0.0.1:") {
        Some((before, after)) => {
            let port = after.find(|digit: char| !digit.is_ascii_digit());
            let after = port.map_or("", |end| &after[end..]);
            format!("{before}http://.../{}", after.trim_start_matches('/'))
        }
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Turns the first failure of several attempts into a break.
pub(super) fn judge(attempts: impl IntoIterator<Item = Result<String, String>>) -> Seen {
    let mut seen = Vec::new();
    for attempt in attempts {
        match attempt {
            Ok(held) if seen.contains(&held) => {}
            Ok(held) => seen.push(held),
            Err(broke) => return Seen::Broke(broke),
        }
    }
    Seen::Held(seen.join("; "))
}

/// A server or a refusal to start, as an attempt.
pub(super) fn start(
    started: &Result<Service, Said>,
    code: i32,
    reason: &str,
) -> Result<String, String> {
    match started {
        Ok(_) => Err("the server serves".to_owned()),
        Err(said) => refused(said, code, reason),
    }
}

/// A man in the middle before a server, who notes what passes and changes what he likes.
pub(super) struct Middle {
    pub(super) address: SocketAddr,
    passed: Arc<Mutex<Vec<(Request, Given)>>>,
}

impl Middle {
    /// `change` may replace a request before it goes on, `give` an answer before it goes
    /// back.
    pub(super) fn new(
        server: SocketAddr,
        change: impl Fn(&mut Request) + Send + Sync + 'static,
        give: impl Fn(&Request, &mut Given) + Send + Sync + 'static,
    ) -> Result<Self, DeploymentError> {
        let passed: Arc<Mutex<Vec<(Request, Given)>>> = Arc::default();
        let noted = Arc::clone(&passed);
        let address = man_in_the_middle(move |mut seen| {
            change(&mut seen);
            let failed = |_| Given::new(502, "text/plain", Vec::new());
            let mut given = ask(server, &seen).unwrap_or_else(failed);
            give(&seen, &mut given);
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.push((seen, given.clone()));
            given
        });
        Ok(Self {
            address: address.map_err(failed("standing in the middle"))?,
            passed,
        })
    }

    /// One who only looks.
    pub(super) fn looking(server: SocketAddr) -> Result<Self, DeploymentError> {
        Self::new(server, |_| (), |_, _| ())
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What passed for a model, encapsulated or not.
    pub(super) fn exchanges(&self) -> Vec<(Request, Given)> {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let of_a_model = |(seen, _): &&(Request, Given)| is_of_a_model(seen);
        passed.iter().filter(of_a_model).cloned().collect()
    }
}

/// Whether a request asks a model, encapsulated or not.
pub(super) fn is_of_a_model(seen: &Request) -> bool {
    seen.path_and_query == CHANNEL || seen.path_and_query.starts_with("/v2/models/")
}

/// Runs a shell's script to its end.
pub(super) fn run(doing: &'static str, command: &mut Command) -> Result<Said, DeploymentError> {
    said(doing, command)
}
