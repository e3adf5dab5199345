//! How much work is let in at once.
//!
//! Whoever reaches the port may send anything, and may announce much and send
//! nothing. So memory is reserved as a body's bytes come, and a place when all of
//! them have: who takes something from others has sent as much. Nothing waits here;
//! what does not fit is refused at once and can come back.

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

/// Memory for a body that is arriving, given back on drop.
#[derive(Debug)]
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
}

/// A place and memory, given back on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    _place: OwnedSemaphorePermit,
    _memory: Memory,
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

    /// Begins with a body of which nothing has come.
    pub(crate) fn begin(&self) -> Result<Memory, Overloaded> {
        Ok(Memory {
            free: Arc::clone(&self.memory),
            held: acquire(&self.memory, 0)?,
        })
    }

    /// Takes a place for a request whose body has come.
    pub(crate) fn admit(&self, memory: Memory) -> Result<Reservation, Overloaded> {
        Ok(Reservation {
            _place: acquire(&self.places, 1)?,
            _memory: memory,
        })
    }

    /// Requests that have a place now.
    pub(crate) fn requests(&self) -> usize {
        self.total_places - self.places.available_permits()
    }

    /// Bytes reserved now.
    pub(crate) fn bytes(&self) -> u64 {
        (self.total_units - self.memory.available_permits()) as u64 * UNIT
    }
}

impl Memory {
    /// Reserves what a body takes of which `length` bytes have come.
    pub(crate) fn grow(&mut self, length: u64) -> Result<(), Overloaded> {
        let units = usize::try_from(Admission::cost(length) / UNIT).unwrap_or(usize::MAX);
        let more = units.saturating_sub(self.held.num_permits());
        self.held.merge(acquire(&self.free, more)?);
        Ok(())
    }
}

fn acquire(free: &Arc<Semaphore>, permits: usize) -> Result<OwnedSemaphorePermit, Overloaded> {
    let permits = u32::try_from(permits).map_err(|_| Overloaded)?;
    let acquired = Arc::clone(free).try_acquire_many_owned(permits);
    acquired.map_err(|_| Overloaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(admission: &Admission, length: u64) -> Result<Reservation, Overloaded> {
        let mut memory = admission.begin()?;
        memory.grow(length)?;
        admission.admit(memory)
    }

    #[test]
    fn one_request_too_many_is_refused_until_another_ends() {
        let admission = Admission::new(1, 1 << 20);
        let first = admit(&admission, 10).unwrap();
        assert_eq!(admission.requests(), 1);
        assert_eq!(admit(&admission, 10).unwrap_err(), Overloaded);
        drop(first);
        admit(&admission, 10).unwrap();
    }

    #[test]
    fn bodies_whose_copies_exceed_the_memory_are_refused() {
        let admission = Admission::new(8, 1 << 20);
        assert_eq!(admit(&admission, 1 << 19).unwrap_err(), Overloaded);
        let _first = admit(&admission, 1 << 18).unwrap();
        assert_eq!(admission.bytes(), 3 << 18);
        assert_eq!(admit(&admission, 1 << 18).unwrap_err(), Overloaded);
        assert_eq!(
            admission.requests(),
            1,
            "a refused request gives its place back"
        );
        admit(&admission, 1000).unwrap();
    }

    #[test]
    fn memory_is_reserved_as_a_body_comes_and_a_place_only_then() {
        let admission = Admission::new(1, 1 << 20);
        let mut idle = admission.begin().unwrap();
        let _others: Vec<_> = (0..100).map(|_| admission.begin().unwrap()).collect();
        assert_eq!((admission.requests(), admission.bytes()), (0, 0));
        idle.grow(1).unwrap();
        idle.grow(1000).unwrap();
        assert_eq!((admission.requests(), admission.bytes()), (0, UNIT));
        idle.grow(1 << 18).unwrap();
        assert_eq!((admission.requests(), admission.bytes()), (0, 3 << 18));
        assert_eq!(idle.grow(1 << 19).unwrap_err(), Overloaded);
        assert_eq!(admission.bytes(), 3 << 18, "what was held is still held");
        drop(idle);
        assert_eq!(admission.bytes(), 0);
    }

    #[test]
    fn no_length_overflows_the_count() {
        assert_eq!(
            admit(&Admission::new(1, u64::MAX), u64::MAX).unwrap_err(),
            Overloaded
        );
    }
}
