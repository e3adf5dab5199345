//! An owner's side of a deployment: a key, a sealed model, a broker with its policy; and
//! the servers and users of that owner, as processes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use occlude_attest::{Claims, LastingVerifier, Policy, RecordedEvidence, TeeKind, UnixTime};
use occlude_keys::{OwnerKey, OwnerPublic};

use crate::processes::{
    Binary, DeploymentError, Folder, Running, Said, Service, failed, free_address,
};
use crate::watch::{WatchedWindow, WatchedWork};

/// What every process of a deployment has in common.
#[derive(Debug, Clone)]
pub(crate) struct Grounds {
    pub(crate) binary: Binary,
    /// The TEE that servers run in: this machine's.
    pub(crate) tee: TeeKind,
    /// What hardware vendors publish, if the TEE's evidence needs it.
    pub(crate) collateral: Option<PathBuf>,
    pub(crate) running: Running,
}

impl Grounds {
    /// Processes of a binary as it is.
    pub(crate) fn new(
        binary: &Path,
        tee: TeeKind,
        collateral: Option<&PathBuf>,
        running: &Running,
    ) -> Self {
        Self {
            binary: Binary {
                path: binary.to_owned(),
                weakening: None,
            },
            tee,
            collateral: collateral.cloned(),
            running: running.clone(),
        }
    }
}

/// One owner. Its policy accepts this very machine and program, which the evidence
/// collected here names, and nobody else's.
pub(crate) struct Owner {
    pub(crate) grounds: Grounds,
    pub(crate) broker: Service,
    pub(crate) public: OwnerPublic,
    /// What evidence of this machine says, of the very program that will serve.
    pub(crate) claims: Claims,
    id: String,
    // Dropped last.
    folder: Folder,
}

/// The container of the first version.
pub(crate) const SEALED: &str = "model.occ";

/// The policy of users who want this owner's model.
pub(crate) const POLICY: &str = "policy.toml";

const KEY: &str = "owner.key";
const DATABASE: &str = "broker.db";

/// What a guard says of queries.
#[derive(serde::Deserialize)]
pub(crate) struct Watched {
    /// Of all files.
    pub(crate) windows: Vec<WatchedWindow>,
    /// Of each file.
    pub(crate) work: Vec<WatchedWork>,
}

impl Owner {
    /// Makes a key, seals `model` as version 1 of `id`, and gives both to a new broker.
    pub(crate) fn new(grounds: &Grounds, model: &Path, id: &str) -> Result<Self, DeploymentError> {
        const DOING: &str = "writing the policy";
        let folder = grounds.running.folder()?;
        let at = |name: &str| folder.at(name).display().to_string();
        let binary = &grounds.binary;
        binary.run("making a key", &["keygen", "-o", &at(KEY)])?;
        let key = OwnerKey::read_from(&folder.at(KEY)).map_err(failed("reading the key"))?;
        let owner = Self {
            grounds: grounds.clone(),
            broker: start_broker(grounds, &folder, free_address()?)?,
            public: key.public(),
            claims: claims_here(grounds)?,
            id: id.to_owned(),
            folder,
        };
        owner.seal(model, SEALED, id, 1)?;
        owner.must_order(&["add-model", &owner.text(SEALED)])?;
        let judged = owner.at("broker-policy.toml");
        std::fs::write(&judged, owner.broker_policy()).map_err(failed(DOING))?;
        owner.must_order(&["set-policy", &judged.display().to_string()])?;
        std::fs::write(owner.at(POLICY), owner.user_policy(1, "")).map_err(failed(DOING))?;
        Ok(owner)
    }

    /// The path of a file of this owner's.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.at(name)
    }

    /// The same as an argument.
    pub(crate) fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A policy that accepts this owner's services on this machine.
    pub(crate) fn policy(&self) -> Policy {
        Policy::of_machine(&self.claims, vec![self.public])
    }

    /// The part of it that a broker judges.
    pub(crate) fn broker_policy(&self) -> String {
        broker_part(&self.policy().to_toml())
    }

    /// What a user wants who knows this owner's model: from a version on, and what `more`
    /// says.
    pub(crate) fn user_policy(&self, minimum_version: u64, more: &str) -> String {
        format!(
            "{}\n[service]\nowners = [\"{}\"]\n\
             models = [{{ id = \"{}\", minimum-version = {minimum_version} }}]\n{more}",
            self.broker_policy(),
            self.public,
            self.id
        )
    }

    /// Seals a model.
    pub(crate) fn seal(
        &self,
        model: &Path,
        output: &str,
        id: &str,
        version: u64,
    ) -> Result<(), DeploymentError> {
        self.seal_with(model, output, id, version, &[])
    }

    /// The same with more arguments of `occlude seal`.
    pub(crate) fn seal_with(
        &self,
        model: &Path,
        output: &str,
        id: &str,
        version: u64,
        more: &[&str],
    ) -> Result<(), DeploymentError> {
        let (model, version) = (model.display().to_string(), version.to_string());
        let (output, key) = (self.text(output), self.text(KEY));
        let seal = [
            "seal",
            &model,
            "-o",
            &output,
            "--key",
            &key,
            "--id",
            id,
            "--version",
            &version,
        ];
        let binary = &self.grounds.binary;
        let arguments = [&seal[..], more].concat();
        binary.run("sealing the model", &arguments).map(drop)
    }

    /// Looks for a watermark: what was found, as JSON.
    pub(crate) fn claim(
        &self,
        suspect: &str,
        container: &str,
        inputs: &str,
    ) -> Result<String, DeploymentError> {
        let key = self.text(KEY);
        let claim = ["guard", "claim", suspect, "--model", container];
        let rest = ["--key", &key, "--inputs", inputs, "--json"];
        let arguments = [&claim[..], &rest].concat();
        let binary = &self.grounds.binary;
        binary.run("looking for a watermark", &arguments)
    }

    /// What a guard's telemetry says of queries, each file a client's.
    pub(crate) fn watch(
        &self,
        container: &str,
        guard: &Path,
        inputs: &[PathBuf],
    ) -> Result<Watched, DeploymentError> {
        const DOING: &str = "looking at queries";
        let (container, key) = (self.text(container), self.text(KEY));
        let (guard, inputs) = (guard.display().to_string(), inputs.iter());
        let inputs: Vec<String> = inputs.map(|path| path.display().to_string()).collect();
        let mut watch = vec!["guard", "watch", &container, "--key", &key, "--json"];
        watch.extend(["--guard", &guard]);
        watch.extend(inputs.iter().flat_map(|path| ["--inputs", path]));
        let said = self.grounds.binary.run(DOING, &watch)?;
        serde_json::from_str(&said).map_err(failed(DOING))
    }

    /// Makes an issuer's key: the section of a guard that names it.
    pub(crate) fn issuer(&self, key: &str, name: &str) -> Result<String, DeploymentError> {
        let key = self.text(key);
        let binary = &self.grounds.binary;
        let public = binary.run("making an issuer's key", &["guard", "keygen", "-o", &key])?;
        Ok(format!(
            "[[issuers]]\nname = \"{name}\"\nkey = \"\"\"\n{public}\"\"\"\n"
        ))
    }

    /// A token by the issuer's key in a file, which says who a client is and what it may ask.
    pub(crate) fn token(
        &self,
        key: &str,
        issuer: &str,
        subject: &str,
        models: &[&str],
    ) -> Result<String, DeploymentError> {
        let key = self.text(key);
        let mut token = vec!["guard", "token", "--key", &key, "--issuer", issuer];
        token.extend(["--subject", subject]);
        token.extend(models.iter().flat_map(|model| ["--model", model]));
        self.grounds.binary.run("making a token", &token)
    }

    /// Gives an order to this owner's broker.
    pub(crate) fn order(&self, order: &[&str]) -> Result<Said, DeploymentError> {
        self.order_to(&self.broker.url(), order)
    }

    /// Gives an order to some broker.
    pub(crate) fn order_to(&self, broker: &str, order: &[&str]) -> Result<Said, DeploymentError> {
        let key = self.text(KEY);
        let arguments = [&["broker"], order, &["--key", &key, "--broker", broker]].concat();
        let binary = &self.grounds.binary;
        binary.said("giving the broker an order", &arguments)
    }

    /// Gives an order that the broker has to follow.
    pub(crate) fn must_order(&self, order: &[&str]) -> Result<String, DeploymentError> {
        let said = self.order(order)?;
        if said.code == 0 {
            return Ok(said.out);
        }
        Err(failed("giving the broker an order")(said.reason()))
    }

    /// Starts the broker again, where it was and on the database that it left.
    pub(crate) fn broker_again(&self) -> Result<Service, DeploymentError> {
        start_broker(&self.grounds, &self.folder, free_address()?)
    }

    /// The broker's files.
    pub(crate) fn database(&self) -> Vec<PathBuf> {
        ["", "-wal", "-shm"]
            .map(|end| self.at(&format!("{DATABASE}{end}")))
            .into_iter()
            .filter(|path| path.exists())
            .collect()
    }

    /// The command of a server of this owner's broker, in this owner's folder.
    pub(crate) fn serve_command(
        &self,
        binary: &Binary,
        container: &str,
        address: SocketAddr,
        more: &[&str],
    ) -> Command {
        let (listen, broker) = (address.to_string(), self.broker.url());
        let tee = self.grounds.tee.to_string();
        let mut serve = vec!["serve", "--model", container, "--listen", &listen];
        serve.extend(["--tee", &tee]);
        if !more.contains(&"--broker") {
            serve.extend(["--broker", &broker]);
        }
        serve.extend(more);
        let mut command = binary.command(&serve);
        command.current_dir(self.folder());
        command
    }

    /// Starts a server, which serves or refuses to.
    pub(crate) fn try_serve(
        &self,
        binary: &Binary,
        container: &str,
        more: &[&str],
    ) -> Result<Result<Service, Said>, DeploymentError> {
        let address = free_address()?;
        let command = self.serve_command(binary, container, address, more);
        self.spawn(command, address)?
            .until(SERVING, Service::answers)
    }

    /// Starts a server that has to serve.
    pub(crate) fn serve(&self, container: &str, more: &[&str]) -> Result<Service, DeploymentError> {
        let address = free_address()?;
        let command = self.serve_command(&self.grounds.binary, container, address, more);
        self.spawn(command, address)?.answering(SERVING)
    }

    /// Starts a process that is to listen at `address`, and writes its log in this
    /// owner's folder.
    pub(crate) fn spawn(
        &self,
        mut command: Command,
        address: SocketAddr,
    ) -> Result<Service, DeploymentError> {
        let log = self.at(&format!("server-{}.log", address.port()));
        let running = &self.grounds.running;
        Service::spawn(running, SERVING, &mut command, log, address)
    }
}

const SERVING: &str = "starting a server";

fn start_broker(
    grounds: &Grounds,
    folder: &Folder,
    address: SocketAddr,
) -> Result<Service, DeploymentError> {
    const DOING: &str = "starting the broker";
    let (listen, database) = (address.to_string(), folder.at(DATABASE));
    let database = database.display().to_string();
    let collateral = grounds.collateral.as_ref();
    let collateral = collateral.map(|path| path.display().to_string());
    let mut broker = vec!["broker", "--listen", &listen, "--database", &database];
    if let Some(collateral) = &collateral {
        broker.extend(["--collateral", collateral]);
    }
    let mut command = grounds.binary.command(&broker);
    let log = folder.at(&format!("broker-{}.log", address.port()));
    Service::spawn(&grounds.running, DOING, &mut command, log, address)?.listening(DOING)
}

/// What evidence of this machine says, of the very program that will serve.
fn claims_here(grounds: &Grounds) -> Result<Claims, DeploymentError> {
    const DOING: &str = "collecting evidence of this machine";
    let (tee, zero) = (grounds.tee.to_string(), "00".repeat(64));
    let collect = ["attest", "collect", "--tee", &tee, "--report-data", &zero];
    let evidence = grounds.binary.run(DOING, &collect)?;
    let recorded = RecordedEvidence::read(evidence.as_bytes(), None).map_err(failed(DOING))?;
    let verifier = LastingVerifier::new(grounds.collateral.clone());
    let verifier = verifier.current().map_err(failed(DOING))?;
    let genuine = verifier
        .authenticate(&recorded.evidence, UnixTime::now())
        .map_err(failed(DOING))?;
    Ok(genuine.unbound_claims())
}

/// What a broker judges, of a client's policy, as somebody has reviewed it: whoever measures
/// has the machine.
fn broker_part(policy: &str) -> String {
    let policy = policy.replace("reviewed = false", "reviewed = true");
    let end = policy.find("\n[service").unwrap_or(policy.len());
    policy[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_given_what_it_judges() {
        let policy = "format = 1\nreviewed = false\n\n[evidence]\ntee = [\"snp\"]\n\n[service]\nowners = []\n";
        let expected = "format = 1\nreviewed = true\n\n[evidence]\ntee = [\"snp\"]\n";
        assert_eq!(broker_part(policy), expected);
    }
}
