//! A store in shared memory.
//!
//! Each panel has a number that is never used again, which is its nonce. The number,
//! what the panel is ([`PanelName`]) and its length are bound by the tag; number, place
//! and tag are in the [`Ticket`], which the host cannot reach. So the host cannot
//! exchange panels, bring an old one back or alter one unnoticed.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use zeroize::Zeroizing;

use crate::cipher::CipherKind;
use crate::untrusted::{Cipher, MOST_ASSOCIATED, Region, TAG};

/// Panels start at multiples of this: a cache line.
const ALIGNMENT: usize = 64;

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
    number: u64,
    offset: usize,
    length: usize,
    tag: [u8; TAG],
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
}

/// Panels in anonymous shared memory, encrypted under a key of their own.
pub struct MappedStore {
    region: Region,
    used: AtomicUsize,
    next: AtomicU64,
    cipher: Cipher,
    kind: CipherKind,
    context: [u8; 32],
}

impl MappedStore {
    /// Makes a store of `length` bytes for the model that `context` (a digest) names.
    /// Each panel takes its length, rounded up to 64 bytes.
    ///
    /// # Errors
    /// The operating system's: no memory, no random numbers.
    pub fn new(kind: CipherKind, length: usize, context: [u8; 32]) -> io::Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).map_err(io::Error::other)?;
        Ok(Self {
            region: Region::new(length)?,
            used: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            cipher: Cipher::new(kind, &key[..kind.key_length()]),
            kind,
            context,
        })
    }

    /// What a panel of `length` bytes takes.
    #[must_use]
    pub fn room_for(length: usize) -> usize {
        length.next_multiple_of(ALIGNMENT)
    }

    /// The cipher.
    #[must_use]
    pub fn cipher(&self) -> CipherKind {
        self.kind
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed).min(self.region.length())
    }

    /// Encrypts `panel` into the store.
    ///
    /// # Errors
    /// [`AppendError`]; the store is as it was then.
    pub fn append(&self, name: PanelName, panel: &[u8]) -> Result<Ticket, AppendError> {
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
        // Numbers never repeat: a store that appended 2^64 panels is not of this world.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (associated, length) = self.associated(name, panel.len());
        let tag = self
            .cipher
            .seal(&self.region, offset, number, &associated[..length], panel)
            .ok_or_else(|| full(offset))?;
        Ok(Ticket {
            number,
            offset,
            length: panel.len(),
            tag,
        })
    }

    /// Decrypts the panel of `ticket` into `out`, reading each byte of it once.
    ///
    /// # Errors
    /// [`OpenError`]; `out` is zero then.
    ///
    /// # Panics
    /// If `out` is not as long as the panel.
    pub fn open(&self, name: PanelName, ticket: &Ticket, out: &mut [u8]) -> Result<(), OpenError> {
        assert_eq!(out.len(), ticket.length, "a panel's length");
        let (associated, length) = self.associated(name, ticket.length);
        let associated = &associated[..length];
        let opened = self.cipher.open(
            &self.region,
            ticket.offset,
            ticket.number,
            associated,
            &ticket.tag,
            out,
        );
        if opened {
            Ok(())
        } else {
            Err(OpenError::Inauthentic { name })
        }
    }

    fn associated(&self, name: PanelName, length: usize) -> ([u8; MOST_ASSOCIATED], usize) {
        let mut bytes = [0; MOST_ASSOCIATED];
        let parts: [&[u8]; 4] = [
            &self.context,
            &name.layer.to_le_bytes(),
            &name.panel.to_le_bytes(),
            &(length as u64).to_le_bytes(),
        ];
        let mut end = 0;
        for part in parts {
            bytes[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        (bytes, end)
    }

    #[cfg(test)]
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }
}

impl std::fmt::Debug for MappedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedStore")
            .field("cipher", &self.kind)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
