//! Convolutions in two dimensions over streamed weights.
//!
//! Images are *plain*, `[N, C, H, W]`, or *blocked*, `[N, C / B, H, W, B]` with the
//! channels rounded up to a multiple of B: ONNX Runtime's own layout for convolutions
//! (`com.microsoft.nchwc`). Whatever stands in the channels of padding is never used.
//!
//! The input is read where it lies if it is arranged as the kernel needs it; otherwise
//! it is first copied, with its padding, into scratch.

use crate::arrange::{Arranged, Image, Place};
use crate::depthwise::Depthwise;
use crate::gemm::Epilogue;
use crate::isa::Isa;
use crate::opening::Opening;
use crate::packing::{Packing, Reduction, Slab, Strides};
use crate::panels::{Panels, Parallel, Workers};
use crate::product::{self, ColumnMap, PointMap, Product, Scratch};
use crate::scatter::scatter;
use crate::tile::Finish;
use crate::winograd::Winograd;

/// Numbers of arranged input that one pass takes, unless one image takes more: 8 MiB.
const PASS: usize = (8 << 20) / 4;

/// What of a convolution does not depend on its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvolutionShape {
    /// Channels of the output.
    pub out_channels: usize,
    /// Channels of the input that each output channel depends on.
    pub in_channels_per_group: usize,
    /// Groups of channels; 1 or more, and a divisor of `out_channels`.
    pub groups: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps from one output to the next, down and right; 1 or more.
    pub strides: [usize; 2],
    /// Steps from one tap to the next; 1 or more.
    pub dilations: [usize; 2],
}

impl ConvolutionShape {
    /// Channels of the input.
    #[must_use]
    pub fn in_channels(&self) -> usize {
        self.in_channels_per_group * self.groups
    }

    /// Taps of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Rows and columns of input that outputs of `extents` touch, padding included.
    pub(crate) fn touched(&self, output: [usize; 2]) -> [usize; 2] {
        std::array::from_fn(|axis| {
            output[axis].saturating_sub(1) * self.strides[axis]
                + (self.kernel[axis] - 1) * self.dilations[axis]
                + 1
        })
    }
}

/// How an image lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[N, C, H, W]`
    Plain,
    /// `[N, C / B, H, W, B]`
    Blocked,
}

/// Extents of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extents {
    /// Images.
    pub batch: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Padding above and to the left; below and to the right there is as much as the
    /// output's extents need.
    pub padding: [usize; 2],
    /// The input's layout.
    pub input_layout: Layout,
    /// The layout of output and residual.
    pub output_layout: Layout,
}

/// A convolution whose weights are packed.
#[derive(Debug, Clone)]
pub struct Convolution {
    shape: ConvolutionShape,
    block: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// One product for each group of channels, all with the same packing.
    Products(Packing),
    Depthwise(Depthwise),
}

impl Convolution {
    /// Plans a convolution; images are blocked by `block`, a multiple of the vectors'
    /// width. Weights are `[out_channels, in_channels_per_group, height, width]`, which
    /// `threads` threads (1 or more) can share evenly; others can run it too.
    ///
    /// # Panics
    /// If `block` is no multiple of the vectors' width, or `threads` or an extent of `shape`
    /// is 0.
    #[must_use]
    pub fn new(isa: Isa, threads: usize, shape: ConvolutionShape, block: usize) -> Self {
        assert!(
            block.is_multiple_of(isa.width()),
            "blocks are whole vectors"
        );
        let taps = shape.taps();
        assert!(
            threads > 0
                && shape.groups > 0
                && shape.out_channels.is_multiple_of(shape.groups)
                && taps > 0
                && shape
                    .strides
                    .iter()
                    .chain(&shape.dilations)
                    .all(|&step| step > 0),
            "a convolution's threads and extents"
        );
        let kind = if shape.in_channels_per_group == 1
            && shape.groups == shape.out_channels
            && shape.groups > 1
        {
            Kind::Depthwise(Depthwise::new(isa, threads, shape.out_channels, taps))
        } else {
            let channels = shape.in_channels_per_group;
            let reduction = Reduction {
                channels,
                taps,
                lanes: if channels < block { 1 } else { block },
            };
            let strides = Strides {
                column: channels * taps,
                channel: taps,
                tap: 1,
            };
            let columns = shape.out_channels / shape.groups;
            // Only blocks that are written as they are need all their channels.
            let multiple = if shape.groups == 1 {
                block
            } else {
                isa.width()
            };
            Kind::Products(Packing::new(
                isa, threads, columns, multiple, reduction, strides,
            ))
        };
        Self { shape, block, kind }
    }

    /// The convolution's shape.
    #[must_use]
    pub fn shape(&self) -> &ConvolutionShape {
        &self.shape
    }

    /// How many panels the weights make.
    #[must_use]
    pub fn panels(&self) -> usize {
        match &self.kind {
            Kind::Products(packing) => packing.panels() * self.shape.groups,
            Kind::Depthwise(depthwise) => depthwise.panels(),
        }
    }

    /// Numbers of panel `panel`.
    #[must_use]
    pub fn panel_length(&self, panel: usize) -> usize {
        match &self.kind {
            Kind::Products(packing) => packing.panel_length(panel % packing.panels()),
            Kind::Depthwise(depthwise) => depthwise.panel_length(panel),
        }
    }

    /// The tensor, cut so that each piece is read once and in order.
    #[must_use]
    pub fn slabs(&self) -> Vec<Slab> {
        match &self.kind {
            Kind::Products(packing) => {
                let length = self.group_length();
                let of_group = |group: usize| {
                    packing.slabs().into_iter().map(move |slab| Slab {
                        source: group * length + slab.source.start
                            ..group * length + slab.source.end,
                        panels: slab
                            .panels
                            .into_iter()
                            .map(|panel| group * packing.panels() + panel)
                            .collect(),
                    })
                };
                (0..self.shape.groups).flat_map(of_group).collect()
            }
            Kind::Depthwise(depthwise) => depthwise.slabs(),
        }
    }

    /// Numbers of the weights of one group.
    fn group_length(&self) -> usize {
        self.shape.out_channels / self.shape.groups
            * self.shape.in_channels_per_group
            * self.shape.taps()
    }

    /// Writes panel `panel` to `out`; `source` are the tensor's numbers from
    /// `source_start` on, each multiplied by `scale` of its output channel, if any.
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
        match &self.kind {
            Kind::Products(packing) => {
                let group = panel / packing.panels();
                let start = group * self.group_length();
                let scale = scale.map(|scale| &scale[group * packing.columns()..]);
                // A slab never begins before its group.
                packing.pack(
                    panel % packing.panels(),
                    source,
                    source_start - start,
                    scale,
                    out,
                );
            }
            Kind::Depthwise(depthwise) => depthwise.pack(panel, source, source_start, scale, out),
        }
    }

    /// Numbers that an image of `channels` and `extents` takes.
    #[must_use]
    pub fn image_length(&self, channels: usize, extents: [usize; 2], layout: Layout) -> usize {
        let channels = match layout {
            Layout::Plain => channels,
            Layout::Blocked => channels.next_multiple_of(self.block),
        };
        channels * extents[0] * extents[1]
    }

    /// Numbers of scratch that [`Self::run`] needs.
    #[must_use]
    pub fn scratch(&self, threads: usize, extents: &Extents) -> usize {
        match &self.kind {
            Kind::Products(packing) => {
                if let Some(winograd) = Winograd::plan(self, packing, extents, threads) {
                    return winograd.scratch();
                }
                let (arranged, sums, images) = self.pass(packing, extents);
                product::scratch(packing, threads) + (arranged + sums) * images + 64
            }
            Kind::Depthwise(depthwise) => {
                depthwise.scratch() + self.depthwise_images(extents).iter().sum::<usize>() + 64
            }
        }
    }

    /// For each image what arranged input and unscattered sums take, and how many
    /// images a pass takes.
    fn pass(&self, packing: &Packing, extents: &Extents) -> (usize, usize, usize) {
        let arranged = match self
            .image(extents)
            .arrange(&self.shape, packing.reduction().lanes)
        {
            Arranged::AsItIs { .. } => 0,
            Arranged::Copied { length, .. } => length,
        };
        let points = extents.output[0] * extents.output[1];
        let sums = if self.writes_directly(extents) {
            0
        } else {
            packing.columns().next_multiple_of(self.block) * points
        };
        let each = arranged + sums;
        let images = PASS.checked_div(each).unwrap_or(extents.batch);
        (arranged, sums, images.clamp(1, extents.batch.max(1)))
    }

    /// Whether the product's blocks are the output's.
    fn writes_directly(&self, extents: &Extents) -> bool {
        let channels = self.shape.out_channels / self.shape.groups;
        extents.output_layout == Layout::Blocked
            && (self.shape.groups == 1 || channels.is_multiple_of(self.block))
    }

    pub(crate) fn image(&self, extents: &Extents) -> Image {
        Image {
            layout: extents.input_layout,
            block: self.block,
            channels: self.shape.in_channels(),
            extents: extents.input,
            padding: extents.padding,
            touched: self.shape.touched(extents.output),
        }
    }

    /// Convolves `input` into `output`.
    ///
    /// # Errors
    /// What opening a panel returns; `output` is then arbitrary.
    ///
    /// # Panics
    /// If a slice is too short for the extents.
    pub fn run<P: Panels>(
        &self,
        mut workers: Workers<'_, P>,
        extents: &Extents,
        input: &[f32],
        epilogue: &Epilogue<'_>,
        output: &mut [f32],
    ) -> Result<(), P::Error> {
        let in_image = self.image_length(
            self.shape.in_channels(),
            extents.input,
            extents.input_layout,
        );
        let out_image = self.image_length(
            self.shape.out_channels,
            extents.output,
            extents.output_layout,
        );
        assert!(
            input.len() >= extents.batch * in_image,
            "the input is short"
        );
        assert!(
            output.len() >= extents.batch * out_image,
            "the output is short"
        );
        assert!(
            workers.scratch.len() >= self.scratch(workers.parallel.threads(), extents),
            "the scratch is short"
        );
        let finish = epilogue.check(self.shape.out_channels, extents.batch * out_image);
        if extents.batch * out_image == 0 {
            return Ok(());
        }
        match &self.kind {
            Kind::Depthwise(depthwise) => {
                self.run_depthwise(depthwise, workers, extents, input, epilogue, output)
            }
            Kind::Products(packing) => {
                let threads = workers.parallel.threads();
                if let Some(winograd) = Winograd::plan(self, packing, extents, threads) {
                    // SAFETY: the lengths were checked above; the output is borrowed
                    // by this call alone.
                    return unsafe {
                        winograd.run(workers, input.as_ptr(), finish, output.as_mut_ptr())
                    };
                }
                let (_, _, images) = self.pass(packing, extents);
                let mut first = 0;
                while first < extents.batch {
                    let batch = images.min(extents.batch - first);
                    let pass = Extents { batch, ..*extents };
                    let finish = Finish {
                        residual: if finish.residual.is_null() {
                            finish.residual
                        } else {
                            finish.residual.wrapping_add(first * out_image)
                        },
                        ..finish
                    };
                    self.run_products(
                        packing,
                        workers.with(),
                        &pass,
                        &input[first * in_image..][..batch * in_image],
                        finish,
                        &mut output[first * out_image..][..batch * out_image],
                    )?;
                    first += batch;
                }
                Ok(())
            }
        }
    }

    fn run_products<P: Panels>(
        &self,
        packing: &Packing,
        workers: Workers<'_, P>,
        extents: &Extents,
        input: &[f32],
        finish: Finish,
        output: &mut [f32],
    ) -> Result<(), P::Error> {
        let reduction = *packing.reduction();
        let image = self.image(extents);
        let arranged = image.arrange(&self.shape, reduction.lanes);
        let Workers {
            panels,
            parallel,
            scratch,
        } = workers;
        let (opened, rest) = scratch.split_at_mut(product::scratch(packing, parallel.threads()));
        let (copy, sums) = rest.split_at_mut(match arranged {
            Arranged::AsItIs { .. } => 0,
            Arranged::Copied { length, .. } => length * extents.batch,
        });
        let place = match arranged {
            Arranged::AsItIs { place } => place,
            Arranged::Copied { place, .. } => {
                image.copy(&place, input, extents.batch, parallel, copy);
                place
            }
        };
        let source: &[f32] = if copy.is_empty() { input } else { copy };
        let segments = self.segments(&reduction, &place);
        let points = extents.output[0] * extents.output[1];
        let columns = packing.columns();
        let direct = self.writes_directly(extents);
        let blocks_of = |channels: usize| channels.next_multiple_of(self.block) * points;
        let out_image = if direct {
            blocks_of(self.shape.out_channels)
        } else {
            blocks_of(columns)
        };
        for group in 0..self.shape.groups {
            let first_out = if direct {
                blocks_of(group * columns)
            } else {
                0
            };
            let product = Product {
                packing,
                first_panel: group * packing.panels(),
                segments: &segments,
                input: source.as_ptr().wrapping_add(group * place.group_stride),
                input_points: PointMap {
                    per_image: points,
                    per_row: extents.output[1],
                    image: place.image_stride,
                    row: place.row_stride * self.shape.strides[0],
                    point: place.point * self.shape.strides[1],
                },
                output: if direct {
                    output.as_mut_ptr().wrapping_add(first_out)
                } else {
                    sums.as_mut_ptr()
                },
                output_points: PointMap {
                    per_image: points,
                    per_row: points,
                    image: out_image,
                    row: 0,
                    point: self.block,
                },
                output_columns: ColumnMap {
                    block: self.block,
                    stride: points * self.block,
                },
                points: points * extents.batch,
                finish: if direct {
                    Finish {
                        bias: advance(finish.bias, group * columns),
                        residual: advance(finish.residual, first_out),
                        bounds: finish.bounds,
                    }
                } else {
                    Finish {
                        bias: std::ptr::null(),
                        residual: std::ptr::null(),
                        bounds: None,
                    }
                },
            };
            let workers = Workers {
                panels,
                parallel,
                scratch: &mut *opened,
            };
            // SAFETY: `arrange` and the lengths checked in `run` make every place that
            // the maps reach lie within source, output and residual; outputs are
            // borrowed by this call alone.
            unsafe { product.run(workers)? };
            if !direct {
                // SAFETY: bias and residual were checked in `run`.
                unsafe {
                    scatter(
                        self, extents, group, columns, sums, finish, parallel, output,
                    );
                }
            }
        }
        Ok(())
    }

    /// For each segment of the reduction its place, seen from a point.
    pub(crate) fn segments(&self, reduction: &Reduction, place: &Place) -> Vec<usize> {
        (0..reduction.segments())
            .map(|segment| {
                let (block, tap) = reduction.place(segment);
                let (row, column) = (tap / self.shape.kernel[1], tap % self.shape.kernel[1]);
                block * place.block_stride
                    + row * self.shape.dilations[0] * place.row_stride
                    + column * self.shape.dilations[1] * place.point
            })
            .collect()
    }

    /// The layout of its weights, unless it is depthwise.
    pub(crate) fn packing(&self) -> Option<&Packing> {
        match &self.kind {
            Kind::Products(packing) => Some(packing),
            Kind::Depthwise(_) => None,
        }
    }

    pub(crate) fn depthwise(&self) -> Option<&Depthwise> {
        match &self.kind {
            Kind::Products(_) => None,
            Kind::Depthwise(depthwise) => Some(depthwise),
        }
    }

    pub(crate) fn block(&self) -> usize {
        self.block
    }

    /// Numbers of blocked copies of input and output that a depthwise run needs.
    fn depthwise_images(&self, extents: &Extents) -> [usize; 2] {
        let blocked = |layout: Layout, sides: [usize; 2]| match layout {
            Layout::Blocked => 0,
            Layout::Plain => self.image_length(self.shape.out_channels, sides, Layout::Blocked),
        };
        [
            blocked(extents.input_layout, extents.input),
            blocked(extents.output_layout, extents.output),
        ]
    }

    fn run_depthwise<P: Panels>(
        &self,
        depthwise: &Depthwise,
        workers: Workers<'_, P>,
        extents: &Extents,
        input: &[f32],
        epilogue: &Epilogue<'_>,
        output: &mut [f32],
    ) -> Result<(), P::Error> {
        let channels = self.shape.out_channels;
        let in_image = self.image_length(channels, extents.input, extents.input_layout);
        let out_image = self.image_length(channels, extents.output, extents.output_layout);
        let Workers {
            panels,
            parallel,
            scratch,
        } = workers;
        let (weights, rest) = scratch.split_at_mut(depthwise.scratch());
        let [in_copy, out_copy] = self.depthwise_images(extents);
        let (in_copy, rest) = rest.split_at_mut(in_copy);
        let sums = &mut rest[..out_copy];
        let weights = Scratch::new(weights);
        let places = depthwise.places(panels, &weights);
        // SAFETY: the parts are those of different panels, and the scratch is borrowed by
        // this call alone.
        let opening =
            unsafe { Opening::new(panels, &weights, depthwise.parts(), parallel.threads()) };
        let opened = || opening.pass();
        for image in 0..extents.batch {
            let mut source = &input[image * in_image..][..in_image];
            if extents.input_layout == Layout::Plain {
                let whole = Image {
                    padding: [0, 0],
                    touched: extents.input,
                    ..self.image(extents)
                };
                let place = whole.blocked_place();
                whole.copy(&place, source, 1, parallel, in_copy);
                source = in_copy;
            }
            let target = &mut output[image * out_image..][..out_image];
            if extents.output_layout == Layout::Blocked {
                let epilogue = Epilogue {
                    residual: epilogue
                        .residual
                        .map(|residual| &residual[image * out_image..]),
                    ..*epilogue
                };
                // SAFETY: panels are opened once, into parts of their lengths, before
                // `opened` returns true.
                unsafe {
                    depthwise.run(
                        self, extents, &places, &opened, source, &epilogue, parallel, target,
                    );
                }
            } else {
                let none = Epilogue::default();
                // SAFETY: as above.
                unsafe {
                    depthwise.run(
                        self, extents, &places, &opened, source, &none, parallel, sums,
                    );
                }
                let one = Extents {
                    batch: 1,
                    ..*extents
                };
                let mut finish = epilogue.check(channels, out_image);
                finish.residual = advance(finish.residual, image * out_image);
                // SAFETY: bias and residual were checked in `run`.
                unsafe { scatter_all(self, &one, channels, sums, finish, parallel, target) };
            }
        }
        opening.into_result()
    }
}

/// [`scatter`] of all channels as one group.
unsafe fn scatter_all(
    convolution: &Convolution,
    extents: &Extents,
    channels: usize,
    sums: &[f32],
    finish: Finish,
    parallel: &dyn Parallel,
    output: &mut [f32],
) {
    // SAFETY: the caller's contract is the same.
    unsafe {
        scatter(
            convolution,
            extents,
            0,
            channels,
            sums,
            finish,
            parallel,
            output,
        );
    }
}

fn advance(pointer: *const f32, by: usize) -> *const f32 {
    if pointer.is_null() {
        pointer
    } else {
        pointer.wrapping_add(by)
    }
}
