//! What `harden_process` changes. Alone in its process: it cannot be undone.

use std::collections::HashSet;
use std::sync::{Arc, Barrier};

use occlude_engine::memory::harden_process;
use rustix::process::{DumpableBehavior, Resource};

#[test]
fn a_hardened_process_writes_no_core_and_cannot_be_dumped() {
    let hardening = harden_process();
    assert!(hardening.core_dumps_disabled, "{hardening:?}");
    assert_eq!(
        rustix::process::dumpable_behavior().unwrap(),
        DumpableBehavior::NotDumpable,
    );
    let limit = rustix::process::getrlimit(Resource::Core);
    assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    assert_eq!(hardening.memory_locked, hardening.shortfalls.is_empty());
    if cfg!(all(target_os = "linux", target_env = "gnu")) {
        // The first thread's and this one's, which are older.
        assert!(heaps_of_new_threads() <= 2);
    }
}

/// How many heaps eight threads allocate from that are there at once.
fn heaps_of_new_threads() -> usize {
    const THREADS: usize = 8;
    /// What glibc maps for one of its heaps, aligned so.
    const HEAP: usize = 64 << 20;
    let all_there = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let all_there = Arc::clone(&all_there);
            std::thread::spawn(move || {
                let piece = Box::new([1_u8; 100]);
                all_there.wait();
                piece.as_ptr().addr() / HEAP
            })
        })
        .collect();
    let heaps: HashSet<usize> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    heaps.len()
}
