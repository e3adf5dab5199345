//! Counting queries: what a guarded model may still answer, and to whom; looking at them; and
//! counting what they tell.
//!
//! The broker counts and keeps the clock; this process spends what it was allowed and asks
//! for more. What it holds dies with it, and is spent for the broker already, so restarts,
//! rollbacks, replicas and this machine's clock give nobody a query more.
//!
//! What a client learned is counted the same way: each query that is allowed counts for all that
//! an answer can tell, until this process says that it told less.
//!
//! An allowance ends by the monotonic clock, counted from before it was asked for. An operator
//! who freezes the machine keeps one alive, but its size is the same.

mod broker;
mod purse;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use occlude_broker::{AllowanceRequest, ClientDigest, QueryLimits};
use occlude_guard::{Budgets, QueryBudget, Work};
use occlude_usage::Observation;
use occlude_weakening::{Weakening, is};
use tokio::time::Instant;

pub use broker::AllowError;
pub(crate) use broker::{Allow, BrokerAllowances};
use purse::{Purse, Rest};
pub(crate) use watch::Watch;
use watch::Watched;

/// An allowance is at most this part of the smaller limit: what one instance holds, no other
/// can spend.
const PARTS: u64 = 16;

/// And no more than this.
const MOST_AT_ONCE: u64 = 256;

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
    /// Answers became dearer meanwhile than the client worked for: it gained so many thousandths.
    Dearer { gained: u64 },
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
    /// What answers cost in work, where they do.
    work: Option<Work>,
}

/// What is answered to one request, as far as it counts.
#[derive(Default)]
pub(crate) struct Answered {
    pub(crate) queries: u64,
    /// What it tells, in thousandths of what answers can tell.
    pub(crate) gain: u64,
    /// What the client did for it, where answers cost work: the dearest that it pays for.
    pub(crate) worked: u32,
    pub(crate) seen: Vec<Observation>,
}

/// The broker's clock, as of when it was last read.
#[derive(Clone, Copy)]
struct BrokerClock {
    time: u64,
    /// Before it was asked, so that it is rather ahead than behind.
    asked: Instant,
}

impl<A: Allow> Meter<A> {
    /// Takes the model's first allowance, and with it the broker's time.
    pub(crate) async fn open(
        budgets: Budgets,
        (watch, work): (Option<Watch>, Option<Work>),
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
            work,
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

    /// What a client learned in this window, in thousandths of answers. The broker is asked
    /// where it has said nothing of that yet.
    pub(crate) async fn gained(&self, client: ClientDigest) -> Result<u64, SpendError> {
        let budget = self.budgets.client.ok_or(SpendError::Unavailable)?;
        let purse = self.purse(Some(client)).ok_or(SpendError::Unavailable)?;
        let mut purse = purse.lock().await;
        purse.expire();
        if !purse.is_current() {
            self.fill(&mut purse, Some(client), budget, 1).await?;
        }
        if !purse.is_current() {
            return Err(purse.exhausted(Whose::Client));
        }
        Ok(purse.gained)
    }

    /// Pays for queries of one client, or for none; and takes in what was seen in them, once
    /// the broker has what was seen before.
    pub(crate) async fn spend(
        &self,
        client: Option<ClientDigest>,
        answered: Answered,
    ) -> Result<(), SpendError> {
        if is(Weakening::UncountedQueries) {
            return Ok(());
        }
        let Some((watch, client)) = self.watch.as_ref().zip(client) else {
            return self.pay(client, &answered).await;
        };
        let watched = watch.client(client);
        self.tell(client, &mut *watched.lock().await).await?;
        self.pay(Some(client), &answered).await?;
        let mut watched = watched.lock().await;
        watch.see(client, &mut watched, answered.seen);
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

    /// Pays for queries of one client, or for none.
    async fn pay(
        &self,
        client: Option<ClientDigest>,
        answered: &Answered,
    ) -> Result<(), SpendError> {
        let of_client = self.budgets.client.filter(|_| client.is_some());
        let paid = match of_client {
            Some(budget) => Some(self.take(client, budget, answered).await?),
            None => None,
        };
        let taken = match self.budgets.model {
            Some(budget) => self.take(None, budget, answered).await.map(|_| ()),
            None => Ok(()),
        };
        if let Some(drawn) = paid {
            let Answered { queries, gain, .. } = *answered;
            let change = |purse: &mut Purse| match taken {
                Ok(()) if self.work.is_some() => purse.credit(queries, gain),
                Ok(()) => {}
                Err(_) => purse.give_back(queries, gain),
            };
            self.in_purse(client, drawn, change).await;
        }
        taken
    }

    /// Changes the purse that paid, unless it has ended since.
    async fn in_purse(
        &self,
        client: Option<ClientDigest>,
        drawn: u64,
        change: impl FnOnce(&mut Purse),
    ) {
        let Some(purse) = self.purse(client) else {
            return;
        };
        let mut purse = purse.lock().await;
        if purse.drawn == drawn {
            change(&mut purse);
        }
    }

    /// Takes queries from one purse, which is filled up first if it has to be, and says which
    /// it was. Whoever else wants the same purse waits.
    async fn take(
        &self,
        client: Option<ClientDigest>,
        budget: QueryBudget,
        answered: &Answered,
    ) -> Result<u64, SpendError> {
        let queries = answered.queries;
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
            return Err(purse.exhausted(whose));
        }
        if let Some(work) = self.work.filter(|_| client.is_some())
            && work.bits_of(purse.gained, queries) > answered.worked
            && !is(Weakening::UnworkedAnswers)
        {
            let gained = purse.gained;
            return Err(SpendError::Dearer { gained });
        }
        purse.spend(queries, answered.gain);
        Ok(purse.drawn)
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
        let wanted = missing.max(purse.next.min(self.most_at_once(client, budget)));
        let request = AllowanceRequest {
            credit: purse.credited(),
            ..request(&self.budgets, client, budget, wanted)
        };
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

    /// How many queries are asked for at once, unless more are needed. Where answers cost
    /// work, an instance that ends takes along no more than doubles it.
    fn most_at_once(&self, client: Option<ClientDigest>, budget: QueryBudget) -> u64 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "1 to 1,000,000"
        )]
        let of_work = |work: Work| work.gain as u64;
        let of_work = self.work.filter(|_| client.is_some()).map(of_work);
        let most = of_work.unwrap_or(MOST_AT_ONCE).min(MOST_AT_ONCE);
        (budget.smallest() / PARTS).clamp(1, most.max(1))
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
        credit: None,
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
