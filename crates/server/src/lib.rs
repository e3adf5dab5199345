//! The inference service inside the trusted execution environment (TEE).
//!
//! 1. [`Settings`] come from flags, environment and file; [`Settings::resolve`]
//!    checks them.
//! 2. [`Server::bind`] takes the port, opens the TEE, and checks the owner's signature
//!    on each sealed model; all have one owner, since one owner's graph may break into
//!    the process. Then it gets each key from the broker for evidence, and loads.
//! 3. [`Server::run`] answers until it is told to stop. Outside the channel there
//!    are evidence, health and metrics; the Open Inference Protocol v2 is answered
//!    only through the channel, errors included.
//! 4. Meanwhile each model's lease is renewed: refused, it is unloaded at once;
//!    unanswered, when the lease ends.
//!
//! | outside the channel | |
//! |---|---|
//! | `GET /.well-known/occlude/attestation?nonce=` | the service statement and fresh evidence over it |
//! | `POST /.well-known/occlude/channel` | an encapsulated request (RFC 9458), one answer |
//! | `GET /healthz`, `GET /metrics` | for orchestrators; nothing about requests' contents |
//! | `/v2…` | 421: not answered here |
//!
//! Hostile: everyone who reaches the port, the machine's administrator, the files
//! and the network. Logs and metrics hold nothing that came or went inside the
//! channel, not even which model was asked for. Sizes, times, the number of
//! requests and the memory that they take are limited; service as such can be
//! denied by the operator and is not promised.
//!
//! What this does not do: TLS (a load balancer's, and nothing rests on it). Who asks, how much
//! and at what price is the model's owner's to say, in its guard.

#![forbid(unsafe_code)]

mod admission;
mod answer;
mod attestation;
mod budget;
mod error;
mod inner;
mod lease;
mod loading;
mod metrics;
mod mirror;
mod models;
mod outer;
mod server;
mod settings;
mod work;
mod write_limit;

pub use budget::AllowError;
pub use error::{ServeError, StartError, StartErrorKind};
pub use server::Server;
pub use settings::{
    DEFAULT_LISTEN, DEFAULT_MAXIMUM_REQUEST, MemoryBudget, ServerOptions, Settings, SettingsError,
};
