//! The host's side is played through a second descriptor of the same memory.

use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

const CONTEXT: [u8; 32] = [3; 32];

fn name(layer: u32, panel: u32) -> PanelName {
    PanelName { layer, panel }
}

fn store(kind: CipherKind) -> MappedStore {
    MappedStore::new(kind, 1 << 20, CONTEXT).unwrap()
}

fn host(store: &MappedStore) -> std::fs::File {
    store.region().file.try_clone().unwrap().into()
}

fn flip(store: &MappedStore, offset: u64) {
    let (host, mut byte) = (host(store), [0]);
    host.read_exact_at(&mut byte, offset).unwrap();
    host.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn refused(store: &MappedStore, name: PanelName, ticket: &Ticket) {
    let mut out = vec![0xaa; ticket.length()];
    assert_eq!(
        store.open(name, ticket, &mut out),
        Err(OpenError::Inauthentic { name }),
    );
    assert!(out.iter().all(|&byte| byte == 0), "nothing of it is left");
}

fn panel(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn what_is_stored_is_not_the_panel() {
    for kind in CipherKind::ALL {
        let store = store(kind);
        let panel = panel(1, 4096);
        store.append(name(0, 0), &panel).unwrap();
        let mut stored = vec![0; 4096];
        host(&store).read_exact_at(&mut stored, 0).unwrap();
        let same = stored.iter().zip(&panel).filter(|(a, b)| a == b).count();
        assert!(same < 64, "{kind}: {same} of 4096 bytes are as they were");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    for kind in CipherKind::ALL {
        let length = 3 * 256 + 45;
        for offset in 0..length as u64 {
            let store = store(kind);
            let ticket = store.append(name(0, 0), &panel(1, length)).unwrap();
            flip(&store, offset);
            refused(&store, name(0, 0), &ticket);
        }
    }
}

#[test]
fn panels_cannot_be_exchanged() {
    for kind in CipherKind::ALL {
        let store = store(kind);
        let one = store.append(name(0, 0), &panel(1, 256)).unwrap();
        let two = store.append(name(0, 1), &panel(2, 256)).unwrap();
        let (host, mut first, mut second) = (host(&store), [0; 256], [0; 256]);
        host.read_exact_at(&mut first, 0).unwrap();
        host.read_exact_at(&mut second, 256).unwrap();
        host.write_all_at(&second, 0).unwrap();
        host.write_all_at(&first, 256).unwrap();
        refused(&store, name(0, 0), &one);
        refused(&store, name(0, 1), &two);
    }
}

#[test]
fn a_ticket_opens_nothing_under_another_name() {
    for kind in CipherKind::ALL {
        let store = store(kind);
        let ticket = store.append(name(4, 7), &panel(1, 256)).unwrap();
        refused(&store, name(4, 8), &ticket);
        refused(&store, name(5, 7), &ticket);
    }
}

#[test]
fn an_older_panel_does_not_come_back() {
    for kind in CipherKind::ALL {
        let store = store(kind);
        let old = store.append(name(0, 0), &panel(1, 256)).unwrap();
        let new = store.append(name(0, 0), &panel(2, 256)).unwrap();
        let (host, mut bytes) = (host(&store), [0; 256]);
        host.read_exact_at(&mut bytes, old.offset as u64).unwrap();
        host.write_all_at(&bytes, new.offset as u64).unwrap();
        refused(&store, name(0, 0), &new);
    }
}

#[test]
fn another_stores_panel_is_refused() {
    for kind in CipherKind::ALL {
        let (store, other) = (store(kind), store(kind));
        let ticket = store.append(name(0, 0), &panel(1, 256)).unwrap();
        other.append(name(0, 0), &panel(1, 256)).unwrap();
        let mut bytes = [0; 256];
        host(&other).read_exact_at(&mut bytes, 0).unwrap();
        host(&store).write_all_at(&bytes, 0).unwrap();
        refused(&store, name(0, 0), &ticket);
    }
}

#[test]
fn a_shorter_panel_is_refused() {
    for kind in CipherKind::ALL {
        let store = store(kind);
        let mut ticket = store.append(name(0, 0), &panel(1, 256)).unwrap();
        ticket.length = 192;
        refused(&store, name(0, 0), &ticket);
    }
}

#[test]
fn a_full_store_says_so_and_goes_on() {
    let store = MappedStore::new(CipherKind::Aes256Gcm, 256, CONTEXT).unwrap();
    store.append(name(0, 0), &[1; 100]).unwrap();
    assert_eq!(
        store.append(name(0, 1), &[1; 129]),
        Err(AppendError::Full {
            room: 128,
            needed: 192
        }),
    );
    store.append(name(0, 1), &[1; 128]).unwrap();
}

/// Whatever the host writes, and whenever: an answer is right or there is none.
#[test]
fn a_racing_writer_never_makes_a_wrong_panel() {
    for kind in CipherKind::ALL {
        let store = store(kind);
        let expected: Vec<Vec<u8>> = (0..8).map(|seed| panel(seed, 4096)).collect();
        let tickets: Vec<Ticket> = (0..8)
            .zip(&expected)
            .map(|(index, panel)| store.append(name(0, index), panel).unwrap())
            .collect();
        let mut authentic = vec![0; 8 * 4096];
        host(&store).read_exact_at(&mut authentic, 0).unwrap();
        let over = AtomicBool::new(false);
        let (right, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (host, mut state) = (host(&store), 1_u64);
                while !over.load(Ordering::Relaxed) {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let place = (state >> 33) as usize % authentic.len();
                    host.write_all_at(&[state as u8], place as u64).unwrap();
                    // And back, so that some openings succeed.
                    host.write_all_at(&authentic[place..=place], place as u64)
                        .unwrap();
                }
            });
            let open = || {
                let mut out = vec![0; 4096];
                for round in 0..20_000 {
                    let index = round % 8;
                    match store.open(name(0, index as u32), &tickets[index], &mut out) {
                        Ok(()) => {
                            assert_eq!(out, expected[index], "{kind}");
                            right.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            };
            let threads = [scope.spawn(open), scope.spawn(open)];
            let outcomes = threads.map(std::thread::ScopedJoinHandle::join);
            // Before anything here fails: the scope waits for the writer.
            over.store(true, Ordering::Relaxed);
            for outcome in outcomes {
                outcome.unwrap();
            }
        });
        assert!(right.into_inner() > 0, "{kind}: some openings succeed");
    }
}

proptest! {
    #[test]
    fn a_panel_comes_back_as_it_was(
        kind in prop::sample::select(CipherKind::ALL.to_vec()),
        bytes in prop::collection::vec(any::<u8>(), 0..5000),
    ) {
        let store = store(kind);
        store.append(name(9, 9), &[1; 77]).unwrap();
        let ticket = store.append(name(1, 2), &bytes).unwrap();
        let mut out = vec![0; bytes.len()];
        prop_assert_eq!(store.open(name(1, 2), &ticket, &mut out), Ok(()));
        prop_assert_eq!(out, bytes);
    }
}
