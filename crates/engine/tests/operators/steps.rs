//! Each step of a network: its node, its constants and what it computes.

use occlude_onnx::messages::AttributeProto;

use crate::network::{Addend, Groups, Step, Walk};
use crate::signal::{Signal, Sum};
use crate::support::{float, integer, node, with};
use crate::windows::Window;

impl Walk<'_> {
    /// Adds step number `index`, which makes `y` of `x`, and computes `y`.
    pub(crate) fn step(
        &mut self,
        index: usize,
        step: &Step,
        x: &str,
        y: &str,
        signal: Signal,
    ) -> Signal {
        let part = |what: &str| format!("{what}{index}");
        match step {
            Step::Convolution {
                groups,
                window,
                has_bias,
            } => {
                let channels = signal.shape[1];
                let (groups, out_channels) = match *groups {
                    Groups::Depthwise { multiplier } => (channels, channels * multiplier),
                    Groups::AtMost {
                        groups,
                        out_channels_per_group,
                    } => {
                        let groups = greatest_common_divisor(groups, channels);
                        (groups, groups * out_channels_per_group)
                    }
                };
                let window = window.fitted(&signal.shape[2..]);
                let dims = window.weight_dims(out_channels, channels / groups);
                let weights = self.constant(&part("w"), &dims);
                let bias = has_bias.then(|| self.constant(&part("b"), &[out_channels]));
                self.layer(
                    "Conv",
                    x,
                    y,
                    index,
                    bias.is_some(),
                    window.attributes(groups),
                );
                window.convolve(&signal, groups, out_channels, &weights, bias.as_deref())
            }
            Step::ConvolutionTransposed {
                groups,
                out_channels_per_group,
                window,
                output_padding,
                has_bias,
            } => {
                let groups = greatest_common_divisor(*groups, signal.shape[1]);
                let out_channels = groups * out_channels_per_group;
                let (window, output_padding) =
                    window.fitted_transposed(&signal.shape[2..], *output_padding);
                let dims = window.weight_dims(signal.shape[1], *out_channels_per_group);
                let weights = self.constant(&part("w"), &dims);
                let bias = has_bias.then(|| self.constant(&part("b"), &[out_channels]));
                let mut attributes = window.attributes(groups);
                attributes.push(window.integers("output_padding", output_padding));
                self.layer("ConvTranspose", x, y, index, bias.is_some(), attributes);
                window.convolve_transposed(
                    &signal,
                    groups,
                    out_channels,
                    &weights,
                    bias.as_deref(),
                    output_padding,
                )
            }
            Step::Gemm {
                n,
                is_x_transposed,
                is_weight_transposed,
                alpha,
                beta,
                addend,
            } => {
                let (m, k) = match is_x_transposed {
                    true => (signal.shape[1], signal.shape[0]),
                    false => (signal.shape[0], signal.shape[1]),
                };
                let dims = if *is_weight_transposed {
                    [*n, k]
                } else {
                    [k, *n]
                };
                let weights = self.constant(&part("w"), &dims);
                let addend = addend
                    .dims(m, *n)
                    .map(|dims| (self.constant(&part("b"), &dims), dims));
                let attributes = vec![
                    integer("transA", i64::from(*is_x_transposed)),
                    integer("transB", i64::from(*is_weight_transposed)),
                    float("alpha", *alpha),
                    float("beta", *beta),
                ];
                self.layer("Gemm", x, y, index, addend.is_some(), attributes);
                let sums = (0..m * n).map(|at| {
                    let (row, column) = (at / n, at % n);
                    let mut sum = Sum::default();
                    for inner in 0..k {
                        let at_x = match is_x_transposed {
                            true => inner * m + row,
                            false => row * k + inner,
                        };
                        let at_weight = match is_weight_transposed {
                            true => column * k + inner,
                            false => inner * n + column,
                        };
                        sum.add(&signal, at_x, weights[at_weight]);
                    }
                    sum.scale(f64::from(*alpha));
                    if let Some((values, dims)) = &addend {
                        let at = broadcast(dims, row, column);
                        sum.add_constant(f64::from(*beta) * values[at]);
                    }
                    sum
                });
                Signal::of_sums(vec![m, *n], sums)
            }
            Step::MatMul { n, is_batched } => {
                let (k, outer) = signal.shape.split_last().expect("a rank above 0");
                let batch = match outer {
                    [batch, _] if *is_batched && !self.network.is_dynamic => Some(*batch),
                    _ => None,
                };
                let dims = [batch.as_slice(), &[*k, *n]].concat();
                let weights = self.constant(&part("w"), &dims);
                self.layer("MatMul", x, y, index, false, Vec::new());
                let shape = [outer, &[*n]].concat();
                let rows_of_batch = batch.map_or(usize::MAX, |_| outer[1]);
                let sums = (0..shape.iter().product()).map(|at: usize| {
                    let (row, column) = (at / n, at % n);
                    let matrix = row / rows_of_batch * k * n;
                    let mut sum = Sum::default();
                    for inner in 0..*k {
                        sum.add(
                            &signal,
                            row * k + inner,
                            weights[matrix + inner * n + column],
                        );
                    }
                    sum
                });
                Signal::of_sums(shape.clone(), sums)
            }
            Step::MatMulFromLeft { n } => {
                let &[k, m] = signal.shape.as_slice() else {
                    panic!("{:?} is no matrix", signal.shape);
                };
                let weights = self.constant(&part("w"), &[*n, k]);
                self.nodes.push(node("MatMul", &[&part("w"), x], &[y]));
                let sums = (0..n * m).map(|at| {
                    let mut sum = Sum::default();
                    for inner in 0..k {
                        sum.add(&signal, inner * m + at % m, weights[at / m * k + inner]);
                    }
                    sum
                });
                Signal::of_sums(vec![*n, m], sums)
            }
            Step::BatchNormalization => {
                let (channels, inner) = channels(&signal.shape);
                let [scale, shift, mean] =
                    ["scale", "shift", "mean"].map(|what| self.constant(&part(what), &[channels]));
                let spread: Vec<f32> = (0..channels).map(|c| 0.25 + c as f32 / 8.0).collect();
                let variance = self.given_constant(&part("variance"), &[channels], &spread);
                let names = ["scale", "shift", "mean", "variance"].map(part);
                let [a, b, c, d] = names.each_ref().map(String::as_str);
                self.nodes
                    .push(node("BatchNormalization", &[x, a, b, c, d], &[y]));
                // The operator's default epsilon.
                signal.affine(|at| {
                    let channel = at / inner % channels;
                    let scale = scale[channel] / (variance[channel] + f64::from(1e-5_f32)).sqrt();
                    (scale, [shift[channel], -scale * mean[channel]])
                })
            }
            Step::AddInput => {
                let name = format!("r{}", self.given.len() - 1);
                let other = self.input(&name, &signal.shape.clone(), false);
                self.nodes.push(node("Add", &[x, &name], &[y]));
                signal.plus(&other)
            }
            Step::AddChannels => {
                let (channels, inner) = channels(&signal.shape);
                let mut dims = vec![1; signal.shape.len() - 1];
                dims[0] = channels;
                let values = self.constant(&part("a"), &dims);
                self.nodes.push(node("Add", &[x, &part("a")], &[y]));
                signal.affine(|at| (1.0, [values[at / inner % channels], 0.0]))
            }
            Step::AddColumns => {
                let columns = *signal.shape.last().expect("a rank above 0");
                let values = self.constant(&part("a"), &[columns]);
                self.nodes.push(node("Add", &[x, &part("a")], &[y]));
                signal.affine(|at| (1.0, [values[at % columns], 0.0]))
            }
            Step::Relu => {
                self.nodes.push(node("Relu", &[x], &[y]));
                signal.contract(|value| value.max(0.0))
            }
            Step::Clip { minimum, maximum } => {
                self.given_constant(&part("minimum"), &[], &[*minimum]);
                self.given_constant(&part("maximum"), &[], &[*maximum]);
                let (low, high) = (part("minimum"), part("maximum"));
                self.nodes.push(node("Clip", &[x, &low, &high], &[y]));
                signal.contract(|value| value.max(f64::from(*minimum)).min(f64::from(*maximum)))
            }
            Step::MaxPool { kernel } => {
                let spatial = &signal.shape[2..];
                let window = Window::of_pool(spatial.len() == 1, *kernel).fitted(spatial);
                let attributes = window.pool_attributes();
                self.layer("MaxPool", x, y, index, false, attributes);
                window.pool(&signal)
            }
        }
    }

    /// A node over `x`, and its weight and bias if those are among the constants.
    fn layer(
        &mut self,
        operator: &str,
        x: &str,
        y: &str,
        index: usize,
        has_bias: bool,
        attributes: Vec<AttributeProto>,
    ) {
        let (weight, bias) = (format!("w{index}"), format!("b{index}"));
        let inputs: &[&str] = match (operator, has_bias) {
            ("MaxPool", _) => &[x],
            (_, false) => &[x, &weight],
            (_, true) => &[x, &weight, &bias],
        };
        let made = node(operator, inputs, &[y]);
        self.nodes.push(attributes.into_iter().fold(made, with));
    }
}

/// The extent of axis 1, and how many elements each of its indices has in a row.
fn channels(shape: &[usize]) -> (usize, usize) {
    (shape[1], shape[2..].iter().product())
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}

impl Addend {
    fn dims(self, m: usize, n: usize) -> Option<Vec<usize>> {
        Some(match self {
            Self::None => return None,
            Self::Scalar => vec![],
            Self::One => vec![1],
            Self::Row => vec![n],
            Self::RowMatrix => vec![1, n],
            Self::Column => vec![m, 1],
            Self::Whole => vec![m, n],
        })
    }
}

/// Where the element of a matrix at `row` and `column` comes from in a constant of
/// extents `dims` that is broadcast to it.
fn broadcast(dims: &[usize], row: usize, column: usize) -> usize {
    let along = |extent: usize, index: usize| if extent == 1 { 0 } else { index };
    match *dims {
        [] => 0,
        [columns] => along(columns, column),
        [rows, columns] => along(rows, row) * columns + along(columns, column),
        _ => panic!("{dims:?} is not broadcast to a matrix"),
    }
}
