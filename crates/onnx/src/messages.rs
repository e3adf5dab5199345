//! The messages of `onnx.proto` (ONNX IR version 14), written by hand.
//!
//! Field numbers and names are those of the ONNX intermediate representation
//! (<https://github.com/onnx/onnx/blob/main/docs/IR.md> and `onnx/onnx.proto`).
//! Scalars whose absence means something (`f`, `i` and `s` of an attribute,
//! `raw_data` of a tensor) are optional, so that decoding and encoding again keeps
//! the meaning. Fields unknown here are lost by decoding: to change a model without
//! losing anything, use [`crate::splice`].

use prost::{Enumeration, Message, Oneof};

/// A whole model: metadata, operator sets and the main graph.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    /// The IR's version that the file was written for.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// The operator sets that the graph uses.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// The framework that made the model.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// That framework's version.
    #[prost(string, tag = "3")]
    pub producer_version: String,
    /// A reverse-DNS name for the model's namespace.
    #[prost(string, tag = "4")]
    pub domain: String,
    /// The model's own version.
    #[prost(int64, tag = "5")]
    pub model_version: i64,
    /// Documentation.
    #[prost(string, tag = "6")]
    pub doc_string: String,
    /// The main graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Named metadata.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// Training graphs.
    #[prost(message, repeated, tag = "20")]
    pub training_info: Vec<TrainingInfoProto>,
    /// Functions local to the model.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
    /// Devices for multi-device execution.
    #[prost(message, repeated, tag = "26")]
    pub configuration: Vec<DeviceConfigurationProto>,
}

/// A graph of operators.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// The operators, in topological order.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// The graph's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Constant tensors: mostly the weights.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Constant sparse tensors.
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
    /// Documentation.
    #[prost(string, tag = "10")]
    pub doc_string: String,
    /// The graph's inputs; older models list initializers here too.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// The graph's outputs.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// Types of values in between.
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
    /// Scales and zero points of values.
    #[prost(message, repeated, tag = "14")]
    pub quantization_annotation: Vec<TensorAnnotation>,
    /// Named metadata.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// One operator with its inputs, outputs and attributes.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    /// Names of the inputs; an empty name stands for one left out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the outputs.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// The node's name, for diagnostics.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The operator's name.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// The operator set that it comes from; empty for ONNX's own.
    #[prost(string, tag = "7")]
    pub domain: String,
    /// Which overload of a local function this is.
    #[prost(string, tag = "8")]
    pub overload: String,
    /// The attributes.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Documentation.
    #[prost(string, tag = "6")]
    pub doc_string: String,
    /// Named metadata.
    #[prost(message, repeated, tag = "9")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// Placement for multi-device execution.
    #[prost(message, repeated, tag = "10")]
    pub device_configurations: Vec<NodeDeviceConfigurationProto>,
}

/// A named attribute; `r#type` says which field holds the value.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    /// The attribute's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// In a function's body: the function's attribute that this one repeats.
    #[prost(string, tag = "21")]
    pub ref_attr_name: String,
    /// Documentation.
    #[prost(string, tag = "13")]
    pub doc_string: String,
    /// Which of the fields below is in use.
    #[prost(enumeration = "AttributeType", tag = "20")]
    pub r#type: i32,
    /// A number.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// An integer.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// A string, UTF-8 by convention.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    /// A tensor.
    #[prost(message, optional, boxed, tag = "5")]
    pub t: Option<Box<TensorProto>>,
    /// A subgraph.
    #[prost(message, optional, boxed, tag = "6")]
    pub g: Option<Box<GraphProto>>,
    /// A sparse tensor.
    #[prost(message, optional, boxed, tag = "22")]
    pub sparse_tensor: Option<Box<SparseTensorProto>>,
    /// A type.
    #[prost(message, optional, boxed, tag = "14")]
    pub tp: Option<Box<TypeProto>>,
    /// Numbers.
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub floats: Vec<f32>,
    /// Integers.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// Strings.
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub strings: Vec<Vec<u8>>,
    /// Tensors.
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<TensorProto>,
    /// Subgraphs.
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    /// Sparse tensors.
    #[prost(message, repeated, tag = "23")]
    pub sparse_tensors: Vec<SparseTensorProto>,
    /// Types.
    #[prost(message, repeated, tag = "15")]
    pub type_protos: Vec<TypeProto>,
}

/// Which field of an [`AttributeProto`] holds the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
#[expect(
    missing_docs,
    reason = "named as in onnx.proto; each names the field in use"
)]
pub enum AttributeType {
    Undefined = 0,
    Float = 1,
    Int = 2,
    String = 3,
    Tensor = 4,
    Graph = 5,
    SparseTensor = 11,
    TypeProto = 13,
    Floats = 6,
    Ints = 7,
    Strings = 8,
    Tensors = 9,
    Graphs = 10,
    SparseTensors = 12,
    TypeProtos = 14,
}

/// A tensor with its values, inline or elsewhere.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    /// The extents.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// The element type: a [`crate::DataType`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// For a tensor stored in parts: which part this is.
    #[prost(message, optional, tag = "3")]
    pub segment: Option<Segment>,
    /// Values of FLOAT and COMPLEX64.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// Values of INT32 and of everything of 16 bits or fewer.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Values of STRING.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub string_data: Vec<Vec<u8>>,
    /// Values of INT64.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// The tensor's name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Documentation.
    #[prost(string, tag = "12")]
    pub doc_string: String,
    /// Values of any type but STRING, little-endian, without gaps.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
    /// Where the values are if not here: `location`, `offset`, `length`, `checksum`.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// Whether `external_data` is in use.
    #[prost(enumeration = "DataLocation", tag = "14")]
    pub data_location: i32,
    /// Values of DOUBLE and COMPLEX128.
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// Values of UINT32 and UINT64.
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    /// Named metadata.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// One part of a tensor stored in parts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Segment {
    /// First element.
    #[prost(int64, tag = "1")]
    pub begin: i64,
    /// One past the last element.
    #[prost(int64, tag = "2")]
    pub end: i64,
}

/// Where a tensor's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum DataLocation {
    /// In the message itself.
    Default = 0,
    /// Where `external_data` says.
    External = 1,
}

/// A sparse tensor: values and their places.
#[derive(Clone, PartialEq, Message)]
pub struct SparseTensorProto {
    /// The values that are not zero.
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
    /// Where they are.
    #[prost(message, optional, tag = "2")]
    pub indices: Option<TensorProto>,
    /// The extents of the dense tensor.
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub dims: Vec<i64>,
}

/// A value's name and type.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    /// The value's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The value's type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    /// Documentation.
    #[prost(string, tag = "3")]
    pub doc_string: String,
    /// Named metadata.
    #[prost(message, repeated, tag = "4")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// The type of a value.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    /// Which kind of type, and its parameters.
    #[prost(oneof = "type_proto::Value", tags = "1, 4, 5, 7, 8, 9")]
    pub value: Option<type_proto::Value>,
    /// What the value means, by the standard denotations.
    #[prost(string, tag = "6")]
    pub denotation: String,
}

/// The kinds of types.
pub mod type_proto {
    use super::{Message, Oneof, TensorShapeProto, TypeProto};

    /// One kind of type.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Value {
        /// A dense tensor.
        #[prost(message, tag = "1")]
        TensorType(Tensor),
        /// A sequence of values of one type.
        #[prost(message, tag = "4")]
        SequenceType(Box<Sequence>),
        /// A map.
        #[prost(message, tag = "5")]
        MapType(Box<Map>),
        /// A type that only its domain knows.
        #[prost(message, tag = "7")]
        OpaqueType(Opaque),
        /// A sparse tensor.
        #[prost(message, tag = "8")]
        SparseTensorType(SparseTensor),
        /// A value that may be absent.
        #[prost(message, tag = "9")]
        OptionalType(Box<Optional>),
    }

    /// A dense tensor's type.
    #[derive(Clone, PartialEq, Message)]
    pub struct Tensor {
        /// The element type: a [`crate::DataType`].
        #[prost(int32, tag = "1")]
        pub elem_type: i32,
        /// The shape; absent when even the rank is unknown.
        #[prost(message, optional, tag = "2")]
        pub shape: Option<TensorShapeProto>,
    }

    /// A sequence's type.
    #[derive(Clone, PartialEq, Message)]
    pub struct Sequence {
        /// The elements' type.
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<TypeProto>>,
    }

    /// A map's type.
    #[derive(Clone, PartialEq, Message)]
    pub struct Map {
        /// The keys' type: an integral [`crate::DataType`] or STRING.
        #[prost(int32, tag = "1")]
        pub key_type: i32,
        /// The values' type.
        #[prost(message, optional, boxed, tag = "2")]
        pub value_type: Option<Box<TypeProto>>,
    }

    /// The type of a value that may be absent.
    #[derive(Clone, PartialEq, Message)]
    pub struct Optional {
        /// The value's type if it is there.
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<TypeProto>>,
    }

    /// A type that only its domain knows.
    #[derive(Clone, PartialEq, Eq, Hash, Message)]
    pub struct Opaque {
        /// The domain; empty for ONNX's own.
        #[prost(string, tag = "1")]
        pub domain: String,
        /// The type's name there.
        #[prost(string, tag = "2")]
        pub name: String,
    }

    /// A sparse tensor's type.
    #[derive(Clone, PartialEq, Message)]
    pub struct SparseTensor {
        /// The element type: a [`crate::DataType`].
        #[prost(int32, tag = "1")]
        pub elem_type: i32,
        /// The shape of the dense tensor.
        #[prost(message, optional, tag = "2")]
        pub shape: Option<TensorShapeProto>,
    }
}

/// A tensor's shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    /// The extents.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<tensor_shape_proto::Dimension>,
}

/// The parts of a shape.
pub mod tensor_shape_proto {
    use super::{Message, Oneof};

    /// One extent.
    #[derive(Clone, PartialEq, Message)]
    pub struct Dimension {
        /// A number or a name; absent when unknown.
        #[prost(oneof = "dimension::Value", tags = "1, 2")]
        pub value: Option<dimension::Value>,
        /// What the axis means, by the standard denotations.
        #[prost(string, tag = "3")]
        pub denotation: String,
    }

    /// The value of one extent.
    pub mod dimension {
        use super::Oneof;

        /// A number or a name.
        #[derive(Clone, PartialEq, Eq, Oneof)]
        pub enum Value {
            /// A fixed extent.
            #[prost(int64, tag = "1")]
            DimValue(i64),
            /// A name: equal names mean equal extents.
            #[prost(string, tag = "2")]
            DimParam(String),
        }
    }
}

/// A set of operators and its version.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct OperatorSetIdProto {
    /// The set's name; empty (or `ai.onnx`) for ONNX's own.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// The set's version.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct StringStringEntryProto {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Scale and zero point of a quantised value.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct TensorAnnotation {
    /// The value.
    #[prost(string, tag = "1")]
    pub tensor_name: String,
    /// Its parameters' names, by role.
    #[prost(message, repeated, tag = "2")]
    pub quant_parameter_tensor_names: Vec<StringStringEntryProto>,
}

/// An operator defined by a graph of others.
#[derive(Clone, PartialEq, Message)]
pub struct FunctionProto {
    /// The operator's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Names of the inputs.
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    /// Names of the outputs.
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    /// Names of the attributes without defaults.
    #[prost(string, repeated, tag = "6")]
    pub attribute: Vec<String>,
    /// The attributes with defaults.
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<AttributeProto>,
    /// The body.
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    /// Documentation.
    #[prost(string, tag = "8")]
    pub doc_string: String,
    /// The operator sets that the body uses.
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// The operator's domain.
    #[prost(string, tag = "10")]
    pub domain: String,
    /// Which overload this is.
    #[prost(string, tag = "13")]
    pub overload: String,
    /// Types of values in the body.
    #[prost(message, repeated, tag = "12")]
    pub value_info: Vec<ValueInfoProto>,
    /// Named metadata.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Graphs for training.
#[derive(Clone, PartialEq, Message)]
pub struct TrainingInfoProto {
    /// Sets the first values.
    #[prost(message, optional, tag = "1")]
    pub initialization: Option<GraphProto>,
    /// One training step.
    #[prost(message, optional, tag = "2")]
    pub algorithm: Option<GraphProto>,
    /// Which initializer each output of `initialization` sets.
    #[prost(message, repeated, tag = "3")]
    pub initialization_binding: Vec<StringStringEntryProto>,
    /// Which initializer each output of `algorithm` updates.
    #[prost(message, repeated, tag = "4")]
    pub update_binding: Vec<StringStringEntryProto>,
}

/// Devices that a model may be spread over.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct DeviceConfigurationProto {
    /// The configuration's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How many devices.
    #[prost(int32, tag = "2")]
    pub num_devices: i32,
    /// Their names.
    #[prost(string, repeated, tag = "3")]
    pub device: Vec<String>,
}

/// How one node is spread over devices.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct NodeDeviceConfigurationProto {
    /// The configuration meant.
    #[prost(string, tag = "1")]
    pub configuration_id: String,
    /// How its values are split.
    #[prost(message, repeated, tag = "2")]
    pub sharding_spec: Vec<ShardingSpecProto>,
    /// The stage of a pipeline.
    #[prost(int32, tag = "3")]
    pub pipeline_stage: i32,
}

/// How one value is split over devices.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ShardingSpecProto {
    /// The value.
    #[prost(string, tag = "1")]
    pub tensor_name: String,
    /// The devices.
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub device: Vec<i64>,
    /// Groups of devices.
    #[prost(message, repeated, tag = "3")]
    pub index_to_device_group_map: Vec<IntIntListEntryProto>,
    /// The axes that are split.
    #[prost(message, repeated, tag = "4")]
    pub sharded_dim: Vec<ShardedDimProto>,
}

/// A key and a list.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct IntIntListEntryProto {
    /// The key.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// The list.
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub value: Vec<i64>,
}

/// How one axis is split.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ShardedDimProto {
    /// The axis.
    #[prost(int64, tag = "1")]
    pub axis: i64,
    /// The splits, coarsest first.
    #[prost(message, repeated, tag = "2")]
    pub simple_sharding: Vec<SimpleShardedDimProto>,
}

/// One split of one axis.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct SimpleShardedDimProto {
    /// The extent that is split.
    #[prost(oneof = "simple_sharded_dim_proto::Dim", tags = "1, 2")]
    pub dim: Option<simple_sharded_dim_proto::Dim>,
    /// Into how many parts.
    #[prost(int64, tag = "3")]
    pub num_shards: i64,
}

/// The parts of a split.
pub mod simple_sharded_dim_proto {
    use super::Oneof;

    /// The extent that is split: a number or a name.
    #[derive(Clone, PartialEq, Eq, Hash, Oneof)]
    pub enum Dim {
        /// A fixed extent.
        #[prost(int64, tag = "1")]
        DimValue(i64),
        /// A named extent.
        #[prost(string, tag = "2")]
        DimParam(String),
    }
}
