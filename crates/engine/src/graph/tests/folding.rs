//! What is folded into the operator before it, and what must not be.

use super::*;
use crate::support::{integer, node, with};
use occlude_onnx::messages::{AttributeProto, AttributeType};

const SHAPE: [i64; 4] = [1, 32, 8, 8];

/// A 1 x 1 convolution of 32 channels from `x` to `convolved`, then `nodes` to `y`.
fn after_convolution(nodes: Vec<NodeProto>, more: Vec<TensorProto>) -> Rewritten {
    let conv = vec![node("Conv", &["x", "w"], &["convolved"])];
    let weights = [vec![weight("w", &[32, 32, 1, 1])], more].concat();
    rewrite(from_x_to_y(&SHAPE, [conv, nodes].concat(), weights))
}

/// The same with a product of 32 columns.
fn after_product(nodes: Vec<NodeProto>, more: Vec<TensorProto>) -> Rewritten {
    let product = vec![node("MatMul", &["x", "w"], &["product"])];
    let weights = [vec![weight("w", &[32, 32])], more].concat();
    rewrite(from_x_to_y(&[-1, 32], [product, nodes].concat(), weights))
}

fn statistics() -> Vec<TensorProto> {
    ["scale", "shift", "mean", "variance"]
        .map(|name| weight(name, &[32]))
        .to_vec()
}

fn normalisation() -> NodeProto {
    let inputs = ["convolved", "scale", "shift", "mean", "variance"];
    node("BatchNormalization", &inputs, &["y"])
}

fn float_attribute(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Float as i32,
        f: Some(value),
        ..AttributeProto::default()
    }
}

#[test]
fn batch_normalisation_becomes_part_of_the_weights() {
    let node = with(normalisation(), float_attribute("epsilon", 0.25));
    let rewritten = after_convolution(vec![node], statistics());
    assert_eq!(rewritten.operators(), ["SealedConvolution"]);
    assert_eq!(rewritten.node("SealedConvolution").output, ["y"]);
    let folded = rewritten.convolution().batch_norm.as_ref().unwrap();
    assert_eq!(folded.epsilon, 0.25);
    let names = [&folded.scale, &folded.bias, &folded.mean, &folded.variance];
    assert_eq!(
        names.map(|weight| weight.name.as_str()),
        ["scale", "shift", "mean", "variance"]
    );
    assert!(folded.convolution_bias.is_none());
}

#[test]
fn batch_normalisation_takes_the_convolutions_bias_along() {
    let nodes = vec![
        node("Conv", &["x", "w", "b"], &["convolved"]),
        normalisation(),
    ];
    let own = vec![weight("w", &[32, 32, 1, 1]), weight("b", &[32])];
    let rewritten = rewrite(from_x_to_y(&SHAPE, nodes, [own, statistics()].concat()));
    assert_eq!(rewritten.node("SealedConvolution").input, ["x"]);
    let folded = rewritten.convolution().batch_norm.as_ref().unwrap();
    assert_eq!(folded.convolution_bias.as_ref().unwrap().name, "b");
}

#[test]
fn batch_normalisation_by_the_batch_stays() {
    let training = with(normalisation(), integer("training_mode", 1));
    after_convolution(vec![training], statistics()).node("BatchNormalization");
}

#[test]
fn batch_normalisation_of_what_others_read_too_stays() {
    let mut normal = normalisation();
    normal.output = vec!["normal".to_owned()];
    let nodes = vec![normal, node("Add", &["normal", "convolved"], &["y"])];
    after_convolution(nodes, statistics()).node("BatchNormalization");
}

#[test]
fn batch_normalisation_of_an_output_stays() {
    let conv = node("Conv", &["x", "w"], &["convolved"]);
    let weights = [vec![weight("w", &[32, 32, 1, 1])], statistics()].concat();
    let mut graph = from_x_to_y(&SHAPE, vec![conv, normalisation()], weights);
    graph.output.push(float("convolved", &SHAPE));
    rewrite(graph).node("BatchNormalization");
}

#[test]
fn batch_normalisation_with_computed_statistics_stays() {
    let mut computed = normalisation();
    computed.input[3] = "averages".to_owned();
    let conv = node("Conv", &["x", "w"], &["convolved"]);
    let weights = [vec![weight("w", &[32, 32, 1, 1])], statistics()].concat();
    let mut graph = from_x_to_y(&SHAPE, vec![conv, computed], weights);
    graph.input.push(float("averages", &[32]));
    rewrite(graph).node("BatchNormalization");
}

#[test]
fn batch_normalisation_of_a_product_stays() {
    let nodes = vec![node(
        "BatchNormalization",
        &["product", "scale", "shift", "mean", "variance"],
        &["y"],
    )];
    after_product(nodes, statistics()).node("BatchNormalization");
}

#[test]
fn a_number_for_each_channel_is_a_bias() {
    for dims in [&[32, 1, 1][..], &[1, 32, 1, 1]] {
        for inputs in [["convolved", "b"], ["b", "convolved"]] {
            let add = vec![node("Add", &inputs, &["y"])];
            let rewritten = after_convolution(add, vec![weight("b", dims)]);
            assert_eq!(rewritten.operators(), ["SealedConvolution"]);
            assert_eq!(rewritten.node("SealedConvolution").input, ["x", "b"]);
        }
    }
}

#[test]
fn what_is_no_number_for_each_channel_is_no_bias() {
    // The last axis is the width; [1] is one for all; [8, 8] one for each pixel.
    for dims in [&[8][..], &[1], &[8, 8], &[1, 32, 8, 8], &[2, 32, 1, 1]] {
        let add = vec![node("Add", &["convolved", "b"], &["y"])];
        after_convolution(add, vec![weight("b", dims)]).node("Add");
    }
}

#[test]
fn a_second_bias_is_added_by_an_operator_of_its_own() {
    let nodes = vec![
        node("Add", &["convolved", "b"], &["sum"]),
        node("Add", &["sum", "c"], &["y"]),
    ];
    let biases = vec![weight("b", &[32, 1, 1]), weight("c", &[32, 1, 1])];
    let rewritten = after_convolution(nodes, biases);
    assert_eq!(rewritten.operators(), ["SealedConvolution", "Add"]);
}

#[test]
fn a_number_for_each_column_is_a_bias_of_a_product() {
    let add = vec![node("Add", &["product", "b"], &["y"])];
    let rewritten = after_product(add, vec![weight("b", &[32])]);
    assert_eq!(rewritten.node("SealedGemm").input, ["x", "b"]);
    for dims in [&[1][..], &[3, 32]] {
        let add = vec![node("Add", &["product", "b"], &["y"])];
        after_product(add, vec![weight("b", dims)]).node("Add");
    }
}

#[test]
fn a_bias_of_what_others_read_too_stays() {
    let nodes = vec![
        node("Add", &["product", "b"], &["sum"]),
        node("Mul", &["sum", "product"], &["y"]),
    ];
    after_product(nodes, vec![weight("b", &[32])]).node("Add");
}

#[test]
fn subtractions_are_no_bias() {
    let nodes = vec![node("Sub", &["product", "b"], &["y"])];
    after_product(nodes, vec![weight("b", &[32])]).node("Sub");
}

#[test]
fn a_value_of_the_results_shape_is_a_residual() {
    let add = vec![node("Add", &["convolved", "x"], &["y"])];
    let rewritten = after_convolution(add, vec![]);
    assert_eq!(rewritten.operators(), ["SealedConvolution"]);
    assert_eq!(rewritten.node("SealedConvolution").input, ["x", "", "x"]);
}

#[test]
fn a_value_that_would_be_broadcast_is_no_residual() {
    for dims in [[1, 32, 1, 1], [1, 32, 8, 1], [1, 1, 8, 8], [-1, 32, 8, 8]] {
        let conv = node("Conv", &["x", "w"], &["convolved"]);
        let add = node("Add", &["convolved", "other"], &["y"]);
        let weights = vec![weight("w", &[32, 32, 1, 1])];
        let mut graph = from_x_to_y(&SHAPE, vec![conv, add], weights);
        graph.input.push(float("other", &dims));
        rewrite(graph).node("Add");
    }
}

#[test]
fn of_two_results_that_are_added_the_later_adds() {
    let nodes = vec![
        node("Conv", &["x", "w"], &["one"]),
        node("Conv", &["x", "v"], &["other"]),
        node("Add", &["one", "other"], &["y"]),
    ];
    let weights = vec![weight("w", &[32, 32, 1, 1]), weight("v", &[32, 32, 1, 1])];
    let rewritten = rewrite(from_x_to_y(&SHAPE, nodes, weights));
    let chain = rewritten.node("SealedConvolutions");
    assert_eq!(integers_of(chain, "source"), [0, 0]);
    assert_eq!(integers_of(chain, "residual"), [-1, 1]);
    assert_eq!(
        (&*chain.input, &*chain.output),
        (&["x".to_owned()][..], &["y".to_owned()][..])
    );
}

#[test]
fn relu_is_folded() {
    let rewritten = after_convolution(vec![node("Relu", &["convolved"], &["y"])], vec![]);
    assert_eq!(rewritten.operators(), ["SealedConvolution"]);
    let activation = integer_of(rewritten.node("SealedConvolution"), "activation");
    assert_eq!(activation, 1);
    let product = after_product(vec![node("Relu", &["product"], &["y"])], vec![]);
    assert_eq!(integer_of(product.node("SealedGemm"), "activation"), 1);
}

fn clip(inputs: &[&str], more: Vec<TensorProto>) -> Rewritten {
    after_convolution(vec![node("Clip", inputs, &["y"])], more)
}

#[test]
fn clip_with_fixed_bounds_is_folded() {
    let bounds = || vec![floats("low", &[], &[-1.5]), floats("high", &[], &[6.0])];
    for (inputs, low, high) in [
        (&["convolved", "low", "high"][..], -1.5, 6.0),
        (&["convolved", "", "high"], f32::MIN, 6.0),
        (&["convolved", "low"], -1.5, f32::MAX),
        (&["convolved"], f32::MIN, f32::MAX),
    ] {
        let rewritten = clip(inputs, bounds());
        let node = rewritten.node("SealedConvolution");
        assert_eq!(integer_of(node, "activation"), 2);
        assert_eq!(attributes::float(node, "minimum", 9.0), Some(low));
        assert_eq!(attributes::float(node, "maximum", 9.0), Some(high));
    }
}

#[test]
fn clip_with_bounds_that_are_no_numbers_stays() {
    clip(&["convolved", "low"], vec![floats("low", &[], &[f32::NAN])]).node("Clip");
    let conv = node("Conv", &["x", "w"], &["convolved"]);
    let computed = node("Clip", &["convolved", "low"], &["y"]);
    let weights = vec![weight("w", &[32, 32, 1, 1])];
    let mut graph = from_x_to_y(&SHAPE, vec![conv, computed], weights);
    graph.input.push(float("low", &[]));
    rewrite(graph).node("Clip");
}

#[test]
fn other_activations_stay() {
    for operator in ["Sigmoid", "LeakyRelu", "Tanh", "HardSwish"] {
        after_convolution(vec![node(operator, &["convolved"], &["y"])], vec![]).node(operator);
    }
}

#[test]
fn an_activation_of_what_others_read_too_stays() {
    let nodes = vec![
        node("Relu", &["convolved"], &["active"]),
        node("Add", &["active", "convolved"], &["y"]),
    ];
    after_convolution(nodes, vec![]).node("Relu");
}

#[test]
fn nothing_is_folded_behind_an_activation() {
    let nodes = vec![
        node("Relu", &["convolved"], &["active"]),
        node("Add", &["active", "x"], &["y"]),
    ];
    let rewritten = after_convolution(nodes, vec![]);
    assert_eq!(rewritten.operators(), ["SealedConvolution", "Add"]);
    let again = after_convolution(
        vec![
            node("Relu", &["convolved"], &["active"]),
            node("Relu", &["active"], &["y"]),
        ],
        vec![],
    );
    assert_eq!(again.operators(), ["SealedConvolution", "Relu"]);
}

#[test]
fn all_that_can_follow_is_folded_in_its_order() {
    let mut normal = normalisation();
    normal.output = vec!["normal".to_owned()];
    let nodes = vec![
        normal,
        node("Add", &["x", "normal"], &["sum"]),
        node("Relu", &["sum"], &["y"]),
    ];
    let rewritten = after_convolution(nodes, statistics());
    assert_eq!(rewritten.operators(), ["SealedConvolution"]);
    let node = rewritten.node("SealedConvolution");
    assert_eq!((node.input.len(), &*node.input[2]), (3, "x"));
    assert_eq!(integer_of(node, "activation"), 1);
}
