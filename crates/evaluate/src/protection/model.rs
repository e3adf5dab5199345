//! A classifier with names and weights that a search would find.

use occlude_onnx::messages::{
    AttributeProto, AttributeType, DataLocation, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};
use prost::Message;

use crate::random::Random;

/// The name of the model's input.
pub const INPUT: &str = "pixel_intensities";
/// The name of the model's output.
pub const OUTPUT: &str = "class_probabilities";
/// How many numbers the input has.
pub const FEATURES: usize = 64;
/// Enough for weights of several chunks.
const HIDDEN: usize = 2048;
const CLASSES: usize = 10;
const FLOAT: i32 = 1;

/// A model and what must never be seen outside.
#[derive(Debug)]
pub struct SecretModel {
    /// The model as a file.
    pub onnx: Vec<u8>,
    /// The bytes of every weight tensor.
    pub weights: Vec<Vec<u8>>,
    /// Names of tensors and layers.
    pub names: Vec<String>,
}

/// `seed` decides the weights: two seeds give two models of one size.
#[must_use]
pub fn classifier(seed: u64) -> SecretModel {
    classifier_of(seed, HIDDEN)
}

/// The same with another number of hidden units; each has 300 bytes of weights.
#[must_use]
pub fn classifier_of(seed: u64, hidden: usize) -> SecretModel {
    let layers = [
        (
            "confidential_first_layer",
            INPUT,
            "hidden_activations",
            FEATURES,
            hidden,
        ),
        (
            "confidential_second_layer",
            "rectified_activations",
            "class_logits",
            hidden,
            CLASSES,
        ),
    ];
    let mut random = Random(seed);
    let mut initializer = Vec::new();
    let mut nodes = Vec::new();
    for (name, from, to, rows, columns) in layers {
        let weight = format!("{name}_weight");
        let bias = format!("{name}_bias");
        initializer.push(tensor(
            &weight,
            &[rows, columns],
            numbers(&mut random, rows * columns),
        ));
        initializer.push(tensor(&bias, &[columns], numbers(&mut random, columns)));
        nodes.push(node("Gemm", name, &[from, &weight, &bias], to));
    }
    nodes.insert(
        1,
        node(
            "Relu",
            "confidential_rectifier",
            &["hidden_activations"],
            "rectified_activations",
        ),
    );
    let mut softmax = node("Softmax", "confidential_softmax", &["class_logits"], OUTPUT);
    softmax.attribute.push(AttributeProto {
        name: "axis".to_owned(),
        r#type: AttributeType::Int.into(),
        i: Some(1),
        ..AttributeProto::default()
    });
    nodes.push(softmax);
    let weights = initializer
        .iter()
        .filter_map(|tensor| tensor.raw_data.clone())
        .collect();
    let names = initializer
        .iter()
        .map(|tensor| tensor.name.clone())
        .chain(nodes.iter().map(|node| node.name.clone()))
        .chain([INPUT.to_owned(), OUTPUT.to_owned()])
        .collect();
    let model = ModelProto {
        ir_version: 9,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        producer_name: "occlude-tests".to_owned(),
        graph: Some(GraphProto {
            name: "confidential_classifier".to_owned(),
            node: nodes,
            initializer,
            input: vec![value(INPUT, FEATURES)],
            output: vec![value(OUTPUT, CLASSES)],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    SecretModel {
        onnx: model.encode_to_vec(),
        weights,
        names,
    }
}

/// A model whose one weight lies in `weights.bin` beside it, `bytes` long and all
/// zeros; the file is sparse.
pub fn external(folder: &std::path::Path, bytes: u64) -> std::path::PathBuf {
    let columns = bytes / (4 * FEATURES as u64);
    let mut weight = tensor(
        "confidential_weight",
        &[FEATURES, columns as usize],
        Vec::new(),
    );
    weight.raw_data = None;
    weight.data_location = DataLocation::External.into();
    weight.external_data = vec![StringStringEntryProto {
        key: "location".to_owned(),
        value: "weights.bin".to_owned(),
    }];
    let model = ModelProto {
        ir_version: 9,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            name: "external".to_owned(),
            node: vec![node(
                "MatMul",
                "product",
                &[INPUT, "confidential_weight"],
                OUTPUT,
            )],
            initializer: vec![weight],
            input: vec![value(INPUT, FEATURES)],
            output: vec![value(OUTPUT, columns as usize)],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let path = folder.join("external.onnx");
    std::fs::write(&path, model.encode_to_vec()).expect("written");
    std::fs::File::create(folder.join("weights.bin"))
        .and_then(|file| file.set_len(bytes))
        .expect("a sparse file");
    path
}

/// An input that no other part of a test would send by chance.
#[must_use]
pub fn secret_input(seed: u64) -> Vec<f32> {
    floats(&mut Random(seed), FEATURES)
}

/// The input as a `.npy` file, an example of 64 numbers in a row, version 1.0 of NumPy's format.
#[must_use]
pub fn npy(values: &[f32]) -> Vec<u8> {
    let columns = values.len().min(FEATURES);
    let rows = values.len() / columns.max(1);
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

/// What the model answers: arithmetic done here on the plain weights, in 64 bits.
#[must_use]
pub fn expected(model: &SecretModel, input: &[f32]) -> Vec<f64> {
    let tensor = |index: usize| -> Vec<f64> {
        model.weights[index]
            .chunks_exact(4)
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes"))))
            .collect()
    };
    let dense = |input: &[f64], weight: &[f64], bias: &[f64]| -> Vec<f64> {
        (0..bias.len())
            .map(|column| {
                bias[column]
                    + input
                        .iter()
                        .enumerate()
                        .map(|(row, value)| value * weight[row * bias.len() + column])
                        .sum::<f64>()
            })
            .collect()
    };
    let input: Vec<f64> = input.iter().map(|&value| f64::from(value)).collect();
    let hidden: Vec<f64> = dense(&input, &tensor(0), &tensor(1))
        .iter()
        .map(|value| value.max(0.0))
        .collect();
    let logits = dense(&hidden, &tensor(2), &tensor(3));
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

/// The answer in what `occlude infer --json` printed, if it is one.
#[must_use]
pub fn probabilities(printed: &str) -> Option<Vec<f64>> {
    let json: serde_json::Value = serde_json::from_str(printed).ok()?;
    let numbers = json.get(OUTPUT)?.get("data")?.as_array()?;
    numbers.iter().map(serde_json::Value::as_f64).collect()
}

/// Whether an answer is the right one, as far as 32 bits go.
#[must_use]
pub fn is_close(found: &[f64], expected: &[f64]) -> bool {
    let near = |(found, expected): (&f64, &f64)| (found - expected).abs() < 1e-5;
    found.len() == expected.len() && found.iter().zip(expected).all(near)
}

/// Numbers between -0.1 and 0.1, enough of them for weights that repeat nowhere.
fn floats(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.float() / 10.0).collect()
}

fn numbers(random: &mut Random, count: usize) -> Vec<u8> {
    let floats = floats(random, count);
    floats
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn tensor(name: &str, dims: &[usize], raw: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.iter().map(|&extent| extent as i64).collect(),
        data_type: FLOAT,
        raw_data: Some(raw),
        ..TensorProto::default()
    }
}

fn node(operator: &str, name: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        name: name.to_owned(),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// What the model takes and gives.
pub(super) fn ends() -> (ValueInfoProto, ValueInfoProto) {
    (value(INPUT, FEATURES), value(OUTPUT, CLASSES))
}

/// A float tensor of shape `[batch, extent]`.
fn value(name: &str, extent: usize) -> ValueInfoProto {
    let dimension = |value| Dimension {
        value: Some(value),
        ..Dimension::default()
    };
    let dim = vec![
        dimension(dimension::Value::DimParam("batch".to_owned())),
        dimension(dimension::Value::DimValue(extent as i64)),
    ];
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: FLOAT,
                shape: Some(TensorShapeProto { dim }),
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
