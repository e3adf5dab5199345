//! The standard library's locks, which tell the thread sanitizer what they order where
//! that is on.
//!
//! The sanitizer sees the code that is compiled with it. The standard library comes
//! compiled: what one thread wrote before it unlocked and another reads after it locked
//! would look like a race. So with `--cfg thread_sanitizer`, which only
//! `scripts/sanitize` sets, each lock says what it orders. In every other build these
//! are `std`'s types and nothing else.

#[cfg(not(thread_sanitizer))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(thread_sanitizer)]
pub(crate) use told::{Condvar, Mutex, MutexGuard};

#[cfg(thread_sanitizer)]
mod told {
    use std::ffi::c_void;
    use std::ops::{Deref, DerefMut};
    use std::sync::{self, LockResult, PoisonError, WaitTimeoutResult};
    use std::time::Duration;

    unsafe extern "C" {
        fn __tsan_acquire(address: *mut c_void);
        fn __tsan_release(address: *mut c_void);
    }

    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    /// Holds `std`'s guard until it waits on a [`Condvar`].
    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        held: Option<sync::MutexGuard<'a, T>>,
    }

    pub(crate) struct Condvar(sync::Condvar);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            match self.0.lock() {
                Ok(held) => Ok(self.locked(held)),
                Err(error) => Err(PoisonError::new(self.locked(error.into_inner()))),
            }
        }

        /// What others did before they unlocked comes before what follows.
        fn locked<'a>(&'a self, held: sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            // SAFETY: the address only names the lock; nothing is read or written there.
            unsafe { __tsan_acquire(std::ptr::from_ref(self).cast_mut().cast()) };
            MutexGuard {
                mutex: self,
                held: Some(held),
            }
        }
    }

    impl<'a, T> MutexGuard<'a, T> {
        /// `std`'s guard, about to be unlocked.
        fn unlocking(&mut self) -> Option<sync::MutexGuard<'a, T>> {
            let held = self.held.take()?;
            // SAFETY: the address only names the lock; nothing is read or written there.
            unsafe { __tsan_release(std::ptr::from_ref(self.mutex).cast_mut().cast()) };
            Some(held)
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            drop(self.unlocking());
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.held.as_ref().expect("held until it is dropped")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.held.as_mut().expect("held until it is dropped")
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(sync::Condvar::new())
        }

        pub(crate) fn wait<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
        ) -> LockResult<MutexGuard<'a, T>> {
            let mutex = guard.mutex;
            let held = guard.unlocking().expect("held until it is dropped");
            match self.0.wait(held) {
                Ok(held) => Ok(mutex.locked(held)),
                Err(error) => Err(PoisonError::new(mutex.locked(error.into_inner()))),
            }
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            most: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
            let mutex = guard.mutex;
            let held = guard.unlocking().expect("held until it is dropped");
            match self.0.wait_timeout(held, most) {
                Ok((held, timeout)) => Ok((mutex.locked(held), timeout)),
                Err(error) => {
                    let (held, timeout) = error.into_inner();
                    Err(PoisonError::new((mutex.locked(held), timeout)))
                }
            }
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
