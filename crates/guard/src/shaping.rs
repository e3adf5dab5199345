//! How much of an answer is told: the less, the less a copy learns from each.
//!
//! Shape and type of an answer stay, so that clients need not know. What is left out is 0, and
//! what is left is not made to add up to 1 again.

use serde::{Deserialize, Serialize};

use crate::ConfigurationError;

/// More digits than single precision has.
const MAX_DECIMALS: u8 = 9;

/// What is told of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Shaping {
    /// Only this many of the largest probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<usize>,
    /// Probabilities rounded to this many decimals, halves away from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decimals: Option<u8>,
    /// 1 for the most probable class and 0 for every other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub label_only: bool,
}

impl Shaping {
    pub(crate) fn check(&self) -> Result<(), ConfigurationError> {
        let value = |field, found: String, expected| ConfigurationError::Value {
            field,
            found,
            expected,
        };
        let either = self.top.is_some() || self.decimals.is_some();
        match (self.top, self.decimals) {
            (Some(0), _) => Err(value("shaping.top", "0".to_owned(), "1 or more")),
            (_, Some(decimals)) if decimals > MAX_DECIMALS => {
                Err(value("shaping.decimals", decimals.to_string(), "0 to 9"))
            }
            _ if self.label_only && either => Err(value(
                "shaping.label-only",
                "true with top or decimals".to_owned(),
                "it alone: a label has neither",
            )),
            _ if !self.label_only && !either => Err(value(
                "shaping",
                "nothing".to_owned(),
                "top, decimals or label-only",
            )),
            _ => Ok(()),
        }
    }

    /// Shapes one answer, in place. Among equal probabilities the first class counts.
    pub(crate) fn shape(&self, answer: &mut [f64]) {
        if self.label_only {
            let label = descending(answer).first().copied();
            answer.fill(0.0);
            if let Some(label) = label {
                answer[label] = 1.0;
            }
            return;
        }
        if let Some(top) = self.top {
            for class in descending(answer).into_iter().skip(top) {
                answer[class] = 0.0;
            }
        }
        if let Some(decimals) = self.decimals {
            let scale = 10_f64.powi(i32::from(decimals));
            for value in answer {
                *value = (*value * scale).round() / scale;
            }
        }
    }
}

/// Classes, the most probable first.
fn descending(answer: &[f64]) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..answer.len()).collect();
    classes.sort_by(|&one, &other| answer[other].total_cmp(&answer[one]));
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: [f64; 5] = [0.125, 0.4, 0.05, 0.4, 0.025];

    fn shaped(shaping: &Shaping) -> [f64; 5] {
        let mut answer = ANSWER;
        shaping.shape(&mut answer);
        answer
    }

    fn nothing() -> Shaping {
        Shaping {
            top: None,
            decimals: None,
            label_only: false,
        }
    }

    #[test]
    fn the_largest_are_kept_and_of_equal_ones_the_first() {
        let top = |top| {
            shaped(&Shaping {
                top: Some(top),
                ..nothing()
            })
        };
        assert_eq!(top(1), [0.0, 0.4, 0.0, 0.0, 0.0]);
        assert_eq!(top(3), [0.125, 0.4, 0.0, 0.4, 0.0]);
        assert_eq!(top(5), ANSWER);
        assert_eq!(top(usize::MAX), ANSWER);
    }

    #[test]
    fn decimals_are_rounded_and_halves_go_up() {
        let decimals = |decimals| {
            shaped(&Shaping {
                decimals: Some(decimals),
                ..nothing()
            })
        };
        assert_eq!(decimals(0), [0.0; 5]);
        assert_eq!(decimals(1), [0.1, 0.4, 0.1, 0.4, 0.0]);
        assert_eq!(decimals(2), [0.13, 0.4, 0.05, 0.4, 0.03]);
        assert_eq!(decimals(9), ANSWER);
    }

    #[test]
    fn a_label_is_one_class_also_where_all_are_zero() {
        let label = Shaping {
            label_only: true,
            ..nothing()
        };
        assert_eq!(shaped(&label), [0.0, 1.0, 0.0, 0.0, 0.0]);
        let mut zeros = [0.0; 3];
        label.shape(&mut zeros);
        assert_eq!(zeros, [1.0, 0.0, 0.0]);
        label.shape(&mut []);
    }

    #[test]
    fn the_kept_ones_are_rounded_together() {
        let both = Shaping {
            top: Some(2),
            decimals: Some(1),
            ..nothing()
        };
        assert_eq!(shaped(&both), [0.0, 0.4, 0.0, 0.4, 0.0]);
    }
}
