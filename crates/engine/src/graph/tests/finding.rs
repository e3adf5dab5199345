//! Which weights become layers, of what kind, and which stay resident.

use super::*;
use crate::support::{integer, integers_attribute, node, subgraph, tensor, tensor_attribute, with};
use occlude_onnx::messages::{AttributeProto, AttributeType};

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::String as i32,
        s: Some(value.as_bytes().to_vec()),
        ..AttributeProto::default()
    }
}

fn number(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Float as i32,
        f: Some(value),
        ..AttributeProto::default()
    }
}

/// A graph of one convolution with these attributes and this weight.
fn conv(attributes: Vec<AttributeProto>, dims: &[i64]) -> Rewritten {
    let mut conv = node("Conv", &["x", "w"], &["y"]);
    conv.attribute = attributes;
    let shape: Vec<i64> = vec![-1; dims.len()];
    rewrite(from_x_to_y(&shape, vec![conv], vec![weight("w", dims)]))
}

fn unsealed(rewritten: &Rewritten, operator: &str) {
    assert_eq!(rewritten.whole(), ["w"]);
    rewritten.node(operator);
    rewritten.node("OpenedWeight");
}

#[test]
fn a_convolution_without_attributes_has_the_specifications_defaults() {
    let rewritten = conv(vec![], &[32, 16, 3, 3]);
    assert_eq!(rewritten.operators(), ["SealedConvolution"]);
    let expected = Convolution {
        out_channels: 32,
        in_channels_per_group: 16,
        groups: 1,
        kernel: [3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        pads: Pads::Explicit([0; 4]),
        one_dimensional: false,
        batch_norm: None,
    };
    assert_eq!(rewritten.convolution(), &expected);
}

#[test]
fn attributes_of_a_convolution_are_read() {
    let rewritten = conv(
        vec![
            integer("group", 4),
            integers_attribute("kernel_shape", &[3, 5]),
            integers_attribute("strides", &[2, 1]),
            integers_attribute("dilations", &[1, 2]),
            integers_attribute("pads", &[0, 1, 2, 3]),
        ],
        &[32, 16, 3, 5],
    );
    let convolution = rewritten.convolution();
    assert_eq!((convolution.groups, convolution.kernel), (4, [3, 5]));
    assert_eq!(convolution.strides, [2, 1]);
    assert_eq!(convolution.dilations, [1, 2]);
    assert_eq!(convolution.pads, Pads::Explicit([0, 1, 2, 3]));
}

#[test]
fn automatic_padding_is_read() {
    for (value, pads) in [
        ("SAME_UPPER", Pads::SameUpper),
        ("SAME_LOWER", Pads::SameLower),
        ("VALID", Pads::Explicit([0; 4])),
        ("NOTSET", Pads::Explicit([0; 4])),
    ] {
        let rewritten = conv(vec![text("auto_pad", value)], &[32, 16, 3, 3]);
        assert_eq!(rewritten.convolution().pads, pads, "{value}");
    }
}

#[test]
fn a_depthwise_convolution_is_sealed() {
    let rewritten = conv(vec![integer("group", 64)], &[64, 1, 3, 3]);
    assert_eq!(rewritten.convolution().groups, 64);
    assert_eq!(rewritten.convolution().in_channels_per_group, 1);
}

#[test]
fn one_axis_is_the_second_of_two() {
    let rewritten = conv(
        vec![
            integers_attribute("pads", &[1, 2]),
            integers_attribute("strides", &[3]),
        ],
        &[32, 16, 5],
    );
    let convolution = rewritten.convolution();
    assert!(convolution.one_dimensional);
    assert_eq!(convolution.kernel, [1, 5]);
    assert_eq!(convolution.strides, [1, 3]);
    assert_eq!(convolution.pads, Pads::Explicit([0, 1, 0, 2]));
}

#[test]
fn convolutions_that_our_kernels_do_not_know_are_opened_whole() {
    unsealed(&conv(vec![], &[32, 16, 2, 2, 2]), "Conv");
    let negative = vec![integers_attribute("pads", &[-1, 0, 0, 0])];
    unsealed(&conv(negative, &[32, 16, 3, 3]), "Conv");
    let uneven = vec![integer("group", 3)];
    unsealed(&conv(uneven, &[32, 16, 3, 3]), "Conv");
    let other = vec![integers_attribute("kernel_shape", &[2, 2])];
    unsealed(&conv(other, &[32, 16, 3, 3]), "Conv");
    let unknown = vec![text("auto_pad", "SOMEHOW")];
    unsealed(&conv(unknown, &[32, 16, 3, 3]), "Conv");
    let misspelt = vec![integers_attribute("strides", &[1, 1, 1])];
    unsealed(&conv(misspelt, &[32, 16, 3, 3]), "Conv");
}

#[test]
fn an_attribute_of_another_type_than_the_specifications_seals_nothing() {
    unsealed(&conv(vec![text("group", "1")], &[32, 16, 3, 3]), "Conv");
    unsealed(&conv(vec![integer("strides", 1)], &[32, 16, 3, 3]), "Conv");
}

/// `y = x * w` and so on, with a weight of 32 by 48.
fn product(operator: NodeProto, more: Vec<TensorProto>) -> Rewritten {
    let weights = [vec![weight("w", &[32, 48])], more].concat();
    rewrite(from_x_to_y(&[-1, -1], vec![operator], weights))
}

#[test]
fn a_matrix_on_the_right_is_sealed_and_one_on_the_left_opened_whole() {
    let right = product(node("MatMul", &["x", "w"], &["y"]), vec![]);
    assert_eq!(right.operators(), ["SealedGemm"]);
    let expected = Gemm {
        k: 32,
        n: 48,
        transposed: false,
        scale: None,
    };
    assert_eq!(right.gemm(), &expected);
    unsealed(
        &product(node("MatMul", &["w", "x"], &["y"]), vec![]),
        "MatMul",
    );
}

#[test]
fn stacks_of_matrices_and_vectors_are_opened_whole() {
    for dims in [&[4, 32, 48][..], &[512]] {
        let nodes = vec![node("MatMul", &["x", "w"], &["y"])];
        let graph = from_x_to_y(&[-1, -1], nodes, vec![weight("w", dims)]);
        unsealed(&rewrite(graph), "MatMul");
    }
}

#[test]
fn gemm_takes_its_weight_as_it_is_stored() {
    let gemm = || node("Gemm", &["x", "w"], &["y"]);
    let plain = product(gemm(), vec![]);
    let (k, n, transposed) = (plain.gemm().k, plain.gemm().n, plain.gemm().transposed);
    assert_eq!((k, n, transposed), (32, 48, false));
    let turned = product(with(gemm(), integer("transB", 1)), vec![]);
    let (k, n, transposed) = (turned.gemm().k, turned.gemm().n, turned.gemm().transposed);
    assert_eq!((k, n, transposed), (48, 32, true));
}

#[test]
fn a_transposed_input_of_gemm_is_left_to_onnx_runtime() {
    let gemm = with(node("Gemm", &["x", "w"], &["y"]), integer("transA", 1));
    unsealed(&product(gemm, vec![]), "Gemm");
}

#[test]
fn alpha_is_folded_into_the_weight() {
    let gemm = with(node("Gemm", &["x", "w"], &["y"]), number("alpha", 0.5));
    assert_eq!(product(gemm, vec![]).gemm().scale, Some(0.5));
}

#[test]
fn beta_scales_what_is_added() {
    let gemm = |beta| {
        let gemm = with(node("Gemm", &["x", "w", "c"], &["y"]), number("beta", beta));
        product(gemm, vec![weight("c", &[48])])
    };
    assert_eq!(gemm(1.0).node("SealedGemm").input, ["x", "c"]);
    assert_eq!(gemm(0.0).node("SealedGemm").input, ["x"]);
    let halved = gemm(0.5);
    let bias = &halved.node("SealedGemm").input[1];
    assert_ne!(bias, "c");
    let initializers = &halved.model.graph.as_ref().unwrap().initializer;
    let bias = initializers.iter().find(|tensor| tensor.name == *bias);
    let first = pattern(1)[0] * 0.5;
    let bytes = bias.unwrap().raw_data.as_ref().unwrap();
    assert_eq!(bytes[..4], first.to_le_bytes());
}

#[test]
fn what_is_no_row_is_added_by_an_operator_of_its_own() {
    let gemm = node("Gemm", &["x", "w", "c"], &["y"]);
    let rewritten = product(gemm, vec![weight("c", &[2, 48])]);
    assert_eq!(rewritten.operators(), ["SealedGemm", "Add"]);
    assert_eq!(rewritten.node("Add").output, ["y"]);
}

#[test]
fn a_transpose_of_a_weight_is_seen_through() {
    let nodes = vec![
        node("Transpose", &["w"], &["turned"]),
        node("MatMul", &["x", "turned"], &["y"]),
    ];
    let graph = from_x_to_y(&[-1, -1], nodes, vec![weight("w", &[48, 32])]);
    let rewritten = rewrite(graph);
    assert_eq!(rewritten.operators(), ["SealedGemm"]);
    let expected = Gemm {
        k: 32,
        n: 48,
        transposed: true,
        scale: None,
    };
    assert_eq!(rewritten.gemm(), &expected);
}

#[test]
fn a_transpose_that_others_read_stays() {
    let nodes = vec![
        node("Transpose", &["w"], &["turned"]),
        node("MatMul", &["x", "turned"], &["product"]),
        node("Add", &["product", "turned"], &["y"]),
    ];
    let rewritten = rewrite(from_x_to_y(&[-1, -1], nodes, vec![weight("w", &[48, 32])]));
    rewritten.node("Transpose");
    rewritten.node("SealedGemm");
}

#[test]
fn an_identity_of_a_weight_is_seen_through() {
    let nodes = vec![
        node("Identity", &["w"], &["same"]),
        node("MatMul", &["x", "same"], &["y"]),
    ];
    let rewritten = rewrite(from_x_to_y(&[-1, -1], nodes, vec![weight("w", &[32, 48])]));
    assert_eq!(rewritten.gemm().k, 32);
}

#[test]
fn a_weight_that_is_computed_is_no_weight() {
    let nodes = vec![
        node("Relu", &["x"], &["w"]),
        node("MatMul", &["x", "w"], &["y"]),
    ];
    let rewritten = rewrite(from_x_to_y(&[-1, -1], nodes, vec![]));
    assert!(rewritten.layers().is_empty());
    assert_eq!(rewritten.operators(), ["Relu", "MatMul"]);
}

#[test]
fn a_weight_that_is_an_output_stays_resident() {
    let graph = graph(
        vec![node("MatMul", &["x", "w"], &["y"])],
        vec![float("x", &[-1, 32])],
        vec![float("y", &[-1, 48]), float("w", &[32, 48])],
        vec![weight("w", &[32, 48])],
    );
    let rewritten = rewrite(graph);
    assert!(rewritten.layers().is_empty());
    assert_eq!(rewritten.resident(), ["w"]);
}

#[test]
fn a_table_stays_resident_whoever_else_reads_it() {
    let table = |nodes| {
        let graph = graph(
            nodes,
            vec![float("x", &[-1, 48]), value("ids", DataType::Int64, &[-1])],
            vec![float("y", &[-1, -1])],
            vec![weight("w", &[48, 48])],
        );
        rewrite(graph)
    };
    let alone = table(vec![node("Gather", &["w", "ids"], &["y"])]);
    assert_eq!(alone.resident(), ["w"]);
    let shared = table(vec![
        node("Gather", &["w", "ids"], &["rows"]),
        node("MatMul", &["rows", "w"], &["y"]),
    ]);
    assert_eq!(shared.resident(), ["w"]);
    assert_eq!(shared.operators(), ["Gather", "MatMul"]);
}

#[test]
fn indices_of_a_look_up_are_no_table() {
    let many: Vec<i64> = (0..300).map(|index| index % 7).collect();
    let graph = graph(
        vec![node("Gather", &["x", "w"], &["y"])],
        vec![float("x", &[7])],
        vec![float("y", &[300])],
        vec![crate::support::integers("w", &[300], &many)],
    );
    assert_eq!(rewrite(graph).whole(), ["w"]);
}

#[test]
fn weights_that_are_equal_and_read_alike_are_one_layer() {
    let nodes = vec![
        node("MatMul", &["x", "w"], &["hidden"]),
        node("MatMul", &["hidden", "w"], &["y"]),
    ];
    let rewritten = rewrite(from_x_to_y(&[-1, 48], nodes, vec![weight("w", &[48, 48])]));
    assert_eq!(rewritten.gemm().k, 48);
    assert_eq!(rewritten.operators(), ["SealedGemm", "SealedGemm"]);
    for node in rewritten.nodes() {
        assert_eq!(integer_of(node, "layer"), 0);
    }
}

#[test]
fn a_weight_that_is_read_in_two_ways_is_two_layers() {
    let nodes = vec![
        node("MatMul", &["x", "w"], &["hidden"]),
        with(node("Gemm", &["hidden", "w"], &["y"]), integer("transB", 1)),
    ];
    let rewritten = rewrite(from_x_to_y(&[-1, 48], nodes, vec![weight("w", &[48, 48])]));
    assert_eq!(rewritten.layers().len(), 2);
}

#[test]
fn layers_are_numbered_in_the_order_of_their_first_use() {
    let nodes = vec![
        node("MatMul", &["x", "b"], &["hidden"]),
        node("MatMul", &["hidden", "a"], &["y"]),
    ];
    let weights = vec![weight("a", &[48, 48]), weight("b", &[48, 48])];
    let weights = [weights, vec![weight("unread", &[48, 48])]].concat();
    let rewritten = rewrite(from_x_to_y(&[-1, 48], nodes, weights));
    let names: Vec<&str> = rewritten
        .layers()
        .iter()
        .map(|layer| &*layer.name)
        .collect();
    assert_eq!(names, ["b", "a"]);
}

#[test]
fn a_constant_node_counts_as_an_initializer() {
    let nodes = vec![
        with(
            node("Constant", &[], &["w"]),
            tensor_attribute("value", weight("", &[32, 48])),
        ),
        node("MatMul", &["x", "w"], &["y"]),
    ];
    let rewritten = rewrite(from_x_to_y(&[-1, -1], nodes, vec![]));
    assert_eq!(rewritten.operators(), ["SealedGemm"]);
    assert_eq!(rewritten.gemm().n, 48);
}

#[test]
fn a_weight_of_a_subgraph_stays_resident() {
    let branch = |name: &str| {
        let mut branch = graph(
            vec![node("MatMul", &["x", "w"], &["result"])],
            vec![],
            vec![float("result", &[-1, -1])],
            vec![weight("w", &[32, 48])],
        );
        branch.name = name.to_owned();
        branch
    };
    let choice = with(
        with(
            node("If", &["condition"], &["y"]),
            subgraph("then_branch", branch("then")),
        ),
        subgraph("else_branch", branch("else")),
    );
    let graph = graph(
        vec![choice],
        vec![
            float("x", &[-1, 32]),
            value("condition", DataType::Bool, &[]),
        ],
        vec![float("y", &[-1, 48])],
        vec![],
    );
    let rewritten = rewrite(graph);
    assert!(rewritten.layers().is_empty());
    assert_eq!(rewritten.resident().len(), 2);
}

#[test]
fn double_precision_is_opened_whole() {
    let bytes = pattern(32 * 48);
    let bytes = bytes.iter().flat_map(|&n| f64::from(n).to_le_bytes());
    let doubles = tensor("w", DataType::Double, &[32, 48], bytes.collect());
    let graph = graph(
        vec![node("MatMul", &["x", "w"], &["y"])],
        vec![value("x", DataType::Double, &[-1, 32])],
        vec![value("y", DataType::Double, &[-1, 48])],
        vec![doubles],
    );
    unsealed(&rewrite(graph), "MatMul");
}

#[test]
fn what_may_be_the_weight_itself_is_not_opened_for_a_moment() {
    let shape = || crate::support::integers("shape", &[2], &[48, 32]);
    let reshaped = node("Reshape", &["w", "shape"], &["new"]);
    let same = with(
        node("Cast", &["w"], &["new"]),
        integer("to", i64::from(DataType::Float.number())),
    );
    for operator in [
        reshaped,
        same,
        node("Flatten", &["w"], &["new"]),
        node("Dropout", &["w"], &["new"]),
    ] {
        let nodes = vec![operator, node("Add", &["x", "new"], &["y"])];
        let graph = from_x_to_y(&[-1, -1], nodes, vec![weight("w", &[32, 48]), shape()]);
        assert_eq!(rewrite(graph).resident(), ["w"]);
    }
}

#[test]
fn a_cast_to_another_type_is_a_copy() {
    let cast = with(
        node("Cast", &["w"], &["wide"]),
        integer("to", i64::from(DataType::Double.number())),
    );
    let graph = graph(
        vec![cast, node("Add", &["x", "wide"], &["y"])],
        vec![value("x", DataType::Double, &[32, 48])],
        vec![value("y", DataType::Double, &[32, 48])],
        vec![weight("w", &[32, 48])],
    );
    unsealed(&rewrite(graph), "Cast");
}

#[test]
fn small_weights_of_other_operators_stay_constants() {
    // 256 numbers are 1 KiB, and 255 less than the smallest that is streamed.
    for (count, whole) in [(256, 1), (255, 0)] {
        let nodes = vec![node("Mul", &["x", "w"], &["y"])];
        let rewritten = rewrite(from_x_to_y(
            &[-1, count],
            nodes,
            vec![weight("w", &[count])],
        ));
        assert_eq!(rewritten.whole().len(), whole);
    }
}

#[test]
fn operators_that_nobody_here_knows_read_resident_weights() {
    let mut custom = node("Mystery", &["x", "w"], &["y"]);
    custom.domain = "example".to_owned();
    let rewritten = rewrite(from_x_to_y(
        &[-1, 48],
        vec![custom],
        vec![weight("w", &[32, 48])],
    ));
    assert_eq!(rewritten.resident(), ["w"]);
}

#[test]
fn a_graph_that_gives_a_name_twice_is_not_rewritten() {
    let nodes = vec![
        node("MatMul", &["x", "w"], &["y"]),
        node("Relu", &["x"], &["y"]),
    ];
    let rewritten = rewrite(from_x_to_y(&[-1, -1], nodes, vec![weight("w", &[32, 48])]));
    assert!(rewritten.layers().is_empty());
    assert_eq!(rewritten.operators(), ["MatMul", "Relu"]);
}

#[test]
fn a_model_that_uses_our_operators_itself_is_refused() {
    let mut own = node("SealedGemm", &["x", "w"], &["y"]);
    own.domain = "occlude".to_owned();
    let graph = from_x_to_y(&[-1, -1], vec![own], vec![weight("w", &[32, 48])]);
    let options = RewriteOptions {
        sealed_operators: true,
        block: None,
        smallest_streamed: 0,
    };
    let refused = survey(&opened(&model(graph)), &options).err().unwrap();
    assert!(matches!(refused, LoadError::Skeleton(_)), "{refused:?}");
}
