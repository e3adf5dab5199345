//! IBM Secure Execution, whose challenge is a request: with an ultravisor in software.

#[path = "../../../../attest/tests/support/ultravisor.rs"]
mod ultravisor;

use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use ultravisor::Ultravisor;

use super::rig::{MODEL_KEY, Rig, Session, refusal};
use crate::kbs::jwe::{Curve, Jwe, TeeKey};

/// A broker with the documents of a machine and of its image.
async fn broker(ultravisor: &Ultravisor, folder: &tempfile::TempDir) -> Rig {
    std::fs::write(folder.path().join("hkd.crt"), &ultravisor.document).unwrap();
    std::fs::write(folder.path().join("hdr.bin"), &ultravisor.header).unwrap();
    let rig = Rig::start_with_collateral(folder.path()).await;
    let image = [&ultravisor.header[0xe0..0x1a0], &ultravisor.header[0x270..]].concat();
    rig.set_policy(&format!(
        "format = 1\nreviewed = true\n[evidence]\ntee = [\"se\"]\ntrust = [\"listed-key\"]\n\
         measurements = [\"{}\"]\n[evidence.se]\nhost-keys = [\"{}\"]\n",
        hex::encode(Sha256::digest(image)),
        hex::encode(ultravisor.host_key_hash())
    ))
    .await;
    rig
}

/// What Trustee has the guest carry: SHA-512 of canonical JSON, the request being its nonce.
fn user_data(session: &Session, key: &TeeKey) -> [u8; 64] {
    let runtime = json!({
        "additional-evidence": "",
        "nonce": session.nonce,
        "tee-pubkey": key.public(),
    });
    Sha512::digest(serde_json_canonicalizer::to_vec(&runtime).unwrap()).into()
}

fn attestation(session: &Session, key: &TeeKey, evidence: &Value) -> Value {
    json!({
        "runtime-data": {"nonce": session.nonce, "tee-pubkey": key.public()},
        "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
    })
}

#[tokio::test]
async fn an_ultravisor_that_answers_the_brokers_request_gets_the_key() {
    let (ultravisor, folder) = (Ultravisor::new(1, 1), tempfile::tempdir().unwrap());
    let rig = broker(&ultravisor, &folder).await;
    let request = json!({"version": "0.4.0", "tee": "se", "extra-params": ""});
    let (_, answer) = rig.post("/kbs/v0/auth", &request).await;
    assert_eq!(answer["extra-params"]["selected-hash-algorithm"], "sha512");
    let session = rig.challenge_of("/kbs/v0", "se").await;
    let key = TeeKey::generate(Curve::P256);
    let evidence = ultravisor.answer(&session.nonce, &user_data(&session, &key));
    let body = attestation(&session, &key, &evidence);
    let (status, answer) = rig.post_to("/kbs/v0/attest", &session, &body).await;
    assert_eq!(status, 200, "{answer}");
    let (status, sealed) = rig.resource(&session, &rig.path()).await;
    assert_eq!(status, 200, "{sealed}");
    let sealed: Jwe = serde_json::from_value(sealed).unwrap();
    assert_eq!(key.open(&sealed).unwrap().as_slice(), MODEL_KEY);
}

#[tokio::test]
async fn answers_for_another_key_session_or_image_get_none() {
    let (ultravisor, folder) = (Ultravisor::new(1, 1), tempfile::tempdir().unwrap());
    let rig = broker(&ultravisor, &folder).await;
    let (key, other) = (TeeKey::generate(Curve::P256), TeeKey::generate(Curve::P256));
    let refused = async |answered: &Session, evidence: Value| {
        let body = attestation(answered, &key, &evidence);
        let (status, answer) = rig.post_to("/kbs/v0/attest", answered, &body).await;
        assert_eq!(status, 401);
        refusal(&answer).to_owned()
    };
    const OTHER_BINDING: &str =
        "binding mismatch: the evidence was made for another nonce or another statement";

    let session = rig.challenge_of("/kbs/v0", "se").await;
    let evidence = ultravisor.answer(&session.nonce, &user_data(&session, &other));
    assert_eq!(refused(&session, evidence).await, OTHER_BINDING);

    // An answer to this broker's request of another session.
    let (one, two) = (
        rig.challenge_of("/kbs/v0", "se").await,
        rig.challenge_of("/kbs/v0", "se").await,
    );
    let evidence = ultravisor.answer(&one.nonce, &user_data(&one, &key));
    assert_eq!(refused(&two, evidence).await, OTHER_BINDING);

    let mut changed = Ultravisor::new(1, 2);
    let session = rig.challenge_of("/kbs/v0", "se").await;
    let evidence = changed.answer(&session.nonce, &user_data(&session, &key));
    assert_eq!(
        refused(&session, evidence).await,
        "bad signature: the answer is not signed by an ultravisor that started an image of the \
         collateral"
    );

    // It is known here, and the policy does not list what opened it.
    changed = Ultravisor::new(1, 1);
    changed.image_host_key = Some([0x99; 32]);
    let session = rig.challenge_of("/kbs/v0", "se").await;
    let evidence = changed.answer(&session.nonce, &user_data(&session, &key));
    let body = attestation(&session, &key, &evidence);
    assert_eq!(rig.post_to("/kbs/v0/attest", &session, &body).await.0, 200);
    let (status, answer) = rig.resource(&session, &rig.path()).await;
    assert_eq!(status, 403);
    assert!(refusal(&answer).contains("for se.host-keys"), "{answer}");
}

#[tokio::test]
async fn a_broker_without_the_machines_documents_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start_with_collateral(folder.path()).await;
    let request = json!({"version": "0.4.0", "tee": "se", "extra-params": ""});
    let (status, answer) = rig.post("/kbs/v0/auth", &request).await;
    assert_eq!(status, 503);
    assert_eq!(
        refusal(&answer),
        "this broker cannot challenge se: the host key document of an IBM Z machine is missing: \
         it came neither with the evidence nor is it in the collateral"
    );
}
