//! The audit log: every decision, chained by hashes, under a signed head.
//!
//! An entry's hash covers the hash before it, so that no entry can be changed,
//! dropped or inserted without changing the last hash. The hashes have no key:
//! whoever can write to the database can compute them all anew. What that writer
//! cannot make is the last hash as the broker keeps it, sealed under its master key,
//! nor the signature under an exported head. Rolling the whole database back,
//! sealed hash included, leaves a log that holds: a broker that starts on it shows
//! it only against a head that was exported before ([`AuditExport::extends`]).
//!
//! An entry never contains a key. Another owner's entries are exported as digests
//! only: the chain can be checked over them, and they tell nothing.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use occlude_attest::{ConfigurationDigest, Measurement, TeeKind, UnixTime};
use occlude_keys::{HeaderDigest, ModelId, ModelVersion, OwnerFingerprint};
use occlude_weakening::{Weakening, is};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::allowance::{ClientDigest, Credit, Unusual};
use crate::printable;

/// Begins what the hash of an entry covers.
const ENTRY_LABEL: &[u8] = b"occlude/v1/audit-entry\0";
/// Begins what the signature of a head covers.
const HEAD_LABEL: &[u8] = b"occlude/v1/audit-head\0";

/// The hash before the first entry.
pub(crate) const GENESIS: [u8; 32] = [0; 32];

/// Longest reason that is kept, in characters: evidence can make reasons quote it.
const LONGEST_REASON: usize = 500;

/// One decision of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuditEntry {
    /// The entry's place in the chain, from 1.
    pub sequence: u64,
    /// When, in seconds since 1970, by the broker's clock.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub event: AuditEvent,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    tag = "event"
)]
#[non_exhaustive]
pub enum AuditEvent {
    /// A request was refused before there was any evidence to look at.
    RequestRefused {
        /// The TEE as the request names it, which may be none of ours.
        tee: Option<String>,
        /// Why.
        reason: String,
    },
    /// Evidence was verified. Nothing is released yet.
    EvidenceAccepted {
        /// The kind of TEE.
        tee: TeeKind,
        /// Its code.
        measurement: Measurement,
        /// Its configuration, where that kind measures it.
        configuration: Option<ConfigurationDigest>,
        /// What evidence came along beside the TEE's.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        additional: Vec<TeeKind>,
    },
    /// Requests were refused that showed no session, no evidence that holds, or no
    /// signature of an owner who answers a challenge: so many within a short time
    /// that they were not written one by one.
    RefusalsWithoutEvidence {
        /// How many, besides those that were written.
        count: u64,
    },
    /// Evidence was not believed.
    EvidenceRefused {
        /// The kind of TEE that it said it came from.
        tee: TeeKind,
        /// Why.
        reason: String,
    },
    /// A key was released.
    KeyGranted {
        /// Whose.
        owner: OwnerFingerprint,
        /// Of which sealed version.
        header_digest: HeaderDigest,
        /// Its model.
        model: ModelId,
        /// Its version.
        version: ModelVersion,
        /// To which kind of TEE.
        tee: TeeKind,
        /// Running which code.
        measurement: Measurement,
    },
    /// A key was not released.
    KeyRefused {
        /// Whose, where the path named an owner.
        owner: Option<OwnerFingerprint>,
        /// The path that was asked for.
        resource: String,
        /// By which kind of TEE, where a session said so.
        tee: Option<TeeKind>,
        /// Running which code.
        measurement: Option<Measurement>,
        /// Why.
        reason: String,
    },
    /// An instance may answer so many queries; none where a limit is reached.
    QueriesAllowed {
        /// Whose model.
        owner: OwnerFingerprint,
        /// Its model, all versions together.
        model: ModelId,
        /// Of which client; `None` for all together.
        client: Option<ClientDigest>,
        /// How many.
        queries: u64,
        /// When the window began, in seconds since 1970.
        window_start: u64,
        /// Its length.
        window_seconds: u32,
        /// What the client learned less than it may have, where that is counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credit: Option<Credit>,
    },
    /// An instance said what it saw in one window of a client's queries.
    UsageReported {
        /// Whose model.
        owner: OwnerFingerprint,
        /// Its model, all versions together.
        model: ModelId,
        /// Of which client.
        client: ClientDigest,
        /// How many were answered.
        queries: u32,
        /// Those of them that the model was not certain of.
        uncertain: u32,
        /// What of it is unusual: an alarm, if anything is.
        unusual: Vec<Unusual>,
        /// Until when the client is allowed no queries, in seconds since 1970, where that
        /// follows.
        throttled_until: Option<u64>,
    },
    /// Queries were not allowed, whatever the counts.
    QueriesRefused {
        /// Whose model.
        owner: OwnerFingerprint,
        /// Of which sealed version.
        header_digest: HeaderDigest,
        /// Why.
        reason: String,
    },
    /// An owner handed over a key.
    ModelAdded {
        /// Whose.
        owner: OwnerFingerprint,
        /// Of which sealed version.
        header_digest: HeaderDigest,
        /// Its model.
        model: ModelId,
        /// Its version.
        version: ModelVersion,
    },
    /// An owner set a policy.
    PolicySet {
        /// Whose.
        owner: OwnerFingerprint,
        /// For which model; `None` for those without their own.
        model: Option<ModelId>,
        /// SHA-256 of its text, 64 hexadecimal digits.
        policy_digest: String,
    },
    /// An owner withdrew versions.
    Withdrawn {
        /// Whose.
        owner: OwnerFingerprint,
        /// Which model.
        model: ModelId,
        /// The lowest version that still gets its key.
        below_version: ModelVersion,
    },
    /// An order was refused.
    OrderRefused {
        /// Who it said that it came from; the signature may not hold.
        claimed_owner: OwnerFingerprint,
        /// Why.
        reason: String,
    },
}

impl AuditEvent {
    /// Whose records it is about, if anybody's.
    pub(crate) fn owner(&self) -> Option<&OwnerFingerprint> {
        match self {
            Self::RequestRefused { .. }
            | Self::RefusalsWithoutEvidence { .. }
            | Self::EvidenceAccepted { .. }
            | Self::EvidenceRefused { .. } => None,
            Self::KeyRefused { owner, .. } => owner.as_ref(),
            Self::KeyGranted { owner, .. }
            | Self::QueriesAllowed { owner, .. }
            | Self::UsageReported { owner, .. }
            | Self::QueriesRefused { owner, .. }
            | Self::ModelAdded { owner, .. }
            | Self::PolicySet { owner, .. }
            | Self::Withdrawn { owner, .. } => Some(owner),
            Self::OrderRefused { claimed_owner, .. } => Some(claimed_owner),
        }
    }
}

/// A reason as it goes into an entry. Strangers are quoted in it, and owners read it
/// in a terminal.
pub(crate) fn shorten(reason: &str) -> String {
    printable(reason, LONGEST_REASON)
}

/// One entry as it is stored and exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AuditRecord {
    /// The exact JSON of the [`AuditEntry`]; `None` if it is about another owner.
    pub entry: Option<String>,
    /// SHA-256 of that JSON.
    #[serde(with = "hex::serde")]
    pub digest: [u8; 32],
    /// SHA-256 of a label, the hash of the record before, and the digest.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
}

impl AuditRecord {
    /// The record that follows one with the hash `previous`.
    pub(crate) fn following(
        previous: &[u8; 32],
        sequence: u64,
        at: UnixTime,
        event: &AuditEvent,
    ) -> Self {
        let entry = serde_json::to_string(&AuditEntry {
            sequence,
            time: at.0,
            event: event.clone(),
        })
        .expect("an entry of strings and numbers makes JSON");
        let digest = Sha256::digest(&entry).into();
        Self {
            entry: Some(entry),
            digest,
            hash: link(previous, &digest),
        }
    }

    /// What the entry says, if it is shown.
    ///
    /// # Errors
    /// [`AuditError::Malformed`] if it is no entry of this version.
    pub fn parse(&self, sequence: u64) -> Result<Option<AuditEntry>, AuditError> {
        self.entry
            .as_deref()
            .map(|entry| {
                serde_json::from_str(entry).map_err(|error| AuditError::Malformed {
                    sequence,
                    reason: error.to_string(),
                })
            })
            .transpose()
    }
}

fn link(previous: &[u8; 32], digest: &[u8; 32]) -> [u8; 32] {
    Sha256::new()
        .chain_update(ENTRY_LABEL)
        .chain_update(previous)
        .chain_update(digest)
        .finalize()
        .into()
}

/// Where the chain ends, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AuditHead {
    /// How many entries there are.
    pub sequence: u64,
    /// The last one's hash; zeros if there is none.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
    /// When this was signed, in seconds since 1970, by the broker's clock.
    pub time: u64,
    /// The broker's Ed25519 public key.
    #[serde(with = "hex::serde")]
    pub broker: [u8; 32],
}

impl AuditHead {
    /// What is signed: label, sequence (8 bytes, little-endian), hash, time (the
    /// same), public key.
    fn message(&self) -> Vec<u8> {
        [
            HEAD_LABEL,
            &self.sequence.to_le_bytes(),
            &self.hash,
            &self.time.to_le_bytes(),
            &self.broker,
        ]
        .concat()
    }
}

/// A head that the broker signed. Keep one: it is what a rollback shows against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SignedHead {
    /// The head.
    pub head: AuditHead,
    /// The broker's Ed25519 signature.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl SignedHead {
    pub(crate) fn sign(sequence: u64, hash: [u8; 32], at: UnixTime, key: &SigningKey) -> Self {
        let head = AuditHead {
            sequence,
            hash,
            time: at.0,
            broker: key.verifying_key().to_bytes(),
        };
        let signature = key.sign(&head.message()).to_bytes();
        Self { head, signature }
    }

    /// Checks the signature under the key that the head itself names.
    ///
    /// # Errors
    /// [`AuditError::HeadSignature`].
    pub fn verify(&self) -> Result<(), AuditError> {
        VerifyingKey::from_bytes(&self.head.broker)
            .and_then(|key| {
                key.verify_strict(
                    &self.head.message(),
                    &Signature::from_bytes(&self.signature),
                )
            })
            .map_err(|_| AuditError::HeadSignature)
    }
}

/// Part of the log, as one call answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct AuditPage {
    pub(crate) entries: Vec<AuditRecord>,
    pub(crate) head: SignedHead,
}

/// The whole log up to a signed head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AuditExport {
    /// All entries from the first.
    pub entries: Vec<AuditRecord>,
    /// The head that the last one's hash is in.
    pub head: SignedHead,
}

/// Why an audit log is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// An entry was changed, dropped, inserted or moved.
    #[error("the chain is broken at entry {sequence}")]
    Broken {
        /// The first entry that does not follow from the one before.
        sequence: u64,
    },
    /// An entry is no entry.
    #[error("entry {sequence} is malformed: {reason}")]
    Malformed {
        /// Which.
        sequence: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The chain holds, but ends elsewhere than its signed or sealed head says.
    #[error("the chain ends at entry {found}, its head says {expected} or another hash")]
    NotTheHead {
        /// How many entries there are.
        found: u64,
        /// How many the head says.
        expected: u64,
    },
    /// The head's signature does not hold.
    #[error("the signature of the log's head does not hold")]
    HeadSignature,
    /// The log is another broker's than the earlier head.
    #[error("the log is signed by another broker than the earlier head")]
    OtherBroker,
    /// The log does not contain an earlier head: it was rolled back or rewritten.
    #[error(
        "the log does not go through its earlier head at entry {sequence}: it was rolled back or rewritten"
    )]
    RolledBack {
        /// The earlier head's last entry.
        sequence: u64,
    },
}

impl AuditExport {
    /// The entries that are shown to the owner who asked, in their order.
    ///
    /// # Errors
    /// [`AuditError::Malformed`] if one is no entry of this version.
    pub fn shown(&self) -> Result<Vec<AuditEntry>, AuditError> {
        let records = (1..).zip(&self.entries);
        let shown = records.filter_map(|(sequence, record)| record.parse(sequence).transpose());
        shown.collect()
    }

    /// Checks every link, every shown entry's place, and the head's signature. It
    /// does not know the broker: compare `head.head.broker` with what you know.
    ///
    /// # Errors
    /// [`AuditError`] with the first place where the log does not hold.
    pub fn verify(&self) -> Result<(), AuditError> {
        self.head.verify()?;
        let end = verify_links(&GENESIS, 1, &self.entries)?;
        let (found, expected) = (self.entries.len() as u64, self.head.head.sequence);
        if found != expected || end != self.head.head.hash {
            return Err(AuditError::NotTheHead { found, expected });
        }
        Ok(())
    }

    /// Checks that this log continues the one that `earlier` was the head of.
    ///
    /// # Errors
    /// [`AuditError::RolledBack`] if not; [`AuditError::OtherBroker`],
    /// [`AuditError::HeadSignature`].
    pub fn extends(&self, earlier: &SignedHead) -> Result<(), AuditError> {
        earlier.verify()?;
        if earlier.head.broker != self.head.head.broker {
            return Err(AuditError::OtherBroker);
        }
        let sequence = earlier.head.sequence;
        let hash = match usize::try_from(sequence) {
            Ok(0) => Some(&GENESIS),
            Ok(sequence) => self.entries.get(sequence - 1).map(|record| &record.hash),
            Err(_) => None,
        };
        if hash != Some(&earlier.head.hash) && !is(Weakening::AnyLog) {
            return Err(AuditError::RolledBack { sequence });
        }
        Ok(())
    }
}

/// Checks that `records` follow `previous`, the first of them at `first`, and
/// gives the last one's hash.
pub(crate) fn verify_links(
    previous: &[u8; 32],
    first: u64,
    records: &[AuditRecord],
) -> Result<[u8; 32], AuditError> {
    let mut previous = *previous;
    for (sequence, record) in (first..).zip(records) {
        let shown = match &record.entry {
            Some(entry) => <[u8; 32]>::from(Sha256::digest(entry)),
            None => record.digest,
        };
        let follows = shown == record.digest && link(&previous, &record.digest) == record.hash;
        if !follows && !is(Weakening::AnyLog) {
            return Err(AuditError::Broken { sequence });
        }
        if record
            .parse(sequence)?
            .is_some_and(|entry| entry.sequence != sequence)
        {
            return Err(AuditError::Broken { sequence });
        }
        previous = record.hash;
    }
    Ok(previous)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
