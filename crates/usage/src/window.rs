//! A client's queries, so many at a time.

use std::collections::BTreeMap;

use occlude_guard::{Look, Telemetry};
use zeroize::Zeroizing;

use crate::Sketch;

/// Sketches that are kept of one client, 64 KiB: what comes after is compared with these.
const MOST_SKETCHES: usize = 256;

/// After so many windows they are forgotten, so that nobody fills them once and for all with
/// what nothing else is near to.
const REMEMBERED_WINDOWS: u32 = 10;

/// Distances that are kept of one window: as many as it has answers.
const MOST_DISTANCES: usize = 1000;

/// Fewer distances are not judged.
const FEWEST_DISTANCES: usize = 50;

/// Distances that differ by less than this share of their mean are the same, but for rounding:
/// whose distribution would be that of nothing. No two things that were found are so alike.
const SAME: f64 = 1e-3;

/// Distances further from the mean than so many standard deviations are left out, as PRADA
/// does.
const OUTLIERS: f64 = 3.0;

/// One example that was answered.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Each of its answers.
    pub looks: Vec<Look>,
    /// Its input, where that is looked at.
    pub sketch: Option<Sketch>,
}

/// What one client asked in one window, and inputs of some windows before, since who makes
/// inputs from inputs may take their time.
#[derive(Default)]
pub struct Window {
    queries: u32,
    uncertain: u32,
    distances: Zeroizing<Vec<f64>>,
    /// Inputs that are far from each other: "the growing sets" of PRADA, algorithm 3.
    kept: Vec<Kept>,
    /// What is further away than this is far, in each class that has some.
    thresholds: BTreeMap<usize, f64>,
    /// How many windows these are of, besides this one.
    before: u32,
}

/// One input that is far from those of its class before it.
struct Kept {
    class: usize,
    sketch: Sketch,
    /// To the nearest of those; 0 for the first.
    distance: f64,
}

/// What a window came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Answers in it.
    pub queries: u32,
    /// Those of them that the model was not certain of; 0 where that is not looked at.
    pub uncertain: u32,
    /// The Shapiro-Wilk statistic W of the distances, from 0 to 1; 0 where all are the same,
    /// `None` where there are too few.
    pub normality: Option<f64>,
    /// Whether there are more uncertain ones than the owner finds usual.
    pub uncertain_unusual: bool,
    /// Whether the distances are less normal than that.
    pub distances_unusual: bool,
}

impl Observation {
    /// One for each sketch, with as many of the answers as each has; one for all where the
    /// answers cannot be told apart, or there are no sketches.
    #[must_use]
    pub fn of(looks: &[Look], sketches: Vec<Sketch>) -> Vec<Self> {
        let each = looks.len().checked_div(sketches.len()).unwrap_or(0);
        if each == 0 || each * sketches.len() != looks.len() {
            return vec![Self {
                looks: looks.to_vec(),
                sketch: sketches.into_iter().next(),
            }];
        }
        let parts = looks.chunks_exact(each).zip(sketches);
        parts
            .map(|(looks, sketch)| Self {
                looks: looks.to_vec(),
                sketch: Some(sketch),
            })
            .collect()
    }
}

impl Window {
    /// Takes in what was answered.
    pub fn add(&mut self, telemetry: &Telemetry, observation: Observation) {
        let Observation { looks, sketch } = observation;
        let count = |looks: usize| u32::try_from(looks).unwrap_or(u32::MAX);
        self.queries = self.queries.saturating_add(count(looks.len()));
        if let Some(rule) = telemetry.uncertain {
            let uncertain = looks.iter().filter(|look| look.certainty < rule.below);
            self.uncertain = self.uncertain.saturating_add(count(uncertain.count()));
        }
        if let (Some(first), Some(sketch)) = (looks.first(), sketch)
            && telemetry.distances.is_some()
            && self.distances.len() < MOST_DISTANCES
        {
            self.measure(first.class, sketch);
        }
    }

    /// The distance of an input from those before it in its class. As much is computed
    /// whatever the class and however near: how long an answer takes says neither.
    fn measure(&mut self, class: usize, sketch: Sketch) {
        let mut nearest = f64::INFINITY;
        for place in 0..MOST_SKETCHES {
            let kept = self.kept.get(place);
            let distance = kept.map_or(&sketch, |kept| &kept.sketch).distance(&sketch);
            if kept.is_some_and(|kept| kept.class == class) {
                nearest = nearest.min(distance);
            }
        }
        let same = self.kept.iter().filter(|kept| kept.class == class);
        let (mean, deviation) = moments(same.map(|kept| kept.distance));
        let threshold = self.thresholds.get(&class).copied().unwrap_or_default();
        let threshold = threshold.max(mean - deviation);
        if nearest == 0.0 {
            // Asked again, which tells nobody more.
            return;
        }
        let first = nearest == f64::INFINITY;
        if !first {
            self.distances.push(nearest);
        }
        // Where there is no room any more, a class that has none has nothing to compare with.
        if nearest > threshold && self.kept.len() < MOST_SKETCHES {
            self.thresholds.insert(class, threshold);
            self.kept.push(Kept {
                class,
                sketch,
                distance: if first { 0.0 } else { nearest },
            });
        }
    }

    /// Whether it is long enough to be judged.
    #[must_use]
    pub fn is_full(&self, telemetry: &Telemetry) -> bool {
        self.queries >= telemetry.queries
    }

    /// What it comes to; the next window begins.
    pub fn close(&mut self, telemetry: &Telemetry) -> Finding {
        let finding = self.judge(telemetry);
        let before = self.before + 1;
        let ended = std::mem::take(self);
        if before < REMEMBERED_WINDOWS {
            *self = Self {
                kept: ended.kept,
                thresholds: ended.thresholds,
                before,
                ..Self::default()
            };
        }
        finding
    }

    fn judge(&self, telemetry: &Telemetry) -> Finding {
        let normality = telemetry.distances.and_then(|_| self.normality());
        let share = f64::from(self.uncertain) / f64::from(self.queries.max(1));
        Finding {
            queries: self.queries,
            uncertain: self.uncertain,
            normality,
            uncertain_unusual: telemetry.uncertain.is_some_and(|rule| share > rule.share),
            distances_unusual: telemetry
                .distances
                .zip(normality)
                .is_some_and(|(rule, normality)| normality < rule.normality),
        }
    }

    fn normality(&self) -> Option<f64> {
        let (mean, deviation) = moments(self.distances.iter().copied());
        let usual = |distance: &f64| (distance - mean).abs() <= OUTLIERS * deviation;
        let kept: Vec<f64> = self.distances.iter().copied().filter(usual).collect();
        if kept.len() < FEWEST_DISTANCES {
            return None;
        }
        if deviation < SAME * mean {
            return Some(0.0);
        }
        let tested = normality::shapiro_wilk(kept).ok()?;
        Some(tested.statistic).filter(|statistic| statistic.is_finite())
    }
}

/// Mean and standard deviation; zeros of nothing.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let squares = values.map(|value| (value - mean).powi(2));
    (mean, (squares.sum::<f64>() / count).sqrt())
}

#[cfg(test)]
mod tests {
    use occlude_guard::{Distances, Uncertain};
    use occlude_inference_protocol::Tensor;

    use super::*;
    use crate::sketch::tests::{key, numbers};

    fn telemetry(normality: f64) -> Telemetry {
        Telemetry {
            queries: 200,
            uncertain: Some(Uncertain {
                below: 0.5,
                share: 0.25,
            }),
            distances: Some(Distances { normality }),
            throttle_seconds: None,
        }
    }

    /// Rows of `width`, answered with the class and certainty that `look` says.
    fn window(values: &[f32], width: usize, look: impl Fn(usize) -> (usize, f64)) -> Window {
        let rows = values.len() / width;
        let shape = vec![rows as u64, width as u64];
        let inputs = Tensor::from_values("x", shape, values).unwrap();
        let looks: Vec<Look> = (0..rows)
            .map(look)
            .map(|(class, certainty)| Look { class, certainty })
            .collect();
        let mut window = Window::default();
        for observation in Observation::of(&looks, key(1).sketches(&[inputs])) {
            window.add(&telemetry(0.9), observation);
        }
        window
    }

    /// The same in Python, from the paper, with `SciPy`'s Shapiro-Wilk test.
    #[test]
    fn distances_are_as_normal_as_another_implementation_says() {
        let mut stepped = numbers(7, 200 * 60);
        for at in 0..100 * 60 {
            stepped[100 * 60 + at] = stepped[at] + 0.05;
        }
        for (values, width, classes, expected) in [
            (numbers(5, 400), 2, 1, 0.782_272_809_572_441),
            (numbers(5, 400), 2, 3, 0.834_984_144_249_148),
            (numbers(6, 600), 2, 2, 0.885_387_475_018_295),
            (stepped, 60, 1, 0.701_886_323_716_362),
        ] {
            let window = window(&values, width, |row| (row % classes, 0.9));
            let finding = window.judge(&telemetry(expected + 1e-4));
            let found = finding.normality.unwrap();
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
            assert!(finding.distances_unusual);
            assert!(!window.judge(&telemetry(expected - 1e-4)).distances_unusual);
        }
    }

    #[test]
    fn answers_that_are_not_certain_are_counted() {
        for (uncertain, unusual) in [(50, false), (51, true)] {
            let certainty = |row| if row < uncertain { 0.499 } else { 0.5 };
            let window = window(&numbers(1, 200), 1, |row| (0, certainty(row)));
            let finding = window.judge(&telemetry(0.001));
            assert_eq!(
                (finding.queries, finding.uncertain),
                (200, uncertain as u32)
            );
            assert_eq!(finding.uncertain_unusual, unusual);
        }
    }

    #[test]
    fn a_window_is_full_with_so_many_answers_and_keeps_no_more_than_it_may() {
        let short = window(&numbers(1, 199), 1, |_| (0, 0.9));
        assert!(!short.is_full(&telemetry(0.9)));
        // Ever further apart, so that each would be kept.
        let growing: Vec<f32> = (0..5000_u16).map(|row| f32::from(row).powi(2)).collect();
        let long = window(&growing, 1, |_| (0, 0.9));
        assert!(long.is_full(&telemetry(0.9)));
        assert_eq!(long.kept.len(), MOST_SKETCHES);
        assert_eq!(long.distances.len(), MOST_DISTANCES);
        let of_many = window(&growing, 1, |row| (row, 0.9));
        assert_eq!(of_many.kept.len(), MOST_SKETCHES);
        assert_eq!(of_many.judge(&telemetry(0.9)).normality, None);
    }

    #[test]
    fn what_is_made_from_inputs_of_earlier_windows_is_noticed_for_a_while() {
        let found = numbers(7, 100 * 60);
        let made: Vec<f32> = found.iter().map(|value| value + 0.05).collect();
        let add = |window: &mut Window, values: &[f32]| {
            let inputs = Tensor::from_values("x", vec![100, 60], values).unwrap();
            let look = Look {
                class: 0,
                certainty: 0.9,
            };
            for observation in Observation::of(&[look; 100], key(1).sketches(&[inputs])) {
                window.add(&telemetry(0.9), observation);
            }
            window.close(&telemetry(0.9))
        };
        let mut window = Window::default();
        assert!(!add(&mut window, &found).distances_unusual);
        // All have the same distance, but for rounding.
        assert_eq!(add(&mut window, &made).normality, Some(0.0));
        for _ in 2..REMEMBERED_WINDOWS {
            assert!(!window.kept.is_empty());
            add(&mut window, &found);
        }
        assert_eq!((window.kept.len(), window.before), (0, 0));
        assert!(window.thresholds.is_empty() && window.distances.is_empty());
    }

    #[test]
    fn what_cannot_be_judged_is_not() {
        let none = Window::default().judge(&telemetry(0.9));
        assert_eq!((none.queries, none.normality), (0, None));
        assert!(!none.uncertain_unusual && !none.distances_unusual);
        // The same over and over has no distances, however often.
        let again = numbers(1, 60).repeat(5);
        let again = window(&again, 1, |_| (0, 0.9));
        let once = window(&numbers(1, 60), 1, |_| (0, 0.9));
        assert_eq!(again.kept.len(), once.kept.len());
        let same = window(&[0.25; 200], 1, |_| (0, 0.9)).judge(&telemetry(0.9));
        assert_eq!(same.normality, None);
        let few = window(&numbers(1, 50), 1, |_| (0, 0.9));
        assert_eq!(few.judge(&telemetry(0.9)).normality, None);
        let enough = window(&numbers(1, 60), 1, |_| (0, 0.9));
        assert!(enough.judge(&telemetry(0.9)).normality.is_some());
        // As large as numbers go.
        let large: Vec<f32> = (0..200_u8)
            .map(|row| if row % 2 == 0 { f32::MAX } else { f32::MIN } / f32::from(row + 1))
            .collect();
        let finding = window(&large, 1, |_| (0, 0.9)).judge(&telemetry(0.9));
        assert!(finding.normality.is_none_or(f64::is_finite));
    }

    #[test]
    fn answers_belong_to_their_examples() {
        let looks: Vec<Look> = (0..6)
            .map(|class| Look {
                class,
                certainty: 1.0,
            })
            .collect();
        let inputs = Tensor::from_values("x", vec![3, 1], &[1.0_f32, 2.0, 3.0]).unwrap();
        let sketches = || key(1).sketches(std::slice::from_ref(&inputs));
        let classes = |looks: &[Look]| -> Vec<Vec<usize>> {
            let all = Observation::of(looks, sketches());
            let of_one = |one: &Observation| one.looks.iter().map(|look| look.class).collect();
            all.iter().map(of_one).collect()
        };
        assert_eq!(classes(&looks), [[0, 1], [2, 3], [4, 5]]);
        assert_eq!(classes(&looks[..3]), [[0], [1], [2]]);
        assert_eq!(classes(&looks[..4]), [[0, 1, 2, 3]], "of all together");
        assert_eq!(classes(&looks[..2]), [[0, 1]]);
        let without = Observation::of(&looks, Vec::new());
        assert!(matches!(&without[..], [one] if one.looks == looks && one.sketch.is_none()));
    }
}
