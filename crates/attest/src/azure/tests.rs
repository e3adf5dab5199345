//! A machine on TDX as a whole: what real machines recorded, on a processor that the test
//! makes itself, since Intel's collateral was not recorded.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use dcap_qvl::quote::TDReport10;
use serde_json::{Value, json};

use super::verify::verify_tdx_under;
use super::{AzurePlatform, AzureProcessor};
use crate::intel::synthetic::{AT, Platform as Processor};
use crate::support::{file, folder};
use crate::tdx::TdxAttributes;
use crate::verifier::Part;
use crate::{
    Binding, Claims, Collateral, Platform, Policy, RecordedEvidence, Refusal, TeeKind, VerifyError,
};

/// Where a quote has its guest's attributes, and the byte with `SEPT_VE_DISABLE`.
const ATTRIBUTES: usize = 48 + 120;
const SEPT_VE: usize = ATTRIBUTES + 3;

/// What the recorded evidence of the machine on SNP was asked for.
const ASKED: &str = "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9a\
                     a398f647caa2338748cd0fd9f5f819ef";

struct Guest {
    processor: Processor,
    body: Value,
}

impl Guest {
    /// The recorded machine on TDX, with everything that it said, on another processor.
    fn recorded() -> Self {
        Self::recorded_but(|_| ())
    }

    /// The same, with another guest's report.
    fn recorded_but(change: impl FnOnce(&mut TDReport10)) -> Self {
        Self::new(
            file("az-tdx-vtpm/hcl-report.bin"),
            &recorded_quote(),
            change,
        )
    }

    /// What a machine on SNP recorded for [`ASKED`], on a processor with TDX.
    fn asked() -> Self {
        let recorded = file("az-snp-vtpm/evidence-v2.json");
        let recorded = RecordedEvidence::read(&recorded, Some(TeeKind::AzSnpVtpm)).unwrap();
        let body = recorded.evidence.body();
        let mut report = URL_SAFE
            .decode(body["hcl_report"].as_str().unwrap())
            .unwrap();
        // The hardware vouches for the paravisor's data at this place.
        let vouched: [u8; 64] = report[32 + 80..32 + 144].try_into().unwrap();
        report[1224] = 4;
        Self::new(report, &body["tpm_quote"], |guest| {
            guest.report_data = vouched;
        })
    }

    fn new(report: Vec<u8>, tpm_quote: &Value, change: impl FnOnce(&mut TDReport10)) -> Self {
        let quote = file("az-tdx-vtpm/td-quote.bin");
        let processor = Processor::like(&quote);
        let quote = processor.quote(&quote, change);
        let body = json!({
            "collateral": processor.collateral,
            "hcl_report": URL_SAFE.encode(report),
            "td_quote": URL_SAFE.encode(quote),
            "tpm_quote": tpm_quote,
            "version": 2,
        });
        Self { processor, body }
    }

    fn quote(&self) -> Vec<u8> {
        URL_SAFE
            .decode(self.body["td_quote"].as_str().unwrap())
            .unwrap()
    }

    /// With another quote than the processor's.
    fn changed(&self, change: impl FnOnce(&mut Vec<u8>)) -> Result<Claims, VerifyError> {
        let mut quote = self.quote();
        change(&mut quote);
        let mut body = self.body.clone();
        body["td_quote"] = URL_SAFE.encode(quote).into();
        Ok(self.part(&body)?.claims)
    }

    fn part(&self, body: &Value) -> Result<Part, VerifyError> {
        verify_tdx_under(&self.processor.root, body, &Collateral::default(), AT)
    }

    fn authenticate(&self) -> Result<Claims, VerifyError> {
        Ok(self.part(&self.body)?.claims)
    }

    fn bound_to(&self, binding: &Binding) -> Result<Claims, VerifyError> {
        self.part(&self.body)?.bound_to(binding)
    }
}

/// Two byte strings behind their lengths, then the values of 24 registers.
fn recorded_quote() -> Value {
    let recorded = file("az-tdx-vtpm/quote.bin");
    let (signature, rest) = recorded[8..].split_at(256);
    let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
    let pcrs = recorded[recorded.len() - 24 * 32..].chunks(32);
    json!({
        "message": hex::encode(&rest[8..8 + length]),
        "pcrs": pcrs.map(hex::encode).collect::<Vec<_>>(),
        "signature": hex::encode(signature),
    })
}

fn azure(claims: &Claims) -> &AzurePlatform {
    let Platform::Azure(azure) = claims.platform() else {
        panic!("{claims:?}");
    };
    azure
}

#[test]
fn what_a_machine_on_tdx_recorded_holds_as_a_whole() {
    if folder().is_none() {
        return;
    }
    let claims = Guest::recorded().authenticate().unwrap();
    assert_eq!(claims.tee(), TeeKind::AzTdxVtpm);
    let azure = azure(&claims);
    assert_eq!(azure.vm_id, "6332533D-5649-4D02-8AA7-8F64B7C3EE21");
    let AzureProcessor::Tdx(processor) = &azure.processor else {
        panic!("{azure:?}");
    };
    assert_eq!(processor.attributes, TdxAttributes::from([0; 8]));
    assert_eq!(
        claims.collateral_until().unwrap().to_string(),
        "2025-07-01T00:00:00Z"
    );
}

#[test]
fn it_holds_for_what_was_asked_alone_and_under_its_root_alone() {
    if folder().is_none() {
        return;
    }
    let asked: [u8; 48] = hex::decode(ASKED).unwrap().try_into().unwrap();
    let mut guest = Guest::asked();
    guest
        .bound_to(&Binding::from_report_data_48(&asked))
        .unwrap();
    for other in [
        Binding::from([0; 64]),
        Binding::from_report_data_48(&[1; 48]),
    ] {
        assert_eq!(guest.bound_to(&other), Err(VerifyError::BindingMismatch));
    }
    // Whoever makes a processor of their own has no root that is pinned.
    assert!(matches!(
        super::verify_tdx(&guest.body, &Collateral::default(), AT),
        Err(VerifyError::Certificate { .. })
    ));
    guest.body["tpm_quote"] = recorded_quote();
    assert_eq!(
        guest.authenticate(),
        Err(VerifyError::BadSignature {
            of: "the quote",
            by: "the attestation key"
        })
    );
    guest.body["hcl_report"] = URL_SAFE.encode(file("az-tdx-vtpm/hcl-report.bin")).into();
    assert_eq!(
        guest.authenticate(),
        Err(VerifyError::EndorsementMismatch {
            what: "other data of the paravisor than came along"
        })
    );
}

#[test]
fn a_policy_has_to_allow_pages_that_fault() {
    if folder().is_none() {
        return;
    }
    let claims = Guest::recorded().authenticate().unwrap();
    let azure = azure(&claims);
    let pcr4 = azure.pcrs.values().nth(4).unwrap();
    let judge = |tdx: &str| {
        let text = format!(
            "format = 1\n[evidence.tdx]\n{tdx}\n[evidence.az-tdx-vtpm]\n\
             paravisors = [\"{}\"]\npcrs.pcr4 = [\"{pcr4}\"]\nrequire-secure-boot = {}\n",
            azure.paravisor, azure.secure_boot
        );
        Policy::parse(&text).unwrap().judge_claims(&claims)
    };
    assert_eq!(judge("require-sept-ve-disable = false"), Ok(()));
    assert_eq!(
        judge(""),
        Err(Refusal::Platform {
            field: "tdx.require-sept-ve-disable",
            found: "false".to_owned(),
            accepted: "true".to_owned()
        })
    );
}

/// The library that verifies is shown another bit than the host's quote has: the
/// signature still covers the host's.
#[test]
fn the_bit_of_sept_ve_is_the_one_that_was_signed() {
    if folder().is_none() {
        return;
    }
    let refused = Err(VerifyError::Quote {
        reason: "ISV enclave report signature is invalid".to_owned(),
    });
    let bit = |quote: &mut Vec<u8>| quote[SEPT_VE] ^= TdxAttributes::SEPT_VE_DISABLE;
    assert_eq!(Guest::recorded().changed(bit), refused);
    let with = Guest::recorded_but(|guest| {
        guest.td_attributes[3] |= TdxAttributes::SEPT_VE_DISABLE;
    });
    let claims = with.authenticate().unwrap();
    let AzureProcessor::Tdx(processor) = &azure(&claims).processor else {
        panic!("{claims:?}");
    };
    assert!(processor.attributes.sept_ve_disable());
    assert_eq!(with.changed(bit), refused);
    // What else the library refuses stays refused.
    let migratable = Guest::recorded_but(|guest| guest.td_attributes[3] |= 0x20);
    assert_eq!(
        migratable.authenticate(),
        Err(VerifyError::Quote {
            reason: "TD migration is enabled".to_owned()
        })
    );
}

#[test]
fn every_byte_of_the_quote_counts_where_pages_fault() {
    if folder().is_none() {
        return;
    }
    let guest = Guest::recorded();
    let quote = guest.quote();
    let text = b"-----BEGIN";
    let text = quote.windows(text.len()).position(|bytes| bytes == text);
    for place in 0..text.unwrap() {
        let changed = guest.changed(|quote| quote[place] ^= 1 << (place % 8));
        assert!(changed.is_err(), "{place}");
    }
    for length in 0..quote.len() {
        let cut = guest.changed(|quote| quote.truncate(length));
        assert!(cut.is_err(), "up to {length}");
    }
}
