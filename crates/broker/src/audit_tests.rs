//! A log that holds, and one case per way of tampering with it.

use super::*;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn log(length: u64) -> AuditExport {
    let mut entries: Vec<AuditRecord> = Vec::new();
    for sequence in 1..=length {
        let previous = entries.last().map_or(GENESIS, |record| record.hash);
        let event = AuditEvent::EvidenceRefused {
            tee: TeeKind::Simulated,
            reason: format!("reason {sequence}"),
        };
        entries.push(AuditRecord::following(
            &previous,
            sequence,
            UnixTime(1000 + sequence),
            &event,
        ));
    }
    let hash = entries.last().map_or(GENESIS, |record| record.hash);
    AuditExport {
        entries,
        head: SignedHead::sign(length, hash, UnixTime(2000), &key()),
    }
}

#[test]
fn a_log_survives_its_json_and_holds() {
    for length in [0, 1, 5] {
        let json = serde_json::to_string(&log(length)).unwrap();
        let read: AuditExport = serde_json::from_str(&json).unwrap();
        assert_eq!(read.verify(), Ok(()));
    }
}

#[test]
fn a_log_holds_with_entries_shown_as_digests_only() {
    let mut log = log(5);
    log.entries[2].entry = None;
    assert_eq!(log.verify(), Ok(()));
}

#[test]
fn a_changed_entry_breaks_the_chain_there() {
    let mut log = log(5);
    let entry = log.entries[2].entry.as_mut().unwrap();
    *entry = entry.replace("reason 3", "reason 9");
    assert_eq!(log.verify(), Err(AuditError::Broken { sequence: 3 }));
}

#[test]
fn an_entry_changed_with_its_digest_breaks_the_chain_there() {
    let mut log = log(5);
    log.entries[2].entry = None;
    log.entries[2].digest[0] ^= 1;
    assert_eq!(log.verify(), Err(AuditError::Broken { sequence: 3 }));
}

#[test]
fn an_entry_rewritten_with_its_hash_breaks_the_chain_after_it() {
    let mut log = log(5);
    let event = AuditEvent::EvidenceRefused {
        tee: TeeKind::Simulated,
        reason: "another".to_owned(),
    };
    log.entries[2] = AuditRecord::following(&log.entries[1].hash, 3, UnixTime(1003), &event);
    assert_eq!(log.verify(), Err(AuditError::Broken { sequence: 4 }));
}

#[test]
fn dropped_and_swapped_entries_break_the_chain() {
    let mut dropped = log(5);
    dropped.entries.remove(2);
    assert_eq!(dropped.verify(), Err(AuditError::Broken { sequence: 3 }));
    let mut swapped = log(5);
    swapped.entries.swap(1, 2);
    assert_eq!(swapped.verify(), Err(AuditError::Broken { sequence: 2 }));
}

#[test]
fn an_entry_that_names_another_place_is_refused() {
    let mut log = log(1);
    let event = AuditEvent::EvidenceRefused {
        tee: TeeKind::Simulated,
        reason: "reason".to_owned(),
    };
    log.entries[0] = AuditRecord::following(&GENESIS, 7, UnixTime(1), &event);
    assert_eq!(log.verify(), Err(AuditError::Broken { sequence: 1 }));
}

#[test]
fn a_log_cut_at_its_end_is_not_that_of_its_head() {
    let mut log = log(5);
    log.entries.pop();
    assert_eq!(
        log.verify(),
        Err(AuditError::NotTheHead {
            found: 4,
            expected: 5
        })
    );
}

#[test]
fn an_altered_head_is_refused() {
    let mut log = log(5);
    log.head.head.time += 1;
    assert_eq!(log.verify(), Err(AuditError::HeadSignature));
}

#[test]
fn a_rollback_shows_against_an_earlier_head() {
    let (short, long) = (log(3), log(5));
    assert_eq!(long.extends(&short.head), Ok(()));
    assert_eq!(long.extends(&log(0).head), Ok(()));
    assert_eq!(
        short.extends(&long.head),
        Err(AuditError::RolledBack { sequence: 5 })
    );
    let rewritten = SignedHead::sign(2, [7; 32], UnixTime(2000), &key());
    assert_eq!(
        long.extends(&rewritten),
        Err(AuditError::RolledBack { sequence: 2 })
    );
    let other = SigningKey::from_bytes(&[6; 32]);
    let foreign = SignedHead::sign(3, short.head.head.hash, UnixTime(2000), &other);
    assert_eq!(long.extends(&foreign), Err(AuditError::OtherBroker));
}

#[test]
fn a_reason_is_short_and_moves_no_cursor() {
    let reason = format!("a\u{1b}[2J\r\n\u{9b}{}", "b".repeat(LONGEST_REASON));
    let kept = shorten(&reason);
    assert!(
        kept.starts_with("a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}b"),
        "{kept:?}"
    );
    assert_eq!(kept.chars().count(), LONGEST_REASON);
}
