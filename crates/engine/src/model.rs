//! A loaded model: weights in memory of its own, sessions of ONNX Runtime that
//! borrow them, and requests checked against its inputs.
//!
//! Requests are hostile: every name, type and shape is compared before ONNX
//! Runtime sees a tensor. What the values are is the model's business.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use occlude_container::OpenContainer;
use occlude_inference_protocol::{Tensor, TensorMetadata};
use occlude_spill::{CipherKind, Mirror};
use ort::session::{NoSelectedOutputs, OutputSelector, RunOptions, SessionInputValue};
use ort::value::{Outlet, ValueType};

use crate::allocator::{Allocator, Refusal};
use crate::error::{LoadError, RunError};
use crate::largest::LargestShape;
use crate::layers::{Layer, LayerKernel, Layers};
use crate::library::Runtime;
use crate::loading::{self, Compartment, Loading, Prepared};
use crate::memory::ProtectedBuffer;
use crate::plan::Plan;
use crate::pool::Pool;
use crate::spill::Spill;
use crate::subnormal::flushed;
use crate::value;

mod settle;

/// How much of the TEE's memory a model may take.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ProtectedMemory {
    /// Whatever it needs with all weights resident.
    #[default]
    Resident,
    /// This share of the weights' bytes is resident, 0 to 1; tables that must be
    /// resident count in.
    WeightShare(f64),
    /// This many bytes in total: weights, inputs, intermediate results, scratch and, as
    /// [`LoadOptions::process`] says, the process itself. What no weight needs is kept free
    /// for the largest inputs ([`LoadOptions::largest`]); larger ones are refused.
    Bytes(u64),
}

impl fmt::Display for ProtectedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resident => f.write_str("resident"),
            Self::WeightShare(share) => write!(f, "{}%", share * 100.0),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
        }
    }
}

/// What of a budget in bytes is for the process itself: the program, ONNX Runtime and
/// what its sessions take beside the memory that they work in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcessMemory {
    /// Nothing: the budget is for the model alone.
    #[default]
    Apart,
    /// As much as is measured while the model is loaded. For processes that do nothing
    /// else meanwhile; loading the same sealed version again takes the first figure.
    Measured,
    /// So many bytes, measured elsewhere.
    Bytes(u64),
}

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOptions {
    /// Threads that open weights while the model is loaded. How many compute is
    /// settled for the whole process, see [`crate::RuntimeOptions`].
    pub threads: NonZeroUsize,
    /// Sessions: how many requests run at once, all over the same weights. Each
    /// has memory of its own for intermediate results.
    pub sessions: NonZeroUsize,
    /// The budget of protected memory.
    pub memory: ProtectedMemory,
    /// What of a budget in bytes is for the process itself.
    pub process: ProcessMemory,
    /// The largest shapes of inputs, for which memory is planned. Open extents of the others
    /// are planned as 1 where the budget is in bytes, and not limited elsewhere. Names that
    /// the model does not have are passed over, since several models may share a list.
    pub largest: Vec<LargestShape>,
    /// The smallest weight in bytes that is streamed for an operator of ONNX Runtime.
    pub smallest_streamed: u64,
    /// Where streamed weights lie.
    pub spill: Spill,
    /// What they are encrypted with there; `None` is the fastest on this processor.
    pub cipher: Option<CipherKind>,
    /// Where they lie a second time, if a file does; `None` is nowhere.
    pub mirror: Option<Mirror>,
}

/// Below this, opening a weight for each run costs more than it saves.
const SMALLEST_STREAMED: u64 = 64 << 10;

impl Default for LoadOptions {
    /// Every core for loading, and one request at a time.
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            sessions: NonZeroUsize::MIN,
            memory: ProtectedMemory::default(),
            process: ProcessMemory::default(),
            largest: Vec::new(),
            smallest_streamed: SMALLEST_STREAMED,
            spill: Spill::default(),
            cipher: None,
            mirror: None,
        }
    }
}

/// What became of a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCounts {
    /// Weights that our own kernels read panel by panel.
    pub sealed: usize,
    /// Weights that are opened as a whole, just in time, for operators of ONNX Runtime.
    pub opened_whole: usize,
}

/// A model that is ready to run.
pub struct Model {
    // Declared before the weights, so dropped before them: sessions borrow them.
    compartments: Pool<Compartment>,
    memories: Vec<Arc<Allocator>>,
    weights: ProtectedBuffer,
    layers: Arc<Layers>,
    loading: Arc<Loading>,
    /// The layers that ONNX Runtime borrows.
    borrowed: Vec<bool>,
    weight_bytes: u64,
    plan: Plan,
    inputs: Vec<Interface>,
    outputs: Vec<TensorMetadata>,
    input_metadata: Vec<TensorMetadata>,
}

/// One input, and whether any rank will do.
struct Interface {
    metadata: TensorMetadata,
    any_rank: bool,
    /// The largest shape that is run, if there is one.
    largest: Option<Vec<u64>>,
}

impl Model {
    /// Opens every weight of `container` and starts sessions over them. The skeleton is
    /// wiped afterwards; of the weights no second copy is made.
    ///
    /// # Errors
    /// [`LoadError`]; nothing stays in memory then.
    pub fn load(
        runtime: &'static Runtime,
        container: &Arc<OpenContainer>,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let model = Self::start(runtime, container, options)?;
        model.wait_until_loaded()?;
        Ok(model)
    }

    /// As [`Model::load`], but returns once sessions have been started: weights come in
    /// the order in which a run wants them, and a run waits for those that are not there
    /// yet. The container stays open until the last one has come.
    ///
    /// Everything has come when this returns where the budget needs a run to be measured,
    /// where a share of the weights is to be resident, or where the store reads ahead.
    ///
    /// # Errors
    /// [`LoadError`], if it is known by then. What goes wrong later, a weight that is not
    /// authentic above all, is what [`Model::wait_until_loaded`] returns, and
    /// [`RunError::NotLoaded`] for every run that needs the weight.
    pub fn start(
        runtime: &'static Runtime,
        container: &Arc<OpenContainer>,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let before = settle::Before::now(options);
        let prepared = Prepared::new(runtime, container, options)?;
        settle::settled(&prepared, options, &before)
    }

    /// Waits until every weight is where it is read.
    ///
    /// # Errors
    /// Why one is missing, to the first who asks; [`LoadError::NotLoaded`] to others.
    pub fn wait_until_loaded(&self) -> Result<(), LoadError> {
        self.loading.wait()
    }

    pub(crate) fn over(loaded: loading::Loaded) -> Result<Self, LoadError> {
        // In this order: an error drops the compartments before the weights they borrow.
        let loading::Loaded {
            weights,
            layers,
            loading,
            borrowed,
            weight_bytes,
            compartments,
            unranked,
        } = loaded;
        let (inputs, outputs) = match compartments.first() {
            Some(Compartment { session, .. }) => (
                interfaces("input", session.inputs(), &unranked)?,
                interfaces("output", session.outputs(), &unranked)?,
            ),
            None => (Vec::new(), Vec::new()),
        };
        let memories = compartments
            .iter()
            .map(|compartment| Arc::clone(&compartment.memory))
            .collect();
        let pool = Pool::new(compartments, |compartment| compartment.memory.wipe_idle());
        Ok(Self {
            compartments: pool.map_err(|source| LoadError::Resources {
                what: "no thread that wipes memory",
                source,
            })?,
            memories,
            weights,
            layers,
            loading,
            borrowed,
            weight_bytes,
            plan: settle::no_plan(),
            input_metadata: inputs.iter().map(|input| input.metadata.clone()).collect(),
            inputs,
            outputs: outputs.into_iter().map(|output| output.metadata).collect(),
        })
    }

    /// The inputs, in the model's order; -1 for an extent that may be any. Inputs
    /// with a default value are constants here and not listed.
    #[must_use]
    pub fn inputs(&self) -> &[TensorMetadata] {
        &self.input_metadata
    }

    /// The outputs, in the model's order; -1 for an extent that may be any.
    #[must_use]
    pub fn outputs(&self) -> &[TensorMetadata] {
        &self.outputs
    }

    /// Bytes of weights held in protected memory.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.weights.len() + self.layers.resident_bytes()
    }

    /// What is resident, what is streamed, and what that costs.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of all weights, resident or not, as the model stores them.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes of streamed weights that were opened since the model was loaded.
    #[must_use]
    pub fn opened_bytes(&self) -> u64 {
        self.layers.opened_bytes()
    }

    /// How long the operator of each layer took since the model was loaded, all runs
    /// together: opening what is streamed and, where the kernel is ours, computing. In the
    /// order of [`Plan::layers`], tables left out; zero for weights that an operator of
    /// ONNX Runtime reads where they lie. Of two convolutions that run as one all of it
    /// counts for the second.
    #[must_use]
    pub fn layer_times(&self) -> Vec<Duration> {
        self.layers.layers.iter().map(Layer::spent).collect()
    }

    /// Tells `observer` offset and length of every read of streamed weights from now on:
    /// what whoever watches the store sees. For tests; only the first observer counts.
    pub fn observe_reads(&self, observer: impl Fn(u64, usize) + Send + Sync + 'static) {
        self.layers.observe_reads(Box::new(observer));
    }

    /// Waits until everything that answered requests left in memory is wiped. The next
    /// request does so too, so this is only for measuring.
    pub fn wait_until_wiped(&self) {
        self.compartments.wait_until_tidy();
    }

    /// How many layers compute with weights of their own, and how many weights are
    /// opened for operators of ONNX Runtime.
    #[must_use]
    pub fn layer_counts(&self) -> LayerCounts {
        let layers = self.layers.layers.iter().zip(&self.borrowed);
        let (mut sealed, mut opened_whole) = (0, 0);
        for (layer, borrowed) in layers {
            match layer.kernel {
                LayerKernel::Whole(_) => opened_whole += usize::from(!borrowed),
                LayerKernel::Gemm(_) | LayerKernel::Convolution(_) => sealed += 1,
            }
        }
        LayerCounts {
            sealed,
            opened_whole,
        }
    }

    /// Whether the kernel keeps the weights and everything of requests that is in
    /// memory so far out of swap.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.weights.is_locked() && self.memories.iter().all(|memory| memory.is_locked())
    }

    /// What streamed weights are encrypted with; nothing if none can be streamed.
    #[must_use]
    pub fn spill_cipher(&self) -> Option<CipherKind> {
        self.layers.cipher()
    }

    /// The memory of each session.
    #[cfg(test)]
    pub(crate) fn memories(&self) -> &[Arc<Allocator>] {
        &self.memories
    }

    /// Does `work` while nobody else has a session that this takes.
    #[cfg(test)]
    pub(crate) fn with_session(&self, work: impl FnOnce()) {
        let _compartment = self.compartments.take();
        work();
    }

    /// Runs the model on `inputs`, which come in any order, and returns the outputs
    /// named in `requested`, in that order; all of them if it is empty.
    ///
    /// Blocks while every session is busy.
    ///
    /// # Errors
    /// [`RunError`]; the model can be used again.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a request's tensors end with it, wiped, whatever becomes of the answer"
    )]
    pub fn run(&self, inputs: Vec<Tensor>, requested: &[String]) -> Result<Vec<Tensor>, RunError> {
        self.run_in(&inputs, requested, || self.compartments.take(), |_| true)
    }

    /// [`Self::run`] for a caller who has only so much memory for the outputs: `admit` is
    /// told the bytes that copying them out of the session takes, and nothing is copied
    /// where it says no.
    ///
    /// # Errors
    /// [`RunError::NotAdmitted`] then, and the others of [`RunError`]; the model can be
    /// used again.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a request's tensors end with it, wiped, whatever becomes of the answer"
    )]
    pub fn run_admitted(
        &self,
        inputs: Vec<Tensor>,
        requested: &[String],
        admit: impl FnOnce(usize) -> bool,
    ) -> Result<Vec<Tensor>, RunError> {
        self.run_in(&inputs, requested, || self.compartments.take(), admit)
    }

    /// [`Self::run_admitted`] in the compartment that `take` gives once the request is
    /// checked.
    fn run_in<C: DerefMut<Target = Compartment>>(
        &self,
        inputs: &[Tensor],
        requested: &[String],
        take: impl FnOnce() -> C,
        admit: impl FnOnce(usize) -> bool,
    ) -> Result<Vec<Tensor>, RunError> {
        let dims = self.check_inputs(inputs)?;
        let wanted = self.wanted_outputs(requested)?;
        let failed = |error: ort::Error| RunError::Failed(error.into());

        let mut borrowed = Vec::with_capacity(inputs.len());
        for (tensor, dims) in inputs.iter().zip(&dims) {
            borrowed.push((tensor.name(), value::borrow(tensor, dims).map_err(failed)?));
        }
        let feeds: Vec<(&str, SessionInputValue<'_>)> = borrowed
            .iter()
            .map(|(name, borrowed)| (*name, borrowed.value().into()))
            .collect();
        let selector = wanted
            .iter()
            .fold(OutputSelector::no_default(), |selector, name| {
                selector.with(*name)
            });
        let run_options = RunOptions::<NoSelectedOutputs>::new()
            .map_err(failed)?
            .with_outputs(selector);

        let mut compartment = take();
        let Compartment {
            session,
            memory,
            number,
        } = &mut *compartment;
        self.layers.begin_run(*number);
        let run = || flushed(|| session.run_with_options(feeds, &run_options));
        let mut outputs = match memory.watch(run) {
            (_, Some(Refusal::Limit(limit))) => return Err(RunError::MemoryBudget { limit }),
            (Err(error), _) => {
                let altered = self.layers.take_failure(*number);
                return Err(match (altered, self.loading.reason()) {
                    (Some(altered), _) => RunError::Spilled(altered),
                    (None, Some(reason)) => RunError::NotLoaded { reason },
                    (None, None) => failed(error),
                });
            }
            (Ok(outputs), _) => outputs,
        };
        let bytes = wanted
            .iter()
            .filter_map(|name| outputs.get(name))
            .map(value::bytes_to_copy)
            .sum();
        let mut answers = Vec::with_capacity(wanted.len());
        if admit(bytes) {
            for name in &wanted {
                answers.push(match outputs.get_mut(name) {
                    Some(output) => value::copy_out(name, output),
                    None => Err(failed(ort::Error::new("an output is missing"))),
                });
            }
        } else {
            answers.push(Err(RunError::NotAdmitted { bytes }));
        }
        // After all are copied: two outputs may share their memory.
        for name in &wanted {
            if let Some(output) = outputs.get_mut(name) {
                value::wipe_strings(output);
            }
        }
        answers.into_iter().collect()
    }

    /// Compares a request with the model's inputs; returns each tensor's extents in
    /// the form that ONNX Runtime takes.
    fn check_inputs(&self, tensors: &[Tensor]) -> Result<Vec<Vec<i64>>, RunError> {
        let mut seen = HashSet::new();
        let mut dims = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let input = self
                .inputs
                .iter()
                .find(|input| input.metadata.name == tensor.name())
                .ok_or_else(|| RunError::UnknownInput {
                    name: tensor.name().to_owned(),
                    expected: names(&self.input_metadata),
                })?;
            if !seen.insert(tensor.name()) {
                return Err(RunError::DuplicateInput {
                    name: tensor.name().to_owned(),
                });
            }
            dims.push(input.check(tensor)?);
        }
        match self
            .input_metadata
            .iter()
            .find(|input| !seen.contains(input.name.as_str()))
        {
            None => Ok(dims),
            Some(missing) => Err(RunError::MissingInput {
                name: missing.name.clone(),
                datatype: missing.datatype,
                shape: missing.shape.clone(),
            }),
        }
    }

    fn wanted_outputs<'a>(&'a self, requested: &'a [String]) -> Result<Vec<&'a str>, RunError> {
        if requested.is_empty() {
            return Ok(self
                .outputs
                .iter()
                .map(|output| output.name.as_str())
                .collect());
        }
        let mut seen = HashSet::new();
        for name in requested {
            if !self.outputs.iter().any(|output| output.name == *name) {
                return Err(RunError::UnknownOutput {
                    name: name.clone(),
                    expected: names(&self.outputs),
                });
            }
            if !seen.insert(name.as_str()) {
                return Err(RunError::DuplicateOutput { name: name.clone() });
            }
        }
        Ok(requested.iter().map(String::as_str).collect())
    }
}

impl fmt::Debug for Model {
    /// Without names and shapes, which are the owner's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("weights", &self.weights)
            .finish_non_exhaustive()
    }
}

impl Interface {
    fn check(&self, tensor: &Tensor) -> Result<Vec<i64>, RunError> {
        let expected = &self.metadata;
        if tensor.datatype() != expected.datatype {
            return Err(RunError::WrongDatatype {
                name: expected.name.clone(),
                expected: expected.datatype,
                found: tensor.datatype(),
            });
        }
        let fits = self.any_rank || expected.shape.len() == tensor.shape().len();
        let dims: Option<Vec<i64>> = tensor
            .shape()
            .iter()
            .enumerate()
            .map(|(axis, &found)| {
                let found = i64::try_from(found).ok()?;
                let fixed = expected.shape.get(axis).filter(|&&extent| extent >= 0);
                fixed.is_none_or(|&extent| extent == found).then_some(found)
            })
            .collect();
        let dims = dims.filter(|_| fits).ok_or_else(|| RunError::WrongShape {
            name: expected.name.clone(),
            expected: expected.shape.clone(),
            found: tensor.shape().to_vec(),
        })?;
        match &self.largest {
            Some(largest) if exceeds(tensor.shape(), largest) => Err(RunError::TooLarge {
                name: expected.name.clone(),
                found: tensor.shape().to_vec(),
                largest: largest.clone(),
            }),
            _ => Ok(dims),
        }
    }
}

/// Whether a shape has an extent beyond `largest`; of another rank, whether it has more
/// elements.
fn exceeds(shape: &[u64], largest: &[u64]) -> bool {
    if shape.len() == largest.len() {
        return shape.iter().zip(largest).any(|(found, most)| found > most);
    }
    let elements = |shape: &[u64]| {
        let extents = shape.iter();
        extents.fold(1_u64, |product, &extent| product.saturating_mul(extent))
    };
    elements(shape) > elements(largest)
}

fn interfaces(
    role: &'static str,
    outlets: &[Outlet],
    unranked: &HashSet<String>,
) -> Result<Vec<Interface>, LoadError> {
    outlets
        .iter()
        .enumerate()
        .map(|(index, outlet)| {
            let unservable = || LoadError::Interface {
                role,
                position: index + 1,
                found: kind(outlet.dtype()),
            };
            let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
                return Err(unservable());
            };
            Ok(Interface {
                metadata: TensorMetadata {
                    name: outlet.name().to_owned(),
                    datatype: value::protocol_type(*ty).ok_or_else(unservable)?,
                    shape: shape.to_vec(),
                },
                any_rank: unranked.contains(outlet.name()),
                largest: None,
            })
        })
        .collect()
}

fn kind(value: &ValueType) -> String {
    match value {
        ValueType::Tensor { ty, .. } => format!("a tensor of {ty}"),
        ValueType::Sequence(_) => "a sequence".to_owned(),
        ValueType::Map { .. } => "a map".to_owned(),
        ValueType::Optional(_) => "an optional value".to_owned(),
    }
}

fn names(tensors: &[TensorMetadata]) -> Vec<String> {
    tensors.iter().map(|tensor| tensor.name.clone()).collect()
}
