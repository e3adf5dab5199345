//! What a writer to the database cannot do unnoticed: undo a withdrawal, or
//! write the audit log anew.

use super::*;
use crate::audit::{AuditError, AuditRecord, GENESIS};
use crate::test_databases::{TestDatabase, on_both_databases};

on_both_databases! {
    a_deleted_withdrawal_is_missed_and_not_taken_for_none,
    a_withdrawal_put_back_to_an_older_value_is_noticed,
    a_withdrawal_survives_the_deletion_of_all_that_is_known_of_its_model,
    a_policy_put_back_to_an_earlier_one_is_noticed,
    a_deleted_policy_is_missed_and_its_owners_does_not_hold_instead,
    a_recomputed_chain_is_noticed_at_open,
    a_recomputed_chain_gets_no_further_entry_and_no_signed_head,
    a_log_cut_is_not_that_of_its_sealed_head,
    a_log_lengthened_is_not_that_of_its_sealed_head,
    a_forged_or_missing_head_is_refused,
    an_older_whole_is_noticed_while_the_broker_runs,
}

/// A broker whose database an attacker can write.
struct Victim {
    database: TestDatabase,
    store: Store,
}

impl Victim {
    async fn new(database: TestDatabase) -> Self {
        let store = database.open().await;
        Self { database, store }
    }

    async fn run(&self, statement: &'static str) {
        sqlx::query(statement)
            .execute(&self.store.pool)
            .await
            .unwrap();
    }

    /// Stops the broker and starts another one over the same database.
    async fn reopen(&self) -> Result<Store, StoreError> {
        self.store.pool.close().await;
        self.database.try_open().await
    }

    async fn add(&self, version: ModelVersion) {
        let record = ModelRecord {
            id: digits(),
            version,
            header_digest: digest(version),
        };
        let key = ModelKey::new(Zeroizing::new([9; 32]));
        self.store.add_model(&owner(), &record, &key).await.unwrap();
    }

    async fn set_policy(&self, model: Option<&ModelId>, policy: &str) {
        let owner = owner();
        let set = self.store.set_policy(&owner, model, policy);
        set.await.unwrap();
    }

    async fn lowest(&self, version: ModelVersion) -> Result<ModelVersion, String> {
        lowest(&self.store, version).await
    }
}

/// The lowest version that still gets its key, as a decision sees it.
async fn lowest(store: &Store, version: ModelVersion) -> Result<ModelVersion, String> {
    store
        .decide(&owner(), &digest(version), |model, _| {
            let lowest = model.map(|model| model.unwrap().below_version);
            (lowest.map_err(ToString::to_string), event("decided"))
        })
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

fn owner() -> OwnerFingerprint {
    OwnerFingerprint::from([1; 32])
}

fn digits() -> ModelId {
    "digits".parse().unwrap()
}

fn digest(version: ModelVersion) -> HeaderDigest {
    HeaderDigest::from([u8::try_from(version).unwrap(); 32])
}

fn event(reason: &str) -> AuditEvent {
    AuditEvent::EvidenceRefused {
        tee: occlude_attest::TeeKind::Simulated,
        reason: reason.to_owned(),
    }
}

const MISSING: &str = "a row of the table withdrawals is missing";
const OTHER: &str = "a row of the table policies is not the one that the audit log names";
const OLD: &str = "a row of the table withdrawals is older than the audit log says";

async fn a_deleted_withdrawal_is_missed_and_not_taken_for_none(database: TestDatabase) {
    let victim = Victim::new(database).await;
    victim.add(1).await;
    assert_eq!(victim.lowest(1).await, Ok(0));
    victim.store.withdraw(&owner(), &digits(), 2).await.unwrap();
    assert_eq!(victim.lowest(1).await, Ok(2));
    victim.run("DELETE FROM withdrawals").await;
    assert_eq!(victim.lowest(1).await, Err(MISSING.to_owned()));
    let missed = victim.store.withdraw(&owner(), &digits(), 3).await;
    assert!(
        matches!(
            missed,
            Err(StoreError::Missing {
                table: "withdrawals"
            })
        ),
        "{missed:?}"
    );
    let store = victim.reopen().await.unwrap();
    assert_eq!(lowest(&store, 1).await, Err(MISSING.to_owned()));
}

async fn a_withdrawal_put_back_to_an_older_value_is_noticed(database: TestDatabase) {
    let victim = Victim::new(database).await;
    victim.add(1).await;
    victim
        .run("INSERT INTO meta (name, value) SELECT 'kept', sealed FROM withdrawals")
        .await;
    victim.store.withdraw(&owner(), &digits(), 2).await.unwrap();
    victim
        .run("UPDATE withdrawals SET sealed = (SELECT value FROM meta WHERE name = 'kept')")
        .await;
    assert_eq!(victim.lowest(1).await, Err(OLD.to_owned()));
    let store = victim.reopen().await.unwrap();
    assert_eq!(lowest(&store, 1).await, Err(OLD.to_owned()));
}

async fn a_withdrawal_survives_the_deletion_of_all_that_is_known_of_its_model(
    database: TestDatabase,
) {
    let victim = Victim::new(database).await;
    victim.add(1).await;
    victim.store.withdraw(&owner(), &digits(), 2).await.unwrap();
    for statement in [
        "CREATE TABLE kept AS SELECT * FROM models",
        "DELETE FROM models",
        "DELETE FROM withdrawals",
    ] {
        victim.run(statement).await;
    }
    victim.add(3).await;
    victim.run("INSERT INTO models SELECT * FROM kept").await;
    assert_eq!(victim.lowest(1).await, Ok(2));
}

/// The policy that a decision about version 1 goes by.
async fn policy_of(store: &Store) -> Result<Option<String>, String> {
    store
        .decide(&owner(), &digest(1), |model, _| {
            let policy = model.map(|model| model.unwrap().policy.clone());
            (policy.map_err(ToString::to_string), event("decided"))
        })
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

async fn a_policy_put_back_to_an_earlier_one_is_noticed(database: TestDatabase) {
    let victim = Victim::new(database).await;
    victim.add(1).await;
    for model in [None, Some(digits())] {
        let model = model.as_ref();
        victim.set_policy(model, "first").await;
        victim
            .run("CREATE TABLE kept AS SELECT * FROM policies")
            .await;
        victim.set_policy(model, "second").await;
        assert_eq!(
            policy_of(&victim.store).await,
            Ok(Some("second".to_owned()))
        );
        victim
            .run(
                "UPDATE policies SET sealed = \
                 (SELECT sealed FROM kept WHERE kept.model = policies.model)",
            )
            .await;
        assert_eq!(policy_of(&victim.store).await, Err(OTHER.to_owned()));
        victim.set_policy(model, "third").await;
        assert_eq!(policy_of(&victim.store).await, Ok(Some("third".to_owned())));
        victim.run("DROP TABLE kept").await;
    }
    victim
        .run("CREATE TABLE kept AS SELECT * FROM policies")
        .await;
    victim.set_policy(Some(&digits()), "fourth").await;
    victim.run("DELETE FROM policies").await;
    victim.run("INSERT INTO policies SELECT * FROM kept").await;
    let store = victim.reopen().await.unwrap();
    assert_eq!(policy_of(&store).await, Err(OTHER.to_owned()));
}

async fn a_deleted_policy_is_missed_and_its_owners_does_not_hold_instead(database: TestDatabase) {
    let victim = Victim::new(database).await;
    victim.add(1).await;
    assert_eq!(policy_of(&victim.store).await, Ok(None));
    victim.set_policy(None, "lenient").await;
    victim.set_policy(Some(&digits()), "strict").await;
    victim
        .run("DELETE FROM policies WHERE model = 'digits'")
        .await;
    assert_eq!(
        policy_of(&victim.store).await,
        Err("a row of the table policies is missing".to_owned())
    );
}

/// Writes the whole log anew without its second entry, every hash right.
async fn rewrite(store: &Store) {
    let rows = sqlx::query("SELECT entry FROM audit ORDER BY sequence")
        .fetch_all(&store.pool)
        .await
        .unwrap();
    sqlx::query("DELETE FROM audit")
        .execute(&store.pool)
        .await
        .unwrap();
    let mut previous = GENESIS;
    let kept = rows.iter().enumerate().filter(|(index, _)| *index != 1);
    for (sequence, (_, row)) in (1..).zip(kept) {
        let entry: serde_json::Value =
            serde_json::from_str(row.try_get::<&str, _>("entry").unwrap()).unwrap();
        let time = occlude_attest::UnixTime(entry["time"].as_u64().unwrap());
        let event = serde_json::from_value(entry).unwrap();
        let record = AuditRecord::following(&previous, sequence, time, &event);
        previous = record.hash;
        sqlx::query("INSERT INTO audit (sequence, entry, digest, hash) VALUES ($1, $2, $3, $4)")
            .bind(i64::try_from(sequence).unwrap())
            .bind(record.entry.unwrap())
            .bind(hex::encode(record.digest))
            .bind(hex::encode(record.hash))
            .execute(&store.pool)
            .await
            .unwrap();
    }
}

async fn three_entries(database: TestDatabase) -> Victim {
    let victim = Victim::new(database).await;
    for reason in ["first", "second", "third"] {
        victim.store.record(&event(reason)).await.unwrap();
    }
    victim
}

fn audit_error<T: std::fmt::Debug>(result: Result<T, StoreError>) -> AuditError {
    match result {
        Err(StoreError::Audit(error)) => error,
        other => panic!("expected an audit error, found {other:?}"),
    }
}

async fn a_recomputed_chain_is_noticed_at_open(database: TestDatabase) {
    let victim = three_entries(database).await;
    rewrite(&victim.store).await;
    assert_eq!(
        audit_error(victim.reopen().await),
        AuditError::NotTheHead {
            found: 2,
            expected: 3
        }
    );
}

async fn a_recomputed_chain_gets_no_further_entry_and_no_signed_head(database: TestDatabase) {
    let victim = three_entries(database).await;
    victim.store.verify_audit().await.unwrap();
    rewrite(&victim.store).await;
    let rolled_back = AuditError::RolledBack { sequence: 3 };
    let appended = victim.store.record(&event("fourth")).await;
    assert_eq!(audit_error(appended), rolled_back);
    let page = victim.store.audit_page(1, &owner()).await;
    assert_eq!(audit_error(page), rolled_back);
    let decided = victim.lowest(1).await;
    assert_eq!(
        decided,
        Err(StoreError::from(rolled_back).to_string()),
        "no key without its entry"
    );
}

async fn a_log_cut_is_not_that_of_its_sealed_head(database: TestDatabase) {
    let victim = three_entries(database).await;
    victim.run("DELETE FROM audit WHERE sequence = 3").await;
    assert_eq!(
        audit_error(victim.reopen().await),
        AuditError::NotTheHead {
            found: 2,
            expected: 3
        }
    );
}

async fn a_log_lengthened_is_not_that_of_its_sealed_head(database: TestDatabase) {
    let victim = three_entries(database).await;
    victim
        .run("CREATE TABLE kept AS SELECT * FROM meta WHERE name = 'audit-head'")
        .await;
    victim.store.record(&event("fourth")).await.unwrap();
    victim
        .run("UPDATE meta SET value = (SELECT value FROM kept) WHERE name = 'audit-head'")
        .await;
    assert_eq!(
        audit_error(victim.reopen().await),
        AuditError::NotTheHead {
            found: 4,
            expected: 3
        }
    );
}

async fn a_forged_or_missing_head_is_refused(database: TestDatabase) {
    let victim = three_entries(database).await;
    for (statement, expected) in [
        (
            "UPDATE meta SET value = 'AAAA' WHERE name = 'audit-head'",
            "a row of the table meta is not authentic at its place",
        ),
        (
            "DELETE FROM meta WHERE name = 'audit-head'",
            "a row of the table meta is missing",
        ),
    ] {
        victim.run(statement).await;
        let appended = victim.store.record(&event("fourth")).await.unwrap_err();
        assert_eq!(appended.to_string(), expected);
        let opened = victim.database.try_open().await.unwrap_err();
        assert_eq!(opened.to_string(), expected);
    }
}

async fn an_older_whole_is_noticed_while_the_broker_runs(database: TestDatabase) {
    let victim = three_entries(database).await;
    for statement in [
        "CREATE TABLE kept_head AS SELECT * FROM meta",
        "CREATE TABLE kept_log AS SELECT * FROM audit",
    ] {
        victim.run(statement).await;
    }
    victim.store.record(&event("fourth")).await.unwrap();
    victim.store.record(&event("fifth")).await.unwrap();
    for statement in [
        "DELETE FROM audit",
        "INSERT INTO audit SELECT * FROM kept_log",
        "DELETE FROM meta",
        "INSERT INTO meta SELECT * FROM kept_head",
    ] {
        victim.run(statement).await;
    }
    let appended = victim.store.record(&event("sixth")).await;
    assert_eq!(
        audit_error(appended),
        AuditError::RolledBack { sequence: 5 }
    );
    // What was exported before is the only witness once the broker starts anew.
    victim.reopen().await.unwrap();
}
