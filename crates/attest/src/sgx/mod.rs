//! Intel SGX: an enclave in a process, under Gramine, whose memory the processor hides
//! from the operating system and the hypervisor.
//!
//! Evidence is a quote over the enclave's report ("Intel 64 and IA-32 Architectures
//! Software Developer's Manual", volume 3D, section 39.15). It travels as the KBS
//! protocol has it: the quote in base64; Intel's collateral may come along in a field of
//! our own.

mod collect;
mod verify;

use std::fmt::{Display, Formatter};

use occlude_keys::hexadecimal_bytes;

pub use collect::evidence_of_quote;
pub(crate) use collect::{check_present, collect};
pub(crate) use verify::verify;

use crate::intel::IntelPlatform;

hexadecimal_bytes! {
    /// Whose key signed an enclave: SHA-256 of it.
    pub SgxSigner, 32
}

hexadecimal_bytes! {
    /// Settings of an enclave, 128 bits.
    pub SgxAttributes, 16
}

/// What keeps the memory's integrity on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SgxMemory {
    /// A tree of counters over all of it: replayed memory is noticed.
    Standard,
    /// Nothing beyond encryption.
    Scalable,
    /// A tag for each line: altered memory is noticed, replayed memory is not.
    ScalableWithIntegrity,
}

impl Display for SgxMemory {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Standard => "standard",
            Self::Scalable => "scalable",
            Self::ScalableWithIntegrity => "scalable-with-integrity",
        })
    }
}

/// What a verified quote says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SgxPlatform {
    /// The processor and its firmware.
    #[serde(flatten)]
    pub intel: IntelPlatform,
    /// Whose key signed the enclave.
    pub signer: SgxSigner,
    /// Which of the signer's products it is.
    pub product_id: u16,
    /// Its security version.
    pub svn: u16,
    /// Its settings.
    pub attributes: SgxAttributes,
    /// What keeps the memory's integrity.
    pub memory: SgxMemory,
}
