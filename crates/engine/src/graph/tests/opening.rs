//! When weights are opened for operators of ONNX Runtime, and wiped.

use super::*;
use crate::support::node;

const WIDTH: i64 = 32;

/// `y = tables . x`, each a product that our kernels do not know: the weight is on the
/// left.
fn chain() -> GraphProto {
    let nodes = vec![
        node("MatMul", &["first", "x"], &["hidden"]),
        node("MatMul", &["second", "hidden"], &["y"]),
    ];
    let weights = ["first", "second"].map(|name| weight(name, &[WIDTH, WIDTH]));
    from_x_to_y(&[WIDTH, -1], nodes, weights.to_vec())
}

#[test]
fn a_weight_is_opened_before_its_reader_and_wiped_behind_it() {
    let rewritten = rewrite(chain());
    assert_eq!(
        rewritten.operators(),
        [
            "OpenedWeight",
            "MatMul",
            "WipedAfter",
            "OpenedWeight",
            "MatMul",
            "WipedAfter"
        ]
    );
    let [opened, product, wiped, ..] = rewritten.nodes() else {
        unreachable!()
    };
    assert_eq!(product.input, [opened.output[0].as_str(), "x"]);
    // It waits for the product, and hands it on.
    assert_eq!(wiped.input, [&*product.output[0], &*opened.output[0]]);
    assert_eq!(wiped.output, ["hidden"]);
}

#[test]
fn a_weight_is_opened_when_the_others_inputs_are_ready() {
    let rewritten = rewrite(chain());
    let [first, .., second, _, _] = rewritten.nodes() else {
        unreachable!()
    };
    assert_eq!(first.input, ["x"]);
    assert_eq!(second.input, ["hidden"]);
}

#[test]
fn no_initializer_is_left_of_a_weight_that_is_opened() {
    let rewritten = rewrite(chain());
    let graph = rewritten.model.graph.as_ref().unwrap();
    assert!(graph.initializer.is_empty());
    let inputs: Vec<&str> = graph.input.iter().map(|input| &*input.name).collect();
    assert_eq!(inputs, ["x"]);
}

#[test]
fn a_resident_weight_is_an_initializer_that_optimizers_must_not_read() {
    let survey = rewrite(chain()).survey;
    let emitted = survey.emit(&|layer| layer == 0).unwrap();
    let names: Vec<&str> = emitted.weights.iter().map(|weight| &*weight.name).collect();
    assert_eq!(names, ["first"]);
    let model = ModelProto::decode(emitted.model.as_slice()).unwrap();
    let graph = model.graph.unwrap();
    // A default that a caller may override is no constant.
    let inputs: Vec<&str> = graph.input.iter().map(|input| &*input.name).collect();
    assert_eq!(inputs, ["x", "first"]);
    assert_eq!(graph.initializer.len(), 1);
    let opened = graph.node.iter();
    let opened = opened.filter(|node| node.op_type == "OpenedWeight");
    assert_eq!(opened.count(), 1);
}

#[test]
fn a_weight_that_two_read_is_opened_for_each() {
    let nodes = vec![
        node("MatMul", &["w", "x"], &["hidden"]),
        node("MatMul", &["w", "hidden"], &["y"]),
    ];
    let rewritten = rewrite(from_x_to_y(
        &[WIDTH, -1],
        nodes,
        vec![weight("w", &[WIDTH, WIDTH])],
    ));
    assert_eq!(rewritten.layers().len(), 1);
    let opened = rewritten.nodes().iter();
    let opened = opened.filter(|node| node.op_type == "OpenedWeight");
    assert_eq!(opened.count(), 2);
}

#[test]
fn two_weights_of_one_node_are_wiped_one_behind_the_other() {
    let nodes = vec![node("Where", &["c", "first", "second"], &["y"])];
    let mut graph = from_x_to_y(
        &[WIDTH, WIDTH],
        nodes,
        ["first", "second"]
            .map(|name| weight(name, &[WIDTH, WIDTH]))
            .to_vec(),
    );
    graph.input = vec![value("c", DataType::Bool, &[WIDTH, WIDTH])];
    let rewritten = rewrite(graph);
    let operators = rewritten.operators();
    assert_eq!(operators[2..], ["Where", "WipedAfter", "WipedAfter"]);
    let [.., choice, one, other] = rewritten.nodes() else {
        unreachable!()
    };
    assert_eq!(one.input[0], choice.output[0]);
    assert_eq!(other.input[0], one.output[0]);
    assert_eq!(other.output, ["y"]);
}

#[test]
fn without_wiping_nothing_stands_behind_the_operator() {
    let survey = rewrite(chain()).survey;
    let emitted = survey.emit_with(&|_| false, false).unwrap();
    let model = ModelProto::decode(emitted.model.as_slice()).unwrap();
    let nodes = model.graph.unwrap().node;
    let operators: Vec<&str> = nodes.iter().map(|node| &*node.op_type).collect();
    assert_eq!(
        operators,
        ["OpenedWeight", "MatMul", "OpenedWeight", "MatMul"]
    );
}
