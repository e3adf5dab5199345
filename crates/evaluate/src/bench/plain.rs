//! Plain ONNX Runtime, as its users have it: every optimisation, its own arena,
//! prepacked weights, the file as it lies on disk.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use occlude_engine::{Runtime, flushed};
use occlude_inference_protocol::{Tensor, TensorMetadata};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{DynValue, ValueType};

use super::turns::{CpuTime, Times};
use super::{BenchError, values};

/// A plain model and the values that it is run on.
pub(crate) struct PlainModel {
    session: Session,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<String>,
    values: Vec<(String, DynValue)>,
    load_began: Instant,
    load_time: Duration,
    cpu: CpuTime,
}

impl PlainModel {
    pub(crate) fn load(runtime: &'static Runtime, path: &Path) -> Result<Self, BenchError> {
        Self::start(runtime, Instant::now(), |mut builder| {
            builder.commit_from_file(path)
        })
    }

    /// The model in `bytes`, whose loading began before they were there.
    pub(super) fn load_bytes(
        runtime: &'static Runtime,
        load_began: Instant,
        bytes: &[u8],
    ) -> Result<Self, BenchError> {
        Self::start(runtime, load_began, |mut builder| {
            builder.commit_from_memory(bytes)
        })
    }

    fn start(
        runtime: &'static Runtime,
        load_began: Instant,
        commit: impl FnOnce(SessionBuilder) -> Result<Session, ort::Error>,
    ) -> Result<Self, BenchError> {
        let session = Session::builder(runtime.environment())
            .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::All)?))
            .and_then(commit)
            .map_err(plain)?;
        let load_time = load_began.elapsed();
        let inputs = session
            .inputs()
            .iter()
            .map(|input| metadata(input.name(), input.dtype()))
            .collect::<Result<_, _>>()?;
        let outputs = session.outputs().iter();
        Ok(Self {
            outputs: outputs.map(|output| output.name().to_owned()).collect(),
            session,
            inputs,
            values: Vec::new(),
            load_began,
            load_time,
            cpu: CpuTime::default(),
        })
    }

    /// What it takes; -1 for an open extent.
    pub(crate) fn inputs(&self) -> &[TensorMetadata] {
        &self.inputs
    }

    pub(super) fn load_time(&self) -> Duration {
        self.load_time
    }

    pub(super) fn since_load_began(&self) -> Duration {
        self.load_began.elapsed()
    }

    /// Sets what it is run on from now on.
    pub(crate) fn feed(&mut self, inputs: &[Tensor]) -> Result<(), BenchError> {
        self.values = inputs
            .iter()
            .map(|tensor| Ok((tensor.name().to_owned(), values::to_onnx_runtime(tensor)?)))
            .collect::<Result<_, ort::Error>>()
            .map_err(plain)?;
        Ok(())
    }

    /// Runs once and says how long that took.
    pub(super) fn run(&mut self) -> Result<Duration, BenchError> {
        let feeds: Vec<_> = self
            .values
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        let (outputs, elapsed) = self.cpu.time(|| flushed(|| self.session.run(feeds)));
        drop(outputs.map_err(plain)?);
        Ok(elapsed)
    }

    /// Processor time of a run.
    pub(super) fn cpu_time(&self) -> Duration {
        self.cpu.of_one()
    }

    /// Runs once and returns the outputs, in the model's order.
    pub(crate) fn answer(&mut self) -> Result<Vec<Tensor>, BenchError> {
        let feeds: Vec<_> = self
            .values
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        let outputs = flushed(|| self.session.run(feeds)).map_err(plain)?;
        self.outputs
            .iter()
            .map(|name| {
                let output = outputs
                    .get(name)
                    .ok_or_else(|| BenchError::Plain(format!("output {name:?} is missing")))?;
                values::from_onnx_runtime(name, output)
            })
            .collect()
    }

    /// Times of `runs` runs without another side, one more before them discarded.
    pub(super) fn times(&mut self, runs: NonZeroUsize) -> Result<Times, BenchError> {
        let mut times = Times::default();
        self.run()?;
        for _ in 0..runs.get() {
            times.push(self.run()?);
        }
        Ok(times)
    }
}

fn plain(error: impl std::fmt::Display) -> BenchError {
    BenchError::Plain(error.to_string())
}

fn metadata(name: &str, kind: &ValueType) -> Result<TensorMetadata, BenchError> {
    let no_sample = || BenchError::NoSample {
        name: name.to_owned(),
        found: kind.to_string(),
    };
    let ValueType::Tensor { ty, shape, .. } = kind else {
        return Err(no_sample());
    };
    Ok(TensorMetadata {
        name: name.to_owned(),
        datatype: values::datatype(*ty).ok_or_else(no_sample)?,
        shape: shape.to_vec(),
    })
}
