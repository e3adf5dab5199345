//! `SealedConvolutions`: sealed convolutions whose results nobody else reads, one behind the
//! other, with the threads of one team.
//!
//! Inputs are the image that the first one reads, and the biases of those that have one. The
//! values are numbered: 0 is that image, and each step makes the next one. Attributes have
//! one number for each step:
//!
//! | attribute | what |
//! |---|---|
//! | `layer`, `activation`, `minimum`, `maximum`, `input_blocked`, `output_blocked` | as SealedConvolution's |
//! | `source`, `residual` | the value that it reads, and the one that it adds or -1 |
//! | `bias` | the input with its bias, or -1 |
//!
//! Results in between are the session's memory, taken when they are made and given back
//! behind their last reader.

use std::sync::Arc;

use ort::operator::{
    ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::{TensorElementType, ValueRef};

use super::convolution::{Image, Step, Values, layout, output_shape};
use super::team::{Team, together};
use super::threads::Threads;
use super::{Common, bounds, floats, guarded, input_shape, outputs, session_memory, set_output};
use crate::allocator::{Allocator, Scratch};
use crate::layers::Layers;

pub(super) struct SealedConvolutions(pub(super) Arc<Layers>);

impl Operator for SealedConvolutions {
    type Kernel<'a> = Kernel;

    fn name(&self) -> &'static str {
        "SealedConvolutions"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::variadic(1).homogenous(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<(), ort::Error> {
        guarded(|| {
            let Some((shape, symbols)) = input_shape(context) else {
                return Ok(());
            };
            let layers = context.attr::<Vec<i64>>("layer")?;
            let sources = context.attr::<Vec<i64>>("source")?;
            let blocked = context.attr::<Vec<i64>>("output_blocked")?;
            let mut shapes = vec![shape];
            for ((&layer, &source), &blocked) in layers.iter().zip(&sources).zip(&blocked) {
                let layer = usize::try_from(layer).unwrap_or(usize::MAX);
                let source = usize::try_from(source)
                    .ok()
                    .and_then(|source| shapes.get(source));
                let Some(source) = source else {
                    return Ok(());
                };
                let Some(shape) = output_shape(&self.0, layer, blocked != 0, source) else {
                    return Ok(());
                };
                shapes.push(shape);
            }
            let output = shapes.pop().unwrap_or_default();
            let batch = symbols.get(..1).unwrap_or_default();
            set_output(context, TensorElementType::Float32, output, batch)
        })
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> Result<Kernel, ort::Error> {
        Ok(Kernel {
            links: links(node, &self.0)?,
            layers: Arc::clone(&self.0),
            memory: session_memory()?,
        })
    }
}

/// A step, and what it reads.
struct Link {
    step: Step,
    source: usize,
    residual: Option<usize>,
    /// The input that is its bias.
    bias: Option<usize>,
    /// Values that no later step reads.
    last_read: Vec<usize>,
}

fn links(node: &KernelContext<'_>, layers: &Layers) -> Result<Vec<Link>, ort::Error> {
    let refuse = || ort::Error::new("a chain of convolutions is not as it should be");
    let integers = |name: &str| node.get::<Vec<i64>>(name).ok_or_else(refuse);
    let floats = |name: &str| node.get::<Vec<f32>>(name).ok_or_else(refuse);
    let (layer, source, residual) = (
        integers("layer")?,
        integers("source")?,
        integers("residual")?,
    );
    let (bias, activation) = (integers("bias")?, integers("activation")?);
    let (minimum, maximum) = (floats("minimum")?, floats("maximum")?);
    let (reads, writes) = (integers("input_blocked")?, integers("output_blocked")?);
    let lengths = [
        source.len(),
        residual.len(),
        bias.len(),
        activation.len(),
        minimum.len(),
        maximum.len(),
        reads.len(),
        writes.len(),
    ];
    if layer.is_empty() || lengths.iter().any(|&length| length != layer.len()) {
        return Err(refuse());
    }
    let index = |value: i64| usize::try_from(value).ok();
    let mut links = Vec::with_capacity(layer.len());
    for step in 0..layer.len() {
        let value = |value: i64| index(value).filter(|&value| value <= step);
        links.push(Link {
            step: Step {
                common: Common {
                    layer: index(layer[step])
                        .filter(|&layer| layer < layers.layers.len())
                        .ok_or_else(refuse)?,
                    session: layers.starting_session(),
                    bounds: bounds(activation[step], Some(minimum[step]), Some(maximum[step])),
                },
                input_layout: layout(Some(reads[step])),
                output_layout: layout(Some(writes[step])),
            },
            source: value(source[step]).ok_or_else(refuse)?,
            residual: value(residual[step]),
            bias: index(bias[step]),
            last_read: Vec::new(),
        });
    }
    for value in 0..layer.len() {
        let reads = |link: &Link| link.source == value || link.residual == Some(value);
        let last = links.iter().rposition(reads).ok_or_else(refuse)?;
        links[last].last_read.push(value);
    }
    Ok(links)
}

pub(super) struct Kernel {
    links: Vec<Link>,
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
        let inputs: Vec<ValueRef<'_>> = (0..context.num_inputs()?)
            .map(|index| {
                let input = context.input(index)?;
                input.ok_or_else(|| ort::Error::new("no input"))
            })
            .collect::<Result<_, _>>()?;
        let Some(image) = inputs.first() else {
            return Err(ort::Error::new("no input"));
        };
        let (shape, x) = image.try_extract_tensor::<f32>()?;
        let bias_of = |link: &Link| match link.bias.map(|bias| inputs.get(bias)) {
            None => Ok(None),
            Some(None) => Err(ort::Error::new("a bias is not there")),
            Some(bias) => floats(bias),
        };
        let mut shapes = vec![Image::of(shape)?];
        let mut runs = Vec::with_capacity(self.links.len());
        for link in &self.links {
            let (extents, shape) = link.step.extents(&self.layers, &shapes[link.source])?;
            shapes.push(shape);
            runs.push(extents);
        }
        let mut output = context
            .output(0, shapes[self.links.len()].dims())?
            .ok_or_else(|| ort::Error::new("no output"))?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        let threads = Threads {
            context,
            count: self.layers.threads,
        };
        let run = |team: &Team| {
            let mut values: Vec<Option<Scratch<'_>>> = vec![None];
            for (index, (link, extents)) in self.links.iter().zip(&runs).enumerate() {
                link.step.enter(&self.memory, extents);
                let mut made = if index + 1 == self.links.len() {
                    None
                } else {
                    let made = self.memory.values(shapes[index + 1].length());
                    Some(made.map_err(|_| ort::Error::new("the memory for a run is used up"))?)
                };
                let value = |index: usize| match &values[index] {
                    Some(value) => &**value,
                    None => x,
                };
                let reads = Values {
                    x: value(link.source),
                    bias: bias_of(link)?,
                    residual: link.residual.map(value),
                    y: made.as_deref_mut().unwrap_or(&mut *y),
                };
                link.step
                    .run(&self.layers, &self.memory, team, extents, reads)?;
                values.push(made);
                for &read in &link.last_read {
                    values[read] = None;
                }
            }
            Ok(())
        };
        together(&threads, run)
    }
}
