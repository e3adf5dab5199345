//! Two sides timed in turns, so that a machine that drifts drifts for both.
//!
//! A turn's first run is discarded: it finds the caches full of the other side's
//! weights, which no server ever does. The sides take turns in going first.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Measured runs in one turn, at least: few, so that drift cancels.
const RUNS_A_TURN: usize = 3;

/// A turn lasts at least this long, so that a model of microseconds is not measured
/// between two interrupts.
const SHORTEST_TURN: Duration = Duration::from_millis(20);

/// Measured runs in one turn, at most.
const MOST_RUNS_A_TURN: usize = 1000;

/// Times of one side's measured runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(super) fn extend(&mut self, more: &Self) {
        self.0.extend_from_slice(&more.0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shortest; zero if there are none.
    pub(super) fn minimum(&self) -> Duration {
        self.0.iter().min().copied().unwrap_or_default()
    }

    /// The time that 99 of 100 are no longer than (the nearest of them); zero if there are
    /// none.
    pub(super) fn percentile_99(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * 99).div_ceil(100);
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    /// How many of them fill a second, one after the other; zero if there are none.
    pub(super) fn per_second(&self) -> f64 {
        let total: Duration = self.0.iter().sum();
        if total.is_zero() {
            0.0
        } else {
            self.0.len() as f64 / total.as_secs_f64()
        }
    }

    /// The median, between the middle two of an even count; zero if there are none.
    pub(super) fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        match sorted.len() {
            0 => Duration::ZERO,
            count => (sorted[(count - 1) / 2] + sorted[count / 2]) / 2,
        }
    }
}

/// Processor time of one side's runs, all threads of this process together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CpuTime {
    total: Duration,
    runs: u32,
}

impl CpuTime {
    /// Does one run, and says how long that took.
    ///
    /// The clock is read before the processor time is asked for: the kernel then looks again
    /// who is to run, and lets a thread that tidies up behind the run have this core.
    pub(super) fn time<T>(&mut self, run: impl FnOnce() -> T) -> (T, Duration) {
        let before = Self::of_process();
        let start = Instant::now();
        let done = run();
        let elapsed = start.elapsed();
        self.total += Self::of_process().saturating_sub(before);
        self.runs += 1;
        (done, elapsed)
    }

    /// Counts processor time of another process.
    pub(super) fn add_elsewhere(&mut self, time: Duration) {
        self.total += time;
    }

    /// Of one run; zero if there were none.
    pub(super) fn of_one(self) -> Duration {
        self.total.checked_div(self.runs).unwrap_or_default()
    }

    fn of_process() -> Duration {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        // Neither is negative: the clock starts with the process.
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }
}

/// Runs `plain` and `occlude` in turns until each has `runs` measured runs at least.
///
/// Each call runs once and says how long that took. `occlude` hears whether its run
/// is the turn's last; `progress` hears of turns done and to come.
///
/// # Errors
/// The first error of either side.
pub(super) fn take<E>(
    runs: NonZeroUsize,
    plain: &mut dyn FnMut() -> Result<Duration, E>,
    occlude: &mut dyn FnMut(bool) -> Result<Duration, E>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Times, Times), E> {
    let slower = plain()?.max(occlude(false)?);
    let least = RUNS_A_TURN.min(runs.get());
    let turns = runs.get().div_ceil(least);
    let length = least.max(runs_in(SHORTEST_TURN, slower));
    let (mut plain_times, mut occlude_times) = (Times::default(), Times::default());
    for turn in 0..turns {
        progress(turn, turns);
        for side in [turn % 2, (turn + 1) % 2] {
            if side == 0 {
                plain()?;
                for _ in 0..length {
                    plain_times.push(plain()?);
                }
            } else {
                occlude(false)?;
                for run in 1..=length {
                    occlude_times.push(occlude(run == length)?);
                }
            }
        }
    }
    progress(turns, turns);
    Ok((plain_times, occlude_times))
}

/// How many runs of `each` fill `time`, within bounds.
fn runs_in(time: Duration, each: Duration) -> usize {
    let count = time.as_nanos() / each.as_nanos().max(1);
    usize::try_from(count).map_or(MOST_RUNS_A_TURN, |count| count.min(MOST_RUNS_A_TURN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(times: &[u64]) -> Times {
        Times(
            times
                .iter()
                .map(|&time| Duration::from_millis(time))
                .collect(),
        )
    }

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        assert_eq!(milliseconds(&[5, 1, 9]).median(), Duration::from_millis(5));
        assert_eq!(
            milliseconds(&[8, 2, 4, 9]).median(),
            Duration::from_millis(6)
        );
        assert_eq!(
            milliseconds(&[8, 2, 4, 9]).minimum(),
            Duration::from_millis(2)
        );
        assert_eq!(milliseconds(&[]).median(), Duration::ZERO);
    }

    #[test]
    fn one_in_a_hundred_may_take_longer_than_the_99th_percentile() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let times = milliseconds(&hundred);
        assert_eq!(times.percentile_99(), Duration::from_millis(99));
        assert_eq!(
            milliseconds(&[7, 3]).percentile_99(),
            Duration::from_millis(7)
        );
        assert_eq!(milliseconds(&[]).percentile_99(), Duration::ZERO);
    }

    #[test]
    fn a_second_holds_as_many_as_fill_it() {
        assert!((milliseconds(&[100, 300]).per_second() - 5.0).abs() < 1e-9);
        assert!(milliseconds(&[]).per_second().abs() < f64::EPSILON);
    }

    /// Who ran, in order, as `runs` asks, each run taking `each`.
    fn order(runs: usize, each: Duration) -> (String, usize, usize) {
        let log = std::cell::RefCell::new(String::new());
        let (plain, occlude) = take::<()>(
            NonZeroUsize::new(runs).unwrap(),
            &mut || {
                log.borrow_mut().push('p');
                Ok(each)
            },
            &mut |last| {
                log.borrow_mut().push(if last { 'O' } else { 'o' });
                Ok(each)
            },
            &mut |_, _| (),
        )
        .unwrap();
        (log.into_inner(), plain.0.len(), occlude.0.len())
    }

    #[test]
    fn sides_take_turns_in_going_first_and_each_turns_first_run_is_discarded() {
        let (order, plain, occlude) = order(6, Duration::from_secs(1));
        assert_eq!(order, "popppp".to_owned() + "oooO" + "oooO" + "pppp");
        assert_eq!((plain, occlude), (6, 6));
    }

    #[test]
    fn one_run_is_one_run() {
        let (order, plain, occlude) = order(1, Duration::from_secs(1));
        assert_eq!(order, "poppoO");
        assert_eq!((plain, occlude), (1, 1));
    }

    #[test]
    fn turns_of_quick_models_are_longer() {
        let (_, plain, occlude) = order(6, Duration::from_millis(2));
        assert_eq!((plain, occlude), (20, 20));
        let (_, plain, _) = order(3, Duration::ZERO);
        assert_eq!(plain, MOST_RUNS_A_TURN);
    }

    #[test]
    fn the_first_error_ends_it() {
        let outcome = take(
            NonZeroUsize::MIN,
            &mut || Ok(Duration::ZERO),
            &mut |last| {
                if last {
                    Err("refused")
                } else {
                    Ok(Duration::ZERO)
                }
            },
            &mut |_, _| (),
        );
        assert_eq!(outcome.unwrap_err(), "refused");
    }
}
