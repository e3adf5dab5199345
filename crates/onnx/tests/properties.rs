//! Whatever the bytes, walking them neither panics nor changes what it should not.

mod support;

use occlude_onnx::messages::ModelProto;
use occlude_onnx::{EntryReader, FoundTensor, OnnxError, Outline, Replacement, splice};
use proptest::prelude::*;
use prost::Message;
use support::{delimited, external_tensor, floats, model_with, tensor_in_model};

/// Walks with every kind of replacement in turn.
fn walk_all_ways(bytes: &[u8]) {
    let source = bytes;
    for way in 0..4 {
        let walked = splice::<OnnxError>(&source, &mut |tensor: &FoundTensor| {
            let _ = tensor.byte_length();
            if let Ok(entries) = EntryReader::new(&source, tensor) {
                let length = entries.length().min(100);
                let mut some = vec![0; length as usize];
                entries.read_exact_at(&source, &mut some, entries.length() - length)?;
            }
            Ok(match way {
                0 => Replacement::Keep,
                1 => Replacement::Inline(vec![1, 2, 3]),
                2 => Replacement::Hole {
                    length: u64::MAX / 2,
                },
                _ => Replacement::Hole { length: 1 << 20 },
            })
        });
        if let (0, Ok(copy)) = (way, walked) {
            assert_eq!(copy.length(), Some(copy.bytes.len() as u64));
        }
    }
    let _ = Outline::decode(bytes);
}

fn some_model() -> Vec<u8> {
    let tensors = vec![
        floats("raw", 40),
        external_tensor("external", &[("location", "file"), ("offset", "5")]),
        floats("empty", 0),
    ];
    model_with(tensors).encode_to_vec()
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        walk_all_ways(&bytes);
        walk_all_ways(&tensor_in_model(&bytes));
        walk_all_ways(&delimited(7, &delimited(1, &delimited(5, &bytes))));
    }

    #[test]
    fn damaged_models_never_panic(at in 0_usize..1000, value in any::<u8>(), cut in 0_usize..1000) {
        let mut model = some_model();
        let at = at % model.len();
        model[at] = value;
        walk_all_ways(&model);
        model.truncate(cut);
        walk_all_ways(&model);
    }

    #[test]
    fn holes_filled_with_what_was_there_give_the_model_back(
        sizes in proptest::collection::vec(0_usize..2000, 0..12), keep in any::<u16>(),
    ) {
        let tensors: Vec<_> = sizes.iter().enumerate()
            .map(|(index, &size)| floats(&format!("w{index}"), size))
            .collect();
        let model = model_with(tensors.clone()).encode_to_vec();
        let spliced = splice::<OnnxError>(&model.as_slice(), &mut |tensor| {
            Ok(if keep >> tensor.ordinal & 1 == 1 {
                Replacement::Keep
            } else {
                Replacement::Hole { length: tensor.byte_length()? }
            })
        }).unwrap();
        let mut filled = Vec::new();
        let mut from = 0;
        for hole in &spliced.holes {
            filled.extend_from_slice(&spliced.bytes[from..hole.at]);
            filled.extend(tensors[hole.ordinal as usize].raw_data.as_ref().unwrap());
            from = hole.at;
        }
        filled.extend_from_slice(&spliced.bytes[from..]);
        prop_assert!(filled == model);
        prop_assert!(ModelProto::decode(filled.as_slice()).is_ok());
    }
}
