//! The key of one sealed version of one model, and the parts it is derived from.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// The key that opens exactly one sealed container.
///
/// Wiped when dropped; it cannot be cloned or printed.
pub struct ModelKey(Zeroizing<[u8; 32]>);

impl ModelKey {
    /// Takes over the 32 key bytes.
    #[must_use]
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// The key bytes, for deriving from or for wrapping; never for printing.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Another key for one purpose, which the salt names, and one `info`: HKDF-SHA-256
    /// (RFC 5869).
    ///
    /// # Panics
    /// Never: 32 bytes are one block.
    #[must_use]
    pub fn derive(&self, salt: &[u8], info: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(salt), self.expose())
            .expand(info, &mut *key)
            .expect("32 bytes are one block");
        key
    }
}

impl std::fmt::Debug for ModelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelKey(redacted)")
    }
}

/// 32 fresh random bytes for each seal, so that sealing the same model under the
/// same id and version twice never uses one key twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

impl Salt {
    /// Draws a fresh salt from the operating system.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system's random source failed");
        Self(bytes)
    }
}

/// A model's version: 1 or more; a larger one replaces a smaller one.
pub type ModelVersion = u64;

/// A model's public name: 1 to [`ModelId::MAX_LENGTH`] characters of `a-z`, `A-Z`,
/// `0-9`, `.`, `_`, `-`, the first one a letter or a digit.
///
/// The operator reads it in the clear, so it is random unless the owner names it.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId(String);

impl ModelId {
    /// Longest id: it fills a fixed field of the container's header.
    pub const MAX_LENGTH: usize = 64;

    /// An id that says nothing: `model-` and 16 random hexadecimal digits.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system's random source failed");
        Self(format!("model-{}", hex::encode(bytes)))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a string is not a model id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is not a model id: expected 1 to {} characters of a-z, A-Z, 0-9, '.', '_', '-', \
     starting with a letter or a digit",
    ModelId::MAX_LENGTH
)]
#[non_exhaustive]
pub struct ModelIdError {
    /// What was given, cut to 80 characters.
    pub found: String,
}

impl TryFrom<String> for ModelId {
    type Error = ModelIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let starts_well = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        if starts_well && text.len() <= Self::MAX_LENGTH && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(ModelIdError {
                found: text.chars().take(80).collect(),
            })
        }
    }
}

impl std::str::FromStr for ModelId {
    type Err = ModelIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl From<ModelId> for String {
    fn from(id: ModelId) -> Self {
        id.0
    }
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the `cryptography` package of Python.
    #[test]
    fn derived_keys_are_those_of_another_implementation() {
        let key = ModelKey::new(Zeroizing::new([7; 32]));
        assert_eq!(
            hex::encode(*key.derive(b"occlude/v1/example", b"info")),
            "ebf0e68d818a39182c3239351b66a2fe485c5c2d2433ddb1793d8ac5cd419a2f"
        );
    }

    #[test]
    fn ids_that_could_leave_a_folder_or_a_line_are_refused() {
        for text in [
            "",
            "..",
            ".hidden",
            "a/b",
            "a\nb",
            "-flag",
            "näme",
            &"a".repeat(65),
        ] {
            assert_eq!(
                text.parse::<ModelId>(),
                Err(ModelIdError {
                    found: text.chars().take(80).collect()
                })
            );
        }
    }

    #[test]
    fn ordinary_ids_and_random_ones_are_accepted() {
        for text in ["digits", "BERT-base.v2_int8", "7", &"a".repeat(64)] {
            assert_eq!(text.parse::<ModelId>().unwrap().as_str(), text);
        }
        let random = ModelId::random();
        assert_eq!(random.as_str().parse::<ModelId>().unwrap(), random);
        assert_ne!(random, ModelId::random());
    }

    #[test]
    fn a_model_key_does_not_print_itself() {
        let key = ModelKey::new(Zeroizing::new([0xab; 32]));
        assert_eq!(format!("{key:?}"), "ModelKey(redacted)");
    }
}
