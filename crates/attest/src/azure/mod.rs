//! Azure's confidential virtual machines: SEV-SNP or TDX, and in them, before the guest,
//! a *paravisor* of Microsoft's (HCL) that plays the guest's TPM.
//!
//! The hardware's report covers the paravisor alone, and with its report data the
//! paravisor's own: the key of its TPM and the machine's settings. What the guest started
//! is in that TPM's registers, which a quote under that key says. So three things have to
//! hold, and be wanted: the hardware's report, of a paravisor that the policy lists; the
//! paravisor's data; the quote. The paravisor sees the guest's memory: it is Microsoft's
//! word besides the processor's.
//!
//! Evidence travels as the KBS protocol has it: `{"version", "tpm_quote", "hcl_report",
//! "vcek"}` of SNP, `td_quote` in place of `vcek` of TDX, where Intel's collateral may
//! come along in a field of our own.

mod collect;
mod hcl;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::BTreeMap;

pub(crate) use collect::{check_present_snp, check_present_tdx, collect_snp, collect_tdx};
pub(crate) use verify::{verify_snp, verify_tdx};

use crate::snp::SnpPlatform;
use crate::tdx::TdxPlatform;
use crate::tpm::TpmDigest;
use crate::{Measurement, Register};

/// What verified evidence says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct AzurePlatform {
    /// What the hardware measured: the paravisor and the guest's firmware.
    pub paravisor: Measurement,
    /// The registers of the paravisor's TPM: what the guest started.
    pub pcrs: BTreeMap<Register, TpmDigest>,
    /// Whether the firmware starts only what is signed by whom it trusts.
    pub secure_boot: bool,
    /// Whether the host can reach the guest's serial console.
    pub console: bool,
    /// The machine, as Azure numbers it.
    pub vm_id: String,
    /// How often the machine was started.
    pub resets: u32,
    /// How often it slept or was stopped for a while since.
    pub restarts: u32,
    /// The hardware's own part.
    pub processor: AzureProcessor,
}

/// What the hardware's report says besides.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AzureProcessor {
    /// AMD's.
    Snp(Box<SnpPlatform>),
    /// Intel's.
    Tdx(Box<TdxPlatform>),
}
