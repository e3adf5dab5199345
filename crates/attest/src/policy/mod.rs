//! Policies: which evidence and which service somebody accepts.
//!
//! A policy denies by default: what it does not name is refused, a field that it
//! does not know is an error, and a list left out accepts nothing unless
//! docs/policy.md says what it accepts. Debuggable TEEs are refused always, and
//! simulated ones unless both their kind and their trust are spelled out in a
//! build that has them at all.

mod judge;
#[cfg(test)]
mod judge_tests;
mod pin;
mod platform;
mod refusal;
mod signed;
#[cfg(test)]
mod tests;

use std::path::Path;

use occlude_keys::{HeaderDigest, ModelId, ModelVersion, OwnerPublic};
use serde::{Deserialize, Serialize};

use platform::{
    AzurePolicy, CcaPolicy, NitroPolicy, NvidiaPolicy, SePolicy, SgxPolicy, SimulatedPolicy,
    SnpPolicy, TdxPolicy, TpmPolicy, TrustZonePolicy,
};
pub use refusal::Refusal;
pub use signed::{PolicyFile, PolicyFileError, SignPolicyError, sign_policy};

use crate::canonical::reason;
use crate::{ConfigurationDigest, Measurement, Protection, TeeKind, Trust};

/// The only version of the format.
const FORMAT: u32 = 1;

/// Written above a policy that nobody reviewed.
const NOT_REVIEWED: &str = "\
# Nobody has reviewed this policy. If it was written from what one server showed,
# compare it with reference values from a reproducible build or from the owner; if
# from an image or a log, see that they are the ones you mean. Then set
# `reviewed = true`.
";

/// Which evidence and which service somebody accepts.
///
/// The default policy accepts nothing: it names no measurement and no owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    format: u32,
    #[serde(default)]
    reviewed: bool,
    #[serde(default)]
    evidence: EvidencePolicy,
    #[serde(default)]
    service: ServicePolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct EvidencePolicy {
    tee: Vec<TeeKind>,
    trust: Vec<Trust>,
    protection: Vec<Protection>,
    measurements: Vec<Measurement>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    additional: Vec<TeeKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    configurations: Option<Vec<ConfigurationDigest>>,
    #[serde(skip_serializing_if = "platform::is_default")]
    collateral_grace_hours: u32,
    #[serde(skip_serializing_if = "platform::is_default")]
    simulated: SimulatedPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    snp: SnpPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    tdx: TdxPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    sgx: SgxPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    nitro: NitroPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    az_snp_vtpm: AzurePolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    az_tdx_vtpm: AzurePolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    cca: CcaPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    trustzone: TrustZonePolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    se: SePolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    tpm: TpmPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    txt: TpmPolicy,
    #[serde(skip_serializing_if = "platform::is_default")]
    nvidia: NvidiaPolicy,
}

impl Default for EvidencePolicy {
    fn default() -> Self {
        Self {
            tee: TeeKind::DEFAULT.to_vec(),
            trust: vec![Trust::Hardware],
            protection: vec![Protection::ConfidentialMemory],
            measurements: Vec::new(),
            additional: Vec::new(),
            configurations: None,
            collateral_grace_hours: 0,
            simulated: SimulatedPolicy::default(),
            snp: SnpPolicy::default(),
            tdx: TdxPolicy::default(),
            sgx: SgxPolicy::default(),
            nitro: NitroPolicy::default(),
            az_snp_vtpm: AzurePolicy::default(),
            az_tdx_vtpm: AzurePolicy::default(),
            cca: CcaPolicy::default(),
            trustzone: TrustZonePolicy::default(),
            se: SePolicy::default(),
            tpm: TpmPolicy::default(),
            txt: TpmPolicy::default(),
            nvidia: NvidiaPolicy::default(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct ServicePolicy {
    owners: Vec<OwnerPublic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<ModelPolicy>>,
    configuration: ConfigurationPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ModelPolicy {
    id: ModelId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerPublic>,
    #[serde(default)]
    minimum_version: ModelVersion,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digests: Option<Vec<HeaderDigest>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guards: Option<Vec<String>>,
}

/// Accepted settings; `None` accepts what docs/policy.md says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct ConfigurationPolicy {
    kem: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    padding: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_authentication: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    brokers: Option<Vec<String>>,
}

impl Default for ConfigurationPolicy {
    fn default() -> Self {
        Self {
            kem: vec!["x-wing".to_owned()],
            padding: None,
            client_authentication: None,
            brokers: None,
        }
    }
}

/// Why a text is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Longer than any honest one.
    #[error("{found} bytes, a policy has at most {limit}")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
        /// How many came, or where reading stopped.
        found: u64,
    },
    /// Not TOML, an unknown field, or a value of the wrong shape.
    #[error("line {line}: {reason}")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it, cut to 200 characters.
        reason: String,
    },
    /// Another version of the format.
    #[error("policy format {found}, expected {FORMAT}")]
    ForeignFormat {
        /// The version that came.
        found: i64,
    },
    /// A listed model that could be of any of several owners: each of them could
    /// serve another one under its name.
    #[error("model {id} names no owner, which it must where `owners` has more than one")]
    ModelWithoutOwner {
        /// The model.
        id: ModelId,
    },
    /// A listed model of an owner that the policy does not accept.
    #[error("model {id} names owner {owner}, who is not in `owners`")]
    ModelOfForeignOwner {
        /// The model.
        id: ModelId,
        /// The owner that it names.
        owner: Box<OwnerPublic>,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            format: FORMAT,
            reviewed: false,
            evidence: EvidencePolicy::default(),
            service: ServicePolicy::default(),
        }
    }
}

impl Policy {
    /// The longest policy that is read: thousands of measurements and models.
    pub const MAX_BYTES: u64 = 1024 * 1024;

    /// Reads a policy from TOML. docs/policy.md describes each field.
    ///
    /// # Errors
    /// [`PolicyError`]: too long, another format, not exactly a policy, or a
    /// listed model whose owner is not clear or not accepted.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() as u64 > Self::MAX_BYTES {
            return Err(PolicyError::TooLarge {
                limit: Self::MAX_BYTES,
                found: text.len() as u64,
            });
        }
        // The format first: another one may well have other fields.
        let Format { format } = from_toml(text)?;
        if format != i64::from(FORMAT) {
            return Err(PolicyError::ForeignFormat { found: format });
        }
        let policy: Self = from_toml(text)?;
        policy.service.check_owners()?;
        Ok(policy)
    }

    /// Reads a policy from a file, signed or not; see [`PolicyFile`].
    ///
    /// # Errors
    /// [`PolicyFileError`].
    pub fn read(path: &Path) -> Result<Self, PolicyFileError> {
        PolicyFile::read(path, None).map(PolicyFile::into_policy)
    }

    /// Writes the policy as TOML that [`Policy::parse`] reads back, with a
    /// warning above it if nobody reviewed it.
    ///
    /// # Panics
    /// Never: all its numbers fit into TOML's.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let body = toml::to_string(self).expect("a policy has a TOML form");
        let warning = if self.reviewed { "" } else { NOT_REVIEWED };
        format!("{warning}{body}")
    }

    /// Whether somebody compared it with reference values. One that nobody did
    /// works, and its user should be told.
    #[must_use]
    pub fn reviewed(&self) -> bool {
        self.reviewed
    }

    /// The owners it accepts.
    #[must_use]
    pub fn owners(&self) -> &[OwnerPublic] {
        &self.service.owners
    }

    /// Whether it names the simulated TEE, which protects nothing. A build
    /// without that TEE refuses everything under such a policy.
    #[must_use]
    pub fn names_simulated(&self) -> bool {
        self.evidence.tee.contains(&TeeKind::Simulated)
            || self.evidence.trust.contains(&Trust::Simulated)
    }
}

impl ServicePolicy {
    /// Each listed model must be of one owner, and of one that is accepted.
    fn check_owners(&self) -> Result<(), PolicyError> {
        let several = self.owners.windows(2).any(|pair| pair[0] != pair[1]);
        for model in self.models.iter().flatten() {
            match &model.owner {
                None if several => {
                    return Err(PolicyError::ModelWithoutOwner {
                        id: model.id.clone(),
                    });
                }
                Some(owner) if !self.owners.contains(owner) => {
                    return Err(PolicyError::ModelOfForeignOwner {
                        id: model.id.clone(),
                        owner: Box::new(*owner),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Format {
    format: i64,
}

fn from_toml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, PolicyError> {
    toml::from_str(text).map_err(|error| {
        let before = error
            .span()
            .and_then(|span| text.as_bytes().get(..span.start))
            .unwrap_or_default();
        PolicyError::Malformed {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            reason: reason(&error.message()),
        }
    })
}
