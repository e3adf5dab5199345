//! What every store of encrypted panels promises, wherever the ciphertext lies.
//!
//! Each panel has a number that is never used again, which is its nonce. The model, what
//! the panel is ([`PanelName`]), its length and its place in the store are bound by the
//! tag; number, place and tag are in the [`Ticket`], which the host cannot reach. So the
//! host cannot exchange panels, bring an old one back or alter one unnoticed.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use occlude_weakening::Weakening;
use zeroize::Zeroizing;

use crate::cipher::CipherKind;
use crate::untrusted::{Cipher, MOST_ASSOCIATED, Source, TAG, Target};

/// Panels of weights, encrypted under a key that lives as long as the store.
pub trait Store: Send + Sync + fmt::Debug {
    /// The cipher.
    fn cipher(&self) -> CipherKind;

    /// Encrypts `panel` into the store.
    ///
    /// # Errors
    /// [`AppendError`]; every other panel is as it was then.
    fn append(&self, name: PanelName, panel: &[u8]) -> Result<Ticket, AppendError>;

    /// Decrypts the panel of `ticket` into `out`: exactly the bytes that were appended
    /// for that ticket. For one panel now and then; runs go through a [`Reader`].
    ///
    /// # Errors
    /// [`OpenError`]; `out` is zero then.
    ///
    /// # Panics
    /// If `out` is not as long as the panel.
    fn open(&self, name: PanelName, ticket: &Ticket, out: &mut [u8]) -> Result<(), OpenError>;

    /// A reader for one session, whose every run opens `panels` on up to `threads`
    /// threads: layer by layer, the layers in any order that is the same in every run.
    ///
    /// # Errors
    /// The operating system's: no memory, no thread.
    fn reader(
        self: Arc<Self>,
        panels: &[(PanelName, Ticket)],
        threads: usize,
    ) -> io::Result<Box<dyn Reader>>;

    /// Bytes of protected memory that a reader takes with `threads` threads, at most.
    fn reader_bytes(&self, threads: usize) -> usize;

    /// Where the panel of `ticket` lies, if it is in memory: for asking caches to have it
    /// soon, not for reading.
    fn whereabouts(&self, _ticket: &Ticket) -> Option<*const u8> {
        None
    }

    /// Calls `observer` with offset and length whenever the store is read from now on:
    /// what the host sees. For tests; only the first observer counts.
    fn observe(&self, observer: Observer);
}

/// Is told of every read: offset and length in bytes.
pub type Observer = Box<dyn Fn(u64, usize) + Send + Sync>;

/// Opens the panels of one session's runs.
pub trait Reader: Send + Sync {
    /// The next run begins: from now on each panel may be opened once more.
    fn begin_run(&self);

    /// As [`Store::open`]. Panels may come in any order, any number of times; the order
    /// that the reader was made for is the quickest.
    ///
    /// # Errors
    /// [`OpenError`]; `out` is zero then.
    ///
    /// # Panics
    /// If `out` is not as long as the panel.
    fn open(&self, name: PanelName, ticket: &Ticket, out: &mut [u8]) -> Result<(), OpenError>;

    /// As [`Store::whereabouts`], if the panel has been read ahead.
    fn whereabouts(&self, name: PanelName, ticket: &Ticket) -> Option<*const u8>;
}

/// What a panel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PanelName {
    /// The number of its layer.
    pub layer: u32,
    /// Its number within the layer.
    pub panel: u32,
}

/// The way to one panel; to be kept in protected memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) number: u64,
    pub(crate) offset: usize,
    pub(crate) length: usize,
    pub(crate) tag: [u8; TAG],
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({} bytes)", self.length)
    }
}

impl Ticket {
    /// Bytes of the panel.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

/// Why a panel could not be appended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The store was made too small.
    #[error("the store has room for {room} more bytes, {needed} are needed")]
    Full {
        /// Bytes left.
        room: usize,
        /// Bytes of the panel, rounded up.
        needed: usize,
    },
    /// The store was made for other panels.
    #[error("panel {} of layer {} has no place of {length} bytes", name.panel, name.layer)]
    Unplanned {
        /// The panel.
        name: PanelName,
        /// Its bytes.
        length: usize,
    },
    /// The operating system does not write it.
    #[error("panel {} of layer {} cannot be written: {kind}", name.panel, name.layer)]
    Unwritable {
        /// The panel.
        name: PanelName,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
}

/// Why a panel could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody altered the store, or this is another panel's ticket: telling them
    /// apart helps an attacker.
    #[error("panel {} of layer {} is not authentic", name.panel, name.layer)]
    Inauthentic {
        /// The panel.
        name: PanelName,
    },
    /// The file gave an error, or ends before the panel does.
    #[error("panel {} of layer {} cannot be read: {kind}", name.panel, name.layer)]
    Unreadable {
        /// The panel.
        name: PanelName,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
}

/// What stores share: the key, the numbers, and what a tag binds.
pub(crate) struct Sealer {
    cipher: Cipher,
    kind: CipherKind,
    context: [u8; 32],
    next: AtomicU64,
    observer: OnceLock<Observer>,
}

impl Sealer {
    /// With a new key.
    pub(crate) fn new(kind: CipherKind, context: [u8; 32]) -> io::Result<Self> {
        let kind = kind
            .checked()
            .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?;
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).map_err(io::Error::other)?;
        Ok(Self {
            cipher: Cipher::new(kind, &key[..kind.key_length()]),
            kind,
            context,
            next: AtomicU64::new(0),
            observer: OnceLock::new(),
        })
    }

    pub(crate) fn kind(&self) -> CipherKind {
        self.kind
    }

    /// Encrypts `panel` to `target`, which is its place at `offset`; nothing if it is
    /// too long for the cipher.
    pub(crate) fn seal(
        &self,
        target: &mut Target<'_>,
        offset: usize,
        name: PanelName,
        panel: &[u8],
    ) -> Option<Ticket> {
        // Numbers never repeat: a store that appended 2^64 panels is not of this world.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (associated, length) = self.associated(name, panel.len(), offset);
        let tag = self
            .cipher
            .seal(target, number, &associated[..length], panel)?;
        Some(Ticket {
            number,
            offset,
            length: panel.len(),
            tag,
        })
    }

    /// Decrypts `source` into `out`, reading each byte of it once.
    pub(crate) fn open(
        &self,
        source: Source<'_>,
        name: PanelName,
        ticket: &Ticket,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let (associated, length) = self.associated(name, ticket.length, ticket.offset);
        let associated = &associated[..length];
        let opened = self
            .cipher
            .open(source, ticket.number, associated, &ticket.tag, out);
        if opened || occlude_weakening::is(Weakening::AnyPanel) {
            Ok(())
        } else {
            Err(OpenError::Inauthentic { name })
        }
    }

    fn associated(
        &self,
        name: PanelName,
        length: usize,
        offset: usize,
    ) -> ([u8; MOST_ASSOCIATED], usize) {
        let mut bytes = [0; MOST_ASSOCIATED];
        let parts: [&[u8]; 5] = [
            &self.context,
            &name.layer.to_le_bytes(),
            &name.panel.to_le_bytes(),
            &(length as u64).to_le_bytes(),
            &(offset as u64).to_le_bytes(),
        ];
        let mut end = 0;
        for part in parts {
            bytes[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        (bytes, end)
    }

    pub(crate) fn observe(&self, observer: Observer) {
        // Only the first counts.
        let _ = self.observer.set(observer);
    }

    /// Tells the observer of a read.
    pub(crate) fn note_read(&self, offset: usize, length: usize) {
        if let Some(observer) = self.observer.get() {
            observer(offset as u64, length);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
