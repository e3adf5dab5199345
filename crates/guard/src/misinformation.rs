//! Adaptive misinformation (Kariyappa and Qureshi, "Defending Against Model Stealing Attacks
//! with Adaptive Misinformation", CVPR 2020, section 4).
//!
//! Who copies a model asks it about inputs that are not of its kind, and there its answers
//! are uncertain. So an answer is mixed with that of another model, which was trained to be
//! wrong, the more the less certain it is:
//!
//! ```text
//! y' = (1 - a) f(x) + a g(x),   a = 1 / (1 + exp(nu (max f(x) - tau)))
//! ```
//!
//! `g` is always computed: who left it out where `a` is 0 would tell `a` by the time.

use serde::{Deserialize, Serialize};

use crate::ConfigurationError;
use crate::configuration::check_name;

/// The steepest step: beyond it, rounding decides.
const MAX_NU: f64 = 1e6;

/// How answers are mixed with wrong ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Misinformation {
    /// The output with the wrong probabilities, of the shape and type of the answers.
    pub output: String,
    /// The certainty, from 0 to 1, at which an answer is half of each.
    pub tau: f64,
    /// How sharply that changes with the certainty: above 0.
    #[serde(default = "default_nu")]
    pub nu: f64,
}

/// As good as a step: within 0.005 of `tau` on either side all is one or the other to 1%.
fn default_nu() -> f64 {
    1000.0
}

impl Misinformation {
    pub(crate) fn check(&self) -> Result<(), ConfigurationError> {
        check_name("misinformation.output", &self.output)?;
        if !(0.0..=1.0).contains(&self.tau) {
            return Err(ConfigurationError::Value {
                field: "misinformation.tau",
                found: self.tau.to_string(),
                expected: "a probability from 0 to 1",
            });
        }
        if !(self.nu > 0.0 && self.nu <= MAX_NU) {
            return Err(ConfigurationError::Value {
                field: "misinformation.nu",
                found: self.nu.to_string(),
                expected: "a number above 0, up to 1000000",
            });
        }
        Ok(())
    }

    /// The share of the wrong answer in one of this certainty, from 0 to 1.
    ///
    /// The exponential overflows to infinity or vanishes, of which the share is 0 or 1. A
    /// share below an answer's rounding is 0: where a probability is 0, it would show.
    #[must_use]
    pub fn share(&self, certainty: f64) -> f64 {
        let share = 1.0 / (1.0 + (self.nu * (certainty - self.tau)).exp());
        if share < f64::EPSILON { 0.0 } else { share }
    }

    /// Mixes one answer, in place, with the wrong one. Both are finite and as long.
    pub(crate) fn mix(&self, answer: &mut [f64], wrong: &[f64]) {
        let certainty = answer.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let share = self.share(certainty);
        for (value, wrong) in answer.iter_mut().zip(wrong) {
            *value = (1.0 - share) * *value + share * wrong;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(tau: f64, nu: f64) -> Misinformation {
        Misinformation {
            output: "g".to_owned(),
            tau,
            nu,
        }
    }

    /// Values of the logistic function: 1 / (1 + e), and its mirror image.
    #[test]
    fn the_share_is_the_logistic_functions() {
        let step = with(0.5, 1000.0);
        let close =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}");
        close(step.share(0.5), 0.5);
        close(step.share(0.501), 0.268_941_421_369_995_1);
        close(step.share(0.499), 0.731_058_578_630_004_9);
        close(with(0.4, 2.0).share(0.9), 0.268_941_421_369_995_1);
    }

    #[test]
    fn the_extremes_neither_overflow_nor_leave_the_range() {
        for (tau, nu, certainty, expected) in [
            (0.0, MAX_NU, 1.0, 0.0),
            (1.0, MAX_NU, 0.0, 1.0),
            (0.0, MAX_NU, 0.0, 0.5),
            (1.0, MAX_NU, 1.0, 0.5),
            (0.5, MAX_NU, 1e300, 0.0),
            (0.5, MAX_NU, -1e300, 1.0),
        ] {
            assert_eq!(with(tau, nu).share(certainty), expected);
        }
    }

    #[test]
    fn a_certain_answer_stays_and_an_uncertain_one_becomes_the_wrong_one() {
        let step = with(0.5, 1000.0);
        let wrong = [0.0, 0.0, 1.0];
        let mut certain = [0.9, 0.1, 0.0];
        step.mix(&mut certain, &wrong);
        assert_eq!(certain, [0.9, 0.1, 0.0]);
        let mut uncertain = [0.4, 0.3, 0.3];
        step.mix(&mut uncertain, &wrong);
        for (found, expected) in uncertain.iter().zip(wrong) {
            assert!((found - expected).abs() < 1e-12, "{uncertain:?}");
        }
    }

    proptest! {
        #[test]
        fn more_certain_answers_have_less_of_the_wrong_one(
            tau in 0.0..=1.0_f64,
            nu in 1e-3..=MAX_NU,
            one in 0.0..=1.0_f64,
            other in 0.0..=1.0_f64,
        ) {
            let of = with(tau, nu);
            let (less, more) = (one.min(other), one.max(other));
            prop_assert!(of.share(less) >= of.share(more));
            prop_assert!((0.0..=1.0).contains(&of.share(one)));
        }

        #[test]
        fn probabilities_stay_probabilities(
            tau in 0.0..=1.0_f64,
            nu in 1e-3..=MAX_NU,
            odds in prop::collection::vec((0.0..1.0_f64, 0.0..1.0_f64), 1..20),
        ) {
            let normal = |values: Vec<f64>| -> Vec<f64> {
                let sum: f64 = values.iter().sum::<f64>() + 1e-9;
                values.iter().map(|value| value / sum).collect()
            };
            let (f, g): (Vec<f64>, Vec<f64>) = odds.into_iter().unzip();
            let (f, g) = (normal(f), normal(g));
            let mut mixed = f.clone();
            with(tau, nu).mix(&mut mixed, &g);
            for ((mixed, f), g) in mixed.iter().zip(&f).zip(&g) {
                prop_assert!(*mixed >= f.min(*g) - 1e-12 && *mixed <= f.max(*g) + 1e-12);
            }
        }
    }
}
