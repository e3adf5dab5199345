//! The audit log in the database.
//!
//! The sequence number is the primary key, so that two entries can never follow the
//! same one; writers take turns before they get here.

use occlude_attest::UnixTime;
use occlude_keys::OwnerFingerprint;
use sqlx::{AnyConnection, Row};

use super::{Store, StoreError};
use crate::audit::{
    AuditError, AuditEvent, AuditPage, AuditRecord, GENESIS, SignedHead, verify_links,
};

/// Entries of one page: about 1 MB of JSON.
pub(crate) const PAGE: i64 = 500;

impl Store {
    /// Entries from `from` on, checked, those about other owners than `viewer`
    /// as digests, and the signed head.
    pub(crate) async fn audit_page(
        &self,
        from: u64,
        viewer: &OwnerFingerprint,
    ) -> Result<AuditPage, StoreError> {
        let from = from.max(1);
        let mut entries = self.checked_page(from).await?;
        for (sequence, record) in (from..).zip(&mut entries) {
            let foreign = record
                .parse(sequence)?
                .is_some_and(|entry| entry.event.owner().is_some_and(|owner| owner != viewer));
            if foreign {
                record.entry = None;
            }
        }
        let (sequence, hash) = self.audit_end().await?;
        Ok(AuditPage {
            entries,
            head: SignedHead::sign(sequence, hash, UnixTime::now(), self.key.audit()),
        })
    }

    /// Checks the whole log.
    pub(crate) async fn verify_audit(&self) -> Result<(), StoreError> {
        let mut from = 1;
        loop {
            let arrived = self.checked_page(from).await?.len();
            if arrived < PAGE as usize {
                return Ok(());
            }
            from += arrived as u64;
        }
    }

    async fn checked_page(&self, from: u64) -> Result<Vec<AuditRecord>, StoreError> {
        let too_far = || AuditError::Broken { sequence: from };
        let first = i64::try_from(from).map_err(|_| too_far())?;
        let rows = sqlx::query(
            "SELECT sequence, entry, digest, hash FROM audit WHERE sequence >= $1 \
             ORDER BY sequence LIMIT $2",
        )
        .bind(first)
        .bind(PAGE)
        .fetch_all(&self.pool)
        .await?;
        let mut records = Vec::with_capacity(rows.len());
        for (expected, row) in (first..).zip(&rows) {
            if row.try_get::<i64, _>("sequence")? != expected {
                return Err(AuditError::Broken {
                    sequence: expected.unsigned_abs(),
                }
                .into());
            }
            records.push(AuditRecord {
                entry: Some(row.try_get("entry")?),
                digest: digest_column(row, "digest")?,
                hash: digest_column(row, "hash")?,
            });
        }
        let previous = if first == 1 {
            GENESIS
        } else {
            let row = sqlx::query("SELECT hash FROM audit WHERE sequence = $1")
                .bind(first - 1)
                .fetch_optional(&self.pool)
                .await?;
            match row {
                Some(row) => digest_column(&row, "hash")?,
                None if records.is_empty() => return Ok(records),
                None => return Err(too_far().into()),
            }
        };
        verify_links(&previous, from, &records)?;
        Ok(records)
    }

    async fn audit_end(&self) -> Result<(u64, [u8; 32]), StoreError> {
        let row = sqlx::query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")
            .fetch_optional(&self.pool)
            .await?;
        end(row.as_ref())
    }
}

/// Writes the entry that follows the last one.
pub(super) async fn append(
    connection: &mut AnyConnection,
    event: &AuditEvent,
) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")
        .fetch_optional(&mut *connection)
        .await?;
    let (last, previous) = end(row.as_ref())?;
    let sequence = last + 1;
    let record = AuditRecord::following(&previous, sequence, UnixTime::now(), event);
    sqlx::query("INSERT INTO audit (sequence, entry, digest, hash) VALUES ($1, $2, $3, $4)")
        .bind(i64::try_from(sequence).map_err(|_| StoreError::Malformed {
            table: "audit",
            column: "sequence",
        })?)
        .bind(record.entry.unwrap_or_default())
        .bind(hex::encode(record.digest))
        .bind(hex::encode(record.hash))
        .execute(connection)
        .await?;
    Ok(())
}

fn end(row: Option<&sqlx::any::AnyRow>) -> Result<(u64, [u8; 32]), StoreError> {
    let Some(row) = row else {
        return Ok((0, GENESIS));
    };
    let sequence =
        u64::try_from(row.try_get::<i64, _>("sequence")?).map_err(|_| StoreError::Malformed {
            table: "audit",
            column: "sequence",
        })?;
    Ok((sequence, digest_column(row, "hash")?))
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
