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

use occlude_keys::hexadecimal_bytes;

pub use collect::evidence_of_document;
pub(crate) use collect::{check_present, collect};
pub(crate) use verify::verify;

use crate::Register;

hexadecimal_bytes! {
    /// A measurement of 48 bytes.
    pub NitroDigest, 48
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
