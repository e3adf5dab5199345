//! What Arm's tokens share: the Platform Security Architecture's claims (RFC 9783), which
//! CCA's platform token has too ("Arm Confidential Compute Architecture attestation
//! token", draft-ffm-rats-cca-token), in CBOR that a key of the device signs.
//!
//! A token does not bring its key, it names the device. No root is published that
//! certifies such keys: the verifier has them among its collateral, as the device's maker
//! gave them out, and a policy lists those that it accepts. With one of them everybody can
//! sign, since its private half is published for tests, and claims say so.

mod claims;
mod keys;

use std::fmt::{Display, Formatter};

use occlude_keys::hexadecimal_bytes;

pub(crate) use claims::{ClaimSet, NONCE, PROFILE, verify_device};
pub(crate) use keys::{DeviceKey, device_keys};

use crate::Measurement;
use crate::tpm::KeyFingerprint;

hexadecimal_bytes! {
    /// What made a device: hardware and immutable firmware.
    pub ImplementationId, 32
}

hexadecimal_bytes! {
    /// A device, as it names itself: a type and a digest of its key.
    pub InstanceId, 33
}

/// What a device's life allows (RFC 9783, section 4.3.1).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Lifecycle {
    /// Not said.
    Unknown,
    /// It is being made.
    AssemblyAndTest,
    /// It is being given its keys.
    Provisioning,
    /// In use, and closed to debuggers.
    Secured,
    /// What is not part of the root of trust can be debugged.
    NonTrustedDebug,
    /// All can be debugged, and its keys are out of reach meanwhile.
    RecoverableDebug,
    /// At its end.
    Decommissioned,
}

impl Lifecycle {
    /// From a claim's value; the lower byte is the maker's.
    fn from_claim(value: i64) -> Option<Self> {
        let state = u16::try_from(value).ok()? >> 8;
        Some(match state {
            0x00 => Self::Unknown,
            0x10 => Self::AssemblyAndTest,
            0x20 => Self::Provisioning,
            0x30 => Self::Secured,
            0x40 => Self::NonTrustedDebug,
            0x50 => Self::RecoverableDebug,
            0x60 => Self::Decommissioned,
            _ => return None,
        })
    }
}

impl Display for Lifecycle {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::AssemblyAndTest => "assembly-and-test",
            Self::Provisioning => "provisioning",
            Self::Secured => "secured",
            Self::NonTrustedDebug => "non-trusted-debug",
            Self::RecoverableDebug => "recoverable-debug",
            Self::Decommissioned => "decommissioned",
        })
    }
}

/// A part of a device's firmware.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Component {
    /// What it is, as the device calls it.
    pub name: Option<String>,
    /// What was measured of it.
    pub measurement: Measurement,
    /// Whose key signed it.
    pub signer: Measurement,
    /// Its version, as the device says.
    pub version: Option<String>,
}

/// What a verified token says of the device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ArmPlatform {
    /// The device's key.
    pub attestation_key: KeyFingerprint,
    /// The device, as it names itself.
    pub instance_id: InstanceId,
    /// What made it.
    pub implementation_id: ImplementationId,
    /// What its life allows.
    pub lifecycle: Lifecycle,
    /// Its firmware, in the order in which it started.
    pub components: Vec<Component>,
}
