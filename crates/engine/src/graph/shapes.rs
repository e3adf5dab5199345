//! What can be proved about the shapes of values.
//!
//! Nothing is taken from the model's own statements about intermediate values: a
//! shape follows from the fixed extents of the graph's inputs (which
//! [`crate::Model::run`] enforces), from constants and from operators. Where an extent
//! is not a number, a token stands for it. Equal tokens are equal extents in
//! every run; different ones may be equal all the same.

use std::collections::HashMap;

use occlude_onnx::messages::{NodeProto, ValueInfoProto, tensor_shape_proto, type_proto};

use super::draft::Draft;
use super::layers::layer_index;
use super::{BLOCKED_DOMAIN, Convolution, LayerKind, Pads, attributes};

/// One extent of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Extent {
    Known(i64),
    Token(usize),
}

/// The extents of a value whose rank is known.
pub(super) type Shape = Vec<Extent>;

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Origin {
    /// An extent of a value of which no more is known.
    Axis { value: String, axis: usize },
    /// `floor((from + offset) / stride) + 1`
    Windows {
        from: Extent,
        offset: i64,
        stride: i64,
    },
    /// The same, rounded up, as pools with `ceil_mode` do.
    WindowsUp {
        from: Extent,
        span: i64,
        begin: i64,
        end: i64,
        stride: i64,
    },
}

/// The shapes of a graph's values.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    of: HashMap<String, Shape>,
    tokens: HashMap<Origin, usize>,
}

/// Operators whose result has the shape of their first input.
const KEEP_SHAPE: &[&str] = &[
    "Abs",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LeakyRelu",
    "LogSoftmax",
    "Mish",
    "Neg",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
];

/// Operators that broadcast all their inputs.
const BROADCAST: &[&str] = &[
    "Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum",
];

impl Shapes {
    /// `nodes` are those of `draft`, in an order in which they can run.
    pub(super) fn new<'a>(draft: &Draft, nodes: impl Iterator<Item = &'a NodeProto>) -> Self {
        let mut shapes = Self::default();
        for input in &draft.inputs {
            if let Some(dims) = extents(input) {
                let name = &input.name;
                let extents = dims.iter().enumerate().map(|(axis, extent)| match extent {
                    Some(extent) => Extent::Known(*extent),
                    None => shapes.axis(name, axis),
                });
                let shape = extents.collect();
                shapes.of.insert(name.clone(), shape);
            }
        }
        for (name, weight) in &draft.constants {
            let shape = weight.dims.iter().map(|&extent| Extent::Known(extent));
            shapes.of.insert(name.clone(), shape.collect());
        }
        for node in nodes {
            shapes.visit(draft, node);
        }
        shapes
    }

    pub(super) fn of(&self, name: &str) -> Option<&Shape> {
        self.of.get(name)
    }

    /// Whether two values surely have the same shape.
    pub(super) fn are_equal(&self, one: &str, other: &str) -> bool {
        self.of(one)
            .is_some_and(|shape| self.of(other) == Some(shape))
    }

    fn visit(&mut self, draft: &Draft, node: &NodeProto) {
        let Some(output) = node.output.first().filter(|name| !name.is_empty()) else {
            return;
        };
        if let Some(shape) = self.result(draft, node, output) {
            self.of.insert(output.clone(), shape);
        }
    }

    fn result(&mut self, draft: &Draft, node: &NodeProto, output: &str) -> Option<Shape> {
        let first = node.input.first()?;
        let layer = layer_index(node).and_then(|index| draft.layers.get(index));
        match layer.map(|layer| &layer.kind) {
            Some(LayerKind::Convolution(convolution)) => {
                return self.convolution(first, convolution);
            }
            Some(LayerKind::Gemm(gemm)) => {
                let mut shape = self.of(first)?.clone();
                *shape.last_mut()? = Extent::Known(i64::try_from(gemm.n).ok()?);
                return Some(shape);
            }
            _ => {}
        }
        let operator = node.op_type.as_str();
        if node.domain != BLOCKED_DOMAIN && !draft.is_standard(node, operator) {
            return None;
        }
        match operator {
            "GlobalAveragePool" | "GlobalMaxPool" => {
                let shape = self.of(first)?;
                let spatial = shape.get(2..)?.iter().map(|_| Extent::Known(1));
                Some(shape[..2].iter().copied().chain(spatial).collect())
            }
            "AveragePool" | "MaxPool" => self.pool(first, node),
            "Concat" => self.concatenation(node, output),
            _ if KEEP_SHAPE.contains(&operator) => self.of(first).cloned(),
            _ if BROADCAST.contains(&operator) => {
                let mut shape = self.of(first)?.clone();
                for other in &node.input[1..] {
                    shape = broadcast(&shape, self.of(other)?)?;
                }
                Some(shape)
            }
            _ => None,
        }
    }

    /// A value that a convolution reads has the rank and the channels which that
    /// convolution takes.
    fn convolution(&mut self, x: &str, convolution: &Convolution) -> Option<Shape> {
        let axes = if convolution.one_dimensional {
            1..2
        } else {
            0..2
        };
        let rank = 2 + axes.len();
        if !self.of.contains_key(x) {
            let channels = convolution.in_channels_per_group * convolution.groups;
            let mut shape: Shape = (0..rank).map(|axis| self.axis(x, axis)).collect();
            shape[1] = Extent::Known(i64::try_from(channels).ok()?);
            self.of.insert(x.to_owned(), shape);
        }
        let input = self.of(x).filter(|shape| shape.len() == rank)?.clone();
        let channels = Extent::Known(i64::try_from(convolution.out_channels).ok()?);
        let mut shape = vec![input[0], channels];
        for (&from, axis) in input[2..].iter().zip(axes) {
            let stride = i64::try_from(convolution.strides[axis]).ok()?;
            let span = convolution.dilations[axis] * (convolution.kernel[axis] - 1) + 1;
            let offset = match convolution.pads {
                // As many zeros as make `ceil(from / stride)`.
                Pads::SameUpper | Pads::SameLower => -1,
                Pads::Explicit(pads) => {
                    let zeros = pads[axis].checked_add(pads[axis + 2])?;
                    i64::try_from(zeros).ok()? - i64::try_from(span).ok()?
                }
            };
            shape.push(self.windows(from, offset, stride)?);
        }
        Some(shape)
    }

    fn pool(&mut self, x: &str, node: &NodeProto) -> Option<Shape> {
        let input = self.of(x)?.clone();
        let spatial = input.len().checked_sub(2)?;
        let stated = |name: &str, count: usize, default: i64| -> Option<Vec<i64>> {
            let values = match attributes::integers(node, name)? {
                [] => vec![default; count],
                values => values.to_vec(),
            };
            let valid = values
                .iter()
                .all(|value| i32::try_from(*value).is_ok_and(|v| v >= 0));
            (valid && values.len() == count).then_some(values)
        };
        let kernel = stated("kernel_shape", spatial, 0)?;
        let strides = stated("strides", spatial, 1)?;
        let dilations = stated("dilations", spatial, 1)?;
        let rounds_up = attributes::integer(node, "ceil_mode", 0)? != 0;
        let (same, pads) = match attributes::string(node, "auto_pad", "NOTSET")? {
            "NOTSET" | "" => (false, stated("pads", 2 * spatial, 0)?),
            "VALID" => (false, vec![0; 2 * spatial]),
            "SAME_UPPER" | "SAME_LOWER" => (true, vec![0; 2 * spatial]),
            _ => return None,
        };
        let mut shape = input[..2].to_vec();
        for axis in 0..spatial {
            let span = dilations[axis] * (kernel[axis] - 1) + 1;
            let (begin, end) = (pads[axis], pads[axis + spatial]);
            let (from, stride) = (input[axis + 2], strides[axis]);
            shape.push(if same {
                self.windows(from, -1, stride)?
            } else if rounds_up && stride != 1 {
                self.token(Origin::WindowsUp {
                    from,
                    span,
                    begin,
                    end,
                    stride,
                })
            } else {
                self.windows(from, begin + end - span, stride)?
            });
        }
        Some(shape)
    }

    /// `floor((from + offset) / stride) + 1`
    fn windows(&mut self, from: Extent, offset: i64, stride: i64) -> Option<Extent> {
        if stride < 1 {
            return None;
        }
        match from {
            Extent::Known(from) => {
                let room = from.checked_add(offset).filter(|room| *room >= 0)?;
                Some(Extent::Known(room / stride + 1))
            }
            Extent::Token(_) if stride == 1 && offset == -1 => Some(from),
            Extent::Token(_) => Some(self.token(Origin::Windows {
                from,
                offset,
                stride,
            })),
        }
    }

    fn concatenation(&mut self, node: &NodeProto, output: &str) -> Option<Shape> {
        let axis = attributes::integer(node, "axis", i64::MIN)?;
        let mut shape = self.of(&node.input[0])?.clone();
        let rank = i64::try_from(shape.len()).ok()?;
        let axis = usize::try_from(if axis < 0 {
            axis.checked_add(rank)?
        } else {
            axis
        })
        .ok()?;
        for other in &node.input[1..] {
            let other = self.of(other).filter(|other| other.len() == shape.len())?;
            let sum = match (shape.get(axis)?, other[axis]) {
                (Extent::Known(one), Extent::Known(other)) => {
                    one.checked_add(other).map(Extent::Known)
                }
                _ => None,
            };
            shape[axis] = match sum {
                Some(sum) => sum,
                None => self.axis(output, axis),
            };
        }
        Some(shape)
    }

    fn axis(&mut self, value: &str, axis: usize) -> Extent {
        let value = value.to_owned();
        self.token(Origin::Axis { value, axis })
    }

    fn token(&mut self, origin: Origin) -> Extent {
        let next = self.tokens.len();
        Extent::Token(*self.tokens.entry(origin).or_insert(next))
    }
}

/// The shape of an input of the graph, if all its extents are fixed.
pub(super) fn fixed_input(inputs: &[ValueInfoProto], name: &str) -> Option<Vec<i64>> {
    extents(inputs.iter().find(|input| input.name == name)?)?
        .into_iter()
        .collect()
}

/// The extents of a tensor, as far as they are fixed.
fn extents(value: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref()?.value.as_ref() else {
        return None;
    };
    let dims = tensor.shape.as_ref()?.dim.iter();
    let extent = |dim: &tensor_shape_proto::Dimension| match dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(extent)) if extent > 0 => Some(extent),
        _ => None,
    };
    Some(dims.map(extent).collect())
}

/// The shape of an elementwise result; `None` where it depends on an unknown extent.
fn broadcast(one: &[Extent], other: &[Extent]) -> Option<Shape> {
    let (long, short) = if one.len() < other.len() {
        (other, one)
    } else {
        (one, other)
    };
    let (alone, shared) = long.split_at(long.len() - short.len());
    let shared = shared
        .iter()
        .zip(short)
        .map(|(&one, &other)| match (one, other) {
            (one, other) if one == other => Some(one),
            (Extent::Known(1), extent) | (extent, Extent::Known(1)) => Some(extent),
            _ => None,
        });
    let mut shape = alone.to_vec();
    shape.extend(shared.collect::<Option<Shape>>()?);
    Some(shape)
}
