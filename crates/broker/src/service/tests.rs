//! The whole exchange over HTTP, with simulated evidence: honest, forged, stale,
//! replayed, and orders of owners and of others. What the store has a part in runs
//! over both databases.

mod allowances;
mod orders;
#[path = "../../../attest/tests/support/mod.rs"]
mod recorded_evidence;
mod rig;
mod se;
mod transport;
mod trustee;

use kbs_types::TeePubKey;
use occlude_attest::{Binding, Evidence, Policy, TeeKind};
use serde_json::{Value, json};

use crate::client::FetchError;
use crate::kbs::jwe::{Curve, Jwe, TeeKey};
use crate::test_databases::{TestDatabase, on_both_databases};
use rig::{MODEL_KEY, Rig, digest, policy, refusal};

const UNKNOWN_CHALLENGE: &str = "the challenge is unknown, used or expired: ask for another";
const OTHER_BINDING: &str =
    "binding mismatch: the evidence was made for another nonce or another statement";
const NO_SESSION: &str = "no attested session, or it expired: show evidence first";

on_both_databases! {
    the_key_is_released_to_the_allowed_measurement_and_again_for_a_renewal,
    the_key_is_refused_to_another_measurement,
    evidence_forged_for_another_measurement_gets_no_key,
    without_a_policy_no_key_is_released,
    the_default_policy_refuses_simulated_evidence,
    an_unknown_key_and_an_unknown_path_are_not_found,
    a_withdrawn_version_gets_no_key_and_no_renewal,
    a_nonce_is_for_one_attestation_whatever_came_of_it,
    every_decision_is_in_the_audit_log_and_no_key,
}

async fn refused(rig: &Rig) -> String {
    match rig.fetch().await {
        Err(FetchError::Refused { reason }) => reason,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

async fn the_key_is_released_to_the_allowed_measurement_and_again_for_a_renewal(
    database: TestDatabase,
) {
    let rig = Rig::start_on(database).await;
    for _ in 0..2 {
        assert_eq!(rig.fetch().await.unwrap().expose(), &MODEL_KEY);
    }
}

async fn the_key_is_refused_to_another_measurement(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let other = policy("a5".repeat(32));
    rig.set_policy(&other).await;
    let expected = Policy::parse(&other)
        .unwrap()
        .judge_claims(&rig.claims())
        .unwrap_err()
        .to_string();
    assert!(expected.contains("measurement"), "{expected}");
    assert_eq!(refused(&rig).await, expected);
}

async fn evidence_forged_for_another_measurement_gets_no_key(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let session = rig.challenge().await;
    let key = TeeKey::generate(Curve::P256);
    let mut report = rig.report(session.binding(&key.public()));
    report.measurement[0] ^= 1;
    let (status, _) = rig.attest(&session, &key.public(), &report.sign()).await;
    assert_eq!(status, 200, "it is authentic, nothing is released yet");
    let (status, answer) = rig.resource(&session, &rig.path()).await;
    assert_eq!(status, 403);
    assert!(refusal(&answer).contains("measurement"), "{answer}");
}

async fn without_a_policy_no_key_is_released(database: TestDatabase) {
    let rig = Rig::start_without_policy(database).await;
    assert_eq!(
        refused(&rig).await,
        "the owner has set no policy for digits"
    );
}

async fn the_default_policy_refuses_simulated_evidence(database: TestDatabase) {
    let rig = Rig::start_without_policy(database).await;
    let text = format!(
        "format = 1\n[evidence]\nmeasurements = [\"{}\"]\n",
        rig.claims().measurement()
    );
    rig.set_policy(&text).await;
    let reason = refused(&rig).await;
    assert!(reason.contains("simulated"), "{reason}");
}

async fn an_unknown_key_and_an_unknown_path_are_not_found(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let session = rig.attested().await;
    let owner = rig.fingerprint();
    for path in [
        format!("{owner}/model-key/{}", digest(99)),
        format!("{}/model-key/{}", "00".repeat(32), digest(7)),
        format!("{owner}/other/{}", digest(7)),
        format!("{owner}/model-key/latest"),
        format!("default/model-key/{}", digest(7)),
    ] {
        let (status, answer) = rig.resource(&session, &path).await;
        assert_eq!(status, 404, "{path}");
        assert_eq!(refusal(&answer), "the broker has no such key", "{path}");
    }
}

async fn a_withdrawn_version_gets_no_key_and_no_renewal(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let session = rig.attested().await;
    rig.fetch().await.unwrap();
    rig.admin
        .withdraw(&rig.owner, &"digits".parse().unwrap(), 2)
        .await
        .unwrap();
    let reason = "version 1 of digits is withdrawn: the lowest that still gets its key is 2";
    assert_eq!(refused(&rig).await, reason);
    let (status, answer) = rig.resource(&session, &rig.path()).await;
    assert_eq!((status, refusal(&answer)), (403, reason));
}

#[tokio::test]
async fn a_stale_nonce_is_refused() {
    let rig = Rig::start_with_short_lives().await;
    let session = rig.challenge().await;
    tokio::time::sleep(rig::SHORT_LIFE).await;
    let key = TeeKey::generate(Curve::P256).public();
    let evidence = rig.report(session.binding(&key)).sign();
    let (status, answer) = rig.attest(&session, &key, &evidence).await;
    assert_eq!((status, refusal(&answer)), (401, UNKNOWN_CHALLENGE));
}

#[tokio::test]
async fn an_attested_session_expires() {
    let rig = Rig::start_with_short_lives().await;
    let session = rig.attested().await;
    tokio::time::sleep(rig::SHORT_LIFE).await;
    let (status, answer) = rig.resource(&session, &rig.path()).await;
    assert_eq!((status, refusal(&answer)), (401, NO_SESSION));
}

async fn a_nonce_is_for_one_attestation_whatever_came_of_it(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let key = TeeKey::generate(Curve::P256).public();
    for first_is_honest in [true, false] {
        let session = rig.challenge().await;
        let evidence = rig.report(session.binding(&key)).sign();
        let wrong = rig.report(Binding::from([0; 64])).sign();
        let first = if first_is_honest { &evidence } else { &wrong };
        let (status, _) = rig.attest(&session, &key, first).await;
        assert_eq!(status, if first_is_honest { 200 } else { 401 });
        let (status, answer) = rig.attest(&session, &key, &evidence).await;
        assert_eq!((status, refusal(&answer)), (401, UNKNOWN_CHALLENGE));
    }
}

#[tokio::test]
async fn a_nonce_of_another_session_is_refused() {
    let rig = Rig::start().await;
    let (session, mut other) = (rig.challenge().await, rig.challenge().await);
    let key = TeeKey::generate(Curve::P256).public();
    other.cookie = session.cookie;
    let evidence = rig.report(other.binding(&key)).sign();
    let (status, answer) = rig.attest(&other, &key, &evidence).await;
    assert_eq!(status, 401);
    assert_eq!(
        refusal(&answer),
        "the nonce is not the one of this session's challenge"
    );
}

#[tokio::test]
async fn evidence_for_another_key_is_refused() {
    let rig = Rig::start().await;
    let session = rig.challenge().await;
    let own = TeeKey::generate(Curve::P256).public();
    let attackers = TeeKey::generate(Curve::P256).public();
    let evidence = rig.report(session.binding(&own)).sign();
    let (status, answer) = rig.attest(&session, &attackers, &evidence).await;
    assert_eq!((status, refusal(&answer)), (401, OTHER_BINDING));
}

#[tokio::test]
async fn report_data_with_anything_in_its_padding_is_refused() {
    let rig = Rig::start().await;
    let key = TeeKey::generate(Curve::P256).public();
    for index in 48..64 {
        let session = rig.challenge().await;
        let mut bytes = *session.binding(&key).as_bytes();
        assert_eq!(bytes[index], 0);
        bytes[index] = 1;
        let evidence = rig.report(Binding::from(bytes)).sign();
        let (status, answer) = rig.attest(&session, &key, &evidence).await;
        assert_eq!((status, refusal(&answer)), (401, OTHER_BINDING));
    }
}

/// What the broker says of evidence with this beside it, which the TEE vouches for.
async fn with_additional(rig: &Rig, additional: &str) -> (u16, String) {
    let session = rig.challenge().await;
    let key = TeeKey::generate(Curve::P256).public();
    let binding = session.binding_with(&key, additional);
    let mut attestation = rig::attestation(&session, &key, &rig.report(binding).sign());
    attestation["tee-evidence"]["additional_evidence"] = json!(additional);
    let (status, answer) = rig.post_attestation(&session, &attestation).await;
    let said = answer["detail"].as_str().unwrap_or_default().to_owned();
    (status, said)
}

#[tokio::test]
async fn additional_evidence_that_does_not_hold_is_refused() {
    let rig = Rig::start().await;
    for (additional, status, said) in [
        (
            "{\"snp\":{}}",
            401,
            "evidence of snp that came along: the evidence cannot be verified by this version: \
             snp beside another TEE",
        ),
        (
            "{\"tpm\":{}}",
            401,
            "evidence of tpm that came along: the evidence is malformed: missing field \
             `ak_public`",
        ),
        (
            "[]",
            400,
            "additional_evidence: invalid type: sequence, expected a map at line 1 column 0",
        ),
    ] {
        let found = with_additional(&rig, additional).await;
        assert_eq!(found, (status, said.to_owned()));
    }
    assert_eq!(with_additional(&rig, "{}").await, (200, String::new()));
}

#[tokio::test]
async fn additional_evidence_that_the_tee_does_not_vouch_for_is_refused() {
    let rig = Rig::start().await;
    let session = rig.challenge().await;
    let key = TeeKey::generate(Curve::P256).public();
    let evidence = rig.report(session.binding(&key)).sign();
    let mut attestation = rig::attestation(&session, &key, &evidence);
    attestation["tee-evidence"]["additional_evidence"] = json!("{}");
    let (status, answer) = rig.post_attestation(&session, &attestation).await;
    assert_eq!((status, refusal(&answer)), (401, OTHER_BINDING));
}

#[tokio::test]
async fn the_sample_tees_and_another_protocol_version_are_refused() {
    let rig = Rig::start().await;
    let request =
        |version: &str, tee: &str| json!({"version": version, "tee": tee, "extra-params": ""});
    for tee in ["sample", "sampledevice"] {
        let (status, answer) = rig.post("/kbs/v0/auth", &request("0.4.0", tee)).await;
        assert_eq!(status, 401);
        assert_eq!(
            refusal(&answer),
            format!("the TEE {tee} proves nothing that this broker can verify")
        );
    }
    for version in ["0.1.1", "0.4.1", "0.4", ""] {
        for (path, tee) in [("/kbs/v0/auth", "snp"), ("/occlude/v0/auth", "simulated")] {
            let (status, answer) = rig.post(path, &request(version, tee)).await;
            assert_eq!(status, 401);
            assert_eq!(
                refusal(&answer),
                format!("the protocol version is {version:?}, expected \"0.4.0\"")
            );
        }
    }
}

#[tokio::test]
async fn each_tee_has_one_way_in_and_its_hash_function() {
    let rig = Rig::start().await;
    let request = |tee: &str| json!({"version": "0.4.0", "tee": tee, "extra-params": {}});
    // That of `se`, whose challenge is another, is tested with it.
    for (tee, hash) in [("snp", "sha384"), ("tdx", "sha384"), ("tpm", "sha384")] {
        let (status, answer) = rig.post("/kbs/v0/auth", &request(tee)).await;
        assert_eq!(status, 200);
        assert_eq!(answer["extra-params"]["selected-hash-algorithm"], hash);
    }
    let (status, answer) = rig.post("/kbs/v0/auth", &request("simulated")).await;
    assert_eq!(status, 400);
    assert_eq!(
        refusal(&answer),
        "the message is malformed: unknown variant `simulated`, expected one of `az-snp-vtpm`, \
         `az-tdx-vtpm`, `nvidia`, `sgx`, `snp`, `tdx`, `cca`, `csv`, `se`, `hygondcu`, \
         `nvidia-dpu`, `nvidiadpu`, `tpm`, `sample`, `sampledevice` at line 1 column 36"
    );
    let (status, answer) = rig.post("/occlude/v0/auth", &request("snp")).await;
    assert_eq!(status, 400);
    assert_eq!(
        refusal(&answer),
        "KBS has a name for the TEE snp: use /kbs/v0/auth"
    );
}

#[tokio::test]
async fn simulated_evidence_under_another_tees_name_is_refused() {
    let rig = Rig::start().await;
    let session = rig.challenge_of("/kbs/v0", "snp").await;
    let key = TeeKey::generate(Curve::P256).public();
    let evidence = rig.report(session.binding(&key)).sign();
    let attestation = rig::attestation(&session, &key, &evidence);
    // Across the two ways in, the session is not known.
    let (status, answer) = rig
        .post_to("/occlude/v0/attest", &session, &attestation)
        .await;
    assert_eq!((status, refusal(&answer)), (401, UNKNOWN_CHALLENGE));
    let session = rig.challenge_of("/kbs/v0", "snp").await;
    let attestation = rig::attestation(&session, &key, &evidence);
    let (status, answer) = rig.post_to("/kbs/v0/attest", &session, &attestation).await;
    assert_eq!(status, 401);
    assert_eq!(
        refusal(&answer),
        "the evidence is malformed: unknown field `configuration`, expected `attestation_report` \
         or `cert_chain`"
    );
}

/// A report of a real machine, with its certificate, that somebody recorded elsewhere: the
/// broker verifies it, and gives no session for it.
#[tokio::test]
async fn genuine_evidence_of_a_real_machine_for_another_session_is_refused() {
    if recorded_evidence::folder().is_none() {
        return;
    }
    let report = recorded_evidence::file("snp/report_milan.hex");
    let certificate = recorded_evidence::file("snp/vcek_milan.der");
    let report = hex::decode(report.trim_ascii()).unwrap();
    let mut body = occlude_attest::snp::evidence_of_report(&report)
        .unwrap()
        .body()
        .clone();
    body["cert_chain"] = json!([{"cert_type": "VCEK", "data": certificate}]);
    let rig = Rig::start().await;
    let key = TeeKey::generate(Curve::P256).public();
    for (evidence, refused) in [
        (body.clone(), OTHER_BINDING),
        (
            {
                body["attestation_report"]["report_data"][0] = json!(0);
                body
            },
            "bad signature: the report is not signed by the key of its certificate",
        ),
    ] {
        let session = rig.challenge_of("/kbs/v0", "snp").await;
        let evidence = Evidence::new(TeeKind::Snp, evidence);
        let attestation = rig::attestation(&session, &key, &evidence);
        let (status, answer) = rig.post_to("/kbs/v0/attest", &session, &attestation).await;
        assert_eq!((status, refusal(&answer)), (401, refused));
    }
}

#[tokio::test]
async fn a_session_goes_by_cookie_or_bearer_and_nothing_else() {
    let rig = Rig::start().await;
    let session = rig.challenge().await;
    let key = TeeKey::generate(Curve::P521);
    let evidence = rig.report(session.binding(&key.public())).sign();
    let (_, answer) = rig.attest(&session, &key.public(), &evidence).await;
    let token = answer["token"].as_str().unwrap();
    for (name, value, expected) in [
        ("authorization", format!("Bearer {token}"), 200),
        ("cookie", format!("kbs-session-id={}", session.cookie), 200),
        ("authorization", format!("Bearer {token}0"), 401),
        ("authorization", token.to_owned(), 401),
        ("cookie", "kbs-session-id=".to_owned(), 401),
        ("x-nothing", String::new(), 401),
    ] {
        let (status, answer) = rig.get_resource(&rig.path(), name, &value).await;
        assert_eq!(status, expected, "{name}: {value}");
        if expected == 200 {
            let envelope: Jwe = serde_json::from_value(answer).unwrap();
            assert_eq!(key.open(&envelope).unwrap().as_slice(), MODEL_KEY);
        } else {
            assert_eq!(refusal(&answer), NO_SESSION);
        }
    }
}

#[tokio::test]
async fn a_key_that_nothing_can_be_sealed_to_is_refused() {
    let rig = Rig::start().await;
    for key in [
        TeePubKey::RSA {
            alg: "RSA1_5".to_owned(),
            k_mod: String::new(),
            k_exp: String::new(),
        },
        TeePubKey::EC {
            crv: "P-256".to_owned(),
            alg: "ECDH-ES+A256KW".to_owned(),
            x: "AAAA".to_owned(),
            y: "AAAA".to_owned(),
        },
    ] {
        let session = rig.challenge().await;
        let evidence = rig.report(session.binding(&key)).sign();
        let (status, answer) = rig.attest(&session, &key, &evidence).await;
        assert_eq!(status, 400, "{answer}");
        let reason = refusal(&answer);
        assert!(
            reason.starts_with("the key is an RSA key")
                || reason == "the key's coordinates are not a point of P-256",
            "{reason}"
        );
    }
}

async fn every_decision_is_in_the_audit_log_and_no_key(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    rig.fetch().await.unwrap();
    rig.set_policy(&policy("a5".repeat(32))).await;
    let reason = refused(&rig).await;
    rig.post(
        "/kbs/v0/auth",
        &json!({"version": "0.4.0", "tee": "sample", "extra-params": ""}),
    )
    .await;
    let log = rig.admin.audit(&rig.owner).await.unwrap();
    let entries: Vec<Value> = log
        .entries
        .iter()
        .map(|record| serde_json::from_str(record.entry.as_ref().unwrap()).unwrap())
        .collect();
    let events: Vec<&str> = entries
        .iter()
        .map(|entry| entry["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        [
            "model-added",
            "policy-set",
            "evidence-accepted",
            "key-granted",
            "policy-set",
            "evidence-accepted",
            "key-refused",
            "request-refused",
        ]
    );
    let measurement = rig.claims().measurement().to_string();
    let granted = &entries[3];
    assert_eq!(granted["tee"], "simulated");
    assert_eq!(granted["measurement"], measurement);
    assert_eq!(granted["header-digest"], digest(7).to_string());
    let refused = &entries[6];
    assert_eq!(refused["resource"], rig.path());
    assert_eq!(refused["measurement"], measurement);
    assert_eq!(refused["reason"], reason);
    let text = format!("{log:?}");
    assert!(!text.contains(&hex::encode(MODEL_KEY)));
}
