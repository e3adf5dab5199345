//! The store over both databases, and its files.

use super::*;
use crate::audit::{AuditError, AuditExport};
use crate::master_key::MasterKeyError;
use crate::test_databases::{TestDatabase, on_both_databases};

fn owner(number: u8) -> OwnerFingerprint {
    OwnerFingerprint::from([number; 32])
}

fn digest(number: u8) -> HeaderDigest {
    HeaderDigest::from([number; 32])
}

fn id(text: &str) -> ModelId {
    text.parse().unwrap()
}

fn record(model: &str, version: ModelVersion, number: u8) -> ModelRecord {
    ModelRecord {
        id: id(model),
        version,
        header_digest: digest(number),
    }
}

fn key(number: u8) -> ModelKey {
    ModelKey::new(Zeroizing::new([number; 32]))
}

fn refused_event() -> AuditEvent {
    AuditEvent::EvidenceRefused {
        tee: occlude_attest::TeeKind::Simulated,
        reason: "reason".to_owned(),
    }
}

impl Store {
    async fn known(
        &self,
        owner: &OwnerFingerprint,
        digest: &HeaderDigest,
    ) -> Result<Option<StoredModel>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        self.model(&mut connection, owner, digest).await
    }

    async fn run(&self, statement: &'static str) {
        sqlx::query(statement).execute(&self.pool).await.unwrap();
    }
}

on_both_databases! {
    a_key_comes_back_with_its_record,
    a_key_added_again_replaces_the_one_before,
    a_models_own_policy_goes_before_its_owners,
    a_withdrawal_only_ever_rises_and_is_its_owners,
    keys_swapped_between_paths_are_refused,
    a_key_under_another_version_or_id_is_refused,
    a_policy_moved_to_another_owner_is_refused,
    a_withdrawal_taken_from_another_model_is_refused,
    every_change_has_its_entry_and_foreign_ones_show_nothing,
    a_log_longer_than_a_page_is_read_from_anywhere,
    a_tampered_audit_table_is_detected,
    writers_at_once_make_one_chain,
}

async fn a_key_comes_back_with_its_record(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", u64::MAX, 7), &key(9))
        .await
        .unwrap();
    let known = store.known(&owner(1), &digest(7)).await.unwrap().unwrap();
    assert_eq!(known.record, record("digits", u64::MAX, 7));
    assert_eq!((known.below_version, known.policy.as_deref()), (0, None));
    assert_eq!(store.open_key(&known).unwrap().expose(), &[9; 32]);
    assert!(store.known(&owner(2), &digest(7)).await.unwrap().is_none());
    assert!(store.known(&owner(1), &digest(8)).await.unwrap().is_none());
}

async fn a_key_added_again_replaces_the_one_before(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(8))
        .await
        .unwrap();
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    let known = store.known(&owner(1), &digest(7)).await.unwrap().unwrap();
    assert_eq!(store.open_key(&known).unwrap().expose(), &[9; 32]);
}

async fn a_models_own_policy_goes_before_its_owners(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    store.set_policy(&owner(2), None, "foreign").await.unwrap();
    assert_eq!(
        store
            .known(&owner(1), &digest(7))
            .await
            .unwrap()
            .unwrap()
            .policy,
        None
    );
    store.set_policy(&owner(1), None, "general").await.unwrap();
    store
        .set_policy(&owner(1), Some(&id("other")), "other")
        .await
        .unwrap();
    let known = store.known(&owner(1), &digest(7)).await.unwrap().unwrap();
    assert_eq!(known.policy.as_deref(), Some("general"));
    store
        .set_policy(&owner(1), Some(&id("digits")), "first")
        .await
        .unwrap();
    store
        .set_policy(&owner(1), Some(&id("digits")), "own")
        .await
        .unwrap();
    let known = store.known(&owner(1), &digest(7)).await.unwrap().unwrap();
    assert_eq!(known.policy.as_deref(), Some("own"));
}

async fn a_withdrawal_only_ever_rises_and_is_its_owners(database: TestDatabase) {
    let store = database.open().await;
    for version in [3, 1, 2] {
        let record = record("digits", version, version as u8);
        store.add_model(&owner(1), &record, &key(9)).await.unwrap();
    }
    store
        .add_model(&owner(2), &record("digits", 1, 1), &key(9))
        .await
        .unwrap();
    let expected = Withdrawal {
        below_version: 3,
        withdrawn: vec![1, 2],
    };
    assert_eq!(
        store.withdraw(&owner(1), &id("digits"), 3).await.unwrap(),
        expected
    );
    assert_eq!(
        store.withdraw(&owner(1), &id("digits"), 2).await.unwrap(),
        expected
    );
    let known = store.known(&owner(1), &digest(1)).await.unwrap().unwrap();
    assert_eq!(known.below_version, 3);
    let foreign = store.known(&owner(2), &digest(1)).await.unwrap().unwrap();
    assert_eq!(foreign.below_version, 0);
}

async fn keys_swapped_between_paths_are_refused(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    store
        .add_model(&owner(1), &record("digits", 2, 8), &key(10))
        .await
        .unwrap();
    for statement in [
        "INSERT INTO meta (name, value) SELECT 'kept', sealed_key FROM models WHERE version = '1'",
        "UPDATE models SET sealed_key = (SELECT other.sealed_key FROM models AS other \
         WHERE other.version = '2') WHERE version = '1'",
        "UPDATE models SET sealed_key = (SELECT value FROM meta WHERE name = 'kept') \
         WHERE version = '2'",
    ] {
        store.run(statement).await;
    }
    for number in [7, 8] {
        let known = store
            .known(&owner(1), &digest(number))
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(
            store.open_key(&known),
            Err(StoreError::Inauthentic { table: "models" })
        ));
    }
}

async fn a_key_under_another_version_or_id_is_refused(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    store.run("UPDATE models SET version = '5'").await;
    let known = store.known(&owner(1), &digest(7)).await.unwrap().unwrap();
    assert!(matches!(
        store.open_key(&known),
        Err(StoreError::Inauthentic { table: "models" })
    ));
    // Where the other id has no withdrawal's row, not even the record comes back.
    store.withdraw(&owner(1), &id("digitz"), 0).await.unwrap();
    store
        .run("UPDATE models SET version = '1', model = 'digitz'")
        .await;
    let known = store.known(&owner(1), &digest(7)).await.unwrap().unwrap();
    assert!(matches!(
        store.open_key(&known),
        Err(StoreError::Inauthentic { table: "models" })
    ));
}

async fn a_policy_moved_to_another_owner_is_refused(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    store.set_policy(&owner(2), None, "foreign").await.unwrap();
    store
        .run("UPDATE policies SET owner = (SELECT owner FROM models)")
        .await;
    assert!(matches!(
        store.known(&owner(1), &digest(7)).await,
        Err(StoreError::Inauthentic { table: "policies" })
    ));
}

async fn a_withdrawal_taken_from_another_model_is_refused(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    store.withdraw(&owner(1), &id("other"), 1).await.unwrap();
    store
        .run("DELETE FROM withdrawals WHERE model = 'digits'")
        .await;
    store.run("UPDATE withdrawals SET model = 'digits'").await;
    assert!(matches!(
        store.known(&owner(1), &digest(7)).await,
        Err(StoreError::Inauthentic {
            table: "withdrawals"
        })
    ));
}

async fn every_change_has_its_entry_and_foreign_ones_show_nothing(database: TestDatabase) {
    let store = database.open().await;
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    store.set_policy(&owner(2), None, "policy").await.unwrap();
    store.withdraw(&owner(1), &id("digits"), 2).await.unwrap();
    store.record(&refused_event()).await.unwrap();
    let page = store.audit_page(1, &owner(1)).await.unwrap();
    let shown: Vec<bool> = page
        .entries
        .iter()
        .map(|record| record.entry.is_some())
        .collect();
    assert_eq!(shown, [true, false, true, true]);
    let export = AuditExport {
        entries: page.entries,
        head: page.head,
    };
    assert_eq!(export.verify(), Ok(()));
    let first = export.entries[0].parse(1).unwrap().unwrap();
    assert_eq!(
        first.event,
        AuditEvent::ModelAdded {
            owner: owner(1),
            header_digest: digest(7),
            model: id("digits"),
            version: 1,
        }
    );
    assert!(!format!("{export:?}").contains(&hex::encode([9; 32])));
}

async fn a_log_longer_than_a_page_is_read_from_anywhere(database: TestDatabase) {
    let store = database.open().await;
    for _ in 0..=audit_rows::PAGE {
        store.record(&refused_event()).await.unwrap();
    }
    store.verify_audit().await.unwrap();
    let page = store.audit_page(1, &owner(1)).await.unwrap();
    assert_eq!(page.entries.len() as i64, audit_rows::PAGE);
    let rest = store.audit_page(501, &owner(1)).await.unwrap();
    assert_eq!((rest.entries.len(), rest.head.head.sequence), (1, 501));
    assert!(
        store
            .audit_page(502, &owner(1))
            .await
            .unwrap()
            .entries
            .is_empty()
    );
}

async fn a_tampered_audit_table_is_detected(database: TestDatabase) {
    let store = database.open().await;
    for _ in 0..5 {
        store.record(&refused_event()).await.unwrap();
    }
    let tamperings = [
        (
            "UPDATE audit SET entry = REPLACE(entry, 'reason', 'season') WHERE sequence = 3",
            3,
        ),
        ("DELETE FROM audit WHERE sequence = 2", 2),
    ];
    for (statement, sequence) in tamperings {
        store.run(statement).await;
        for refused in [
            store.verify_audit().await.unwrap_err(),
            store.audit_page(1, &owner(1)).await.unwrap_err(),
        ] {
            assert!(
                matches!(
                    &refused,
                    StoreError::Audit(AuditError::Broken { sequence: found }) if *found == sequence
                ),
                "{refused}"
            );
        }
    }
}

/// Of one broker, and of two on one database.
async fn writers_at_once_make_one_chain(database: TestDatabase) {
    let stores = [database.open().await, database.open().await].map(std::sync::Arc::new);
    let writers: Vec<_> = (0..20)
        .map(|writer| {
            let store = std::sync::Arc::clone(&stores[writer % stores.len()]);
            tokio::spawn(async move { store.record(&refused_event()).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    for store in stores {
        store.verify_audit().await.unwrap();
        let page = store.audit_page(1, &owner(1)).await.unwrap();
        assert_eq!(page.entries.len(), 20);
    }
}

#[tokio::test]
async fn a_reopened_database_has_its_keys_and_the_same_audit_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.db");
    let path = path.to_str().unwrap();
    let store = Store::open(path, None).await.unwrap();
    store
        .add_model(&owner(1), &record("digits", 1, 7), &key(9))
        .await
        .unwrap();
    let broker = store
        .audit_page(1, &owner(1))
        .await
        .unwrap()
        .head
        .head
        .broker;
    store.pool.close().await;
    let store = Store::open(path, None).await.unwrap();
    let known = store.known(&owner(1), &digest(7)).await.unwrap().unwrap();
    assert_eq!(store.open_key(&known).unwrap().expose(), &[9; 32]);
    let page = store.audit_page(1, &owner(1)).await.unwrap();
    assert_eq!(page.head.head.broker, broker);
}

#[tokio::test]
async fn a_missing_or_foreign_master_key_is_refused_and_none_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.db");
    let path = path.to_str().unwrap();
    let own = folder.path().join("broker.db.master-key");
    Store::open(path, None).await.unwrap().pool.close().await;
    std::fs::rename(&own, folder.path().join("away")).unwrap();
    assert!(matches!(
        Store::open(path, None).await,
        Err(StoreError::MasterKey(MasterKeyError::Missing { path })) if path == own
    ));
    MasterKey::create(&own).unwrap();
    assert!(matches!(
        Store::open(path, None).await,
        Err(StoreError::MasterKey(MasterKeyError::OtherDatabase { path })) if path == own
    ));
}

#[tokio::test]
async fn a_broker_does_not_start_over_a_broken_audit_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.db");
    let path = path.to_str().unwrap();
    let store = Store::open(path, None).await.unwrap();
    store.record(&refused_event()).await.unwrap();
    store.run("UPDATE audit SET hash = digest").await;
    store.pool.close().await;
    assert!(matches!(
        Store::open(path, None).await,
        Err(StoreError::Audit(AuditError::Broken { sequence: 1 }))
    ));
}

#[tokio::test]
async fn others_cannot_read_the_database() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.db");
    Store::open(path.to_str().unwrap(), None).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
