//! The registers that a boot is measured into.

use std::fmt::{Display, Formatter};

/// A platform configuration register, `pcr0` to `pcr31`; a TPM has 24 of them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Register(u8);

/// A text that names no register.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no register: expected pcr0 to pcr31")]
#[non_exhaustive]
pub struct RegisterError {
    /// What was given, cut to 80 characters.
    pub found: String,
}

impl Register {
    /// A register by its number, if there is one.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        u8::try_from(number)
            .ok()
            .filter(|number| *number < 32)
            .map(Self)
    }
}

impl Display for Register {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "pcr{}", self.0)
    }
}

impl From<Register> for String {
    fn from(register: Register) -> Self {
        register.to_string()
    }
}

impl TryFrom<String> for Register {
    type Error = RegisterError;

    fn try_from(text: String) -> Result<Self, RegisterError> {
        let number = text
            .strip_prefix("pcr")
            .and_then(|number| number.parse().ok());
        number
            .and_then(Self::new)
            // One spelling: no sign, no zero in front.
            .filter(|register| register.to_string() == text)
            .ok_or_else(|| RegisterError {
                found: text.chars().take(80).collect(),
            })
    }
}
