//! Which convolutions are one node.

use super::*;
use crate::support::{node, subgraph, with};

const SHAPE: [i64; 4] = [1, 32, 8, 8];

const CHAIN: &str = "SealedConvolutions";
const ALONE: &str = "SealedConvolution";

/// A graph from `x` to `outputs`, all of this shape, with the weights `w0` to `w3` of 1 x 1
/// convolutions, the biases `b0` and `b1` and the number `high`.
fn graph_of(nodes: Vec<NodeProto>, outputs: &[&str]) -> GraphProto {
    let kernels = (0..4).map(|index| weight(&format!("w{index}"), &[32, 32, 1, 1]));
    let biases = (0..2).map(|index| weight(&format!("b{index}"), &[32]));
    graph(
        nodes,
        vec![float("x", &SHAPE)],
        outputs.iter().map(|name| float(name, &SHAPE)).collect(),
        kernels
            .chain(biases)
            .chain([floats("high", &[], &[6.0])])
            .collect(),
    )
}

fn chained(nodes: Vec<NodeProto>, outputs: &[&str]) -> Rewritten {
    rewrite(graph_of(nodes, outputs))
}

fn conv(from: &str, weight: &str, to: &str) -> NodeProto {
    node("Conv", &[from, weight], &[to])
}

fn floats_of<'a>(node: &'a NodeProto, name: &str) -> &'a [f32] {
    let mut attributes = node.attribute.iter();
    &attributes
        .find(|attribute| attribute.name == name)
        .unwrap()
        .floats
}

#[test]
fn convolutions_that_only_the_next_one_reads_are_one() {
    let nodes = vec![
        node("Conv", &["x", "w0", "b0"], &["a"]),
        node("Relu", &["a"], &["b"]),
        conv("b", "w1", "c"),
        node("Conv", &["c", "w2", "b1"], &["d"]),
        node("Clip", &["d", "", "high"], &["y"]),
    ];
    let rewritten = chained(nodes, &["y"]);
    assert_eq!(rewritten.operators(), [CHAIN]);
    let chain = rewritten.node(CHAIN);
    assert_eq!(chain.input, ["x", "b0", "b1"]);
    assert_eq!(chain.output, ["y"]);
    assert_eq!(integers_of(chain, "layer"), [0, 1, 2]);
    assert_eq!(integers_of(chain, "source"), [0, 1, 2]);
    assert_eq!(integers_of(chain, "residual"), [-1; 3]);
    assert_eq!(integers_of(chain, "bias"), [1, -1, 2]);
    assert_eq!(integers_of(chain, "activation"), [1, 0, 2]);
    assert_eq!(floats_of(chain, "maximum")[2], 6.0);
}

#[test]
fn results_and_the_image_are_added_within_a_chain() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        node("Add", &["b", "a"], &["c"]),
        conv("c", "w2", "d"),
        node("Add", &["x", "d"], &["y"]),
    ];
    let rewritten = chained(nodes, &["y"]);
    assert_eq!(rewritten.operators(), [CHAIN]);
    let chain = rewritten.node(CHAIN);
    assert_eq!(integers_of(chain, "source"), [0, 1, 2]);
    assert_eq!(integers_of(chain, "residual"), [-1, 1, 0]);
}

#[test]
fn branches_that_join_again_are_one() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        conv("a", "w2", "c"),
        node("Add", &["b", "c"], &["d"]),
        conv("d", "w3", "y"),
    ];
    let rewritten = chained(nodes, &["y"]);
    assert_eq!(rewritten.operators(), [CHAIN]);
    let chain = rewritten.node(CHAIN);
    assert_eq!(integers_of(chain, "source"), [0, 1, 1, 3]);
    assert_eq!(integers_of(chain, "residual"), [-1, -1, 2, -1]);
}

#[test]
fn a_convolution_alone_is_no_chain() {
    assert_eq!(
        chained(vec![conv("x", "w0", "y")], &["y"]).operators(),
        [ALONE]
    );
}

#[test]
fn a_result_that_others_read_ends_a_chain() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        node("Softmax", &["b"], &["z"]),
        conv("b", "w2", "c"),
        conv("c", "w3", "y"),
    ];
    let rewritten = chained(nodes, &["y", "z"]);
    assert_eq!(rewritten.operators(), [CHAIN, "Softmax", CHAIN]);
    let nodes = rewritten.nodes();
    assert_eq!(
        (&*nodes[0].input, &*nodes[0].output),
        (&["x".to_owned()][..], &["b".to_owned()][..])
    );
    assert_eq!(nodes[2].input, ["b"]);
    assert_eq!(integers_of(&nodes[2], "source"), [0, 1]);
}

#[test]
fn what_others_read_from_within_is_never_inside() {
    // The second result cannot be inside, nor the first, which the last one adds.
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        node("Sigmoid", &["b"], &["s"]),
        conv("s", "w2", "c"),
        node("Add", &["c", "a"], &["y"]),
    ];
    let rewritten = chained(nodes, &["y"]);
    assert_eq!(rewritten.operators(), [ALONE, ALONE, "Sigmoid", ALONE]);
}

#[test]
fn a_branch_that_ends_elsewhere_does_not_end_another() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("x", "w1", "side"),
        conv("a", "w2", "b"),
        node("Sigmoid", &["side"], &["z"]),
        conv("b", "w3", "y"),
    ];
    let rewritten = chained(nodes, &["y", "z"]);
    assert_eq!(rewritten.operators(), [ALONE, "Sigmoid", CHAIN]);
    assert_eq!(integers_of(rewritten.node(CHAIN), "source"), [0, 1, 2]);
}

#[test]
fn a_result_that_leaves_the_graph_ends_a_chain() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        conv("b", "w2", "y"),
    ];
    let rewritten = chained(nodes, &["y", "b"]);
    assert_eq!(rewritten.operators(), [CHAIN, ALONE]);
    assert_eq!(rewritten.node(CHAIN).output, ["b"]);
}

#[test]
fn a_result_that_a_subgraph_reads_ends_a_chain() {
    let branch = |name: &str| {
        let mut branch = graph(
            vec![node("Relu", &["b"], &["result"])],
            vec![],
            vec![float("result", &SHAPE)],
            vec![],
        );
        branch.name = name.to_owned();
        branch
    };
    let choice = node("If", &["condition"], &["z"]);
    let choice = with(choice, subgraph("then_branch", branch("then")));
    let choice = with(choice, subgraph("else_branch", branch("else")));
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        choice,
        conv("b", "w2", "y"),
    ];
    let mut graph = graph_of(nodes, &["y", "z"]);
    graph.input.push(value("condition", DataType::Bool, &[]));
    assert_eq!(rewrite(graph).operators(), [CHAIN, "If", ALONE]);
}

#[test]
fn a_result_that_nobody_reads_is_in_no_chain() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "dead"),
        conv("a", "w2", "y"),
    ];
    // The first result has a reader outside of a chain then.
    assert_eq!(chained(nodes, &["y"]).operators(), [ALONE; 3]);
}

#[test]
fn a_bias_may_be_computed_but_not_from_results_inside() {
    let computed = |from: &str| {
        let nodes = vec![
            conv("x", "w0", "a"),
            conv("a", "w1", "b"),
            node("ReduceMax", &[from, "axes"], &["bias"]),
            node("Conv", &["b", "w2", "bias"], &["y"]),
        ];
        let mut graph = graph_of(nodes, &["y"]);
        let axes: Vec<u8> = [0_i64, 2, 3]
            .iter()
            .flat_map(|axis| axis.to_le_bytes())
            .collect();
        graph.initializer.push(TensorProto {
            name: "axes".to_owned(),
            data_type: DataType::Int64.number(),
            dims: vec![3],
            raw_data: Some(axes),
            ..TensorProto::default()
        });
        for node in graph
            .node
            .iter_mut()
            .filter(|node| node.op_type == "ReduceMax")
        {
            node.attribute.push(attributes::of_integer("keepdims", 0));
        }
        rewrite(graph)
    };
    let rewritten = computed("x");
    assert_eq!(rewritten.operators(), ["ReduceMax", CHAIN]);
    assert_eq!(rewritten.node(CHAIN).input, ["x", "bias"]);
    assert_eq!(computed("b").operators(), [CHAIN, "ReduceMax", ALONE]);
    assert_eq!(computed("a").operators(), [ALONE, "ReduceMax", CHAIN]);
}

#[test]
fn what_adds_a_value_from_elsewhere_is_in_no_chain() {
    let nodes = vec![
        node("Sigmoid", &["x"], &["s"]),
        conv("x", "w0", "a"),
        node("Add", &["a", "s"], &["b"]),
        conv("b", "w1", "c"),
        conv("c", "w2", "y"),
    ];
    let rewritten = chained(nodes, &["y"]);
    assert_eq!(rewritten.operators(), ["Sigmoid", ALONE, CHAIN]);
    assert_eq!(rewritten.node(CHAIN).input, ["b"]);
}

#[test]
fn equal_layers_in_a_chain_have_one_number() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        conv("b", "w0", "y"),
    ];
    let rewritten = chained(nodes, &["y"]);
    assert_eq!(integers_of(rewritten.node(CHAIN), "layer"), [0, 1, 0]);
    assert_eq!(rewritten.layers().len(), 2);
}
