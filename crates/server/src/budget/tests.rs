use std::collections::VecDeque;

use occlude_broker::{Acknowledgement, Allowance, Credit, Unusual, UsageReport};
use occlude_guard::{Look, Telemetry, Uncertain};
use occlude_inference_protocol::Tensor;
use occlude_keys::ModelKey;
use occlude_usage::SketchKey;
use zeroize::Zeroizing;

use super::*;

/// The broker's clock at the start.
const TIME: u64 = 1_800_000_000;

/// Gives what it was told to, and remembers what it was asked.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Result<Allowance, AllowError>>>,
    asked: Mutex<Vec<(Option<ClientDigest>, u64)>>,
    credits: Mutex<Vec<Option<Credit>>>,
    /// The same of reports: how long a client is throttled for.
    acknowledgements: Mutex<VecDeque<Result<u32, AllowError>>>,
    reports: Mutex<Vec<UsageReport>>,
}

impl Allow for Arc<Script> {
    async fn allow(&self, request: &AllowanceRequest) -> Result<Allowance, AllowError> {
        let asked = (request.client, request.queries);
        self.asked.lock().unwrap().push(asked);
        self.credits.lock().unwrap().push(request.credit);
        // Long enough that whoever does not wait is ahead.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let next = self.answers.lock().unwrap().pop_front();
        next.unwrap_or_else(|| panic!("nothing is written for {asked:?}"))
    }

    async fn report(&self, report: &UsageReport) -> Result<Acknowledgement, AllowError> {
        self.reports.lock().unwrap().push(report.clone());
        let next = self.acknowledgements.lock().unwrap().pop_front();
        let next = next.unwrap_or_else(|| panic!("nothing is written for {report:?}"));
        next.map(|throttled_for| Acknowledgement { throttled_for })
    }
}

impl Script {
    fn then(&self, answer: Result<Allowance, AllowError>) {
        self.answers.lock().unwrap().push_back(answer);
    }

    fn then_takes(&self, answer: Result<u32, AllowError>) {
        self.acknowledgements.lock().unwrap().push_back(answer);
    }

    fn reports(&self) -> Vec<UsageReport> {
        std::mem::take(&mut *self.reports.lock().unwrap())
    }

    /// What was credited last, in thousandths.
    fn credited(&self) -> u64 {
        let credits = self.credits.lock().unwrap();
        credits
            .last()
            .unwrap()
            .map_or(0, |credit| credit.thousandths)
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
        gained: 0,
        time: TIME,
    })
}

fn queries(queries: u64) -> Answered {
    Answered {
        queries,
        ..Answered::default()
    }
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
    let first = u64::from(model.is_some());
    script.then(some(first));
    let budgets = Budgets {
        window_seconds: 60,
        client,
        model,
    };
    let meter = Meter::open(budgets, (None, None), Arc::clone(&script))
        .await
        .unwrap();
    assert_eq!(script.asked(), [(None, first)]);
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
            assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
        }
    }
    assert_eq!(script.asked(), [(None, 2), (None, 4), (None, 4)]);
    // More is asked for where more is needed.
    script.then(some(20));
    assert_eq!(meter.spend(None, queries(20)).await, Ok(()));
    assert_eq!(script.asked(), [(None, 20)]);
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_has_no_more_of_is_refused_until_the_window_ends() {
    let (meter, script) = open(None, window(64)).await;
    script.then(some(5));
    let refused = |left| exhausted(Whose::Model, left, Some(59_990));
    assert_eq!(meter.spend(None, queries(8)).await, refused(6));
    assert_eq!(script.asked(), [(None, 7)]);
    // The broker is not asked again, and what is left can be had.
    assert_eq!(meter.spend(None, queries(8)).await, refused(6));
    assert_eq!(meter.spend(None, queries(6)).await, Ok(()));
    assert_eq!(meter.spend(None, queries(1)).await, refused(0));
    assert_eq!(script.asked(), []);
    tokio::time::sleep(Duration::from_secs(60)).await;
    script.then(some(1));
    assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_allowance_ends_with_its_window() {
    let (meter, script) = open(None, window(64)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    script.then(some(1));
    assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
    assert_eq!(script.asked(), [(None, 1)]);
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_for_windows_an_allowance_stays() {
    let (meter, script) = open(None, total(64)).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
    assert_eq!(script.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn a_total_that_is_used_up_is_never_asked_for_again() {
    let (meter, script) = open(None, total(64)).await;
    assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
    script.then(some(0).map(|allowance| Allowance {
        more_later: false,
        ..allowance
    }));
    assert_eq!(
        meter.spend(None, queries(1)).await,
        exhausted(Whose::Model, 0, None)
    );
    assert_eq!(script.asked().len(), 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(
        meter.spend(None, queries(1)).await,
        exhausted(Whose::Model, 0, None)
    );
    assert_eq!(script.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn clients_have_their_own_and_the_models_is_everyones() {
    let (meter, script) = open(window(32), window(64)).await;
    script.then(some(1));
    assert_eq!(meter.spend(client(1), queries(1)).await, Ok(()));
    script.then(some(1));
    script.then(some(0));
    let none = exhausted(Whose::Model, 0, Some(59_990));
    assert_eq!(meter.spend(client(2), queries(1)).await, none);
    assert_eq!(script.asked(), [(client(1), 1), (client(2), 1), (None, 2)]);
    // The second client has its own left: it bought nothing.
    assert_eq!(meter.spend(client(2), queries(1)).await, none);
    assert_eq!(script.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_any_is_not_paid_for_by_the_model() {
    let (meter, script) = open(window(32), window(64)).await;
    script.then(some(0));
    let none = exhausted(Whose::Client, 0, Some(59_990));
    assert_eq!(meter.spend(client(1), queries(1)).await, none);
    script.then(some(1));
    assert_eq!(meter.spend(client(2), queries(1)).await, Ok(()));
    assert_eq!(script.asked(), [(client(1), 1), (client(2), 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_gets_back_does_not_outlive_its_window() {
    let (meter, script) = open(window(32), window(64)).await;
    assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
    script.then(some(1));
    script.then(unavailable());
    assert_eq!(
        meter.spend(client(1), queries(1)).await,
        Err(SpendError::Unavailable)
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    script.then(some(1));
    script.then(some(1));
    assert_eq!(meter.spend(client(1), queries(1)).await, Ok(()));
    assert_eq!(script.asked().len(), 4);
    // Nor comes it back into another.
    meter.in_purse(client(1), 0, |purse| purse.left += 1).await;
    script.then(some(0));
    let none = exhausted(Whose::Client, 0, Some(59_990));
    assert_eq!(meter.spend(client(1), queries(1)).await, none);
}

#[tokio::test(start_paused = true)]
async fn more_at_once_than_can_ever_be_is_not_asked_for() {
    let (meter, script) = open(window(32), window(64)).await;
    let too_many = |whose, limit| Err(SpendError::TooMany { whose, limit });
    assert_eq!(
        meter.spend(client(1), queries(33)).await,
        too_many(Whose::Client, 32)
    );
    assert_eq!(
        meter.spend(None, queries(65)).await,
        too_many(Whose::Model, 64)
    );
    assert_eq!(script.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_is_left_alone_for_a_while() {
    let (meter, script) = open(None, window(64)).await;
    script.then(unavailable());
    let refused = Err(SpendError::Unavailable);
    assert_eq!(meter.spend(None, queries(2)).await, refused);
    assert_eq!(meter.spend(None, queries(2)).await, refused);
    // What is there can be spent all the same.
    assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
    assert_eq!(script.asked(), [(None, 2)]);
    tokio::time::sleep(PAUSE).await;
    script.then(some(2));
    assert_eq!(meter.spend(None, queries(1)).await, Ok(()));
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
        flood.spawn(async move { meter.spend(None, queries(1)).await.is_ok() });
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
    let refused = Meter::open(budgets, (None, None), Arc::clone(&script))
        .await
        .err();
    assert_eq!(
        refused,
        Some(AllowError::Refused("no such path".to_owned()))
    );
    assert_eq!(script.asked(), [(None, 0)]);
}

/// Looks at how certain the model is, a hundred answers at a time.
fn watch(throttle_seconds: Option<u32>) -> Watch {
    let telemetry = Telemetry {
        queries: 100,
        uncertain: Some(Uncertain {
            below: 0.5,
            share: 0.25,
        }),
        distances: None,
        throttle_seconds,
    };
    let key = ModelKey::new(Zeroizing::new([1; 32]));
    Watch::new(telemetry, SketchKey::of(&key))
}

/// Answers, of which the first ones are uncertain.
fn seen(watch: &Watch, answers: usize, uncertain: usize) -> Vec<Observation> {
    let inputs = Tensor::from_values("x", vec![answers as u64, 1], &vec![0.5_f32; answers]);
    let looks: Vec<Look> = (0..answers)
        .map(|answer| Look {
            class: 0,
            certainty: if answer < uncertain { 0.4 } else { 0.9 },
        })
        .collect();
    Observation::of(&looks, watch.sketches(&[inputs.unwrap()]))
}

impl Meter<Arc<Script>> {
    async fn ask(&self, number: u8, answers: usize, uncertain: usize) -> Result<(), SpendError> {
        let seen = seen(self.watch().unwrap(), answers, uncertain);
        let answered = Answered {
            seen,
            ..queries(answers as u64)
        };
        self.spend(client(number), answered).await
    }
}

async fn watched(throttle_seconds: Option<u32>) -> (Meter<Arc<Script>>, Arc<Script>) {
    let (mut meter, script) = open(total(100_000), None).await;
    meter.watch = Some(watch(throttle_seconds));
    for _ in 0..3 {
        script.then(some(10_000));
    }
    (meter, script)
}

fn reported(uncertain: u32, queries: u32, throttle_seconds: Option<u32>) -> UsageReport {
    let unusual = f64::from(uncertain) > 0.25 * f64::from(queries);
    UsageReport {
        client: client(1).unwrap(),
        queries,
        uncertain,
        unusual: unusual.then_some(Unusual::Uncertain).into_iter().collect(),
        throttle_seconds,
    }
}

#[tokio::test(start_paused = true)]
async fn each_window_of_a_client_is_reported_and_the_next_begins_anew() {
    let (meter, script) = watched(None).await;
    assert_eq!(meter.ask(1, 60, 10).await, Ok(()));
    // Somebody else's window is another.
    assert_eq!(meter.ask(2, 60, 60).await, Ok(()));
    assert_eq!(script.reports(), []);
    script.then_takes(Ok(0));
    assert_eq!(meter.ask(1, 40, 15).await, Ok(()));
    assert_eq!(script.reports(), [reported(25, 100, None)]);
    assert_eq!(meter.ask(1, 99, 99).await, Ok(()));
    assert_eq!(script.reports(), []);
    script.then_takes(Ok(0));
    assert_eq!(meter.ask(1, 11, 1).await, Ok(()));
    assert_eq!(script.reports(), [reported(100, 110, None)]);
    assert_eq!(meter.ask(1, 1, 1).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_paid_for_is_not_looked_at() {
    let (meter, script) = open(total(100), None).await;
    let meter = Meter {
        watch: Some(watch(None)),
        ..meter
    };
    script.then(some(100));
    assert_eq!(meter.ask(1, 99, 99).await, Ok(()));
    script.then(some(0).map(|allowance| Allowance {
        more_later: false,
        ..allowance
    }));
    assert!(meter.ask(1, 50, 50).await.is_err());
    assert_eq!(script.reports(), []);
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_no_more_until_the_broker_has_the_report() {
    let (meter, script) = watched(None).await;
    script.then_takes(Err(AllowError::Unavailable("it is away".to_owned())));
    assert_eq!(meter.ask(1, 100, 90).await, Ok(()));
    let report = reported(90, 100, None);
    assert_eq!(script.reports(), std::slice::from_ref(&report));
    // It is not asked again within a second.
    assert_eq!(meter.ask(1, 1, 0).await, Err(SpendError::Unavailable));
    assert_eq!(script.reports(), []);
    assert_eq!(meter.ask(2, 1, 0).await, Ok(()));
    tokio::time::sleep(PAUSE).await;
    script.then_takes(Err(AllowError::Refused("not that".to_owned())));
    assert_eq!(meter.ask(1, 1, 0).await, Err(SpendError::Unavailable));
    assert_eq!(script.reports(), std::slice::from_ref(&report));
    tokio::time::sleep(PAUSE).await;
    script.then_takes(Ok(0));
    assert_eq!(meter.ask(1, 1, 0).await, Ok(()));
    assert_eq!(script.reports(), [report]);
}

#[tokio::test(start_paused = true)]
async fn who_is_throttled_waits_though_there_is_some_left() {
    let (meter, script) = watched(Some(600)).await;
    script.then_takes(Ok(600));
    assert_eq!(meter.ask(1, 100, 90).await, Ok(()));
    assert_eq!(script.reports(), [reported(90, 100, Some(600))]);
    let waits = |milliseconds| exhausted(Whose::Client, 0, Some(milliseconds));
    assert_eq!(meter.ask(1, 1, 0).await, waits(600_000));
    assert_eq!(meter.ask(2, 1, 0).await, Ok(()));
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert_eq!(meter.ask(1, 1, 0).await, waits(990));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(meter.ask(1, 1, 0).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn who_asked_longest_ago_is_forgotten_for_others_unless_something_is_due() {
    let watch = watch(None);
    let digest = |number: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        ClientDigest::from(bytes)
    };
    let first = watch.client(digest(0));
    let answers = seen(&watch, 100, 100);
    watch.see(digest(0), &mut *first.lock().await, answers);
    let mut of_all = Vec::new();
    for number in 1..1500 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        of_all.push((number, watch.client(digest(number))));
    }
    let again = watch.client(digest(0));
    assert!(Arc::ptr_eq(&first, &again), "it has a report due");
    let (last, kept) = of_all.last().unwrap();
    assert!(Arc::ptr_eq(kept, &watch.client(digest(*last))));
    let (second, forgotten) = &of_all[0];
    assert!(!Arc::ptr_eq(forgotten, &watch.client(digest(*second))));
}

/// A client's answers double their work with each 8 gained.
async fn working() -> (Meter<Arc<Script>>, Arc<Script>) {
    let (mut meter, script) = open(window(1000), None).await;
    meter.work = Some(Work {
        bits: 10,
        gain: 8.0,
        most_bits: 20,
    });
    (meter, script)
}

/// So many queries that tell so much.
fn telling(queries: u64, gain: u64) -> Answered {
    Answered {
        queries,
        gain,
        worked: u32::MAX,
        ..Answered::default()
    }
}

/// What the broker gives, and says that the client learned by then.
fn some_after(queries: u64, gained: u64) -> Result<Allowance, AllowError> {
    some(queries).map(|allowance| Allowance {
        gained,
        ..allowance
    })
}

#[tokio::test(start_paused = true)]
async fn what_a_client_learned_is_what_the_broker_counts_less_what_is_not_spent() {
    let (meter, script) = working().await;
    let digest = client(1).unwrap();
    // Another instance was allowed three more, which tell all they can until it says so.
    script.then(some_after(1, 4_000));
    assert_eq!(meter.gained(digest).await, Ok(3_000));
    assert_eq!(meter.gained(digest).await, Ok(3_000));
    assert_eq!(script.asked(), [(client(1), 1)]);
    assert_eq!(script.credited(), 0);
    assert_eq!(meter.spend(client(1), telling(1, 50)).await, Ok(()));
    assert_eq!(meter.gained(digest).await, Ok(3_050));

    // What it told less is said with the next request.
    script.then(some_after(2, 5_050));
    assert_eq!(meter.spend(client(1), telling(1, 600)).await, Ok(()));
    assert_eq!(script.credited(), 950);
    assert_eq!(meter.gained(digest).await, Ok(3_050 + 600));
}

#[tokio::test(start_paused = true)]
async fn an_instance_holds_no_more_than_doubles_the_work() {
    let (meter, script) = working().await;
    for allowed in [1, 2, 4, 8, 8] {
        script.then(some(allowed));
        for _ in 0..allowed {
            assert_eq!(meter.spend(client(1), telling(1, 500)).await, Ok(()));
        }
        assert_eq!(script.asked(), [(client(1), allowed)]);
    }
    // All of it so far, but for what is told with the next request.
    assert_eq!(script.credited(), 500 * (1 + 2 + 4 + 8));
}

#[tokio::test(start_paused = true)]
async fn what_was_learned_and_credited_ends_with_its_window() {
    let (meter, script) = working().await;
    let digest = client(1).unwrap();
    script.then(some_after(1, 50_000));
    assert_eq!(meter.spend(client(1), telling(1, 100)).await, Ok(()));
    assert_eq!(meter.gained(digest).await, Ok(49_100));
    let purse = meter.purse(client(1)).unwrap();
    let before = purse.lock().await.drawn;
    tokio::time::sleep(Duration::from_secs(60)).await;
    script.then(some_after(1, 1_000));
    assert_eq!(meter.gained(digest).await, Ok(0));
    assert_eq!(script.credited(), 0);
    // An answer that was paid for before tells nothing of this one.
    let credit = |purse: &mut Purse| purse.credit(1, 100);
    meter.in_purse(client(1), before, credit).await;
    assert_eq!(
        meter.purse(client(1)).unwrap().lock().await.credited(),
        None
    );
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_begins_knows_what_was_learned_at_others_or_answers_nothing() {
    let (meter, script) = working().await;
    let digest = client(1).unwrap();
    script.then(unavailable());
    let refused = Err(SpendError::Unavailable);
    assert_eq!(meter.gained(digest).await, refused);
    assert_eq!(meter.gained(digest).await, refused);
    assert_eq!(script.asked().len(), 1, "not again within a second");
    tokio::time::sleep(PAUSE).await;
    script.then(some_after(0, 77_000));
    assert_eq!(meter.gained(digest).await, Ok(77_000));
    let none = exhausted(Whose::Client, 0, Some(59_990));
    assert_eq!(meter.spend(client(1), telling(1, 0)).await, none);
}

#[tokio::test(start_paused = true)]
async fn many_at_the_same_time_pay_what_answers_cost_after_each_other() {
    let (meter, script) = working().await;
    script.then(some_after(200, 200_000));
    let meter = Arc::new(meter);
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let meter = Arc::clone(&meter);
        // Ten bits are what the first ones cost, until 8 are gained.
        let answered = Answered {
            worked: 10,
            ..telling(1, 900)
        };
        flood.spawn(async move { meter.spend(client(1), answered).await });
    }
    let found = flood.join_all().await;
    let paid = found.iter().filter(|found| found.is_ok()).count();
    assert_eq!(paid, 9);
    let dearer = Err(SpendError::Dearer { gained: 8_100 });
    assert_eq!(found.iter().filter(|found| **found == dearer).count(), 91);
    // Two at once cost twice as much.
    let both = |worked| Answered {
        worked,
        ..telling(2, 0)
    };
    assert_eq!(meter.spend(client(1), both(11)).await, dearer);
    assert_eq!(meter.spend(client(1), both(12)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_the_model_has_none_of_tells_and_credits_nothing() {
    let (meter, script) = open(window(1000), window(64)).await;
    let work = Some(Work {
        bits: 10,
        gain: 8.0,
        most_bits: 20,
    });
    let meter = Meter { work, ..meter };
    script.then(some(1));
    assert_eq!(meter.spend(client(1), telling(1, 300)).await, Ok(()));
    script.then(some_after(2, 2_300));
    script.then(some(0));
    let none = exhausted(Whose::Model, 0, Some(59_990));
    assert_eq!(meter.spend(client(1), telling(1, 300)).await, none);
    assert_eq!(script.credits.lock().unwrap()[2].unwrap().thousandths, 700);
    assert_eq!(meter.gained(client(1).unwrap()).await, Ok(300));
    let purse = meter.purse(client(1)).unwrap();
    let purse = *purse.lock().await;
    assert_eq!(
        (purse.left, purse.credited().unwrap().thousandths),
        (2, 700)
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_throttled_is_told_before_anything_is_computed() {
    let (meter, _) = working().await;
    let purse = meter.purse(client(1)).unwrap();
    let until = Instant::now() + Duration::from_secs(600);
    purse.lock().await.close(until);
    let waits = exhausted(Whose::Client, 0, Some(600_000));
    assert_eq!(meter.gained(client(1).unwrap()).await.map(|_| ()), waits);
}
