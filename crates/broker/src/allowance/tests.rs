//! Counting and sealing, without a broker around them.

use occlude_attest::UnixTime;
use occlude_keys::{ModelKey, OwnerFingerprint};
use zeroize::Zeroizing;

use super::*;
use crate::kbs::jwe::{Curve, RecipientKey, TeeKey};

const HOUR: u32 = 3600;

/// A moment in the middle of an hour.
const NOW: UnixTime = UnixTime(1_800_000_000 + 1800);

fn scope(client: Option<u8>) -> Scope {
    Scope {
        owner: OwnerFingerprint::from([1; 32]),
        model: "digits".parse().unwrap(),
        client: client.map(|client| [client; 32].into()),
    }
}

fn request(queries: u64, window: Option<u64>, total: Option<u64>) -> AllowanceRequest {
    AllowanceRequest {
        client: None,
        queries,
        limits: QueryLimits {
            window_seconds: HOUR,
            window,
            total,
        },
        credit: None,
    }
}

/// With a credit of so much.
fn credited(queries: u64, of: u64, thousandths: u64) -> AllowanceRequest {
    AllowanceRequest {
        credit: Some(Credit { of, thousandths }),
        ..request(queries, Some(100), None)
    }
}

/// Of client 1.
fn report(unusual: &[Unusual], throttle_seconds: Option<u32>) -> UsageReport {
    UsageReport {
        client: [1; 32].into(),
        queries: 100,
        uncertain: 60,
        unusual: unusual.to_vec(),
        throttle_seconds,
    }
}

impl Ledger {
    /// Reports of client 1, and is told how long it has to wait.
    fn tell(&mut self, report: &UsageReport, at: u64) -> u32 {
        let (taken, event) = self.report(scope(Some(1)), report, UnixTime(at));
        self.follow(&event);
        taken.throttled_for
    }

    /// Asks and counts.
    fn ask(&mut self, scope: Scope, request: &AllowanceRequest, at: UnixTime) -> Allowance {
        let (allowance, event) = self.allow(scope, request, at);
        self.follow(&event);
        allowance
    }

    fn queries(&mut self, request: &AllowanceRequest, at: u64) -> u64 {
        self.ask(scope(None), request, UnixTime(at)).queries
    }
}

#[test]
fn a_window_gives_what_is_left_and_the_next_begins_anew() {
    let mut ledger = Ledger::default();
    let asked = request(6, Some(10), None);
    let first = ledger.ask(scope(None), &asked, NOW);
    let expected = Allowance {
        queries: 6,
        ends_in: 1800,
        more_later: true,
        gained: 6000,
        time: NOW.0,
    };
    assert_eq!(first, expected);
    assert_eq!(ledger.queries(&asked, NOW.0 + 1799), 4);
    let last = ledger.ask(scope(None), &asked, UnixTime(NOW.0 + 1799));
    assert_eq!((last.queries, last.ends_in, last.more_later), (0, 1, true));
    let next = ledger.ask(scope(None), &asked, UnixTime(NOW.0 + 1800));
    assert_eq!((next.queries, next.ends_in), (6, HOUR));
}

#[test]
fn a_total_is_for_ever() {
    let mut ledger = Ledger::default();
    let asked = request(6, Some(8), Some(10));
    let first = ledger.ask(scope(None), &asked, NOW);
    assert_eq!((first.queries, first.more_later), (6, true));
    assert_eq!(ledger.queries(&asked, NOW.0), 2);
    let last = ledger.ask(scope(None), &asked, UnixTime(NOW.0 + 7200));
    assert_eq!((last.queries, last.more_later), (2, false));
    assert_eq!(ledger.queries(&asked, NOW.0 + 72_000), 0);
}

#[test]
fn a_clock_set_back_gives_nothing() {
    let mut ledger = Ledger::default();
    let asked = request(10, Some(10), None);
    assert_eq!(ledger.queries(&asked, NOW.0), 10);
    let back = ledger.ask(scope(None), &asked, UnixTime(NOW.0 - 7200));
    assert_eq!((back.queries, back.ends_in), (0, HOUR));
    assert_eq!(ledger.queries(&asked, NOW.0), 0);
}

#[test]
fn another_length_of_the_window_resets_none() {
    let mut ledger = Ledger::default();
    let hourly = request(10, Some(10), None);
    let mut daily = hourly.clone();
    daily.limits.window_seconds = 24 * HOUR;
    assert_eq!(ledger.queries(&hourly, NOW.0), 10);
    assert_eq!(ledger.queries(&daily, NOW.0), 10);
    assert_eq!(ledger.queries(&hourly, NOW.0), 0);
    assert_eq!(ledger.queries(&daily, NOW.0), 0);
}

#[test]
fn scopes_are_counted_apart() {
    let mut ledger = Ledger::default();
    let asked = request(10, Some(10), Some(10));
    let mut others = vec![scope(None), scope(Some(1)), scope(Some(2))];
    others.push(Scope {
        model: "other".parse().unwrap(),
        ..scope(Some(1))
    });
    others.push(Scope {
        owner: OwnerFingerprint::from([2; 32]),
        ..scope(Some(1))
    });
    for scope in others {
        assert_eq!(ledger.ask(scope.clone(), &asked, NOW).queries, 10);
        assert_eq!(ledger.ask(scope, &asked, NOW).queries, 0);
    }
}

#[test]
fn what_is_allowed_counts_as_learned_until_an_instance_says_that_it_was_less() {
    let mut ledger = Ledger::default();
    let mut gained = |request: &AllowanceRequest, at: u64| {
        let allowance = ledger.ask(scope(Some(1)), request, UnixTime(at));
        allowance.gained
    };
    let asked = request(10, Some(100), None);
    assert_eq!(gained(&asked, NOW.0), 10_000);
    assert_eq!(gained(&credited(10, 7, 9_000), NOW.0), 11_000);
    // What is said again, or came late, counts once.
    assert_eq!(gained(&credited(0, 7, 9_000), NOW.0), 11_000);
    assert_eq!(gained(&credited(0, 7, 8_000), NOW.0), 11_000);
    assert_eq!(gained(&credited(0, 7, 9_500), NOW.0), 10_500);
    // Another instance, and one that ended and takes along what it did not say.
    assert_eq!(gained(&credited(1, 8, 500), NOW.0), 11_000);
    assert_eq!(gained(&request(5, Some(100), None), NOW.0), 16_000);
    // A clock set back changes nothing, the next window begins anew.
    assert_eq!(gained(&request(0, Some(100), None), NOW.0 - 7200), 16_000);
    assert_eq!(gained(&credited(3, 8, 1_000), NOW.0 + 1800), 2_000);
    // No more is given back than was counted, and other clients have their own.
    assert_eq!(gained(&credited(1, 8, u64::MAX), NOW.0 + 1800), 0);
    assert_eq!(gained(&credited(1, 9, u64::MAX), NOW.0 + 1800), 0);
    let other = ledger.ask(scope(Some(2)), &asked, UnixTime(NOW.0 + 1800));
    assert_eq!(other.gained, 10_000);
}

#[test]
fn who_asks_unusually_waits_where_the_owner_wants_it_and_others_do_not() {
    const UNUSUAL: &[Unusual] = &[Unusual::Uncertain];
    let mut ledger = Ledger::default();
    let asked = request(10, Some(1000), None);
    assert_eq!(ledger.tell(&report(UNUSUAL, None), NOW.0), 0);
    assert_eq!(ledger.tell(&report(&[], Some(600)), NOW.0), 0);
    assert_eq!(ledger.ask(scope(Some(1)), &asked, NOW).queries, 10);

    assert_eq!(ledger.tell(&report(UNUSUAL, Some(600)), NOW.0), 600);
    let at = |seconds| UnixTime(NOW.0 + seconds);
    let waiting = ledger.ask(scope(Some(1)), &asked, at(1));
    assert_eq!(
        (waiting.queries, waiting.ends_in, waiting.more_later),
        (0, 599, true)
    );
    for other in [scope(Some(2)), scope(None)] {
        assert_eq!(ledger.ask(other, &asked, at(1)).queries, 10);
    }
    // A shorter pause does not end a longer one, nor does a clock set back.
    assert_eq!(ledger.tell(&report(UNUSUAL, Some(10)), NOW.0 + 100), 500);
    assert_eq!(ledger.ask(scope(Some(1)), &asked, at(599)).queries, 0);
    assert_eq!(ledger.ask(scope(Some(1)), &asked, UnixTime(0)).queries, 0);
    assert_eq!(ledger.ask(scope(Some(1)), &asked, at(600)).queries, 10);
    // The longest is longer than any window.
    assert_eq!(
        ledger.tell(&report(UNUSUAL, Some(u32::MAX)), NOW.0),
        u32::MAX
    );
    let waiting = ledger.ask(scope(Some(1)), &asked, NOW);
    assert_eq!((waiting.queries, waiting.ends_in), (0, u32::MAX));
}

#[test]
fn reports_are_counted_by_model_and_by_what_is_unusual() {
    let mut ledger = Ledger::default();
    ledger.tell(&report(&[], None), NOW.0);
    ledger.tell(&report(&[Unusual::Uncertain], None), NOW.0);
    let both = [Unusual::Uncertain, Unusual::Distances];
    ledger.tell(&report(&both, Some(1)), NOW.0);
    let counted: Vec<_> = ledger.reports().iter().collect();
    let [((owner, model), reports)] = counted[..] else {
        panic!("{counted:?}")
    };
    assert_eq!((*owner, model.as_str()), (scope(None).owner, "digits"));
    assert_eq!(reports.count, 3);
    let unusual = [(Unusual::Uncertain, 2), (Unusual::Distances, 1)];
    assert_eq!(reports.unusual, unusual.into());
}

#[test]
fn no_number_overflows() {
    let mut ledger = Ledger::default();
    let all = request(u64::MAX, None, None);
    for _ in 0..2 {
        assert_eq!(ledger.queries(&all, NOW.0), u64::MAX);
    }
    let limited = request(u64::MAX, Some(u64::MAX), Some(u64::MAX));
    assert_eq!(ledger.queries(&limited, NOW.0), 0);
    let mut long = limited;
    long.limits.window_seconds = u32::MAX;
    long.limits.total = None;
    let allowance = ledger.ask(scope(None), &long, NOW);
    assert_eq!(allowance.queries, u64::MAX);
    // What nobody asks for gives nothing either.
    let mut none = request(1, Some(1), None);
    none.limits.window_seconds = 0;
    assert_eq!(ledger.queries(&none, u64::MAX), 1);
}

fn key(model: u8, session: &TeeKey) -> AllowanceKey {
    let model = ModelKey::new(Zeroizing::new([model; 32]));
    AllowanceKey::new(&model, &RecipientKey::try_from(&session.public()).unwrap())
}

#[test]
fn only_who_has_the_models_and_the_sessions_key_asks_and_answers() {
    for curve in [Curve::P256, Curve::P521] {
        let (session, other) = (TeeKey::generate(curve), TeeKey::generate(curve));
        let asked = request(7, Some(10), None);
        let sent = Asked::Allowance(asked.clone());
        let sealed = key(1, &session).seal_request(&sent);
        assert_eq!(key(1, &session).open_request(&sealed), Some(sent.clone()));
        assert_eq!(key(2, &session).open_request(&sealed), None);
        assert_eq!(key(1, &other).open_request(&sealed), None);

        let (allowance, _) = Ledger::default().allow(scope(None), &asked, NOW);
        let answer = key(1, &session).seal_answer(&sealed.digest(), &allowance);
        let again = key(1, &session).seal_request(&sent);
        let open = |key: AllowanceKey, to: &SealedMessage| {
            key.open_answer::<Allowance>(&to.digest(), &answer)
        };
        assert_eq!(open(key(1, &session), &sealed), Some(allowance));
        assert_eq!(open(key(1, &session), &again), None, "another request");
        assert_eq!(open(key(2, &session), &sealed), None);
        assert_eq!(open(key(1, &other), &sealed), None);
        // Nor does a request pass for an answer, or the other way round.
        assert_eq!(
            key(1, &session).open_answer::<Allowance>(&sealed.digest(), &sealed),
            None
        );
        assert_eq!(key(1, &session).open_request(&answer), None);
    }
}

#[test]
fn every_altered_byte_of_a_message_is_noticed_and_its_length_says_nothing() {
    let session = TeeKey::generate(Curve::P256);
    let key = key(1, &session);
    let sealed = key.seal_request(&Asked::Allowance(request(7, Some(10), None)));
    let json = serde_json::to_string(&sealed).unwrap();
    let bytes = hex::decode(&json[11..json.len() - 2]).unwrap();
    assert_eq!(bytes.len(), 12 + 512 + 16);
    for index in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[index] ^= 1;
        let altered = format!("{{\"sealed\":\"{}\"}}", hex::encode(altered));
        let altered: SealedMessage = serde_json::from_str(&altered).unwrap();
        assert_eq!(key.open_request(&altered), None, "byte {index}");
        assert_ne!(altered.digest(), sealed.digest());
    }
    let mut longest = request(u64::MAX, Some(u64::MAX), Some(u64::MAX));
    longest.client = Some([0xff; 32].into());
    longest.limits.window_seconds = u32::MAX;
    longest.credit = Some(Credit {
        of: u64::MAX,
        thousandths: u64::MAX,
    });
    let mut reported = report(&[Unusual::Uncertain, Unusual::Distances], Some(u32::MAX));
    (reported.queries, reported.uncertain) = (u32::MAX, u32::MAX);
    for longest in [Asked::Allowance(longest), Asked::Report(reported)] {
        let longest = serde_json::to_string(&key.seal_request(&longest)).unwrap();
        assert_eq!(longest.len(), json.len());
    }
}
