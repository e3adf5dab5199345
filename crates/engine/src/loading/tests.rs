//! What ONNX Runtime makes of a graph whose weights it must not read.
//!
//! The dump of the optimised graph exists here only.

use std::collections::BTreeSet;

use occlude_onnx::messages::{GraphProto, ModelProto};
use prost::Message;

use super::*;
use crate::support::{
    floats, graph, integers_attribute, model, node, one_thread, opened, pattern, runtime, value,
    with,
};

/// Large enough for the container to take it out of the skeleton.
const LARGE: usize = 1024;

/// Every operator here has a fusion, folding or layout change that would compute
/// with the weights' values if it took them for constants.
fn tempting() -> ModelProto {
    let channels = 256;
    let vector = |name: &str| {
        let values: Vec<f32> = pattern(channels).iter().map(|value| value + 1.0).collect();
        floats(name, &[channels as i64], &values)
    };
    model(graph(
        vec![
            with(
                node("Conv", &["image", "kernel"], &["convolved"]),
                integers_attribute("kernel_shape", &[1, 1]),
            ),
            node(
                "BatchNormalization",
                &["convolved", "scale", "shift", "mean", "variance"],
                &["normal"],
            ),
            node("Mul", &["normal", "gain"], &["gained"]),
            node("Add", &["gained", "offset"], &["moved"]),
            node("Relu", &["moved"], &["active"]),
            node("GlobalAveragePool", &["active"], &["pooled"]),
            node("Flatten", &["pooled"], &["features"]),
            with(
                node("Transpose", &["classes"], &["transposed"]),
                integers_attribute("perm", &[1, 0]),
            ),
            node("MatMul", &["features", "transposed"], &["scores"]),
            node("Add", &["scores", "prior"], &["y"]),
        ],
        vec![value(
            "image",
            occlude_onnx::DataType::Float,
            &[1, 16, 4, 4],
        )],
        vec![value("y", occlude_onnx::DataType::Float, &[1, 300])],
        vec![
            floats("kernel", &[256, 16, 1, 1], &pattern(256 * 16)),
            vector("scale"),
            vector("shift"),
            vector("mean"),
            vector("variance"),
            floats("gain", &[256, 1, 1], &pattern(256)),
            floats("offset", &[256, 1, 1], &pattern(256)),
            floats("classes", &[300, 256], &pattern(300 * 256)),
            floats("prior", &[300], &pattern(300)),
        ],
    ))
}

/// Names of the initializers of `LARGE` bytes or more.
fn large_initializers(graph: &GraphProto) -> BTreeSet<String> {
    graph
        .initializer
        .iter()
        .filter(|tensor| 4 * tensor.dims.iter().product::<i64>() >= LARGE as i64)
        .map(|tensor| tensor.name.clone())
        .collect()
}

/// Every weight is left to ONNX Runtime.
const BORROWING: RewriteOptions = RewriteOptions {
    sealed_operators: false,
    block: None,
    smallest_streamed: u64::MAX,
};

fn no_layers() -> Arc<Layers> {
    Arc::new(Layers::new(8, 1, Vec::new(), None, 1))
}

/// The graph after ONNX Runtime's optimisations, at the engine's level or another.
fn optimized(model: &ModelProto, level: GraphOptimizationLevel) -> GraphProto {
    let container = opened(model);
    let options = one_thread();
    let emitted = survey(&container, &BORROWING)
        .unwrap()
        .emit(&|_| true)
        .unwrap();
    let places = places(&emitted.weights).unwrap();
    let weights = open_weights(&container, &emitted.weights, &places, &options).unwrap();
    let zeros = zeros_folder(&container).unwrap();
    let dump = zeros.path().join("optimized.onnx");
    let builder = session_builder(runtime(), zeros.path())
        .unwrap()
        .with_optimization_level(level)
        .unwrap()
        .with_optimized_model_path(&dump)
        .unwrap();
    let started = start_sessions(
        runtime(),
        Ok(builder),
        &emitted,
        &places,
        &weights,
        &no_layers(),
        &options,
    );
    assert_eq!(started.unwrap().len(), 1);
    let dumped = std::fs::read(&dump).unwrap();
    ModelProto::decode(dumped.as_slice())
        .unwrap()
        .graph
        .unwrap()
}

#[test]
fn onnx_runtime_keeps_the_set_of_initializers() {
    let model = tempting();
    let sealed = large_initializers(model.graph.as_ref().unwrap());
    assert_eq!(sealed.len(), 9);
    assert_eq!(large_initializers(&optimized(&model, OPTIMIZATION)), sealed);
}

#[test]
fn even_layout_optimisations_keep_the_set_of_initializers() {
    let model = tempting();
    let sealed = large_initializers(model.graph.as_ref().unwrap());
    let kept = large_initializers(&optimized(&model, GraphOptimizationLevel::All));
    assert_eq!(kept, sealed);
}

#[test]
fn the_skeleton_given_to_onnx_runtime_holds_no_weight() {
    let model = tempting();
    let container = opened(&model);
    let emitted = survey(&container, &BORROWING)
        .unwrap()
        .emit(&|_| true)
        .unwrap();
    for initializer in model.graph.unwrap().initializer {
        for window in initializer.raw_data.unwrap().windows(16).step_by(16) {
            assert!(!emitted.model.windows(16).any(|found| found == window));
        }
    }
}

#[test]
fn weights_start_at_cache_lines_and_do_not_overlap() {
    let weight = |length| Weight {
        name: String::new(),
        data_type: occlude_onnx::DataType::Uint8,
        dims: vec![],
        source: Source::Sealed(SealedTensor { index: 0, length }),
    };
    let places = places(&[weight(1), weight(64), weight(65), weight(0)]).unwrap();
    assert_eq!(places, [0, 64, 128, 256, 256]);
}
