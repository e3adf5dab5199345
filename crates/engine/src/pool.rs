//! A fixed number of things, each lent to one thread at a time and tidied before it
//! is lent again.
//!
//! A thread of the pool tidies what comes back, so that neither the borrower who
//! returned it waits for that, nor what it left behind waits for the next borrower. A
//! borrower who finds something untidied helps.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::scheduling::give_way;

/// Lends its members out; whoever finds none waits. On drop everything is tidied,
/// then dropped.
pub(crate) struct Pool<T> {
    shelf: Arc<Shelf<T>>,
    tidier: Option<JoinHandle<()>>,
}

struct Shelf<T> {
    members: Mutex<Members<T>>,
    tidied: Condvar,
    returned: Condvar,
    tidy: fn(&T),
}

struct Members<T> {
    tidy: Vec<T>,
    untidy: Vec<T>,
    /// How many the pool's own thread is tidying.
    in_work: usize,
    closed: bool,
}

impl<T: Send + 'static> Pool<T> {
    /// Lends `members`, which are tidy. `tidy` does not panic.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn new(members: Vec<T>, tidy: fn(&T)) -> io::Result<Self> {
        let shelf = Arc::new(Shelf {
            members: Mutex::new(Members {
                tidy: members,
                untidy: Vec::new(),
                in_work: 0,
                closed: false,
            }),
            tidied: Condvar::new(),
            returned: Condvar::new(),
            tidy,
        });
        let tidier = std::thread::Builder::new()
            .name("occlude-tidier".to_owned())
            .spawn({
                let shelf = Arc::clone(&shelf);
                move || {
                    // Woken when an answer is ready, which is to leave first.
                    give_way();
                    shelf.tidy_until_closed();
                }
            })?;
        Ok(Self {
            shelf,
            tidier: Some(tidier),
        })
    }

    pub(crate) fn take(&self) -> Lent<'_, T> {
        let mut members = self.shelf.lock();
        let member = loop {
            if let Some(member) = members.tidy.pop() {
                break member;
            }
            if let Some(member) = members.untidy.pop() {
                drop(members);
                (self.shelf.tidy)(&member);
                break member;
            }
            members = wait(&self.shelf.tidied, members);
        };
        Lent {
            shelf: &self.shelf,
            member: Some(member),
        }
    }

    /// Waits until everything that came back is tidy.
    pub(crate) fn wait_until_tidy(&self) {
        let mut members = self.shelf.lock();
        while members.in_work > 0 || !members.untidy.is_empty() {
            members = wait(&self.shelf.tidied, members);
        }
    }
}

impl<T> Shelf<T> {
    fn tidy_until_closed(&self) {
        let mut members = self.lock();
        loop {
            if let Some(member) = members.untidy.pop() {
                members.in_work += 1;
                drop(members);
                (self.tidy)(&member);
                members = self.lock();
                members.tidy.push(member);
                members.in_work -= 1;
                self.tidied.notify_all();
            } else if members.closed {
                return;
            } else {
                members = wait(&self.returned, members);
            }
        }
    }

    /// Nothing that could panic runs under the lock, so poison means nothing.
    fn lock(&self) -> MutexGuard<'_, Members<T>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait<'a, T>(condition: &Condvar, members: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition
        .wait(members)
        .unwrap_or_else(PoisonError::into_inner)
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.shelf.lock().closed = true;
        self.shelf.returned.notify_one();
        if let Some(tidier) = self.tidier.take() {
            // Were it to panic, that was reported when it happened.
            let _ = tidier.join();
        }
    }
}

/// A member on loan; it goes back on drop, when the borrower panics too.
pub(crate) struct Lent<'a, T> {
    shelf: &'a Shelf<T>,
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
        self.shelf.lock().untidy.extend(self.member.take());
        self.shelf.returned.notify_one();
        self.shelf.tidied.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_members_are_lent_than_there_are_and_everyone_is_served() {
        let pool = Pool::new(vec![(), ()], |()| ()).unwrap();
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
        let pool = Pool::new(vec![7], |_| ()).unwrap();
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

    #[test]
    fn a_member_is_tidied_soon_after_its_return_and_always_before_the_next_loan() {
        let dirt = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(vec![Arc::clone(&dirt)], |dirt| {
            dirt.store(0, Ordering::SeqCst);
        })
        .unwrap();
        for _ in 0..1000 {
            let member = pool.take();
            assert_eq!(member.swap(1, Ordering::SeqCst), 0);
        }
        let start = std::time::Instant::now();
        while dirt.load(Ordering::SeqCst) != 0 {
            assert!(start.elapsed() < Duration::from_secs(10), "never tidied");
            std::thread::yield_now();
        }
    }

    #[test]
    fn whoever_waits_until_all_is_tidy_finds_it_tidied() {
        let dirt = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(vec![Arc::clone(&dirt)], |dirt| {
            std::thread::sleep(Duration::from_millis(2));
            dirt.store(0, Ordering::SeqCst);
        })
        .unwrap();
        for _ in 0..50 {
            pool.take().store(1, Ordering::SeqCst);
            pool.wait_until_tidy();
            assert_eq!(dirt.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn whoever_drops_the_pool_waits_until_everything_is_tidied() {
        let dirt = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(vec![Arc::clone(&dirt)], |dirt| {
            std::thread::sleep(Duration::from_millis(20));
            dirt.store(0, Ordering::SeqCst);
        })
        .unwrap();
        pool.take().store(1, Ordering::SeqCst);
        drop(pool);
        assert_eq!(dirt.load(Ordering::SeqCst), 0);
    }
}
