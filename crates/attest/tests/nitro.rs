//! AWS Nitro Enclaves: recorded documents hold at their time, and nothing that was
//! changed in them does. What binds a document is tested on made-up ones, beside the
//! code: nobody recorded one that is bound as ours are.

mod support;

use occlude_attest::nitro::evidence_of_document;
use occlude_attest::{
    Binding, CertificateProblem, Claims, Measurement, Platform, Policy, Refusal, TeeKind, Trust,
    UnixTime, Verifier, VerifyError,
};
use support::{file, folder};

const VALID: &str = "nitro/valid-attestation-doc-bytes";
const DEBUG: &str = "nitro/debug-mode-attestation-doc-bytes";

/// When each was recorded, within the three hours of its certificate.
const AT: [(&str, UnixTime); 2] = [
    (VALID, UnixTime(1_665_651_600)),
    (DEBUG, UnixTime(1_665_582_700)),
];

fn claims(document: &[u8], at: UnixTime) -> Result<Claims, VerifyError> {
    let genuine = Verifier::default().authenticate(&evidence_of_document(document), at)?;
    Ok(genuine.unbound_claims())
}

#[test]
fn a_recorded_document_gives_its_claims() {
    if folder().is_none() {
        return;
    }
    let claims = claims(&file(VALID), AT[0].1).unwrap();
    assert_eq!(
        (claims.tee(), claims.trust()),
        (TeeKind::Nitro, Trust::Hardware)
    );
    assert!(!claims.debug());
    let Platform::Nitro(platform) = claims.platform() else {
        panic!("{claims:?}");
    };
    assert_eq!(
        platform.module_id,
        "i-020b6af9246d90e92-enc0183d09086c24190"
    );
    assert_eq!(platform.timestamp, UnixTime(1_665_651_482));
    let begins: Vec<_> = platform
        .pcrs
        .iter()
        .map(|(register, value)| format!("{register} {}", &value.to_string()[..16]))
        .collect();
    // As another CBOR reader shows them.
    assert_eq!(
        begins,
        [
            "pcr0 f4d48b81a460c991",
            "pcr1 bcdf05fefccaa8e5",
            "pcr2 d8f114da658de548",
            "pcr3 4a9329d69c836267",
            "pcr4 1f442c86d494a881",
            "pcr8 8790eb3cce6c83d0",
        ]
    );
    assert!(
        claims
            .measurement()
            .to_string()
            .starts_with("f4d48b81a460c991")
    );
}

#[test]
fn a_document_that_is_bound_to_something_else_is_refused() {
    if folder().is_none() {
        return;
    }
    for (name, at) in AT {
        let evidence = evidence_of_document(&file(name));
        let verified = Verifier::default().verify(&evidence, &Binding::from([0; 64]), at);
        assert_eq!(verified, Err(VerifyError::BindingMismatch));
    }
}

#[test]
fn an_enclave_in_debug_mode_is_refused_by_every_policy() {
    if folder().is_none() {
        return;
    }
    let claims = claims(&file(DEBUG), AT[1].1).unwrap();
    assert!(claims.debug());
    assert_eq!(claims.measurement(), &Measurement::from([0; 48]));
    let policy = format!(
        "format = 1\n[evidence]\nmeasurements = [\"{}\"]\n",
        claims.measurement()
    );
    let refused = Policy::parse(&policy).unwrap().judge_claims(&claims);
    assert_eq!(refused, Err(Refusal::Debug));
}

#[test]
fn a_document_holds_for_the_three_hours_of_its_certificate() {
    if folder().is_none() {
        return;
    }
    let at = |at| claims(&file(VALID), UnixTime(at)).err();
    let problem = |problem| {
        Some(VerifyError::Certificate {
            what: "the key that signs the document",
            problem,
        })
    };
    // openssl x509 -noout -dates
    let (from, until) = (UnixTime(1_665_651_479), UnixTime(1_665_662_282));
    assert_eq!(at(from.0), None);
    assert_eq!(at(until.0), None);
    assert_eq!(
        at(from.0 - 1),
        problem(CertificateProblem::NotYetValid { not_before: from })
    );
    assert_eq!(
        at(until.0 + 1),
        problem(CertificateProblem::Expired { not_after: until })
    );
}

#[test]
fn a_document_with_any_byte_flipped_or_cut_is_refused() {
    if folder().is_none() {
        return;
    }
    let (name, at) = AT[0];
    let document = file(name);
    for place in 0..document.len() {
        let mut flipped = document.clone();
        flipped[place] ^= 1;
        assert!(claims(&flipped, at).is_err(), "byte {place}");
    }
    for length in 0..document.len() {
        assert!(claims(&document[..length], at).is_err(), "{length} bytes");
    }
}

/// What an emulator gives: a document without a signature.
#[test]
fn a_document_that_nobody_signed_is_refused() {
    if folder().is_none() {
        return;
    }
    let (name, at) = AT[0];
    let mut document = file(name);
    let length = document.len();
    document[length - 96..].fill(0);
    assert_eq!(
        claims(&document, at),
        Err(VerifyError::BadSignature {
            of: "the document",
            by: "the key of its certificate"
        })
    );
}
