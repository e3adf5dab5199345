//! What the end-to-end tests stand on: a model, real processes, a hostile network.

pub(crate) mod deployment;
pub(crate) mod model;
pub(crate) mod process;
pub(crate) mod wire;
