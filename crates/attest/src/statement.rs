//! The service statement: what a server says about itself, under its evidence.
//!
//! The operator can start a genuine server with its own models, owner key,
//! broker or a weaker configuration. The evidence of that server is genuine; the
//! statement says all of it, so that a policy can refuse it. Nothing in it is
//! secret: the operator reads it too.

use occlude_keys::{HeaderDigest, ModelId, ModelVersion, OwnerPublic};
use sha2::{Digest, Sha256};

use crate::{ConfigurationDigest, DecodeError, PROTOCOL_VERSION, TeeKind, canonical};

/// What a server states about itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServiceStatement {
    /// Always [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// The kind of TEE that it runs in.
    pub tee: TeeKind,
    /// The encoded Oblivious HTTP key configurations (RFC 9458, section 3.2).
    #[serde(with = "canonical::base64_bytes")]
    pub channel_keys: Vec<u8>,
    /// The owners whose models it serves.
    pub owners: Vec<OwnerPublic>,
    /// The models it serves.
    pub models: Vec<ServedModel>,
    /// The configuration in effect.
    pub configuration: SecurityConfiguration,
}

/// One sealed version of one model that a server serves.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServedModel {
    /// The model's public name.
    pub id: ModelId,
    /// Its version, 1 to 2^63 - 1.
    pub version: ModelVersion,
    /// The sealed container's header.
    pub header_digest: HeaderDigest,
    /// The owner, who signed that header.
    pub owner: OwnerPublic,
}

/// The parts of a server's configuration that change what its users or owners
/// can rely on. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SecurityConfiguration {
    /// The broker that releases the model keys, as a URL without credentials.
    pub broker: Option<String>,
    /// The channel's key encapsulation: `x-wing` or `x25519`.
    pub kem: String,
    /// How messages are padded, by the channel's name for it; `none` if not.
    pub padding: String,
    /// How clients prove who they are; `none` if they need not.
    pub client_authentication: String,
    /// The defence against extraction through the interface; `none` if none.
    pub guard: String,
    /// The largest request body accepted, in bytes.
    pub maximum_request_bytes: u64,
}

impl SecurityConfiguration {
    /// SHA-256 of the canonical JSON encoding.
    #[must_use]
    pub fn digest(&self) -> ConfigurationDigest {
        <[u8; 32]>::from(Sha256::digest(canonical::encode(self))).into()
    }
}

/// Why bytes are not a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// Not the encoding of a statement.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Another version of the protocol.
    #[error("protocol version {found}, expected {PROTOCOL_VERSION}")]
    ForeignProtocol {
        /// The version that came.
        found: u32,
    },
    /// A model of an owner that the statement does not list.
    #[error("model {id} belongs to an owner that the statement does not list")]
    UnlistedOwner {
        /// The model.
        id: ModelId,
    },
    /// One version of one model is listed twice.
    #[error("version {version} of model {id} is listed twice")]
    RepeatedModel {
        /// The model.
        id: ModelId,
        /// The version.
        version: ModelVersion,
    },
    /// No model has this version.
    #[error("model {id} has version {version}, expected 1 to 2^63 - 1")]
    VersionOutOfRange {
        /// The model.
        id: ModelId,
        /// The version.
        version: ModelVersion,
    },
}

impl ServiceStatement {
    /// The longest encoding that is read: some hundred models.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// The one encoding, canonical JSON; its digest is what evidence covers.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads what [`ServiceStatement::encode`] wrote. It says nothing about who
    /// wrote it: [`crate::AttestationResponse::verify`] does.
    ///
    /// # Errors
    /// [`StatementError`]: not the one encoding, another protocol version, or a
    /// statement that contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, StatementError> {
        let statement: Self = canonical::decode(bytes, Self::MAX_BYTES)?;
        statement.check()?;
        Ok(statement)
    }

    fn check(&self) -> Result<(), StatementError> {
        if self.protocol != PROTOCOL_VERSION {
            return Err(StatementError::ForeignProtocol {
                found: self.protocol,
            });
        }
        let mut seen = std::collections::HashSet::new();
        for model in &self.models {
            let (id, version) = (model.id.clone(), model.version);
            if version == 0 || i64::try_from(version).is_err() {
                return Err(StatementError::VersionOutOfRange { id, version });
            }
            if !self.owners.contains(&model.owner) {
                return Err(StatementError::UnlistedOwner { id });
            }
            if !seen.insert((&model.id, version)) {
                return Err(StatementError::RepeatedModel { id, version });
            }
        }
        Ok(())
    }
}
