//! Loading that goes on while sessions start and run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::layers::{Buffers, Work};
use crate::error::LoadError;

/// Threads that bring weights. Dropping it stops them and waits until they are gone.
pub(crate) struct Loading {
    threads: Mutex<Vec<JoinHandle<()>>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    stopped: AtomicBool,
    /// The first one, until somebody waits for the end.
    failure: Mutex<Option<LoadError>>,
    /// What the failure says, once there is one.
    reason: OnceLock<String>,
}

impl Loading {
    /// Does `work` on `threads` threads.
    pub(super) fn start(work: &Arc<Work>, threads: usize) -> Result<Self, LoadError> {
        let loading = Self {
            threads: Mutex::new(Vec::new()),
            state: Arc::default(),
        };
        for number in 0..threads {
            let (work, state) = (Arc::clone(work), Arc::clone(&loading.state));
            let thread = std::thread::Builder::new()
                .name(format!("occlude-load-{number}"))
                .spawn(move || state.run(&work))
                .map_err(|source| LoadError::Resources {
                    what: "no thread that loads weights",
                    source,
                })?;
            loading.lock_threads().push(thread);
        }
        Ok(loading)
    }

    /// Waits until all weights are where they are read.
    ///
    /// # Errors
    /// Why they are not: the cause itself to the first who asks, to others
    /// [`LoadError::NotLoaded`].
    pub(crate) fn wait(&self) -> Result<(), LoadError> {
        self.join();
        let failure = &self.state.failure;
        let failure = failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match (failure, self.reason()) {
            (Some(failure), _) => Err(failure),
            (None, Some(reason)) => Err(LoadError::NotLoaded { reason }),
            (None, None) => Ok(()),
        }
    }

    /// Why weights are missing, if they are.
    pub(crate) fn reason(&self) -> Option<String> {
        self.state.reason.get().cloned()
    }

    fn join(&self) {
        // Whoever comes second waits for the first.
        let mut threads = self.lock_threads();
        for thread in threads.drain(..) {
            // A panic has been noted as a failure.
            let _ = thread.join();
        }
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        self.join();
    }
}

impl State {
    fn run(&self, work: &Work) {
        let all = catch_unwind(AssertUnwindSafe(|| {
            let mut buffers = Buffers::default();
            while !self.stopped.load(Ordering::Relaxed) {
                match work.step(&mut buffers) {
                    Some(step) => step?,
                    None => break,
                }
            }
            Ok(())
        }));
        let outcome = all.unwrap_or_else(|_| {
            let reason = "a thread that loads weights failed".to_owned();
            Err(LoadError::NotLoaded { reason })
        });
        if let Err(error) = outcome {
            self.fail(work, error);
        }
    }

    /// Notes why, before anybody who waits for weights goes on without.
    fn fail(&self, work: &Work, error: LoadError) {
        let _ = self.reason.set(error.to_string());
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
        drop(failure);
        self.stopped.store(true, Ordering::Relaxed);
        work.layers().give_up();
    }
}

#[cfg(test)]
mod tests;
