//! The weights of sealed operators: each panel either resident in protected memory or
//! encrypted in the spill store.
//!
//! A panel is opened once for each use, into scratch that the kernel gives; an
//! inauthentic one ends the request, and the layer and panel are named in the error.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use occlude_kernels::{Convolution, Gemm, Panels};
use occlude_onnx::DataType;
use occlude_spill::{Observer, OpenError, PanelName, Reader, Store, Ticket};

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
    store: Option<Arc<dyn Store>>,
    sessions: Vec<Session>,
    /// The session whose operators are being made.
    starting: AtomicUsize,
    /// Bytes opened since loading.
    opened: AtomicU64,
}

/// What one session has to itself.
#[derive(Default)]
struct Session {
    /// Brings panels; until there is one the store does.
    reader: OnceLock<Box<dyn Reader>>,
    /// Why a panel could not be opened, until whoever ran the request asks.
    failure: Mutex<Option<OpenError>>,
}

impl Layers {
    pub(crate) fn new(
        block: usize,
        threads: usize,
        layers: Vec<Layer>,
        store: Option<Arc<dyn Store>>,
        sessions: usize,
    ) -> Self {
        Self {
            block,
            threads,
            layers,
            store,
            sessions: (0..sessions).map(|_| Session::default()).collect(),
            starting: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
        }
    }

    /// From now on operators are made for `session`.
    pub(crate) fn start_session(&self, session: usize) {
        self.starting.store(session, Ordering::Relaxed);
    }

    /// The session whose operators are being made.
    pub(crate) fn starting_session(&self) -> usize {
        self.starting.load(Ordering::Relaxed)
    }

    /// Bytes of protected memory that the readers of all sessions will take, at most.
    pub(crate) fn reader_bytes(&self) -> usize {
        let one = |store: &Arc<dyn Store>| store.reader_bytes(self.threads);
        self.sessions.len() * self.store.as_ref().map_or(0, one)
    }

    /// Gives each session a reader of the panels that are not resident by now, nor of a
    /// layer that ONNX Runtime has `borrowed`.
    pub(crate) fn start_readers(&self, borrowed: &[bool]) -> io::Result<()> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let mut panels = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            if borrowed[index] {
                continue;
            }
            let layer_panels = self.panels(index, 0);
            for (panel, ticket) in layer.tickets.iter().enumerate() {
                if let (Some(ticket), None) = (ticket, layer_panels.resident(panel)) {
                    panels.push((panel_name(index, panel), ticket.clone()));
                }
            }
        }
        if panels.is_empty() {
            return Ok(());
        }
        for session in &self.sessions {
            let reader = Arc::clone(store).reader(&panels, self.threads)?;
            // Set once, here.
            let _ = session.reader.set(reader);
        }
        Ok(())
    }

    pub(crate) fn observe_reads(&self, observer: Observer) {
        if let Some(store) = &self.store {
            store.observe(observer);
        }
    }

    /// A run of `session` begins.
    pub(crate) fn begin_run(&self, session: usize) {
        self.lock_failure(session).take();
        if let Some(reader) = self.sessions[session].reader.get() {
            reader.begin_run();
        }
    }

    /// The latest failure to open a panel in a run of `session`, once.
    pub(crate) fn take_failure(&self, session: usize) -> Option<OpenError> {
        self.lock_failure(session).take()
    }

    fn lock_failure(&self, session: usize) -> MutexGuard<'_, Option<OpenError>> {
        let failure = &self.sessions[session].failure;
        failure.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The panels of layer `layer`, for `session`.
    pub(crate) fn panels(&self, layer: usize, session: usize) -> LayerPanels<'_> {
        LayerPanels {
            layers: self,
            session,
            index: layer,
            layer: &self.layers[layer],
        }
    }
}

/// At most 2^32 of each: they were counted when the store was filled.
fn panel_name(layer: usize, panel: usize) -> PanelName {
    PanelName {
        layer: layer as u32,
        panel: panel as u32,
    }
}

/// One layer's panels, as kernels read them.
pub(crate) struct LayerPanels<'a> {
    layers: &'a Layers,
    session: usize,
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
        let name = panel_name(self.index, index);
        let (Some(store), Some(Some(ticket))) = (&self.layers.store, self.layer.tickets.get(index))
        else {
            return Err(OpenError::Inauthentic { name });
        };
        let outcome = match self.layers.sessions[self.session].reader.get() {
            Some(reader) => reader.open(name, ticket, out),
            None => store.open(name, ticket, out),
        };
        if let Err(error) = outcome {
            *self.layers.lock_failure(self.session) = Some(error);
            return Err(error);
        }
        self.layers
            .opened
            .fetch_add(ticket.length() as u64, Ordering::Relaxed);
        Ok(())
    }
}
