//! Budgets of protected memory in bytes: what is kept, what is refused, what is told.

mod support;

use std::num::NonZeroUsize;

use occlude_engine::{
    LargestShape, LoadError, LoadOptions, Model, ProtectedMemory, RunError, WeightKind,
};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::ModelProto;
use support::{floats, graph, model, node, opened, pattern, runtime, two_threads, value};

const SIDE: usize = 256;

fn matrix(name: &str, rows: usize, columns: usize) -> occlude_onnx::messages::TensorProto {
    floats(
        name,
        &[rows as i64, columns as i64],
        &pattern(rows * columns),
    )
}

/// `y = tanh(x w0) w1`, where `w1` makes the widest result; any batch.
fn matrices() -> ModelProto {
    let (side, wide) = (SIDE as i64, 4 * SIDE as i64);
    model(graph(
        vec![
            node("MatMul", &["x", "w0"], &["h0"]),
            node("Tanh", &["h0"], &["h1"]),
            node("MatMul", &["h1", "w1"], &["h2"]),
            node("ReduceMean", &["h2"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[-1, side])],
        vec![value("y", DataType::Float, &[1, 1])],
        vec![
            matrix("w0", SIDE, SIDE),
            floats("w1", &[side, wide], &pattern(SIDE * 4 * SIDE)),
        ],
    ))
}

/// `y = x p + t[i]`, where ONNX Runtime multiplies by `p` elementwise and reads rows of `t`.
fn foreign() -> ModelProto {
    let side = SIDE as i64;
    model(graph(
        vec![
            node("Mul", &["x", "p"], &["product"]),
            node("Gather", &["t", "i"], &["row"]),
            node("Add", &["product", "row"], &["sum"]),
            node("MatMul", &["sum", "w"], &["y"]),
        ],
        vec![
            value("x", DataType::Float, &[side, side]),
            value("i", DataType::Int64, &[1]),
        ],
        vec![value("y", DataType::Float, &[side, side])],
        vec![
            matrix("p", SIDE, SIDE),
            matrix("t", 8 * SIDE, SIDE),
            matrix("w", SIDE, SIDE),
        ],
    ))
}

fn bytes(budget: u64) -> LoadOptions {
    LoadOptions {
        memory: ProtectedMemory::Bytes(budget),
        ..two_threads()
    }
}

fn largest(shape: &str) -> Vec<LargestShape> {
    vec![shape.parse().unwrap()]
}

fn load(model: &ModelProto, options: &LoadOptions) -> Result<Model, LoadError> {
    Model::load(runtime(), &opened(model), options)
}

fn x(rows: usize) -> Tensor {
    let shape = vec![rows as u64, SIDE as u64];
    Tensor::from_values("x", shape, &pattern(rows * SIDE)).unwrap()
}

fn foreign_inputs() -> Vec<Tensor> {
    vec![
        x(SIDE),
        Tensor::from_values("i", vec![1], &[3_i64]).unwrap(),
    ]
}

/// The smallest budget that a refusal names, and what set it.
fn smallest(model: &ModelProto, options: &LoadOptions) -> (u64, occlude_engine::SetBy) {
    match load(model, options).unwrap_err() {
        LoadError::Budget {
            smallest, set_by, ..
        } => (smallest, set_by.unwrap()),
        other => panic!("{other}"),
    }
}

#[test]
fn the_smallest_budget_that_a_refusal_names_works_and_no_smaller_one_does() {
    for sessions in [1, 3] {
        let options = |budget| LoadOptions {
            sessions: NonZeroUsize::new(sessions).unwrap(),
            largest: largest("x=64x256"),
            ..bytes(budget)
        };
        let (least, set_by) = smallest(&matrices(), &options(0));
        assert_eq!(
            (set_by.kind, set_by.index, set_by.name.reveal()),
            (WeightKind::Matrix, 1, "w1")
        );
        let loaded = load(&matrices(), &options(least)).unwrap();
        assert_eq!(loaded.resident_bytes(), 0);
        std::thread::scope(|scope| {
            for _ in 0..sessions {
                scope.spawn(|| {
                    for rows in [64, 1, 64, 7, 64] {
                        loaded.run(vec![x(rows)], &[]).unwrap();
                    }
                });
            }
        });
        assert_eq!(smallest(&matrices(), &options(least - 1)).0, least);
    }
}

#[test]
fn a_refusal_says_which_layer_needs_the_most_without_its_name() {
    let error = load(&matrices(), &bytes(1)).unwrap_err().to_string();
    assert!(error.ends_with("; matrix 1 needs the most"), "{error}");
    let (_, set_by) = smallest(&foreign(), &bytes(1));
    assert_eq!(set_by.kind, WeightKind::Table);
    assert_eq!(set_by.name.reveal(), "t");
}

#[test]
fn a_larger_budget_keeps_more_and_no_budget_changes_an_answer() {
    for (model, inputs) in [(matrices(), vec![x(1)]), (foreign(), foreign_inputs())] {
        let expected = load(&model, &two_threads()).unwrap();
        let expected = expected.run(inputs.clone(), &[]).unwrap();
        let (least, _) = smallest(&model, &bytes(0));
        let mut before = 0;
        for more in [0, 100 << 10, 400 << 10, 2 << 20, 100 << 20] {
            let loaded = load(&model, &bytes(least + more)).unwrap();
            let plan = loaded.plan();
            assert_eq!(loaded.run(inputs.clone(), &[]).unwrap(), expected);
            assert!(plan.total().unwrap() <= least + more, "{plan:?}");
            assert!(plan.resident() >= before, "{plan:?}");
            before = plan.resident();
        }
    }
}

#[test]
fn what_a_plan_says_is_streamed_is_opened_by_each_run() {
    let (least, _) = smallest(&matrices(), &bytes(0));
    for more in [0, 150 << 10, 600 << 10, 100 << 20] {
        let loaded = load(&matrices(), &bytes(least + more)).unwrap();
        let before = loaded.opened_bytes();
        loaded.run(vec![x(1)], &[]).unwrap();
        let plan = loaded.plan();
        assert_eq!(plan.streamed(), loaded.opened_bytes() - before);
        assert_eq!(plan.streamed() > 0, plan.cost_ms() > 0.0);
        let names: Vec<&str> = plan
            .layers
            .iter()
            .map(|layer| layer.name.reveal())
            .collect();
        assert_eq!(names, ["w0", "w1"]);
    }
}

#[test]
fn tensors_for_operators_of_onnx_runtime_are_kept_where_there_is_room() {
    let (least, _) = smallest(&foreign(), &bytes(0));
    let streamed = load(&foreign(), &bytes(least)).unwrap();
    assert_eq!(streamed.layer_counts().opened_whole, 1);
    let kept = load(&foreign(), &bytes(least + (4 << 20))).unwrap();
    assert_eq!(kept.layer_counts().opened_whole, 0);
    assert_eq!(kept.plan().streamed(), 0);
    let before = kept.opened_bytes();
    kept.run(foreign_inputs(), &[]).unwrap();
    assert_eq!(kept.opened_bytes(), before);
}

#[test]
fn inputs_beyond_the_largest_shape_are_refused_before_they_run() {
    let options = LoadOptions {
        largest: largest("x=8x256"),
        ..bytes(64 << 20)
    };
    let planned = load(&matrices(), &options).unwrap();
    planned.run(vec![x(8)], &[]).unwrap();
    planned.run(vec![x(3)], &[]).unwrap();
    let refused = RunError::TooLarge {
        name: "x".to_owned(),
        found: vec![9, 256],
        largest: vec![8, 256],
    };
    assert_eq!(
        refused.to_string(),
        "the input `x` has shape [9, 256]; memory is planned for [8, 256] at most"
    );
    assert_eq!(planned.run(vec![x(9)], &[]).unwrap_err(), refused);

    // A budget without a shape plans for 1; no budget and no shape limit nothing.
    let one = load(&matrices(), &bytes(64 << 20)).unwrap();
    assert_eq!(
        one.run(vec![x(2)], &[]).unwrap_err(),
        RunError::TooLarge {
            name: "x".to_owned(),
            found: vec![2, 256],
            largest: vec![1, 256],
        }
    );
    let free = load(&matrices(), &two_threads()).unwrap();
    free.run(vec![x(100)], &[]).unwrap();
    let resident = LoadOptions {
        largest: largest("x=8x256"),
        ..two_threads()
    };
    let resident = load(&matrices(), &resident).unwrap();
    assert_eq!(resident.run(vec![x(9)], &[]).unwrap_err(), refused);
}

#[test]
fn a_largest_shape_that_the_model_does_not_have_is_refused() {
    for shape in ["x=8x255", "x=256", "x=1x1x256"] {
        let options = LoadOptions {
            largest: largest(shape),
            ..bytes(64 << 20)
        };
        let error = load(&matrices(), &options).unwrap_err();
        assert!(
            matches!(&error, LoadError::LargestShape { input, .. } if input == "x"),
            "{error}"
        );
    }
    let error = load(
        &matrices(),
        &LoadOptions {
            largest: largest("x=99999999999x256"),
            ..bytes(64 << 20)
        },
    )
    .unwrap_err();
    assert!(matches!(error, LoadError::DryRun { .. }), "{error}");
    // Another model's input.
    let options = LoadOptions {
        largest: largest("z=1"),
        ..bytes(64 << 20)
    };
    load(&matrices(), &options).unwrap();
}
