//! A platform built on Arm `TrustZone`, whose secure world attests the rest: a Platform
//! Security Architecture token (RFC 9783), which firmware such as Trusted Firmware-M or
//! OP-TEE makes.
//!
//! It says what the device started and which of its clients asked. Whether that client's
//! memory is hidden from the machine's administrator is the platform's matter, which no
//! token says: claims say `measured-boot-only`.
//!
//! The KBS protocol has no form for it; here it travels as `{"token": base64}`.

mod collect;
mod verify;

pub use collect::evidence_of_token;
pub(crate) use collect::{check_present, collect};
pub(crate) use verify::verify;

use crate::arm::ArmPlatform;

/// What a verified token says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TrustZonePlatform {
    /// The device.
    #[serde(flatten)]
    pub platform: ArmPlatform,
    /// Who asked for the token: positive numbers are of the secure world.
    pub client_id: i32,
}
