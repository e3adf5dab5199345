//! Makes chosen panels resident.

use super::layers::room_in_memory;
use crate::error::LoadError;
use crate::layers::{Layers, Resident};

/// Brings the panels that are `chosen`, layer by layer, into protected memory. All layers
/// have been loaded by then.
///
/// # Errors
/// [`LoadError::Resources`] if there is no memory, [`LoadError::Spilled`] if the spill
/// store was altered.
pub(crate) fn promote(layers: &Layers, chosen: &[Vec<usize>]) -> Result<(), LoadError> {
    for (index, chosen) in chosen.iter().enumerate() {
        if chosen.is_empty() {
            continue;
        }
        let layer = &layers.layers[index];
        // No session has a reader yet, so any will do.
        let Ok(panels) = layers.panels(index, 0) else {
            continue;
        };
        let (mut buffer, places) = room_in_memory(&layer.kernel, chosen)?;
        for &panel in chosen {
            let target = &mut buffer.as_mut_slice()[places[panel].clone()];
            panels
                .open_bytes(panel, target)
                .map_err(LoadError::Spilled)?;
        }
        // Once: here, before the model runs for anybody.
        layer.promote(Resident { buffer, places });
    }
    Ok(())
}

/// Bytes that a panel takes where it is resident.
pub(crate) fn aligned_bytes(layers: &Layers, layer: usize, panel: usize) -> usize {
    let length = layers.layers[layer].kernel.panel_bytes(panel);
    length.next_multiple_of(super::WEIGHT_ALIGNMENT)
}
