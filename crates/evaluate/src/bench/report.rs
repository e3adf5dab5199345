//! The report, whose field names are the JSON's.

use std::num::NonZeroUsize;
use std::time::Duration;

use occlude_engine::Spill;
use serde::{Serialize, Serializer};

use super::Budget;
use super::turns::Times;

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
    /// From the start of plain ONNX Runtime's load to its first answer.
    #[serde(skip)]
    pub first_plain_answer: Duration,
}

/// Plain ONNX Runtime's figures, over all its runs.
#[derive(Debug, Clone, Serialize)]
pub struct Plain {
    /// Median time of a run, in milliseconds.
    pub p50_ms: f64,
    /// Shortest time of a run, in milliseconds.
    pub min_ms: f64,
    /// Time to load the model, in milliseconds.
    pub load_ms: f64,
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
    pub outcome: Outcome,
}

/// What came of a budget.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// It works.
    Measured(Measured),
    /// It cannot work.
    Refused {
        /// Why, in the engine's words.
        refused: String,
    },
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
}

/// Occlude's figures under one budget.
#[derive(Debug, Clone, Serialize)]
pub struct Occlude {
    /// Median time of a run, in milliseconds.
    pub p50_ms: f64,
    /// Shortest time of a run, in milliseconds.
    pub min_ms: f64,
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
    /// Shortest time in which the disk gives as many bytes to whoever does nothing but
    /// read, in milliseconds; only where weights are streamed from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_ms: Option<f64>,
    /// The median of these times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_p50_ms: Option<f64>,
}

impl Plain {
    /// `peak` in bytes.
    pub(super) fn new(times: &Times, load: Duration, peak: u64) -> Self {
        Self {
            p50_ms: milliseconds(times.median()),
            min_ms: milliseconds(times.minimum()),
            load_ms: milliseconds(load),
            peak_mib: mebibytes(peak as f64),
        }
    }
}

fn as_text<S: Serializer>(spill: &Spill, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(spill)
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

fn rounded(number: f64, digits: f64) -> f64 {
    (number * digits).round() / digits
}
