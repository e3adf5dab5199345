//! Chains that a test makes itself: each way in which one does not hold, by its exact
//! error. Chains of vendors are verified where their evidence is.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CustomExtension, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, RevokedCertParams, SerialNumber, SignatureAlgorithm,
    date_time_ymd,
};

use super::*;

/// In the middle of every certificate's validity.
const NOW: UnixTime = UnixTime(1_750_000_000);
const WHAT: &str = "the test's key";

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn parameters(name: &str, authority: bool) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(2030, 1, 1);
    if authority {
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    parameters
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn root_with(algorithm: &'static SignatureAlgorithm) -> Issuer {
    CertifiedIssuer::self_signed(parameters("root", true), key(algorithm)).unwrap()
}

fn root() -> Issuer {
    root_with(&PKCS_ECDSA_P384_SHA384)
}

fn below(issuer: &Issuer, parameters: CertificateParams) -> Issuer {
    CertifiedIssuer::signed_by(parameters, key(&PKCS_ECDSA_P256_SHA256), issuer).unwrap()
}

fn leaf(issuer: &Issuer) -> CertificateDer<'static> {
    let mut parameters = parameters("leaf", false);
    parameters.serial_number = Some(SerialNumber::from(7));
    of(issuer, &parameters)
}

fn of(issuer: &Issuer, parameters: &CertificateParams) -> CertificateDer<'static> {
    let key = key(&PKCS_ECDSA_P384_SHA384);
    parameters.signed_by(&key, issuer).unwrap().der().clone()
}

fn verify(
    leaf: &CertificateDer<'_>,
    between: &[&Issuer],
    root: &Issuer,
    revocation_lists: &[Vec<u8>],
    at: UnixTime,
) -> Result<Verified, VerifyError> {
    let intermediates: Vec<_> = between.iter().map(|one| one.der().clone()).collect();
    Chain {
        what: WHAT,
        leaf,
        intermediates: &intermediates,
        roots: &[pinned_root(root.der())],
        revocation_lists,
    }
    .verify(at)
}

fn refused(problem: CertificateProblem) -> Result<Verified, VerifyError> {
    Err(VerifyError::Certificate {
        what: WHAT,
        problem,
    })
}

fn revoking(issuer: &Issuer, serial: u64) -> Vec<u8> {
    let parameters = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 1, 1),
        next_update: date_time_ymd(2026, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    parameters.signed_by(issuer).unwrap().der().to_vec()
}

const HOLDS: Result<Verified, VerifyError> = Ok(Verified {
    root: 0,
    lists_until: None,
});

#[test]
fn a_chain_of_any_length_holds() {
    let root = root();
    assert_eq!(verify(&leaf(&root), &[], &root, &[], NOW), HOLDS);
    let upper = below(&root, parameters("upper", true));
    let lower = below(&upper, parameters("lower", true));
    assert_eq!(
        verify(&leaf(&lower), &[&lower, &upper], &root, &[], NOW),
        HOLDS
    );
}

#[test]
fn which_root_it_ends_at_is_told() {
    let (first, second) = (root(), root());
    let leaf = leaf(&second);
    let chain = Chain {
        what: WHAT,
        leaf: &leaf,
        intermediates: &[],
        roots: &[pinned_root(first.der()), pinned_root(second.der())],
        revocation_lists: &[],
    };
    assert_eq!(chain.verify(NOW).unwrap().root, 1);
}

#[test]
fn a_root_of_the_same_name_is_not_the_root() {
    let (ours, theirs) = (root(), root());
    assert_eq!(
        verify(&leaf(&theirs), &[], &ours, &[], NOW),
        refused(CertificateProblem::BadSignature)
    );
}

#[test]
fn a_chain_that_ends_nowhere_is_refused() {
    let root = root();
    let middle = below(&root, parameters("middle", true));
    assert_eq!(
        verify(&leaf(&middle), &[], &root, &[], NOW),
        refused(CertificateProblem::UnknownIssuer)
    );
}

#[test]
fn every_certificate_of_the_chain_holds_only_in_its_time() {
    let root = root();
    let mut short = parameters("middle", true);
    short.not_before = date_time_ymd(2024, 1, 1);
    short.not_after = date_time_ymd(2025, 1, 1);
    let middle = below(&root, short);
    let leaf = leaf(&middle);
    let at = |at| verify(&leaf, &[&middle], &root, &[], UnixTime(at));
    let (from, until) = (1_704_067_200, 1_735_689_600);
    assert_eq!(at(from), HOLDS);
    assert_eq!(at(until), HOLDS);
    assert_eq!(
        at(from - 1),
        refused(CertificateProblem::NotYetValid {
            not_before: UnixTime(from)
        })
    );
    assert_eq!(
        at(until + 1),
        refused(CertificateProblem::Expired {
            not_after: UnixTime(until)
        })
    );
}

#[test]
fn a_certificate_that_may_not_issue_cannot() {
    let root = root();
    let not_an_authority = below(&root, parameters("middle", false));
    assert_eq!(
        verify(
            &leaf(&not_an_authority),
            &[&not_an_authority],
            &root,
            &[],
            NOW
        ),
        refused(CertificateProblem::Unacceptable {
            reason: "EndEntityUsedAsCa".to_owned()
        })
    );
    let mut last = parameters("middle", true);
    last.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let last = below(&root, last);
    let further = below(&last, parameters("further", true));
    assert_eq!(
        verify(&leaf(&further), &[&further, &last], &root, &[], NOW),
        refused(CertificateProblem::Unacceptable {
            reason: "PathLenConstraintViolated".to_owned()
        })
    );
}

#[test]
fn an_authority_is_not_a_key_that_signs_evidence() {
    let root = root();
    let authority = below(&root, parameters("middle", true));
    assert_eq!(
        verify(authority.der(), &[], &root, &[], NOW),
        refused(CertificateProblem::Unacceptable {
            reason: "CaUsedAsEndEntity".to_owned()
        })
    );
}

#[test]
fn a_critical_extension_that_is_not_known_is_refused() {
    let root = root();
    let mut parameters = parameters("leaf", false);
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
    unknown.set_criticality(true);
    parameters.custom_extensions.push(unknown);
    assert_eq!(
        verify(&of(&root, &parameters), &[], &root, &[], NOW),
        refused(CertificateProblem::Unacceptable {
            reason: "UnsupportedCriticalExtension".to_owned()
        })
    );
}

/// No vendor of a TEE signs certificates with Ed25519, so nothing here verifies it.
#[test]
fn an_algorithm_of_no_vendor_is_refused() {
    let root = root_with(&PKCS_ED25519);
    assert_eq!(
        verify(&leaf(&root), &[], &root, &[], NOW),
        refused(CertificateProblem::UnusualAlgorithm)
    );
}

#[test]
fn any_byte_of_a_chain_that_is_flipped_breaks_it() {
    let root = root();
    let middle = below(&root, parameters("middle", true));
    let leaf = leaf(&middle);
    for place in 0..leaf.len() {
        let mut flipped = leaf.to_vec();
        flipped[place] ^= 1;
        assert!(
            verify(&flipped.into(), &[&middle], &root, &[], NOW).is_err(),
            "byte {place}"
        );
    }
}

#[test]
fn a_revoked_certificate_is_refused_anywhere_in_the_chain() {
    let root = root();
    let mut parameters = parameters("middle", true);
    parameters.serial_number = Some(SerialNumber::from(9));
    let middle = below(&root, parameters);
    let leaf = leaf(&middle);
    let with = |lists: &[Vec<u8>]| verify(&leaf, &[&middle], &root, lists, NOW);
    assert_eq!(
        with(&[revoking(&middle, 7)]),
        refused(CertificateProblem::Revoked)
    );
    assert_eq!(
        with(&[revoking(&middle, 8), revoking(&root, 9)]),
        refused(CertificateProblem::Revoked)
    );
    let until = |time| {
        Ok(Verified {
            root: 0,
            lists_until: Some(UnixTime(time)),
        })
    };
    assert_eq!(
        with(&[revoking(&middle, 8), revoking(&root, 8)]),
        until(1_767_225_600)
    );
}

#[test]
fn a_list_past_its_date_still_revokes_and_its_date_is_told() {
    let root = root();
    let leaf = leaf(&root);
    let at = |serial, at| verify(&leaf, &[], &root, &[revoking(&root, serial)], UnixTime(at));
    let later = 1_800_000_000;
    assert_eq!(at(7, later), refused(CertificateProblem::Revoked));
    assert_eq!(
        at(8, later),
        Ok(Verified {
            root: 0,
            lists_until: Some(UnixTime(1_767_225_600))
        })
    );
}

#[test]
fn a_list_of_somebody_else_says_nothing() {
    let root = root();
    let mut other = parameters("other", true);
    other.serial_number = Some(SerialNumber::from(1));
    let other = CertifiedIssuer::self_signed(other, key(&PKCS_ECDSA_P384_SHA384)).unwrap();
    assert_eq!(
        verify(&leaf(&root), &[], &root, &[revoking(&other, 7)], NOW),
        HOLDS
    );
}

/// The name is right and the signature is not: somebody wants a list to be dropped, or a
/// certificate to be revoked.
#[test]
fn a_forged_list_is_refused() {
    let root_key = root();
    let namesake = root();
    assert!(matches!(
        verify(&leaf(&root_key), &[], &root_key, &[revoking(&namesake, 8)], NOW),
        Err(VerifyError::Certificate {
            problem: CertificateProblem::Unacceptable { reason },
            ..
        }) if reason == "InvalidCrlSignatureForPublicKey"
    ));
}

#[test]
fn certificates_are_read_from_pem_and_from_der() {
    let root = root();
    let der = root.der().to_vec();
    let pem = {
        use x509_cert::der::EncodePem;
        let parsed = parse(WHAT, &der).unwrap();
        parsed.to_pem(x509_cert::der::pem::LineEnding::LF).unwrap()
    };
    let two = format!("a comment is no certificate\n{pem}{pem}");
    assert_eq!(from_pem_or_der(WHAT, &der).unwrap(), [root.der().clone()]);
    assert_eq!(from_pem_or_der(WHAT, pem.as_bytes()).unwrap().len(), 1);
    // Only what begins as PEM is PEM.
    assert_eq!(from_pem_or_der(WHAT, two.as_bytes()).unwrap().len(), 1);
    assert_eq!(
        from_pem_or_der(WHAT, &two.as_bytes()[28..]).unwrap().len(),
        2
    );
}
