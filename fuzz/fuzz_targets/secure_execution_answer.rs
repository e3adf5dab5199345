//! What an ultravisor of IBM's answers to a request of the verifier's own: the secrets in it
//! are what this verifier sealed, so that every other field is read.
#![no_main]

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use occlude_attest::{Collateral, Evidence, TeeKind, UnixTime, Verifier, VerifyError};
use serde_json::{Map, Value, json};

const AT: UnixTime = UnixTime(1_750_000_000);

/// The fields that the machine answers with, and their bytes.
const FIELDS: [(&str, usize); 4] = [
    ("user_data", 64),
    ("cuid", 16),
    ("additional_data", 64),
    ("measurement", 64),
];

/// A verifier that knows a host and an image, and what of its request comes back.
fn asked() -> &'static (Verifier, Map<String, Value>) {
    static ASKED: OnceLock<(Verifier, Map<String, Value>)> = OnceLock::new();
    ASKED.get_or_init(|| {
        let mut collateral = Collateral::default();
        assert!(collateral.add(include_bytes!("host_key.pem")));
        let mut header = vec![0; 0x280];
        header[..16].copy_from_slice(b"IBMSecEx\x00\x00\x01\x00\x00\x00\x02\x80");
        assert!(collateral.add(&header));
        let verifier = Verifier::new(collateral);
        let request = verifier.request().unwrap();
        let mut request: Map<String, Value> = serde_json::from_str(&request).unwrap();
        request.retain(|field, _| field.starts_with("encr_") || field == "image_hdr_tags");
        (verifier, request)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (verifier, mut body) = asked().clone();
    let mut rest = bytes;
    for (field, length) in FIELDS {
        let (value, after) = rest.split_at(rest.len().min(length));
        body.insert(field.to_owned(), json!(STANDARD.encode(value)));
        rest = after;
    }
    let evidence = Evidence::new(TeeKind::Se, Value::Object(body));
    let error = verifier.authenticate(&evidence, AT).unwrap_err();
    // Whatever has the right lengths is read to the end, where the machine's word is missing.
    let whole = bytes.len() >= FIELDS.iter().map(|(_, length)| length).sum();
    assert_eq!(whole, matches!(error, VerifyError::BadSignature { .. }));
});
