//! What telemetry would say of who copied a model, and of who did not; and what work it would
//! cost them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::owner::{Owner, SEALED, Watched};
use crate::processes::{DeploymentError, failed};
use crate::watch::{WatchedWindow, WatchedWork, quantile};

const DOING: &str = "looking at queries";

/// The model that is looked at, unguarded otherwise: the first one.
const WATCHED: &str = SEALED;

/// Who asks honestly, for thresholds to be chosen; and others, who tell how often an alarm is
/// false.
const CHOSEN_WITH: &str = "chosen with";
const HONEST: &str = "honest";

/// Thresholds are beyond this share of honest windows, each.
const USUAL: f64 = 0.99;

/// And further by so much: windows of few digits are more alike than those of many.
const MARGIN: f64 = 1.5;

/// An answer whose largest probability is below it is uncertain.
const BELOW: f64 = 0.9;

/// Queries of a window.
const QUERIES: u32 = 100;

/// The first answers cost `2^BITS` hashes, and none more than `2^MOST_BITS`.
const BITS: u32 = 10;
const MOST_BITS: u32 = 30;

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

/// What the guard says that is tried.
struct Thresholds {
    share: f64,
    normality: f64,
    gain: f64,
}

impl Thresholds {
    fn write(&self, guard: &Path, issuer: &str) -> Result<(), DeploymentError> {
        let Self {
            share,
            normality,
            gain,
        } = self;
        let text = format!(
            "format = 1\noutput = \"probabilities\"\n[budgets]\nwindow-seconds = 86400\n\
             client = {{ window = 1000000 }}\n[telemetry]\nqueries = {QUERIES}\n\
             uncertain = {{ below = {BELOW}, share = {share} }}\n\
             distances = {{ normality = {normality} }}\n\
             [work]\nbits = {BITS}\ngain = {gain}\nmost-bits = {MOST_BITS}\n{issuer}"
        );
        std::fs::write(guard, text).map_err(failed(DOING))
    }

    /// Those that few honest users would be beyond.
    fn beyond(usual: &Watched) -> Option<Self> {
        let shares = usual.windows.iter().map(|window| window.uncertain);
        let normalities = usual.windows.iter().filter_map(|window| window.normality);
        let gains = usual.work.iter().map(|work| work.gained);
        Some(Self {
            share: MARGIN * quantile(shares, USUAL)?,
            normality: 1.0 - MARGIN * (1.0 - quantile(normalities, 1.0 - USUAL)?),
            gain: (MARGIN * quantile(gains, USUAL)?).max(1.0),
        })
    }
}

/// Chooses thresholds as an owner would, and looks at everybody.
pub(super) fn telemetry(
    owner: &Owner,
    folder: &Path,
    askers: &[Asker],
) -> Result<TelemetryReport, DeploymentError> {
    let guard = folder.join("telemetry.toml");
    let issuer = owner.issuer("issuer.pem", "https://issuer.example")?;
    let watched = |asker: &Asker| {
        let files = asker.files.iter().map(|file| folder.join(file));
        owner.watch(WATCHED, &guard, &files.collect::<Vec<_>>())
    };
    let named = |name: &str| {
        let found = askers.iter().find(|asker| asker.who == name);
        found.ok_or_else(|| failed(DOING)(format!("nobody is {name}")))
    };
    let any = Thresholds {
        share: 0.5,
        normality: 0.5,
        gain: 1.0,
    };
    any.write(&guard, &issuer)?;
    let usual = watched(named(CHOSEN_WITH)?)?;
    let chosen = Thresholds::beyond(&usual)
        .ok_or_else(|| failed(DOING)("too few queries to choose thresholds with"))?;
    chosen.write(&guard, &issuer)?;

    let mut clients = Vec::new();
    for asker in askers.iter().filter(|asker| asker.who != CHOSEN_WITH) {
        clients.push(ClientReport::of(asker, &watched(asker)?));
    }
    let honest = clients.iter().find(|client| client.who == HONEST);
    let honest = honest.ok_or_else(|| failed(DOING)("nobody is honest"))?;
    Ok(TelemetryReport {
        queries: QUERIES,
        below: BELOW,
        share: chosen.share,
        normality: chosen.normality,
        bits: (BITS, MOST_BITS),
        gain: chosen.gain,
        false_positive_rate: f64::from(honest.unusual) / f64::from(honest.windows),
        clients,
    })
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
