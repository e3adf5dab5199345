//! Runs opened models with ONNX Runtime, their weights in memory that it borrows.
//!
//! 1. [`memory::harden_process`] keeps the process out of core dumps and swap.
//! 2. [`Runtime::load_with`] finds the pinned shared library, checks a sealed copy of it
//!    and loads that copy.
//! 3. [`Model::load`] opens a container's weights into protected memory and starts
//!    sessions that borrow them: one copy of the weights, none in a file, none in a
//!    protobuf.
//! 4. [`Model::run`] checks a request against the model's inputs and runs it.
//!
//! What this does not do: it opens no containers (see `occlude_container`), speaks
//! no protocol, and does not hide memory from root or the hypervisor, which is the
//! TEE's part. Inputs, outputs, intermediate results, weights and the skeleton are
//! wiped; the contents of byte strings that a model makes on its way are not.
//!
//! Who is hostile: whoever controls files and the other software of the machine,
//! and whoever sends a request. The model comes from its owner, authenticated.
//!
//! `docs/engine.md` says why the weights are loaded this way, and what it costs.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "provides ONNX Runtime with memory")]
mod allocator;
mod error;
mod graph;
mod largest;
mod layers;
mod library;
#[allow(unsafe_code, reason = "gives ONNX Runtime weights to borrow")]
mod loading;
#[allow(unsafe_code, reason = "maps, locks and unmaps memory")]
pub mod memory;
mod model;
mod operators;
mod plan;
mod pool;
#[allow(unsafe_code, reason = "a system call")]
mod scheduling;
mod spill;
#[allow(unsafe_code, reason = "sets a thread's floating-point flags")]
mod subnormal;
#[allow(unsafe_code, reason = "sets an environment variable")]
mod telemetry;
#[allow(unsafe_code, reason = "calls ONNX Runtime's C API")]
mod value;

pub use error::{Confidential, LoadError, RunError};
pub use largest::{LargestShape, LargestShapeError};
pub use library::{
    LIBRARY_FILE_NAME, LibrarySearch, LoadLibraryError, ONNX_RUNTIME_VERSION, Runtime,
    RuntimeOptions,
};
pub use model::{LayerCounts, LoadOptions, Model, ProcessMemory, ProtectedMemory};
pub use occlude_spill::{CipherError, CipherKind, Mirror, Repair};
pub use plan::{Plan, PlannedLayer, SetBy, WeightKind};
pub use spill::{Spill, UnknownSpill};
pub use subnormal::flushed;
pub use telemetry::{ForbidTelemetryError, forbid_telemetry};

// So that unit tests can share the models of the tests in `tests/`.
#[cfg(test)]
extern crate self as occlude_engine;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
