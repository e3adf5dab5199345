//! Matrix products and convolutions over weights that are opened a panel at a time.
//!
//! 1. A [`Gemm`] or [`Convolution`] plans how its weights are laid out and cut into
//!    panels of at most about 100 KiB, for the instructions of an [`Isa`].
//! 2. Whoever loads a model reads the tensor slab by slab and packs the panels.
//! 3. `run` takes an input, [`Panels`] to open, threads ([`Parallel`]) and scratch. It
//!    opens each panel once, right before the micro-kernel reads it.
//!
//! What this does not do: it knows neither ciphers nor ONNX, allocates no weights and
//! starts no threads. The order in which panels are opened depends on shapes only,
//! never on values, and no branch of a kernel depends on a value.
//!
//! Who is hostile: nobody here. Shapes are the caller's, checked where a wrong one
//! would read or write out of bounds (it panics then).

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "threads write disjoint parts of one copy")]
mod arrange;
#[allow(unsafe_code, reason = "hands checked slices to the product")]
mod convolution;
#[allow(unsafe_code, reason = "vector loads and stores")]
mod depthwise;
#[allow(unsafe_code, reason = "threads write disjoint parts of one output")]
mod expansion;
#[allow(unsafe_code, reason = "hands checked slices to the product")]
mod gemm;
mod isa;
#[allow(unsafe_code, reason = "threads write disjoint parts of one scratch")]
mod opening;
mod packing;
mod panels;
mod patience;
#[allow(unsafe_code, reason = "threads write disjoint parts of one output")]
mod product;
#[allow(unsafe_code, reason = "threads write disjoint parts of one output")]
mod scatter;
mod shares;
#[allow(unsafe_code, reason = "vector loads and stores")]
mod tile;
#[allow(unsafe_code, reason = "vector loads and stores")]
mod vector;
#[allow(
    unsafe_code,
    reason = "vector loads and stores, threads write disjoint parts"
)]
mod winograd;

pub use convolution::{Convolution, ConvolutionShape, Extents, Layout};
pub use expansion::Expansion;
pub use gemm::{BIAS_MULTIPLE, Epilogue, Gemm};
pub use isa::Isa;
pub use packing::Slab;
pub use panels::{Alone, Panels, Parallel, Workers};
pub use patience::Patience;
