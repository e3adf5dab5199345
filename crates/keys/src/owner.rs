//! The owner's two secrets and the public half.
//!
//! Every signature covers a [`Domain`], so that what was signed as a policy can
//! never pass for a container header or an order to a broker.

use std::fmt::{Debug, Display, Formatter};
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::hexadecimal_bytes;
use crate::{ModelId, ModelKey, ModelVersion, Salt};

/// An Ed25519 signature (RFC 8032).
pub type Signature = [u8; 64];

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Domain {
    /// The header of a sealed container.
    ContainerHeader,
    /// A policy file that the owner stands behind.
    Policy,
    /// An order to a broker.
    BrokerRequest,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Self::ContainerHeader => b"occlude/v1/container-header",
            Self::Policy => b"occlude/v1/policy",
            Self::BrokerRequest => b"occlude/v1/broker-request",
        }
    }

    /// The bytes that are signed: label, a zero byte, message. No label contains
    /// a zero byte, so no two pairs give the same bytes.
    fn message(self, message: &[u8]) -> Vec<u8> {
        [self.label(), &[0], message].concat()
    }
}

/// The owner's sealing secret and signing key. It never leaves the owner.
///
/// Wiped when dropped; it cannot be cloned or printed.
pub struct OwnerKey {
    sealing_secret: Zeroizing<[u8; 32]>,
    signing_key: SigningKey,
}

impl OwnerKey {
    /// The two secrets, one after the other.
    pub(crate) const SECRET_LENGTH: usize = 64;

    /// Draws a fresh key from the operating system.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    #[must_use]
    pub fn generate() -> Self {
        let mut secret = Zeroizing::new([0; Self::SECRET_LENGTH]);
        getrandom::fill(secret.as_mut_slice())
            .expect("the operating system's random source failed");
        Self::from_secret(&secret)
    }

    /// Rebuilds a key from sealing secret (32 bytes) and Ed25519 seed (32 bytes).
    /// For key files and published test vectors.
    #[must_use]
    pub fn from_secret(secret: &[u8; Self::SECRET_LENGTH]) -> Self {
        let (sealing, signing) = secret.split_at(32);
        let mut sealing_secret = Zeroizing::new([0; 32]);
        sealing_secret.copy_from_slice(sealing);
        let mut seed = Zeroizing::new([0; 32]);
        seed.copy_from_slice(signing);
        Self {
            sealing_secret,
            signing_key: SigningKey::from_bytes(&seed),
        }
    }

    pub(crate) fn secret(&self) -> Zeroizing<[u8; Self::SECRET_LENGTH]> {
        let mut secret = Zeroizing::new([0; Self::SECRET_LENGTH]);
        secret[..32].copy_from_slice(self.sealing_secret.as_slice());
        secret[32..].copy_from_slice(self.signing_key.as_bytes());
        secret
    }

    /// The half that others check signatures with.
    #[must_use]
    pub fn public(&self) -> OwnerPublic {
        OwnerPublic(self.signing_key.verifying_key())
    }

    /// Signs `message` for one purpose.
    #[must_use]
    pub fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        self.signing_key.sign(&domain.message(message)).to_bytes()
    }

    /// Derives the key of one sealed version: HKDF-SHA-256 (RFC 5869) with the
    /// sealing secret as input key, `salt` as salt and, as info,
    /// `"occlude/v1/model-key" || 0x00 || length of id (1 byte) || id || version
    /// (8 bytes, little-endian)`.
    #[must_use]
    pub fn model_key(&self, salt: &Salt, id: &ModelId, version: ModelVersion) -> ModelKey {
        let id = id.as_str().as_bytes();
        let id_length = u8::try_from(id.len()).expect("an id has at most 64 bytes");
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&salt.0), self.sealing_secret.as_slice())
            .expand_multi_info(
                &[
                    b"occlude/v1/model-key\0",
                    &[id_length],
                    id,
                    &version.to_le_bytes(),
                ],
                key.as_mut_slice(),
            )
            .expect("32 bytes are a valid HKDF-SHA-256 output length");
        ModelKey::new(key)
    }
}

impl Debug for OwnerKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "OwnerKey(public {})", self.public())
    }
}

/// The owner's Ed25519 public key, written as `occlude-owner1…` (Bech32, BIP 173).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OwnerPublic(VerifyingKey);

impl OwnerPublic {
    const PREFIX: bech32::Hrp = bech32::Hrp::parse_unchecked("occlude-owner");

    /// Reads a public key from its 32 bytes.
    ///
    /// # Errors
    /// [`OwnerPublicParseError`] if they are no point of the curve, or a weak one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, OwnerPublicParseError> {
        VerifyingKey::from_bytes(bytes)
            .ok()
            .filter(|key| !key.is_weak())
            .map(Self)
            .ok_or_else(|| OwnerPublicParseError {
                found: hex::encode(bytes),
            })
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// SHA-256 of the key's bytes.
    #[must_use]
    pub fn fingerprint(&self) -> OwnerFingerprint {
        OwnerFingerprint::from(<[u8; 32]>::from(Sha256::digest(self.as_bytes())))
    }

    /// Checks what the owner signed for one purpose. Strict: signatures that some
    /// verifiers accept and others do not (RFC 8032, section 8.4) are refused.
    ///
    /// # Errors
    /// [`InvalidSignature`], one opaque error whatever is wrong.
    pub fn verify(
        &self,
        domain: Domain,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), InvalidSignature> {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0
            .verify_strict(&domain.message(message), &signature)
            .map_err(|_| InvalidSignature)
    }
}

/// The owner did not sign this, or not for this purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the owner's signature does not hold")]
pub struct InvalidSignature;

/// Why a string or 32 bytes are not an owner's public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is not an owner's public key: expected occlude-owner1…, as `occlude keygen --public` prints it"
)]
#[non_exhaustive]
pub struct OwnerPublicParseError {
    /// What was given, cut to 120 characters.
    pub found: String,
}

impl FromStr for OwnerPublic {
    type Err = OwnerPublicParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || OwnerPublicParseError {
            found: text.chars().take(120).collect(),
        };
        let parsed = bech32::primitives::decode::CheckedHrpstring::new::<bech32::Bech32>(text)
            .map_err(|_| refused())?;
        let bytes: Vec<u8> = parsed.byte_iter().collect();
        if parsed.hrp() != Self::PREFIX {
            return Err(refused());
        }
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| refused())?;
        Self::from_bytes(&bytes).map_err(|_| refused())
    }
}

impl Display for OwnerPublic {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        bech32::encode_to_fmt::<bech32::Bech32, _>(f, Self::PREFIX, self.as_bytes())
            .map_err(|_| std::fmt::Error)
    }
}

impl Debug for OwnerPublic {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "OwnerPublic({self})")
    }
}

impl serde::Serialize for OwnerPublic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for OwnerPublic {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

hexadecimal_bytes! {
    /// SHA-256 of an owner's public key: the owner's name in a broker's paths.
    pub OwnerFingerprint, 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> OwnerKey {
        OwnerKey::from_secret(&std::array::from_fn(|index| index as u8))
    }

    /// RFC 8032, section 7.1, test 2: the seed and its public key.
    #[test]
    fn the_public_half_is_that_of_rfc_8032() {
        let mut secret = [0; 64];
        hex::decode_to_slice(
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            &mut secret[32..],
        )
        .unwrap();
        assert_eq!(
            hex::encode(OwnerKey::from_secret(&secret).public().as_bytes()),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
    }

    #[test]
    fn a_signature_holds_only_for_its_purpose_its_message_and_its_owner() {
        let signature = key().sign(Domain::Policy, b"message");
        let public = key().public();
        assert_eq!(
            public.verify(Domain::Policy, b"message", &signature),
            Ok(())
        );
        assert_eq!(
            public.verify(Domain::BrokerRequest, b"message", &signature),
            Err(InvalidSignature)
        );
        assert_eq!(
            public.verify(Domain::Policy, b"massage", &signature),
            Err(InvalidSignature)
        );
        let other = OwnerKey::generate().public();
        assert_eq!(
            other.verify(Domain::Policy, b"message", &signature),
            Err(InvalidSignature)
        );
    }

    #[test]
    fn model_keys_differ_by_owner_salt_id_and_version() {
        let salt = Salt([7; 32]);
        let id: ModelId = "digits".parse().unwrap();
        let base = key().model_key(&salt, &id, 1);
        let others = [
            OwnerKey::generate().model_key(&salt, &id, 1),
            key().model_key(&Salt([8; 32]), &id, 1),
            key().model_key(&salt, &"digitz".parse().unwrap(), 1),
            key().model_key(&salt, &id, 2),
        ];
        assert!(others.iter().all(|other| other.expose() != base.expose()));
        assert_eq!(key().model_key(&salt, &id, 1).expose(), base.expose());
    }

    #[test]
    fn a_public_key_survives_text_and_a_changed_character_is_refused() {
        let text = key().public().to_string();
        assert!(text.starts_with("occlude-owner1"), "{text}");
        assert_eq!(text.parse(), Ok(key().public()));
        let last = text.pop_replaced();
        assert_eq!(
            last.parse::<OwnerPublic>(),
            Err(OwnerPublicParseError {
                found: last.clone()
            })
        );
    }

    #[test]
    fn the_neutral_point_is_no_owner() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(
            OwnerPublic::from_bytes(&neutral),
            Err(OwnerPublicParseError {
                found: hex::encode(neutral)
            })
        );
    }

    #[test]
    fn an_owner_key_prints_only_its_public_half() {
        let printed = format!("{:?}", key());
        assert_eq!(printed, format!("OwnerKey(public {})", key().public()));
    }

    trait PopReplaced {
        /// The text with its last character replaced by another of the alphabet.
        fn pop_replaced(&self) -> String;
    }

    impl PopReplaced for String {
        fn pop_replaced(&self) -> String {
            let (rest, last) = self.split_at(self.len() - 1);
            format!("{rest}{}", if last == "q" { "p" } else { "q" })
        }
    }
}
