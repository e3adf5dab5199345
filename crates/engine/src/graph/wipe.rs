//! Wipes the values that a decoded model holds.

use occlude_onnx::messages::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
};
use zeroize::Zeroize;

pub(super) fn model(model: &mut ModelProto) {
    model.graph.iter_mut().for_each(graph);
    for function in &mut model.functions {
        nodes(&mut function.node);
        function.attribute_proto.iter_mut().for_each(attribute);
    }
}

pub(super) fn nodes(nodes: &mut [NodeProto]) {
    let attributes = nodes.iter_mut().flat_map(|node| &mut node.attribute);
    attributes.for_each(attribute);
}

fn graph(graph: &mut GraphProto) {
    graph.initializer.iter_mut().for_each(tensor);
    graph.sparse_initializer.iter_mut().for_each(sparse);
    nodes(&mut graph.node);
}

fn attribute(attribute: &mut AttributeProto) {
    attribute.floats.zeroize();
    let tensors = attribute.t.as_deref_mut().into_iter();
    tensors.chain(&mut attribute.tensors).for_each(tensor);
    let sparses = attribute.sparse_tensor.as_deref_mut().into_iter();
    sparses
        .chain(&mut attribute.sparse_tensors)
        .for_each(sparse);
    let graphs = attribute.g.as_deref_mut().into_iter();
    graphs.chain(&mut attribute.graphs).for_each(graph);
}

fn sparse(sparse: &mut SparseTensorProto) {
    let parts = sparse.values.iter_mut().chain(&mut sparse.indices);
    parts.for_each(tensor);
}

fn tensor(tensor: &mut TensorProto) {
    tensor.raw_data.zeroize();
    tensor.float_data.zeroize();
    tensor.int32_data.zeroize();
    tensor.int64_data.zeroize();
    tensor.double_data.zeroize();
    tensor.uint64_data.zeroize();
    tensor.string_data.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::tensor_attribute;
    use crate::support::{floats, graph as graph_of, model as model_of, node, subgraph, with};

    #[test]
    fn values_are_wiped_wherever_they_stand() {
        let branch = graph_of(vec![], vec![], vec![], vec![floats("deep", &[1], &[7.0])]);
        let mut held = model_of(graph_of(
            vec![
                with(node("If", &["c"], &["y"]), subgraph("then_branch", branch)),
                with(
                    node("Constant", &[], &["k"]),
                    tensor_attribute("value", floats("k", &[1], &[7.0])),
                ),
            ],
            vec![],
            vec![],
            vec![floats("w", &[1], &[7.0])],
        ));
        model(&mut held);
        let main = held.graph.unwrap();
        let branch = main.node[0].attribute[0].g.as_deref().unwrap();
        let constant = main.node[1].attribute[0].t.as_deref().unwrap();
        for tensor in [&main.initializer[0], &branch.initializer[0], constant] {
            assert_eq!(tensor.raw_data, None);
        }
    }
}
