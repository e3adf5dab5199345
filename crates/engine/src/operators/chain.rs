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
//! What lies between the steps, and the scratch of each, has its place in one block of the
//! session's memory, in which a place is used again behind its value's last reader. The block
//! is taken once for a run: taking and giving back memory at each step costs as much as a
//! tenth of a small one.
//!
//! A step whose result is large and read by a depthwise one only runs as one with that
//! ([`Expansion`]): what lies between the two never exists as a whole.
//!
//! [`Expansion`]: occlude_kernels::Expansion

use std::ops::Range;
use std::sync::Arc;

use occlude_kernels::Extents;
use ort::operator::{
    ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::{TensorElementType, ValueRef};

use super::convolution::{Image, Pair, Step, Values, layout, output_shape, points};
use super::lifetimes::{Arrangement, Lifetime};
use super::team::{Team, together};
use super::threads::Threads;
use super::{Common, bounds, floats, guarded, input_shape, outputs, session_memory, set_output};
use crate::allocator::Allocator;
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
            plan: None,
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
    /// The last step that reads what this one makes; itself, if that is the output.
    last_reader: usize,
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
            last_reader: step,
        });
    }
    for step in 0..layer.len() - 1 {
        let value = step + 1;
        let reads = |link: &Link| link.source == value || link.residual == Some(value);
        links[step].last_reader = links.iter().rposition(reads).ok_or_else(refuse)?;
    }
    Ok(links)
}

/// What is known of runs over images of one shape.
struct Plan {
    image: Image,
    output: Image,
    extents: Vec<Extents>,
    /// Whether each step runs as one with the next.
    joined: Vec<bool>,
    /// Where each value lies in the block; `0..0` for the input and the output, which are
    /// ONNX Runtime's.
    values: Vec<Range<usize>>,
    /// Where each step's scratch lies.
    scratch: Vec<Range<usize>>,
    /// Numbers of the block, and of the longest scratch.
    length: usize,
    longest_scratch: usize,
    /// The step during which the most memory is in use.
    fullest: usize,
}

impl Plan {
    fn new(links: &[Link], layers: &Layers, image: Image) -> Result<Self, ort::Error> {
        let mut images = vec![image];
        let mut extents = Vec::with_capacity(links.len());
        for link in links {
            let (run, made) = link.step.extents(layers, &images[link.source])?;
            images.push(made);
            extents.push(run);
        }
        let (mut joined, mut scratch) = (Vec::<bool>::new(), Vec::new());
        for (index, link) in links.iter().enumerate() {
            let before = index.checked_sub(1).filter(|&before| !joined[before]);
            let pair = before.and_then(|before| pair(links, &extents, before));
            let expansion = match pair {
                Some(pair) => pair.expansion(layers)?,
                None => None,
            };
            let length = match &expansion {
                Some(expansion) => {
                    joined[index - 1] = true;
                    scratch[index - 1] = 0;
                    expansion.scratch()
                }
                None => link.step.scratch(layers, &extents[index])?,
            };
            joined.push(false);
            scratch.push(length);
        }
        // A step that runs with the next one reads and writes when that does.
        let when = |step: usize| step + usize::from(joined[step]);
        let values = links.iter().enumerate().map(|(index, link)| {
            let is_elsewhere = joined[index] || index + 1 == links.len();
            let length = images[index + 1].length();
            Lifetime {
                length: if is_elsewhere { 0 } else { length },
                steps: index..=when(link.last_reader),
            }
        });
        let scratch_lives = scratch.iter().enumerate().map(|(index, &length)| Lifetime {
            length,
            steps: index..=index,
        });
        let lives: Vec<Lifetime> = values.chain(scratch_lives).collect();
        let Arrangement {
            mut places,
            length,
            fullest,
        } = Arrangement::of(&lives).ok_or_else(no_memory)?;
        let longest_scratch = scratch.into_iter().max().unwrap_or(0);
        let scratch = places.split_off(links.len());
        places.insert(0, 0..0);
        Ok(Self {
            image,
            output: images[links.len()],
            extents,
            joined,
            values: places,
            scratch,
            length,
            longest_scratch,
            fullest,
        })
    }
}

/// Step `first` and the next one, if that alone reads what the first makes.
fn pair<'a>(links: &'a [Link], extents: &[Extents], first: usize) -> Option<Pair<'a>> {
    let [one, next] = links.get(first..first + 2)? else {
        return None;
    };
    let made = first + 1;
    let alone = one.last_reader == first + 1
        && next.source == made
        && next.residual != Some(made)
        && one.residual.is_none();
    alone.then(|| Pair {
        steps: [&one.step, &next.step],
        extents: [extents[first], extents[first + 1]],
    })
}

fn no_memory() -> ort::Error {
    ort::Error::new("the memory for a run is used up")
}

pub(super) struct Kernel {
    links: Vec<Link>,
    layers: Arc<Layers>,
    memory: Arc<Allocator>,
    /// That of the last run.
    plan: Option<Plan>,
}

impl ort::operator::Kernel for Kernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), ort::Error> {
        guarded(|| self.convolve(context))
    }
}

impl Kernel {
    fn convolve(&mut self, context: &ComputeContext) -> Result<(), ort::Error> {
        let inputs: Vec<ValueRef<'_>> = (0..context.num_inputs()?)
            .map(|index| {
                let input = context.input(index)?;
                input.ok_or_else(|| ort::Error::new("no input"))
            })
            .collect::<Result<_, _>>()?;
        let Some(image) = inputs.first() else {
            return Err(ort::Error::new("no input"));
        };
        let (shape, input) = image.try_extract_tensor::<f32>()?;
        let image = Image::of(shape)?;
        let plan = match &mut self.plan {
            Some(plan) if plan.image == image => plan,
            plan => plan.insert(Plan::new(&self.links, &self.layers, image)?),
        };
        let mut output = context
            .output(0, plan.output.dims())?
            .ok_or_else(|| ort::Error::new("no output"))?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        let threads = Threads {
            context,
            count: self.layers.threads,
        };
        let bias_of = |link: &Link| match link.bias.map(|bias| inputs.get(bias)) {
            None => Ok(None),
            Some(None) => Err(ort::Error::new("a bias is not there")),
            Some(bias) => floats(bias),
        };
        let links = &self.links;
        let steps = (0..links.len()).filter(|&step| step != plan.fullest);
        let steps = steps.chain([plan.fullest]);
        self.memory.enter(steps.map(|step| {
            let layer = links[step].step.common.layer;
            (layer, points(&plan.extents[step]))
        }));
        let mut block = self
            .memory
            .scratch_and_values(plan.length, plan.longest_scratch)
            .map_err(|_| no_memory())?;
        let run = |team: &Team| {
            for (index, link) in links.iter().enumerate() {
                if plan.joined[index] {
                    continue;
                }
                let first = index.checked_sub(1).filter(|&first| plan.joined[first]);
                let source = links[first.unwrap_or(index)].source;
                let place = |value: usize| plan.values[value].clone();
                let [made, scratch, read, residual] = block
                    .get_disjoint_mut([
                        place(index + 1),
                        plan.scratch[index].clone(),
                        place(source),
                        match link.residual {
                            Some(residual) if residual != source => place(residual),
                            _ => 0..0,
                        },
                    ])
                    .map_err(|_| ort::Error::new("values of a chain overlap"))?;
                let x = if source == 0 { input } else { &*read };
                let residual = match link.residual {
                    None => None,
                    Some(value) if value == source => Some(x),
                    Some(0) => Some(input),
                    Some(_) => Some(&*residual),
                };
                let values = Values {
                    x,
                    bias: bias_of(link)?,
                    residual,
                    scratch,
                    y: if index + 1 < links.len() { made } else { y },
                };
                match first {
                    Some(first) => {
                        let pair = pair(links, &plan.extents, first)
                            .ok_or_else(|| ort::Error::new("two steps do not run as one"))?;
                        let bias = bias_of(&links[first])?;
                        pair.run(&self.layers, team, bias, values)?;
                    }
                    None => {
                        let extents = &plan.extents[index];
                        link.step.run(&self.layers, team, extents, values)?;
                    }
                }
            }
            Ok(())
        };
        together(&threads, run)
    }
}
