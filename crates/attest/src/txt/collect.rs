//! Collecting a quote of a launch, which is one of the TPM like any other.

use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind, tpm};

/// Whether this machine has a TPM that can be asked.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    tpm::check_present_of(machine, TeeKind::Txt)
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    tpm::collect_of_kind(machine, binding, TeeKind::Txt)
}
