//! Who asks under several names, where each has a budget.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Python;
use crate::owner::Owner;
use crate::processes::{DeploymentError, Service, failed, free_address};

/// The model, which is the unguarded one but for its budgets.
pub(super) const COUNTED: &str = "digits-budgets";
const PLAIN: &str = "digits-none";

/// How many names somebody has.
const NAMES: [usize; 3] = [1, 3, 10];

/// Rows that are asked at once: budgets are a multiple of it.
const BATCH: u32 = 10;

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

/// What Python is told.
#[derive(Serialize)]
struct Told<'a> {
    model: &'a str,
    of_each: u32,
    batch: u32,
    /// A proxy for each name.
    groups: Vec<Vec<SocketAddr>>,
}

/// Seals the unguarded model with a budget for each client: a tenth of what attackers may ask.
pub(super) fn seal(
    owner: &Owner,
    python: &Python<'_>,
    queries: u32,
) -> Result<(String, u32), DeploymentError> {
    const DOING: &str = "sealing a model with budgets";
    let of_each = (queries / 10 / BATCH).max(1) * BATCH;
    let issuer = owner.issuer(KEY, ISSUER)?;
    let guard = python.folder.at("budgets.toml");
    let text = format!(
        "format = 1\noutput = \"probabilities\"\n[budgets]\nwindow-seconds = 31536000\n\
         client = {{ window = {of_each} }}\n{issuer}"
    );
    std::fs::write(&guard, text).map_err(failed(DOING))?;
    let (sealed, guard) = (format!("{COUNTED}.occ"), guard.display().to_string());
    let plain = python.folder.at(&format!("{PLAIN}.onnx"));
    owner.seal_with(&plain, &sealed, COUNTED, 1, &["--guard", &guard])?;
    owner.must_order(&["add-model", &owner.text(&sealed)])?;
    Ok((sealed, of_each))
}

/// A proxy for each name of each group, and Python told of them.
pub(super) fn start(
    owner: &Owner,
    python: &Python<'_>,
    (url, policy): (&str, &str),
    of_each: u32,
) -> Result<Vec<Service>, DeploymentError> {
    const DOING: &str = "starting a proxy for each name";
    let (mut proxies, mut groups) = (Vec::new(), Vec::new());
    for names in NAMES {
        let mut group = Vec::new();
        for name in 0..names {
            let token = owner.token(KEY, ISSUER, &format!("{name} of {names}"), COUNTED)?;
            let file = format!("token-{name}-{names}");
            std::fs::write(owner.at(&file), token).map_err(failed(DOING))?;
            let (address, token) = (free_address()?, owner.text(&file));
            let listen = address.to_string();
            let proxy = ["proxy", url, "--policy", policy, "--listen", &listen];
            let proxy = [&proxy[..], &["--client-token", &token]].concat();
            let command = owner.grounds.binary.command(&proxy);
            proxies.push(owner.spawn(command, address)?.listening(DOING)?);
            group.push(address);
        }
        groups.push(group);
    }
    let told = Told {
        model: COUNTED,
        of_each,
        batch: BATCH,
        groups,
    };
    let told = serde_json::to_vec(&told).map_err(failed(DOING))?;
    std::fs::write(python.folder.at("names.json"), told).map_err(failed(DOING))?;
    Ok(proxies)
}
