//! Weights of 16, 8 and 4 bits: streamed in the width that the model stores, and computed
//! with by ONNX Runtime's own operators; the reference is its run of the plain model.

mod support;

use occlude_engine::{LoadError, LoadOptions, Model, ProtectedMemory};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::{ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use support::{
    everything_streamed, floats, graph, integer, integers_attribute, model, node, opened, pattern,
    plain_run, runtime, tensor, two_threads, value, with,
};

const ROWS: usize = 3;
const K: usize = 96;
const N: usize = 80;

/// A model whose input `x` and output `y` are FP32, and what is expected of it.
struct Case {
    model: ModelProto,
    x: Vec<i64>,
    /// Bytes of the weights that are to be streamed, as the model stores them.
    stored: u64,
    /// How far answers may be from plain ONNX Runtime's, as a part of the largest.
    tolerance: f32,
}

fn product(nodes: Vec<NodeProto>, weights: Vec<TensorProto>, stored: usize) -> Case {
    let (rows, k, n) = (ROWS as i64, K as i64, N as i64);
    Case {
        model: model(graph(
            nodes,
            vec![value("x", DataType::Float, &[rows, k])],
            vec![value("y", DataType::Float, &[rows, n])],
            weights,
        )),
        x: vec![rows, k],
        stored: stored as u64,
        tolerance: 0.0,
    }
}

/// A convolution of 16 to 24 channels, 3 x 3.
fn convolution(nodes: Vec<NodeProto>, weights: Vec<TensorProto>, stored: usize) -> Case {
    Case {
        model: model(graph(
            nodes,
            vec![value("x", DataType::Float, &[1, 16, 9, 9])],
            vec![value("y", DataType::Float, &[1, 24, 7, 7])],
            weights,
        )),
        x: vec![1, 16, 9, 9],
        stored: stored as u64,
        tolerance: 0.0,
    }
}

const KERNEL: [i64; 4] = [24, 16, 3, 3];
const KERNEL_NUMBERS: usize = 24 * 16 * 9;

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 37 % 251) as u8).collect()
}

fn int8(name: &str, dims: &[i64]) -> TensorProto {
    let count: i64 = dims.iter().product();
    tensor(name, DataType::Int8, dims, bytes(count as usize))
}

/// Numbers of seven bits: where the processor lacks VNNI, plain ONNX Runtime adds products
/// of bytes in pairs of 16 bits that saturate, and with eight bits its answers are wrong.
fn seven_bits(name: &str, dims: &[i64]) -> TensorProto {
    let count: i64 = dims.iter().product();
    let bytes = bytes(count as usize).into_iter();
    let halves = bytes.map(|byte| (byte.cast_signed() / 2).cast_unsigned());
    tensor(name, DataType::Int8, dims, halves.collect())
}

/// Numbers of 1 + 10 + 5 bits: sixteenths, which have all bits that FP16 needs.
fn half_bits(count: usize) -> Vec<u8> {
    let halves = [
        0x2c00_u16, 0xb000, 0x3400, 0xb800, 0x3a00, 0xae00, 0x3100, 0x3600, 0xb480,
    ];
    (0..count)
        .flat_map(|index| halves[index * 5 % halves.len()].to_le_bytes())
        .collect()
}

fn half(name: &str, dims: &[i64]) -> TensorProto {
    let count: i64 = dims.iter().product();
    tensor(name, DataType::Float16, dims, half_bits(count as usize))
}

fn one_byte(name: &str, data_type: DataType, byte: u8) -> TensorProto {
    tensor(name, data_type, &[], vec![byte])
}

fn scalar(name: &str, value: f32) -> TensorProto {
    floats(name, &[], &[value])
}

fn cast(from: &str, to: &str, data_type: DataType) -> NodeProto {
    with(
        node("Cast", &[from], &[to]),
        integer("to", i64::from(data_type.number())),
    )
}

fn input_scales() -> Vec<TensorProto> {
    vec![
        scalar("x_scale", 0.01),
        one_byte("x_zero", DataType::Uint8, 120),
        scalar("w_scale", 0.02),
        one_byte("w_zero", DataType::Int8, 3),
        scalar("y_scale", 0.05),
        one_byte("y_zero", DataType::Uint8, 110),
    ]
}

const QUANTIZED: [&str; 3] = ["x", "x_scale", "x_zero"];

/// Every weight streamed, but not scales and zero points.
fn weights_streamed() -> LoadOptions {
    LoadOptions {
        smallest_streamed: 512,
        ..everything_streamed()
    }
}

/// Runs the model streamed and resident, and compares with the plain one.
fn check(case: &Case) {
    let count: i64 = case.x.iter().product();
    let x = pattern(count as usize);
    let expected = plain_run(&case.model, &[("x", &case.x, &x)]).remove(0);
    let largest = expected.iter().fold(0.0_f32, |most, y| most.max(y.abs()));
    assert!(largest > 0.0);
    let container = opened(&case.model);
    for (options, streamed) in [(weights_streamed(), true), (two_threads(), false)] {
        let model = Model::load(runtime(), &container, &options).unwrap();
        let before = model.opened_bytes();
        let shape = case.x.iter().map(|&extent| extent as u64).collect();
        let request = vec![Tensor::from_values("x", shape, &x).unwrap()];
        let answer = model.run(request, &[]).unwrap().remove(0);
        let opened = model.opened_bytes() - before;
        assert_eq!(opened, if streamed { case.stored } else { 0 });
        let found: Vec<f32> = answer.to_values().unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            let off = (found - expected).abs();
            assert!(
                off <= case.tolerance * largest,
                "{found} is not {expected}, off by {} of the largest",
                off / largest
            );
        }
    }
}

#[test]
fn matmulinteger_streams_a_byte_for_each_weight() {
    check(&product(
        vec![
            node("DynamicQuantizeLinear", &["x"], &["q", "scale", "zero"]),
            node("MatMulInteger", &["q", "w", "zero"], &["sums"]),
            cast("sums", "y", DataType::Float),
        ],
        vec![int8("w", &[K as i64, N as i64])],
        K * N,
    ));
}

/// The pattern that ONNX Runtime's quantizer makes of MatMul.
#[test]
fn dynamically_quantized_products_stream_a_byte_for_each_weight() {
    let case = product(
        vec![
            node("DynamicQuantizeLinear", &["x"], &["q", "scale", "zero"]),
            node("MatMulInteger", &["q", "w", "zero", "w_zero"], &["sums"]),
            cast("sums", "numbers", DataType::Float),
            node("Mul", &["scale", "w_scale"], &["scales"]),
            node("Mul", &["numbers", "scales"], &["y"]),
        ],
        [vec![int8("w", &[K as i64, N as i64])], input_scales()].concat(),
        K * N,
    );
    // The plain one is fused into an operator that rounds once less.
    check(&Case {
        tolerance: 1e-6,
        ..case
    });
}

#[test]
fn qlinearmatmul_streams_a_byte_for_each_weight() {
    check(&product(
        vec![
            node("QuantizeLinear", &QUANTIZED, &["q"]),
            node(
                "QLinearMatMul",
                &[
                    "q", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero",
                ],
                &["product"],
            ),
            node(
                "DequantizeLinear",
                &["product", "y_scale", "y_zero"],
                &["y"],
            ),
        ],
        [vec![int8("w", &[K as i64, N as i64])], input_scales()].concat(),
        K * N,
    ));
}

#[test]
fn qlinearconv_streams_a_byte_for_each_weight() {
    check(&convolution(
        vec![
            node("QuantizeLinear", &QUANTIZED, &["q"]),
            node(
                "QLinearConv",
                &[
                    "q", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero",
                ],
                &["convolved"],
            ),
            node(
                "DequantizeLinear",
                &["convolved", "y_scale", "y_zero"],
                &["y"],
            ),
        ],
        [vec![int8("w", &KERNEL)], input_scales()].concat(),
        KERNEL_NUMBERS,
    ));
}

#[test]
fn convinteger_streams_a_byte_for_each_weight() {
    let kernel = tensor("w", DataType::Uint8, &KERNEL, bytes(KERNEL_NUMBERS));
    check(&convolution(
        vec![
            node("DynamicQuantizeLinear", &["x"], &["q", "scale", "zero"]),
            node("ConvInteger", &["q", "w", "zero"], &["sums"]),
            cast("sums", "y", DataType::Float),
        ],
        vec![kernel],
        KERNEL_NUMBERS,
    ));
}

/// A product whose weights are dequantized first: all alike, or each column in its own way.
fn dequantized(by_column: bool) -> (Case, impl Fn(usize, usize) -> f64) {
    let scales: Vec<f32> = (1..=N).map(|column| column as f32 / 1000.0).collect();
    let names = if by_column {
        ["w", "scales", "zeros"]
    } else {
        ["w", "w_scale", "w_zero"]
    };
    let own = vec![
        int8("w", &[K as i64, N as i64]),
        floats("scales", &[N as i64], &scales),
        int8("zeros", &[N as i64]),
    ];
    let case = product(
        vec![
            with(
                node("DequantizeLinear", &names, &["wide"]),
                integer("axis", 1),
            ),
            node("MatMul", &["x", "wide"], &["y"]),
        ],
        [own, input_scales()].concat(),
        K * N,
    );
    let weight = move |k: usize, column: usize| {
        let weights = bytes(K * N);
        let (zero, scale) = if by_column {
            (bytes(N)[column].cast_signed(), scales[column])
        } else {
            (3, 0.02)
        };
        let weight = weights[k * N + column].cast_signed();
        (f64::from(weight) - f64::from(zero)) * f64::from(scale)
    };
    (case, weight)
}

#[test]
fn dequantized_weights_are_streamed_before_they_are_dequantized() {
    let convolved = convolution(
        vec![
            node("DequantizeLinear", &["w", "w_scale", "w_zero"], &["wide"]),
            node("Conv", &["x", "wide"], &["y"]),
        ],
        [vec![int8("w", &KERNEL)], input_scales()].concat(),
        KERNEL_NUMBERS,
    );
    // The plain products are fused into an operator that rounds activations to 8 bits.
    for case in [dequantized(false).0, dequantized(true).0, convolved] {
        check(&Case {
            tolerance: 1e-2,
            ..case
        });
    }
}

/// Sums with what the operator's definition makes of each weight, `(w - zero) * scale`, in
/// double precision: nearer than plain ONNX Runtime comes.
#[test]
fn dequantized_products_are_those_of_the_definition() {
    for by_column in [false, true] {
        let (case, weight) = dequantized(by_column);
        let x = pattern(ROWS * K);
        let container = opened(&case.model);
        let model = Model::load(runtime(), &container, &weights_streamed()).unwrap();
        let shape = vec![ROWS as u64, K as u64];
        let request = vec![Tensor::from_values("x", shape, &x).unwrap()];
        let y: Vec<f32> = model.run(request, &[]).unwrap()[0].to_values().unwrap();
        for (index, y) in y.iter().enumerate() {
            let (row, column) = (index / N, index % N);
            let terms = (0..K).map(|k| f64::from(x[row * K + k]) * weight(k, column));
            let exact: f64 = terms.sum();
            assert!((f64::from(*y) - exact).abs() <= 1e-4, "{y} is not {exact}");
        }
    }
}

/// Activations and weights between quantizing and dequantizing operators, which the plain
/// model's optimizers make integer operators of.
#[test]
fn quantized_models_with_dequantizelinear_stream_a_byte_for_each_weight() {
    let case = product(
        vec![
            node("QuantizeLinear", &QUANTIZED, &["q"]),
            node("DequantizeLinear", &["q", "x_scale", "x_zero"], &["xd"]),
            node("DequantizeLinear", &["w", "w_scale", "w_zero"], &["wd"]),
            node("MatMul", &["xd", "wd"], &["product"]),
            node("QuantizeLinear", &["product", "y_scale", "y_zero"], &["p"]),
            node("DequantizeLinear", &["p", "y_scale", "y_zero"], &["y"]),
        ],
        [vec![seven_bits("w", &[K as i64, N as i64])], input_scales()].concat(),
        K * N,
    );
    // Up to one step of the output, 0.05, where a sum lies between two.
    check(&Case {
        tolerance: 0.02,
        ..case
    });
}

#[test]
fn fp16_weights_are_streamed_as_fp16() {
    let product_of = |operator: &str| {
        product(
            vec![
                cast("x", "xh", DataType::Float16),
                node(operator, &["xh", "w"], &["yh"]),
                cast("yh", "y", DataType::Float),
            ],
            vec![half("w", &[K as i64, N as i64])],
            2 * K * N,
        )
    };
    let convolved = convolution(
        vec![
            cast("x", "xh", DataType::Float16),
            with(
                node("Conv", &["xh", "w"], &["yh"]),
                integers_attribute("kernel_shape", &[3, 3]),
            ),
            cast("yh", "y", DataType::Float),
        ],
        vec![half("w", &KERNEL)],
        2 * KERNEL_NUMBERS,
    );
    // One unit in the last place of FP16.
    for case in [product_of("MatMul"), product_of("Gemm"), convolved] {
        check(&Case {
            tolerance: 1.0 / 1024.0,
            ..case
        });
    }
}

#[test]
fn narrow_weights_that_are_widened_first_are_streamed_narrow() {
    let stored = [
        half("w", &[K as i64, N as i64]),
        tensor(
            "w",
            DataType::Bfloat16,
            &[K as i64, N as i64],
            half_bits(K * N),
        ),
    ];
    for weight in stored {
        let case = product(
            vec![
                cast("w", "wide", DataType::Float),
                node("MatMul", &["x", "wide"], &["y"]),
            ],
            vec![weight],
            2 * K * N,
        );
        check(&Case {
            tolerance: 1e-5,
            ..case
        });
    }
}

/// Four bits for each weight, and a scale for 32 of them.
#[test]
fn matmulnbits_streams_half_a_byte_for_each_weight() {
    let blocks = K / 32;
    let mut multiply = node("MatMulNBits", &["x", "w", "scales"], &["y"]);
    multiply.domain = "com.microsoft".to_owned();
    for (name, number) in [("K", K), ("N", N), ("bits", 4), ("block_size", 32)] {
        multiply.attribute.push(integer(name, number as i64));
    }
    let dims = [N as i64, blocks as i64, 16];
    let weight = tensor("w", DataType::Uint8, &dims, bytes(K * N / 2));
    let scales: Vec<f32> = (1..=N * blocks).map(|block| block as f32 / 1e3).collect();
    let mut case = product(
        vec![multiply],
        vec![weight, floats("scales", &[(N * blocks) as i64], &scales)],
        K * N / 2 + 4 * N * blocks,
    );
    case.model.opset_import.push(OperatorSetIdProto {
        domain: "com.microsoft".to_owned(),
        version: 1,
    });
    // The plain one computes on packed weights, with activations of 8 bits where that is
    // quicker.
    check(&Case {
        tolerance: 0.02,
        ..case
    });
}

/// ONNX Runtime's operators on CPUs compute in FP32: what a run takes has room for the
/// weight in both widths.
#[test]
fn a_budget_counts_the_width_that_is_computed_with() {
    const SIDE: usize = 512;
    let side = SIDE as i64;
    let container = opened(&model(graph(
        vec![
            cast("x", "xh", DataType::Float16),
            node("MatMul", &["xh", "w"], &["yh"]),
            cast("yh", "y", DataType::Float),
        ],
        vec![value("x", DataType::Float, &[1, side])],
        vec![value("y", DataType::Float, &[1, side])],
        vec![half("w", &[side, side])],
    )));
    let options = LoadOptions {
        memory: ProtectedMemory::Bytes(1),
        ..everything_streamed()
    };
    let error = Model::load(runtime(), &container, &options).unwrap_err();
    let LoadError::Budget {
        working, resident, ..
    } = error
    else {
        panic!("{error}");
    };
    let (stored, executed) = (2 * SIDE * SIDE, 4 * SIDE * SIDE);
    assert_eq!(resident, 0);
    assert!(working as usize >= stored + executed, "{working}");
    assert!(
        working as usize <= stored + executed + (256 << 10),
        "{working}"
    );
}
