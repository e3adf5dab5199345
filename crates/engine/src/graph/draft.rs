//! The main graph while it is rewritten.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use occlude_onnx::DataType;
use occlude_onnx::messages::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use zeroize::Zeroizing;

use super::normalise::is_sealed;
use super::{
    BLOCKED_DOMAIN, Layer, LayerKind, SEALED_DOMAIN, Source, Weight, attributes, order, wipe,
};

/// Older versions of ONNX's operators broadcast otherwise.
const LOWEST_OPSET: i64 = 7;

pub(super) struct Draft {
    /// In an order in which they can run.
    pub(super) nodes: Vec<NodeProto>,
    /// The constants whose values are known or sealed, by name.
    pub(super) constants: HashMap<String, Weight>,
    pub(super) inputs: Vec<ValueInfoProto>,
    pub(super) outputs: HashSet<String>,
    /// The version of ONNX's own operator set.
    pub(super) opset: i64,
    pub(super) names: Names,
    /// For now, what the attribute `layer` of each sealed operator counts.
    pub(super) layers: Vec<Layer>,
    /// The names of the model's own constants, in order.
    pub(super) constant_order: Vec<String>,
    functions: HashSet<(String, String)>,
    added: Vec<TensorProto>,
}

impl Draft {
    /// `None` where the graph cannot be followed: no order of its nodes, two values
    /// of one name, an operator set that is unknown or too old.
    pub(super) fn of(model: &ModelProto, weights: &[Weight]) -> Option<Self> {
        let graph = model.graph.as_ref()?;
        let mut own = model.opset_import.iter().filter(|set| is_onnx(&set.domain));
        let opset = own.next()?.version;
        if opset < LOWEST_OPSET || own.next().is_some() {
            return None;
        }
        let sealed = weights.iter().cloned();
        let inline = graph.initializer.iter().filter_map(inline_constant);
        let constants: HashMap<String, Weight> = sealed
            .chain(inline)
            .map(|weight| (weight.name.clone(), weight))
            .collect();
        let constant_order = graph.initializer.iter();
        let constant_order = constant_order.map(|tensor| tensor.name.clone()).collect();
        let mut nodes = graph.node.clone();
        if !order::sort(&mut nodes) {
            return None;
        }
        let mut draft = Self {
            nodes,
            constants,
            inputs: graph.input.clone(),
            outputs: graph
                .output
                .iter()
                .map(|value| value.name.clone())
                .collect(),
            opset,
            names: Names::of(graph),
            layers: Vec::new(),
            constant_order,
            functions: model
                .functions
                .iter()
                .map(|function| (function.domain.clone(), function.name.clone()))
                .collect(),
            added: Vec::new(),
        };
        if draft.has_ambiguous_names(graph) {
            return None;
        }
        draft.constant_nodes_to_initializers();
        Some(draft)
    }

    fn has_ambiguous_names(&self, graph: &GraphProto) -> bool {
        let mut constants = HashSet::new();
        let twice = graph
            .initializer
            .iter()
            .any(|tensor| tensor.name.is_empty() || !constants.insert(tensor.name.as_str()));
        let sparse = graph.sparse_initializer.iter();
        constants.extend(sparse.filter_map(|tensor| Some(tensor.values.as_ref()?.name.as_str())));
        constants.extend(graph.input.iter().map(|input| input.name.as_str()));
        let made = order::producers(&self.nodes);
        twice || made.keys().any(|name| constants.contains(name))
    }

    /// What is left of them holds little (see [`super::normalise`](mod@super::normalise)).
    fn constant_nodes_to_initializers(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        for node in nodes {
            let tensor = (self.is_standard(&node, "Constant") && !self.leaves(&node))
                .then(|| constant_tensor(&node))
                .flatten();
            let known = tensor.and_then(|tensor| Some((inline_constant(&tensor)?, tensor)));
            match known {
                Some((weight, tensor)) => {
                    self.constant_order.push(weight.name.clone());
                    self.add(weight, tensor);
                }
                None => self.nodes.push(node),
            }
        }
    }

    fn add(&mut self, weight: Weight, tensor: TensorProto) {
        self.constants.insert(weight.name.clone(), weight);
        self.added.push(tensor);
    }

    /// A new FP32 initializer; returns its name.
    pub(super) fn add_floats(&mut self, wanted: &str, dims: &[i64], values: &[f32]) -> String {
        let name = self.names.fresh(wanted);
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let tensor = TensorProto {
            name: name.clone(),
            data_type: DataType::Float.number(),
            dims: dims.to_vec(),
            raw_data: Some(bytes),
            ..TensorProto::default()
        };
        if let Some(weight) = inline_constant(&tensor) {
            self.add(weight, tensor);
        }
        name
    }

    /// Whether `node` is ONNX's own operator of this name.
    pub(super) fn is_standard(&self, node: &NodeProto, operator: &str) -> bool {
        node.op_type == operator && is_onnx(&node.domain) && !self.is_function(node)
    }

    /// Whether `node` calls a function of the model.
    pub(super) fn is_function(&self, node: &NodeProto) -> bool {
        !self.functions.is_empty()
            && self.functions.iter().any(|(domain, name)| {
                *name == node.op_type
                    && (*domain == node.domain || is_onnx(domain) && is_onnx(&node.domain))
            })
    }

    /// Whether a result of `node` leaves the graph.
    fn leaves(&self, node: &NodeProto) -> bool {
        node.output.iter().any(|name| self.outputs.contains(name))
    }

    pub(super) fn readers(&self) -> order::Readers {
        order::Readers::new(&self.nodes, &self.outputs)
    }

    /// The values of an FP32 constant in the skeleton.
    pub(super) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let weight = self.constants.get(name)?;
        match &weight.source {
            Source::Inline(bytes) if weight.data_type == DataType::Float => Some(floats(bytes)),
            _ => None,
        }
    }

    /// The value of an FP32 constant of one element.
    pub(super) fn scalar(&self, name: &str) -> Option<f32> {
        match self.floats(name)?.as_slice() {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// Writes the graph back. Constants that nothing reads any more go.
    pub(super) fn finish(
        self,
        model: &mut ModelProto,
        borrowed: &mut Vec<Weight>,
        layers: &mut Vec<Layer>,
    ) {
        let Some(graph) = model.graph.as_mut() else {
            return;
        };
        let read: HashSet<&str> = self.nodes.iter().flat_map(order::reads).collect();
        let used = |name: &str| read.contains(name) || self.outputs.contains(name);
        let gone: HashSet<&str> = self
            .constants
            .keys()
            .map(String::as_str)
            .filter(|name| !used(name))
            .collect();
        graph
            .input
            .retain(|value| !gone.contains(value.name.as_str()));
        graph.initializer.extend(self.added);
        graph
            .initializer
            .retain(|tensor| !gone.contains(tensor.name.as_str()));
        let whole: HashSet<&str> = self
            .layers
            .iter()
            .filter(|layer| layer.kind == LayerKind::Whole)
            .map(|layer| layer.weight.name.as_str())
            .collect();
        borrowed.retain(|weight| {
            !gone.contains(weight.name.as_str()) && !whole.contains(weight.name.as_str())
        });

        let made = order::producers(&self.nodes);
        graph
            .value_info
            .retain(|value| made.contains_key(value.name.as_str()));
        graph
            .quantization_annotation
            .retain(|annotation| made.contains_key(annotation.tensor_name.as_str()));
        for domain in [SEALED_DOMAIN, BLOCKED_DOMAIN] {
            if self.nodes.iter().any(|node| node.domain == domain) {
                import(&mut model.opset_import, domain);
            }
        }
        wipe::nodes(&mut graph.node);
        graph.node = self.nodes;
        *layers = self.layers;
    }
}

/// Adds an operator set of ours to those that the model uses.
pub(super) fn import(sets: &mut Vec<OperatorSetIdProto>, domain: &str) {
    sets.retain(|set| set.domain != domain);
    sets.push(OperatorSetIdProto {
        domain: domain.to_owned(),
        version: 1,
    });
}

pub(super) fn is_onnx(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// FP32 values from the bytes of `raw_data`.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

/// The values of a Constant node, named as its result.
fn constant_tensor(node: &NodeProto) -> Option<TensorProto> {
    let ([name], [attribute]) = (node.output.as_slice(), node.attribute.as_slice()) else {
        return None;
    };
    let count = |length: usize| i64::try_from(length).ok();
    let mut tensor = TensorProto::default();
    match attribute.name.as_str() {
        "value" => tensor = attribute.t.as_deref()?.clone(),
        "value_float" => {
            tensor.data_type = DataType::Float.number();
            tensor.float_data = vec![attributes::float(node, "value_float", 0.0)?];
        }
        "value_floats" => {
            tensor.data_type = DataType::Float.number();
            tensor.dims = vec![count(attribute.floats.len())?];
            tensor.float_data.clone_from(&attribute.floats);
        }
        "value_int" => {
            tensor.data_type = DataType::Int64.number();
            tensor.int64_data = vec![attributes::integer(node, "value_int", 0)?];
        }
        "value_ints" => {
            tensor.data_type = DataType::Int64.number();
            tensor.dims = vec![count(attribute.ints.len())?];
            tensor.int64_data.clone_from(&attribute.ints);
        }
        _ => return None,
    }
    tensor.name.clone_from(name);
    Some(tensor)
}

/// A tensor whose values stand in the message itself.
fn inline_constant(tensor: &TensorProto) -> Option<Weight> {
    if is_sealed(tensor) || tensor.segment.is_some() {
        return None;
    }
    let data_type = DataType::from_number(tensor.data_type)?;
    let extents: Option<Vec<u64>> = tensor
        .dims
        .iter()
        .map(|&extent| u64::try_from(extent).ok())
        .collect();
    let length = data_type.byte_length(&extents?)?;
    let bytes = Zeroizing::new(inline_bytes(tensor, data_type)?);
    (bytes.len() as u64 == length).then(|| Weight {
        name: tensor.name.clone(),
        data_type,
        dims: tensor.dims.clone(),
        source: Source::Inline(Arc::new(bytes)),
    })
}

fn inline_bytes(tensor: &TensorProto, data_type: DataType) -> Option<Vec<u8>> {
    if let Some(bytes) = tensor.raw_data.as_ref().filter(|bytes| !bytes.is_empty()) {
        return Some(bytes.clone());
    }
    let small = |width: usize| {
        let entries = tensor.int32_data.iter();
        entries
            .flat_map(|entry| entry.to_le_bytes()[..width].to_vec())
            .collect()
    };
    Some(match data_type {
        DataType::Float => little_endian(&tensor.float_data, f32::to_le_bytes),
        DataType::Double => little_endian(&tensor.double_data, f64::to_le_bytes),
        DataType::Int64 => little_endian(&tensor.int64_data, i64::to_le_bytes),
        DataType::Uint64 => little_endian(&tensor.uint64_data, u64::to_le_bytes),
        DataType::Uint32 => {
            little_endian(&tensor.uint64_data, |value| (value as u32).to_le_bytes())
        }
        DataType::Int32 => small(4),
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => small(2),
        DataType::Uint8 | DataType::Int8 | DataType::Bool => small(1),
        _ => return None,
    })
}

fn little_endian<T: Copy, const WIDTH: usize>(
    values: &[T],
    bytes: impl Fn(T) -> [u8; WIDTH],
) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

/// The names in use, so that new ones collide with none.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(HashSet<String>);

impl Names {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let mut names = Self::default();
        names.take(graph);
        names
    }

    fn take(&mut self, graph: &GraphProto) {
        let tensors = graph.initializer.iter().map(|tensor| &tensor.name);
        let values = graph
            .input
            .iter()
            .chain(&graph.output)
            .chain(&graph.value_info);
        let names = tensors.chain(values.map(|value| &value.name)).cloned();
        self.0.extend(names);
        for node in &graph.node {
            self.0.insert(node.name.clone());
            self.0
                .extend(node.input.iter().chain(&node.output).cloned());
            for attribute in &node.attribute {
                let inner = attribute.g.as_deref().into_iter().chain(&attribute.graphs);
                inner.for_each(|graph| self.take(graph));
            }
        }
    }

    /// `occlude/` and `wanted`, followed by a number if that name is taken.
    pub(super) fn fresh(&mut self, wanted: &str) -> String {
        let mut name = format!("occlude/{wanted}");
        let mut number = 2_u64;
        while !self.0.insert(name.clone()) {
            name = format!("occlude/{wanted}/{number}");
            number += 1;
        }
        name
    }
}
