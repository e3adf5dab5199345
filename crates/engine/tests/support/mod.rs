//! Models built from the ONNX messages, sealed and opened for a test, and ONNX
//! Runtime's own run of the plain model as the reference.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod random;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use occlude_container::{
    ChunkSize, Container, Metadata, OpenContainer, SealOptions, model_key, seal_file,
};
use occlude_engine::{
    LIBRARY_FILE_NAME, LibrarySearch, LoadError, LoadOptions, Model, ProtectedMemory, Runtime,
};
use occlude_keys::{ModelId, OwnerKey};
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    AttributeProto, AttributeType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use proptest::test_runner::Config as ProptestConfig;
use prost::Message;

/// Steps in which a failing case is made smaller.
const MOST_SHRINKING: u32 = 2000;

/// The library that the build placed in `target/onnxruntime`.
pub(crate) fn library_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("target/onnxruntime").join(LIBRARY_FILE_NAME))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("no target/onnxruntime/{LIBRARY_FILE_NAME}: run `make onnxruntime`")
        })
}

pub(crate) fn runtime() -> &'static Runtime {
    Runtime::load(&LibrarySearch::only(library_path())).unwrap()
}

/// Property tests that draw so many cases unless `PROPTEST_CASES` says otherwise.
pub(crate) fn property_tests(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => ProptestConfig::default().cases,
            None => cases,
        },
        failure_persistence: None,
        max_shrink_iters: MOST_SHRINKING,
        ..ProptestConfig::default()
    }
}

pub(crate) fn one_thread() -> LoadOptions {
    LoadOptions {
        threads: NonZeroUsize::MIN,
        sessions: NonZeroUsize::MIN,
        ..LoadOptions::default()
    }
}

/// Every weight streamed that can be, however small.
pub(crate) fn everything_streamed() -> LoadOptions {
    LoadOptions {
        memory: ProtectedMemory::WeightShare(0.0),
        smallest_streamed: 0,
        ..two_threads()
    }
}

/// Enough threads for everything that is done in parallel; every weight resident.
pub(crate) fn two_threads() -> LoadOptions {
    LoadOptions {
        threads: const { NonZeroUsize::new(2).unwrap() },
        sessions: NonZeroUsize::MIN,
        ..LoadOptions::default()
    }
}

/// Seals `model` and opens the result, whose file is gone from its folder then.
pub(crate) fn opened(model: &ModelProto) -> Arc<OpenContainer> {
    let folder = tempfile::tempdir().unwrap();
    opened_in(folder.path(), model)
}

/// Seals `model` into `model.occ` in `folder`, with the smallest chunks, and opens it.
pub(crate) fn opened_in(folder: &Path, model: &ModelProto) -> Arc<OpenContainer> {
    let (plain, sealed) = (folder.join("model.onnx"), folder.join("model.occ"));
    std::fs::write(&plain, model.encode_to_vec()).unwrap();
    let key = OwnerKey::generate();
    let options = SealOptions {
        id: ModelId::random(),
        version: 1,
        chunk_size: ChunkSize::SMALLEST,
        metadata: Metadata::default(),
    };
    seal_file(&plain, &sealed, &key, &options, &mut |_| ()).unwrap();
    let container = Container::read(&sealed).unwrap();
    let signed = container.verify_owner(&key.public()).unwrap();
    let model_key = model_key(&key, signed.header());
    Arc::new(signed.open(&model_key).unwrap())
}

pub(crate) fn load(model: &ModelProto) -> Result<Model, LoadError> {
    Model::load(runtime(), &opened(model), &one_thread())
}

/// What ONNX Runtime computes from the plain model, in its default configuration;
/// every output as its FP32 elements.
pub(crate) fn plain_run(model: &ModelProto, inputs: &[(&str, &[i64], &[f32])]) -> Vec<Vec<f32>> {
    plain_run_of(&mut plain_session(model).unwrap(), inputs)
}

pub(crate) fn plain_session(model: &ModelProto) -> ort::Result<ort::session::Session> {
    ort::session::Session::builder(runtime().environment())?
        .commit_from_memory(&model.encode_to_vec())
}

pub(crate) fn plain_run_of(
    session: &mut ort::session::Session,
    inputs: &[(&str, &[i64], &[f32])],
) -> Vec<Vec<f32>> {
    let feeds: Vec<(&str, ort::value::DynValue)> = inputs
        .iter()
        .map(|(name, dims, values)| {
            let tensor = ort::value::Tensor::from_array((dims.to_vec(), values.to_vec()));
            (*name, tensor.unwrap().into_dyn())
        })
        .collect();
    let outputs = session.run(feeds).unwrap();
    outputs
        .values()
        .map(|value| value.try_extract_tensor::<f32>().unwrap().1.to_vec())
        .collect()
}

pub(crate) fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

pub(crate) fn graph(
    node: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) -> GraphProto {
    GraphProto {
        name: "graph".to_owned(),
        node,
        input,
        output,
        initializer,
        ..GraphProto::default()
    }
}

pub(crate) fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: outputs.iter().map(|&name| name.to_owned()).collect(),
        ..NodeProto::default()
    }
}

pub(crate) fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

pub(crate) fn subgraph(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        g: Some(Box::new(graph)),
        ..attribute(name, AttributeType::Graph)
    }
}

pub(crate) fn tensor_attribute(name: &str, tensor: TensorProto) -> AttributeProto {
    AttributeProto {
        t: Some(Box::new(tensor)),
        ..attribute(name, AttributeType::Tensor)
    }
}

pub(crate) fn integers_attribute(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        ints: values.to_vec(),
        ..attribute(name, AttributeType::Ints)
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: kind as i32,
        ..AttributeProto::default()
    }
}

pub(crate) fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        i: Some(value),
        ..attribute(name, AttributeType::Int)
    }
}

pub(crate) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        f: Some(value),
        ..attribute(name, AttributeType::Float)
    }
}

pub(crate) fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        s: Some(value.as_bytes().to_vec()),
        ..attribute(name, AttributeType::String)
    }
}

/// A tensor of raw bytes.
pub(crate) fn tensor(name: &str, data_type: DataType, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: data_type.number(),
        dims: dims.to_vec(),
        raw_data: Some(bytes),
        ..TensorProto::default()
    }
}

pub(crate) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    tensor(name, DataType::Float, dims, little_endian(values))
}

pub(crate) fn integers(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    tensor(name, DataType::Int64, dims, bytes.collect())
}

pub(crate) fn little_endian(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Numbers that look random and never repeat.
pub(crate) fn pattern(length: usize) -> Vec<f32> {
    (0..length)
        .map(|index| ((index as f32) * 12.9898).sin() * 0.5)
        .collect()
}

/// A value of fixed extents, or free ones where they are negative.
pub(crate) fn value(name: &str, data_type: DataType, dims: &[i64]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|&extent| tensor_shape_proto::Dimension {
            value: (extent >= 0).then_some(tensor_shape_proto::dimension::Value::DimValue(extent)),
            ..Default::default()
        })
        .collect();
    typed(name, data_type, Some(TensorShapeProto { dim }))
}

pub(crate) fn value_of_any_rank(name: &str, data_type: DataType) -> ValueInfoProto {
    typed(name, data_type, None)
}

fn typed(name: &str, data_type: DataType, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: data_type.number(),
                shape,
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
