//! Evidence in a file: what somebody recorded, to be verified later and elsewhere.
//!
//! Three forms are read: a server's whole answer, evidence as this project writes it,
//! and what a technology itself gives, of a kind that the reader names.

use serde_json::Value;

use crate::{
    AttestationResponse, Evidence, TeeKind, VerifyError, cca, nitro, nvidia, sgx, snp, tdx,
    trustzone,
};

/// Evidence from a file, not verified, with the statement that came with it, if one did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedEvidence {
    /// The evidence.
    pub evidence: Evidence,
    /// The service statement's exact bytes.
    pub statement: Option<Vec<u8>>,
}

/// Why a file is not taken for evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordedError {
    /// It is of another kind than was said.
    #[error("it is evidence of {found}, not of {expected}")]
    OtherKind {
        /// The kind that it says.
        found: TeeKind,
        /// The kind that was wanted.
        expected: TeeKind,
    },
    /// A form that does not say its kind, and nobody else does.
    #[error("it does not say of which kind of TEE it is: say so with --tee")]
    KindMissing,
    /// Evidence of a kind that has no form but JSON, and this is none.
    #[error("it is no JSON object, as evidence of {tee} is")]
    NotJson {
        /// The kind.
        tee: TeeKind,
    },
    /// The kind was said, and the bytes are not its evidence.
    #[error(transparent)]
    Evidence(#[from] VerifyError),
}

impl RecordedEvidence {
    /// The longest file that is worth reading.
    pub const MAX_FILE_BYTES: u64 = AttestationResponse::MAX_BYTES as u64;

    /// Reads a file. `kind` says what is expected; without one the file itself has to.
    ///
    /// # Errors
    /// [`RecordedError`].
    pub fn read(file: &[u8], kind: Option<TeeKind>) -> Result<Self, RecordedError> {
        let json = serde_json::from_slice::<Value>(file).ok();
        let read = json.as_ref().and_then(Self::of_ours);
        if let Some(recorded) = read {
            let found = recorded.evidence.tee();
            return match kind {
                Some(expected) if expected != found => {
                    Err(RecordedError::OtherKind { found, expected })
                }
                _ => Ok(recorded),
            };
        }
        let kind = kind.ok_or(RecordedError::KindMissing)?;
        let evidence = match (kind, json) {
            (TeeKind::Nvidia, _) => nvidia::evidence_of_devices(file)?,
            (kind, Some(body @ Value::Object(_))) => Evidence::new(kind, body),
            (TeeKind::Snp, _) => snp::evidence_of_report(&from_hexadecimal(file))?,
            (TeeKind::Tdx, _) => tdx::evidence_of_quote(&from_hexadecimal(file), None),
            (TeeKind::Sgx, _) => sgx::evidence_of_quote(&from_hexadecimal(file)),
            (TeeKind::Cca, _) => cca::evidence_of_token(&from_hexadecimal(file)),
            (TeeKind::TrustZone, _) => trustzone::evidence_of_token(&from_hexadecimal(file)),
            (TeeKind::Nitro, _) => nitro::evidence_of_document(&from_hexadecimal(file)),
            (tee, _) => return Err(RecordedError::NotJson { tee }),
        };
        Ok(Self {
            evidence,
            statement: None,
        })
    }

    /// A server's answer, or evidence alone; white space and the order of fields do not
    /// matter here.
    fn of_ours(json: &Value) -> Option<Self> {
        if let Ok(answer) = serde_json::from_value::<AttestationResponse>(json.clone()) {
            return Some(Self {
                evidence: answer.evidence().clone(),
                statement: Some(answer.statement().to_vec()),
            });
        }
        let evidence = serde_json::from_value(json.clone()).ok()?;
        Some(Self {
            evidence,
            statement: None,
        })
    }
}

/// The bytes of a file that holds them as they are, or as hexadecimal digits.
fn from_hexadecimal(file: &[u8]) -> Vec<u8> {
    hex::decode(file.trim_ascii()).unwrap_or_else(|_| file.to_vec())
}
