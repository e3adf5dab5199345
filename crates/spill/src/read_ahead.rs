//! Reads panels ahead of the runs of one session.
//!
//! Threads read the file in *spans* of neighbouring panels, in the order in which a run
//! opens them, into a bounded number of buffers; behind the last span comes the first
//! one again, for the next run. A buffer is free again when each panel in it has been
//! opened. So the disk works while the processor computes, and the sequence of reads
//! depends on nothing but the model.
//!
//! The order is that of the layers' numbers until a run was seen to take another one;
//! then it is that run's. A panel that is not there and will not come is read by whoever
//! wants it, alone: several threads that share a layer and layers left out cost time and
//! change nothing else. Tags are checked by whoever opens, from the buffers, which are
//! private memory.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use occlude_weakening::{Weakening, is};
use zeroize::Zeroize;

use crate::buffer::AlignedBuffer;
use crate::direct::DirectStore;
use crate::locks::{Condvar, Mutex, MutexGuard};
use crate::store::{OpenError, PanelName, Reader, Store, Ticket};
use crate::untrusted::Source;

/// Bytes of a span, at most: reads of this size reach a disk's full rate with
/// [`THREADS`] of them at once.
pub(crate) const SPAN: usize = 1 << 20;

/// Bytes of the buffers, each for a span, where nobody asks for other ones: what a disk of
/// 2 GB/s reads in 8 ms. It outlasts a layer that computes long, and threads that each open
/// a group of a wide matrix.
pub const DEFAULT_READ_AHEAD: usize = 16 * SPAN;

/// Bytes of the fewest buffers: one for each read.
pub const LEAST_READ_AHEAD: usize = THREADS * SPAN;

/// Threads that read, and so reads at once.
pub(crate) const THREADS: usize = 4;

/// Bytes of a reading thread's stack: all it does is to call the kernel.
const STACK: usize = 128 << 10;

/// How long a panel is waited for while nothing is read and nothing becomes free. Only a
/// kernel that opens a layer's panels in an order of its own gets here.
const PATIENCE: Duration = Duration::from_millis(100);

/// Reads ahead for one session.
pub(crate) struct ReadAhead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    store: Arc<DirectStore>,
    /// Every panel of a run, layer by layer.
    panels: Vec<Panel>,
    state: Mutex<State>,
    /// A span has come, or never will.
    arrived: Condvar,
    /// There is something to read and a buffer for it.
    room: Condvar,
}

#[derive(Clone, Copy)]
struct Panel {
    name: PanelName,
    offset: usize,
    /// In whole blocks.
    length: usize,
}

struct State {
    schedule: Schedule,
    /// Which run is served, counted from 0, once there was one.
    run: u64,
    begun: bool,
    /// The span that is read next: its number plus that of all spans for each run before.
    next: u64,
    free: Vec<AlignedBuffer>,
    /// How many there are in all.
    buffers: usize,
    spans: HashMap<u64, Arrival>,
    /// Reads under way, and what tells the latest one from all others.
    reading: usize,
    last_read: u64,
    /// Which panels this run has opened, by their place in the schedule.
    opened: Vec<bool>,
    /// The layers that this run has opened panels of, in order.
    layers: Vec<u32>,
    /// Threads that open panels of one layer at once, and those that wait for one.
    opening_threads: usize,
    waiting: usize,
    /// This run ends with an error: nobody need wait for what others would open.
    failed: bool,
    stopping: bool,
}

/// What became of a span.
enum Arrival {
    /// This read is under way.
    Expected(u64),
    Here {
        buffer: Arc<AlignedBuffer>,
        /// Panels that were not opened yet.
        left: usize,
    },
    /// It cannot be read.
    Failed,
}

/// In which order panels are read.
struct Schedule {
    spans: Vec<Span>,
    /// The layers in order.
    layers: Vec<u32>,
    /// The layer of each panel in order.
    order: Vec<u32>,
    /// By layer and panel; none where a panel is not read ahead.
    places: Vec<Vec<Option<Place>>>,
}

#[derive(Clone)]
struct Span {
    offset: usize,
    length: usize,
    /// Its panels in `Schedule::order`.
    panels: Range<usize>,
}

#[derive(Clone, Copy)]
struct Place {
    /// In `Schedule::order`.
    panel: usize,
    span: usize,
    /// Where in the span it begins.
    start: usize,
}

impl Schedule {
    fn new(panels: &[Panel], layers: Vec<u32>) -> Self {
        let mut of_layer: HashMap<u32, Vec<Panel>> = HashMap::new();
        for panel in panels {
            of_layer.entry(panel.name.layer).or_default().push(*panel);
        }
        let (mut spans, mut order): (Vec<Span>, _) = (Vec::new(), Vec::new());
        let mut places: Vec<Vec<Option<Place>>> = Vec::new();
        let ordered = layers.iter().filter_map(|layer| of_layer.get(layer));
        for panel in ordered.flatten() {
            let (layer, number) = (panel.name.layer as usize, panel.name.panel as usize);
            if places.len() <= layer {
                places.resize(layer + 1, Vec::new());
            }
            if places[layer].len() <= number {
                places[layer].resize(number + 1, None);
            }
            if panel.length > SPAN {
                continue;
            }
            match spans.last_mut() {
                Some(span)
                    if span.offset + span.length == panel.offset
                        && span.length + panel.length <= SPAN =>
                {
                    span.length += panel.length;
                    span.panels.end += 1;
                }
                _ => spans.push(Span {
                    offset: panel.offset,
                    length: panel.length,
                    panels: order.len()..order.len() + 1,
                }),
            }
            let span = spans.len() - 1;
            places[layer][number] = Some(Place {
                panel: order.len(),
                span,
                start: panel.offset - spans[span].offset,
            });
            order.push(panel.name.layer);
        }
        Self {
            spans,
            layers,
            order,
            places,
        }
    }

    fn place(&self, name: PanelName) -> Option<Place> {
        *self
            .places
            .get(name.layer as usize)?
            .get(name.panel as usize)?
    }
}

impl State {
    /// The number of a span of this run.
    fn number(&self, span: usize) -> u64 {
        self.run * self.schedule.spans.len() as u64 + span as u64
    }

    /// Whether a read can begin: of this run or the next one.
    fn can_read(&self) -> bool {
        self.next < (self.run + 2) * self.schedule.spans.len() as u64 && !self.free.is_empty()
    }

    /// Whether buffers can become free or full without anybody opening another panel.
    fn moves(&self) -> bool {
        let full = |arrival: &&Arrival| matches!(arrival, Arrival::Here { .. });
        let held = self.spans.values().filter(full).count();
        self.can_read() || self.reading > 0 || held + self.free.len() < self.buffers
    }

    /// Whether a panel of `layer` in a span that is not here can only be read by whoever
    /// wants it.
    fn is_stuck(&self, layer: u32) -> bool {
        if self.moves() {
            return false;
        }
        let spans = self.schedule.spans.len() as u64;
        let held_by_layer = |number: &u64| {
            let span = &self.schedule.spans[(number % spans) as usize];
            let mut panels = span.panels.clone();
            number / spans == self.run
                && panels.any(|panel| self.schedule.order[panel] == layer && !self.opened[panel])
        };
        // Where the layer's own panels hold buffers, another thread will open them.
        self.failed
            || self.waiting + 1 >= self.opening_threads
            || !self.spans.keys().any(held_by_layer)
    }

    /// Takes in what a read gave.
    fn arrive(&mut self, number: u64, read: u64, buffer: AlignedBuffer, complete: bool) {
        self.reading -= 1;
        let expected = matches!(
            self.spans.get(&number),
            Some(Arrival::Expected(expected)) if *expected == read
        );
        if !expected {
            // Nobody wants it any more.
            return self.free.push(buffer);
        }
        let spans = self.schedule.spans.len() as u64;
        let panels = self.schedule.spans[(number % spans) as usize]
            .panels
            .clone();
        let left = if number / spans == self.run {
            panels.filter(|&panel| !self.opened[panel]).count()
        } else {
            panels.len()
        };
        if !complete {
            self.free.push(buffer);
            self.spans.insert(number, Arrival::Failed);
        } else if left == 0 {
            self.free.push(buffer);
            self.spans.remove(&number);
        } else {
            let buffer = Arc::new(buffer);
            self.spans.insert(number, Arrival::Here { buffer, left });
        }
    }

    /// Gives buffers of spans before `first` back.
    fn forget_before(&mut self, first: u64) {
        let free = &mut self.free;
        self.spans.retain(|&number, arrival| {
            if number < first
                && let Arrival::Here { buffer, .. } = std::mem::replace(arrival, Arrival::Failed)
            {
                // Whoever opens from it now gives it back.
                free.extend(Arc::into_inner(buffer));
            }
            number >= first
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a reading thread does until the end.
    fn read_spans(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let buffer = if state.can_read() {
                state.free.pop()
            } else {
                None
            };
            let Some(mut buffer) = buffer else {
                state = self
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let number = state.next;
            let spans = state.schedule.spans.len() as u64;
            let span = state.schedule.spans[(number % spans) as usize].clone();
            state.next += 1;
            state.reading += 1;
            state.last_read += 1;
            let read = state.last_read;
            state.spans.insert(number, Arrival::Expected(read));
            // Under the lock, so that reads are told in the order in which they begin.
            self.store.sealer().note_read(span.offset, span.length);
            drop(state);
            let target = &mut buffer.as_mut_slice()[..span.length];
            let outcome = self.store.read(span.offset, target);
            state = self.lock();
            state.arrive(number, read, buffer, outcome.is_ok());
            self.arrived.notify_all();
        }
    }

    /// The buffer that panel `name` is in and where, once it is there; none if it has to
    /// be read alone.
    fn take(&self, name: PanelName) -> Option<(Arc<AlignedBuffer>, usize)> {
        let mut state = self.lock();
        let place = state.schedule.place(name)?;
        if state.layers.last() != Some(&name.layer) && !state.layers.contains(&name.layer) {
            state.layers.push(name.layer);
        }
        let number = state.number(place.span);
        if std::mem::replace(&mut state.opened[place.panel], true) {
            return None;
        }
        // While it is waited for it is not opened yet: it holds its buffer.
        state.opened[place.panel] = false;
        let mut patient = true;
        let found = loop {
            let ended =
                number < state.next || state.is_stuck(name.layer) || !(patient || state.moves());
            match state.spans.get_mut(&number) {
                Some(Arrival::Here { buffer, left }) => {
                    let buffer = Arc::clone(buffer);
                    *left -= 1;
                    if *left == 0 {
                        state.spans.remove(&number);
                    }
                    break Some((buffer, place.start));
                }
                Some(Arrival::Failed) => break None,
                Some(Arrival::Expected(_)) => {}
                None if ended => break None,
                None => {}
            }
            state.waiting += 1;
            let waited = self.arrived.wait_timeout(state, PATIENCE);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.waiting -= 1;
            patient = !timeout.timed_out();
        };
        state.opened[place.panel] = true;
        found
    }

    /// Takes a buffer back when nobody opens from it any more.
    fn give_back(&self, buffer: Arc<AlignedBuffer>) {
        if let Some(buffer) = Arc::into_inner(buffer) {
            self.lock().free.push(buffer);
            self.room.notify_one();
        }
    }
}

impl ReadAhead {
    /// Starts to read `panels` into buffers of `bytes`, no more than two runs can fill, for
    /// runs that open them on up to `opening_threads` threads.
    pub(crate) fn new(
        store: Arc<DirectStore>,
        panels: &[(PanelName, Ticket)],
        bytes: usize,
        opening_threads: usize,
    ) -> io::Result<Self> {
        let mut layers = Vec::new();
        let panels: Vec<Panel> = panels
            .iter()
            .map(|(name, ticket)| Panel {
                name: *name,
                offset: ticket.offset,
                length: store.blocks(ticket.length),
            })
            .collect();
        for panel in &panels {
            if layers.last() != Some(&panel.name.layer) {
                layers.push(panel.name.layer);
            }
        }
        let schedule = Schedule::new(&panels, layers);
        let buffers = (bytes / SPAN).min(2 * schedule.spans.len());
        let shared = Arc::new(Shared {
            store,
            panels,
            state: Mutex::new(State {
                opened: vec![false; schedule.order.len()],
                schedule,
                run: 0,
                begun: false,
                next: 0,
                free: AlignedBuffer::several(buffers, SPAN)?,
                buffers,
                spans: HashMap::new(),
                reading: 0,
                last_read: 0,
                layers: Vec::new(),
                opening_threads,
                waiting: 0,
                failed: false,
                stopping: false,
            }),
            arrived: Condvar::new(),
            room: Condvar::new(),
        });
        let mut reader = Self {
            shared: Arc::clone(&shared),
            threads: Vec::with_capacity(THREADS),
        };
        for _ in 0..THREADS {
            let shared = Arc::clone(&shared);
            // An error drops `reader`, which ends the threads that there are.
            let thread = std::thread::Builder::new()
                .name("spill reader".to_owned())
                .stack_size(STACK)
                .spawn(move || shared.read_spans())?;
            reader.threads.push(thread);
        }
        Ok(reader)
    }
}

impl Reader for ReadAhead {
    fn begin_run(&self) {
        let mut state = self.shared.lock();
        if state.begun {
            state.run += 1;
        }
        state.begun = true;
        let mut sorted = [state.layers.clone(), state.schedule.layers.clone()];
        sorted.iter_mut().for_each(|layers| layers.sort_unstable());
        if state.layers != state.schedule.layers && sorted[0] == sorted[1] {
            // Another order, the same in every run.
            state.forget_before(u64::MAX);
            let layers = std::mem::take(&mut state.layers);
            state.schedule = Schedule::new(&self.shared.panels, layers);
        }
        let first = state.number(0);
        state.forget_before(first);
        state.next = first.max(state.next);
        state.opened.fill(false);
        state.layers.clear();
        state.failed = false;
        self.shared.room.notify_all();
    }

    fn open(&self, name: PanelName, ticket: &Ticket, out: &mut [u8]) -> Result<(), OpenError> {
        assert_eq!(out.len(), ticket.length, "a panel's length");
        let store = &self.shared.store;
        let outcome = match self.shared.take(name) {
            Some((buffer, start)) => {
                let outcome = match buffer.as_slice().get(start..start + ticket.length) {
                    Some(panel) if is(Weakening::ClearPanels) => {
                        out.copy_from_slice(panel);
                        Ok(())
                    }
                    Some(panel) => store
                        .sealer()
                        .open(Source::private(panel), name, ticket, out),
                    None => {
                        out.zeroize();
                        Err(OpenError::Inauthentic { name })
                    }
                };
                self.shared.give_back(buffer);
                outcome.or_else(|error| store.recover(error, name, ticket, out))
            }
            None => store.open(name, ticket, out),
        };
        if outcome.is_err() {
            self.shared.lock().failed = true;
            self.shared.arrived.notify_all();
        }
        outcome
    }

    fn whereabouts(&self, name: PanelName, ticket: &Ticket) -> Option<*const u8> {
        let state = self.shared.lock();
        let place = state.schedule.place(name)?;
        match state.spans.get(&state.number(place.span))? {
            Arrival::Here { buffer, .. } => {
                let end = place.start + ticket.length;
                let panel = buffer.as_slice().get(place.start..end)?;
                Some(panel.as_ptr())
            }
            Arrival::Expected(_) | Arrival::Failed => None,
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // It ends after the read that is under way; a panic has been shown already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
