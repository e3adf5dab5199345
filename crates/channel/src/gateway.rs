//! The server's end: opens requests, once each, and seals the answers.
//!
//! Time comes from the caller as a [`Duration`] since the gateway was made and
//! decides only when keys are replaced. A clock that is stopped, slowed or set
//! back keeps a key alive longer, together with its memory of what it opened.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;

use crate::key::Key;
use crate::{Kem, KeyGenerationError, OpenError, SealError, message};

/// Keys that still open requests after they were replaced. Each holds at most some 36 MiB of
/// memory ([`Limits::requests_per_key`]); under a flood that replaces keys faster than their
/// overlap runs out, the oldest goes early.
const MAXIMUM_RETIRING_KEYS: usize = 3;

/// What bounds a [`Gateway`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an encapsulated request. By default 64 MiB.
    pub maximum_encapsulated_bytes: usize,
    /// How long a key is offered. By default 24 hours.
    pub key_lifetime: Duration,
    /// How long a replaced key still opens requests. By default 10 minutes.
    pub key_overlap: Duration,
    /// How many requests a key opens, which bounds its memory. By default 2^20. It is due for
    /// replacement when seven eighths are used, so that its overlap has the last.
    pub requests_per_key: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            maximum_encapsulated_bytes: 64 << 20,
            key_lifetime: Duration::from_secs(24 * 60 * 60),
            key_overlap: Duration::from_secs(10 * 60),
            requests_per_key: 1 << 20,
        }
    }
}

/// The server's keys. Shared by all its tasks.
pub struct Gateway {
    kem: Kem,
    limits: Limits,
    keys: RwLock<Keys>,
}

struct Keys {
    current: Arc<Key>,
    configurations: Vec<u8>,
    generation: u64,
    /// When the current key was made.
    since: Duration,
    /// The latest time heard of.
    now: Duration,
    /// Replaced keys and when they are to be destroyed, oldest first.
    retiring: VecDeque<(Arc<Key>, Duration)>,
}

impl Gateway {
    /// Makes a gateway with a fresh key, at time zero of [`Gateway::rotate_if_due`].
    ///
    /// # Errors
    /// [`KeyGenerationError`] if the operating system gives no randomness.
    pub fn new(kem: Kem, limits: Limits) -> Result<Self, KeyGenerationError> {
        // A random first identifier tells most requests for a former process's key apart at once.
        let mut id = [0];
        getrandom::fill(&mut id).map_err(|_| KeyGenerationError)?;
        let current = Key::generate(id[0], kem, limits.requests_per_key)?;
        Ok(Self {
            kem,
            limits,
            keys: RwLock::new(Keys {
                configurations: current.configurations()?,
                current: Arc::new(current),
                generation: 0,
                since: Duration::ZERO,
                now: Duration::ZERO,
                retiring: VecDeque::new(),
            }),
        })
    }

    /// How keys are agreed on.
    #[must_use]
    pub fn kem(&self) -> Kem {
        self.kem
    }

    /// The encoded list (RFC 9458, section 3.2) with the current key.
    #[must_use]
    pub fn key_configurations(&self) -> Vec<u8> {
        self.read().configurations.clone()
    }

    /// How often the key was replaced.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.read().generation
    }

    /// The list and its generation, read together.
    #[must_use]
    pub fn current(&self) -> (u64, Vec<u8>) {
        let keys = self.read();
        (keys.generation, keys.configurations.clone())
    }

    /// Destroys the keys whose overlap ran out, and replaces the current key if its lifetime or
    /// its requests are used up. Says whether it was replaced; then the service statement needs to
    /// be made anew.
    ///
    /// `now` is the time since the gateway was made, on a monotonic clock. Earlier times than the
    /// latest one given count as that one.
    ///
    /// # Errors
    /// [`KeyGenerationError`] if the operating system gives no randomness; the current key stays.
    pub fn rotate_if_due(&self, now: Duration) -> Result<bool, KeyGenerationError> {
        let mut keys = self.write();
        keys.now = keys.now.max(now);
        let now = keys.now;
        keys.retiring.retain(|(_, until)| *until > now);
        let limit = self.limits.requests_per_key;
        let due = now.saturating_sub(keys.since) >= self.limits.key_lifetime
            || keys.current.opened() >= limit - limit / 8;
        if !due {
            return Ok(false);
        }
        let next = Key::generate(keys.current.id().wrapping_add(1), self.kem, limit)?;
        keys.configurations = next.configurations()?;
        let replaced = std::mem::replace(&mut keys.current, Arc::new(next));
        keys.since = now;
        keys.generation += 1;
        if !self.limits.key_overlap.is_zero() {
            let until = now.saturating_add(self.limits.key_overlap);
            keys.retiring.push_back((replaced, until));
        }
        while keys.retiring.len() > MAXIMUM_RETIRING_KEYS {
            keys.retiring.pop_front();
        }
        Ok(true)
    }

    /// Opens an encapsulated request.
    ///
    /// # Errors
    /// The [`OpenError`] that says why it was refused. Sizes and identifiers are checked before
    /// any cryptography; whether the request was seen before, after it proved authentic.
    pub fn open(
        &self,
        encapsulated: &[u8],
    ) -> Result<(http::Request<Bytes>, Responder), OpenError> {
        let limit = self.limits.maximum_encapsulated_bytes;
        let found = encapsulated.len();
        if found > limit {
            return Err(OpenError::TooLarge { limit, found });
        }
        let shortest = self.kem.shortest_request();
        if found < shortest {
            return Err(OpenError::Truncated { shortest, found });
        }
        let (message, response) = self.key(encapsulated[0])?.open(encapsulated)?;
        let responder = Responder { response };
        match message::decode_request(&Bytes::from_owner(message)) {
            Ok(request) => Ok((request, responder)),
            Err(reason) => Err(OpenError::Message {
                reason,
                responder: Box::new(responder),
            }),
        }
    }

    /// Requests in flight hold the key they came with; when the last of them is through, a key
    /// that was meanwhile destroyed is gone.
    fn key(&self, id: u8) -> Result<Arc<Key>, OpenError> {
        let keys = self.read();
        std::iter::once(&keys.current)
            .chain(keys.retiring.iter().map(|(key, _)| key))
            .find(|key| key.id() == id)
            .map(Arc::clone)
            .ok_or(OpenError::UnknownKey { id })
    }

    fn read(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Keys> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gateway {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("kem", &self.kem)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Seals the one answer to one request.
pub struct Responder {
    response: ohttp::ServerResponse,
}

impl Responder {
    /// Seals an answer, padded to its bucket. Connection fields and `content-length` are left out:
    /// the encapsulation frames the content itself.
    ///
    /// # Errors
    /// [`SealError::Message`] if the answer is one that a client would refuse.
    // The answer is consumed, so that its body is wiped as soon as nobody else holds it.
    #[allow(clippy::needless_pass_by_value)]
    pub fn seal(self, response: http::Response<Bytes>) -> Result<Vec<u8>, SealError> {
        let message = message::encode_response(&response)?;
        self.response
            .encapsulate(&message)
            .map_err(|_| SealError::Encapsulation)
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}
