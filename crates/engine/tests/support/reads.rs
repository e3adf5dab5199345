//! What whoever watches the store sees of runs on random inputs of one shape.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use occlude_engine::{
    LibrarySearch, LoadError, LoadOptions, Model, ProtectedMemory, Runtime, RuntimeOptions, Spill,
};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::ModelProto;

use crate::support::{self, floats, graph, integers_attribute, model, node, pattern, value, with};

/// Runs on random inputs.
const RUNS: usize = 100;

const SIDE: usize = 10;
const WIDE: usize = 1200;

/// Two branches, so that layers have no order but the one that ONNX Runtime gives them,
/// and more bytes than one read takes.
fn network() -> ModelProto {
    let convolution = |inputs: &[&str], output: &str| {
        with(
            with(
                node("Conv", inputs, &[output]),
                integers_attribute("kernel_shape", &[3, 3]),
            ),
            integers_attribute("pads", &[1, 1, 1, 1]),
        )
    };
    let side = SIDE as i64;
    let kernel = |name: &str, channels: i64| {
        let numbers = (64 * channels * 9) as usize;
        floats(name, &[64, channels, 3, 3], &pattern(numbers))
    };
    let wide = WIDE as i64;
    model(graph(
        vec![
            convolution(&["x", "k0"], "c0"),
            node("Relu", &["c0"], &["a0"]),
            convolution(&["a0", "k1"], "c1"),
            node("Relu", &["c1"], &["a1"]),
            convolution(&["a1", "k2"], "c2"),
            convolution(&["a0", "k3"], "shortcut"),
            node("Add", &["c2", "shortcut"], &["sum"]),
            node("GlobalAveragePool", &["sum"], &["pooled"]),
            node("Flatten", &["pooled"], &["features"]),
            node("MatMul", &["features", "w0"], &["m0"]),
            node("Relu", &["m0"], &["b0"]),
            node("MatMul", &["b0", "w1"], &["m1"]),
            node("MatMul", &["m1", "w2"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[1, 16, side, side])],
        vec![value("y", DataType::Float, &[1, wide])],
        vec![
            kernel("k0", 16),
            kernel("k1", 64),
            kernel("k2", 64),
            kernel("k3", 64),
            floats("w0", &[64, wide], &pattern(64 * WIDE)),
            floats("w1", &[wide, wide], &pattern(WIDE * WIDE)),
            floats("w2", &[wide, wide], &pattern(WIDE * WIDE)),
        ],
    ))
}

/// This program's folder: on a disk where programs are built on one.
pub(crate) fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

type Reads = Vec<(u64, usize)>;

/// The reads that each run saw, with everything streamed from `spill`; none where this
/// folder has no direct I/O. Before them there is one run that nobody watches, since the
/// order of layers shows in it.
pub(crate) fn reads_of_runs(threads: NonZeroUsize, spill: Spill) -> Option<Vec<Reads>> {
    let search = LibrarySearch::only(support::library_path());
    let spinning = false;
    let runtime = Runtime::load_with(&search, &RuntimeOptions { threads, spinning }).unwrap();
    let options = LoadOptions {
        memory: ProtectedMemory::WeightShare(0.0),
        smallest_streamed: 0,
        spill,
        ..support::two_threads()
    };
    let model = match Model::load(runtime, &support::opened(&network()), &options) {
        Err(error @ LoadError::Resources { .. }) if error.to_string().contains("on a disk") => {
            println!("skipped: {error}");
            return None;
        }
        model => model.unwrap(),
    };
    let mut state = 7_u64;
    let mut run = || {
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..16 * SIDE * SIDE).map(|_| random()).collect();
        let shape = vec![1, 16, SIDE as u64, SIDE as u64];
        model
            .run(vec![Tensor::from_values("x", shape, &values).unwrap()], &[])
            .unwrap();
    };
    run();
    // The second run is read in the order of the first from its start on.
    run();
    let seen = Arc::new(Mutex::new(Reads::new()));
    let lock = |seen: &Mutex<Reads>| {
        std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
    };
    model.observe_reads({
        let seen = Arc::clone(&seen);
        move |offset, length| seen.lock().unwrap().push((offset, length))
    });
    let each = (0..RUNS)
        .map(|_| {
            run();
            lock(&seen)
        })
        .collect();
    drop(model);
    Some(each)
}

/// Reads ahead come between runs too, so runs are told apart by what they read: the same
/// reads, round after round, from wherever the first one was.
pub(crate) fn is_one_cycle(reads: &[(u64, usize)]) -> bool {
    let first = reads.first();
    let Some(cycle) = reads.iter().skip(1).position(|read| Some(read) == first) else {
        return false;
    };
    let cycle = cycle + 1;
    // Each read once, and all of them again and again.
    let mut distinct: Vec<_> = reads[..cycle].to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    distinct.len() == cycle
        && reads.len() / cycle >= RUNS - 1
        && reads
            .iter()
            .enumerate()
            .all(|(index, read)| *read == reads[index % cycle])
}
