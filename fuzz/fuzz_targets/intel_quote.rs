//! Quotes of Intel's, of an enclave (SGX) and of a machine with its log (TDX): in evidence
//! they are in base64, which no fuzzer gets through.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::{UnixTime, Verifier, sgx, tdx};

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    for evidence in [
        sgx::evidence_of_quote(bytes),
        tdx::evidence_of_quote(bytes, None),
        tdx::evidence_of_quote(bytes, Some(bytes)),
    ] {
        assert!(Verifier::default().authenticate(&evidence, AT).is_err());
    }
});
