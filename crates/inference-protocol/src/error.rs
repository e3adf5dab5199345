//! Why a tensor or a message was refused.

use crate::{
    DataType, MAXIMUM_LIST_PARAMETERS, MAXIMUM_NAME_BYTES, MAXIMUM_RANK, MAXIMUM_TENSORS,
    UnknownDatatype,
};

/// Why a name, a datatype, a shape and data do not make a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The name is longer than [`MAXIMUM_NAME_BYTES`].
    #[error("the name has {length} bytes, at most {MAXIMUM_NAME_BYTES} are allowed")]
    NameTooLong {
        /// Its length.
        length: usize,
    },
    /// The shape is not an array of whole numbers.
    #[error("the shape is not an array of whole numbers")]
    ShapeNotIntegers,
    /// A dimension is negative. Free dimensions exist in metadata only.
    #[error("dimension {dimension} of the shape is negative")]
    NegativeDimension {
        /// Which dimension, from 0.
        dimension: usize,
    },
    /// A dimension does not fit in 64 bits.
    #[error("dimension {dimension} of the shape does not fit in 64 bits")]
    DimensionOverflow {
        /// Which dimension, from 0.
        dimension: usize,
    },
    /// More dimensions than [`MAXIMUM_RANK`].
    #[error("the shape has more than {MAXIMUM_RANK} dimensions")]
    RankTooLarge,
    /// The shape's product, times the size of an element, does not fit in memory's addresses.
    #[error("the shape {shape:?} has more elements than can be addressed")]
    ShapeOverflow {
        /// The shape.
        shape: Vec<u64>,
    },
    /// The data's length is not what datatype and shape ask for.
    #[error("{datatype} of shape {shape:?} takes {expected} bytes, {found} came")]
    DataLength {
        /// The type of the elements.
        datatype: DataType,
        /// The shape.
        shape: Vec<u64>,
        /// The bytes they take.
        expected: usize,
        /// The bytes that came.
        found: usize,
    },
    /// The number of elements is not the shape's product.
    #[error("the shape {shape:?} has {expected} elements, the data has {found}")]
    ElementCount {
        /// The shape.
        shape: Vec<u64>,
        /// Its product.
        expected: usize,
        /// The elements found; where there are more than expected, the count stops at the first
        /// that is too many.
        found: usize,
    },
    /// A nested array's length differs from its dimension.
    #[error(
        "the nested data does not match dimension {dimension} of shape {shape:?}: expected {expected} items, found {found}"
    )]
    Nesting {
        /// The shape.
        shape: Vec<u64>,
        /// The dimension that does not match, from 0.
        dimension: usize,
        /// Its extent.
        expected: u64,
        /// The items found, counted as far as one too many.
        found: u64,
    },
    /// The data mixes arrays and elements, or is nested deeper than the shape.
    #[error("the data's nesting is neither flat nor that of shape {shape:?}")]
    MixedNesting {
        /// The shape.
        shape: Vec<u64>,
    },
    /// The data is not a JSON array.
    #[error("the data is not an array")]
    DataNotArray,
    /// An element is of another kind than the datatype asks for.
    #[error("element {index} is not a {datatype}")]
    ElementKind {
        /// Its index in row-major order.
        index: usize,
        /// What was expected.
        datatype: DataType,
    },
    /// A number is outside the datatype's range.
    #[error("element {index} is out of the range of {datatype}")]
    ElementRange {
        /// Its index in row-major order.
        index: usize,
        /// What was expected.
        datatype: DataType,
    },
    /// FP16 and BF16 have no JSON form.
    #[error("{datatype} has no JSON form, send it as binary data")]
    NeedsBinary {
        /// The type of the elements.
        datatype: DataType,
    },
    /// A byte of a BOOL tensor is neither 0 nor 1.
    #[error("byte {index} of a BOOL tensor is {value}, neither 0 nor 1")]
    NotABoolean {
        /// Its index.
        index: usize,
        /// Its value.
        value: u8,
    },
    /// A length prefix of a BYTES tensor points past the end of the data.
    #[error("BYTES element {index} ends {missing} bytes after the data does")]
    BytesTruncated {
        /// Its index.
        index: usize,
        /// The bytes that are missing.
        missing: usize,
    },
    /// A BYTES element is too long for its four-byte length.
    #[error("BYTES element {index} is longer than a 32-bit length can say")]
    BytesTooLong {
        /// Its index.
        index: usize,
    },
    /// The tensor holds another type than was asked for.
    #[error("the tensor holds {found}, not {expected}")]
    Datatype {
        /// What was asked for.
        expected: DataType,
        /// What it holds.
        found: DataType,
    },
    /// Neither `data` nor `binary_data_size`.
    #[error("there is neither `data` nor the parameter `binary_data_size`")]
    MissingData,
    /// Both `data` and `binary_data_size`.
    #[error("there are both `data` and the parameter `binary_data_size`")]
    DataTwice,
    /// `binary_data_size` is not a whole number of at least zero.
    #[error("`binary_data_size` is not a whole number of bytes")]
    BinarySizeInvalid,
    /// Binary data in a message that did not give the length of its JSON part.
    #[error("there is binary data but no Inference-Header-Content-Length")]
    MissingHeaderLength,
    /// The body ends before the tensor's binary data does.
    #[error("the binary data takes {size} bytes, the body has {remaining} left")]
    BinaryTruncated {
        /// What `binary_data_size` said.
        size: u64,
        /// The bytes left.
        remaining: usize,
    },
    /// The datatype is none of the protocol's.
    #[error(transparent)]
    UnknownDatatype(#[from] UnknownDatatype),
}

/// Why a body is not a message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The body is empty.
    #[error("the body is empty")]
    Empty,
    /// `Inference-Header-Content-Length` is larger than the body.
    #[error("Inference-Header-Content-Length says {header}, the body has {body} bytes")]
    HeaderLength {
        /// What the field says.
        header: usize,
        /// The body's length.
        body: usize,
    },
    /// The JSON part is not UTF-8.
    #[error("the JSON is not UTF-8 from byte {position}")]
    NotUtf8 {
        /// The first byte that is not.
        position: usize,
    },
    /// The JSON part is not JSON, or not of this message's form. The reason never quotes data.
    #[error("line {line}, column {column}: {reason}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser expected.
        reason: JsonReason,
    },
    /// More tensors than [`MAXIMUM_TENSORS`].
    #[error("there are {found} tensors, at most {MAXIMUM_TENSORS} are allowed")]
    TooManyTensors {
        /// How many there are.
        found: usize,
    },
    /// The tensors, or the requested outputs, have more parameters than
    /// [`MAXIMUM_LIST_PARAMETERS`].
    #[error(
        "the tensors have more than {MAXIMUM_LIST_PARAMETERS} parameters, which is the most for all together"
    )]
    TooManyParameters,
    /// Two tensors of one name.
    #[error("the tensor `{tensor}` is given twice")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A parameter of the binary extension is not a boolean.
    #[error("the parameter `{parameter}` is not a boolean")]
    NotABoolean {
        /// Its name.
        parameter: &'static str,
    },
    /// Bytes follow the last tensor's binary data.
    #[error("{bytes} bytes follow the last tensor")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// One tensor is malformed.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// Its name, cut to [`MAXIMUM_NAME_BYTES`].
        tensor: String,
        /// What is wrong with it.
        reason: TensorError,
    },
}

/// What kind of fault the JSON parser met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonReason {
    /// Not JSON.
    #[error("this is not JSON")]
    Syntax,
    /// JSON that ends too early.
    #[error("the JSON ends too early")]
    Truncated,
    /// JSON of another form: a field that is missing, given twice or of the wrong kind.
    #[error("a field is missing, given twice or of the wrong kind")]
    Form,
}

/// Why a message cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// NaN or an infinity, which JSON cannot say.
    #[error(
        "element {index} of `{tensor}` is not finite, which JSON cannot say: ask for binary data"
    )]
    NotFinite {
        /// The tensor's name.
        tensor: String,
        /// Its index in row-major order.
        index: usize,
    },
    /// FP16 and BF16 have no JSON form.
    #[error("`{tensor}` is {datatype}, which has no JSON form: ask for binary data")]
    NeedsBinary {
        /// The tensor's name.
        tensor: String,
        /// The type of its elements.
        datatype: DataType,
    },
    /// A BYTES element that is not UTF-8.
    #[error(
        "element {index} of `{tensor}` is not UTF-8, which JSON cannot say: ask for binary data"
    )]
    NotUtf8 {
        /// The tensor's name.
        tensor: String,
        /// Its index in row-major order.
        index: usize,
    },
    /// Whoever asked has no memory for the body.
    #[error("the body takes {bytes} bytes, for which there is no memory now")]
    NotAdmitted {
        /// Its length.
        bytes: usize,
    },
}
