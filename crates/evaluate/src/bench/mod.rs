//! `occlude bench`: plain ONNX Runtime and Occlude, in turns, in one process.
//!
//! Both sides have the same threads, the same inputs and one answer at a time. Plain
//! ONNX Runtime is as its users have it: all optimisations, its own arena, prepacked
//! weights. Occlude is as `occlude serve` has it, below the network.
//!
//! Times come from turns within one process, since a machine drifts by more than the
//! two differ; memory comes from a process for each, since one process's memory
//! cannot be told apart.

mod budget;
mod comparison;
mod inputs;
mod memory;
pub(crate) mod plain;
pub(crate) mod report;
mod sealed;
mod service;
mod sides;
mod turns;
mod values;

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use occlude_container::{ContainerError, OpenError, SealError};
use occlude_engine::{
    CipherKind, LargestShape, LibrarySearch, LoadError, LoadLibraryError, LoadOptions, Model,
    ProcessMemory, RunError, Runtime, RuntimeOptions, Spill,
};
use occlude_inference_protocol::Tensor;
use occlude_spill::Disk;
use serde::{Deserialize, Serialize};

pub use budget::{Budget, BudgetError};
pub use memory::measure_memory;
pub use report::{BudgetReport, LayerTime, Measured, Occlude, Outcome, Plain, Report, Side, Speed};
pub use service::Service;

use comparison::Difference;
use memory::Subject;
use plain::PlainModel;
use sealed::SealedModel;
use turns::{CpuTime, Times};

/// What is measured, and how.
#[derive(Debug)]
pub struct BenchOptions {
    /// The ONNX model; its external data is found beside it.
    pub model: PathBuf,
    /// The budgets of protected memory, in the order of the report.
    pub budgets: Vec<Budget>,
    /// Where streamed weights lie.
    pub spill: Spill,
    /// What they are encrypted with there; `None` is the fastest on this processor.
    pub cipher: Option<CipherKind>,
    /// Threads of either side.
    pub threads: NonZeroUsize,
    /// Measured runs of either side for each budget, at least.
    pub runs: NonZeroUsize,
    /// What the model is run on.
    pub inputs: Inputs,
    /// Where ONNX Runtime is looked for.
    pub library: LibrarySearch,
    /// Whether to measure, too, what it costs to open the sealed model as a whole and give it
    /// to plain ONNX Runtime.
    pub opened_whole: bool,
}

/// What a model is run on.
#[derive(Debug)]
pub enum Inputs {
    /// Random values, the same ones every time. Open first extents become `batch`.
    Random {
        /// Examples in one request.
        batch: u64,
    },
    /// These tensors.
    Given(Vec<Tensor>),
}

/// What is being done, for whoever waits.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Stage<'a> {
    /// The model is being sealed.
    Sealing(occlude_container::Progress),
    /// `what` (a budget, or plain ONNX Runtime) is being loaded.
    Loading {
        /// Which side.
        what: &'a str,
    },
    /// Runs of both sides, in turns.
    Running {
        /// Which budget.
        what: &'a str,
        /// Turns done.
        done: usize,
        /// Turns in all.
        total: usize,
    },
    /// A process of its own measures the memory of `what`.
    Memory {
        /// Which side.
        what: &'a str,
    },
}

/// Why nothing was measured. That Occlude refuses a budget is no such error but a
/// line of the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// ONNX Runtime is not there.
    #[error(transparent)]
    Library(#[from] LoadLibraryError),
    /// The model cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The model as sealed a moment ago is no container: a defect.
    #[error("the model as just sealed: {0}")]
    Container(#[from] ContainerError),
    /// The model as sealed a moment ago does not open: a defect.
    #[error("the model as just sealed: {0}")]
    Open(#[from] OpenError),
    /// Plain ONNX Runtime refuses the model or the inputs.
    #[error("plain ONNX Runtime: {0}")]
    Plain(String),
    /// No values can be made up for an input.
    #[error("input {name:?} is {found}: no values can be made up for it, give --inputs")]
    NoSample {
        /// The input.
        name: String,
        /// Its type.
        found: String,
    },
    /// Another batch was asked for than the model has.
    #[error("the model's inputs have fixed extents: a batch of {batch} is not one of theirs")]
    FixedBatch {
        /// What was asked for.
        batch: u64,
    },
    /// A process that measures memory could not be run.
    #[error("measuring memory in another process: {0}")]
    Process(io::Error),
    /// No anonymous file, or it could not be used.
    #[error("an anonymous file: {0}")]
    AnonymousFile(io::Error),
}

/// Starts a service and waits for its first answer, on these inputs; or says, in a sentence
/// for people, why there is none.
pub type StartService<'a> = &'a mut dyn FnMut(&[Tensor]) -> Result<Box<dyn Service>, String>;

/// Plain ONNX Runtime's name in what is said to people.
const PLAIN: &str = "plain ONNX Runtime";

/// Longer than it takes a reader of a disk to fill its buffers.
const READING_AHEAD: Duration = Duration::from_millis(50);

/// Why a budget's measurement stopped.
enum Stop {
    /// Nothing can be measured.
    Failed(BenchError),
    /// This budget cannot; others may.
    Refused(Refusal),
}

/// Why one side was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Refusal {
    /// In words for people.
    reason: String,
    /// The smallest budget that works, in bytes, if this one is too small.
    smallest: Option<u64>,
}

impl Stop {
    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(Refusal {
            reason: reason.into(),
            smallest: None,
        })
    }
}

impl From<BenchError> for Stop {
    fn from(error: BenchError) -> Self {
        Self::Failed(error)
    }
}

impl From<LoadError> for Stop {
    /// What ONNX Runtime said names layers; here the owner reads it.
    fn from(error: LoadError) -> Self {
        let mut smallest = None;
        let reason = match &error {
            LoadError::Rejected(said) => format!("{error}: {}", said.reveal()),
            LoadError::Budget {
                set_by,
                smallest: enough,
                ..
            } => {
                smallest = Some(*enough);
                match set_by {
                    Some(set_by) => format!("{error} (`{}`)", set_by.name.reveal()),
                    None => error.to_string(),
                }
            }
            _ => error.to_string(),
        };
        Self::Refused(Refusal { reason, smallest })
    }
}

impl From<RunError> for Stop {
    fn from(error: RunError) -> Self {
        Self::refused(match &error {
            RunError::Failed(said) => format!("{error}: {}", said.reveal()),
            _ => error.to_string(),
        })
    }
}

/// Measures `options.model` plain and under each budget.
///
/// `process` makes the command of a process that calls [`measure_memory`] with its
/// standard input and output; its standard streams are set here. `service` makes one that
/// answers for the same model, on the inputs that are decided on by then.
///
/// # Errors
/// [`BenchError`]. A budget under which the model does not load or run is reported
/// as refused, and the others are measured nevertheless.
pub fn bench(
    options: &BenchOptions,
    process: &dyn Fn() -> Command,
    service: Option<StartService<'_>>,
    progress: &mut dyn FnMut(Stage<'_>),
) -> Result<Report, BenchError> {
    let runtime = runtime(&options.library, options.threads)?;
    let sealed = SealedModel::seal(&options.model, &mut |at| progress(Stage::Sealing(at)))?;

    progress(Stage::Loading { what: PLAIN });
    let mut plain = PlainModel::load(runtime, &options.model)?;
    let inputs = inputs::tensors(&options.inputs, plain.inputs(), &sealed)?;
    plain.feed(&inputs)?;
    let expected = plain.answer()?;
    let first_plain_answer = plain.since_load_began();

    let carrier = memory::Carrier::new(options, &sealed, &inputs)?;
    let mut plain_times = Times::default();
    let mut timed = Vec::with_capacity(options.budgets.len());
    let mut compared = Compared {
        runtime,
        options,
        inputs: &inputs,
        plain: &mut plain,
        expected: &expected,
    };
    for budget in &options.budgets {
        // Memory first: a budget covers a process, and only one that does nothing else
        // can say what it takes itself.
        progress(Stage::Memory {
            what: &budget.to_string(),
        });
        let footprint = match carrier.measure(Subject::Occlude(*budget), process)? {
            Ok(footprint) => footprint,
            Err(refused) => {
                timed.push(Err(refused));
                continue;
            }
        };
        match compared.measure(&sealed, budget, footprint.process, progress) {
            Ok(measured) => {
                plain_times.extend(&measured.plain_times);
                timed.push(Ok(measured.report(footprint.peak)));
            }
            Err(Stop::Refused(reason)) => timed.push(Err(reason)),
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    let mut opened_whole = None;
    if options.opened_whole {
        progress(Stage::Memory {
            what: sides::OPENED_WHOLE,
        });
        let outcome = match carrier.measure(Subject::OpenedWhole, process)? {
            Ok(footprint) => compared.opened_whole(&sealed, footprint.peak, progress),
            Err(refused) => Err(Stop::Refused(refused)),
        };
        opened_whole = Some(outcome_of(outcome, &mut plain_times)?);
    }
    let mut answered = None;
    if let Some(start) = service {
        progress(Stage::Loading {
            what: sides::SERVICE,
        });
        let outcome = match start(&inputs) {
            Ok(mut service) => compared.service(&mut *service, progress),
            Err(refused) => Err(Stop::refused(refused)),
        };
        answered = Some(outcome_of(outcome, &mut plain_times)?);
    }
    if plain_times.is_empty() {
        plain_times = plain.times(options.runs)?;
    }
    let load = plain.load_time();
    let speed = Speed::new(&plain_times, plain.cpu_time());
    drop(plain);

    progress(Stage::Memory { what: PLAIN });
    let peak = carrier
        .measure(Subject::Plain, process)?
        .map_err(|refused| BenchError::Plain(refused.reason))?
        .peak;
    let budgets = options.budgets.iter().zip(timed);
    let budgets = budgets.map(|(budget, timed)| BudgetReport {
        budget: *budget,
        outcome: match timed {
            Ok(measured) => Outcome::Measured(measured),
            Err(refused) => Outcome::from(refused),
        },
    });
    Ok(Report {
        model: file_name(&options.model),
        threads: options.threads,
        spill: options.spill.clone(),
        batch: inputs::batch(&options.inputs, &inputs),
        plain: Plain::new(speed, load, first_plain_answer, peak),
        budgets: budgets.collect(),
        opened_whole,
        service: answered,
    })
}

/// What came of another side, whose plain times are kept.
fn outcome_of(
    outcome: Result<(Side, Times), Stop>,
    plain_times: &mut Times,
) -> Result<Outcome<Side>, BenchError> {
    match outcome {
        Ok((side, times)) => {
            plain_times.extend(&times);
            Ok(Outcome::Measured(side))
        }
        Err(Stop::Refused(refused)) => Ok(Outcome::from(refused)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// ONNX Runtime with one pool of threads, which both sides share: a pool of each
/// side's own would take cores from the other while it spins, or be slower without.
fn runtime(search: &LibrarySearch, threads: NonZeroUsize) -> Result<&'static Runtime, BenchError> {
    let options = RuntimeOptions {
        threads,
        // As plain ONNX Runtime does by default.
        spinning: true,
    };
    Ok(Runtime::load_with(search, &options)?)
}

/// How Occlude is loaded: for requests of `inputs`.
fn load_options(
    budget: Budget,
    spill: (&Spill, Option<CipherKind>),
    threads: NonZeroUsize,
    inputs: &[Tensor],
    process: ProcessMemory,
) -> LoadOptions {
    let largest = |tensor: &Tensor| LargestShape {
        input: tensor.name().to_owned(),
        extents: tensor.shape().to_vec(),
    };
    // Only where something is to be chosen: a dry run is part of the time to load.
    let planned = match budget {
        Budget::Resident => false,
        Budget::Percent(percent) => percent > 0.0 && percent < 100.0,
        Budget::Bytes(_) => true,
    };
    let inputs = inputs.iter().filter(|_| planned);
    LoadOptions {
        spill: spill.0.clone(),
        cipher: spill.1,
        threads,
        sessions: NonZeroUsize::MIN,
        memory: budget.protected_memory(),
        process,
        largest: inputs.map(largest).collect(),
        ..LoadOptions::default()
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// What one budget is compared with.
struct Compared<'a> {
    runtime: &'static Runtime,
    options: &'a BenchOptions,
    inputs: &'a [Tensor],
    plain: &'a mut PlainModel,
    /// Plain ONNX Runtime's answer.
    expected: &'a [Tensor],
}

/// Times of one budget, and of plain ONNX Runtime in turns with it.
struct Timed {
    load: Duration,
    first_answer: Duration,
    plain_times: Times,
    occlude_times: Times,
    /// Processor time of one of Occlude's runs.
    cpu: Duration,
    /// Median time from an answer to everything being wiped.
    wipe: Duration,
    layers: Vec<LayerTime>,
    weights: u64,
    resident: u64,
    opened_per_run: f64,
    cipher: Option<CipherKind>,
    /// What reading as much alone takes, from a file.
    read: Option<Times>,
    difference: Difference,
}

impl Compared<'_> {
    fn measure(
        &mut self,
        sealed: &SealedModel,
        budget: &Budget,
        process: u64,
        progress: &mut dyn FnMut(Stage<'_>),
    ) -> Result<Timed, Stop> {
        let what = budget.to_string();
        progress(Stage::Loading { what: &what });
        let process = ProcessMemory::Bytes(process);
        let (spill, threads) = (&self.options.spill, self.options.threads);
        let load_options = load_options(
            *budget,
            (spill, self.options.cipher),
            threads,
            self.inputs,
            process,
        );
        let inputs = self.inputs.to_vec();
        let start = Instant::now();
        let container = sealed.open()?;
        let model = Model::start(self.runtime, &container, &load_options)?;
        let load = start.elapsed();
        let answer = model.run(inputs, &[]);
        let first_answer = start.elapsed();
        model.wait_until_loaded()?;
        let answer = answer?;
        let mut difference = Difference::default();
        difference
            .add(&answer, self.expected)
            .map_err(Stop::refused)?;

        let opened_before = model.opened_bytes();
        let disk = match spill {
            Spill::Direct { folder, .. } => {
                model.run(self.inputs.to_vec(), &[])?;
                disk(folder, model.opened_bytes() - opened_before).map_err(Stop::refused)?
            }
            _ => None,
        };
        let (mut runs, mut wipe_times, mut cpu) = (0_u32, Vec::new(), CpuTime::default());
        let mut read_times = Times::default();
        let opened_before = model.opened_bytes();
        let layers_before = model.layer_times();
        let plain = &mut *self.plain;
        let (inputs, expected) = (self.inputs, self.expected);
        let (plain_times, occlude_times) = turns::take::<Stop>(
            self.options.runs,
            &mut || Ok(plain.run()?),
            &mut |last| {
                let inputs = inputs.to_vec();
                let start = Instant::now();
                let (answer, elapsed) = cpu.time(|| model.run(inputs, &[]));
                let answer = answer?;
                // Wiping comes after the answer, and would else delay the next one.
                model.wait_until_wiped();
                wipe_times.push(start.elapsed() - elapsed);
                runs += 1;
                if last {
                    difference.add(&answer, expected).map_err(Stop::refused)?;
                    if let Some(disk) = &disk {
                        read_times.push(time_of_reading(disk).map_err(Stop::refused)?);
                    }
                }
                Ok(elapsed)
            },
            &mut |done, total| {
                progress(Stage::Running {
                    what: &what,
                    done,
                    total,
                });
            },
        )?;
        let opened = model.opened_bytes() - opened_before;
        let layers = layer_times(&model, &layers_before, runs);
        Ok(Timed {
            load,
            first_answer,
            plain_times,
            occlude_times,
            cpu: cpu.of_one(),
            wipe: median(wipe_times),
            layers,
            weights: model.weight_bytes(),
            resident: model.resident_bytes() as u64,
            opened_per_run: opened as f64 / f64::from(runs.max(1)),
            cipher: model.spill_cipher(),
            read: (!read_times.is_empty()).then_some(read_times),
            difference,
        })
    }
}

/// What each layer's operator took in one of `runs` runs since `before`.
fn layer_times(model: &Model, before: &[Duration], runs: u32) -> Vec<LayerTime> {
    let spent = model.layer_times();
    let layers = model.plan().layers.iter().zip(spent.iter().zip(before));
    let layers = layers.map(|(layer, (after, before))| LayerTime {
        name: layer.name.reveal().to_owned(),
        kind: layer.kind,
        ms: report::milliseconds((*after - *before) / runs.max(1)),
    });
    layers.collect()
}

/// A disk to compare streaming `bytes` from `folder` with; none if none are streamed.
fn disk(folder: &Path, bytes: u64) -> Result<Option<Disk>, String> {
    let bytes = usize::try_from(bytes).map_err(|error| error.to_string())?;
    let disk = (bytes > 0).then(|| Disk::new(folder, bytes));
    disk.transpose().map_err(|error| error.to_string())
}

fn time_of_reading(disk: &Disk) -> Result<Duration, String> {
    // The model's own reader has begun with the next run's weights.
    thread::sleep(READING_AHEAD);
    let start = Instant::now();
    disk.read().map_err(|error| format!("the disk: {error}"))?;
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

impl Timed {
    /// `peak` in bytes.
    fn report(self, peak: u64) -> Measured {
        Measured {
            occlude: Occlude {
                speed: Speed::new(&self.occlude_times, self.cpu),
                wipe_ms: report::milliseconds(self.wipe),
                load_ms: report::milliseconds(self.load),
                first_answer_ms: report::milliseconds(self.first_answer),
                peak_protected_mib: report::mebibytes(peak as f64),
                weights_mib: report::mebibytes(self.weights as f64),
                resident_mib: report::mebibytes(self.resident as f64),
                opened_mib_per_run: report::mebibytes(self.opened_per_run),
                spill_cipher: self.cipher,
                read_p50_ms: self
                    .read
                    .as_ref()
                    .map(|read| report::milliseconds(read.median())),
                read_ms: self
                    .read
                    .as_ref()
                    .map(|read| report::milliseconds(read.minimum())),
            },
            ratio_p50: report::ratio(self.occlude_times.median(), self.plain_times.median()),
            ratio_min: report::ratio(self.occlude_times.minimum(), self.plain_times.minimum()),
            max_abs_diff: self.difference.largest,
            max_abs_output: self.difference.largest_output,
            layers: self.layers,
        }
    }
}
