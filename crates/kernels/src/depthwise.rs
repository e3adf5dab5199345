//! Convolutions in which each output channel depends on one input channel of its own:
//! no reduction over channels, so vectors of channels at once.

use std::array::from_fn;

use crate::arrange::Pieces;
use crate::convolution::{Convolution, Extents};
use crate::gemm::Epilogue;
use crate::isa::{Isa, Kind};
use crate::opening::{Opened, Part};
use crate::packing::Slab;
use crate::panels::{Panels, Parallel};
use crate::product::{MANY_POINTS, Scratch};
use crate::shares::Shares;
use crate::tile::next_points;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Portable, Vector};

/// Bytes below which a panel does not go, so that a layer makes few panels.
const SMALL_PANEL_BYTES: usize = 8 << 10;

/// Vectors of channels that a panel holds at most.
const PANEL_VECTORS: usize = 64;

/// Weights as `[channels / width, taps, width]`, in panels of whole vectors.
#[derive(Debug, Clone)]
pub(crate) struct Depthwise {
    isa: Isa,
    channels: usize,
    taps: usize,
    /// Vectors of a panel, the last one may have fewer.
    panel_vectors: usize,
}

impl Depthwise {
    /// With a panel for each of `threads` threads, where these would not be tiny.
    pub(crate) fn new(isa: Isa, threads: usize, channels: usize, taps: usize) -> Self {
        let share = channels.div_ceil(isa.width()).div_ceil(threads);
        let small = SMALL_PANEL_BYTES.div_ceil(4 * isa.width() * taps.max(1));
        Self {
            isa,
            channels,
            taps,
            panel_vectors: share.max(small).min(PANEL_VECTORS),
        }
    }

    fn vectors(&self) -> usize {
        self.channels.div_ceil(self.isa.width())
    }

    pub(crate) fn panels(&self) -> usize {
        self.vectors().div_ceil(self.panel_vectors)
    }

    pub(crate) fn panel_length(&self, panel: usize) -> usize {
        let vectors = (self.vectors() - panel * self.panel_vectors).min(self.panel_vectors);
        vectors * self.taps * self.isa.width()
    }

    /// Numbers of scratch for all panels.
    pub(crate) fn scratch(&self) -> usize {
        (self.vectors() * self.taps * self.isa.width()).next_multiple_of(16)
    }

    fn panel_channels(&self, panel: usize) -> std::ops::Range<usize> {
        let each = self.panel_vectors * self.isa.width();
        panel * each..((panel + 1) * each).min(self.channels)
    }

    pub(crate) fn slabs(&self) -> Vec<Slab> {
        let slab = |panel| {
            let channels = self.panel_channels(panel);
            Slab {
                source: channels.start * self.taps..channels.end * self.taps,
                panels: vec![panel],
            }
        };
        (0..self.panels()).map(slab).collect()
    }

    pub(crate) fn pack(
        &self,
        panel: usize,
        source: &[f32],
        source_start: usize,
        scale: Option<&[f32]>,
        out: &mut [f32],
    ) {
        assert_eq!(out.len(), self.panel_length(panel), "a panel's length");
        out.fill(0.0);
        let width = self.isa.width();
        let channels = self.panel_channels(panel);
        for channel in channels.clone() {
            let (vector, lane) = ((channel - channels.start) / width, channel % width);
            let factor = scale.map_or(1.0, |scale| scale[channel]);
            for tap in 0..self.taps {
                let weight = source[channel * self.taps + tap - source_start];
                out[(vector * self.taps + tap) * width + lane] = weight * factor;
            }
        }
    }

    /// Where the panels are: in memory, or else in `scratch` when they have been opened.
    pub(crate) fn places<P: Panels>(&self, panels: &P, scratch: &Scratch) -> Opened {
        Opened::new(panels, scratch, self.parts())
    }

    /// The panels' parts of the scratch.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> {
        (0..self.panels()).map(|panel| Part {
            panel,
            start: panel * self.panel_vectors * self.taps * self.isa.width(),
            length: self.panel_length(panel),
        })
    }

    /// Convolves one image in blocks; `weights` are the panels, which can be read when
    /// `opened` has returned true.
    ///
    /// # Safety
    /// Each panel has its length, and nobody writes to one once `opened` has returned true.
    #[expect(clippy::too_many_arguments, reason = "all of one convolution")]
    pub(crate) unsafe fn run(
        &self,
        convolution: &Convolution,
        extents: &Extents,
        weights: &Opened,
        opened: &(dyn Fn() -> bool + Sync),
        input: &[f32],
        epilogue: &Epilogue<'_>,
        parallel: &dyn Parallel,
        output: &mut [f32],
    ) {
        let block = convolution.block();
        let blocks = self.channels.div_ceil(block);
        let [out_height, out_width] = extents.output;
        epilogue.check(self.channels, output.len());
        let rows_of = self.rows(convolution, extents, weights, epilogue);
        let in_block = extents.input[0] * extents.input[1] * block;
        let out_row = out_width * block;
        let pieces = Pieces::new(&mut output[..blocks * out_height * out_row], out_row);
        // Some rows of one block at a time. Threads share a large image by rows and a
        // small one by blocks, as the convolutions around this one do.
        let by_row = out_height * out_width >= MANY_POINTS;
        let wanted = if by_row {
            4 * parallel.threads()
        } else {
            (8 * parallel.threads()).div_ceil(blocks)
        };
        let rows = out_height.div_ceil(wanted).max(1);
        let bands = out_height.div_ceil(rows);
        let works = Shares::new(blocks * bands, parallel.threads());
        parallel.run(parallel.threads(), &|_| {
            if !opened() {
                return;
            }
            while let Some(work) = works.take() {
                let (index, band) = if by_row {
                    (work % blocks, work / blocks)
                } else {
                    (work / bands, work % bands)
                };
                let source = &input[index * in_block..][..in_block];
                for y in band * rows..((band + 1) * rows).min(out_height) {
                    // SAFETY: each row of each block comes once.
                    let out = unsafe { pieces.piece(index * out_height + y) };
                    let residual = epilogue
                        .residual
                        .map(|residual| &residual[(index * out_height + y) * out_row..][..out_row]);
                    // SAFETY: the caller's contract; the source is a whole block.
                    unsafe { rows_of.make(index, y, (source, 0), residual, out) };
                }
            }
        });
    }

    /// What makes single rows of an image, see [`Rows::make`].
    pub(crate) fn rows<'a>(
        &'a self,
        convolution: &Convolution,
        extents: &Extents,
        weights: &'a Opened,
        epilogue: &Epilogue<'a>,
    ) -> Rows<'a> {
        let shape = convolution.shape();
        Rows {
            depthwise: self,
            row: Row {
                block: convolution.block(),
                taps: shape.kernel,
                dilations: shape.dilations,
                stride: shape.strides,
                padding: extents.padding,
                input: extents.input,
                out_width: extents.output[1],
                bounds: epilogue.bounds,
            },
            weights,
            bias: epilogue.bias,
            run: match self.isa.kind() {
                Kind::Portable => portable,
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => avx2,
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => avx512,
            },
        }
    }
}

/// Makes rows of one image.
pub(crate) struct Rows<'a> {
    depthwise: &'a Depthwise,
    row: Row,
    weights: &'a Opened,
    bias: Option<&'a [f32]>,
    run: unsafe fn(&Row, &Line),
}

impl Rows<'_> {
    /// Writes row `y` of block `index` to `out`. The source is that block of the input, from
    /// the row on that is given with it, with all rows that `y` reads. What is added is a row
    /// of the output.
    ///
    /// # Safety
    /// The weights are there, each panel in its length, and nobody writes to one.
    pub(crate) unsafe fn make(
        &self,
        index: usize,
        y: usize,
        (source, first_row): (&[f32], usize),
        residual: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let (depthwise, block) = (self.depthwise, self.row.block);
        let width = depthwise.isa.width();
        let (first, end) = self.row.inside(0, y);
        if first < end {
            let row_of = |tap: usize| {
                y * self.row.stride[0] + tap * self.row.dilations[0] - self.row.padding[0]
            };
            let row = self.row.input[1] * block;
            assert!(
                row_of(first) >= first_row
                    && source.len() >= (row_of(end - 1) + 1 - first_row) * row,
                "the source lacks rows"
            );
        }
        assert!(out.len() >= self.row.out_width * block, "the row is short");
        for lane in (0..block).step_by(width) {
            let channel = index * block + lane;
            let vector = channel / width;
            if vector >= depthwise.vectors() {
                // A vector of padding.
                let vectors = out.chunks_exact_mut(block);
                vectors.for_each(|out| out[lane..lane + width].fill(0.0));
                continue;
            }
            let start = vector % depthwise.panel_vectors * depthwise.taps * width;
            let line = Line {
                y,
                first_row,
                input: source.as_ptr().wrapping_add(lane),
                weights: self
                    .weights
                    .panel(vector / depthwise.panel_vectors)
                    .wrapping_add(start),
                bias: self.bias.map_or(std::ptr::null(), |bias| {
                    bias[channel..channel + width].as_ptr()
                }),
                residual: residual.map_or(std::ptr::null(), |residual| {
                    residual[..self.row.out_width * block][lane..].as_ptr()
                }),
                output: out[lane..].as_mut_ptr(),
            };
            // SAFETY: an `Isa` is only made where its instructions are; source, bias, residual
            // and row have what the line reads and writes, and weights are there by the
            // caller's contract.
            unsafe { (self.run)(&self.row, &line) };
        }
    }
}

/// What all rows of one run share.
struct Row {
    block: usize,
    taps: [usize; 2],
    dilations: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    input: [usize; 2],
    out_width: usize,
    bounds: Option<(f32, f32)>,
}

/// One row of outputs of one vector of channels.
struct Line {
    y: usize,
    /// The row of the input that `input` begins with.
    first_row: usize,
    input: *const f32,
    weights: *const f32,
    bias: *const f32,
    residual: *const f32,
    output: *mut f32,
}

unsafe fn portable(row: &Row, line: &Line) {
    // SAFETY: the caller's contract; no instructions are needed.
    unsafe { compute::<Portable>(row, line) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(row: &Row, line: &Line) {
    // SAFETY: the caller's contract, which includes the instructions.
    unsafe { compute::<Avx2>(row, line) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(row: &Row, line: &Line) {
    // SAFETY: the caller's contract, which includes the instructions.
    unsafe { compute::<Avx512>(row, line) }
}

impl Row {
    /// Taps along `axis` that lie inside the input for output `place`.
    #[inline(always)]
    fn inside(&self, axis: usize, place: usize) -> (usize, usize) {
        let start = place * self.stride[axis];
        let (padding, step) = (self.padding[axis], self.dilations[axis]);
        let first = padding.saturating_sub(start).div_ceil(step);
        let end = (self.input[axis] + padding)
            .saturating_sub(start)
            .div_ceil(step);
        let end = end.min(self.taps[axis]);
        (first.min(end), end)
    }
}

/// # Safety
/// The instructions are there; `line` points to the rows of an input that it reads, weights, and an output row of
/// the extents that `row` names, in vectors of the width, `block` numbers apart.
#[inline(always)]
unsafe fn compute<V: Vector>(row: &Row, line: &Line) {
    let rows = row.inside(0, line.y);
    // SAFETY: the caller's contract.
    unsafe {
        match (row.taps[1], row.dilations[1], row.stride[1], V::WIDTH) {
            (3, 1, 1, 16) => three::<V, 1, 8>(row, line, rows),
            (3, 1, 2, 16) => three::<V, 2, 8>(row, line, rows),
            (3, 1, 1, _) => three::<V, 1, 4>(row, line, rows),
            (3, 1, 2, _) => three::<V, 2, 4>(row, line, rows),
            _ => {
                for x in 0..row.out_width {
                    any::<V>(row, line, x, rows, row.inside(1, x));
                }
            }
        }
    }
}

/// A row of outputs for three taps across, `POINTS` at a time at best.
#[inline(always)]
unsafe fn three<V: Vector, const STRIDE: usize, const POINTS: usize>(
    row: &Row,
    line: &Line,
    rows: (usize, usize),
) {
    let mut x = 0;
    while x < row.out_width {
        let count = next_points(POINTS, row.out_width - x);
        let last = (x + count - 1) * STRIDE + 2;
        let inside = x * STRIDE >= row.padding[1] && last < row.input[1] + row.padding[1];
        // SAFETY: the caller's contract.
        unsafe {
            macro_rules! choose {
                ($($count:literal)*) => {
                    match (count, inside) {
                        $(
                            ($count, true) => {
                                three_of::<V, STRIDE, $count, true>(row, line, x, rows);
                            }
                            ($count, false) => {
                                three_of::<V, STRIDE, $count, false>(row, line, x, rows);
                            }
                        )*
                        _ => {}
                    }
                };
            }
            if POINTS == 8 {
                choose!(8 7 6 5 4 3 2 1);
            } else {
                choose!(4 3 2 1);
            }
        }
        x += count;
    }
}

/// Inputs that a row of taps of the largest tile touches, and a few more.
const TOUCHED: usize = 20;

/// `COUNT` outputs from `x` on. Each input is loaded once for each row of taps, where
/// not all are `INSIDE`, zero stands for those that are not.
#[inline(always)]
unsafe fn three_of<V: Vector, const STRIDE: usize, const COUNT: usize, const INSIDE: bool>(
    row: &Row,
    line: &Line,
    x: usize,
    rows: (usize, usize),
) {
    const { assert!((COUNT - 1) * STRIDE + 3 <= TOUCHED) };
    // SAFETY: as for `compute`; only inputs inside of the image are read.
    unsafe {
        let mut sums = [V::splat(0.0); COUNT];
        for tap_row in rows.0..rows.1 {
            let y = line.y * row.stride[0] + tap_row * row.dilations[0]
                - row.padding[0]
                - line.first_row;
            let weights = line.weights.add(tap_row * 3 * V::WIDTH);
            let weights: [V; 3] = from_fn(|tap| V::load(weights.add(tap * V::WIDTH)));
            let from = line.input.add(y * row.input[1] * row.block);
            // Wraps where the tile begins in the padding.
            let left = (x * STRIDE).wrapping_sub(row.padding[1]);
            let mut values = [V::splat(0.0); TOUCHED];
            for (index, value) in values.iter_mut().enumerate() {
                if index < (COUNT - 1) * STRIDE + 3 {
                    let column = left.wrapping_add(index);
                    if INSIDE || column < row.input[1] {
                        *value = V::load(from.add(column * row.block));
                    }
                }
            }
            for (point, sum) in sums.iter_mut().enumerate() {
                for (tap, weight) in weights.into_iter().enumerate() {
                    *sum = values[point * STRIDE + tap].multiply_add(weight, *sum);
                }
            }
        }
        finish(row, line, x, sums);
    }
}

/// One output, whatever the taps.
#[inline(always)]
unsafe fn any<V: Vector>(
    row: &Row,
    line: &Line,
    x: usize,
    rows: (usize, usize),
    columns: (usize, usize),
) {
    // SAFETY: as for `compute`; only taps inside the input are read.
    unsafe {
        let mut sum = V::splat(0.0);
        for tap_row in rows.0..rows.1 {
            let y = line.y * row.stride[0] + tap_row * row.dilations[0]
                - row.padding[0]
                - line.first_row;
            for tap_column in columns.0..columns.1 {
                let weight = (tap_row * row.taps[1] + tap_column) * V::WIDTH;
                let weight = V::load(line.weights.add(weight));
                let left = x * row.stride[1] + tap_column * row.dilations[1] - row.padding[1];
                let value = V::load(line.input.add((y * row.input[1] + left) * row.block));
                sum = value.multiply_add(weight, sum);
            }
        }
        finish(row, line, x, [sum]);
    }
}

/// Adds bias and residual, applies the bounds and stores.
#[inline(always)]
unsafe fn finish<V: Vector, const COUNT: usize>(
    row: &Row,
    line: &Line,
    x: usize,
    mut sums: [V; COUNT],
) {
    // SAFETY: as for `compute`.
    unsafe {
        if !line.bias.is_null() {
            let bias = V::load(line.bias);
            for sum in &mut sums {
                *sum = sum.add(bias);
            }
        }
        if !line.residual.is_null() {
            for (point, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::load(line.residual.add((x + point) * row.block)));
            }
        }
        if let Some((low, high)) = row.bounds {
            let (low, high) = (V::splat(low), V::splat(high));
            for sum in &mut sums {
                *sum = sum.at_least(low).at_most(high);
            }
        }
        for (point, sum) in sums.into_iter().enumerate() {
            sum.store(line.output.add((x + point) * row.block));
        }
    }
}
