//! Work that a server wants for an answer, done without anybody noticing but for the time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use occlude_inference_protocol::{
    INFERENCE_HEADER_CONTENT_LENGTH, Puzzle, WORK, WorkWanted, work_number,
};

use crate::ClientError;

/// Paths whose price is remembered.
const MOST_REMEMBERED: usize = 256;

/// What a client does for answers, and what they cost last.
#[derive(Debug)]
pub(crate) struct Worker {
    /// More is refused.
    most_bits: u32,
    /// By path and about how long the request is: such requests have about as many answers.
    last: Mutex<HashMap<(String, u32), WorkWanted>>,
}

impl Worker {
    pub(crate) fn new(most_bits: u32) -> Self {
        Self {
            most_bits,
            last: Mutex::default(),
        }
    }

    /// Does for a request what the last one like it cost; nothing where that is not known, or
    /// was too much: it may be less now.
    pub(crate) async fn expect(&self, request: &mut Request<Bytes>) -> Result<(), ClientError> {
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&kind(request))
            .copied();
        match last {
            Some(wanted) if wanted.bits <= self.most_bits => self.solve(request, wanted).await,
            _ => Ok(()),
        }
    }

    /// Does what an answer asks for, and says whether the request is to be sent again. One that
    /// was enough says what it cost, which may be less than what was done.
    pub(crate) async fn follow(
        &self,
        request: &mut Request<Bytes>,
        answer: &Response<Bytes>,
    ) -> Result<bool, ClientError> {
        let Some(wanted) = wanted(answer.headers()) else {
            return Ok(false);
        };
        self.remember(kind(request), wanted);
        if answer.status() != StatusCode::PRECONDITION_REQUIRED {
            return Ok(false);
        }
        self.solve(request, wanted).await?;
        Ok(true)
    }

    fn remember(&self, kind: (String, u32), wanted: WorkWanted) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= MOST_REMEMBERED {
            last.clear();
        }
        last.insert(kind, wanted);
    }

    async fn solve(
        &self,
        request: &mut Request<Bytes>,
        wanted: WorkWanted,
    ) -> Result<(), ClientError> {
        let WorkWanted { bits, salt } = wanted;
        if bits > self.most_bits {
            return Err(ClientError::TooMuchWork {
                bits,
                limit: self.most_bits,
            });
        }
        let length = request.headers().get(INFERENCE_HEADER_CONTENT_LENGTH);
        let length = length.and_then(|length| work_number(length.to_str().ok()?));
        let body = request.body().clone();
        // Whoever does not wait any longer has it given up.
        let waits = Waits(Arc::new(AtomicBool::new(true)));
        let waited = Arc::clone(&waits.0);
        let found = tokio::task::spawn_blocking(move || {
            Puzzle::new(&salt, length, &body).solve(bits, || !waited.load(Ordering::Relaxed))
        });
        let found = found.await.ok().flatten();
        // Nobody else gives it up, but the end of the runtime.
        if let Some(number) = found {
            request
                .headers_mut()
                .insert(WORK, HeaderValue::from(number));
        }
        Ok(())
    }
}

/// Says when it is dropped that nobody waits.
struct Waits(Arc<AtomicBool>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn kind(request: &Request<Bytes>) -> (String, u32) {
    let length = request.body().len().checked_ilog2().unwrap_or(0);
    (request.uri().path().to_owned(), length)
}

/// What the one field of an answer says.
fn wanted(headers: &HeaderMap) -> Option<WorkWanted> {
    let mut all = headers.get_all(WORK).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return None;
    };
    value.to_str().ok()?.parse().ok()
}
