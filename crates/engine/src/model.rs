//! A loaded model: weights in memory of its own, sessions of ONNX Runtime that
//! borrow them, and requests checked against its inputs.
//!
//! Requests are hostile: every name, type and shape is compared before ONNX
//! Runtime sees a tensor. What the values are is the model's business.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use occlude_container::OpenContainer;
use occlude_inference_protocol::{Tensor, TensorMetadata};
use ort::session::{NoSelectedOutputs, OutputSelector, RunOptions, SessionInputValue};
use ort::value::{Outlet, ValueType};
use zeroize::Zeroizing;

use crate::allocator::{Allocator, Refusal};
use crate::error::{LoadError, RunError};
use crate::layers::{Layer, LayerKernel, Layers};
use crate::library::Runtime;
use crate::loading::{self, Compartment, residency};
use crate::memory::ProtectedBuffer;
use crate::pool::Pool;
use crate::spill::Spill;
use crate::value;

/// How much of the TEE's memory a model may take.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ProtectedMemory {
    /// Whatever it needs with all weights resident.
    #[default]
    Resident,
    /// This share of the weights' bytes is resident, 0 to 1; tables that must be
    /// resident count in.
    WeightShare(f64),
    /// This many bytes in total: weights, intermediate results and scratch.
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
    /// The smallest weight in bytes that is streamed for an operator of ONNX Runtime.
    pub smallest_streamed: u64,
    /// Where streamed weights lie.
    pub spill: Spill,
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
            smallest_streamed: SMALLEST_STREAMED,
            spill: Spill::default(),
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
    weight_bytes: u64,
    inputs: Vec<Interface>,
    outputs: Vec<TensorMetadata>,
    input_metadata: Vec<TensorMetadata>,
}

/// One input, and whether any rank will do.
struct Interface {
    metadata: TensorMetadata,
    any_rank: bool,
}

impl Model {
    /// Opens every weight of `container` into protected memory and starts sessions
    /// over them. The skeleton is wiped afterwards; of the weights no second copy is
    /// made.
    ///
    /// # Errors
    /// [`LoadError`]; nothing stays in memory then.
    pub fn load(
        runtime: &'static Runtime,
        container: &OpenContainer,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let loaded = loading::load(runtime, container, options)?;
        let model = Self::over(loaded)?;
        model.settle(options)?;
        let readers = model.layers.start_readers();
        readers.map_err(|source| LoadError::Resources {
            what: "nothing can read the spill store",
            source,
        })?;
        Ok(model)
    }

    /// Makes as many panels resident as the budget allows.
    fn settle(&self, options: &LoadOptions) -> Result<(), LoadError> {
        let budget = match options.memory {
            ProtectedMemory::Resident => return Ok(()),
            ProtectedMemory::WeightShare(share) => {
                let resident = self.weight_bytes as f64 * share.clamp(0.0, 1.0);
                (resident as usize).saturating_sub(self.weights.len())
            }
            ProtectedMemory::Bytes(budget) => {
                let mut working = self.dry_run()? * options.sessions.get() as u64;
                let resident = self.weights.len() as u64;
                let everything = resident + working + residency::all_bytes(&self.layers);
                if budget < everything {
                    // Something is streamed, so it is read through buffers.
                    working += self.layers.reader_bytes() as u64;
                }
                let left = budget.checked_sub(resident + working);
                let Some(left) = left else {
                    return Err(LoadError::Budget {
                        budget,
                        smallest: resident + working,
                        resident,
                        working,
                    });
                };
                usize::try_from(left).unwrap_or(usize::MAX)
            }
        };
        residency::promote(&self.layers, budget)
    }

    /// Runs the model on zeros, with 1 for each extent that may be any, and returns the
    /// bytes that a session then holds; it never holds more from then on.
    fn dry_run(&self) -> Result<u64, LoadError> {
        let failed = |reason: String| LoadError::DryRun { reason };
        let zeros = |input: &TensorMetadata| {
            let any = |&extent: &i64| u64::try_from(extent).unwrap_or(1);
            let shape: Vec<u64> = input.shape.iter().map(any).collect();
            let elements = shape.iter().product::<u64>() as usize;
            // A byte string takes its length, 4 bytes, which is 0.
            let bytes = elements * input.datatype.size().unwrap_or(4);
            Tensor::new(
                &input.name,
                input.datatype,
                shape,
                Zeroizing::new(vec![0; bytes]),
            )
        };
        let inputs: Result<Vec<Tensor>, _> = self.input_metadata.iter().map(zeros).collect();
        let inputs = inputs.map_err(|error| failed(error.to_string()))?;
        self.run(inputs, &[])
            .map_err(|error| failed(error.to_string()))?;
        let held = |memory: &Arc<Allocator>| memory.held().peak as u64;
        let most = self.memories.iter().map(held).max().unwrap_or(0);
        for memory in &self.memories {
            memory.set_limit(usize::try_from(most).unwrap_or(usize::MAX));
        }
        Ok(most)
    }

    fn over(loaded: loading::Loaded) -> Result<Self, LoadError> {
        // In this order: an error drops the compartments before the weights they borrow.
        let loading::Loaded {
            weights,
            layers,
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
            weight_bytes,
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
        let whole = |layer: &&Layer| matches!(layer.kernel, LayerKernel::Whole(_));
        let layers = &self.layers.layers;
        LayerCounts {
            sealed: layers.iter().filter(|layer| !whole(layer)).count(),
            opened_whole: layers
                .iter()
                .filter(whole)
                .filter(|layer| layer.kernel.panels() > 0)
                .count(),
        }
    }

    /// Whether the kernel keeps the weights and everything of requests that is in
    /// memory so far out of swap.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.weights.is_locked() && self.memories.iter().all(|memory| memory.is_locked())
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
        let dims = self.check_inputs(&inputs)?;
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

        let mut compartment = self.compartments.take();
        let Compartment {
            session,
            memory,
            number,
        } = &mut *compartment;
        self.layers.begin_run(*number);
        let run = || session.run_with_options(feeds, &run_options);
        let mut outputs = match memory.watch(run) {
            (_, Some(Refusal::Limit(limit))) => return Err(RunError::MemoryBudget { limit }),
            (Err(error), _) => {
                return Err(match self.layers.take_failure(*number) {
                    Some(altered) => RunError::Spilled(altered),
                    None => failed(error),
                });
            }
            (Ok(outputs), _) => outputs,
        };
        let mut answers = Vec::with_capacity(wanted.len());
        for name in &wanted {
            answers.push(match outputs.get_mut(name) {
                Some(output) => value::copy_out(name, output),
                None => Err(failed(ort::Error::new("an output is missing"))),
            });
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
        dims.filter(|_| fits).ok_or_else(|| RunError::WrongShape {
            name: expected.name.clone(),
            expected: expected.shape.clone(),
            found: tensor.shape().to_vec(),
        })
    }
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
