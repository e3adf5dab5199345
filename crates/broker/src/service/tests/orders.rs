//! Orders: by the owner, by others, recorded, altered.

use occlude_keys::{OwnerKey, OwnerPublic};
use serde_json::{Value, json};

use super::rig::{Rig, SHORT_LIFE, policy, record, refusal};
use crate::admin::{Action, AdminError, AdminRequest, SignedRequest};
use crate::test_databases::{TestDatabase, on_both_databases};

const UNKNOWN_CHALLENGE: &str = "the order's challenge is unknown, used or expired";

async fn withdrawal(rig: &Rig) -> AdminRequest {
    let (_, answer) = rig.post("/occlude/v0/admin/challenge", &Value::Null).await;
    AdminRequest {
        challenge: answer["challenge"].as_str().unwrap().to_owned(),
        owner: rig.fingerprint(),
        action: Action::Withdraw {
            model: record().id,
            below_version: 2,
        },
    }
}

async fn send(rig: &Rig, signed: &SignedRequest) -> (u16, Value) {
    let body = serde_json::to_value(signed).unwrap();
    rig.post("/occlude/v0/admin", &body).await
}

on_both_databases! {
    a_foreign_owners_order_is_refused_and_changes_nothing,
    a_foreign_owner_with_the_same_model_id_withdraws_its_own_only,
    an_order_with_a_wrong_signature_is_refused,
    a_replayed_order_is_refused,
    another_challenge_does_not_use_up_the_owners,
    refused_orders_are_in_the_audit_log_and_heads_extend_each_other,
}

/// The honest server still gets its key: no order was carried out.
async fn assert_untouched(rig: &Rig) {
    rig.fetch().await.unwrap();
}

async fn a_foreign_owners_order_is_refused_and_changes_nothing(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let foreign = OwnerKey::generate();
    let signed = SignedRequest::sign(&withdrawal(&rig).await, &foreign);
    let (status, answer) = send(&rig, &signed).await;
    assert_eq!(status, 403);
    assert_eq!(
        refusal(&answer),
        format!(
            "{} orders about records of {}: only their owner can",
            foreign.public().fingerprint(),
            rig.fingerprint()
        )
    );
    assert_untouched(&rig).await;
}

async fn a_foreign_owner_with_the_same_model_id_withdraws_its_own_only(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let foreign = OwnerKey::generate();
    let withdrawn = rig.admin.withdraw(&foreign, &record().id, 2).await.unwrap();
    assert!(withdrawn.withdrawn.is_empty());
    let other = policy("a5".repeat(32));
    rig.admin.set_policy(&foreign, None, &other).await.unwrap();
    assert_untouched(&rig).await;
}

async fn an_order_with_a_wrong_signature_is_refused(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let mut signed = SignedRequest::sign(&withdrawal(&rig).await, &OwnerKey::generate());
    let owner: OwnerPublic = rig.owner.public();
    signed.owner = owner;
    let (status, answer) = send(&rig, &signed).await;
    assert_eq!(
        (status, refusal(&answer)),
        (401, "the owner's signature does not hold")
    );
    assert_untouched(&rig).await;
}

async fn a_replayed_order_is_refused(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let (_, answer) = rig.post("/occlude/v0/admin/challenge", &Value::Null).await;
    let order = AdminRequest {
        challenge: answer["challenge"].as_str().unwrap().to_owned(),
        owner: rig.fingerprint(),
        action: Action::SetPolicy {
            model: None,
            policy: policy("a5".repeat(32)),
        },
    };
    let signed = SignedRequest::sign(&order, &rig.owner);
    assert_eq!(send(&rig, &signed).await.0, 200);
    // The owner thinks better of it; an attacker sends the recorded order again.
    rig.set_policy(&policy(rig.claims().measurement())).await;
    let (status, answer) = send(&rig, &signed).await;
    assert_eq!((status, refusal(&answer)), (401, UNKNOWN_CHALLENGE));
    assert_untouched(&rig).await;
}

#[tokio::test]
async fn an_order_with_a_stale_or_made_up_challenge_is_refused() {
    let rig = Rig::start_with_short_lives().await;
    let stale = withdrawal(&rig).await;
    tokio::time::sleep(SHORT_LIFE).await;
    let made_up = AdminRequest {
        challenge: "00".repeat(32),
        ..withdrawal(&rig).await
    };
    for order in [stale, made_up] {
        let (status, answer) = send(&rig, &SignedRequest::sign(&order, &rig.owner)).await;
        assert_eq!((status, refusal(&answer)), (401, UNKNOWN_CHALLENGE));
    }
}

async fn another_challenge_does_not_use_up_the_owners(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let order = withdrawal(&rig).await;
    let mut forged = SignedRequest::sign(&order, &OwnerKey::generate());
    forged.owner = rig.owner.public();
    assert_eq!(send(&rig, &forged).await.0, 401);
    let signed = SignedRequest::sign(&order, &rig.owner);
    assert_eq!(
        send(&rig, &signed).await,
        (200, json!({"below-version": 2, "withdrawn": [1]}))
    );
}

#[tokio::test]
async fn a_text_that_is_no_policy_is_refused() {
    let rig = Rig::start().await;
    let refused = rig
        .admin
        .set_policy(&rig.owner, None, "format = 1\nsurprise = true\n")
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, AdminError::Refused { reason } if reason.contains("surprise")),
        "{refused}"
    );
    assert_untouched(&rig).await;
}

async fn refused_orders_are_in_the_audit_log_and_heads_extend_each_other(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let before = rig.admin.audit(&rig.owner).await.unwrap();
    let mut signed = SignedRequest::sign(&withdrawal(&rig).await, &OwnerKey::generate());
    signed.owner = rig.owner.public();
    send(&rig, &signed).await;
    let after = rig.admin.audit(&rig.owner).await.unwrap();
    assert_eq!(after.extends(&before.head), Ok(()));
    let last: Value =
        serde_json::from_str(after.entries.last().unwrap().entry.as_ref().unwrap()).unwrap();
    assert_eq!(last["event"], "order-refused");
    assert_eq!(last["reason"], "the owner's signature does not hold");
    let foreign = rig.admin.audit(&OwnerKey::generate()).await.unwrap();
    assert!(foreign.entries.iter().all(|record| record.entry.is_none()));
}
