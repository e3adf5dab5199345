//! From an opened container to sessions over borrowed weights.
//!
//! 1. The skeleton is rewritten (see [`crate::graph`]): operators of our own take the
//!    place of those that our kernels compute, and every other weight is external, its
//!    values standing in a sparse file of zeros.
//! 2. The weights of our operators are opened, laid out and put into protected memory
//!    or, encrypted, into the spill store (see [`layers`]).
//! 3. Each other weight is opened from its chunks straight into one protected buffer.
//!    A value over its place there is given to ONNX Runtime as that initializer: it
//!    then neither reads the file nor copies the value. Prepacking is off, since a
//!    prepacked weight is a second copy in memory that nobody wipes.
//!
//! No file ever holds anything of the model. The file of zeros has the size of the
//! sealed container's plaintext, which is public.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use occlude_container::OpenContainer;
use occlude_spill::CipherKind;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::allocator::Allocator;
use crate::error::LoadError;
use crate::graph::{
    Emitted, RewriteOptions, SealedTensor, Source, Survey, Weight, ZEROS_FILE_NAME,
};
use crate::layers::{LayerKernel, Layers};
use crate::library::Runtime;
use crate::memory::ProtectedBuffer;
use crate::model::{LoadOptions, ProtectedMemory};
use crate::operators;
use crate::value;

mod layers;
pub(crate) mod residency;

/// What our kernels block images by where ONNX Runtime has no such layout.
const NARROWEST_BLOCK: usize = 8;

/// Weights start at multiples of this: a cache line, and the widest vector.
const WEIGHT_ALIGNMENT: usize = 64;

/// Fusions that depend on operators and shapes only. Beyond this level ONNX
/// Runtime changes data layouts, which needs constant weights to pay.
const OPTIMIZATION: GraphOptimizationLevel = GraphOptimizationLevel::Level2;

pub(crate) struct Loaded {
    /// They borrow `weights` and must be dropped before it.
    pub(crate) compartments: Vec<Compartment>,
    pub(crate) weights: ProtectedBuffer,
    pub(crate) layers: Arc<Layers>,
    /// Bytes of all weights as the model stores them.
    pub(crate) weight_bytes: u64,
    /// Inputs and outputs of open rank.
    pub(crate) unranked: HashSet<String>,
}

/// A session, and the memory that it alone works in.
pub(crate) struct Compartment {
    // Declared before the memory, so dropped before it: the session allocates there.
    pub(crate) session: Session,
    pub(crate) memory: Arc<Allocator>,
    /// Which session, counted from 0.
    pub(crate) number: usize,
}

pub(crate) fn load(
    runtime: &'static Runtime,
    container: &OpenContainer,
    options: &LoadOptions,
) -> Result<Loaded, LoadError> {
    let rewrite = RewriteOptions {
        sealed_operators: true,
        block: blocked_channels(),
        smallest_streamed: options.smallest_streamed,
    };
    let survey = survey(container, &rewrite)?;
    let destination = match options.memory {
        ProtectedMemory::Resident => layers::Destination::Resident,
        ProtectedMemory::WeightShare(_) | ProtectedMemory::Bytes(_) => {
            layers::Destination::Store(CipherKind::fastest(), &options.spill)
        }
    };
    let borrowed = residency::borrowed(&survey, options.memory);
    let layers = Arc::new(layers::load(
        container,
        survey.layers(),
        &borrowed,
        blocked_channels().unwrap_or(NARROWEST_BLOCK),
        runtime.options().threads.get(),
        options.threads.get(),
        destination,
        options.sessions.get(),
    )?);
    let emitted = survey.emit(&|layer| borrowed[layer])?;
    let places = places(&emitted.weights)?;
    let weights = open_weights(container, &emitted.weights, &places, options)?;
    let zeros = zeros_folder(container)?;
    let start = |emitted: &Emitted| {
        start_sessions(
            runtime,
            session_builder(runtime, zeros.path()),
            emitted,
            &places,
            &weights,
            &layers,
            options,
        )
    };
    let compartments = match start(&emitted) {
        // Perhaps for want of a type that only `WipedAfter` needs. Without it opened
        // weights are wiped with everything else, after the run.
        Err(LoadError::Rejected(_)) if opens_whole_weights(&layers) => {
            start(&survey.emit_with(&|layer| borrowed[layer], false)?)?
        }
        outcome => outcome?,
    };
    let borrowed = survey.borrowed().iter().map(Weight::length);
    let streamed = survey.layers().iter().map(|layer| layer.weight.length());
    let weight_bytes = borrowed.chain(streamed).sum();
    Ok(Loaded {
        compartments,
        weights,
        layers,
        weight_bytes,
        unranked: survey.unranked().clone(),
    })
}

fn opens_whole_weights(layers: &Layers) -> bool {
    let streamed = |layer: &crate::layers::Layer| {
        matches!(layer.kernel, LayerKernel::Whole(_)) && layer.kernel.panels() > 0
    };
    layers.layers.iter().any(streamed)
}

/// Channels of a block in ONNX Runtime's blocked layout on this processor, which its
/// kernels choose by the same instructions.
fn blocked_channels() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return Some(16);
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return Some(8);
        }
    }
    None
}

fn survey(container: &OpenContainer, rewrite: &RewriteOptions) -> Result<Survey, LoadError> {
    let entries = container.tensors();
    let tensors: HashMap<u64, SealedTensor> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            let length = entry.length;
            (entry.offset, SealedTensor { index, length })
        })
        .collect();
    let mut read = |index: usize| {
        let mut bytes = vec![0; addressable(entries[index].length)?];
        container.read_tensor(index, &mut bytes)?;
        Ok(bytes)
    };
    Survey::of(container.skeleton(), &tensors, &mut read, rewrite)
}

/// Where each weight starts in the buffer, and after the last one its size.
fn places(weights: &[Weight]) -> Result<Vec<usize>, LoadError> {
    let mut places = vec![0];
    let mut end = 0_usize;
    for weight in weights {
        end = addressable(weight.length())?
            .checked_next_multiple_of(WEIGHT_ALIGNMENT)
            .and_then(|length| end.checked_add(length))
            .ok_or_else(too_large)?;
        places.push(end);
    }
    Ok(places)
}

fn addressable(length: u64) -> Result<usize, LoadError> {
    usize::try_from(length).map_err(|_| too_large())
}

fn too_large() -> LoadError {
    LoadError::Resources {
        what: "the weights exceed the address space",
        source: std::io::ErrorKind::OutOfMemory.into(),
    }
}

fn open_weights(
    container: &OpenContainer,
    weights: &[Weight],
    places: &[usize],
    options: &LoadOptions,
) -> Result<ProtectedBuffer, LoadError> {
    let size = places.last().copied().unwrap_or(0);
    let mut buffer = ProtectedBuffer::zeroed(size).map_err(|source| LoadError::Resources {
        what: "no memory for the weights",
        source,
    })?;
    let mut jobs = Vec::with_capacity(weights.len());
    let mut rest = buffer.as_mut_slice();
    for (weight, place) in weights.iter().zip(places.windows(2)) {
        let (slot, after) = rest.split_at_mut(place[1] - place[0]);
        rest = after;
        // Weights in the skeleton are not borrowed.
        if let Source::Sealed(tensor) = &weight.source {
            jobs.push((tensor.index, &mut slot[..addressable(weight.length())?]));
        }
    }

    let jobs = Mutex::new(jobs.into_iter());
    let work = || {
        loop {
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
            match job {
                Some((index, slot)) => container.read_tensor(index, slot)?,
                None => return Ok(()),
            }
        }
    };
    let outcomes: Vec<Result<(), LoadError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..options.threads.get())
            .map(|_| scope.spawn(work))
            .collect();
        let mut outcomes = vec![work()];
        for thread in threads {
            outcomes.push(
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
        }
        outcomes
    });
    outcomes.into_iter().collect::<Result<(), LoadError>>()?;
    Ok(buffer)
}

/// A private folder with the file of zeros; it goes with the returned value.
fn zeros_folder(container: &OpenContainer) -> Result<tempfile::TempDir, LoadError> {
    let header = container.header();
    let size = header
        .chunk_count()
        .saturating_mul(u64::from(header.chunk_size().bytes()));
    let make = || {
        let folder = tempfile::tempdir()?;
        File::create(folder.path().join(ZEROS_FILE_NAME))?.set_len(size)?;
        Ok(folder)
    };
    make().map_err(|source| LoadError::Resources {
        what: "no temporary folder",
        source,
    })
}

fn session_builder(runtime: &'static Runtime, zeros: &Path) -> Result<SessionBuilder, ort::Error> {
    Ok(Session::builder(runtime.environment())?
        .with_optimization_level(OPTIMIZATION)?
        .with_prepacking(false)?
        .with_env_allocators()?
        .with_log_level(ort::logging::LogLevel::Fatal)?
        .with_config_entry(
            "session.model_external_initializers_file_folder_path",
            zeros.to_string_lossy(),
        )?)
}

fn start_sessions(
    runtime: &'static Runtime,
    builder: Result<SessionBuilder, ort::Error>,
    emitted: &Emitted,
    places: &[usize],
    buffer: &ProtectedBuffer,
    layers: &Arc<Layers>,
    options: &LoadOptions,
) -> Result<Vec<Compartment>, LoadError> {
    let refused = |error: ort::Error| LoadError::Rejected(error.into());
    let mut builder = builder.map_err(refused)?;
    for (weight, &place) in emitted.weights.iter().zip(places) {
        let element = value::weight_element_type(weight.data_type).ok_or({
            LoadError::WeightType {
                data_type: weight.data_type,
            }
        })?;
        let bytes = &buffer.as_slice()[place..][..addressable(weight.length())?];
        // SAFETY: the bytes are as many as type and extents take (`graph` compared
        // them) and aligned to a cache line. The buffer outlives value and
        // sessions: both are dropped before it (see `Loaded`), and nothing writes to it
        // any more.
        let value =
            unsafe { value::value_over(bytes.as_ptr(), bytes.len(), &weight.dims, element) };
        builder = builder
            .with_initializer(&weight.name, Arc::new(value.map_err(refused)?))
            .map_err(|error| refused(error.into()))?;
    }
    if !layers.layers.is_empty() {
        let operators = operators::domain(layers).map_err(refused)?;
        builder = builder
            .with_operators(operators)
            .map_err(|error| refused(error.into()))?;
    }
    (0..options.sessions.get())
        .map(|number| {
            let memory = Allocator::new().map_err(refused)?;
            layers.start_session(number);
            let session = memory
                .lend_to_session(runtime.environment(), || {
                    builder.commit_from_memory(&emitted.model)
                })
                .and_then(|session| session)
                .map_err(refused)?;
            Ok(Compartment {
                session,
                memory,
                number,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
