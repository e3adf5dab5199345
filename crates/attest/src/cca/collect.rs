//! Collecting a token inside the realm, through configfs-tsm.

use crate::cca::verify::Body;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind, tsm};

/// What the kernel calls the provider of tokens.
pub(crate) const PROVIDER: &str = "arm_cca_guest";

/// Whether this machine can be asked for a token.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    tsm::check_present(machine, TeeKind::Cca)
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    check_present(machine)?;
    let collected = tsm::collect(machine, PROVIDER, binding)?;
    Ok(evidence_of_token(&collected.report))
}

/// Evidence from a token's bytes.
///
/// # Panics
/// Never: bytes have a JSON form.
#[must_use]
pub fn evidence_of_token(token: &[u8]) -> Evidence {
    let body = serde_json::to_value(Body {
        token: token.to_vec(),
    });
    Evidence::new(TeeKind::Cca, body.expect("a token has a JSON form"))
}
