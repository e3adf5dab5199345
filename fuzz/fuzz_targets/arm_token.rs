//! Tokens of Arm's, CCA's two in one and PSA's: CBOR that COSE signs. In evidence they are in
//! lists of numbers and in base64, which no fuzzer gets through.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use occlude_attest::{Evidence, TeeKind, UnixTime, Verifier};
use serde_json::json;

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    for (kind, body) in [
        (TeeKind::Cca, json!({"token": bytes})),
        (TeeKind::TrustZone, json!({"token": STANDARD.encode(bytes)})),
    ] {
        let evidence = Evidence::new(kind, body);
        assert!(Verifier::default().authenticate(&evidence, AT).is_err());
    }
});
