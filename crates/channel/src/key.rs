//! One key of the gateway and the memory of what it opened.
//!
//! The memory lives and dies with the key: while the key could still open a
//! request, the request's encapsulation is remembered, so no replay passes, and
//! no clock is asked.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use occlude_weakening::{Weakening, is};
use ohttp::hpke::{Aead, Kdf};
use ohttp::{KeyConfig, ServerResponse, SymmetricSuite};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{KeyGenerationError, OpenError};

/// The one suite offered, so that there is nothing to choose down to: 256-bit keys beside a
/// post-quantum KEM, and constant time on every processor.
pub(crate) const SUITE: SymmetricSuite =
    SymmetricSuite::new(Kdf::HkdfSha256, Aead::ChaCha20Poly1305);

/// Key identifier, KEM, KDF and AEAD before each request (RFC 9458, section 4.3).
pub(crate) const REQUEST_HEADER_LENGTH: usize = 7;

/// Bytes of the AEAD's tag.
pub(crate) const TAG_LENGTH: usize = 16;

/// How keys are agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kem {
    /// X-Wing: X25519 and ML-KEM-768 together, secure while either is
    /// (draft-connolly-cfrg-xwing-kem).
    #[default]
    XWing,
    /// X25519 alone (RFC 9180, section 7.1). What is recorded now can be read by whoever has a
    /// quantum computer later.
    X25519,
}

impl Kem {
    /// The name in service statements and configuration files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XWing => "x-wing",
            Self::X25519 => "x25519",
        }
    }

    pub(crate) fn algorithm(self) -> ohttp::hpke::Kem {
        match self {
            Self::XWing => ohttp::hpke::Kem::XWing,
            Self::X25519 => ohttp::hpke::Kem::X25519Sha256,
        }
    }

    pub(crate) fn from_identifier(identifier: u16) -> Option<Self> {
        [Self::XWing, Self::X25519]
            .into_iter()
            .find(|kem| u16::from(kem.algorithm()) == identifier)
    }

    /// The length of the shortest encapsulated request: of an empty message.
    pub(crate) fn shortest_request(self) -> usize {
        REQUEST_HEADER_LENGTH + self.algorithm().n_enc() + TAG_LENGTH
    }
}

impl fmt::Display for Kem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is not a [`Kem`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key encapsulation is either `x-wing` or `x25519`")]
pub struct UnknownKem;

impl FromStr for Kem {
    type Err = UnknownKem;

    fn from_str(name: &str) -> Result<Self, UnknownKem> {
        [Self::XWing, Self::X25519]
            .into_iter()
            .find(|kem| kem.name() == name)
            .ok_or(UnknownKem)
    }
}

/// What the memory keeps of an encapsulation: 16 bytes of its SHA-256. Two of 2^20 collide with a
/// chance of 2^-89, and then one request is refused.
type Fingerprint = [u8; 16];

/// A key pair and the requests it opened.
pub(crate) struct Key {
    id: u8,
    kem: Kem,
    server: ohttp::Server,
    seen: Mutex<HashSet<Fingerprint>>,
    limit: usize,
}

impl Key {
    pub(crate) fn generate(id: u8, kem: Kem, limit: usize) -> Result<Self, KeyGenerationError> {
        let configuration =
            KeyConfig::new(id, kem.algorithm(), vec![SUITE]).map_err(|_| KeyGenerationError)?;
        Ok(Self {
            id,
            kem,
            server: ohttp::Server::new(configuration).map_err(|_| KeyGenerationError)?,
            seen: Mutex::default(),
            limit,
        })
    }

    pub(crate) fn id(&self) -> u8 {
        self.id
    }

    /// The list with this one key (media type `application/ohttp-keys`).
    pub(crate) fn configurations(&self) -> Result<Vec<u8>, KeyGenerationError> {
        KeyConfig::encode_list(&[self.server.config()]).map_err(|_| KeyGenerationError)
    }

    /// How many requests it opened.
    pub(crate) fn opened(&self) -> usize {
        self.memory().len()
    }

    /// Opens a request of at least [`Kem::shortest_request`] bytes and remembers it.
    ///
    /// Of any number of concurrent copies exactly one is opened.
    pub(crate) fn open(
        &self,
        encapsulated: &[u8],
    ) -> Result<(Zeroizing<Vec<u8>>, ServerResponse), OpenError> {
        let (header, rest) = encapsulated.split_at(REQUEST_HEADER_LENGTH);
        if header != self.header() {
            return Err(OpenError::UnsupportedSuite);
        }
        // Spares the public-key operation; the check that counts is the one below.
        if self.opened() >= self.limit {
            return Err(OpenError::KeyExhausted);
        }
        let (message, response) = self
            .server
            .decapsulate(encapsulated)
            .map_err(|_| OpenError::Inauthentic)?;
        let message = Zeroizing::new(message);
        self.remember(&rest[..self.kem.algorithm().n_enc()])?;
        Ok((message, response))
    }

    /// Only authentic requests come here, so that nobody can fill the memory with noise.
    fn remember(&self, encapsulation: &[u8]) -> Result<(), OpenError> {
        let mut fingerprint = Fingerprint::default();
        let digest = Sha256::digest(encapsulation);
        fingerprint.copy_from_slice(&digest[..size_of::<Fingerprint>()]);
        let mut memory = self.memory();
        if memory.contains(&fingerprint) && !is(Weakening::NoReplayMemory) {
            return Err(OpenError::Replayed);
        }
        if memory.len() >= self.limit {
            return Err(OpenError::KeyExhausted);
        }
        memory.insert(fingerprint);
        Ok(())
    }

    fn header(&self) -> [u8; REQUEST_HEADER_LENGTH] {
        let mut header = [self.id, 0, 0, 0, 0, 0, 0];
        header[1..3].copy_from_slice(&u16::from(self.kem.algorithm()).to_be_bytes());
        header[3..5].copy_from_slice(&u16::from(SUITE.kdf()).to_be_bytes());
        header[5..7].copy_from_slice(&u16::from(SUITE.aead()).to_be_bytes());
        header
    }

    fn memory(&self) -> MutexGuard<'_, HashSet<Fingerprint>> {
        // A panic while it was held leaves it whole: it is changed by one insertion.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
