//! The operators that own streamed weights, as ONNX Runtime calls them (domain
//! `occlude`, version 1).
//!
//! | operator | inputs | attributes |
//! |---|---|---|
//! | `SealedGemm` | x `[..., k]`, bias `[n]`?, residual like y? | `layer`, `activation`, `minimum`, `maximum` |
//! | `SealedConvolution` | x, bias `[channels]`?, residual like y? | these and `input_blocked`, `output_blocked` |
//! | `OpenedWeight`, `WipedAfter` | see [`whole`] | |
//!
//! All tensors of the first two are `f32`. `activation` is 0 for none, 1 for Relu, 2 for Clip. Nothing
//! here panics into ONNX Runtime, which would end the process: a panic becomes an
//! error of the node.

mod convolution;
mod gemm;
mod threads;
mod whole;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use occlude_kernels::BIAS_MULTIPLE;
use ort::operator::{
    ComputeContext, KernelContext, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::{Shape, SymbolicDimensions, TensorElementType, ValueType};

use crate::allocator::Allocator;
use crate::layers::Layers;

/// The operators' domain, over `layers`.
pub(crate) fn domain(layers: &Arc<Layers>) -> Result<OperatorDomain, ort::Error> {
    OperatorDomain::new("occlude")?
        .add(gemm::SealedGemm(Arc::clone(layers)))?
        .add(convolution::SealedConvolution(Arc::clone(layers)))?
        .add(whole::OpenedWeight(Arc::clone(layers)))?
        .add(whole::WipedAfter)
}

fn inputs() -> [OperatorInput; 3] {
    [
        OperatorInput::required(TensorElementType::Float32),
        OperatorInput::optional(TensorElementType::Float32),
        OperatorInput::optional(TensorElementType::Float32),
    ]
}

fn outputs() -> [OperatorOutput; 1] {
    [OperatorOutput::required(TensorElementType::Float32)]
}

/// The attributes of the sealed operators.
#[derive(Clone, Copy)]
struct Common {
    layer: usize,
    bounds: Option<(f32, f32)>,
}

impl Common {
    fn of(node: &KernelContext<'_>, layers: &Layers) -> Result<Self, ort::Error> {
        let layer = node
            .get::<i64>("layer")
            .and_then(|layer| usize::try_from(layer).ok());
        let Some(layer) = layer.filter(|&layer| layer < layers.layers.len()) else {
            return Err(ort::Error::new("a sealed operator names no layer"));
        };
        let bounds = match node.get::<i64>("activation").unwrap_or(0) {
            0 => None,
            1 => Some((0.0, f32::INFINITY)),
            _ => Some((
                node.get::<f32>("minimum").unwrap_or(f32::NEG_INFINITY),
                node.get::<f32>("maximum").unwrap_or(f32::INFINITY),
            )),
        };
        Ok(Self { layer, bounds })
    }
}

/// The memory of the session that is being created.
fn session_memory() -> Result<Arc<Allocator>, ort::Error> {
    Allocator::of_starting_session()
        .ok_or_else(|| ort::Error::new("a sealed operator outside of a session of ours"))
}

/// Runs `compute`, a panic of which becomes an error.
fn guarded(compute: impl FnOnce() -> Result<(), ort::Error>) -> Result<(), ort::Error> {
    catch_unwind(AssertUnwindSafe(compute))
        .unwrap_or_else(|_| Err(ort::Error::new("a sealed operator failed")))
}

/// A shape as extents; `None` where one is not known or negative.
fn extents(shape: &[i64]) -> Option<Vec<usize>> {
    shape
        .iter()
        .map(|&extent| usize::try_from(extent).ok())
        .collect()
}

/// The known shape of input `index`.
fn input_shape(context: &ShapeInferenceContext, index: usize) -> Option<Vec<i64>> {
    match context.inputs().get(index) {
        Some(ValueType::Tensor { shape, .. }) => Some(shape.to_vec()),
        _ => None,
    }
}

/// Says what shape the output has, if all of it is known: two extents that are not
/// would look equal, and ONNX Runtime would give both values the same memory.
fn set_shape(context: &mut ShapeInferenceContext, shape: Vec<i64>) -> Result<(), ort::Error> {
    if shape.iter().any(|&extent| extent < 0) {
        return Ok(());
    }
    let dimension_symbols = SymbolicDimensions::empty(shape.len());
    context.set_output(
        0,
        &ValueType::Tensor {
            ty: TensorElementType::Float32,
            shape: Shape::from(shape),
            dimension_symbols,
        },
    )
}

/// The values of input `index`, if it is there, and its shape.
fn optional<'a>(
    context: &'a ComputeContext,
    index: usize,
) -> Result<Option<ort::value::ValueRef<'a>>, ort::Error> {
    if index < context.num_inputs()? {
        context.input(index)
    } else {
        Ok(None)
    }
}

/// A bias of whole vectors: the layer's own, or the node's.
fn padded_bias(
    own: Option<&Vec<f32>>,
    given: Option<&ort::value::ValueRef<'_>>,
    columns: usize,
) -> Result<Option<Vec<f32>>, ort::Error> {
    let Some(given) = given else {
        return Ok(own.cloned());
    };
    let (_, values) = given.try_extract_tensor::<f32>()?;
    if values.len() != columns {
        return Err(ort::Error::new(
            "a bias has another length than its weights",
        ));
    }
    let mut bias = values.to_vec();
    bias.resize(columns.next_multiple_of(BIAS_MULTIPLE), 0.0);
    Ok(Some(bias))
}
