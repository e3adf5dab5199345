//! The audit log in the database.
//!
//! The hashes have no key: whoever can write to the database can compute a whole
//! new chain. So the log's end is kept sealed under the master key, changed in the
//! same transaction as the log, and compared before anything is built on the log:
//! when a broker starts, before each entry, and before a head is signed. What a
//! broker has read it remembers, so that under a running broker not even an older
//! whole, its sealed end included, passes.
//!
//! The sequence number is the primary key, so that two entries can never follow the
//! same one; writers take turns before they get here.

use std::collections::HashMap;

use occlude_attest::UnixTime;
use occlude_keys::{ModelVersion, OwnerFingerprint};
use sqlx::{AnyConnection, Row};

use super::{Change, Store, StoreError, policy_place, withdrawal_place};
use crate::allowance::Ledger;
use crate::audit::{
    AuditError, AuditEvent, AuditPage, AuditRecord, GENESIS, SignedHead, verify_links,
};
use crate::master_key::MasterKey;

/// Entries of one page: about 1 MB of JSON.
pub(crate) const PAGE: i64 = 500;

/// The place of the sealed end: the name of its row, too.
pub(super) const HEAD: &str = "audit-head";

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) sequence: u64,
    pub(super) hash: [u8; 32],
}

impl End {
    pub(super) const EMPTY: Self = Self {
        sequence: 0,
        hash: GENESIS,
    };

    pub(super) fn seal(&self, key: &MasterKey) -> String {
        let text = format!("{} {}", self.sequence, hex::encode(self.hash));
        key.seal(HEAD, text.as_bytes())
    }

    fn parse(text: &str) -> Option<Self> {
        let (sequence, hash) = text.split_once(' ')?;
        let mut end = Self {
            sequence: sequence.parse().ok()?,
            hash: [0; 32],
        };
        hex::decode_to_slice(hash, &mut end.hash).ok()?;
        Some(end)
    }
}

/// What a broker remembers of the log.
#[derive(Debug)]
pub(super) struct Remembered {
    end: End,
    /// The lowest version that still gets its key, by the withdrawal's place.
    withdrawn: HashMap<String, ModelVersion>,
    /// SHA-256 of each policy, by its place.
    policies: HashMap<String, String>,
    /// Queries that were allowed, and what was reported of them.
    pub(super) ledger: Ledger,
}

impl Remembered {
    pub(super) fn nothing() -> Self {
        Self {
            end: End::EMPTY,
            withdrawn: HashMap::new(),
            policies: HashMap::new(),
            ledger: Ledger::default(),
        }
    }

    /// Whether [`Remembered::follow`] learns from an entry more than that it is there.
    fn learns(event: &AuditEvent) -> bool {
        matches!(
            event,
            AuditEvent::Withdrawn { .. }
                | AuditEvent::PolicySet { .. }
                | AuditEvent::QueriesAllowed { .. }
                | AuditEvent::UsageReported { .. }
        )
    }

    /// Takes in an entry, unless it was read already.
    pub(super) fn follow(&mut self, end: End, event: &AuditEvent) {
        if end.sequence <= self.end.sequence {
            return;
        }
        self.end = end;
        self.ledger.follow(event);
        match event {
            AuditEvent::Withdrawn {
                owner,
                model,
                below_version,
            } => {
                let place = withdrawal_place(owner, model);
                let lowest = self.withdrawn.entry(place).or_default();
                *lowest = (*lowest).max(*below_version);
            }
            AuditEvent::PolicySet {
                owner,
                model,
                policy_digest,
            } => {
                let place = policy_place(owner, model.as_ref());
                self.policies.insert(place, policy_digest.clone());
            }
            _ => {}
        }
    }

    /// What the log says at least about the withdrawal at `place`.
    pub(super) fn below_version(&self, place: &str) -> ModelVersion {
        self.withdrawn.get(place).copied().unwrap_or(0)
    }

    /// SHA-256 of the policy that the log says was set at `place` last.
    pub(super) fn policy_digest(&self, place: &str) -> Option<&str> {
        self.policies.get(place).map(String::as_str)
    }
}

impl Store {
    /// Entries from `from` on, checked, those about other owners than `viewer`
    /// as digests, and the signed head.
    pub(crate) async fn audit_page(
        &self,
        from: u64,
        viewer: &OwnerFingerprint,
    ) -> Result<AuditPage, StoreError> {
        let from = from.max(1);
        let mut change = self.begin().await?;
        let mut entries = Vec::new();
        if from <= change.end.sequence {
            let previous = end_at(&mut change.transaction, from - 1).await?;
            entries = records_after(&mut change.transaction, &previous).await?;
        }
        change.transaction.rollback().await?;
        for (sequence, record) in (from..).zip(&mut entries) {
            let foreign = record
                .parse(sequence)?
                .is_some_and(|entry| entry.event.owner().is_some_and(|owner| owner != viewer));
            if foreign {
                record.entry = None;
            }
        }
        let End { sequence, hash } = change.end;
        Ok(AuditPage {
            entries,
            head: SignedHead::sign(sequence, hash, UnixTime::now(), self.key.audit()),
        })
    }

    /// Checks the whole log, and remembers it.
    pub(crate) async fn verify_audit(&self) -> Result<(), StoreError> {
        let mut transaction = self.take_turn().await?;
        let mut remembered = Remembered::nothing();
        self.read_on(&mut transaction, &mut remembered).await?;
        transaction.rollback().await?;
        *self.remembered.lock().await = remembered;
        Ok(())
    }

    /// Reads what was written since, by this broker or another, and checks that it
    /// follows what is remembered and ends where the sealed end says.
    pub(super) async fn read_on(
        &self,
        connection: &mut AnyConnection,
        remembered: &mut Remembered,
    ) -> Result<End, StoreError> {
        let expected = self.sealed_end(connection).await?;
        let mut end = remembered.end;
        let mut learned = Vec::new();
        loop {
            let records = records_after(connection, &end).await?;
            for record in &records {
                end.sequence += 1;
                end.hash = record.hash;
                if let Some(entry) = record.parse(end.sequence)?
                    && Remembered::learns(&entry.event)
                {
                    learned.push((end, entry.event));
                }
            }
            if records.len() < PAGE as usize {
                break;
            }
        }
        if end != expected {
            return Err(AuditError::NotTheHead {
                found: end.sequence,
                expected: expected.sequence,
            }
            .into());
        }
        for (end, event) in &learned {
            remembered.follow(*end, event);
        }
        remembered.end = end;
        Ok(end)
    }

    async fn sealed_end(&self, connection: &mut AnyConnection) -> Result<End, StoreError> {
        let row = sqlx::query("SELECT value FROM meta WHERE name = $1")
            .bind(HEAD)
            .fetch_optional(connection)
            .await?
            .ok_or(StoreError::Missing { table: "meta" })?;
        let text = self.open_text("meta", HEAD, row.try_get("value")?)?;
        End::parse(&text).ok_or(StoreError::Malformed {
            table: "meta",
            column: "value",
        })
    }

    /// Writes the entry that follows the last one, and the new end.
    pub(super) async fn append(
        &self,
        change: &mut Change,
        event: &AuditEvent,
    ) -> Result<(), StoreError> {
        let sequence = change.end.sequence + 1;
        let record = AuditRecord::following(&change.end.hash, sequence, UnixTime::now(), event);
        let end = End {
            sequence,
            hash: record.hash,
        };
        sqlx::query("INSERT INTO audit (sequence, entry, digest, hash) VALUES ($1, $2, $3, $4)")
            .bind(column(sequence)?)
            .bind(record.entry.unwrap_or_default())
            .bind(hex::encode(record.digest))
            .bind(hex::encode(record.hash))
            .execute(&mut *change.transaction)
            .await?;
        sqlx::query("UPDATE meta SET value = $1 WHERE name = $2")
            .bind(end.seal(&self.key))
            .bind(HEAD)
            .execute(&mut *change.transaction)
            .await?;
        change.end = end;
        Ok(())
    }
}

/// The records after `end`, checked, at most a page of them.
async fn records_after(
    connection: &mut AnyConnection,
    end: &End,
) -> Result<Vec<AuditRecord>, StoreError> {
    let rows = sqlx::query(
        "SELECT sequence, entry, digest, hash FROM audit WHERE sequence >= $1 \
         ORDER BY sequence LIMIT $2",
    )
    .bind(column(end.sequence)?)
    .bind(PAGE + i64::from(end.sequence > 0))
    .fetch_all(connection)
    .await?;
    let mut rows = rows.iter();
    if end.sequence > 0 {
        let still_there = match rows.next() {
            Some(row) => {
                row.try_get::<i64, _>("sequence")? == column(end.sequence)?
                    && digest_column(row, "hash")? == end.hash
            }
            None => false,
        };
        if !still_there {
            return Err(AuditError::RolledBack {
                sequence: end.sequence,
            }
            .into());
        }
    }
    let mut records = Vec::with_capacity(rows.len());
    for (sequence, row) in (end.sequence + 1..).zip(rows) {
        if row.try_get::<i64, _>("sequence")? != column(sequence)? {
            return Err(AuditError::Broken { sequence }.into());
        }
        records.push(AuditRecord {
            entry: Some(row.try_get("entry")?),
            digest: digest_column(row, "digest")?,
            hash: digest_column(row, "hash")?,
        });
    }
    verify_links(&end.hash, end.sequence + 1, &records)?;
    Ok(records)
}

/// The log's end as it was after `sequence` entries.
async fn end_at(connection: &mut AnyConnection, sequence: u64) -> Result<End, StoreError> {
    if sequence == 0 {
        return Ok(End::EMPTY);
    }
    let row = sqlx::query("SELECT hash FROM audit WHERE sequence = $1")
        .bind(column(sequence)?)
        .fetch_optional(connection)
        .await?
        .ok_or(AuditError::Broken { sequence })?;
    Ok(End {
        sequence,
        hash: digest_column(&row, "hash")?,
    })
}

fn column(sequence: u64) -> Result<i64, StoreError> {
    i64::try_from(sequence).map_err(|_| StoreError::Malformed {
        table: "audit",
        column: "sequence",
    })
}

fn digest_column(row: &sqlx::any::AnyRow, column: &'static str) -> Result<[u8; 32], StoreError> {
    let mut digest = [0; 32];
    hex::decode_to_slice(row.try_get::<&str, _>(column)?, &mut digest).map_err(|_| {
        StoreError::Malformed {
            table: "audit",
            column,
        }
    })?;
    Ok(digest)
}
