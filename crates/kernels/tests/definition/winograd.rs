//! Convolutions that are computed by minimal filtering.

use occlude_kernels::{Convolution, ConvolutionShape, Epilogue, Extents, Isa, Layout, Workers};
use proptest::prelude::*;

use super::{Case, Images, case, check_convolution};

fn shape(in_channels: usize, out_channels: usize) -> ConvolutionShape {
    ConvolutionShape {
        out_channels,
        in_channels_per_group: in_channels,
        groups: 1,
        kernel: [3; 2],
        strides: [1; 2],
        dilations: [1; 2],
    }
}

fn images(shape: ConvolutionShape, input: [usize; 2]) -> Images {
    Images {
        shape,
        block: 16,
        batch: 1,
        input,
        pads: [1; 4],
        layouts: [Layout::Blocked; 2],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn convolutions_of_three_by_three_keep_their_bound(
        case in case(), in_channels in prop::sample::select(vec![16, 32, 48, 80]),
        out_channels in prop_oneof![1..20_usize, Just(64), Just(80), Just(130)],
        input in [2..20_usize, 2..20_usize], batch in 1..4_usize, pads in [0..3_usize, 0..3_usize, 0..3_usize, 0..3_usize],
    ) {
        check_convolution(case, Images { batch, pads, ..images(shape(in_channels, out_channels), input) })?;
    }
}

#[test]
fn many_tiles_are_shared_by_tile_and_many_columns_in_windows() {
    for isa in Isa::available() {
        for threads in [1, 3] {
            let case = Case::with_everything(isa, threads);
            check_convolution(case, images(shape(32, 96), [35, 41])).unwrap();
            check_convolution(case, images(shape(288, 320), [6, 70])).unwrap();
        }
    }
}

/// Runs a convolution of 32 to 48 channels with one number of its input replaced, and
/// returns which outputs are finite, by row and column.
fn finite_outputs(isa: Isa, input: [usize; 2], at: [usize; 2], value: f32) -> Vec<bool> {
    let shape = shape(32, 48);
    // Planned for other threads than those that run it.
    let convolution = Convolution::new(isa, 3, shape, 16);
    let extents = Extents {
        batch: 1,
        input,
        output: input,
        padding: [1; 2],
        input_layout: Layout::Blocked,
        output_layout: Layout::Blocked,
    };
    let area = input[0] * input[1];
    let mut x = super::numbers(32 * area, 5);
    x[(area + at[0] * input[1] + at[1]) * 16 + 3] = value;
    let w = super::numbers(48 * 32 * 9, 6);
    let packed = super::pack(
        convolution.panels(),
        convolution.slabs(),
        &w,
        |panel| convolution.panel_length(panel),
        |panel, source, start, out| convolution.pack(panel, source, start, None, out),
    );
    let mut scratch = vec![f32::NAN; convolution.scratch(2, &extents)];
    let mut y = vec![f32::NAN; 48 * area];
    let Ok(()) = convolution.run(
        Workers {
            panels: &packed,
            parallel: &super::Threads(2),
            scratch: &mut scratch,
        },
        &extents,
        &x,
        &Epilogue::default(),
        &mut y,
    );
    let finite = |point: usize| {
        (0..3).all(|block| (0..16).all(|lane| y[(block * area + point) * 16 + lane].is_finite()))
    };
    (0..area).map(finite).collect()
}

#[test]
fn what_is_not_finite_spreads_to_the_outputs_that_depend_on_it_and_their_tiles_only() {
    let input = [13, 18];
    for isa in Isa::available() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [[0, 0], [3, 4], [6, 7], [12, 17]] {
                let finite = finite_outputs(isa, input, at, value);
                for (point, finite) in finite.into_iter().enumerate() {
                    let point = [point / input[1], point % input[1]];
                    let depends = (0..2).all(|axis| point[axis].abs_diff(at[axis]) <= 1);
                    // The tile of 4 x 4 outputs begins one before the inputs it reads.
                    let in_tile = (0..2).all(|axis| {
                        let first = point[axis] / 4 * 4;
                        (first..first + 6).contains(&(at[axis] + 1))
                    });
                    assert!(
                        !(depends && finite),
                        "{isa}: {value} at {at:?} is lost at {point:?}"
                    );
                    assert!(
                        in_tile || finite,
                        "{isa}: {value} at {at:?} reaches {point:?}"
                    );
                }
            }
        }
    }
}
