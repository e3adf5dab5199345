//! Containers that an owner signed and whose contents are refused nevertheless.

use std::io::Cursor;

use occlude_keys::{OwnerKey, Salt};
use occlude_onnx::messages::{
    DataLocation, GraphProto, ModelProto, StringStringEntryProto, TensorProto,
};
use prost::Message;

use crate::input::Plaintext;
use crate::seal::seal_in_order;
use crate::{
    ChunkSize, Container, IndexError, Metadata, OpenContainer, OpenError, SealOptions, model_key,
};

const INDEX: &str = r#"{"tensors":[{"name":"w","place":"initializer","data_type":1,"dims":[300],"offset":0,"length":1200}],"metadata":{}}"#;

fn record(location: &str, offset: &str, length: &str) -> Vec<u8> {
    let entries = [
        ("location", location),
        ("offset", offset),
        ("length", length),
    ];
    let tensor = TensorProto {
        name: "w".to_owned(),
        data_type: 1,
        dims: vec![300],
        external_data: entries
            .map(|(key, value)| StringStringEntryProto {
                key: key.to_owned(),
                value: value.to_owned(),
            })
            .to_vec(),
        data_location: DataLocation::External as i32,
        ..Default::default()
    };
    with_initializers(vec![tensor])
}

fn with_initializers(initializer: Vec<TensorProto>) -> Vec<u8> {
    let graph = GraphProto {
        initializer,
        ..Default::default()
    };
    ModelProto {
        graph: Some(graph),
        ..Default::default()
    }
    .encode_to_vec()
}

/// Prelude, index, skeleton and tensor data, as sealing would lay them out.
fn contents(index: &str, skeleton: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = (index.len() as u64).to_le_bytes().to_vec();
    bytes.extend((skeleton.len() as u64).to_le_bytes());
    bytes.extend(index.as_bytes());
    bytes.extend(skeleton);
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes.extend(data);
    bytes
}

fn open(contents: Vec<u8>) -> Result<OpenContainer, OpenError> {
    let key = OwnerKey::from_secret(&[5; 64]);
    let options = SealOptions {
        id: "test".parse().unwrap(),
        version: 1,
        chunk_size: ChunkSize::SMALLEST,
        metadata: Metadata::default(),
    };
    let plaintext = Plaintext::of_bytes(contents);
    let mut sink = Cursor::new(Vec::new());
    let salt = Salt([6; 32]);
    seal_in_order(&plaintext, &mut sink, &key, &options, &salt, &mut |_| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.occ");
    std::fs::write(&path, sink.into_inner()).unwrap();
    let signed = Container::read(&path)
        .unwrap()
        .verify_owner(&key.public())
        .unwrap();
    let model_key = model_key(&key, signed.header());
    signed.open(&model_key)
}

#[test]
fn contents_as_sealing_lays_them_out_open() {
    let opened = open(contents(INDEX, &record("occlude", "0", "1200"), &[7; 1200])).unwrap();
    let mut bytes = vec![0; 1200];
    opened.read_tensor(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 1200]);
    opened.verify_all(&mut |_| ()).unwrap();
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_allocated() {
    let good = contents(INDEX, &record("occlude", "0", "1200"), &[7; 1200]);
    for (at, length) in [
        (0, u64::MAX),
        (0, 1 << 20),
        (0, (256 << 20) + 1),
        (8, u64::MAX),
        (8, 1 << 20),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(length));
        assert!(
            matches!(open(bytes), Err(OpenError::Prelude)),
            "{at} {length}"
        );
    }
}

#[test]
fn a_malformed_index_is_refused() {
    let error = open(contents("{}", &record("occlude", "0", "1200"), &[])).unwrap_err();
    assert!(matches!(
        error,
        OpenError::Index(IndexError::Malformed { .. })
    ));
    let beyond = INDEX.replace("\"offset\":0", "\"offset\":8192");
    let error = open(contents(&beyond, &record("occlude", "8192", "1200"), &[])).unwrap_err();
    assert!(matches!(
        error,
        OpenError::Index(IndexError::Place { tensor: 0 })
    ));
}

/// A record of another file would let the graph read the host's.
#[test]
fn a_graph_that_does_not_fit_its_index_is_refused() {
    let other_type = TensorProto {
        data_type: 6,
        ..ModelProto::decode(record("occlude", "0", "1200").as_slice())
            .unwrap()
            .graph
            .unwrap()
            .initializer[0]
            .clone()
    };
    let cases = [
        record("/etc/passwd", "0", "1200"),
        record("occlude", "4096", "1200"),
        record("occlude", "0", "1199"),
        with_initializers(vec![other_type]),
        with_initializers(vec![]),
    ];
    for skeleton in cases {
        let error = open(contents(INDEX, &skeleton, &[7; 1200])).unwrap_err();
        assert!(
            matches!(error, OpenError::GraphDoesNotFitIndex),
            "{error:?}"
        );
    }
}

#[test]
fn a_graph_that_is_none_is_refused() {
    let empty = r#"{"tensors":[],"metadata":{}}"#;
    let error = open(contents(empty, b"\xff\xff", &[])).unwrap_err();
    assert!(matches!(error, OpenError::Graph(_)));
}

#[test]
fn padding_that_is_not_zero_is_found() {
    let good = contents(INDEX, &record("occlude", "0", "1200"), &[7; 1200]);
    let graph_end = 16 + INDEX.len() + record("occlude", "0", "1200").len();
    for at in [graph_end, 4095, 4096 + 1200, 8191] {
        let mut bytes = good.clone();
        bytes.resize(8192, 0);
        bytes[at] = 1;
        let opened = open(bytes).unwrap();
        let error = opened.verify_all(&mut |_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Padding), "{at}");
    }
}
