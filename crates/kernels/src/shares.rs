//! Pieces of work, shared among threads so that each thread gets the same ones in
//! layer after layer: what it wrote in one is in its cache for the next.
//!
//! Who has finished its own share helps the others with theirs, so none waits for a
//! thread that began late.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A number for this thread, the same for as long as it lives. Most often the threads of
/// a pool get numbers that follow each other.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
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
    /// The numbers below `count`, in as many shares as there are threads.
    pub(crate) fn new(count: usize, threads: usize) -> Self {
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

    /// [`Self::take`], `most` numbers at once.
    pub(crate) fn take_some(&self, most: usize) -> Option<Range<usize>> {
        let own = thread_number();
        (0..self.shares.len()).find_map(|other| {
            let share = &self.shares[(own + other) % self.shares.len()];
            let start = share.next.fetch_add(most, Ordering::Relaxed);
            (start < share.end).then(|| start..(start + most).min(share.end))
        })
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
    fn a_thread_alone_takes_every_share() {
        let shares = Shares::new(5, 2);
        let mut taken: Vec<usize> = std::iter::from_fn(|| shares.take()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3, 4]);
    }
}
