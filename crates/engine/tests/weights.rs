//! Weights wherever a model may keep them, borrowed and computed with; the
//! reference is ONNX Runtime's own run of the plain model in the same process.

mod support;

use std::os::unix::fs::FileExt;

use occlude_container::OpenError;
use occlude_engine::{LoadError, Model};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::{FunctionProto, ModelProto, OperatorSetIdProto};
use support::{
    floats, graph, integers_attribute, load, model, node, one_thread, opened_in, pattern,
    plain_run, runtime, subgraph, tensor, tensor_attribute, value, with,
};

const WIDTH: i64 = 20;

fn input() -> Vec<f32> {
    (0..WIDTH).map(|index| index as f32 / 10.0).collect()
}

/// Runs the sealed and the plain model on `x` of shape `[1, WIDTH]`.
fn assert_same_as_plain(model: &ModelProto) {
    let x = Tensor::from_values("x", vec![1, WIDTH as u64], &input()).unwrap();
    let answers = load(model).unwrap().run(vec![x], &[]).unwrap();
    let sealed: Vec<Vec<f32>> = answers
        .iter()
        .map(|answer| answer.to_values().unwrap())
        .collect();
    let plain = plain_run(model, &[("x", &[1, WIDTH], &input())]);
    assert_eq!(sealed.len(), plain.len());
    for (sealed, plain) in sealed.iter().zip(&plain) {
        assert_eq!(sealed.len(), plain.len());
        assert!(plain.iter().any(|&value| value != 0.0));
        for (a, b) in sealed.iter().zip(plain) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} is not {b}");
        }
    }
}

fn square(name: &str) -> occlude_onnx::messages::TensorProto {
    floats(name, &[WIDTH, WIDTH], &pattern((WIDTH * WIDTH) as usize))
}

#[test]
fn weights_of_the_main_graph_give_the_plain_models_outputs() {
    assert_same_as_plain(&model(graph(
        vec![
            node("MatMul", &["x", "weight"], &["product"]),
            node("Add", &["product", "bias"], &["sum"]),
            node("Relu", &["sum"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[1, WIDTH])],
        vec![value("y", DataType::Float, &[1, WIDTH])],
        vec![
            square("weight"),
            floats("bias", &[WIDTH], &pattern(WIDTH as usize)),
        ],
    )));
}

#[test]
fn a_large_constant_node_gives_the_plain_models_outputs() {
    assert_same_as_plain(&model(graph(
        vec![
            with(
                node("Constant", &[], &["weight"]),
                tensor_attribute("value", square("")),
            ),
            node("MatMul", &["x", "weight"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[1, WIDTH])],
        vec![value("y", DataType::Float, &[1, WIDTH])],
        vec![],
    )));
}

#[test]
fn weights_inside_both_branches_of_an_if_keep_apart_although_they_share_a_name() {
    let branch = |scale: f32| {
        let values: Vec<f32> = pattern(400).iter().map(|value| value * scale).collect();
        graph(
            vec![node("MatMul", &["x", "weight"], &["result"])],
            vec![],
            vec![value("result", DataType::Float, &[1, WIDTH])],
            vec![floats("weight", &[WIDTH, WIDTH], &values)],
        )
    };
    for condition in [0, 1] {
        assert_same_as_plain(&model(graph(
            vec![with(
                with(
                    node("If", &["condition"], &["y"]),
                    subgraph("then_branch", branch(1.0)),
                ),
                subgraph("else_branch", branch(-3.0)),
            )],
            vec![value("x", DataType::Float, &[1, WIDTH])],
            vec![value("y", DataType::Float, &[1, WIDTH])],
            vec![tensor("condition", DataType::Bool, &[], vec![condition])],
        )));
    }
}

#[test]
fn a_weight_that_a_branch_returns_as_it_is_reaches_the_output() {
    let returned = || {
        graph(
            vec![node("Identity", &["x"], &["unused"])],
            vec![],
            vec![value("weight", DataType::Float, &[WIDTH, WIDTH])],
            vec![square("weight")],
        )
    };
    assert_same_as_plain(&model(graph(
        vec![
            node("ReduceSum", &["x"], &["total"]),
            node("Greater", &["total", "zero"], &["nested_positive"]),
            node("Squeeze", &["nested_positive"], &["positive"]),
            with(
                with(
                    node("If", &["positive"], &["y"]),
                    subgraph("then_branch", returned()),
                ),
                subgraph("else_branch", returned()),
            ),
        ],
        vec![value("x", DataType::Float, &[1, WIDTH])],
        vec![value("y", DataType::Float, &[WIDTH, WIDTH])],
        vec![floats("zero", &[], &[0.0])],
    )));
}

#[test]
fn a_weight_inside_a_loop_is_used_in_every_iteration() {
    let body = graph(
        vec![
            node("MatMul", &["state", "weight"], &["next"]),
            node("Identity", &["keep_going"], &["still_going"]),
        ],
        vec![
            value("iteration", DataType::Int64, &[]),
            value("keep_going", DataType::Bool, &[]),
            value("state", DataType::Float, &[1, WIDTH]),
        ],
        vec![
            value("still_going", DataType::Bool, &[]),
            value("next", DataType::Float, &[1, WIDTH]),
        ],
        vec![square("weight")],
    );
    assert_same_as_plain(&model(graph(
        vec![with(
            node("Loop", &["trips", "", "x"], &["y"]),
            subgraph("body", body),
        )],
        vec![value("x", DataType::Float, &[1, WIDTH])],
        vec![value("y", DataType::Float, &[1, WIDTH])],
        vec![tensor(
            "trips",
            DataType::Int64,
            &[],
            3_i64.to_le_bytes().to_vec(),
        )],
    )));
}

#[test]
fn a_weight_of_the_main_graph_is_seen_by_a_subgraph() {
    let branch = |operator| {
        graph(
            vec![node(operator, &["x", "weight"], &["result"])],
            vec![],
            vec![value("result", DataType::Float, &[-1, -1])],
            vec![],
        )
    };
    assert_same_as_plain(&model(graph(
        vec![with(
            with(
                node("If", &["condition"], &["y"]),
                subgraph("then_branch", branch("MatMul")),
            ),
            subgraph("else_branch", branch("Add")),
        )],
        vec![value("x", DataType::Float, &[1, WIDTH])],
        vec![value("y", DataType::Float, &[-1, -1])],
        vec![
            tensor("condition", DataType::Bool, &[], vec![1]),
            square("weight"),
        ],
    )));
}

#[test]
fn a_weight_inside_a_local_function_is_put_into_the_skeleton() {
    let domain = "local";
    let opset = OperatorSetIdProto {
        domain: String::new(),
        version: 17,
    };
    let function = FunctionProto {
        name: "Project".to_owned(),
        domain: domain.to_owned(),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![
            with(
                node("Constant", &[], &["weight"]),
                tensor_attribute("value", square("")),
            ),
            node("MatMul", &["a", "weight"], &["b"]),
        ],
        opset_import: vec![opset],
        ..FunctionProto::default()
    };
    let mut call = node("Project", &["x"], &["y"]);
    call.domain = domain.to_owned();
    let mut model = model(graph(
        vec![call],
        vec![value("x", DataType::Float, &[1, WIDTH])],
        vec![value("y", DataType::Float, &[1, WIDTH])],
        vec![],
    ));
    model.functions.push(function);
    model.opset_import.push(OperatorSetIdProto {
        domain: domain.to_owned(),
        version: 1,
    });
    assert_same_as_plain(&model);
}

#[test]
fn a_model_of_ir_version_3_that_lists_its_weights_as_inputs_keeps_only_true_inputs() {
    let mut old = model(graph(
        vec![
            node("MatMul", &["x", "weight"], &["product"]),
            node("Add", &["product", "bias"], &["y"]),
        ],
        vec![
            value("x", DataType::Float, &[1, WIDTH]),
            value("weight", DataType::Float, &[WIDTH, WIDTH]),
            value("bias", DataType::Float, &[WIDTH]),
        ],
        vec![value("y", DataType::Float, &[1, WIDTH])],
        vec![
            square("weight"),
            floats("bias", &[WIDTH], &pattern(WIDTH as usize)),
        ],
    ));
    old.ir_version = 3;
    old.opset_import[0].version = 8;
    let loaded = load(&old).unwrap();
    let names: Vec<&str> = loaded
        .inputs()
        .iter()
        .map(|input| input.name.as_str())
        .collect();
    assert_eq!(names, ["x"]);
    assert_same_as_plain(&old);
}

#[test]
fn convolution_batch_normalisation_and_residual_give_the_plain_models_outputs() {
    let channels = 16;
    let vector = |name: &str, offset: f32| {
        let values: Vec<f32> = pattern(channels)
            .iter()
            .map(|value| value + offset)
            .collect();
        floats(name, &[channels as i64], &values)
    };
    let pads = integers_attribute("pads", &[1, 1, 1, 1]);
    let convolution = with(
        node("Conv", &["image", "kernel", "bias"], &["convolved"]),
        pads,
    );
    assert_same_as_plain(&model(graph(
        vec![
            node("MatMul", &["x", "spread"], &["flat"]),
            node("Reshape", &["flat", "image_shape"], &["image"]),
            convolution,
            node(
                "BatchNormalization",
                &["convolved", "scale", "shift", "mean", "variance"],
                &["normal"],
            ),
            node("Add", &["normal", "image"], &["residual"]),
            node("Relu", &["residual"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[1, WIDTH])],
        vec![value("y", DataType::Float, &[1, 16, 4, 4])],
        vec![
            floats("spread", &[WIDTH, 256], &pattern(20 * 256)),
            tensor(
                "image_shape",
                DataType::Int64,
                &[4],
                [1_i64, 16, 4, 4]
                    .iter()
                    .flat_map(|extent| extent.to_le_bytes())
                    .collect(),
            ),
            floats("kernel", &[16, 16, 3, 3], &pattern(16 * 16 * 9)),
            vector("bias", 0.0),
            vector("scale", 1.0),
            vector("shift", 0.2),
            vector("mean", 0.1),
            vector("variance", 2.0),
        ],
    )));
}

#[test]
fn a_weight_that_the_host_changes_after_the_container_was_opened_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let container = opened_in(
        folder.path(),
        &model(graph(
            vec![node("MatMul", &["x", "weight"], &["y"])],
            vec![value("x", DataType::Float, &[1, WIDTH])],
            vec![value("y", DataType::Float, &[1, WIDTH])],
            vec![square("weight")],
        )),
    );
    // The header's page, the chunk of index and skeleton, then the weight's chunk.
    let at = 4096 + (4096 + 16) + 100;
    let sealed = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.path().join("model.occ"))
        .unwrap();
    let mut byte = [0];
    sealed.read_exact_at(&mut byte, at).unwrap();
    sealed.write_all_at(&[byte[0] ^ 1], at).unwrap();

    let error = Model::load(runtime(), &container, &one_thread()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a weight cannot be opened: chunk 1 is not authentic",
    );
    assert!(matches!(
        error,
        LoadError::Open(OpenError::Inauthentic { chunk: 1 })
    ));
}
