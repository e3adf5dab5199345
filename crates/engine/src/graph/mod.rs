//! From a container's skeleton to the model that ONNX Runtime runs.

pub(crate) mod normalise;
