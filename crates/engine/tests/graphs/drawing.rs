//! What networks are drawn, and the models that they are.

use std::fmt::{self, Debug, Formatter};

use occlude_onnx::DataType;
use occlude_onnx::messages::{
    AttributeProto, AttributeType, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::support::random::Random;
use crate::support::{
    floats, graph, integer, integers, integers_attribute, model, node, value, value_of_any_rank,
    with,
};

/// What a network is made from; every choice is one of these numbers, modulo what there
/// is to choose from, so that any smaller plan is a plan too.
#[derive(Clone)]
pub(crate) struct Plan {
    batch: usize,
    channels: usize,
    side: [usize; 2],
    is_dynamic: bool,
    steps: Vec<[u16; 4]>,
    /// Values in the middle that are outputs too.
    outputs: Vec<u16>,
    /// What comes behind the last image.
    tail: u16,
    seed: u64,
}

impl Debug for Plan {
    /// The operators, which tell more than the numbers.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let drawn = draw(self);
        writeln!(f, "x: {:?}", drawn.shape)?;
        let graph = drawn.model.graph.expect("a graph");
        for node in &graph.node {
            let attributes: Vec<String> = node
                .attribute
                .iter()
                .map(|it| {
                    format!(
                        "{}={}{:?}{}",
                        it.name,
                        it.i.unwrap_or(0),
                        it.ints,
                        it.f.unwrap_or(0.0)
                    )
                })
                .collect();
            writeln!(
                f,
                "{:?} = {}({:?}) {}",
                node.output,
                node.op_type,
                node.input,
                attributes.join(" ")
            )?;
        }
        for tensor in &graph.initializer {
            write!(f, "{}: {:?}; ", tensor.name, tensor.dims)?;
        }
        let outputs: Vec<&str> = graph.output.iter().map(|it| it.name.as_str()).collect();
        write!(f, "outputs {outputs:?}")
    }
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    (
        1..=2_usize,
        prop_oneof![1..=20_usize, select(&[16, 32][..])],
        [5..=13_usize, 5..=13_usize],
        any::<bool>(),
        vec(any::<[u16; 4]>(), 2..=16),
        vec(any::<u16>(), 0..=2),
        any::<u16>(),
        any::<u64>(),
    )
        .prop_map(
            |(batch, channels, side, is_dynamic, steps, outputs, tail, seed)| Plan {
                batch,
                channels,
                side,
                is_dynamic,
                steps,
                outputs,
                tail,
                seed,
            },
        )
}

/// A model with one input `x`, and a request.
pub(crate) struct Drawn {
    pub(crate) model: ModelProto,
    pub(crate) shape: Vec<i64>,
    pub(crate) x: Vec<f32>,
}

/// An image: its name, and its extents without the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    name: String,
    channels: usize,
    side: [usize; 2],
}

struct Drawing {
    random: Random,
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    images: Vec<Image>,
    names: usize,
}

pub(crate) fn draw(plan: &Plan) -> Drawn {
    let mut drawing = Drawing {
        random: Random::new(plan.seed, 0),
        nodes: Vec::new(),
        weights: Vec::new(),
        images: vec![Image {
            name: "x".to_owned(),
            channels: plan.channels,
            side: plan.side,
        }],
        names: 0,
    };
    for step in &plan.steps {
        drawing.step(step);
    }
    let last = drawing.tail(plan.tail);
    let mut outputs = vec![last];
    for &choice in &plan.outputs {
        let image = drawing.image(choice);
        if image.name != "x" && !outputs.contains(&image.name) {
            outputs.push(image.name);
        }
    }
    let batch = if plan.is_dynamic {
        -1
    } else {
        plan.batch as i64
    };
    let [height, width] = plan.side.map(|extent| extent as i64);
    let declared = [batch, plan.channels as i64, height, width];
    let shape = vec![plan.batch as i64, plan.channels as i64, height, width];
    let count: i64 = shape.iter().product();
    let output: Vec<ValueInfoProto> = outputs
        .iter()
        .map(|name| value_of_any_rank(name, DataType::Float))
        .collect();
    Drawn {
        model: model(graph(
            drawing.nodes,
            vec![value("x", DataType::Float, &declared)],
            output,
            drawing.weights,
        )),
        shape,
        x: Random::new(plan.seed, 1).numbers(count as usize),
    }
}

impl Drawing {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    /// An image that there is: mostly the last, which a rewrite may join with what made
    /// it, or one of the last three.
    fn image(&self, choice: u16) -> Image {
        let (count, choice) = (self.images.len(), usize::from(choice));
        let index = match choice % 8 {
            0 => choice / 8 % count,
            1 | 2 => count - 1 - choice / 8 % count.min(3),
            _ => count - 1,
        };
        self.images[index].clone()
    }

    /// Another image that `fits`, if there is one; else the same.
    fn another(&self, image: &Image, choice: u16, fits: impl Fn(&Image) -> bool) -> Image {
        let others: Vec<&Image> = self
            .images
            .iter()
            .filter(|other| other.name != image.name && fits(other))
            .collect();
        match others.len() {
            0 => image.clone(),
            count => others[usize::from(choice) % count].clone(),
        }
    }

    /// Uniform within `low` and `high`.
    fn numbers(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        let numbers = self.random.numbers(count).into_iter();
        numbers
            .map(|number| low + (number + 1.0) / 2.0 * (high - low))
            .collect()
    }

    fn weight(&mut self, dims: &[usize], low: f32, high: f32) -> String {
        let name = self.name("w");
        let values = self.numbers(dims.iter().product(), low, high);
        let dims: Vec<i64> = dims.iter().map(|&extent| extent as i64).collect();
        self.weights.push(floats(&name, &dims, &values));
        name
    }

    fn push(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    /// A node with one output, whose name it returns.
    fn apply(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let name = self.name("v");
        let mut node = node(operator, inputs, &[&name]);
        node.attribute = attributes;
        self.push(node);
        name
    }

    fn keep(&mut self, name: String, channels: usize, side: [usize; 2]) {
        self.images.push(Image {
            name,
            channels,
            side,
        });
    }

    fn step(&mut self, &[what, from, how, more]: &[u16; 4]) {
        let image = self.image(from);
        let (how, more) = (usize::from(how), usize::from(more));
        match what % 24 {
            0..=6 => self.convolution(&image, how, more),
            7 | 8 => self.normalisation(&image),
            9..=11 => self.activation(&image, how),
            12..=14 => self.join(&image, how, more as u16),
            15..=17 => self.with_constant(&image, how),
            18 => self.pool(&image, how),
            19 => self.concatenation(&image, how, more as u16),
            20 => self.squeeze_and_excite(&image),
            21 => self.turned(&image),
            22 => self.widened(&image, how),
            _ if how.is_multiple_of(2) => self.split(&image),
            _ => self.padded(&image, more),
        }
    }

    fn concatenation(&mut self, image: &Image, how: usize, other: u16) {
        let other = self.another(image, other, |other| other.side == image.side);
        let channels = image.channels + other.channels;
        if channels > 64 {
            return;
        }
        let axis = if how.is_multiple_of(2) { 1 } else { -3 };
        let inputs = [&*image.name, &*other.name];
        let name = self.apply("Concat", &inputs, vec![integer("axis", axis)]);
        self.keep(name, channels, image.side);
    }

    fn padded(&mut self, image: &Image, how: usize) {
        let pads = self.name("pads");
        let ends = [how % 3, how / 3 % 3];
        let all = [0, 0, 1, ends[0], 0, 0, ends[1], 1].map(|pad| pad as i64);
        self.weights.push(integers(&pads, &[8], &all));
        let name = self.apply("Pad", &[&image.name, &pads], vec![]);
        let side = [image.side[0] + 1 + ends[1], image.side[1] + ends[0] + 1];
        self.keep(name, image.channels, side);
    }

    fn convolution(&mut self, image: &Image, how: usize, more: usize) {
        let kernel = [1, 3, 3, 5, 2][how % 5];
        let pads = [[0; 4], [kernel / 2; 4], [0, 1, 1, 0]][more % 3];
        let stride = if more.is_multiple_of(5) { 2 } else { 1 };
        let side = [0, 1].map(|axis| {
            let padded = image.side[axis] + pads[axis] + pads[axis + 2];
            (padded >= kernel).then(|| (padded - kernel) / stride + 1)
        });
        let [Some(height), Some(width)] = side else {
            return;
        };
        let groups = match how / 5 % 6 {
            0 => image.channels,
            1 if image.channels.is_multiple_of(2) => 2,
            _ => 1,
        };
        let outputs = match groups {
            // As many as before, mostly: such results can be added to what there was.
            1 => [1, 3, 16, 17, 32]
                .get(more / 15 % 10)
                .copied()
                .unwrap_or(image.channels),
            groups => groups * (1 + more / 15 % 2),
        };
        let of_group = image.channels / groups;
        let dims = [outputs, of_group, kernel, kernel];
        let wanted: Vec<i64> = dims.iter().map(|&extent| extent as i64).collect();
        let shared = self.weights.iter().find(|tensor| tensor.dims == wanted);
        let weight = match shared {
            Some(tensor) if how.is_multiple_of(3) => tensor.name.clone(),
            _ => {
                let bound = (3.0 / (of_group * kernel * kernel) as f32).sqrt();
                self.weight(&dims, -bound, bound)
            }
        };
        let mut inputs = vec![image.name.as_str(), &weight];
        let bias = (more / 3)
            .is_multiple_of(2)
            .then(|| self.weight(&[outputs], -0.5, 0.5));
        inputs.extend(bias.as_deref());
        let attributes = vec![
            integers_attribute("kernel_shape", &[kernel as i64; 2]),
            integers_attribute("pads", &pads.map(|pad| pad as i64)),
            integers_attribute("strides", &[stride as i64; 2]),
            integer("group", groups as i64),
        ];
        let name = self.apply("Conv", &inputs, attributes);
        self.keep(name, outputs, [height, width]);
    }

    fn normalisation(&mut self, image: &Image) {
        let channels = [image.channels];
        let scale = self.weight(&channels, 0.5, 1.5);
        let bias = self.weight(&channels, -0.5, 0.5);
        let mean = self.weight(&channels, -0.5, 0.5);
        let variance = self.weight(&channels, 0.5, 1.5);
        let inputs = [&*image.name, &*scale, &*bias, &*mean, &*variance];
        let name = self.apply("BatchNormalization", &inputs, vec![]);
        self.keep(name, image.channels, image.side);
    }

    fn activation(&mut self, image: &Image, how: usize) {
        let x = image.name.as_str();
        let name = match how % 11 {
            0 | 1 => self.apply("Relu", &[x], vec![]),
            2 => {
                let (low, high) = (self.weight(&[], 0.0, 0.1), self.weight(&[], 0.5, 1.0));
                self.apply("Clip", &[x, &low, &high], vec![])
            }
            3 => {
                let high = self.weight(&[], 0.5, 1.0);
                self.apply("Clip", &[x, "", &high], vec![])
            }
            4 => self.apply("LeakyRelu", &[x], vec![float("alpha", 0.1)]),
            5 => self.apply("Sigmoid", &[x], vec![]),
            6 => self.apply("HardSigmoid", &[x], vec![float("alpha", 0.25)]),
            7 => {
                let slope = self.weight(&[image.channels, 1, 1], 0.0, 0.5);
                self.apply("PRelu", &[x, &slope], vec![])
            }
            8 => self.apply("Identity", &[x], vec![]),
            9 => self.apply("Dropout", &[x], vec![]),
            _ => {
                let gate = self.apply("Sigmoid", &[x], vec![]);
                self.apply("Mul", &[x, &gate], vec![])
            }
        };
        self.keep(name, image.channels, image.side);
    }

    /// Two images of one shape, or of one that stretches to the other's.
    fn join(&mut self, image: &Image, how: usize, other: u16) {
        let other = self.another(image, other, |other| {
            other.side == image.side && [1, image.channels].contains(&other.channels)
        });
        let operator = ["Add", "Add", "Add", "Mul", "Sub", "Max", "Sum"][how % 7];
        let inputs = if (how / 7).is_multiple_of(2) {
            [&*image.name, &*other.name]
        } else {
            [&*other.name, &*image.name]
        };
        let name = self.apply(operator, &inputs, vec![]);
        self.keep(name, image.channels, image.side);
    }

    fn with_constant(&mut self, image: &Image, how: usize) {
        // One channel stretches to those of the constant.
        let channels = match image.channels {
            1 => [1, 6][how / 40 % 2],
            channels => channels,
        };
        let constant = match how % 5 {
            0 => self.weight(&[channels, 1, 1], 0.5, 1.5),
            1 => self.weight(&[1, channels, 1, 1], 0.5, 1.5),
            2 => self.weight(&[channels, image.side[0], 1], 0.5, 1.5),
            _ if channels != image.channels => return,
            3 => self.weight(&[1, 1, 1], 0.5, 1.5),
            _ => self.weight(&[image.side[1]], 0.5, 1.5),
        };
        let operator = ["Add", "Add", "Mul", "Sub", "Div"][how / 5 % 5];
        let inputs = if (how / 25).is_multiple_of(2) || operator == "Div" {
            [&*image.name, &*constant]
        } else {
            [&*constant, &*image.name]
        };
        let name = self.apply(operator, &inputs, vec![]);
        self.keep(name, channels, image.side);
    }

    fn pool(&mut self, image: &Image, how: usize) {
        let (kernel, stride) = [(2, 2), (3, 2), (3, 1)][how % 3];
        let pad = usize::from(kernel == 3 && (how / 3).is_multiple_of(2));
        let round_up = (how / 6).is_multiple_of(3);
        let side = image.side.map(|extent| {
            let steps = (extent + 2 * pad).checked_sub(kernel)?;
            let mut count = if round_up {
                steps.div_ceil(stride)
            } else {
                steps / stride
            } + 1;
            if (count - 1) * stride >= extent + pad {
                count -= 1;
            }
            Some(count)
        });
        let [Some(height), Some(width)] = side else {
            return;
        };
        let mut attributes = vec![
            integers_attribute("kernel_shape", &[kernel as i64; 2]),
            integers_attribute("strides", &[stride as i64; 2]),
            integers_attribute("pads", &[pad as i64; 4]),
        ];
        if round_up {
            attributes.push(integer("ceil_mode", 1));
        }
        let operator = if (how / 18).is_multiple_of(2) {
            "MaxPool"
        } else {
            "AveragePool"
        };
        let name = self.apply(operator, &[&image.name], attributes);
        self.keep(name, image.channels, [height, width]);
    }

    fn squeeze_and_excite(&mut self, image: &Image) {
        let channels = image.channels;
        let few = channels.div_ceil(4);
        let pooled = self.apply("GlobalAveragePool", &[&image.name], vec![]);
        let down = self.weight(&[few, channels, 1, 1], -0.5, 0.5);
        let up = self.weight(&[channels, few, 1, 1], -0.5, 0.5);
        let bias = self.weight(&[channels], -0.5, 0.5);
        let squeezed = self.apply("Conv", &[&pooled, &down], vec![]);
        let squeezed = self.apply("Relu", &[&squeezed], vec![]);
        let wide = self.apply("Conv", &[&squeezed, &up, &bias], vec![]);
        let gate = self.apply("Sigmoid", &[&wide], vec![]);
        let name = self.apply("Mul", &[&image.name, &gate], vec![]);
        self.keep(name, channels, image.side);
    }

    /// Channels last, a product over them, and back: what a blocked layout cannot cross.
    fn turned(&mut self, image: &Image) {
        let channels = image.channels;
        let there = vec![integers_attribute("perm", &[0, 2, 3, 1])];
        let last = self.apply("Transpose", &[&image.name], there);
        let bound = (3.0 / channels as f32).sqrt();
        let outputs = 16;
        let matrix = self.weight(&[channels, outputs], -bound, bound);
        let bias = self.weight(&[outputs], -0.5, 0.5);
        let product = self.apply("MatMul", &[&last, &matrix], vec![]);
        let sum = self.apply("Add", &[&product, &bias], vec![]);
        let back = vec![integers_attribute("perm", &[0, 3, 1, 2])];
        let name = self.apply("Transpose", &[&sum], back);
        self.keep(name, outputs, image.side);
    }

    fn widened(&mut self, image: &Image, how: usize) {
        if image.side.iter().any(|&extent| extent > 13) {
            return;
        }
        let twice = image.side.map(|extent| 2 * extent);
        if how.is_multiple_of(2) {
            let scales = self.name("scales");
            self.weights
                .push(floats(&scales, &[4], &[1.0, 1.0, 2.0, 2.0]));
            // Nearest, which without these differs between implementations.
            let attributes = vec![
                text("coordinate_transformation_mode", "asymmetric"),
                text("nearest_mode", "floor"),
            ];
            let name = self.apply("Resize", &[&image.name, "", &scales], attributes);
            self.keep(name, image.channels, twice);
        } else {
            let bound = (3.0 / image.channels as f32).sqrt();
            let kernel = self.weight(&[image.channels, 16, 2, 2], -bound, bound);
            let attributes = vec![
                integers_attribute("kernel_shape", &[2, 2]),
                integers_attribute("strides", &[2, 2]),
            ];
            let name = self.apply("ConvTranspose", &[&image.name, &kernel], attributes);
            self.keep(name, 16, twice);
        }
    }

    fn split(&mut self, image: &Image) {
        if image.channels < 2 {
            return;
        }
        let (first, second) = (self.name("v"), self.name("v"));
        let lengths = self.name("lengths");
        let left = image.channels / 2;
        let right = image.channels - left;
        self.weights
            .push(integers(&lengths, &[2], &[left as i64, right as i64]));
        let node = node("Split", &[&image.name, &lengths], &[&first, &second]);
        self.push(with(node, integer("axis", 1)));
        self.keep(first, left, image.side);
        self.keep(second, right, image.side);
    }

    /// Ends with the last image as it is, or with a classifier.
    fn tail(&mut self, how: u16) -> String {
        let last = self.images[self.images.len() - 1].clone();
        let how = usize::from(how);
        if how.is_multiple_of(3) && last.name != "x" {
            return last.name;
        }
        let (flat, width) = if how % 3 == 1 {
            let pooled = self.apply("GlobalAveragePool", &[&last.name], vec![]);
            (self.apply("Flatten", &[&pooled], vec![]), last.channels)
        } else {
            let flat = self.apply("Flatten", &[&last.name], vec![]);
            (flat, last.channels * last.side[0] * last.side[1])
        };
        let bound = (3.0 / width as f32).sqrt();
        let outputs = 20;
        let bias = self.weight(&[outputs], -0.5, 0.5);
        let y = if (how / 3).is_multiple_of(2) {
            let matrix = self.weight(&[outputs, width], -bound, bound);
            self.apply("Gemm", &[&flat, &matrix, &bias], vec![integer("transB", 1)])
        } else {
            let matrix = self.weight(&[width, outputs], -bound, bound);
            let product = self.apply("MatMul", &[&flat, &matrix], vec![]);
            self.apply("Add", &[&bias, &product], vec![])
        };
        match how / 6 % 3 {
            0 => self.apply("Softmax", &[&y], vec![]),
            1 => self.apply("Relu", &[&y], vec![]),
            _ => y,
        }
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Float as i32,
        f: Some(value),
        ..AttributeProto::default()
    }
}

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::String as i32,
        s: Some(value.as_bytes().to_vec()),
        ..AttributeProto::default()
    }
}
