//! Having the ultravisor answer a verifier's request, through `/dev/uv`.

use std::io::Error;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use s390_pv_core::uv::{AttestationCmd, UvDevice};

use super::SeRequest;
use super::verify::Body;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind, canonical};

/// The kernel's interface to the ultravisor.
pub(crate) const DEVICE: &str = "/dev/uv";

/// The longest request that is read.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// What an ultravisor answers.
pub(super) struct Measured {
    pub(super) measurement: Vec<u8>,
    pub(super) additional: Vec<u8>,
    pub(super) cuid: [u8; 16],
}

/// Whether this machine can be asked.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    if machine.path(DEVICE).exists() {
        return Ok(());
    }
    Err(CollectError::NotPresent {
        tee: TeeKind::Se,
        missing: format!("{DEVICE} is not there"),
    })
}

pub(crate) fn collect(binding: &Binding, request: Option<&str>) -> Result<Evidence, CollectError> {
    answer(request, binding, |blob, user_data, sizes| {
        let failed = |error: s390_pv_core::Error| CollectError::Io {
            path: DEVICE.into(),
            source: Error::other(error.to_string()),
        };
        let (measurement, additional) = sizes;
        let user_data = Some(user_data.to_vec());
        let mut command =
            AttestationCmd::new_request(blob.into(), user_data, measurement, additional)
                .map_err(failed)?;
        UvDevice::open()
            .and_then(|device| device.send_cmd(&mut command))
            .map_err(failed)?;
        Ok(Measured {
            measurement: command.measurement().to_vec(),
            additional: command.additional_owned().unwrap_or_default(),
            cuid: *command.cuid(),
        })
    })
}

/// Answers a request with what `ask` has an ultravisor measure: the request's bytes, the
/// guest's, and how many bytes of a measurement and of what comes with it are wanted.
pub(super) fn answer(
    request: Option<&str>,
    binding: &Binding,
    ask: impl FnOnce(Vec<u8>, &[u8; 64], (u32, u32)) -> Result<Measured, CollectError>,
) -> Result<Evidence, CollectError> {
    let request = request.ok_or(CollectError::NoRequest)?;
    let unusable = |why: &dyn std::fmt::Display| CollectError::Request {
        reason: canonical::reason(why),
    };
    if request.len() > MAX_REQUEST_BYTES {
        return Err(unusable(&format_args!("{} bytes", request.len())));
    }
    let request: SeRequest = serde_json::from_str(request).map_err(|error| unusable(&error))?;
    let blob = canonical::from_base64("request_blob", &request.request_blob)
        .map_err(|error| unusable(&error))?;
    let sizes = (request.measurement_size, request.additional_size);
    let measured = ask(blob, binding.as_bytes(), sizes)?;
    let body = Body {
        measurement: STANDARD.encode(measured.measurement),
        additional_data: STANDARD.encode(measured.additional),
        user_data: STANDARD.encode(binding.as_bytes()),
        cuid: STANDARD.encode(measured.cuid),
        encr_measurement_key: request.encr_measurement_key,
        encr_request_nonce: request.encr_request_nonce,
        image_hdr_tags: request.image_hdr_tags,
    };
    let body = serde_json::to_value(body).map_err(|error| unusable(&error))?;
    Ok(Evidence::new(TeeKind::Se, body))
}
