//! Convolutions of 3 x 3 by way of Winograd's minimal filtering, F(4 x 4, 3 x 3):
//! a tile of 4 x 4 outputs costs 36 products for each pair of channels instead of 144
//! (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016).
//!
//! `y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A`, with the polynomial's
//! points at 0, -5/8, 5/8, -3/2, 3/2 and infinity rather than at whole numbers: all
//! coefficients stay near 1, and the error is about twice that of the plain sum, not
//! ten times (Barabasz et al., Error Analysis and Improving the Accuracy of Winograd
//! Convolution, 2020, on how points are chosen).
//!
//! Weights are opened and packed as for any other convolution, and transformed after
//! they are opened. An input that is not finite spreads to all outputs of its tiles.
//!
//! Two ways to share the work. *By group*: all threads transform the input, then each
//! takes whole groups of columns and their panels. *By tile*: all threads open and
//! transform a window of panels, then each takes some tiles through all of them.

use std::ops::Range;

use crate::convolution::{Convolution, Extents, Layout};
use crate::packing::Packing;
use crate::panels::{Panels, Workers};
use crate::product::{Failure, Scratch};
use crate::shares::Shares;
use crate::tile::Finish;

mod transform;

use transform::{
    INPUTS, Input, OUTPUTS, PLACES, Products, Sums, TAPS, Weights, finish_tile, multiply,
    transform_input, transform_weights,
};

/// Numbers of transformed weights that threads hold together: 10 MiB, so that a layer
/// of 256 to 256 channels fits.
const WINDOW: usize = (10 << 20) / 4;

/// Numbers of transformed input that all tiles may take for sharing by group: 4 MiB.
const SHARED_INPUT: usize = (4 << 20) / 4;

/// Numbers of transformed input that one thread holds when sharing by tile: with the
/// sums of one group this stays within a second-level cache.
const OWN_INPUT: usize = (640 << 10) / 4;

/// The most tiles whose sums one thread holds.
const MOST_TILES: usize = 56;

/// Channels of transformed weights that one thread holds when sharing by group.
const CHANNELS_AT_ONCE: usize = 64;

/// What keeps places apart from multiples of a page, which would all fall into the
/// same set of the first-level cache.
const APART: usize = 16;

/// One convolution that can be computed so, its extents known.
pub(crate) struct Winograd<'a> {
    packing: &'a Packing,
    block: usize,
    batch: usize,
    input: [usize; 2],
    output: [usize; 2],
    padding: [usize; 2],
    channels: usize,
    in_image: usize,
    out_image: usize,
    /// Tiles down and right.
    tiles: [usize; 2],
    threads: usize,
}

/// How the work is shared, and what of the scratch goes where. Counts are numbers.
enum Sharing {
    ByGroup {
        /// Transformed input of all tiles.
        input: usize,
    },
    ByTile {
        /// Groups of columns of a window.
        groups: usize,
        /// Transformed weights of a window.
        weights: usize,
        /// Tiles that a thread takes at once.
        tiles: usize,
    },
}

impl<'a> Winograd<'a> {
    /// The plan for `convolution` over `extents`, if it can be computed so and is
    /// the faster for it.
    pub(crate) fn plan(
        convolution: &'a Convolution,
        packing: &'a Packing,
        extents: &Extents,
        threads: usize,
    ) -> Option<Self> {
        let shape = convolution.shape();
        let (block, channels) = (convolution.block(), shape.in_channels());
        let fits = shape.kernel == [TAPS; 2]
            && shape.strides == [1; 2]
            && shape.dilations == [1; 2]
            && shape.groups == 1
            && extents.input_layout == Layout::Blocked
            && extents.output_layout == Layout::Blocked
            && packing.reduction().lanes == block
            && channels.is_multiple_of(block)
            && packing.cuts_whole_blocks();
        let plan = Self {
            packing,
            block,
            batch: extents.batch,
            input: extents.input,
            output: extents.output,
            padding: extents.padding,
            channels,
            in_image: convolution.image_length(channels, extents.input, Layout::Blocked),
            out_image: convolution.image_length(
                shape.out_channels,
                extents.output,
                Layout::Blocked,
            ),
            tiles: extents.output.map(|side| side.div_ceil(OUTPUTS)),
            threads,
        };
        (fits && plan.pays()).then_some(plan)
    }

    /// Compares instructions for each weight: those of its products, and what it takes
    /// to transform it: 480 to 700 by the times of 512 channels at 7 x 7 and at 14 x 14, on
    /// one core and on two. Transforming input and output takes a quarter on top.
    fn pays(&self) -> bool {
        const TRANSFORM: usize = 600;
        let points = self.batch * self.output[0] * self.output[1];
        let products = self.all_tiles() * PLACES;
        products + products / 4 + TRANSFORM < points * TAPS * TAPS
    }

    fn all_tiles(&self) -> usize {
        self.batch * self.tiles[0] * self.tiles[1]
    }

    fn sharing(&self) -> Sharing {
        let (tiles, groups) = (self.all_tiles(), self.packing.groups());
        let even = groups.is_multiple_of(self.threads) || groups >= 4 * self.threads;
        let input = PLACES * self.place_of_input(tiles);
        if even && tiles <= MOST_TILES && input <= SHARED_INPUT {
            return Sharing::ByGroup { input };
        }
        let group = PLACES * self.place_of_weights(self.channels);
        let groups = (WINDOW / group).clamp(1, groups);
        let share = tiles.div_ceil(4 * self.threads);
        let cached = OWN_INPUT / (PLACES * self.channels);
        Sharing::ByTile {
            groups,
            weights: groups * group,
            tiles: cached.clamp(6, MOST_TILES).min(share.max(6)).min(tiles),
        }
    }

    /// Numbers from one place's transformed input to the next one's.
    fn place_of_input(&self, tiles: usize) -> usize {
        tiles * self.channels + APART
    }

    /// Numbers from one place's transformed weights to the next one's.
    fn place_of_weights(&self, channels: usize) -> usize {
        channels * self.widest() + APART
    }

    /// Numbers from one place's sums to the next one's.
    fn place_of_sums(&self, tiles: usize) -> usize {
        tiles * self.widest() + APART
    }

    /// Columns of the widest group.
    fn widest(&self) -> usize {
        self.packing.vectors(0).len().max(
            self.packing
                .vectors(self.packing.groups().saturating_sub(1))
                .len(),
        ) * self.packing.isa().width()
    }

    /// Channels of transformed weights that a thread holds when sharing by group: whole
    /// ranges of the packing.
    fn channels_at_once(&self) -> usize {
        let range = |range| self.channels_of(range).len();
        let longest = (0..self.packing.ranges()).map(range).max().unwrap_or(0);
        longest
            .max(CHANNELS_AT_ONCE)
            .min(self.channels.max(longest))
    }

    /// The input's channels that the panels of range `range` hold the weights of.
    fn channels_of(&self, range: usize) -> Range<usize> {
        let segments = self.packing.segments(range);
        let taps = TAPS * TAPS;
        segments.start / taps * self.block..segments.end / taps * self.block
    }

    fn longest_panel(&self) -> usize {
        self.packing.longest_panel().next_multiple_of(16)
    }

    /// What each thread has alone: a panel, and the rest of `sharing`.
    fn own(&self, sharing: &Sharing) -> usize {
        let rest = match *sharing {
            Sharing::ByGroup { .. } => {
                PLACES * self.place_of_weights(self.channels_at_once())
                    + PLACES * self.place_of_sums(self.all_tiles())
            }
            Sharing::ByTile { tiles, .. } => {
                PLACES * self.place_of_input(tiles) + PLACES * self.place_of_sums(tiles)
            }
        };
        self.longest_panel() + rest
    }

    /// Numbers of scratch that [`Self::run`] needs.
    pub(crate) fn scratch(&self) -> usize {
        let sharing = self.sharing();
        let shared = match sharing {
            Sharing::ByGroup { input } => input,
            Sharing::ByTile { weights, .. } => weights,
        };
        shared + self.threads * self.own(&sharing)
    }

    /// Convolves.
    ///
    /// # Safety
    /// `input`, `output` and what `finish` points to are as long as the extents say, in
    /// blocks; only this call uses the output meanwhile.
    pub(crate) unsafe fn run<P: Panels>(
        &self,
        workers: Workers<'_, P>,
        input: *const f32,
        finish: Finish,
        output: *mut f32,
    ) -> Result<(), P::Error> {
        let images = Images {
            input,
            finish,
            output,
        };
        let sharing = self.sharing();
        // SAFETY: the caller's contract.
        unsafe {
            match sharing {
                Sharing::ByGroup { input } => {
                    self.run_by_group(workers, &images, input, self.own(&sharing))
                }
                Sharing::ByTile {
                    groups,
                    weights,
                    tiles,
                } => self.run_by_tile(
                    workers,
                    &images,
                    groups,
                    (weights, self.own(&sharing)),
                    tiles,
                ),
            }
        }
    }

    unsafe fn run_by_group<P: Panels>(
        &self,
        workers: Workers<'_, P>,
        images: &Images,
        shared: usize,
        own: usize,
    ) -> Result<(), P::Error> {
        let Workers {
            panels,
            parallel,
            scratch,
        } = workers;
        let scratch = Scratch::new(scratch);
        let tiles = self.all_tiles();
        let blocks = self.channels / self.block;
        let at_once = (tiles * blocks).div_ceil(4 * self.threads).max(1);
        let works = Shares::new(tiles * blocks, self.threads);
        parallel.run(self.threads, &|_| {
            while let Some(some) = works.take_some(at_once) {
                for work in some {
                    let (tile, block) = (work / blocks, work % blocks);
                    let place = self.place_of_input(tiles);
                    let to = scratch.start(tile * self.channels).cast_mut();
                    // SAFETY: the caller's contract; each tile's block comes once.
                    unsafe { self.transform_input(images, tile, block..block + 1, to, place) };
                }
            }
        });
        let groups = Shares::new(self.packing.groups(), self.threads);
        let failure = Failure::new();
        parallel.run(self.threads, &|thread| {
            // SAFETY: each thread has a part of its own, behind the shared one.
            let own = unsafe { scratch.part(shared + thread * own, own) };
            let (panel, rest) = own.split_at_mut(self.longest_panel());
            let at_once = self.channels_at_once();
            let (weights, sums) = rest.split_at_mut(PLACES * self.place_of_weights(at_once));
            while !failure.happened() {
                let Some(group) = groups.take() else {
                    return;
                };
                let mut range = 0;
                while range < self.packing.ranges() {
                    let first = self.channels_of(range).start;
                    let mut held = 0;
                    while range < self.packing.ranges()
                        && held + self.channels_of(range).len() <= at_once
                    {
                        let to = weights[held * self.width(group)..].as_mut_ptr();
                        let place = self.place_of_weights(at_once);
                        // SAFETY: `weights` has room for as many channels.
                        let done = unsafe { self.open(panels, group, range, panel, to, place) };
                        if let Err(error) = done {
                            return failure.report(error);
                        }
                        held += self.channels_of(range).len();
                        range += 1;
                    }
                    let products = Products {
                        input: scratch.start(first),
                        input_place: self.place_of_input(tiles),
                        input_tile: self.channels,
                        weights: weights.as_ptr(),
                        weights_place: self.place_of_weights(at_once),
                        sums: sums.as_mut_ptr(),
                        sums_place: self.place_of_sums(tiles),
                        tiles,
                        channels: held,
                        vectors: self.packing.vectors(group).len(),
                        resume: first > 0,
                    };
                    // SAFETY: all of it lies within the parts that were laid out for it.
                    unsafe { multiply(self.packing.isa(), &products) };
                }
                // SAFETY: the caller's contract; no other thread has this group.
                unsafe {
                    self.finish(
                        images,
                        group,
                        0..tiles,
                        sums.as_ptr(),
                        self.place_of_sums(tiles),
                    );
                }
            }
        });
        failure.into_result()
    }

    unsafe fn run_by_tile<P: Panels>(
        &self,
        workers: Workers<'_, P>,
        images: &Images,
        groups_at_once: usize,
        (shared, own): (usize, usize),
        tiles_at_once: usize,
    ) -> Result<(), P::Error> {
        let Workers {
            panels,
            parallel,
            scratch,
        } = workers;
        let scratch = Scratch::new(scratch);
        let (ranges, groups) = (self.packing.ranges(), self.packing.groups());
        let place = self.place_of_weights(self.channels);
        let blocks = self.channels / self.block;
        let all = self.all_tiles();
        for window in (0..groups).step_by(groups_at_once.max(1)) {
            let window = window..(window + groups_at_once).min(groups);
            let works = Shares::new(window.len() * ranges, self.threads);
            let failure = Failure::new();
            parallel.run(self.threads, &|thread| {
                // SAFETY: each thread has a part of its own, behind the shared one.
                let panel = unsafe { scratch.part(shared + thread * own, self.longest_panel()) };
                while !failure.happened() {
                    let Some(work) = works.take() else {
                        return;
                    };
                    let (group, range) = (window.start + work / ranges, work % ranges);
                    let to = (group - window.start) * PLACES * place
                        + self.channels_of(range).start * self.width(group);
                    let to = scratch.start(to).cast_mut();
                    // SAFETY: the window has room for each group's channels, and each
                    // comes once.
                    if let Err(error) = unsafe { self.open(panels, group, range, panel, to, place) }
                    {
                        return failure.report(error);
                    }
                }
            });
            failure.into_result()?;
            // Where there are few tiles, threads share the groups too.
            let pieces = all.div_ceil(tiles_at_once);
            let parts = (2 * self.threads).div_ceil(pieces).min(window.len());
            let works = Shares::new(pieces * parts, self.threads);
            parallel.run(self.threads, &|thread| {
                let own = shared + thread * own + self.longest_panel();
                // SAFETY: as above.
                let input =
                    unsafe { scratch.part(own, PLACES * self.place_of_input(tiles_at_once)) };
                let sums = own + PLACES * self.place_of_input(tiles_at_once);
                // SAFETY: as above.
                let sums =
                    unsafe { scratch.part(sums, PLACES * self.place_of_sums(tiles_at_once)) };
                while let Some(work) = works.take() {
                    let (piece, part) = (work / parts, work % parts);
                    let first = piece * tiles_at_once;
                    let tiles = first..(first + tiles_at_once).min(all);
                    let groups = window.start + part * window.len() / parts
                        ..window.start + (part + 1) * window.len() / parts;
                    let input_place = self.place_of_input(tiles.len());
                    let sums_place = self.place_of_sums(tiles.len());
                    for tile in tiles.clone() {
                        let to = input[(tile - first) * self.channels..].as_mut_ptr();
                        // SAFETY: the caller's contract; the part is this thread's.
                        unsafe { self.transform_input(images, tile, 0..blocks, to, input_place) };
                    }
                    for group in groups {
                        let products = Products {
                            input: input.as_ptr(),
                            input_place,
                            input_tile: self.channels,
                            weights: scratch.start((group - window.start) * PLACES * place),
                            weights_place: place,
                            sums: sums.as_mut_ptr(),
                            sums_place,
                            tiles: tiles.len(),
                            channels: self.channels,
                            vectors: self.packing.vectors(group).len(),
                            resume: false,
                        };
                        // SAFETY: all of it lies within the parts laid out for it; no
                        // other thread has these tiles of these groups.
                        unsafe {
                            multiply(self.packing.isa(), &products);
                            self.finish(images, group, tiles.clone(), sums.as_ptr(), sums_place);
                        }
                    }
                }
            });
        }
        Ok(())
    }

    /// Columns of group `group`, those of padding counted in.
    fn width(&self, group: usize) -> usize {
        self.packing.vectors(group).len() * self.packing.isa().width()
    }

    /// Opens one panel, by way of `opened` unless it is resident, and transforms its
    /// weights to `to`.
    ///
    /// # Safety
    /// `to` is valid for the panel's channels at each of the places, `place` apart.
    unsafe fn open<P: Panels>(
        &self,
        panels: &P,
        group: usize,
        range: usize,
        opened: &mut [f32],
        to: *mut f32,
        place: usize,
    ) -> Result<(), P::Error> {
        let panel = group * self.packing.ranges() + range;
        let opened = &mut opened[..self.packing.panel_length(panel)];
        let weights = match panels.resident(panel) {
            Some(weights) => weights,
            None => {
                panels.open(panel, opened)?;
                opened
            }
        };
        assert_eq!(
            weights.len(),
            self.packing.panel_length(panel),
            "a panel's length"
        );
        let weights = Weights {
            from: weights.as_ptr(),
            blocks: self.channels_of(range).len() / self.block,
            lanes: self.block,
            width: self.width(group),
            to,
            place,
        };
        // SAFETY: the panel holds whole blocks of channels, its length checked above;
        // `to` by the caller's contract.
        unsafe { transform_weights(self.packing.isa(), &weights) };
        Ok(())
    }

    /// Where tile `tile` begins: its image, and its first output.
    fn corner(&self, tile: usize) -> (usize, [usize; 2]) {
        let [down, right] = self.tiles;
        let (image, in_image) = (tile / (down * right), tile % (down * right));
        let corner = [in_image / right * OUTPUTS, in_image % right * OUTPUTS];
        (image, corner)
    }

    /// Transforms `blocks` of one tile to `to`, channel 0 of which is the image's.
    ///
    /// # Safety
    /// The input is as the extents say; `to` is valid for the channels at each place.
    unsafe fn transform_input(
        &self,
        images: &Images,
        tile: usize,
        blocks: Range<usize>,
        to: *mut f32,
        place: usize,
    ) {
        let (image, corner) = self.corner(tile);
        // The tile's rows and columns that lie inside of the image.
        let inside: [Range<usize>; 2] = std::array::from_fn(|axis| {
            let (start, padding) = (corner[axis], self.padding[axis]);
            let first = padding.saturating_sub(start).min(INPUTS);
            let end = (self.input[axis] + padding).saturating_sub(start);
            first..end.min(INPUTS).max(first)
        });
        let [rows, columns] = inside;
        let first = [rows.start, columns.start];
        // Where the first of them lies.
        let at: [usize; 2] = std::array::from_fn(|axis| {
            (corner[axis] + first[axis]).saturating_sub(self.padding[axis])
        });
        let area = self.input[0] * self.input[1] * self.block;
        let start = image * self.in_image + (at[0] * self.input[1] + at[1]) * self.block;
        let input = Input {
            from: images.input.wrapping_add(start + blocks.start * area),
            row: self.input[1] * self.block,
            point: self.block,
            area,
            rows,
            columns,
            blocks: blocks.len(),
            to: to.wrapping_add(blocks.start * self.block),
            place,
        };
        // SAFETY: only what lies inside of the image is read.
        unsafe { transform_input(self.packing.isa(), &input) };
    }

    /// Transforms the sums of one group back, finishes and writes them.
    ///
    /// # Safety
    /// As for [`Self::run`]; `sums` are those of `tiles`, and no other thread writes
    /// these tiles of this group.
    unsafe fn finish(
        &self,
        images: &Images,
        group: usize,
        tiles: Range<usize>,
        sums: *const f32,
        place: usize,
    ) {
        let isa = self.packing.isa();
        let width = self.width(group);
        let area = self.output[0] * self.output[1] * self.block;
        for tile in tiles.clone() {
            let (image, corner) = self.corner(tile);
            let start =
                image * self.out_image + (corner[0] * self.output[1] + corner[1]) * self.block;
            for (index, vector) in self.packing.vectors(group).enumerate() {
                let column = vector * isa.width();
                let start = start + column / self.block * area + column % self.block;
                let sums = Sums {
                    from: sums.wrapping_add((tile - tiles.start) * width + index * isa.width()),
                    place,
                    rows: OUTPUTS.min(self.output[0] - corner[0]),
                    columns: OUTPUTS.min(self.output[1] - corner[1]),
                    row: self.output[1] * self.block,
                    point: self.block,
                    finish: Finish {
                        bias: offset(images.finish.bias, column),
                        residual: offset(images.finish.residual, start),
                        bounds: images.finish.bounds,
                    },
                    to: images.output.wrapping_add(start),
                };
                // SAFETY: the caller's contract.
                unsafe { finish_tile(isa, &sums) };
            }
        }
    }
}

fn offset(pointer: *const f32, by: usize) -> *const f32 {
    if pointer.is_null() {
        pointer
    } else {
        pointer.wrapping_add(by)
    }
}

/// What one run reads and writes.
struct Images {
    input: *const f32,
    finish: Finish,
    output: *mut f32,
}

// SAFETY: input, bias and residual are only read; each thread writes outputs of its own.
unsafe impl Sync for Images {}
