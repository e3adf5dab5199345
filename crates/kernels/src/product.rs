//! One product: every output point times every column, its weights opened once.
//!
//! Two ways to share the work. *By group*: each thread takes whole groups of columns,
//! opens their panels one after the other into a scratch of its own and passes over
//! all points with each. *By point*: all threads open a window of panels together,
//! then share the points. The first has no barrier and suits many columns, the second
//! few columns or many points. Groups that are left when each thread has as many go by
//! point.

use std::ops::Range;
use std::ptr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::opening::{Opening, Part};
use crate::packing::Packing;
use crate::panels::{Panels, Workers};
use crate::shares::Shares;
use crate::tile::{self, Finish, MOST_POINTS, MOST_VECTORS, Run, Tile};

/// Numbers of the window that threads open together: 2.25 MiB, so that a 3 x 3
/// convolution of 256 to 256 channels fits.
pub(crate) const WINDOW: usize = (9 << 18) / 4;

/// Numbers of weights that one pass over the points takes at most, if they lie in
/// several panels one behind the other: half of the smallest second-level cache.
const STRETCH: usize = (192 << 10) / 4;

/// Points from which on threads share them, if the weights fit the window: those that a
/// thread had in one layer are in its cache for the next.
pub(crate) const MANY_POINTS: usize = 64 * MOST_POINTS;

/// Blocks of channels that a tile reads its points from, at most: more would be more
/// streams of memory than processors follow.
const MOST_STREAMS: usize = 8;

/// With fewer tiles it does not pay to write sums and read them again.
const FEW_TILES: usize = 2;

/// Numbers of input that a piece of work passes over with each panel: a share of the
/// second-level cache.
const PIECE: usize = (192 << 10) / 4;

/// Pieces of work for each thread, so that all end at about the same time.
const PIECES_PER_THREAD: usize = 8;

/// Where points lie: image by image, row by row. Strides count numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PointMap {
    pub(crate) per_image: usize,
    pub(crate) per_row: usize,
    pub(crate) image: usize,
    pub(crate) row: usize,
    pub(crate) point: usize,
}

impl PointMap {
    /// One point behind the other, without end.
    pub(crate) fn in_line(point: usize) -> Self {
        Self {
            per_image: usize::MAX,
            per_row: usize::MAX,
            image: 0,
            row: 0,
            point,
        }
    }

    /// The places of `first` and of the points after it, one after the other.
    fn places(&self, first: usize) -> Places<'_> {
        let (image, in_image) = (first / self.per_image, first % self.per_image);
        let (row, in_row) = (in_image / self.per_row, in_image % self.per_row);
        Places {
            map: self,
            left_of_row: self.per_row - in_row,
            left_of_image: self.per_image - in_image,
            row_start: image * self.image + row * self.row,
            image_start: image * self.image,
            next: image * self.image + row * self.row + in_row * self.point,
        }
    }
}

/// See [`PointMap::places`]. Without divisions, which would take longer than the
/// arithmetic of a short reduction.
struct Places<'a> {
    map: &'a PointMap,
    left_of_row: usize,
    left_of_image: usize,
    row_start: usize,
    image_start: usize,
    next: usize,
}

impl Places<'_> {
    fn next(&mut self) -> usize {
        let place = self.next;
        self.left_of_row -= 1;
        self.left_of_image -= 1;
        if self.left_of_image == 0 {
            self.image_start += self.map.image;
            self.row_start = self.image_start;
            self.left_of_image = self.map.per_image;
            self.left_of_row = self.map.per_row;
            self.next = self.row_start;
        } else if self.left_of_row == 0 {
            self.row_start += self.map.row;
            self.left_of_row = self.map.per_row;
            self.next = self.row_start;
        } else {
            self.next += self.map.point;
        }
        place
    }
}

/// Where the columns of a point lie: in blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ColumnMap {
    /// Columns of one block.
    pub(crate) block: usize,
    /// Numbers from one block to the next.
    pub(crate) stride: usize,
}

impl ColumnMap {
    /// All columns one after the other.
    pub(crate) const ROW_MAJOR: Self = Self {
        block: usize::MAX,
        stride: 0,
    };

    fn place(self, column: usize) -> usize {
        column / self.block * self.stride + column % self.block
    }
}

/// Everything about one product but the threads.
pub(crate) struct Product<'a> {
    pub(crate) packing: &'a Packing,
    /// The number of the first panel.
    pub(crate) first_panel: usize,
    /// For each segment of the reduction its place, seen from a point.
    pub(crate) segments: &'a [usize],
    pub(crate) input: *const f32,
    pub(crate) input_points: PointMap,
    pub(crate) output: *mut f32,
    pub(crate) output_points: PointMap,
    pub(crate) output_columns: ColumnMap,
    pub(crate) points: usize,
    pub(crate) finish: Finish,
}

// SAFETY: the pointers are read by several threads, and written at places that
// `Product`'s methods give to one thread each.
unsafe impl Sync for Product<'_> {}

/// Numbers of scratch that a product needs with `threads` threads.
pub(crate) fn scratch(packing: &Packing, threads: usize) -> usize {
    // Each thread's own panels, or the window; panels start at cache lines.
    let own = own(packing) * threads;
    let window = packing.length().min(WINDOW) + packing.longest_panel();
    own.max(window + 16 * packing.panels())
}

/// Numbers of the panels that a thread opens one behind the other.
fn own(packing: &Packing) -> usize {
    let longest = packing.longest_panel().next_multiple_of(16);
    longest.max(STRETCH.min(longest * packing.ranges()))
}

impl Product<'_> {
    /// Runs the product.
    ///
    /// # Safety
    /// With the offsets of its maps, `input`, `output`, and what `finish` points to
    /// are valid for `points` points; only this call uses the output meanwhile.
    pub(crate) unsafe fn run<P: Panels>(
        &self,
        mut workers: Workers<'_, P>,
    ) -> Result<(), P::Error> {
        if self.points == 0 || self.packing.columns() == 0 {
            return Ok(());
        }
        let threads = workers.parallel.threads();
        let groups = self.packing.groups();
        let even = groups.is_multiple_of(threads) || groups >= 6 * threads;
        let fits = self.packing.length() <= WINDOW;
        let by_group = if self.points <= MOST_POINTS {
            groups
        } else if fits && self.points >= MANY_POINTS {
            0
        } else if even {
            groups
        } else {
            groups - groups % threads
        };
        // SAFETY: the caller's contract.
        unsafe {
            if by_group > 0 {
                self.run_by_group(workers.with(), by_group)?;
            }
            if by_group < groups {
                self.run_by_point(workers, by_group)?;
            }
        }
        Ok(())
    }

    /// The first `count` groups.
    unsafe fn run_by_group<P: Panels>(
        &self,
        workers: Workers<'_, P>,
        count: usize,
    ) -> Result<(), P::Error> {
        let own = own(self.packing);
        let Workers {
            panels,
            parallel,
            scratch,
        } = workers;
        let scratch = Scratch::new(scratch);
        let groups = Shares::new(count, parallel.threads());
        let failure = Failure::new();
        parallel.run(parallel.threads(), &|thread| {
            let mut weights = Vec::with_capacity(self.packing.ranges());
            let mut ahead = Ahead::with_capacity(self.packing.ranges());
            while !failure.happened() {
                let Some(group) = groups.take() else {
                    return;
                };
                let mut first = 0;
                while first < self.packing.ranges() {
                    weights.clear();
                    let mut used = 0;
                    for range in first..self.packing.ranges() {
                        let panel = group * self.packing.ranges() + range;
                        let length = self.packing.panel_length(panel);
                        if range > first && used + length > own {
                            break;
                        }
                        weights.push(match panels.resident(self.first_panel + panel) {
                            Some(weights) => weights.as_ptr(),
                            None => {
                                // SAFETY: each thread has a part of its own, and each of
                                // its panels one of that.
                                let part = unsafe { scratch.part(thread * own + used, length) };
                                if let Err(error) = panels.open(self.first_panel + panel, part) {
                                    return failure.report(error);
                                }
                                part.as_ptr()
                            }
                        });
                        used += length;
                    }
                    let after = group * self.packing.ranges() + first + weights.len();
                    ahead.clear();
                    // The next ones, unless another thread will read them: then this one
                    // would only wait for what that one's cache has.
                    let end = if group + 1 < count && groups.ends_with(group) {
                        (group + 1) * self.packing.ranges()
                    } else {
                        self.packing.panels()
                    };
                    let next = after..(after + weights.len()).min(end);
                    ahead.extend(next.rev().map(|panel| {
                        let panel = self.first_panel + panel;
                        match panels.resident(panel) {
                            Some(weights) => (weights.as_ptr().cast(), size_of_val(weights)),
                            None => panels.whereabouts(panel).unwrap_or((ptr::null(), 0)),
                        }
                    }));
                    // SAFETY: the caller's contract; no other thread has this group.
                    unsafe { self.pass_all(group, first, &weights, 0..self.points, &mut ahead) };
                    first += weights.len();
                }
            }
        });
        failure.into_result()
    }

    /// The groups from `first` on.
    unsafe fn run_by_point<P: Panels>(
        &self,
        workers: Workers<'_, P>,
        first: usize,
    ) -> Result<(), P::Error> {
        let ranges = self.packing.ranges();
        let Workers {
            panels,
            parallel,
            scratch,
        } = workers;
        let scratch = Scratch::new(scratch);
        let mut first = first * ranges;
        while first < self.packing.panels() {
            let (end, places) = self.window(first);
            let parts = (first..end).zip(&places).map(|(panel, &start)| Part {
                panel: self.first_panel + panel,
                start,
                length: self.packing.panel_length(panel),
            });
            // SAFETY: `places` has one part for each panel, and the scratch is this call's.
            let opening = unsafe { Opening::new(panels, &scratch, parts, parallel.threads()) };
            let groups = first / ranges..(end - 1) / ranges + 1;
            let pieces = self.pieces(groups.len(), parallel.threads());
            let works = pieces * groups.len();
            let works = Shares::new(works, parallel.threads());
            parallel.run(parallel.threads(), &|_| {
                if !opening.pass() {
                    return;
                }
                let mut weights = Vec::with_capacity(ranges);
                let mut nothing = Ahead::new();
                while let Some(work) = works.take() {
                    let (piece, group) = (work / groups.len(), groups.start + work % groups.len());
                    let points = self.piece(piece, pieces);
                    weights.clear();
                    let of_group = (group * ranges).max(first)..((group + 1) * ranges).min(end);
                    weights.extend(of_group.clone().map(|panel| {
                        match panels.resident(self.first_panel + panel) {
                            Some(weights) => weights.as_ptr(),
                            None => scratch.start(places[panel - first]),
                        }
                    }));
                    let range = of_group.start - group * ranges;
                    // SAFETY: the caller's contract; no other thread has this piece of
                    // this group. The window was opened above, and is not written any more.
                    unsafe { self.pass_all(group, range, &weights, points, &mut nothing) };
                }
            });
            opening.into_result()?;
            first = end;
        }
        Ok(())
    }

    /// The end of the window that begins with panel `first`, and where each of its
    /// panels lies in the scratch.
    fn window(&self, first: usize) -> (usize, Vec<usize>) {
        let (mut places, mut used) = (Vec::new(), 0);
        for panel in first..self.packing.panels() {
            let length = self.packing.panel_length(panel);
            if panel > first && used + length > WINDOW {
                break;
            }
            places.push(used);
            used += length.next_multiple_of(16);
        }
        (first + places.len(), places)
    }

    /// How many pieces the points make, of which each thread passes over all with every one
    /// of `groups` groups.
    fn pieces(&self, groups: usize, threads: usize) -> usize {
        let reads = self.points * self.packing.reduction().channels;
        let tiles = self.points.div_ceil(MOST_POINTS);
        let even = (PIECES_PER_THREAD * threads).div_ceil(groups);
        reads.div_ceil(PIECE).max(even).clamp(1, tiles)
    }

    /// Whole tiles, so that only the last piece has a smaller one.
    fn piece(&self, piece: usize, pieces: usize) -> Range<usize> {
        let tiles = self.points.div_ceil(MOST_POINTS);
        let start = |piece: usize| (piece * tiles / pieces * MOST_POINTS).min(self.points);
        start(piece)..start(piece + 1)
    }

    /// Passes over `points` with the panels `weights` of `group`, the first of which is
    /// that of range `first`. Those that lie one behind the other are taken together.
    ///
    /// # Safety
    /// As for [`Self::run`]; no other thread writes these points of this group.
    pub(crate) unsafe fn pass_all(
        &self,
        group: usize,
        first: usize,
        weights: &[*const f32],
        points: Range<usize>,
        ahead: &mut Ahead,
    ) {
        let length = |index: usize| {
            let panel = group * self.packing.ranges() + first + index;
            self.packing.panel_length(panel)
        };
        let mut index = 0;
        while index < weights.len() {
            let (start, mut together) = (weights[index], length(index));
            let mut end = index + 1;
            while end < weights.len()
                && weights[end] == start.wrapping_add(together)
                && (together + length(end) <= STRETCH || points.len() <= MOST_POINTS)
            {
                together += length(end);
                end += 1;
            }
            // SAFETY: the caller's contract.
            unsafe {
                self.pass(
                    group,
                    first + index..first + end,
                    start,
                    points.clone(),
                    ahead,
                );
            }
            index = end;
        }
    }

    /// Passes over `points` with panels that lie one behind the other, some blocks of
    /// channels at a time.
    ///
    /// # Safety
    /// As for [`Self::run`]; `weights` are the panels of `group` and `ranges`, and no
    /// other thread writes these points of this group.
    unsafe fn pass(
        &self,
        group: usize,
        ranges: Range<usize>,
        mut weights: *const f32,
        points: Range<usize>,
        ahead: &mut Ahead,
    ) {
        let all =
            self.packing.segments(ranges.start).start..self.packing.segments(ranges.end - 1).end;
        let parts = if points.len() > FEW_TILES * MOST_POINTS {
            self.packing.reduction().parts(all.clone(), MOST_STREAMS)
        } else {
            1
        };
        let width = self.packing.vectors(group).len() * self.packing.isa().width();
        for part in 0..parts {
            let segments = self.packing.reduction().part(all.clone(), part, parts);
            let steps = self.packing.reduction().steps(segments.clone());
            // SAFETY: the caller's contract.
            unsafe { self.pass_over(group, segments, weights, points.clone(), ahead) };
            weights = weights.wrapping_add(steps * width);
        }
    }

    /// Passes over `points` with the weights of `segments`.
    ///
    /// # Safety
    /// As for [`Self::pass`].
    unsafe fn pass_over(
        &self,
        group: usize,
        segments: Range<usize>,
        weights: *const f32,
        points: Range<usize>,
        ahead: &mut Ahead,
    ) {
        let (isa, vectors) = (self.packing.isa(), self.packing.vectors(group));
        let first_column = vectors.start * isa.width();
        let columns = self.packing.group_columns(group);
        let (resume, ends) = (
            segments.start > 0,
            segments.end == self.packing.reduction().segments(),
        );
        let [whole, tail] = self
            .packing
            .reduction()
            .runs(segments)
            .map(|(segments, lanes)| Run {
                segments: &self.segments[segments],
                lanes,
            });
        let first_vector = self.output_columns.place(first_column);
        let mut out_vectors = [0; MOST_VECTORS];
        for (vector, place) in vectors.clone().zip(&mut out_vectors) {
            *place = self.output_columns.place(vector * isa.width()) - first_vector;
        }
        // In blocks padding is written, as zero; in rows there is none.
        let last_width = if self.output_columns.block == usize::MAX {
            columns.len() - (vectors.len() - 1) * isa.width()
        } else {
            isa.width()
        };
        let finish = ends.then(|| Finish {
            bias: offset(self.finish.bias, first_column),
            residual: offset(self.finish.residual, first_vector),
            bounds: self.finish.bounds,
        });
        let mut tile = Tile {
            points: [self.input; MOST_POINTS],
            runs: [whole, tail],
            weights,
            out: self.output.wrapping_add(first_vector),
            out_points: [0; MOST_POINTS],
            out_vectors,
            last_width,
            resume,
            finish,
            ahead: ptr::null(),
            ahead_line: 0,
        };
        let lines = tile::lines_ahead(whole.steps() + tail.steps());
        let best = tile::best_points(isa, vectors.len());
        let full = tile::kernel(isa, vectors.len(), best);
        let mut inputs = self.input_points.places(points.start);
        let mut outputs = self.output_points.places(points.start);
        let mut point = points.start;
        while point < points.end {
            let count = tile::next_points(best, points.end - point);
            let kernel = if count == best {
                full
            } else {
                tile::kernel(isa, vectors.len(), count)
            };
            for index in 0..count {
                tile.points[index] = self.input.wrapping_add(inputs.next());
                tile.out_points[index] = outputs.next();
            }
            (tile.ahead, tile.ahead_line) = next_lines(ahead, lines);
            // SAFETY: the caller's contract; an `Isa` is only made where its
            // instructions are.
            unsafe { kernel(&tile) };
            point += count;
        }
    }
}

/// Memory that a thread will read soon: starts and bytes, the last ones first.
pub(crate) type Ahead = Vec<(*const u8, usize)>;

/// Where the next lines to ask for are, and the bytes from one to the next.
fn next_lines(ahead: &mut Ahead, lines: usize) -> (*const u8, usize) {
    while let Some((start, bytes)) = ahead.last_mut() {
        if *bytes > 0 {
            let next = *start;
            let asked = (lines * tile::LINE).min(*bytes);
            *start = next.wrapping_add(asked);
            *bytes -= asked;
            return (next, tile::LINE);
        }
        ahead.pop();
    }
    (ptr::null(), 0)
}

fn offset(pointer: *const f32, by: usize) -> *const f32 {
    if pointer.is_null() {
        pointer
    } else {
        pointer.wrapping_add(by)
    }
}

/// Scratch that threads share by parts.
pub(crate) struct Scratch {
    start: *mut f32,
    length: usize,
}

// SAFETY: `part` hands out disjoint parts, as its callers promise.
unsafe impl Sync for Scratch {}

impl Scratch {
    pub(crate) fn new(scratch: &mut [f32]) -> Self {
        Self {
            start: scratch.as_mut_ptr(),
            length: scratch.len(),
        }
    }

    /// # Safety
    /// No two parts that live at once overlap, and the borrow that `new` took lives.
    #[expect(clippy::mut_from_ref, reason = "parts are disjoint")]
    pub(crate) unsafe fn part(&self, start: usize, length: usize) -> &mut [f32] {
        assert!(start + length <= self.length, "the scratch is too small");
        // SAFETY: within the scratch, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }

    pub(crate) fn start(&self, start: usize) -> *const f32 {
        self.start.wrapping_add(start)
    }
}

/// The first failure of several threads.
pub(crate) struct Failure<E> {
    happened: AtomicBool,
    error: Mutex<Option<E>>,
}

impl<E> Failure<E> {
    pub(crate) fn new() -> Self {
        Self {
            happened: AtomicBool::new(false),
            error: Mutex::new(None),
        }
    }

    pub(crate) fn happened(&self) -> bool {
        self.happened.load(Ordering::Relaxed)
    }

    pub(crate) fn report(&self, error: E) {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.happened.store(true, Ordering::Relaxed);
    }

    pub(crate) fn into_result(self) -> Result<(), E> {
        match self
            .error
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
