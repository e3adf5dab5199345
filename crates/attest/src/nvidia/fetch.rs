//! What NVIDIA publishes for a driver and a VBIOS: reference integrity manifests.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::spdm::Report;
use super::verify::{Body, HOPPER_CHIP};
use crate::fetch::{Client, FetchError, Wanted, unusable};
use crate::{VerifyError, canonical};

/// The manifests of each device's driver and VBIOS.
pub(crate) fn wanted(body: &Value) -> Result<Vec<Wanted>, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let mut names = Vec::new();
    for device in &body.device_evidence_list {
        let evidence = canonical::from_base64("evidence", &device.evidence)?;
        let report = Report::parse(&evidence)?;
        names.push(format!(
            "NV_GPU_DRIVER_{HOPPER_CHIP}_{}",
            report.driver_version
        ));
        if let Some(board) = &report.board {
            let version = report.vbios_version.replace('.', "").to_uppercase();
            names.push(format!("NV_GPU_VBIOS_{board}_{version}"));
        }
    }
    names.sort();
    names.dedup();
    let wanted = names.into_iter().map(|name| Wanted {
        // A version that is no file's name is none of NVIDIA's.
        name: format!("nvidia/{}.xml", name.replace('/', "_")),
        get: Box::new(move |client| manifest(client, &name)),
    });
    Ok(wanted.collect())
}

#[derive(Deserialize)]
struct Manifest {
    rim: String,
}

fn manifest(client: &Client<'_>, name: &str) -> Result<Vec<u8>, FetchError> {
    let url = format!("{}/v1/rim/{name}", client.services.nvidia);
    let answer = client.get(&url)?;
    let manifest: Manifest =
        serde_json::from_slice(&answer.body).map_err(|error| unusable(&url, error))?;
    STANDARD
        .decode(manifest.rim)
        .map_err(|error| unusable(&url, error))
}
