//! How much work is let in at once.
//!
//! Whoever reaches the port may send anything, and may announce much and send
//! nothing. So memory is reserved as a body's bytes come, and a place when all of
//! them have: who takes something from others has sent as much. Answers are reserved
//! before they are written, and until the client has taken them. Nothing waits here;
//! what does not fit is refused at once and can come back.
//!
//! The operator may learn what is free, from its own requests. So what an answer
//! reserves depends on nothing but the bucket that it is padded to, which can be read
//! off the wire.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use occlude_channel::padded_length;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A body is held up to three times at once: encapsulated, opened, and as tensors.
const REQUEST_COPIES: u64 = 3;

/// Numbers as text may take four times as much as tensors: `0,` for one of eight bytes.
/// With the text itself that is as many copies more.
const TEXT_COPIES: u64 = 2;

/// An answer is held up to four times at once: its content, the padded message with it,
/// that message encrypted, and encapsulated. Before that it is held twice, as tensors and
/// as content.
const ANSWER_COPIES: u64 = 4;

/// More than the inner answer's status and header fields take.
const ANSWER_HEAD: usize = 1 << 10;

/// Memory is counted in units of this many bytes, so that the count of any
/// configured size fits the semaphore's 32-bit requests.
const UNIT: u64 = 4096;

/// There is no place or no memory left for one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overloaded;

/// Counts requests in flight and the memory that they and their answers may take.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    total_places: usize,
    /// Units that requests hold, without their answers.
    requests: Arc<AtomicUsize>,
}

/// Memory for a body that is arriving, given back on drop.
#[derive(Debug)]
pub(crate) struct Memory {
    held: Held,
    /// Bytes that have come.
    length: u64,
    requests: Arc<AtomicUsize>,
}

/// Memory for an answer, given back on drop.
#[derive(Debug)]
pub(crate) struct AnswerMemory(Mutex<Held>);

/// A place and memory, given back on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    _place: OwnedSemaphorePermit,
    memory: Memory,
    text: Mutex<Held>,
    answer: Arc<AnswerMemory>,
}

/// Some of the memory.
#[derive(Debug)]
struct Held {
    free: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
}

impl Admission {
    /// Lets in `places` requests at once whose bodies' and answers' copies together take
    /// at most `bytes`.
    pub(crate) fn new(places: usize, bytes: u64) -> Self {
        let total_places = places.min(Semaphore::MAX_PERMITS);
        let total_units = usize::try_from(bytes / UNIT)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(total_places)),
            memory: Arc::new(Semaphore::new(total_units)),
            total_places,
            requests: Arc::default(),
        }
    }

    /// The bytes that one body of `length` bytes reserves.
    pub(crate) fn cost(length: u64) -> u64 {
        let units = length.saturating_mul(REQUEST_COPIES).div_ceil(UNIT).max(1);
        units.saturating_mul(UNIT)
    }

    /// The bytes that an answer reserves whose content has `length` bytes.
    pub(crate) fn answer_cost(length: usize) -> u64 {
        let message = padded_length(length.saturating_add(ANSWER_HEAD));
        ANSWER_COPIES.saturating_mul(message as u64)
    }

    /// The least memory with which any request of `maximum` bytes and a small answer fit.
    pub(crate) fn least(maximum: u64) -> u64 {
        maximum.saturating_mul(REQUEST_COPIES + TEXT_COPIES + 1)
    }

    /// Begins with a body of which nothing has come.
    pub(crate) fn begin(&self) -> Result<Memory, Overloaded> {
        Ok(Memory {
            held: Held::nothing(&self.memory)?,
            length: 0,
            requests: Arc::clone(&self.requests),
        })
    }

    /// Takes a place for a request whose body has come.
    pub(crate) fn admit(&self, memory: Memory) -> Result<Reservation, Overloaded> {
        let answer = AnswerMemory(Mutex::new(Held::nothing(&self.memory)?));
        answer.reserve(0)?;
        Ok(Reservation {
            _place: acquire(&self.places, 1)?,
            text: Mutex::new(Held::nothing(&self.memory)?),
            memory,
            answer: Arc::new(answer),
        })
    }

    /// Requests that have a place now.
    pub(crate) fn requests(&self) -> usize {
        self.total_places - self.places.available_permits()
    }

    /// Bytes that requests reserve now, without their answers.
    pub(crate) fn bytes(&self) -> u64 {
        self.requests.load(Ordering::Relaxed) as u64 * UNIT
    }
}

impl Memory {
    /// Reserves what a body takes of which `length` bytes have come.
    pub(crate) fn grow(&mut self, length: u64) -> Result<(), Overloaded> {
        let more = self.held.grow(Admission::cost(length))?;
        self.requests.fetch_add(more, Ordering::Relaxed);
        self.length = length;
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let held = self.held.permit.num_permits();
        self.requests.fetch_sub(held, Ordering::Relaxed);
    }
}

impl Reservation {
    /// Reserves what a request takes beyond its copies if its tensors are text: so much
    /// for the length on the wire, whatever is inside.
    pub(crate) fn reserve_text(&self) -> Result<(), Overloaded> {
        let bytes = self.memory.length.saturating_mul(TEXT_COPIES);
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.grow(bytes)?;
        Ok(())
    }

    /// The memory for the answer, which outlives the request. The smallest answer has its
    /// memory already, so that there is always one.
    pub(crate) fn answer(&self) -> &Arc<AnswerMemory> {
        &self.answer
    }
}

impl AnswerMemory {
    /// Reserves what an answer takes, all its copies, whose tensors or content have
    /// `length` bytes.
    pub(crate) fn reserve(&self, length: usize) -> Result<(), Overloaded> {
        self.held(|held| held.grow(Admission::answer_cost(length)))?;
        Ok(())
    }

    /// Gives back what is more than `length` bytes.
    pub(crate) fn keep(&self, length: usize) {
        self.held(|held| held.shrink(length as u64));
    }

    fn held<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Held {
    fn nothing(free: &Arc<Semaphore>) -> Result<Self, Overloaded> {
        Ok(Self {
            free: Arc::clone(free),
            permit: acquire(free, 0)?,
        })
    }

    /// Holds `bytes` at least; returns how many units are new.
    fn grow(&mut self, bytes: u64) -> Result<usize, Overloaded> {
        let units = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let more = units.saturating_sub(self.permit.num_permits());
        self.permit.merge(acquire(&self.free, more)?);
        Ok(more)
    }

    /// Holds `bytes` at most.
    fn shrink(&mut self, bytes: u64) {
        let units = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let excess = self.permit.num_permits().saturating_sub(units);
        drop(self.permit.split(excess));
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
            (admission.requests(), admission.bytes()),
            (1, 3 << 18),
            "a refused request gives its place and its memory back"
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

    #[test]
    fn an_answer_is_held_until_it_was_taken_whatever_became_of_the_request() {
        let free = 100 * UNIT;
        let admission = Admission::new(8, free);
        let reservation = admit(&admission, 10).unwrap();
        let answer = Arc::clone(reservation.answer());
        // The message of 61,441 bytes is padded to 65,536, in four copies.
        answer.reserve(60 << 10).unwrap();
        assert_eq!(admission.memory.available_permits(), 100 - 1 - 4 * 16);
        assert_eq!(admission.bytes(), UNIT, "nothing of the answer is shown");
        assert_eq!(answer.reserve(200 << 10), Err(Overloaded));
        drop(reservation);
        assert_eq!(admission.requests(), 0);
        assert_eq!(admission.memory.available_permits(), 100 - 4 * 16);
        answer.keep((64 << 10) + 48);
        assert_eq!(admission.memory.available_permits(), 100 - 17);
        drop(answer);
        assert_eq!(admission.memory.available_permits(), 100);
    }

    #[test]
    fn tensors_as_text_reserve_more_and_nobody_is_shown_it() {
        let admission = Admission::new(8, 20 * UNIT);
        let reservation = admit(&admission, 2 * UNIT).unwrap();
        assert_eq!(admission.memory.available_permits(), 20 - 6 - 4);
        reservation.reserve_text().unwrap();
        reservation.reserve_text().unwrap();
        assert_eq!(admission.memory.available_permits(), 20 - 6 - 4 - 4);
        assert_eq!(admission.bytes(), 6 * UNIT);
        drop(reservation);
        assert_eq!(admission.memory.available_permits(), 20);
        let reservation = admit(&admission, 4 * UNIT).unwrap();
        assert_eq!(reservation.reserve_text(), Err(Overloaded));
    }

    #[test]
    fn what_an_answer_reserves_tells_no_more_than_its_padding() {
        for length in [33_000, 40_000, 64_511] {
            assert_eq!(Admission::answer_cost(length), 4 << 16, "{length}");
        }
        for length in [0, 1, 3000] {
            assert_eq!(Admission::answer_cost(length), 4 << 12, "{length}");
        }
    }

    #[test]
    fn a_request_is_refused_where_not_even_the_smallest_answer_has_memory() {
        let admission = Admission::new(8, 4 * UNIT);
        assert_eq!(admit(&admission, 10).unwrap_err(), Overloaded);
        assert_eq!(admission.memory.available_permits(), 4);
    }
}
