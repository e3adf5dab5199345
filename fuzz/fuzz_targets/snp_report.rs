//! A report of AMD's secure processor as a device gives it, and the table of certificates
//! that a host adds to it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::{UnixTime, Verifier, snp};

/// When the recorded machines' certificates were valid.
const AT: UnixTime = UnixTime(1_750_000_000);

/// Bytes of a report (SEV-SNP ABI specification, table 23).
const REPORT_BYTES: usize = 1184;

fuzz_target!(|bytes: &[u8]| {
    let (report, table) = bytes.split_at(bytes.len().min(REPORT_BYTES));
    for evidence in [
        snp::evidence_of_report(bytes),
        snp::evidence_of_report_and_table(report, table),
    ] {
        if let Ok(evidence) = evidence {
            assert!(Verifier::default().authenticate(&evidence, AT).is_err());
        }
    }
});
