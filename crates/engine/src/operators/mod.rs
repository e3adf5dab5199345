//! The operators that own streamed weights, as ONNX Runtime calls them (domain
//! `occlude`, version 1).
//!
//! | operator | inputs | attributes |
//! |---|---|---|
//! | `SealedGemm` | x `[..., k]`, bias `[n]`?, residual like y? | `layer`, `activation`, `minimum`, `maximum` |
//! | `SealedConvolution` | x, bias `[channels]`?, residual like y? | these and `input_blocked`, `output_blocked` |
//! | `SealedConvolutions` | see [`chain`] | |
//! | `OpenedWeight`, `WipedAfter` | see [`whole`] | |
//!
//! All tensors of the first two are `f32`. `activation` is 0 for none, 1 for Relu, 2 for Clip. Nothing
//! here panics into ONNX Runtime, which would end the process: a panic becomes an
//! error of the node.

mod chain;
mod convolution;
mod gemm;
mod lifetimes;
#[allow(unsafe_code, reason = "lends a closure to threads that end with it")]
mod team;
mod threads;
mod whole;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use occlude_kernels::BIAS_MULTIPLE;
use ort::operator::{
    ComputeContext, KernelContext, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::{Shape, TensorElementType, ValueType};

use crate::allocator::Allocator;
use crate::layers::{Layer, LayerKernel, LayerPanels, Layers};

/// The operators' domain, over `layers`.
pub(crate) fn domain(layers: &Arc<Layers>) -> Result<OperatorDomain, ort::Error> {
    OperatorDomain::new("occlude")?
        .add(gemm::SealedGemm(Arc::clone(layers)))?
        .add(convolution::SealedConvolution(Arc::clone(layers)))?
        .add(chain::SealedConvolutions(Arc::clone(layers)))?
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
    session: usize,
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
        let bounds = bounds(
            node.get::<i64>("activation").unwrap_or(0),
            node.get::<f32>("minimum"),
            node.get::<f32>("maximum"),
        );
        Ok(Self {
            layer,
            session: layers.starting_session(),
            bounds,
        })
    }
}

/// What an activation makes of the results: none, Relu, or Clip.
fn bounds(activation: i64, minimum: Option<f32>, maximum: Option<f32>) -> Option<(f32, f32)> {
    match activation {
        0 => None,
        1 => Some((0.0, f32::INFINITY)),
        _ => Some((
            minimum.unwrap_or(f32::NEG_INFINITY),
            maximum.unwrap_or(f32::INFINITY),
        )),
    }
}

/// The panels of an operator's layer. Waits until they have been brought.
fn panels(layers: &Layers, common: Common) -> Result<LayerPanels<'_>, ort::Error> {
    layers
        .panels(common.layer, common.session)
        .map_err(|error| ort::Error::new(error.to_string()))
}

/// The memory of the session that is being created.
fn session_memory() -> Result<Arc<Allocator>, ort::Error> {
    Allocator::of_starting_session()
        .ok_or_else(|| ort::Error::new("a sealed operator outside of a session of ours"))
}

/// Does what an operator does with its layer, which counts the time; a panic becomes an
/// error.
fn computed(
    layer: &Layer,
    compute: impl FnOnce(&LayerKernel) -> Result<(), ort::Error>,
) -> Result<(), ort::Error> {
    guarded(|| layer.timed(|| compute(&layer.kernel)))
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

/// The known shape of input 0, and the names of its extents. A shape that is not known
/// at all has no extents, and so looks like a scalar's.
fn input_shape(context: &ShapeInferenceContext) -> Option<(Vec<i64>, Vec<String>)> {
    match context.inputs().first() {
        Some(ValueType::Tensor {
            shape,
            dimension_symbols,
            ..
        }) if !shape.is_empty() => Some((shape.to_vec(), dimension_symbols.to_vec())),
        _ => None,
    }
}

/// Says what type and shape the output has. An extent that is not known, -1, gets a
/// name that no other has: without one all of them would look equal, and ONNX Runtime
/// would give values of different sizes the same memory.
fn set_output(
    context: &mut ShapeInferenceContext,
    ty: TensorElementType,
    shape: Vec<i64>,
    symbols: &[String],
) -> Result<(), ort::Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = |(axis, &extent): (usize, &i64)| match symbols.get(axis) {
        Some(symbol) if !symbol.is_empty() => symbol.clone(),
        _ if extent < 0 => format!("occlude/{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        _ => String::new(),
    };
    let dimension_symbols = shape.iter().enumerate().map(name).collect();
    let kind = ValueType::Tensor {
        ty,
        shape: Shape::from(shape),
        dimension_symbols,
    };
    context.set_output(0, &kind)
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

/// The numbers of an input, if it is there.
fn floats<'a>(
    value: Option<&'a ort::value::ValueRef<'_>>,
) -> Result<Option<&'a [f32]>, ort::Error> {
    let extracted = value.map(|value| value.try_extract_tensor::<f32>());
    Ok(extracted.transpose()?.map(|(_, values)| values))
}

/// A bias of whole vectors: the layer's own, or the node's.
fn padded_bias<'a>(
    own: Option<&'a Vec<f32>>,
    given: Option<&'a [f32]>,
    columns: usize,
) -> Result<Option<Cow<'a, [f32]>>, ort::Error> {
    let Some(given) = given else {
        return Ok(own.map(|own| Cow::Borrowed(own.as_slice())));
    };
    if given.len() != columns {
        return Err(ort::Error::new(
            "a bias has another length than its weights",
        ));
    }
    if columns.is_multiple_of(BIAS_MULTIPLE) {
        return Ok(Some(Cow::Borrowed(given)));
    }
    let mut bias = given.to_vec();
    bias.resize(columns.next_multiple_of(BIAS_MULTIPLE), 0.0);
    Ok(Some(Cow::Owned(bias)))
}
