//! Whether a client's queries of a model are unusual: not how many they are, but what they
//! are.
//!
//! 1. Each input becomes a [`Sketch`], a few numbers whose distances are about those of the
//!    inputs, so that what is kept of a client has a size that does not depend on the model.
//! 2. A [`Window`] takes what was looked at in so many of a client's answers, and their
//!    sketches; some of those it keeps for the windows that follow.
//! 3. What it comes to is a [`Finding`]: coarse counts, which may leave the TEE, and
//!    whether they are unusual by the owner's [`Telemetry`](occlude_guard::Telemetry).
//!
//! **An attacker who knows all this asks so that nothing of it is unusual.** It costs queries,
//! which budgets count.

#![forbid(unsafe_code)]

mod sketch;
mod window;

pub use sketch::{Sketch, SketchKey};
pub use window::{Finding, Observation, Window};
