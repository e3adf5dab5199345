//! The protocol's small answers: metadata, health and errors.
//!
//! Unknown fields are ignored, since the protocol lets servers add their own.

use serde::{Deserialize, Serialize};

use crate::{DataType, Parameters};

/// What `GET v2` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    /// A descriptive name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// The extensions it speaks, such as [`crate::BINARY_TENSOR_EXTENSION`].
    pub extensions: Vec<String>,
}

/// What `GET v2/models/{name}` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// The model's name, as in the path.
    pub name: String,
    /// The versions that a path may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<String>>,
    /// The framework, such as `onnx_onnxv1`.
    pub platform: String,
    /// What the model takes.
    pub inputs: Vec<TensorMetadata>,
    /// What the model gives.
    pub outputs: Vec<TensorMetadata>,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub datatype: DataType,
    /// Its dimensions; -1 where a dimension is free.
    pub shape: Vec<i64>,
}

/// What `GET v2/health/live` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLive {
    /// Whether the server takes requests.
    pub live: bool,
}

/// What `GET v2/health/ready` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReady {
    /// Whether every model is ready.
    pub ready: bool,
}

/// What `GET v2/models/{name}/ready` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReady {
    /// The model's name.
    pub name: String,
    /// Whether it can run.
    pub ready: bool,
}

/// The body of every answer whose status is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong, for a person.
    pub error: String,
}
