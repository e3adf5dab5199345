//! What telemetry would say of who copied a model, and of who did not; and what work it would
//! cost them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::thresholds::{BELOW, GuardText, PLENTY, QUERIES, Thresholds};
use crate::owner::{Owner, SEALED, Watched};
use crate::processes::{DeploymentError, failed};
use crate::watch::{WatchedWindow, WatchedWork};

pub(super) const DOING: &str = "looking at queries";

/// The model that is looked at, unguarded otherwise: the first one.
const WATCHED: &str = SEALED;

/// Who asks honestly, for thresholds to be chosen; and others, who tell how often an alarm is
/// false.
const CHOSEN_WITH: &str = "chosen with";
const HONEST: &str = "honest";

/// The first answers cost `2^bits` hashes, and none more than `2^most_bits`.
const BITS: (u32, u32) = (10, 30);

/// What telemetry says of each client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TelemetryReport {
    /// Queries of a window.
    pub queries: u32,
    /// An answer whose largest probability is below it is uncertain.
    pub below: f64,
    /// More than this share of uncertain answers is unusual.
    pub share: f64,
    /// A Shapiro-Wilk statistic below this is unusual.
    pub normality: f64,
    /// Bits of work that the first answers cost, and the dearest.
    pub bits: (u32, u32),
    /// So much gained doubles what an answer costs: half as much again as what 99 in 100 honest
    /// users gain.
    pub gain: f64,
    /// The share of honest windows, of digits that no threshold was chosen with, in which
    /// something was unusual.
    pub false_positive_rate: f64,
    /// Each who asked.
    pub clients: Vec<ClientReport>,
}

/// What telemetry says of one who asked, under one name or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Who.
    pub who: String,
    /// How many queries.
    pub queries: u32,
    /// Under how many names.
    pub identities: u32,
    /// How many windows that were.
    pub windows: u32,
    /// In how many of them something was unusual.
    pub unusual: u32,
    /// How many answers the model was not certain of, in so many of them.
    pub uncertain: u32,
    /// Distances, in so many.
    pub distances: u32,
    /// What the answers told, in answers that told all they can, under each name on average.
    pub gained: f64,
    /// Bits of work that an answer cost, on average: the logarithm of the mean number of hashes.
    pub bits: f64,
    /// The same of the name that paid most.
    pub most_bits: f64,
}

/// Who asked, as Python wrote it.
#[derive(Deserialize)]
pub(super) struct Asker {
    who: String,
    queries: u32,
    files: Vec<String>,
}

impl ClientReport {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 8] {
        [
            self.who.clone(),
            self.identities.to_string(),
            self.queries.to_string(),
            format!("{} of {}", self.unusual, self.windows),
            self.uncertain.to_string(),
            self.distances.to_string(),
            format!("{:.1}", self.gained),
            format!("{:.1}, at most {:.1}", self.bits, self.most_bits),
        ]
    }
}

/// What one guard says of everybody.
pub(super) struct Watching<'a> {
    owner: &'a Owner,
    folder: &'a Path,
    issuers: &'a str,
    thresholds: Thresholds,
}

impl<'a> Watching<'a> {
    /// Chooses thresholds as an owner would.
    pub(super) fn new(
        owner: &'a Owner,
        folder: &'a Path,
        issuers: &'a str,
        askers: &[Asker],
    ) -> Result<Self, DeploymentError> {
        let mut watching = Self {
            owner,
            folder,
            issuers,
            thresholds: Thresholds::ANY,
        };
        let named = askers.iter().find(|asker| asker.who == CHOSEN_WITH);
        let named = named.ok_or_else(|| failed(DOING)("nobody is there to choose with"))?;
        let usual = watching.watched(named, &watching.guard()?)?;
        watching.thresholds = Thresholds::beyond(&usual)?;
        Ok(watching)
    }

    /// What was chosen.
    pub(super) fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// Looks at everybody.
    pub(super) fn report(&self, askers: &[Asker]) -> Result<TelemetryReport, DeploymentError> {
        let guard = self.guard()?;
        let mut clients = Vec::new();
        for asker in askers.iter().filter(|asker| asker.who != CHOSEN_WITH) {
            clients.push(ClientReport::of(asker, &self.watched(asker, &guard)?));
        }
        let honest = clients.iter().find(|client| client.who == HONEST);
        let honest = honest.ok_or_else(|| failed(DOING)("nobody is honest"))?;
        Ok(TelemetryReport {
            queries: QUERIES,
            below: BELOW,
            share: self.thresholds.share,
            normality: self.thresholds.normality,
            bits: BITS,
            gain: self.thresholds.gain,
            false_positive_rate: f64::from(honest.unusual) / f64::from(honest.windows),
            clients,
        })
    }

    fn guard(&self) -> Result<PathBuf, DeploymentError> {
        let guard = self.folder.join("telemetry.toml");
        let text = GuardText::budgets(PLENTY).telemetry(&self.thresholds, false);
        let text = text.work(&self.thresholds, BITS);
        std::fs::write(&guard, text.with(self.issuers)).map_err(failed(DOING))?;
        Ok(guard)
    }

    fn watched(&self, asker: &Asker, guard: &Path) -> Result<Watched, DeploymentError> {
        let files = asker.files.iter().map(|file| self.folder.join(file));
        self.owner.watch(WATCHED, guard, &files.collect::<Vec<_>>())
    }
}

impl ClientReport {
    fn of(asker: &Asker, watched: &Watched) -> Self {
        let Watched { windows, work } = watched;
        let count = |unusual: fn(&WatchedWindow) -> bool| {
            let found = windows.iter().filter(|window| unusual(window));
            u32::try_from(found.count()).unwrap_or(u32::MAX)
        };
        let sum = |value: fn(&WatchedWork) -> f64| work.iter().map(value).sum::<f64>();
        let answers = |work: &WatchedWork| work.answers.max(1) as f64;
        let most = work.iter().map(|work| work.hashes / answers(work));
        Self {
            who: asker.who.clone(),
            queries: asker.queries,
            identities: u32::try_from(asker.files.len()).unwrap_or(u32::MAX),
            windows: count(|_| true),
            unusual: count(WatchedWindow::is_unusual),
            uncertain: count(|window| window.uncertain_unusual),
            distances: count(|window| window.distances_unusual),
            gained: sum(|work| work.gained) / work.len().max(1) as f64,
            bits: (sum(|work| work.hashes) / work.iter().map(answers).sum::<f64>()).log2(),
            most_bits: most.fold(1.0, f64::max).log2(),
        }
    }
}
