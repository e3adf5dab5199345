//! Counting queries: what a guarded model may still answer, and to whom; and looking at them.
//!
//! The broker counts and keeps the clock; this process spends what it was allowed and asks
//! for more. What it holds dies with it, and is spent for the broker already, so restarts,
//! rollbacks, replicas and this machine's clock give nobody a query more.
//!
//! An allowance ends by the monotonic clock, counted from before it was asked for. An operator
//! who freezes the machine keeps one alive, but its size is the same.

mod broker;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use occlude_broker::{Allowance, AllowanceRequest, ClientDigest, QueryLimits};
use occlude_guard::{Budgets, QueryBudget};
use occlude_usage::Observation;
use occlude_weakening::{Weakening, is};
use tokio::time::Instant;

pub use broker::AllowError;
pub(crate) use broker::{Allow, BrokerAllowances};
pub(crate) use watch::Watch;
use watch::Watched;

/// An allowance is at most this part of the smaller limit: what one instance holds, no other
/// can spend.
const PARTS: u64 = 16;

/// And no more than this.
const MOST_AT_ONCE: u64 = 256;

/// Longer than any instance lives.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A broker that takes longer to allow queries is taken as unavailable.
const LONGEST_ASK: Duration = Duration::from_secs(30);

/// A broker that did not answer is not asked for the same client again within this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Clients whose allowances are held at once.
const MOST_CLIENTS: usize = 65_536;

/// Whose budget it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Client,
    Model,
}

/// Why queries are not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpendError {
    /// Fewer are left.
    Exhausted {
        whose: Whose,
        left: u64,
        /// When there may be more; `None` for never.
        again_in: Option<Duration>,
    },
    /// More at once than can ever be.
    TooMany { whose: Whose, limit: u64 },
    /// The broker allows nothing now.
    Unavailable,
}

/// The budgets of one loaded model.
pub(crate) struct Meter<A = BrokerAllowances> {
    budgets: Budgets,
    allow: A,
    clock: Mutex<BrokerClock>,
    /// By client; `None` for all together.
    purses: Mutex<HashMap<Option<ClientDigest>, Arc<tokio::sync::Mutex<Purse>>>>,
    /// What is looked at, where the owner wants that.
    watch: Option<Watch>,
}

/// The broker's clock, as of when it was last read.
#[derive(Clone, Copy)]
struct BrokerClock {
    time: u64,
    /// Before it was asked, so that it is rather ahead than behind.
    asked: Instant,
}

/// What is allowed and not yet spent.
#[derive(Debug, Clone, Copy)]
struct Purse {
    left: u64,
    until: Instant,
    /// How many to ask for the next time: twice as many each time in one window, so that who
    /// asks little loses little when it ends.
    next: u64,
    /// Why the broker is not asked again before long.
    rest: Rest,
}

#[derive(Debug, Clone, Copy)]
enum Rest {
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

impl<A: Allow> Meter<A> {
    /// Takes the model's first allowance, and with it the broker's time.
    pub(crate) async fn open(
        budgets: Budgets,
        watch: Option<Watch>,
        allow: A,
    ) -> Result<Self, AllowError> {
        let budget = budgets.model.unwrap_or(QueryBudget {
            window: None,
            total: None,
        });
        let asked = Instant::now();
        let wanted = u64::from(budgets.model.is_some());
        let request = request(&budgets, None, budget, wanted);
        let first = in_time(allow.allow(&request)).await?;
        let mut purse = Purse::empty(asked);
        purse.add(first, budget, wanted, asked);
        let purse = Arc::new(tokio::sync::Mutex::new(purse));
        Ok(Self {
            budgets,
            allow,
            clock: Mutex::new(BrokerClock {
                time: first.time,
                asked,
            }),
            purses: Mutex::new([(None, purse)].into()),
            watch,
        })
    }

    /// Seconds since 1970 by the broker's clock.
    pub(crate) fn now(&self) -> u64 {
        let clock = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let since = clock.asked.elapsed().as_secs() + 1;
        clock.time.saturating_add(since)
    }

    /// What is looked at in clients' queries.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Pays for so many queries of one client, or for none; and takes in what was seen in
    /// them, once the broker has what was seen before.
    pub(crate) async fn spend(
        &self,
        client: Option<ClientDigest>,
        queries: u64,
        seen: Vec<Observation>,
    ) -> Result<(), SpendError> {
        if is(Weakening::UncountedQueries) {
            return Ok(());
        }
        let Some((watch, client)) = self.watch.as_ref().zip(client) else {
            return self.pay(client, queries).await;
        };
        let watched = watch.client(client);
        self.tell(client, &mut *watched.lock().await).await?;
        self.pay(Some(client), queries).await?;
        let mut watched = watched.lock().await;
        watch.see(client, &mut watched, seen);
        // This answer is paid for; where the broker cannot be told now, the next one waits.
        let _ = self.tell(client, &mut watched).await;
        Ok(())
    }

    /// Tells the broker what is due of a client, who waits where the broker says so.
    async fn tell(&self, client: ClientDigest, watched: &mut Watched) -> Result<(), SpendError> {
        let Some(report) = &watched.due else {
            return Ok(());
        };
        let now = Instant::now();
        if watched.again.is_some_and(|again| now < again) {
            return Err(SpendError::Unavailable);
        }
        let taken = match in_time(self.allow.report(report)).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "the broker takes no report");
                watched.again = Some(Instant::now() + PAUSE);
                return Err(SpendError::Unavailable);
            }
        };
        (watched.due, watched.again) = (None, None);
        if taken.throttled_for > 0
            && let Some(purse) = self.purse(Some(client))
        {
            let pause = Duration::from_secs(taken.throttled_for.into());
            purse.lock().await.close(now + pause);
        }
        Ok(())
    }

    /// Pays for so many queries of one client, or for none.
    async fn pay(&self, client: Option<ClientDigest>, queries: u64) -> Result<(), SpendError> {
        let of_client = self.budgets.client.filter(|_| client.is_some());
        let paid = match of_client {
            Some(budget) => Some(self.take(client, budget, queries).await?),
            None => None,
        };
        let Some(budget) = self.budgets.model else {
            return Ok(());
        };
        let taken = self.take(None, budget, queries).await;
        if let (Err(_), Some(until)) = (&taken, paid) {
            self.give_back(client, queries, until).await;
        }
        taken.map(|_| ())
    }

    /// Gives a client back what bought nothing, unless it has ended since.
    async fn give_back(&self, client: Option<ClientDigest>, queries: u64, until: Instant) {
        let Some(purse) = self.purse(client) else {
            return;
        };
        let mut purse = purse.lock().await;
        if purse.until == until {
            purse.left += queries;
        }
    }

    /// Takes queries from one purse, which is filled up first if it has to be, and says when
    /// they would have ended. Whoever else wants the same purse waits.
    async fn take(
        &self,
        client: Option<ClientDigest>,
        budget: QueryBudget,
        queries: u64,
    ) -> Result<Instant, SpendError> {
        let whose = match client {
            Some(_) => Whose::Client,
            None => Whose::Model,
        };
        let limit = budget.smallest();
        if queries > limit {
            return Err(SpendError::TooMany { whose, limit });
        }
        let purse = self.purse(client).ok_or(SpendError::Unavailable)?;
        let mut purse = purse.lock().await;
        purse.expire();
        if let Some(missing) = queries
            .checked_sub(purse.left)
            .filter(|missing| *missing > 0)
        {
            self.fill(&mut purse, client, budget, missing).await?;
        }
        if purse.left < queries {
            return Err(SpendError::Exhausted {
                whose,
                left: purse.left,
                again_in: purse.again_in(),
            });
        }
        purse.left -= queries;
        Ok(purse.until)
    }

    /// Asks the broker for what is missing, and some more; unless it has none.
    async fn fill(
        &self,
        purse: &mut Purse,
        client: Option<ClientDigest>,
        budget: QueryBudget,
        missing: u64,
    ) -> Result<(), SpendError> {
        let asked = Instant::now();
        match purse.rest {
            Rest::Failed { until } if asked < until => return Err(SpendError::Unavailable),
            Rest::Dry { until } if asked < until => return Ok(()),
            Rest::DryForEver => return Ok(()),
            _ => {}
        }
        let wanted = missing.max(purse.next.min(most_at_once(budget)));
        let request = request(&self.budgets, client, budget, wanted);
        match in_time(self.allow.allow(&request)).await {
            Ok(allowance) => {
                *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = BrokerClock {
                    time: allowance.time,
                    asked,
                };
                purse.add(allowance, budget, wanted, asked);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the broker allows no queries");
                purse.rest = Rest::Failed {
                    until: Instant::now() + PAUSE,
                };
                Err(SpendError::Unavailable)
            }
        }
    }

    /// A client's purse; `None` where there are too many.
    fn purse(&self, client: Option<ClientDigest>) -> Option<Arc<tokio::sync::Mutex<Purse>>> {
        let mut purses = self.purses.lock().unwrap_or_else(PoisonError::into_inner);
        if !purses.contains_key(&client) && purses.len() >= MOST_CLIENTS {
            let now = Instant::now();
            purses.retain(|client, purse| {
                let held = purse.try_lock().map_or(true, |purse| purse.is_held(now));
                client.is_none() || held
            });
            if purses.len() >= MOST_CLIENTS {
                return None;
            }
        }
        let purse = purses
            .entry(client)
            .or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Purse::empty(Instant::now()))));
        Some(Arc::clone(purse))
    }
}

impl Purse {
    fn empty(now: Instant) -> Self {
        Self {
            left: 0,
            until: now,
            next: 1,
            rest: Rest::None,
        }
    }

    /// Forgets what has ended.
    fn expire(&mut self) {
        if self.until <= Instant::now() {
            self.left = 0;
            self.next = 1;
        }
    }

    /// Takes what was allowed of what was wanted. Where windows are limited it ends with its
    /// own; what is left of an earlier allowance may end sooner, and all ends with it.
    fn add(&mut self, allowance: Allowance, budget: QueryBudget, wanted: u64, asked: Instant) {
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
        self.rest = match (allowance.queries < wanted, allowance.more_later) {
            (false, _) => Rest::None,
            (true, true) => Rest::Dry { until: end },
            (true, false) => Rest::DryForEver,
        };
    }

    /// Loses what is left, and gets no more until then.
    fn close(&mut self, until: Instant) {
        *self = Self {
            rest: Rest::Dry { until },
            ..Self::empty(Instant::now())
        };
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
    fn is_held(&self, now: Instant) -> bool {
        self.left > 0 && now < self.until
    }
}

/// How many queries are asked for at once, unless more are needed.
fn most_at_once(budget: QueryBudget) -> u64 {
    (budget.smallest() / PARTS).clamp(1, MOST_AT_ONCE)
}

fn request(
    budgets: &Budgets,
    client: Option<ClientDigest>,
    budget: QueryBudget,
    queries: u64,
) -> AllowanceRequest {
    AllowanceRequest {
        client,
        queries,
        limits: QueryLimits {
            window_seconds: budgets.window_seconds,
            window: budget.window,
            total: budget.total,
        },
    }
}

/// What the broker says, if it says it before long.
async fn in_time<T>(asked: impl Future<Output = Result<T, AllowError>>) -> Result<T, AllowError> {
    let answer = tokio::time::timeout(LONGEST_ASK, asked).await;
    answer.unwrap_or_else(|_| {
        let seconds = LONGEST_ASK.as_secs();
        Err(AllowError::Unavailable(format!(
            "no answer within {seconds} s"
        )))
    })
}

#[cfg(test)]
mod tests;
