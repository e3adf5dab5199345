//! An owner, a broker, a server and a user's policy, all of them real.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::model::{self, SecretModel};
use super::process::{Service, binary, free_address, occlude, run};

/// One owner's side: a key, a sealed model, a broker.
pub(crate) struct Owner {
    folder: tempfile::TempDir,
    pub(crate) model: SecretModel,
    pub(crate) broker: Service,
}

impl Owner {
    /// Makes a key, seals a model as `classifier` version 1 and gives its key to a
    /// new broker, with a policy that names `measured`.
    pub(crate) fn new(seed: u64, measured: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        run(["keygen", "-o", text(&at("owner.key"))]).success();
        let model = model::classifier(seed);
        std::fs::write(at("model.onnx"), &model.onnx).expect("the model is written");
        let broker = start_broker(folder.path());
        let owner = Self {
            folder,
            model,
            broker,
        };
        owner.seal("model.occ", 1);
        owner.add_model("model.occ").success();
        std::fs::write(owner.at("broker-policy.toml"), broker_policy(measured)).expect("written");
        owner.set_policy("broker-policy.toml").success();
        std::fs::write(owner.at("policy.toml"), owner.user_policy(measured, 1)).expect("written");
        owner
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Seals the model once more.
    pub(crate) fn seal(&self, output: &str, version: u64) {
        self.seal_with(output, version, &[]);
    }

    /// The same with more arguments.
    pub(crate) fn seal_with(&self, output: &str, version: u64, more: &[&str]) {
        let (plain, sealed, key) = (self.at("model.onnx"), self.at(output), self.at("owner.key"));
        let version = version.to_string();
        let seal = [
            "seal",
            text(&plain),
            "-o",
            text(&sealed),
            "--key",
            text(&key),
            "--id",
            "classifier",
            "--version",
            &version,
        ];
        run([&seal[..], more].concat()).success();
    }

    pub(crate) fn add_model(&self, container: &str) -> super::process::Said {
        run(self.order(&["add-model", text(&self.at(container))]))
    }

    pub(crate) fn set_policy(&self, policy: &str) -> super::process::Said {
        run(self.order(&["set-policy", text(&self.at(policy))]))
    }

    /// The arguments of one order to the broker.
    pub(crate) fn order(&self, order: &[&str]) -> Vec<String> {
        let mut arguments = vec!["broker".to_owned()];
        arguments.extend(order.iter().map(|&part| part.to_owned()));
        arguments.extend(["--key".to_owned(), text(&self.at("owner.key")).to_owned()]);
        arguments.extend(["--broker".to_owned(), self.broker.url()]);
        arguments
    }

    pub(crate) fn public(&self) -> String {
        let printed = run(["keygen", "--public", text(&self.at("owner.key")), "--json"]).success();
        let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        json["public"].as_str().expect("a public key").to_owned()
    }

    /// What a user of this owner's models accepts.
    pub(crate) fn user_policy(&self, measured: &Path, minimum_version: u64) -> String {
        format!(
            "{}\n[service]\nowners = [\"{}\"]\nmodels = [{{ id = \"classifier\", minimum-version = {minimum_version} }}]\n",
            broker_policy(measured),
            self.public(),
        )
    }

    /// Starts a server on a container of this owner and waits until it listens.
    pub(crate) fn serve(&self, container: &str) -> Service {
        let address = free_address();
        let log = self.at(&format!("server-{}.log", address.port()));
        Service::start(
            &mut self.serve_command(&binary(), container, address, &[]),
            log,
            address,
        )
    }

    /// Starts a server that is expected to refuse.
    pub(crate) fn serve_refused(
        &self,
        binary: &Path,
        container: &str,
        more: &[&str],
    ) -> super::process::Said {
        let address = free_address();
        let log = self.at(&format!("server-{}.log", address.port()));
        Service::spawn(
            &mut self.serve_command(binary, container, address, more),
            log,
            address,
        )
        .ends()
    }

    /// The command of a server; it runs in this owner's folder, in the simulated TEE if
    /// nothing else is said.
    pub(crate) fn serve_command(
        &self,
        binary: &Path,
        container: &str,
        address: std::net::SocketAddr,
        more: &[&str],
    ) -> std::process::Command {
        let mut command = occlude(binary);
        command.current_dir(self.folder.path()).args([
            "serve",
            "--model",
            container,
            "--broker",
            &self.broker.url(),
            "--listen",
            &address.to_string(),
        ]);
        if !more.contains(&"--tee") {
            command.args(["--tee", "simulated"]);
        }
        command.args(more);
        command
    }

    /// Asks `url` for an answer to `input`, under `policy`, as JSON.
    pub(crate) fn infer(&self, url: &str, policy: &str, input: &[f32]) -> super::process::Said {
        let npy = self.at("input.npy");
        std::fs::write(&npy, model::npy(input)).expect("the input is written");
        run([
            "infer",
            url,
            "--model",
            "classifier",
            "--policy",
            text(&self.at(policy)),
            "--input",
            &format!("{}={}", model::INPUT, text(&npy)),
            "--json",
        ])
    }
}

/// Starts a broker whose database lies in `folder`.
pub(crate) fn start_broker(folder: &Path) -> Service {
    let address = free_address();
    let log = folder.join(format!("broker-{}.log", address.port()));
    let mut command = occlude(&binary());
    command
        .args(["broker", "--listen", &address.to_string(), "--database"])
        .arg(folder.join("broker.db"));
    Service::start(&mut command, log, address)
}

/// A policy on evidence alone: the simulated TEE running exactly `measured`.
pub(crate) fn broker_policy(measured: &Path) -> String {
    format!(
        "format = 1\nreviewed = true\n\n[evidence]\ntee = [\"simulated\"]\ntrust = [\"simulated\"]\nmeasurements = [\"{}\"]\n",
        measurement(measured)
    )
}

/// What the simulated TEE measures: SHA-256 of the executable.
pub(crate) fn measurement(binary: &Path) -> String {
    hex::encode(Sha256::digest(
        std::fs::read(binary).expect("the binary can be read"),
    ))
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
