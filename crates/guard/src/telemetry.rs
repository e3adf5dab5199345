//! What is looked at in a client's queries, all together.
//!
//! Somebody who copies a model asks about other things than its users do: about what the
//! model is not sure of, and about inputs that were made from each other, whose distances
//! are no longer as those of things that were found (PRADA: Juuti, Szyller, Marchal and
//! Asokan, "PRADA: Protecting Against DNN Model Stealing Attacks", IEEE EuroS&P 2019).

use serde::{Deserialize, Serialize};

use crate::ConfigurationError;

/// The shortest window: fewer distances say nothing about their distribution.
const FEWEST_QUERIES: u32 = 100;

/// The longest: a server keeps this many distances for each client.
const MOST_QUERIES: u32 = 1000;

/// The longest pause, in seconds: thirty days.
const LONGEST_PAUSE: u32 = 30 * 24 * 3600;

/// When a client's queries are unusual, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Telemetry {
    /// So many answers to one client are looked at together, 100 to 1,000.
    pub queries: u32,
    /// Too many answers that the model is not certain of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertain: Option<Uncertain>,
    /// Distances between inputs that are not those of things that were found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distances: Option<Distances>,
    /// For how long a client gets no answer then, in seconds, 1 to thirty days. Without it
    /// the owner is told and nothing else happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_seconds: Option<u32>,
}

/// The share of answers that the model is not certain of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Uncertain {
    /// An answer whose largest probability is below this is uncertain; above 0, to 1.
    pub below: f64,
    /// More than this share of uncertain answers is unusual, from 0 to below 1.
    pub share: f64,
}

/// How normal the distances are between each input and those before it in the same class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Distances {
    /// A Shapiro-Wilk statistic W below this is unusual; between 0 and 1.
    pub normality: f64,
}

impl Telemetry {
    pub(crate) fn check(&self) -> Result<(), ConfigurationError> {
        if !(FEWEST_QUERIES..=MOST_QUERIES).contains(&self.queries) {
            return Err(ConfigurationError::value(
                "telemetry.queries",
                self.queries,
                "100 to 1000",
            ));
        }
        match self.throttle_seconds {
            Some(found) if found == 0 || found > LONGEST_PAUSE => {
                let expected = "1 to 2592000, thirty days";
                return Err(ConfigurationError::value(
                    "telemetry.throttle-seconds",
                    found,
                    expected,
                ));
            }
            _ => {}
        }
        if let Some(Uncertain { below, share }) = self.uncertain {
            if !(below > 0.0 && below <= 1.0) {
                let expected = "a number above 0, to 1";
                return Err(ConfigurationError::value(
                    "telemetry.uncertain.below",
                    below,
                    expected,
                ));
            }
            if !(0.0..1.0).contains(&share) {
                let expected = "a share from 0 to below 1";
                return Err(ConfigurationError::value(
                    "telemetry.uncertain.share",
                    share,
                    expected,
                ));
            }
        }
        if let Some(Distances { normality }) = self.distances
            && !(normality > 0.0 && normality < 1.0)
        {
            let expected = "a number between 0 and 1";
            return Err(ConfigurationError::value(
                "telemetry.distances.normality",
                normality,
                expected,
            ));
        }
        if self.uncertain.is_none() && self.distances.is_none() {
            let expected = "telemetry.uncertain, telemetry.distances or both";
            return Err(ConfigurationError::value(
                "telemetry",
                "nothing to look at",
                expected,
            ));
        }
        Ok(())
    }
}
