//! `SealedConvolution`: `y = activation(x * W + bias + residual)`, over images in plain
//! or in ONNX Runtime's blocked layout.

use std::sync::Arc;

use occlude_kernels::{Convolution, Epilogue, Expansion, Extents, Layout, Parallel, Workers};
use ort::operator::{
    ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType;

use super::threads::Threads;
use super::{
    Common, extents, floats, guarded, input_shape, inputs, optional, outputs, padded_bias, panels,
    session_memory, set_output,
};
use crate::allocator::Allocator;
use crate::graph::Pads;
use crate::layers::{Layer, LayerKernel, Layers};

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
            let Some((shape, symbols)) = input_shape(context) else {
                return Ok(());
            };
            let Some(output) = output_shape(&self.0, layer, blocked, &shape) else {
                return Ok(());
            };
            let batch = symbols.get(..1).unwrap_or_default();
            set_output(context, TensorElementType::Float32, output, batch)
        })
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> Result<Kernel, ort::Error> {
        Ok(Kernel {
            step: Step {
                common: Common::of(node, &self.0)?,
                input_layout: layout(node.get::<i64>("input_blocked")),
                output_layout: layout(node.get::<i64>("output_blocked")),
            },
            layers: Arc::clone(&self.0),
            memory: session_memory()?,
        })
    }
}

/// The shape of a convolution's output, as far as that of its input, [`None`] for one of no
/// extents, is known.
pub(super) fn output_shape(
    layers: &Layers,
    layer: usize,
    blocked: bool,
    input: &[i64],
) -> Option<Vec<i64>> {
    let layer = layers.layers.get(layer)?;
    let LayerKernel::Convolution(convolution) = &layer.kernel else {
        return None;
    };
    let (&batch, sides) = input.split_first()?;
    let sides = sides.get(1..).unwrap_or_default();
    let mut output = vec![batch, channels(convolution, layers, blocked) as i64];
    match extents(sides).and_then(|sides| places(layer, &sides)) {
        Some(places) => {
            let sides = places.output[2 - sides.len()..].iter();
            output.extend(sides.map(|&side| side as i64));
        }
        None => output.extend(sides.iter().map(|_| -1)),
    }
    Some(output)
}

pub(super) fn layout(blocked: Option<i64>) -> Layout {
    match blocked {
        None | Some(0) => Layout::Plain,
        Some(_) => Layout::Blocked,
    }
}

pub(super) struct Kernel {
    step: Step,
    layers: Arc<Layers>,
    memory: Arc<Allocator>,
}

impl ort::operator::Kernel for Kernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), ort::Error> {
        guarded(|| self.convolve(context))
    }
}

impl Kernel {
    fn convolve(&self, context: &ComputeContext) -> Result<(), ort::Error> {
        let x = context
            .input(0)?
            .ok_or_else(|| ort::Error::new("no input"))?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let shape = Image::of(shape)?;
        let (extents, y_shape) = self.step.extents(&self.layers, &shape)?;
        let bias = optional(context, 1)?;
        let residual = optional(context, 2)?;
        self.memory
            .enter([(self.step.common.layer, points(&extents))]);
        let mut output = context
            .output(0, y_shape.dims())?
            .ok_or_else(|| ort::Error::new("no output"))?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        let threads = Threads {
            context,
            count: self.layers.threads,
        };
        let scratch = self.step.scratch(&self.layers, &extents)?;
        let mut scratch = self
            .memory
            .scratch(scratch)
            .map_err(|_| ort::Error::new("the memory for a run is used up"))?;
        let values = Values {
            x,
            bias: floats(bias.as_ref())?,
            residual: floats(residual.as_ref())?,
            scratch: &mut scratch,
            y,
        };
        self.step.run(&self.layers, &threads, &extents, values)
    }
}

/// Extents of an image tensor of rank 3 or 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) batch: usize,
    pub(super) channels: usize,
    /// The first is 1 where the tensor has one only.
    sides: [usize; 2],
    /// Whether the tensor has both.
    has_rows: bool,
}

impl Image {
    pub(super) fn of(shape: &[i64]) -> Result<Self, ort::Error> {
        let image = match *extents(shape).unwrap_or_default().as_slice() {
            [batch, channels, width] => Some((batch, channels, [1, width], false)),
            [batch, channels, height, width] => Some((batch, channels, [height, width], true)),
            _ => None,
        };
        let (batch, channels, sides, has_rows) =
            image.ok_or_else(|| ort::Error::new("the input does not fit the convolution"))?;
        Ok(Self {
            batch,
            channels,
            sides,
            has_rows,
        })
    }

    pub(super) fn dims(&self) -> Vec<i64> {
        let sides = &self.sides[usize::from(!self.has_rows)..];
        let dims = [self.batch, self.channels].into_iter();
        dims.chain(sides.iter().copied())
            .map(|extent| extent as i64)
            .collect()
    }

    pub(super) fn length(&self) -> usize {
        self.batch * self.channels * self.sides[0] * self.sides[1]
    }
}

/// One convolution, as a node describes it.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) common: Common,
    pub(super) input_layout: Layout,
    pub(super) output_layout: Layout,
}

/// What a step reads and writes.
pub(super) struct Values<'a> {
    pub(super) x: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) residual: Option<&'a [f32]>,
    /// As many numbers as [`Step::scratch`] says.
    pub(super) scratch: &'a mut [f32],
    pub(super) y: &'a mut [f32],
}

impl Step {
    fn convolution<'a>(
        &self,
        layers: &'a Layers,
    ) -> Result<(&'a Layer, &'a Convolution), ort::Error> {
        let layer = &layers.layers[self.common.layer];
        match &layer.kernel {
            LayerKernel::Convolution(convolution) => Ok((layer, convolution)),
            LayerKernel::Gemm(_) | LayerKernel::Whole(_) => {
                Err(ort::Error::new("the layer is no convolution"))
            }
        }
    }

    /// What it passes over for an input, and its output.
    pub(super) fn extents(
        &self,
        layers: &Layers,
        input: &Image,
    ) -> Result<(Extents, Image), ort::Error> {
        let (layer, convolution) = self.convolution(layers)?;
        let blocked = |layout| layout == Layout::Blocked;
        let expected = convolution.shape().in_channels();
        let expected = if blocked(self.input_layout) {
            expected.next_multiple_of(layers.block)
        } else {
            expected
        };
        if input.channels != expected {
            return Err(ort::Error::new(
                "the input has other channels than the weights",
            ));
        }
        let places = places(layer, &input.sides)
            .ok_or_else(|| ort::Error::new("the input does not fit the convolution"))?;
        let run = Extents {
            batch: input.batch,
            input: places.input,
            output: places.output,
            padding: places.padding,
            input_layout: self.input_layout,
            output_layout: self.output_layout,
        };
        let output = Image {
            channels: channels(convolution, layers, blocked(self.output_layout)),
            sides: places.output,
            ..*input
        };
        Ok((run, output))
    }

    /// Numbers of scratch that [`Self::run`] needs.
    pub(super) fn scratch(&self, layers: &Layers, extents: &Extents) -> Result<usize, ort::Error> {
        let (_, convolution) = self.convolution(layers)?;
        Ok(convolution.scratch(layers.threads, extents))
    }

    /// Convolves.
    pub(super) fn run(
        &self,
        layers: &Layers,
        parallel: &dyn Parallel,
        extents: &Extents,
        values: Values<'_>,
    ) -> Result<(), ort::Error> {
        let (layer, convolution) = self.convolution(layers)?;
        let Values {
            x,
            bias,
            residual,
            scratch,
            y,
        } = values;
        layer.timed(|| {
            if residual.is_some_and(|values| values.len() != y.len()) {
                return Err(ort::Error::new("a residual has another shape"));
            }
            let columns = convolution.shape().out_channels;
            let bias = padded_bias(layer.bias.as_ref(), bias, columns)?;
            let epilogue = Epilogue {
                bias: bias.as_deref(),
                residual,
                bounds: self.common.bounds,
            };
            let workers = Workers {
                panels: &panels(layers, self.common)?,
                parallel,
                scratch,
            };
            convolution
                .run(workers, extents, x, &epilogue, y)
                .map_err(|error| ort::Error::new(error.to_string()))
        })
    }
}

/// Two steps of which the second alone reads what the first makes.
pub(super) struct Pair<'a> {
    pub(super) steps: [&'a Step; 2],
    pub(super) extents: [Extents; 2],
}

impl Pair<'_> {
    /// How they run as one, if they can.
    pub(super) fn expansion<'a>(
        &self,
        layers: &'a Layers,
    ) -> Result<Option<Expansion<'a>>, ort::Error> {
        let [first, second] = self.steps;
        let convolutions = [first.convolution(layers)?.1, second.convolution(layers)?.1];
        Ok(Expansion::plan(layers.threads, convolutions, self.extents))
    }

    /// Convolves with both. The values are what the first one reads, and the rest of the
    /// second's; `first_bias` is the first one's. The time counts as the second one's.
    pub(super) fn run(
        &self,
        layers: &Layers,
        parallel: &dyn Parallel,
        first_bias: Option<&[f32]>,
        values: Values<'_>,
    ) -> Result<(), ort::Error> {
        let Values {
            x,
            bias,
            residual,
            scratch,
            y,
        } = values;
        let [first, second] = self.steps;
        let (layer, convolution) = first.convolution(layers)?;
        let columns = convolution.shape().out_channels;
        let first_bias = padded_bias(layer.bias.as_ref(), first_bias, columns)?;
        let (layer, _) = second.convolution(layers)?;
        let expansion = self
            .expansion(layers)?
            .ok_or_else(|| ort::Error::new("two convolutions do not run as one"))?;
        layer.timed(|| {
            if residual.is_some_and(|values| values.len() != y.len()) {
                return Err(ort::Error::new("a residual has another shape"));
            }
            let second_bias = padded_bias(layer.bias.as_ref(), bias, columns)?;
            let epilogues = [
                Epilogue {
                    bias: first_bias.as_deref(),
                    residual: None,
                    bounds: first.common.bounds,
                },
                Epilogue {
                    bias: second_bias.as_deref(),
                    residual,
                    bounds: second.common.bounds,
                },
            ];
            let panels = [
                panels(layers, first.common)?,
                panels(layers, second.common)?,
            ];
            expansion
                .run(
                    panels.each_ref(),
                    parallel,
                    scratch,
                    x,
                    epilogues.each_ref(),
                    y,
                )
                .map_err(|error| ort::Error::new(error.to_string()))
        })
    }
}

/// Points of the output that a run passes over.
pub(super) fn points(extents: &Extents) -> u64 {
    let points = [extents.batch, extents.output[0], extents.output[1]];
    points.iter().map(|&extent| extent as u64).product()
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
