//! Verifying simulated evidence: shape, signature, binding, in that order.

use ed25519_dalek::{Signature, SigningKey};
use serde::Deserialize;
use serde_json::Value;

use super::{Body, SimulatedReport, TEST_ROOT_SEED};
use crate::{Binding, Claims, Protection, TeeKind, Trust, VerifyError, canonical};

pub(crate) fn verify(body: &Value, binding: &Binding) -> Result<Claims, VerifyError> {
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
        .map_err(|_| VerifyError::Inauthentic)?;
    if report.report_data != *binding {
        return Err(VerifyError::BindingMismatch);
    }
    Ok(Claims {
        tee: TeeKind::Simulated,
        trust: Trust::Simulated,
        protection: Protection::ConfidentialMemory,
        measurement: report.measurement.into(),
        configuration: Some(report.configuration),
        tcb: report.tcb.into(),
        debug: report.debug,
    })
}
