//! The arithmetic of [`super`]: transforms of weights, inputs and sums, and the products
//! in between, for vectors of any width.

use std::ops::Range;

use crate::isa::{Isa, Kind};
use crate::tile::Finish;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Portable, Vector};

/// Outputs of a tile along each axis.
pub(super) const OUTPUTS: usize = 4;

/// Inputs of a tile along each axis.
pub(super) const INPUTS: usize = 6;

/// Products of a tile for each pair of channels.
pub(super) const PLACES: usize = INPUTS * INPUTS;

/// Taps of the kernel along each axis.
pub(super) const TAPS: usize = 3;

/// The polynomial's points but 0 and infinity come in pairs: these and their negatives.
/// All that is computed from them below is exact in single precision, but for `G`.
const FIRST: f32 = 0.625;
const SECOND: f32 = 1.5;

/// One panel, and where its transformed weights go.
pub(super) struct Weights {
    pub(super) from: *const f32,
    /// Blocks of channels.
    pub(super) blocks: usize,
    /// Channels of each.
    pub(super) lanes: usize,
    /// Columns.
    pub(super) width: usize,
    pub(super) to: *mut f32,
    pub(super) place: usize,
}

/// One tile of some blocks of an image, and where it goes once transformed.
pub(super) struct Input {
    /// The first number inside of the image.
    pub(super) from: *const f32,
    pub(super) row: usize,
    pub(super) point: usize,
    /// Numbers from one block to the next.
    pub(super) area: usize,
    /// Rows and columns of the tile that lie inside of the image.
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) blocks: usize,
    pub(super) to: *mut f32,
    pub(super) place: usize,
}

/// The products of some tiles: for each place `sums = input weights`.
pub(super) struct Products {
    /// `[places, tiles, channels]`
    pub(super) input: *const f32,
    pub(super) input_place: usize,
    pub(super) input_tile: usize,
    /// `[places, channels, columns]`
    pub(super) weights: *const f32,
    pub(super) weights_place: usize,
    /// `[places, tiles, columns]`
    pub(super) sums: *mut f32,
    pub(super) sums_place: usize,
    pub(super) tiles: usize,
    pub(super) channels: usize,
    /// Vectors of columns.
    pub(super) vectors: usize,
    /// Whether to add to what is there.
    pub(super) resume: bool,
}

/// The sums of one tile and vector of columns, and where the outputs go.
pub(super) struct Sums {
    pub(super) from: *const f32,
    pub(super) place: usize,
    /// Rows and columns of the tile that the output has.
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row: usize,
    pub(super) point: usize,
    pub(super) finish: Finish,
    pub(super) to: *mut f32,
}

/// A function for each instruction set, around one that is generic over vectors.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $name:ident($argument:ident: $type:ty) => $generic:ident) => {
        $(#[$doc])*
        pub(super) unsafe fn $name(isa: Isa, $argument: $type) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($argument: $type) {
                // SAFETY: the caller's contract, which includes the instructions.
                unsafe { $generic::<Avx2>($argument) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($argument: $type) {
                // SAFETY: the caller's contract, which includes the instructions.
                unsafe { $generic::<Avx512>($argument) }
            }
            // SAFETY: the caller's contract; an `Isa` is only made where its
            // instructions are.
            unsafe {
                match isa.kind() {
                    Kind::Portable => $generic::<Portable>($argument),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx2 => avx2($argument),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx512 => avx512($argument),
                }
            }
        }
    };
}

for_each_isa! {
    /// # Safety
    /// What `weights` points to is valid for the counts that it names.
    transform_weights(weights: &Weights) => weights_in
}
for_each_isa! {
    /// # Safety
    /// What `input` points to is valid for the counts that it names.
    transform_input(input: &Input) => input_in
}
for_each_isa! {
    /// # Safety
    /// What `products` points to is valid for the counts that it names.
    multiply(products: &Products) => products_in
}
for_each_isa! {
    /// # Safety
    /// What `sums` points to is valid for the counts that it names.
    finish_tile(sums: &Sums) => sums_in
}

/// `G g G^T`.
#[inline(always)]
unsafe fn weights_in<V: Vector>(weights: &Weights) {
    let taps = TAPS * TAPS;
    // SAFETY: the caller's contract.
    unsafe {
        for channel in 0..weights.blocks * weights.lanes {
            let (block, lane) = (channel / weights.lanes, channel % weights.lanes);
            for column in (0..weights.width).step_by(V::WIDTH) {
                let tap = |tap: usize| {
                    let step = (block * taps + tap) * weights.lanes + lane;
                    V::load(weights.from.add(step * weights.width + column))
                };
                let mut half = [V::splat(0.0); INPUTS * TAPS];
                for right in 0..TAPS {
                    let down = [tap(right), tap(TAPS + right), tap(2 * TAPS + right)];
                    for (row, value) in transformed_weight(down).into_iter().enumerate() {
                        half[row * TAPS + right] = value;
                    }
                }
                let to = weights.to.add(channel * weights.width + column);
                for row in 0..INPUTS {
                    let right = [half[row * TAPS], half[row * TAPS + 1], half[row * TAPS + 2]];
                    for (place, value) in transformed_weight(right).into_iter().enumerate() {
                        value.store(to.add((row * INPUTS + place) * weights.place));
                    }
                }
            }
        }
    }
}

/// `B^T d B`.
#[inline(always)]
unsafe fn input_in<V: Vector>(input: &Input) {
    let whole = input.rows.len() == INPUTS && input.columns.len() == INPUTS;
    // SAFETY: the caller's contract.
    unsafe {
        for block in 0..input.blocks {
            for lane in (0..input.point).step_by(V::WIDTH) {
                let from = input.from.add(block * input.area + lane);
                let mut half = [V::splat(0.0); PLACES];
                if whole {
                    for column in 0..INPUTS {
                        let down: [V; INPUTS] = std::array::from_fn(|row| {
                            V::load(from.add(row * input.row + column * input.point))
                        });
                        let down = transformed_input(down);
                        for row in 0..INPUTS {
                            half[row * INPUTS + column] = down[row];
                        }
                    }
                } else {
                    for column in input.columns.clone() {
                        let mut down = [V::splat(0.0); INPUTS];
                        for row in input.rows.clone() {
                            let (y, x) = (row - input.rows.start, column - input.columns.start);
                            down[row] = V::load(from.add(y * input.row + x * input.point));
                        }
                        let down = transformed_input(down);
                        for row in 0..INPUTS {
                            half[row * INPUTS + column] = down[row];
                        }
                    }
                }
                let to = input.to.add(block * input.point + lane);
                for row in 0..INPUTS {
                    let right: [V; INPUTS] =
                        std::array::from_fn(|column| half[row * INPUTS + column]);
                    let right = transformed_input(right);
                    for (column, value) in right.into_iter().enumerate() {
                        value.store(to.add((row * INPUTS + column) * input.place));
                    }
                }
            }
        }
    }
}

/// `A^T m A`, and what follows.
#[inline(always)]
unsafe fn sums_in<V: Vector>(sums: &Sums) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut half = [V::splat(0.0); OUTPUTS * INPUTS];
        for column in 0..INPUTS {
            let down: [V; INPUTS] = std::array::from_fn(|row| {
                V::load(sums.from.add((row * INPUTS + column) * sums.place))
            });
            for (row, value) in transformed_sums(down).into_iter().enumerate() {
                half[row * INPUTS + column] = value;
            }
        }
        let bias = if sums.finish.bias.is_null() {
            V::splat(0.0)
        } else {
            V::load(sums.finish.bias)
        };
        for row in 0..sums.rows {
            let right: [V; INPUTS] = std::array::from_fn(|column| half[row * INPUTS + column]);
            let right = transformed_sums(right);
            for (column, &value) in right.iter().enumerate() {
                if column < sums.columns {
                    let place = row * sums.row + column * sums.point;
                    let mut value = value.add(bias);
                    if !sums.finish.residual.is_null() {
                        value = value.add(V::load(sums.finish.residual.add(place)));
                    }
                    if let Some((low, high)) = sums.finish.bounds {
                        value = value.at_least(V::splat(low)).at_most(V::splat(high));
                    }
                    value.store(sums.to.add(place));
                }
            }
        }
    }
}

/// One axis of `G`.
#[inline(always)]
unsafe fn transformed_weight<V: Vector>(taps: [V; TAPS]) -> [V; INPUTS] {
    const A: f32 = FIRST * FIRST;
    const B: f32 = SECOND * SECOND;
    let [g0, g1, g2] = taps;
    let zero = |factor: f32| move |value: V| scaled(value, factor);
    // SAFETY: the caller has the instructions.
    unsafe {
        let pair = |point: f32, square: f32, norm: f32| {
            // (g0 + point^2 g2 +- point g1) / norm
            let even = g2.multiply_add(V::splat(square / norm), zero(1.0 / norm)(g0));
            let factor = point / norm;
            (
                g1.multiply_add(V::splat(factor), even),
                g1.multiply_add(V::splat(-factor), even),
            )
        };
        let (u1, u2) = pair(FIRST, A, 2.0 * A * (A - B));
        let (u3, u4) = pair(SECOND, B, 2.0 * B * (B - A));
        [zero(1.0 / (A * B))(g0), u1, u2, u3, u4, g2]
    }
}

/// `value * factor`.
#[inline(always)]
fn scaled<V: Vector>(value: V, factor: f32) -> V {
    // SAFETY: only called from functions that have the instructions.
    unsafe { value.multiply_add(V::splat(factor), V::splat(-0.0)) }
}

/// One axis of `B^T`.
#[inline(always)]
unsafe fn transformed_input<V: Vector>(d: [V; INPUTS]) -> [V; INPUTS] {
    const A: f32 = FIRST * FIRST;
    const B: f32 = SECOND * SECOND;
    // SAFETY: the caller has the instructions.
    unsafe {
        let pair = |point: f32, other: f32| {
            // d4 - other^2 d2 +- point (d3 - other^2 d1)
            let even = d[2].multiply_add(V::splat(-other), d[4]);
            let odd = d[1].multiply_add(V::splat(-other), d[3]);
            (
                odd.multiply_add(V::splat(point), even),
                odd.multiply_add(V::splat(-point), even),
            )
        };
        // A B x - (A + B) y + z
        let end = |x: V, y: V, z: V| {
            x.multiply_add(V::splat(A * B), y.multiply_add(V::splat(-(A + B)), z))
        };
        let (v1, v2) = pair(FIRST, B);
        let (v3, v4) = pair(SECOND, A);
        [end(d[0], d[2], d[4]), v1, v2, v3, v4, end(d[1], d[3], d[5])]
    }
}

/// One axis of `A^T`.
#[inline(always)]
unsafe fn transformed_sums<V: Vector>(m: [V; INPUTS]) -> [V; OUTPUTS] {
    // SAFETY: the caller has the instructions.
    unsafe {
        let minus = V::splat(-1.0);
        let (even_1, odd_1) = (m[1].add(m[2]), m[2].multiply_add(minus, m[1]));
        let (even_2, odd_2) = (m[3].add(m[4]), m[4].multiply_add(minus, m[3]));
        let both = |first: V, second: V, power: i32| {
            second.multiply_add(
                V::splat(SECOND.powi(power)),
                scaled(first, FIRST.powi(power)),
            )
        };
        [
            m[0].add(even_1).add(even_2),
            both(odd_1, odd_2, 1),
            both(even_1, even_2, 2),
            both(odd_1, odd_2, 3).add(m[5]),
        ]
    }
}

#[inline(always)]
unsafe fn products_in<V: Vector>(products: &Products) {
    // SAFETY: the caller's contract.
    unsafe {
        match (V::WIDTH, products.vectors) {
            (16, 4) => product_rows::<V, 4, 6>(products),
            (16, 3) => product_rows::<V, 3, 6>(products),
            (_, 2) => product_rows::<V, 2, 6>(products),
            (_, _) => product_rows::<V, 1, 6>(products),
        }
    }
}

/// All tiles, `ROWS` or a few less at a time, and all places.
#[inline(always)]
unsafe fn product_rows<V: Vector, const VECTORS: usize, const ROWS: usize>(products: &Products) {
    let pieces = products.tiles.div_ceil(ROWS).max(1);
    for place in 0..PLACES {
        for piece in 0..pieces {
            let first = piece * products.tiles / pieces;
            let end = (piece + 1) * products.tiles / pieces;
            let part = Part {
                input: products
                    .input
                    .wrapping_add(place * products.input_place + first * products.input_tile),
                input_tile: products.input_tile,
                weights: products
                    .weights
                    .wrapping_add(place * products.weights_place),
                sums: products
                    .sums
                    .wrapping_add(place * products.sums_place + first * VECTORS * V::WIDTH),
                channels: products.channels,
                resume: products.resume,
            };
            // SAFETY: the caller's contract.
            unsafe {
                match end - first {
                    6 => product::<V, VECTORS, 6>(&part),
                    5 => product::<V, VECTORS, 5>(&part),
                    4 => product::<V, VECTORS, 4>(&part),
                    3 => product::<V, VECTORS, 3>(&part),
                    2 => product::<V, VECTORS, 2>(&part),
                    1 => product::<V, VECTORS, 1>(&part),
                    _ => {}
                }
            }
        }
    }
}

/// A few tiles at one place.
struct Part {
    input: *const f32,
    input_tile: usize,
    weights: *const f32,
    sums: *mut f32,
    channels: usize,
    resume: bool,
}

#[inline(always)]
unsafe fn product<V: Vector, const VECTORS: usize, const ROWS: usize>(part: &Part) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        let mut weights = part.weights;
        for channel in 0..part.channels {
            let vectors: [V; VECTORS] =
                std::array::from_fn(|vector| V::load(weights.add(vector * V::WIDTH)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*part.input.add(row * part.input_tile + channel));
                for (sum, weight) in sums.iter_mut().zip(vectors) {
                    *sum = x.multiply_add(weight, *sum);
                }
            }
            weights = weights.add(VECTORS * V::WIDTH);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (vector, sum) in sums.into_iter().enumerate() {
                let to = part.sums.add((row * VECTORS + vector) * V::WIDTH);
                let sum = if part.resume {
                    V::load(to).add(sum)
                } else {
                    sum
                };
                sum.store(to);
            }
        }
    }
}
