//! How many channels ONNX Runtime's kernels take for a block on this processor.

use std::sync::OnceLock;

use occlude_onnx::DataType;
use occlude_onnx::messages::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};
use ort::session::Session;
use ort::value::Tensor;
use prost::Message;

use crate::graph::BLOCKED_DOMAIN;
use crate::library::Runtime;

/// What our kernels can block images by.
const KNOWN: [usize; 2] = [8, 16];

/// A multiple of each of them.
const CHANNELS: usize = 64;

/// Pixels of an image.
const PIXELS: usize = 2;

/// Channels of a block; none where ONNX Runtime has no such layout, or one that our
/// kernels do not know. Asked once in a process.
pub(super) fn blocked_channels(runtime: &'static Runtime) -> Option<usize> {
    static HERE: OnceLock<Option<usize>> = OnceLock::new();
    *HERE.get_or_init(|| {
        let found = reordered(runtime).ok()?;
        // First come all channels of the block for pixel 0, then those for pixel 1.
        let block = found.iter().position(|&number| number == 1.0)?;
        KNOWN.contains(&block).then_some(block)
    })
}

/// An image of which each number is its place, as it lies in memory when it is blocked.
fn reordered(runtime: &'static Runtime) -> Result<Vec<f32>, ort::Error> {
    let mut session =
        Session::builder(runtime.environment())?.commit_from_memory(&model().encode_to_vec())?;
    let shape = vec![1, CHANNELS as i64, 1, PIXELS as i64];
    let places = (0..CHANNELS * PIXELS).map(|place| place as f32);
    let image = Tensor::from_array((shape, places.collect::<Vec<f32>>()))?;
    let outputs = session.run(ort::inputs![image])?;
    let (_, numbers) = outputs[0].try_extract_tensor::<f32>()?;
    Ok(numbers.to_vec())
}

/// A model that only blocks its input.
fn model() -> ModelProto {
    let dim = [1, CHANNELS, 1, PIXELS].map(|extent| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(
            extent as i64,
        )),
        ..Default::default()
    });
    let image = |name: &str| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: DataType::Float.number(),
                shape: Some(TensorShapeProto { dim: dim.to_vec() }),
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    };
    let set = |domain: &str, version| OperatorSetIdProto {
        domain: domain.to_owned(),
        version,
    };
    ModelProto {
        ir_version: 8,
        opset_import: vec![set("", 17), set(BLOCKED_DOMAIN, 1)],
        graph: Some(GraphProto {
            name: "blocks".to_owned(),
            node: vec![NodeProto {
                op_type: "ReorderInput".to_owned(),
                domain: BLOCKED_DOMAIN.to_owned(),
                input: vec!["plain".to_owned()],
                output: vec!["blocked".to_owned()],
                ..NodeProto::default()
            }],
            input: vec![image("plain")],
            output: vec![image("blocked")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::runtime;

    /// ONNX Runtime's kernels of this layout on x86-64 (`mlas/lib/platform.cpp`): those
    /// for AVX-512 take 16 channels, all others 8.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_block_has_16_channels_with_avx512_and_else_8() {
        let avx512 = std::is_x86_feature_detected!("avx512f");
        assert_eq!(
            blocked_channels(runtime()),
            Some(if avx512 { 16 } else { 8 })
        );
    }

    #[test]
    fn an_image_is_blocked_and_nothing_of_it_lost() {
        let mut found = reordered(runtime()).unwrap();
        found.sort_by(f32::total_cmp);
        let places: Vec<f32> = (0..CHANNELS * PIXELS).map(|place| place as f32).collect();
        assert_eq!(found, places);
    }
}
