//! SHA-256 digests that travel as lower-case hexadecimal.
//!
//! Exact length both ways: a digest is never padded and never truncated.

/// Why a string is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 lower-case hexadecimal digits, found {found:?}")]
#[non_exhaustive]
pub struct DigestParseError {
    /// What was given, cut to 80 characters.
    pub found: String,
}

/// Parses exactly 64 lower-case hexadecimal digits, so that one digest has one
/// spelling and can serve as a path.
pub(crate) fn parse_hex(text: &str) -> Result<[u8; 32], DigestParseError> {
    let mut bytes = [0; 32];
    let canonical = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    if canonical && hex::decode_to_slice(text, &mut bytes).is_ok() {
        return Ok(bytes);
    }
    Err(DigestParseError {
        found: text.chars().take(80).collect(),
    })
}

/// Defines a public 32-byte name that is written as hexadecimal everywhere.
macro_rules! hexadecimal_digest {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::digest::DigestParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::digest::parse_hex(text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use hexadecimal_digest;

hexadecimal_digest! {
    /// SHA-256 of a sealed container's signed header: the name of one sealed
    /// version of one model, in policies, statements and the broker's paths.
    HeaderDigest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_text_and_json() {
        let digest = HeaderDigest::from([0xa5; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<HeaderDigest>(&json).unwrap(), digest);
    }

    #[test]
    fn a_short_a_long_and_an_upper_case_digest_are_refused() {
        for text in [
            "a5".repeat(31),
            "a5".repeat(33),
            "A5".repeat(32),
            "g5".repeat(32),
        ] {
            assert_eq!(
                text.parse::<HeaderDigest>(),
                Err(DigestParseError {
                    found: text.chars().take(80).collect()
                })
            );
        }
    }
}
