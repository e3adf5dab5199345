//! Holds model keys and releases them to evidence that satisfies the owner's policy.
//!
//! 1. [`serve`] runs a broker over `SQLite` or `PostgreSQL`. Keys are wrapped under a
//!    master key that lies in a file of its own.
//! 2. The owner, by [`AdminClient`], adds the key of each sealed version, sets a
//!    policy, withdraws versions and reads the audit log; every order is signed.
//! 3. An inference server, by [`BrokerClient`], shows its evidence and gets the key
//!    sealed to a key pair that the evidence covers. It renews by asking again. Where a
//!    model's queries are counted, it asks for an [`Allowance`] the same way.
//!
//! The protocol is that of Confidential Containers' KBS ([`kbs`]), so that a Trustee
//! can stand in for this broker. The key of one sealed version lies at
//! `/kbs/v0/resource/<owner fingerprint>/model-key/<header digest>`.
//!
//! Hostile: whoever reaches the broker, and on the other side the broker itself
//! and the network before it. The broker's own machine is trusted by the owner: who
//! holds both its database and its master key has the keys. Not here: user accounts,
//! rate limits by address, and any guarantee against being kept busy.
#![forbid(unsafe_code)]

mod admin;
mod allowance;
mod audit;
mod client;
pub mod kbs;
mod master_key;
mod metrics;
mod printable;
mod random;
mod serve;
mod service;
mod sessions;
mod store;
#[cfg(test)]
mod test_databases;
mod transport;

use occlude_keys::{HeaderDigest, OwnerFingerprint};

pub use admin::{
    Action, AdminChallenge, AdminClient, AdminError, AdminRequest, EnvelopeError, KeyText,
    ModelRecord, SignedRequest, Withdrawal,
};
pub use allowance::{
    Acknowledgement, Allowance, AllowanceRequest, ClientDigest, Credit, MOST_OF_ANSWER,
    QueryLimits, Unusual, UsageReport,
};
pub use audit::{
    AuditEntry, AuditError, AuditEvent, AuditExport, AuditHead, AuditRecord, SignedHead,
};
pub use client::{AttestedSession, BrokerClient, FetchError, Step};
pub use master_key::MasterKeyError;
pub(crate) use printable::printable;
pub(crate) use random::random;
pub use serve::{BrokerOptions, Listening, ServeError, TlsFiles, serve};
pub use store::StoreError;
pub use transport::{ConnectError, ConnectOptions};

/// Where the key of one sealed version lies: `<owner>/model-key/<header digest>`.
#[must_use]
pub fn model_key_path(owner: &OwnerFingerprint, digest: &HeaderDigest) -> String {
    format!("{owner}/{}/{digest}", kbs::messages::MODEL_KEY_TYPE)
}
