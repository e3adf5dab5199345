//! Panels that threads open together before any of them reads one.

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
