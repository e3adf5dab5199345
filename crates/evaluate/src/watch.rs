//! What a guard's telemetry says of queries that somebody asked, or may ask, and what work they
//! cost: so that an owner chooses thresholds by looking at what they do.

use occlude_engine::{Model, RunError};
use occlude_guard::{AnswerError, GAIN_OF_ANSWER, Guard, gain};
use occlude_inference_protocol::Tensor;
use occlude_usage::{Finding, Observation, SketchKey, Window};
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

/// What one client's queries cost, asked one by one in one window of budgets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WatchedWork {
    /// Answers.
    pub answers: u64,
    /// What they told, in answers that told all they can.
    pub gained: f64,
    /// Hashes for all of them, on average.
    pub hashes: f64,
    /// Bits of one more.
    pub bits: u32,
}

/// What is seen in one client's queries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WatchedClient {
    /// Each window; none where nothing is looked at.
    pub windows: Vec<WatchedWindow>,
    /// What it costs, where it does.
    pub work: Option<WatchedWork>,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The guard looks at nothing.
    #[error("the guard has neither [telemetry] nor [work]: nothing to look at")]
    Nothing,
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
) -> Result<WatchedClient, WatchError> {
    let configuration = guard.configuration();
    let (telemetry, work) = (configuration.telemetry, configuration.work);
    if telemetry.is_none() && work.is_none() {
        return Err(WatchError::Nothing);
    }
    let inputs = named("model", inputs, model.inputs())?;
    let examples = examples(&inputs)?;
    let (mut window, mut windows) = (Window::default(), Vec::new());
    let (mut answers, mut gained, mut hashes) = (0, 0, 0.0);
    for (at, rows) in parts(examples, model.inputs()) {
        let asked = cut(&inputs, at, rows)?;
        let sketches = key.sketches(&asked);
        let looks = guard.look(&model.run(asked, guard.computed())?)?;
        if let Some(work) = work {
            for look in &looks {
                hashes += f64::from(work.bits_after(gained)).exp2();
                gained += gain(std::slice::from_ref(look));
            }
            answers += looks.len() as u64;
        }
        if let Some(telemetry) = &telemetry {
            for observation in Observation::of(&looks, sketches) {
                window.add(telemetry, observation);
                if window.is_full(telemetry) {
                    windows.push(WatchedWindow::from(&window.close(telemetry)));
                }
            }
        }
        progress(at + rows, examples);
    }
    let work = work.map(|work| WatchedWork {
        answers,
        gained: gained as f64 / GAIN_OF_ANSWER as f64,
        hashes,
        bits: work.bits_after(gained),
    });
    Ok(WatchedClient { windows, work })
}

impl From<&Finding> for WatchedWindow {
    fn from(finding: &Finding) -> Self {
        Self {
            queries: finding.queries,
            uncertain: f64::from(finding.uncertain) / f64::from(finding.queries),
            normality: finding.normality,
            uncertain_unusual: finding.uncertain_unusual,
            distances_unusual: finding.distances_unusual,
        }
    }
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
