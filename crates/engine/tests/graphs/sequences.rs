//! Steps of networks on sequences.

use crate::drawing::{Drawing, Value};
use crate::support::{float, integer, integers, integers_attribute};

/// Rows of a table that is looked up.
const ROWS: usize = 9;

impl Drawing {
    pub(crate) fn sequence_step(&mut self, what: u16, value: &Value, how: usize, more: usize) {
        match what % 24 {
            0..=5 => self.dense(value, how, more),
            6 => self.flat(value, how),
            7..=9 => self.joined(value, how, more),
            10 | 11 => self.with_number(value, how),
            12 | 13 => self.activated(value, how),
            14 => self.normalised(value),
            15 => self.gelu(value),
            16 => self.attention(value),
            17 => self.looked_up(value, how),
            18 => self.mixed_positions(value),
            19 => self.convolved(value),
            20 => self.recurrent(value, how),
            21 => self.split(value, -1),
            22 => self.concatenated(value, -1, more),
            _ => {
                let exponent = self.weight(&[], 2.0, 2.0);
                let name = self.apply("Pow", &[&value.name, &exponent], vec![]);
                self.keep(name, value.channels, value.places);
            }
        }
    }

    pub(crate) fn sequence_tail(&mut self, last: &Value, how: usize) -> String {
        if how % 3 == 1 {
            let attributes = vec![integers_attribute("axes", &[1]), integer("keepdims", 0)];
            let pooled = self.apply("ReduceMean", &[&last.name], attributes);
            self.classifier(&pooled, last.channels, how)
        } else {
            let flat = self.apply("Flatten", &[&last.name], vec![]);
            self.classifier(&flat, last.channels * last.places[0], how)
        }
    }

    /// A product with a matrix, and mostly what is added to it.
    fn dense(&mut self, value: &Value, how: usize, more: usize) {
        let sizes = [1, 7, 16, 33].get(how % 8).copied();
        let outputs = sizes.unwrap_or(value.channels);
        let dims = [value.channels, outputs];
        let wanted: Vec<i64> = dims.iter().map(|&extent| extent as i64).collect();
        let shared = self.weights.iter().find(|tensor| tensor.dims == wanted);
        let matrix = match shared {
            Some(tensor) if more.is_multiple_of(3) => tensor.name.clone(),
            _ => self.weight_of(&dims, value.channels),
        };
        let mut name = self.apply("MatMul", &[&value.name, &matrix], vec![]);
        if !(more / 3).is_multiple_of(4) {
            let bias = match more / 12 % 4 {
                0 => self.weight(&[1, outputs], -0.5, 0.5),
                1 => self.weight(&[value.places[0], 1], -0.5, 0.5),
                _ => self.weight(&[outputs], -0.5, 0.5),
            };
            let inputs = if (more / 48).is_multiple_of(2) {
                [&*name, &*bias]
            } else {
                [&*bias, &*name]
            };
            name = self.apply("Add", &inputs, vec![]);
        }
        self.keep(name, outputs, value.places);
    }

    /// A Gemm over all positions of all examples.
    fn flat(&mut self, value: &Value, how: usize) {
        let (channels, outputs) = (value.channels, 12);
        let rows = self.name("shape");
        self.weights
            .push(integers(&rows, &[2], &[-1, channels as i64]));
        let back = self.name("shape");
        let extents = [-1, value.places[0] as i64, outputs as i64];
        self.weights.push(integers(&back, &[3], &extents));
        let flat = self.apply("Reshape", &[&value.name, &rows], vec![]);
        let is_turned = how.is_multiple_of(2);
        let dims = if is_turned {
            [outputs, channels]
        } else {
            [channels, outputs]
        };
        let matrix = self.weight_of(&dims, channels);
        let bias = match how / 2 % 4 {
            0 => self.weight(&[1, outputs], -0.5, 0.5),
            1 => self.weight(&[1], -0.5, 0.5),
            _ => self.weight(&[outputs], -0.5, 0.5),
        };
        let attributes = vec![
            integer("transB", is_turned.into()),
            float(
                "alpha",
                if (how / 8).is_multiple_of(2) {
                    1.0
                } else {
                    0.5
                },
            ),
            float(
                "beta",
                if (how / 16).is_multiple_of(2) {
                    1.0
                } else {
                    2.0
                },
            ),
        ];
        let mut inputs = vec![&*flat, &*matrix];
        if !(how / 32).is_multiple_of(4) {
            inputs.push(&bias);
        }
        let product = self.apply("Gemm", &inputs, attributes);
        let name = self.apply("Reshape", &[&product, &back], vec![]);
        self.keep(name, outputs, value.places);
    }

    fn with_number(&mut self, value: &Value, how: usize) {
        let (channels, positions) = (value.channels, value.places[0]);
        let constant = match how % 5 {
            0 => self.weight(&[channels], 0.5, 1.5),
            1 => self.weight(&[1, channels], 0.5, 1.5),
            2 => self.weight(&[positions, 1], 0.5, 1.5),
            3 => self.weight(&[positions, channels], 0.5, 1.5),
            _ => self.weight(&[], 0.5, 1.5),
        };
        let operator = ["Add", "Mul", "Sub", "Div"][how / 5 % 4];
        let name = self.apply(operator, &[&value.name, &constant], vec![]);
        self.keep(name, channels, value.places);
    }

    fn activated(&mut self, value: &Value, how: usize) {
        let x = value.name.as_str();
        let name = match how % 6 {
            0 => self.apply("Relu", &[x], vec![]),
            1 => self.apply("Tanh", &[x], vec![]),
            2 => self.apply("Sigmoid", &[x], vec![]),
            3 => self.apply("LeakyRelu", &[x], vec![float("alpha", 0.1)]),
            4 => self.apply("Softmax", &[x], vec![integer("axis", -1)]),
            _ => {
                let high = self.weight(&[], 0.5, 1.0);
                self.apply("Clip", &[x, "", &high], vec![])
            }
        };
        self.keep(name, value.channels, value.places);
    }

    fn normalised(&mut self, value: &Value) {
        // One number alone is nothing but rounding once its mean is taken away.
        if value.channels < 4 {
            return;
        }
        let scale = self.weight(&[value.channels], 0.5, 1.5);
        let bias = self.weight(&[value.channels], -0.5, 0.5);
        let attributes = vec![integer("axis", -1), float("epsilon", 1e-2)];
        let inputs = [&*value.name, &*scale, &*bias];
        let name = self.apply("LayerNormalization", &inputs, attributes);
        self.keep(name, value.channels, value.places);
    }

    /// Spelled out, as exporters write it.
    fn gelu(&mut self, value: &Value) {
        let x = value.name.as_str();
        let root = self.weight(&[], 2_f32.sqrt(), 2_f32.sqrt());
        let one = self.weight(&[], 1.0, 1.0);
        let half = self.weight(&[], 0.5, 0.5);
        let scaled = self.apply("Div", &[x, &root], vec![]);
        let error = self.apply("Erf", &[&scaled], vec![]);
        let sum = self.apply("Add", &[&error, &one], vec![]);
        let product = self.apply("Mul", &[x, &sum], vec![]);
        let name = self.apply("Mul", &[&product, &half], vec![]);
        self.keep(name, value.channels, value.places);
    }

    fn attention(&mut self, value: &Value) {
        let width = 8;
        let [query, key, content] = [(); 3].map(|()| {
            let matrix = self.weight_of(&[value.channels, width], value.channels);
            self.apply("MatMul", &[&value.name, &matrix], vec![])
        });
        let turned = vec![integers_attribute("perm", &[0, 2, 1])];
        let key = self.apply("Transpose", &[&key], turned);
        let scores = self.apply("MatMul", &[&query, &key], vec![]);
        let shares = self.apply("Softmax", &[&scores], vec![integer("axis", -1)]);
        let name = self.apply("MatMul", &[&shares, &content], vec![]);
        self.keep(name, width, value.places);
    }

    /// Positions looked up in a table, which depends on nothing: ONNX Runtime could fold
    /// it, if it knew the table.
    fn looked_up(&mut self, value: &Value, how: usize) {
        let table = self.weight(&[ROWS, value.channels], -0.5, 0.5);
        let positions = self.name("positions");
        let rows: Vec<i64> = (0..value.places[0])
            .map(|position| ((position + how) % ROWS) as i64)
            .collect();
        self.weights
            .push(integers(&positions, &[rows.len() as i64], &rows));
        let found = self.apply("Gather", &[&table, &positions], vec![]);
        let name = self.apply("Add", &[&value.name, &found], vec![]);
        self.keep(name, value.channels, value.places);
    }

    /// A product whose constant comes first.
    fn mixed_positions(&mut self, value: &Value) {
        let positions = value.places[0];
        let matrix = self.weight_of(&[positions, positions], positions);
        let name = self.apply("MatMul", &[&matrix, &value.name], vec![]);
        self.keep(name, value.channels, value.places);
    }

    fn convolved(&mut self, value: &Value) {
        let (channels, outputs) = (value.channels, 16);
        let turned = vec![integers_attribute("perm", &[0, 2, 1])];
        let line = self.apply("Transpose", &[&value.name], turned.clone());
        let kernel = self.weight_of(&[outputs, channels, 3], channels * 3);
        let bias = self.weight(&[outputs], -0.5, 0.5);
        let attributes = vec![
            integers_attribute("kernel_shape", &[3]),
            integers_attribute("pads", &[1, 1]),
        ];
        let line = self.apply("Conv", &[&line, &kernel, &bias], attributes);
        let name = self.apply("Transpose", &[&line], turned);
        self.keep(name, outputs, value.places);
    }

    fn recurrent(&mut self, value: &Value, how: usize) {
        let (channels, hidden) = (value.channels, 6);
        let (operator, gates) = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][how % 3];
        let first = vec![integers_attribute("perm", &[1, 0, 2])];
        let steps = self.apply("Transpose", &[&value.name], first.clone());
        let own = self.weight_of(&[1, gates * hidden, channels], channels);
        let again = self.weight_of(&[1, gates * hidden, hidden], hidden);
        let bias = self.weight(&[1, 2 * gates * hidden], -0.5, 0.5);
        let inputs = [&*steps, &*own, &*again, &*bias];
        let attributes = vec![integer("hidden_size", hidden as i64)];
        let results = self.apply(operator, &inputs, attributes);
        let axes = self.name("axes");
        self.weights.push(integers(&axes, &[1], &[1]));
        let results = self.apply("Squeeze", &[&results, &axes], vec![]);
        let name = self.apply("Transpose", &[&results], first);
        self.keep(name, hidden, value.places);
    }
}
