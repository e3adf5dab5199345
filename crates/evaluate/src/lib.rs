//! Measures Occlude as a whole, against plain ONNX Runtime.
//!
//! 1. [`bench::bench`] seals a model in memory, runs it plain and sealed in turns,
//!    under one budget of protected memory after another, and reports times, memory
//!    and how far the answers differ.
//! 2. It measures memory in processes of its own, started with a command that the
//!    caller gives; what such a process does is [`bench::measure_memory`].
//!
//! 3. [`cost::cost`] adds what else one would run, up to a whole [`deployment`] of
//!    processes asked over its channel, takes the cost apart, and draws it.
//!
//! 4. [`protection::protection`] attacks such a deployment, as the operator, the network,
//!    clients and makers of models would, and each check once more where the protection
//!    that it is about was left out.
//!
//! 5. [`guard::guard`] has models copied by asking them, with each defence against that and
//!    without, and says by how much it got dearer.
//!
//! 6. [`claim::claim`] looks for a guard's watermark in a model that may be a copy.
//! 7. [`watch::watch`] says what a guard's telemetry would say of queries.
//!
//! What this does not do: it prints nothing, and it keeps no secret. The model that
//! it measures lies in the clear on the caller's disk, and the keys that it seals with
//! are thrown away. Its deployments listen on loopback alone, accept this very machine
//! and program, and end with the measurement.
//!
//! Nobody is hostile here: whoever measures owns the model and the machine, and plays the
//! attacker where it attacks.
#![forbid(unsafe_code)]

pub mod bench;
pub mod claim;
pub mod cost;
pub mod deployment;
mod examples;
pub mod guard;
mod number;
mod owner;
mod page;
mod processes;
pub mod protection;
mod random;
pub mod watch;

pub use number::number;
