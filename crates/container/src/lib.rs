//! The sealed-model container: seal, open, verify, unseal, inspect.
//!
//! 1. The owner calls [`seal_file`]: a model (with external data or without) is
//!    walked, never decoded whole, and written as a clear, signed [`Header`] and
//!    encrypted chunks of one size.
//! 2. Anybody calls [`Container::read`], which checks the file's structure, and
//!    [`Container::verify_owner`], which checks the owner's signature and, by it, the
//!    digest of every chunk. Only that makes a [`SignedContainer`].
//! 3. Whoever holds the [`ModelKey`](occlude_keys::ModelKey) calls
//!    [`SignedContainer::open`] and reads the graph and any tensor
//!    ([`OpenContainer::read_tensor`]).
//! 4. The owner calls [`unseal_file`] for the same model back.
//!
//! No network, no async, no policy. It does not hide the file's size, nor which
//! parts of it are read and when.
//!
//! Hostile: the host, which stores the file and may change, reorder, drop or replay
//! any byte of it at any time, and the model that is sealed. Host bytes are copied
//! once into private memory, then authenticated, then used.
//! `docs/container-format.md` has the format.
#![forbid(unsafe_code)]

#[cfg(test)]
mod bad_contents;
mod chunk;
mod format;
mod header;
mod index;
mod input;
mod inspect;
mod new_file;
mod open;
mod parallel;
mod read;
mod seal;
mod unseal;
#[cfg(test)]
mod vector;

pub use format::{
    ALIGNMENT, ChunkSize, ChunkSizeError, HEADER_LENGTH, HIGHEST_OPSET, LOWEST_OPSET, MAX_CHUNKS,
    MAX_INDEX, PAYLOAD_LOCATION, SMALLEST_EXTRACTED,
};
pub use header::{Header, HeaderError, model_key};
pub use index::{Index, IndexError, TensorEntry, TensorPlace};
pub use inspect::{
    Dimension, Inspection, OperatorCount, OperatorSet, PublicView, TensorSize, ValueDescription,
    Warning, WarningKind,
};
pub use new_file::OutputError;
pub use open::{OpenContainer, OpenError};
pub use read::{ChunkRepair, Container, ContainerError, SignedContainer};
pub use seal::{Metadata, SealError, SealOptions, Sealed, seal, seal_file};
pub use unseal::{UnsealError, unseal_file};

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}
