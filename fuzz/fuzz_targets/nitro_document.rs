//! An attestation document of a Nitro enclave: CBOR that COSE signs, with the certificates
//! of the key that signs it. In evidence it is in base64.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::{UnixTime, Verifier, nitro};

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    let evidence = nitro::evidence_of_document(bytes);
    assert!(Verifier::default().authenticate(&evidence, AT).is_err());
});
