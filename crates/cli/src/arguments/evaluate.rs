//! `occlude evaluate`: what protection costs, and whether it protects.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use occlude_attest::TeeChoice;
use occlude_engine::{CipherKind, Spill};
use occlude_evaluate::bench::Budget;

use super::CollateralArguments;

#[derive(Debug, Args)]
pub(crate) struct EvaluateArguments {
    #[command(subcommand)]
    pub(crate) action: EvaluateAction,
}

/// Where a deployment runs.
#[derive(Debug, Args)]
pub(crate) struct MachineArguments {
    /// The TEE that this machine is; `auto` looks, and takes the simulated one where there is
    /// none.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) tee: TeeChoice,
    #[command(flatten)]
    pub(crate) collateral: CollateralArguments,
}

/// Where a report goes.
#[derive(Debug, Args)]
pub(crate) struct WrittenArguments {
    /// Write the report here, one HTML file that loads nothing, replacing what is there.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Write the numbers here as JSON, replacing what is there.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvaluateAction {
    /// Measure what protection costs for a model, on this machine.
    Cost(EvaluateCostArguments),
    /// Attack a deployment on this machine, and see whether its protections hold.
    Protection(EvaluateProtectionArguments),
    /// Copy guarded models by asking them, and see how much dearer that is.
    Guard(EvaluateGuardArguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Trains classifiers of handwritten digits (real ones, UCI), seals each with no defence, with each
defence alone and with all together, serves them on loopback, and has attackers copy them
through the encrypted channel, with more and more queries. The table shows how many held-out
digits the copies have right. Nothing prevents copying: what matters is how much dearer it is,
and what the owner's own users lose.

Python needs this repository's package, NumPy, ONNX, scikit-learn, Pillow and three fonts; in a
checkout `make venv` makes an environment that has them, .venv/bin/python.

Examples:
  occlude evaluate guard
  occlude evaluate guard --json guard.json --report guard.html")]
pub(crate) struct EvaluateGuardArguments {
    /// Python [default: .venv/bin/python if it is there, else python3].
    #[arg(long, value_name = "PROGRAM", env = "OCCLUDE_PYTHON")]
    pub(crate) python: Option<PathBuf>,
    /// How many inputs an attacker may ask about, at most.
    #[arg(long, value_name = "N", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(100..))]
    pub(crate) queries: u32,
    /// What decides all that is drawn.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u32,
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    #[command(flatten)]
    pub(crate) written: WrittenArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each check starts a deployment of its own on loopback (an owner, a broker, servers, users) with
a model that is made for it, attacks it as its attacker could, and says what was tried and what
was seen. The cloud's operator is root on the host, and so has to be whoever runs this.

A development build runs each check once more on a deployment without the protection that the
check is about, and expects it to fail: a check that cannot fail shows nothing. Such a
deployment says in its evidence that it is being debugged, and others refuse it.

What no check can try is whether a TEE keeps root out of live memory: that is its hardware's
promise.

Everything lies in temporary folders, and is removed. The last line counts; where a check did
not hold or could not be carried out, or a weakening went unnoticed, the exit code is 1.

Examples:
  occlude evaluate protection
  occlude evaluate protection --json protection.json
  occlude evaluate protection --check replayed-request --check wires")]
pub(crate) struct EvaluateProtectionArguments {
    /// Only this check; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) check: Vec<String>,
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    /// Write what came of each check here as JSON, replacing what is there.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Five ways to run the model, each in turns with plain ONNX Runtime on the same inputs and
threads, so that a machine that drifts drifts for both:
  1. plain ONNX Runtime, as it is by default
  2. the whole sealed model opened in memory and given to it: protection without an engine
  3. Occlude with every weight resident
  4. Occlude with one budget of protected memory after another; one that is too small is
     shown with the smallest that works
  5. a deployment of its own, broker and server on loopback, asked over the channel
The report takes engine, cryptography and channel apart and says which TEE it was measured
in. Where this machine has none that hides memory, the service runs in the simulated one if
this build has it; its numbers are no TEE's.

Everything lies in memory or in a temporary folder, and is removed. The report names the
model's layers: it is for the owner.

Examples:
  occlude evaluate cost model.onnx
  occlude evaluate cost model.onnx --report report.html --json report.json
  occlude evaluate cost model.onnx --inputs batch-of-16.npz --threads 4 --budget 25% --budget 64MiB")]
pub(crate) struct EvaluateCostArguments {
    /// The ONNX model; its external data is found beside it.
    #[arg(value_name = "MODEL.onnx")]
    pub(crate) model: PathBuf,
    /// Inputs by their names, as numpy.savez writes them [default: random ones].
    #[arg(long, value_name = "FILE.npz")]
    pub(crate) inputs: Option<PathBuf>,
    /// Examples in one request, where the model leaves their number open.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "inputs")]
    pub(crate) batch: u64,
    /// A budget of protected memory; may be repeated.
    #[arg(long, value_name = "resident|NN%|NNMiB", default_values = ["resident", "100%", "50%", "25%", "10%", "93MiB", "64MiB"])]
    pub(crate) budget: Vec<Budget>,
    /// Where streamed weights lie, encrypted.
    #[arg(long, value_name = "shared|direct:FOLDER", default_value = "shared")]
    pub(crate) spill: Spill,
    /// What they are encrypted with there [default: the fastest here].
    #[arg(long, value_name = "CIPHER")]
    pub(crate) spill_cipher: Option<CipherKind>,
    /// Threads of every side.
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) threads: NonZeroUsize,
    /// Measured runs of every side, at least; quick models run more often.
    #[arg(long, value_name = "N", default_value = "30")]
    pub(crate) runs: NonZeroUsize,
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    #[command(flatten)]
    pub(crate) written: WrittenArguments,
}
