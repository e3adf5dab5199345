//! What verified evidence says.
//!
//! [`Claims`] are made by verification alone. They always say which trust they
//! rest on and what the TEE protects, so that no policy can overlook either.

use std::fmt::{Debug, Display, Formatter};

use occlude_keys::{hexadecimal, hexadecimal_bytes};

use crate::azure::AzurePlatform;
use crate::cca::CcaPlatform;
use crate::nitro::NitroPlatform;
use crate::nvidia::NvidiaPlatform;
use crate::se::SePlatform;
use crate::sgx::SgxPlatform;
use crate::snp::SnpPlatform;
use crate::tdx::TdxPlatform;
use crate::tpm::TpmPlatform;
use crate::trustzone::TrustZonePlatform;
use crate::{TeeKind, UnixTime};

/// Whose word claims rest on.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Hardware keys that the vendor's production root certifies.
    Hardware,
    /// A key that no vendor vouches for to this program: a policy has to list it, or the
    /// root that certifies it.
    ListedKey,
    /// A vendor's own test root: engineering samples and emulators.
    VendorTestRoot,
    /// Nobody's: anyone can make such evidence.
    Simulated,
}

impl Display for Trust {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::ListedKey => "listed-key",
            Self::VendorTestRoot => "vendor-test-root",
            Self::Simulated => "simulated",
        })
    }
}

/// What a TEE of that kind protects. The simulated TEE claims what it stands in
/// for; that it protects nothing is said by its [`Trust`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Memory is hidden from the machine's administrator.
    ConfidentialMemory,
    /// What started is known; memory is as open as on any machine.
    MeasuredBootOnly,
    /// The memory of a device is hidden; that of the machine which it is in is another
    /// matter.
    DeviceMemoryOnly,
}

impl Display for Protection {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ConfidentialMemory => "confidential-memory",
            Self::MeasuredBootOnly => "measured-boot-only",
            Self::DeviceMemoryOnly => "device-memory-only",
        })
    }
}

hexadecimal_bytes! {
    /// SHA-256 of a security configuration's canonical encoding.
    pub ConfigurationDigest, 32
}

impl ConfigurationDigest {
    /// From what the host chose at launch: a digest that zeros follow, as the launch of one
    /// of our servers sets it. Anything else is not a configuration of ours.
    pub(crate) fn of_launch(chosen: &[u8]) -> Option<Self> {
        let (digest, rest) = chosen.split_first_chunk::<32>()?;
        let ours = *digest != [0; 32] && rest.iter().all(|byte| *byte == 0);
        ours.then(|| Self::from(*digest))
    }
}

/// The digest of the code a TEE started with: 32, 48 or 64 bytes, depending on
/// its kind, written as lower-case hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Measurement(Vec<u8>);

impl Measurement {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Measurement {
    /// A digest, if it has the length of one.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        matches!(bytes.len(), 32 | 48 | 64).then(|| Self(bytes.to_vec()))
    }
}

impl AsRef<[u8]> for Measurement {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<[u8; 32]> for Measurement {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<[u8; 48]> for Measurement {
    fn from(bytes: [u8; 48]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<[u8; 64]> for Measurement {
    fn from(bytes: [u8; 64]) -> Self {
        Self(bytes.to_vec())
    }
}

/// Why a string is not a measurement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64, 96 or 128 lower-case hexadecimal digits, found {found:?}")]
#[non_exhaustive]
pub struct MeasurementError {
    /// What was given, cut to 140 characters.
    pub found: String,
}

impl std::str::FromStr for Measurement {
    type Err = MeasurementError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex::decode(text)
            .ok()
            .filter(|bytes| matches!(bytes.len(), 32 | 48 | 64) && hexadecimal::is_lower_case(text))
            .map(Self)
            .ok_or_else(|| MeasurementError {
                found: text.chars().take(140).collect(),
            })
    }
}

impl TryFrom<String> for Measurement {
    type Error = MeasurementError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Measurement> for String {
    fn from(measurement: Measurement) -> Self {
        measurement.to_string()
    }
}

impl Display for Measurement {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl Debug for Measurement {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Measurement({self})")
    }
}

/// What verified evidence says. Only a [`crate::Verifier`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Claims {
    pub(crate) tee: TeeKind,
    pub(crate) trust: Trust,
    pub(crate) protection: Protection,
    pub(crate) measurement: Measurement,
    pub(crate) configuration: Option<ConfigurationDigest>,
    pub(crate) debug: bool,
    pub(crate) platform: Platform,
    pub(crate) verified_at: UnixTime,
    pub(crate) collateral_until: Option<UnixTime>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) additional: Vec<Claims>,
}

/// What verified evidence says that only its kind of TEE has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Platform {
    /// No platform at all.
    Simulated {
        /// The pretended version of a firmware that there is not.
        tcb: u32,
    },
    /// An AMD processor.
    Snp(Box<SnpPlatform>),
    /// An Intel processor, of a virtual machine.
    Tdx(Box<TdxPlatform>),
    /// An Intel processor, of an enclave.
    Sgx(Box<SgxPlatform>),
    /// AWS's hypervisor.
    Nitro(Box<NitroPlatform>),
    /// A machine of Azure's: a processor, and a paravisor with a TPM.
    Azure(Box<AzurePlatform>),
    /// An Arm processor, of a realm.
    Cca(Box<CcaPlatform>),
    /// An Arm platform with a secure world.
    #[serde(rename = "trustzone")]
    TrustZone(Box<TrustZonePlatform>),
    /// A TPM, of a measured boot.
    Tpm(Box<TpmPlatform>),
    /// A TPM, of a launch with Intel TXT.
    Txt(Box<TpmPlatform>),
    /// IBM's ultravisor.
    Se(Box<SePlatform>),
    /// GPUs of NVIDIA's.
    Nvidia(Box<NvidiaPlatform>),
}

impl Claims {
    /// The kind of TEE.
    #[must_use]
    pub fn tee(&self) -> TeeKind {
        self.tee
    }

    /// Whose word this rests on.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// What that TEE protects.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The code it started with.
    #[must_use]
    pub fn measurement(&self) -> &Measurement {
        &self.measurement
    }

    /// The configuration it started with, where that kind of TEE measures it.
    #[must_use]
    pub fn configuration(&self) -> Option<&ConfigurationDigest> {
        self.configuration.as_ref()
    }

    /// Whether the host can debug it. No policy accepts that.
    #[must_use]
    pub fn debug(&self) -> bool {
        self.debug
    }

    /// What only its kind of TEE has: security versions, settings, identities.
    #[must_use]
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// The verifier's time.
    #[must_use]
    pub fn verified_at(&self) -> UnixTime {
        self.verified_at
    }

    /// What evidence of what else the machine has says: it was made for the same nonce
    /// and statement, and the TEE vouches that it collected it.
    #[must_use]
    pub fn additional(&self) -> &[Claims] {
        &self.additional
    }

    /// When the first of what the vendor publishes about the hardware, revocation lists
    /// for example, was to be replaced; none if none was used. That may be past: a
    /// policy refuses it, unless it grants a grace.
    #[must_use]
    pub fn collateral_until(&self) -> Option<UnixTime> {
        self.collateral_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_have_32_48_or_64_bytes_and_one_spelling() {
        for length in [32, 48, 64] {
            let text = "a5".repeat(length);
            assert_eq!(text.parse::<Measurement>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "a5",
            &"a5".repeat(33),
            &"A5".repeat(32),
            &"a".repeat(63),
        ] {
            assert_eq!(
                text.parse::<Measurement>(),
                Err(MeasurementError {
                    found: text.to_owned()
                })
            );
        }
    }

    #[test]
    fn names_are_the_same_in_text_and_json() {
        for trust in [
            Trust::Hardware,
            Trust::ListedKey,
            Trust::VendorTestRoot,
            Trust::Simulated,
        ] {
            assert_eq!(serde_json::json!(trust), trust.to_string());
        }
        for protection in [
            Protection::ConfidentialMemory,
            Protection::MeasuredBootOnly,
            Protection::DeviceMemoryOnly,
        ] {
            assert_eq!(serde_json::json!(protection), protection.to_string());
        }
    }
}
