//! Decodes a skeleton and gives every constant one form.
//!
//! 1. Constants become initializers of the main graph: large Constant nodes, and
//!    weights inside subgraphs (If, Loop, Scan), whose values subgraphs may use from
//!    outside.
//! 2. What cannot be moved (tensors inside local functions, in attributes other than
//!    Constant's, and sparse tensors) is put into the skeleton itself, which is wiped
//!    after loading; ONNX Runtime then keeps its own copy.
//! 3. Each reference to a tensor is checked against the container's index, and each
//!    tensor's type and extents against its length. References elsewhere are refused:
//!    ONNX Runtime would read whatever file of the host's is named there.

use std::collections::{HashMap, HashSet};

use occlude_container::PAYLOAD_LOCATION;
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    AttributeProto, DataLocation, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TensorProto, type_proto,
};
use prost::Message;

use super::{BLOCKED_DOMAIN, SEALED_DOMAIN, SealedTensor, Source, Weight};
use crate::error::LoadError;

/// Since this version of the IR, initializers that are also inputs are defaults.
const FIRST_IR_VERSION_WITH_DEFAULTS: i64 = 4;

/// A decoded skeleton in the form described above.
pub(super) struct Normalised {
    /// Sealed initializers of its main graph still refer to the container.
    pub(super) model: ModelProto,
    /// Those initializers, in order.
    pub(super) weights: Vec<Weight>,
    /// The main graph's inputs and outputs whose rank the model leaves open.
    pub(super) unranked: HashSet<String>,
}

/// See [`super::Survey::of`].
pub(super) fn normalise(
    skeleton: &[u8],
    tensors: &HashMap<u64, SealedTensor>,
    read: &mut dyn FnMut(usize) -> Result<Vec<u8>, LoadError>,
) -> Result<Normalised, LoadError> {
    let mut model = ModelProto::decode(skeleton)
        .map_err(|error| LoadError::Skeleton(format!("it does not decode: {error}")))?;
    let mut graph = model
        .graph
        .take()
        .ok_or_else(|| LoadError::Skeleton("it has no graph".to_owned()))?;
    let unranked = unranked_values(&graph);

    if model.ir_version < FIRST_IR_VERSION_WITH_DEFAULTS {
        constants_are_no_inputs(&mut graph);
        model.ir_version = FIRST_IR_VERSION_WITH_DEFAULTS;
    }
    constant_nodes_to_initializers(&mut graph);
    let mut moved = Vec::new();
    for node in &mut graph.node {
        move_out_of_subgraphs(node, &mut moved);
    }
    graph.initializer.append(&mut moved);

    let mut weights = Vec::new();
    for initializer in &graph.initializer {
        if let Some(sealed) = sealed_tensor(initializer, tensors)? {
            weights.push(weight(initializer, sealed)?);
        }
    }

    // Training graphs never run here.
    model.training_info.clear();
    let mut inline = Inline { tensors, read };
    inline.graph_but_initializers(&mut graph)?;
    for function in &mut model.functions {
        inline.nodes(&mut function.node)?;
        inline.attributes(&mut function.attribute_proto)?;
    }
    model.graph = Some(graph);
    Ok(Normalised {
        model,
        weights,
        unranked,
    })
}

/// Refuses a model that brings nodes of the operator sets that the rewrite writes:
/// their attributes would point into our layers.
pub(super) fn refuse_own_operators(model: &ModelProto) -> Result<(), LoadError> {
    let main = model.graph.iter().flat_map(|graph| &graph.node);
    let functions = model.functions.iter().flat_map(|function| &function.node);
    if main.chain(functions).any(uses_own_operators) {
        return Err(LoadError::Skeleton(
            "it uses operators that are the engine's own".to_owned(),
        ));
    }
    Ok(())
}

fn uses_own_operators(node: &NodeProto) -> bool {
    let graphs = node
        .attribute
        .iter()
        .flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs));
    matches!(node.domain.as_str(), SEALED_DOMAIN | BLOCKED_DOMAIN)
        || graphs.flat_map(|graph| &graph.node).any(uses_own_operators)
}

/// Before IR version 4 every initializer was an input too and yet a constant.
/// Weights become inputs again later; the small ones shall stay constants.
fn constants_are_no_inputs(graph: &mut GraphProto) {
    let constants: HashSet<&str> = graph
        .initializer
        .iter()
        .map(|initializer| initializer.name.as_str())
        .collect();
    graph
        .input
        .retain(|input| !constants.contains(input.name.as_str()));
}

/// Large Constant nodes of one graph become initializers of that graph.
fn constant_nodes_to_initializers(graph: &mut GraphProto) {
    let initializers = &mut graph.initializer;
    graph.node.retain_mut(|node| {
        let Some(mut tensor) = take_sealed_constant(node) else {
            return true;
        };
        tensor.name = std::mem::take(&mut node.output[0]);
        initializers.push(tensor);
        false
    });
}

fn take_sealed_constant(node: &mut NodeProto) -> Option<TensorProto> {
    let is_constant = node.op_type == "Constant"
        && matches!(node.domain.as_str(), "" | "ai.onnx")
        && node.output.len() == 1;
    if !is_constant {
        return None;
    }
    let value = node
        .attribute
        .iter_mut()
        .find(|attribute| attribute.name == "value")?;
    value
        .t
        .take_if(|tensor| is_sealed(tensor))
        .map(|tensor| *tensor)
}

/// Moves the large initializers of `node`'s subgraphs, at any depth, to `moved`.
fn move_out_of_subgraphs(node: &mut NodeProto, moved: &mut Vec<TensorProto>) {
    for graph in subgraphs(node) {
        constant_nodes_to_initializers(graph);
        for inner in &mut graph.node {
            move_out_of_subgraphs(inner, moved);
        }
        let (leaving, staying) = std::mem::take(&mut graph.initializer)
            .into_iter()
            .partition(is_sealed);
        graph.initializer = staying;
        for tensor in leaving {
            move_to_main_graph(graph, tensor, moved);
        }
    }
}

fn move_to_main_graph(
    graph: &mut GraphProto,
    mut tensor: TensorProto,
    moved: &mut Vec<TensorProto>,
) {
    let old = std::mem::take(&mut tensor.name);
    // A default of a subgraph's input is never used: Loop and Scan feed each of them.
    if graph.input.iter().any(|input| input.name == old) {
        return;
    }
    let new = format!("occlude/moved/{}", moved.len());
    rename_uses(graph, &old, &new);
    graph.value_info.retain(|value| value.name != old);
    if graph.output.iter().any(|output| output.name == old) {
        // A subgraph may use an outer value, but not return it as it is.
        graph.node.push(NodeProto {
            op_type: "Identity".to_owned(),
            name: format!("{new}/returned"),
            input: vec![new.clone()],
            output: vec![old],
            ..NodeProto::default()
        });
    }
    tensor.name = new;
    moved.push(tensor);
}

/// Renames what nodes of `graph` read, also in its subgraphs, as far as these do
/// not define the name anew.
fn rename_uses(graph: &mut GraphProto, old: &str, new: &str) {
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|input| *input == old) {
            new.clone_into(input);
        }
        for inner in subgraphs(node) {
            if !defines(inner, old) {
                rename_uses(inner, old, new);
            }
        }
    }
}

fn defines(graph: &GraphProto, name: &str) -> bool {
    graph.input.iter().any(|input| input.name == name)
        || graph.initializer.iter().any(|tensor| tensor.name == name)
        || graph
            .node
            .iter()
            .any(|node| node.output.iter().any(|output| output == name))
}

fn subgraphs(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|attribute| {
        attribute
            .g
            .as_deref_mut()
            .into_iter()
            .chain(attribute.graphs.iter_mut())
    })
}

fn weight(tensor: &TensorProto, sealed: SealedTensor) -> Result<Weight, LoadError> {
    let disagrees = || {
        LoadError::Skeleton(format!(
            "a tensor of type {} and {} dimensions does not take {} bytes",
            tensor.data_type,
            tensor.dims.len(),
            sealed.length,
        ))
    };
    let data_type = DataType::from_number(tensor.data_type).ok_or_else(disagrees)?;
    let extents: Option<Vec<u64>> = tensor
        .dims
        .iter()
        .map(|&extent| u64::try_from(extent).ok())
        .collect();
    if extents.and_then(|extents| data_type.byte_length(&extents)) != Some(sealed.length) {
        return Err(disagrees());
    }
    Ok(Weight {
        name: tensor.name.clone(),
        data_type,
        dims: tensor.dims.clone(),
        source: Source::Sealed(sealed),
    })
}

pub(super) fn is_sealed(tensor: &TensorProto) -> bool {
    tensor.data_location == DataLocation::External as i32
        && entry(tensor, "location") == Some(PAYLOAD_LOCATION)
}

fn sealed_tensor(
    tensor: &TensorProto,
    tensors: &HashMap<u64, SealedTensor>,
) -> Result<Option<SealedTensor>, LoadError> {
    if !is_sealed(tensor) {
        // ONNX Runtime would read whatever file of the host's is named there.
        if tensor.data_location != DataLocation::Default as i32 {
            return Err(LoadError::Skeleton(
                "it refers to a file outside the container".to_owned(),
            ));
        }
        return Ok(None);
    }
    let number = |key| entry(tensor, key).and_then(|value| value.parse::<u64>().ok());
    number("offset")
        .and_then(|offset| tensors.get(&offset))
        .filter(|sealed| number("length") == Some(sealed.length))
        .copied()
        .map(Some)
        .ok_or_else(|| {
            LoadError::Skeleton("it refers to a tensor that the container's index lacks".to_owned())
        })
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    tensor
        .external_data
        .iter()
        .find(|entry| entry.key == key)
        .map(|entry| entry.value.as_str())
}

fn unranked_values(graph: &GraphProto) -> HashSet<String> {
    graph
        .input
        .iter()
        .chain(&graph.output)
        .filter(|value| {
            let kind = value.r#type.as_ref().and_then(|kind| kind.value.as_ref());
            matches!(kind, Some(type_proto::Value::TensorType(tensor)) if tensor.shape.is_none())
        })
        .map(|value| value.name.clone())
        .collect()
}

/// Puts the values of the tensors that could not be moved into the skeleton.
struct Inline<'a> {
    tensors: &'a HashMap<u64, SealedTensor>,
    read: &'a mut dyn FnMut(usize) -> Result<Vec<u8>, LoadError>,
}

impl Inline<'_> {
    fn graph_but_initializers(&mut self, graph: &mut GraphProto) -> Result<(), LoadError> {
        for sparse in &mut graph.sparse_initializer {
            self.sparse(sparse)?;
        }
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), LoadError> {
        nodes
            .iter_mut()
            .try_for_each(|node| self.attributes(&mut node.attribute))
    }

    fn attributes(&mut self, attributes: &mut [AttributeProto]) -> Result<(), LoadError> {
        for attribute in attributes {
            for tensor in attribute
                .t
                .as_deref_mut()
                .into_iter()
                .chain(&mut attribute.tensors)
            {
                self.tensor(tensor)?;
            }
            let sparse = attribute.sparse_tensor.as_deref_mut().into_iter();
            for tensor in sparse.chain(&mut attribute.sparse_tensors) {
                self.sparse(tensor)?;
            }
            for graph in attribute
                .g
                .as_deref_mut()
                .into_iter()
                .chain(&mut attribute.graphs)
            {
                for tensor in &mut graph.initializer {
                    self.tensor(tensor)?;
                }
                self.graph_but_initializers(graph)?;
            }
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: &mut SparseTensorProto) -> Result<(), LoadError> {
        sparse
            .values
            .iter_mut()
            .chain(&mut sparse.indices)
            .try_for_each(|tensor| self.tensor(tensor))
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), LoadError> {
        if let Some(sealed) = sealed_tensor(tensor, self.tensors)? {
            tensor.raw_data = Some((self.read)(sealed.index)?);
            tensor.external_data.clear();
            tensor.data_location = DataLocation::Default as i32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
