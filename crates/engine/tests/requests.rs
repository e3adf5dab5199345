//! What a model takes and gives: every datatype, every refusal with its exact
//! error, chosen outputs, many callers at once.

mod support;

use std::num::NonZeroUsize;

use occlude_engine::{LoadError, LoadOptions, Model, RunError};
use occlude_inference_protocol::{DataType, Tensor, TensorMetadata};
use occlude_onnx::DataType as Onnx;
use occlude_onnx::messages::ModelProto;
use support::{
    floats, graph, load, model, node, one_thread, opened, pattern, runtime, value,
    value_of_any_rank,
};
use zeroize::Zeroizing;

/// `y = x * weight`, `z = x`, both with a free first extent.
fn projection() -> ModelProto {
    model(graph(
        vec![
            node("MatMul", &["x", "weight"], &["y"]),
            node("Identity", &["x"], &["z"]),
        ],
        vec![value("x", Onnx::Float, &[-1, 20])],
        vec![
            value("y", Onnx::Float, &[-1, 30]),
            value("z", Onnx::Float, &[-1, 20]),
        ],
        vec![floats("weight", &[20, 30], &pattern(600))],
    ))
}

fn x(rows: u64) -> Tensor {
    let values = pattern(usize::try_from(rows).unwrap() * 20);
    Tensor::from_values("x", vec![rows, 20], &values).unwrap()
}

/// A model of one `Identity` node.
fn identity(data_type: Onnx, dims: &[i64]) -> Model {
    load(&model(graph(
        vec![node("Identity", &["x"], &["y"])],
        vec![value("x", data_type, dims)],
        vec![value("y", data_type, dims)],
        vec![],
    )))
    .unwrap()
}

#[test]
fn metadata_lists_inputs_and_outputs_and_no_weights() {
    let model = load(&projection()).unwrap();
    let expected = |name: &str, width| TensorMetadata {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![-1, width],
    };
    assert_eq!(model.inputs(), [expected("x", 20)]);
    assert_eq!(model.outputs(), [expected("y", 30), expected("z", 20)]);
    assert!(model.resident_bytes() >= 2400);
}

#[test]
fn every_numeric_datatype_passes_through_unchanged() {
    let types = [
        (Onnx::Bool, DataType::Bool),
        (Onnx::Uint8, DataType::Uint8),
        (Onnx::Uint16, DataType::Uint16),
        (Onnx::Uint32, DataType::Uint32),
        (Onnx::Uint64, DataType::Uint64),
        (Onnx::Int8, DataType::Int8),
        (Onnx::Int16, DataType::Int16),
        (Onnx::Int32, DataType::Int32),
        (Onnx::Int64, DataType::Int64),
        (Onnx::Float16, DataType::Fp16),
        (Onnx::Bfloat16, DataType::Bf16),
        (Onnx::Float, DataType::Fp32),
        (Onnx::Double, DataType::Fp64),
    ];
    for (onnx, datatype) in types {
        let model = identity(onnx, &[2, 3]);
        assert_eq!(model.inputs()[0].datatype, datatype);
        let length = 6 * datatype.size().unwrap();
        let data: Vec<u8> = match datatype {
            DataType::Bool => vec![1, 0, 0, 1, 1, 0],
            _ => (0..length).map(|index| (index * 37 + 11) as u8).collect(),
        };
        let input = Tensor::new("x", datatype, vec![2, 3], Zeroizing::new(data.clone())).unwrap();
        let answers = model.run(vec![input], &[]).unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].name(), "y");
        assert_eq!(answers[0].datatype(), datatype);
        assert_eq!(answers[0].shape(), [2, 3]);
        assert_eq!(answers[0].data(), data);
    }
}

#[test]
fn byte_strings_pass_through_with_zero_bytes_and_without_being_utf_8() {
    let strings: [&[u8]; 4] = [b"plain", b"", b"zero\0inside", b"\xff\xfe not UTF-8"];
    let model = identity(Onnx::String, &[2, 2]);
    let input = Tensor::from_bytes("x", vec![2, 2], &strings).unwrap();
    let answers = model.run(vec![input], &[]).unwrap();
    assert_eq!(answers[0].datatype(), DataType::Bytes);
    let returned: Vec<&[u8]> = answers[0].byte_strings().unwrap().collect();
    assert_eq!(returned, strings);
}

#[test]
fn scalars_and_empty_tensors_pass_through() {
    let scalar = Tensor::from_values("x", vec![], &[2.5_f32]).unwrap();
    let answers = identity(Onnx::Float, &[]).run(vec![scalar], &[]).unwrap();
    assert_eq!(answers[0].shape(), [] as [u64; 0]);
    assert_eq!(answers[0].to_values::<f32>().unwrap(), [2.5]);

    let empty = Tensor::from_values::<f32>("x", vec![0, 20], &[]).unwrap();
    let answers = identity(Onnx::Float, &[-1, 20])
        .run(vec![empty], &[])
        .unwrap();
    assert_eq!(answers[0].shape(), [0, 20]);
    assert_eq!(answers[0].data(), [] as [u8; 0]);
}

#[test]
fn an_input_of_open_rank_takes_any_rank() {
    let model = load(&model(graph(
        vec![node("Identity", &["x"], &["y"])],
        vec![value_of_any_rank("x", Onnx::Float)],
        vec![value_of_any_rank("y", Onnx::Float)],
        vec![],
    )))
    .unwrap();
    for shape in [vec![], vec![1], vec![1, 1, 1]] {
        let input = Tensor::from_values("x", shape.clone(), &[4.0_f32]).unwrap();
        let answers = model.run(vec![input], &[]).unwrap();
        assert_eq!(answers[0].shape(), shape);
    }
}

#[test]
fn outputs_come_in_the_order_asked_for() {
    let model = load(&projection()).unwrap();
    let names = |requested: &[&str]| -> Vec<String> {
        let requested: Vec<String> = requested.iter().map(|&name| name.to_owned()).collect();
        let answers = model.run(vec![x(2)], &requested).unwrap();
        answers
            .iter()
            .map(|answer| answer.name().to_owned())
            .collect()
    };
    assert_eq!(names(&[]), ["y", "z"]);
    assert_eq!(names(&["z"]), ["z"]);
    assert_eq!(names(&["z", "y"]), ["z", "y"]);
}

#[test]
fn a_model_that_returns_its_input_and_a_weight_keeps_both_intact() {
    let model = load(&model(graph(
        vec![node("MatMul", &["x", "weight"], &["y"])],
        vec![value("x", Onnx::Float, &[1, 20])],
        vec![
            value("x", Onnx::Float, &[1, 20]),
            value("weight", Onnx::Float, &[20, 30]),
            value("y", Onnx::Float, &[1, 30]),
        ],
        vec![floats("weight", &[20, 30], &pattern(600))],
    )))
    .unwrap();
    let first = model.run(vec![x(1)], &[]).unwrap();
    let second = model.run(vec![x(1)], &[]).unwrap();
    assert_eq!(first, second);
    assert_eq!(second[0].to_values::<f32>().unwrap(), pattern(20));
    assert_eq!(second[1].to_values::<f32>().unwrap(), pattern(600));
}

#[test]
fn an_input_of_another_name_is_refused_with_the_names_expected() {
    let stranger = x(1).renamed("image").unwrap();
    let error = load(&projection())
        .unwrap()
        .run(vec![stranger], &[])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model has no input `image`; its inputs are `x`"
    );
    assert_eq!(
        error,
        RunError::UnknownInput {
            name: "image".to_owned(),
            expected: vec!["x".to_owned()],
        },
    );
}

#[test]
fn a_weight_cannot_be_overridden_by_a_request() {
    let weight = Tensor::from_values("weight", vec![20, 30], &[0.0_f32; 600]).unwrap();
    let error = load(&projection())
        .unwrap()
        .run(vec![x(1), weight], &[])
        .unwrap_err();
    assert_eq!(
        error,
        RunError::UnknownInput {
            name: "weight".to_owned(),
            expected: vec!["x".to_owned()],
        },
    );
}

#[test]
fn a_missing_input_is_named_with_its_type_and_shape() {
    let error = load(&projection()).unwrap().run(vec![], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the input `x` (FP32, shape [any, 20]) is missing"
    );
    assert_eq!(
        error,
        RunError::MissingInput {
            name: "x".to_owned(),
            datatype: DataType::Fp32,
            shape: vec![-1, 20],
        },
    );
}

#[test]
fn an_input_given_twice_is_refused() {
    let error = load(&projection())
        .unwrap()
        .run(vec![x(1), x(1)], &[])
        .unwrap_err();
    assert_eq!(
        error,
        RunError::DuplicateInput {
            name: "x".to_owned()
        }
    );
}

#[test]
fn an_input_of_another_type_is_refused_with_the_type_expected() {
    let doubles = Tensor::from_values("x", vec![1, 20], &[0.0_f64; 20]).unwrap();
    let error = load(&projection())
        .unwrap()
        .run(vec![doubles], &[])
        .unwrap_err();
    assert_eq!(error.to_string(), "the input `x` takes FP32, not FP64");
    assert_eq!(
        error,
        RunError::WrongDatatype {
            name: "x".to_owned(),
            expected: DataType::Fp32,
            found: DataType::Fp64,
        },
    );
}

#[test]
fn an_input_of_another_shape_is_refused_with_the_shape_expected() {
    let model = load(&projection()).unwrap();
    for shape in [vec![20], vec![1, 10, 2], vec![2, 10]] {
        let input = Tensor::from_values("x", shape.clone(), &[0.0_f32; 20]).unwrap();
        let error = model.run(vec![input], &[]).unwrap_err();
        assert_eq!(
            error,
            RunError::WrongShape {
                name: "x".to_owned(),
                expected: vec![-1, 20],
                found: shape,
            },
        );
    }
    let flat = Tensor::from_values("x", vec![20], &[0.0_f32; 20]).unwrap();
    let error = model.run(vec![flat], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the input `x` takes shape [any, 20], not [20]"
    );
}

#[test]
fn an_unknown_or_repeated_output_is_refused() {
    let model = load(&projection()).unwrap();
    let unknown = model.run(vec![x(1)], &["label".to_owned()]).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "the model has no output `label`; its outputs are `y`, `z`",
    );
    let twice = model
        .run(vec![x(1)], &["y".to_owned(), "y".to_owned()])
        .unwrap_err();
    assert_eq!(
        twice,
        RunError::DuplicateOutput {
            name: "y".to_owned()
        }
    );
}

#[test]
fn outputs_are_copied_only_where_there_is_memory_for_them() {
    let model = load(&projection()).unwrap();
    // Three rows of 30 and of 20 numbers.
    let bytes = 3 * (30 + 20) * size_of::<f32>();
    let mut asked = 0;
    let refused = model.run_admitted(vec![x(3)], &[], |bytes| {
        asked = bytes;
        false
    });
    assert_eq!(asked, bytes);
    assert_eq!(refused.unwrap_err(), RunError::NotAdmitted { bytes });
    let admitted = model.run_admitted(vec![x(3)], &[], |_| true).unwrap();
    assert_eq!(admitted, model.run(vec![x(3)], &[]).unwrap());

    let strings = identity(Onnx::String, &[2]);
    let words = Tensor::from_bytes("x", vec![2], &["four", "to"]).unwrap();
    let refused = strings.run_admitted(vec![words], &[], |_| false);
    // Two copies of each, and of its length.
    let bytes = 2 * (4 + 4 + 4 + 2);
    assert_eq!(refused.unwrap_err(), RunError::NotAdmitted { bytes });
}

#[test]
fn a_run_that_fails_inside_the_model_shows_no_layer_and_leaves_the_model_usable() {
    let layer = "secret_layer_name";
    let mut add = node("Add", &["a", "b"], &["y"]);
    add.name = layer.to_owned();
    let model = load(&model(graph(
        vec![add],
        vec![
            value("a", Onnx::Float, &[-1]),
            value("b", Onnx::Float, &[-1]),
        ],
        vec![value("y", Onnx::Float, &[-1])],
        vec![],
    )))
    .unwrap();
    let ab = |length: usize| {
        vec![
            Tensor::from_values("a", vec![2], &[1.0_f32, 2.0]).unwrap(),
            Tensor::from_values("b", vec![length as u64], &vec![1.0_f32; length]).unwrap(),
        ]
    };
    let error = model.run(ab(3), &[]).unwrap_err();
    assert_eq!(error.to_string(), "the model cannot run on this input");
    assert!(!format!("{error:?}").contains(layer));
    let RunError::Failed(said) = error else {
        panic!("{error}");
    };
    assert!(said.reveal().contains(layer), "{}", said.reveal());

    let answers = model.run(ab(2), &[]).unwrap();
    assert_eq!(answers[0].to_values::<f32>().unwrap(), [2.0, 3.0]);
}

#[test]
fn a_model_that_answers_with_a_sequence_is_refused_when_loading() {
    let error = load(&model(graph(
        vec![node("SequenceConstruct", &["x"], &["y"])],
        vec![value("x", Onnx::Float, &[1])],
        vec![sequence("y")],
        vec![],
    )))
    .unwrap_err();
    let LoadError::Interface {
        role,
        position,
        found,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (role, position, found.as_str()),
        ("output", 1, "a sequence")
    );
}

#[test]
fn a_model_with_an_operator_that_does_not_exist_is_refused_without_naming_it() {
    let error = load(&model(graph(
        vec![node("NoSuchOperator", &["x"], &["y"])],
        vec![value("x", Onnx::Float, &[1])],
        vec![value("y", Onnx::Float, &[1])],
        vec![],
    )))
    .unwrap_err();
    assert_eq!(error.to_string(), "ONNX Runtime refuses the model");
    let LoadError::Rejected(said) = error else {
        panic!("{error}");
    };
    assert!(
        said.reveal().contains("NoSuchOperator"),
        "{}",
        said.reveal()
    );
}

#[test]
fn many_callers_share_two_sessions_and_each_gets_its_own_answer() {
    let options = LoadOptions {
        sessions: NonZeroUsize::new(2).unwrap(),
        ..one_thread()
    };
    let model = Model::load(runtime(), &opened(&projection()), &options).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..6 {
            let model = &model;
            scope.spawn(move || {
                for round in 0..20 {
                    let values: Vec<f32> =
                        (0..20).map(|i| (caller * 100 + round + i) as f32).collect();
                    let input = Tensor::from_values("x", vec![1, 20], &values).unwrap();
                    let answers = model.run(vec![input], &[]).unwrap();
                    assert_eq!(answers[1].to_values::<f32>().unwrap(), values);
                    let weight = pattern(600);
                    let expected: f32 = (0..20).map(|i| values[i] * weight[i * 30]).sum();
                    let found = answers[0].to_values::<f32>().unwrap()[0];
                    assert!((found - expected).abs() <= 1e-3 * expected.abs().max(1.0));
                }
            });
        }
    });
}

fn sequence(name: &str) -> occlude_onnx::messages::ValueInfoProto {
    use occlude_onnx::messages::{TypeProto, ValueInfoProto, type_proto};
    let element = value("", Onnx::Float, &[1]).r#type.map(Box::new);
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::SequenceType(Box::new(
                type_proto::Sequence { elem_type: element },
            ))),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// They would take longer than others on many processors, so that the time tells them apart.
/// The large one is computed by the pool's threads, too.
#[test]
fn subnormal_numbers_are_zero_in_every_thread() {
    for length in [8_usize, 1 << 20] {
        let extent = length as i64;
        let half = load(&model(graph(
            vec![node("Mul", &["x", "x_too"], &["y"])],
            vec![
                value("x", Onnx::Float, &[extent]),
                value("x_too", Onnx::Float, &[extent]),
            ],
            vec![value("y", Onnx::Float, &[extent])],
            vec![],
        )))
        .unwrap();
        let tensor = |name: &str, value: f32| {
            Tensor::from_values(name, vec![length as u64], &vec![value; length]).unwrap()
        };
        let product = |one: f32, other: f32| -> Vec<f32> {
            let inputs = vec![tensor("x", one), tensor("x_too", other)];
            half.run(inputs, &[]).unwrap()[0].to_values().unwrap()
        };
        // One that comes, and one that is made.
        for (one, other) in [(1e-40, 1.0), (1e-30, 1e-10)] {
            assert!(product(one, other).iter().all(|value| *value == 0.0));
        }
        assert!(product(1e-30, 0.5).iter().all(|value| *value > 0.0));
        // This thread has them still.
        assert!(std::hint::black_box(1e-40_f32) * 0.5 > 0.0);
    }
}
