//! Values in `float_data` and its kin read as `raw_data` would hold them.

mod support;

use occlude_onnx::messages::TensorProto;
use occlude_onnx::{DataType, EntryReader, OnnxError, Replacement, TensorProblem, splice};
use proptest::prelude::*;
use prost::Message;
use support::{delimited, floats, tensor_in_model, varint};

/// Reads all of the only tensor of a model.
fn read(model: &[u8], from: u64, to: u64) -> Result<Vec<u8>, OnnxError> {
    let mut outcome = None;
    splice::<OnnxError>(&model, &mut |tensor| {
        let entries = EntryReader::new(&model, tensor)?;
        let to = to.min(entries.length());
        let from = from.min(to);
        let mut bytes = vec![0xcc; (to - from) as usize];
        entries.read_exact_at(&model, &mut bytes, from)?;
        outcome = Some(bytes);
        Ok(Replacement::Keep)
    })?;
    Ok(outcome.expect("the model has a tensor"))
}

fn model(data_type: DataType, count: usize, tensor: TensorProto) -> Vec<u8> {
    let tensor = TensorProto {
        data_type: data_type.number(),
        dims: vec![count as i64],
        raw_data: None,
        ..tensor
    };
    tensor_in_model(&tensor.encode_to_vec())
}

fn problem(model: &[u8]) -> TensorProblem {
    match read(model, 0, u64::MAX) {
        Err(OnnxError::Tensor { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_type_is_read_from_its_field() {
    let base = floats("w", 0);
    let cases: [(DataType, TensorProto, Vec<u8>); 8] = [
        (
            DataType::Float,
            TensorProto {
                float_data: vec![1.5, -2.0],
                ..base.clone()
            },
            [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat(),
        ),
        (
            DataType::Double,
            TensorProto {
                double_data: vec![1.5, -2.0],
                ..base.clone()
            },
            [1.5_f64.to_le_bytes(), (-2.0_f64).to_le_bytes()].concat(),
        ),
        (
            DataType::Int32,
            TensorProto {
                int32_data: vec![-1, 70_000],
                ..base.clone()
            },
            [(-1_i32).to_le_bytes(), 70_000_i32.to_le_bytes()].concat(),
        ),
        (
            DataType::Int8,
            TensorProto {
                int32_data: vec![-1, 100],
                ..base.clone()
            },
            vec![0xff, 100],
        ),
        (
            DataType::Float16,
            TensorProto {
                int32_data: vec![0x3c00, 0xbc00],
                ..base.clone()
            },
            vec![0x00, 0x3c, 0x00, 0xbc],
        ),
        (
            DataType::Int64,
            TensorProto {
                int64_data: vec![-5, 1 << 40],
                ..base.clone()
            },
            [(-5_i64).to_le_bytes(), (1_i64 << 40).to_le_bytes()].concat(),
        ),
        (
            DataType::Uint32,
            TensorProto {
                uint64_data: vec![7, u64::from(u32::MAX)],
                ..base.clone()
            },
            [7_u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat(),
        ),
        (
            DataType::Uint64,
            TensorProto {
                uint64_data: vec![7, u64::MAX],
                ..base
            },
            [7_u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat(),
        ),
    ];
    for (data_type, tensor, raw) in cases {
        let bytes = read(&model(data_type, 2, tensor), 0, u64::MAX).unwrap();
        assert_eq!(bytes, raw, "{data_type}");
    }
    // Two elements an entry.
    let packed = TensorProto {
        int32_data: vec![0x21, 0x03],
        ..floats("w", 0)
    };
    assert_eq!(
        read(&model(DataType::Int4, 3, packed), 0, 9).unwrap(),
        [0x21, 0x03]
    );
}

#[test]
fn entries_that_are_not_packed_are_read_too() {
    let mut tensor = TensorProto {
        dims: vec![3],
        raw_data: None,
        ..floats("w", 0)
    };
    tensor.data_type = DataType::Int64.number();
    let mut bytes = tensor.encode_to_vec();
    bytes.extend([7 << 3, 5]);
    bytes.extend(delimited(7, &[6, 7]));
    let raw = read(&tensor_in_model(&bytes), 0, u64::MAX).unwrap();
    assert_eq!(raw, [5_i64, 6, 7].map(i64::to_le_bytes).concat());
}

#[test]
fn too_few_and_too_many_entries_are_refused() {
    let tensor = TensorProto {
        int64_data: vec![1, 2, 3],
        ..floats("w", 0)
    };
    for (count, expected) in [(2, 16), (4, 32)] {
        assert_eq!(
            problem(&model(DataType::Int64, count, tensor.clone())),
            TensorProblem::Length {
                expected,
                found: 24
            }
        );
    }
}

#[test]
fn a_type_in_the_field_of_another_is_refused() {
    let tensor = TensorProto {
        double_data: vec![1.0],
        ..floats("w", 0)
    };
    for data_type in [DataType::Float, DataType::Complex64, DataType::Int64] {
        assert_eq!(
            problem(&model(data_type, 1, tensor.clone())),
            TensorProblem::DataType(data_type.number())
        );
    }
}

proptest! {
    #[test]
    fn any_part_of_many_entries_is_that_part_of_the_whole(
        seed in any::<u64>(), from in 0_u64..300_000, length in 0_u64..70_000, runs in 1_usize..5,
    ) {
        let values: Vec<u64> = (0..40_000_u64)
            .map(|index| (seed | 1).wrapping_mul(index * index + 1) >> (index % 64))
            .collect();
        let head = TensorProto { dims: vec![40_000], raw_data: None, ..floats("w", 0) };
        let head = TensorProto { data_type: DataType::Uint64.number(), ..head };
        let mut tensor = head.encode_to_vec();
        for run in values.chunks(values.len().div_ceil(runs)) {
            tensor.extend(delimited(11, &run.iter().flat_map(|&value| varint(value)).collect::<Vec<_>>()));
        }
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let to = (from + length).min(raw.len() as u64);
        let part = read(&tensor_in_model(&tensor), from, to).unwrap();
        prop_assert!(part == raw[from as usize..to as usize]);
    }
}
