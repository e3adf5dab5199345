//! Steps of networks on images.

use crate::drawing::{Drawing, Value};
use crate::support::{float, floats, integer, integers, integers_attribute, text};

impl Drawing {
    pub(crate) fn image_step(&mut self, what: u16, image: &Value, how: usize, more: usize) {
        match what % 26 {
            0..=6 => self.convolution(image, how, more),
            7 | 8 => self.normalisation(image),
            9..=11 => self.activation(image, how),
            12..=14 => self.joined(image, how, more),
            15..=17 => self.with_constant(image, how),
            18 => self.pool(image, how),
            19 | 24 | 25 => {
                let axis = if how.is_multiple_of(2) { 1 } else { -3 };
                self.concatenated(image, axis, more);
            }
            20 => self.squeeze_and_excite(image),
            21 => self.turned(image),
            22 => self.widened(image, how),
            _ if how.is_multiple_of(2) => self.split(image, 1),
            _ => self.padded(image, more),
        }
    }

    fn padded(&mut self, image: &Value, how: usize) {
        let pads = self.name("pads");
        let ends = [how % 3, how / 3 % 3];
        let all = [0, 0, 1, ends[0], 0, 0, ends[1], 1].map(|pad| pad as i64);
        self.weights.push(integers(&pads, &[8], &all));
        let name = self.apply("Pad", &[&image.name, &pads], vec![]);
        let side = [image.places[0] + 1 + ends[1], image.places[1] + ends[0] + 1];
        self.keep(name, image.channels, side);
    }

    fn convolution(&mut self, image: &Value, how: usize, more: usize) {
        let kernel = [1, 3, 3, 5, 2][how % 5];
        let pads = [[0; 4], [kernel / 2; 4], [0, 1, 1, 0]][more % 3];
        let stride = if more.is_multiple_of(5) { 2 } else { 1 };
        let side = [0, 1].map(|axis| {
            let padded = image.places[axis] + pads[axis] + pads[axis + 2];
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
            1 => [1, 3, 16, 17, 24, 32, 40]
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
            _ => self.weight_of(&dims, of_group * kernel * kernel),
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

    fn normalisation(&mut self, image: &Value) {
        let channels = [image.channels];
        let scale = self.weight(&channels, 0.5, 1.5);
        let bias = self.weight(&channels, -0.5, 0.5);
        let mean = self.weight(&channels, -0.5, 0.5);
        let variance = self.weight(&channels, 0.5, 1.5);
        let inputs = [&*image.name, &*scale, &*bias, &*mean, &*variance];
        let name = self.apply("BatchNormalization", &inputs, vec![]);
        self.keep(name, image.channels, image.places);
    }

    fn activation(&mut self, image: &Value, how: usize) {
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
        self.keep(name, image.channels, image.places);
    }

    fn with_constant(&mut self, image: &Value, how: usize) {
        // One channel stretches to those of the constant.
        let channels = match image.channels {
            1 => [1, 6][how / 40 % 2],
            channels => channels,
        };
        let constant = match how % 5 {
            0 => self.weight(&[channels, 1, 1], 0.5, 1.5),
            1 => self.weight(&[1, channels, 1, 1], 0.5, 1.5),
            2 => self.weight(&[channels, image.places[0], 1], 0.5, 1.5),
            _ if channels != image.channels => return,
            3 => self.weight(&[1, 1, 1], 0.5, 1.5),
            _ => self.weight(&[image.places[1]], 0.5, 1.5),
        };
        let operator = ["Add", "Add", "Mul", "Sub", "Div"][how / 5 % 5];
        let inputs = if (how / 25).is_multiple_of(2) || operator == "Div" {
            [&*image.name, &*constant]
        } else {
            [&*constant, &*image.name]
        };
        let name = self.apply(operator, &inputs, vec![]);
        self.keep(name, channels, image.places);
    }

    fn pool(&mut self, image: &Value, how: usize) {
        let (kernel, stride) = [(2, 2), (3, 2), (3, 1)][how % 3];
        let pad = usize::from(kernel == 3 && (how / 3).is_multiple_of(2));
        let round_up = (how / 6).is_multiple_of(3);
        let side = image.places.map(|extent| {
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

    fn squeeze_and_excite(&mut self, image: &Value) {
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
        self.keep(name, channels, image.places);
    }

    /// Channels last, a product over them, and back: what a blocked layout cannot cross.
    fn turned(&mut self, image: &Value) {
        let channels = image.channels;
        let there = vec![integers_attribute("perm", &[0, 2, 3, 1])];
        let last = self.apply("Transpose", &[&image.name], there);
        let outputs = 16;
        let matrix = self.weight_of(&[channels, outputs], channels);
        let bias = self.weight(&[outputs], -0.5, 0.5);
        let product = self.apply("MatMul", &[&last, &matrix], vec![]);
        let sum = self.apply("Add", &[&product, &bias], vec![]);
        let back = vec![integers_attribute("perm", &[0, 3, 1, 2])];
        let name = self.apply("Transpose", &[&sum], back);
        self.keep(name, outputs, image.places);
    }

    fn widened(&mut self, image: &Value, how: usize) {
        if image.places.iter().any(|&extent| extent > 13) {
            return;
        }
        let twice = image.places.map(|extent| 2 * extent);
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
            let kernel = self.weight_of(&[image.channels, 16, 2, 2], image.channels);
            let attributes = vec![
                integers_attribute("kernel_shape", &[2, 2]),
                integers_attribute("strides", &[2, 2]),
            ];
            let name = self.apply("ConvTranspose", &[&image.name, &kernel], attributes);
            self.keep(name, 16, twice);
        }
    }

    pub(crate) fn image_tail(&mut self, last: &Value, how: usize) -> String {
        if how % 3 == 1 {
            let pooled = self.apply("GlobalAveragePool", &[&last.name], vec![]);
            let flat = self.apply("Flatten", &[&pooled], vec![]);
            self.classifier(&flat, last.channels, how)
        } else {
            let flat = self.apply("Flatten", &[&last.name], vec![]);
            let width = last.channels * last.places[0] * last.places[1];
            self.classifier(&flat, width, how)
        }
    }
}
