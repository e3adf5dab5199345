//! Brings sums in blocks to outputs of another layout, and finishes them on the way.

use crate::arrange::Pieces;
use crate::convolution::{Convolution, Extents, Layout};
use crate::panels::Parallel;
use crate::shares::Shares;
use crate::tile::Finish;

/// Writes channels `group * columns` and after from `sums`, which are
/// `[N, columns / B, points, B]`, to `output`.
///
/// # Safety
/// What `finish` points to is as long as the convolution's channels and the output.
#[expect(clippy::too_many_arguments, reason = "all of one convolution")]
pub(crate) unsafe fn scatter(
    convolution: &Convolution,
    extents: &Extents,
    group: usize,
    columns: usize,
    sums: &[f32],
    finish: Finish,
    parallel: &dyn Parallel,
    output: &mut [f32],
) {
    let points = extents.output[0] * extents.output[1];
    let block = convolution.block();
    let channels = convolution.shape().out_channels;
    let sums_image = columns.next_multiple_of(block) * points;
    let out_image = convolution.image_length(channels, extents.output, extents.output_layout);
    let finish = Shared(finish);
    let output = Pieces::new(output, 1);
    let works = Shares::new(extents.batch * columns, parallel.threads());
    parallel.run(parallel.threads(), &|_| {
        let finish = &finish;
        while let Some(work) = works.take() {
            let (image, column) = (work / columns, work % columns);
            let channel = group * columns + column;
            let from = image * sums_image + column / block * points * block + column % block;
            let (to, step) = match extents.output_layout {
                Layout::Plain => (image * out_image + channel * points, 1),
                Layout::Blocked => (
                    image * out_image + channel / block * points * block + channel % block,
                    block,
                ),
            };
            // SAFETY: the caller's contract.
            let bias = unsafe { finish.0.bias.as_ref() }
                // SAFETY: as above; there is one for each channel.
                .map_or(0.0, |_| unsafe { *finish.0.bias.add(channel) });
            for point in 0..points {
                let mut value = sums[from + point * block] + bias;
                let place = to + point * step;
                if !finish.0.residual.is_null() {
                    // SAFETY: the caller's contract.
                    value += unsafe { *finish.0.residual.add(place) };
                }
                if let Some((low, high)) = finish.0.bounds {
                    // Kept as it is where it is not a number.
                    if value < low {
                        value = low;
                    }
                    if value > high {
                        value = high;
                    }
                }
                // SAFETY: each channel of each image comes once, and places of
                // different channels differ.
                unsafe { output.piece(place)[0] = value };
            }
        }
    });
}

struct Shared(Finish);

// SAFETY: the pointers are only read.
unsafe impl Sync for Shared {}
