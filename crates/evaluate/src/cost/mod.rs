//! `occlude evaluate cost`: what protection costs for one model on one machine, taken apart.
//!
//! 1. Plain ONNX Runtime; the sealed model opened as a whole and given to it; Occlude with
//!    one budget of protected memory after another; and a whole deployment, asked over its
//!    channel. Each against plain runs that are in turns with it ([`crate::bench`]).
//! 2. The [`CostReport`] separates engine, cryptography and channel, as differences of these,
//!    and says in words in which TEE they were measured. A simulated one costs nothing, and
//!    nothing here is ever called a TEE's overhead.
//! 3. [`html`] draws it, in one file that loads nothing.

mod html;
mod report;

use std::num::NonZeroUsize;
use std::process::Command;

use occlude_attest::TeeKind;

pub use html::html;
pub use report::{CostReport, Costs, Figures, LayerSplit, Machine, Part, Row, RowOutcome, Tee};

use crate::bench::{self, BenchError, BenchOptions, Budget, Service, Stage};
use crate::deployment::{Deployment, DeploymentOptions};

/// The budgets that are measured where nobody names others: shares of the weights, and as
/// much memory as first-generation SGX has, rounded and exactly.
pub const BUDGETS: [Budget; 6] = [
    Budget::Percent(100.0),
    Budget::Percent(50.0),
    Budget::Percent(25.0),
    Budget::Percent(10.0),
    Budget::Bytes(93 << 20),
    Budget::Bytes(64 << 20),
];

/// Measures `options.model` in every way; `deployment` is none where there is no TEE to
/// deploy in, `present` the TEE that this machine is.
///
/// # Errors
/// [`BenchError`]. What cannot work is a row of the report.
pub fn cost(
    options: &BenchOptions,
    deployment: Option<&DeploymentOptions>,
    present: Option<TeeKind>,
    process: &dyn Fn() -> Command,
    progress: &mut dyn FnMut(Stage<'_>),
) -> Result<CostReport, BenchError> {
    let mut start = |inputs: &[occlude_inference_protocol::Tensor]| match deployment {
        Some(deployment) => Deployment::start(deployment, inputs)
            .map(|deployment| Box::new(deployment) as Box<dyn Service>)
            .map_err(|error| error.to_string()),
        None => Err("there is no TEE here to deploy in".to_owned()),
    };
    let measured = bench::bench(options, process, Some(&mut start), progress)?;
    let tee = Tee::new(present, deployment.map(|deployment| deployment.tee));
    Ok(CostReport::new(measured, Machine::here(), tee))
}

/// The arguments of `occlude serve` that make it do what is measured here without it.
#[must_use]
pub fn serve_arguments(threads: NonZeroUsize) -> Vec<String> {
    vec!["--threads".to_owned(), threads.to_string()]
}
