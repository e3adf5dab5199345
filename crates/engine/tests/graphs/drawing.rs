//! What networks are made from, and the models that they are; what their steps are is
//! for [`crate::images`] and [`crate::sequences`] to say.

use std::fmt::{self, Debug, Formatter};

use occlude_onnx::DataType;
use occlude_onnx::messages::{AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::support::random::Random;
use crate::support::{
    floats, graph, integer, integers, model, node, value, value_of_any_rank, with,
};

/// What a network is made from; every choice is one of these numbers, modulo what there
/// is to choose from, so that any smaller plan is a plan too.
#[derive(Clone)]
pub(crate) struct Plan {
    kind: Kind,
    batch: usize,
    channels: usize,
    places: [usize; 2],
    is_dynamic: bool,
    steps: Vec<[u16; 4]>,
    /// Values in the middle that are outputs too.
    outputs: Vec<u16>,
    /// What comes behind the last value.
    tail: u16,
    seed: u64,
}

/// What a network's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Batch, channels, rows and columns.
    Images,
    /// Batch, positions and channels.
    Sequences,
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

pub(crate) fn plan(kind: Kind) -> impl Strategy<Value = Plan> {
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
            move |(batch, channels, places, is_dynamic, steps, outputs, tail, seed)| Plan {
                kind,
                batch,
                channels,
                places: match kind {
                    Kind::Images => places,
                    Kind::Sequences => [places[0], 1],
                },
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

/// A value that steps can take up: its name, and its extents without the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) name: String,
    pub(crate) channels: usize,
    /// Rows and columns of an image; positions of a sequence, and 1.
    pub(crate) places: [usize; 2],
}

/// A model in the making.
pub(crate) struct Drawing {
    random: Random,
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) weights: Vec<TensorProto>,
    values: Vec<Value>,
    names: usize,
}

pub(crate) fn draw(plan: &Plan) -> Drawn {
    let mut drawing = Drawing {
        random: Random::new(plan.seed, 0),
        nodes: Vec::new(),
        weights: Vec::new(),
        values: vec![Value {
            name: "x".to_owned(),
            channels: plan.channels,
            places: plan.places,
        }],
        names: 0,
    };
    for &[what, from, how, more] in &plan.steps {
        let value = drawing.value(from);
        let (how, more) = (usize::from(how), usize::from(more));
        match plan.kind {
            Kind::Images => drawing.image_step(what, &value, how, more),
            Kind::Sequences => drawing.sequence_step(what, &value, how, more),
        }
    }
    let last = drawing.values[drawing.values.len() - 1].clone();
    let how = usize::from(plan.tail);
    let last = match plan.kind {
        _ if how.is_multiple_of(3) && last.name != "x" => last.name,
        Kind::Images => drawing.image_tail(&last, how),
        Kind::Sequences => drawing.sequence_tail(&last, how),
    };
    let mut outputs = vec![last];
    for &choice in &plan.outputs {
        let value = drawing.value(choice);
        if value.name != "x" && !outputs.contains(&value.name) {
            outputs.push(value.name);
        }
    }
    let batch = if plan.is_dynamic {
        -1
    } else {
        plan.batch as i64
    };
    let [channels, rows, columns] =
        [plan.channels, plan.places[0], plan.places[1]].map(|extent| extent as i64);
    let extents = match plan.kind {
        Kind::Images => vec![channels, rows, columns],
        Kind::Sequences => vec![rows, channels],
    };
    let declared = [&[batch], extents.as_slice()].concat();
    let shape = [&[plan.batch as i64], extents.as_slice()].concat();
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
    pub(crate) fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    /// A value that there is: mostly the last, which a rewrite may join with what made
    /// it, or one of the last three.
    fn value(&self, choice: u16) -> Value {
        let (count, choice) = (self.values.len(), usize::from(choice));
        let index = match choice % 8 {
            0 => choice / 8 % count,
            1 | 2 => count - 1 - choice / 8 % count.min(3),
            _ => count - 1,
        };
        self.values[index].clone()
    }

    /// Another value that `fits`, if there is one; else the same.
    pub(crate) fn another(
        &self,
        value: &Value,
        choice: usize,
        fits: impl Fn(&Value) -> bool,
    ) -> Value {
        let others: Vec<&Value> = self
            .values
            .iter()
            .filter(|other| other.name != value.name && fits(other))
            .collect();
        match others.len() {
            0 => value.clone(),
            count => others[choice % count].clone(),
        }
    }

    /// Uniform within `low` and `high`.
    fn numbers(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        let numbers = self.random.numbers(count).into_iter();
        numbers
            .map(|number| low + (number + 1.0) / 2.0 * (high - low))
            .collect()
    }

    /// A weight of numbers between `low` and `high`.
    pub(crate) fn weight(&mut self, dims: &[usize], low: f32, high: f32) -> String {
        let name = self.name("w");
        let values = self.numbers(dims.iter().product(), low, high);
        let dims: Vec<i64> = dims.iter().map(|&extent| extent as i64).collect();
        self.weights.push(floats(&name, &dims, &values));
        name
    }

    /// Weights of so many rows for each number that is made, which keep the size of numbers.
    pub(crate) fn weight_of(&mut self, dims: &[usize], summed: usize) -> String {
        let bound = (3.0 / summed as f32).sqrt();
        self.weight(dims, -bound, bound)
    }

    /// A node with one output, whose name it returns.
    pub(crate) fn apply(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let name = self.name("v");
        let mut node = node(operator, inputs, &[&name]);
        node.attribute = attributes;
        self.nodes.push(node);
        name
    }

    /// Two values of one shape, or of one that stretches to the other's.
    pub(crate) fn joined(&mut self, value: &Value, how: usize, other: usize) {
        let other = self.another(value, other, |other| {
            other.places == value.places && [1, value.channels].contains(&other.channels)
        });
        let operator = ["Add", "Add", "Add", "Mul", "Sub", "Max", "Sum"][how % 7];
        let inputs = if (how / 7).is_multiple_of(2) {
            [&*value.name, &*other.name]
        } else {
            [&*other.name, &*value.name]
        };
        let name = self.apply(operator, &inputs, vec![]);
        self.keep(name, value.channels, value.places);
    }

    /// The channels of two values, which lie along `axis`.
    pub(crate) fn concatenated(&mut self, value: &Value, axis: i64, other: usize) {
        let other = self.another(value, other, |other| other.places == value.places);
        let channels = value.channels + other.channels;
        if channels > 64 {
            return;
        }
        let inputs = [&*value.name, &*other.name];
        let name = self.apply("Concat", &inputs, vec![integer("axis", axis)]);
        self.keep(name, channels, value.places);
    }

    /// Two halves of the channels, which lie along `axis`.
    pub(crate) fn split(&mut self, value: &Value, axis: i64) {
        if value.channels < 2 {
            return;
        }
        let (left, right) = (value.channels / 2, value.channels.div_ceil(2));
        let [first, second, lengths] = ["v", "v", "lengths"].map(|what| self.name(what));
        let both = [left as i64, right as i64];
        self.weights.push(integers(&lengths, &[2], &both));
        let node = node("Split", &[&value.name, &lengths], &[&first, &second]);
        self.nodes.push(with(node, integer("axis", axis)));
        self.keep(first, left, value.places);
        self.keep(second, right, value.places);
    }

    /// What classifiers end with, over `flat` rows of `width` numbers.
    pub(crate) fn classifier(&mut self, flat: &str, width: usize, how: usize) -> String {
        let outputs = 20;
        let bias = self.weight(&[outputs], -0.5, 0.5);
        let y = if (how / 3).is_multiple_of(2) {
            let matrix = self.weight_of(&[outputs, width], width);
            self.apply("Gemm", &[flat, &matrix, &bias], vec![integer("transB", 1)])
        } else {
            let matrix = self.weight_of(&[width, outputs], width);
            let product = self.apply("MatMul", &[flat, &matrix], vec![]);
            self.apply("Add", &[&bias, &product], vec![])
        };
        match how / 6 % 3 {
            0 => self.apply("Softmax", &[&y], vec![]),
            1 => self.apply("Relu", &[&y], vec![]),
            _ => y,
        }
    }

    /// Lets later steps take `name` up.
    pub(crate) fn keep(&mut self, name: String, channels: usize, places: [usize; 2]) {
        self.values.push(Value {
            name,
            channels,
            places,
        });
    }
}
