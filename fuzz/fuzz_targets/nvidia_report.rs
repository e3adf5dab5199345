//! A report of a GPU of NVIDIA's: an SPDM request and its answer, read before the
//! certificates are. In evidence it is in base64.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use occlude_attest::{Evidence, TeeKind, UnixTime, Verifier};
use serde_json::json;

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    let evidence = STANDARD.encode(bytes);
    let device = json!({"arch": "HOPPER", "evidence": evidence, "certificate": ""});
    let body = json!({"device_evidence_list": [device]});
    let evidence = Evidence::new(TeeKind::Nvidia, body);
    assert!(Verifier::default().authenticate(&evidence, AT).is_err());
});
