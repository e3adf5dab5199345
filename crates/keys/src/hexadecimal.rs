//! Byte strings of exact length that travel as lower-case hexadecimal.
//!
//! One value has one spelling: capitals, a missing or an extra digit are refused,
//! never folded, padded or cut.

/// Why a string is not the hexadecimal form of a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} lower-case hexadecimal digits, found {found:?}")]
#[non_exhaustive]
pub struct HexadecimalError {
    /// How many digits the value has.
    pub expected: usize,
    /// What was given, cut to 140 characters.
    pub found: String,
}

/// Reads exactly `N` bytes.
///
/// # Errors
/// [`HexadecimalError`] for any other spelling, so that a value can serve as a path.
pub fn parse<const N: usize>(text: &str) -> Result<[u8; N], HexadecimalError> {
    let mut bytes = [0; N];
    if is_lower_case(text) && hex::decode_to_slice(text, &mut bytes).is_ok() {
        return Ok(bytes);
    }
    Err(HexadecimalError {
        expected: 2 * N,
        found: text.chars().take(140).collect(),
    })
}

/// Writes bytes, two digits each.
#[must_use]
pub fn write(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// Whether no digit of `text` is a capital.
#[must_use]
pub fn is_lower_case(text: &str) -> bool {
    !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Defines a value of so many public bytes that is written as hexadecimal, in text and
/// by serde: `hexadecimal_bytes! { /// What it is. pub Name, 32 }`. The crate that uses
/// it depends on `serde`.
#[macro_export]
macro_rules! hexadecimal_bytes {
    ($(#[$documentation:meta])* $visibility:vis $name:ident, $length:literal) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility struct $name([u8; $length]);

        impl $name {
            /// The bytes.
            #[must_use]
            $visibility const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl From<[u8; $length]> for $name {
            fn from(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&$crate::hexadecimal::write(&self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::hexadecimal::HexadecimalError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::hexadecimal::parse(text).map(Self)
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
