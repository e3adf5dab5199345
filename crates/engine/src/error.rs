//! Why a model does not load or run.
//!
//! Messages are written for two readers. Whatever these errors display is free
//! of the model's graph, except that [`RunError`] names inputs and outputs: it is
//! the answer to a client, inside the channel, and belongs in no log. [`LoadError`]
//! names an input only where whoever loads the model named it. What ONNX Runtime itself
//! said names layers, and so does what a budget lacks: that is kept in [`Confidential`].

use std::fmt;
use std::io;

use occlude_container::OpenError;
use occlude_inference_protocol::{DataType, TensorError};

use crate::plan::SetBy;

/// Why a model does not load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A tensor could not be opened.
    #[error("a weight cannot be opened: {0}")]
    Open(#[from] OpenError),
    /// The skeleton is no model, or does not belong to these tensors.
    #[error("the sealed model's skeleton is malformed: {0}")]
    Skeleton(String),
    /// ONNX Runtime has no tensors of this type.
    #[error("the model has weights of type {data_type}, which ONNX Runtime cannot borrow")]
    WeightType {
        /// The ONNX element type.
        data_type: occlude_onnx::DataType,
    },
    /// An input or output is no tensor of a type that the protocol has.
    #[error(
        "{role} {position} of the model is {found}; only tensors of the inference protocol's \
         types can be served (scikit-learn classifiers: export with the option zipmap=False)"
    )]
    Interface {
        /// `input` or `output`.
        role: &'static str,
        /// Which one, counted from 1.
        position: usize,
        /// What it is instead.
        found: String,
    },
    /// No memory for the weights, or no temporary folder.
    #[error("{what}: {source}")]
    Resources {
        /// What was asked of the operating system.
        what: &'static str,
        /// What it answered.
        source: io::Error,
    },
    /// A panel of weights came back from the spill store altered, or not at all.
    #[error("{what}: {0}", what = what_failed(.0))]
    Spilled(occlude_spill::OpenError),
    /// Loading failed earlier, and whoever asked first was told the cause.
    #[error("the model was not loaded: {reason}")]
    NotLoaded {
        /// What the cause said.
        reason: String,
    },
    /// The model cannot be run to see what memory it takes.
    #[error("the model's memory cannot be measured: {reason}")]
    DryRun {
        /// Why.
        reason: String,
    },
    /// The budget of protected memory is too small.
    #[error(
        "{budget} bytes of protected memory are not enough: the model needs {smallest}, of which \
         {process} for the process, {resident} for weights that must be resident and {working} \
         for running{}",
        needs_most(set_by.as_ref())
    )]
    Budget {
        /// The budget.
        budget: u64,
        /// The smallest that works.
        smallest: u64,
        /// The process itself, if the budget covers it.
        process: u64,
        /// Weights that must be resident.
        resident: u64,
        /// Inputs, intermediate results and scratch of all sessions.
        working: u64,
        /// The layer that needs the most of it: the one that runs while the most memory is
        /// in use, or the largest weight that must be resident. None where the most is
        /// in use before the first layer.
        set_by: Option<SetBy>,
    },
    /// An input cannot have the shape that was given as its largest.
    #[error(
        "the largest shape of input `{input}` is given as {found:?}, but the model takes {}",
        shape_text(expected)
    )]
    LargestShape {
        /// The input.
        input: String,
        /// What was given.
        found: Vec<u64>,
        /// The model's shape, -1 for any extent.
        expected: Vec<i64>,
    },
    /// ONNX Runtime refuses the model.
    #[error("ONNX Runtime refuses the model")]
    Rejected(Confidential),
}

/// Why a request was not run. Names inputs and outputs: for the client's eyes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A panel of weights came back from the spill store altered (somebody wrote to
    /// memory or a file that is not theirs), or not at all. There is no answer; the model
    /// goes on.
    #[error("{what}: {0}", what = what_failed(.0))]
    Spilled(occlude_spill::OpenError),
    /// A weight that the request needs could not be loaded, and never will be.
    #[error("the model was not loaded: {reason}")]
    NotLoaded {
        /// Why.
        reason: String,
    },
    /// The model has no such input.
    #[error("the model has no input `{name}`; its inputs are {}", quoted(expected))]
    UnknownInput {
        /// What came.
        name: String,
        /// The model's inputs.
        expected: Vec<String>,
    },
    /// An input is not in the request.
    #[error(
        "the input `{name}` ({datatype}, shape {}) is missing",
        shape_text(shape)
    )]
    MissingInput {
        /// The input.
        name: String,
        /// Its type.
        datatype: DataType,
        /// Its shape, -1 for any extent.
        shape: Vec<i64>,
    },
    /// An input came twice.
    #[error("the input `{name}` is given twice")]
    DuplicateInput {
        /// The input.
        name: String,
    },
    /// An input has elements of another type.
    #[error("the input `{name}` takes {expected}, not {found}")]
    WrongDatatype {
        /// The input.
        name: String,
        /// The model's type.
        expected: DataType,
        /// The request's type.
        found: DataType,
    },
    /// An input has another rank or extents.
    #[error(
        "the input `{name}` takes shape {}, not {found:?}",
        shape_text(expected)
    )]
    WrongShape {
        /// The input.
        name: String,
        /// The model's shape, -1 for any extent.
        expected: Vec<i64>,
        /// The request's shape.
        found: Vec<u64>,
    },
    /// An input is larger than memory was planned for.
    #[error("the input `{name}` has shape {found:?}; memory is planned for {largest:?} at most")]
    TooLarge {
        /// The input.
        name: String,
        /// The request's shape.
        found: Vec<u64>,
        /// The largest that is run.
        largest: Vec<u64>,
    },
    /// The model has no such output.
    #[error(
        "the model has no output `{name}`; its outputs are {}",
        quoted(expected)
    )]
    UnknownOutput {
        /// What was asked for.
        name: String,
        /// The model's outputs.
        expected: Vec<String>,
    },
    /// An output was asked for twice.
    #[error("the output `{name}` is asked for twice")]
    DuplicateOutput {
        /// The output.
        name: String,
    },
    /// An output does not make a tensor of the protocol.
    #[error("an output of the model is no tensor of the protocol: {0}")]
    Output(TensorError),
    /// The intermediate results need more memory than was planned for one request.
    #[error("the request needs more than the {limit} bytes of memory that one may take")]
    MemoryBudget {
        /// What one request may take, in bytes.
        limit: usize,
    },
    /// Whoever asked has no memory for the outputs.
    #[error("the outputs take {bytes} bytes, for which there is no memory now")]
    NotAdmitted {
        /// What copying them takes.
        bytes: usize,
    },
    /// ONNX Runtime failed, most often because extents do not fit together.
    #[error("the model cannot run on this input")]
    Failed(Confidential),
}

/// A text that may name layers and tensors of the model. Displaying or logging
/// what holds it does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Confidential(String);

impl Confidential {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text, for whoever may know the model's graph.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<ort::Error> for Confidential {
    fn from(error: ort::Error) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Debug for Confidential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confidential(..)")
    }
}

fn needs_most(layer: Option<&SetBy>) -> String {
    layer.map_or_else(String::new, |layer| format!("; {layer} needs the most"))
}

fn what_failed(error: &occlude_spill::OpenError) -> &'static str {
    match error {
        occlude_spill::OpenError::Inauthentic { .. } => "the store of streamed weights was altered",
        _ => "the store of streamed weights fails",
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// `[1, any, 3]`, the way a person writes a shape.
fn shape_text(shape: &[i64]) -> String {
    let extents: Vec<String> = shape
        .iter()
        .map(|&extent| match extent {
            0.. => extent.to_string(),
            _ => "any".to_owned(),
        })
        .collect();
    format!("[{}]", extents.join(", "))
}
