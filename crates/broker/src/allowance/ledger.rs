//! What was allowed so far, as the audit log has it.

use std::collections::HashMap;

use occlude_attest::UnixTime;
use occlude_keys::{ModelId, OwnerFingerprint};

use super::{Allowance, AllowanceRequest, ClientDigest};
use crate::audit::AuditEvent;

/// Whose queries are counted together: all versions of a model have one count, so that
/// serving an older one beside it gains nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) owner: OwnerFingerprint,
    pub(crate) model: ModelId,
    /// `None` for all clients together.
    pub(crate) client: Option<ClientDigest>,
}

/// One window and what was allowed in it.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// In seconds since 1970.
    start: u64,
    queries: u64,
}

/// The counts of all models.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    totals: HashMap<Scope, u64>,
    /// The latest window of each length: versions may have different ones, and none resets
    /// another.
    windows: HashMap<(Scope, u32), Window>,
}

impl Ledger {
    /// What can be allowed now, and the entry that makes it so.
    pub(crate) fn allow(
        &self,
        scope: Scope,
        request: &AllowanceRequest,
        now: UnixTime,
    ) -> (Allowance, AuditEvent) {
        let limits = &request.limits;
        let seconds = limits.window_seconds.max(1);
        let latest = self.windows.get(&(scope.clone(), seconds));
        let latest = latest.copied().unwrap_or_default();
        // Where the clock was set back, the latest window goes on.
        let start = (now.0 - now.0 % u64::from(seconds)).max(latest.start);
        let in_window = if start == latest.start {
            latest.queries
        } else {
            0
        };
        let total = self.totals.get(&scope).copied().unwrap_or_default();
        let left = |limit: Option<u64>, spent: u64| limit.map(|limit| limit.saturating_sub(spent));
        let left_ever = left(limits.total, total);
        let queries = [left(limits.window, in_window), left_ever]
            .into_iter()
            .flatten()
            .fold(request.queries, u64::min);
        let ends_in = start
            .saturating_add(seconds.into())
            .saturating_sub(now.0)
            .max(1);
        let allowance = Allowance {
            queries,
            ends_in: u32::try_from(ends_in).unwrap_or(u32::MAX).min(seconds),
            more_later: left_ever.is_none_or(|left| left > queries) && limits.window != Some(0),
            time: now.0,
        };
        let event = AuditEvent::QueriesAllowed {
            owner: scope.owner,
            model: scope.model,
            client: scope.client,
            queries,
            window_start: start,
            window_seconds: seconds,
        };
        (allowance, event)
    }

    /// Counts what an entry says.
    pub(crate) fn follow(&mut self, event: &AuditEvent) {
        let AuditEvent::QueriesAllowed {
            owner,
            model,
            client,
            queries,
            window_start,
            window_seconds,
        } = event
        else {
            return;
        };
        let scope = Scope {
            owner: *owner,
            model: model.clone(),
            client: *client,
        };
        let total = self.totals.entry(scope.clone()).or_default();
        *total = total.saturating_add(*queries);
        let window = self.windows.entry((scope, *window_seconds)).or_default();
        if window.start < *window_start {
            *window = Window {
                start: *window_start,
                queries: 0,
            };
        }
        window.queries = window.queries.saturating_add(*queries);
    }
}
