//! What an owner tells a broker, signed.
//!
//! 1. The owner asks for a challenge: 32 random bytes, for one use, for five
//!    minutes.
//! 2. It writes an [`AdminRequest`] with the challenge, its own fingerprint and an
//!    [`Action`], signs exactly those bytes ([`Domain::BrokerRequest`]) and sends
//!    them in a [`SignedRequest`].
//! 3. The broker checks signature, challenge and that the records which the action
//!    touches are the signer's own, in that order.
//!
//! Whoever reaches the broker may send anything here. A recorded order is refused
//! because its challenge is used up.

mod client;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use occlude_keys::{
    Domain, HeaderDigest, ModelId, ModelKey, ModelVersion, OwnerFingerprint, OwnerKey, OwnerPublic,
    Signature,
};
use occlude_weakening::{Weakening, is};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub(crate) use client::Done;
pub use client::{AdminClient, AdminError};

/// One sealed version of one model, as a broker records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelRecord {
    /// The model's id in the container's header.
    pub id: ModelId,
    /// Its version there.
    pub version: ModelVersion,
    /// SHA-256 of that header.
    pub header_digest: HeaderDigest,
}

/// An order before it is signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminRequest {
    /// What the broker handed out.
    pub challenge: String,
    /// Whose records the action touches.
    pub owner: OwnerFingerprint,
    /// What to do.
    pub action: Action,
}

/// What an owner can order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields,
    tag = "do"
)]
#[non_exhaustive]
pub enum Action {
    /// Hold the key of one sealed version.
    AddModel {
        /// Which version.
        model: ModelRecord,
        /// Its key, base64.
        key: KeyText,
    },
    /// Release keys to evidence that this policy accepts.
    SetPolicy {
        /// For one model, or for all of the owner's models without their own.
        model: Option<ModelId>,
        /// The policy's TOML.
        policy: String,
    },
    /// Release no more keys of versions below this one.
    Withdraw {
        /// Which model.
        model: ModelId,
        /// The lowest version that still gets its key.
        below_version: ModelVersion,
    },
    /// Read the audit log.
    Audit {
        /// The first entry wanted, from 1.
        from: u64,
    },
}

/// The answer to [`Action::Withdraw`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Withdrawal {
    /// The lowest version that still gets its key. It only ever rises.
    pub below_version: ModelVersion,
    /// The recorded versions that get none any more.
    pub withdrawn: Vec<ModelVersion>,
}

/// The answer to a request for a challenge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdminChallenge {
    /// To be written into the order.
    pub challenge: String,
}

/// A model key as base64 text in an order. Wiped when dropped, never printed.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyText(#[serde(with = "wiped")] Zeroizing<String>);

impl KeyText {
    fn new(key: &ModelKey) -> Self {
        Self(Zeroizing::new(STANDARD.encode(key.expose())))
    }

    /// The key, if it is 32 bytes of base64.
    #[must_use]
    pub fn decode(&self) -> Option<ModelKey> {
        let bytes = Zeroizing::new(STANDARD.decode(self.0.as_bytes()).ok()?);
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(&bytes);
        Some(ModelKey::new(key))
    }
}

impl std::fmt::Debug for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyText(redacted)")
    }
}

/// An order as it travels: the signed bytes themselves, so that nobody has to
/// write them anew to check the signature.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedRequest {
    /// Who signed.
    pub owner: OwnerPublic,
    /// The exact bytes of the [`AdminRequest`], base64. They may hold a model key.
    #[serde(with = "wiped")]
    pub request: Zeroizing<String>,
    /// The signature over them, hexadecimal.
    pub signature: String,
}

/// Why an order is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Not of the documented shape.
    #[error("the order is malformed: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// Not signed by the key that it names.
    #[error("the owner's signature does not hold")]
    Signature,
    /// It is signed, but about another owner's records.
    #[error("{signer} orders about records of {owner}: only their owner can")]
    ForeignOwner {
        /// Whose records.
        owner: OwnerFingerprint,
        /// Who signed.
        signer: OwnerFingerprint,
    },
}

impl SignedRequest {
    /// Signs an order.
    #[must_use]
    pub fn sign(request: &AdminRequest, key: &OwnerKey) -> Self {
        let bytes = Zeroizing::new(
            serde_json::to_vec(request).expect("an order of strings and numbers makes JSON"),
        );
        let signature = key.sign(Domain::BrokerRequest, &bytes);
        Self {
            owner: key.public(),
            request: Zeroizing::new(STANDARD.encode(bytes.as_slice())),
            signature: hex::encode(signature),
        }
    }

    /// Checks who signed and whose records it is about, and gives the order. The
    /// challenge in it is for the broker to check.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn verify(&self) -> Result<AdminRequest, EnvelopeError> {
        let malformed = |reason: &str| EnvelopeError::Malformed {
            reason: reason.to_owned(),
        };
        let bytes = STANDARD
            .decode(self.request.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| malformed("the request is not base64"))?;
        let mut signature: Signature = [0; 64];
        hex::decode_to_slice(&self.signature, &mut signature)
            .map_err(|_| malformed("the signature is not 128 hexadecimal digits"))?;
        let signed = self.owner.verify(Domain::BrokerRequest, &bytes, &signature);
        if signed.is_err() && !is(Weakening::AnyOrder) {
            return Err(EnvelopeError::Signature);
        }
        let request: AdminRequest =
            serde_json::from_slice(&bytes).map_err(|error| malformed(&error.to_string()))?;
        let signer = self.owner.fingerprint();
        if request.owner != signer && !is(Weakening::AnyOrder) {
            return Err(EnvelopeError::ForeignOwner {
                owner: request.owner,
                signer,
            });
        }
        Ok(request)
    }
}

/// Text in JSON that is wiped when dropped.
mod wiped {
    use serde::{Deserialize, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(
        text: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(owner: OwnerFingerprint) -> AdminRequest {
        AdminRequest {
            challenge: "c".to_owned(),
            owner,
            action: Action::Withdraw {
                model: "digits".parse().unwrap(),
                below_version: 2,
            },
        }
    }

    #[test]
    fn an_order_survives_its_envelope() {
        let key = OwnerKey::generate();
        let owner = key.public().fingerprint();
        let order = AdminRequest {
            challenge: "c".to_owned(),
            owner,
            action: Action::AddModel {
                model: ModelRecord {
                    id: "digits".parse().unwrap(),
                    version: 1,
                    header_digest: HeaderDigest::from([1; 32]),
                },
                key: KeyText::new(&ModelKey::new(Zeroizing::new([9; 32]))),
            },
        };
        let json = serde_json::to_string(&SignedRequest::sign(&order, &key)).unwrap();
        let opened = serde_json::from_str::<SignedRequest>(&json)
            .unwrap()
            .verify()
            .unwrap();
        assert_eq!((opened.challenge.as_str(), opened.owner), ("c", owner));
        let Action::AddModel { key, .. } = opened.action else {
            panic!("another action came out");
        };
        assert_eq!(key.decode().unwrap().expose(), &[9; 32]);
        assert_eq!(format!("{key:?}"), "KeyText(redacted)");
    }

    #[test]
    fn an_altered_order_and_a_policys_signature_are_refused() {
        let key = OwnerKey::generate();
        let signed = SignedRequest::sign(&order(key.public().fingerprint()), &key);
        let bytes = STANDARD.decode(signed.request.as_bytes()).unwrap();
        let altered = String::from_utf8(bytes.clone()).unwrap().replace('2', "1");
        let altered = SignedRequest {
            request: Zeroizing::new(STANDARD.encode(altered)),
            owner: signed.owner,
            signature: signed.signature.clone(),
        };
        assert_eq!(altered.verify().unwrap_err(), EnvelopeError::Signature);
        let other_purpose = SignedRequest {
            signature: hex::encode(key.sign(Domain::Policy, &bytes)),
            ..signed
        };
        assert_eq!(
            other_purpose.verify().unwrap_err(),
            EnvelopeError::Signature
        );
    }

    #[test]
    fn an_order_about_another_owners_records_is_refused() {
        let (key, other) = (OwnerKey::generate(), OwnerKey::generate());
        let signed = SignedRequest::sign(&order(other.public().fingerprint()), &key);
        assert_eq!(
            signed.verify().unwrap_err(),
            EnvelopeError::ForeignOwner {
                owner: other.public().fingerprint(),
                signer: key.public().fingerprint()
            }
        );
    }

    #[test]
    fn a_key_of_another_length_is_no_key() {
        for text in ["", "AAAA", "not base64", &STANDARD.encode([0; 33])] {
            assert!(KeyText(Zeroizing::new(text.to_owned())).decode().is_none());
        }
    }
}
