//! AWS Nitro Enclaves: a virtual machine cut off from the one that started it, on a
//! hypervisor of AWS's. Memory is kept from the machine's administrator; that AWS itself
//! keeps out of it is AWS's word.
//!
//! Evidence is an attestation document that the hypervisor signs ("Nitro Enclaves
//! Attestation Process", AWS): CBOR in COSE, under a key that lives three hours and
//! chains to AWS's root. The KBS protocol has no form for it; here it travels as
//! `{"document": base64}`.

mod collect;
mod verify;

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};

use occlude_keys::hexadecimal_bytes;

pub use collect::evidence_of_document;
pub(crate) use collect::{check_present, collect};
pub(crate) use verify::verify;

hexadecimal_bytes! {
    /// A measurement of 48 bytes.
    pub NitroDigest, 48
}

/// One of the 32 registers, `pcr0` to `pcr31`.
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

/// What a verified document says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NitroPlatform {
    /// The instance and the enclave.
    pub module_id: String,
    /// The registers that are not zero: 0 the image, 1 the kernel, 2 the application, 3
    /// the instance's role, 4 the instance, 8 who signed the image.
    pub pcrs: BTreeMap<Register, NitroDigest>,
    /// When the document was made.
    pub timestamp: crate::UnixTime,
}
