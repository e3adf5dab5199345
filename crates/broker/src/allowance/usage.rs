//! What an instance saw in one client's queries.

use serde::{Deserialize, Serialize};

use super::ClientDigest;

/// What in a client's queries is unusual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Unusual {
    /// How many answers the model is not certain of.
    Uncertain,
    /// How far inputs are from each other.
    Distances,
}

impl Unusual {
    /// As entries and metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uncertain => "uncertain",
            Self::Distances => "distances",
        }
    }
}

/// One window of one client's queries, in counts that say nothing of any single one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UsageReport {
    /// Whose.
    pub client: ClientDigest,
    /// How many were answered.
    pub queries: u32,
    /// Those of them that the model was not certain of.
    pub uncertain: u32,
    /// What of it is unusual, if anything.
    pub unusual: Vec<Unusual>,
    /// For how long the client is allowed no queries where something is; `None` for not at
    /// all.
    pub throttle_seconds: Option<u32>,
}

/// What a broker says to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Acknowledgement {
    /// For how many seconds the client is allowed no queries, 0 for none.
    pub throttled_for: u32,
}
