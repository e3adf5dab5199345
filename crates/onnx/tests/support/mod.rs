//! Models for the tests, from messages or byte by byte.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use occlude_onnx::DataType;
use occlude_onnx::messages::{
    DataLocation, GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};

pub(crate) fn floats(name: &str, count: usize) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: DataType::Float.number(),
        dims: vec![count as i64],
        raw_data: Some((0..count * 4).map(|byte| byte as u8).collect()),
        ..Default::default()
    }
}

pub(crate) fn external_tensor(name: &str, record: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        raw_data: None,
        external_data: record
            .iter()
            .map(|(key, value)| StringStringEntryProto {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect(),
        data_location: DataLocation::External as i32,
        ..floats(name, 1)
    }
}

pub(crate) fn model_with(initializer: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            initializer,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A model whose only initializer has these bytes.
pub(crate) fn tensor_in_model(tensor: &[u8]) -> Vec<u8> {
    delimited(7, &delimited(5, tensor))
}

pub(crate) fn delimited(field: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = varint(field << 3 | 2);
    bytes.extend(varint(body.len() as u64));
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}
