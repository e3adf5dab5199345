//! Rewriting skeletons that are malformed, disagree or keep weights in odd places.

use occlude_onnx::messages::{AttributeProto, StringStringEntryProto, TrainingInfoProto};

use super::*;
use crate::graph::{RewriteOptions, Survey};
use crate::support::{floats, graph, model, node, subgraph, value, with};

const OFFSET: u64 = 4096;

const WITHOUT_LAYERS: RewriteOptions = RewriteOptions {
    sealed_operators: false,
    block: None,
    smallest_streamed: 0,
};

fn sealed(name: &str, dims: &[i64], offset: u64, length: u64) -> TensorProto {
    let mut tensor = floats(name, dims, &[]);
    tensor.raw_data = None;
    tensor.data_location = DataLocation::External as i32;
    tensor.external_data = [
        ("location", PAYLOAD_LOCATION.to_owned()),
        ("offset", offset.to_string()),
        ("length", length.to_string()),
    ]
    .map(|(key, value)| StringStringEntryProto {
        key: key.to_owned(),
        value,
    })
    .into();
    tensor
}

/// One tensor of 1,600 bytes at `OFFSET`.
fn one_tensor() -> HashMap<u64, SealedTensor> {
    HashMap::from([(
        OFFSET,
        SealedTensor {
            index: 7,
            length: 1600,
        },
    )])
}

fn rewritten(model: &ModelProto) -> Result<(ModelProto, Vec<Weight>), LoadError> {
    let mut read = |index| {
        assert_eq!(index, 7);
        Ok(vec![0x77; 1600])
    };
    let skeleton = model.encode_to_vec();
    let survey = Survey::of(&skeleton, &one_tensor(), &mut read, &WITHOUT_LAYERS)?;
    let emitted = survey.emit(&|_| true)?;
    let model = ModelProto::decode(emitted.model.as_slice()).unwrap();
    Ok((model, emitted.weights))
}

fn with_initializer(initializer: TensorProto) -> ModelProto {
    model(graph(
        vec![node("MatMul", &["x", "weight"], &["y"])],
        vec![value("x", DataType::Float, &[1, 20])],
        vec![value("y", DataType::Float, &[1, 20])],
        vec![initializer],
    ))
}

fn message(result: Result<(ModelProto, Vec<Weight>), LoadError>) -> String {
    match result {
        Err(LoadError::Skeleton(message)) => message,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn a_weight_becomes_an_input_whose_default_lies_in_the_zeros() {
    let (model, weights) =
        rewritten(&with_initializer(sealed("weight", &[20, 20], OFFSET, 1600))).unwrap();
    assert_eq!(
        weights,
        [Weight {
            name: "weight".to_owned(),
            data_type: DataType::Float,
            dims: vec![20, 20],
            source: Source::Sealed(SealedTensor {
                index: 7,
                length: 1600
            }),
        }],
    );
    let graph = model.graph.unwrap();
    assert_eq!(graph.input[1], value("weight", DataType::Float, &[20, 20]));
    assert_eq!(entry(&graph.initializer[0], "location"), Some("zeros"));
    assert_eq!(entry(&graph.initializer[0], "offset"), Some("0"));
    assert_eq!(entry(&graph.initializer[0], "length"), Some("1600"));
}

#[test]
fn a_tensor_in_a_file_of_the_hosts_is_refused_wherever_it_stands() {
    let foreign = |name: &str| {
        let mut tensor = sealed(name, &[20, 20], OFFSET, 1600);
        tensor.external_data[0].value = "../../proc/self/mem".to_owned();
        tensor
    };
    let mut in_attribute = node("Constant", &[], &["weight"]);
    in_attribute.attribute = vec![AttributeProto {
        name: "value".to_owned(),
        t: Some(Box::new(foreign(""))),
        ..AttributeProto::default()
    }];
    let mut constant = with_initializer(floats("unused", &[1], &[0.0]));
    constant
        .graph
        .as_mut()
        .unwrap()
        .node
        .insert(0, in_attribute);
    let mut unknown_place = with_initializer(foreign("weight"));
    unknown_place.graph.as_mut().unwrap().initializer[0].data_location = 2;
    for model in [with_initializer(foreign("weight")), constant, unknown_place] {
        assert_eq!(
            message(rewritten(&model)),
            "it refers to a file outside the container"
        );
    }
}

#[test]
fn bytes_that_are_no_protobuf_are_refused() {
    let result = normalise(&[0xff; 9], &HashMap::new(), &mut |_| Ok(vec![]));
    let Err(LoadError::Skeleton(message)) = result else {
        panic!("it was accepted or failed otherwise");
    };
    assert!(message.starts_with("it does not decode: "), "{message}");
}

#[test]
fn a_model_without_a_graph_is_refused() {
    assert_eq!(
        message(rewritten(&ModelProto::default())),
        "it has no graph"
    );
}

#[test]
fn a_reference_that_the_index_lacks_is_refused() {
    for (offset, length) in [(OFFSET + 64, 1600), (OFFSET, 1604)] {
        let model = with_initializer(sealed("weight", &[20, 20], offset, length));
        assert_eq!(
            message(rewritten(&model)),
            "it refers to a tensor that the container's index lacks",
        );
    }
}

#[test]
fn a_tensor_whose_extents_do_not_give_its_length_is_refused() {
    for dims in [&[20, 21][..], &[-20, -20], &[i64::MAX, i64::MAX]] {
        let model = with_initializer(sealed("weight", dims, OFFSET, 1600));
        assert_eq!(
            message(rewritten(&model)),
            "a tensor of type 1 and 2 dimensions does not take 1600 bytes",
        );
    }
}

#[test]
fn a_moved_weight_is_renamed_in_nested_subgraphs_unless_they_define_the_name_anew() {
    let reads = |name: &str| {
        graph(
            vec![node("Neg", &["weight"], &[name])],
            vec![],
            vec![],
            vec![],
        )
    };
    let mut shadowing = reads("hidden");
    shadowing.initializer = vec![floats("weight", &[1], &[1.0])];
    let nested = with(
        with(
            node("If", &["c"], &["z"]),
            subgraph("then_branch", reads("seen")),
        ),
        subgraph("else_branch", shadowing),
    );
    let branch = graph(
        vec![node("Abs", &["weight"], &["a"]), nested],
        vec![],
        vec![],
        vec![sealed("weight", &[20, 20], OFFSET, 1600)],
    );
    let outer = with(node("If", &["c"], &["y"]), subgraph("then_branch", branch));
    let (model, weights) = rewritten(&model(graph(vec![outer], vec![], vec![], vec![]))).unwrap();

    assert_eq!(weights[0].name, "occlude/moved/0");
    let main = model.graph.unwrap();
    let branch = main.node[0].attribute[0].g.as_deref().unwrap();
    assert_eq!(branch.initializer, []);
    assert_eq!(branch.node[0].input, ["occlude/moved/0"]);
    let inner = |index: usize| branch.node[1].attribute[index].g.as_deref().unwrap();
    assert_eq!(inner(0).node[0].input, ["occlude/moved/0"]);
    assert_eq!(inner(1).node[0].input, ["weight"]);
}

#[test]
fn a_sparse_weight_is_put_into_the_skeleton() {
    let mut with_sparse = with_initializer(floats("weight", &[1], &[1.0]));
    with_sparse.graph.as_mut().unwrap().sparse_initializer = vec![SparseTensorProto {
        values: Some(sealed("sparse", &[400], OFFSET, 1600)),
        ..SparseTensorProto::default()
    }];
    let (model, weights) = rewritten(&with_sparse).unwrap();
    assert_eq!(weights, []);
    let sparse = model
        .graph
        .unwrap()
        .sparse_initializer
        .remove(0)
        .values
        .unwrap();
    assert_eq!(sparse.raw_data.as_deref(), Some(&[0x77; 1600][..]));
    assert_eq!(sparse.external_data, []);
    assert_eq!(sparse.data_location, DataLocation::Default as i32);
}

#[test]
fn training_graphs_are_dropped() {
    let mut trainable = with_initializer(sealed("weight", &[20, 20], OFFSET, 1600));
    trainable.training_info.push(TrainingInfoProto::default());
    assert_eq!(rewritten(&trainable).unwrap().0.training_info, []);
}
