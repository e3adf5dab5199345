//! What telemetry would say of who copied a model, and of who did not.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::owner::{Owner, SEALED};
use crate::processes::{DeploymentError, failed};
use crate::watch::{WatchedWindow, quantile};

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
}

/// A client as Python wrote it.
#[derive(Deserialize)]
pub(super) struct Watched {
    who: String,
    queries: u32,
    files: Vec<String>,
}

impl ClientReport {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 6] {
        [
            self.who.clone(),
            self.identities.to_string(),
            self.queries.to_string(),
            format!("{} of {}", self.unusual, self.windows),
            self.uncertain.to_string(),
            self.distances.to_string(),
        ]
    }
}

/// Chooses thresholds as an owner would, and looks at everybody.
pub(super) fn telemetry(
    owner: &Owner,
    folder: &Path,
    watched: &[Watched],
) -> Result<TelemetryReport, DeploymentError> {
    let guard = folder.join("telemetry.toml");
    let issuer = owner.issuer("issuer.pem", "https://issuer.example")?;
    let write = |share: f64, normality: f64| {
        let text = format!(
            "format = 1\noutput = \"probabilities\"\n[budgets]\nwindow-seconds = 86400\n\
             client = {{ window = 1000000 }}\n[telemetry]\nqueries = {QUERIES}\n\
             uncertain = {{ below = {BELOW}, share = {share} }}\n\
             distances = {{ normality = {normality} }}\n{issuer}"
        );
        std::fs::write(&guard, text).map_err(failed(DOING))
    };
    let windows = |watched: &Watched| -> Result<Vec<WatchedWindow>, DeploymentError> {
        let identities = u32::try_from(watched.files.len()).unwrap_or(u32::MAX);
        if watched.queries / identities.max(1) < QUERIES {
            // Nobody fills a window.
            return Ok(Vec::new());
        }
        let files = watched.files.iter().map(|file| folder.join(file));
        owner.watch(WATCHED, &guard, &files.collect::<Vec<_>>())
    };
    let named = |name: &str| {
        let found = watched.iter().find(|watched| watched.who == name);
        found.ok_or_else(|| failed(DOING)(format!("nobody is {name}")))
    };
    write(0.5, 0.5)?;
    let usual = windows(named(CHOSEN_WITH)?)?;
    let share = quantile(usual.iter().map(|window| window.uncertain), USUAL);
    let normality = usual.iter().filter_map(|window| window.normality);
    let normality = quantile(normality, 1.0 - USUAL);
    let (share, normality) = share
        .zip(normality)
        .ok_or_else(|| failed(DOING)("too few queries to choose thresholds with"))?;
    let (share, normality) = (MARGIN * share, 1.0 - MARGIN * (1.0 - normality));
    write(share, normality)?;

    let mut clients = Vec::new();
    for watched in watched.iter().filter(|watched| watched.who != CHOSEN_WITH) {
        let windows = windows(watched)?;
        let count = |unusual: fn(&WatchedWindow) -> bool| {
            let found = windows.iter().filter(|window| unusual(window));
            u32::try_from(found.count()).unwrap_or(u32::MAX)
        };
        clients.push(ClientReport {
            who: watched.who.clone(),
            queries: watched.queries,
            identities: u32::try_from(watched.files.len()).unwrap_or(u32::MAX),
            windows: count(|_| true),
            unusual: count(WatchedWindow::is_unusual),
            uncertain: count(|window| window.uncertain_unusual),
            distances: count(|window| window.distances_unusual),
        });
    }
    let honest = clients.iter().find(|client| client.who == HONEST);
    let honest = honest.ok_or_else(|| failed(DOING)("nobody is honest"))?;
    Ok(TelemetryReport {
        queries: QUERIES,
        below: BELOW,
        share,
        normality,
        false_positive_rate: f64::from(honest.unusual) / f64::from(honest.windows),
        clients,
    })
}
