//! What a guard's telemetry says of queries that somebody asked, or may ask: so that an owner
//! chooses its thresholds by looking at what they do.

use occlude_engine::{Model, RunError};
use occlude_guard::{AnswerError, Guard};
use occlude_inference_protocol::Tensor;
use occlude_usage::{Observation, SketchKey, Window};
use serde::{Deserialize, Serialize};

use crate::examples::{ExamplesError, cut, examples, named, parts};

/// One window, in the order of the queries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WatchedWindow {
    /// Answers in it.
    pub queries: u32,
    /// The share of them that the model is not certain of, from 0 to 1.
    pub uncertain: f64,
    /// The Shapiro-Wilk statistic W of the distances, from 0 to 1, where there are enough.
    pub normality: Option<f64>,
    /// Whether that share is unusual.
    pub uncertain_unusual: bool,
    /// Whether those distances are.
    pub distances_unusual: bool,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The guard looks at nothing.
    #[error("the guard has no [telemetry]: nothing to look at")]
    NoTelemetry,
    /// The inputs are not the model's.
    #[error(transparent)]
    Examples(#[from] ExamplesError),
    /// The model does not run on them.
    #[error(transparent)]
    Model(#[from] RunError),
    /// Its answers cannot be looked at.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

impl WatchedWindow {
    /// Whether the owner would hear an alarm.
    #[must_use]
    pub fn is_unusual(&self) -> bool {
        self.uncertain_unusual || self.distances_unusual
    }
}

/// Asks a model with its guard as one client would: arrays whose first extent is that of the
/// queries, in their order. What does not fill a window at the end is left out. `progress` is
/// told how many of all queries are done.
///
/// # Errors
/// [`WatchError`].
pub fn watch(
    (model, guard, key): (&Model, &Guard, &SketchKey),
    inputs: &[Tensor],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<WatchedWindow>, WatchError> {
    let telemetry = guard.configuration().telemetry;
    let telemetry = telemetry.ok_or(WatchError::NoTelemetry)?;
    let inputs = named("model", inputs, model.inputs())?;
    let examples = examples(&inputs)?;
    let (mut window, mut windows) = (Window::default(), Vec::new());
    for (at, rows) in parts(examples, model.inputs()) {
        let asked = cut(&inputs, at, rows)?;
        let sketches = key.sketches(&asked);
        let looks = guard.look(&model.run(asked, guard.computed())?)?;
        for observation in Observation::of(&looks, sketches) {
            window.add(&telemetry, observation);
            if window.is_full(&telemetry) {
                let finding = window.close(&telemetry);
                windows.push(WatchedWindow {
                    queries: finding.queries,
                    uncertain: f64::from(finding.uncertain) / f64::from(finding.queries),
                    normality: finding.normality,
                    uncertain_unusual: finding.uncertain_unusual,
                    distances_unusual: finding.distances_unusual,
                });
            }
        }
        progress(at + rows, examples);
    }
    Ok(windows)
}

/// The value below which this share of them lies; `None` of nothing.
#[must_use]
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of an index is one"
    )]
    let at = (share * last as f64).round() as usize;
    sorted.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values = || (0..=100).rev().map(f64::from);
        for (share, expected) in [
            (0.0, 0.0),
            (0.01, 1.0),
            (0.5, 50.0),
            (0.99, 99.0),
            (1.0, 100.0),
        ] {
            assert_eq!(quantile(values(), share), Some(expected));
        }
        assert_eq!(quantile([7.0], 0.3), Some(7.0));
        assert_eq!(quantile([], 0.5), None);
    }
}
