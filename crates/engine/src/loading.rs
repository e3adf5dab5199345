//! From an opened container to sessions over borrowed weights.
//!
//! 1. The skeleton is rewritten (see [`crate::graph`]): operators of our own take the
//!    place of those that our kernels compute, and every other weight is external, its
//!    values standing in a sparse file of zeros.
//! 2. The weights of our operators are opened, laid out and put into protected memory
//!    or, encrypted, into the spill store (see [`layers`]). That goes on in threads of its
//!    own (see [`pass`]), in the order in which a run wants them: sessions start
//!    meanwhile, and a run waits at each layer until it is there.
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
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::allocator::Allocator;
use crate::error::LoadError;
use crate::graph::{
    Emitted, LayerKind, RewriteOptions, SealedTensor, Source, Survey, Weight, ZEROS_FILE_NAME,
};
use crate::layers::Layers;
use crate::library::Runtime;
use crate::memory::ProtectedBuffer;
use crate::model::{LoadOptions, ProtectedMemory};
use crate::operators;
use crate::value;

use self::layers::{Computing, Work};
pub(crate) use self::pass::Loading;

mod blocks;
mod layers;
mod pass;
pub(crate) mod plan;
pub(crate) mod residency;

/// What our kernels block images by where ONNX Runtime has no such layout.
const NARROWEST_BLOCK: usize = 8;

/// Weights start at multiples of this: a cache line, and the widest vector.
pub(crate) const WEIGHT_ALIGNMENT: usize = 64;

/// Fusions that depend on operators and shapes only. Beyond this level ONNX
/// Runtime changes data layouts, which needs constant weights to pay.
const OPTIMIZATION: GraphOptimizationLevel = GraphOptimizationLevel::Level2;

pub(crate) struct Loaded {
    /// They borrow `weights` and must be dropped before it.
    pub(crate) compartments: Vec<Compartment>,
    pub(crate) weights: ProtectedBuffer,
    pub(crate) layers: Arc<Layers>,
    pub(crate) loading: Arc<Loading>,
    /// The layers that ONNX Runtime borrows.
    pub(crate) borrowed: Vec<bool>,
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

/// A model whose layers are being loaded, and from which sessions can be started.
pub(crate) struct Prepared<'a> {
    pub(crate) survey: Survey,
    pub(crate) layers: Arc<Layers>,
    pub(crate) loading: Arc<Loading>,
    runtime: &'static Runtime,
    container: &'a OpenContainer,
    options: &'a LoadOptions,
    zeros: tempfile::TempDir,
}

impl<'a> Prepared<'a> {
    /// Rewrites the skeleton and starts to bring the weights of layers to where they are
    /// read.
    pub(crate) fn new(
        runtime: &'static Runtime,
        container: &'a Arc<OpenContainer>,
        options: &'a LoadOptions,
    ) -> Result<Self, LoadError> {
        let block = blocks::blocked_channels(runtime);
        let rewrite = RewriteOptions {
            sealed_operators: true,
            block,
            smallest_streamed: options.smallest_streamed,
        };
        let survey = survey(container, &rewrite)?;
        // ONNX Runtime borrows what its own operators read, where all is resident.
        let (destination, borrowed) = match options.memory {
            ProtectedMemory::Resident => (layers::Destination::Resident, wholes(&survey)),
            ProtectedMemory::WeightShare(_) | ProtectedMemory::Bytes(_) => (
                layers::Destination::Store(
                    plan::cipher(options.cipher).0,
                    &options.spill,
                    options.mirror.as_ref(),
                ),
                vec![false; survey.layers().len()],
            ),
        };
        let computing = Computing {
            block: block.unwrap_or(NARROWEST_BLOCK),
            threads: runtime.options().threads.get(),
            sessions: options.sessions.get(),
        };
        let work = Arc::new(Work::new(
            container,
            survey.layers(),
            &borrowed,
            computing,
            destination,
        )?);
        let layers = Arc::clone(work.layers());
        let loading = Arc::new(Loading::start(&work, options.threads.get())?);
        Ok(Self {
            survey,
            layers,
            loading,
            runtime,
            container,
            options,
            zeros: zeros_folder(container)?,
        })
    }

    /// The layers of kind [`LayerKind::Whole`].
    pub(crate) fn wholes(&self) -> Vec<bool> {
        wholes(&self.survey)
    }

    /// What names the sealed version, to everybody.
    pub(crate) fn digest(&self) -> [u8; 32] {
        *self.container.header().digest().as_bytes()
    }

    /// Starts sessions in which those layers of kind [`LayerKind::Whole`] are resident that
    /// are `borrowed`, and the others are opened for each run.
    pub(crate) fn start(&self, borrowed: Vec<bool>) -> Result<Loaded, LoadError> {
        let emitted = self.survey.emit(&|layer| borrowed[layer])?;
        let places = places(&emitted.weights)?;
        let weights = open_weights(self.container, &emitted.weights, &places, self.options)?;
        let start = |emitted: &Emitted| {
            start_sessions(
                self.runtime,
                session_builder(self.runtime, self.zeros.path()),
                emitted,
                &places,
                &weights,
                &self.layers,
                self.options,
            )
        };
        let wholes = self.wholes();
        let opens = wholes
            .iter()
            .zip(&borrowed)
            .any(|(whole, kept)| *whole && !kept);
        let compartments = match start(&emitted) {
            // Perhaps for want of a type that only `WipedAfter` needs. Without it opened
            // weights are wiped with everything else, after the run.
            Err(LoadError::Rejected(_)) if opens => {
                start(&self.survey.emit_with(&|layer| borrowed[layer], false)?)?
            }
            outcome => outcome?,
        };
        let always = self.survey.borrowed().iter().map(Weight::length);
        let layers = self.survey.layers().iter();
        let weight_bytes = always
            .chain(layers.map(|layer| layer.weight.length()))
            .sum();
        Ok(Loaded {
            compartments,
            weights,
            layers: Arc::clone(&self.layers),
            loading: Arc::clone(&self.loading),
            borrowed,
            weight_bytes,
            unranked: self.survey.unranked().clone(),
        })
    }
}

fn wholes(survey: &Survey) -> Vec<bool> {
    let layers = survey.layers().iter();
    layers.map(|layer| layer.kind == LayerKind::Whole).collect()
}

pub(crate) fn survey(
    container: &OpenContainer,
    rewrite: &RewriteOptions,
) -> Result<Survey, LoadError> {
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
