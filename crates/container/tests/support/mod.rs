//! Models for the tests, built from the messages.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::path::{Path, PathBuf};

use occlude_container::{ChunkSize, Metadata, Progress, SealOptions, Sealed, seal_file};
use occlude_keys::OwnerKey;
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    AttributeProto, AttributeType, DataLocation, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};
use prost::Message;

pub(crate) fn key() -> OwnerKey {
    OwnerKey::from_secret(&std::array::from_fn(|index| index as u8 + 1))
}

pub(crate) fn other_key() -> OwnerKey {
    OwnerKey::from_secret(&[0x77; 64])
}

pub(crate) fn options() -> SealOptions {
    SealOptions {
        id: "test".parse().unwrap(),
        version: 1,
        chunk_size: ChunkSize::SMALLEST,
        metadata: Metadata::default(),
    }
}

pub(crate) fn quiet(_: Progress) {}

/// Bytes that repeat nowhere near.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn raw(name: &str, data_type: DataType, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: data_type.number(),
        dims: dims.to_vec(),
        raw_data: Some(bytes),
        ..Default::default()
    }
}

pub(crate) fn floats(name: &str, seed: u64, count: usize) -> TensorProto {
    raw(
        name,
        DataType::Float,
        &[count as i64],
        noise(seed, count * 4),
    )
}

pub(crate) fn external(
    name: &str,
    count: u64,
    location: &str,
    offset: u64,
    length: Option<u64>,
) -> TensorProto {
    let mut record = vec![
        pair("location", location),
        pair("offset", &offset.to_string()),
    ];
    record.extend(length.map(|length| pair("length", &length.to_string())));
    TensorProto {
        name: name.to_owned(),
        data_type: DataType::Float.number(),
        dims: vec![count as i64],
        external_data: record,
        data_location: DataLocation::External as i32,
        ..Default::default()
    }
}

fn pair(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

pub(crate) fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        name: format!("{operator}_{output}"),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

pub(crate) fn constant(output: &str, value: TensorProto) -> NodeProto {
    NodeProto {
        attribute: vec![AttributeProto {
            name: "value".to_owned(),
            r#type: AttributeType::Tensor as i32,
            t: Some(Box::new(value)),
            ..Default::default()
        }],
        ..node("Constant", &[], output)
    }
}

pub(crate) fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dimension = |&dim: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(dim)),
        ..Default::default()
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: DataType::Float.number(),
                shape: Some(TensorShapeProto {
                    dim: dims.iter().map(dimension).collect(),
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        ir_version: 10,
        producer_name: "occlude-tests".to_owned(),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            name: "graph".to_owned(),
            node,
            initializer,
            input: vec![value("x", &[1, 600])],
            output: vec![value("y", &[1, 600])],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Two weights, listed in the order opposite to their use, a bias too small to be
/// taken out, and a large constant.
pub(crate) fn small_model() -> ModelProto {
    let nodes = vec![
        node("Add", &["x", "first"], "a"),
        constant("c", floats("", 4, 600)),
        node("Mul", &["a", "c"], "b"),
        node("Add", &["b", "bias"], "d"),
        node("Add", &["d", "second"], "y"),
    ];
    let weights = vec![
        floats("second", 2, 600),
        floats("bias", 3, 1),
        floats("first", 1, 600),
    ];
    model(nodes, weights)
}

pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn write_model(&self, name: &str, model: &ModelProto) -> PathBuf {
        self.write(name, &model.encode_to_vec())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn seal(&self, model: &Path, name: &str) -> (PathBuf, Sealed) {
        let output = self.path(name);
        let sealed = seal_file(model, &output, &key(), &options(), &mut quiet).unwrap();
        (output, sealed)
    }
}

pub(crate) fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(std::fs::read(path).unwrap().as_slice()).unwrap()
}
