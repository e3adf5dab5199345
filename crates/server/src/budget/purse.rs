//! What one client was allowed and has not spent, and what it learned.

use std::time::Duration;

use occlude_broker::{Allowance, Credit, MOST_OF_ANSWER};
use occlude_guard::{GAIN_OF_ANSWER, QueryBudget};
use tokio::time::Instant;

use super::{SpendError, Whose};

/// Longer than any instance lives.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

// The guard's thousandths are the broker's.
const _: () = assert!(GAIN_OF_ANSWER == MOST_OF_ANSWER);

/// What is allowed and not yet spent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purse {
    pub(super) left: u64,
    until: Instant,
    /// Drawn for this client and window: what was paid from this purse is known by it, and
    /// what the broker credits.
    pub(super) drawn: u64,
    /// What the client learned in this window, in thousandths of answers: of what the broker
    /// counts as learned, all but what is left here.
    pub(super) gained: u64,
    /// What of this purse the client learned less than it may have.
    credit: u64,
    /// How many to ask for the next time: twice as many each time in one window, so that who
    /// asks little loses little when it ends.
    pub(super) next: u64,
    /// Why the broker is not asked again before long.
    pub(super) rest: Rest,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Rest {
    None,
    /// It did not answer.
    Failed {
        until: Instant,
    },
    /// It has no more for this window.
    Dry {
        until: Instant,
    },
    /// It has no more at all.
    DryForEver,
}

impl Purse {
    pub(super) fn empty(now: Instant) -> Self {
        Self {
            left: 0,
            until: now,
            // One that others have, too, is credited less.
            drawn: getrandom::u64().unwrap_or_default(),
            gained: 0,
            credit: 0,
            next: 1,
            rest: Rest::None,
        }
    }

    /// Whether the broker said something of this window.
    pub(super) fn is_current(&self) -> bool {
        Instant::now() < self.until
    }

    /// Forgets what has ended.
    pub(super) fn expire(&mut self) {
        if !self.is_current() {
            *self = Self {
                rest: self.rest,
                ..Self::empty(Instant::now())
            };
        }
    }

    /// What the broker is told with the next request.
    pub(super) fn credited(&self) -> Option<Credit> {
        (self.credit > 0).then_some(Credit {
            of: self.drawn,
            thousandths: self.credit,
        })
    }

    /// Pays for so many queries, from which the client learns so much.
    pub(super) fn spend(&mut self, queries: u64, gain: u64) {
        self.left -= queries;
        self.gained = self.gained.saturating_add(gain);
    }

    /// Takes that back, where they are not answered.
    pub(super) fn give_back(&mut self, queries: u64, gain: u64) {
        self.left = self.left.saturating_add(queries);
        self.gained = self.gained.saturating_sub(gain);
    }

    /// Credits what so many queries that were answered told less than they may have.
    pub(super) fn credit(&mut self, queries: u64, gain: u64) {
        let most = queries.saturating_mul(MOST_OF_ANSWER);
        self.credit = self.credit.saturating_add(most.saturating_sub(gain));
    }

    /// Takes what was allowed of what was wanted. Where windows are limited it ends with its
    /// own; what is left of an earlier allowance may end sooner, and all ends with it.
    pub(super) fn add(
        &mut self,
        allowance: Allowance,
        budget: QueryBudget,
        wanted: u64,
        asked: Instant,
    ) {
        self.expire();
        let end = asked + Duration::from_secs(allowance.ends_in.into());
        let until = match budget.window {
            Some(_) => end,
            None => asked + FOR_EVER,
        };
        self.until = if self.left > 0 {
            self.until.min(until)
        } else {
            until
        };
        self.next = self.next.max(wanted).saturating_mul(2);
        self.left = self.left.saturating_add(allowance.queries);
        let unspent = self.left.saturating_mul(MOST_OF_ANSWER);
        self.gained = allowance.gained.saturating_sub(unspent);
        self.rest = match (allowance.queries < wanted, allowance.more_later) {
            (false, _) => Rest::None,
            (true, true) => Rest::Dry { until: end },
            (true, false) => Rest::DryForEver,
        };
    }

    /// Loses what is left, and gets no more until then.
    pub(super) fn close(&mut self, until: Instant) {
        *self = Self {
            rest: Rest::Dry { until },
            ..Self::empty(Instant::now())
        };
    }

    /// Why it does not pay.
    pub(super) fn exhausted(&self, whose: Whose) -> SpendError {
        SpendError::Exhausted {
            whose,
            left: self.left,
            again_in: self.again_in(),
        }
    }

    /// When there may be more.
    fn again_in(&self) -> Option<Duration> {
        match self.rest {
            Rest::Dry { until } | Rest::Failed { until } => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            Rest::None => Some(Duration::ZERO),
            Rest::DryForEver => None,
        }
    }

    /// Whether forgetting it would lose anything. Who waits loses nothing: the broker knows.
    pub(super) fn is_held(&self, now: Instant) -> bool {
        self.left > 0 && now < self.until
    }
}
