//! What was allowed and reported so far, as the audit log has it.

use std::collections::{BTreeMap, HashMap};

use occlude_attest::UnixTime;
use occlude_keys::{ModelId, OwnerFingerprint};

use super::{
    Acknowledgement, Allowance, AllowanceRequest, ClientDigest, Credit, MOST_OF_ANSWER, Unusual,
    UsageReport,
};
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
#[derive(Debug, Clone, Default)]
struct Window {
    /// In seconds since 1970.
    start: u64,
    queries: u64,
    /// The largest of each, in thousandths of what an answer can tell.
    credits: BTreeMap<u64, u64>,
}

/// The counts of all models.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    totals: HashMap<Scope, u64>,
    /// The latest window of each length: versions may have different ones, and none resets
    /// another.
    windows: HashMap<(Scope, u32), Window>,
    /// When clients may ask again who asked unusually, in seconds since 1970.
    throttled: HashMap<Scope, u64>,
    reports: BTreeMap<(OwnerFingerprint, ModelId), Reports>,
}

/// What was reported of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reports {
    /// All of them.
    pub(crate) count: u64,
    /// Those in which something was unusual, by what it was.
    pub(crate) unusual: BTreeMap<Unusual, u64>,
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
        let latest_start = latest.map_or(0, |latest| latest.start);
        // Where the clock was set back, the latest window goes on.
        let start = (now.0 - now.0 % u64::from(seconds)).max(latest_start);
        let mut window = latest.cloned().unwrap_or_default();
        window.begin(start);
        let total = self.totals.get(&scope).copied().unwrap_or_default();
        let left = |limit: Option<u64>, spent: u64| limit.map(|limit| limit.saturating_sub(spent));
        let left_ever = left(limits.total, total);
        let throttled = self.throttled_for(&scope, now);
        let queries = if throttled > 0 { 0 } else { request.queries };
        let queries = [left(limits.window, window.queries), left_ever]
            .into_iter()
            .flatten()
            .fold(queries, u64::min);
        let ends_in = start
            .saturating_add(seconds.into())
            .saturating_sub(now.0)
            .max(1);
        let ends_in = u32::try_from(ends_in).unwrap_or(u32::MAX).min(seconds);
        window.count(queries, request.credit);
        let allowance = Allowance {
            queries,
            ends_in: if throttled > 0 { throttled } else { ends_in },
            more_later: left_ever.is_none_or(|left| left > queries) && limits.window != Some(0),
            gained: window.gained(),
            time: now.0,
        };
        let event = AuditEvent::QueriesAllowed {
            owner: scope.owner,
            model: scope.model,
            client: scope.client,
            queries,
            window_start: start,
            window_seconds: seconds,
            credit: request.credit,
        };
        (allowance, event)
    }

    /// What a report leads to, and the entry that makes it so.
    pub(crate) fn report(
        &self,
        scope: Scope,
        report: &UsageReport,
        now: UnixTime,
    ) -> (Acknowledgement, AuditEvent) {
        let pause = report.throttle_seconds;
        let pause = pause.filter(|_| !report.unusual.is_empty());
        let until = pause.map(|seconds| now.0.saturating_add(seconds.into()));
        let acknowledgement = Acknowledgement {
            throttled_for: pause.unwrap_or(0).max(self.throttled_for(&scope, now)),
        };
        let event = AuditEvent::UsageReported {
            owner: scope.owner,
            model: scope.model,
            client: report.client,
            queries: report.queries,
            uncertain: report.uncertain,
            unusual: report.unusual.clone(),
            throttled_until: until,
        };
        (acknowledgement, event)
    }

    /// For how many seconds a client is allowed nothing.
    fn throttled_for(&self, scope: &Scope, now: UnixTime) -> u32 {
        let until = self.throttled.get(scope).copied().unwrap_or_default();
        u32::try_from(until.saturating_sub(now.0)).unwrap_or(u32::MAX)
    }

    /// What was reported of each model.
    pub(crate) fn reports(&self) -> &BTreeMap<(OwnerFingerprint, ModelId), Reports> {
        &self.reports
    }

    /// Takes in what an entry says.
    pub(crate) fn follow(&mut self, event: &AuditEvent) {
        let scope = |owner: &OwnerFingerprint, model: &ModelId, client| Scope {
            owner: *owner,
            model: model.clone(),
            client,
        };
        match event {
            AuditEvent::QueriesAllowed {
                owner,
                model,
                client,
                queries,
                window_start,
                window_seconds,
                credit,
            } => {
                let scope = scope(owner, model, *client);
                let total = self.totals.entry(scope.clone()).or_default();
                *total = total.saturating_add(*queries);
                let window = self.windows.entry((scope, *window_seconds)).or_default();
                window.begin(*window_start);
                window.count(*queries, *credit);
            }
            AuditEvent::UsageReported {
                owner,
                model,
                client,
                unusual,
                throttled_until,
                ..
            } => {
                let reports = self.reports.entry((*owner, model.clone())).or_default();
                reports.count += 1;
                for what in unusual {
                    *reports.unusual.entry(*what).or_default() += 1;
                }
                let Some(throttled_until) = throttled_until else {
                    return;
                };
                let scope = scope(owner, model, Some(*client));
                let until = self.throttled.entry(scope).or_default();
                *until = (*until).max(*throttled_until);
            }
            _ => {}
        }
    }
}

impl Window {
    /// Forgets what was before, if this is a later one.
    fn begin(&mut self, start: u64) {
        if self.start < start {
            *self = Self {
                start,
                ..Self::default()
            };
        }
    }

    fn count(&mut self, queries: u64, credit: Option<Credit>) {
        self.queries = self.queries.saturating_add(queries);
        if let Some(credit) = credit {
            let known = self.credits.entry(credit.of).or_default();
            *known = (*known).max(credit.thousandths);
        }
    }

    /// What its queries can have told, in thousandths of what an answer can tell.
    fn gained(&self) -> u64 {
        let credits = self.credits.values().copied();
        let credits = credits.fold(0, u64::saturating_add);
        let most = self.queries.saturating_mul(MOST_OF_ANSWER);
        most.saturating_sub(credits)
    }
}
