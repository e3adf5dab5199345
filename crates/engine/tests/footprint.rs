//! A budget that covers the process too. Alone in its process, whose memory it measures.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use occlude_engine::{LoadError, LoadOptions, Model, ProcessMemory, ProtectedMemory, memory};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use support::{floats, graph, model, node, opened, pattern, runtime, two_threads, value};

const WIDTH: usize = 1024;
const LAYERS: usize = 8;

#[test]
fn a_process_that_loads_and_runs_stays_within_its_budget() {
    let square = pattern(WIDTH * WIDTH);
    let names = |layer: usize| (format!("x{layer}"), format!("w{layer}"));
    let side = WIDTH as i64;
    let layers = (0..LAYERS).map(|layer| {
        let (x, w) = names(layer);
        node("MatMul", &[&x, &w], &[&names(layer + 1).0])
    });
    let weights = (0..LAYERS).map(|layer| floats(&names(layer).1, &[side, side], &square));
    let container = opened(&model(graph(
        layers.collect(),
        vec![value("x0", DataType::Float, &[-1, side])],
        vec![value(&names(LAYERS).0, DataType::Float, &[-1, side])],
        weights.collect(),
    )));
    drop(square);
    let runtime = runtime();
    let options = |budget| LoadOptions {
        memory: ProtectedMemory::Bytes(budget),
        process: ProcessMemory::Measured,
        largest: vec!["x0=64x1024".parse().unwrap()],
        ..two_threads()
    };
    let budget = 40 << 20;
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(memory::anonymous().unwrap(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let run = || {
            let loaded = Model::load(runtime, &container, &options(budget))?;
            for _ in 0..5 {
                let x = Tensor::from_values("x0", vec![64, WIDTH as u64], &pattern(64 * WIDTH));
                loaded.run(vec![x.unwrap()], &[]).unwrap();
            }
            Ok::<usize, LoadError>(loaded.resident_bytes())
        };
        let ran = run();
        // Before anything here fails: the scope waits for the thread that looks.
        done.store(true, Ordering::Relaxed);
        ran
    });
    let resident = ran.unwrap();
    // What the process and the runs leave: not everything, and not nothing.
    assert!((8 << 20..28 << 20).contains(&resident), "{resident}");
    let peak = peak.into_inner();
    assert!(peak <= budget, "{peak} bytes under a budget of {budget}");
}
