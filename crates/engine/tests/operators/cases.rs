//! What networks the property tests draw.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::network::{Addend, Groups, Network, Step};
use crate::windows::{Pads, Window};

/// One convolution and what follows it.
pub(crate) fn convolution() -> impl Strategy<Value = Network> {
    let layer = (channels_and_groups(), any::<bool>()).prop_flat_map(|(groups, is_line)| {
        (
            Just(groups),
            image(is_line),
            window(is_line),
            any::<bool>(),
            follow(),
        )
    });
    (1..=3_usize, layer, any::<bool>(), any::<u64>()).prop_map(
        |(batch, ((channels, groups), image, window, has_bias, follow), is_dynamic, seed)| {
            Network {
                shape: [&[batch, channels], image.as_slice()].concat(),
                steps: [
                    vec![Step::Convolution {
                        groups,
                        window,
                        has_bias,
                    }],
                    follow,
                ]
                .concat(),
                is_dynamic,
                has_specials: false,
                seed,
            }
        },
    )
}

/// Several convolutions, with pools between them.
pub(crate) fn chain() -> impl Strategy<Value = Network> {
    let layer = |is_line| {
        (
            channels_and_groups(),
            window(is_line),
            any::<bool>(),
            follow(),
            option::weighted(0.3, 2..=3_usize),
        )
            .prop_map(|((_, groups), window, has_bias, follow, pool)| {
                let mut steps = vec![Step::Convolution {
                    groups,
                    window,
                    has_bias,
                }];
                steps.extend(follow);
                steps.extend(pool.map(|kernel| Step::MaxPool { kernel }));
                steps
            })
    };
    let network = any::<bool>()
        .prop_flat_map(move |is_line| (channels(), image(is_line), vec(layer(is_line), 2..=3)));
    (1..=2_usize, network, any::<bool>(), any::<u64>()).prop_map(
        |(batch, (channels, image, layers), is_dynamic, seed)| Network {
            shape: [&[batch, channels], image.as_slice()].concat(),
            steps: layers.concat(),
            is_dynamic,
            has_specials: false,
            seed,
        },
    )
}

/// A 3x3 convolution of stride 1 over whole blocks of channels, between two others: what
/// is computed from transformed tiles.
pub(crate) fn tiled_convolution() -> impl Strategy<Value = Network> {
    let convolution =
        |out_channels_per_group: usize, window: Window, has_bias: bool| Step::Convolution {
            groups: Groups::AtMost {
                groups: 1,
                out_channels_per_group,
            },
            window,
            has_bias,
        };
    let pads = prop_oneof![
        Just(Pads::SameUpper),
        Just(Pads::Valid),
        [0..=2_usize, 0..=2_usize, 0..=2_usize, 0..=2_usize].prop_map(Pads::Explicit),
    ];
    let sizes = (
        1..=3_usize,
        channels(),
        select(vec![16, 32, 48, 64]),
        prop_oneof![channels(), 60..=130_usize],
        vec(3..=22_usize, 2),
    );
    (sizes, pads, any::<[bool; 3]>(), follow(), any::<u64>()).prop_map(
        move |((batch, channels, inner, out_channels, image), pads, flags, follow, seed)| {
            let window = |kernel, pads| Window {
                is_one_dimensional: false,
                kernel: [kernel; 2],
                strides: [1; 2],
                dilations: [1; 2],
                pads,
            };
            let [has_bias, has_specials, is_dynamic] = flags;
            let steps = vec![
                convolution(inner, window(1, Pads::Valid), has_bias),
                convolution(out_channels, window(3, pads), has_bias),
            ];
            let last = vec![convolution(inner, window(1, Pads::Valid), has_bias)];
            Network {
                shape: [&[batch, channels], image.as_slice()].concat(),
                steps: [steps, follow, last].concat(),
                is_dynamic,
                has_specials,
                seed,
            }
        },
    )
}

pub(crate) fn transposed_convolution() -> impl Strategy<Value = Network> {
    let layer = any::<bool>().prop_flat_map(|is_line| {
        (
            image(is_line),
            window(is_line),
            [0..=2_usize, 0..=2_usize],
            any::<bool>(),
            follow(),
        )
    });
    let groups = (1..=4_usize, 1..=9_usize, 1..=9_usize);
    (1..=2_usize, groups, layer, any::<bool>(), any::<u64>()).prop_map(
        |(batch, (groups, channels_per_group, out_channels_per_group), layer, is_dynamic, seed)| {
            let (image, window, output_padding, has_bias, follow) = layer;
            let first = Step::ConvolutionTransposed {
                groups,
                out_channels_per_group,
                window,
                output_padding,
                has_bias,
            };
            Network {
                shape: [&[batch, groups * channels_per_group], image.as_slice()].concat(),
                steps: [vec![first], follow].concat(),
                is_dynamic,
                has_specials: false,
                seed,
            }
        },
    )
}

pub(crate) fn gemm() -> impl Strategy<Value = Network> {
    let addend = select(vec![
        Addend::None,
        Addend::Scalar,
        Addend::One,
        Addend::Row,
        Addend::RowMatrix,
        Addend::Column,
        Addend::Whole,
    ]);
    let scale = || prop_oneof![3 => Just(1.0_f32), 1 => -2.0..2.0_f32];
    let sizes = (rows(), extent(), extent());
    let transposed = (prop::bool::weighted(0.15), any::<bool>());
    let scales = (scale(), scale(), addend);
    let rest = (after_product(), any::<bool>(), any::<u64>());
    (sizes, transposed, scales, rest).prop_map(
        |((m, k, n), (is_x_transposed, is_weight_transposed), (alpha, beta, addend), rest)| {
            let (follow, is_dynamic, seed) = rest;
            let gemm = Step::Gemm {
                n,
                is_x_transposed,
                is_weight_transposed,
                alpha,
                beta,
                addend,
            };
            let takes_any_batch =
                !is_x_transposed && !matches!(addend, Addend::Column | Addend::Whole);
            Network {
                shape: if is_x_transposed {
                    vec![k, m]
                } else {
                    vec![m, k]
                },
                steps: [vec![gemm], follow].concat(),
                is_dynamic: is_dynamic && takes_any_batch,
                has_specials: false,
                seed,
            }
        },
    )
}

pub(crate) fn matrix_product() -> impl Strategy<Value = Network> {
    let outer = prop_oneof![
        Just(Vec::new()),
        rows().prop_map(|m| vec![m]),
        vec(1..=6_usize, 2),
        vec(1..=4_usize, 3),
    ];
    let sizes = (outer, extent(), extent());
    let kind = (prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    let rest = (after_product(), any::<bool>(), any::<u64>());
    (sizes, kind, rest).prop_map(|((outer, k, n), (from_left, is_batched), rest)| {
        let (follow, is_dynamic, seed) = rest;
        let (shape, product) = match outer.as_slice() {
            [m] if from_left => (vec![k, *m], Step::MatMulFromLeft { n }),
            _ => (
                [outer.as_slice(), &[k]].concat(),
                Step::MatMul { n, is_batched },
            ),
        };
        Network {
            is_dynamic: is_dynamic && matches!(product, Step::MatMul { .. }),
            shape,
            steps: [vec![product], follow].concat(),
            has_specials: false,
            seed,
        }
    })
}

/// 1 to 40, and what blocks of 8 and 16 channels just hold and just do not.
fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![
        2 => 1..=40_usize,
        1 => select(vec![7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33]),
    ]
}

/// The channels that come in, and how they are divided.
fn channels_and_groups() -> impl Strategy<Value = (usize, Groups)> {
    let undivided = (channels(), channels()).prop_map(|(channels, out_channels_per_group)| {
        let groups = Groups::AtMost {
            groups: 1,
            out_channels_per_group,
        };
        (channels, groups)
    });
    let depthwise = (channels(), 1..=2_usize)
        .prop_map(|(channels, multiplier)| (channels, Groups::Depthwise { multiplier }));
    let divided = (2..=5_usize, 1..=9_usize, 1..=9_usize).prop_map(
        |(groups, channels_per_group, out_channels_per_group)| {
            let channels = groups * channels_per_group;
            let groups = Groups::AtMost {
                groups,
                out_channels_per_group,
            };
            (channels, groups)
        },
    );
    prop_oneof![3 => undivided, 1 => depthwise, 1 => divided]
}

fn image(is_line: bool) -> BoxedStrategy<Vec<usize>> {
    if is_line {
        vec(1..=40_usize, 1).boxed()
    } else {
        vec(1..=14_usize, 2).boxed()
    }
}

fn window(is_one_dimensional: bool) -> impl Strategy<Value = Window> {
    let both = |strategy: BoxedStrategy<usize>| {
        prop_oneof![
            3 => strategy.clone().prop_map(|both| [both; 2]),
            1 => [strategy.clone(), strategy],
        ]
    };
    let kernel = both(prop_oneof![2 => Just(3_usize), 1 => Just(1), 2 => 1..=5_usize].boxed());
    let strides = both(prop_oneof![2 => Just(1_usize), 1 => 1..=3_usize].boxed());
    let dilations = both(prop_oneof![3 => Just(1_usize), 1 => 1..=3_usize].boxed());
    let pads = prop_oneof![
        2 => (0..=3_usize).prop_map(|pad| Pads::Explicit([pad; 4])),
        2 => [0..=3_usize, 0..=3_usize, 0..=3_usize, 0..=3_usize].prop_map(Pads::Explicit),
        1 => Just(Pads::SameUpper),
        1 => Just(Pads::SameLower),
        1 => Just(Pads::Valid),
    ];
    (kernel, strides, dilations, pads).prop_map(move |(kernel, strides, dilations, pads)| {
        Window {
            is_one_dimensional,
            kernel,
            strides,
            dilations,
            pads,
        }
        .flattened()
    })
}

/// In the order in which networks have them, or in any.
fn follow() -> impl Strategy<Value = Vec<Step>> {
    let add = || select(vec![Step::AddInput, Step::AddChannels]);
    let usual = (
        option::of(Just(Step::BatchNormalization)),
        option::of(add()),
        option::of(activation()),
    )
        .prop_map(|(normalization, add, activation)| {
            normalization
                .into_iter()
                .chain(add)
                .chain(activation)
                .collect()
        });
    let any = vec(
        prop_oneof![Just(Step::BatchNormalization), add(), activation()],
        0..=3,
    );
    prop_oneof![3 => usual, 1 => any]
}

fn after_product() -> impl Strategy<Value = Vec<Step>> {
    let add = || select(vec![Step::AddInput, Step::AddColumns]);
    let usual = (option::of(add()), option::of(activation()))
        .prop_map(|(add, activation)| add.into_iter().chain(activation).collect());
    let any = vec(prop_oneof![add(), activation()], 0..=3);
    prop_oneof![3 => usual, 1 => any]
}

fn activation() -> impl Strategy<Value = Step> {
    let clip = (-1.0..0.5_f32, 0.0..2.0_f32).prop_map(|(minimum, above)| Step::Clip {
        minimum,
        maximum: minimum + above,
    });
    prop_oneof![Just(Step::Relu), clip]
}

/// Rows of what a product is applied to: one is a case of its own.
fn rows() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), 1..=20_usize, 30..=70_usize]
}

fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![2 => 1..=70_usize, 1 => 100..=300_usize]
}
