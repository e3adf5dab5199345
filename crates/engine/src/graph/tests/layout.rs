//! Where values are blocked. Blocks have 16 channels here.

use super::*;
use crate::support::{integer, integers_attribute, node, with};

const BLOCK: usize = 16;
const SIDE: i64 = 8;

/// A graph from `x` with these channels to `y`, whose weights `w0`, `w1` ... are 1 x 1
/// convolutions of so many to so many channels.
fn blocked(channels: i64, nodes: Vec<NodeProto>, weights: &[[i64; 2]]) -> Rewritten {
    let weights = weights
        .iter()
        .enumerate()
        .map(|(index, &[from, to])| weight(&format!("w{index}"), &[to, from, 1, 1]));
    let graph = graph(
        nodes,
        vec![float("x", &[1, channels, SIDE, SIDE])],
        vec![float("y", &[1, -1, -1, -1])],
        weights.collect(),
    );
    rewritten(&model(graph), Some(BLOCK))
}

/// Whether each convolution, in its order, reads and writes blocks.
fn layouts(rewritten: &Rewritten) -> Vec<[bool; 2]> {
    let blocked = |node: &NodeProto, name| {
        integers_of(node, name)
            .into_iter()
            .map(|blocked| blocked == 1)
    };
    let convolutions = rewritten.nodes().iter();
    convolutions
        .filter(|node| node.op_type.starts_with("SealedConvolution"))
        .flat_map(|node| {
            let reads = blocked(node, "input_blocked");
            reads.zip(blocked(node, "output_blocked"))
        })
        .map(<[bool; 2]>::from)
        .collect()
}

fn conv(from: &str, weight: &str, to: &str) -> NodeProto {
    node("Conv", &[from, weight], &[to])
}

const PLAIN_TO_BLOCKED: [bool; 2] = [false, true];
const BLOCKED_TO_BLOCKED: [bool; 2] = [true, true];
const BLOCKED_TO_PLAIN: [bool; 2] = [true, false];
const PLAIN: [bool; 2] = [false, false];

#[test]
fn convolutions_in_a_row_pass_blocks_on() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        conv("b", "w2", "y"),
    ];
    let rewritten = blocked(32, nodes, &[[32, 32], [32, 48], [48, 32]]);
    assert_eq!(
        layouts(&rewritten),
        [PLAIN_TO_BLOCKED, BLOCKED_TO_BLOCKED, BLOCKED_TO_PLAIN]
    );
    assert!(!rewritten.operators().contains(&"ReorderOutput"));
}

#[test]
fn a_convolution_alone_stays_plain() {
    let rewritten = blocked(32, vec![conv("x", "w0", "y")], &[[32, 32]]);
    assert_eq!(layouts(&rewritten), [PLAIN]);
}

#[test]
fn without_such_a_layout_everything_stays_plain() {
    let graph = graph(
        vec![conv("x", "w0", "a"), conv("a", "w1", "y")],
        vec![float("x", &[1, 32, SIDE, SIDE])],
        vec![float("y", &[1, 32, SIDE, SIDE])],
        vec![weight("w0", &[32, 32, 1, 1]), weight("w1", &[32, 32, 1, 1])],
    );
    let rewritten = rewritten(&model(graph), None);
    assert_eq!(layouts(&rewritten), [PLAIN, PLAIN]);
}

#[test]
fn few_channels_are_not_blocked() {
    let nodes = vec![conv("x", "w0", "a"), conv("a", "w1", "y")];
    let rewritten = blocked(64, nodes, &[[64, 8], [8, 64]]);
    assert_eq!(layouts(&rewritten), [PLAIN, PLAIN]);
}

#[test]
fn channels_that_fill_no_block_are_rounded_up() {
    let nodes = vec![conv("x", "w0", "a"), conv("a", "w1", "y")];
    let rewritten = blocked(32, nodes, &[[32, 24], [24, 32]]);
    assert_eq!(layouts(&rewritten), [PLAIN_TO_BLOCKED, BLOCKED_TO_PLAIN]);
}

#[test]
fn where_zero_would_become_something_else_channels_must_fill_blocks() {
    // Sigmoid(0) is 1/2, which would stand in the channels that round up.
    for (channels, first) in [(32, PLAIN_TO_BLOCKED), (24, PLAIN)] {
        let nodes = vec![
            conv("x", "w0", "a"),
            node("Sigmoid", &["a"], &["b"]),
            conv("b", "w1", "y"),
        ];
        let rewritten = blocked(32, nodes, &[[32, channels], [channels, 32]]);
        assert_eq!(layouts(&rewritten)[0], first);
    }
}

#[test]
fn what_keeps_zero_passes_blocks_on() {
    for operator in ["LeakyRelu", "Tanh", "Abs"] {
        let nodes = vec![
            conv("x", "w0", "a"),
            node(operator, &["a"], &["b"]),
            conv("b", "w1", "y"),
        ];
        let rewritten = blocked(32, nodes, &[[32, 24], [24, 32]]);
        let expected = [PLAIN_TO_BLOCKED, BLOCKED_TO_PLAIN];
        assert_eq!(layouts(&rewritten), expected, "{operator}");
        // It is the plain operator, on a value of the same size.
        assert_eq!(rewritten.node(operator).domain, "");
    }
}

#[test]
fn operators_that_know_channels_read_plain_values() {
    for operator in ["Softmax", "LRN", "Flatten"] {
        let mut between = node(operator, &["a"], &["y"]);
        if operator == "LRN" {
            between = with(between, integer("size", 3));
        }
        let nodes = vec![conv("x", "w0", "b"), conv("b", "w1", "a"), between];
        let rewritten = blocked(32, nodes, &[[32, 32], [32, 32]]);
        let expected = [PLAIN_TO_BLOCKED, BLOCKED_TO_PLAIN];
        assert_eq!(layouts(&rewritten), expected, "{operator}");
    }
}

#[test]
fn a_value_that_is_read_both_ways_is_made_plain_once() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        node("Softmax", &["a"], &["s"]),
        node("Flatten", &["a"], &["f"]),
        node("Flatten", &["s"], &["g"]),
        node("Flatten", &["b"], &["h"]),
        node("Concat", &["f", "g", "h"], &["y"]),
    ];
    let nodes = nodes.into_iter().map(|node| match node.op_type.as_str() {
        "Concat" => with(node, integer("axis", 1)),
        _ => node,
    });
    let rewritten = blocked(32, nodes.collect(), &[[32, 32], [32, 32]]);
    let reorder = rewritten.node("ReorderOutput");
    assert_eq!(reorder.domain, "com.microsoft.nchwc");
    assert_eq!(
        (&*reorder.output[0], integer_of(reorder, "channels")),
        ("a", 32)
    );
    assert_eq!(rewritten.node("Softmax").input, ["a"]);
}

#[test]
fn a_blocked_value_that_is_an_output_is_made_plain() {
    let graph = graph(
        vec![conv("x", "w0", "a"), conv("a", "w1", "y")],
        vec![float("x", &[1, 32, SIDE, SIDE])],
        vec![float("y", &[1, 32, -1, -1]), float("a", &[1, 32, -1, -1])],
        vec![weight("w0", &[32, 32, 1, 1]), weight("w1", &[32, 32, 1, 1])],
    );
    let rewritten = rewritten(&model(graph), Some(BLOCK));
    assert_eq!(rewritten.node("ReorderOutput").output, ["a"]);
}

#[test]
fn pools_are_those_of_the_blocked_set() {
    let pool = with(
        node("MaxPool", &["a"], &["b"]),
        integers_attribute("kernel_shape", &[2, 2]),
    );
    for (pool, operator) in [
        (pool, "MaxPool"),
        (
            node("GlobalAveragePool", &["a"], &["b"]),
            "GlobalAveragePool",
        ),
    ] {
        let nodes = vec![conv("x", "w0", "a"), pool, conv("b", "w1", "y")];
        let rewritten = blocked(32, nodes, &[[32, 32], [32, 32]]);
        assert_eq!(rewritten.node(operator).domain, "com.microsoft.nchwc");
        assert_eq!(layouts(&rewritten), [PLAIN_TO_BLOCKED, BLOCKED_TO_PLAIN]);
    }
}

#[test]
fn pools_that_the_blocked_set_does_not_have_stay_plain() {
    let over_three = with(
        node("MaxPool", &["a"], &["b"]),
        integers_attribute("kernel_shape", &[2, 2, 2]),
    );
    let rounding_up = with(
        with(
            node("AveragePool", &["a"], &["b"]),
            integers_attribute("kernel_shape", &[2, 2]),
        ),
        integer("ceil_mode", 1),
    );
    let power = with(
        node("LpPool", &["a"], &["b"]),
        integers_attribute("kernel_shape", &[2, 2]),
    );
    for pool in [over_three, rounding_up, power] {
        let operator = pool.op_type.clone();
        let nodes = vec![conv("x", "w0", "a"), pool, conv("b", "w1", "y")];
        let rewritten = blocked(32, nodes, &[[32, 32], [32, 32]]);
        assert_eq!(rewritten.node(&operator).domain, "", "{operator}");
        assert_eq!(layouts(&rewritten), [PLAIN, PLAIN], "{operator}");
    }
}

#[test]
fn a_residual_has_the_layout_of_what_it_is_added_to() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("a", "w1", "b"),
        node("Add", &["b", "a"], &["c"]),
        conv("c", "w2", "y"),
    ];
    let rewritten = blocked(32, nodes, &[[32, 32], [32, 32], [32, 32]]);
    assert_eq!(
        layouts(&rewritten),
        [PLAIN_TO_BLOCKED, BLOCKED_TO_BLOCKED, BLOCKED_TO_PLAIN]
    );
    let chain = rewritten.node("SealedConvolutions");
    assert_eq!(integers_of(chain, "residual"), [-1, 1, -1]);
}

#[test]
fn a_plain_residual_keeps_the_sum_plain() {
    let nodes = vec![
        conv("x", "w0", "a"),
        node("Add", &["a", "x"], &["b"]),
        conv("b", "w1", "y"),
    ];
    let rewritten = blocked(32, nodes, &[[32, 32], [32, 32]]);
    assert_eq!(layouts(&rewritten), [PLAIN, PLAIN]);
}

#[test]
fn whole_blocks_are_concatenated_as_they_are() {
    for (channels, domain) in [(32, true), (24, false)] {
        let nodes = vec![
            conv("x", "w0", "a"),
            conv("x", "w1", "b"),
            with(node("Concat", &["a", "b"], &["c"]), integer("axis", 1)),
            conv("c", "w2", "y"),
        ];
        let weights = [[32, channels], [32, channels], [2 * channels, 32]];
        let last = layouts(&blocked(32, nodes, &weights))[2];
        assert_eq!(last, [domain, false], "{channels} channels");
    }
}

#[test]
fn other_axes_are_concatenated_plainly() {
    let nodes = vec![
        conv("x", "w0", "a"),
        conv("x", "w1", "b"),
        with(node("Concat", &["a", "b"], &["c"]), integer("axis", 2)),
        conv("c", "w2", "y"),
    ];
    let rewritten = blocked(32, nodes, &[[32, 32], [32, 32], [32, 32]]);
    assert_eq!(layouts(&rewritten), [PLAIN, PLAIN, PLAIN]);
}

#[test]
fn a_depthwise_convolution_has_one_layout() {
    let graph = |first: NodeProto| {
        let graph = graph(
            vec![
                first,
                with(node("Conv", &["a", "d"], &["b"]), integer("group", 64)),
                conv("b", "w1", "y"),
            ],
            vec![float("x", &[1, 64, SIDE, SIDE])],
            vec![float("y", &[1, 32, -1, -1])],
            vec![
                weight("w0", &[64, 64, 1, 1]),
                weight("d", &[64, 1, 3, 3]),
                weight("w1", &[32, 64, 1, 1]),
            ],
        );
        rewritten(&model(graph), Some(BLOCK))
    };
    let behind_blocks = graph(conv("x", "w0", "a"));
    assert_eq!(
        layouts(&behind_blocks),
        [PLAIN_TO_BLOCKED, BLOCKED_TO_BLOCKED, BLOCKED_TO_PLAIN]
    );
    let behind_others = graph(node("Softmax", &["x"], &["a"]));
    assert_eq!(layouts(&behind_others), [PLAIN, PLAIN]);
}

#[test]
fn groups_that_fill_no_block_are_plain() {
    for (groups, expected) in [(2, BLOCKED_TO_BLOCKED), (4, PLAIN)] {
        let graph = graph(
            vec![
                conv("x", "w0", "a"),
                with(node("Conv", &["a", "g"], &["b"]), integer("group", groups)),
                conv("b", "w1", "y"),
            ],
            vec![float("x", &[1, 32, SIDE, SIDE])],
            vec![float("y", &[1, 32, -1, -1])],
            vec![
                weight("w0", &[32, 32, 1, 1]),
                weight("g", &[32, 32 / groups, 3, 3]),
                weight("w1", &[32, 32, 1, 1]),
            ],
        );
        let rewritten = rewritten(&model(graph), Some(BLOCK));
        assert_eq!(layouts(&rewritten)[1], expected, "{groups} groups");
    }
}

#[test]
fn one_axis_is_never_blocked() {
    let graph = graph(
        vec![conv("x", "w0", "a"), conv("a", "w1", "y")],
        vec![float("x", &[1, 32, SIDE])],
        vec![float("y", &[1, 32, SIDE])],
        vec![weight("w0", &[32, 32, 1]), weight("w1", &[32, 32, 1])],
    );
    let rewritten = rewritten(&model(graph), Some(BLOCK));
    assert_eq!(layouts(&rewritten), [PLAIN, PLAIN]);
}

#[test]
fn what_a_subgraph_reads_is_plain() {
    let mut inner = graph(
        vec![node("Relu", &["a"], &["result"])],
        vec![],
        vec![float("result", &[1, 32, -1, -1])],
        vec![],
    );
    inner.name = "then".to_owned();
    let mut other = inner.clone();
    other.name = "else".to_owned();
    let choice = with(
        with(
            node("If", &["condition"], &["c"]),
            crate::support::subgraph("then_branch", inner),
        ),
        crate::support::subgraph("else_branch", other),
    );
    let mut graph = graph(
        vec![
            conv("x", "w0", "a"),
            conv("a", "w1", "b"),
            choice,
            node("Add", &["b", "c"], &["y"]),
        ],
        vec![float("x", &[1, 32, SIDE, SIDE])],
        vec![float("y", &[1, 32, -1, -1])],
        vec![weight("w0", &[32, 32, 1, 1]), weight("w1", &[32, 32, 1, 1])],
    );
    graph.input.push(value("condition", DataType::Bool, &[]));
    let rewritten = rewritten(&model(graph), Some(BLOCK));
    assert_eq!(rewritten.node("ReorderOutput").output, ["a"]);
}
