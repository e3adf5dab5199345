//! Small networks at random: as a model, and as what the model computes with a
//! bound on its error.
//!
//! All values come from a seed, so that a failing case prints as shapes alone. A
//! step whose window would not fit what comes in is made to fit, so that a network
//! may be any list of steps.

use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::{ModelProto, NodeProto, TensorProto, ValueInfoProto};

use crate::signal::Signal;
use crate::support::random::Random;
use crate::support::{floats, graph, model, value};
use crate::windows::Window;

/// A network over one input `x` of `shape`, and `r0`, `r1` and so on where steps ask for them.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) shape: Vec<usize>,
    pub(crate) steps: Vec<Step>,
    /// Whether the model leaves the extents of its inputs open.
    pub(crate) is_dynamic: bool,
    /// Whether some elements of `x` are NaN or infinite.
    pub(crate) has_specials: bool,
    pub(crate) seed: u64,
}

/// One operator. Channels are the extent of axis 1, columns that of the last one.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Convolution {
        groups: Groups,
        window: Window,
        has_bias: bool,
    },
    ConvolutionTransposed {
        groups: usize,
        out_channels_per_group: usize,
        window: Window,
        output_padding: [usize; 2],
        has_bias: bool,
    },
    Gemm {
        n: usize,
        is_x_transposed: bool,
        is_weight_transposed: bool,
        alpha: f32,
        beta: f32,
        addend: Addend,
    },
    /// x W; the weight has a batch of its own if it is given one.
    MatMul {
        n: usize,
        is_batched: bool,
    },
    /// W x.
    MatMulFromLeft {
        n: usize,
    },
    BatchNormalization,
    /// Adds a further input of the same shape.
    AddInput,
    /// Adds a constant for each channel.
    AddChannels,
    /// Adds a constant for each column.
    AddColumns,
    Relu,
    Clip {
        minimum: f32,
        maximum: f32,
    },
    MaxPool {
        kernel: usize,
    },
}

/// How a convolution's channels are divided.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Groups {
    /// At most this many groups, so that they divide the channels that come in.
    AtMost {
        groups: usize,
        out_channels_per_group: usize,
    },
    Depthwise {
        multiplier: usize,
    },
}

/// The shape of Gemm's third input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Addend {
    None,
    Scalar,
    One,
    Row,
    RowMatrix,
    Column,
    Whole,
}

/// A network with the values of one request.
pub(crate) struct Request {
    /// The same for every request to a network.
    pub(crate) model: ModelProto,
    pub(crate) inputs: Vec<Tensor>,
    /// What comes out.
    pub(crate) expected: Signal,
}

impl Network {
    /// The network with request number `request`, whose batch may be its own where
    /// the model leaves it open.
    pub(crate) fn request(&self, request: u64) -> Request {
        let mut shape = self.shape.clone();
        if self.is_dynamic && request % 2 == 1 && shape.len() > 1 {
            shape[0] += 1;
        }
        let mut walk = Walk {
            network: self,
            request,
            nodes: Vec::new(),
            inputs: Vec::new(),
            constants: Vec::new(),
            given: Vec::new(),
        };
        let mut signal = walk.input("x", &shape, self.has_specials);
        let mut name = "x".to_owned();
        for (index, step) in self.steps.iter().enumerate() {
            let output = match index + 1 == self.steps.len() {
                true => "y".to_owned(),
                false => format!("v{index}"),
            };
            signal = walk.step(index, step, &name, &output, signal);
            name = output;
        }
        let output = value("y", DataType::Float, &self.declared(&signal.shape));
        Request {
            model: model(graph(walk.nodes, walk.inputs, vec![output], walk.constants)),
            inputs: walk.given,
            expected: signal,
        }
    }

    /// What the model says of a shape.
    fn declared(&self, shape: &[usize]) -> Vec<i64> {
        let extents = shape.iter().map(|&extent| extent as i64);
        extents
            .map(|extent| if self.is_dynamic { -1 } else { extent })
            .collect()
    }
}

/// Builds the model and computes its values step by step.
pub(crate) struct Walk<'a> {
    pub(crate) network: &'a Network,
    request: u64,
    pub(crate) nodes: Vec<NodeProto>,
    inputs: Vec<ValueInfoProto>,
    constants: Vec<TensorProto>,
    pub(crate) given: Vec<Tensor>,
}

impl Walk<'_> {
    pub(crate) fn input(&mut self, name: &str, shape: &[usize], has_specials: bool) -> Signal {
        let count = shape.iter().product();
        let stream = 1 + self.request * 1000 + self.given.len() as u64;
        let mut random = Random::new(self.network.seed, stream);
        let mut values = random.numbers(count);
        if has_specials {
            for _ in 0..1 + count / 50 {
                let at = random.below(count);
                values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
            }
        }
        let declared = self.network.declared(shape);
        self.inputs.push(value(name, DataType::Float, &declared));
        let extents = shape.iter().map(|&extent| extent as u64).collect();
        let tensor = Tensor::from_values(name, extents, &values);
        self.given
            .push(tensor.expect("as many values as the shape takes"));
        Signal::exact(shape.to_vec(), &values)
    }

    /// A constant of the model, the same for every request.
    pub(crate) fn constant(&mut self, name: &str, shape: &[usize]) -> Vec<f64> {
        let stream = (1 << 32) + self.constants.len() as u64;
        let values = Random::new(self.network.seed, stream).numbers(shape.iter().product());
        self.given_constant(name, shape, &values)
    }

    pub(crate) fn given_constant(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &[f32],
    ) -> Vec<f64> {
        let extents: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
        self.constants.push(floats(name, &extents, values));
        values.iter().map(|&value| f64::from(value)).collect()
    }
}
