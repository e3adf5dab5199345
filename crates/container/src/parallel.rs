//! Works on numbered blocks with several threads: either hands them over in order
//! ([`in_order`]), or in any order but one at a time ([`put_one_at_a_time`]).
//!
//! Memory is bounded: a thread has one or two buffers, and all buffers together keep
//! within [`IN_FLIGHT`], however many blocks there are.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use zeroize::Zeroizing;

/// Bytes of all buffers together.
const IN_FLIGHT: usize = 64 << 20;

/// Past this many threads, reading or writing is the limit, not the cipher.
const MOST_THREADS: usize = 8;

/// One block being filled, and one waiting to be taken.
const BUFFERS: usize = 2;

/// How often [`put_one_at_a_time`] tells how far it is.
const REPORT: Duration = Duration::from_millis(40);

type Buffer = Zeroizing<Vec<u8>>;

/// Fills one block, by its number.
pub(crate) type Fill<'a, T, E> = dyn Fn(u64, &mut [u8]) -> Result<T, E> + Sync + 'a;

/// Takes one block, by its number, and what filling it returned.
pub(crate) type Drain<'a, T, E> = dyn FnMut(u64, &[u8], T) -> Result<(), E> + 'a;

/// Puts one block where it belongs, by its number.
pub(crate) type Put<'a, E> = dyn Fn(u64, &[u8]) -> Result<(), E> + Sync + 'a;

/// A buffer, and what filling it returned.
type Filled<T, E> = (Buffer, Result<T, E>);

/// Calls `fill` for the blocks 0 to `count - 1` on several threads, each with a
/// buffer of `length` bytes (contents arbitrary), and `drain` on this thread in
/// order. Stops at the first error in that order.
pub(crate) fn in_order<T: Send, E: Send>(
    count: u64,
    length: usize,
    fill: &Fill<'_, T, E>,
    drain: &mut Drain<'_, T, E>,
) -> Result<(), E> {
    let threads = threads(count, length);
    thread::scope(|scope| {
        let lanes: Vec<Lane<T, E>> = (0..threads as u64)
            .map(|first| {
                let (give_back, free) = channel();
                let (hand_over, done) = sync_channel(BUFFERS);
                for _ in 0..BUFFERS {
                    // The receiver is alive: it is right here.
                    let _ = give_back.send(Zeroizing::new(vec![0; length]));
                }
                scope.spawn(move || {
                    let blocks = (first..count).step_by(threads);
                    work(blocks, &free, &hand_over, fill);
                });
                Lane { done, give_back }
            })
            .collect();
        for block in 0..count {
            let lane = &lanes[(block % threads as u64) as usize];
            let Ok((buffer, outcome)) = lane.done.recv() else {
                // That thread panicked; leaving the scope passes the panic on.
                break;
            };
            drain(block, &buffer, outcome?)?;
            // A thread that has no more blocks is gone.
            let _ = lane.give_back.send(buffer);
        }
        Ok(())
    })
}

/// Calls `fill` for the blocks 0 to `count - 1` on several threads, and `put` once for
/// each filled block, in any order and never twice at a time: whichever thread has
/// filled a block while no other is in `put` puts it, and all that the others fill
/// meanwhile. So no thread waits for `put` unless that is all there is left to do.
/// Returns what `fill` returned, in order. `progress` hears at the start and now and
/// then how many blocks are done.
///
/// After an error no thread takes another block; of several errors, that of the first
/// block is returned.
pub(crate) fn put_one_at_a_time<T: Send, E: Send>(
    count: u64,
    length: usize,
    fill: &Fill<'_, T, E>,
    put: &Put<'_, E>,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<T>, E> {
    let threads = threads(count, length);
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (ended, waiting) = (AtomicUsize::new(0), thread::current());
    let queue = Mutex::new(Queue {
        free: (0..threads * BUFFERS)
            .map(|_| Zeroizing::new(vec![0; length]))
            .collect(),
        filled: VecDeque::new(),
        putting: false,
    });
    let given_back = Condvar::new();
    progress(0);
    let run = || {
        let mut outcomes = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= count {
                break;
            }
            let mut buffer = take_buffer(&queue, &given_back);
            let outcome = fill(block, &mut buffer);
            if outcome.is_err() {
                lock(&queue).free.push(buffer);
                given_back.notify_one();
            } else {
                lock(&queue).filled.push_back((block, buffer));
            }
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            outcomes.push((block, outcome));
            while let Some((block, buffer)) = next_to_put(&queue) {
                if let Err(error) = put(block, &buffer) {
                    failed.store(true, Ordering::Relaxed);
                    outcomes.push((block, Err(error)));
                }
                done.fetch_add(1, Ordering::Relaxed);
                let mut queue = lock(&queue);
                queue.free.push(buffer);
                queue.putting = false;
                given_back.notify_one();
            }
        }
        ended.fetch_add(1, Ordering::Relaxed);
        waiting.unpark();
        outcomes
    };
    let mut outcomes = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        // A thread that panicked has finished without having ended.
        while ended.load(Ordering::Relaxed) < threads.len()
            && !threads.iter().all(thread::ScopedJoinHandle::is_finished)
        {
            thread::park_timeout(REPORT);
            progress(done.load(Ordering::Relaxed));
        }
        threads
            .into_iter()
            .flat_map(|thread| match thread.join() {
                Ok(outcomes) => outcomes,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Vec<_>>()
    });
    outcomes.sort_unstable_by_key(|&(block, _)| block);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// What the threads of [`put_one_at_a_time`] share.
struct Queue {
    free: Vec<Buffer>,
    filled: VecDeque<(u64, Buffer)>,
    /// Whether a thread is in `put`.
    putting: bool,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    // Its three fields agree at every point where a thread could panic.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a buffer. One comes: all others wait to be put, and a thread is putting.
fn take_buffer(queue: &Mutex<Queue>, given_back: &Condvar) -> Buffer {
    let mut queue = lock(queue);
    loop {
        match queue.free.pop() {
            Some(buffer) => return buffer,
            None => {
                queue = given_back
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The next block for this thread to put, unless another thread is in `put`: that one
/// will take it.
fn next_to_put(queue: &Mutex<Queue>) -> Option<(u64, Buffer)> {
    let mut queue = lock(queue);
    if queue.putting {
        return None;
    }
    let next = queue.filled.pop_front();
    queue.putting = next.is_some();
    next
}

struct Lane<T, E> {
    done: Receiver<Filled<T, E>>,
    give_back: Sender<Buffer>,
}

fn threads(count: u64, length: usize) -> usize {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let affordable = IN_FLIGHT / (BUFFERS * length.max(1));
    let useful = usize::try_from(count).unwrap_or(usize::MAX);
    cores
        .clamp(2, MOST_THREADS)
        .min(affordable)
        .min(useful)
        .max(1)
}

/// Ends when the blocks do, or when the other side stops listening.
fn work<T, E>(
    blocks: impl Iterator<Item = u64>,
    free: &Receiver<Buffer>,
    hand_over: &SyncSender<Filled<T, E>>,
    fill: &Fill<'_, T, E>,
) {
    for block in blocks {
        let Ok(mut buffer) = free.recv() else {
            return;
        };
        let outcome = fill(block, &mut buffer);
        if hand_over.send((buffer, outcome)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_arrive_in_order_and_each_once() {
        let mut seen = Vec::new();
        in_order::<u64, ()>(
            1000,
            8,
            &|block, buffer| {
                buffer.copy_from_slice(&block.to_le_bytes());
                Ok(block)
            },
            &mut |block, buffer, value| {
                assert_eq!((buffer, value), (block.to_le_bytes().as_slice(), block));
                seen.push(block);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn each_block_is_put_once_and_one_at_a_time_and_the_results_are_in_order() {
        let (putting, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let results = put_one_at_a_time::<u64, ()>(
            1000,
            8,
            &|block, buffer| {
                buffer.copy_from_slice(&block.to_le_bytes());
                Ok(block)
            },
            &|block, buffer| {
                assert!(!putting.swap(true, Ordering::SeqCst));
                assert_eq!(buffer, block.to_le_bytes());
                seen.lock().unwrap().push(block);
                putting.store(false, Ordering::SeqCst);
                Ok(())
            },
            &mut |done| assert!(done <= 1000),
        );
        assert_eq!(results, Ok((0..1000).collect()));
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn the_error_of_the_first_block_is_returned_and_the_rest_is_left() {
        let worked = AtomicU64::new(0);
        let fill = |block: u64, _: &mut [u8]| {
            worked.fetch_add(1, Ordering::Relaxed);
            if block >= 17 { Err(block) } else { Ok(()) }
        };
        let outcome = put_one_at_a_time(u64::MAX, 1, &fill, &|_, _| Ok(()), &mut |_| {});
        assert_eq!(outcome, Err(17));
        assert!(worked.load(Ordering::Relaxed) < 17 + 2 * MOST_THREADS as u64);
    }

    #[test]
    fn an_error_while_putting_is_returned_and_stops_the_threads() {
        let put = |block, _: &[u8]| if block == 17 { Err("full") } else { Ok(()) };
        let outcome = put_one_at_a_time(u64::MAX, 1, &|_, _| Ok(()), &put, &mut |_| {});
        assert_eq!(outcome, Err("full"));
    }

    #[test]
    fn the_first_error_in_order_is_the_one_returned() {
        let fill = |block: u64, _: &mut [u8]| if block >= 17 { Err(block) } else { Ok(()) };
        let mut drained = 0;
        let outcome = in_order(1000, 1, &fill, &mut |_, _, ()| {
            drained += 1;
            Ok(())
        });
        assert_eq!((outcome, drained), (Err(17), 17));
    }

    #[test]
    fn an_error_of_the_receiving_side_stops_the_threads() {
        let outcome = in_order(u64::MAX, 1, &|_, _| Ok(()), &mut |block, _, ()| {
            if block == 3 { Err("full") } else { Ok(()) }
        });
        assert_eq!(outcome, Err("full"));
    }
}
