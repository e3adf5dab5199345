//! Counting queries: what a guarded model may still answer, and to whom.
//!
//! The broker counts and keeps the clock; this process spends what it was allowed and asks
//! for more. What it holds dies with it, and is spent for the broker already, so restarts,
//! rollbacks, replicas and this machine's clock give nobody a query more.
//!
//! An allowance ends by the monotonic clock, counted from before it was asked for. An operator
//! who freezes the machine keeps one alive, but its size is the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use occlude_broker::{
    Allowance, AllowanceRequest, AttestedSession, ClientDigest, FetchError, QueryLimits,
};
use occlude_guard::{Budgets, QueryBudget};
use occlude_keys::{HeaderDigest, ModelKey, OwnerPublic};
use occlude_weakening::{Weakening, is};
use tokio::time::Instant;

use crate::loading::Loader;

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

/// Why the broker allows no queries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllowError {
    /// It said no, or has no such path.
    #[error("{0}")]
    Refused(String),
    /// It said nothing, or nothing that makes sense.
    #[error("{0}")]
    Unavailable(String),
}

/// Whoever allows queries.
pub(crate) trait Allow: Send + Sync {
    fn allow(
        &self,
        request: &AllowanceRequest,
    ) -> impl Future<Output = Result<Allowance, AllowError>> + Send;
}

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
    pub(crate) async fn open(budgets: Budgets, allow: A) -> Result<Self, AllowError> {
        let budget = budgets.model.unwrap_or(QueryBudget {
            window: None,
            total: None,
        });
        let asked = Instant::now();
        let wanted = u64::from(budgets.model.is_some());
        let request = request(&budgets, None, budget, wanted);
        let first = ask(&allow, &request).await?;
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
        })
    }

    /// Seconds since 1970 by the broker's clock.
    pub(crate) fn now(&self) -> u64 {
        let clock = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let since = clock.asked.elapsed().as_secs() + 1;
        clock.time.saturating_add(since)
    }

    /// Pays for so many queries of one client, or for none.
    pub(crate) async fn spend(
        &self,
        client: Option<ClientDigest>,
        queries: u64,
    ) -> Result<(), SpendError> {
        if is(Weakening::UncountedQueries) {
            return Ok(());
        }
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
        match ask(&self.allow, &request).await {
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

    /// Whether forgetting it would lose anything.
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

async fn ask(allow: &impl Allow, request: &AllowanceRequest) -> Result<Allowance, AllowError> {
    let asked = tokio::time::timeout(LONGEST_ASK, allow.allow(request)).await;
    asked.unwrap_or_else(|_| {
        let seconds = LONGEST_ASK.as_secs();
        Err(AllowError::Unavailable(format!(
            "no answer within {seconds} s"
        )))
    })
}

/// What the broker allows one sealed version.
pub(crate) struct BrokerAllowances {
    loader: Arc<Loader>,
    owner: OwnerPublic,
    digest: HeaderDigest,
    key: ModelKey,
    /// Evidence was shown for it; the broker forgets it after a while.
    session: tokio::sync::Mutex<Option<Arc<AttestedSession>>>,
}

impl BrokerAllowances {
    pub(crate) fn new(
        loader: Arc<Loader>,
        owner: OwnerPublic,
        digest: HeaderDigest,
        key: ModelKey,
    ) -> Self {
        Self {
            loader,
            owner,
            digest,
            key,
            session: tokio::sync::Mutex::new(None),
        }
    }

    /// The session that is open, or a new one instead of one that `failed`, and whether it is
    /// new.
    async fn session(
        &self,
        failed: Option<&Arc<AttestedSession>>,
    ) -> Result<(Arc<AttestedSession>, bool), FetchError> {
        let mut current = self.session.lock().await;
        if let Some(session) = &*current
            && failed.is_none_or(|failed| !Arc::ptr_eq(failed, session))
        {
            return Ok((Arc::clone(session), false));
        }
        let Loader {
            broker, attester, ..
        } = &*self.loader;
        let session = Arc::new(broker.attest(attester).await?);
        *current = Some(Arc::clone(&session));
        Ok((session, true))
    }

    async fn exchange(&self, request: &AllowanceRequest) -> Result<Allowance, FetchError> {
        let owner = self.owner.fingerprint();
        let ask = async |session: &AttestedSession| {
            session
                .allowance(&owner, &self.digest, &self.key, request)
                .await
        };
        let (session, new) = self.session(None).await?;
        match ask(&session).await {
            Err(FetchError::Refused { .. }) if !new => {
                let (session, _) = self.session(Some(&session)).await?;
                ask(&session).await
            }
            answer => answer,
        }
    }
}

impl Allow for BrokerAllowances {
    async fn allow(&self, request: &AllowanceRequest) -> Result<Allowance, AllowError> {
        let answer = self.exchange(request).await;
        self.loader.metrics.allowance(match &answer {
            Ok(_) => "answered",
            Err(FetchError::Refused { .. }) => "refused",
            Err(_) => "unavailable",
        });
        answer.map_err(|error| match error {
            FetchError::Refused { reason } => AllowError::Refused(reason),
            error => AllowError::Unavailable(error.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// The broker's clock at the start.
    const TIME: u64 = 1_800_000_000;

    /// Gives what it was told to, and remembers what it was asked.
    #[derive(Default)]
    struct Script {
        answers: Mutex<VecDeque<Result<Allowance, AllowError>>>,
        asked: Mutex<Vec<(Option<ClientDigest>, u64)>>,
    }

    impl Allow for Arc<Script> {
        async fn allow(&self, request: &AllowanceRequest) -> Result<Allowance, AllowError> {
            let asked = (request.client, request.queries);
            self.asked.lock().unwrap().push(asked);
            // Long enough that whoever does not wait is ahead.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let next = self.answers.lock().unwrap().pop_front();
            next.unwrap_or_else(|| panic!("nothing is written for {asked:?}"))
        }
    }

    impl Script {
        fn then(&self, answer: Result<Allowance, AllowError>) {
            self.answers.lock().unwrap().push_back(answer);
        }

        fn asked(&self) -> Vec<(Option<ClientDigest>, u64)> {
            std::mem::take(&mut *self.asked.lock().unwrap())
        }
    }

    fn some(queries: u64) -> Result<Allowance, AllowError> {
        Ok(Allowance {
            queries,
            ends_in: 60,
            more_later: true,
            time: TIME,
        })
    }

    fn unavailable() -> Result<Allowance, AllowError> {
        Err(AllowError::Unavailable("it is away".to_owned()))
    }

    fn window(window: u64) -> Option<QueryBudget> {
        Some(QueryBudget {
            window: Some(window),
            total: None,
        })
    }

    fn total(total: u64) -> Option<QueryBudget> {
        Some(QueryBudget {
            window: None,
            total: Some(total),
        })
    }

    fn client(byte: u8) -> Option<ClientDigest> {
        Some([byte; 32].into())
    }

    async fn open(
        client: Option<QueryBudget>,
        model: Option<QueryBudget>,
    ) -> (Meter<Arc<Script>>, Arc<Script>) {
        let script = Arc::new(Script::default());
        script.then(some(1));
        let budgets = Budgets {
            window_seconds: 60,
            client,
            model,
        };
        let meter = Meter::open(budgets, Arc::clone(&script)).await.unwrap();
        assert_eq!(script.asked(), [(None, 1)]);
        (meter, script)
    }

    fn exhausted(whose: Whose, left: u64, again_in: Option<u64>) -> Result<(), SpendError> {
        Err(SpendError::Exhausted {
            whose,
            left,
            again_in: again_in.map(Duration::from_millis),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_allowance_is_spent_before_there_is_another_and_they_grow() {
        let (meter, script) = open(None, window(64)).await;
        for allowed in [1, 2, 4, 4] {
            if allowed > 1 {
                script.then(some(allowed));
            }
            for _ in 0..allowed {
                assert_eq!(meter.spend(None, 1).await, Ok(()));
            }
        }
        assert_eq!(script.asked(), [(None, 2), (None, 4), (None, 4)]);
        // More is asked for where more is needed.
        script.then(some(20));
        assert_eq!(meter.spend(None, 20).await, Ok(()));
        assert_eq!(script.asked(), [(None, 20)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_broker_has_no_more_of_is_refused_until_the_window_ends() {
        let (meter, script) = open(None, window(64)).await;
        script.then(some(5));
        let refused = |left| exhausted(Whose::Model, left, Some(59_990));
        assert_eq!(meter.spend(None, 8).await, refused(6));
        assert_eq!(script.asked(), [(None, 7)]);
        // The broker is not asked again, and what is left can be had.
        assert_eq!(meter.spend(None, 8).await, refused(6));
        assert_eq!(meter.spend(None, 6).await, Ok(()));
        assert_eq!(meter.spend(None, 1).await, refused(0));
        assert_eq!(script.asked(), []);
        tokio::time::sleep(Duration::from_secs(60)).await;
        script.then(some(1));
        assert_eq!(meter.spend(None, 1).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_allowance_ends_with_its_window() {
        let (meter, script) = open(None, window(64)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        script.then(some(1));
        assert_eq!(meter.spend(None, 1).await, Ok(()));
        assert_eq!(script.asked(), [(None, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_for_windows_an_allowance_stays() {
        let (meter, script) = open(None, total(64)).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(meter.spend(None, 1).await, Ok(()));
        assert_eq!(script.asked(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_total_that_is_used_up_is_never_asked_for_again() {
        let (meter, script) = open(None, total(64)).await;
        assert_eq!(meter.spend(None, 1).await, Ok(()));
        script.then(some(0).map(|allowance| Allowance {
            more_later: false,
            ..allowance
        }));
        assert_eq!(meter.spend(None, 1).await, exhausted(Whose::Model, 0, None));
        assert_eq!(script.asked().len(), 1);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(meter.spend(None, 1).await, exhausted(Whose::Model, 0, None));
        assert_eq!(script.asked(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_have_their_own_and_the_models_is_everyones() {
        let (meter, script) = open(window(32), window(64)).await;
        script.then(some(1));
        assert_eq!(meter.spend(client(1), 1).await, Ok(()));
        script.then(some(1));
        script.then(some(0));
        let none = exhausted(Whose::Model, 0, Some(59_990));
        assert_eq!(meter.spend(client(2), 1).await, none);
        assert_eq!(script.asked(), [(client(1), 1), (client(2), 1), (None, 2)]);
        // The second client has its own left: it bought nothing.
        assert_eq!(meter.spend(client(2), 1).await, none);
        assert_eq!(script.asked(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_any_is_not_paid_for_by_the_model() {
        let (meter, script) = open(window(32), window(64)).await;
        script.then(some(0));
        let none = exhausted(Whose::Client, 0, Some(59_990));
        assert_eq!(meter.spend(client(1), 1).await, none);
        script.then(some(1));
        assert_eq!(meter.spend(client(2), 1).await, Ok(()));
        assert_eq!(script.asked(), [(client(1), 1), (client(2), 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_gets_back_does_not_outlive_its_window() {
        let (meter, script) = open(window(32), window(64)).await;
        assert_eq!(meter.spend(None, 1).await, Ok(()));
        script.then(some(1));
        script.then(unavailable());
        assert_eq!(
            meter.spend(client(1), 1).await,
            Err(SpendError::Unavailable)
        );
        tokio::time::sleep(Duration::from_secs(60)).await;
        script.then(some(1));
        script.then(some(1));
        assert_eq!(meter.spend(client(1), 1).await, Ok(()));
        assert_eq!(script.asked().len(), 4);
        // Nor comes it back into another.
        let other = Instant::now() - Duration::from_secs(1);
        meter.give_back(client(1), 1, other).await;
        script.then(some(0));
        let none = exhausted(Whose::Client, 0, Some(59_990));
        assert_eq!(meter.spend(client(1), 1).await, none);
    }

    #[tokio::test(start_paused = true)]
    async fn more_at_once_than_can_ever_be_is_not_asked_for() {
        let (meter, script) = open(window(32), window(64)).await;
        let too_many = |whose, limit| Err(SpendError::TooMany { whose, limit });
        assert_eq!(
            meter.spend(client(1), 33).await,
            too_many(Whose::Client, 32)
        );
        assert_eq!(meter.spend(None, 65).await, too_many(Whose::Model, 64));
        assert_eq!(script.asked(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_is_away_is_left_alone_for_a_while() {
        let (meter, script) = open(None, window(64)).await;
        script.then(unavailable());
        let refused = Err(SpendError::Unavailable);
        assert_eq!(meter.spend(None, 2).await, refused);
        assert_eq!(meter.spend(None, 2).await, refused);
        // What is there can be spent all the same.
        assert_eq!(meter.spend(None, 1).await, Ok(()));
        assert_eq!(script.asked(), [(None, 2)]);
        tokio::time::sleep(PAUSE).await;
        script.then(some(2));
        assert_eq!(meter.spend(None, 1).await, Ok(()));
        assert_eq!(script.asked(), [(None, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_answered_as_often_as_there_is_budget() {
        let (meter, script) = open(None, window(5)).await;
        for _ in 0..4 {
            script.then(some(1));
        }
        script.then(some(0));
        let meter = Arc::new(meter);
        let mut flood = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let meter = Arc::clone(&meter);
            flood.spawn(async move { meter.spend(None, 1).await.is_ok() });
        }
        let answered = flood.join_all().await;
        assert_eq!(answered.iter().filter(|answered| **answered).count(), 5);
        assert_eq!(script.asked().len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_brokers_time_goes_on_and_is_rather_ahead() {
        let (meter, _) = open(None, window(64)).await;
        assert_eq!(meter.now(), TIME + 1);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(meter.now(), TIME + 101);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_first_answer_there_is_no_meter() {
        let script = Arc::new(Script::default());
        script.then(Err(AllowError::Refused("no such path".to_owned())));
        let budgets = Budgets {
            window_seconds: 60,
            client: window(1),
            model: None,
        };
        let refused = Meter::open(budgets, Arc::clone(&script)).await.err();
        assert_eq!(
            refused,
            Some(AllowError::Refused("no such path".to_owned()))
        );
        assert_eq!(script.asked(), [(None, 0)]);
    }
}
