//! What a TPM signed. Verifiers read it only behind a signature that holds, where no other
//! target gets: here the attacker has a key and signs whatever it likes.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use occlude_attest::{Evidence, TeeKind, UnixTime, Verifier, VerifyError};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::EncodePublicKey;
use serde_json::json;

const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    let key = SigningKey::from_slice(&[7; 32]).unwrap();
    let public = p256::PublicKey::from(*key.verifying_key());
    let public = public.to_public_key_der().unwrap();
    let signed: Signature = key.sign(bytes);
    let (r, s) = signed.split_bytes();
    // `TPMT_SIGNATURE`: ECDSA with SHA-256, two numbers of 32 bytes.
    let signature = [&[0, 0x18, 0, 0x0b, 0, 32][..], &r, &[0, 32], &s].concat();
    let body = json!({
        "ak_public": STANDARD.encode(public.as_bytes()),
        "tpm_quote": {
            "message": STANDARD.encode(bytes),
            "pcrs": [],
            "signature": STANDARD.encode(signature),
        },
    });
    for kind in [TeeKind::Tpm, TeeKind::Txt] {
        let evidence = Evidence::new(kind, body.clone());
        let genuine = Verifier::default().authenticate(&evidence, AT);
        // Or nothing behind the signature was read.
        assert!(!matches!(genuine, Err(VerifyError::BadSignature { .. })));
    }
});
