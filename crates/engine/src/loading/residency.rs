//! Makes streamed panels resident, as far as a budget goes.
//!
//! What a resident panel saves is the time to open it. That is nearly the same for each
//! byte of every layer, plus what starting to open a layer costs: so the layers with
//! the fewest bytes come first, whole, and of the first that does not fit as many
//! panels as do.

use super::layers::room_in_memory;
use crate::error::LoadError;
use crate::graph::{LayerKind, Survey, Weight};
use crate::layers::{LayerKernel, Layers, Resident};
use crate::model::ProtectedMemory;

/// Which layers of kind [`LayerKind::Whole`] ONNX Runtime borrows from protected memory
/// for good: those that are opened for each run cost twice, to open and to read again,
/// so as many as the budget allows, the smallest first.
pub(crate) fn borrowed(survey: &Survey, memory: ProtectedMemory) -> Vec<bool> {
    let layers = survey.layers();
    let always: u64 = survey.borrowed().iter().map(Weight::length).sum();
    let all: u64 = layers.iter().map(|layer| layer.weight.length()).sum();
    let mut left = match memory {
        ProtectedMemory::Resident => u64::MAX,
        ProtectedMemory::WeightShare(share) => {
            (((always + all) as f64 * share.clamp(0.0, 1.0)) as u64).saturating_sub(always)
        }
        // What a run takes is not known yet.
        ProtectedMemory::Bytes(_) => 0,
    };
    let mut order: Vec<usize> = (0..layers.len())
        .filter(|&layer| layers[layer].kind == LayerKind::Whole)
        .collect();
    order.sort_by_key(|&layer| layers[layer].weight.length());
    let mut borrowed = vec![false; layers.len()];
    for layer in order {
        let length = layers[layer].weight.length();
        if length > left {
            break;
        }
        left -= length;
        borrowed[layer] = true;
    }
    borrowed
}

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
    // Whole tensors are opened into ONNX Runtime's own memory.
    let whole = |layer: &usize| matches!(layers.layers[*layer].kernel, LayerKernel::Whole(_));
    let mut order: Vec<usize> = (0..layers.layers.len())
        .filter(|layer| !whole(layer))
        .collect();
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
            // No session has a reader yet, so any will do.
            let panels = layers.panels(layer, 0);
            panels
                .open_bytes(panel, target)
                .map_err(LoadError::Spilled)?;
        }
        // A layer is promoted once: here, before the model runs for anybody.
        let _ = layers.layers[layer]
            .resident
            .set(Resident { buffer, places });
    }
    Ok(())
}

/// Bytes that all panels take in protected memory; without limit where some cannot be
/// there.
pub(crate) fn all_bytes(layers: &Layers) -> u64 {
    let mut bytes = 0;
    for (layer, of_layer) in layers.layers.iter().enumerate() {
        let panels = of_layer.kernel.panels();
        if matches!(of_layer.kernel, LayerKernel::Whole(_)) && panels > 0 {
            return u64::MAX / 2;
        }
        let all = (0..panels).map(|panel| aligned_bytes(layers, layer, panel) as u64);
        bytes += all.sum::<u64>();
    }
    bytes
}

fn aligned_bytes(layers: &Layers, layer: usize, panel: usize) -> usize {
    let length = layers.layers[layer].kernel.panel_bytes(panel);
    length.next_multiple_of(super::WEIGHT_ALIGNMENT)
}
