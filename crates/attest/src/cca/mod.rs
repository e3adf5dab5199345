//! Arm Confidential Compute Architecture: a *realm*, a virtual machine whose memory the
//! processor keeps from the hypervisor and from the secure world.
//!
//! Evidence is a token of two parts ("Arm Confidential Compute Architecture attestation
//! token", draft-ffm-rats-cca-token): the platform's, which the device's key signs, and
//! the realm's, which a key signs that the platform made; a digest of that key is in the
//! platform's part. It travels as the KBS protocol has it, `{"token": [bytes]}`.

mod collect;
mod verify;

use occlude_keys::hexadecimal_bytes;

pub use collect::evidence_of_token;
pub(crate) use collect::{PROVIDER, check_present, collect};
pub(crate) use verify::verify;

use crate::Measurement;
use crate::arm::ArmPlatform;

hexadecimal_bytes! {
    /// 64 bytes that the host chose at launch.
    pub Personalization, 64
}

/// What a verified token says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CcaPlatform {
    /// The device.
    #[serde(flatten)]
    pub platform: ArmPlatform,
    /// What was measured after the realm started.
    pub rem: [Measurement; 4],
    /// What the host chose at launch.
    pub personalization: Personalization,
}
