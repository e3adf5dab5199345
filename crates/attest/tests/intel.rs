//! SGX and TDX evidence: recorded quotes of real machines hold, and nothing that was
//! changed in them does.

mod support;

use dcap_qvl::QuoteCollateralV3;
use occlude_attest::intel::TcbStatus;
use occlude_attest::{
    Binding, CertificateProblem, Claims, Collateral, Evidence, Platform, TeeKind, Trust, UnixTime,
    Verifier, VerifyError, sgx, tdx,
};
use proptest::prelude::*;
use serde_json::json;
use support::{file, folder};

/// Where a quote's report has what it is bound to: behind a header of 48 bytes, and in
/// version 5 a type and a length of 6 bytes.
const SGX_REPORT_DATA: usize = 48 + 320;
const TDX_REPORT_DATA: usize = 48 + 520;

/// A day at midnight, UTC.
fn day(day: &str) -> UnixTime {
    format!("{day}T00:00:00Z").parse().unwrap()
}

#[derive(Clone)]
struct Recorded {
    kind: TeeKind,
    quote: Vec<u8>,
    report_data: usize,
    collateral: Vec<u8>,
    event_log: Option<Vec<u8>>,
    at: UnixTime,
}

fn sgx() -> Recorded {
    Recorded {
        kind: TeeKind::Sgx,
        quote: file("sgx/sgx_quote"),
        report_data: SGX_REPORT_DATA,
        collateral: file("sgx/sgx_quote_collateral.json"),
        event_log: None,
        at: day("2025-07-01"),
    }
}

/// Version 4.
fn tdx() -> Recorded {
    Recorded {
        kind: TeeKind::Tdx,
        quote: file("tdx/tdx_quote"),
        report_data: TDX_REPORT_DATA,
        collateral: file("tdx/tdx_quote_collateral.json"),
        event_log: None,
        at: day("2025-07-01"),
    }
}

/// Version 5, of a module that is below all that Intel still judges.
fn outdated() -> Recorded {
    Recorded {
        kind: TeeKind::Tdx,
        quote: file("tdx/tdx_quote_outdated"),
        report_data: TDX_REPORT_DATA + 6,
        collateral: file("tdx/tdx_quote_outdated_collateral.json"),
        event_log: None,
        at: day("2026-03-01"),
    }
}

/// Version 5, from the package of the library that verifies it.
fn version_5() -> Option<Recorded> {
    let packaged = |name: &str| support::packaged("dcap-qvl-0.7.1", &format!("sample/{name}"));
    let collateral = packaged("tdx_quote_td15ex_collateral.json")?;
    let parsed: QuoteCollateralV3 = serde_json::from_slice(&collateral).unwrap();
    let information: serde_json::Value = serde_json::from_str(&parsed.tcb_info).unwrap();
    let issued: UnixTime = information["issueDate"].as_str().unwrap().parse().unwrap();
    Some(Recorded {
        kind: TeeKind::Tdx,
        quote: packaged("tdx_quote_td15ex")?,
        report_data: TDX_REPORT_DATA + 6,
        collateral,
        event_log: None,
        at: UnixTime(issued.0 + 86_400),
    })
}

impl Recorded {
    fn verifier(&self) -> Verifier {
        let mut collateral = Collateral::default();
        assert!(collateral.add(&self.collateral));
        Verifier::new(collateral)
    }

    fn binding(&self) -> Binding {
        let bytes = &self.quote[self.report_data..self.report_data + 64];
        Binding::from(<[u8; 64]>::try_from(bytes).unwrap())
    }

    fn evidence(&self) -> Evidence {
        match self.kind {
            TeeKind::Sgx => sgx::evidence_of_quote(&self.quote),
            _ => tdx::evidence_of_quote(&self.quote, self.event_log.as_deref()),
        }
    }

    fn verify(&self) -> Result<Claims, VerifyError> {
        self.verifier()
            .verify(&self.evidence(), &self.binding(), self.at)
    }

    fn changed(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The length of the quote without what fills its buffer, and where its certificates
    /// begin, which are text.
    fn text(&self) -> usize {
        let text = b"-----BEGIN";
        let mut windows = self.quote.windows(text.len());
        windows.position(|window| window == text).unwrap()
    }
}

#[test]
fn a_quote_of_an_enclave_gives_its_claims() {
    if folder().is_none() {
        return;
    }
    let recorded = sgx();
    let claims = recorded.verify().unwrap();
    assert_eq!(
        (claims.tee(), claims.trust()),
        (TeeKind::Sgx, Trust::Hardware)
    );
    // The report's layout: MRENCLAVE at 64, MRSIGNER at 128, ISVPRODID and ISVSVN at 256.
    let report = &recorded.quote[48..];
    assert_eq!(claims.measurement().as_bytes(), &report[64..96]);
    let Platform::Sgx(platform) = claims.platform() else {
        panic!("{claims:?}");
    };
    assert_eq!(platform.signer.as_bytes()[..], report[128..160]);
    assert_eq!(platform.product_id.to_le_bytes()[..], report[256..258]);
    assert_eq!(platform.svn.to_le_bytes()[..], report[258..260]);
    assert_eq!(platform.attributes.as_bytes()[..], report[48..64]);
    assert_eq!(claims.debug(), report[48] & 2 != 0);
    assert_eq!(
        platform.intel.tcb_status.to_string(),
        "ConfigurationAndSWHardeningNeeded"
    );
    assert_eq!(
        claims.collateral_until().unwrap().to_string(),
        "2025-07-19T10:01:18Z"
    );
}

#[test]
fn a_quote_of_a_guest_gives_its_claims() {
    if folder().is_none() {
        return;
    }
    for (recorded, version) in [(Some(tdx()), 4), (version_5(), 5)] {
        let Some(recorded) = recorded else {
            continue;
        };
        let claims = recorded.verify().unwrap();
        assert_eq!(
            (claims.tee(), claims.trust()),
            (TeeKind::Tdx, Trust::Hardware)
        );
        // The report's layout: MRTD at 136, RTMRs from 328 on.
        let report = &recorded.quote[recorded.report_data - 520..];
        assert_eq!(claims.measurement().as_bytes(), &report[136..184]);
        let Platform::Tdx(platform) = claims.platform() else {
            panic!("{claims:?}");
        };
        for (register, place) in platform.rtmr.iter().zip([328, 376, 424, 472]) {
            assert_eq!(register.as_bytes()[..], report[place..place + 48]);
        }
        assert_eq!(platform.quote_version, version);
        assert_eq!(platform.intel.tcb_status, TcbStatus::UpToDate);
        assert!(!claims.debug());
    }
}

#[test]
fn a_module_below_all_of_intels_levels_is_refused() {
    if folder().is_none() {
        return;
    }
    assert_eq!(
        outdated().verify(),
        Err(VerifyError::Quote {
            reason: "No matching TCB level found".to_owned()
        })
    );
}

#[test]
fn collateral_may_come_with_the_evidence() {
    if folder().is_none() {
        return;
    }
    for recorded in [sgx(), tdx()] {
        let mut body = recorded.evidence().body().clone();
        let collateral: QuoteCollateralV3 = serde_json::from_slice(&recorded.collateral).unwrap();
        body["collateral"] = json!(collateral);
        let evidence = Evidence::new(recorded.kind, body);
        let travelled = Evidence::decode(&evidence.encode()).unwrap();
        let verified = Verifier::default().verify(&travelled, &recorded.binding(), recorded.at);
        assert_eq!(verified, recorded.verify());
    }
}

/// The library would take a chain from the collateral before the quote's own, which is
/// the one that is checked as of now.
#[test]
fn a_chain_for_the_processors_key_that_comes_with_the_collateral_is_not_used() {
    if folder().is_none() {
        return;
    }
    for chain in ["", "no certificates"] {
        let recorded = sgx();
        let mut body = recorded.evidence().body().clone();
        let mut collateral: QuoteCollateralV3 =
            serde_json::from_slice(&recorded.collateral).unwrap();
        collateral.pck_certificate_chain = Some(chain.to_owned());
        body["collateral"] = json!(collateral);
        let evidence = Evidence::new(recorded.kind, body);
        let verified = Verifier::default().verify(&evidence, &recorded.binding(), recorded.at);
        assert_eq!(verified, recorded.verify());
    }
}

#[test]
fn without_collateral_it_is_said_which_is_missing() {
    if folder().is_none() {
        return;
    }
    for (recorded, what) in [
        (
            sgx(),
            "Intel's collateral for SGX on processors of kind 00a067110000",
        ),
        (
            tdx(),
            "Intel's collateral for TDX on processors of kind b0c06f000000",
        ),
    ] {
        let missing = Err(VerifyError::CollateralMissing {
            what: what.to_owned(),
        });
        let verify = |verifier: Verifier| {
            verifier.verify(&recorded.evidence(), &recorded.binding(), recorded.at)
        };
        assert_eq!(verify(Verifier::default()), missing);
        // That of another kind of processor is none.
        assert_eq!(verify(outdated().verifier()), missing);
    }
}

#[test]
fn collateral_past_its_date_is_told_and_the_certificates_must_hold_all_the_same() {
    if folder().is_none() {
        return;
    }
    let until = sgx().verify().unwrap().collateral_until().unwrap();
    let at = |at| {
        sgx()
            .changed(|recorded| recorded.at = UnixTime(at))
            .verify()
    };
    assert_eq!(at(until.0).unwrap().collateral_until(), Some(until));
    let late = at(until.0 + 86_400).unwrap();
    assert_eq!(late.collateral_until(), Some(until));
    assert_eq!(late.verified_at(), UnixTime(until.0 + 86_400));
    // openssl x509 -enddate of the processor's certificate.
    let expired = at(day("2040-01-01").0).unwrap_err();
    assert!(
        matches!(
            &expired,
            VerifyError::Certificate { what, problem: CertificateProblem::Expired { .. } }
                if *what == "the processor's key (PCK)"
        ),
        "{expired:?}"
    );
    let early = at(day("2025-06-01").0).unwrap_err();
    assert!(
        matches!(&early, VerifyError::Quote { reason } if reason.contains("in the future")),
        "{early:?}"
    );
}

#[test]
fn another_binding_is_refused_and_nothing_is_padded_or_cut() {
    if folder().is_none() {
        return;
    }
    for recorded in [sgx(), tdx()] {
        let genuine = recorded
            .verifier()
            .authenticate(&recorded.evidence(), recorded.at)
            .unwrap();
        for place in 0..64 {
            let mut other = *recorded.binding().as_bytes();
            other[place] ^= 1;
            assert_eq!(
                genuine.clone().bound_to(&other.into()),
                Err(VerifyError::BindingMismatch)
            );
        }
    }
}

#[test]
fn evidence_of_one_kind_does_not_pass_for_the_other() {
    if folder().is_none() {
        return;
    }
    let (enclave, guest) = (sgx(), tdx());
    assert_eq!(
        enclave.verifier().verify(
            &tdx::evidence_of_quote(&enclave.quote, None),
            &enclave.binding(),
            enclave.at
        ),
        Err(VerifyError::Unsupported {
            what: "a quote of an SGX enclave as evidence of tdx".to_owned()
        })
    );
    assert_eq!(
        guest.verifier().verify(
            &sgx::evidence_of_quote(&guest.quote),
            &guest.binding(),
            guest.at
        ),
        Err(VerifyError::Unsupported {
            what: "a quote of a TDX guest as evidence of sgx".to_owned()
        })
    );
}

#[test]
fn a_signature_of_another_quote_is_refused() {
    if folder().is_none() {
        return;
    }
    let mut spliced = sgx();
    // The enclave's report is another, its signature is not.
    spliced.quote[48 + 64] ^= 1;
    assert_eq!(
        spliced.verify(),
        Err(VerifyError::Quote {
            reason: "ISV enclave report signature is invalid".to_owned()
        })
    );
}

/// The certificates are text, in which white space and the last certificate, the root,
/// do not count: the root is pinned.
#[test]
fn a_quote_with_any_byte_flipped_is_refused() {
    if folder().is_none() {
        return;
    }
    for recorded in [sgx, tdx] {
        let text = recorded().text();
        for place in (0..text).chain((text..recorded().quote.len()).step_by(7)) {
            let flipped = recorded().changed(|recorded| recorded.quote[place] ^= 0x40);
            let counts = place < text || {
                let rest = &recorded().quote[place..];
                // Before the last certificate, and not in the buffer behind the quote.
                rest.windows(10)
                    .filter(|window| window == b"-----BEGIN")
                    .count()
                    >= 2
            };
            if counts && !recorded().quote[place].is_ascii_whitespace() {
                assert!(flipped.verify().is_err(), "byte {place}");
            }
        }
    }
}

#[test]
fn a_quote_cut_anywhere_is_refused() {
    if folder().is_none() {
        return;
    }
    for recorded in [sgx, tdx] {
        let whole = recorded()
            .quote
            .iter()
            .rposition(|byte| *byte != 0)
            .unwrap()
            + 1;
        for length in 0..whole - 1 {
            let cut = recorded().changed(|recorded| {
                recorded
                    .quote
                    .truncate(length.max(recorded.report_data + 64));
                recorded.quote.truncate(length);
            });
            let binding = recorded().binding();
            let verified = cut.verifier().verify(&cut.evidence(), &binding, cut.at);
            assert!(verified.is_err(), "{length} bytes");
        }
    }
}

#[test]
fn what_follows_a_quote_must_be_zeros() {
    if folder().is_none() {
        return;
    }
    let more = |byte| sgx().changed(|recorded| recorded.quote.push(byte)).verify();
    assert_eq!(more(0), sgx().verify());
    assert_eq!(
        more(1),
        Err(VerifyError::Malformed {
            reason: "the quote cannot be read: bytes after its end are not zero".to_owned()
        })
    );
}

#[test]
fn a_quote_that_is_too_long_is_not_read() {
    if folder().is_none() {
        return;
    }
    let long = sgx().changed(|recorded| recorded.quote.resize(32 * 1024 + 1, 0));
    assert_eq!(
        long.verify(),
        Err(VerifyError::Malformed {
            reason: "32769 bytes, a quote has at most 32768".to_owned()
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// White space around certificates and in the JSON that is not signed does not count,
    /// nor do the root certificates, which are pinned: only changes that keep the meaning
    /// may pass, and then the claims are the same.
    #[test]
    fn collateral_with_any_byte_changed_says_the_same_or_is_refused(
        place in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
    ) {
        if folder().is_none() {
            return Ok(());
        }
        let recorded = tdx();
        let mut collateral = recorded.collateral.clone();
        let place = place.index(collateral.len());
        collateral[place] ^= flip;
        let mut changed = Collateral::default();
        if changed.add(&collateral) {
            let verified = Verifier::new(changed).verify(
                &recorded.evidence(),
                &recorded.binding(),
                recorded.at,
            );
            if let Ok(claims) = verified {
                prop_assert_eq!(claims, recorded.verify().unwrap(), "byte {}", place);
            }
        }
    }
}
