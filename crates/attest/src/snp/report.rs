//! The report's bytes, read by the `sev` crate, and its form in the KBS protocol.
//!
//! Every byte of a report counts: those that the specification reserves must be zero,
//! those behind the signature's two numbers too, and the form that travels must have
//! nothing that is not understood.

use serde::{Deserialize, Serialize};
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::CertTableEntry;
use sev::parser::ByteParser;

use crate::{VerifyError, canonical};

/// Bytes of a report.
pub(super) const REPORT_BYTES: usize = 1184;

/// Where its signature begins; what lies before is signed.
pub(super) const SIGNED_BYTES: usize = 0x2a0;

/// Bytes of each of the signature's two numbers, little-endian; P-384 needs 48.
const NUMBER_BYTES: usize = 72;
const P384_BYTES: usize = 48;

/// Evidence's body: `SnpEvidence` of the KBS protocol.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) attestation_report: AttestationReport,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cert_chain: Option<Vec<CertTableEntry>>,
}

/// A report with the bytes that were signed.
pub(super) struct Report {
    pub(super) fields: AttestationReport,
    bytes: [u8; REPORT_BYTES],
}

impl Report {
    /// Reads a report as the secure processor gives it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        let bytes: [u8; REPORT_BYTES] = bytes.try_into().map_err(|_| VerifyError::Malformed {
            reason: format!("{} bytes, a report has {REPORT_BYTES}", bytes.len()),
        })?;
        let version = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        // The parser takes a version that it does not know for the latest.
        if !matches!(version, 2 | 3 | 5) {
            return Err(VerifyError::Unsupported {
                what: format!("report version {version}: 2, 3 and 5 are known"),
            });
        }
        let reserved = || VerifyError::Malformed {
            reason: "reserved bytes of the report are not zero".to_owned(),
        };
        let numbers = bytes[SIGNED_BYTES..SIGNED_BYTES + 2 * NUMBER_BYTES].chunks(NUMBER_BYTES);
        let mut above = numbers.flat_map(|number| &number[P384_BYTES..]);
        if above.any(|byte| *byte != 0) {
            return Err(reserved());
        }
        let fields = AttestationReport::from_bytes(&bytes).map_err(|error| malformed(&error))?;
        // The parser skips some of them.
        if fields.to_bytes().map_err(|error| malformed(&error))? != bytes {
            return Err(reserved());
        }
        Ok(Self { fields, bytes })
    }

    /// The same from its form in the KBS protocol, by way of its bytes.
    pub(super) fn from_fields(fields: &AttestationReport) -> Result<Self, VerifyError> {
        let bytes = fields.to_bytes().map_err(|error| malformed(&error))?;
        let report = Self::parse(&bytes)?;
        if report.fields != *fields {
            return Err(VerifyError::Malformed {
                reason: "the report's fields have no bytes that say the same".to_owned(),
            });
        }
        Ok(report)
    }

    /// What is signed.
    pub(super) fn signed(&self) -> &[u8] {
        &self.bytes[..SIGNED_BYTES]
    }

    /// The signature's two numbers, big-endian, as ECDSA libraries take them.
    pub(super) fn signature(&self) -> [u8; 2 * P384_BYTES] {
        let mut both = [0; 2 * P384_BYTES];
        let (r, s) = both.split_at_mut(P384_BYTES);
        for (number, start) in [(r, SIGNED_BYTES), (s, SIGNED_BYTES + NUMBER_BYTES)] {
            number.copy_from_slice(&self.bytes[start..start + P384_BYTES]);
            number.reverse();
        }
        both
    }
}

pub(super) fn malformed(error: &dyn std::fmt::Display) -> VerifyError {
    VerifyError::Malformed {
        reason: canonical::reason(error),
    }
}
