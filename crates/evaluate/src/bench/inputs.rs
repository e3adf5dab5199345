//! What the models are run on: given tensors, or random ones, the same every time.
//!
//! Random values must be ones that the model can work on. Numbers that index a table
//! stay within it: the graph is searched for the `Gather` that reads them.

use std::collections::HashMap;

use half::{bf16, f16};
use occlude_inference_protocol::{DataType, Tensor, TensorMetadata};
use occlude_onnx::messages::{GraphProto, ModelProto, NodeProto};
use prost::Message;
use zeroize::Zeroizing;

use super::sealed::SealedModel;
use super::{BenchError, Inputs};
use crate::random::Random;

/// Open extents of images, `[batch, channels, height, width]`.
const IMAGE_EXTENT: u64 = 224;

/// Other open extents but the first: the tokens of a text, most often.
const OTHER_EXTENT: u64 = 128;

/// Integers of which the graph does not say what they index are below this.
const UNKNOWN_LIMIT: u64 = 2;

/// The tensors, one for each of the model's `inputs` where they are made up.
pub(super) fn tensors(
    wanted: &Inputs,
    inputs: &[TensorMetadata],
    sealed: &SealedModel,
) -> Result<Vec<Tensor>, BenchError> {
    let batch = match wanted {
        Inputs::Given(tensors) => return Ok(tensors.clone()),
        Inputs::Random { batch } => *batch,
    };
    let possible = inputs
        .iter()
        .any(|input| shape(input, batch).first() == Some(&batch));
    if batch != 1 && !possible {
        return Err(BenchError::FixedBatch { batch });
    }
    let container = sealed.open()?;
    let model = ModelProto::decode(container.skeleton())
        .map_err(|error| BenchError::Plain(error.to_string()))?;
    let limits = model.graph.as_ref().map(index_limits).unwrap_or_default();
    let mut random = Random(0);
    inputs
        .iter()
        .map(|input| {
            let limit = limits.get(&input.name).copied();
            sample(input, batch, limit, &mut random)
        })
        .collect()
}

/// How many examples the tensors hold: as asked for, or the first one's first extent.
pub(super) fn batch(wanted: &Inputs, tensors: &[Tensor]) -> u64 {
    match wanted {
        Inputs::Random { batch } => *batch,
        Inputs::Given(_) => tensors
            .first()
            .and_then(|tensor| tensor.shape().first())
            .copied()
            .unwrap_or(1),
    }
}

fn shape(input: &TensorMetadata, batch: u64) -> Vec<u64> {
    let rank = input.shape.len();
    let extents = input.shape.iter().enumerate();
    extents
        .map(|(axis, &extent)| match u64::try_from(extent) {
            Ok(fixed) => fixed,
            Err(_) if axis == 0 => batch,
            Err(_) if rank == 4 => IMAGE_EXTENT,
            Err(_) => OTHER_EXTENT,
        })
        .collect()
}

/// `limit` is how many rows the table has that the values index, if they do.
fn sample(
    input: &TensorMetadata,
    batch: u64,
    limit: Option<u64>,
    random: &mut Random,
) -> Result<Tensor, BenchError> {
    let shape = shape(input, batch);
    let no_sample = |found: String| BenchError::NoSample {
        name: input.name.clone(),
        found,
    };
    let count = shape
        .iter()
        .try_fold(1_u64, |product, &extent| product.checked_mul(extent))
        .and_then(|count| usize::try_from(count).ok())
        .ok_or_else(|| no_sample(format!("{} {shape:?}", input.datatype)))?;
    // Everything counts in a mask.
    let is_mask = input.name.to_ascii_lowercase().contains("mask");
    let limit = limit.unwrap_or(UNKNOWN_LIMIT).max(1);
    let index = |random: &mut Random| if is_mask { 1 } else { random.next() % limit };
    if input.datatype == DataType::Bytes {
        return Tensor::from_bytes(&input.name, shape, &vec!["a"; count])
            .map_err(|error| no_sample(error.to_string()));
    }
    let mut data = Vec::new();
    for _ in 0..count {
        match input.datatype {
            DataType::Bool => data.push(1),
            DataType::Uint8 | DataType::Int8 => data.push(index(random) as u8),
            DataType::Uint16 | DataType::Int16 => data.extend((index(random) as u16).to_le_bytes()),
            DataType::Uint32 | DataType::Int32 => data.extend((index(random) as u32).to_le_bytes()),
            DataType::Uint64 | DataType::Int64 => data.extend(index(random).to_le_bytes()),
            DataType::Fp16 => data.extend(f16::from_f32(random.float()).to_le_bytes()),
            DataType::Bf16 => data.extend(bf16::from_f32(random.float()).to_le_bytes()),
            DataType::Fp32 => data.extend(random.float().to_le_bytes()),
            DataType::Fp64 => data.extend(f64::from(random.float()).to_le_bytes()),
            DataType::Bytes => {}
        }
    }
    Tensor::new(&input.name, input.datatype, shape, Zeroizing::new(data))
        .map_err(|error| no_sample(error.to_string()))
}

/// For each input of `graph` whose values index an initializer: its rows.
fn index_limits(graph: &GraphProto) -> HashMap<String, u64> {
    let initializers: HashMap<&str, &[i64]> = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice()))
        .collect();
    // From each value to the input whose elements it consists of.
    let mut origin: HashMap<&str, &str> = graph
        .input
        .iter()
        .map(|input| (input.name.as_str(), input.name.as_str()))
        .collect();
    let mut limits: HashMap<String, u64> = HashMap::new();
    for node in &graph.node {
        let named = |position: usize| node.input.get(position).map(String::as_str);
        match node.op_type.as_str() {
            "Cast" | "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose"
            | "Expand" | "Slice" => {
                if let (Some(output), Some(&input)) = (
                    node.output.first(),
                    named(0).and_then(|name| origin.get(name)),
                ) {
                    origin.insert(output, input);
                }
            }
            "Gather" => {
                let table = named(0).and_then(|name| initializers.get(name));
                let input = named(1).and_then(|name| origin.get(name));
                if let (Some(&dims), Some(&input)) = (table, input)
                    && let Some(rows) = rows(node, dims)
                {
                    let limit = limits.entry(input.to_owned()).or_insert(rows);
                    *limit = rows.min(*limit);
                }
            }
            _ => {}
        }
    }
    limits
}

/// The extent of `dims` that a Gather node indexes.
fn rows(gather: &NodeProto, dims: &[i64]) -> Option<u64> {
    let axis = gather
        .attribute
        .iter()
        .find(|attribute| attribute.name == "axis")
        .and_then(|attribute| attribute.i)
        .unwrap_or(0);
    let axis = if axis < 0 {
        axis + dims.len() as i64
    } else {
        axis
    };
    let rows = dims.get(usize::try_from(axis).ok()?)?;
    u64::try_from(*rows).ok()
}

#[cfg(test)]
mod tests {
    use occlude_onnx::messages::{AttributeProto, TensorProto, ValueInfoProto};

    use super::*;

    fn input(name: &str, datatype: DataType, shape: &[i64]) -> TensorMetadata {
        TensorMetadata {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
        }
    }

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: operator.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    fn table(name: &str, dims: &[i64]) -> TensorProto {
        TensorProto {
            name: name.to_owned(),
            dims: dims.to_vec(),
            ..TensorProto::default()
        }
    }

    #[test]
    fn open_extents_are_the_batch_first_and_then_the_size_of_images_or_texts() {
        let shape_of = |dims: &[i64]| shape(&input("x", DataType::Fp32, dims), 8);
        assert_eq!(shape_of(&[-1, 3, -1, -1]), [8, 3, 224, 224]);
        assert_eq!(shape_of(&[-1, -1]), [8, 128]);
        assert_eq!(shape_of(&[1, 64]), [1, 64]);
        assert_eq!(shape_of(&[]), [0; 0]);
    }

    #[test]
    fn indices_stay_within_the_smallest_table_that_they_reach() {
        let mut by_column = node("Gather", &["columns", "cast"], "b");
        by_column.attribute.push(AttributeProto {
            name: "axis".to_owned(),
            i: Some(-1),
            ..AttributeProto::default()
        });
        let graph = GraphProto {
            input: ["ids", "other"]
                .map(|name| ValueInfoProto {
                    name: name.to_owned(),
                    ..ValueInfoProto::default()
                })
                .into(),
            initializer: vec![table("words", &[1000, 4]), table("columns", &[4, 50])],
            node: vec![
                node("Gather", &["words", "ids"], "a"),
                node("Cast", &["ids"], "cast"),
                by_column,
            ],
            ..GraphProto::default()
        };
        assert_eq!(
            index_limits(&graph),
            HashMap::from([("ids".to_owned(), 50)])
        );
    }

    #[test]
    fn values_are_the_same_every_time_and_masks_are_ones() {
        let make = |name, datatype, limit| {
            sample(&input(name, datatype, &[4, -1]), 1, limit, &mut Random(0)).unwrap()
        };
        let ids = make("ids", DataType::Int64, Some(30_000));
        assert_eq!(ids, make("ids", DataType::Int64, Some(30_000)));
        assert_eq!(ids.shape(), [4, 128]);
        let ids: Vec<i64> = ids.to_values().unwrap();
        assert!(ids.iter().all(|id| (0..30_000).contains(id)));
        assert!(ids.iter().any(|&id| id > 15_000));
        let unknown: Vec<i32> = make("x", DataType::Int32, None).to_values().unwrap();
        assert!(unknown.iter().all(|number| (0..2).contains(number)));
        let mask: Vec<i64> = make("attention_mask", DataType::Int64, None)
            .to_values()
            .unwrap();
        assert!(mask.iter().all(|&number| number == 1));
        let floats: Vec<f32> = make("x", DataType::Fp32, None).to_values().unwrap();
        assert!(floats.iter().all(|number| (-1.0..1.0).contains(number)));
    }
}
