//! Measures resident mode in one process and prints JSON:
//!
//! ```text
//! resident [MODEL.onnx] [--sealed FILE --key OWNER_KEY] [--runs N] [--threads N]
//! ```
//!
//! MODEL is sealed for the measurement unless a container of it is given. Without
//! any argument it is `target/models/vgg16.onnx`, which `scripts/models.py` makes.
//!
//! Memory is the process's anonymous resident memory (`RssAnon`), sampled while
//! loading and running; for the plain model, how far it rises. Where MODEL is given,
//! ONNX Runtime in its default configuration (with as many threads, not spinning
//! either) runs it in turns with the sealed one.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use occlude_container::{ChunkSize, Container, SealOptions, SignedContainer, model_key, seal_file};
use occlude_engine::{LIBRARY_FILE_NAME, LibrarySearch, LoadOptions, Model, Runtime};
use occlude_inference_protocol::{DataType, Tensor, TensorMetadata};
use occlude_keys::{ModelId, ModelKey, OwnerKey};
use ort::session::Session;
use ort::value::DynValue;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments = Arguments::parse()?;
    let runtime = Runtime::load(&library())?;
    let (signed, model_key) = arguments.container()?;
    let options = LoadOptions {
        threads: arguments.threads,
        sessions: NonZeroUsize::MIN,
        memory: match std::env::var("SHARE") {
            Ok(s) => occlude_engine::ProtectedMemory::WeightShare(s.parse::<f64>()? / 100.0),
            Err(_) => match std::env::var("MIB") {
                Ok(m) => occlude_engine::ProtectedMemory::Bytes(m.parse::<u64>()? << 20),
                Err(_) => occlude_engine::ProtectedMemory::Resident,
            },
        },
        ..LoadOptions::default()
    };

    let ((sealed, sealed_load), mut sealed_peak) = peak_memory(|| -> Outcome<_> {
        let start = Instant::now();
        let model = Model::load(runtime, &signed.open(&model_key)?, &options)?;
        let elapsed = start.elapsed();
        model.run(sample_inputs(&model)?, &[])?;
        Ok((model, elapsed))
    })?;
    sealed_peak /= MIB;
    let weights = sealed.resident_bytes() as f64 / MIB;

    let mut plain = None;
    let mut plain_figures = serde_json::Value::Null;
    if let Some(path) = &arguments.plain {
        let before = anonymous_memory() as f64;
        let ((session, load), peak) = peak_memory(|| -> Outcome<_> {
            let start = Instant::now();
            let mut session = Session::builder(runtime.environment())?
                .with_intra_threads(arguments.threads.get())?
                .with_intra_op_spinning(false)?
                .commit_from_file(path)?;
            let elapsed = start.elapsed();
            run_plain(&mut session, &sealed)?;
            Ok((session, elapsed))
        })?;
        plain_figures = serde_json::json!({
            "load_ms": milliseconds(load),
            "peak_rise_mib": round((peak - before) / MIB),
        });
        plain = Some(session);
    }

    let (mut sealed_times, mut plain_times) = (Vec::new(), Vec::new());
    let mut difference: f64 = 0.0;
    for _ in 0..arguments.runs {
        let inputs = sample_inputs(&sealed)?;
        let start = Instant::now();
        let answers = sealed.run(inputs, &[])?;
        sealed_times.push(start.elapsed());
        if let Some(session) = &mut plain {
            let (elapsed, outputs) = run_plain(session, &sealed)?;
            plain_times.push(elapsed);
            for (answer, output) in answers.iter().zip(outputs) {
                let values: Vec<f32> = answer.to_values()?;
                for (a, b) in values.iter().zip(output) {
                    difference = difference.max(f64::from((a - b).abs()));
                }
            }
        }
    }

    let mut report = serde_json::json!({
        "weights_mib": round(weights),
        "threads": arguments.threads,
        "runs": arguments.runs,
        "sealed": {
            "load_ms": milliseconds(sealed_load),
            "peak_mib": round(sealed_peak),
            "peak_over_weights": round(sealed_peak / weights),
            "minimum_ms": milliseconds(minimum(&sealed_times)),
            "median_ms": milliseconds(median(&mut sealed_times)),
        },
    });
    if plain.is_some() {
        let ratio = |a: Duration, b: Duration| round(a.as_secs_f64() / b.as_secs_f64());
        plain_figures["minimum_ms"] = milliseconds(minimum(&plain_times)).into();
        plain_figures["median_ms"] = milliseconds(median(&mut plain_times)).into();
        report["plain"] = plain_figures;
        report["ratio_of_minima"] = ratio(minimum(&sealed_times), minimum(&plain_times)).into();
        report["ratio_of_medians"] =
            ratio(median(&mut sealed_times), median(&mut plain_times)).into();
        report["largest_difference"] = difference.into();
    }
    #[expect(
        clippy::print_stdout,
        reason = "the report is what this program is for"
    )]
    {
        println!("{report:#}");
    }
    Ok(())
}

struct Arguments {
    plain: Option<PathBuf>,
    sealed: Option<PathBuf>,
    key: Option<PathBuf>,
    runs: usize,
    threads: NonZeroUsize,
}

impl Arguments {
    fn parse() -> Outcome<Self> {
        let usage = "usage: resident [MODEL.onnx] [--sealed FILE --key OWNER_KEY] [--runs N] \
                     [--threads N]";
        let mut parsed = Self {
            plain: None,
            sealed: None,
            key: None,
            runs: 20,
            threads: LoadOptions::default().threads,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(usage);
            match argument.as_str() {
                "--sealed" => parsed.sealed = Some(value()?.into()),
                "--key" => parsed.key = Some(value()?.into()),
                "--runs" => parsed.runs = value()?.parse()?,
                "--threads" => parsed.threads = value()?.parse()?,
                flag if flag.starts_with("--") => return Err(usage.into()),
                model => parsed.plain = Some(model.into()),
            }
        }
        if parsed.sealed.is_some() != parsed.key.is_some() {
            return Err(usage.into());
        }
        if parsed.plain.is_none() && parsed.sealed.is_none() {
            parsed.plain = Some(default_model()?);
        }
        Ok(parsed)
    }

    /// The container that was named, or one sealed under a new key, whose file is
    /// gone as soon as it is open.
    fn container(&self) -> Outcome<(SignedContainer, ModelKey)> {
        let folder = tempfile::tempdir()?;
        let (path, key) = match (&self.sealed, &self.key, &self.plain) {
            (Some(sealed), Some(key), _) => (sealed.clone(), OwnerKey::read_from(key)?),
            (_, _, Some(plain)) => {
                let (path, key) = (folder.path().join("model.occ"), OwnerKey::generate());
                let options = SealOptions {
                    id: ModelId::random(),
                    version: 1,
                    chunk_size: ChunkSize::DEFAULT,
                };
                seal_file(plain, &path, &key, &options, &mut |_| ())?;
                (path, key)
            }
            _ => return Err("neither a model nor a container".into()),
        };
        let signed = Container::read(&path)?.verify_owner(&key.public())?;
        let model_key = model_key(&key, signed.header());
        Ok((signed, model_key))
    }
}

fn default_model() -> Outcome<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/vgg16.onnx");
    if path.is_file() {
        Ok(path)
    } else {
        Err(
            "no target/models/vgg16.onnx: run `.venv/bin/python scripts/models.py target/models`"
                .into(),
        )
    }
}

/// The library that `make onnxruntime` placed in this checkout.
fn library() -> LibrarySearch {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/onnxruntime/");
    LibrarySearch::only(format!("{folder}{LIBRARY_FILE_NAME}"))
}

/// The same values every time; free extents are 1, integers small.
fn sample(input: &TensorMetadata) -> Outcome<Tensor> {
    let shape: Vec<u64> = input
        .shape
        .iter()
        .map(|&extent| u64::try_from(extent).unwrap_or(1))
        .collect();
    let count = usize::try_from(shape.iter().product::<u64>())?;
    Ok(match input.datatype {
        DataType::Fp32 => {
            let values: Vec<f32> = (0..count).map(|i| ((i as f32) * 12.9898).sin()).collect();
            Tensor::from_values(&input.name, shape, &values)?
        }
        DataType::Int64 => {
            let values: Vec<i64> = (0..count as i64).map(|i| i * 37 % 1000).collect();
            Tensor::from_values(&input.name, shape, &values)?
        }
        other => return Err(format!("no sample values for {other}").into()),
    })
}

fn sample_inputs(model: &Model) -> Outcome<Vec<Tensor>> {
    model.inputs().iter().map(sample).collect()
}

/// How long the plain model takes on the same inputs, and its FP32 outputs.
fn run_plain(session: &mut Session, model: &Model) -> Outcome<(Duration, Vec<Vec<f32>>)> {
    let mut feeds: Vec<(String, DynValue)> = Vec::new();
    for tensor in sample_inputs(model)? {
        let dims: Vec<i64> = tensor.shape().iter().map(|&extent| extent as i64).collect();
        let value = if tensor.datatype() == DataType::Fp32 {
            ort::value::Tensor::from_array((dims, tensor.to_values::<f32>()?))?.into_dyn()
        } else {
            ort::value::Tensor::from_array((dims, tensor.to_values::<i64>()?))?.into_dyn()
        };
        feeds.push((tensor.name().to_owned(), value));
    }
    let start = Instant::now();
    let outputs = session.run(feeds)?;
    let elapsed = start.elapsed();
    let values: Result<_, ort::Error> = outputs
        .values()
        .map(|value| Ok(value.try_extract_tensor::<f32>()?.1.to_vec()))
        .collect();
    Ok((elapsed, values?))
}

const MIB: f64 = 1_048_576.0;

/// Runs `work` and returns the highest `RssAnon` meanwhile, in bytes.
fn peak_memory<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(T, f64)> {
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_memory(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })?;
    let peak = peak.into_inner().max(anonymous_memory());
    Ok((result, peak as f64))
}

/// `RssAnon` of this process in bytes.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kibibytes
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
        * 1024
}

fn minimum(times: &[Duration]) -> Duration {
    times.iter().min().copied().unwrap_or_default()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1e3)
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
