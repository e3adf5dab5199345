//! Why a policy refuses: what was found and what it names, so that a person can
//! tell an attack from an update.

use std::fmt::Display;

use occlude_keys::{HeaderDigest, ModelId, ModelVersion, OwnerPublic};

use crate::intel::TcbStatus;
use crate::{ConfigurationDigest, Measurement, Protection, TeeKind, Trust, UnixTime};

/// Why a policy refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The policy counts on the simulated TEE, and this build has none.
    #[error(
        "the policy names the simulated TEE, and this build refuses it: it lacks the `simulated` feature, which is for development only"
    )]
    SimulatedDisabled,
    /// The host can debug the TEE and read everything in it.
    #[error("the TEE can be debugged by its host, which no policy accepts")]
    Debug,
    /// A kind of TEE that the policy does not name.
    #[error("the evidence is of {found}, the policy accepts {}", listed(accepted))]
    Tee {
        /// The kind that came.
        found: TeeKind,
        /// The kinds that the policy names.
        accepted: Vec<TeeKind>,
    },
    /// The policy wants evidence of something beside the TEE, and none came.
    #[error("evidence of {missing} is missing, which the policy wants beside the TEE's")]
    AdditionalMissing {
        /// What is missing.
        missing: TeeKind,
    },
    /// Evidence of something beside the TEE that the policy does not name.
    #[error(
        "evidence of {found} came along, the policy accepts {} beside the TEE's",
        listed(accepted)
    )]
    Additional {
        /// What came along.
        found: TeeKind,
        /// What the policy names.
        accepted: Vec<TeeKind>,
    },
    /// Evidence that rests on somebody's word that the policy does not take.
    #[error(
        "the evidence rests on trust {found}, the policy accepts {}",
        listed(accepted)
    )]
    Trust {
        /// The trust that came.
        found: Trust,
        /// The levels that the policy names.
        accepted: Vec<Trust>,
    },
    /// A TEE that protects less, or something else, than the policy wants.
    #[error("the TEE gives {found}, the policy accepts {}", listed(accepted))]
    Protection {
        /// The protection that came.
        found: Protection,
        /// The levels that the policy names.
        accepted: Vec<Protection>,
    },
    /// Firmware or microcode with known holes.
    #[error("the TEE's security version is {found}, the policy wants {minimum} or more")]
    Tcb {
        /// The version that came, component by component.
        found: String,
        /// The lowest that the policy accepts.
        minimum: String,
    },
    /// A platform that its vendor judges worse than the policy accepts.
    #[error(
        "the vendor says the platform's TCB is {found} ({}), below the policy's floor: {field} accepts {}",
        advised(advisories),
        listed(accepted)
    )]
    TcbStatus {
        /// The policy's field, below `[evidence]`.
        field: &'static str,
        /// The vendor's word.
        found: TcbStatus,
        /// The advisories that the platform is open to.
        advisories: Vec<String>,
        /// What the policy accepts.
        accepted: Vec<TcbStatus>,
    },
    /// Something else of its kind of TEE than the policy accepts.
    #[error("the evidence has {found} for {field}, the policy accepts {accepted}")]
    Platform {
        /// The policy's field, below `[evidence]`.
        field: &'static str,
        /// What came.
        found: String,
        /// What the policy accepts.
        accepted: String,
    },
    /// Revocation lists or the like that the vendor has replaced since, maybe by ones
    /// that refuse this very machine.
    #[error(
        "the vendor's collateral was to be replaced at {until}: fetch it anew (the policy grants {grace_hours} hours)"
    )]
    StaleCollateral {
        /// When it was to be replaced.
        until: UnixTime,
        /// What the policy grants after that.
        grace_hours: u32,
    },
    /// Other code than the policy names.
    #[error("the measurement {found} is not in the policy")]
    Measurement {
        /// The measurement that came.
        found: Measurement,
    },
    /// The policy names configurations, and this evidence covers none.
    #[error("the policy names configurations, and this evidence does not measure one")]
    ConfigurationNotMeasured,
    /// Another configuration than the policy names.
    #[error("the configuration {found} is not in the policy")]
    Configuration {
        /// The configuration's digest that came.
        found: ConfigurationDigest,
    },
    /// The statement speaks of another kind of TEE than its evidence.
    #[error("the statement says it comes from {statement}, its evidence is of {evidence}")]
    StatementTee {
        /// The kind in the statement.
        statement: TeeKind,
        /// The kind that was verified.
        evidence: TeeKind,
    },
    /// The statement tells another configuration than the TEE started with.
    #[error("the statement's configuration is {statement}, the evidence measures {evidence}")]
    StatementConfiguration {
        /// The digest of the statement's configuration.
        statement: ConfigurationDigest,
        /// The digest that was verified.
        evidence: ConfigurationDigest,
    },
    /// A service that says nobody's models are in it.
    #[error("the service names no owner, the policy accepts {}", listed(accepted))]
    NoOwner {
        /// The owners that the policy names.
        accepted: Vec<OwnerPublic>,
    },
    /// A service of an owner that the policy does not name.
    #[error(
        "the service serves owner {found}, the policy accepts {}",
        listed(accepted)
    )]
    Owner {
        /// The owner that came.
        found: Box<OwnerPublic>,
        /// The owners that the policy names.
        accepted: Vec<OwnerPublic>,
    },
    /// A model of another owner than the policy names for it: a namesake.
    #[error("model {id} is of owner {found}, the policy wants it of {expected}")]
    ModelOwner {
        /// The model.
        id: ModelId,
        /// The owner of what is served.
        found: Box<OwnerPublic>,
        /// The owner that the policy names for it.
        expected: Box<OwnerPublic>,
    },
    /// An older version than the policy accepts: a rollback.
    #[error("model {id} is served in version {found}, the policy wants {minimum} or more")]
    ModelVersion {
        /// The model.
        id: ModelId,
        /// The version served.
        found: ModelVersion,
        /// The lowest that the policy accepts.
        minimum: ModelVersion,
    },
    /// Another sealed container than the policy names.
    #[error("model {id} is served from the container {found}, which is not in the policy")]
    ModelDigest {
        /// The model.
        id: ModelId,
        /// The header digest served.
        found: HeaderDigest,
    },
    /// A model has a guard that the policy does not accept, or none.
    #[error("model {id} has the guard {found:?}, the policy accepts {accepted}")]
    ModelGuard {
        /// The model.
        id: ModelId,
        /// What it has.
        found: String,
        /// What the policy accepts.
        accepted: String,
    },
    /// The policy names models, and not this one.
    #[error("model {id} is not in the policy")]
    ModelNotNamed {
        /// The model.
        id: ModelId,
    },
    /// The service does not serve this model.
    #[error("the service does not serve model {id}")]
    ModelNotServed {
        /// The model.
        id: ModelId,
    },
    /// A weaker or another setting than the policy accepts.
    #[error("the service has {setting} = {found:?}, the policy accepts {accepted}")]
    Setting {
        /// The setting's name in the policy.
        setting: &'static str,
        /// The value in the statement.
        found: String,
        /// What the policy accepts.
        accepted: String,
    },
}

fn advised(advisories: &[String]) -> String {
    if advisories.is_empty() {
        return "no advisory is named".to_owned();
    }
    advisories.join(", ")
}

pub(super) fn listed<T: Display>(accepted: &[T]) -> String {
    if accepted.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<String> = accepted.iter().map(ToString::to_string).collect();
    names.join(", ")
}
