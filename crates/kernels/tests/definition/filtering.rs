//! How far a 3x3 convolution by Winograd's minimal filtering, F(4 x 4, 3 x 3), may be from
//! the definition, from the method's own matrices.
//!
//! With `|M|` for a matrix of magnitudes, each output of a tile is within
//! `gamma * |A^T| [ sum (|G| |g| |G^T|) * (|B^T| |d| |B|) ] |A|` of the exact value, where
//! `gamma` counts the roundings that a number goes through: those of the sum over
//! channels and of the transforms along two axes (Higham, Accuracy and Stability of
//! Numerical Algorithms, 2002, section 3.5).

use std::array::from_fn;

/// The points but infinity.
const POINTS: [f64; 5] = [0.0, 0.625, -0.625, 1.5, -1.5];

/// Roundings of the transforms of weights, inputs and sums together.
pub(crate) const TRANSFORMS: usize = 32;

/// Magnitudes of `A^T`, `G` and `B^T`, made by Cook's and Toom's construction.
struct Matrices {
    sums: [[f64; 6]; 4],
    weights: [[f64; 3]; 6],
    inputs: [[f64; 6]; 6],
}

impl Matrices {
    fn new() -> Self {
        let product = |without: Option<usize>| {
            let mut coefficients = vec![1.0];
            for (index, point) in POINTS.iter().enumerate() {
                if Some(index) != without {
                    let mut next = vec![0.0; coefficients.len() + 1];
                    for (power, coefficient) in coefficients.iter().enumerate() {
                        next[power] -= point * coefficient;
                        next[power + 1] += coefficient;
                    }
                    coefficients = next;
                }
            }
            coefficients
        };
        let (mut sums, mut weights, mut inputs) = ([[0.0; 6]; 4], [[0.0; 3]; 6], [[0.0; 6]; 6]);
        for (index, point) in POINTS.iter().enumerate() {
            let others = POINTS
                .iter()
                .enumerate()
                .filter(|&(other, _)| other != index);
            let norm: f64 = others.map(|(_, other)| point - other).product();
            for (power, row) in (0..).zip(&mut sums) {
                row[index] = point.powi(power).abs();
            }
            for (power, weight) in (0..).zip(&mut weights[index]) {
                *weight = (point.powi(power) / norm).abs();
            }
            for (power, coefficient) in product(Some(index)).into_iter().enumerate() {
                inputs[index][power] = coefficient.abs();
            }
        }
        for (power, coefficient) in product(None).into_iter().enumerate() {
            inputs[5][power] = coefficient.abs();
        }
        sums[3][5] = 1.0;
        weights[5][2] = 1.0;
        Self {
            sums,
            weights,
            inputs,
        }
    }

    /// `|G| |g| |G^T|`
    fn weight(&self, taps: impl Fn(usize, usize) -> f64) -> [f64; 36] {
        from_fn(|place| {
            let (p, q) = (place / 6, place % 6);
            let tap = |tap: usize| {
                let (i, j) = (tap / 3, tap % 3);
                self.weights[p][i] * taps(i, j) * self.weights[q][j]
            };
            (0..9).map(tap).sum()
        })
    }

    /// `|B^T| |d| |B|`
    fn input(&self, values: impl Fn(usize, usize) -> f64) -> [f64; 36] {
        let half: [[f64; 6]; 6] =
            from_fn(|p| from_fn(|j| (0..6).map(|i| self.inputs[p][i] * values(i, j)).sum()));
        from_fn(|place| {
            let (p, q) = (place / 6, place % 6);
            (0..6).map(|j| half[p][j] * self.inputs[q][j]).sum()
        })
    }

    /// `|A^T| m |A|` at output `at` of a tile.
    fn output(&self, at: [usize; 2], sums: &[f64; 36]) -> f64 {
        let term =
            |place: usize| self.sums[at[0]][place / 6] * sums[place] * self.sums[at[1]][place % 6];
        (0..36).map(term).sum()
    }
}

/// The sizes of one convolution: images, channels out and in, height and width.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) inner: usize,
    pub(crate) output: [usize; 2],
}

/// The magnitudes of all outputs of one convolution.
pub(crate) struct Magnitudes {
    matrices: Matrices,
    tiles: [usize; 2],
    channels: usize,
    /// By image, tile and channel.
    sums: Vec<[f64; 36]>,
}

impl Magnitudes {
    /// `value` is the magnitude of an input at image, channel, row and column, padding
    /// counted in; `weight` that of a weight at output and input channel and tap.
    pub(crate) fn new(
        sizes: Sizes,
        value: impl Fn([usize; 4]) -> f64,
        weight: impl Fn([usize; 4]) -> f64,
    ) -> Self {
        let matrices = Matrices::new();
        let Sizes {
            batch,
            channels,
            inner,
            output,
        } = sizes;
        let tiles = output.map(|side| side.div_ceil(4));
        let weights: Vec<[f64; 36]> = (0..channels * inner)
            .map(|pair| matrices.weight(|i, j| weight([pair / inner, pair % inner, i, j])))
            .collect();
        let mut sums = Vec::new();
        for tile in 0..batch * tiles[0] * tiles[1] {
            let (image, rest) = (tile / (tiles[0] * tiles[1]), tile % (tiles[0] * tiles[1]));
            let corner = [rest / tiles[1] * 4, rest % tiles[1] * 4];
            let inputs: Vec<[f64; 36]> = (0..inner)
                .map(|channel| {
                    matrices.input(|i, j| value([image, channel, corner[0] + i, corner[1] + j]))
                })
                .collect();
            sums.extend(weights.chunks(inner).map(|weights| {
                let mut sums = [0.0; 36];
                for (input, weight) in inputs.iter().zip(weights) {
                    for place in 0..36 {
                        sums[place] += input[place] * weight[place];
                    }
                }
                sums
            }));
        }
        Self {
            matrices,
            tiles,
            channels,
            sums,
        }
    }

    /// At image, channel, row and column.
    pub(crate) fn of(&self, [image, channel, row, column]: [usize; 4]) -> f64 {
        let tile = (image * self.tiles[0] + row / 4) * self.tiles[1] + column / 4;
        let sums = &self.sums[tile * self.channels + channel];
        self.matrices.output([row % 4, column % 4], sums)
    }
}
