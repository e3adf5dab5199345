//! A GPU's report: the request and the response of SPDM 1.1's `GET_MEASUREMENTS`, one after
//! the other, as they were signed.

use std::collections::BTreeMap;

use p384::ecdsa::signature::Verifier;
use p384::ecdsa::{Signature, VerifyingKey};

use super::{MeasurementIndex, NvidiaDigest, NvidiaMode};
use crate::{VerifyError, canonical};

/// The longest report that is read. Real ones have about four kilobytes.
pub(super) const MAX_BYTES: usize = 16 * 1024;

/// SPDM's version, as every message begins (DSP0274, section 10.2).
const VERSION: u8 = 0x11;

/// Codes of the two messages (DSP0274, tables 4 and 5).
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;

/// That a measurement has the DMTF's form (DSP0274, section 10.11.1).
const DMTF: u8 = 1;

/// Fields of the opaque data, which are NVIDIA's own (nvtrust).
const DRIVER_VERSION: u16 = 3;
const VBIOS_VERSION: u16 = 6;
const DECODER_STATUS: u16 = 11;
const CHIP_SKU: u16 = 15;
const PROJECT: u16 = 17;
const PROJECT_SKU: u16 = 18;
const FIRMWARE: u16 = 20;
const FEATURE_FLAG: u16 = 36;

/// What the decoder's status says where there is none.
const DECODER_DISABLED: u8 = 0x55;

/// What errors call it.
const THE_REPORT: &str = "the GPU's report";

/// A report as it was sent.
pub(super) struct Report<'a> {
    signed: &'a [u8],
    signature: &'a [u8; 96],
    /// What the GPU was asked with.
    pub(super) nonce: [u8; 32],
    /// What was measured.
    pub(super) measurements: BTreeMap<MeasurementIndex, NvidiaDigest>,
    pub(super) driver_version: String,
    pub(super) vbios_version: String,
    pub(super) firmware: NvidiaDigest,
    pub(super) mode: NvidiaMode,
    pub(super) has_decoder: bool,
    /// What NVIDIA calls the board, where the report says it.
    pub(super) board: Option<String>,
}

fn malformed(why: &dyn std::fmt::Display) -> VerifyError {
    VerifyError::malformed(THE_REPORT, why)
}

impl<'a> Report<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_BYTES {
            return Err(malformed(&format_args!(
                "{} bytes, it has at most {MAX_BYTES}",
                bytes.len()
            )));
        }
        let (signed, signature) = bytes
            .split_last_chunk::<96>()
            .ok_or_else(|| malformed(&"it ends early"))?;
        let mut rest = Fields(signed);
        rest.message(GET_MEASUREMENTS)?;
        let nonce = *rest.array::<32>()?;
        let [_slot] = rest.array()?;

        rest.message(MEASUREMENTS)?;
        let [blocks, length @ ..] = rest.array::<4>()?;
        let [low, middle, high] = *length;
        let record = rest.take(u32::from_le_bytes([low, middle, high, 0]) as usize)?;
        let measurements = measurements(*blocks, record)?;
        // The GPU's own nonce, against an SPDM session's other side.
        rest.array::<32>()?;
        let length = rest.u16()?;
        let opaque = opaque_fields(rest.take(length.into())?)?;
        rest.end()?;

        let field = |number: u16| opaque.get(&number).copied();
        let needed = |number: u16| {
            field(number).ok_or_else(|| malformed(&format_args!("no field {number}")))
        };
        let firmware: [u8; 48] = needed(FIRMWARE)?
            .try_into()
            .map_err(|_| malformed(&"its firmware is not named by 48 bytes"))?;
        Ok(Self {
            signed,
            signature,
            nonce,
            measurements,
            driver_version: text(needed(DRIVER_VERSION)?)?,
            vbios_version: vbios_version(needed(VBIOS_VERSION)?)?,
            firmware: firmware.into(),
            mode: mode(field(FEATURE_FLAG)),
            board: [PROJECT, PROJECT_SKU, CHIP_SKU]
                .map(|number| text(field(number).unwrap_or_default()).ok())
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .map(|parts| parts.join("_").to_uppercase()),
            has_decoder: field(DECODER_STATUS) != Some(&[DECODER_DISABLED]),
        })
    }

    /// Verifies the signature, r and s one after the other.
    pub(super) fn verify(&self, key: &VerifyingKey) -> Result<(), VerifyError> {
        Signature::from_slice(self.signature)
            .and_then(|signature| key.verify(self.signed, &signature))
            .map_err(|_| VerifyError::BadSignature {
                of: THE_REPORT,
                by: "the key of its certificate",
            })
    }
}

/// Measurement blocks (DSP0274, table 43): each a digest in the DMTF's form.
fn measurements(
    blocks: u8,
    record: &[u8],
) -> Result<BTreeMap<MeasurementIndex, NvidiaDigest>, VerifyError> {
    let mut measurements = BTreeMap::new();
    let mut rest = Fields(record);
    for _ in 0..blocks {
        let [number, specification] = *rest.array()?;
        let length = rest.u16()?;
        let mut block = Fields(rest.take(length.into())?);
        let [_kind] = *block.array()?;
        let value = block.u16().and_then(|length| block.take(length.into()))?;
        block.end()?;
        let digest = <[u8; 48]>::try_from(value).ok();
        let index = MeasurementIndex::new(number);
        let (Some(index), Some(digest), DMTF) = (index, digest, specification) else {
            return Err(malformed(&format_args!("measurement {number}")));
        };
        if measurements.insert(index, digest.into()).is_some() {
            return Err(malformed(&format_args!("measurement {number} twice")));
        }
    }
    rest.end()?;
    Ok(measurements)
}

/// Fields of NVIDIA's own: a number, a length, a value.
fn opaque_fields(bytes: &[u8]) -> Result<BTreeMap<u16, &[u8]>, VerifyError> {
    let mut fields = BTreeMap::new();
    let mut rest = Fields(bytes);
    while !rest.0.is_empty() {
        let number = rest.u16()?;
        let length = rest.u16()?;
        if fields.insert(number, rest.take(length.into())?).is_some() {
            return Err(malformed(&format_args!("field {number} twice")));
        }
    }
    Ok(fields)
}

/// Text that zeros follow.
fn text(bytes: &[u8]) -> Result<String, VerifyError> {
    let text = std::str::from_utf8(bytes).ok();
    text.map(|text| text.trim_end_matches('\0'))
        .filter(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()))
        .map(|text| canonical::reason(&text))
        .ok_or_else(|| malformed(&"its driver's version is no text"))
}

/// Eight bytes, of which the first four are the last four numbers of the version backwards,
/// and the fifth is its last one.
fn vbios_version(bytes: &[u8]) -> Result<String, VerifyError> {
    let [d, c, b, a, e, _, _, _] = bytes
        .try_into()
        .map_err(|_| malformed(&"its VBIOS's version has not 8 bytes"))?;
    let [a, b, c, d, e]: [u8; 5] = [a, b, c, d, e];
    Ok(format!("{a:02x}.{b:02x}.{c:02x}.{d:02x}.{e:02x}"))
}

fn mode(flag: Option<&[u8]>) -> NvidiaMode {
    match flag {
        Some([0, rest @ ..]) if is_zero(rest) => NvidiaMode::SinglePassThrough,
        Some([1, rest @ ..]) if is_zero(rest) => NvidiaMode::MultiplePassThrough,
        Some([2, rest @ ..]) if is_zero(rest) => NvidiaMode::ProtectedPcie,
        _ => NvidiaMode::Unknown,
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Bytes that are read from their beginning.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], VerifyError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| malformed(&"it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], VerifyError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| malformed(&"it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, VerifyError> {
        Ok(u16::from_le_bytes(*self.array()?))
    }

    /// A message's beginning, without its two parameters.
    fn message(&mut self, code: u8) -> Result<(), VerifyError> {
        let [version, found, _, _] = *self.array()?;
        if version != VERSION {
            return Err(VerifyError::Unsupported {
                what: format!("SPDM {}.{}", version >> 4, version & 15),
            });
        }
        if found != code {
            return Err(malformed(&format_args!("a message of kind {found:#04x}")));
        }
        Ok(())
    }

    fn end(&self) -> Result<(), VerifyError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(malformed(&format_args!("{} bytes more", self.0.len())))
    }
}
