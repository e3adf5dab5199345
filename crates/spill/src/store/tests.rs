//! The same tests and attacks over both stores, panel by panel and through a reader.
//! The host's side is played through another descriptor of the same memory or file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::ScopedJoinHandle;

use proptest::prelude::*;

use super::*;
use crate::direct::{DirectError, DirectStore};
use crate::mapped::MappedStore;
use crate::mirror::{Mirror, Repair};

const CONTEXT: [u8; 32] = [3; 32];

/// The folder of this program: on a disk wherever programs are built on one.
pub(crate) fn folder() -> std::path::PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

/// A direct store, or none where this folder has no direct I/O.
#[allow(clippy::print_stdout, reason = "says that a part was skipped")]
pub(crate) fn direct(kind: CipherKind, layers: &[Vec<usize>]) -> Option<Arc<DirectStore>> {
    match DirectStore::new(kind, &folder(), layers, CONTEXT) {
        Ok(store) => Some(Arc::new(store)),
        Err(error @ DirectError::Unsuitable { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A store and the host's way to its ciphertext.
struct Subject {
    what: String,
    store: Arc<dyn Store>,
    host: File,
}

/// Both stores with each cipher, for layers of panels of these lengths.
fn subjects(layers: &[&[usize]]) -> Vec<Subject> {
    let mut all = Vec::new();
    let layers: Vec<Vec<usize>> = layers.iter().map(|lengths| lengths.to_vec()).collect();
    for kind in CipherKind::ALL {
        let mapped = Arc::new(MappedStore::new(kind, 1 << 20, CONTEXT).unwrap());
        let host = mapped.file().try_clone().unwrap().into();
        all.push(Subject {
            what: format!("{kind}, mapped"),
            store: mapped,
            host,
        });
        if let Some(direct) = direct(kind, &layers) {
            // Through the page cache, as the host would.
            let host = another_descriptor(direct.file());
            all.push(Subject {
                what: format!("{kind}, direct"),
                store: direct,
                host,
            });
        }
    }
    all
}

/// The same file, opened anew without `O_DIRECT`.
pub(crate) fn another_descriptor(file: &File) -> File {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(true).open(path).unwrap()
}

pub(crate) fn name(layer: u32, panel: u32) -> PanelName {
    PanelName { layer, panel }
}

pub(crate) fn panel(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

impl Subject {
    fn append(&self, name: PanelName, panel: &[u8]) -> Ticket {
        self.store.append(name, panel).unwrap()
    }

    fn stored(&self, ticket: &Ticket) -> Vec<u8> {
        let mut bytes = vec![0; ticket.length];
        self.host
            .read_exact_at(&mut bytes, ticket.offset as u64)
            .unwrap();
        bytes
    }

    fn put(&self, ticket: &Ticket, bytes: &[u8]) {
        self.host.write_all_at(bytes, ticket.offset as u64).unwrap();
    }

    fn flip(&self, ticket: &Ticket, place: usize) {
        let mut bytes = self.stored(ticket);
        bytes[place] ^= 0x10;
        self.put(ticket, &bytes);
    }

    /// Opens the panel alone, and by way of a reader.
    fn opened(&self, name: PanelName, ticket: &Ticket) -> [(Result<(), OpenError>, Vec<u8>); 2] {
        let mut alone = vec![0xaa; ticket.length];
        let mut read = alone.clone();
        let reader = Arc::clone(&self.store)
            .reader(&[(name, ticket.clone())], 1)
            .unwrap();
        reader.begin_run();
        [
            (self.store.open(name, ticket, &mut alone), alone),
            (reader.open(name, ticket, &mut read), read),
        ]
    }

    fn refused(&self, name: PanelName, ticket: &Ticket) {
        for (outcome, out) in self.opened(name, ticket) {
            assert_eq!(
                outcome,
                Err(OpenError::Inauthentic { name }),
                "{}",
                self.what
            );
            assert!(out.iter().all(|&byte| byte == 0), "nothing of it is left");
        }
    }

    fn opens(&self, name: PanelName, ticket: &Ticket, expected: &[u8]) {
        for (outcome, out) in self.opened(name, ticket) {
            assert_eq!(outcome, Ok(()), "{}", self.what);
            assert_eq!(out, expected, "{}", self.what);
        }
    }
}

#[test]
fn what_is_stored_is_not_the_panel() {
    for subject in subjects(&[&[4096]]) {
        let panel = panel(1, 4096);
        let ticket = subject.append(name(0, 0), &panel);
        let stored = subject.stored(&ticket);
        let same = stored.iter().zip(&panel).filter(|(a, b)| a == b).count();
        assert!(
            same < 64,
            "{}: {same} of 4096 bytes are as they were",
            subject.what
        );
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let length = 3 * 256 + 45;
    for subject in subjects(&[&[length]]) {
        let panel = panel(1, length);
        let ticket = subject.append(name(0, 0), &panel);
        let mut out = vec![0; length];
        for place in 0..length {
            subject.flip(&ticket, place);
            assert_eq!(
                subject.store.open(name(0, 0), &ticket, &mut out),
                Err(OpenError::Inauthentic { name: name(0, 0) }),
                "{}, byte {place}",
                subject.what
            );
            subject.flip(&ticket, place);
        }
        subject.opens(name(0, 0), &ticket, &panel);
        subject.flip(&ticket, length - 1);
        subject.refused(name(0, 0), &ticket);
    }
}

#[test]
fn panels_cannot_be_exchanged() {
    for subject in subjects(&[&[256, 256]]) {
        let one = subject.append(name(0, 0), &panel(1, 256));
        let two = subject.append(name(0, 1), &panel(2, 256));
        let (first, second) = (subject.stored(&one), subject.stored(&two));
        subject.put(&one, &second);
        subject.put(&two, &first);
        subject.refused(name(0, 0), &one);
        subject.refused(name(0, 1), &two);
    }
}

#[test]
fn a_ticket_opens_nothing_under_another_name_or_at_another_place() {
    for subject in subjects(&[&[], &[], &[], &[], &[256; 9]]) {
        let mut ticket = subject.append(name(4, 7), &panel(1, 256));
        subject.refused(name(4, 8), &ticket);
        subject.refused(name(5, 7), &ticket);
        let mut away = subject.append(name(4, 8), &panel(1, 256));
        let bytes = subject.stored(&ticket);
        subject.put(&away, &bytes);
        std::mem::swap(&mut ticket.offset, &mut away.offset);
        subject.refused(name(4, 7), &ticket);
    }
}

#[test]
fn an_older_panel_does_not_come_back() {
    for subject in subjects(&[&[256]]) {
        let old = subject.append(name(0, 0), &panel(1, 256));
        let bytes = subject.stored(&old);
        let new = subject.append(name(0, 0), &panel(2, 256));
        subject.opens(name(0, 0), &new, &panel(2, 256));
        subject.put(&new, &bytes);
        subject.refused(name(0, 0), &new);
    }
}

#[test]
fn another_stores_panel_is_refused() {
    let [here, there] = [subjects(&[&[256]]), subjects(&[&[256]])];
    for (subject, other) in here.iter().zip(&there) {
        let ticket = subject.append(name(0, 0), &panel(1, 256));
        let foreign = other.append(name(0, 0), &panel(1, 256));
        subject.put(&ticket, &other.stored(&foreign));
        subject.refused(name(0, 0), &ticket);
    }
}

#[test]
fn a_shorter_panel_is_refused() {
    for subject in subjects(&[&[256]]) {
        let mut ticket = subject.append(name(0, 0), &panel(1, 256));
        ticket.length = 192;
        subject.refused(name(0, 0), &ticket);
    }
}

#[test]
fn a_full_mapped_store_says_so_and_goes_on() {
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

/// Waits for all of these threads, one by one: the end of a scope is nothing that the
/// thread sanitizer sees.
pub(crate) fn join_each<'scope>(threads: impl Iterator<Item = ScopedJoinHandle<'scope, ()>>) {
    let threads: Vec<_> = threads.collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Whatever the host writes, and whenever: an answer is right or there is none.
#[test]
fn a_racing_writer_never_makes_a_wrong_panel() {
    const PANELS: usize = 8;
    for subject in subjects(&[&[4096; PANELS]]) {
        let expected: Vec<Vec<u8>> = (0..PANELS as u8).map(|seed| panel(seed, 4096)).collect();
        let tickets: Vec<(PanelName, Ticket)> = (0..)
            .zip(&expected)
            .map(|(index, panel)| (name(0, index), subject.append(name(0, index), panel)))
            .collect();
        let authentic: Vec<Vec<u8>> = tickets.iter().map(|(_, it)| subject.stored(it)).collect();
        let mapped = subject.what.ends_with("mapped");
        let rounds = if mapped { 20_000 } else { 1_000 };
        let over = AtomicBool::new(false);
        let (right, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let check = |index: usize, outcome: Result<(), OpenError>, out: &[u8]| match outcome {
            Ok(()) => {
                assert_eq!(out, expected[index], "{}", subject.what);
                right.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let name = tickets[index].0;
                assert_eq!(error, OpenError::Inauthentic { name });
                refused.fetch_add(1, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut state = 1_u64;
                while !over.load(Ordering::Relaxed) {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let place = (state >> 33) as usize % (PANELS * 4096);
                    let (index, byte) = (place / 4096, place % 4096);
                    let at = (tickets[index].1.offset + byte) as u64;
                    subject.host.write_all_at(&[state as u8], at).unwrap();
                    // And back, so that some openings succeed.
                    let back = &authentic[index][byte..=byte];
                    subject.host.write_all_at(back, at).unwrap();
                }
            });
            let alone = || {
                let mut out = vec![0; 4096];
                for round in 0..rounds {
                    let (name, ticket) = &tickets[round % PANELS];
                    let outcome = subject.store.open(*name, ticket, &mut out);
                    check(round % PANELS, outcome, &out);
                }
            };
            let ahead = || {
                let reader = Arc::clone(&subject.store).reader(&tickets, 1).unwrap();
                let mut out = vec![0; 4096];
                for _ in 0..rounds / PANELS {
                    reader.begin_run();
                    for (index, (name, ticket)) in tickets.iter().enumerate() {
                        let outcome = reader.open(*name, ticket, &mut out);
                        check(index, outcome, &out);
                    }
                }
            };
            let threads = [scope.spawn(alone), scope.spawn(ahead)];
            let outcomes = threads.map(ScopedJoinHandle::join);
            // Before anything here fails: the scope waits for the writer.
            over.store(true, Ordering::Relaxed);
            join_each([writer].into_iter());
            for outcome in outcomes {
                outcome.unwrap();
            }
        });
        assert!(
            right.into_inner() > 0,
            "{}: some openings succeed",
            subject.what
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_panel_comes_back_as_it_was(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        for subject in subjects(&[&[77], &[bytes.len()]]) {
            subject.append(name(0, 0), &[1; 77]);
            let ticket = subject.append(name(1, 0), &bytes);
            subject.opens(name(1, 0), &ticket, &bytes);
        }
    }
}

/// Alone and by way of a reader, and each time the first file is as it was afterwards.
#[test]
fn what_is_altered_in_the_first_file_comes_from_the_second_and_is_written_back() {
    let lengths = vec![vec![5_000, 90_000]];
    if direct(CipherKind::Aes256Gcm, &lengths).is_none() {
        return;
    }
    let told: Arc<Mutex<Vec<Repair>>> = Arc::default();
    let noted = Arc::clone(&told);
    let mirror = Mirror::new(&folder(), move |repair| noted.lock().unwrap().push(repair));
    let kind = CipherKind::Aes256Gcm;
    let store = DirectStore::mirrored(kind, &folder(), Some(&mirror), &lengths, CONTEXT);
    let store = Arc::new(store.unwrap());
    let (first, second) = (
        another_descriptor(store.file()),
        another_descriptor(store.second_file()),
    );
    let subject = Subject {
        what: "mirrored".to_owned(),
        store: store.clone(),
        host: first,
    };
    for (name, length) in [(name(0, 0), 5_000), (name(0, 1), 90_000)] {
        let panel = panel(7, length);
        let ticket = subject.append(name, &panel);
        let stored = subject.stored(&ticket);
        for place in [0, length / 2, length - 1] {
            let mut out = vec![0xaa; length];
            subject.flip(&ticket, place);
            assert_eq!(store.open(name, &ticket, &mut out), Ok(()));
            assert!(out == panel && subject.stored(&ticket) == stored, "{place}");
            subject.flip(&ticket, place);
            out.fill(0xaa);
            // Another one would have read it before it was altered.
            let reader = store.clone().reader(&[(name, ticket.clone())], 1).unwrap();
            reader.begin_run();
            assert_eq!(reader.open(name, &ticket, &mut out), Ok(()));
            assert!(out == panel && subject.stored(&ticket) == stored, "{place}");
        }
        assert_eq!(
            std::mem::take(&mut *told.lock().unwrap()),
            [Repair::Repaired; 6]
        );
        // Nothing there is believed but what is authentic.
        let mut byte = [0];
        second
            .read_exact_at(&mut byte, ticket.offset as u64)
            .unwrap();
        second
            .write_all_at(&[byte[0] ^ 1], ticket.offset as u64)
            .unwrap();
        subject.flip(&ticket, 0);
        for (opened, out) in subject.opened(name, &ticket) {
            assert_eq!(opened, Err(OpenError::Inauthentic { name }));
            assert!(out.iter().all(|byte| *byte == 0));
        }
        assert!(told.lock().unwrap().is_empty());
    }
}
