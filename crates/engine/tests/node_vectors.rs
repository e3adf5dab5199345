//! ONNX's own node tests (see `node/README.md`), sealed, opened and run.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use occlude_inference_protocol::{DataType, Tensor};
use occlude_onnx::messages::{ModelProto, TensorProto};
use prost::Message;
use zeroize::Zeroizing;

#[test]
fn sealed_models_give_the_outputs_of_onnx_node_tests() {
    let cases = cases();
    assert_eq!(cases.len(), 19);
    for case in cases {
        let model = ModelProto::decode(fs::read(case.join("model.onnx")).unwrap().as_slice());
        let loaded = support::load(&model.unwrap()).unwrap_or_else(|error| {
            panic!("{}: {error}", case.display());
        });
        let answers = loaded.run(tensors(&case, "input"), &[]).unwrap();
        let expected = tensors(&case, "output");
        assert_eq!(answers.len(), expected.len(), "{}", case.display());
        for (answer, expected) in answers.iter().zip(&expected) {
            assert_close(&case, answer, expected);
        }
    }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect()
}

fn tensors(case: &Path, role: &str) -> Vec<Tensor> {
    (0..)
        .map(|index| case.join(format!("{role}_{index}.pb")))
        .take_while(|path| path.exists())
        .map(|path| tensor(&TensorProto::decode(fs::read(path).unwrap().as_slice()).unwrap()))
        .collect()
}

fn tensor(stored: &TensorProto) -> Tensor {
    let shape: Vec<u64> = stored.dims.iter().map(|&extent| extent as u64).collect();
    let datatype = match stored.data_type {
        1 => DataType::Fp32,
        6 => DataType::Int32,
        7 => DataType::Int64,
        8 => return Tensor::from_bytes(&stored.name, shape, &stored.string_data).unwrap(),
        9 => DataType::Bool,
        other => panic!("a vector of type {other}"),
    };
    let data = stored.raw_data.clone().unwrap_or_default();
    Tensor::new(&stored.name, datatype, shape, Zeroizing::new(data)).unwrap()
}

/// The tolerance of ONNX's own backend tests.
fn assert_close(case: &Path, answer: &Tensor, expected: &Tensor) {
    let at = format!("{}, output {}", case.display(), expected.name());
    assert_eq!(answer.name(), expected.name(), "{at}");
    assert_eq!(answer.datatype(), expected.datatype(), "{at}");
    assert_eq!(answer.shape(), expected.shape(), "{at}");
    if answer.datatype() != DataType::Fp32 {
        assert_eq!(answer.data(), expected.data(), "{at}");
        return;
    }
    let (a, b) = (
        answer.to_values::<f32>().unwrap(),
        expected.to_values::<f32>().unwrap(),
    );
    for (a, b) in a.iter().zip(&b) {
        assert!(
            (a - b).abs() <= 1e-7 + 1e-3 * b.abs(),
            "{at}: {a} is not {b}"
        );
    }
}
