//! The host's side of the spill store: it alters what is streamed, at rest and while
//! requests run. An answer is then right, or there is none.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use occlude_engine::{Model, RunError};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::ModelProto;

const SIDE: usize = 512;

/// The store's memory, as whoever controls this process's descriptors reaches it.
fn host() -> File {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let store = descriptors
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let target = std::fs::read_link(path).unwrap_or_default();
            target.to_string_lossy().contains("occlude-spill")
        })
        .expect("a store of streamed weights");
    File::options().read(true).write(true).open(store).unwrap()
}

fn matrix_model() -> ModelProto {
    let side = SIDE as i64;
    support::model(support::graph(
        vec![support::node("MatMul", &["x", "w"], &["y"])],
        vec![support::value("x", DataType::Float, &[1, side])],
        vec![support::value("y", DataType::Float, &[1, side])],
        vec![support::floats(
            "w",
            &[side, side],
            &support::pattern(SIDE * SIDE),
        )],
    ))
}

fn input() -> Vec<Tensor> {
    let values: Vec<f32> = (0..SIDE).map(|index| (index % 7) as f32 - 3.0).collect();
    vec![Tensor::from_values("x", vec![1, SIDE as u64], &values).unwrap()]
}

fn answer(model: &Model) -> Result<Vec<f32>, RunError> {
    let answers = model.run(input(), &[])?;
    Ok(answers[0].to_values().unwrap())
}

// One test, since both parts look for the one store of this process.
#[test]
fn altered_weights_end_a_request_and_never_give_a_wrong_answer() {
    let container = support::opened(&matrix_model());
    let model = Model::load(
        support::runtime(),
        &container,
        &support::everything_streamed(),
    )
    .unwrap();
    let expected = answer(&model).unwrap();
    let host = host();

    // At rest: one bit in each of several places, and back.
    let length = host.metadata().unwrap().len();
    for place in (0..(SIDE * SIDE * 4) as u64).step_by(65_537) {
        let mut byte = [0];
        host.read_exact_at(&mut byte, place).unwrap();
        host.write_all_at(&[byte[0] ^ 1], place).unwrap();
        let error = answer(&model).unwrap_err();
        assert!(
            matches!(error, RunError::Spilled(_)),
            "{error} after place {place} of {length} was altered"
        );
        assert!(
            error.to_string().contains("of layer 0 is not authentic"),
            "{error}"
        );
        host.write_all_at(&byte, place).unwrap();
        assert_eq!(answer(&model).unwrap(), expected);
    }

    // While requests run.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 1_u64;
            while !over.load(Ordering::Relaxed) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let place = (state >> 33) % (SIDE * SIDE * 4) as u64;
                let mut byte = [0];
                host.read_exact_at(&mut byte, place).unwrap();
                host.write_all_at(&[byte[0] ^ 0x40], place).unwrap();
                host.write_all_at(&byte, place).unwrap();
            }
        });
        let answers: Vec<_> = (0..500).map(|_| answer(&model)).collect();
        // Before anything here fails: the scope waits for the writer.
        over.store(true, Ordering::Relaxed);
        let (mut right, mut refused) = (0, 0);
        for answer in answers {
            match answer {
                Ok(values) => {
                    assert_eq!(values, expected);
                    right += 1;
                }
                Err(RunError::Spilled(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(
            right + refused == 500 && refused > 0,
            "{right} right, {refused} refused"
        );
    });
    assert_eq!(answer(&model).unwrap(), expected);
}
