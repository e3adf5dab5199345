//! Memory, measured in a process that does nothing else.
//!
//! The figure is the highest `RssAnon` of `/proc/self/status` from the process's
//! start to its last run, sampled every millisecond: the memory that is the
//! process's alone and would have to be a TEE's. Loading is in it, and so are ONNX
//! Runtime, the measuring and the inputs; nothing is subtracted. Shared mappings and
//! files are not in it: the sealed container, and the store of streamed weights,
//! both of which are ciphertext in untrusted memory or on a disk. The buffers that a
//! disk is read into are in it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use occlude_engine::{CipherError, LibrarySearch, Model, ProcessMemory, Spill, UnknownSpill};
use occlude_inference_protocol::{DataType, Tensor};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::plain::PlainModel;
use super::sealed::{self, Access, SealedModel};
use super::{BenchError, BenchOptions, Budget, Refusal, Stop};

/// Runs in a measuring process: arenas stop growing after the second or third.
const RUNS: usize = 10;

/// How often memory is looked at. One look takes some 20 microseconds.
const INTERVAL: Duration = Duration::from_millis(1);

/// Large enough for `/proc/self/status`, which has some 1,500 bytes.
const STATUS: usize = 8 << 10;

/// Whose memory is measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Subject {
    Plain,
    /// The sealed model, opened as a whole and given to plain ONNX Runtime.
    OpenedWhole,
    Occlude(Budget),
}

/// What a measuring process is told on its standard input.
#[derive(Serialize, Deserialize)]
struct Task<A> {
    subject: Subject,
    model: PathBuf,
    threads: NonZeroUsize,
    /// Where the streamed weights lie.
    spill: String,
    /// The name of what they are encrypted with, if not with the fastest.
    cipher: Option<String>,
    container: A,
    /// An inherited file with the data of all inputs, one after the other.
    data: RawFd,
    inputs: Vec<InputRecord>,
}

#[derive(Clone, Serialize, Deserialize)]
struct InputRecord {
    name: String,
    datatype: DataType,
    shape: Vec<u64>,
    length: usize,
}

/// What a measuring process says on its standard output.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ran(Footprint),
    Refused(Refusal),
}

/// The memory of a measuring process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Footprint {
    /// Its highest anonymous memory in bytes.
    pub(super) peak: u64,
    /// How much of the budget the engine set aside for the process itself, in bytes.
    pub(super) process: u64,
}

/// Starts measuring processes and hands them model and inputs.
pub(super) struct Carrier<'a> {
    options: &'a BenchOptions,
    sealed: &'a SealedModel,
    data: File,
    inputs: Vec<InputRecord>,
}

impl<'a> Carrier<'a> {
    pub(super) fn new(
        options: &'a BenchOptions,
        sealed: &'a SealedModel,
        inputs: &[Tensor],
    ) -> Result<Self, BenchError> {
        let mut data = sealed::anonymous_file("occlude-bench-inputs")?;
        for tensor in inputs {
            data.write_all(tensor.data())
                .map_err(BenchError::AnonymousFile)?;
        }
        let inputs = inputs.iter().map(|tensor| InputRecord {
            name: tensor.name().to_owned(),
            datatype: tensor.datatype(),
            shape: tensor.shape().to_vec(),
            length: tensor.data().len(),
        });
        Ok(Self {
            options,
            sealed,
            data,
            inputs: inputs.collect(),
        })
    }

    /// The subject's memory, or why it did not run.
    pub(super) fn measure(
        &self,
        subject: Subject,
        process: &dyn Fn() -> Command,
    ) -> Result<Result<Footprint, Refusal>, BenchError> {
        let task = Task {
            subject,
            model: self.options.model.clone(),
            threads: self.options.threads,
            spill: self.options.spill.to_string(),
            cipher: self.options.cipher.map(|kind| kind.to_string()),
            container: self.sealed.access(),
            data: self.data.as_raw_fd(),
            inputs: self.inputs.clone(),
        };
        let task = Zeroizing::new(serde_json::to_vec(&task).map_err(process_error)?);
        let mut child = process()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(BenchError::Process)?;
        // A process that ended early says why below.
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(&task);
        }
        let output = child.wait_with_output().map_err(BenchError::Process)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().last().unwrap_or_default();
            return Ok(Err(Refusal {
                reason: format!("the process ended with {}: {said}", output.status),
                smallest: None,
            }));
        }
        match serde_json::from_slice(&output.stdout).map_err(process_error)? {
            Answer::Ran(footprint) => Ok(Ok(footprint)),
            Answer::Refused(refusal) => Ok(Err(refusal)),
        }
    }
}

fn process_error(error: impl Into<io::Error>) -> BenchError {
    BenchError::Process(error.into())
}

/// What a measuring process does: reads its task from `input`, loads and runs, and
/// writes the highest memory to `output`.
///
/// Call it first thing in the process: what was allocated before counts. The process
/// must not be hardened by then: plain ONNX Runtime's users do not harden theirs.
///
/// # Errors
/// [`BenchError`] if it has no task or cannot measure. A model that does not load or
/// run is an answer.
pub fn measure_memory(
    library: &LibrarySearch,
    input: impl Read,
    mut output: impl Write,
) -> Result<(), BenchError> {
    let task: Task<Access> = serde_json::from_reader(input).map_err(process_error)?;
    if let Subject::Occlude(_) = task.subject {
        // As every command of Occlude does before it has threads; not where plain ONNX
        // Runtime is measured, since locked memory is not given back in the same way.
        let _ = occlude_engine::memory::harden_process();
    }
    // Until here memory has only grown.
    let sampler = Sampler::start().map_err(BenchError::Process)?;
    let outcome = task.run(library);
    let peak = sampler.stop().map_err(BenchError::Process)?;
    let answer = match outcome {
        Ok(process) => Answer::Ran(Footprint { peak, process }),
        Err(Stop::Refused(refusal)) => Answer::Refused(refusal),
        Err(Stop::Failed(BenchError::Plain(reason))) => Answer::Refused(Refusal {
            reason,
            smallest: None,
        }),
        Err(Stop::Failed(error)) => return Err(error),
    };
    serde_json::to_writer(&mut output, &answer).map_err(process_error)?;
    output.flush().map_err(BenchError::Process)
}

impl Task<Access> {
    /// Bytes that the engine set aside for the process.
    fn run(&self, library: &LibrarySearch) -> Result<u64, Stop> {
        let inputs = self.read_inputs().map_err(BenchError::AnonymousFile)?;
        let runtime = super::runtime(library, self.threads)?;
        match self.subject {
            Subject::Plain => {
                let plain = PlainModel::load(runtime, &self.model)?;
                run_plain(plain, inputs)
            }
            Subject::OpenedWhole => {
                let start = Instant::now();
                let bytes = self.container.open()?.unsealed();
                let bytes = bytes.map_err(|error| Stop::refused(error.to_string()))?;
                let plain = PlainModel::load_bytes(runtime, start, &bytes)?;
                drop(bytes);
                run_plain(plain, inputs)
            }
            Subject::Occlude(budget) => {
                let container = self.container.open()?;
                let spill: Spill = self
                    .spill
                    .parse()
                    .map_err(|error: UnknownSpill| Stop::refused(error.to_string()))?;
                let cipher = self.cipher.as_deref().map(str::parse).transpose();
                let cipher =
                    cipher.map_err(|error: CipherError| Stop::refused(error.to_string()))?;
                let process = ProcessMemory::Measured;
                let options =
                    super::load_options(budget, (&spill, cipher), self.threads, &inputs, process);
                let model = Model::load(runtime, &container, &options)?;
                drop(container);
                for _ in 0..RUNS {
                    model.run(inputs.clone(), &[])?;
                }
                Ok(model.plan().process)
            }
        }
    }

    fn read_inputs(&self) -> io::Result<Vec<Tensor>> {
        let file = File::open(sealed::path(self.data))?;
        let mut at = 0;
        self.inputs
            .iter()
            .map(|record| {
                let mut data = Zeroizing::new(vec![0; record.length]);
                file.read_exact_at(&mut data, at)?;
                at += record.length as u64;
                Tensor::new(&record.name, record.datatype, record.shape.clone(), data)
                    .map_err(io::Error::other)
            })
            .collect()
    }
}

/// Nothing is set aside for the process: there is no budget.
fn run_plain(mut plain: PlainModel, inputs: Vec<Tensor>) -> Result<u64, Stop> {
    plain.feed(&inputs)?;
    drop(inputs);
    for _ in 0..RUNS {
        plain.run()?;
    }
    Ok(0)
}

/// A thread that remembers the highest anonymous memory of this process.
struct Sampler {
    highest: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    status: Status,
    thread: JoinHandle<io::Result<()>>,
}

impl Sampler {
    fn start() -> io::Result<Self> {
        let highest = Arc::new(AtomicU64::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("memory sampler".to_owned())
            .stack_size(64 << 10)
            .spawn({
                let (highest, stopped) = (highest.clone(), stopped.clone());
                move || {
                    let mut status = Status::open()?;
                    while !stopped.load(Ordering::Relaxed) {
                        highest.fetch_max(status.anonymous_bytes()?, Ordering::Relaxed);
                        std::thread::sleep(INTERVAL);
                    }
                    Ok(())
                }
            })?;
        Ok(Self {
            highest,
            stopped,
            status: Status::open()?,
            thread,
        })
    }

    /// The highest so far, in bytes.
    fn stop(mut self) -> io::Result<u64> {
        let now = self.status.anonymous_bytes()?;
        self.stopped.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(self.highest.load(Ordering::Relaxed).max(now))
    }
}

/// `/proc/self/status`, read without allocating.
struct Status {
    file: File,
    text: Box<[u8; STATUS]>,
}

impl Status {
    fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/self/status")?,
            text: Box::new([0; STATUS]),
        })
    }

    fn anonymous_bytes(&mut self) -> io::Result<u64> {
        let length = self.file.read_at(self.text.as_mut_slice(), 0)?;
        parse_anonymous(&self.text[..length])
            .ok_or_else(|| io::Error::other("/proc/self/status has no RssAnon"))
    }
}

/// `RssAnon:` in the text of a status file, in bytes.
fn parse_anonymous(status: &[u8]) -> Option<u64> {
    const FIELD: &[u8] = b"\nRssAnon:";
    let start = status
        .windows(FIELD.len())
        .position(|window| window == FIELD)?;
    let digits = status[start + FIELD.len()..]
        .iter()
        .skip_while(|byte| byte.is_ascii_whitespace())
        .take_while(|byte| byte.is_ascii_digit());
    let mut kibibytes = None;
    for digit in digits {
        let digit = u64::from(digit - b'0');
        kibibytes = Some(
            kibibytes
                .unwrap_or(0_u64)
                .checked_mul(10)?
                .checked_add(digit)?,
        );
    }
    kibibytes?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_anonymous_memory_is_found_in_a_status_file() {
        let status = b"Name:\toccl\nVmRSS:\t  999 kB\nRssAnon:\t    1234 kB\nRssFile:\t 5 kB\n";
        assert_eq!(parse_anonymous(status), Some(1234 * 1024));
        assert_eq!(parse_anonymous(b"Name:\toccl\n"), None);
        assert_eq!(parse_anonymous(b"\nRssAnon:\t kB\n"), None);
    }

    #[test]
    fn memory_that_was_held_for_a_moment_is_in_the_peak() {
        const HELD: usize = 64 << 20;
        let sampler = Sampler::start().unwrap();
        let memory = vec![1_u8; HELD];
        std::thread::sleep(10 * INTERVAL);
        std::hint::black_box(&memory);
        drop(memory);
        let peak = sampler.stop().unwrap();
        assert!(peak >= HELD as u64, "{peak}");
    }

    #[test]
    fn memory_shared_through_a_file_is_not_in_the_peak() {
        use std::os::unix::fs::FileExt;
        const SHARED: usize = 64 << 20;
        let sampler = Sampler::start().unwrap();
        let file = sealed::anonymous_file("test").unwrap();
        let block = vec![1_u8; 1 << 20];
        for at in (0..SHARED).step_by(block.len()) {
            file.write_all_at(&block, at as u64).unwrap();
        }
        std::thread::sleep(10 * INTERVAL);
        let peak = sampler.stop().unwrap();
        // Other tests of this process run meanwhile: one of them holds as much.
        assert!(peak < 2 * SHARED as u64, "{peak}");
    }
}
