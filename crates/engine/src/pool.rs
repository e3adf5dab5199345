//! A fixed number of things, each lent to one thread at a time.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Lends its members out; whoever finds none waits.
pub(crate) struct Pool<T> {
    idle: Mutex<Vec<T>>,
    returned: Condvar,
}

impl<T> Pool<T> {
    pub(crate) fn new(members: Vec<T>) -> Self {
        Self {
            idle: Mutex::new(members),
            returned: Condvar::new(),
        }
    }

    pub(crate) fn take(&self) -> Lent<'_, T> {
        let mut idle = self.lock();
        loop {
            if let Some(member) = idle.pop() {
                return Lent {
                    pool: self,
                    member: Some(member),
                };
            }
            idle = self
                .returned
                .wait(idle)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing that could panic runs under the lock, so poison means nothing.
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member on loan; it goes back on drop, when the borrower panics too.
pub(crate) struct Lent<'a, T> {
    pool: &'a Pool<T>,
    /// `None` only while being dropped.
    member: Option<T>,
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.member.as_ref().expect("a member until drop")
    }
}

impl<T> DerefMut for Lent<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.member.as_mut().expect("a member until drop")
    }
}

impl<T> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        self.pool.lock().extend(self.member.take());
        self.pool.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_members_are_lent_than_there_are_and_everyone_is_served() {
        let pool = Pool::new(vec![(), ()]);
        let (lent, most, served) = (
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _member = pool.take();
                    most.fetch_max(lent.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                    lent.fetch_sub(1, Ordering::SeqCst);
                    served.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), 2);
        assert_eq!(served.into_inner(), 8);
    }

    #[test]
    fn a_borrower_that_panics_returns_its_member() {
        let pool = Pool::new(vec![7]);
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let _member = pool.take();
                    panic!("a borrower fails");
                })
                .join()
        });
        assert!(outcome.is_err());
        assert_eq!(*pool.take(), 7);
    }
}
