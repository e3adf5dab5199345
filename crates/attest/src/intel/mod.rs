//! What SGX and TDX share: quotes, which Intel's quoting enclave signs with a key that
//! the processor's key (PCK) vouches for ("Intel SGX: Data Center Attestation
//! Primitives", ECDSA quote library reference; the same for TDX).
//!
//! The `dcap-qvl` crate verifies: certificates, revocation lists, the quoting enclave's
//! identity, signatures, and which of Intel's levels the platform reached. Which levels
//! are good enough is for the policy to say; the crate itself refuses revoked ones only.
//! Around it, the certificates' time is checked with the real time, while what Intel
//! publishes (its collateral) is checked as of when it was to be replaced, if that is
//! earlier: that is told in the claims, and the policy judges it.

mod fetch;
mod sept_ve;
#[cfg(test)]
pub(crate) mod synthetic;
mod verify;

use std::fmt::{Display, Formatter};

use occlude_keys::hexadecimal_bytes;

pub(crate) use fetch::wanted;
pub(crate) use verify::{ROOT, described, verify};

hexadecimal_bytes! {
    /// A family, model, platform and stepping of processors, as Intel numbers them.
    pub Fmspc, 6
}

/// How Intel judges a platform's firmware and microcode ("Intel SGX and TDX
/// Provisioning Certification Service, API", TCB information, `tcbStatus`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[non_exhaustive]
pub enum TcbStatus {
    /// Nothing is missing.
    UpToDate,
    /// Up to date, if the software in the enclave hardens itself.
    SWHardeningNeeded,
    /// Up to date, if the platform is configured so.
    ConfigurationNeeded,
    /// Both.
    ConfigurationAndSWHardeningNeeded,
    /// Updates are missing.
    OutOfDate,
    /// Updates are missing, and the platform has to be configured.
    OutOfDateConfigurationNeeded,
    /// It started with an old module that has been updated since.
    TDRelaunchAdvised,
    /// The same, and the platform has to be configured.
    TDRelaunchAdvisedConfigurationNeeded,
}

impl Display for TcbStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        // Its name in the code is Intel's.
        write!(f, "{self:?}")
    }
}

/// What a verified quote says of the platform, for SGX and TDX alike.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct IntelPlatform {
    /// How Intel judges the platform, its quoting enclave and its TDX module together.
    pub tcb_status: TcbStatus,
    /// When the level that it reached was published.
    pub tcb_date: crate::UnixTime,
    /// The security advisories that this level is open to.
    pub advisories: Vec<String>,
    /// Intel's count of its judgements; a larger one is later.
    pub evaluation_number: u32,
    /// The kind of processor.
    pub fmspc: Fmspc,
}
