//! A whole deployment on this machine: an owner, a broker, a server and a client, all but
//! the client processes of the `occlude` binary, as their users start them.
//!
//! Everything lies in a temporary folder and ends with the [`Deployment`], or when somebody
//! [stops](Running::stop) it meanwhile. Its policy
//! accepts this very machine and program, which the evidence collected here names: enough to
//! measure with, and nobody else's.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use occlude_attest::{Claims, LastingVerifier, Policy, RecordedEvidence, TeeKind, UnixTime};
use occlude_client::{Client, ClientOptions};
use occlude_inference_protocol::{InferRequest, Tensor};
use occlude_keys::{ModelId, OwnerKey};
use url::Url;

use crate::bench::Service;

/// Long enough for the weights of a large model to be opened on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(600);

/// What is deployed, and where.
#[derive(Debug)]
pub struct DeploymentOptions {
    /// The `occlude` binary.
    pub binary: PathBuf,
    /// The model, in the clear.
    pub model: PathBuf,
    /// The TEE that the server runs in: this machine's.
    pub tee: TeeKind,
    /// What hardware vendors publish, if the TEE's evidence needs it.
    pub collateral: Option<PathBuf>,
    /// More arguments of `occlude serve`.
    pub serve: Vec<String>,
    /// Where whoever is interrupted stops it.
    pub running: Running,
}

/// What runs of a deployment and lies on the disk.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<Option<Parts>>>);

struct Parts {
    // Dropped before what they use.
    processes: Vec<Process>,
    folder: tempfile::TempDir,
}

impl Running {
    /// Ends every process and removes every file.
    pub fn stop(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Parts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process and waits until it listens.
    fn start(
        &self,
        doing: &'static str,
        mut command: Command,
        name: &str,
        address: SocketAddr,
    ) -> Result<(), DeploymentError> {
        let log = match &mut *self.lock() {
            None => return Err(failed(doing)("interrupted")),
            Some(parts) => {
                let log = parts.folder.path().join(name);
                let file = File::create(&log).map_err(failed(doing))?;
                let out = file.try_clone().map_err(failed(doing))?;
                let child = command.stdout(out).stderr(file).spawn();
                parts.processes.push(Process(child.map_err(failed(doing))?));
                log
            }
        };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = match &mut *self.lock() {
                None => return Err(failed(doing)("interrupted")),
                Some(parts) => {
                    let newest = parts.processes.last_mut();
                    newest.is_none_or(|process| !matches!(process.0.try_wait(), Ok(None)))
                }
            };
            if ended || begun.elapsed() > START_LIMIT {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(failed(doing)(
                    said.lines().last().unwrap_or("it does not listen"),
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// Why there is no deployment, in words for people.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct DeploymentError {
    doing: &'static str,
    reason: String,
}

/// A running deployment.
pub struct Deployment {
    client: Client,
    tokio: tokio::runtime::Runtime,
    model: ModelId,
    first_answer: Duration,
    running: Running,
}

impl Drop for Deployment {
    fn drop(&mut self) {
        self.running.stop();
    }
}

impl Deployment {
    /// Seals the model, starts a broker and a server, and waits for the first answer, which
    /// is to `inputs`.
    ///
    /// # Errors
    /// [`DeploymentError`]; nothing goes on running then.
    pub fn start(options: &DeploymentOptions, inputs: &[Tensor]) -> Result<Self, DeploymentError> {
        let deployment = Self::start_in(options, inputs);
        if deployment.is_err() {
            options.running.stop();
        }
        deployment
    }

    fn start_in(options: &DeploymentOptions, inputs: &[Tensor]) -> Result<Self, DeploymentError> {
        let folder = tempfile::tempdir().map_err(failed("making a folder"))?;
        let path = folder.path().to_owned();
        let at = |name: &str| path.join(name).display().to_string();
        let running = options.running.clone();
        *running.lock() = Some(Parts {
            processes: Vec::new(),
            folder,
        });
        let binary = Binary(&options.binary);
        let model: ModelId = MODEL.parse().map_err(failed("naming the model"))?;
        let (key, sealed) = (at("owner.key"), at("model.occ"));
        binary.run("making a key", &["keygen", "-o", &key])?;
        let plain = options.model.display().to_string();
        let seal = ["seal", &plain, "-o", &sealed, "--key", &key, "--id", MODEL];
        binary.run("sealing the model", &seal)?;
        let owner = OwnerKey::read_from(Path::new(&key)).map_err(failed("reading the key"))?;
        let claims = claims_here(&binary, options)?;
        let policy = Policy::of_machine(&claims, vec![owner.public()]);
        let policy_file = at("policy.toml");
        std::fs::write(&policy_file, broker_part(&policy.to_toml()))
            .map_err(failed("writing the policy"))?;

        let broker_url = start_broker(&binary, options, &at("broker.db"))?;
        let order = ["--key", &key, "--broker", &broker_url];
        let add = ["broker", "add-model", &sealed];
        binary.run("giving the broker the key", &[&add[..], &order].concat())?;
        let set = ["broker", "set-policy", &policy_file];
        binary.run("giving the broker the policy", &[&set[..], &order].concat())?;

        let start = Instant::now();
        let url = start_server(&binary, options, &sealed, &broker_url)?;
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed("starting the client"))?;
        let client_options = ClientOptions {
            collateral: options.collateral.clone(),
            ..ClientOptions::default()
        };
        let client = Client::connect(&url, policy, &client_options);
        let client = tokio
            .block_on(client)
            .map_err(failed("verifying the server"))?;
        let mut deployment = Self {
            client,
            tokio,
            model,
            first_answer: Duration::ZERO,
            running,
        };
        deployment
            .infer(inputs)
            .map_err(failed("asking the server"))?;
        deployment.first_answer = start.elapsed();
        Ok(deployment)
    }
}

/// Starts a broker and says where it is.
fn start_broker(
    binary: &Binary<'_>,
    options: &DeploymentOptions,
    database: &str,
) -> Result<String, DeploymentError> {
    let address = free_address()?;
    let listen = address.to_string();
    let collateral = options.collateral.as_ref();
    let collateral = collateral.map(|path| path.display().to_string());
    let mut broker = vec!["broker", "--listen", &listen, "--database", database];
    if let Some(collateral) = &collateral {
        broker.extend(["--collateral", collateral]);
    }
    let command = binary.command(&broker);
    options
        .running
        .start("starting the broker", command, "broker.log", address)?;
    Ok(format!("http://{address}"))
}

/// Starts a server and says where it is.
fn start_server(
    binary: &Binary<'_>,
    options: &DeploymentOptions,
    sealed: &str,
    broker: &str,
) -> Result<Url, DeploymentError> {
    const DOING: &str = "starting the server";
    let address = free_address()?;
    let (listen, tee) = (address.to_string(), options.tee.to_string());
    let mut serve = vec!["serve", "--model", sealed, "--broker", broker];
    serve.extend(["--tee", &tee, "--listen", &listen]);
    serve.extend(options.serve.iter().map(String::as_str));
    let command = binary.command(&serve);
    options
        .running
        .start(DOING, command, "server.log", address)?;
    format!("http://{address}").parse().map_err(failed(DOING))
}

impl std::fmt::Debug for Deployment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deployment").finish_non_exhaustive()
    }
}

impl Service for Deployment {
    fn first_answer(&self) -> Duration {
        self.first_answer
    }

    fn infer(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let request = InferRequest {
            inputs: inputs.to_vec(),
            ..InferRequest::default()
        };
        let answer = self.client.infer(&self.model, None, &request);
        let answer = self.tokio.block_on(answer);
        Ok(answer.map_err(|error| error.to_string())?.outputs)
    }

    fn cpu_time(&self) -> Option<Duration> {
        let running = self.running.lock();
        running
            .as_ref()?
            .processes
            .iter()
            .map(Process::cpu_time)
            .sum()
    }
}

/// The model's id.
const MODEL: &str = "evaluated";

/// What evidence of this machine says, of the very program that will serve.
fn claims_here(
    binary: &Binary<'_>,
    options: &DeploymentOptions,
) -> Result<Claims, DeploymentError> {
    const DOING: &str = "collecting evidence of this machine";
    let (tee, zero) = (options.tee.to_string(), "00".repeat(64));
    let collect = ["attest", "collect", "--tee", &tee, "--report-data", &zero];
    let evidence = binary.run(DOING, &collect)?;
    let recorded = RecordedEvidence::read(&evidence, None).map_err(failed(DOING))?;
    let verifier = LastingVerifier::new(options.collateral.clone());
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

struct Binary<'a>(&'a Path);

impl Binary<'_> {
    /// A command without what the environment sets for people.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.0);
        let settings = std::env::vars_os().map(|(name, _)| name);
        for name in settings.filter(|name| name.to_string_lossy().starts_with("OCCLUDE_")) {
            command.env_remove(name);
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// The standard output of a command that succeeds.
    fn run(&self, doing: &'static str, arguments: &[&str]) -> Result<Vec<u8>, DeploymentError> {
        let output = self.command(arguments).output().map_err(failed(doing))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = said.lines().last().unwrap_or_default().to_owned();
        Err(DeploymentError { doing, reason })
    }
}

/// A process that ends with this.
struct Process(Child);

impl Process {
    /// Processor time so far (`proc_pid_stat(5)`, fields 14 and 15).
    fn cpu_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).ok()?;
        // The second field is a name in parentheses, which may hold spaces.
        let fields = stat.rsplit_once(')')?.1.split_whitespace();
        let ticks: Option<Vec<u64>> = fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse().ok())
            .collect();
        let ticks: u64 = ticks.filter(|ticks| ticks.len() == 2)?.iter().sum();
        let a_second = rustix::param::clock_ticks_per_second();
        Some(Duration::from_secs_f64(ticks as f64 / a_second as f64))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago.
fn free_address() -> Result<SocketAddr, DeploymentError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(failed("finding a free port"))
}

fn failed<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> DeploymentError {
    move |error| DeploymentError {
        doing,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_processor_time_that_only_grows() {
        let child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn();
        let process = Process(child.unwrap());
        let before = process.cpu_time().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let after = process.cpu_time().unwrap();
        assert!(after > before, "{before:?} {after:?}");
    }

    #[test]
    fn what_is_stopped_leaves_neither_process_nor_file() {
        let running = Running::default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let id = child.id();
        *running.lock() = Some(Parts {
            processes: vec![Process(child)],
            folder,
        });
        running.clone().stop();
        assert!(!path.exists());
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_process_that_ends_instead_of_listening_says_why() {
        let running = Running::default();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no port >&2; exit 4"]);
        *running.lock() = Some(Parts {
            processes: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        });
        let address = free_address().unwrap();
        let error = running.start("starting it", command, "log", address);
        assert_eq!(error.unwrap_err().to_string(), "starting it: no port");
    }

    #[test]
    fn the_broker_is_given_what_it_judges() {
        let policy = "format = 1\nreviewed = false\n\n[evidence]\ntee = [\"snp\"]\n\n[service]\nowners = []\n";
        let expected = "format = 1\nreviewed = true\n\n[evidence]\ntee = [\"snp\"]\n";
        assert_eq!(broker_part(policy), expected);
    }
}
