//! Panels that threads open together before any of them reads one.

use std::ops::Range;

use crate::panels::Panels;
use crate::product::{Failure, Scratch};
use crate::shares::Gate;

/// A panel, and its part of the scratch: where it begins, and how many numbers it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) panel: usize,
    pub(crate) start: usize,
    pub(crate) length: usize,
}

/// Those of some panels that are not in memory are opened, by whoever comes.
pub(crate) struct Opening<'a, P: Panels> {
    panels: &'a P,
    scratch: &'a Scratch,
    streamed: Vec<Part>,
    gate: Gate,
    failure: Failure<P::Error>,
}

impl<'a, P: Panels> Opening<'a, P> {
    /// # Safety
    /// The parts do not overlap, nobody else writes to them, and the borrow that `scratch`
    /// took lives.
    pub(crate) unsafe fn new(
        panels: &'a P,
        scratch: &'a Scratch,
        parts: impl Iterator<Item = Part>,
        threads: usize,
    ) -> Self {
        let streamed: Vec<Part> = parts
            .filter(|part| panels.resident(part.panel).is_none())
            .collect();
        let gate = Gate::new(streamed.len(), threads);
        Self {
            panels,
            scratch,
            streamed,
            gate,
            failure: Failure::new(),
        }
    }

    /// Opens some of the panels, and waits for the rest: after that all of them can be read,
    /// where they are in memory or where their parts begin. False if one could not be opened.
    pub(crate) fn pass(&self) -> bool {
        self.gate.pass(|index| {
            let Part {
                panel,
                start,
                length,
            } = self.streamed[index];
            // SAFETY: by the contract of `new`, and as each number comes once.
            let out = unsafe { self.scratch.part(start, length) };
            let outcome = self.panels.open(panel, out);
            outcome.map_err(|error| self.failure.report(error)).is_ok()
        })
    }

    /// # Errors
    /// Why a panel could not be opened.
    pub(crate) fn into_result(self) -> Result<(), P::Error> {
        self.failure.into_result()
    }
}

/// Where some panels begin: in memory, or in their parts of the scratch once these have been
/// opened.
pub(crate) struct Opened(Vec<*const f32>);

// SAFETY: several threads only read what the pointers point to.
unsafe impl Sync for Opened {}

impl Opened {
    pub(crate) fn new<P: Panels>(
        panels: &P,
        scratch: &Scratch,
        parts: impl Iterator<Item = Part>,
    ) -> Self {
        let place = |part: Part| match panels.resident(part.panel) {
            Some(weights) => weights.as_ptr(),
            None => scratch.start(part.start),
        };
        Self(parts.map(place).collect())
    }

    pub(crate) fn panel(&self, panel: usize) -> *const f32 {
        self.0[panel]
    }

    pub(crate) fn panels(&self, panels: Range<usize>) -> &[*const f32] {
        &self.0[panels]
    }
}
