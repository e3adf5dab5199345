//! The settings of `occlude serve`, as a TOML table and as flags.
//!
//! The operator writes them, so they decide nothing that a client or an owner
//! relies on: what matters to them stands in the service statement, which the
//! evidence covers.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use occlude_attest::{Machine, TeeChoice, TeeKind};
use occlude_channel::Kem;
use occlude_engine::{
    CipherKind, LargestShape, LibrarySearch, ProcessMemory, ProtectedMemory, Spill, memory,
};
use url::Url;

use crate::admission::Admission;

/// Where the server listens unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// Largest encapsulated request unless told otherwise: a batch of images fits, and
/// a few at once still fit into ordinary protected memory.
pub const DEFAULT_MAXIMUM_REQUEST: ByteSize = ByteSize::mib(64);

/// Lowest limit on a request: an empty one is padded to 4 KiB, and key
/// encapsulation and tags come on top.
const LOWEST_MAXIMUM_REQUEST: u64 = 16 * 1024;

/// Protected memory for requests and answers in flight unless told otherwise: three
/// bodies of the largest default size, each held up to three times, and their answers.
const DEFAULT_REQUEST_MEMORY: ByteSize = ByteSize::mib(768);

/// Requests in flight at once unless told otherwise.
const DEFAULT_REQUESTS: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// How long a body may take to arrive unless told otherwise.
const DEFAULT_BODY_SECONDS: u64 = 60;

/// How long a request waits for a free session unless told otherwise.
const DEFAULT_QUEUE_SECONDS: u64 = 30;

/// How often leases are renewed unless told otherwise.
const DEFAULT_LEASE_SECONDS: u64 = 3600;

/// Leases are renewed at least this often. The operator chooses, and a withdrawn
/// model is served for twice as long where nobody can reach the broker: two hours,
/// as the threat model promises.
const LONGEST_LEASE_SECONDS: u64 = 3600;

/// Other times are the operator's own affair; a longer one is a mistake.
const LONGEST_SECONDS: u64 = 86_400;

/// A configuration file that is longer is not one.
const LONGEST_FILE: u64 = 64 * 1024;

/// Settings that may each be absent; `[serve]` in a configuration file.
///
/// Precedence is the caller's: `flags.or(environment).or(file)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Sealed models.
    pub model: Vec<PathBuf>,
    /// The broker that holds their keys.
    #[serde(deserialize_with = "from_text")]
    pub broker: Option<Url>,
    /// PEM certificates of the authorities behind the broker's, instead of the
    /// system's.
    pub broker_authorities: Option<PathBuf>,
    /// The TEE that this process runs in.
    pub tee: Option<TeeChoice>,
    /// The TPM of TEEs that have one: a device, or the socket of one in software.
    pub tpm: Option<PathBuf>,
    /// What fetches evidence where no interface of the kernel's gives it: a program, its
    /// arguments, and behind them the 64 bytes to carry, as hexadecimal digits.
    pub evidence_command: Vec<String>,
    /// What fetches evidence of GPUs: a program, its arguments, and behind them the nonce of
    /// 32 bytes, as hexadecimal digits.
    pub gpu_evidence_command: Vec<String>,
    /// What else evidence is collected of, beside the TEE.
    pub additional_evidence: Vec<TeeKind>,
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// Threads that one inference uses; the processor's by default.
    pub threads: Option<NonZeroUsize>,
    /// Inferences of one model that run at once; 1 by default.
    pub sessions: Option<NonZeroUsize>,
    /// Protected memory for each model's weights and runs; all weights by default.
    #[serde(deserialize_with = "from_text")]
    pub protected_memory: Option<MemoryBudget>,
    /// The largest shapes of inputs, such as `image=1x3x224x224`: memory is planned for
    /// them, and larger inputs are refused.
    #[serde(deserialize_with = "from_texts")]
    pub max_shape: Vec<LargestShape>,
    /// Where weights beyond it lie, encrypted; in shared memory by default.
    #[serde(deserialize_with = "from_text")]
    pub spill: Option<Spill>,
    /// What they are encrypted with there; the fastest on this processor by default.
    #[serde(deserialize_with = "from_text")]
    pub spill_cipher: Option<CipherKind>,
    /// A folder with copies of the containers, under their names, and for a second copy of
    /// streamed weights in a file.
    pub mirror: Option<PathBuf>,
    /// The channel's key encapsulation; X-Wing by default.
    #[serde(deserialize_with = "from_text")]
    pub kem: Option<Kem>,
    /// Largest encapsulated request.
    pub maximum_request: Option<ByteSize>,
    /// Requests in flight at once.
    pub requests_in_flight: Option<NonZeroUsize>,
    /// Protected memory for requests in flight.
    pub request_memory: Option<ByteSize>,
    /// Seconds that a body may take to arrive.
    pub body_seconds: Option<u64>,
    /// Seconds that a request waits for a free session.
    pub queue_seconds: Option<u64>,
    /// Seconds between two renewals of a lease, an hour at most.
    pub lease_seconds: Option<u64>,
}

/// The whole configuration file: this one table. Any other is refused, since a
/// setting that has no effect misleads.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    serve: Settings,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The configuration file could not be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The configuration file is longer than any configuration.
    #[error("{} is longer than the {limit} bytes that a configuration may have", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The configuration file is not what was expected.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A setting that has no default is absent.
    #[error(
        "no {name} is given: use --{name}, its environment variable, or [serve] {name} in the configuration file"
    )]
    Missing {
        /// The setting's name.
        name: &'static str,
    },
    /// A setting has a value that makes no sense.
    #[error("{name} is {found}, expected {expected}")]
    Invalid {
        /// The setting's name.
        name: &'static str,
        /// What was given.
        found: String,
        /// What would do.
        expected: String,
    },
}

/// A list that has something in it; the second if the first has not.
fn first_filled<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
    if first.is_empty() { second } else { first }
}

impl Settings {
    /// Reads the `[serve]` table of a configuration file.
    ///
    /// # Errors
    /// [`SettingsError::Unreadable`], [`SettingsError::TooLong`],
    /// [`SettingsError::Malformed`] (unknown names included).
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        use std::io::Read as _;
        let unreadable = |source| SettingsError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .map_err(unreadable)?
            .take(LONGEST_FILE + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        if text.len() as u64 > LONGEST_FILE {
            return Err(SettingsError::TooLong {
                path: path.to_owned(),
                limit: LONGEST_FILE,
            });
        }
        match toml::from_str::<File>(&text) {
            Ok(file) => Ok(file.serve),
            Err(error) => Err(SettingsError::Malformed {
                path: path.to_owned(),
                reason: error.to_string().trim_end().to_owned(),
            }),
        }
    }

    /// These settings, and `other`'s where these have none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            model: first_filled(self.model, other.model),
            broker: self.broker.or(other.broker),
            broker_authorities: self.broker_authorities.or(other.broker_authorities),
            tee: self.tee.or(other.tee),
            tpm: self.tpm.or(other.tpm),
            evidence_command: first_filled(self.evidence_command, other.evidence_command),
            gpu_evidence_command: first_filled(
                self.gpu_evidence_command,
                other.gpu_evidence_command,
            ),
            additional_evidence: first_filled(self.additional_evidence, other.additional_evidence),
            listen: self.listen.or(other.listen),
            threads: self.threads.or(other.threads),
            sessions: self.sessions.or(other.sessions),
            protected_memory: self.protected_memory.or(other.protected_memory),
            max_shape: first_filled(self.max_shape, other.max_shape),
            spill: self.spill.or(other.spill),
            spill_cipher: self.spill_cipher.or(other.spill_cipher),
            mirror: self.mirror.or(other.mirror),
            kem: self.kem.or(other.kem),
            maximum_request: self.maximum_request.or(other.maximum_request),
            requests_in_flight: self.requests_in_flight.or(other.requests_in_flight),
            request_memory: self.request_memory.or(other.request_memory),
            body_seconds: self.body_seconds.or(other.body_seconds),
            queue_seconds: self.queue_seconds.or(other.queue_seconds),
            lease_seconds: self.lease_seconds.or(other.lease_seconds),
        }
    }

    /// Fills in the defaults and checks every value.
    ///
    /// # Errors
    /// [`SettingsError::Missing`] without model, broker or TEE;
    /// [`SettingsError::Invalid`].
    pub fn resolve(self) -> Result<ServerOptions, SettingsError> {
        if self.model.is_empty() {
            return Err(SettingsError::Missing { name: "model" });
        }
        let broker = self
            .broker
            .ok_or(SettingsError::Missing { name: "broker" })?;
        if !broker.username().is_empty() || broker.password().is_some() {
            return Err(SettingsError::Invalid {
                name: "broker",
                found: "a URL with a user name or password".to_owned(),
                expected: "a URL without, since clients can read it in the service statement"
                    .to_owned(),
            });
        }
        let maximum_request = self.maximum_request.unwrap_or(DEFAULT_MAXIMUM_REQUEST);
        if maximum_request.as_u64() < LOWEST_MAXIMUM_REQUEST {
            return Err(SettingsError::Invalid {
                name: "maximum-request",
                found: maximum_request.to_string(),
                expected: format!("at least {}", ByteSize(LOWEST_MAXIMUM_REQUEST)),
            });
        }
        let least_memory = Admission::least(maximum_request.as_u64());
        let request_memory = self
            .request_memory
            .unwrap_or(DEFAULT_REQUEST_MEMORY.max(ByteSize(least_memory)));
        if request_memory.as_u64() < least_memory {
            return Err(SettingsError::Invalid {
                name: "request-memory",
                found: request_memory.to_string(),
                expected: format!(
                    "at least {}, for one request of {maximum_request} and its answer",
                    ByteSize(least_memory)
                ),
            });
        }
        let threads = match self.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        Ok(ServerOptions {
            models: self.model,
            broker,
            broker_authorities: self.broker_authorities,
            tee: self.tee.ok_or(SettingsError::Missing { name: "tee" })?,
            machine: Machine::default()
                .with_evidence_command(self.evidence_command)
                .with_gpu_evidence_command(self.gpu_evidence_command)
                .with_tpm(self.tpm),
            additional_evidence: self.additional_evidence,
            listen: self.listen.unwrap_or(DEFAULT_LISTEN),
            threads,
            sessions: self.sessions.unwrap_or(NonZeroUsize::MIN),
            protected_memory: self.protected_memory.unwrap_or_default(),
            max_shape: self.max_shape,
            spill: self.spill.unwrap_or_default(),
            spill_cipher: self.spill_cipher,
            mirror: self.mirror,
            kem: self.kem.unwrap_or_default(),
            maximum_request: maximum_request.as_u64(),
            requests_in_flight: self.requests_in_flight.unwrap_or(DEFAULT_REQUESTS).get(),
            request_memory: request_memory.as_u64(),
            body_time: seconds(
                "body-seconds",
                self.body_seconds.unwrap_or(DEFAULT_BODY_SECONDS),
                LONGEST_SECONDS,
            )?,
            queue_time: seconds(
                "queue-seconds",
                self.queue_seconds.unwrap_or(DEFAULT_QUEUE_SECONDS),
                LONGEST_SECONDS,
            )?,
            lease: seconds(
                "lease-seconds",
                self.lease_seconds.unwrap_or(DEFAULT_LEASE_SECONDS),
                LONGEST_LEASE_SECONDS,
            )?,
            library: LibrarySearch::standard(),
        })
    }
}

/// Everything a server needs to start, with no value absent. Made by
/// [`Settings::resolve`].
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Sealed models, at least one.
    pub models: Vec<PathBuf>,
    /// The broker that holds their keys.
    pub broker: Url,
    /// PEM certificates of the authorities behind the broker's, instead of the
    /// system's.
    pub broker_authorities: Option<PathBuf>,
    /// The TEE that this process runs in.
    pub tee: TeeChoice,
    /// Where its devices are, and what fetches evidence that no device gives.
    pub machine: Machine,
    /// What else evidence is collected of, beside the TEE.
    pub additional_evidence: Vec<TeeKind>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Threads that one inference uses.
    pub threads: NonZeroUsize,
    /// Inferences of one model that run at once.
    pub sessions: NonZeroUsize,
    /// Protected memory for each model.
    pub protected_memory: MemoryBudget,
    /// The largest shapes of inputs; each is of some model.
    pub max_shape: Vec<LargestShape>,
    /// Where weights beyond it lie, encrypted.
    pub spill: Spill,
    /// What they are encrypted with there, if not with the fastest on this processor.
    pub spill_cipher: Option<CipherKind>,
    /// Where copies of the containers lie, and of streamed weights in a file.
    pub mirror: Option<PathBuf>,
    /// The channel's key encapsulation.
    pub kem: Kem,
    /// Largest encapsulated request, in bytes.
    pub maximum_request: u64,
    /// Requests in flight at once.
    pub requests_in_flight: usize,
    /// Protected memory for requests in flight, in bytes.
    pub request_memory: u64,
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// How long a request waits for a free session.
    pub queue_time: Duration,
    /// How often leases are renewed; one ends after twice this long.
    pub lease: Duration,
    /// Where ONNX Runtime's library is looked for.
    pub library: LibrarySearch,
}

/// How much protected memory a model may take: `resident` (all its weights and what
/// its runs take), `auto` (what is available less a tenth) or a size such as `256MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryBudget {
    /// All weights stay in protected memory.
    #[default]
    Resident,
    /// As many as the memory that is available when the model is loaded allows.
    Auto,
    /// This many bytes, the process itself included.
    Bytes(u64),
}

impl MemoryBudget {
    /// The engine's budget as of now, and what of it is for the process. Of what is
    /// available a tenth is left to everything else; the process has its memory already.
    #[must_use]
    pub fn now(self) -> (ProtectedMemory, ProcessMemory) {
        match self {
            Self::Resident => (ProtectedMemory::Resident, ProcessMemory::Apart),
            Self::Bytes(bytes) => (ProtectedMemory::Bytes(bytes), ProcessMemory::Measured),
            Self::Auto => match memory::available() {
                Some(bytes) => (ProtectedMemory::Bytes(bytes / 10 * 9), ProcessMemory::Apart),
                None => (ProtectedMemory::Resident, ProcessMemory::Apart),
            },
        }
    }
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "resident" => Ok(Self::Resident),
            "auto" => Ok(Self::Auto),
            size => size
                .parse::<ByteSize>()
                .map(|size| Self::Bytes(size.as_u64()))
                .map_err(|_| {
                    format!("{text:?} is neither resident, auto nor a size such as 256MiB")
                }),
        }
    }
}

/// A value that has no form of its own in TOML.
fn from_text<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    D: serde::Deserializer<'de>,
{
    use serde::Deserialize as _;
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// The same, in a list.
fn from_texts<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    D: serde::Deserializer<'de>,
{
    use serde::Deserialize as _;
    let texts = Vec::<String>::deserialize(deserializer)?;
    let values = texts.iter().map(|text| text.parse());
    values
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}

/// A duration of at least a second and at most `longest`.
fn seconds(name: &'static str, seconds: u64, longest: u64) -> Result<Duration, SettingsError> {
    if (1..=longest).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(SettingsError::Invalid {
            name,
            found: seconds.to_string(),
            expected: format!("1 to {longest}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("occlude.toml");
        std::fs::write(&path, text).unwrap();
        Settings::read(&path)
    }

    fn enough() -> Settings {
        parse("[serve]\nmodel = [\"a.occ\"]\nbroker = \"http://broker/\"\ntee = \"simulated\"\n")
            .unwrap()
    }

    #[test]
    fn every_name_is_read() {
        let settings = parse(
            r#"
            [serve]
            model = ["a.occ", "b.occ"]
            broker = "https://broker.example/"
            broker-authorities = "ca.pem"
            tee = "snp"
            tpm = "/dev/tpm0"
            evidence-command = ["psa-token", "--raw"]
            gpu-evidence-command = ["nvattest", "collect-evidence", "--nonce"]
            additional-evidence = ["tpm", "nvidia"]
            listen = "0.0.0.0:8000"
            threads = 4
            sessions = 2
            protected-memory = "256MiB"
            max-shape = ["image=1x3x224x224", "ids=128"]
            spill = "direct:/var/lib/occlude"
            spill-cipher = "aes-256-gcm"
            mirror = "/mnt/second"
            kem = "x25519"
            maximum-request = "8MiB"
            requests-in-flight = 10
            request-memory = "100MiB"
            body-seconds = 5
            queue-seconds = 6
            lease-seconds = 60
            "#,
        )
        .unwrap();
        assert_eq!(
            settings,
            Settings {
                model: vec!["a.occ".into(), "b.occ".into()],
                broker: Some("https://broker.example/".parse().unwrap()),
                broker_authorities: Some("ca.pem".into()),
                tee: Some(TeeChoice::Named(TeeKind::Snp)),
                tpm: Some(PathBuf::from("/dev/tpm0")),
                evidence_command: vec!["psa-token".to_owned(), "--raw".to_owned()],
                gpu_evidence_command: ["nvattest", "collect-evidence", "--nonce"]
                    .map(str::to_owned)
                    .to_vec(),
                additional_evidence: vec![TeeKind::Tpm, TeeKind::Nvidia],
                listen: Some("0.0.0.0:8000".parse().unwrap()),
                threads: NonZeroUsize::new(4),
                sessions: NonZeroUsize::new(2),
                protected_memory: Some(MemoryBudget::Bytes(256 << 20)),
                max_shape: vec![
                    "image=1x3x224x224".parse().unwrap(),
                    "ids=128".parse().unwrap(),
                ],
                spill: Some(Spill::direct("/var/lib/occlude")),
                spill_cipher: Some(CipherKind::Aes256Gcm),
                mirror: Some("/mnt/second".into()),
                kem: Some(Kem::X25519),
                maximum_request: Some(ByteSize::mib(8)),
                requests_in_flight: NonZeroUsize::new(10),
                request_memory: Some(ByteSize::mib(100)),
                body_seconds: Some(5),
                queue_seconds: Some(6),
                lease_seconds: Some(60),
            }
        );
        let options = settings.resolve().unwrap();
        assert_eq!(options.maximum_request, 8 << 20);
        assert_eq!(options.lease, Duration::from_secs(60));
    }

    /// Why a text is not a table of settings.
    fn malformed(text: &str) -> String {
        match parse(text).unwrap_err() {
            SettingsError::Malformed { reason, .. } => reason,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_place() {
        let reason = malformed("[serve]\nlissten = 1\n");
        assert!(reason.contains("unknown field `lissten`"), "{reason}");
        assert!(reason.contains("line 2"), "{reason}");
    }

    #[test]
    fn another_table_is_refused() {
        let reason = malformed("[serve]\n[broker]\n");
        assert!(
            reason.contains("unknown field `broker`, expected `serve`"),
            "{reason}"
        );
    }

    #[test]
    fn every_name_is_explained_where_users_look() {
        let explained: Vec<&str> = include_str!("../../../docs/server.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .map(|(name, _)| name)
            .collect();
        // The parser lists all the names that it knows.
        let error = parse("[serve]\nunknown = 1\n").unwrap_err().to_string();
        let names: Vec<&str> = error
            .split_once("expected one of ")
            .unwrap()
            .1
            .lines()
            .next()
            .unwrap()
            .split(", ")
            .map(|name| name.trim_matches('`'))
            .collect();
        assert_eq!(names.len(), 23, "{names:?}");
        for name in names {
            assert!(explained.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_largest_shape_that_is_none_is_refused() {
        let reason = malformed("[serve]\nmax-shape = [\"image\"]\n");
        assert!(
            reason.contains("expected an input's name and its largest extents"),
            "{reason}"
        );
    }

    #[test]
    fn a_budget_of_what_is_available_leaves_a_tenth() {
        let available = memory::available().unwrap();
        let (budget, process) = MemoryBudget::Auto.now();
        let ProtectedMemory::Bytes(bytes) = budget else {
            panic!("{budget}");
        };
        // Other processes take and give back memory meanwhile.
        assert!(bytes < available, "{bytes} of {available}");
        assert_eq!(process, ProcessMemory::Apart);
        assert_eq!(
            MemoryBudget::Bytes(7).now(),
            (ProtectedMemory::Bytes(7), ProcessMemory::Measured)
        );
    }

    #[test]
    fn an_unknown_key_encapsulation_is_refused() {
        let reason = malformed("[serve]\nkem = \"rsa\"\n");
        assert!(
            reason.contains("the key encapsulation is either `x-wing` or `x25519`"),
            "{reason}"
        );
    }

    #[test]
    fn a_place_for_weights_that_is_none_is_refused() {
        let reason = malformed("[serve]\nspill = \"disk\"\n");
        assert!(
            reason.contains("\"disk\" is neither shared nor direct:FOLDER"),
            "{reason}"
        );
    }

    #[test]
    fn a_cipher_for_weights_that_is_none_is_refused() {
        let reason = malformed("[serve]\nspill-cipher = \"rot13\"\n");
        assert!(
            reason.contains(
                "\"rot13\" is no cipher: aegis-128l, aegis-128x2, aegis-128x4 and aes-256-gcm are"
            ),
            "{reason}"
        );
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = Settings {
            listen: Some("127.0.0.1:9".parse().unwrap()),
            ..Settings::default()
        };
        let file = Settings {
            listen: Some("127.0.0.1:10".parse().unwrap()),
            lease_seconds: Some(5),
            ..enough()
        };
        let options = flags.or(file).resolve().unwrap();
        assert_eq!(options.listen, "127.0.0.1:9".parse().unwrap());
        assert_eq!(options.lease, Duration::from_secs(5));
        assert_eq!(options.models, [PathBuf::from("a.occ")]);
    }

    #[test]
    fn what_has_no_default_is_asked_for_by_name() {
        for (settings, expected) in [
            (
                Settings {
                    model: Vec::new(),
                    ..enough()
                },
                "model",
            ),
            (
                Settings {
                    broker: None,
                    ..enough()
                },
                "broker",
            ),
            (
                Settings {
                    tee: None,
                    ..enough()
                },
                "tee",
            ),
        ] {
            let error = settings.resolve().unwrap_err();
            assert!(
                matches!(error, SettingsError::Missing { name } if name == expected),
                "{error}"
            );
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_what_would_do() {
        let cases = [
            (
                Settings {
                    lease_seconds: Some(0),
                    ..enough()
                },
                "lease-seconds is 0, expected 1 to 3600",
            ),
            (
                Settings {
                    lease_seconds: Some(3601),
                    ..enough()
                },
                "lease-seconds is 3601, expected 1 to 3600",
            ),
            (
                Settings {
                    body_seconds: Some(86_401),
                    ..enough()
                },
                "body-seconds is 86401, expected 1 to 86400",
            ),
            (
                Settings {
                    maximum_request: Some(ByteSize(100)),
                    ..enough()
                },
                "maximum-request is 100 B, expected at least 16.0 KiB",
            ),
            (
                Settings {
                    request_memory: Some(ByteSize::mib(1)),
                    ..enough()
                },
                "request-memory is 1.0 MiB, expected at least 384.0 MiB, for one request of 64.0 MiB and its answer",
            ),
            (
                Settings {
                    broker: Some("http://user:word@broker/".parse().unwrap()),
                    ..enough()
                },
                "broker is a URL with a user name or password, expected a URL without, since clients can read it in the service statement",
            ),
        ];
        for (settings, expected) in cases {
            assert_eq!(settings.resolve().unwrap_err().to_string(), expected);
        }
    }
}
