//! A file of evidence that somebody recorded, read as what it says it is and as evidence of
//! each kind: JSON, bytes, or hexadecimal digits.
//!
//! Nothing panics, and without a vendor's key nothing but simulated evidence is ever genuine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::{RecordedEvidence, TeeKind, UnixTime, Verifier};

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    let kinds = TeeKind::ALL.map(Some);
    for kind in kinds.into_iter().chain([None]) {
        if let Ok(recorded) = RecordedEvidence::read(bytes, kind) {
            let found = recorded.evidence.tee();
            assert!(kind.is_none_or(|kind| kind == found));
            let genuine = Verifier::default().authenticate(&recorded.evidence, AT);
            assert!(genuine.is_err() || found == TeeKind::Simulated);
        }
    }
});
