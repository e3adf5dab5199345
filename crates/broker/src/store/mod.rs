//! The broker's database: `SQLite`, or `PostgreSQL` where one broker is outgrown.
//!
//! Keys, policies and withdrawals are sealed under the master key with their place
//! as associated data, so that whoever can write to the database cannot read a key
//! nor put one owner's policy or another version's key where it does not belong.
//! Deleting rows stays possible, and refuses: each model has a row that says what is
//! withdrawn, with the first of its keys, and without it no key is released. Nor can
//! that row, or a policy, be put back to what it was: the audit log says what they must
//! at least say, and the log's end is sealed too. A rollback of the whole database before a
//! broker starts is not noticed here. Every change is written together with its audit
//! entry, or not at all.

mod audit_rows;
mod open;

use std::collections::BTreeMap;

use occlude_keys::{HeaderDigest, ModelId, ModelKey, ModelVersion, OwnerFingerprint};
use occlude_weakening::{Weakening, is};
use sha2::{Digest, Sha256};
use sqlx::{Any, AnyConnection, AnyPool, Row, Transaction};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use audit_rows::{End, Remembered};
pub use open::StoreError;

use crate::admin::{ModelRecord, Withdrawal};
use crate::allowance::{Ledger, Reports};
use crate::audit::AuditEvent;
use crate::master_key::MasterKey;
use crate::model_key_path;

/// A database and the master key that its rows are sealed under.
#[derive(Debug)]
pub(crate) struct Store {
    pool: AnyPool,
    key: MasterKey,
    remembered: Mutex<Remembered>,
}

/// A change under way: no other one is, and the log was found to hold.
struct Change {
    transaction: Transaction<'static, Any>,
    /// Where the log ends.
    end: End,
}

/// What the store knows about one path.
#[derive(Debug)]
pub(crate) struct StoredModel {
    pub(crate) record: ModelRecord,
    /// Versions below this one are withdrawn.
    pub(crate) below_version: ModelVersion,
    /// The model's policy, or else its owner's.
    pub(crate) policy: Option<String>,
    owner: OwnerFingerprint,
    sealed_key: String,
}

impl Store {
    /// Records the key of one version; it replaces one already there.
    pub(crate) async fn add_model(
        &self,
        owner: &OwnerFingerprint,
        record: &ModelRecord,
        key: &ModelKey,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        self.first_withdrawal(&mut change.transaction, owner, &record.id)
            .await?;
        sqlx::query(
            "INSERT INTO models (owner, header_digest, model, version, sealed_key) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (owner, header_digest) DO UPDATE SET \
             model = excluded.model, version = excluded.version, sealed_key = excluded.sealed_key",
        )
        .bind(owner.to_string())
        .bind(record.header_digest.to_string())
        .bind(record.id.as_str())
        .bind(record.version.to_string())
        .bind(self.key.seal(&key_place(owner, record), key.expose()))
        .execute(&mut *change.transaction)
        .await?;
        let event = AuditEvent::ModelAdded {
            owner: *owner,
            header_digest: record.header_digest,
            model: record.id.clone(),
            version: record.version,
        };
        self.commit(change, &event).await
    }

    /// Sets the policy of one model, or of all the owner's others.
    pub(crate) async fn set_policy(
        &self,
        owner: &OwnerFingerprint,
        model: Option<&ModelId>,
        policy: &str,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        sqlx::query(
            "INSERT INTO policies (owner, model, sealed) VALUES ($1, $2, $3) \
             ON CONFLICT (owner, model) DO UPDATE SET sealed = excluded.sealed",
        )
        .bind(owner.to_string())
        .bind(model_column(model))
        .bind(
            self.key
                .seal(&policy_place(owner, model), policy.as_bytes()),
        )
        .execute(&mut *change.transaction)
        .await?;
        let event = AuditEvent::PolicySet {
            owner: *owner,
            model: model.cloned(),
            policy_digest: digest_of_policy(policy),
        };
        self.commit(change, &event).await
    }

    /// Withdraws the versions below one; never fewer than are withdrawn already.
    pub(crate) async fn withdraw(
        &self,
        owner: &OwnerFingerprint,
        model: &ModelId,
        below_version: ModelVersion,
    ) -> Result<Withdrawal, StoreError> {
        let mut change = self.begin().await?;
        let before = self
            .first_withdrawal(&mut change.transaction, owner, model)
            .await?;
        let below_version = below_version.max(before);
        self.write_withdrawal(&mut change.transaction, owner, model, below_version)
            .await?;
        let rows = sqlx::query("SELECT version FROM models WHERE owner = $1 AND model = $2")
            .bind(owner.to_string())
            .bind(model.as_str())
            .fetch_all(&mut *change.transaction)
            .await?;
        let event = AuditEvent::Withdrawn {
            owner: *owner,
            model: model.clone(),
            below_version,
        };
        self.commit(change, &event).await?;
        let mut withdrawn = Vec::new();
        for row in rows {
            let version: ModelVersion = parse_column(&row, "models", "version")?;
            if version < below_version {
                withdrawn.push(version);
            }
        }
        withdrawn.sort_unstable();
        Ok(Withdrawal {
            below_version,
            withdrawn,
        })
    }

    /// Decides about one path: `judge` sees what is recorded there, or why that is
    /// not believed, and what was allowed and reported, and gives its answer and the audit
    /// entry. The answer comes back only once the entry is written, and no order of the
    /// owner comes between.
    pub(crate) async fn decide<T>(
        &self,
        owner: &OwnerFingerprint,
        digest: &HeaderDigest,
        judge: impl FnOnce(Result<Option<&StoredModel>, &StoreError>, &Ledger) -> (T, AuditEvent),
    ) -> Result<T, StoreError> {
        let mut change = self.begin().await?;
        let model = match self.model(&mut change.transaction, owner, digest).await {
            Err(error) if !error.is_tampering() => return Err(error),
            model => model,
        };
        let remembered = self.remembered.lock().await;
        let (answer, event) = judge(model.as_ref().map(Option::as_ref), &remembered.ledger);
        drop(remembered);
        self.commit(change, &event).await?;
        Ok(answer)
    }

    /// Writes an entry about a decision that needs no record.
    pub(crate) async fn record(&self, event: &AuditEvent) -> Result<(), StoreError> {
        self.commit(self.begin().await?, event).await
    }

    /// What was reported of each model, to this broker or another on the same database.
    pub(crate) async fn reports(
        &self,
    ) -> Result<BTreeMap<(OwnerFingerprint, ModelId), Reports>, StoreError> {
        self.begin().await?.transaction.rollback().await?;
        Ok(self.remembered.lock().await.ledger.reports().clone())
    }

    /// Starts a change on a log that holds.
    async fn begin(&self) -> Result<Change, StoreError> {
        let mut transaction = self.take_turn().await?;
        let mut remembered = self.remembered.lock().await;
        let end = self.read_on(&mut transaction, &mut remembered).await?;
        Ok(Change { transaction, end })
    }

    /// Ends a change with its audit entry: both are written, or neither.
    async fn commit(&self, mut change: Change, event: &AuditEvent) -> Result<(), StoreError> {
        self.append(&mut change, event).await?;
        change.transaction.commit().await?;
        self.remembered.lock().await.follow(change.end, event);
        Ok(())
    }

    /// Writers take turns, those of other brokers on the same database too: each
    /// first takes the lock on one row.
    async fn take_turn(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("UPDATE meta SET value = value WHERE name = 'format'")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// The lowest version of a model that still gets its key; `None` if there is no
    /// row that says so.
    async fn below_version(
        &self,
        connection: &mut AnyConnection,
        owner: &OwnerFingerprint,
        model: &ModelId,
    ) -> Result<Option<ModelVersion>, StoreError> {
        const TABLE: &str = "withdrawals";
        let row = sqlx::query("SELECT sealed FROM withdrawals WHERE owner = $1 AND model = $2")
            .bind(owner.to_string())
            .bind(model.as_str())
            .fetch_optional(connection)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let place = withdrawal_place(owner, model);
        let below_version: ModelVersion = self
            .open_text(TABLE, &place, row.try_get("sealed")?)?
            .parse()
            .map_err(|_| StoreError::Malformed {
                table: TABLE,
                column: "sealed",
            })?;
        if below_version < self.remembered.lock().await.below_version(&place) {
            return Err(StoreError::Outdated { table: TABLE });
        }
        Ok(Some(below_version))
    }

    /// The same for a model that may be new: there, what the log says is written.
    async fn first_withdrawal(
        &self,
        connection: &mut AnyConnection,
        owner: &OwnerFingerprint,
        model: &ModelId,
    ) -> Result<ModelVersion, StoreError> {
        if let Some(found) = self.below_version(connection, owner, model).await? {
            return Ok(found);
        }
        let recorded = sqlx::query("SELECT 1 FROM models WHERE owner = $1 AND model = $2 LIMIT 1")
            .bind(owner.to_string())
            .bind(model.as_str())
            .fetch_optional(&mut *connection)
            .await?;
        if recorded.is_some() {
            return Err(StoreError::Missing {
                table: "withdrawals",
            });
        }
        let place = withdrawal_place(owner, model);
        let below_version = self.remembered.lock().await.below_version(&place);
        self.write_withdrawal(connection, owner, model, below_version)
            .await?;
        Ok(below_version)
    }

    async fn write_withdrawal(
        &self,
        connection: &mut AnyConnection,
        owner: &OwnerFingerprint,
        model: &ModelId,
        below_version: ModelVersion,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO withdrawals (owner, model, sealed) VALUES ($1, $2, $3) \
             ON CONFLICT (owner, model) DO UPDATE SET sealed = excluded.sealed",
        )
        .bind(owner.to_string())
        .bind(model.as_str())
        .bind(self.key.seal(
            &withdrawal_place(owner, model),
            below_version.to_string().as_bytes(),
        ))
        .execute(connection)
        .await?;
        Ok(())
    }

    /// What is known about one path, its key still sealed.
    async fn model(
        &self,
        connection: &mut AnyConnection,
        owner: &OwnerFingerprint,
        digest: &HeaderDigest,
    ) -> Result<Option<StoredModel>, StoreError> {
        let row = sqlx::query(
            "SELECT model, version, sealed_key FROM models WHERE owner = $1 AND header_digest = $2",
        )
        .bind(owner.to_string())
        .bind(digest.to_string())
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let record = ModelRecord {
            id: parse_column(&row, "models", "model")?,
            version: parse_column(&row, "models", "version")?,
            header_digest: *digest,
        };
        let mut policy = self.policy(connection, owner, Some(&record.id)).await?;
        if policy.is_none() {
            policy = self.policy(connection, owner, None).await?;
        }
        Ok(Some(StoredModel {
            below_version: self
                .below_version(connection, owner, &record.id)
                .await?
                .ok_or(StoreError::Missing {
                    table: "withdrawals",
                })?,
            record,
            policy,
            owner: *owner,
            sealed_key: row.try_get("sealed_key")?,
        }))
    }

    /// Unwraps the key, only if it was sealed for this path, model and version.
    pub(crate) fn open_key(&self, model: &StoredModel) -> Result<ModelKey, StoreError> {
        let place = key_place(&model.owner, &model.record);
        let opened = self
            .key
            .open(&place, &model.sealed_key)
            .map_err(|_| StoreError::Inauthentic { table: "models" })?;
        let mut key = Zeroizing::new([0; 32]);
        if opened.len() != key.len() {
            return Err(StoreError::Malformed {
                table: "models",
                column: "sealed_key",
            });
        }
        key.copy_from_slice(&opened);
        Ok(ModelKey::new(key))
    }

    async fn policy(
        &self,
        connection: &mut AnyConnection,
        owner: &OwnerFingerprint,
        model: Option<&ModelId>,
    ) -> Result<Option<String>, StoreError> {
        const TABLE: &str = "policies";
        let row = sqlx::query("SELECT sealed FROM policies WHERE owner = $1 AND model = $2")
            .bind(owner.to_string())
            .bind(model_column(model))
            .fetch_optional(connection)
            .await?;
        let place = policy_place(owner, model);
        let policy = row.map(|row| self.open_text(TABLE, &place, row.try_get("sealed")?));
        let policy = policy.transpose()?;
        let digest = policy.as_ref().map(digest_of_policy);
        let remembered = self.remembered.lock().await;
        match (&digest, remembered.policy_digest(&place)) {
            (found, logged) if found.as_deref() == logged => Ok(policy),
            _ if is(Weakening::AnyPolicy) => Ok(policy),
            (None, _) => Err(StoreError::Missing { table: TABLE }),
            (Some(_), _) => Err(StoreError::OtherThanLogged { table: TABLE }),
        }
    }

    fn open_text(
        &self,
        table: &'static str,
        place: &str,
        sealed: &str,
    ) -> Result<String, StoreError> {
        let opened = self
            .key
            .open(place, sealed)
            .map_err(|_| StoreError::Inauthentic { table })?;
        String::from_utf8(opened.to_vec()).map_err(|_| StoreError::Malformed {
            table,
            column: "sealed",
        })
    }
}

/// The path, and the id and version, so that a row cannot pass for a version that
/// is not withdrawn. None of the parts can contain a zero byte.
fn key_place(owner: &OwnerFingerprint, record: &ModelRecord) -> String {
    format!(
        "{}\0{}\0{}",
        model_key_path(owner, &record.header_digest),
        record.id,
        record.version
    )
}

fn policy_place(owner: &OwnerFingerprint, model: Option<&ModelId>) -> String {
    format!("{owner}/policy/{}", model_column(model))
}

/// As the log has it.
fn digest_of_policy(policy: impl AsRef<str>) -> String {
    hex::encode(Sha256::digest(policy.as_ref()))
}

fn withdrawal_place(owner: &OwnerFingerprint, model: &ModelId) -> String {
    format!("{owner}/withdrawal/{model}")
}

/// No model's id is empty.
fn model_column(model: Option<&ModelId>) -> String {
    model.map_or_else(String::new, |model| model.as_str().to_owned())
}

fn parse_column<T: std::str::FromStr>(
    row: &sqlx::any::AnyRow,
    table: &'static str,
    column: &'static str,
) -> Result<T, StoreError> {
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|_| StoreError::Malformed { table, column })
}

#[cfg(test)]
mod tamper_tests;
#[cfg(test)]
mod tests;
