//! A convolution of single points and the depthwise one behind it, run as one, against both
//! definitions one after the other.

use std::array::from_fn;

use occlude_kernels::{Convolution, ConvolutionShape, Epilogue, Expansion, Extents, Isa, Layout};
use proptest::prelude::*;

use super::{Case, Packed, SANITIZED, Threads, assert_near, case, clamp, numbers, pack, padded};
use super::{failing, place};

/// Of the two, and the images that they pass over.
#[derive(Debug, Clone, Copy)]
struct Pair {
    block: usize,
    batch: usize,
    /// Channels of the input, and of what lies between.
    channels: [usize; 2],
    input: [usize; 2],
    /// The second one's, one number for both axes.
    kernel: usize,
    stride: usize,
    dilation: usize,
    padding: usize,
    /// Bounds of what lies between.
    bounds: Option<(f32, f32)>,
}

impl Pair {
    fn output(&self) -> [usize; 2] {
        let effective = (self.kernel - 1) * self.dilation + 1;
        self.input
            .map(|side| (side + 2 * self.padding - effective) / self.stride + 1)
    }

    fn convolutions(&self, isa: Isa, threads: usize) -> [Convolution; 2] {
        let [inner, between] = self.channels;
        let points = ConvolutionShape {
            out_channels: between,
            in_channels_per_group: inner,
            groups: 1,
            kernel: [1; 2],
            strides: [1; 2],
            dilations: [1; 2],
        };
        let depthwise = ConvolutionShape {
            in_channels_per_group: 1,
            groups: between,
            kernel: [self.kernel; 2],
            strides: [self.stride; 2],
            dilations: [self.dilation; 2],
            ..points
        };
        [points, depthwise].map(|shape| Convolution::new(isa, threads, shape, self.block))
    }

    fn extents(&self) -> [Extents; 2] {
        let points = Extents {
            batch: self.batch,
            input: self.input,
            output: self.input,
            padding: [0; 2],
            input_layout: Layout::Blocked,
            output_layout: Layout::Blocked,
        };
        let depthwise = Extents {
            output: self.output(),
            padding: [self.padding; 2],
            ..points
        };
        [points, depthwise]
    }
}

fn packed(convolution: &Convolution, weights: &[f32]) -> Packed {
    pack(
        convolution.panels(),
        convolution.slabs(),
        weights,
        |panel| convolution.panel_length(panel),
        |panel, source, start, out| convolution.pack(panel, source, start, None, out),
    )
}

/// One sum: its exact value, and the magnitude that errors are measured by.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    magnitude: f64,
}

impl Sum {
    fn add(&mut self, weight: f32, of: Self) {
        self.value += f64::from(weight) * of.value;
        self.magnitude += f64::from(weight.abs()) * of.magnitude;
    }

    fn of(value: f32) -> Self {
        Self {
            value: f64::from(value),
            magnitude: f64::from(value.abs()),
        }
    }
}

fn check(case: Case, pair: Pair) -> Result<(), TestCaseError> {
    let Pair { block, batch, .. } = pair;
    let [inner, between] = pair.channels;
    let [height, width] = pair.output();
    let convolutions = pair.convolutions(case.isa, case.threads);
    let planned = Expansion::plan(case.threads, convolutions.each_ref(), pair.extents());
    let Some(expansion) = planned else {
        return Err(TestCaseError::fail("the two do not run as one"));
    };
    let taps = pair.kernel * pair.kernel;
    let weights = [numbers(between * inner, 1), numbers(between * taps, 2)];
    let biases = [numbers(between, 3), numbers(between, 4)];
    let padded: [_; 2] = from_fn(|index| padded(&biases[index]));
    // What stands in the channels of padding must not matter.
    let blocks = |channels: usize| channels.next_multiple_of(block);
    let mut x = vec![f32::NAN; batch * blocks(inner) * pair.input[0] * pair.input[1]];
    let values = numbers(batch * inner * pair.input[0] * pair.input[1], 5);
    let mut next = values.iter();
    let at = |channels, sides, place_of| place(Layout::Blocked, block, channels, sides, place_of);
    for image in 0..batch {
        for channel in 0..inner {
            for row in 0..pair.input[0] {
                for column in 0..pair.input[1] {
                    let at = at(inner, pair.input, [image, channel, row, column]);
                    x[at] = *next.next().unwrap();
                }
            }
        }
    }
    let out_length = batch * blocks(between) * height * width;
    let residual = numbers(out_length, 6);
    let epilogues = [
        Epilogue {
            bias: case.bias.then_some(&*padded[0]),
            residual: None,
            bounds: pair.bounds,
        },
        Epilogue {
            bias: case.bias.then_some(&*padded[1]),
            residual: case.residual.then_some(&*residual),
            bounds: case.bounds,
        },
    ];
    let panels: [_; 2] = from_fn(|index| packed(&convolutions[index], &weights[index]));
    let mut y = vec![f32::NAN; out_length];
    let Ok(()) = expansion.run(
        panels.each_ref(),
        &Threads(case.threads),
        &mut vec![f32::NAN; expansion.scratch()],
        &x,
        epilogues.each_ref(),
        &mut y,
    );
    if SANITIZED {
        return Ok(());
    }
    for image in 0..batch {
        for channel in 0..between {
            let mut plane = vec![Sum::default(); pair.input[0] * pair.input[1]];
            for (index, sum) in plane.iter_mut().enumerate() {
                let (row, column) = (index / pair.input[1], index % pair.input[1]);
                for from in 0..inner {
                    let at = at(inner, pair.input, [image, from, row, column]);
                    sum.add(weights[0][channel * inner + from], Sum::of(x[at]));
                }
                if case.bias {
                    sum.add(1.0, Sum::of(biases[0][channel]));
                }
                sum.value = clamp(sum.value, pair.bounds);
            }
            for row in 0..height {
                for column in 0..width {
                    let mut sum = Sum::default();
                    for tap in 0..taps {
                        let from = |at: usize, tap: usize| {
                            (at * pair.stride + tap * pair.dilation).checked_sub(pair.padding)
                        };
                        let (r, c) = (
                            from(row, tap / pair.kernel),
                            from(column, tap % pair.kernel),
                        );
                        if let (Some(r), Some(c)) = (r, c)
                            && r < pair.input[0]
                            && c < pair.input[1]
                        {
                            let weight = weights[1][channel * taps + tap];
                            sum.add(weight, plane[r * pair.input[1] + c]);
                        }
                    }
                    let at = at(between, [height, width], [image, channel, row, column]);
                    if case.bias {
                        sum.add(1.0, Sum::of(biases[1][channel]));
                    }
                    if case.residual {
                        sum.add(1.0, Sum::of(residual[at]));
                    }
                    let expected = clamp(sum.value, case.bounds);
                    // Clamping brings two numbers no further apart.
                    assert_near(y[at], expected, sum.magnitude, inner + taps + 8)?;
                }
            }
        }
    }
    Ok(())
}

prop_compose! {
    fn pairs()(
        inner in 16..40_usize,
        between in 60..120_usize,
        batch in 1..3_usize,
        input in [56..80_usize, 56..80_usize],
        kernel in prop_oneof![3 => Just(3), 1 => 1..6_usize],
        stride in 1..4_usize,
        dilation in prop_oneof![3 => Just(1), 1 => 1..3_usize],
        padding in 0..3_usize,
        bounds in prop_oneof![Just(None), Just(Some((0.0, 6.0)))],
    ) -> Pair {
        // What lies between them has to be large.
        let least = (1_usize << 18).div_ceil(input[0] * input[1]);
        let channels = [inner, between.max(least)];
        Pair { block: 16, batch, channels, input, kernel, stride, dilation, padding, bounds }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if SANITIZED { 2 } else { 24 }))]

    #[test]
    fn two_that_run_as_one_are_what_both_definitions_say(case in case(), pair in pairs()) {
        let convolutions = pair.convolutions(case.isa, case.threads);
        let planned = Expansion::plan(case.threads, convolutions.each_ref(), pair.extents());
        prop_assume!(planned.is_some());
        check(case, pair)?;
    }
}

const PAIR: Pair = Pair {
    block: 16,
    batch: 1,
    channels: [24, 90],
    input: [60, 57],
    kernel: 3,
    stride: 1,
    dilation: 1,
    padding: 1,
    bounds: None,
};

#[test]
fn bands_that_lie_in_the_padding_read_nothing() {
    for isa in Isa::available() {
        let pair = Pair {
            padding: 40,
            ..PAIR
        };
        check(Case::with_everything(isa, 2), pair).unwrap();
    }
}

#[test]
fn others_run_one_after_the_other() {
    let plans = |pair: Pair, change: &dyn Fn(&mut [Extents; 2])| {
        let convolutions = pair.convolutions(Isa::detect(), 2);
        let mut extents = pair.extents();
        change(&mut extents);
        Expansion::plan(2, convolutions.each_ref(), extents).is_some()
    };
    assert!(plans(PAIR, &|_| ()));
    // Small, in another layout, or for more threads than there are rows.
    assert!(!plans(
        Pair {
            input: [30, 30],
            ..PAIR
        },
        &|_| ()
    ));
    for index in 0..2 {
        assert!(!plans(PAIR, &|extents| extents[index].output_layout =
            Layout::Plain));
        assert!(!plans(PAIR, &|extents| extents[index].input_layout = Layout::Plain));
    }
    let convolutions = PAIR.convolutions(Isa::detect(), 64);
    assert!(Expansion::plan(64, convolutions.each_ref(), PAIR.extents()).is_none());
    // A depthwise one that reads other rows, and two of the same kind.
    assert!(!plans(PAIR, &|extents| extents[1].input = [59, 57]));
    let [points, depthwise] = PAIR.convolutions(Isa::detect(), 2);
    assert!(Expansion::plan(2, [&points, &points], PAIR.extents()).is_none());
    assert!(Expansion::plan(2, [&depthwise, &depthwise], PAIR.extents()).is_none());
}

#[test]
fn a_panel_of_either_that_cannot_be_opened_ends_both() {
    let convolutions = PAIR.convolutions(Isa::detect(), 3);
    let [height, width] = PAIR.output();
    for which in 0..2 {
        failing::each_panel_counts(convolutions[which].panels(), |panels, threads| {
            let planned = Expansion::plan(threads, convolutions.each_ref(), PAIR.extents());
            let expansion = planned.expect("two that run as one");
            let all = failing::AllBut(usize::MAX);
            let panels = if which == 0 {
                [panels, &all]
            } else {
                [&all, panels]
            };
            expansion.run(
                panels,
                &Threads(threads),
                &mut vec![0.0; expansion.scratch()],
                &vec![1.0; 32 * PAIR.input[0] * PAIR.input[1]],
                [&Epilogue::default(); 2],
                &mut vec![0.0; 96 * height * width],
            )
        });
    }
}
