//! What answers cost in work, and whether a client did it.

use http::{HeaderMap, HeaderName, HeaderValue};
use occlude_guard::Price;
use occlude_inference_protocol::{Puzzle, WORK, WorkWanted, work_number};
use occlude_weakening::{Weakening, is};

/// What answers to one request cost, and what was done for them.
pub(crate) struct Worked {
    price: Price,
    /// Leading zeros; 0 where nothing was found.
    pub(crate) bits: u32,
}

/// Less was done than the answer costs.
#[derive(Debug)]
pub(crate) struct TooLittleWork {
    pub(crate) wanted: WorkWanted,
}

/// The field of an answer that says what it costs, or has cost.
pub(crate) fn field(wanted: WorkWanted) -> (HeaderName, HeaderValue) {
    let value = HeaderValue::try_from(wanted.to_string());
    (
        HeaderName::from_static(WORK),
        value.expect("digits and letters"),
    )
}

impl Worked {
    /// What was done for a request of this body: one hash is computed, besides the body's.
    pub(crate) fn new(
        price: Price,
        headers: &HeaderMap,
        header_length: Option<usize>,
        body: &[u8],
    ) -> Self {
        let mut all = headers.get_all(WORK).iter();
        let number = match (all.next(), all.next()) {
            (Some(number), None) => number.to_str().ok().and_then(work_number),
            _ => None,
        };
        let salt = price.of(1).salt;
        let bits = number.map_or(0, |number| {
            let header_length = header_length.map(|length| length as u64);
            Puzzle::new(&salt, header_length, body).bits(number)
        });
        Self { price, bits }
    }

    /// What so many answers cost, if that is enough for them.
    pub(crate) fn is_enough_for(&self, answers: u64) -> Result<WorkWanted, TooLittleWork> {
        let wanted = self.price.of(answers);
        if self.bits >= wanted.bits || is(Weakening::UnworkedAnswers) {
            return Ok(wanted);
        }
        Err(TooLittleWork { wanted })
    }
}
