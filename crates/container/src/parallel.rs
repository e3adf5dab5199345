//! Works on numbered blocks with several threads: either hands them over in order
//! ([`in_order`]), or lets each thread finish its own ([`each`]).
//!
//! Memory is bounded: a thread has one or two buffers, and all buffers together keep
//! within [`IN_FLIGHT`], however many blocks there are.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use zeroize::Zeroizing;

/// Bytes of all buffers together.
const IN_FLIGHT: usize = 64 << 20;

/// Past this many threads, reading or writing is the limit, not the cipher.
const MOST_THREADS: usize = 8;

/// One block being filled, and one waiting to be taken.
const BUFFERS: usize = 2;

/// How often [`each`] tells how far it is.
const REPORT: Duration = Duration::from_millis(40);

type Buffer = Zeroizing<Vec<u8>>;

/// Fills one block, by its number.
pub(crate) type Fill<'a, T, E> = dyn Fn(u64, &mut [u8]) -> Result<T, E> + Sync + 'a;

/// Takes one block, by its number, and what filling it returned.
pub(crate) type Drain<'a, T, E> = dyn FnMut(u64, &[u8], T) -> Result<(), E> + 'a;

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

/// Calls `work` for the blocks 0 to `count - 1` on several threads, each with a
/// buffer of `length` bytes (contents arbitrary), and returns what it returned in
/// order. Nothing is handed between threads, so a block stays in the cache of the
/// core that works on it. `progress` hears at the start and now and then how many
/// blocks are done.
///
/// After an error no thread takes another block; of several errors, that of the first
/// block is returned.
pub(crate) fn each<T: Send, E: Send>(
    count: u64,
    length: usize,
    work: &Fill<'_, T, E>,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<T>, E> {
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (ended, waiting) = (AtomicUsize::new(0), thread::current());
    progress(0);
    let run = || {
        let mut buffer = Zeroizing::new(vec![0; length]);
        let mut outcomes = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= count {
                break;
            }
            let outcome = work(block, &mut buffer);
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            outcomes.push((block, outcome));
            done.fetch_add(1, Ordering::Relaxed);
        }
        ended.fetch_add(1, Ordering::Relaxed);
        waiting.unpark();
        outcomes
    };
    let mut outcomes = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads(count, length))
            .map(|_| scope.spawn(run))
            .collect();
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
    fn each_block_is_worked_on_once_and_the_results_are_in_order() {
        let results = each::<u64, ()>(
            1000,
            8,
            &|block, buffer| {
                buffer.copy_from_slice(&block.to_le_bytes());
                Ok(block)
            },
            &mut |done| assert!(done <= 1000),
        );
        assert_eq!(results, Ok((0..1000).collect()));
    }

    #[test]
    fn the_error_of_the_first_block_is_returned_and_the_rest_is_left() {
        let worked = AtomicU64::new(0);
        let outcome = each::<(), u64>(
            u64::MAX,
            1,
            &|block, _| {
                worked.fetch_add(1, Ordering::Relaxed);
                if block >= 17 { Err(block) } else { Ok(()) }
            },
            &mut |_| {},
        );
        assert_eq!(outcome, Err(17));
        assert!(worked.load(Ordering::Relaxed) < 17 + 2 * MOST_THREADS as u64);
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
