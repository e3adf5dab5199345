//! The weights of sealed operators: each panel either resident in protected memory or
//! encrypted in the spill store.
//!
//! A panel is opened once for each use, into scratch that the kernel gives; an
//! inauthentic one ends the request, and the layer and panel are named in the error.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use occlude_kernels::{Convolution, Gemm, Panels};
use occlude_onnx::DataType;
use occlude_spill::{MappedStore, OpenError, PanelName, Ticket};

use crate::graph::Pads;
use crate::memory::ProtectedBuffer;

/// What computes with a layer's weights.
pub(crate) enum LayerKernel {
    Gemm(Gemm),
    Convolution(Convolution),
    /// An operator of ONNX Runtime.
    Whole(Whole),
}

/// A tensor that is opened as the model stores it.
pub(crate) struct Whole {
    pub(crate) bytes: usize,
    pub(crate) dims: Vec<i64>,
    pub(crate) data_type: DataType,
}

/// Bytes of each panel of a [`Whole`] tensor but the last: pieces that several threads
/// can share.
const WHOLE_PANEL: usize = 256 << 10;

impl Whole {
    /// The bytes of panel `panel`.
    pub(crate) fn place(&self, panel: usize) -> Range<usize> {
        panel * WHOLE_PANEL..((panel + 1) * WHOLE_PANEL).min(self.bytes)
    }
}

impl LayerKernel {
    pub(crate) fn panels(&self) -> usize {
        match self {
            Self::Gemm(gemm) => gemm.panels(),
            Self::Convolution(convolution) => convolution.panels(),
            Self::Whole(whole) => whole.bytes.div_ceil(WHOLE_PANEL),
        }
    }

    /// Bytes of panel `panel`.
    pub(crate) fn panel_bytes(&self, panel: usize) -> usize {
        match self {
            Self::Gemm(gemm) => gemm.panel_length(panel) * size_of::<f32>(),
            Self::Convolution(convolution) => convolution.panel_length(panel) * size_of::<f32>(),
            Self::Whole(whole) => whole.place(panel).len(),
        }
    }
}

/// One layer, ready to run.
pub(crate) struct Layer {
    pub(crate) kernel: LayerKernel,
    /// A convolution's padding.
    pub(crate) pads: Option<Pads>,
    /// Where the store has each panel; none where the panel was never spilled.
    pub(crate) tickets: Vec<Option<Ticket>>,
    /// The panels that are resident.
    pub(crate) resident: OnceLock<Resident>,
    /// A bias that belongs to the weights (batch normalisation folded into them),
    /// padded as the kernels want it.
    pub(crate) bias: Option<Vec<f32>>,
}

/// Panels in protected memory.
pub(crate) struct Resident {
    pub(crate) buffer: ProtectedBuffer,
    /// Bytes of the buffer that each panel takes; empty where it is not resident.
    pub(crate) places: Vec<Range<usize>>,
}

/// All layers of a model, over one store.
pub(crate) struct Layers {
    /// Channels of a block.
    pub(crate) block: usize,
    /// Threads that compute for one request.
    pub(crate) threads: usize,
    pub(crate) layers: Vec<Layer>,
    store: Option<MappedStore>,
    /// Bytes opened since loading.
    opened: AtomicU64,
}

impl Layers {
    pub(crate) fn new(
        block: usize,
        threads: usize,
        layers: Vec<Layer>,
        store: Option<MappedStore>,
    ) -> Self {
        Self {
            block,
            threads,
            layers,
            store,
            opened: AtomicU64::new(0),
        }
    }

    /// Bytes opened since loading.
    pub(crate) fn opened_bytes(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Bytes of panels in protected memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        let resident = self.layers.iter().filter_map(|layer| layer.resident.get());
        resident.map(|resident| resident.buffer.len()).sum()
    }

    /// The panels of layer `layer`.
    pub(crate) fn panels(&self, layer: usize) -> LayerPanels<'_> {
        LayerPanels {
            layers: self,
            index: layer,
            layer: &self.layers[layer],
        }
    }
}

/// One layer's panels, as kernels read them.
pub(crate) struct LayerPanels<'a> {
    layers: &'a Layers,
    index: usize,
    layer: &'a Layer,
}

impl Panels for LayerPanels<'_> {
    type Error = OpenError;

    fn resident(&self, index: usize) -> Option<&[f32]> {
        let resident = self.layer.resident.get()?;
        let place = resident
            .places
            .get(index)
            .filter(|place| !place.is_empty())?;
        Some(bytemuck::cast_slice(
            &resident.buffer.as_slice()[place.clone()],
        ))
    }

    fn open(&self, index: usize, out: &mut [f32]) -> Result<(), OpenError> {
        self.open_bytes(index, bytemuck::cast_slice_mut(out))
    }
}

impl LayerPanels<'_> {
    /// Opens panel `index` into `out`, which has its length.
    pub(crate) fn open_bytes(&self, index: usize, out: &mut [u8]) -> Result<(), OpenError> {
        // At most 2^32 of each: they were counted when the store was filled.
        let name = PanelName {
            layer: self.index as u32,
            panel: index as u32,
        };
        let (Some(store), Some(Some(ticket))) = (&self.layers.store, self.layer.tickets.get(index))
        else {
            return Err(OpenError::Inauthentic { name });
        };
        store.open(name, ticket, out)?;
        self.layers
            .opened
            .fetch_add(ticket.length() as u64, Ordering::Relaxed);
        Ok(())
    }
}
