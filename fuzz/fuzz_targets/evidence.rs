//! Evidence, statements and answers from a hostile server.
//!
//! Whatever is read was written in that very form; nothing panics; and evidence
//! over a binding that the fuzzer does not know never becomes claims.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::{
    AttestationResponse, Binding, Evidence, Nonce, ServiceStatement, UnixTime, Verifier,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(evidence) = Evidence::decode(bytes) {
        assert_eq!(evidence.encode(), bytes);
        let verified =
            Verifier::default().verify(&evidence, &Binding::from([0x5a; 64]), UnixTime(0));
        assert!(verified.is_err());
    }
    if let Ok(statement) = ServiceStatement::decode(bytes) {
        assert_eq!(statement.encode(), bytes);
    }
    if let Ok(response) = AttestationResponse::decode(bytes) {
        assert_eq!(response.encode(), bytes);
        assert!(
            response
                .verify(&Verifier::default(), &Nonce::from([0x5a; 32]), UnixTime(0))
                .is_err()
        );
    }
});
