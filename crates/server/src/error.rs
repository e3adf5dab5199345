//! Why a server does not start, or stops.

use std::net::SocketAddr;
use std::path::PathBuf;

use occlude_attest::CollectError;
use occlude_channel::KeyGenerationError;
use occlude_container::{ContainerError, OpenError};
use occlude_engine::{LoadError, LoadLibraryError};
use occlude_guard::{ConfigurationError, MismatchError};
use occlude_keys::{ModelId, ModelVersion, OwnerPublic};

use crate::budget::AllowError;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on: in use, not this machine's, not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is no such TEE here.
    #[error(transparent)]
    Tee(#[from] CollectError),
    /// A file is not a sealed model, or its owner's signature does not hold.
    #[error("{}: {source}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ContainerError,
    },
    /// Two files have two owners. ONNX Runtime runs in one process for all models,
    /// and one owner's graph may exploit it; no other owner's weights lie there.
    #[error(
        "a server serves the models of one owner: {} is of {first_owner}, {} of {second_owner}",
        first.display(),
        second.display()
    )]
    SeveralOwners {
        /// The first file.
        first: PathBuf,
        /// Who signed it.
        first_owner: Box<OwnerPublic>,
        /// The first file of another owner.
        second: PathBuf,
        /// Who signed that one.
        second_owner: Box<OwnerPublic>,
    },
    /// Two files are one version of one model.
    #[error("two files are version {version} of model {id}")]
    Duplicate {
        /// The model.
        id: ModelId,
        /// The version.
        version: ModelVersion,
    },
    /// The broker's address or certificates cannot be used.
    #[error("the broker {broker} cannot be used: {reason}")]
    Broker {
        /// The broker.
        broker: String,
        /// Why not.
        reason: String,
    },
    /// The broker refused the key: this server does not satisfy the owner's
    /// policy, or the version was withdrawn.
    #[error("the broker {broker} refuses the key of model {id} version {version}: {reason}")]
    KeyRefused {
        /// The broker.
        broker: String,
        /// The model.
        id: ModelId,
        /// The version.
        version: ModelVersion,
        /// What the broker said.
        reason: String,
    },
    /// The broker gave no answer, or none that makes sense.
    #[error(
        "the key of model {id} version {version} is not to be had from the broker {broker}: {reason}"
    )]
    KeyUnavailable {
        /// The broker.
        broker: String,
        /// The model.
        id: ModelId,
        /// The version.
        version: ModelVersion,
        /// What happened.
        reason: String,
    },
    /// The model's queries are counted, and the broker allows none: it refuses, it is not to
    /// be had, or it is another program, which counts none.
    #[error(
        "model {id} version {version} is guarded by budgets, and the broker {broker} gives no \
         allowance of queries: {source}"
    )]
    Queries {
        /// The broker.
        broker: String,
        /// The model.
        id: ModelId,
        /// The version.
        version: ModelVersion,
        /// What it said.
        source: AllowError,
    },
    /// The key does not open the file, or a part of the file is not authentic.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: OpenError,
    },
    /// The file was replaced by another version while the server ran.
    #[error("{} is no longer the version that this server states", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// ONNX Runtime's library cannot be loaded.
    #[error(transparent)]
    Library(#[from] LoadLibraryError),
    /// ONNX Runtime cannot run the model.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: LoadError,
    },
    /// What was sealed with the model says more than this version knows.
    #[error("{}: it was sealed with {entry:?}, which this version does not know", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The entry of its metadata.
        entry: String,
    },
    /// The guard that was sealed with the model is not one.
    #[error("{}: its guard: {source}", path.display())]
    Guard {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigurationError,
    },
    /// The guard that was sealed with the model does not fit it.
    #[error("{}: {source}", path.display())]
    GuardOfAnother {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: MismatchError,
    },
    /// A largest shape is given for an input that no model has.
    #[error("max-shape names the input `{input}`, which no model has")]
    UnknownInput {
        /// The name.
        input: String,
    },
    /// The channel's keys could not be made.
    #[error(transparent)]
    Channel(#[from] KeyGenerationError),
    /// So many models that no client would read the statement.
    #[error(
        "the service statement has {bytes} bytes, at most {limit} are read: serve fewer models"
    )]
    StatementTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why a server stops that nobody asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// What the operating system said of the listener.
    #[error(transparent)]
    Listener(#[from] std::io::Error),
    /// A model was started and its weights cannot be loaded.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LoadError,
    },
}

impl ServeError {
    /// Which way this failed.
    #[must_use]
    pub fn kind(&self) -> StartErrorKind {
        match self {
            Self::Model { source, .. } => kind_of_load(source),
            Self::Listener(_) => StartErrorKind::Failed,
        }
    }
}

/// A container that was altered is refused, whenever that is found.
fn kind_of_load(error: &LoadError) -> StartErrorKind {
    match error {
        LoadError::Open(OpenError::Io { .. }) => StartErrorKind::Failed,
        LoadError::Open(_) => StartErrorKind::Refused,
        _ => StartErrorKind::Failed,
    }
}

/// The three ways to fail that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartErrorKind {
    /// A policy or a verification said no; trying again will not help.
    Refused,
    /// Something was not reachable; trying again may help.
    Unavailable,
    /// Anything else.
    Failed,
}

impl StartError {
    /// Which way this failed.
    #[must_use]
    pub fn kind(&self) -> StartErrorKind {
        match self {
            Self::Container {
                source: ContainerError::Io { .. },
                ..
            }
            | Self::Open {
                source: OpenError::Io { .. },
                ..
            } => StartErrorKind::Failed,
            Self::KeyRefused { .. }
            | Self::Queries {
                source: AllowError::Refused(_),
                ..
            }
            | Self::SeveralOwners { .. }
            | Self::Container { .. }
            | Self::Open { .. }
            | Self::Replaced { .. }
            | Self::Tee(CollectError::SimulatedDisabled) => StartErrorKind::Refused,
            Self::Model { source, .. } => kind_of_load(source),
            Self::KeyUnavailable { .. } | Self::Queries { .. } => StartErrorKind::Unavailable,
            _ => StartErrorKind::Failed,
        }
    }
}
