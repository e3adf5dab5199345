//! The weights of sealed operators: each panel either resident in protected memory or
//! encrypted in the spill store.
//!
//! Weights are brought layer after layer while sessions start and run already: whoever
//! wants the panels of a layer waits until it has been brought ([`Layers::panels`]).
//!
//! A panel is opened once for each use, into scratch that the kernel gives; an
//! inauthentic one ends the request, and the layer and panel are named in the error.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use occlude_kernels::{Convolution, Gemm, Panels};
use occlude_onnx::DataType;
use occlude_spill::{CipherKind, Observer, OpenError, PanelName, Reader, Store, Ticket};

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

/// One layer.
pub(crate) struct Layer {
    pub(crate) kernel: LayerKernel,
    /// A convolution's padding.
    pub(crate) pads: Option<Pads>,
    /// A bias that belongs to the weights (batch normalisation folded into them),
    /// padded as the kernels want it.
    pub(crate) bias: Option<Vec<f32>>,
    /// Bytes of protected memory that are set aside for its panels from the start: all
    /// of them, or 0.
    pub(crate) set_aside: usize,
    /// Where the panels are, once they are there; none if they will not come.
    brought: OnceLock<Option<Brought>>,
    /// Panels that have become resident beside the store.
    promoted: OnceLock<Resident>,
    /// Nanoseconds that its operator took, in all runs together.
    spent: AtomicU64,
}

/// Where the panels of a layer have been brought.
pub(crate) enum Brought {
    /// To the spill store.
    Store(Vec<Option<Ticket>>),
    /// To protected memory.
    Memory(Resident),
}

/// Panels in protected memory.
pub(crate) struct Resident {
    pub(crate) buffer: ProtectedBuffer,
    /// Bytes of the buffer that each panel takes; empty where it is not resident.
    pub(crate) places: Vec<Range<usize>>,
}

impl Resident {
    fn panel(&self, panel: usize) -> Option<&[u8]> {
        let place = self.places.get(panel).filter(|place| !place.is_empty())?;
        self.buffer.as_slice().get(place.clone())
    }
}

/// The weights of a layer will not come: they could not be opened, or loading was given
/// up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the layer has no weights")]
pub(crate) struct NotBrought;

impl Layer {
    /// With weights that are still to come.
    pub(crate) fn new(
        kernel: LayerKernel,
        pads: Option<Pads>,
        bias: Option<Vec<f32>>,
        set_aside: usize,
    ) -> Self {
        Self {
            kernel,
            pads,
            bias,
            set_aside,
            brought: OnceLock::new(),
            promoted: OnceLock::new(),
            spent: AtomicU64::new(0),
        }
    }

    /// Does the work of the layer's operator, and counts how long it takes.
    pub(crate) fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        // 584 years of it fit.
        let spent = start.elapsed().as_nanos() as u64;
        self.spent.fetch_add(spent, Ordering::Relaxed);
        done
    }

    /// How long its operator took, in all runs together.
    pub(crate) fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    /// Lets everybody have the panels; none if they will not come. Only the first call
    /// counts.
    pub(crate) fn bring(&self, panels: Option<Brought>) {
        let _ = self.brought.set(panels);
    }

    /// Whether the panels are there.
    #[cfg(test)]
    pub(crate) fn is_brought(&self) -> bool {
        matches!(self.brought.get(), Some(Some(_)))
    }

    /// Adds panels that are resident from now on. Only the first call counts.
    pub(crate) fn promote(&self, resident: Resident) {
        let _ = self.promoted.set(resident);
    }

    /// Whether panel `panel` is resident, or will be when it has been brought.
    pub(crate) fn keeps(&self, panel: usize) -> bool {
        let promoted = self.promoted.get();
        self.set_aside > 0 || promoted.is_some_and(|resident| resident.panel(panel).is_some())
    }
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

    /// Whether a reader needs to know, before the first run, where every panel is.
    pub(crate) fn reads_ahead(&self) -> bool {
        self.reader_bytes() > 0
    }

    /// What the store encrypts with, if there is one.
    pub(crate) fn cipher(&self) -> Option<CipherKind> {
        self.store.as_ref().map(|store| store.cipher())
    }

    /// Bytes of protected memory that the readers of all sessions will take, at most.
    pub(crate) fn reader_bytes(&self) -> usize {
        let one = |store: &Arc<dyn Store>| store.reader_bytes(self.threads);
        self.sessions.len() * self.store.as_ref().map_or(0, one)
    }

    /// Gives each session a reader of the panels that are not resident by now, nor of a
    /// layer that ONNX Runtime has `borrowed`. Everything has been brought by then, where
    /// the store reads ahead; other stores need no readers.
    pub(crate) fn start_readers(&self, borrowed: &[bool]) -> io::Result<()> {
        let Some(store) = self.store.as_ref().filter(|_| self.reads_ahead()) else {
            return Ok(());
        };
        let mut panels = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            if borrowed[index] {
                continue;
            }
            let Some(Some(Brought::Store(tickets))) = layer.brought.get() else {
                continue;
            };
            for (panel, ticket) in tickets.iter().enumerate() {
                if let (Some(ticket), false) = (ticket, layer.keeps(panel)) {
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

    /// Bytes of protected memory for panels.
    pub(crate) fn resident_bytes(&self) -> usize {
        let promoted = |layer: &Layer| {
            let promoted = layer.promoted.get();
            promoted.map_or(0, |resident| resident.buffer.len())
        };
        let layers = self.layers.iter();
        layers.map(|layer| layer.set_aside + promoted(layer)).sum()
    }

    /// The panels of layer `layer`, for `session`. Waits until they have been brought.
    ///
    /// # Errors
    /// [`NotBrought`] if they will not be.
    pub(crate) fn panels(
        &self,
        layer: usize,
        session: usize,
    ) -> Result<LayerPanels<'_>, NotBrought> {
        let Layer {
            brought, promoted, ..
        } = &self.layers[layer];
        Ok(LayerPanels {
            layers: self,
            session,
            index: layer,
            brought: brought.wait().as_ref().ok_or(NotBrought)?,
            promoted: promoted.get(),
        })
    }

    /// Nothing more will be brought: whoever waits for it need wait no longer.
    pub(crate) fn give_up(&self) {
        for layer in &self.layers {
            layer.bring(None);
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
    brought: &'a Brought,
    promoted: Option<&'a Resident>,
}

impl Panels for LayerPanels<'_> {
    type Error = OpenError;

    fn resident(&self, index: usize) -> Option<&[f32]> {
        let panel = match self.brought {
            Brought::Memory(resident) => resident.panel(index),
            Brought::Store(_) => self.promoted?.panel(index),
        };
        panel.map(bytemuck::cast_slice)
    }

    fn open(&self, index: usize, out: &mut [f32]) -> Result<(), OpenError> {
        self.open_bytes(index, bytemuck::cast_slice_mut(out))
    }

    fn whereabouts(&self, index: usize) -> Option<(*const u8, usize)> {
        let (store, ticket) = (self.layers.store.as_ref()?, self.ticket(index)?);
        let start = match self.layers.sessions[self.session].reader.get() {
            Some(reader) => reader.whereabouts(panel_name(self.index, index), ticket),
            None => store.whereabouts(ticket),
        };
        Some((start?, ticket.length()))
    }
}

impl LayerPanels<'_> {
    fn ticket(&self, index: usize) -> Option<&Ticket> {
        match self.brought {
            Brought::Store(tickets) => tickets.get(index)?.as_ref(),
            Brought::Memory(_) => None,
        }
    }

    /// Opens panel `index` into `out`, which has its length.
    pub(crate) fn open_bytes(&self, index: usize, out: &mut [u8]) -> Result<(), OpenError> {
        let name = panel_name(self.index, index);
        let (Some(store), Some(ticket)) = (&self.layers.store, self.ticket(index)) else {
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
