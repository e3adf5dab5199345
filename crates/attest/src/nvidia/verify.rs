//! Verifying reports: each by its GPU's key, which NVIDIA certifies, and against what NVIDIA
//! says that its driver and its VBIOS measure.

use p384::ecdsa::VerifyingKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha384};
use x509_cert::der::asn1::{Any, OctetString};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};

use super::spdm::Report;
use super::{MeasurementIndex, NvidiaDevice, NvidiaDigest, NvidiaPlatform, Reference, Rim};
use crate::binding::BindingForm;
use crate::verifier::Part;
use crate::{
    Claims, Collateral, Measurement, Platform, Protection, TeeKind, Trust, UnixTime, VerifyError,
    canonical, certificate,
};

/// SHA-256 of "NVIDIA Device Identity CA" (DER).
const ROOT: [u8; 32] = [
    0x10, 0x2b, 0xf6, 0x59, 0xd5, 0x41, 0x96, 0x14, 0xc9, 0xd8, 0xe6, 0xae, 0xce, 0xbc, 0x80, 0x45,
    0x4e, 0xb2, 0x6b, 0x1d, 0xf6, 0xa7, 0x69, 0xac, 0x72, 0x0b, 0x9a, 0x69, 0x0b, 0x16, 0x7b, 0x48,
];

/// What errors call the signing key.
const KEY: &str = "the GPU's key";

/// The most devices of one machine: eight GPUs and four switches between them.
const MAX_DEVICES: usize = 12;

/// The most certificates that come along with one.
const MAX_CERTIFICATES: usize = 8;

/// The kind of device whose reports are known.
const HOPPER: &str = "HOPPER";

/// What certificates of that kind call the chip.
pub(super) const HOPPER_CHIP: &str = "GH100";

/// The extension that names the firmware which holds a key (TCG DICE).
const FIRMWARE_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1");

/// The decoder's measurement, which a GPU without a decoder leaves undefined (NVIDIA's
/// attestation SDK has the same exception, counting from 0).
const DECODER: u8 = 36;

/// Evidence's body, as the KBS protocol has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) device_evidence_list: Vec<Device>,
}

/// One device's part, each in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    pub(super) arch: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uuid: Option<String>,
    pub(super) evidence: String,
    pub(super) certificate: String,
}

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    verify_below(body, &ROOT, collateral, at)
}

pub(super) fn verify_below(
    body: &Value,
    root: &[u8; 32],
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let found = body.device_evidence_list.len();
    if !(1..=MAX_DEVICES).contains(&found) {
        return Err(VerifyError::Malformed {
            reason: format!("{found} devices, there are 1 to {MAX_DEVICES}"),
        });
    }
    let mut devices: Vec<NvidiaDevice> = Vec::new();
    let (mut nonce, mut collateral_until) = (None, None::<UnixTime>);
    let mut measured = Sha384::new();
    for device in &body.device_evidence_list {
        let verified = device.verify(root, collateral, at)?;
        if devices.iter().any(|other| other.key == verified.device.key) {
            return Err(VerifyError::Malformed {
                reason: "the same device twice".to_owned(),
            });
        }
        if *nonce.get_or_insert(verified.nonce) != verified.nonce {
            return Err(VerifyError::BindingMismatch);
        }
        for (index, digest) in &verified.device.measurements {
            measured.update([index.0]);
            measured.update(digest.as_bytes());
        }
        let until = [collateral_until, verified.collateral_until];
        collateral_until = until.into_iter().flatten().min();
        devices.push(verified.device);
    }
    let measured: [u8; 48] = measured.finalize().into();
    Ok(Part {
        carried: nonce.unwrap_or_default().to_vec(),
        form: BindingForm::Digest,
        claims: Claims {
            tee: TeeKind::Nvidia,
            trust: Trust::Hardware,
            protection: Protection::DeviceMemoryOnly,
            measurement: Measurement::from(measured),
            configuration: None,
            debug: false,
            platform: Platform::Nvidia(Box::new(NvidiaPlatform { devices })),
            verified_at: at,
            collateral_until,
            additional: Vec::new(),
        },
    })
}

/// A device whose report holds, and what it was asked with.
struct Verified {
    device: NvidiaDevice,
    nonce: [u8; 32],
    collateral_until: Option<UnixTime>,
}

impl Device {
    fn verify(
        &self,
        root: &[u8; 32],
        collateral: &Collateral,
        at: UnixTime,
    ) -> Result<Verified, VerifyError> {
        if self.arch != HOPPER {
            return Err(VerifyError::Unsupported {
                what: format!(
                    "a device of NVIDIA's {:?}: {HOPPER} is known",
                    canonical::reason(&self.arch)
                ),
            });
        }
        let evidence = canonical::from_base64("evidence", &self.evidence)?;
        let report = Report::parse(&evidence)?;
        let pem = canonical::from_base64("certificate", &self.certificate)?;
        let chain = certificate::from_pem_or_der(KEY, &pem)?;
        if chain.len() > MAX_CERTIFICATES {
            return Err(VerifyError::Malformed {
                reason: format!("{} certificates of a device", chain.len()),
            });
        }
        let lists = collateral.revocation_lists();
        let signer = certificate::p384_key(KEY, &chain, root, lists, at)?;
        report.verify(&signer.key)?;
        // The label that came along is nobody's word; NVIDIA certifies other devices too.
        let chip = certified_chip(&signer.certificate);
        if chip.as_deref() != Some(HOPPER_CHIP) {
            return Err(VerifyError::EndorsementMismatch {
                what: "another kind of device",
            });
        }
        // What holds the key must be what the report speaks of.
        if certified_firmware(&signer.certificate) != Some(report.firmware) {
            return Err(VerifyError::EndorsementMismatch {
                what: "another firmware of the GPU",
            });
        }
        let reference = |version: &str, chip: Option<&str>| {
            let of_version =
                |rim: &&Rim| rim.is_of(version) && chip.is_none_or(|chip| rim.product() == chip);
            let decoder = MeasurementIndex::new(DECODER).filter(|_| !report.has_decoder);
            let found = |index| report.measurements.get(&index).copied();
            // Boards may have a VBIOS of the same version each.
            let mut refused = None;
            for rim in collateral.rims().iter().filter(of_version) {
                match rim.compare(found, decoder, lists, at) {
                    Ok(until) => return Ok((Reference::Matched, until)),
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
            refused.map_or(Ok((Reference::None, None)), Err)
        };
        let (driver_reference, driver_until) =
            reference(&report.driver_version, Some(HOPPER_CHIP))?;
        let (vbios_reference, vbios_until) = reference(&report.vbios_version, None)?;
        let until = [signer.lists_until, driver_until, vbios_until];
        Ok(Verified {
            nonce: report.nonce,
            collateral_until: until.into_iter().flatten().min(),
            device: NvidiaDevice {
                key: fingerprint(&signer.key),
                chip: HOPPER_CHIP.to_owned(),
                driver_reference,
                vbios_reference,
                driver_version: report.driver_version,
                vbios_version: report.vbios_version,
                firmware: report.firmware,
                mode: report.mode,
                measurements: report
                    .measurements
                    .into_iter()
                    .filter(|(_, value)| *value.as_bytes() != [0; 48])
                    .collect(),
            },
        })
    }
}

fn fingerprint(key: &VerifyingKey) -> NvidiaDigest {
    let point = key.to_sec1_point(false);
    NvidiaDigest::from(<[u8; 48]>::from(Sha384::digest(point.as_bytes())))
}

/// The chip that a certificate is of: the first word of its common name, as in `GH100 A01 GSP
/// FMC LF`.
fn certified_chip(certificate: &x509_cert::Certificate) -> Option<String> {
    let name = certificate.tbs_certificate().subject().common_name();
    let name = name.ok()??;
    Some(name.value().split(' ').next()?.to_owned())
}

/// The digest of the firmware that a certificate's extension names: its version, a key, then
/// algorithm and digest.
fn certified_firmware(certificate: &x509_cert::Certificate) -> Option<NvidiaDigest> {
    let mut extensions = certificate.tbs_certificate().extensions()?.iter();
    let extension = extensions.find(|one| one.extn_id == FIRMWARE_EXTENSION)?;
    let [_version, _key, firmware] =
        <[Any; 3]>::try_from(Vec::<Any>::from_der(extension.extn_value.as_bytes()).ok()?).ok()?;
    let [_algorithm, digest] =
        <[Any; 2]>::try_from(Vec::<Any>::from_der(&firmware.to_der().ok()?).ok()?).ok()?;
    let digest: OctetString = digest.decode_as().ok()?;
    Some(<[u8; 48]>::try_from(digest.as_bytes()).ok()?.into())
}
