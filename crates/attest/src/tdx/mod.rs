//! Intel TDX: a virtual machine whose memory the processor encrypts, and whose
//! integrity it keeps, against the hypervisor.
//!
//! Evidence is a quote over the TDX module's report ("Intel TDX Module Base Architecture
//! Specification", 348549, chapter on measurement and attestation). It travels as the
//! KBS protocol has it: the quote and the event log (CCEL) in base64; Intel's collateral
//! may come along in a field of our own.

mod collect;
mod verify;

use occlude_keys::hexadecimal_bytes;

pub use collect::evidence_of_quote;
pub(crate) use collect::{check_present, collect};
pub(crate) use verify::{verify, verify_quote};

use crate::intel::IntelPlatform;

hexadecimal_bytes! {
    /// A measurement of 48 bytes.
    pub TdxDigest, 48
}

hexadecimal_bytes! {
    /// Settings of a guest, 64 bits.
    pub TdxAttributes, 8
}

impl TdxAttributes {
    /// The bit of `SEPT_VE_DISABLE`, in the fourth byte.
    pub(crate) const SEPT_VE_DISABLE: u8 = 0x10;

    /// Whether the host may debug the guest.
    pub(crate) fn debug(&self) -> bool {
        self.as_bytes()[0] & 1 != 0
    }

    /// Whether the guest gets no exception where the host took a page away.
    pub(crate) fn sept_ve_disable(&self) -> bool {
        self.as_bytes()[3] & Self::SEPT_VE_DISABLE != 0
    }
}

/// What a verified quote says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TdxPlatform {
    /// The processor and its firmware.
    #[serde(flatten)]
    pub intel: IntelPlatform,
    /// What was measured while the guest started: firmware settings, boot loader, kernel
    /// and its command line, and what runs later.
    pub rtmr: [TdxDigest; 4],
    /// The TDX module.
    pub mr_seam: TdxDigest,
    /// What the host chose at launch.
    pub mr_config_id: TdxDigest,
    /// Who owns the guest, as the host says.
    pub mr_owner: TdxDigest,
    /// What the owner chose, as the host says.
    pub mr_owner_config: TdxDigest,
    /// The guest's settings.
    pub attributes: TdxAttributes,
    /// The processor features that the guest may use.
    pub xfam: TdxAttributes,
    /// The version of the quote's format.
    pub quote_version: u16,
    /// How many entries of the event log lead to these registers; none if no log came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_log_entries: Option<usize>,
}
