//! Collecting a token with a command of the operator's: the interface that gives one
//! (`psa_initial_attest_get_token`, or an OP-TEE session) is the platform's own.

use super::verify::Body;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind, command};

/// Whether there is a command to ask.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    if machine.evidence_command().is_empty() {
        return Err(CollectError::NoCommand);
    }
    Ok(())
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    let token = command::run(machine.evidence_command(), binding)?;
    Ok(evidence_of_token(&token))
}

/// Evidence from a token's bytes.
///
/// # Panics
/// Never: text has a JSON form.
#[must_use]
pub fn evidence_of_token(token: &[u8]) -> Evidence {
    let body = serde_json::to_value(Body::of_token(token));
    Evidence::new(TeeKind::TrustZone, body.expect("a token has a JSON form"))
}
