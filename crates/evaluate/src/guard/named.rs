//! Models that count what each client asks, and clients with a name each.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Python;
use super::thresholds::{GuardText, PLENTY, Thresholds};
use crate::owner::Owner;
use crate::processes::{DeploymentError, Service, failed, free_address};

/// The model that they all are, which is guarded by nothing else.
const PLAIN: &str = "digits-none";

/// What each guard does, and the model's id.
const MODELS: [(&str, &str); 4] = [
    ("budgets", "digits-budgets"),
    ("counted", "digits-counted"),
    ("telemetry", "digits-telemetry"),
    ("work", "digits-work"),
];

/// How many clients have a name.
const NAMES: usize = 20;

/// Rows that are asked at once: budgets are a multiple of it.
const BATCH: u32 = 10;

/// So many queries of an attacker are asked here, at most: budgets are a tenth.
const LOOKED_AT: u32 = 1000;

/// Few enough that a thousand answers are there in a minute, and the first cost next to
/// nothing.
const BITS: (u32, u32) = (8, 19);

const ISSUER: &str = "https://issuer.example";
const KEY: &str = "names.pem";

/// What copies are worth that were made under several names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamesReport {
    /// Answers that each name may have.
    pub of_each: u32,
    /// With each number of names.
    pub clones: Vec<NamedClone>,
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedClone {
    /// Under how many names.
    pub names: u32,
    /// Answers that came.
    pub answers: u32,
    /// Names that had an answer more than their budget.
    pub beyond: u32,
    /// How many held-out digits the copy has right, from 0 to 1.
    pub accuracy: f64,
}

/// Somebody whom telemetry watches, and stops where a window is unusual.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThrottledReport {
    /// Who.
    pub who: String,
    /// Under how many names.
    pub names: u32,
    /// How much it would ask.
    pub queries: u32,
    /// How many answers there were, of all names together, before each was stopped.
    pub answers: u32,
    /// How many held-out digits a copy has right that was made of so many; nobody honest makes
    /// one.
    pub accuracy: Option<f64>,
}

/// Somebody whose answers cost work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkedReport {
    /// Who.
    pub who: String,
    /// Under how many names.
    pub names: u32,
    /// How many answers there were.
    pub queries: u32,
    /// How long they took, in seconds.
    pub seconds: f64,
    /// The same answers of a model that asks for no work.
    pub seconds_without: f64,
}

impl NamedClone {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 4] {
        [
            self.names.to_string(),
            self.answers.to_string(),
            self.beyond.to_string(),
            super::percent(self.accuracy),
        ]
    }
}

impl ThrottledReport {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 4] {
        [
            self.who.clone(),
            self.names.to_string(),
            format!("{} of {}", self.answers, self.queries),
            self.accuracy.map_or_else(String::new, super::percent),
        ]
    }
}

impl WorkedReport {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 5] {
        [
            self.who.clone(),
            self.names.to_string(),
            self.queries.to_string(),
            format!("{:.1}", self.seconds_without),
            format!("{:.1}", self.seconds),
        ]
    }
}

/// What Python is told.
#[derive(Serialize)]
struct Told {
    /// What each model's guard does, and its id.
    models: BTreeMap<&'static str, &'static str>,
    looked_at: u32,
    of_each: u32,
    batch: u32,
    /// A proxy for each name.
    proxies: Vec<SocketAddr>,
}

/// Models with guards that count.
pub(super) struct Named<'a> {
    owner: &'a Owner,
    python: &'a Python<'a>,
    issuers: String,
    of_each: u32,
}

impl<'a> Named<'a> {
    /// Names an issuer of clients' names.
    pub(super) fn new(owner: &'a Owner, python: &'a Python<'_>) -> Result<Self, DeploymentError> {
        let of_each = (python.options.queries.min(LOOKED_AT) / 10 / BATCH).max(1) * BATCH;
        Ok(Self {
            owner,
            python,
            issuers: owner.issuer(KEY, ISSUER)?,
            of_each,
        })
    }

    /// As guards name them.
    pub(super) fn issuers(&self) -> &str {
        &self.issuers
    }

    /// Seals the unguarded model with each guard: the containers.
    pub(super) fn seal(&self, thresholds: &Thresholds) -> Result<Vec<String>, DeploymentError> {
        const DOING: &str = "sealing models that count";
        let plenty = || GuardText::budgets(PLENTY);
        let guards = [
            GuardText::budgets(self.of_each),
            plenty(),
            plenty().telemetry(thresholds, true),
            plenty().work(thresholds, BITS),
        ];
        let plain = self.python.folder.at(&format!("{PLAIN}.onnx"));
        let mut containers = Vec::new();
        for ((_, id), guard) in MODELS.into_iter().zip(guards) {
            let (sealed, path) = (format!("{id}.occ"), format!("{id}.toml"));
            let path = self.python.folder.at(&path);
            std::fs::write(&path, guard.with(&self.issuers)).map_err(failed(DOING))?;
            let guard = ["--guard", &path.display().to_string()];
            self.owner.seal_with(&plain, &sealed, id, 1, &guard)?;
            let add = ["add-model", &self.owner.text(&sealed)];
            self.owner.must_order(&add)?;
            containers.push(sealed);
        }
        Ok(containers)
    }

    /// A proxy for each name, and Python told of them.
    pub(super) fn start(&self, url: &str, policy: &str) -> Result<Vec<Service>, DeploymentError> {
        const DOING: &str = "starting a proxy for each name";
        let may_ask = MODELS.map(|(_, id)| id);
        let (mut proxies, mut addresses) = (Vec::new(), Vec::new());
        for name in 0..NAMES {
            let token = (self.owner).token(KEY, ISSUER, &format!("client {name}"), &may_ask)?;
            let file = format!("token-{name}");
            std::fs::write(self.owner.at(&file), token).map_err(failed(DOING))?;
            let (address, token) = (free_address()?, self.owner.text(&file));
            let listen = address.to_string();
            let proxy = ["proxy", url, "--policy", policy, "--listen", &listen];
            let proxy = [&proxy[..], &["--client-token", &token]].concat();
            let command = self.owner.grounds.binary.command(&proxy);
            proxies.push(self.owner.spawn(command, address)?.listening(DOING)?);
            addresses.push(address);
        }
        let told = Told {
            models: BTreeMap::from(MODELS),
            looked_at: LOOKED_AT,
            of_each: self.of_each,
            batch: BATCH,
            proxies: addresses,
        };
        let told = serde_json::to_vec(&told).map_err(failed(DOING))?;
        std::fs::write(self.python.folder.at("named.json"), told).map_err(failed(DOING))?;
        Ok(proxies)
    }
}
