//! How the weights of a product are laid out: cut into panels, each in the order in
//! which the micro-kernel reads it.
//!
//! A panel holds the weights of one *group* of columns (as many as a tile has) over
//! one *range* of the reduction: for each step, one number for each column of the
//! group. Panels are numbered group by group, within a group range by range.

use std::ops::Range;

use crate::isa::Isa;
use crate::tile;

/// Bytes of a panel, at most: with what a tile reads besides it, it stays in the
/// second-level cache of every processor that we know (256 KiB and more).
const PANEL_BYTES: usize = 96 << 10;

/// Bytes below which no panel need be: starting to open one costs as much as opening
/// a kilobyte or two.
const SMALL_PANEL_BYTES: usize = 16 << 10;

/// A layer makes about as many panels at least, so that threads can share them.
const PANELS: usize = 8;

/// Where a weight lies in the tensor as the model stores it. Strides count numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strides {
    pub(crate) column: usize,
    pub(crate) channel: usize,
    pub(crate) tap: usize,
}

/// The layout of one product's weights.
#[derive(Debug, Clone)]
pub(crate) struct Packing {
    isa: Isa,
    columns: usize,
    /// Vectors in all groups together.
    vectors: usize,
    groups: usize,
    reduction: Reduction,
    /// Segments where ranges begin, and the end.
    cuts: Vec<usize>,
    /// Numbers of the longest panel.
    longest: usize,
    strides: Strides,
}

/// The sums that make one output: over `channels` of the input and `taps` of each,
/// in segments of `lanes` consecutive channels. What is left of the channels makes
/// shorter segments at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reduction {
    pub(crate) channels: usize,
    pub(crate) taps: usize,
    pub(crate) lanes: usize,
}

impl Reduction {
    /// Segments of full length.
    fn full(&self) -> usize {
        self.channels / self.lanes * self.taps
    }

    fn tail_lanes(&self) -> usize {
        self.channels % self.lanes
    }

    pub(crate) fn segments(&self) -> usize {
        self.channels.div_ceil(self.lanes) * self.taps
    }

    /// Steps before segment `segment`.
    fn steps_before(&self, segment: usize) -> usize {
        let full = segment.min(self.full());
        full * self.lanes + (segment - full) * self.tail_lanes()
    }

    pub(crate) fn steps(&self, segments: Range<usize>) -> usize {
        self.steps_before(segments.end) - self.steps_before(segments.start)
    }

    /// How many parts `segments` make, of whole blocks of channels and at most `blocks` of
    /// them.
    pub(crate) fn parts(&self, segments: Range<usize>, blocks: usize) -> usize {
        if segments.start.is_multiple_of(self.taps) && segments.end.is_multiple_of(self.taps) {
            (segments.len() / self.taps).div_ceil(blocks)
        } else {
            1
        }
    }

    /// Part `part` of [`Self::parts`].
    pub(crate) fn part(&self, segments: Range<usize>, part: usize, parts: usize) -> Range<usize> {
        let cut = |part: usize| {
            if part == parts {
                segments.end
            } else {
                segments.start + segments.len() / self.taps * part / parts * self.taps
            }
        };
        cut(part)..cut(part + 1)
    }

    /// The block of channels and the tap of segment `segment`.
    pub(crate) fn place(&self, segment: usize) -> (usize, usize) {
        (segment / self.taps, segment % self.taps)
    }

    /// `segments` in two runs of equal lanes each: their lanes.
    pub(crate) fn runs(&self, segments: Range<usize>) -> [(Range<usize>, usize); 2] {
        let full = self.full().clamp(segments.start, segments.end);
        [
            (segments.start..full, self.lanes),
            (full..segments.end, self.tail_lanes()),
        ]
    }
}

/// How many groups `vectors` make: as few as tiles of `best` vectors allow; or a few more, so
/// that each of `threads` threads has as many, where groups keep five eighths of that width.
fn groups(vectors: usize, best: usize, threads: usize) -> usize {
    let fewest = vectors.div_ceil(best);
    let even = fewest.next_multiple_of(threads);
    if 8 * vectors >= 5 * best * even {
        even
    } else {
        fewest
    }
}

/// Weights that lie together in the model's tensor, and the panels made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slab {
    /// Numbers of the tensor.
    pub source: Range<usize>,
    /// Panels that are made of these numbers alone.
    pub panels: Vec<usize>,
}

impl Packing {
    /// For `threads` threads. `columns` are stored in whole multiples of `multiple` (itself
    /// one of the vector's width).
    pub(crate) fn new(
        isa: Isa,
        threads: usize,
        columns: usize,
        multiple: usize,
        reduction: Reduction,
        strides: Strides,
    ) -> Self {
        let vectors = columns.next_multiple_of(multiple) / isa.width();
        let groups = groups(vectors, tile::best_vectors(isa), threads);
        let widest = vectors.div_ceil(groups.max(1)) * isa.width();
        let all = reduction.steps_before(reduction.segments()) * vectors * isa.width() * 4;
        let bytes = (all / PANELS).clamp(SMALL_PANEL_BYTES, PANEL_BYTES);
        let steps = (bytes / 4 / widest.max(1)).max(1);
        // Ranges are of whole blocks of channels, unless one block alone is too long.
        let segments = reduction.segments();
        let block = reduction.taps * reduction.lanes;
        let unit = if block * widest * 4 <= PANEL_BYTES {
            reduction.taps
        } else {
            1
        };
        let (units, each) = (segments / unit, unit * reduction.lanes);
        let ranges = units.div_ceil((steps / each).max(1)).max(1);
        let cuts = (0..=ranges).map(|range| range * units / ranges * unit);
        let mut packing = Self {
            isa,
            columns,
            vectors,
            groups,
            reduction,
            cuts: cuts.collect(),
            longest: 0,
            strides,
        };
        let lengths = (0..packing.panels()).map(|panel| packing.panel_length(panel));
        packing.longest = lengths.max().unwrap_or(0);
        packing
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn reduction(&self) -> &Reduction {
        &self.reduction
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    pub(crate) fn ranges(&self) -> usize {
        self.cuts.len() - 1
    }

    pub(crate) fn panels(&self) -> usize {
        self.groups * self.ranges()
    }

    /// The vectors of group `group`, evenly spread.
    pub(crate) fn vectors(&self, group: usize) -> Range<usize> {
        group * self.vectors / self.groups..(group + 1) * self.vectors / self.groups
    }

    /// Whether each range is of whole blocks of channels.
    pub(crate) fn cuts_whole_blocks(&self) -> bool {
        let taps = self.reduction.taps;
        self.cuts.iter().all(|cut| cut.is_multiple_of(taps))
    }

    /// The segments of range `range`.
    pub(crate) fn segments(&self, range: usize) -> Range<usize> {
        self.cuts[range]..self.cuts[range + 1]
    }

    /// Numbers of panel `panel`.
    pub(crate) fn panel_length(&self, panel: usize) -> usize {
        let segments = self.segments(panel % self.ranges());
        let steps =
            self.reduction.steps_before(segments.end) - self.reduction.steps_before(segments.start);
        steps * self.vectors(panel / self.ranges()).len() * self.isa.width()
    }

    /// Numbers of the longest panel.
    pub(crate) fn longest_panel(&self) -> usize {
        self.longest
    }

    /// Numbers of all panels.
    pub(crate) fn length(&self) -> usize {
        let steps = self.reduction.steps_before(self.reduction.segments());
        steps * self.vectors * self.isa.width()
    }

    /// The tensor, cut so that each piece is read once and in order.
    pub(crate) fn slabs(&self) -> Vec<Slab> {
        let ranges = self.ranges();
        let by_rows = self.strides.column == 1 && self.strides.channel == self.columns;
        if !by_rows {
            let slab = |group: usize| Slab {
                source: self.group_columns(group).start * self.strides.column
                    ..self.group_columns(group).end * self.strides.column,
                panels: (group * ranges..(group + 1) * ranges).collect(),
            };
            (0..self.groups).map(slab).collect()
        } else {
            // Rows of all columns. There are no taps then, so steps are channels.
            let slab = |range: usize| Slab {
                source: self.reduction.steps_before(self.cuts[range]) * self.strides.channel
                    ..self.reduction.steps_before(self.cuts[range + 1]) * self.strides.channel,
                panels: (0..self.groups)
                    .map(|group| group * ranges + range)
                    .collect(),
            };
            (0..ranges).map(slab).collect()
        }
    }

    /// Columns of group `group`, those of padding left out.
    pub(crate) fn group_columns(&self, group: usize) -> Range<usize> {
        let vectors = self.vectors(group);
        let column = |vector: usize| (vector * self.isa.width()).min(self.columns);
        column(vectors.start)..column(vectors.end)
    }

    /// Writes panel `panel` to `out`. `source` are the numbers of the tensor from
    /// `source_start` on; each column is multiplied by its number in `scale`, if any.
    ///
    /// # Panics
    /// If `source` does not hold the panel's weights, or `out` is not as long as it.
    pub(crate) fn pack(
        &self,
        panel: usize,
        source: &[f32],
        source_start: usize,
        scale: Option<&[f32]>,
        out: &mut [f32],
    ) {
        assert_eq!(out.len(), self.panel_length(panel), "a panel's length");
        let (group, range) = (panel / self.ranges(), panel % self.ranges());
        let width = self.vectors(group).len() * self.isa.width();
        let columns = self.group_columns(group);
        if columns.len() < width {
            out.fill(0.0);
        }
        let mut row = 0;
        for (segments, lanes) in self.reduction.runs(self.segments(range)) {
            for segment in segments {
                let (block, tap) = self.reduction.place(segment);
                for lane in 0..lanes {
                    let channel = block * self.reduction.lanes + lane;
                    let start = channel * self.strides.channel + tap * self.strides.tap;
                    let out = &mut out[row * width..][..columns.len()];
                    for (column, out) in columns.clone().zip(out) {
                        let weight = source[column * self.strides.column + start - source_start];
                        *out = scale.map_or(weight, |scale| weight * scale[column]);
                    }
                    row += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_get_as_many_groups_where_these_stay_wide() {
        for (vectors, best, threads, expected) in [
            (10, 4, 1, 3),
            (10, 4, 2, 4),
            (20, 4, 2, 6),
            (60, 4, 2, 16),
            (60, 4, 16, 16),
            // Two vectors and a quarter to a group, or less.
            (9, 4, 2, 3),
            (4, 4, 2, 1),
            (10, 4, 16, 3),
            (0, 4, 2, 0),
        ] {
            let found = groups(vectors, best, threads);
            assert_eq!(found, expected, "{vectors} vectors, {threads} threads");
        }
    }
}
