//! A convolution of single points, and the depthwise one that alone reads what it makes,
//! some rows at a time.
//!
//! The first makes several times the channels that it reads, and each channel of the second
//! reads one of them. So a thread takes a group of channels and a band of the second one's
//! rows, makes what that reads into a buffer of its own, and reads it from there while it is
//! in the second-level cache: as a whole it never exists. Rows that two bands read are made
//! twice.

use std::ops::Range;

use crate::arrange::{Arranged, Pieces, Place};
use crate::convolution::{Convolution, Extents, Layout};
use crate::depthwise::Depthwise;
use crate::gemm::Epilogue;
use crate::opening::{Opened, Opening, Part};
use crate::packing::Packing;
use crate::panels::{Panels, Parallel};
use crate::product::{Ahead, ColumnMap, MANY_POINTS, PointMap, Product, Scratch, WINDOW};
use crate::shares::Shares;

/// Numbers between the two from which on it pays: 1 MiB, about what a second-level cache has.
const LARGE: usize = (1 << 20) / 4;

/// Numbers of a thread's buffer, at most.
const BUFFER: usize = (384 << 10) / 4;

/// Bands of all groups for each thread, at least.
const WORKS_PER_THREAD: usize = 3;

/// Two convolutions that run as one. Weights are packed and opened as for each alone.
pub struct Expansion<'a> {
    first: &'a Convolution,
    packing: &'a Packing,
    second: &'a Convolution,
    depthwise: &'a Depthwise,
    extents: [Extents; 2],
    /// How the input lies.
    place: Place,
    threads: usize,
    /// Rows of a band, and how many bands there are.
    rows: usize,
    bands: usize,
    /// Numbers of a thread's buffer.
    buffer: usize,
}

impl<'a> Expansion<'a> {
    /// None where the two are others, where they read or write other layouts, or where it
    /// would not pay: what lies between them is small, or has few rows for each of `threads`
    /// threads.
    #[must_use]
    pub fn plan(
        threads: usize,
        [first, second]: [&'a Convolution; 2],
        extents: [Extents; 2],
    ) -> Option<Self> {
        let (packing, depthwise) = (first.packing()?, second.depthwise()?);
        let [made, read] = extents;
        let (block, width) = (first.block(), packing.isa().width());
        let shape = first.shape();
        let by_points = shape.groups == 1
            && shape.kernel == [1, 1]
            && shape.strides == [1, 1]
            && made.padding == [0, 0]
            && made.input == made.output;
        let follows = second.shape().in_channels() == shape.out_channels
            && second.block() == block
            && read.input == made.output
            && read.batch == made.batch;
        let blocked = [made.output_layout, read.input_layout, read.output_layout]
            .iter()
            .all(|&layout| layout == Layout::Blocked);
        let groups = packing.groups();
        let whole_blocks =
            (0..groups).all(|group| (packing.vectors(group).start * width).is_multiple_of(block));
        if !(by_points && follows && blocked && whole_blocks) || packing.length() > WINDOW {
            return None;
        }
        let Arranged::AsItIs { place } =
            first.image(&made).arrange(shape, packing.reduction().lanes)
        else {
            return None;
        };
        let points = made.output[0] * made.output[1];
        let between = points * shape.out_channels.next_multiple_of(block);
        if points < MANY_POINTS || between < LARGE || read.batch * read.output[0] == 0 {
            return None;
        }
        let widest = (0..groups).map(|group| packing.vectors(group).len() * width);
        let row = made.output[1] * widest.max()?;
        let [stride, _] = second.shape().strides;
        let touched = |rows: usize| second.shape().touched([rows, 1])[0];
        let room = (BUFFER / row).checked_sub(touched(1))?;
        let height = read.output[0];
        let works = read.batch * groups;
        let bands = height
            .div_ceil(room / stride + 1)
            .max((WORKS_PER_THREAD * threads).div_ceil(works));
        let bands = if works.is_multiple_of(threads) {
            bands
        } else {
            bands.next_multiple_of(threads)
        };
        let rows = height.div_ceil(bands);
        // At most a quarter is made twice.
        if bands > 1 && 4 * touched(rows) > 5 * rows * stride {
            return None;
        }
        Some(Self {
            first,
            packing,
            second,
            depthwise,
            extents,
            place,
            threads,
            rows,
            bands: height.div_ceil(rows),
            buffer: (touched(rows).min(made.output[0]) * row).next_multiple_of(16),
        })
    }

    /// Numbers of scratch that [`Self::run`] needs.
    #[must_use]
    pub fn scratch(&self) -> usize {
        self.opened() + self.depthwise.scratch() + self.threads * self.buffer
    }

    /// Numbers of the first one's opened weights; panels start at cache lines.
    fn opened(&self) -> usize {
        self.parts()
            .last()
            .map_or(0, |part| part.start + part.length.next_multiple_of(16))
    }

    /// The first one's panels, and their parts of the scratch.
    fn parts(&self) -> impl Iterator<Item = Part> + use<'_> {
        (0..self.packing.panels()).scan(0, |next, panel| {
            let (start, length) = (*next, self.packing.panel_length(panel));
            *next += length.next_multiple_of(16);
            Some(Part {
                panel,
                start,
                length,
            })
        })
    }

    /// Rows of what lies between that `rows` of the output read.
    fn read(&self, rows: &Range<usize>) -> Range<usize> {
        let [_, Extents { input, padding, .. }] = self.extents;
        let inside = |row: usize| row.saturating_sub(padding[0]).min(input[0]);
        let start = rows.start * self.second.shape().strides[0];
        let touched = self.second.shape().touched([rows.len(), 1])[0];
        inside(start)..inside(start + touched)
    }

    /// Convolves `input` into `output`, with the panels and the epilogue of each; the first
    /// one's has no residual.
    ///
    /// # Errors
    /// What opening a panel returns; `output` is then arbitrary.
    ///
    /// # Panics
    /// If a slice is too short, or `parallel` has more threads than were planned for.
    pub fn run<P: Panels>(
        &self,
        panels: [&P; 2],
        parallel: &dyn Parallel,
        scratch: &mut [f32],
        input: &[f32],
        epilogues: [&Epilogue<'_>; 2],
        output: &mut [f32],
    ) -> Result<(), P::Error> {
        let [made, read] = &self.extents;
        let (block, width) = (self.first.block(), self.packing.isa().width());
        let (groups, batch) = (self.packing.groups(), read.batch);
        let threads = parallel.threads();
        let channels = self.second.shape().out_channels;
        let blocks = channels.div_ceil(block);
        let [height, out_row] = [read.output[0], read.output[1] * block];
        assert!(
            threads <= self.threads,
            "more threads than were planned for"
        );
        assert!(
            input.len() >= batch * self.place.image_stride,
            "the input is short"
        );
        assert!(
            output.len() >= batch * blocks * height * out_row,
            "the output is short"
        );
        assert!(scratch.len() >= self.scratch(), "the scratch is short");
        assert!(epilogues[0].residual.is_none(), "no residual between");
        epilogues[0].check(channels, 0);
        epilogues[1].check(channels, batch * blocks * height * out_row);
        let (opened, rest) = scratch.split_at_mut(self.opened());
        let (taps, buffers) = rest.split_at_mut(self.depthwise.scratch());
        let [opened, taps, buffers] = [opened, taps, buffers].map(Scratch::new);
        // SAFETY: the parts are those of different panels, and the scratch is borrowed by
        // this call alone.
        let openings = unsafe {
            (
                Opening::new(panels[0], &opened, self.parts(), threads),
                Opening::new(panels[1], &taps, self.depthwise.parts(), threads),
            )
        };
        let weights = Opened::new(panels[0], &opened, self.parts());
        let taps = self.depthwise.places(panels[1], &taps);
        let rows_of = self.depthwise.rows(self.second, read, &taps, epilogues[1]);
        let segments = self.first.segments(self.packing.reduction(), &self.place);
        let out = Pieces::new(&mut output[..batch * blocks * height * out_row], out_row);
        let works = Shares::new(batch * self.bands * groups, threads);
        parallel.run(threads, &|thread| {
            if !(openings.0.pass() && openings.1.pass()) {
                return;
            }
            // SAFETY: each number has a part of its own.
            let buffer = unsafe { buffers.part(thread * self.buffer, self.buffer) };
            while let Some(work) = works.take() {
                // A thread's bands lie together, as the points do that it had before.
                let (band, group) = (work / groups, work % groups);
                let (image, band) = (band / self.bands, band % self.bands);
                let rows = band * self.rows..((band + 1) * self.rows).min(height);
                let between = self.read(&rows);
                let points = between.len() * made.output[1];
                let vectors = self.packing.vectors(group);
                let first_block = vectors.start * width / block;
                assert!(
                    points * vectors.len() * width <= buffer.len(),
                    "the buffer is short"
                );
                let columns = ColumnMap {
                    block,
                    stride: points * block,
                };
                let product = Product {
                    packing: self.packing,
                    first_panel: 0,
                    segments: &segments,
                    input: input[image * self.place.image_stride..]
                        .as_ptr()
                        .wrapping_add(between.start * self.place.row_stride),
                    input_points: PointMap::in_line(self.place.point),
                    output: buffer
                        .as_mut_ptr()
                        .wrapping_sub(first_block * columns.stride),
                    output_points: PointMap::in_line(block),
                    output_columns: columns,
                    points,
                    finish: epilogues[0].check(channels, 0),
                };
                let panels = group * self.packing.ranges()..(group + 1) * self.packing.ranges();
                // SAFETY: the group's channels begin with a block, whose place the output
                // makes up for; they and the points of these rows fit the buffer, which is
                // this thread's, and the input has them. The weights were opened above.
                unsafe {
                    product.pass_all(
                        group,
                        0,
                        weights.panels(panels),
                        0..points,
                        &mut Ahead::new(),
                    );
                }
                for index in first_block..vectors.end * width / block {
                    let source = &buffer[(index - first_block) * columns.stride..];
                    let source = &source[..columns.stride];
                    for y in rows.clone() {
                        let row = (image * blocks + index) * height + y;
                        let residual = epilogues[1].residual;
                        let residual = residual.map(|sums| &sums[row * out_row..][..out_row]);
                        // SAFETY: each row of each block comes once; the taps were opened
                        // above.
                        unsafe {
                            let out = out.piece(row);
                            rows_of.make(index, y, (source, between.start), residual, out);
                        }
                    }
                }
            }
        });
        openings.0.into_result()?;
        openings.1.into_result()
    }
}
