//! Pieces of work, shared among threads so that each thread gets the same ones in
//! layer after layer: what it wrote in one is in its cache for the next.
//!
//! Who has finished its own share helps the others with theirs, so none waits for a
//! thread that began late.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::patience::Patience;

thread_local! {
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of the thread that gives work to others.
const CALLER: usize = 0;

/// A number for this thread, the same for as long as it lives: [`CALLER`], or one after the
/// other for threads that work for it.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(CALLER + 1);
    THREAD.get().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        THREAD.set(Some(number));
        number
    })
}

/// Numbers from 0 on, each handed out once.
pub(crate) struct Shares {
    shares: Vec<Share>,
}

/// Apart from the next one in memory, since different threads write to it.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

impl Shares {
    /// The numbers below `count`, in as many shares as there are threads. The first is for
    /// the thread that calls this.
    pub(crate) fn new(count: usize, threads: usize) -> Self {
        THREAD.set(Some(CALLER));
        let share = |thread: usize| Share {
            next: AtomicUsize::new(thread * count / threads),
            end: (thread + 1) * count / threads,
        };
        Self {
            shares: (0..threads).map(share).collect(),
        }
    }

    /// What is left of this thread's share, one number after the other, then of the
    /// others'.
    pub(crate) fn take(&self) -> Option<usize> {
        self.take_some(1).map(|range| range.start)
    }

    /// The share of this thread: no worker has the caller's, unless it is the only one.
    fn own_share(&self) -> usize {
        match thread_number() {
            CALLER => 0,
            number => 1 + (number - 1) % (self.shares.len() - 1).max(1),
        }
    }

    /// Whether `number` and the one after it are of different shares.
    pub(crate) fn ends_with(&self, number: usize) -> bool {
        self.shares.iter().any(|share| share.end == number + 1)
    }

    /// [`Self::take`], `most` numbers at once.
    pub(crate) fn take_some(&self, most: usize) -> Option<Range<usize>> {
        let own = self.own_share();
        (0..self.shares.len()).find_map(|other| {
            let share = &self.shares[(own + other) % self.shares.len()];
            let start = share.next.fetch_add(most, Ordering::Relaxed);
            (start < share.end).then(|| start..(start + most).min(share.end))
        })
    }
}

/// Work that threads share, all of which has to be done before any of them goes on.
///
/// A thread waits only for what others have begun, so that it never waits for one that
/// has not come yet, nor in vain where it is alone.
pub(crate) struct Gate {
    works: Shares,
    left: AtomicUsize,
    failed: AtomicBool,
}

impl Gate {
    /// Before the numbers below `count`.
    pub(crate) fn new(count: usize, threads: usize) -> Self {
        Self {
            works: Shares::new(count, threads),
            left: AtomicUsize::new(count),
            failed: AtomicBool::new(false),
        }
    }

    /// Does some of the work, then waits for the rest; false if any of it has failed.
    pub(crate) fn pass(&self, work: impl Fn(usize) -> bool) -> bool {
        while !self.failed.load(Ordering::Relaxed) {
            let Some(number) = self.works.take() else {
                return self.wait();
            };
            let unwinding = FailedIfDropped(&self.failed);
            if work(number) {
                std::mem::forget(unwinding);
                self.left.fetch_sub(1, Ordering::Release);
            }
        }
        false
    }

    fn wait(&self) -> bool {
        let mut patience = Patience::default();
        while self.left.load(Ordering::Acquire) > 0 {
            if self.failed.load(Ordering::Relaxed) {
                return false;
            }
            patience.wait();
        }
        true
    }
}

/// Nobody may wait for work that has failed or panicked.
struct FailedIfDropped<'a>(&'a AtomicBool);

impl Drop for FailedIfDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_handed_out_once_whoever_asks() {
        for (count, threads, most) in [(0, 1, 1), (1, 3, 1), (100, 3, 1), (100, 4, 7)] {
            let shares = Shares::new(count, threads);
            let take = || -> Vec<usize> {
                std::iter::from_fn(|| shares.take_some(most))
                    .flatten()
                    .collect()
            };
            let mut taken = std::thread::scope(|scope| {
                let started: Vec<_> = (0..threads).map(|_| scope.spawn(take)).collect();
                let taken = started.into_iter().map(|thread| thread.join().unwrap());
                taken.collect::<Vec<_>>().concat()
            });
            taken.sort_unstable();
            assert_eq!(taken, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nobody_passes_a_gate_before_all_is_done() {
        for _ in 0..100 {
            let (gate, done) = (Gate::new(5, 3), AtomicUsize::new(0));
            let pass = || {
                let passed = gate.pass(|_| {
                    std::thread::yield_now();
                    done.fetch_add(1, Ordering::Relaxed) < 5
                });
                assert!(passed);
                assert_eq!(done.load(Ordering::Relaxed), 5);
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(pass)).collect();
                // One by one: the end of a scope is nothing that the thread sanitizer sees.
                for thread in threads {
                    thread.join().unwrap();
                }
            });
        }
    }

    #[test]
    fn a_thread_passes_a_gate_alone() {
        assert!(Gate::new(5, 3).pass(|_| true));
        assert!(Gate::new(0, 3).pass(|_| false));
    }

    #[test]
    fn nobody_waits_at_a_gate_for_work_that_failed_or_panicked() {
        for panics in [false, true] {
            let gate = Gate::new(3, 3);
            std::thread::scope(|scope| {
                let fail = || {
                    gate.pass(|number| {
                        assert!(number != 1 || !panics, "at number 1");
                        number != 1
                    })
                };
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(fail)).collect();
                for thread in threads {
                    assert!(!thread.join().unwrap_or(false));
                }
            });
        }
    }

    #[test]
    fn the_last_number_of_each_share_ends_it() {
        let shares = Shares::new(5, 2);
        let ends: Vec<usize> = (0..5).filter(|&number| shares.ends_with(number)).collect();
        assert_eq!(ends, [1, 4]);
    }

    #[test]
    fn whoever_calls_begins_with_the_first_share_and_workers_with_others() {
        let shares = Shares::new(6, 2);
        for _ in 0..2 {
            let taken = std::thread::scope(|scope| scope.spawn(|| shares.take()).join().unwrap());
            assert!(matches!(taken, Some(3 | 4)), "{taken:?}");
        }
        assert_eq!(shares.take(), Some(0));
    }

    #[test]
    fn a_thread_alone_takes_every_share() {
        let shares = Shares::new(5, 2);
        let mut taken: Vec<usize> = std::iter::from_fn(|| shares.take()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3, 4]);
    }
}
