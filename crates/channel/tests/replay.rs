//! Replays, and the keys whose memory refuses them.

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use occlude_channel::{Gateway, Kem, Limits, OpenError};

use support::{BOTH, gateway, refusal, request, sender};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn the_limits_are_a_day_ten_minutes_and_2_to_the_20_requests() {
    let limits = Limits::default();
    assert_eq!(limits.key_lifetime, 24 * HOUR);
    assert_eq!(limits.key_overlap, 10 * MINUTE);
    assert_eq!(limits.requests_per_key, 1 << 20);
}

#[test]
fn a_replay_is_refused_however_often_it_comes() {
    for kem in BOTH {
        let gateway = gateway(kem);
        let (wire, _) = sender(&gateway).seal(&request()).unwrap();
        assert_eq!(refusal(gateway.open(&wire)), "opened");
        for _ in 0..3 {
            assert_eq!(refusal(gateway.open(&wire)), "replayed");
        }
        let (another, _) = sender(&gateway).seal(&request()).unwrap();
        assert_eq!(refusal(gateway.open(&another)), "opened");
    }
}

#[test]
fn of_concurrent_copies_exactly_one_is_opened() {
    const COPIES: usize = 8;
    for kem in BOTH {
        let gateway = gateway(kem);
        for _ in 0..25 {
            let (wire, _) = sender(&gateway).seal(&request()).unwrap();
            let start = Barrier::new(COPIES);
            let results: Vec<_> = thread::scope(|scope| {
                let copies: Vec<_> = (0..COPIES)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            refusal(gateway.open(&wire))
                        })
                    })
                    .collect();
                copies
                    .into_iter()
                    .map(|copy| copy.join().unwrap())
                    .collect()
            });
            let count = |what| results.iter().filter(|&&result| result == what).count();
            assert_eq!((count("opened"), count("replayed")), (1, COPIES - 1));
        }
    }
}

#[test]
fn concurrent_requests_do_not_pass_the_limit() {
    const LIMIT: usize = 10;
    let gateway = Gateway::new(
        Kem::X25519,
        Limits {
            requests_per_key: LIMIT,
            ..Limits::default()
        },
    )
    .unwrap();
    let sender = sender(&gateway);
    let start = Barrier::new(3 * LIMIT);
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..3 * LIMIT)
            .map(|_| {
                scope.spawn(|| {
                    let (wire, _) = sender.seal(&request()).unwrap();
                    start.wait();
                    refusal(gateway.open(&wire))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let count = |what| results.iter().filter(|&&result| result == what).count();
    assert_eq!(
        (count("opened"), count("key exhausted")),
        (LIMIT, 2 * LIMIT)
    );
}

#[test]
fn a_key_is_replaced_after_its_lifetime_and_destroyed_after_its_overlap() {
    let gateway = gateway(Kem::XWing);
    let old = sender(&gateway);
    let old_configurations = gateway.key_configurations();
    let (seen, _) = old.seal(&request()).unwrap();
    let seal = || old.seal(&request()).unwrap().0;
    let (during, after) = (seal(), seal());
    assert_eq!(refusal(gateway.open(&seen)), "opened");

    assert!(
        !gateway
            .rotate_if_due(24 * HOUR - Duration::from_nanos(1))
            .unwrap()
    );
    assert_eq!(gateway.current(), (0, old_configurations.clone()));
    assert!(gateway.rotate_if_due(24 * HOUR).unwrap());
    assert_eq!(gateway.generation(), 1);
    assert_ne!(gateway.key_configurations(), old_configurations);
    assert!(!gateway.rotate_if_due(24 * HOUR).unwrap());

    // In the overlap the old key opens what is new and remembers what it opened.
    assert!(!gateway.rotate_if_due(24 * HOUR + 9 * MINUTE).unwrap());
    assert_eq!(refusal(gateway.open(&during)), "opened");
    assert_eq!(refusal(gateway.open(&during)), "replayed");
    assert_eq!(refusal(gateway.open(&seen)), "replayed");
    let new = sender(&gateway).seal(&request()).unwrap().0;
    assert_eq!(refusal(gateway.open(&new)), "opened");

    // After it the key is gone, with its memory: nothing made for it can be opened.
    assert!(!gateway.rotate_if_due(24 * HOUR + 10 * MINUTE).unwrap());
    for wire in [&seen, &during, &after] {
        assert!(matches!(
            gateway.open(wire),
            Err(OpenError::UnknownKey { id }) if id == old_configurations[2]
        ));
    }
    assert_eq!(refusal(gateway.open(&new)), "replayed");
    assert_eq!(gateway.generation(), 1);
}

#[test]
fn a_clock_that_is_set_back_neither_revives_a_key_nor_forgets_a_request() {
    let gateway = gateway(Kem::X25519);
    let old = sender(&gateway);
    let (seen, unsent) = (
        old.seal(&request()).unwrap().0,
        old.seal(&request()).unwrap().0,
    );
    assert_eq!(refusal(gateway.open(&seen)), "opened");
    assert!(gateway.rotate_if_due(25 * HOUR).unwrap());
    assert!(!gateway.rotate_if_due(Duration::ZERO).unwrap());
    assert_eq!(refusal(gateway.open(&seen)), "replayed");
    assert!(!gateway.rotate_if_due(26 * HOUR).unwrap());
    assert!(!gateway.rotate_if_due(Duration::ZERO).unwrap());
    assert_eq!(refusal(gateway.open(&unsent)), "unknown key");
}

#[test]
fn a_key_that_is_replaced_while_the_clock_is_set_back_keeps_its_overlap() {
    let gateway = Gateway::new(
        Kem::X25519,
        Limits {
            requests_per_key: 1,
            ..Limits::default()
        },
    )
    .unwrap();
    assert!(gateway.rotate_if_due(25 * HOUR).unwrap());
    let (wire, _) = sender(&gateway).seal(&request()).unwrap();
    assert_eq!(refusal(gateway.open(&wire)), "opened");
    assert!(gateway.rotate_if_due(Duration::ZERO).unwrap());
    assert!(!gateway.rotate_if_due(25 * HOUR + 9 * MINUTE).unwrap());
    assert_eq!(refusal(gateway.open(&wire)), "key exhausted");
}

#[test]
fn a_clock_that_stands_still_forgets_nothing() {
    let gateway = gateway(Kem::X25519);
    let (wire, _) = sender(&gateway).seal(&request()).unwrap();
    assert_eq!(refusal(gateway.open(&wire)), "opened");
    for _ in 0..100 {
        assert!(!gateway.rotate_if_due(Duration::ZERO).unwrap());
    }
    assert_eq!(refusal(gateway.open(&wire)), "replayed");
}

#[test]
fn the_far_future_does_not_overflow() {
    let gateway = gateway(Kem::X25519);
    let (wire, _) = sender(&gateway).seal(&request()).unwrap();
    assert!(gateway.rotate_if_due(Duration::MAX).unwrap());
    assert_eq!(refusal(gateway.open(&wire)), "opened");
    assert!(!gateway.rotate_if_due(Duration::MAX).unwrap());
    assert_eq!(refusal(gateway.open(&wire)), "unknown key");
}

#[test]
fn a_key_opens_as_many_requests_as_its_limit_and_is_replaced_before() {
    let gateway = Gateway::new(
        Kem::X25519,
        Limits {
            requests_per_key: 16,
            ..Limits::default()
        },
    )
    .unwrap();
    let old = sender(&gateway);
    let next = || old.seal(&request()).unwrap().0;
    let open = |wire: &[u8]| refusal(gateway.open(wire));
    for _ in 0..13 {
        assert_eq!(open(&next()), "opened");
    }
    assert!(!gateway.rotate_if_due(HOUR).unwrap());
    let fourteenth = next();
    assert_eq!(open(&fourteenth), "opened");
    assert!(gateway.rotate_if_due(HOUR).unwrap());
    for _ in 14..16 {
        assert_eq!(open(&next()), "opened");
    }
    assert_eq!(open(&next()), "key exhausted");
    assert_eq!(open(&fourteenth), "key exhausted");
    let new = sender(&gateway).seal(&request()).unwrap().0;
    assert_eq!(open(&new), "opened");
}

#[test]
fn without_rotation_an_exhausted_key_stays_so() {
    let gateway = Gateway::new(
        Kem::XWing,
        Limits {
            requests_per_key: 1,
            ..Limits::default()
        },
    )
    .unwrap();
    let sender = sender(&gateway);
    let next = || sender.seal(&request()).unwrap().0;
    assert_eq!(refusal(gateway.open(&next())), "opened");
    assert_eq!(refusal(gateway.open(&next())), "key exhausted");
    assert_eq!(refusal(gateway.open(&next())), "key exhausted");
}

#[test]
fn unauthentic_requests_do_not_use_up_the_key() {
    let gateway = Gateway::new(
        Kem::X25519,
        Limits {
            requests_per_key: 2,
            ..Limits::default()
        },
    )
    .unwrap();
    let (wire, _) = sender(&gateway).seal(&request()).unwrap();
    for position in 7..50 {
        let mut noise = wire.clone();
        noise[position] ^= 1;
        assert_eq!(refusal(gateway.open(&noise)), "inauthentic");
    }
    assert_eq!(refusal(gateway.open(&wire)), "opened");
}

#[test]
fn keys_replaced_faster_than_their_overlap_are_bounded_in_number() {
    let gateway = Gateway::new(
        Kem::X25519,
        Limits {
            requests_per_key: 1,
            ..Limits::default()
        },
    )
    .unwrap();
    let mut waiting = Vec::new();
    for generation in 1..=6 {
        let sender = sender(&gateway);
        waiting.push(sender.seal(&request()).unwrap().0);
        let used = sender.seal(&request()).unwrap().0;
        assert_eq!(refusal(gateway.open(&used)), "opened");
        assert!(gateway.rotate_if_due(Duration::ZERO).unwrap());
        assert_eq!(gateway.generation(), generation);
    }
    let results: Vec<_> = waiting
        .iter()
        .map(|wire| refusal(gateway.open(wire)))
        .collect();
    assert_eq!(results[..3], ["unknown key"; 3]);
    assert_eq!(results[3..], ["key exhausted"; 3]);
}

#[test]
fn without_overlap_a_replaced_key_is_destroyed_at_once() {
    let gateway = Gateway::new(
        Kem::X25519,
        Limits {
            key_overlap: Duration::ZERO,
            ..Limits::default()
        },
    )
    .unwrap();
    let (wire, _) = sender(&gateway).seal(&request()).unwrap();
    assert!(gateway.rotate_if_due(24 * HOUR).unwrap());
    assert_eq!(refusal(gateway.open(&wire)), "unknown key");
}
