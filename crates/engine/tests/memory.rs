//! What loading costs in memory. Alone in its process, whose memory it measures.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use occlude_engine::Model;
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use support::{floats, graph, model, node, one_thread, opened, pattern, runtime, value};

const WIDTH: usize = 1024;
const LAYERS: usize = 32;
const WEIGHTS: u64 = (LAYERS * WIDTH * WIDTH * 4) as u64;

#[test]
fn loading_and_running_takes_at_most_a_quarter_more_than_the_weights() {
    let square = pattern(WIDTH * WIDTH);
    let container = opened(&model(graph(
        (0..LAYERS)
            .map(|layer| {
                let (input, weight) = (format!("x{layer}"), format!("weight{layer}"));
                node("MatMul", &[&input, &weight], &[&format!("x{}", layer + 1)])
            })
            .collect(),
        vec![value("x0", DataType::Float, &[1, WIDTH as i64])],
        vec![value(
            &format!("x{LAYERS}"),
            DataType::Float,
            &[1, WIDTH as i64],
        )],
        (0..LAYERS)
            .map(|layer| {
                let dims = [WIDTH as i64; 2];
                floats(&format!("weight{layer}"), &dims, &square)
            })
            .collect(),
    )));
    let runtime = runtime();
    let before = anonymous_memory();

    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_memory(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let loaded = Model::load(runtime, &container, &one_thread()).unwrap();
        let x = Tensor::from_values("x0", vec![1, WIDTH as u64], &pattern(WIDTH)).unwrap();
        loaded.run(vec![x], &[]).unwrap();
        done.store(true, Ordering::Relaxed);
        loaded
    });
    let growth = peak.into_inner().max(anonymous_memory()) - before;
    assert!(
        growth >= WEIGHTS,
        "{growth} bytes cannot hold {WEIGHTS} bytes of weights"
    );
    assert!(
        growth <= WEIGHTS / 4 * 5,
        "{growth} bytes for {WEIGHTS} bytes of weights"
    );

    drop(loaded);
    let kept = anonymous_memory().saturating_sub(before);
    assert!(
        kept <= WEIGHTS / 4,
        "{kept} bytes stay after the model is dropped"
    );
}

/// `RssAnon` of this process in bytes.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kibibytes: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    kibibytes * 1024
}
