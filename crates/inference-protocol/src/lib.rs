//! Open Inference Protocol v2 messages: tensors, JSON and the binary tensor extension.
//!
//! 1. A server decodes a body with [`InferRequest::decode`], giving the value of the
//!    `Inference-Header-Content-Length` field when there is one.
//! 2. It runs the model on [`InferRequest::inputs`], each a checked [`Tensor`].
//! 3. It answers with [`InferResponse::encode`], asking [`InferRequest::wants_binary`] how each
//!    output should travel. A client does the same in the other direction.
//! 4. Where it wants work for an answer it says so with [`WorkWanted`], an extension of ours, and
//!    the client solves the request's [`Puzzle`].
//!
//! Sources: the Open Inference Protocol, version 2, HTTP/REST (github.com/kserve/open-inference-protocol)
//! and Triton's "Binary Tensor Data Extension".
//!
//! Who is hostile: whoever writes the body, which is the user towards the server and, should a
//! server be broken into, the server towards the user. Nothing allocates from a shape before its
//! product was computed without overflow and compared with the bytes that came, and every count
//! has a named limit here. The size of a whole body is for the caller to limit.
//!
//! Not-a-number and the infinities have no spelling in JSON (RFC 8259, section 6): they are taken
//! and given through the binary extension only, as are FP16 and BF16, for which the protocol
//! defines no JSON form. What a model does with a NaN is left to the model.
//!
//! What this does not do: gRPC, shared memory, the raw binary request (a header length of zero),
//! and the choice of a model, whose name is in the path.

#![forbid(unsafe_code)]

mod datatype;
mod decode;
mod element;
mod encode;
mod error;
mod message;
mod metadata;
mod parameters;
mod scan;
mod tensor;
mod work;

pub use datatype::{DataType, UnknownDatatype};
pub use element::Element;
pub use encode::Encoded;
pub use error::{EncodeError, JsonReason, ProtocolError, TensorError};
pub use message::{InferRequest, InferResponse, RequestedOutput};
pub use metadata::{
    ErrorBody, ModelMetadata, ModelReady, ServerLive, ServerMetadata, ServerReady, TensorMetadata,
};
pub use parameters::{Parameter, Parameters};
pub use tensor::{Elements, Tensor};
pub use work::{Puzzle, WORK, WorkWanted, WorkWantedError, work_number};

/// The field that gives the length in bytes of the JSON part of a body with binary tensors.
pub const INFERENCE_HEADER_CONTENT_LENGTH: &str = "inference-header-content-length";

/// The name under which the server metadata lists the binary extension.
pub const BINARY_TENSOR_EXTENSION: &str = "binary_tensor_data";

/// Tensors in one message. Models with more inputs than this are not known to us; the list is
/// walked for duplicate names.
pub const MAXIMUM_TENSORS: usize = 1024;

/// Dimensions of one tensor. `NumPy` stopped at 32 for decades, ONNX models stay below 10.
pub const MAXIMUM_RANK: usize = 32;

/// Bytes of a tensor's name; names end up in error messages.
pub const MAXIMUM_NAME_BYTES: usize = 512;

/// Parameters of one message, tensor or requested output.
pub const MAXIMUM_PARAMETERS: usize = 64;

/// Parameters of all tensors, or of all requested outputs, of one message: each takes a hundred
/// bytes of memory for as few as six of text. Four for each of [`MAXIMUM_TENSORS`]; the protocol
/// and its extensions know two.
pub const MAXIMUM_LIST_PARAMETERS: usize = 4 * MAXIMUM_TENSORS;
