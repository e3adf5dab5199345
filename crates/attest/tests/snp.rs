//! SEV-SNP evidence: recorded reports of real machines hold, and nothing that was
//! changed in them does.

mod support;

use occlude_attest::snp::{SnpEndorsement, SnpPlatform, SnpProduct, SnpTcb, evidence_of_report};
use occlude_attest::{
    Binding, CertificateProblem, Claims, Collateral, Evidence, Platform, Protection, TeeKind,
    Trust, UnixTime, Verifier, VerifyError,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{file, folder};

/// Where a report has what (AMD 56860, table 23).
const POLICY: usize = 0x08;
const REPORT_DATA: std::ops::Range<usize> = 0x50..0x90;
const MEASUREMENT: std::ops::Range<usize> = 0x90..0xc0;
const CHIP_ID: std::ops::Range<usize> = 0x1a0..0x1e0;
const SIGNATURE: usize = 0x2a0;

/// A day at midnight, UTC.
fn day(day: &str) -> UnixTime {
    format!("{day}T00:00:00Z").parse().unwrap()
}

struct Recorded {
    report: Vec<u8>,
    certificates: Vec<Vec<u8>>,
    at: UnixTime,
}

fn milan() -> Recorded {
    Recorded {
        report: hex::decode(file("snp/report_milan.hex").trim_ascii()).unwrap(),
        certificates: vec![file("snp/vcek_milan.der")],
        at: day("2026-11-01"),
    }
}

fn other_milan() -> Recorded {
    Recorded {
        report: file("snp/trustee-test-report.bin"),
        certificates: vec![file("snp/trustee-test-vcek.der")],
        at: day("2026-11-01"),
    }
}

/// Version 3, signed by a key that a cloud loaded, asked for at privilege level 1.
fn vlek() -> Recorded {
    Recorded {
        report: file("snp/trustee-test-vlek-report.bin"),
        certificates: vec![
            file("snp/trustee-test-vlek.der"),
            file("snp/milan_ask_ark_asvk.pem"),
        ],
        at: day("2025-06-01"),
    }
}

impl Recorded {
    fn verifier(&self) -> Verifier {
        let mut collateral = Collateral::default();
        for certificate in &self.certificates {
            assert!(collateral.add(certificate));
        }
        Verifier::new(collateral)
    }

    fn binding(&self) -> Binding {
        Binding::from(<[u8; 64]>::try_from(&self.report[REPORT_DATA]).unwrap())
    }

    fn evidence(&self) -> Evidence {
        evidence_of_report(&self.report).unwrap()
    }

    fn verify(&self) -> Result<Claims, VerifyError> {
        self.verifier()
            .verify(&evidence_of_report(&self.report)?, &self.binding(), self.at)
    }

    fn changed(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        change(&mut self.report);
        self
    }
}

/// Milan's evidence with this body, verified without collateral.
fn verify_body(change: impl FnOnce(&mut Value)) -> Result<Claims, VerifyError> {
    let recorded = milan();
    let mut body = recorded.evidence().body().clone();
    change(&mut body);
    let evidence = Evidence::new(TeeKind::Snp, body);
    Verifier::default().verify(&evidence, &recorded.binding(), recorded.at)
}

/// The same with certificates that came along.
fn verify_with_chain(chain: &Value) -> Result<Claims, VerifyError> {
    verify_body(|body| body["cert_chain"] = chain.clone())
}

fn platform(claims: &Claims) -> &SnpPlatform {
    match claims.platform() {
        Platform::Snp(platform) => platform,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_report_under_a_chips_key_gives_its_claims() {
    if folder().is_none() {
        return;
    }
    for recorded in [milan(), other_milan()] {
        let claims = recorded.verify().unwrap();
        assert_eq!(claims.tee(), TeeKind::Snp);
        assert_eq!(claims.trust(), Trust::Hardware);
        assert_eq!(claims.protection(), Protection::ConfidentialMemory);
        assert_eq!(
            claims.measurement().as_bytes(),
            &recorded.report[MEASUREMENT]
        );
        assert_eq!(claims.configuration(), None);
        assert!(!claims.debug());
        assert_eq!(claims.collateral_until(), None);
        let platform = platform(&claims);
        assert_eq!(platform.product, SnpProduct::Milan);
        assert_eq!(platform.endorsement, SnpEndorsement::Vcek);
        assert_eq!(
            platform.chip_id.unwrap().as_bytes()[..],
            recorded.report[CHIP_ID]
        );
        assert_eq!(
            platform.tcb,
            SnpTcb {
                fmc: None,
                bootloader: 3,
                tee: 0,
                snp: 8,
                microcode: 115
            }
        );
        assert_eq!((platform.vmpl, platform.report_version), (0, 2));
        assert!(platform.smt && !platform.migration);
    }
}

#[test]
fn a_report_under_a_clouds_key_hides_the_chip() {
    if folder().is_none() {
        return;
    }
    let claims = vlek().verify().unwrap();
    let platform = platform(&claims);
    assert_eq!(platform.endorsement, SnpEndorsement::Vlek);
    assert_eq!(platform.chip_id, None);
    assert_eq!((platform.vmpl, platform.report_version), (1, 3));
    assert!(platform.alias_check && !platform.ciphertext_hiding);
    assert_eq!(
        platform.tcb,
        SnpTcb {
            fmc: None,
            bootloader: 4,
            tee: 0,
            snp: 24,
            microcode: 217
        }
    );
}

#[test]
fn certificates_may_come_with_the_evidence_as_the_kbs_protocol_has_them() {
    if folder().is_none() {
        return;
    }
    let recorded = milan();
    let mut body = recorded.evidence().body().clone();
    body["cert_chain"] = json!([
        {"cert_type": "VCEK", "data": recorded.certificates[0]},
    ]);
    let evidence = Evidence::new(TeeKind::Snp, body);
    let verifier = Verifier::default();
    verifier
        .verify(&evidence, &recorded.binding(), recorded.at)
        .unwrap();
    // The same as it travels.
    let travelled = Evidence::decode(&evidence.encode()).unwrap();
    verifier
        .verify(&travelled, &recorded.binding(), recorded.at)
        .unwrap();
}

#[test]
fn without_the_keys_certificate_it_is_said_which_is_missing() {
    if folder().is_none() {
        return;
    }
    let recorded = milan();
    let error = Verifier::default()
        .verify(&recorded.evidence(), &recorded.binding(), recorded.at)
        .unwrap_err();
    assert_eq!(
        error,
        VerifyError::CollateralMissing {
            what: format!(
                "the VCEK certificate of chip {} for bootloader 3, tee 0, snp 8, microcode 115",
                hex::encode(&recorded.report[CHIP_ID])
            )
        }
    );
}

#[test]
fn a_clouds_key_whose_issuer_is_missing_leads_to_no_root() {
    if folder().is_none() {
        return;
    }
    let mut recorded = vlek();
    recorded.certificates.truncate(1);
    assert_eq!(
        recorded.verify(),
        Err(chain(CertificateProblem::UnknownIssuer))
    );
}

fn chain(problem: CertificateProblem) -> VerifyError {
    VerifyError::Certificate {
        what: "the key that signs the report",
        problem,
    }
}

#[test]
fn a_certificate_holds_only_in_its_time() {
    if folder().is_none() {
        return;
    }
    // openssl x509 -in trustee-test-vlek.der -noout -dates
    let (from, until) = (UnixTime(1_733_868_861), UnixTime(1_765_404_861));
    let at = |at| Recorded { at, ..vlek() }.verify().err();
    assert_eq!(
        at(UnixTime(from.0 - 1)),
        Some(chain(CertificateProblem::NotYetValid { not_before: from }))
    );
    assert_eq!(at(from), None);
    assert_eq!(at(until), None);
    let expired = at(UnixTime(until.0 + 1)).unwrap();
    assert_eq!(
        expired,
        chain(CertificateProblem::Expired { not_after: until })
    );
    assert_eq!(
        expired.to_string(),
        "the certificates of the key that signs the report do not hold: \
         a certificate expired at 2025-12-10T22:14:21Z"
    );
}

#[test]
fn another_binding_is_refused_and_nothing_is_padded_or_cut() {
    if folder().is_none() {
        return;
    }
    let recorded = milan();
    for place in 0..64 {
        let mut other = *recorded.binding().as_bytes();
        other[place] ^= 1;
        assert_eq!(
            recorded
                .verifier()
                .verify(&recorded.evidence(), &other.into(), recorded.at),
            Err(VerifyError::BindingMismatch)
        );
    }
}

#[test]
fn another_chips_certificate_is_refused() {
    if folder().is_none() {
        return;
    }
    let with = |certificate: &str| {
        verify_with_chain(&json!([{"cert_type": "VCEK", "data": file(certificate)}])).unwrap_err()
    };
    let mismatch = |what| VerifyError::EndorsementMismatch { what };
    assert_eq!(with("snp/trustee-test-vcek.der"), mismatch("another chip"));
    assert_eq!(
        with("snp/vcek_turin.der"),
        mismatch("another line of processors")
    );
    assert_eq!(
        with("snp/trustee-test-vlek.der"),
        chain(CertificateProblem::Expired {
            not_after: UnixTime(1_765_404_861)
        })
    );
}

#[test]
fn a_signature_of_another_report_is_refused() {
    if folder().is_none() {
        return;
    }
    let other = other_milan().report;
    let spliced = milan().changed(|report| {
        report[SIGNATURE..].copy_from_slice(&other[SIGNATURE..]);
    });
    assert_eq!(spliced.verify(), Err(bad_signature()));
}

fn bad_signature() -> VerifyError {
    VerifyError::BadSignature {
        of: "the report",
        by: "the key of its certificate",
    }
}

#[test]
fn a_report_that_allows_debugging_is_not_the_one_that_was_signed() {
    if folder().is_none() {
        return;
    }
    let debug = milan().changed(|report| report[POLICY + 2] ^= 1 << 3);
    assert_eq!(debug.verify(), Err(bad_signature()));
}

#[test]
fn a_report_whose_signing_was_turned_off_is_refused() {
    if folder().is_none() {
        return;
    }
    for (key_info, by) in [
        (0b10, "any key: the host had signing turned off"),
        (0b1_1100, "any key: the host had signing turned off"),
    ] {
        let masked = milan().changed(|report| report[0x48] = key_info);
        assert_eq!(
            masked.verify(),
            Err(VerifyError::BadSignature {
                of: "the report",
                by
            })
        );
    }
}

#[test]
fn unknown_versions_are_refused_by_name() {
    if folder().is_none() {
        return;
    }
    for version in [0_u8, 1, 4, 6, 7, 255] {
        let other = milan().changed(|report| report[0] = version);
        assert_eq!(
            other.verify(),
            Err(VerifyError::Unsupported {
                what: format!("report version {version}: 2, 3 and 5 are known")
            })
        );
    }
}

#[test]
fn reserved_bytes_that_are_not_zero_are_refused_by_name() {
    if folder().is_none() {
        return;
    }
    // Of the firmware's version, above a signature's number, behind the signature.
    for place in [0x3a, SIGNATURE + 48, SIGNATURE + 71, SIGNATURE + 144, 1183] {
        assert_eq!(
            milan().changed(|report| report[place] = 1).verify(),
            Err(VerifyError::Malformed {
                reason: "reserved bytes of the report are not zero".to_owned()
            })
        );
    }
}

#[test]
fn a_report_of_another_length_is_refused() {
    if folder().is_none() {
        return;
    }
    let report = milan().report;
    for length in (0..report.len()).chain([report.len() + 1]) {
        let mut cut = report.clone();
        cut.resize(length, 0);
        assert_eq!(
            evidence_of_report(&cut),
            Err(VerifyError::Malformed {
                reason: format!("{length} bytes, a report has 1184")
            })
        );
    }
}

/// No byte is left over: reserved ones and those behind the signature count too.
#[test]
fn a_report_with_any_byte_flipped_is_refused() {
    if folder().is_none() {
        return;
    }
    for recorded in [milan as fn() -> Recorded, vlek] {
        for place in 0..recorded().report.len() {
            for flip in [0x01, 0x80] {
                let flipped = recorded().changed(|report| report[place] ^= flip);
                // What the flipped report is bound to is taken from it, as an attacker
                // would have it.
                assert!(flipped.verify().is_err(), "byte {place:#x} with {flip:#x}");
            }
        }
    }
}

/// The evidence as it travels, certificates included.
fn travelling() -> Vec<u8> {
    let recorded = milan();
    let mut body = recorded.evidence().body().clone();
    body["cert_chain"] = json!([
        {"cert_type": "VCEK", "data": recorded.certificates[0]},
        {"cert_type": "ASK", "data": file("snp/milan_ask_ark_asvk.pem")},
    ]);
    Evidence::new(TeeKind::Snp, body).encode()
}

/// What does not count in evidence: further certificates that no chain needs.
fn unused(whole: &[u8], place: usize) -> bool {
    let text = std::str::from_utf8(whole).unwrap();
    let start = text.find(r#"{"cert_type":"ASK""#).unwrap();
    (start..start + text[start..].find(']').unwrap()).contains(&place)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn evidence_with_any_byte_changed_is_refused(place in any::<prop::sample::Index>(), other in any::<u8>()) {
        if folder().is_none() {
            return Ok(());
        }
        let mut bytes = travelling();
        let place = place.index(bytes.len());
        if bytes[place] == other || unused(&bytes, place) {
            return Ok(());
        }
        bytes[place] = other;
        let recorded = milan();
        if let Ok(evidence) = Evidence::decode(&bytes) {
            let verified = Verifier::default().verify(&evidence, &recorded.binding(), recorded.at);
            prop_assert!(verified.is_err(), "byte {place}");
        }
    }
}

#[test]
fn fields_that_are_not_understood_are_refused_at_any_depth() {
    if folder().is_none() {
        return;
    }
    let recorded = milan();
    let refused = |change: fn(&mut Value)| {
        let mut body = recorded.evidence().body().clone();
        change(&mut body);
        recorded
            .verifier()
            .verify(
                &Evidence::new(TeeKind::Snp, body),
                &recorded.binding(),
                recorded.at,
            )
            .unwrap_err()
    };
    let unknown = VerifyError::Malformed {
        reason: "it has fields that this version does not know".to_owned(),
    };
    assert_eq!(
        refused(|body| body["attestation_report"]["more"] = json!(1)),
        unknown
    );
    assert_eq!(
        refused(|body| body["attestation_report"]["reported_tcb"]["more"] = json!(1)),
        unknown
    );
    assert_eq!(
        refused(|body| body["more"] = json!(1)),
        VerifyError::Malformed {
            reason: "unknown field `more`, expected `attestation_report` or `cert_chain`"
                .to_owned()
        }
    );
}

#[test]
fn what_is_no_certificate_is_refused() {
    if folder().is_none() {
        return;
    }
    let with = |chain: Value| verify_with_chain(&chain).unwrap_err();
    assert_eq!(
        with(json!([{"cert_type": "VCEK", "data": [1, 2, 3]}])),
        chain(CertificateProblem::Unacceptable {
            reason: "TrailingData(SignedData)".to_owned()
        })
    );
    assert_eq!(
        with(json!([{"cert_type": "CRL", "data": [1, 2, 3]}])),
        VerifyError::Malformed {
            reason: "a certificate of type 92f81bc3-5811-4d3d-97ff-d19f88dc67ea does not belong \
                     to a report"
                .to_owned()
        }
    );
}

#[test]
fn a_folder_of_collateral_is_read_whatever_its_files_are_called() {
    let Some(evidence) = folder() else {
        return;
    };
    let recorded = vlek();
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir(cache.path().join("amd")).unwrap();
    for (from, to) in [
        ("trustee-test-vlek.der", "a"),
        ("milan_ask_ark_asvk.pem", "amd/b"),
    ] {
        std::fs::copy(evidence.join("snp").join(from), cache.path().join(to)).unwrap();
    }
    let verifier = Verifier::new(Collateral::read(cache.path()).unwrap());
    verifier
        .verify(&recorded.evidence(), &recorded.binding(), recorded.at)
        .unwrap();
    let note = cache.path().join("amd/notes.txt");
    std::fs::write(&note, "nothing").unwrap();
    assert_eq!(
        Collateral::read(cache.path()).unwrap_err().to_string(),
        format!(
            "{}: neither certificates nor a revocation list, as PEM or DER, nor Intel's collateral \
             or keys of Arm's devices as JSON, nor a manifest of NVIDIA's as XML, nor the header of \
             an image for IBM Secure Execution",
            note.display()
        )
    );
}
