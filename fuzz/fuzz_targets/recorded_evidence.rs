//! Evidence of each technology in its own form, as a file or a device gives it, and
//! collateral: certificates, revocation lists and reference manifests.
//!
//! The first byte says which. Nothing panics, and without a vendor's key nothing but
//! simulated evidence is ever genuine.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use occlude_attest::{Collateral, Evidence, RecordedEvidence, TeeKind, UnixTime, Verifier, snp};
use serde_json::json;

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    match usize::from(*choice) {
        kind if kind < TeeKind::ALL.len() => {
            let kind = TeeKind::ALL[kind];
            if let Ok(recorded) = RecordedEvidence::read(bytes, Some(kind)) {
                let genuine = Verifier::default().authenticate(&recorded.evidence, AT);
                assert!(genuine.is_err() || kind == TeeKind::Simulated);
            }
        }
        0xf0 => {
            let mut collateral = Collateral::default();
            let _ = collateral.add(bytes);
        }
        0xf1 => {
            let (report, table) = bytes.split_at(bytes.len().min(1184));
            let _ = snp::evidence_of_report_and_table(report, table);
        }
        0xf2 => {
            let evidence = STANDARD.encode(bytes);
            let device = json!({"arch": "HOPPER", "evidence": evidence, "certificate": ""});
            let body = json!({"device_evidence_list": [device]});
            let evidence = Evidence::new(TeeKind::Nvidia, body);
            assert!(Verifier::default().authenticate(&evidence, AT).is_err());
        }
        _ => {}
    }
});
