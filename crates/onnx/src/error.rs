//! Why a model could not be read.

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The bytes are not the protobuf of an ONNX model.
    #[error("not an ONNX model: {reason} at byte {at}")]
    Malformed {
        /// Offset in the source.
        at: u64,
        /// What is wrong there.
        reason: Malformation,
    },
    /// The protobuf can be walked, but its messages are not those of ONNX.
    #[error("not an ONNX model: {reason}")]
    NotAModel {
        /// What the protobuf decoder said.
        reason: String,
    },
    /// Messages are nested deeper than any runtime accepts.
    #[error("messages are nested more than {limit} deep")]
    TooDeep {
        /// The limit.
        limit: u32,
    },
    /// The model without its weights exceeds what is held in memory.
    #[error("the model without its tensors exceeds {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// More tensors than any real model has.
    #[error("the model has more than {limit} tensors")]
    TooManyTensors {
        /// The limit.
        limit: u64,
    },
    /// Two initializers of the main graph share a name.
    #[error("two initializers are called {name:?}")]
    DuplicateInitializer {
        /// The name.
        name: String,
    },
    /// One tensor is not as ONNX wants it.
    #[error("tensor {name:?}: {problem}")]
    Tensor {
        /// The tensor's name, perhaps empty.
        name: String,
        /// What is wrong with it.
        problem: TensorProblem,
    },
    /// The model could not be read.
    #[error("reading the model: {0}")]
    Io(#[from] std::io::Error),
}

/// What is wrong with the protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformation {
    /// A number of more than 64 bits, or cut off.
    #[error("a number that does not end")]
    Varint,
    /// A field that reaches past the message that holds it.
    #[error("a field longer than its message")]
    Length,
    /// A wire type that protobuf 3 does not have.
    #[error("an unknown wire type")]
    WireType,
    /// A known field, encoded as another kind of value.
    #[error("a field of the wrong kind")]
    FieldKind,
    /// A field number outside 1 to 2^29 - 1.
    #[error("an impossible field number")]
    FieldNumber,
}

/// What is wrong with a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// An extent below zero.
    #[error("an extent of {0}")]
    NegativeExtent(i64),
    /// More extents than the limit.
    #[error("more than {0} extents")]
    Rank(usize),
    /// A name or a path longer than the limit, or not UTF-8.
    #[error("a name or path longer than {0} bytes, or not UTF-8")]
    Name(u64),
    /// An element type that ONNX does not have, or that cannot stand here.
    #[error("element type {0} cannot be stored this way")]
    DataType(i32),
    /// Values in two places at once.
    #[error("values in more than one field")]
    SeveralPayloads,
    /// Values scattered over too many fields.
    #[error("values scattered over more than {0} fields")]
    Scattered(usize),
    /// The values do not fill the shape, or overfill it.
    #[error("the shape takes {expected} bytes, the values take {found}")]
    Length {
        /// Bytes that type and extents ask for.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Type and extents whose size exceeds 64 bits.
    #[error("a shape too large to count")]
    Overflow,
    /// An external record without a location, or with a number that is none.
    #[error("a malformed record of external data")]
    ExternalRecord,
}
