//! ONNX protobufs: typed messages, and a walker that never decodes weights.
//!
//! 1. [`splice`] walks a model of any size through a [`Source`] (a file or bytes),
//!    shows each tensor that holds a payload ([`FoundTensor`]) and copies everything
//!    else as it stands, byte by byte, with some payloads replaced or left out.
//! 2. [`EntryReader`] reads what a tensor keeps in `float_data` and its kin as the
//!    bytes that `raw_data` would hold, at any offset.
//! 3. [`Outline`] tells what sealing must know of a graph: operator sets and the
//!    order in which initializers are used.
//! 4. [`messages`] are the messages themselves, for graphs without weights.
//!
//! It does not check that a graph makes sense: ONNX Runtime does.
//!
//! Hostile: the model. Nothing is allocated from a length that was not checked
//! against the source, and nesting, sizes and counts are bounded ([`limits`]).
#![forbid(unsafe_code)]

mod data_type;
mod entries;
mod error;
pub mod limits;
pub mod messages;
mod outline;
mod source;
mod splice;
mod wire;

pub use data_type::{DataType, element_count};
pub use entries::EntryReader;
pub use error::{Malformation, OnnxError, TensorProblem};
pub use outline::Outline;
pub use source::{FileSource, Source};
pub use splice::{
    Encoding, ExternalRecord, FoundTensor, Hole, Payload, Place, Replacement, Spliced, splice,
};
pub use wire::Span;
