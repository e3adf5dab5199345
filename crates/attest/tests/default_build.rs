//! A build without the simulated TEE refuses its evidence whatever a policy says.
#![cfg(not(feature = "simulated"))]

use occlude_attest::{
    AttestationResponse, Attester, Binding, CollectError, Evidence, Nonce, Policy, Refusal,
    TeeKind, UnixTime, Verifier, VerifyError,
};

/// Genuine as far as simulated evidence can be; `attacks.rs` verifies it.
fn recorded() -> Evidence {
    Evidence::decode(include_bytes!("recorded/simulated.json")).unwrap()
}

#[test]
fn simulated_evidence_is_refused() {
    let binding = Binding::from([7; 64]);
    assert_eq!(
        Verifier::default().verify(&recorded(), &binding, UnixTime(0)),
        Err(VerifyError::SimulatedDisabled)
    );
    assert_eq!(
        AttestationResponse::new(Vec::new(), recorded()).verify(
            &Verifier::default(),
            &Nonce::generate(),
            UnixTime(0)
        ),
        Err(VerifyError::SimulatedDisabled)
    );
}

#[test]
fn the_simulated_tee_cannot_be_opened() {
    assert!(matches!(
        Attester::open(TeeKind::Simulated, [0; 32]),
        Err(CollectError::SimulatedDisabled)
    ));
}

#[test]
fn a_policy_that_names_it_is_read_and_refused() {
    let policy =
        Policy::parse("format = 1\n[evidence]\ntee = [\"simulated\"]\ntrust = [\"simulated\"]\n")
            .unwrap();
    assert_eq!(policy.check_enforceable(), Err(Refusal::SimulatedDisabled));
}
