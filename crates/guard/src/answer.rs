//! Guarding answers.

use occlude_inference_protocol::{DataType, Element, Tensor, TensorError, TensorMetadata};
use occlude_keys::ModelKey;
use zeroize::Zeroizing;

use crate::watermark::{FEWEST_CLASSES, WatermarkKey};
use crate::{GuardConfiguration, Marks};

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
        let changes = configuration.changes_answers();
        let find = |output: &str| {
            let output = output.to_owned();
            let Some(found) = outputs.iter().find(|known| known.name == output) else {
                return Err(MismatchError::NoOutput { output });
            };
            if changes && !matches!(found.datatype, DataType::Fp32 | DataType::Fp64) {
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
        let numbers = |tensor: &Tensor| -> Result<Zeroizing<Vec<f64>>, AnswerError> {
            let values = tensor.to_values::<T>().map_err(|_| AnswerError::Outputs)?;
            let values = Zeroizing::new(values);
            Ok(Zeroizing::new(
                values.iter().map(|value| value.wide()).collect(),
            ))
        };
        let mut values = numbers(answers)?;
        let wrong = rest.first().map(numbers).transpose()?;
        let classes = answers.shape().last().copied().unwrap_or(1);
        // No more than there are values.
        let classes = usize::try_from(classes).map_err(|_| AnswerError::Outputs)?;
        let mut marked = Vec::new();
        if classes > 0 {
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
mod tests {
    use super::*;

    fn metadata(name: &str, datatype: DataType) -> TensorMetadata {
        TensorMetadata {
            name: name.to_owned(),
            datatype,
            shape: vec![-1, 3],
        }
    }

    fn outputs(datatype: DataType) -> [TensorMetadata; 3] {
        ["logits", "p", "wrong"].map(|name| metadata(name, datatype))
    }

    const MISINFORMATION: &str = "[misinformation]\noutput = \"wrong\"\ntau = 0.5\n";

    const BUDGETS: &str = "[budgets]\nwindow-seconds = 60\nmodel = { window = 10 }\n";

    fn configuration(sections: &str) -> GuardConfiguration {
        let text = format!("format = 1\noutput = \"p\"\n{sections}");
        GuardConfiguration::from_toml(&text).unwrap()
    }

    fn key() -> ModelKey {
        ModelKey::new(Zeroizing::new([9; 32]))
    }

    fn guard(sections: &str) -> Guard {
        Guard::new(configuration(sections), &outputs(DataType::Fp32), &key()).unwrap()
    }

    fn tensor(name: &str, values: &[f32]) -> Tensor {
        let rows = values.len() as u64 / 3;
        Tensor::from_values(name, vec![rows, 3], values).unwrap()
    }

    fn answered(guard: &Guard, answers: &[f32], wrong: &[f32]) -> Result<Vec<f32>, AnswerError> {
        let computed = [tensor("p", answers), tensor("wrong", wrong)];
        let computed = &computed[..guard.computed().len()];
        let answer = guard.apply(computed, &Marks::default())?;
        assert_eq!((answer.name(), answer.shape()), ("p", computed[0].shape()));
        Ok(answer.to_values().unwrap())
    }

    const CERTAIN: [f32; 3] = [0.75, 0.25, 0.0];
    const UNCERTAIN: [f32; 3] = [0.25, 0.375, 0.375];
    const WRONG: [f32; 3] = [1.0, 0.0, 0.0];

    #[test]
    fn each_row_is_guarded_by_its_own_certainty() {
        let both = |one: [f32; 3], other: [f32; 3]| [one, other].concat();
        let found = answered(
            &guard(MISINFORMATION),
            &both(CERTAIN, UNCERTAIN),
            &both(WRONG, WRONG),
        );
        assert_eq!(found, Ok(both(CERTAIN, WRONG)));
    }

    #[test]
    fn misinformation_is_shaped_and_not_the_other_way_round() {
        let label = format!("{MISINFORMATION}[shaping]\nlabel-only = true\n");
        assert_eq!(
            answered(&guard(&label), &UNCERTAIN, &WRONG),
            Ok(vec![1.0, 0.0, 0.0])
        );
        assert_eq!(
            answered(&guard("[shaping]\ntop = 1\n"), &CERTAIN, &WRONG),
            Ok(vec![0.75, 0.0, 0.0])
        );
    }

    #[test]
    fn clients_see_one_output_and_everything_is_always_computed() {
        let with = guard(MISINFORMATION);
        assert_eq!(with.shown().name, "p");
        assert_eq!(with.computed(), ["p", "wrong"]);
        assert_eq!(guard("[shaping]\ntop = 1\n").computed(), ["p"]);
    }

    #[test]
    fn an_answer_that_is_only_counted_stays_as_it_is() {
        let integers =
            Guard::new(configuration(BUDGETS), &outputs(DataType::Int64), &key()).unwrap();
        let logits = Tensor::from_values::<i64>("p", vec![2, 3], &[7, -1, 0, 3, 3, 9]).unwrap();
        assert_eq!(
            integers.apply(std::slice::from_ref(&logits), &Marks::default()),
            Ok(logits.clone())
        );
        assert_eq!(
            integers.apply(&[], &Marks::default()),
            Err(AnswerError::Outputs)
        );
    }

    #[test]
    fn each_row_is_a_query() {
        let rows = |declared: &[i64], shape: &[u64]| {
            let outputs = [TensorMetadata {
                shape: declared.to_vec(),
                ..metadata("p", DataType::Fp32)
            }];
            let guard = Guard::new(configuration(BUDGETS), &outputs, &key()).unwrap();
            let values = vec![0.0_f32; shape.iter().product::<u64>() as usize];
            guard.rows(&Tensor::from_values("p", shape.to_vec(), &values).unwrap())
        };
        assert_eq!(rows(&[10], &[10]), 1);
        assert_eq!(rows(&[], &[]), 1);
        assert_eq!(rows(&[-1, 10], &[4, 10]), 4);
        assert_eq!(rows(&[-1, -1, 10], &[4, 7, 10]), 28);
        assert_eq!(rows(&[-1, 10], &[0, 10]), 0);
        // One number, or one label, for each row.
        assert_eq!(rows(&[-1], &[10]), 10);
        assert_eq!(rows(&[4, -1], &[4, 7]), 28);
    }

    #[test]
    fn a_marked_answer_is_changed_before_it_is_shaped_and_can_be_told_again() {
        let of = guard("[watermark]\none-in = 10\n[shaping]\nlabel-only = true\n");
        let rows = 300;
        let image: Vec<f32> = (0..rows).map(|row| row as f32).collect();
        let inputs = [Tensor::from_values("image", vec![rows, 1], &image).unwrap()];
        let marks = of.marks(&inputs);
        let computed = [tensor("p", &CERTAIN.repeat(rows as usize))];
        let answer = of.apply(&computed, &marks).unwrap();
        let told = of.watermarked(&computed, &marks).unwrap();
        let shown: Vec<f32> = answer.to_values().unwrap();
        let mut marked = 0;
        for (row, told) in shown.chunks_exact(3).zip(told) {
            let label = row.iter().position(|value| *value == 1.0).unwrap();
            assert_eq!(label, told.unwrap_or(0));
            marked += usize::from(told.is_some());
        }
        assert!((15..50).contains(&marked), "{marked}");
        // Without a watermark nothing is looked at.
        let without = guard("[shaping]\nlabel-only = true\n");
        assert_eq!(without.marks(&inputs), Marks::default());
        let told = without.watermarked(&computed, &marks).unwrap();
        assert_eq!(told.iter().flatten().count(), 0);
    }

    #[test]
    fn a_watermark_needs_classes_to_choose_from() {
        let of = |classes| {
            let outputs = [TensorMetadata {
                shape: vec![-1, classes],
                ..metadata("p", DataType::Fp32)
            }];
            let refused = Guard::new(
                configuration("[watermark]\none-in = 10\n"),
                &outputs,
                &key(),
            );
            refused.map(|_| ()).map_err(|error| error.to_string())
        };
        let refused = "the guard names the output \"p\", which has 2 classes: a watermark needs 3";
        assert_eq!(of(2), Err(refused.to_owned()));
        assert_eq!((of(3), of(-1)), (Ok(()), Ok(())));
    }

    #[test]
    fn double_precision_stays() {
        let of = Guard::new(
            configuration(MISINFORMATION),
            &outputs(DataType::Fp64),
            &key(),
        )
        .unwrap();
        let values = [0.75 + 1e-12, 0.25 - 1e-12, 0.0];
        let computed =
            ["p", "wrong"].map(|name| Tensor::from_values(name, vec![3], &values).unwrap());
        let answer = of.apply(&computed, &Marks::default()).unwrap();
        assert_eq!(answer.to_values::<f64>().unwrap(), values);
    }

    #[test]
    fn what_is_no_probability_is_not_answered() {
        let of = guard(MISINFORMATION);
        let refused =
            |answers: [f32; 3], wrong: [f32; 3]| answered(&of, &answers, &wrong).unwrap_err();
        // Logits, with which every answer would pass for a certain one.
        for values in [
            [8.0, -3.0, 1.0],
            [0.5, 0.5, 0.5],
            [1.5, -0.5, 0.0],
            [0.0; 3],
        ] {
            assert_eq!(refused(values, WRONG), AnswerError::NotProbabilities);
            assert_eq!(refused(CERTAIN, values), AnswerError::NotProbabilities);
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(refused([value, 0.0, 0.0], WRONG), AnswerError::NotFinite);
            assert_eq!(refused(CERTAIN, [0.0, value, 1.0]), AnswerError::NotFinite);
        }
    }

    #[test]
    fn inputs_that_are_not_finite_are_named() {
        let of = guard(MISINFORMATION);
        let input = |value: f32| {
            [
                tensor("fine", &CERTAIN),
                tensor("image", &[0.0, value, 1.0]),
            ]
        };
        of.admit(&input(1e38), &["p".to_owned()]).unwrap();
        let refused = AnswerError::Input {
            input: "image".to_owned(),
        };
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(of.admit(&input(value), &[]), Err(refused.clone()));
        }
        let of_bytes = |datatype, bytes: &[u8]| {
            let data = Zeroizing::new(bytes.to_vec());
            let tensor = Tensor::new("image", datatype, vec![1], data).unwrap();
            of.admit(&[tensor], &[])
        };
        assert_eq!(of_bytes(DataType::Fp16, &[0xff, 0x7b]), Ok(()));
        assert_eq!(
            of_bytes(DataType::Fp16, &[0x00, 0x7c]),
            Err(refused.clone())
        );
        assert_eq!(of_bytes(DataType::Bf16, &[0x7f, 0x7f]), Ok(()));
        assert_eq!(
            of_bytes(DataType::Bf16, &[0xc0, 0xff]),
            Err(refused.clone())
        );
        assert_eq!(
            of_bytes(DataType::Fp64, &f64::NAN.to_le_bytes()),
            Err(refused)
        );
        assert_eq!(of_bytes(DataType::Int64, &[0xff; 8]), Ok(()));
    }

    #[test]
    fn no_output_but_the_one_that_is_shown_is_given() {
        let of = guard(MISINFORMATION);
        for output in ["wrong", "logits", ""] {
            let refused = of.admit(&[], &["p".to_owned(), output.to_owned()]);
            assert_eq!(
                refused.unwrap_err().to_string(),
                format!("the model has no output {output:?}, it has p")
            );
        }
    }

    #[test]
    fn a_model_without_what_the_guard_names_is_refused() {
        let refused = |outputs: &[TensorMetadata]| {
            Guard::new(configuration(MISINFORMATION), outputs, &key())
                .unwrap_err()
                .to_string()
        };
        let [_, answers, wrong] = outputs(DataType::Fp32);
        assert_eq!(
            refused(&[wrong]),
            "the guard names the output \"p\", which the model does not have"
        );
        assert_eq!(
            refused(std::slice::from_ref(&answers)),
            "the guard names the output \"wrong\", which the model does not have"
        );
        assert_eq!(
            refused(&[answers, metadata("wrong", DataType::Fp64)]),
            "the guard names the outputs \"p\" and \"wrong\", which are of two types"
        );
        assert_eq!(
            refused(&outputs(DataType::Int64)),
            "the guard names the output \"p\", which is INT64: FP32 and FP64 are known"
        );
    }

    #[test]
    fn outputs_that_do_not_fit_each_other_give_no_answer() {
        let of = guard(MISINFORMATION);
        let one = tensor("p", &CERTAIN);
        let two = tensor("wrong", &[WRONG, WRONG].concat());
        assert_eq!(
            of.apply(&[one.clone(), two], &Marks::default()),
            Err(AnswerError::Outputs)
        );
        assert_eq!(
            of.apply(std::slice::from_ref(&one), &Marks::default()),
            Err(AnswerError::Outputs)
        );
        assert_eq!(of.apply(&[], &Marks::default()), Err(AnswerError::Outputs));
        let double = Tensor::from_values("wrong", vec![1, 3], &[1.0, 0.0, 0.0]).unwrap();
        assert_eq!(
            of.apply(&[one, double], &Marks::default()),
            Err(AnswerError::Outputs)
        );
        // Nothing asked, nothing answered.
        let none = |name: &str| Tensor::from_values::<f32>(name, vec![0, 3], &[]).unwrap();
        assert_eq!(
            of.apply(&[none("p"), none("wrong")], &Marks::default())
                .unwrap()
                .element_count(),
            0
        );
        let empty = |name: &str| Tensor::from_values::<f32>(name, vec![2, 0], &[]).unwrap();
        assert_eq!(
            of.apply(&[empty("p"), empty("wrong")], &Marks::default())
                .unwrap()
                .element_count(),
            0
        );
    }
}
