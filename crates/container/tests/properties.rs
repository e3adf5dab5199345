//! Random models survive sealing; random bytes never make a parser panic.

mod support;

use occlude_container::{
    ChunkSize, Container, HEADER_LENGTH, Header, Index, SealOptions, model_key, seal_file,
    unseal_file,
};
use occlude_onnx::DataType;
use occlude_onnx::messages::{ModelProto, TensorProto};
use proptest::prelude::*;
use support::{Folder, constant, decode, external, key, model, node, noise, options, quiet, raw};

/// How a random tensor is stored.
#[derive(Debug, Clone)]
enum Kind {
    Raw,
    Typed,
    External,
    Constant,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Raw),
        Just(Kind::Typed),
        Just(Kind::External),
        Just(Kind::Constant)
    ]
}

/// A model with these tensors; the values of tensor `n` are `noise(n, 4 * count)`.
fn build(folder: &Folder, tensors: &[(Kind, usize)]) -> ModelProto {
    let mut nodes = Vec::new();
    let mut weights = Vec::new();
    let mut data = Vec::new();
    for (n, (kind, count)) in tensors.iter().enumerate() {
        let name = format!("w{n}");
        let values = noise(n as u64, count * 4);
        let inline = raw(&name, DataType::Int32, &[*count as i64], values.clone());
        nodes.push(node("Add", &[&name, "x"], &format!("y{n}")));
        match kind {
            Kind::Raw => weights.push(inline),
            Kind::Constant => nodes.push(constant(&format!("c{n}"), inline)),
            Kind::Typed => weights.push(TensorProto {
                raw_data: None,
                int32_data: values
                    .chunks(4)
                    .map(|four| i32::from_le_bytes(four.try_into().unwrap()))
                    .collect(),
                ..inline
            }),
            Kind::External => {
                let record = external(&name, *count as u64, "data", data.len() as u64, None);
                weights.push(TensorProto {
                    data_type: DataType::Int32.number(),
                    ..record
                });
                data.extend(values);
            }
        }
    }
    folder.write("data", &data);
    nodes.reverse();
    model(nodes, weights)
}

fn values_of(tensor: &TensorProto) -> Vec<u8> {
    match &tensor.raw_data {
        Some(bytes) => bytes.clone(),
        None => tensor
            .int32_data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn random_models_come_back_with_their_weights(
        tensors in proptest::collection::vec((kind(), 0_usize..5000), 0..8),
        chunk in 12_u32..17,
    ) {
        let folder = Folder::new();
        let original = build(&folder, &tensors);
        let path = folder.write_model("model.onnx", &original);
        let options = SealOptions { chunk_size: ChunkSize::new(1 << chunk).unwrap(), ..options() };
        let sealed = folder.path("model.occ");
        seal_file(&path, &sealed, &key(), &options, &mut quiet).unwrap();
        let signed = Container::read(&sealed).unwrap().verify_owner(&key().public()).unwrap();
        signed.verify_ciphertext(&mut quiet).unwrap();
        let model_key = model_key(&key(), signed.header());
        signed.open(&model_key).unwrap().verify_all(&mut quiet).unwrap();
        let back = folder.path("back.onnx");
        unseal_file(&sealed, &back, &key(), &mut quiet).unwrap();
        let (before, after) = (original.graph.unwrap(), decode(&back).graph.unwrap());
        prop_assert_eq!(before.node.len(), after.node.len());
        for (before, after) in before.initializer.iter().zip(&after.initializer) {
            prop_assert_eq!(&before.name, &after.name);
            let seed = before.name[1..].parse().unwrap();
            let length = before.dims[0] as usize * 4;
            prop_assert!(values_of(after) == noise(seed, length));
        }
        for (before, after) in before.node.iter().zip(&after.node) {
            prop_assert!(before == after);
        }
    }
}

proptest! {
    #[test]
    fn random_headers_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        if magic {
            bytes.splice(..bytes.len().min(16), *b"OCCLUDE\n\x01\0\x01\0\0\x10\0\0");
            let _ = Header::parse(&bytes);
            bytes.resize(HEADER_LENGTH, 0);
        }
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.to_bytes() == bytes);
        }
    }

    #[test]
    fn random_indexes_never_panic_and_never_overlap(
        offsets in proptest::collection::vec((0_u64..20, 0_u64..9000, any::<bool>()), 0..6),
        data_length in 0_u64..100_000,
        noise in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let _ = Index::parse(&noise, data_length);
        let tensors: Vec<_> = offsets.iter().enumerate().map(|(n, (page, length, nested))| {
            let place = if *nested { "nested" } else { "initializer" };
            serde_json::json!({"name": n.to_string(), "place": place, "data_type": 2,
                "dims": [length], "offset": page * 4096, "length": length})
        }).collect();
        let json = serde_json::json!({"tensors": tensors, "metadata": {}}).to_string();
        if let Ok(index) = Index::parse(json.as_bytes(), data_length) {
            let mut end = 0;
            for tensor in &index.tensors {
                prop_assert!(tensor.offset >= end);
                end = tensor.offset + tensor.length;
            }
            prop_assert!(end <= data_length);
        }
    }
}
