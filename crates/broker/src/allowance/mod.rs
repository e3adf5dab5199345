//! Allowances: how many queries of a model one attested instance may answer; and what it saw
//! in those that it answered.
//!
//! The broker counts what it gave, with its clock, in the audit log; an instance answers so
//! many and asks for more. What it did not use dies with it, so that a restart or a second
//! replica gives nobody a query more.
//!
//! How many there may be is the owner's, sealed with the model: the instance says it, whose
//! evidence says that it says it truly. Request and answer are sealed under the model's key
//! and this session's, so that nobody between reads whose queries they are, makes a request
//! or an answer, or gives an old answer again. What an instance saw comes the same way, to
//! the same path and in as many bytes, so that nobody between tells one from the other.

mod ledger;
mod message;
mod usage;

use occlude_keys::hexadecimal_bytes;
use serde::{Deserialize, Serialize};

pub(crate) use ledger::{Ledger, Reports, Scope};
pub(crate) use message::{AllowanceKey, Asked, MessageDigest, SealedMessage};
pub use usage::{Acknowledgement, Unusual, UsageReport};

hexadecimal_bytes! {
    /// Stands for one client of a model. What it is made of is the server's business; it
    /// should tell nobody else who that is.
    pub ClientDigest, 32
}

/// What an instance asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AllowanceRequest {
    /// Whose queries; `None` for those of all clients together.
    pub client: Option<ClientDigest>,
    /// How many are wanted.
    pub queries: u64,
    /// How many there may be.
    pub limits: QueryLimits,
    /// What the client learned less than it may have, of what this instance was allowed in
    /// this window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit: Option<Credit>,
}

/// What a client learned less than it may have, where that is counted: each query that is
/// allowed counts for all that an answer can tell, until the instance says that it told less.
/// What it has not said when it ends stays counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Credit {
    /// Drawn by the instance for one client and one window: what is said again counts once.
    pub of: u64,
    /// All so far, in thousandths of what an answer can tell.
    pub thousandths: u64,
}

/// All that an answer can tell, in thousandths.
pub const MOST_OF_ANSWER: u64 = 1000;

/// How many queries there may be, of one client or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QueryLimits {
    /// Length of a window in seconds, 1 or more. Windows begin at multiples of it, counted
    /// from 1970 by the broker's clock.
    pub window_seconds: u32,
    /// In one window; `None` is without a limit.
    pub window: Option<u64>,
    /// Ever; `None` is without a limit.
    pub total: Option<u64>,
}

/// What a broker allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Allowance {
    /// So many queries, at most as many as were asked for, and none where a limit is
    /// reached.
    pub queries: u64,
    /// Seconds until the window ends, 1 or more: and with it this allowance, where windows
    /// are limited.
    pub ends_in: u32,
    /// Whether more may be had when the window has ended.
    pub more_later: bool,
    /// What all that was allowed in this window can have told, in thousandths of what an
    /// answer can tell: 1,000 for each query, these included, less all credits.
    pub gained: u64,
    /// The broker's clock, in seconds since 1970.
    pub time: u64,
}

#[cfg(test)]
mod tests;
