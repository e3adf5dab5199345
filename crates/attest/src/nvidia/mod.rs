//! NVIDIA's GPUs in confidential computing mode: what is in their memory, and on the bus
//! between them and the machine, is hidden from the machine's administrator.
//!
//! Evidence is one report for each GPU ("Attestation report" in NVIDIA's nvtrust): the
//! request and the response of SPDM 1.1's `GET_MEASUREMENTS` (DMTF DSP0274, section 10.11),
//! signed by a key that chains to NVIDIA's root. It travels as the KBS protocol has it,
//! `{"device_evidence_list": [{"arch", "uuid", "evidence", "certificate"}]}`.
//!
//! What should have been measured is in reference integrity manifests (RIM) that NVIDIA
//! signs, one for a driver and one for a VBIOS. They are the verifier's collateral.
//!
//! A report says that some genuine GPU answered. That it is the one whose memory holds the
//! model is the word of the machine's driver, which a TEE measures; so this evidence comes
//! along beside a TEE's own, which vouches for it, and on its own no policy accepts it by
//! default.

mod collect;
mod fetch;
mod rim;
mod spdm;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::BTreeMap;

use occlude_keys::hexadecimal_bytes;

pub use collect::evidence_of_devices;
pub(crate) use collect::{check_present, collect};
pub(crate) use fetch::wanted;
pub(crate) use rim::Rim;
#[cfg(fuzzing)]
pub use rim::read_as_if_signed;
pub(crate) use verify::verify;

hexadecimal_bytes! {
    /// A measurement of 48 bytes, SHA-384.
    pub NvidiaDigest, 48
}

/// What verified reports say besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NvidiaPlatform {
    /// Each GPU, in the order in which they came.
    pub devices: Vec<NvidiaDevice>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NvidiaDevice {
    /// SHA-384 of the key that signed, which is one device's under one firmware.
    pub key: NvidiaDigest,
    /// The kind of chip, as its certificate has it: `GH100`.
    pub chip: String,
    /// The version of the driver that set the GPU up.
    pub driver_version: String,
    /// The version of the GPU's own firmware.
    pub vbios_version: String,
    /// The firmware that holds the key, as the certificate and the report have it.
    pub firmware: NvidiaDigest,
    /// How the GPU is used.
    pub mode: NvidiaMode,
    /// What was measured, by the numbers that SPDM has for it, without what is zero.
    pub measurements: BTreeMap<MeasurementIndex, NvidiaDigest>,
    /// Whether these are what NVIDIA signed for this driver.
    pub driver_reference: Reference,
    /// Whether these are what NVIDIA signed for this VBIOS.
    pub vbios_reference: Reference,
}

/// How a GPU is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NvidiaMode {
    /// One GPU for one machine.
    SinglePassThrough,
    /// Several for one machine, with what goes between them encrypted.
    MultiplePassThrough,
    /// Several for one machine, with what goes between them **not** encrypted.
    ProtectedPcie,
    /// The report does not say.
    Unknown,
}

impl std::fmt::Display for NvidiaMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SinglePassThrough => "single-pass-through",
            Self::MultiplePassThrough => "multiple-pass-through",
            Self::ProtectedPcie => "protected-pcie",
            Self::Unknown => "unknown",
        })
    }
}

/// How measurements compare with what NVIDIA signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    /// They are the same. Where they are not, there are no claims at all.
    Matched,
    /// The verifier's collateral has no manifest of this version.
    None,
}

/// A measurement's number, `1` to `239` (DSP0274, table 44): written as text in JSON and in
/// policies.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct MeasurementIndex(u8);

impl MeasurementIndex {
    const LAST: u8 = 239;

    fn new(number: u8) -> Option<Self> {
        (1..=Self::LAST).contains(&number).then_some(Self(number))
    }
}

impl std::fmt::Display for MeasurementIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<MeasurementIndex> for String {
    fn from(index: MeasurementIndex) -> Self {
        index.to_string()
    }
}

/// A text that is no measurement's number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no measurement's number: expected 1 to 239")]
#[non_exhaustive]
pub struct MeasurementIndexError {
    /// What was given, cut to 80 characters.
    pub found: String,
}

impl TryFrom<String> for MeasurementIndex {
    type Error = MeasurementIndexError;

    fn try_from(text: String) -> Result<Self, MeasurementIndexError> {
        text.parse()
            .ok()
            .and_then(Self::new)
            // One spelling: no sign, no zero in front.
            .filter(|index| index.to_string() == text)
            .ok_or_else(|| MeasurementIndexError {
                found: text.chars().take(80).collect(),
            })
    }
}
