//! Convolutions that are one node: against ONNX Runtime's own run of the plain model.

mod support;

use std::num::NonZeroUsize;

use occlude_engine::{LoadOptions, Model, ProtectedMemory, RunError};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::{ModelProto, NodeProto};
use support::{
    everything_streamed, floats, graph, integer, integers_attribute, model, node, opened, pattern,
    plain_run, runtime, two_threads, value, with,
};

const CHANNELS: i64 = 32;

/// Over `sides`: two branches of the first result that join again, and the image itself
/// added at the end. The last convolution's bias is an input.
fn branching(sides: &[i64]) -> ModelProto {
    let axes = sides.len();
    let kernel = |side: i64| [&[CHANNELS, CHANNELS][..], &vec![side; axes]].concat();
    let values = |name: &str, dims: Vec<i64>| {
        let count: i64 = dims.iter().product();
        floats(name, &dims, &pattern(count as usize))
    };
    let wide = |node: NodeProto| with(node, integers_attribute("pads", &vec![1; 2 * axes]));
    let image = [&[-1, CHANNELS][..], sides].concat();
    model(graph(
        vec![
            wide(node("Conv", &["x", "w0", "b0"], &["a"])),
            node("Relu", &["a"], &["b"]),
            node("Conv", &["b", "w1"], &["c"]),
            wide(node("Conv", &["b", "w0"], &["d"])),
            node("Add", &["c", "d"], &["e"]),
            node("Conv", &["e", "w2", "bias"], &["f"]),
            node("Add", &["f", "x"], &["y"]),
        ],
        vec![
            value("x", DataType::Float, &image),
            value("bias", DataType::Float, &[-1]),
        ],
        vec![value("y", DataType::Float, &image)],
        vec![
            values("w0", kernel(3)),
            values("w1", kernel(1)),
            values("w2", kernel(1)),
            values("b0", vec![CHANNELS]),
        ],
    ))
}

fn inputs(batch: i64, sides: &[i64], biases: usize) -> [(Vec<i64>, Vec<f32>); 2] {
    let dims = [&[batch, CHANNELS][..], sides].concat();
    let count: i64 = dims.iter().product();
    [
        (dims, pattern(count as usize)),
        (vec![biases as i64], pattern(biases)),
    ]
}

fn run(model: &Model, inputs: &[(Vec<i64>, Vec<f32>); 2]) -> Result<Vec<f32>, RunError> {
    let tensors = ["x", "bias"].into_iter().zip(inputs);
    let tensors = tensors.map(|(name, (dims, values))| {
        let dims = dims.iter().map(|&extent| extent as u64).collect();
        Tensor::from_values(name, dims, values).unwrap()
    });
    let answers = model.run(tensors.collect(), &[])?;
    Ok(answers[0].to_values().unwrap())
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |most, y| most.max(y.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let off = (found - expected).abs();
        assert!(off <= 1e-5 * largest, "{found} is not {expected}");
    }
}

#[test]
fn branches_and_residuals_give_the_plain_models_answers() {
    for sides in [&[9, 7][..], &[40]] {
        let plain = branching(sides);
        let container = opened(&plain);
        for options in [two_threads(), everything_streamed()] {
            let sealed = Model::load(runtime(), &container, &options).unwrap();
            for batch in [1, 3, 0, 2] {
                let inputs = inputs(batch, sides, CHANNELS as usize);
                let [(x_dims, x), (bias_dims, bias)] = &inputs;
                let expected = plain_run(&plain, &[("x", x_dims, x), ("bias", bias_dims, bias)]);
                assert_eq!(expected[0].is_empty(), batch == 0);
                assert_near(&run(&sealed, &inputs).unwrap(), &expected[0]);
            }
        }
    }
}

#[test]
fn a_step_that_fails_ends_the_run_and_leaves_the_model_usable() {
    let sides = [9, 7];
    let sealed = Model::load(runtime(), &opened(&branching(&sides)), &two_threads()).unwrap();
    let right = inputs(2, &sides, CHANNELS as usize);
    let expected = run(&sealed, &right).unwrap();
    for biases in [0, 31, 33] {
        let error = run(&sealed, &inputs(2, &sides, biases)).unwrap_err();
        assert_eq!(error.to_string(), "the model cannot run on this input");
    }
    assert_eq!(run(&sealed, &right).unwrap(), expected);
}

#[test]
fn callers_of_several_sessions_get_their_own_answers() {
    let sides = [9, 7];
    let plain = branching(&sides);
    let options = LoadOptions {
        sessions: NonZeroUsize::new(2).unwrap(),
        ..two_threads()
    };
    let sealed = Model::load(runtime(), &opened(&plain), &options).unwrap();
    std::thread::scope(|scope| {
        for caller in 1..=4 {
            let (plain, sealed) = (&plain, &sealed);
            scope.spawn(move || {
                let inputs = inputs(caller, &sides, CHANNELS as usize);
                let [(x_dims, x), (bias_dims, bias)] = &inputs;
                let expected = plain_run(plain, &[("x", x_dims, x), ("bias", bias_dims, bias)]);
                for _ in 0..50 {
                    assert_near(&run(sealed, &inputs).unwrap(), &expected[0]);
                }
            });
        }
    });
}

/// All twenty results would take 10 MiB.
#[test]
fn results_in_between_are_given_back_behind_their_last_reader() {
    let dims = [1, CHANNELS, 64, 64];
    let convolutions = (0..20).map(|step| {
        let [from, to] = [step, step + 1].map(|value| format!("x{value}"));
        node("Conv", &[&from, "w"], &[&to])
    });
    let container = opened(&model(graph(
        convolutions.collect(),
        vec![value("x0", DataType::Float, &dims)],
        vec![value("x20", DataType::Float, &dims)],
        vec![floats("w", &[CHANNELS, CHANNELS, 1, 1], &pattern(1024))],
    )));
    let options = LoadOptions {
        memory: ProtectedMemory::Bytes(4 << 20),
        largest: vec!["x0=1x32x64x64".parse().unwrap()],
        ..two_threads()
    };
    let sealed = Model::load(runtime(), &container, &options).unwrap();
    let x = Tensor::from_values("x0", vec![1, 32, 64, 64], &pattern(32 * 64 * 64));
    sealed.run(vec![x.unwrap()], &[]).unwrap();
}

/// Three channels for each of 32, a depthwise convolution of these, `stride` places
/// further from one to the next, and what another one makes of the 32 added to it.
fn expanding(stride: i64) -> ModelProto {
    let values = |name: &str, dims: &[i64]| {
        let count: i64 = dims.iter().product();
        floats(name, dims, &pattern(count as usize))
    };
    let each = with(node("Conv", &["b", "taps"], &["c"]), integer("group", 96));
    let attributes = [
        integers_attribute("pads", &[1; 4]),
        integers_attribute("strides", &[stride; 2]),
    ];
    let each = attributes.into_iter().fold(each, with);
    let beside = with(
        node("Conv", &["s", "w1"], &["d"]),
        integers_attribute("strides", &[stride; 2]),
    );
    model(graph(
        vec![
            node("Conv", &["x", "w"], &["s"]),
            beside,
            node("Conv", &["s", "w0", "b0"], &["a"]),
            node("Relu", &["a"], &["b"]),
            each,
            node("Add", &["c", "d"], &["e"]),
            node("Relu", &["e"], &["f"]),
            node("Conv", &["f", "w2"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[-1, CHANNELS, -1, -1])],
        vec![value("y", DataType::Float, &[-1, CHANNELS, -1, -1])],
        vec![
            values("w", &[CHANNELS, CHANNELS, 1, 1]),
            values("w0", &[96, CHANNELS, 1, 1]),
            values("b0", &[96]),
            values("taps", &[96, 1, 3, 3]),
            values("w1", &[96, CHANNELS, 1, 1]),
            values("w2", &[CHANNELS, 96, 1, 1]),
        ],
    ))
}

fn run_expanding(sealed: &Model, dims: &[i64]) -> Vec<f32> {
    let count: i64 = dims.iter().product();
    let shape = dims.iter().map(|&extent| extent as u64).collect();
    let x = Tensor::from_values("x", shape, &pattern(count as usize)).unwrap();
    sealed.run(vec![x], &[]).unwrap()[0].to_values().unwrap()
}

#[test]
fn a_large_expansion_gives_the_plain_models_answer() {
    for stride in [1, 2] {
        let plain = expanding(stride);
        let container = opened(&plain);
        for options in [two_threads(), everything_streamed()] {
            let sealed = Model::load(runtime(), &container, &options).unwrap();
            // Large ones, and some that are not.
            for dims in [
                [1, CHANNELS, 64, 72],
                [2, CHANNELS, 61, 57],
                [3, CHANNELS, 9, 7],
            ] {
                let count: i64 = dims.iter().product();
                let expected = plain_run(&plain, &[("x", &dims, &pattern(count as usize))]);
                assert_near(&run_expanding(&sealed, &dims), &expected[0]);
            }
        }
    }
}

/// It would take 6 MiB, beside the 7.5 of what is read, added and made.
#[test]
fn a_large_expansion_never_exists_as_a_whole() {
    let options = LoadOptions {
        memory: ProtectedMemory::Bytes(10 << 20),
        largest: vec!["x=1x32x128x128".parse().unwrap()],
        ..two_threads()
    };
    let sealed = Model::load(runtime(), &opened(&expanding(2)), &options).unwrap();
    let dims = [1, CHANNELS, 128, 128];
    let expected = plain_run(&expanding(2), &[("x", &dims, &pattern(32 * 128 * 128))]);
    assert_near(&run_expanding(&sealed, &dims), &expected[0]);
}
