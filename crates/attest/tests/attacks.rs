//! What the operator tries on the way between a server and its users: genuine
//! evidence in the wrong place, altered evidence, and evidence of a TEE that is
//! not what it should be.
#![cfg(feature = "simulated")]

use occlude_attest::simulated::{SimulatedReport, TEST_ROOT_SEED};
use occlude_attest::{
    AttestationResponse, Attester, Binding, Claims, CollectError, ConfigurationDigest, DecodeError,
    Evidence, Measurement, Nonce, PROTOCOL_VERSION, Policy, Protection, Refusal,
    SecurityConfiguration, ServedModel, ServiceStatement, StatementError, TeeKind, Trust, UnixTime,
    VerifiedService, Verifier, VerifyError,
};
use occlude_keys::{HeaderDigest, OwnerKey, OwnerPublic};
use sha2::{Digest, Sha256};

const NOW: UnixTime = UnixTime(1_800_000_000);

fn verify(evidence: &Evidence, binding: &Binding, at: UnixTime) -> Result<Claims, VerifyError> {
    Verifier::default().verify(evidence, binding, at)
}

fn bad_signature() -> VerifyError {
    VerifyError::BadSignature {
        of: "the report",
        by: "the published test root",
    }
}

fn owner(number: u8) -> OwnerPublic {
    OwnerKey::from_secret(&[number; 64]).public()
}

fn statement() -> ServiceStatement {
    ServiceStatement {
        protocol: PROTOCOL_VERSION,
        tee: TeeKind::Simulated,
        channel_keys: b"the genuine server's key".to_vec(),
        owners: vec![owner(1)],
        models: vec![ServedModel {
            id: "digits".parse().unwrap(),
            version: 3,
            header_digest: HeaderDigest::from([0xd1; 32]),
            owner: owner(1),
            guard: "none".to_owned(),
        }],
        configuration: SecurityConfiguration {
            broker: Some("https://broker.example".to_owned()),
            kem: "x-wing".to_owned(),
            padding: "buckets".to_owned(),
            client_authentication: "none".to_owned(),
            maximum_request_bytes: 1 << 20,
        },
    }
}

/// A genuine server with this statement answers.
fn answer(nonce: &Nonce, statement: &ServiceStatement) -> AttestationResponse {
    let attester = Attester::open(TeeKind::Simulated, statement.configuration.digest()).unwrap();
    AttestationResponse::collect(&attester, nonce, statement).unwrap()
}

fn service(statement: &ServiceStatement) -> VerifiedService {
    let nonce = Nonce::generate();
    answer(&nonce, statement)
        .verify(&Verifier::default(), &nonce, NOW)
        .unwrap()
}

fn own_measurement() -> Measurement {
    let executable = std::fs::read("/proc/self/exe").unwrap();
    Measurement::from(<[u8; 32]>::from(Sha256::digest(executable)))
}

/// What a careful user of the simulated TEE writes.
fn policy() -> Policy {
    Policy::parse(&format!(
        "format = 1\nreviewed = true\n\
         [evidence]\ntee = [\"simulated\"]\ntrust = [\"simulated\"]\nmeasurements = [\"{}\"]\n\
         [service]\nowners = [\"{}\"]\nmodels = [{{ id = \"digits\", minimum-version = 2 }}]\n",
        own_measurement(),
        owner(1),
    ))
    .unwrap()
}

fn report(binding: Binding) -> SimulatedReport {
    SimulatedReport {
        report_data: binding,
        measurement: [0xa5; 32],
        configuration: ConfigurationDigest::from([0xc0; 32]),
        tcb: 1,
        debug: false,
    }
}

#[test]
fn a_genuine_server_is_verified_and_accepted() {
    let nonce = Nonce::generate();
    let encoded = answer(&nonce, &statement()).encode();
    let response = AttestationResponse::decode(&encoded).unwrap();
    let service = response.verify(&Verifier::default(), &nonce, NOW).unwrap();
    assert_eq!(service.statement(), &statement());
    let claims = service.claims();
    assert_eq!(claims.tee(), TeeKind::Simulated);
    assert_eq!(claims.trust(), Trust::Simulated);
    assert_eq!(claims.protection(), Protection::ConfidentialMemory);
    assert_eq!(claims.measurement(), &own_measurement());
    assert_eq!(
        claims.configuration(),
        Some(&statement().configuration.digest())
    );
    assert!(!claims.debug());
    assert_eq!(policy().judge_service(&service), Ok(()));
    assert_eq!(policy().judge_claims(claims), Ok(()));
}

/// The evidence that `default_build.rs` sees refused.
#[test]
fn recorded_evidence_is_genuine_in_this_build() {
    let recorded = include_bytes!("recorded/simulated.json");
    let binding = Binding::from([7; 64]);
    let evidence = Evidence::decode(recorded).unwrap();
    assert_eq!(evidence, report(binding).sign());
    let claims = verify(&evidence, &binding, NOW).unwrap();
    assert_eq!(claims.measurement(), &Measurement::from([0xa5; 32]));
}

#[test]
fn claims_are_shown_with_their_trust() {
    let service = service(&statement());
    let shown = serde_json::to_value(service.claims()).unwrap();
    assert_eq!(shown["trust"], "simulated");
    assert_eq!(shown["measurement"], own_measurement().to_string());
}

#[test]
fn evidence_over_a_stale_nonce_is_refused() {
    let recorded = answer(&Nonce::from([1; 32]), &statement());
    assert_eq!(
        recorded.verify(&Verifier::default(), &Nonce::from([2; 32]), NOW),
        Err(VerifyError::BindingMismatch)
    );
}

#[test]
fn genuine_evidence_over_the_operators_own_channel_key_is_refused() {
    let nonce = Nonce::generate();
    let genuine = answer(&nonce, &statement());
    let mut own = statement();
    own.channel_keys = b"the operator's key".to_vec();
    let spliced = AttestationResponse::new(own.encode(), genuine.evidence().clone());
    assert_eq!(
        spliced.verify(&Verifier::default(), &nonce, NOW),
        Err(VerifyError::BindingMismatch)
    );
}

#[test]
fn fresh_evidence_of_another_genuine_server_does_not_cover_this_statement() {
    let nonce = Nonce::generate();
    let mut other = statement();
    other.channel_keys = b"another genuine server's key".to_vec();
    let other = answer(&nonce, &other);
    let spliced = AttestationResponse::new(statement().encode(), other.evidence().clone());
    assert_eq!(
        spliced.verify(&Verifier::default(), &nonce, NOW),
        Err(VerifyError::BindingMismatch)
    );
}

#[test]
fn evidence_from_another_session_is_refused() {
    let evidence = report(Binding::from([0x5a; 64])).sign();
    assert_eq!(
        verify(&evidence, &Binding::from([0x5b; 64]), NOW),
        Err(VerifyError::BindingMismatch)
    );
}

#[test]
fn evidence_of_the_brokers_leg_is_refused_on_the_users() {
    let nonce = Nonce::generate();
    let encoded = statement().encode();
    let users = Binding::for_statement(&nonce, &encoded);
    let mut half = [0; 48];
    half.copy_from_slice(&users.as_bytes()[..48]);
    let evidence = report(Binding::from_report_data_48(&half)).sign();
    assert_eq!(
        AttestationResponse::new(encoded, evidence).verify(&Verifier::default(), &nonce, NOW),
        Err(VerifyError::BindingMismatch)
    );
}

#[test]
fn the_zero_bytes_after_a_short_binding_are_compared() {
    let binding = Binding::from_report_data_48(&[7; 48]);
    for index in 48..64 {
        let mut bytes = *binding.as_bytes();
        bytes[index] = 1;
        assert_eq!(
            verify(&report(Binding::from(bytes)).sign(), &binding, NOW),
            Err(VerifyError::BindingMismatch)
        );
    }
}

#[test]
fn debuggable_evidence_is_genuine_and_refused() {
    let binding = Binding::from([7; 64]);
    let mut debuggable = report(binding);
    debuggable.debug = true;
    debuggable.measurement = own_measurement().as_bytes().try_into().unwrap();
    let claims = verify(&debuggable.sign(), &binding, NOW).unwrap();
    assert!(claims.debug());
    assert_eq!(policy().judge_claims(&claims), Err(Refusal::Debug));
}

#[test]
fn a_server_with_another_measurement_is_refused() {
    let binding = Binding::from([7; 64]);
    let claims = verify(&report(binding).sign(), &binding, NOW).unwrap();
    assert_eq!(
        policy().judge_claims(&claims),
        Err(Refusal::Measurement {
            found: Measurement::from([0xa5; 32])
        })
    );
}

#[test]
fn a_server_whose_statement_hides_its_measured_configuration_is_refused() {
    let measured = ConfigurationDigest::from([0xc0; 32]);
    let attester = Attester::open(TeeKind::Simulated, measured).unwrap();
    let nonce = Nonce::generate();
    let response = AttestationResponse::collect(&attester, &nonce, &statement()).unwrap();
    let service = response.verify(&Verifier::default(), &nonce, NOW).unwrap();
    assert_eq!(
        policy().judge_service(&service),
        Err(Refusal::StatementConfiguration {
            statement: statement().configuration.digest(),
            evidence: measured
        })
    );
}

#[test]
fn a_genuine_server_that_says_it_is_hardware_is_refused() {
    let mut hardware = statement();
    hardware.tee = TeeKind::Snp;
    assert_eq!(
        policy().judge_service(&service(&hardware)),
        Err(Refusal::StatementTee {
            statement: TeeKind::Snp,
            evidence: TeeKind::Simulated
        })
    );
}

#[test]
fn a_genuine_server_with_the_operators_owner_key_and_model_is_refused() {
    let mut operators = statement();
    operators.owners = vec![owner(9)];
    operators.models[0].owner = owner(9);
    assert_eq!(
        policy().judge_service(&service(&operators)),
        Err(Refusal::Owner {
            found: Box::new(owner(9)),
            accepted: vec![owner(1)]
        })
    );
}

#[test]
fn a_genuine_server_with_a_weaker_configuration_is_refused() {
    let mut weaker = statement();
    weaker.configuration.kem = "x25519".to_owned();
    assert_eq!(
        policy().judge_service(&service(&weaker)),
        Err(Refusal::Setting {
            setting: "kem",
            found: "x25519".to_owned(),
            accepted: "[\"x-wing\"]".to_owned()
        })
    );
}

#[test]
fn a_genuine_server_with_a_rolled_back_model_is_refused() {
    let mut older = statement();
    older.models[0].version = 1;
    assert_eq!(
        policy().judge_service(&service(&older)),
        Err(Refusal::ModelVersion {
            id: "digits".parse().unwrap(),
            found: 1,
            minimum: 2
        })
    );
}

#[test]
fn simulated_evidence_is_refused_unless_both_its_names_are_spelled_out() {
    let simulated = service(&statement());
    let base = format!(
        "format = 1\n[evidence]\nmeasurements = [\"{}\"]\n",
        own_measurement()
    );
    let default = Policy::parse(&base).unwrap();
    assert_eq!(
        default.judge_claims(simulated.claims()),
        Err(Refusal::Tee {
            found: TeeKind::Simulated,
            accepted: TeeKind::DEFAULT.to_vec()
        })
    );
    let kind_only = Policy::parse(&format!("{base}tee = [\"simulated\"]\n")).unwrap();
    assert_eq!(
        kind_only.judge_claims(simulated.claims()),
        Err(Refusal::Trust {
            found: Trust::Simulated,
            accepted: vec![Trust::Hardware]
        })
    );
    let trust_only = Policy::parse(&format!("{base}trust = [\"simulated\"]\n")).unwrap();
    assert_eq!(
        trust_only.judge_claims(simulated.claims()),
        Err(Refusal::Tee {
            found: TeeKind::Simulated,
            accepted: TeeKind::DEFAULT.to_vec()
        })
    );
}

#[test]
fn simulated_evidence_relabelled_as_hardware_is_not_verified() {
    let binding = Binding::from([7; 64]);
    let body = report(binding).sign().body().clone();
    for tee in TeeKind::ALL
        .into_iter()
        .filter(|tee| *tee != TeeKind::Simulated)
    {
        let refused = verify(&Evidence::new(tee, body.clone()), &binding, NOW).unwrap_err();
        assert!(matches!(refused, VerifyError::Malformed { .. }));
    }
}

#[test]
fn a_report_signed_with_another_key_is_refused() {
    use ed25519_dalek::{Signer, SigningKey};
    let binding = Binding::from([7; 64]);
    let mut body = report(binding).sign().body().clone();
    let mut seed = TEST_ROOT_SEED;
    seed[0] ^= 1;
    let signature = SigningKey::from_bytes(&seed).sign(b"anything").to_bytes();
    body["signature"] = hex::encode(signature).into();
    assert_eq!(
        verify(&Evidence::new(TeeKind::Simulated, body), &binding, NOW),
        Err(bad_signature())
    );
}

#[test]
fn every_signed_field_that_changes_is_noticed() {
    let binding = Binding::from([7; 64]);
    let body = report(binding).sign().body().clone();
    let zeros = |length: usize| serde_json::Value::from("00".repeat(length));
    for (field, value) in [
        ("report-data", zeros(64)),
        ("measurement", zeros(32)),
        ("configuration", zeros(32)),
        ("tcb", 2.into()),
        ("debug", true.into()),
        ("signature", zeros(64)),
    ] {
        let mut changed = body.clone();
        changed[field] = value;
        assert_eq!(
            verify(&Evidence::new(TeeKind::Simulated, changed), &binding, NOW),
            Err(bad_signature()),
            "{field}"
        );
    }
}

#[test]
fn evidence_of_another_shape_is_refused() {
    let binding = Binding::from([7; 64]);
    let genuine = report(binding).sign().body().clone();
    let malformed = |body: serde_json::Value| match verify(
        &Evidence::new(TeeKind::Simulated, body),
        &binding,
        NOW,
    ) {
        Err(VerifyError::Malformed { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let mut extra = genuine.clone();
    extra["note"] = "trust me".into();
    assert_eq!(
        malformed(extra),
        "unknown field `note`, expected one of `report-data`, `measurement`, `configuration`, \
         `tcb`, `debug`, `signature`"
    );
    let mut missing = genuine.clone();
    missing.as_object_mut().unwrap().remove("debug");
    assert_eq!(malformed(missing), "missing field `debug`");
    let mut short = genuine.clone();
    short["measurement"] = "a5".into();
    assert_eq!(
        malformed(short),
        "expected 64 lower-case hexadecimal digits, found \"a5\""
    );
    let mut large = genuine;
    large["tcb"] = (1_u64 << 32).into();
    assert_eq!(
        malformed(large),
        "invalid value: integer `4294967296`, expected u32"
    );
    assert_eq!(
        malformed(serde_json::Value::Null),
        "invalid type: null, expected struct Body"
    );
}

#[test]
fn every_flipped_bit_of_encoded_evidence_is_refused() {
    let binding = Binding::from([7; 64]);
    let encoded = report(binding).sign().encode();
    let refused = flip_every_bit(&encoded, |bytes| {
        Evidence::decode(bytes).is_err_and(|error| {
            matches!(
                error,
                DecodeError::Malformed { .. } | DecodeError::NotCanonical
            )
        }) || Evidence::decode(bytes).is_ok_and(|evidence| {
            matches!(
                verify(&evidence, &binding, NOW),
                Err(VerifyError::Malformed { .. } | VerifyError::BadSignature { .. })
            )
        })
    });
    assert_eq!(refused, encoded.len() * 8);
}

#[test]
fn every_flipped_bit_of_an_encoded_answer_is_refused() {
    let nonce = Nonce::generate();
    let encoded = answer(&nonce, &statement()).encode();
    let refused = flip_every_bit(&encoded, |bytes| match AttestationResponse::decode(bytes) {
        Err(error) => matches!(
            error,
            DecodeError::Malformed { .. } | DecodeError::NotCanonical
        ),
        Ok(response) => matches!(
            response.verify(&Verifier::default(), &nonce, NOW),
            Err(VerifyError::Malformed { .. }
                | VerifyError::BadSignature { .. }
                | VerifyError::BindingMismatch)
        ),
    });
    assert_eq!(refused, encoded.len() * 8);
}

/// How many of the single-bit changes are refused; names the first that is not.
fn flip_every_bit(encoded: &[u8], refused: impl Fn(&[u8]) -> bool) -> usize {
    let mut count = 0;
    for index in 0..encoded.len() {
        for bit in 0..8 {
            let mut changed = encoded.to_vec();
            changed[index] ^= 1 << bit;
            assert!(refused(&changed), "byte {index}, bit {bit}");
            count += 1;
        }
    }
    count
}

#[test]
fn evidence_cut_anywhere_is_refused() {
    let encoded = report(Binding::from([7; 64])).sign().encode();
    for length in 0..encoded.len() {
        assert!(
            matches!(
                Evidence::decode(&encoded[..length]),
                Err(DecodeError::Malformed { .. })
            ),
            "{length} bytes"
        );
    }
}

#[test]
fn white_space_and_repeated_fields_around_genuine_evidence_are_refused() {
    let text = String::from_utf8(report(Binding::from([7; 64])).sign().encode()).unwrap();
    for changed in [
        format!("{text}\n"),
        text.replace(':', ": "),
        text.replace("\"tcb\":1", "\"tcb\":1.0"),
        text.replace("\"tcb\":1", "\"tcb\":2,\"tcb\":1"),
        text.replace("\"tcb\"", "\"\\u0074cb\""),
    ] {
        assert_eq!(
            Evidence::decode(changed.as_bytes()),
            Err(DecodeError::NotCanonical),
            "{changed}"
        );
    }
}

#[test]
fn an_answer_beyond_the_limit_is_refused() {
    let found = AttestationResponse::MAX_BYTES + 1;
    assert_eq!(
        AttestationResponse::decode(&vec![b' '; found]),
        Err(DecodeError::TooLarge {
            limit: AttestationResponse::MAX_BYTES,
            found
        })
    );
}

#[test]
fn a_genuine_tee_over_a_statement_that_is_none_is_refused() {
    let nonce = Nonce::generate();
    let nonsense = b"{}".to_vec();
    let evidence = report(Binding::for_statement(&nonce, &nonsense)).sign();
    assert_eq!(
        AttestationResponse::new(nonsense, evidence).verify(&Verifier::default(), &nonce, NOW),
        Err(VerifyError::Statement(StatementError::Decode(
            DecodeError::Malformed {
                reason: "missing field `protocol` at line 1 column 2".to_owned()
            }
        )))
    );
}

#[test]
fn kinds_that_this_machine_has_not_cannot_be_opened() {
    for tee in TeeKind::ALL {
        let opened = Attester::open(tee, [0; 32]);
        match tee {
            TeeKind::Simulated => drop(opened.unwrap()),
            TeeKind::TrustZone => assert!(matches!(opened, Err(CollectError::NoCommand))),
            TeeKind::Nvidia => assert!(matches!(opened, Err(CollectError::NoGpuCommand))),
            // On a machine that has it, it opens.
            _ => assert!(matches!(
                opened,
                Ok(_) | Err(CollectError::NotPresent { .. })
            )),
        }
    }
}
