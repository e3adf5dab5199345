//! Every kernel against the definition of the operator, written as plain loops in
//! double precision, on random shapes, for each instruction set of this processor.

use occlude_kernels::{
    Alone, BIAS_MULTIPLE, Convolution, ConvolutionShape, Epilogue, Extents, Gemm, Isa, Layout,
    Panels, Parallel, Workers,
};
use proptest::prelude::*;

mod expansion;
mod failing;
mod filtering;
mod winograd;

/// Whether a sanitizer watches the kernels. The definition itself would take minutes
/// then, and every other build compares with it.
const SANITIZED: bool = cfg!(sanitized);

/// Panels of which every second one is resident, so that both ways are taken.
struct Packed(Vec<Vec<f32>>);

impl Panels for Packed {
    type Error = std::convert::Infallible;

    fn resident(&self, index: usize) -> Option<&[f32]> {
        index.is_multiple_of(2).then(|| &*self.0[index])
    }

    fn open(&self, index: usize, out: &mut [f32]) -> Result<(), Self::Error> {
        out.copy_from_slice(&self.0[index]);
        Ok(())
    }

    fn whereabouts(&self, index: usize) -> Option<(*const u8, usize)> {
        let panel = &self.0[index];
        Some((panel.as_ptr().cast(), size_of_val(panel.as_slice())))
    }
}

/// Threads of the operating system, as many as asked for.
struct Threads(usize);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            let start = |index| scope.spawn(move || work(index));
            let threads: Vec<_> = (0..count).map(start).collect();
            // One by one: the end of a scope is nothing that the thread sanitizer sees.
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}

/// Numbers between -1 and 1 that differ from each other.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn padded(bias: &[f32]) -> Vec<f32> {
    let mut bias = bias.to_vec();
    bias.resize(bias.len().next_multiple_of(BIAS_MULTIPLE), 0.0);
    bias
}

/// `|difference| <= gamma * sum of magnitudes` bounds any order of summation
/// (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
fn assert_near(
    found: f32,
    expected: f64,
    magnitude: f64,
    terms: usize,
) -> Result<(), TestCaseError> {
    let unit = f64::from(f32::EPSILON) / 2.0;
    let bound = (terms + 4) as f64 * unit * magnitude * 1.01 + 1e-30;
    let difference = (f64::from(found) - expected).abs();
    prop_assert!(
        difference <= bound,
        "{found} for {expected}: off by {difference:e} > {bound:e}"
    );
    Ok(())
}

fn clamp(value: f64, bounds: Option<(f32, f32)>) -> f64 {
    bounds.map_or(value, |(low, high)| {
        value.clamp(f64::from(low), f64::from(high))
    })
}

fn pack(
    panels: usize,
    slabs: Vec<occlude_kernels::Slab>,
    weights: &[f32],
    length: impl Fn(usize) -> usize,
    pack: impl Fn(usize, &[f32], usize, &mut [f32]),
) -> Packed {
    let mut packed = vec![Vec::new(); panels];
    let mut next = 0;
    for slab in slabs {
        assert_eq!(
            slab.source.start, next,
            "slabs come in order and leave nothing out"
        );
        next = slab.source.end;
        for panel in slab.panels {
            assert!(packed[panel].is_empty(), "a panel is packed once");
            packed[panel] = vec![f32::NAN; length(panel)];
            pack(
                panel,
                &weights[slab.source.clone()],
                slab.source.start,
                &mut packed[panel],
            );
        }
    }
    assert_eq!(next, weights.len());
    Packed(packed)
}

#[derive(Debug, Clone, Copy)]
struct Case {
    isa: Isa,
    threads: usize,
    bias: bool,
    residual: bool,
    bounds: Option<(f32, f32)>,
}

impl Case {
    fn with_everything(isa: Isa, threads: usize) -> Self {
        Self {
            isa,
            threads,
            bias: true,
            residual: true,
            bounds: Some((-0.5, 3.0)),
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let bounds = prop_oneof![
        Just(None),
        Just(Some((0.0, f32::INFINITY))),
        Just(Some((-0.5, 0.75)))
    ];
    (
        prop::sample::select(Isa::available()),
        1..4_usize,
        any::<bool>(),
        any::<bool>(),
        bounds,
    )
        .prop_map(|(isa, threads, bias, residual, bounds)| Case {
            isa,
            threads,
            bias,
            residual,
            bounds,
        })
}

fn check_gemm(
    case: Case,
    m: usize,
    k: usize,
    n: usize,
    transposed: bool,
) -> Result<(), TestCaseError> {
    let gemm = Gemm::new(case.isa, case.threads, k, n, transposed);
    let (x, w) = (numbers(m * k, 1), numbers(k * n, 2));
    let (bias, residual) = (numbers(n, 3), numbers(m * n, 4));
    let packed = pack(
        gemm.panels(),
        gemm.slabs(),
        &w,
        |panel| gemm.panel_length(panel),
        |panel, source, start, out| {
            gemm.pack(panel, source, start, None, out);
        },
    );
    let mut scratch = vec![f32::NAN; gemm.scratch(case.threads)];
    let mut y = vec![f32::NAN; m * n];
    let padded = padded(&bias);
    let epilogue = Epilogue {
        bias: case.bias.then_some(&*padded),
        residual: case.residual.then_some(&*residual),
        bounds: case.bounds,
    };
    let Ok(()) = gemm.run(
        Workers {
            panels: &packed,
            parallel: &Threads(case.threads),
            scratch: &mut scratch,
        },
        &x,
        &epilogue,
        &mut y,
    );
    if SANITIZED {
        return Ok(());
    }
    for row in 0..m {
        for column in 0..n {
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for step in 0..k {
                let weight = if transposed {
                    w[column * k + step]
                } else {
                    w[step * n + column]
                };
                let term = f64::from(x[row * k + step]) * f64::from(weight);
                sum += term;
                magnitude += term.abs();
            }
            for (used, value) in [
                (case.bias, bias[column]),
                (case.residual, residual[row * n + column]),
            ] {
                if used {
                    sum += f64::from(value);
                    magnitude += f64::from(value.abs());
                }
            }
            assert_near(y[row * n + column], clamp(sum, case.bounds), magnitude, k)?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Images {
    shape: ConvolutionShape,
    block: usize,
    batch: usize,
    input: [usize; 2],
    /// Above, left, below, right.
    pads: [usize; 4],
    layouts: [Layout; 2],
}

fn place(
    layout: Layout,
    block: usize,
    channels: usize,
    sides: [usize; 2],
    at: [usize; 4],
) -> usize {
    let [image, channel, row, column] = at;
    match layout {
        Layout::Plain => ((image * channels + channel) * sides[0] + row) * sides[1] + column,
        Layout::Blocked => {
            let blocks = channels.div_ceil(block);
            (((image * blocks + channel / block) * sides[0] + row) * sides[1] + column) * block
                + channel % block
        }
    }
}

/// Whether the convolution may be computed by minimal filtering.
fn may_be_filtered(images: &Images) -> bool {
    let shape = images.shape;
    shape.kernel == [3; 2]
        && shape.strides == [1; 2]
        && shape.dilations == [1; 2]
        && shape.groups == 1
        && images.layouts == [Layout::Blocked; 2]
        && shape.in_channels_per_group.is_multiple_of(images.block)
}

fn check_convolution(case: Case, images: Images) -> Result<(), TestCaseError> {
    let Images {
        shape,
        block,
        batch,
        input,
        pads,
        layouts,
    } = images;
    let extent = |axis: usize| {
        let effective = (shape.kernel[axis] - 1) * shape.dilations[axis] + 1;
        (input[axis] + pads[axis] + pads[axis + 2])
            .checked_sub(effective)
            .map(|room| room / shape.strides[axis] + 1)
    };
    let (Some(height), Some(width)) = (extent(0), extent(1)) else {
        return Ok(());
    };
    let output = [height, width];
    let convolution = Convolution::new(case.isa, case.threads, shape, block);
    let (in_channels, out_channels) = (shape.in_channels(), shape.out_channels);
    let [in_layout, out_layout] = layouts;
    let in_image = convolution.image_length(in_channels, input, in_layout);
    let out_image = convolution.image_length(out_channels, output, out_layout);
    let taps = shape.kernel[0] * shape.kernel[1];
    let w = numbers(out_channels * shape.in_channels_per_group * taps, 2);
    let (bias, residual) = (numbers(out_channels, 3), numbers(batch * out_image, 4));
    // What stands in the channels of padding must not matter.
    let mut x = vec![f32::NAN; batch * in_image];
    let values = numbers(batch * in_channels * input[0] * input[1], 1);
    let mut next = values.iter();
    for image in 0..batch {
        for channel in 0..in_channels {
            for row in 0..input[0] {
                for column in 0..input[1] {
                    x[place(
                        in_layout,
                        block,
                        in_channels,
                        input,
                        [image, channel, row, column],
                    )] = *next.next().unwrap();
                }
            }
        }
    }
    let packed = pack(
        convolution.panels(),
        convolution.slabs(),
        &w,
        |panel| convolution.panel_length(panel),
        |panel, source, start, out| {
            convolution.pack(panel, source, start, None, out);
        },
    );
    let extents = Extents {
        batch,
        input,
        output,
        padding: [pads[0], pads[1]],
        input_layout: in_layout,
        output_layout: out_layout,
    };
    let mut scratch = vec![f32::NAN; convolution.scratch(case.threads, &extents)];
    let mut y = vec![f32::NAN; batch * out_image];
    let padded = padded(&bias);
    let epilogue = Epilogue {
        bias: case.bias.then_some(&*padded),
        residual: case.residual.then_some(&*residual),
        bounds: case.bounds,
    };
    let Ok(()) = convolution.run(
        Workers {
            panels: &packed,
            parallel: &Threads(case.threads),
            scratch: &mut scratch,
        },
        &extents,
        &x,
        &epilogue,
        &mut y,
    );
    if SANITIZED {
        return Ok(());
    }
    let filtered = may_be_filtered(&images).then(|| {
        let value = |[image, channel, row, column]: [usize; 4]| {
            let (row, column) = (row.checked_sub(pads[0]), column.checked_sub(pads[1]));
            let (row, column) = row.zip(column).unwrap_or(input.into());
            if row >= input[0] || column >= input[1] {
                return 0.0;
            }
            let at = [image, channel, row, column];
            f64::from(x[place(in_layout, block, in_channels, input, at)].abs())
        };
        let weight = |[channel, inner, row, column]: [usize; 4]| {
            let pair = channel * in_channels + inner;
            f64::from(w[pair * taps + row * 3 + column].abs())
        };
        let sizes = filtering::Sizes {
            batch,
            channels: out_channels,
            inner: in_channels,
            output,
        };
        filtering::Magnitudes::new(sizes, value, weight)
    });
    for image in 0..batch {
        for channel in 0..out_channels {
            let group = channel / (out_channels / shape.groups);
            for row in 0..height {
                for column in 0..width {
                    let at = place(
                        out_layout,
                        block,
                        out_channels,
                        output,
                        [image, channel, row, column],
                    );
                    let (mut sum, mut magnitude) = (0.0, 0.0);
                    let mut terms = shape.in_channels_per_group * taps;
                    for inner in 0..shape.in_channels_per_group {
                        let from = group * shape.in_channels_per_group + inner;
                        for tap in 0..taps {
                            let (r, c) = (tap / shape.kernel[1], tap % shape.kernel[1]);
                            let Some(r) = (row * shape.strides[0] + r * shape.dilations[0])
                                .checked_sub(pads[0])
                            else {
                                continue;
                            };
                            let Some(c) = (column * shape.strides[1] + c * shape.dilations[1])
                                .checked_sub(pads[1])
                            else {
                                continue;
                            };
                            if r >= input[0] || c >= input[1] {
                                continue;
                            }
                            let value =
                                x[place(in_layout, block, in_channels, input, [image, from, r, c])];
                            let weight =
                                w[(channel * shape.in_channels_per_group + inner) * taps + tap];
                            let term = f64::from(value) * f64::from(weight);
                            sum += term;
                            magnitude += term.abs();
                        }
                    }
                    if let Some(filtered) = &filtered {
                        magnitude = filtered.of([image, channel, row, column]);
                        terms = in_channels + filtering::TRANSFORMS;
                    }
                    for (used, value) in [(case.bias, bias[channel]), (case.residual, residual[at])]
                    {
                        if used {
                            sum += f64::from(value);
                            magnitude += f64::from(value.abs());
                        }
                    }
                    assert_near(y[at], clamp(sum, case.bounds), magnitude, terms)?;
                }
            }
        }
    }
    Ok(())
}

fn layout() -> impl Strategy<Value = Layout> {
    prop::sample::select(vec![Layout::Plain, Layout::Blocked])
}

prop_compose! {
    fn images()(
        groups in prop_oneof![3 => Just(1), 1 => 2..5_usize],
        per_group in prop_oneof![1..20_usize, Just(32), Just(48)],
        out_per_group in prop_oneof![1..20_usize, Just(32), Just(80)],
        depthwise in prop::bool::weighted(0.25),
        kernel in [1..4_usize, 1..4_usize],
        strides in [1..3_usize, 1..3_usize],
        dilations in prop_oneof![3 => Just([1, 1]), 1 => [1..3_usize, 1..3_usize]],
        pads in prop_oneof![1 => Just([0; 4]), 2 => [0..3_usize, 0..3_usize, 0..3_usize, 0..3_usize]],
        input in [1..15_usize, 1..15_usize],
        batch in 1..4_usize,
        wide in any::<bool>(),
        layouts in [layout(), layout()],
    ) -> (bool, Images) {
        let shape = if depthwise {
            ConvolutionShape { out_channels: per_group, in_channels_per_group: 1, groups: per_group, kernel, strides, dilations }
        } else {
            ConvolutionShape { out_channels: out_per_group * groups, in_channels_per_group: per_group, groups, kernel, strides, dilations }
        };
        (wide, Images { shape, block: 16, batch, input, pads, layouts })
    }
}

proptest! {
    #[test]
    fn products_are_those_of_the_definition(
        case in case(), m in 1..30_usize, k in prop_oneof![1..300_usize, Just(64), Just(128)],
        n in prop_oneof![1..200_usize, Just(64), Just(128)], transposed in any::<bool>(),
    ) {
        check_gemm(case, m, k, n, transposed)?;
    }

    #[test]
    fn convolutions_are_those_of_the_definition(case in case(), (wide, mut images) in images()) {
        if !wide && case.isa.width() == 8 {
            images.block = 8;
        }
        check_convolution(case, images)?;
    }
}

#[test]
fn large_layers_take_several_panels_and_windows() {
    for isa in Isa::available() {
        // 200 channels make 4 or 13 groups of columns: even and uneven shares.
        for threads in [1, 2, 3, 5] {
            let case = Case {
                isa,
                threads,
                bias: true,
                residual: true,
                bounds: None,
            };
            check_gemm(case, 1, 3000, 300, true).unwrap();
            check_gemm(case, 40, 1500, 130, false).unwrap();
            for (side, layouts) in [
                (3, [Layout::Blocked; 2]),
                (3, [Layout::Plain; 2]),
                (1, [Layout::Blocked; 2]),
                (1, [Layout::Plain; 2]),
            ] {
                let shape = ConvolutionShape {
                    out_channels: 200,
                    in_channels_per_group: 300,
                    groups: 1,
                    kernel: [side; 2],
                    strides: [1, 1],
                    dilations: [1, 1],
                };
                let images = Images {
                    shape,
                    block: 16,
                    batch: 2,
                    input: [5, 6],
                    pads: [side / 2; 4],
                    layouts,
                };
                check_convolution(case, images).unwrap();
            }
        }
    }
}

#[test]
fn outputs_may_depend_on_padding_alone() {
    for isa in Isa::available() {
        let case = Case {
            isa,
            threads: 1,
            bias: true,
            residual: false,
            bounds: None,
        };
        let shape = ConvolutionShape {
            out_channels: 17,
            in_channels_per_group: 35,
            groups: 1,
            kernel: [1, 3],
            strides: [1, 2],
            dilations: [1, 1],
        };
        for layouts in [[Layout::Plain; 2], [Layout::Blocked; 2]] {
            let images = Images {
                shape,
                block: 16,
                batch: 1,
                input: [1, 1],
                pads: [0, 3, 0, 0],
                layouts,
            };
            check_convolution(case, images).unwrap();
        }
    }
}

#[test]
fn columns_that_tiles_do_not_divide_are_shared_evenly() {
    for isa in Isa::available() {
        for threads in 1..=4 {
            let case = Case::with_everything(isa, threads);
            for (points, columns) in [(1, 160), (49, 160), (49, 320), (30, 577)] {
                check_gemm(case, points, 70, columns, false).unwrap();
            }
        }
    }
}

#[test]
fn a_number_that_is_none_is_not_lost_in_the_bounds() {
    for isa in Isa::available() {
        let gemm = Gemm::new(isa, 1, 1, 1, false);
        let packed = Packed(vec![vec![1.0; gemm.panel_length(0)]]);
        let mut scratch = vec![0.0; gemm.scratch(1)];
        let epilogue = Epilogue {
            bounds: Some((0.0, 6.0)),
            ..Epilogue::default()
        };
        for (x, expected) in [
            (f32::NAN, f32::NAN),
            (f32::INFINITY, 6.0),
            (-1.0, 0.0),
            (3.0, 3.0),
        ] {
            let mut y = [0.5];
            let Ok(()) = gemm.run(
                Workers {
                    panels: &packed,
                    parallel: &Alone,
                    scratch: &mut scratch,
                },
                &[x],
                &epilogue,
                &mut y,
            );
            assert!(
                y[0] == expected || (y[0].is_nan() && expected.is_nan()),
                "{isa}: {x} gives {}",
                y[0]
            );
        }
    }
}
