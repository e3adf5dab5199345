//! Arranges an image as the kernel reads it: padded, and each group's channels in
//! blocks of as many as the reduction's segments have.

use crate::convolution::{ConvolutionShape, Layout};
use crate::panels::Parallel;
use crate::shares::Shares;

/// Pieces of work for each thread, so that all end at about the same time.
const PIECES_PER_THREAD: usize = 4;

/// An input, and what of it a convolution touches.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    pub(crate) layout: Layout,
    /// Channels of a block, where the layout has blocks.
    pub(crate) block: usize,
    pub(crate) channels: usize,
    pub(crate) extents: [usize; 2],
    pub(crate) padding: [usize; 2],
    pub(crate) touched: [usize; 2],
}

/// Where the numbers lie that a kernel reads. Strides count numbers.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) lanes: usize,
    /// Channels of one group.
    pub(crate) group_channels: usize,
    pub(crate) group_stride: usize,
    pub(crate) image_stride: usize,
    pub(crate) block_stride: usize,
    pub(crate) row_stride: usize,
    pub(crate) point: usize,
}

pub(crate) enum Arranged {
    /// The input can be read where it is.
    AsItIs { place: Place },
    /// It needs a copy of `length` numbers for each image.
    Copied { place: Place, length: usize },
}

impl Image {
    pub(crate) fn arrange(&self, shape: &ConvolutionShape, lanes: usize) -> Arranged {
        let inside =
            (0..2).all(|axis| self.padding[axis] == 0 && self.touched[axis] <= self.extents[axis]);
        let aligned = match self.layout {
            Layout::Blocked => {
                lanes == self.block
                    && (shape.groups == 1 || shape.in_channels_per_group.is_multiple_of(lanes))
            }
            Layout::Plain => lanes == 1,
        };
        let sides = if inside && aligned {
            self.extents
        } else {
            self.touched
        };
        let area = sides[0] * sides[1];
        let group_channels = shape.in_channels_per_group;
        let group_stride = group_channels.next_multiple_of(lanes) * area;
        let image_stride = if inside && aligned {
            match self.layout {
                Layout::Plain => self.channels * area,
                Layout::Blocked => self.channels.next_multiple_of(self.block) * area,
            }
        } else {
            group_stride * shape.groups
        };
        let place = Place {
            lanes,
            group_channels,
            group_stride,
            image_stride,
            block_stride: area * lanes,
            row_stride: sides[1] * lanes,
            point: lanes,
        };
        if inside && aligned {
            Arranged::AsItIs { place }
        } else {
            let length = image_stride;
            Arranged::Copied { place, length }
        }
    }

    /// All channels as one group, in the layout's own blocks.
    pub(crate) fn blocked_place(&self) -> Place {
        let area = self.touched[0] * self.touched[1];
        let image = self.channels.next_multiple_of(self.block) * area;
        Place {
            lanes: self.block,
            group_channels: self.channels,
            group_stride: image,
            image_stride: image,
            block_stride: area * self.block,
            row_stride: self.touched[1] * self.block,
            point: self.block,
        }
    }

    /// Copies `batch` images of `input` to `out`, arranged by `place`.
    pub(crate) fn copy(
        &self,
        place: &Place,
        input: &[f32],
        batch: usize,
        parallel: &dyn Parallel,
        out: &mut [f32],
    ) {
        let in_image = match self.layout {
            Layout::Plain => self.channels,
            Layout::Blocked => self.channels.next_multiple_of(self.block),
        } * self.extents[0]
            * self.extents[1];
        let blocks = place.group_channels.div_ceil(place.lanes);
        let groups = self.channels / place.group_channels.max(1);
        let all = batch * groups * blocks;
        // Where there are few blocks, threads share each of them by rows, as they do the
        // points of the product.
        let height = self.touched[0];
        let bands = (PIECES_PER_THREAD * parallel.threads()).div_ceil(all.max(1));
        let rows = height.div_ceil(bands.clamp(1, height.max(1))).max(1);
        let bands = height.div_ceil(rows);
        let out = Pieces::new(&mut out[..batch * place.image_stride], place.row_stride);
        let at_once = (all * bands).div_ceil(PIECES_PER_THREAD * parallel.threads());
        let works = Shares::new(all * bands, parallel.threads());
        parallel.run(parallel.threads(), &|_| {
            while let Some(some) = works.take_some(at_once.max(1)) {
                for work in some {
                    let (band, index) = (work / all, work % all);
                    let (image, rest) = (index / (groups * blocks), index % (groups * blocks));
                    let (group, block) = (rest / blocks, rest % blocks);
                    let channel = group * place.group_channels + block * place.lanes;
                    let count = place.lanes.min(place.group_channels - block * place.lanes);
                    let input = &input[image * in_image..][..in_image];
                    for row in band * rows..((band + 1) * rows).min(height) {
                        // SAFETY: blocks lie one after the other in this order, in rows,
                        // and each number of `works` comes once.
                        let out = unsafe { out.piece(index * height + row) };
                        self.copy_row(place.lanes, channel, count, row, input, out);
                    }
                }
            }
        });
    }

    /// Copies row `row`, padding counted, of `count` channels from `channel` on to that of a
    /// block of `lanes`.
    fn copy_row(
        &self,
        lanes: usize,
        channel: usize,
        count: usize,
        row: usize,
        input: &[f32],
        out: &mut [f32],
    ) {
        let [height, width] = self.extents;
        let (above, left) = (self.padding[0], self.padding[1]);
        let area = height * width;
        if row < above || row - above >= height {
            out.fill(0.0);
            return;
        }
        let row = row - above;
        let before = left.min(self.touched[1]);
        let copied = width.min(self.touched[1] - before);
        out[..before * lanes].fill(0.0);
        out[(before + copied) * lanes..].fill(0.0);
        let out = &mut out[before * lanes..][..copied * lanes];
        if out.is_empty() {
            // What is touched of this row is padding only.
            return;
        }
        match self.layout {
            Layout::Blocked if lanes == self.block && channel.is_multiple_of(lanes) => {
                let start = channel * area + row * width * lanes;
                out.copy_from_slice(&input[start..][..copied * lanes]);
            }
            Layout::Plain if lanes == 1 => {
                let start = channel * area + row * width;
                out.copy_from_slice(&input[start..][..copied]);
            }
            _ => {
                for lane in 0..lanes {
                    if lane >= count {
                        out[lane..]
                            .iter_mut()
                            .step_by(lanes)
                            .for_each(|out| *out = 0.0);
                        continue;
                    }
                    let channel = channel + lane;
                    let (start, step) = match self.layout {
                        Layout::Plain => (channel * area + row * width, 1),
                        Layout::Blocked => (
                            channel / self.block * self.block * area
                                + row * width * self.block
                                + channel % self.block,
                            self.block,
                        ),
                    };
                    let from = input[start..].iter().step_by(step);
                    for (out, from) in out[lane..].iter_mut().step_by(lanes).zip(from) {
                        *out = *from;
                    }
                }
            }
        }
    }
}

/// A slice that threads share by pieces of one length.
pub(crate) struct Pieces {
    start: *mut f32,
    length: usize,
    count: usize,
}

// SAFETY: `piece` hands out disjoint pieces, as its callers promise.
unsafe impl Sync for Pieces {}

impl Pieces {
    pub(crate) fn new(slice: &mut [f32], length: usize) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            length,
            count: slice.len() / length.max(1),
        }
    }

    /// # Safety
    /// Nobody else has piece `index`, and the borrow that `new` took lives.
    #[expect(clippy::mut_from_ref, reason = "pieces are disjoint")]
    pub(crate) unsafe fn piece(&self, index: usize) -> &mut [f32] {
        assert!(index < self.count || self.length == 0, "a piece's number");
        // SAFETY: within the slice, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.length), self.length) }
    }
}
