//! What the rewrite makes of a graph: which nodes become layers, what is folded into them,
//! where values are blocked and when whole weights are opened. What must hold is said by
//! the ONNX operators' definitions; that answers stay the same is tested in `tests/`.

use occlude_onnx::DataType;
use occlude_onnx::messages::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use prost::Message;

use super::*;
use crate::loading::survey;
use crate::support::{floats, graph, model, opened, pattern, value};

mod chain;
mod finding;
mod folding;
mod layout;
mod opening;

/// A model as it is rewritten with every layer streamed.
struct Rewritten {
    survey: Survey,
    model: ModelProto,
}

fn rewritten(model: &ModelProto, block: Option<usize>) -> Rewritten {
    let options = RewriteOptions {
        sealed_operators: true,
        block,
        smallest_streamed: 1024,
    };
    let survey = survey(&opened(model), &options).unwrap();
    let emitted = survey.emit(&|_| false).unwrap();
    let model = ModelProto::decode(emitted.model.as_slice()).unwrap();
    Rewritten { survey, model }
}

/// Without blocked layout.
fn rewrite(graph: GraphProto) -> Rewritten {
    rewritten(&model(graph), None)
}

impl Rewritten {
    fn nodes(&self) -> &[NodeProto] {
        &self.model.graph.as_ref().unwrap().node
    }

    /// The operators in their order.
    fn operators(&self) -> Vec<&str> {
        let nodes = self.nodes().iter();
        nodes.map(|node| node.op_type.as_str()).collect()
    }

    /// The only node of this operator.
    fn node(&self, operator: &str) -> &NodeProto {
        let mut nodes = self.nodes().iter();
        let node = nodes.find(|node| node.op_type == operator);
        assert!(nodes.all(|node| node.op_type != operator), "two {operator}");
        node.unwrap_or_else(|| panic!("no {operator} in {:?}", self.operators()))
    }

    fn layers(&self) -> &[Layer] {
        self.survey.layers()
    }

    fn convolution(&self) -> &Convolution {
        match self.layers() {
            [
                Layer {
                    kind: LayerKind::Convolution(convolution),
                    ..
                },
            ] => convolution,
            other => panic!("{other:?}"),
        }
    }

    fn gemm(&self) -> &Gemm {
        match self.layers() {
            [
                Layer {
                    kind: LayerKind::Gemm(gemm),
                    ..
                },
            ] => gemm,
            other => panic!("{other:?}"),
        }
    }

    /// Names of the weights that stay resident whatever the budget is.
    fn resident(&self) -> Vec<&str> {
        let borrowed = self.survey.borrowed().iter();
        borrowed.map(|weight| weight.name.as_str()).collect()
    }

    fn whole(&self) -> Vec<&str> {
        let whole = |layer: &&Layer| layer.kind == LayerKind::Whole;
        let layers = self.layers().iter().filter(whole);
        layers.map(|layer| layer.name.as_str()).collect()
    }
}

fn integer_of(node: &NodeProto, name: &str) -> i64 {
    attributes::integer(node, name, 0).unwrap()
}

/// An attribute of one number for each step of a chain, or for an operator alone.
fn integers_of(node: &NodeProto, name: &str) -> Vec<i64> {
    let attribute = node
        .attribute
        .iter()
        .find(|attribute| attribute.name == name);
    let attribute = attribute.unwrap();
    let alone = attribute.i.into_iter();
    alone.chain(attribute.ints.iter().copied()).collect()
}

fn float(name: &str, dims: &[i64]) -> ValueInfoProto {
    value(name, DataType::Float, dims)
}

/// A weight with numbers that differ.
fn weight(name: &str, dims: &[i64]) -> TensorProto {
    let count: i64 = dims.iter().product();
    floats(name, dims, &pattern(count as usize))
}

/// `nodes` from `x` to `y`, both of this shape.
fn from_x_to_y(dims: &[i64], nodes: Vec<NodeProto>, weights: Vec<TensorProto>) -> GraphProto {
    graph(
        nodes,
        vec![float("x", dims)],
        vec![float("y", dims)],
        weights,
    )
}
