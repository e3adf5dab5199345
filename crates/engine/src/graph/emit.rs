//! Writes the model that ONNX Runtime gets.
//!
//! Guaranteed for every weight that ONNX Runtime borrows: it is an initializer of
//! the main graph *and* one of the main graph's inputs. Since version 4 of the ONNX
//! IR such an initializer is only a default that a caller may override, so no
//! optimizer of ONNX Runtime may treat it as a constant: none reads the zeros
//! that stand in for it here, folds it, lays it out anew or drops it. (Nobody can
//! override it in fact: [`crate::Model::run`] takes the model's own inputs only.)
//!
//! A streamed weight that an operator of ONNX Runtime reads is opened right before
//! and wiped right after it: OpenedWeight waits for what the operator waits for
//! anyway, and whatever follows the operator waits for WipedAfter.

use std::collections::{HashMap, HashSet};

use occlude_onnx::DataType;
use occlude_onnx::messages::{
    GraphProto, NodeProto, StringStringEntryProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use prost::Message;
use zeroize::Zeroizing;

use super::draft::{Names, import, is_onnx};
use super::normalise::is_sealed;
use super::order::{self, Readers};
use super::{BLOCKED_DOMAIN, Layer, LayerKind, SEALED_DOMAIN, Survey, Weight, attributes, wipe};
use crate::error::LoadError;

/// The file of zeros that stands in for every weight that is borrowed.
pub(crate) const ZEROS_FILE_NAME: &str = "zeros";

/// A model for ONNX Runtime.
pub(crate) struct Emitted {
    /// The encoded model, without the values of `weights` and of layers.
    pub(crate) model: Zeroizing<Vec<u8>>,
    /// The weights to borrow, in the order of the main graph's initializers. Their
    /// sources are sealed.
    pub(crate) weights: Vec<Weight>,
}

impl Survey {
    /// The model in which the layers of kind [`LayerKind::Whole`] that `resident`
    /// holds for are borrowed, and the others opened for each run. `resident` is
    /// asked for no other layer.
    ///
    /// # Errors
    /// [`LoadError::Skeleton`] if opening weights in time would need a cycle, which
    /// no graph of a survey gives.
    pub(crate) fn emit(&self, resident: &dyn Fn(usize) -> bool) -> Result<Emitted, LoadError> {
        self.emit_with(resident, true)
    }

    /// [`Self::emit`], and whether `WipedAfter` follows each operator that reads an
    /// opened weight: ONNX Runtime must infer the type of what it hands on, which it
    /// cannot where the rank is open.
    pub(crate) fn emit_with(
        &self,
        resident: &dyn Fn(usize) -> bool,
        wiped: bool,
    ) -> Result<Emitted, LoadError> {
        // Where waiting for the first reader of a result would make a cycle, a weight is
        // opened earlier than it must be.
        self.emit_ordered(resident, wiped, true)
            .or_else(|_| self.emit_ordered(resident, wiped, false))
    }

    fn emit_ordered(
        &self,
        resident: &dyn Fn(usize) -> bool,
        wiped: bool,
        patient: bool,
    ) -> Result<Emitted, LoadError> {
        let mut model = self.model.clone();
        let mut weights: HashMap<&str, &Weight> = self
            .borrowed
            .iter()
            .map(|weight| (weight.name.as_str(), weight))
            .collect();
        let mut streamed = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            if layer.kind == LayerKind::Whole {
                if resident(index) {
                    weights.insert(&layer.weight.name, &layer.weight);
                } else {
                    streamed.push((index, layer));
                }
            }
        }
        let graph = model.graph.get_or_insert_default();
        if !streamed.is_empty() {
            open_in_time(graph, &streamed, wiped, patient)?;
            import(&mut model.opset_import, SEALED_DOMAIN);
        }

        let mut borrowed = Vec::new();
        for initializer in graph
            .initializer
            .iter_mut()
            .filter(|tensor| is_sealed(tensor))
        {
            if let Some(&weight) = weights.get(initializer.name.as_str()) {
                initializer.external_data = zeros(weight.length());
                borrowed.push(weight.clone());
            }
        }
        declare_as_inputs(graph, &borrowed);
        let encoded = Zeroizing::new(model.encode_to_vec());
        wipe::model(&mut model);
        Ok(Emitted {
            model: encoded,
            weights: borrowed,
        })
    }
}

/// Puts OpenedWeight before and WipedAfter behind every node that reads one of
/// `streamed`, which are then no initializers any more.
fn open_in_time(
    graph: &mut GraphProto,
    streamed: &[(usize, &Layer)],
    wiped: bool,
    patient: bool,
) -> Result<(), LoadError> {
    let mut names = Names::of(graph);
    let order = {
        let constants = constants(graph);
        let outputs = graph
            .output
            .iter()
            .map(|value| value.name.clone())
            .collect();
        let readers = Readers::new(&graph.node, &outputs);
        let order = Order {
            graph,
            producers: order::producers(&graph.node),
            readers: &readers,
            constants,
        };
        let mut opened: Vec<Vec<Opened>> = vec![Vec::new(); graph.node.len()];
        for &(layer, Layer { weight, .. }) in streamed {
            let mut nodes: Vec<usize> = readers.of(&weight.name).iter().map(|r| r.node).collect();
            nodes.dedup();
            for node in nodes {
                opened[node].push(Opened {
                    layer,
                    name: weight.name.clone(),
                    after: order.ready_before(node, patient),
                    result: order.result_to_hold(node),
                });
            }
        }
        opened
    };

    let gone: HashSet<&str> = streamed
        .iter()
        .map(|(_, layer)| layer.weight.name.as_str())
        .collect();
    let types: HashMap<&str, &Weight> = streamed
        .iter()
        .map(|(_, layer)| (layer.weight.name.as_str(), &layer.weight))
        .collect();
    let mut nodes = Vec::with_capacity(graph.node.len() + 2 * streamed.len());
    for (mut node, opened) in std::mem::take(&mut graph.node).into_iter().zip(order) {
        let mut behind = Vec::new();
        for Opened {
            layer,
            name,
            after,
            result,
        } in opened
        {
            let weight = names.fresh(&format!("opened/{name}"));
            let mut open = sealed_node("OpenedWeight", weight.clone());
            open.input.extend(after);
            open.output = vec![weight.clone()];
            open.attribute = vec![attributes::of_integer("layer", layer as i64)];
            nodes.push(open);
            for input in node.input.iter_mut().filter(|input| **input == name) {
                input.clone_from(&weight);
            }
            if let Some(like) = types.get(name.as_str()) {
                graph.value_info.push(ValueInfoProto {
                    name: weight.clone(),
                    r#type: Some(tensor_type(like.data_type, &like.dims)),
                    ..ValueInfoProto::default()
                });
            }
            if !wiped {
                continue;
            }
            let held = names.fresh(&format!("held/{}", node.output[result]));
            let mut wipe = sealed_node("WipedAfter", names.fresh(&format!("wiped/{name}")));
            wipe.input = vec![held.clone(), weight];
            wipe.output = vec![std::mem::replace(&mut node.output[result], held)];
            behind.push(wipe);
        }
        nodes.push(node);
        // The last holds what the node made, each other what a later one made.
        nodes.extend(behind.into_iter().rev());
    }
    graph.node = nodes;
    if !order::sort(&mut graph.node) {
        return Err(LoadError::Skeleton(
            "its weights cannot be opened in time".to_owned(),
        ));
    }
    graph
        .input
        .retain(|input| !gone.contains(input.name.as_str()));
    graph
        .initializer
        .retain(|tensor| !gone.contains(tensor.name.as_str()));
    Ok(())
}

/// One opening of one weight, for one node.
#[derive(Clone)]
struct Opened {
    layer: usize,
    name: String,
    after: Option<String>,
    /// Which of the node's results WipedAfter hands on.
    result: usize,
}

fn sealed_node(operator: &str, name: String) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        domain: SEALED_DOMAIN.to_owned(),
        name,
        ..NodeProto::default()
    }
}

/// When things are ready.
struct Order<'a> {
    graph: &'a GraphProto,
    producers: HashMap<&'a str, usize>,
    readers: &'a Readers,
    constants: HashSet<&'a str>,
}

impl Order<'_> {
    /// The tensor that is ready last among those that `node` waits for. A node that
    /// reads constants only could run long before its result is needed: it waits for
    /// what the first reader of its result waits for, if it is `patient`.
    fn ready_before(&self, node: usize, patient: bool) -> Option<String> {
        let own = self.last_input(node, node);
        if own.is_some() || !patient {
            return own;
        }
        own.or_else(|| {
            let results = self.graph.node[node].output.iter();
            let readers = results.flat_map(|name| self.readers.of(name));
            let first = readers.map(|reader| reader.node).min()?;
            self.last_input(first, node)
        })
    }

    /// The latest tensor that `node` reads and `not_from` does not make.
    fn last_input(&self, node: usize, not_from: usize) -> Option<String> {
        let inputs = self.graph.node[node].input.iter();
        let tensors = inputs.filter(|name| {
            let maker = self.producers.get(name.as_str());
            // Two nodes that read constants only must not wait for each other.
            let waits = maker.is_none_or(|&maker| {
                maker != not_from && self.graph.node[maker].input.iter().any(|i| self.varies(i))
            });
            waits && self.is_tensor(name)
        });
        tensors
            .max_by_key(|name| self.producers.get(name.as_str()).map(|&index| index + 1))
            .cloned()
    }

    fn varies(&self, name: &str) -> bool {
        !name.is_empty() && !self.constants.contains(name)
    }

    /// Whether `name` is surely a tensor, and no constant.
    fn is_tensor(&self, name: &str) -> bool {
        if !self.varies(name) {
            return false;
        }
        if let Some(&maker) = self.producers.get(name) {
            let maker = &self.graph.node[maker];
            return matches!(maker.domain.as_str(), SEALED_DOMAIN | BLOCKED_DOMAIN)
                || is_onnx(&maker.domain) && !MAY_MAKE_NO_TENSOR.contains(&maker.op_type.as_str());
        }
        self.graph
            .input
            .iter()
            .any(|input| input.name == name && is_tensor_input(input))
    }

    /// The result of `node` that WipedAfter hands on: one that is read.
    fn result_to_hold(&self, node: usize) -> usize {
        let results = &self.graph.node[node].output;
        let named = |name: &String| !name.is_empty();
        results
            .iter()
            .position(|name| {
                named(name) && (self.readers.leaves(name) || !self.readers.of(name).is_empty())
            })
            .or_else(|| results.iter().position(named))
            .unwrap_or(0)
    }
}

/// ONNX's own operators whose results are, or may be, sequences and optionals.
pub(super) const MAY_MAKE_NO_TENSOR: &[&str] = &[
    "Identity",
    "If",
    "Loop",
    "Optional",
    "OptionalGetElement",
    "Scan",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
];

fn is_tensor_input(input: &ValueInfoProto) -> bool {
    let kind = input.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    matches!(
        kind,
        Some(type_proto::Value::TensorType(tensor)) if tensor.elem_type != DataType::String.number()
    )
}

fn constants(graph: &GraphProto) -> HashSet<&str> {
    let tensors = graph.initializer.iter().map(|tensor| tensor.name.as_str());
    let sparse = graph.sparse_initializer.iter();
    tensors
        .chain(sparse.filter_map(|tensor| Some(tensor.values.as_ref()?.name.as_str())))
        .collect()
}

fn declare_as_inputs(graph: &mut GraphProto, weights: &[Weight]) {
    let declared: HashSet<String> = graph.input.iter().map(|input| input.name.clone()).collect();
    let missing = weights
        .iter()
        .filter(|weight| !declared.contains(&weight.name));
    graph.input.extend(missing.map(|weight| ValueInfoProto {
        name: weight.name.clone(),
        r#type: Some(tensor_type(weight.data_type, &weight.dims)),
        ..ValueInfoProto::default()
    }));
}

fn tensor_type(data_type: DataType, dims: &[i64]) -> TypeProto {
    let dim = dims
        .iter()
        .map(|&extent| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(extent)),
            ..Default::default()
        })
        .collect();
    TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: data_type.number(),
            shape: Some(TensorShapeProto { dim }),
        })),
        ..TypeProto::default()
    }
}

/// Every weight points at the same zeros: its own place in the plaintext is of no
/// use to ONNX Runtime.
fn zeros(length: u64) -> Vec<StringStringEntryProto> {
    [
        ("location", ZEROS_FILE_NAME.to_owned()),
        ("offset", "0".to_owned()),
        ("length", length.to_string()),
    ]
    .map(|(key, value)| StringStringEntryProto {
        key: key.to_owned(),
        value,
    })
    .into()
}
