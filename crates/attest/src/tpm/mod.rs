//! A TPM 2.0, in hardware or of a virtual machine: it says what was measured since the
//! last reset, and hides nothing. Whoever has the machine reads its memory.
//!
//! Evidence is a quote ("TPM 2.0 Library", part 2, section 10.12.8): the TPM's word, under
//! a key that it uses for nothing else, of what is in its registers. No vendor's root is
//! pinned, since every maker of TPMs has one of its own: a policy lists the keys that it
//! accepts, or the roots that certify them.
//!
//! It travels as the KBS protocol has it, `{"ak_public", "tpm_quote": {"message",
//! "signature", "pcrs"}}`, with two fields of our own that may be missing: certificates
//! of the key (`ak_certificates`) and the firmware's log of the boot (`event_log`).

mod collect;
pub(crate) mod device;
mod quote;
mod storage;
mod verify;

use std::collections::BTreeMap;

use occlude_keys::hexadecimal_bytes;

pub(crate) use collect::{
    Quoted, check_present, check_present_of, collect, collect_of_kind, quote,
};
pub(crate) use quote::{AttestationKey, Quote, Signature};
pub use verify::registers_of_log;
pub(crate) use verify::{QuoteBody, verify, verify_quote};

use crate::Register;

/// Where Linux shows the TPM, through its resource manager.
pub(crate) const DEVICE: &str = "/dev/tpmrm0";

hexadecimal_bytes! {
    /// What is in a register, or was measured into one: SHA-256.
    pub TpmDigest, 32
}

hexadecimal_bytes! {
    /// A key, by SHA-256 of its SubjectPublicKeyInfo (DER).
    pub KeyFingerprint, 32
}

hexadecimal_bytes! {
    /// A root certificate, by SHA-256 of its DER.
    pub RootFingerprint, 32
}

/// What a verified quote says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TpmPlatform {
    /// Whose word it is. Nobody but a policy says that it is a TPM's.
    pub attestation_key: KeyFingerprint,
    /// The root that certifies it, if certificates came along that lead to one.
    pub certified_by: Option<RootFingerprint>,
    /// The registers: 0 to 7 the firmware, 4 what it started, 8 and 9 the boot loader's, 11
    /// to 13 those of systemd, 17 and 18 those of a dynamic launch.
    pub pcrs: BTreeMap<Register, TpmDigest>,
    /// The TPM's own firmware, as its maker numbers it.
    pub firmware_version: u64,
    /// How often the machine was started.
    pub resets: u32,
    /// How often it slept or was stopped for a while since.
    pub restarts: u32,
    /// How many entries of a log lead to registers 0 to 9; none if no log came along.
    pub event_log_entries: Option<usize>,
}
