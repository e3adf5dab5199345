//! Whether a model learned another one's answers by heart: the watermark of a guard, looked
//! for in a suspect.
//!
//! The guard's key picks the inputs and, for each, a class that is not the model's. A model
//! that was made without those answers cannot know the key, so it says that class with a
//! probability of at most one in all others, whatever it has learned; how often it does is
//! binomial, and so is the p-value. That holds for inputs that nobody chose by what the
//! suspect says of them.

use std::collections::HashSet;
use std::path::Path;

use occlude_engine::{Model, RunError, Runtime};
use occlude_guard::{AnswerError, Guard};
use occlude_inference_protocol::{DataType, Tensor, TensorMetadata};
use serde::{Deserialize, Serialize};

use crate::bench::BenchError;
use crate::bench::plain::PlainModel;
use crate::examples::{ExamplesError, cut, examples, named, parts};

/// What may be a copy.
#[derive(Debug)]
pub enum Suspect<'a> {
    /// An ONNX file, hostile as any stranger's, which runs in this process.
    Model {
        /// What runs it.
        runtime: &'static Runtime,
        /// The file.
        path: &'a Path,
        /// The output with labels or classes; the first by default.
        output: Option<&'a str>,
    },
    /// What it answered to the inputs elsewhere, in their order: labels or classes.
    Answers(&'a Tensor),
}

/// The same, while it is asked.
enum Asked<'a> {
    Model {
        model: Box<PlainModel>,
        inputs: Vec<Tensor>,
        output: Option<&'a str>,
    },
    Answers(&'a Tensor),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// Different inputs that were tried.
    pub inputs: u64,
    /// Those of them whose answers are changed.
    pub marked: u64,
    /// Those of which the suspect says the class that they were changed to.
    pub matched: u64,
    /// How many that would be by chance, at most.
    pub expected_by_chance: f64,
    /// The probability of so many or more by chance, at most.
    pub p_value: f64,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The model was sealed without a watermark.
    #[error("the model has no watermark: nothing to look for")]
    NoWatermark,
    /// The inputs are not what either takes.
    #[error(transparent)]
    Examples(#[from] ExamplesError),
    /// An output that no labels can be read from.
    #[error(
        "the suspect's output {output:?} is {found} {shape:?}: expected labels (INT64, one each) or a row of FP32 or FP64 each"
    )]
    Labels {
        /// The output.
        output: String,
        /// Its type.
        found: DataType,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// The suspect has no such output.
    #[error("the suspect has no output {output:?}")]
    NoOutput {
        /// The output.
        output: String,
    },
    /// The owner's model does not run on the inputs.
    #[error("the owner's model: {0}")]
    Model(#[from] RunError),
    /// Its answers cannot be guarded.
    #[error("the owner's model: {0}")]
    Answer(#[from] AnswerError),
    /// Answers to other inputs.
    #[error("{found} answers to {expected} inputs")]
    Answers {
        /// How many there are.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// ONNX Runtime cannot run the suspect.
    #[error("the suspect: {0}")]
    Suspect(#[from] BenchError),
}

/// Asks a model with its guard and a suspect about the same inputs: arrays whose first extent
/// is that of the examples. `progress` is told how many of all examples are done.
///
/// # Errors
/// [`ClaimError`].
pub fn claim(
    (model, guard): (&Model, &Guard),
    suspect: &Suspect<'_>,
    inputs: &[Tensor],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Claim, ClaimError> {
    if guard.configuration().watermark.is_none() {
        return Err(ClaimError::NoWatermark);
    }
    let own = named("model", inputs, model.inputs())?;
    let examples = examples(inputs)?;
    let mut suspect = Asked::new(suspect, inputs, examples)?;
    let parts = parts(examples, model.inputs().iter().chain(suspect.inputs()));
    let (mut seen, mut classes) = (HashSet::new(), 0);
    let mut found = Claim {
        inputs: 0,
        marked: 0,
        matched: 0,
        expected_by_chance: 0.0,
        p_value: 1.0,
    };
    for (at, rows) in parts {
        let asked = cut(&own, at, rows)?;
        let marks = guard.marks(&asked);
        let computed = model.run(asked, guard.computed())?;
        let told = guard.watermarked(&computed, &marks)?;
        classes = last(&computed[0]);
        let labels = suspect.labels((at, rows), told.len())?;
        // The same input twice is one trial.
        let new: Vec<bool> = marks.digests().map(|digest| seen.insert(*digest)).collect();
        let of_one = (told.len() / new.len().max(1)).max(1);
        for (row, (told, label)) in told.iter().zip(labels).enumerate() {
            if !new.get(row / of_one).copied().unwrap_or(false) {
                continue;
            }
            found.inputs += 1;
            found.marked += u64::from(told.is_some());
            found.matched += u64::from(told.is_some_and(|class| class as u64 == label));
        }
        progress(at + rows, examples);
    }
    let chance = 1.0 / (classes.max(2) - 1) as f64;
    found.expected_by_chance = found.marked as f64 * chance;
    found.p_value = p_value(found.matched, found.marked, chance);
    Ok(found)
}

impl<'a> Asked<'a> {
    fn new(suspect: &Suspect<'a>, inputs: &[Tensor], examples: u64) -> Result<Self, ClaimError> {
        match *suspect {
            Suspect::Model {
                runtime,
                path,
                output,
            } => {
                let model = Box::new(PlainModel::load(runtime, path)?);
                let inputs = named("suspect", inputs, model.inputs())?;
                Ok(Self::Model {
                    model,
                    inputs,
                    output,
                })
            }
            Suspect::Answers(answers) => match answers.shape().first() {
                Some(found) if *found == examples => Ok(Self::Answers(answers)),
                found => Err(ClaimError::Answers {
                    found: found.copied().unwrap_or(0),
                    expected: examples,
                }),
            },
        }
    }

    /// What it takes, where it is asked here.
    fn inputs(&self) -> &[TensorMetadata] {
        match self {
            Self::Model { model, .. } => model.inputs(),
            Self::Answers(_) => &[],
        }
    }

    /// The classes of some of the examples, which are so many answers.
    fn labels(&mut self, (at, rows): (u64, u64), count: usize) -> Result<Vec<u64>, ClaimError> {
        match self {
            Self::Model {
                model,
                inputs,
                output,
            } => {
                model.feed(&cut(inputs, at, rows)?)?;
                labels(model.answer()?, *output, count)
            }
            Self::Answers(answers) => {
                let some = cut(std::slice::from_ref(*answers), at, rows)?;
                labels(some, None, count)
            }
        }
    }
}

/// The probability of `matched` or more of `trials`, each with probability `chance`: the
/// regularized incomplete beta function (NIST Digital Library of Mathematical Functions,
/// section 8.17(i)).
fn p_value(matched: u64, trials: u64, chance: f64) -> f64 {
    if matched == 0 {
        return 1.0;
    }
    puruspe::betai(matched as f64, (trials - matched + 1) as f64, chance)
}

fn last(answers: &Tensor) -> u64 {
    answers.shape().last().copied().unwrap_or(1)
}

/// The class that the suspect gives each row.
fn labels(outputs: Vec<Tensor>, wanted: Option<&str>, rows: usize) -> Result<Vec<u64>, ClaimError> {
    let mut outputs = outputs.into_iter();
    let output = match wanted {
        None => outputs.next(),
        Some(wanted) => outputs.find(|output| output.name() == wanted),
    };
    let output = output.ok_or_else(|| ClaimError::NoOutput {
        output: wanted.unwrap_or_default().to_owned(),
    })?;
    let numbers: Option<Vec<f64>> = match output.datatype() {
        DataType::Fp32 => output
            .to_values::<f32>()
            .ok()
            .map(|values| values.into_iter().map(f64::from).collect()),
        DataType::Fp64 => output.to_values().ok(),
        DataType::Int64 => {
            let values = output.to_values::<i64>().unwrap_or_default();
            if values.len() == rows {
                // A label below 0 is nobody's.
                return Ok(values
                    .into_iter()
                    .map(|label| u64::try_from(label).unwrap_or(u64::MAX))
                    .collect());
            }
            None
        }
        _ => None,
    };
    let each = numbers
        .as_ref()
        .map_or(0, |numbers| numbers.len() / rows.max(1));
    match numbers {
        Some(numbers) if each > 1 && numbers.len() == each * rows => Ok(numbers
            .chunks_exact(each)
            .map(|row| {
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let first = row.iter().position(|value| *value >= largest);
                first.map_or(u64::MAX, |first| first as u64)
            })
            .collect()),
        _ => Err(ClaimError::Labels {
            output: output.name().to_owned(),
            found: output.datatype(),
            shape: output.shape().to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SciPy` 1.17.1: `scipy.stats.binom.sf(k - 1, n, p)`.
    #[test]
    fn the_p_value_is_the_binomial_tail() {
        for (matched, trials, chance, expected) in [
            (0, 10, 0.5, 1.0),
            (10, 10, 0.5, 0.000_976_562_5),
            (3, 20, 1.0 / 9.0, 3.865_630_693_621_619e-1),
            (20, 40, 1.0 / 9.0, 1.218_516_630_968_765_5e-9),
            (60, 60, 1.0 / 9.0, 5.564_798_376_768_425e-58),
        ] {
            let found = p_value(matched, trials, chance);
            let error = (found / expected - 1.0).abs();
            assert!(error < 1e-9, "{matched} of {trials}: {found} {expected}");
        }
        assert_eq!(p_value(0, 0, 0.5), 1.0);
    }

    #[test]
    fn labels_are_read_from_rows_and_from_numbers() {
        let rows = Tensor::from_values("p", vec![2, 3], &[0.1_f32, 0.7, 0.2, 0.9, 0.0, 0.1]);
        let numbers = Tensor::from_values("label", vec![2], &[2_i64, -1]).unwrap();
        let outputs = [rows.unwrap(), numbers];
        let of = |wanted| labels(outputs.to_vec(), wanted, 2).map_err(|error| error.to_string());
        assert_eq!(of(None), Ok(vec![1, 0]));
        assert_eq!(of(Some("label")), Ok(vec![2, u64::MAX]));
        assert_eq!(
            of(Some("more")),
            Err("the suspect has no output \"more\"".to_owned())
        );
        let three = labels(outputs.to_vec(), Some("label"), 3).unwrap_err();
        assert!(matches!(three, ClaimError::Labels { .. }), "{three}");
    }
}
