//! Guarding answers.

use occlude_inference_protocol::{DataType, Element, Tensor, TensorError, TensorMetadata};
use occlude_keys::ModelKey;
use zeroize::Zeroizing;

use crate::watermark::{FEWEST_CLASSES, WatermarkKey};
use crate::work::WorkKey;
use crate::{GuardConfiguration, Marks, Price};

/// By how much a probability may lie outside of its range, or a sum of them away from 1:
/// half precision's rounding, over many classes.
const TOLERANCE: f64 = 0.02;

/// A model's guard, fit for it.
#[derive(Debug)]
pub struct Guard {
    configuration: GuardConfiguration,
    /// What clients see of the model's outputs.
    shown: TensorMetadata,
    /// What has to be computed for an answer.
    computed: Vec<String>,
    watermark: WatermarkKey,
    work: WorkKey,
}

/// What is looked at in one answer, as the model gave it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// The class with the largest probability, the first of them.
    pub class: usize,
    /// That probability.
    pub certainty: f64,
}

/// Why a guard is not one for this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MismatchError {
    /// The model has no such output.
    #[error("the guard names the output {output:?}, which the model does not have")]
    NoOutput {
        /// The output.
        output: String,
    },
    /// An output is not of numbers that it can change.
    #[error("the guard names the output {output:?}, which is {found}: FP32 and FP64 are known")]
    Datatype {
        /// The output.
        output: String,
        /// Its type.
        found: DataType,
    },
    /// Answers and wrong answers do not fit each other.
    #[error("the guard names the outputs {answers:?} and {wrong:?}, which are of two types")]
    TwoTypes {
        /// The output with the answers.
        answers: String,
        /// The one with wrong ones.
        wrong: String,
    },
    /// Too few classes for a watermark.
    #[error(
        "the guard names the output {output:?}, which has {found} classes: a watermark needs \
         {FEWEST_CLASSES}"
    )]
    Classes {
        /// The output.
        output: String,
        /// How many it has.
        found: i64,
    },
}

/// Why there is no answer. What a model computed stays inside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// An output that is not there for clients.
    #[error("the model has no output {output:?}, it has {shown}")]
    Output {
        /// The output.
        output: String,
        /// The one that there is.
        shown: String,
    },
    /// An input that is no number, or that is too large.
    #[error("input {input:?} has values that are not finite")]
    Input {
        /// The input.
        input: String,
    },
    /// An answer that is none.
    #[error("the model has no answer of finite numbers to this")]
    NotFinite,
    /// An answer that cannot be guarded.
    #[error("the model's answers are not probabilities, which its guard needs")]
    NotProbabilities,
    /// Outputs of other shapes or types than they are said to have.
    #[error("the model's outputs do not fit its guard")]
    Outputs,
}

impl Guard {
    /// A guard of a model with these outputs and this key.
    ///
    /// # Errors
    /// [`MismatchError`].
    pub fn new(
        configuration: GuardConfiguration,
        outputs: &[TensorMetadata],
        key: &ModelKey,
    ) -> Result<Self, MismatchError> {
        let numbers = configuration.changes_answers() || configuration.looks_at_answers();
        let find = |output: &str| {
            let output = output.to_owned();
            let Some(found) = outputs.iter().find(|known| known.name == output) else {
                return Err(MismatchError::NoOutput { output });
            };
            if numbers && !matches!(found.datatype, DataType::Fp32 | DataType::Fp64) {
                let found = found.datatype;
                return Err(MismatchError::Datatype { output, found });
            }
            Ok(found)
        };
        let shown = find(&configuration.output)?.clone();
        let classes = shown.shape.last().copied().unwrap_or(1);
        let few = (0..FEWEST_CLASSES as i64).contains(&classes);
        if configuration.watermark.is_some() && few {
            return Err(MismatchError::Classes {
                output: shown.name,
                found: classes,
            });
        }
        let mut computed = vec![shown.name.clone()];
        if let Some(misinformation) = &configuration.misinformation {
            let wrong = find(&misinformation.output)?;
            if wrong.datatype != shown.datatype {
                return Err(MismatchError::TwoTypes {
                    answers: shown.name,
                    wrong: wrong.name.clone(),
                });
            }
            computed.push(wrong.name.clone());
        }
        Ok(Self {
            configuration,
            shown,
            computed,
            watermark: WatermarkKey::of(key),
            work: WorkKey::of(key),
        })
    }

    /// Its defences by name.
    #[must_use]
    pub fn name(&self) -> String {
        self.configuration.name()
    }

    /// What the owner wrote.
    #[must_use]
    pub fn configuration(&self) -> &GuardConfiguration {
        &self.configuration
    }

    /// How many queries an answer is: the rows of its last dimension. Where a model leaves
    /// that open, each element is an answer by itself.
    #[must_use]
    pub fn rows(&self, answers: &Tensor) -> u64 {
        let shape = answers.shape();
        let open = self.shown.shape.last() == Some(&-1);
        let rows = if open {
            shape.len()
        } else {
            shape.len().saturating_sub(1)
        };
        shape[..rows].iter().product()
    }

    /// What the next answers cost a client who has gained so many thousandths in this window;
    /// `client` is what stands for it. `None` where they cost nothing.
    #[must_use]
    pub fn price(&self, client: &[u8; 32], gained: u64) -> Option<Price> {
        let work = self.configuration.work.as_ref()?;
        Some(self.work.price(work, client, gained))
    }

    /// What tells these inputs from others, before a model consumes them.
    #[must_use]
    pub fn marks(&self, inputs: &[Tensor]) -> Marks {
        match self.configuration.watermark {
            Some(_) => self.watermark.marks(inputs),
            None => Marks::default(),
        }
    }

    /// The one output that clients see and may ask for.
    #[must_use]
    pub fn shown(&self) -> &TensorMetadata {
        &self.shown
    }

    /// The outputs that have to be computed for every answer, whatever it will be.
    #[must_use]
    pub fn computed(&self) -> &[String] {
        &self.computed
    }

    /// Whether a guarded model takes these inputs, and gives the outputs that are asked for.
    ///
    /// # Errors
    /// [`AnswerError::Output`]: all others stay inside. [`AnswerError::Input`]: what is not
    /// finite has no certainty to go by.
    pub fn admit(&self, inputs: &[Tensor], requested: &[String]) -> Result<(), AnswerError> {
        if let Some(output) = requested.iter().find(|output| **output != self.shown.name) {
            return Err(AnswerError::Output {
                output: output.chars().take(80).collect(),
                shown: self.shown.name.clone(),
            });
        }
        let refused = inputs.iter().find(|input| !is_finite(input));
        match refused {
            None => Ok(()),
            Some(input) => Err(AnswerError::Input {
                input: input.name().to_owned(),
            }),
        }
    }

    /// Turns what the model computed, in the order of [`Guard::computed`], into an answer:
    /// each row of the last dimension by itself. `marks` are of what was asked.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn apply(&self, computed: &[Tensor], marks: &Marks) -> Result<Tensor, AnswerError> {
        if !self.configuration.changes_answers() {
            return computed.first().cloned().ok_or(AnswerError::Outputs);
        }
        self.guarded(computed, marks).map(|(answer, _)| answer)
    }

    /// The class of each answer that is changed for the watermark; `None` for all others.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn watermarked(
        &self,
        computed: &[Tensor],
        marks: &Marks,
    ) -> Result<Vec<Option<usize>>, AnswerError> {
        self.guarded(computed, marks).map(|(_, classes)| classes)
    }

    /// What is looked at in answers that were computed: each row of the last dimension. None
    /// where nothing is.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn look(&self, computed: &[Tensor]) -> Result<Vec<Look>, AnswerError> {
        if !self.configuration.looks_at_answers() {
            return Ok(Vec::new());
        }
        let answers = computed.first().ok_or(AnswerError::Outputs)?;
        let values = match self.shown.datatype {
            DataType::Fp64 => numbers::<f64>(answers)?,
            _ => numbers::<f32>(answers)?,
        };
        let Some(classes) = classes(answers)? else {
            return Ok(Vec::new());
        };
        check(&values, classes)?;
        Ok(values.chunks_exact(classes).map(Look::at).collect())
    }

    /// Answers, and the classes of those that are changed for the watermark.
    fn guarded(
        &self,
        computed: &[Tensor],
        marks: &Marks,
    ) -> Result<(Tensor, Vec<Option<usize>>), AnswerError> {
        match self.shown.datatype {
            DataType::Fp64 => self.apply_to::<f64>(computed, marks),
            _ => self.apply_to::<f32>(computed, marks),
        }
    }

    fn apply_to<T: Number>(
        &self,
        computed: &[Tensor],
        marks: &Marks,
    ) -> Result<(Tensor, Vec<Option<usize>>), AnswerError> {
        let [answers, rest @ ..] = computed else {
            return Err(AnswerError::Outputs);
        };
        let fits = computed.len() == self.computed.len()
            && rest.iter().all(|other| other.shape() == answers.shape());
        if !fits {
            return Err(AnswerError::Outputs);
        }
        let mut values = numbers::<T>(answers)?;
        let wrong = rest.first().map(numbers::<T>).transpose()?;
        let mut marked = Vec::new();
        if let Some(classes) = classes(answers)? {
            check(&values, classes)?;
            if let Some(wrong) = &wrong {
                check(wrong, classes)?;
            }
            let rows = values.len() / classes;
            for (row, answer) in values.chunks_exact_mut(classes).enumerate() {
                let wrong = wrong.as_ref().map(|wrong| &wrong[row * classes..]);
                marked.push(self.guard(answer, wrong, marks, (row, rows)));
            }
        }
        let guarded: Zeroizing<Vec<T>> =
            Zeroizing::new(values.iter().map(|value| T::narrow(*value)).collect());
        let tensor =
            Tensor::from_values(self.shown.name.as_str(), answers.shape().to_vec(), &guarded);
        let tensor = tensor.map_err(|_: TensorError| AnswerError::Outputs)?;
        Ok((tensor, marked))
    }

    /// Guards one answer of so many, in place; says its class if it is marked.
    fn guard(
        &self,
        answer: &mut [f64],
        wrong: Option<&[f64]>,
        marks: &Marks,
        place: (usize, usize),
    ) -> Option<usize> {
        if let Some((misinformation, wrong)) = self.configuration.misinformation.as_ref().zip(wrong)
        {
            misinformation.mix(answer, &wrong[..answer.len()]);
        }
        let watermark = self.configuration.watermark;
        let marked =
            watermark.and_then(|watermark| self.watermark.change(watermark, marks, place, answer));
        if let Some(shaping) = &self.configuration.shaping {
            shaping.shape(answer);
        }
        marked
    }
}

impl Look {
    fn at(answer: &[f64]) -> Self {
        let mut look = Self {
            class: 0,
            certainty: f64::NEG_INFINITY,
        };
        for (class, certainty) in answer.iter().copied().enumerate() {
            if certainty > look.certainty {
                look = Self { class, certainty };
            }
        }
        look
    }
}

fn numbers<T: Number>(tensor: &Tensor) -> Result<Zeroizing<Vec<f64>>, AnswerError> {
    let values = tensor.to_values::<T>().map_err(|_| AnswerError::Outputs)?;
    let values = Zeroizing::new(values);
    Ok(Zeroizing::new(
        values.iter().map(|value| value.wide()).collect(),
    ))
}

/// How many numbers one answer has; `None` where there are no answers.
fn classes(answers: &Tensor) -> Result<Option<usize>, AnswerError> {
    let classes = answers.shape().last().copied().unwrap_or(1);
    // No more than there are values.
    let classes = usize::try_from(classes).map_err(|_| AnswerError::Outputs)?;
    Ok((classes > 0).then_some(classes))
}

/// Rows of probabilities: a guard that goes by anything else would be off without anybody
/// noticing.
fn check(values: &[f64], classes: usize) -> Result<(), AnswerError> {
    if values.iter().any(|value| !value.is_finite()) {
        return Err(AnswerError::NotFinite);
    }
    let range = -TOLERANCE..=1.0 + TOLERANCE;
    let in_range = values.iter().all(|value| range.contains(value));
    let sums_to_one = values.chunks_exact(classes).all(|row| {
        let sum: f64 = row.iter().sum();
        (sum - 1.0).abs() <= TOLERANCE
    });
    if in_range && sums_to_one {
        return Ok(());
    }
    Err(AnswerError::NotProbabilities)
}

/// Numbers that answers are made of.
trait Number: Element + zeroize::Zeroize {
    fn wide(self) -> f64;
    fn narrow(value: f64) -> Self;
}

impl Number for f32 {
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "to the answers' own precision"
    )]
    fn narrow(value: f64) -> Self {
        value as Self
    }
}

impl Number for f64 {
    fn wide(self) -> f64 {
        self
    }

    fn narrow(value: f64) -> Self {
        value
    }
}

/// Whether every number of a tensor is one; other types have no others.
fn is_finite(tensor: &Tensor) -> bool {
    let data = tensor.data();
    // Infinities and what is no number have an exponent of ones.
    let halves = |exponent: u16| {
        data.chunks_exact(2)
            .all(|value| u16::from_le_bytes([value[0], value[1]]) & exponent != exponent)
    };
    match tensor.datatype() {
        DataType::Fp16 => halves(0x7c00),
        DataType::Bf16 => halves(0x7f80),
        DataType::Fp32 => data
            .chunks_exact(4)
            .all(|value| f32::from_little_endian(value).is_finite()),
        DataType::Fp64 => data
            .chunks_exact(8)
            .all(|value| f64::from_little_endian(value).is_finite()),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
