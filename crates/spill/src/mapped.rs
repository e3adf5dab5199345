//! A store in shared memory, where that does not count as protected memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zeroize::Zeroize;

use crate::cipher::CipherKind;
use crate::store::{AppendError, Observer, OpenError, PanelName, Reader, Sealer, Store, Ticket};
use crate::untrusted::Region;

/// Panels start at multiples of this: a cache line.
const ALIGNMENT: usize = 64;

/// Panels in anonymous shared memory, encrypted under a key of their own.
pub struct MappedStore {
    region: Region,
    used: AtomicUsize,
    sealer: Sealer,
}

impl MappedStore {
    /// Makes a store of `length` bytes for the model that `context` (a digest) names.
    /// Each panel takes its length, rounded up to 64 bytes.
    ///
    /// # Errors
    /// The operating system's: no memory, no random numbers.
    pub fn new(kind: CipherKind, length: usize, context: [u8; 32]) -> io::Result<Self> {
        Ok(Self {
            region: Region::new(length)?,
            used: AtomicUsize::new(0),
            sealer: Sealer::new(kind, context)?,
        })
    }

    /// What a panel of `length` bytes takes.
    #[must_use]
    pub fn room_for(length: usize) -> usize {
        length.next_multiple_of(ALIGNMENT)
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed).min(self.region.length())
    }

    #[cfg(test)]
    pub(crate) fn file(&self) -> &rustix::fd::OwnedFd {
        &self.region.file
    }
}

impl Store for MappedStore {
    fn cipher(&self) -> CipherKind {
        self.sealer.kind()
    }

    fn append(&self, name: PanelName, panel: &[u8]) -> Result<Ticket, AppendError> {
        let needed = Self::room_for(panel.len());
        let full = |used: usize| AppendError::Full {
            room: self.region.length() - used,
            needed,
        };
        let offset = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(needed)
                    .filter(|&end| end <= self.region.length())
            })
            .map_err(full)?;
        let target = self.region.target(offset, panel.len());
        target
            .and_then(|mut target| self.sealer.seal(&mut target, offset, name, panel))
            .ok_or_else(|| full(offset))
    }

    fn open(&self, name: PanelName, ticket: &Ticket, out: &mut [u8]) -> Result<(), OpenError> {
        assert_eq!(out.len(), ticket.length, "a panel's length");
        self.sealer.note_read(ticket.offset, ticket.length);
        match self.region.source(ticket.offset, ticket.length) {
            Some(source) => self.sealer.open(source, name, ticket, out),
            None => {
                out.zeroize();
                Err(OpenError::Inauthentic { name })
            }
        }
    }

    fn reader(
        self: Arc<Self>,
        _panels: &[(PanelName, Ticket)],
        _threads: usize,
    ) -> io::Result<Box<dyn Reader>> {
        Ok(Box::new(MappedReader(self)))
    }

    fn reader_bytes(&self, _threads: usize) -> usize {
        0
    }

    fn whereabouts(&self, ticket: &Ticket) -> Option<*const u8> {
        self.region.address(ticket.offset, ticket.length)
    }

    fn observe(&self, observer: Observer) {
        self.sealer.observe(observer);
    }
}

impl std::fmt::Debug for MappedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedStore")
            .field("cipher", &self.sealer.kind())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

/// Memory needs no reading ahead.
struct MappedReader(Arc<MappedStore>);

impl Reader for MappedReader {
    fn begin_run(&self) {}

    fn open(&self, name: PanelName, ticket: &Ticket, out: &mut [u8]) -> Result<(), OpenError> {
        self.0.open(name, ticket, out)
    }

    fn whereabouts(&self, _name: PanelName, ticket: &Ticket) -> Option<*const u8> {
        self.0.whereabouts(ticket)
    }
}
