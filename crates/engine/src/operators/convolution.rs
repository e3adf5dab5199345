//! `SealedConvolution`: `y = activation(x * W + bias + residual)`, over images in plain
//! or in ONNX Runtime's blocked layout.

use std::sync::Arc;

use occlude_kernels::{Convolution, Epilogue, Extents, Layout, Workers};
use ort::operator::{
    ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType;

use super::threads::Threads;
use super::{
    Common, computed, extents, guarded, input_shape, inputs, optional, outputs, padded_bias,
    panels, session_memory, set_output,
};
use crate::allocator::Allocator;
use crate::graph::Pads;
use crate::layers::{LayerKernel, Layers};

pub(super) struct SealedConvolution(pub(super) Arc<Layers>);

impl Operator for SealedConvolution {
    type Kernel<'a> = Kernel;

    fn name(&self) -> &'static str {
        "SealedConvolution"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<(), ort::Error> {
        guarded(|| {
            let layer = usize::try_from(context.attr::<i64>("layer")?).unwrap_or(usize::MAX);
            let blocked = context.attr::<i64>("output_blocked").unwrap_or(0) != 0;
            let (Some((shape, symbols)), Some(layer)) =
                (input_shape(context), self.0.layers.get(layer))
            else {
                return Ok(());
            };
            let LayerKernel::Convolution(convolution) = &layer.kernel else {
                return Ok(());
            };
            let Some((&batch, sides)) = shape.split_first() else {
                return Ok(());
            };
            let sides = sides.get(1..).unwrap_or_default();
            let channels = channels(convolution, &self.0, blocked) as i64;
            let spatial = match extents(sides).and_then(|sides| places(layer, &sides)) {
                Some(places) => places.output[2 - sides.len()..]
                    .iter()
                    .map(|&side| side as i64)
                    .collect(),
                None => vec![-1; sides.len()],
            };
            let mut output = vec![batch, channels];
            output.extend(spatial);
            let batch = symbols.get(..1).unwrap_or_default();
            set_output(context, TensorElementType::Float32, output, batch)
        })
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> Result<Kernel, ort::Error> {
        let layout = |name: &str| match node.get::<i64>(name).unwrap_or(0) {
            0 => Layout::Plain,
            _ => Layout::Blocked,
        };
        Ok(Kernel {
            common: Common::of(node, &self.0)?,
            input_layout: layout("input_blocked"),
            output_layout: layout("output_blocked"),
            layers: Arc::clone(&self.0),
            memory: session_memory()?,
        })
    }
}

pub(super) struct Kernel {
    common: Common,
    input_layout: Layout,
    output_layout: Layout,
    layers: Arc<Layers>,
    memory: Arc<Allocator>,
}

impl ort::operator::Kernel for Kernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), ort::Error> {
        computed(
            &self.layers.layers[self.common.layer],
            |kernel| match kernel {
                LayerKernel::Convolution(convolution) => self.convolve(convolution, context),
                LayerKernel::Gemm(_) | LayerKernel::Whole(_) => {
                    Err(ort::Error::new("the layer is no convolution"))
                }
            },
        )
    }
}

impl Kernel {
    fn convolve(
        &self,
        convolution: &Convolution,
        context: &ComputeContext,
    ) -> Result<(), ort::Error> {
        let layer = &self.layers.layers[self.common.layer];
        let x = context
            .input(0)?
            .ok_or_else(|| ort::Error::new("no input"))?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let sides = extents(shape).unwrap_or_default();
        let places = sides.get(2..).and_then(|sides| places(layer, sides));
        let (Some(places), &[batch, in_channels, ..]) = (places, &*sides) else {
            return Err(ort::Error::new("the input does not fit the convolution"));
        };
        let blocked = |layout| layout == Layout::Blocked;
        let expected = convolution.shape().in_channels();
        let expected = if blocked(self.input_layout) {
            expected.next_multiple_of(self.layers.block)
        } else {
            expected
        };
        if in_channels != expected {
            return Err(ort::Error::new(
                "the input has other channels than the weights",
            ));
        }
        let run_extents = Extents {
            batch,
            input: places.input,
            output: places.output,
            padding: places.padding,
            input_layout: self.input_layout,
            output_layout: self.output_layout,
        };
        let points = [batch, places.output[0], places.output[1]];
        let points = points.iter().map(|&extent| extent as u64).product();
        self.memory.enter(self.common.layer, points);
        let out_channels = channels(convolution, &self.layers, blocked(self.output_layout));
        let mut y_shape = vec![batch as i64, out_channels as i64];
        y_shape.extend(
            places.output[4 - sides.len()..]
                .iter()
                .map(|&side| side as i64),
        );
        let bias = optional(context, 1)?;
        let columns = convolution.shape().out_channels;
        let bias = padded_bias(layer.bias.as_ref(), bias.as_ref(), columns)?;
        let residual = optional(context, 2)?;
        let residual = residual
            .as_ref()
            .map(|residual| residual.try_extract_tensor::<f32>())
            .transpose()?;
        let mut output = context
            .output(0, y_shape)?
            .ok_or_else(|| ort::Error::new("no output"))?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        if residual.is_some_and(|(_, values)| values.len() != y.len()) {
            return Err(ort::Error::new("a residual has another shape"));
        }
        let epilogue = Epilogue {
            bias: bias.as_deref(),
            residual: residual.map(|(_, values)| values),
            bounds: self.common.bounds,
        };
        let threads = Threads {
            context,
            count: self.layers.threads,
        };
        let mut scratch = self
            .memory
            .scratch(convolution.scratch(threads.count, &run_extents))
            .map_err(|_| ort::Error::new("the memory for a run is used up"))?;
        let workers = Workers {
            panels: &panels(&self.layers, self.common)?,
            parallel: &threads,
            scratch: &mut scratch,
        };
        convolution
            .run(workers, &run_extents, x, &epilogue, y)
            .map_err(|error| ort::Error::new(error.to_string()))
    }
}

/// Channels of the output tensor.
fn channels(convolution: &Convolution, layers: &Layers, blocked: bool) -> usize {
    let channels = convolution.shape().out_channels;
    if blocked {
        channels.next_multiple_of(layers.block)
    } else {
        channels
    }
}

struct Places {
    input: [usize; 2],
    output: [usize; 2],
    padding: [usize; 2],
}

/// The extents of a run on an input of `sides`: one or two of them.
fn places(layer: &crate::layers::Layer, sides: &[usize]) -> Option<Places> {
    let LayerKernel::Convolution(convolution) = &layer.kernel else {
        return None;
    };
    let input = match *sides {
        [width] => [1, width],
        [height, width] => [height, width],
        _ => return None,
    };
    let shape = convolution.shape();
    let pads = layer.pads?;
    let (mut output, mut padding) = ([0; 2], [0; 2]);
    for axis in 0..2 {
        let step = shape.strides[axis];
        let effective = (shape.kernel[axis] - 1) * shape.dilations[axis] + 1;
        let (before, after) = around(pads, axis, input[axis], step, effective);
        let padded = input[axis].checked_add(before)?.checked_add(after)?;
        output[axis] = padded
            .checked_sub(effective)
            .map_or(0, |room| room / step + 1);
        padding[axis] = before;
    }
    Some(Places {
        input,
        output,
        padding,
    })
}

/// Zeros before and after `axis`.
fn around(pads: Pads, axis: usize, input: usize, step: usize, effective: usize) -> (usize, usize) {
    let total = || {
        let last = (input.div_ceil(step).saturating_sub(1)) * step;
        (last + effective).saturating_sub(input)
    };
    match pads {
        Pads::Explicit(pads) => (pads[axis], pads[axis + 2]),
        Pads::SameUpper => (total() / 2, total().div_ceil(2)),
        Pads::SameLower => (total().div_ceil(2), total() / 2),
    }
}
