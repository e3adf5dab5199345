//! The product of a matrix with streamed weights.

use crate::isa::Isa;
use crate::packing::{Packing, Reduction, Slab, Strides};
use crate::panels::{Panels, Workers};
use crate::product::{self, ColumnMap, PointMap, Product};
use crate::tile::Finish;

/// Numbers of the reduction in one segment.
const LANES: usize = 64;

/// `y = x W`, with `W` as `[k, n]`, or as `[n, k]` if it is stored transposed.
#[derive(Debug, Clone)]
pub struct Gemm {
    k: usize,
    n: usize,
    packing: Packing,
}

/// What follows a product: `clamp(x W + bias + residual)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One number for each column, rounded up to a multiple of [`BIAS_MULTIPLE`].
    pub bias: Option<&'a [f32]>,
    /// As long as the output, in its layout.
    pub residual: Option<&'a [f32]>,
    /// Bounds of the result.
    pub bounds: Option<(f32, f32)>,
}

/// The length of a bias is a multiple of this, the widest vector.
pub const BIAS_MULTIPLE: usize = crate::tile::WIDEST;

impl Epilogue<'_> {
    /// # Panics
    /// If bias or residual is shorter than the columns or the output.
    pub(crate) fn check(&self, columns: usize, output: usize) -> Finish {
        if let Some(bias) = self.bias {
            assert!(
                bias.len() >= columns.next_multiple_of(BIAS_MULTIPLE),
                "the bias is short"
            );
        }
        if let Some(residual) = self.residual {
            assert!(residual.len() >= output, "the residual is short");
        }
        Finish {
            bias: self.bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            residual: self.residual.map_or(std::ptr::null(), <[f32]>::as_ptr),
            bounds: self.bounds,
        }
    }
}

impl Gemm {
    /// Plans the product for weights of `k` rows and `n` columns, which `threads` threads
    /// (1 or more) can share evenly; others can run it too.
    ///
    /// # Panics
    /// If `threads` is 0.
    #[must_use]
    pub fn new(isa: Isa, threads: usize, k: usize, n: usize, transposed: bool) -> Self {
        let reduction = Reduction {
            channels: k,
            taps: 1,
            lanes: LANES.min(k.max(1)),
        };
        let (column, channel) = if transposed { (k, 1) } else { (1, n) };
        let strides = Strides {
            column,
            channel,
            tap: 0,
        };
        let packing = Packing::new(isa, threads, n, isa.width(), reduction, strides);
        Self { k, n, packing }
    }

    /// Rows of the weights: numbers of each input.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.k
    }

    /// Columns of the weights: numbers of each output.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.n
    }

    /// How many panels the weights make.
    #[must_use]
    pub fn panels(&self) -> usize {
        self.packing.panels()
    }

    /// Numbers of panel `panel`.
    #[must_use]
    pub fn panel_length(&self, panel: usize) -> usize {
        self.packing.panel_length(panel)
    }

    /// The tensor, cut so that each piece is read once.
    #[must_use]
    pub fn slabs(&self) -> Vec<Slab> {
        self.packing.slabs()
    }

    /// Writes panel `panel` to `out`; `source` are the tensor's numbers from
    /// `source_start` on, each multiplied by `scale` of its column, if any.
    ///
    /// # Panics
    /// If `source` does not hold the panel's weights, or `out` is not as long as it.
    pub fn pack(
        &self,
        panel: usize,
        source: &[f32],
        source_start: usize,
        scale: Option<&[f32]>,
        out: &mut [f32],
    ) {
        self.packing.pack(panel, source, source_start, scale, out);
    }

    /// Numbers of scratch that [`Self::run`] needs.
    #[must_use]
    pub fn scratch(&self, threads: usize) -> usize {
        product::scratch(&self.packing, threads)
    }

    /// Multiplies: `x` is `[m, k]`, `y` is `[m, n]`, both row-major.
    ///
    /// # Errors
    /// What opening a panel returns; `y` is then arbitrary.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn run<P: Panels>(
        &self,
        workers: Workers<'_, P>,
        x: &[f32],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
    ) -> Result<(), P::Error> {
        let m = y.len().checked_div(self.n).unwrap_or(0);
        assert!(
            y.len() == m * self.n && x.len() >= m * self.k,
            "shapes differ"
        );
        assert!(
            workers.scratch.len() >= self.scratch(workers.parallel.threads()),
            "scratch is short"
        );
        let segments: Vec<usize> = (0..self.packing.reduction().segments())
            .map(|segment| segment * self.packing.reduction().lanes)
            .collect();
        let product = Product {
            packing: &self.packing,
            first_panel: 0,
            segments: &segments,
            input: x.as_ptr(),
            input_points: PointMap::in_line(self.k),
            output: y.as_mut_ptr(),
            output_points: PointMap::in_line(self.n),
            output_columns: ColumnMap::ROW_MAJOR,
            points: m,
            finish: epilogue.check(self.n, y.len()),
        };
        // SAFETY: `x` and `y` hold `m` rows, checked above, as do bias and residual;
        // `y` is borrowed by this call alone.
        unsafe { product.run(workers) }
    }
}
