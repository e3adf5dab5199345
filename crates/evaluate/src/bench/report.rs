//! The report, whose field names are the JSON's.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::time::Duration;

use occlude_engine::{CipherKind, Spill, WeightKind};
use serde::{Serialize, Serializer};

use super::turns::Times;
use super::{Budget, Refusal};

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The model's file name.
    pub model: String,
    /// Threads of either side.
    pub threads: NonZeroUsize,
    /// Examples in one request.
    pub batch: u64,
    /// Where streamed weights lie, as [`Spill`] writes it.
    #[serde(serialize_with = "as_text")]
    pub spill: Spill,
    /// Plain ONNX Runtime.
    pub plain: Plain,
    /// Occlude, one entry for each budget.
    pub budgets: Vec<BudgetReport>,
    /// The sealed model opened as a whole and given to plain ONNX Runtime, if that was asked
    /// for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_whole: Option<Outcome<Side>>,
    /// A service, asked over its channel, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Outcome<Side>>,
}

/// How quickly one side answers, over all its runs, one after the other.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Speed {
    /// Median time of a run, in milliseconds.
    pub p50_ms: f64,
    /// The time that 99 of 100 runs are no longer than, in milliseconds.
    pub p99_ms: f64,
    /// Shortest time of a run, in milliseconds.
    pub min_ms: f64,
    /// Runs that fill a second.
    pub per_second: f64,
    /// Processor time of a run, all threads together, in milliseconds.
    pub cpu_ms: f64,
}

/// Plain ONNX Runtime's figures, over all its runs.
#[derive(Debug, Clone, Serialize)]
pub struct Plain {
    /// How quickly it answers.
    #[serde(flatten)]
    pub speed: Speed,
    /// Time to load the model, in milliseconds.
    pub load_ms: f64,
    /// From the start of loading to the first answer, in milliseconds.
    pub first_answer_ms: f64,
    /// Highest anonymous memory of a process that loads and runs it, in MiB.
    pub peak_mib: f64,
}

/// One budget.
#[derive(Debug, Clone, Serialize)]
pub struct BudgetReport {
    /// The budget, as [`Budget`] writes it.
    pub budget: Budget,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome<Measured>,
}

/// What came of a measurement.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Outcome<T> {
    /// It works.
    Measured(T),
    /// It cannot work.
    Refused {
        /// Why, in the engine's words.
        refused: String,
        /// The smallest budget that works, in MiB, if this one is too small.
        #[serde(skip_serializing_if = "Option::is_none")]
        smallest_mib: Option<f64>,
    },
}

impl<T> From<Refusal> for Outcome<T> {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            refused: refusal.reason,
            smallest_mib: refusal.smallest.map(|bytes| mebibytes(bytes as f64)),
        }
    }
}

impl<T> Outcome<T> {
    /// What was measured, if it works.
    #[must_use]
    pub fn measured(&self) -> Option<&T> {
        match self {
            Self::Measured(measured) => Some(measured),
            Self::Refused { .. } => None,
        }
    }
}

/// Something else that answers, against the plain runs that were in turns with it.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// How quickly it answers.
    #[serde(flatten)]
    pub speed: Speed,
    /// From its start to the first answer, in milliseconds.
    pub first_answer_ms: f64,
    /// Highest anonymous memory of a process that loads and runs it, in MiB, where that was
    /// measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_protected_mib: Option<f64>,
    /// Its median over plain ONNX Runtime's.
    pub ratio_p50: f64,
    /// Its shortest time over plain ONNX Runtime's.
    pub ratio_min: f64,
    /// Largest difference of an output element, as in [`Measured::max_abs_diff`].
    pub max_abs_diff: f64,
}

/// A budget that works, against the plain runs that were in turns with it.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Occlude's own figures.
    pub occlude: Occlude,
    /// Occlude's median over plain ONNX Runtime's.
    pub ratio_p50: f64,
    /// Occlude's shortest time over plain ONNX Runtime's.
    pub ratio_min: f64,
    /// Largest difference of an output element from plain ONNX Runtime's; 1 where
    /// elements are no floats and differ.
    pub max_abs_diff: f64,
    /// Largest finite float among plain ONNX Runtime's outputs, without its sign.
    pub max_abs_output: f64,
    /// The time that the layers' operators took, for the owner's eyes.
    #[serde(skip)]
    pub layers: Vec<LayerTime>,
}

/// The time that the operator of one weight took.
#[derive(Debug, Clone)]
pub struct LayerTime {
    /// The weight's name.
    pub name: String,
    /// What reads it.
    pub kind: WeightKind,
    /// Milliseconds of a run: opening what is streamed and, but for weights that are opened
    /// whole for an operator of ONNX Runtime, computing.
    pub ms: f64,
}

/// Occlude's figures under one budget.
#[derive(Debug, Clone, Serialize)]
pub struct Occlude {
    /// How quickly it answers.
    #[serde(flatten)]
    pub speed: Speed,
    /// Median time from an answer until all memory that it took is wiped, in
    /// milliseconds: how much later the next request can start. Not in the others.
    pub wipe_ms: f64,
    /// Time to open the sealed model and start its sessions, in milliseconds. Weights may
    /// come later; where the budget is in bytes all of them have come by then.
    pub load_ms: f64,
    /// Time from the start of loading to the first answer, in milliseconds: by then every
    /// weight that it needed has come.
    pub first_answer_ms: f64,
    /// Highest anonymous memory of a process that loads and runs it, in MiB.
    pub peak_protected_mib: f64,
    /// All weights, in MiB.
    pub weights_mib: f64,
    /// Weights that stay in protected memory, in MiB.
    pub resident_mib: f64,
    /// Streamed weights that one run opens, in MiB.
    pub opened_mib_per_run: f64,
    /// What streamed weights are encrypted with: the cipher that was asked for, or the one that
    /// opened panels the fastest when they were tried. None if no weight can be streamed.
    #[serde(serialize_with = "text_or_none")]
    pub spill_cipher: Option<CipherKind>,
    /// Shortest time in which the disk gives as many bytes to whoever does nothing but
    /// read, in milliseconds; only where weights are streamed from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_ms: Option<f64>,
    /// The median of these times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_p50_ms: Option<f64>,
}

impl Speed {
    /// `cpu` is the processor time of one run.
    pub(super) fn new(times: &Times, cpu: Duration) -> Self {
        Self {
            p50_ms: milliseconds(times.median()),
            p99_ms: milliseconds(times.percentile_99()),
            min_ms: milliseconds(times.minimum()),
            per_second: rounded(times.per_second(), 1e3),
            cpu_ms: milliseconds(cpu),
        }
    }
}

impl Plain {
    /// `peak` in bytes.
    pub(super) fn new(speed: Speed, load: Duration, first_answer: Duration, peak: u64) -> Self {
        Self {
            speed,
            load_ms: milliseconds(load),
            first_answer_ms: milliseconds(first_answer),
            peak_mib: mebibytes(peak as f64),
        }
    }
}

fn as_text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn text_or_none<T: Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => as_text(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// To a tenth of a microsecond: small models take no more than ten.
pub(super) fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1e3, 1e4)
}

pub(super) fn mebibytes(bytes: f64) -> f64 {
    rounded(bytes / f64::from(1 << 20), 1e3)
}

pub(super) fn ratio(time: Duration, reference: Duration) -> f64 {
    rounded(time.as_secs_f64() / reference.as_secs_f64(), 1e4)
}

pub(crate) fn rounded(number: f64, digits: f64) -> f64 {
    (number * digits).round() / digits
}
