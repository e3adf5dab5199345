//! Makes streamed panels resident, as far as a budget goes.
//!
//! What a resident panel saves is the time to open it. That is nearly the same for each
//! byte of every layer, plus what starting to open a layer costs: so the layers with
//! the fewest bytes come first, whole, and of the first that does not fit as many
//! panels as do.

use occlude_kernels::Panels;

use super::layers::room_in_memory;
use crate::error::LoadError;
use crate::layers::{Layers, Resident};

/// Brings panels of at most `budget` bytes into protected memory.
///
/// # Errors
/// [`LoadError::Resources`] if there is no memory, [`LoadError::Spilled`] if the spill
/// store was altered.
pub(crate) fn promote(layers: &Layers, budget: usize) -> Result<(), LoadError> {
    let bytes = |layer: usize| -> usize {
        let kernel = &layers.layers[layer].kernel;
        (0..kernel.panels())
            .map(|panel| aligned_bytes(layers, layer, panel))
            .sum()
    };
    let mut order: Vec<usize> = (0..layers.layers.len()).collect();
    order.sort_by_key(|&layer| bytes(layer));
    let mut left = budget;
    for layer in order {
        let kernel = &layers.layers[layer].kernel;
        let fitting: Vec<usize> = (0..kernel.panels())
            .take_while(|&panel| {
                let needed = aligned_bytes(layers, layer, panel);
                let fits = needed <= left;
                left -= if fits { needed } else { 0 };
                fits
            })
            .collect();
        if fitting.is_empty() {
            continue;
        }
        let (mut buffer, places) = room_in_memory(kernel, &fitting)?;
        for &panel in &fitting {
            let target = &mut buffer.as_mut_slice()[places[panel].clone()];
            let panels = layers.panels(layer);
            panels
                .open(panel, bytemuck::cast_slice_mut(target))
                .map_err(LoadError::Spilled)?;
        }
        // A layer is promoted once: here, before the model runs for anybody.
        let _ = layers.layers[layer]
            .resident
            .set(Resident { buffer, places });
    }
    Ok(())
}

fn aligned_bytes(layers: &Layers, layer: usize, panel: usize) -> usize {
    let length = layers.layers[layer].kernel.panel_length(panel) * size_of::<f32>();
    length.next_multiple_of(super::WEIGHT_ALIGNMENT)
}
