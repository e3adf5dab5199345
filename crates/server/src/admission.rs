//! How much work is let in at once.
//!
//! Whoever reaches the port may send anything, so what a request may cost is
//! reserved before its body is read: a place, and protected memory for the body.
//! Nothing waits here; what does not fit is refused at once and can come back.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A body is held up to three times at once: encapsulated, opened, and as tensors.
const COPIES: u64 = 3;

/// Memory is counted in units of this many bytes, so that the count of any
/// configured size fits the semaphore's 32-bit requests.
const UNIT: u64 = 4096;

/// There is no place or no memory left for one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overloaded;

/// Counts requests in flight and the memory that they may take.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    total_places: usize,
    total_units: usize,
}

/// A place and memory, given back on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    _place: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

impl Admission {
    /// Lets in `places` requests at once whose bodies' copies together take at
    /// most `bytes`.
    pub(crate) fn new(places: usize, bytes: u64) -> Self {
        let total_places = places.min(Semaphore::MAX_PERMITS);
        let total_units = usize::try_from(bytes / UNIT)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(total_places)),
            memory: Arc::new(Semaphore::new(total_units)),
            total_places,
            total_units,
        }
    }

    /// The bytes that one body of `length` bytes reserves.
    pub(crate) fn cost(length: u64) -> u64 {
        let units = length.saturating_mul(COPIES).div_ceil(UNIT).max(1);
        units.saturating_mul(UNIT)
    }

    /// Reserves what a body of `length` bytes may take.
    pub(crate) fn admit(&self, length: u64) -> Result<Reservation, Overloaded> {
        let units = u32::try_from(Self::cost(length) / UNIT).map_err(|_| Overloaded)?;
        let refused = |_| Overloaded;
        let place = self.places.clone().try_acquire_owned().map_err(refused)?;
        let memory = self
            .memory
            .clone()
            .try_acquire_many_owned(units)
            .map_err(refused)?;
        Ok(Reservation {
            _place: place,
            _memory: memory,
        })
    }

    /// Requests in flight now.
    pub(crate) fn requests(&self) -> usize {
        self.total_places - self.places.available_permits()
    }

    /// Bytes reserved now.
    pub(crate) fn bytes(&self) -> u64 {
        (self.total_units - self.memory.available_permits()) as u64 * UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_too_many_is_refused_until_another_ends() {
        let admission = Admission::new(1, 1 << 20);
        let first = admission.admit(10).unwrap();
        assert_eq!(admission.requests(), 1);
        assert_eq!(admission.admit(10).unwrap_err(), Overloaded);
        drop(first);
        admission.admit(10).unwrap();
    }

    #[test]
    fn bodies_whose_copies_exceed_the_memory_are_refused() {
        let admission = Admission::new(8, 1 << 20);
        assert_eq!(admission.admit(1 << 19).unwrap_err(), Overloaded);
        let _first = admission.admit(1 << 18).unwrap();
        assert_eq!(admission.bytes(), 3 << 18);
        assert_eq!(admission.admit(1 << 18).unwrap_err(), Overloaded);
        assert_eq!(
            admission.requests(),
            1,
            "a refused request gives its place back"
        );
        admission.admit(1000).unwrap();
    }

    #[test]
    fn no_length_overflows_the_count() {
        assert_eq!(
            Admission::new(1, u64::MAX).admit(u64::MAX).unwrap_err(),
            Overloaded
        );
    }
}
