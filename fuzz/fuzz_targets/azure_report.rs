//! A paravisor's report of Azure's, with AMD's in it and with Intel's quote beside it: in
//! evidence it is in base64, which no fuzzer gets through.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use libfuzzer_sys::fuzz_target;
use occlude_attest::{Evidence, TeeKind, UnixTime, Verifier};
use serde_json::json;

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

fuzz_target!(|bytes: &[u8]| {
    let quote = json!({"message": "", "pcrs": [], "signature": ""});
    // Longer than any report; what is behind is Intel's quote.
    let (report, rest) = bytes.split_at(bytes.len().min(2600));
    let report = URL_SAFE.encode(report);
    let snp = json!({"hcl_report": report, "tpm_quote": quote, "version": 2});
    let tdx = json!({
        "hcl_report": report, "td_quote": URL_SAFE.encode(rest), "tpm_quote": quote, "version": 2,
    });
    for (kind, body) in [(TeeKind::AzSnpVtpm, snp), (TeeKind::AzTdxVtpm, tdx)] {
        let evidence = Evidence::new(kind, body);
        assert!(Verifier::default().authenticate(&evidence, AT).is_err());
    }
});
