//! The micro-kernel: a tile of output points times vectors of output columns, kept in
//! registers over one reduction.
//!
//! Matrix products and convolutions differ only in where a point's numbers lie: the
//! reduction is a list of segments, each of consecutive numbers at the same distance
//! from every point of the tile.

use crate::isa::{Isa, Kind};
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Portable, Vector};

/// The most points of a tile.
pub(crate) const MOST_POINTS: usize = 12;

/// The most vectors of a tile.
pub(crate) const MOST_VECTORS: usize = 4;

/// The widest vector there is.
pub(crate) const WIDEST: usize = 16;

/// Segments of one length.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    /// Where each segment begins, as seen from a point.
    pub(crate) segments: &'a [usize],
    /// Consecutive numbers of each.
    pub(crate) lanes: usize,
}

impl Run<'_> {
    pub(crate) fn steps(&self) -> usize {
        self.segments.len() * self.lanes
    }
}

/// What is added to a reduction, and what is made of the sum.
#[derive(Clone, Copy)]
pub(crate) struct Finish {
    /// One number for each column, whole vectors of them; or null.
    pub(crate) bias: *const f32,
    /// Numbers in the places of the output; or null.
    pub(crate) residual: *const f32,
    /// Bounds of the result.
    pub(crate) bounds: Option<(f32, f32)>,
}

/// One tile. Offsets count numbers.
pub(crate) struct Tile<'a> {
    pub(crate) points: [*const f32; MOST_POINTS],
    pub(crate) runs: [Run<'a>; 2],
    /// For each step of the reduction, the weights of all columns of the tile.
    pub(crate) weights: *const f32,
    pub(crate) out: *mut f32,
    /// Where each point's first column lies in the output.
    pub(crate) out_points: [usize; MOST_POINTS],
    /// Where each vector lies, seen from there.
    pub(crate) out_vectors: [usize; MOST_VECTORS],
    /// Columns of the last vector, the rest of which is not written.
    pub(crate) last_width: usize,
    /// Whether the reduction goes on from what the output holds.
    pub(crate) resume: bool,
    /// Whether this ends the reduction.
    pub(crate) finish: Option<Finish>,
    /// Memory to bring into the second-level cache meanwhile, [`lines_ahead`] lines.
    pub(crate) ahead: *const u8,
    /// Bytes from one line to the next; 0 where there is nothing to bring.
    pub(crate) ahead_line: usize,
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Steps of the reduction that are taken together.
const STEPS: usize = 4;

/// Cache lines that are asked for with as many steps: two, so that eight tiles of four
/// vectors bring as many weights as each of them reads.
const LINES: usize = 2;

/// How many lines a tile asks for, about, with so many steps.
pub(crate) const fn lines_ahead(steps: usize) -> usize {
    steps / STEPS * LINES
}

/// Asks for a cache line, which may be anywhere.
#[inline(always)]
fn ask_for(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, which reads nothing that anybody
    // could see and fails for no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// # Safety
/// The processor has the instructions; `points`, `weights`, `out` and what `finish`
/// points to are valid for every number that the tile's extents reach, and nobody
/// else reads or writes those of the output.
pub(crate) type Kernel = unsafe fn(&Tile<'_>);

/// How many points of how many vectors are best for `isa`, so that sums, weights and
/// one point's number fit its registers.
pub(crate) const fn best_points(isa: Isa, vectors: usize) -> usize {
    match (isa.kind(), vectors) {
        (Kind::Portable, _) => 4,
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx2, 1) => 12,
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512, 1 | 2) => 12,
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512, 3) => 8,
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx2 | Kind::Avx512, _) => 6,
    }
}

/// Vectors of a tile, at best.
pub(crate) const fn best_vectors(isa: Isa) -> usize {
    match isa.kind() {
        Kind::Portable => 2,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => 2,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => 4,
    }
}

/// The kernel for `points` (1 to [`best_points`]) of `vectors` (1 to [`best_vectors`]).
pub(crate) fn kernel(isa: Isa, vectors: usize, points: usize) -> Kernel {
    macro_rules! choose {
        ($function:ident, $vectors:literal, $($points:literal)*) => {
            match points {
                $($points => $function::<$vectors, $points> as Kernel,)*
                _ => $function::<$vectors, 1> as Kernel,
            }
        };
    }
    match isa.kind() {
        Kind::Portable => match vectors {
            2 => choose!(portable, 2, 4 3 2),
            _ => choose!(portable, 1, 4 3 2),
        },
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => match vectors {
            2 => choose!(avx2, 2, 6 5 4 3 2),
            _ => choose!(avx2, 1, 12 11 10 9 8 7 6 5 4 3 2),
        },
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => match vectors {
            4 => choose!(avx512, 4, 6 5 4 3 2),
            3 => choose!(avx512, 3, 8 7 6 5 4 3 2),
            2 => choose!(avx512, 2, 12 11 10 9 8 7 6 5 4 3 2),
            _ => choose!(avx512, 1, 12 11 10 9 8 7 6 5 4 3 2),
        },
    }
}

/// How many points of the `left` ones to take next, so that no tile is much smaller
/// than the others: a small one does not hide the latency of its instructions.
pub(crate) const fn next_points(best: usize, left: usize) -> usize {
    if left >= 2 * best {
        best
    } else if left > best {
        left.div_ceil(2)
    } else {
        left
    }
}

unsafe fn portable<const VECTORS: usize, const POINTS: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's contract; no instructions are needed.
    unsafe { compute::<Portable, VECTORS, POINTS>(tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const VECTORS: usize, const POINTS: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's contract, which includes the instructions.
    unsafe { compute::<Avx2, VECTORS, POINTS>(tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const VECTORS: usize, const POINTS: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller's contract, which includes the instructions.
    unsafe { compute::<Avx512, VECTORS, POINTS>(tile) }
}

/// # Safety
/// That of [`Kernel`].
#[inline(always)]
unsafe fn compute<V: Vector, const VECTORS: usize, const POINTS: usize>(tile: &Tile<'_>) {
    // SAFETY: all that is read and written is within what the caller vouches for.
    unsafe {
        let mut sums = [[V::splat(0.0); VECTORS]; POINTS];
        let points: [*const f32; POINTS] = std::array::from_fn(|point| tile.points[point]);
        let mut weights = tile.weights;
        let mut ahead = tile.ahead;
        for run in &tile.runs {
            for &segment in run.segments {
                let mut lane = segment;
                let end = segment + run.lanes;
                while lane + STEPS <= end {
                    for _ in 0..LINES {
                        ask_for(ahead);
                        ahead = ahead.wrapping_add(tile.ahead_line);
                    }
                    step(&mut sums, &points, lane, weights);
                    step(
                        &mut sums,
                        &points,
                        lane + 1,
                        weights.add(VECTORS * V::WIDTH),
                    );
                    step(
                        &mut sums,
                        &points,
                        lane + 2,
                        weights.add(2 * VECTORS * V::WIDTH),
                    );
                    step(
                        &mut sums,
                        &points,
                        lane + 3,
                        weights.add(3 * VECTORS * V::WIDTH),
                    );
                    weights = weights.add(STEPS * VECTORS * V::WIDTH);
                    lane += STEPS;
                }
                while lane < end {
                    step(&mut sums, &points, lane, weights);
                    weights = weights.add(VECTORS * V::WIDTH);
                    lane += 1;
                }
            }
        }
        if tile.last_width == V::WIDTH {
            complete(tile, sums);
        } else {
            complete_by_memory(tile, sums);
        }
    }
}

/// One step of the reduction.
#[inline(always)]
unsafe fn step<V: Vector, const VECTORS: usize, const POINTS: usize>(
    sums: &mut [[V; VECTORS]; POINTS],
    points: &[*const f32; POINTS],
    lane: usize,
    weights: *const f32,
) {
    // SAFETY: as for `compute`.
    unsafe {
        let weights: [V; VECTORS] =
            std::array::from_fn(|vector| V::load(weights.add(vector * V::WIDTH)));
        for (sums, point) in sums.iter_mut().zip(points) {
            let x = V::splat(*point.add(lane));
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = x.multiply_add(weight, *sum);
            }
        }
    }
}

/// Adds what the output held, bias and residual, applies the bounds and stores.
///
/// Each loop is short and its count known, so that the compiler unrolls it: a loop over
/// everything at once would make it keep the sums in memory all the time, to index them.
#[inline(always)]
unsafe fn complete<V: Vector, const VECTORS: usize, const POINTS: usize>(
    tile: &Tile<'_>,
    mut sums: [[V; VECTORS]; POINTS],
) {
    // SAFETY: as for `compute`.
    unsafe {
        if tile.resume {
            add_from(tile, &mut sums, tile.out);
        }
        if let Some(finish) = &tile.finish {
            if !finish.bias.is_null() {
                for vector in 0..VECTORS {
                    let bias = V::load(finish.bias.add(vector * V::WIDTH));
                    for sums in &mut sums {
                        sums[vector] = sums[vector].add(bias);
                    }
                }
            }
            if !finish.residual.is_null() {
                add_from(tile, &mut sums, finish.residual);
            }
            if let Some((low, high)) = finish.bounds {
                let (low, high) = (V::splat(low), V::splat(high));
                for sum in sums.as_flattened_mut() {
                    *sum = sum.at_least(low).at_most(high);
                }
            }
        }
        for (point, sums) in sums.into_iter().enumerate() {
            let out = tile.out.add(tile.out_points[point]);
            for (vector, sum) in sums.into_iter().enumerate() {
                sum.store(out.add(tile.out_vectors[vector]));
            }
        }
    }
}

/// Adds the numbers that lie in `from` where the output's lie.
#[inline(always)]
unsafe fn add_from<V: Vector, const VECTORS: usize, const POINTS: usize>(
    tile: &Tile<'_>,
    sums: &mut [[V; VECTORS]; POINTS],
    from: *const f32,
) {
    // SAFETY: as for `compute`.
    unsafe {
        for (point, sums) in sums.iter_mut().enumerate() {
            let from = from.add(tile.out_points[point]);
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::load(from.add(tile.out_vectors[vector])));
            }
        }
    }
}

/// [`complete`] where only the first numbers of the last vector are columns: rare, so
/// one number after the other.
#[inline(always)]
unsafe fn complete_by_memory<V: Vector, const VECTORS: usize, const POINTS: usize>(
    tile: &Tile<'_>,
    sums: [[V; VECTORS]; POINTS],
) {
    // SAFETY: as for `compute`; only columns that there are are touched outside of this
    // function's own array, which holds the widest vectors.
    unsafe {
        let mut numbers = [[[0.0_f32; WIDEST]; VECTORS]; POINTS];
        for (numbers, sums) in numbers.iter_mut().zip(sums) {
            for (numbers, sum) in numbers.iter_mut().zip(sums) {
                sum.store(numbers.as_mut_ptr());
            }
        }
        for (point, numbers) in std::hint::black_box(&numbers).iter().enumerate() {
            for (vector, numbers) in numbers.iter().enumerate() {
                let place = tile.out_points[point] + tile.out_vectors[vector];
                let width = if vector + 1 < VECTORS {
                    V::WIDTH
                } else {
                    tile.last_width
                };
                for (lane, &number) in numbers[..width].iter().enumerate() {
                    let mut sum = number;
                    if tile.resume {
                        sum += *tile.out.add(place + lane);
                    }
                    if let Some(finish) = &tile.finish {
                        if !finish.bias.is_null() {
                            sum += *finish.bias.add(vector * V::WIDTH + lane);
                        }
                        if !finish.residual.is_null() {
                            sum += *finish.residual.add(place + lane);
                        }
                        if let Some((low, high)) = finish.bounds {
                            // Kept as it is where it is not a number.
                            if sum < low {
                                sum = low;
                            }
                            if sum > high {
                                sum = high;
                            }
                        }
                    }
                    *tile.out.add(place + lane) = sum;
                }
            }
        }
    }
}
