//! Verifying simulated evidence: shape, then signature.

use ed25519_dalek::{Signature, SigningKey};
use serde::Deserialize;
use serde_json::Value;

use super::{Body, SimulatedReport, TEST_ROOT_SEED};
use crate::binding::BindingForm;
use crate::verifier::Part;
use crate::{Claims, Platform, Protection, TeeKind, Trust, UnixTime, VerifyError, canonical};

pub(crate) fn verify(body: &Value, at: UnixTime) -> Result<Part, VerifyError> {
    let body = Body::deserialize(body).map_err(|error| VerifyError::Malformed {
        reason: canonical::reason(&error),
    })?;
    let report = SimulatedReport {
        report_data: body.report_data,
        measurement: *body.measurement.as_bytes(),
        configuration: body.configuration,
        tcb: body.tcb,
        debug: body.debug,
    };
    SigningKey::from_bytes(&TEST_ROOT_SEED)
        .verifying_key()
        .verify_strict(
            &report.message(),
            &Signature::from_bytes(body.signature.as_bytes()),
        )
        .map_err(|_| VerifyError::BadSignature {
            of: "the report",
            by: "the published test root",
        })?;
    Ok(Part {
        carried: report.report_data.as_bytes().to_vec(),
        form: BindingForm::Whole,
        claims: Claims {
            tee: TeeKind::Simulated,
            trust: Trust::Simulated,
            protection: Protection::ConfidentialMemory,
            measurement: report.measurement.into(),
            configuration: Some(report.configuration),
            debug: report.debug,
            platform: Platform::Simulated { tcb: report.tcb },
            verified_at: at,
            collateral_until: None,
            additional: Vec::new(),
        },
    })
}
