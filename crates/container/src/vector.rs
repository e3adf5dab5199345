//! The published test vector: what sealing makes of it, byte for byte.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use occlude_keys::{OwnerKey, Salt};
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use prost::Message;

use crate::chunk::ChunkCipher;
use crate::seal::seal_with_salt;
use crate::{ChunkSize, Container, Metadata, SealOptions, model_key, unseal_file};

#[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
struct Vector {
    owner_secret: String,
    owner_public: String,
    id: String,
    version: u64,
    chunk_size: u64,
    salt: String,
    model_key: String,
    context: String,
    key_commitment: String,
    tree_root: String,
    header_digest: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn owner() -> OwnerKey {
    OwnerKey::from_secret(&secret())
}

fn secret() -> [u8; 64] {
    std::array::from_fn(|index| index as u8)
}

fn salt() -> Salt {
    Salt(std::array::from_fn(|index| 0xe0 + index as u8))
}

fn options() -> SealOptions {
    SealOptions {
        id: "test-vector".parse().unwrap(),
        version: 3,
        chunk_size: ChunkSize::SMALLEST,
        metadata: Metadata::default(),
    }
}

fn seal(model: &Path) -> Vec<u8> {
    let mut sink = Cursor::new(Vec::new());
    seal_with_salt(model, &mut sink, &owner(), &options(), &salt(), &mut |_| ()).unwrap();
    sink.into_inner()
}

fn describe(sealed: &Path) -> Vector {
    let container = Container::read(sealed).unwrap();
    let header = container.header();
    let key = model_key(&owner(), header);
    let (_, commitment) = ChunkCipher::new(&key, header.context());
    Vector {
        owner_secret: hex::encode(secret()),
        owner_public: owner().public().to_string(),
        id: header.id().to_string(),
        version: header.version(),
        chunk_size: header.chunk_size().bytes().into(),
        salt: hex::encode(header.salt().0),
        model_key: hex::encode(key.expose()),
        context: hex::encode(header.context()),
        key_commitment: hex::encode(commitment),
        tree_root: hex::encode(header.root()),
        header_digest: header.digest().to_string(),
    }
}

#[test]
fn sealing_the_published_model_gives_the_published_container() {
    let sealed = std::fs::read(folder().join("sealed.occ")).unwrap();
    assert!(seal(&folder().join("plain.onnx")) == sealed);
}

#[test]
fn the_published_container_has_the_published_values() {
    let published = std::fs::read(folder().join("vector.json")).unwrap();
    let published: Vector = serde_json::from_slice(&published).unwrap();
    assert_eq!(describe(&folder().join("sealed.occ")), published);
}

#[test]
fn the_published_container_unseals_to_the_published_model() {
    let temporary = tempfile::tempdir().unwrap();
    let back = temporary.path().join("back.onnx");
    unseal_file(&folder().join("sealed.occ"), &back, &owner(), &mut |_| ()).unwrap();
    let plain = std::fs::read(folder().join("plain.onnx")).unwrap();
    assert!(std::fs::read(back).unwrap() == plain);
}

#[test]
fn the_vector_made_anew_is_the_published_one() {
    let anew = tempfile::tempdir().unwrap();
    write_the_vector(anew.path());
    for file in ["plain.onnx", "sealed.occ", "vector.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        if read(anew.path()) != read(&folder()) {
            let kept = anew.keep();
            panic!(
                "{file} is not the published one; if the format has a new version, take the \
                 files in {}",
                kept.display()
            );
        }
    }
}

/// Writes the model, the container and their values to `folder`.
fn write_the_vector(folder: &Path) {
    let weight = |name: &str, start: u32| {
        let values = (0..600).flat_map(|n| ((start + n) as f32 / 600.0).to_le_bytes());
        TensorProto {
            name: name.to_owned(),
            data_type: DataType::Float.number(),
            dims: vec![1, 600],
            raw_data: Some(values.collect()),
            ..Default::default()
        }
    };
    let node = |operator: &str, inputs: [&str; 2], output: &str| NodeProto {
        op_type: operator.to_owned(),
        input: inputs.map(str::to_owned).to_vec(),
        output: vec![output.to_owned()],
        ..Default::default()
    };
    let dimension = |value| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(value)),
        ..Default::default()
    };
    let value = |name: &str| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: DataType::Float.number(),
                shape: Some(TensorShapeProto {
                    dim: vec![dimension(1), dimension(600)],
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    };
    let model = ModelProto {
        ir_version: 8,
        producer_name: "occlude".to_owned(),
        opset_import: vec![OperatorSetIdProto {
            version: 13,
            ..Default::default()
        }],
        graph: Some(GraphProto {
            name: "vector".to_owned(),
            node: vec![
                node("Mul", ["x", "scale"], "scaled"),
                node("Add", ["scaled", "offset"], "y"),
            ],
            initializer: vec![weight("offset", 1000), weight("scale", 1)],
            input: vec![value("x")],
            output: vec![value("y")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let (plain, sealed) = (folder.join("plain.onnx"), folder.join("sealed.occ"));
    std::fs::write(&plain, model.encode_to_vec()).unwrap();
    std::fs::write(&sealed, seal(&plain)).unwrap();
    let described = serde_json::to_string_pretty(&describe(&sealed)).unwrap();
    std::fs::write(folder.join("vector.json"), described + "\n").unwrap();
}
