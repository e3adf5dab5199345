//! The key of an issuer of tokens, which say who a client is.
//!
//! Ed25519, in the forms that other programs have it in too (RFC 8410): the secret as
//! PKCS #8 and the public half as `SubjectPublicKeyInfo`, both PEM.

use std::fmt::{Debug, Display, Formatter};
use std::path::Path;
use std::str::FromStr;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
};
use ed25519_dalek::{SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::file::{KeyFileError, read_private, write_private};

const EXPECTED: &str = "an issuer's key: expected an Ed25519 key as PKCS #8 PEM, as `occlude \
                        guard keygen` writes it";

/// An issuer's secret. Wiped when dropped; it cannot be cloned or printed.
pub struct IssuerKey(SigningKey);

impl IssuerKey {
    /// Draws a fresh key from the operating system.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    #[must_use]
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).expect("the operating system's random source failed");
        Self(SigningKey::from_bytes(&seed))
    }

    /// Reads a key that [`IssuerKey::write_new`] or another program wrote.
    ///
    /// # Errors
    /// [`KeyFileError::TooOpen`] if group or others have any permission,
    /// [`KeyFileError::Malformed`] if it is no key, [`KeyFileError::Io`].
    pub fn read_from(path: &Path) -> Result<Self, KeyFileError> {
        read_private(path, EXPECTED, |text| {
            SigningKey::from_pkcs8_pem(text).ok().map(Self)
        })
    }

    /// Writes the key to a new file with mode 0600.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`] if anything has that name, [`KeyFileError::Io`];
    /// nothing half-written is left.
    ///
    /// # Panics
    /// Never: every key has this form.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyFileError> {
        let pem = self.bytes().to_pkcs8_pem(LineEnding::LF);
        write_private(path, &pem.expect("a key has a PEM form"))
    }

    /// The half that tokens are checked with.
    #[must_use]
    pub fn public(&self) -> IssuerPublic {
        IssuerPublic(self.0.verifying_key())
    }

    /// PKCS #8, version 1, which every program reads.
    ///
    /// # Panics
    /// Never: every key has this form.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let document = self.bytes().to_pkcs8_der();
        document.expect("a key has a DER form").to_bytes()
    }

    fn bytes(&self) -> KeypairBytes {
        KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        }
    }
}

impl Debug for IssuerKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("IssuerKey(redacted)")
    }
}

/// An issuer's public key, written as PEM (`-----BEGIN PUBLIC KEY-----`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IssuerPublic(VerifyingKey);

impl IssuerPublic {
    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// Why a text is no issuer's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an issuer's public key: expected an Ed25519 key as PEM, -----BEGIN PUBLIC KEY-----, as \
     `occlude guard keygen` prints it"
)]
pub struct IssuerPublicParseError;

impl FromStr for IssuerPublic {
    type Err = IssuerPublicParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        VerifyingKey::from_public_key_pem(text.trim())
            .ok()
            .filter(|key| !key.is_weak())
            .map(Self)
            .ok_or(IssuerPublicParseError)
    }
}

impl Display for IssuerPublic {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let pem = self.0.to_public_key_pem(LineEnding::LF);
        f.write_str(&pem.map_err(|_| std::fmt::Error)?)
    }
}

impl Debug for IssuerPublic {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "IssuerPublic({})", hex::encode(self.as_bytes()))
    }
}

impl serde::Serialize for IssuerPublic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for IssuerPublic {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// RFC 8410, section 10.1.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";

    /// RFC 8410, section 10.3: the first without, the second with the public half.
    const SECRET: [&str; 2] = [
        "-----BEGIN PRIVATE KEY-----\n\
         MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
         -----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\n\
         MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
         oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB\n\
         Z9w7lshQhqowtrbLDFw4rXAxZuE=\n\
         -----END PRIVATE KEY-----\n",
    ];

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issuer.pem");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn keys_are_read_as_rfc_8410_has_them() {
        for secret in SECRET {
            let (_folder, path) = file(secret, 0o600);
            let key = IssuerKey::read_from(&path).unwrap();
            assert_eq!(key.public().to_string(), PUBLIC);
            assert_eq!(PUBLIC.parse(), Ok(key.public()));
            assert!(format!("{:?}", key.public()).contains("19bf44096984cdfe"));
            assert_eq!(format!("{key:?}"), "IssuerKey(redacted)");
        }
    }

    #[test]
    fn a_key_is_written_as_rfc_8410_has_it_and_never_overwritten() {
        let (folder, path) = file(SECRET[0], 0o600);
        let key = IssuerKey::read_from(&path).unwrap();
        let copy = folder.path().join("copy.pem");
        key.write_new(&copy).unwrap();
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), SECRET[0]);
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(
            IssuerKey::generate().write_new(&copy),
            Err(KeyFileError::Exists { .. })
        ));
    }

    #[test]
    fn what_is_no_key_or_open_to_others_is_refused() {
        let read = |text: &str, mode| {
            let (_folder, path) = file(text, mode);
            IssuerKey::read_from(&path).unwrap_err()
        };
        for text in ["", "hello", PUBLIC] {
            let refused = read(text, 0o600);
            assert!(matches!(refused, KeyFileError::Malformed { .. }), "{text}");
        }
        let refused = read(SECRET[0], 0o644);
        assert!(matches!(refused, KeyFileError::TooOpen { mode: 0o644, .. }));
        let neutral = "-----BEGIN PUBLIC KEY-----\n\
            MCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\
            -----END PUBLIC KEY-----\n";
        for text in ["", SECRET[0], neutral, &PUBLIC[..60]] {
            assert_eq!(
                text.parse::<IssuerPublic>(),
                Err(IssuerPublicParseError),
                "{text}"
            );
        }
    }
}
