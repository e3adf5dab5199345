//! JSON Web Encryption (RFC 7516) as far as KBS needs it: ECDH-ES+A256KW
//! (RFC 7518, section 4.6) and A256GCM (section 5.3), flattened JSON, on P-256
//! or P-521.
//!
//! The host carries these messages and may alter any byte of them. No other
//! algorithm, no compression and no critical extension is accepted, and the
//! associated data is the protected header exactly as it came, never written anew.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use aes_kw::KwAes256;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kbs_types::TeePubKey;
use p256::elliptic_curve::sec1::ToSec1Point;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::random;

/// The key agreement: RFC 7518, section 4.6.
pub const ALGORITHM: &str = "ECDH-ES+A256KW";
/// The content encryption: RFC 7518, section 5.3.
pub const ENCRYPTION: &str = "A256GCM";

/// A model key is 32 bytes; anything near this limit is no key of ours.
pub const LONGEST_PLAINTEXT: usize = 4096;

const TAG_LENGTH: usize = 16;
const INITIALIZATION_VECTOR_LENGTH: usize = 12;
const CONTENT_KEY_LENGTH: usize = 32;
const WRAPPED_KEY_LENGTH: usize = CONTENT_KEY_LENGTH + 8;

/// Why a message could not be opened, or a key not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JweError {
    /// The key's type, curve or algorithm is none that this crate speaks.
    #[error(
        "the key is {found}, expected an EC key on P-256 or P-521 for the algorithm {ALGORITHM}"
    )]
    UnsupportedKey {
        /// What came.
        found: String,
    },
    /// The coordinates are no point of the curve, or have the wrong length.
    #[error("the key's coordinates are not a point of {curve}")]
    NotOnCurve {
        /// The curve that the key names.
        curve: &'static str,
    },
    /// The protected header asks for something else.
    #[error("the message's {field} is {found:?}, expected {expected:?}")]
    UnsupportedHeader {
        /// The header's field.
        field: &'static str,
        /// What came.
        found: String,
        /// What this crate speaks.
        expected: &'static str,
    },
    /// A field is no unpadded base64url, has the wrong length, or the header is
    /// no JSON of the known shape.
    #[error("the message's field {field} is malformed")]
    Malformed {
        /// The field.
        field: &'static str,
    },
    /// Wrong key or altered bytes: one variant on purpose.
    #[error("the message is not authentic")]
    Inauthentic,
}

/// The curves that KBS names for EC keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256, what Trustee's clients use by default.
    P256,
    /// NIST P-521.
    P521,
}

impl Curve {
    const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P521 => "P-521",
        }
    }

    const fn coordinate_length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P521 => 66,
        }
    }
}

/// A flattened JWE, its fields still unpadded base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwe {
    /// The protected header.
    pub protected: String,
    /// The content key, wrapped with AES-KW.
    pub encrypted_key: String,
    /// The initialization vector.
    pub iv: String,
    /// The content.
    pub ciphertext: String,
    /// The content's authentication tag.
    pub tag: String,
}

/// A checked public key that messages can be sealed to.
#[derive(Debug, Clone)]
pub struct RecipientKey(Public);

#[derive(Debug, Clone)]
enum Public {
    P256(p256::PublicKey),
    P521(p521::PublicKey),
}

/// The key pair that a server makes for one key request. Wiped when dropped.
pub struct TeeKey(Secret);

enum Secret {
    P256(p256::SecretKey),
    P521(p521::SecretKey),
}

/// The header's fields in the order that Trustee's clients write them anew when
/// they compute the associated data.
#[derive(Serialize)]
struct WrittenHeader<'a> {
    alg: &'a str,
    enc: &'a str,
    epk: EphemeralKey,
}

/// Unknown fields are ignored as RFC 7516, section 4 asks for, except those that
/// would change what the message means.
#[derive(Deserialize)]
struct ReadHeader {
    alg: String,
    enc: String,
    epk: EphemeralKey,
    #[serde(default)]
    apu: String,
    #[serde(default)]
    apv: String,
    crit: Option<serde_json::Value>,
    zip: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct EphemeralKey {
    crv: String,
    kty: String,
    x: String,
    y: String,
}

impl RecipientKey {
    /// Seals up to [`LONGEST_PLAINTEXT`] bytes to this key, with a fresh ephemeral
    /// key, content key and initialization vector.
    ///
    /// # Panics
    /// If the plaintext is longer: a caller's mistake.
    #[must_use]
    pub fn seal(&self, plaintext: &[u8]) -> Jwe {
        assert!(
            plaintext.len() <= LONGEST_PLAINTEXT,
            "a KBS resource of ours is a key"
        );
        let ephemeral = TeeKey::generate(self.curve());
        let (_, x, y) = ephemeral.coordinates();
        let header = WrittenHeader {
            alg: ALGORITHM,
            enc: ENCRYPTION,
            epk: EphemeralKey {
                crv: self.curve().name().to_owned(),
                kty: "EC".to_owned(),
                x,
                y,
            },
        };
        let protected = URL_SAFE_NO_PAD
            .encode(serde_json::to_vec(&header).expect("strings always make valid JSON"));
        let shared = ephemeral
            .agree(self)
            .expect("both keys are on the recipient's curve");
        let wrapping_key: Zeroizing<[u8; 32]> = derive(&shared, ALGORITHM, &[], &[]);

        let content_key = Zeroizing::new(random::<CONTENT_KEY_LENGTH>());
        let mut encrypted_key = [0; WRAPPED_KEY_LENGTH];
        KwAes256::new((&*wrapping_key).into())
            .wrap_key(content_key.as_slice(), &mut encrypted_key)
            .expect("the buffer is eight bytes longer than the key");

        let iv = random::<INITIALIZATION_VECTOR_LENGTH>();
        let mut content = plaintext.to_vec();
        let tag = Aes256Gcm::new((&*content_key).into())
            .encrypt_inout_detached(
                &iv.into(),
                protected.as_bytes(),
                content.as_mut_slice().into(),
            )
            .expect("the content is far shorter than AES-GCM's limit");
        Jwe {
            protected,
            encrypted_key: URL_SAFE_NO_PAD.encode(encrypted_key),
            iv: URL_SAFE_NO_PAD.encode(iv),
            ciphertext: URL_SAFE_NO_PAD.encode(content),
            tag: URL_SAFE_NO_PAD.encode(tag),
        }
    }

    /// The point, uncompressed (SEC 1, section 2.3.3).
    pub(crate) fn to_sec1(&self) -> Vec<u8> {
        match &self.0 {
            Public::P256(key) => key.to_sec1_point(false).as_bytes().to_vec(),
            Public::P521(key) => key.to_sec1_point(false).as_bytes().to_vec(),
        }
    }

    fn curve(&self) -> Curve {
        match self.0 {
            Public::P256(_) => Curve::P256,
            Public::P521(_) => Curve::P521,
        }
    }

    fn from_coordinates(curve: &str, x: &str, y: &str) -> Result<Self, JweError> {
        let curve = match curve {
            "P-256" => Curve::P256,
            "P-521" => Curve::P521,
            other => {
                return Err(JweError::UnsupportedKey {
                    found: format!("on the curve {:?}", shorten(other)),
                });
            }
        };
        let refused = || JweError::NotOnCurve {
            curve: curve.name(),
        };
        let mut point = vec![4];
        for coordinate in [x, y] {
            let bytes = URL_SAFE_NO_PAD.decode(coordinate).map_err(|_| refused())?;
            if bytes.len() != curve.coordinate_length() {
                return Err(refused());
            }
            point.extend(bytes);
        }
        match curve {
            Curve::P256 => p256::PublicKey::from_sec1_bytes(&point).map(Public::P256),
            Curve::P521 => p521::PublicKey::from_sec1_bytes(&point).map(Public::P521),
        }
        .map(Self)
        .map_err(|_| refused())
    }
}

impl TryFrom<&TeePubKey> for RecipientKey {
    type Error = JweError;

    fn try_from(key: &TeePubKey) -> Result<Self, JweError> {
        match key {
            TeePubKey::EC { crv, alg, x, y } if alg == ALGORITHM => {
                Self::from_coordinates(crv, x, y)
            }
            TeePubKey::EC { alg, .. } => Err(JweError::UnsupportedKey {
                found: format!("an EC key for {:?}", shorten(alg)),
            }),
            TeePubKey::RSA { .. } => Err(JweError::UnsupportedKey {
                found: "an RSA key".to_owned(),
            }),
            TeePubKey::AKP { .. } => Err(JweError::UnsupportedKey {
                found: "an AKP key".to_owned(),
            }),
        }
    }
}

impl TeeKey {
    /// Draws a fresh key pair.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    #[must_use]
    pub fn generate(curve: Curve) -> Self {
        // Nearly every draw of P-256, and every second one of P-521 with its top
        // bits cleared, is below the group's order.
        loop {
            let drawn = match curve {
                Curve::P256 => {
                    let bytes = Zeroizing::new(random::<32>());
                    p256::SecretKey::from_slice(bytes.as_slice()).map(Secret::P256)
                }
                Curve::P521 => {
                    let mut bytes = Zeroizing::new(random::<66>());
                    bytes[0] &= 1;
                    p521::SecretKey::from_slice(bytes.as_slice()).map(Secret::P521)
                }
            };
            if let Ok(secret) = drawn {
                return Self(secret);
            }
        }
    }

    /// The public half as KBS writes it.
    #[must_use]
    pub fn public(&self) -> TeePubKey {
        let (curve, x, y) = self.coordinates();
        TeePubKey::EC {
            crv: curve.name().to_owned(),
            alg: ALGORITHM.to_owned(),
            x,
            y,
        }
    }

    /// Opens a message that was sealed to this key.
    ///
    /// # Errors
    /// [`JweError::Inauthentic`] if any byte was altered or it is for another key;
    /// the other variants if it is no message of this kind at all.
    pub fn open(&self, message: &Jwe) -> Result<Zeroizing<Vec<u8>>, JweError> {
        let header: ReadHeader = URL_SAFE_NO_PAD
            .decode(&message.protected)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or(JweError::Malformed { field: "protected" })?;
        let epk = &header.epk;
        for (field, found, expected) in [
            ("alg", &header.alg, ALGORITHM),
            ("enc", &header.enc, ENCRYPTION),
            ("epk.kty", &epk.kty, "EC"),
            ("epk.crv", &epk.crv, self.coordinates().0.name()),
        ] {
            if found != expected {
                return Err(JweError::UnsupportedHeader {
                    field,
                    found: shorten(found),
                    expected,
                });
            }
        }
        for (field, found) in [("crit", &header.crit), ("zip", &header.zip)] {
            if found.is_some() {
                return Err(JweError::UnsupportedHeader {
                    field,
                    found: "present".to_owned(),
                    expected: "absent",
                });
            }
        }
        let epk = RecipientKey::from_coordinates(&epk.crv, &epk.x, &epk.y)?;
        let party = |field, text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| JweError::Malformed { field })
        };
        let (apu, apv) = (party("apu", &header.apu)?, party("apv", &header.apv)?);
        let encrypted_key: [u8; WRAPPED_KEY_LENGTH] =
            exact(&message.encrypted_key, "encrypted_key")?;
        let iv: [u8; INITIALIZATION_VECTOR_LENGTH] = exact(&message.iv, "iv")?;
        let tag: [u8; TAG_LENGTH] = exact(&message.tag, "tag")?;
        if message.ciphertext.len() > LONGEST_PLAINTEXT * 4 / 3 + 4 {
            return Err(JweError::Malformed {
                field: "ciphertext",
            });
        }
        let mut content = URL_SAFE_NO_PAD
            .decode(&message.ciphertext)
            .map(Zeroizing::new)
            .map_err(|_| JweError::Malformed {
                field: "ciphertext",
            })?;

        let shared = self.agree(&epk).ok_or(JweError::Inauthentic)?;
        let wrapping_key: Zeroizing<[u8; 32]> = derive(&shared, ALGORITHM, &apu, &apv);
        let mut content_key = Zeroizing::new([0; CONTENT_KEY_LENGTH]);
        KwAes256::new((&*wrapping_key).into())
            .unwrap_key(&encrypted_key, content_key.as_mut_slice())
            .map_err(|_| JweError::Inauthentic)?;
        Aes256Gcm::new((&*content_key).into())
            .decrypt_inout_detached(
                &iv.into(),
                message.protected.as_bytes(),
                content.as_mut_slice().into(),
                &tag.into(),
            )
            .map_err(|_| JweError::Inauthentic)?;
        Ok(content)
    }

    fn coordinates(&self) -> (Curve, String, String) {
        // Uncompressed SEC 1: one byte 4, then x and y of equal length.
        let (curve, point) = match &self.0 {
            Secret::P256(secret) => (
                Curve::P256,
                secret.public_key().to_sec1_point(false).as_bytes().to_vec(),
            ),
            Secret::P521(secret) => (
                Curve::P521,
                secret.public_key().to_sec1_point(false).as_bytes().to_vec(),
            ),
        };
        let (x, y) = point[1..].split_at(curve.coordinate_length());
        (curve, URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
    }

    /// The shared x coordinate, or `None` if the curves differ.
    fn agree(&self, other: &RecipientKey) -> Option<Zeroizing<Vec<u8>>> {
        let shared = match (&self.0, &other.0) {
            (Secret::P256(secret), Public::P256(public)) => secret
                .diffie_hellman(public)
                .raw_secret_bytes()
                .as_slice()
                .to_vec(),
            (Secret::P521(secret), Public::P521(public)) => secret
                .diffie_hellman(public)
                .raw_secret_bytes()
                .as_slice()
                .to_vec(),
            (Secret::P256(_), Public::P521(_)) | (Secret::P521(_), Public::P256(_)) => {
                return None;
            }
        };
        Some(Zeroizing::new(shared))
    }
}

impl std::fmt::Debug for TeeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TeeKey(redacted)")
    }
}

/// Concat KDF with SHA-256 (NIST SP 800-56A as profiled by RFC 7518, section
/// 4.6.2), for outputs that one hash covers.
fn derive<const LENGTH: usize>(
    shared: &[u8],
    algorithm: &str,
    apu: &[u8],
    apv: &[u8],
) -> Zeroizing<[u8; LENGTH]> {
    const { assert!(LENGTH <= 32, "one round of SHA-256") };
    let mut hash = Sha256::new();
    hash.update(1_u32.to_be_bytes());
    hash.update(shared);
    for field in [algorithm.as_bytes(), apu, apv] {
        let length = u32::try_from(field.len()).expect("header fields are short");
        hash.update(length.to_be_bytes());
        hash.update(field);
    }
    hash.update((LENGTH as u32 * 8).to_be_bytes());
    let digest = Zeroizing::new(<[u8; 32]>::from(hash.finalize()));
    let mut key = Zeroizing::new([0; LENGTH]);
    key.copy_from_slice(&digest[..LENGTH]);
    key
}

fn exact<const LENGTH: usize>(text: &str, field: &'static str) -> Result<[u8; LENGTH], JweError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(JweError::Malformed { field })
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
#[path = "jwe_tests.rs"]
mod tests;
