//! Threads that stay together over the layers of a chain.
//!
//! Handing work to ONNX Runtime's pool, and learning that it is done, takes as long as a
//! small layer. Here the pool is asked once for a chain; its threads then wait for one layer
//! after the other, and whoever leads waits only for those that have begun.

use std::any::Any;
use std::cell::UnsafeCell;
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use occlude_kernels::{Parallel, Patience};

/// What members do: called with a number each.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// Runs `lead` with threads of `pool`, which work for it until it returns.
///
/// # Panics
/// As `lead` and what it gave to others did.
pub(super) fn together<R: Send>(pool: &dyn Parallel, lead: impl FnOnce(&Team) -> R + Send) -> R {
    let threads = pool.threads();
    let team = Team::new(threads);
    let (lead, result) = (Mutex::new(Some(lead)), Mutex::new(None));
    let caller = thread::current().id();
    let begun = AtomicUsize::new(0);
    pool.run(threads, &|_| {
        // The caller leads, unless others have begun everything that there is.
        let last = begun.fetch_add(1, Ordering::Relaxed) + 1 == threads;
        let leads = last || thread::current().id() == caller;
        let lead = leads.then(|| lock(&lead).take()).flatten();
        let Some(lead) = lead else {
            return team.attend();
        };
        let _over = Over(&team.over);
        *lock(&result) = Some(lead(&team));
    });
    let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.expect("a pool calls what it is given")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads that are together, as kernels use them.
pub(super) struct Team {
    threads: usize,
    /// How often the work is still to be begun, and how many have begun and not ended.
    state: AtomicUsize,
    /// Valid while there is something to begin, or somebody has not ended.
    work: UnsafeCell<Option<&'static Work<'static>>>,
    over: AtomicBool,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written by the leader alone, while nothing is to be begun and nobody
// works; others read it after they have begun, see `begin`.
unsafe impl Sync for Team {}

/// One that is to begin, in `Team::state`; below it, those that work.
const TO_BEGIN: usize = 1 << 16;

impl Team {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            state: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            over: AtomicBool::new(false),
            panicked: Mutex::new(None),
        }
    }

    /// Takes a number, and counts the thread as working on top where `working` is 1.
    fn begin(&self, working: usize) -> Option<usize> {
        let mut state = self.state.load(Ordering::Relaxed);
        while state >= TO_BEGIN {
            let next = state - TO_BEGIN + working;
            match self.state.compare_exchange_weak(
                state,
                next,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(state / TO_BEGIN),
                Err(now) => state = now,
            }
        }
        None
    }

    /// Works for the leader until that has ended.
    fn attend(&self) {
        let mut patience = Patience::default();
        loop {
            if let Some(number) = self.begin(1) {
                // SAFETY: the leader published the work before it could be begun, and
                // neither changes nor drops it before this thread has ended.
                if let Some(work) = unsafe { *self.work.get() } {
                    self.attempt(work, number);
                }
                self.state.fetch_sub(1, Ordering::Release);
                patience = Patience::default();
            } else if self.over.load(Ordering::Acquire) {
                return;
            } else {
                patience.wait();
            }
        }
    }

    fn attempt(&self, work: &Work<'_>, number: usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(number))) {
            lock(&self.panicked).get_or_insert(panic);
        }
    }
}

impl Parallel for Team {
    fn threads(&self) -> usize {
        self.threads
    }

    /// Only the leader calls this.
    fn run(&self, count: usize, work: &Work<'_>) {
        debug_assert!(count < TO_BEGIN, "numbers fit");
        let Some(others) = count.checked_sub(1) else {
            return;
        };
        if others > 0 {
            // SAFETY: nobody works and nothing is to be begun, so nobody reads it; all who
            // do have ended before this returns, so that it lives long enough.
            unsafe {
                *self.work.get() = Some(transmute::<&Work<'_>, &'static Work<'static>>(work));
            }
            self.state.store(others * TO_BEGIN, Ordering::Release);
        }
        self.attempt(work, 0);
        while let Some(number) = self.begin(0) {
            self.attempt(work, number);
        }
        let mut patience = Patience::default();
        while self.state.load(Ordering::Acquire) > 0 {
            patience.wait();
        }
        if let Some(panic) = lock(&self.panicked).take() {
            resume_unwind(panic);
        }
    }
}

/// Lets the others go, also when the leader panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads of the operating system; so many of them come.
    struct Pool {
        threads: usize,
        come: usize,
    }

    impl Parallel for Pool {
        fn threads(&self) -> usize {
            self.threads
        }

        fn run(&self, count: usize, work: &Work<'_>) {
            let next = AtomicUsize::new(0);
            let some = || {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed))
                    && number < count
                {
                    work(number);
                }
            };
            thread::scope(|scope| {
                for _ in 1..self.come {
                    scope.spawn(some);
                }
                some();
            });
        }
    }

    #[test]
    fn each_number_is_worked_on_once_in_every_layer_however_many_come() {
        for come in 1..=4 {
            let pool = Pool { threads: 4, come };
            let sums = together(&pool, |team| {
                let layer = |layer: usize| {
                    let times: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
                    team.run(4 - layer % 3, &|number| {
                        times[number].fetch_add(1, Ordering::Relaxed);
                    });
                    let times = times.iter().map(|times| times.load(Ordering::Relaxed));
                    times.collect::<Vec<_>>()
                };
                (0..3000).map(layer).collect::<Vec<_>>()
            });
            for (layer, times) in sums.iter().enumerate() {
                let expected: Vec<usize> = (0..4)
                    .map(|number| usize::from(number < 4 - layer % 3))
                    .collect();
                assert_eq!(times, &expected);
            }
        }
    }

    #[test]
    fn a_panic_ends_the_chain_and_leaves_nobody_waiting() {
        for panics in 0..3 {
            let pool = Pool {
                threads: 3,
                come: 3,
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                together(&pool, |team| {
                    team.run(3, &|number| assert_ne!(number, panics, "a number"));
                });
            }));
            assert!(outcome.is_err());
        }
    }
}
