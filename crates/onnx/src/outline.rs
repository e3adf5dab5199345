//! What sealing must know of a graph: operator sets and the order of first use.
//!
//! Decoded from a skeleton (a model without payloads) into a fraction of what the
//! full messages would take.

use std::collections::HashMap;

use prost::Message;

use crate::OnnxError;
use crate::messages::OperatorSetIdProto;

/// A model's operator sets and when each initializer is first used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The operator sets that the model imports, in its order.
    pub opset_import: Vec<OperatorSetIdProto>,
    /// For each initializer of the main graph that a node uses (in a subgraph too):
    /// the place of the first such node in the main graph, and of the input there.
    pub first_use: HashMap<String, (u64, u64)>,
    /// The names of the main graph's outputs, in its order.
    pub outputs: Vec<String>,
}

impl Outline {
    /// Decodes the outline of a model.
    ///
    /// # Errors
    /// [`OnnxError::NotAModel`] if the messages are not ONNX's or there is no graph;
    /// [`OnnxError::DuplicateInitializer`].
    pub fn decode(skeleton: &[u8]) -> Result<Self, OnnxError> {
        let not_a_model = |reason: String| OnnxError::NotAModel { reason };
        let model = Model::decode(skeleton).map_err(|error| not_a_model(error.to_string()))?;
        let graph = model
            .graph
            .ok_or_else(|| not_a_model("it has no graph".to_owned()))?;
        let mut unused = HashMap::new();
        for tensor in &graph.initializer {
            if unused.insert(tensor.name.as_str(), ()).is_some() {
                return Err(OnnxError::DuplicateInitializer {
                    name: tensor.name.clone(),
                });
            }
        }
        let mut first_use = HashMap::new();
        for (ordinal, node) in (0..).zip(&graph.node) {
            let mut input = 0;
            note_uses(node, ordinal, &mut input, &mut unused, &mut first_use);
        }
        Ok(Self {
            opset_import: model.opset_import,
            first_use,
            outputs: graph.output.into_iter().map(|value| value.name).collect(),
        })
    }
}

/// Moves names from `unused` to `first_use`. A subgraph's own value may carry the
/// name of an initializer outside; then the order is off by a little, no more.
fn note_uses(
    node: &Node,
    ordinal: u64,
    input: &mut u64,
    unused: &mut HashMap<&str, ()>,
    first_use: &mut HashMap<String, (u64, u64)>,
) {
    for name in &node.input {
        if unused.remove(name.as_str()).is_some() {
            first_use.insert(name.clone(), (ordinal, *input));
        }
        *input += 1;
    }
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            for nested in &graph.node {
                note_uses(nested, ordinal, input, unused, first_use);
            }
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Named>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(message, repeated, tag = "6")]
    g: Vec<Graph>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "8")]
    name: String,
}
