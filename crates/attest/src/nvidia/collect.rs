//! Collecting reports with a command of the operator's: NVIDIA's library, which asks the
//! driver, is not free software that this program could hold. Its `nvattest
//! collect-evidence` prints what is read here, and so may any other program.

use serde::Deserialize;
use serde_json::Value;

use super::verify::{Body, Device};
use crate::binding::BindingForm;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind, VerifyError, canonical, command};

/// What a command prints, in the form of NVIDIA's tools or in that of the KBS protocol.
#[derive(Deserialize)]
#[serde(untagged)]
enum Printed {
    Wrapped {
        evidences: Vec<Collected>,
    },
    List(Vec<Collected>),
    Kbs {
        device_evidence_list: Vec<Collected>,
    },
}

/// One device's part; what else NVIDIA's tools print of it is left out.
#[derive(Deserialize)]
struct Collected {
    arch: String,
    evidence: String,
    certificate: String,
}

/// Whether there is a command to ask.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    if machine.gpu_evidence_command().is_empty() {
        return Err(CollectError::NoGpuCommand);
    }
    Ok(())
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    let nonce = binding.in_form(BindingForm::Digest);
    let printed = command::run_with(machine.gpu_evidence_command(), &hex::encode(nonce))?;
    evidence_of_devices(&printed).map_err(|source| CollectError::Unusable { source })
}

/// Evidence from what NVIDIA's tools print: JSON with a list of devices, each with `arch`,
/// `evidence` and `certificate`.
///
/// # Errors
/// [`VerifyError::Malformed`] if it is something else.
pub fn evidence_of_devices(printed: &[u8]) -> Result<Evidence, VerifyError> {
    let malformed = |error| VerifyError::malformed("the devices", &canonical::reason(&error));
    let printed: Printed = serde_json::from_slice(printed).map_err(malformed)?;
    let devices = match printed {
        Printed::Wrapped { evidences: devices }
        | Printed::List(devices)
        | Printed::Kbs {
            device_evidence_list: devices,
        } => devices,
    };
    let body = Body {
        device_evidence_list: devices
            .into_iter()
            .map(|device| Device {
                arch: device.arch,
                uuid: None,
                evidence: device.evidence,
                certificate: device.certificate,
            })
            .collect(),
    };
    let body: Value = serde_json::to_value(body).map_err(malformed)?;
    Ok(Evidence::new(TeeKind::Nvidia, body))
}
