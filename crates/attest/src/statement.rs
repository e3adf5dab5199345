//! The service statement: what a server says about itself, under its evidence.
//!
//! The operator can start a genuine server with its own models, owner key,
//! broker or a weaker configuration. The evidence of that server is genuine; the
//! statement says all of it, so that a policy can refuse it. Nothing in it is
//! secret: the operator reads it too.

use std::collections::{HashMap, HashSet};

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
    /// The models it serves. All versions of one id are of one owner.
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
    /// The defence against copying it by asking, which its owner sealed with it: answers
    /// may be changed on purpose. `none` if none.
    pub guard: String,
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
    /// Two models of one name: requests name no owner, so they would mix them up.
    #[error("model {id} is listed with two owners")]
    TwoOwners {
        /// The name.
        id: ModelId,
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
        let mut seen = HashSet::new();
        let mut owners = HashMap::new();
        for model in &self.models {
            let (id, version) = (model.id.clone(), model.version);
            if version == 0 || i64::try_from(version).is_err() {
                return Err(StatementError::VersionOutOfRange { id, version });
            }
            if !self.owners.contains(&model.owner) {
                return Err(StatementError::UnlistedOwner { id });
            }
            if *owners.entry(&model.id).or_insert(model.owner) != model.owner {
                return Err(StatementError::TwoOwners { id });
            }
            if !seen.insert((&model.id, version)) {
                return Err(StatementError::RepeatedModel { id, version });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use occlude_keys::OwnerKey;

    fn statement() -> ServiceStatement {
        let owner = OwnerKey::from_secret(&[1; 64]).public();
        ServiceStatement {
            protocol: PROTOCOL_VERSION,
            tee: TeeKind::Simulated,
            channel_keys: vec![1, 2, 3],
            owners: vec![owner],
            models: vec![ServedModel {
                id: "digits".parse().unwrap(),
                version: 3,
                header_digest: HeaderDigest::from([0xd1; 32]),
                owner,
                guard: "none".to_owned(),
            }],
            configuration: SecurityConfiguration {
                broker: None,
                kem: "x-wing".to_owned(),
                padding: "buckets".to_owned(),
                client_authentication: "none".to_owned(),
                maximum_request_bytes: u64::MAX,
            },
        }
    }

    fn refusal(change: impl FnOnce(&mut ServiceStatement)) -> StatementError {
        let mut statement = statement();
        change(&mut statement);
        ServiceStatement::decode(&statement.encode()).unwrap_err()
    }

    #[test]
    fn a_statement_has_one_encoding() {
        let owner = OwnerKey::from_secret(&[1; 64]).public();
        let digest = HeaderDigest::from([0xd1; 32]);
        let encoded = statement().encode();
        assert_eq!(
            String::from_utf8(encoded.clone()).unwrap(),
            format!(
                "{{\"channel-keys\":\"AQID\",\"configuration\":{{\"broker\":null,\
                 \"client-authentication\":\"none\",\"kem\":\"x-wing\",\
                 \"maximum-request-bytes\":18446744073709551615,\"padding\":\"buckets\"}},\
                 \"models\":[{{\"guard\":\"none\",\"header-digest\":\"{digest}\",\"id\":\"digits\",\
                 \"owner\":\"{owner}\",\"version\":3}}],\"owners\":[\"{owner}\"],\
                 \"protocol\":1,\"tee\":\"simulated\"}}"
            )
        );
        assert_eq!(ServiceStatement::decode(&encoded), Ok(statement()));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let text = String::from_utf8(statement().encode()).unwrap();
        let text = text.replacen('{', "{\"a\":0,", 1);
        let Err(StatementError::Decode(DecodeError::Malformed { reason })) =
            ServiceStatement::decode(text.as_bytes())
        else {
            panic!("accepted {text}");
        };
        assert!(
            reason.starts_with("unknown field `a`, expected one of `protocol`"),
            "{reason}"
        );
    }

    #[test]
    fn a_missing_broker_must_be_said() {
        let text = String::from_utf8(statement().encode()).unwrap();
        let text = text.replacen("\"broker\":null,", "", 1);
        assert_eq!(
            ServiceStatement::decode(text.as_bytes()),
            Err(DecodeError::NotCanonical.into())
        );
    }

    #[test]
    fn a_statement_beyond_the_limit_is_refused() {
        assert_eq!(
            ServiceStatement::decode(&vec![b' '; ServiceStatement::MAX_BYTES + 1]),
            Err(StatementError::Decode(DecodeError::TooLarge {
                limit: ServiceStatement::MAX_BYTES,
                found: ServiceStatement::MAX_BYTES + 1
            }))
        );
    }

    #[test]
    fn another_protocol_version_is_refused() {
        assert_eq!(
            refusal(|statement| statement.protocol = 2),
            StatementError::ForeignProtocol { found: 2 }
        );
    }

    #[test]
    fn a_model_of_an_owner_that_is_not_listed_is_refused() {
        let other = OwnerKey::from_secret(&[2; 64]).public();
        assert_eq!(
            refusal(|statement| statement.models[0].owner = other),
            StatementError::UnlistedOwner {
                id: "digits".parse().unwrap()
            }
        );
    }

    #[test]
    fn a_version_listed_twice_is_refused() {
        assert_eq!(
            refusal(|statement| statement.models.push(statement.models[0].clone())),
            StatementError::RepeatedModel {
                id: "digits".parse().unwrap(),
                version: 3
            }
        );
    }

    #[test]
    fn a_model_of_two_owners_is_refused() {
        let other = OwnerKey::from_secret(&[2; 64]).public();
        for version in [3, 4, i64::MAX as u64] {
            let namesake = |statement: &mut ServiceStatement| {
                let mut namesake = statement.models[0].clone();
                namesake.owner = other;
                namesake.version = version;
                statement.owners.push(other);
                statement.models.push(namesake);
            };
            assert_eq!(
                refusal(namesake),
                StatementError::TwoOwners {
                    id: "digits".parse().unwrap()
                }
            );
        }
    }

    #[test]
    fn versions_of_one_owner_and_models_of_two_are_a_statement() {
        let other = OwnerKey::from_secret(&[2; 64]).public();
        let mut statement = statement();
        let mut newer = statement.models[0].clone();
        newer.version = 4;
        let mut letters = newer.clone();
        letters.id = "letters".parse().unwrap();
        letters.owner = other;
        statement.owners.push(other);
        statement.models.extend([newer, letters]);
        assert_eq!(ServiceStatement::decode(&statement.encode()), Ok(statement));
    }

    #[test]
    fn versions_that_no_model_has_are_refused() {
        for version in [0, 1 << 63, u64::MAX] {
            assert_eq!(
                refusal(|statement| statement.models[0].version = version),
                StatementError::VersionOutOfRange {
                    id: "digits".parse().unwrap(),
                    version
                }
            );
        }
    }

    #[test]
    fn the_digest_of_a_configuration_covers_every_field() {
        let base = statement().configuration;
        let changes: [fn(&mut SecurityConfiguration); 5] = [
            |c| c.broker = Some(String::new()),
            |c| c.kem.push('x'),
            |c| c.padding.push('x'),
            |c| c.client_authentication.push('x'),
            |c| c.maximum_request_bytes = 1,
        ];
        for change in changes {
            let mut changed = base.clone();
            change(&mut changed);
            assert_ne!(changed.digest(), base.digest());
        }
    }
}
