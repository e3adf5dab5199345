//! Convolutions, transposed convolutions and pools as windows over an image; an
//! image of one dimension is one of height 1.

use occlude_onnx::messages::{AttributeProto, AttributeType};

use crate::filtering::{Magnitudes, Sizes, TRANSFORMS};
use crate::signal::{Signal, Sum};
use crate::support::{integer, integers_attribute};

/// The window of a layer: height before width.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) is_one_dimensional: bool,
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) dilations: [usize; 2],
    pub(crate) pads: Pads,
}

/// How an image is made larger before a window moves over it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pads {
    /// Top, left, bottom, right.
    Explicit([usize; 4]),
    SameUpper,
    SameLower,
    Valid,
}

impl Window {
    pub(crate) fn of_pool(is_one_dimensional: bool, kernel: usize) -> Self {
        Self {
            is_one_dimensional,
            kernel: [kernel; 2],
            strides: [2; 2],
            dilations: [1; 2],
            pads: Pads::Valid,
        }
        .flattened()
    }

    /// With nothing to do along the height of an image that has none.
    pub(crate) fn flattened(mut self) -> Self {
        if self.is_one_dimensional {
            (self.kernel[0], self.strides[0], self.dilations[0]) = (1, 1, 1);
            if let Pads::Explicit([top, _, bottom, _]) = &mut self.pads {
                (*top, *bottom) = (0, 0);
            }
        }
        self
    }

    /// As large as an image of these extents allows.
    pub(crate) fn fitted(&self, spatial: &[usize]) -> Self {
        let mut window = self.clone();
        let image = image(spatial);
        for axis in 0..2 {
            let room = match window.pads {
                Pads::Explicit(pads) => image[axis] + pads[axis] + pads[axis + 2],
                Pads::Valid => image[axis],
                // ONNX Runtime takes no other dilation together with these.
                Pads::SameUpper | Pads::SameLower => {
                    window.dilations[axis] = 1;
                    continue;
                }
            };
            if window.reach(axis) > room {
                window.dilations[axis] = 1;
                window.kernel[axis] = window.kernel[axis].min(room);
            }
        }
        window
    }

    /// With pads and output padding that a transposed convolution allows.
    pub(crate) fn fitted_transposed(
        &self,
        spatial: &[usize],
        mut output_padding: [usize; 2],
    ) -> (Self, [usize; 2]) {
        let mut window = self.clone();
        let mut pads = match self.pads {
            Pads::Explicit(pads) => pads,
            _ => [0; 4],
        };
        for (axis, extent) in image(spatial).into_iter().enumerate() {
            output_padding[axis] = output_padding[axis].min(window.strides[axis] - 1);
            let full = (extent - 1) * window.strides[axis] + window.reach(axis);
            if pads[axis] + pads[axis + 2] >= full + output_padding[axis] {
                (pads[axis], pads[axis + 2]) = (0, 0);
            }
        }
        window.pads = Pads::Explicit(pads);
        (window, output_padding)
    }

    /// Extents of a weight whose first two are given.
    pub(crate) fn weight_dims(&self, first: usize, second: usize) -> Vec<usize> {
        [&[first, second], self.spatial(&self.kernel)].concat()
    }

    /// Per axis of the image, without the height where there is none.
    fn spatial<'a, T>(&self, per_axis: &'a [T; 2]) -> &'a [T] {
        &per_axis[usize::from(self.is_one_dimensional)..]
    }

    pub(crate) fn attributes(&self, groups: usize) -> Vec<AttributeProto> {
        let mut attributes = self.pool_attributes();
        attributes.push(self.integers("dilations", self.dilations));
        attributes.push(integer("group", groups as i64));
        attributes
    }

    pub(crate) fn pool_attributes(&self) -> Vec<AttributeProto> {
        let pads = match self.pads {
            Pads::Explicit([top, left, bottom, right]) => {
                let ends = [[top, left], [bottom, right]];
                let pads = ends.each_ref().map(|end| self.spatial(end)).concat();
                let pads: Vec<i64> = pads.iter().map(|&pad| pad as i64).collect();
                integers_attribute("pads", &pads)
            }
            Pads::SameUpper => auto_pad("SAME_UPPER"),
            Pads::SameLower => auto_pad("SAME_LOWER"),
            Pads::Valid => auto_pad("VALID"),
        };
        vec![
            self.integers("kernel_shape", self.kernel),
            self.integers("strides", self.strides),
            pads,
        ]
    }

    pub(crate) fn integers(&self, name: &str, per_axis: [usize; 2]) -> AttributeProto {
        let values = per_axis.map(|value| value as i64);
        integers_attribute(name, self.spatial(&values))
    }

    /// `weights` is `[out_channels, channels / groups, height, width]`.
    pub(crate) fn convolve(
        &self,
        signal: &Signal,
        groups: usize,
        out_channels: usize,
        weights: &[f64],
        bias: Option<&[f64]>,
    ) -> Signal {
        let image = image(&signal.shape[2..]);
        let placed = self.placed(image);
        let channels = signal.shape[1] / groups;
        let taps = self.kernel[0] * self.kernel[1];
        let plane = image[0] * image[1];
        // Only whole blocks of channels are, of 8 or 16.
        let is_tiled = self.kernel == [3, 3]
            && self.strides == [1, 1]
            && self.dilations == [1, 1]
            && groups == 1
            && channels.is_multiple_of(8);
        let tiled = is_tiled.then(|| {
            let sizes = Sizes {
                batch: signal.shape[0],
                channels: out_channels,
                inner: channels,
                output: placed.output,
            };
            let value = |[item, channel, row, column]: [usize; 4]| {
                let inside = |place: usize, axis: usize| {
                    let place = place.checked_sub(placed.before[axis])?;
                    (place < image[axis]).then_some(place)
                };
                let (Some(row), Some(column)) = (inside(row, 0), inside(column, 1)) else {
                    return 0.0;
                };
                let at = (item * channels + channel) * plane + row * image[1] + column;
                signal.values[at].abs() + signal.error[at]
            };
            let weight = |[out_channel, channel, row, column]: [usize; 4]| {
                weights[(out_channel * channels + channel) * taps + row * 3 + column].abs()
            };
            Magnitudes::new(sizes, value, weight)
        });
        let mut sums = Vec::new();
        for (item, out_channel) in pairs(signal.shape[0], out_channels) {
            let group = out_channel / (out_channels / groups);
            let first = item * signal.shape[1] + group * channels;
            let weights = &weights[out_channel * channels * taps..][..channels * taps];
            for (row, column) in pairs(placed.output[0], placed.output[1]) {
                let mut sum = Sum::default();
                for (tap, at) in self.taps(&placed, image, [row, column]) {
                    for channel in 0..channels {
                        let weight = weights[channel * taps + tap];
                        sum.add(signal, (first + channel) * plane + at, weight);
                    }
                }
                if let Some(tiled) = &tiled {
                    let magnitude = tiled.of([item, out_channel, row, column]);
                    sum.add_error(magnitude, TRANSFORMS);
                }
                sum.add_constant(bias.map_or(0.0, |bias| bias[out_channel]));
                sums.push(sum);
            }
        }
        let output = [
            &[signal.shape[0], out_channels],
            self.spatial(&placed.output),
        ];
        Signal::of_sums(output.concat(), sums)
    }

    /// `weights` is `[channels, out_channels / groups, height, width]`.
    pub(crate) fn convolve_transposed(
        &self,
        signal: &Signal,
        groups: usize,
        out_channels: usize,
        weights: &[f64],
        bias: Option<&[f64]>,
        output_padding: [usize; 2],
    ) -> Signal {
        let image = image(&signal.shape[2..]);
        let Pads::Explicit(pads) = self.pads else {
            panic!(
                "{:?} does not say where a transposed convolution ends",
                self.pads
            );
        };
        let extents = [0, 1].map(|axis| {
            (image[axis] - 1) * self.strides[axis] + self.reach(axis) + output_padding[axis]
                - pads[axis]
                - pads[axis + 2]
        });
        let [height, width] = extents;
        let batch = signal.shape[0];
        let mut sums = vec![Sum::default(); batch * out_channels * height * width];
        let (channels, out_of_group) = (signal.shape[1], out_channels / groups);
        let taps = self.kernel[0] * self.kernel[1];
        for (item, channel) in pairs(batch, channels) {
            let group = channel / (channels / groups);
            for (row, column) in pairs(image[0], image[1]) {
                let from = ((item * channels + channel) * image[0] + row) * image[1] + column;
                for (tap_row, tap_column) in pairs(self.kernel[0], self.kernel[1]) {
                    let to = |axis: usize, at: usize, tap: usize| {
                        let padded = at * self.strides[axis] + tap * self.dilations[axis];
                        padded.checked_sub(pads[axis])
                    };
                    let (Some(to_row), Some(to_column)) =
                        (to(0, row, tap_row), to(1, column, tap_column))
                    else {
                        continue;
                    };
                    if to_row >= height || to_column >= width {
                        continue;
                    }
                    let tap = tap_row * self.kernel[1] + tap_column;
                    for out in 0..out_of_group {
                        let out_channel = item * out_channels + group * out_of_group + out;
                        let weight = weights[(channel * out_of_group + out) * taps + tap];
                        sums[(out_channel * height + to_row) * width + to_column]
                            .add(signal, from, weight);
                    }
                }
            }
        }
        if let Some(bias) = bias {
            for (at, sum) in sums.iter_mut().enumerate() {
                sum.add_constant(bias[at / (height * width) % out_channels]);
            }
        }
        let output = [&[batch, out_channels], self.spatial(&extents)];
        Signal::of_sums(output.concat(), sums)
    }

    pub(crate) fn pool(&self, signal: &Signal) -> Signal {
        let image = image(&signal.shape[2..]);
        let placed = self.placed(image);
        let planes = signal.shape[0] * signal.shape[1];
        let windows = (0..planes).flat_map(|plane| {
            let placed = &placed;
            pairs(placed.output[0], placed.output[1]).map(move |(row, column)| {
                let taps = self.taps(placed, image, [row, column]);
                taps.map(|(_, at)| plane * image[0] * image[1] + at)
                    .collect()
            })
        });
        let output = [&signal.shape[..2], self.spatial(&placed.output)];
        signal.largest(output.concat(), windows)
    }

    /// How many elements the window spans along `axis`.
    fn reach(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    fn placed(&self, image: [usize; 2]) -> Placed {
        let mut placed = Placed {
            before: [0; 2],
            output: [0; 2],
        };
        for axis in 0..2 {
            let (extent, reach) = (image[axis], self.reach(axis));
            let stride = self.strides[axis];
            let same = extent.div_ceil(stride);
            let missing = ((same - 1) * stride + reach).saturating_sub(extent);
            (placed.before[axis], placed.output[axis]) = match self.pads {
                Pads::Explicit(pads) => {
                    let padded = extent + pads[axis] + pads[axis + 2];
                    (pads[axis], (padded - reach) / stride + 1)
                }
                Pads::Valid => (0, (extent - reach) / stride + 1),
                Pads::SameUpper => (missing / 2, same),
                Pads::SameLower => (missing.div_ceil(2), same),
            };
        }
        placed
    }

    /// What a window at `to` covers of the image: the number in the kernel and the
    /// place in the plane of each.
    fn taps(
        &self,
        placed: &Placed,
        image: [usize; 2],
        to: [usize; 2],
    ) -> impl Iterator<Item = (usize, usize)> {
        let at = [0, 1].map(|axis| {
            let start = to[axis] * self.strides[axis];
            let (before, dilation) = (placed.before[axis], self.dilations[axis]);
            move |tap: usize| {
                (start + tap * dilation)
                    .checked_sub(before)
                    .filter(|&at| at < image[axis])
            }
        });
        let kernel = self.kernel;
        pairs(kernel[0], kernel[1]).filter_map(move |(row, column)| {
            let place = at[0](row)? * image[1] + at[1](column)?;
            Some((row * kernel[1] + column, place))
        })
    }
}

/// Where windows start and how many there are, for each axis.
struct Placed {
    /// Padding before the image.
    before: [usize; 2],
    output: [usize; 2],
}

fn image(spatial: &[usize]) -> [usize; 2] {
    match *spatial {
        [width] => [1, width],
        [height, width] => [height, width],
        _ => panic!("{spatial:?} is no image"),
    }
}

fn pairs(first: usize, second: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..first).flat_map(move |a| (0..second).map(move |b| (a, b)))
}

fn auto_pad(kind: &str) -> AttributeProto {
    AttributeProto {
        name: "auto_pad".to_owned(),
        r#type: AttributeType::String as i32,
        s: Some(kind.as_bytes().to_vec()),
        ..AttributeProto::default()
    }
}
