//! What is asked for when somebody wrote to the database: refused, and written down.

use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use occlude_attest::{Attester, Binding, ConfigurationDigest, TeeKind, UnixTime, Verifier};
use occlude_keys::{HeaderDigest, ModelKey, OwnerKey};
use serde_json::Value;
use zeroize::Zeroizing;

use super::flood_tests::Flooded;
use super::{Attested, lock};
use crate::kbs::jwe::{Curve, RecipientKey, TeeKey};
use crate::{Action, AdminRequest, ModelRecord, SignedRequest, model_key_path};

/// A session as accepted evidence opens it.
fn attested() -> Attested {
    let configuration = ConfigurationDigest::from([3; 32]);
    let attester = Attester::open(TeeKind::Simulated, configuration).unwrap();
    let binding = Binding::from([1; 64]);
    let evidence = attester.collect(&binding).unwrap();
    let public = TeeKey::generate(Curve::P256).public();
    Attested::new(
        Verifier::default()
            .verify(&evidence, &binding, UnixTime::now())
            .unwrap(),
        RecipientKey::try_from(&public).unwrap(),
    )
}

#[tokio::test]
async fn without_a_withdrawals_row_no_key_and_no_order_and_both_are_in_the_log() {
    const MISSING: &str =
        "the broker does not believe its record: a row of the table withdrawals is missing";
    let broker = Flooded::start().await;
    let store = &broker.broker.store;
    let key = OwnerKey::generate();
    let owner = key.public().fingerprint();
    let record = ModelRecord {
        id: "digits".parse().unwrap(),
        version: 1,
        header_digest: HeaderDigest::from([7; 32]),
    };
    let model_key = ModelKey::new(Zeroizing::new([9; 32]));
    store.add_model(&owner, &record, &model_key).await.unwrap();
    let attested = attested();
    let policy = format!(
        "format = 1\nreviewed = true\n[evidence]\ntee = [\"simulated\"]\n\
         trust = [\"simulated\"]\nmeasurements = [\"{}\"]\n",
        attested.claims.measurement()
    );
    store.set_policy(&owner, None, &policy).await.unwrap();
    let cookie = lock(&broker.broker.sessions)
        .insert(Arc::new(attested), Instant::now())
        .unwrap();
    let path = format!(
        "/kbs/v0/resource/{}",
        model_key_path(&owner, &record.header_digest)
    );
    let (status, ..) = broker.send("GET", &path, &cookie, &Value::Null).await;
    assert_eq!(status, StatusCode::OK);

    let url = format!("sqlite://{}/broker.db", broker.folder.path().display());
    let database = sqlx::AnyPool::connect(&url).await.unwrap();
    sqlx::query("DELETE FROM withdrawals")
        .execute(&database)
        .await
        .unwrap();

    let (status, answer, _) = broker.send("GET", &path, &cookie, &Value::Null).await;
    assert_eq!(
        (status, answer["detail"].as_str()),
        (StatusCode::FORBIDDEN, Some(MISSING))
    );
    let challenge = lock(&broker.broker.orders)
        .insert((), Instant::now())
        .unwrap();
    let order = AdminRequest {
        challenge,
        owner,
        action: Action::Withdraw {
            model: record.id,
            below_version: 2,
        },
    };
    let order = serde_json::to_value(SignedRequest::sign(&order, &key)).unwrap();
    let (status, answer, _) = broker.send("POST", "/occlude/v0/admin", "", &order).await;
    assert_eq!(
        (status, answer["detail"].as_str()),
        (StatusCode::FORBIDDEN, Some(MISSING))
    );
    let page = store.audit_page(1, &owner).await.unwrap();
    let refused: Vec<Value> = page.entries[3..]
        .iter()
        .map(|record| serde_json::from_str(record.entry.as_deref().unwrap()).unwrap())
        .collect();
    let events: Vec<_> = refused.iter().map(|entry| &entry["event"]).collect();
    assert_eq!(events, ["key-refused", "order-refused"]);
    assert!(refused.iter().all(|entry| entry["reason"] == MISSING));
}
