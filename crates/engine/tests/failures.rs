//! Requests that fail side by side: each gets its own error. Alone in its process, whose
//! store of streamed weights it alters.

mod support;

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;

use occlude_engine::{LoadOptions, Model, RunError};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use support::{everything_streamed, floats, graph, model, node, opened, pattern, runtime, value};

const SIDE: usize = 128;
const REQUESTS: usize = 500;

/// `y = Reshape(x, shape) * w`: a `shape` that `x` does not have fails before any weight
/// is opened.
fn picky() -> Model {
    let side = SIDE as i64;
    let container = opened(&model(graph(
        vec![
            node("Reshape", &["x", "shape"], &["shaped"]),
            node("MatMul", &["shaped", "w"], &["y"]),
        ],
        vec![
            value("x", DataType::Float, &[side]),
            value("shape", DataType::Int64, &[2]),
        ],
        vec![value("y", DataType::Float, &[-1, side])],
        vec![floats("w", &[side, side], &pattern(SIDE * SIDE))],
    )));
    let options = LoadOptions {
        sessions: const { NonZeroUsize::new(2).unwrap() },
        ..everything_streamed()
    };
    Model::load(runtime(), &container, &options).unwrap()
}

fn run(model: &Model, shape: [i64; 2]) -> Result<Vec<Tensor>, RunError> {
    let x = Tensor::from_values("x", vec![SIDE as u64], &pattern(SIDE)).unwrap();
    let shape = Tensor::from_values("shape", vec![2], &shape).unwrap();
    model.run(vec![x, shape], &[])
}

#[test]
fn requests_that_fail_at_the_same_time_get_their_own_errors() {
    let model = picky();
    let (right, wrong) = ([1, SIDE as i64], [3, SIDE as i64]);
    run(&model, right).unwrap();
    let store = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let target = std::fs::read_link(path).unwrap_or_default();
            target.to_string_lossy().contains("occlude-spill")
        })
        .expect("a store of streamed weights");
    let store = File::options().write(true).open(store).unwrap();
    store.write_all_at(&[0xa5; SIDE * SIDE], 0).unwrap();

    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..REQUESTS {
                let error = run(&model, right).unwrap_err();
                assert!(matches!(error, RunError::Spilled(_)), "{error:?}");
            }
        });
        scope.spawn(|| {
            for _ in 0..REQUESTS {
                let error = run(&model, wrong).unwrap_err();
                assert!(matches!(error, RunError::Failed(_)), "{error:?}");
            }
        });
    });
}
