//! One node test as `scripts/node-tests.py` writes it: a model, its inputs, the
//! outputs that are expected, and how near to them is near enough.

use std::io::ErrorKind;
use std::path::Path;

use occlude_onnx::messages::{ModelProto, TensorProto, TypeProto, ValueInfoProto, type_proto};
use prost::Message;

use crate::Outcome;

/// A node test.
pub(crate) struct NodeTest {
    pub(crate) model: ModelProto,
    /// In the order of the model's inputs.
    pub(crate) inputs: Vec<Value>,
    /// In the order of the model's outputs.
    pub(crate) outputs: Vec<Value>,
    pub(crate) tolerance: Tolerance,
}

/// What an input or output holds.
#[derive(Clone)]
pub(crate) enum Value {
    Tensor(Box<TensorProto>),
    Sequence(Vec<Value>),
    Optional(Option<Box<Value>>),
}

/// How far numbers may be apart; see [`crate::comparison`].
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub(crate) struct Tolerance {
    #[serde(rename = "rtol")]
    pub(crate) relative: f64,
    #[serde(rename = "atol")]
    pub(crate) absolute: f64,
}

impl Default for Tolerance {
    /// What `onnx.backend.test` uses where a test says nothing else.
    fn default() -> Self {
        Self {
            relative: 1e-3,
            absolute: 1e-7,
        }
    }
}

impl NodeTest {
    pub(crate) fn read(folder: &Path) -> Outcome<Self> {
        let model = ModelProto::decode(std::fs::read(folder.join("model.onnx"))?.as_slice())?;
        let graph = model.graph.as_ref().ok_or("the model has no graph")?;
        let inputs = values(folder, "input", &graph.input)?;
        let outputs = values(folder, "output", &graph.output)?;
        let tolerance = match std::fs::read(folder.join("data.json")) {
            Ok(json) => serde_json::from_slice(&json)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Tolerance::default(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            model,
            inputs,
            outputs,
            tolerance,
        })
    }
}

fn values(folder: &Path, role: &str, declared: &[ValueInfoProto]) -> Outcome<Vec<Value>> {
    declared
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let file = folder.join(format!("test_data_set_0/{role}_{index}.pb"));
            let kind = value.r#type.as_ref().ok_or("a value has no type")?;
            Value::decode(kind, &std::fs::read(file)?)
        })
        .collect()
}

impl Value {
    fn tensor(tensor: TensorProto) -> Self {
        Self::Tensor(Box::new(tensor))
    }

    /// The type that is declared says which message the bytes are.
    fn decode(declared: &TypeProto, bytes: &[u8]) -> Outcome<Self> {
        Ok(match &declared.value {
            Some(type_proto::Value::TensorType(_)) => Self::tensor(TensorProto::decode(bytes)?),
            Some(type_proto::Value::SequenceType(_)) => SequenceProto::decode(bytes)?.into(),
            Some(type_proto::Value::OptionalType(_)) => {
                let optional = OptionalProto::decode(bytes)?;
                let value = match (optional.tensor_value, optional.sequence_value) {
                    (Some(tensor), _) => Some(Self::tensor(tensor)),
                    (None, Some(sequence)) => Some(sequence.into()),
                    (None, None) => None,
                };
                Self::Optional(value.map(Box::new))
            }
            _ => return Err("a value is no tensor, sequence or optional".into()),
        })
    }
}

/// `onnx-data.proto`, as far as node tests use it.
#[derive(Clone, PartialEq, Message)]
struct SequenceProto {
    #[prost(message, repeated, tag = "3")]
    tensor_values: Vec<TensorProto>,
}

impl From<SequenceProto> for Value {
    fn from(sequence: SequenceProto) -> Self {
        Self::Sequence(
            sequence
                .tensor_values
                .into_iter()
                .map(Self::tensor)
                .collect(),
        )
    }
}

/// As [`SequenceProto`].
#[derive(Clone, PartialEq, Message)]
struct OptionalProto {
    #[prost(message, optional, tag = "3")]
    tensor_value: Option<TensorProto>,
    #[prost(message, optional, tag = "5")]
    sequence_value: Option<SequenceProto>,
}
