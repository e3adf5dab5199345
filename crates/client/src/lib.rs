//! Verifies a server's evidence, then talks to it; and the local verifying proxy.
//!
//! 1. [`Client::connect`] asks the server for evidence over a fresh nonce, verifies
//!    it, and judges claims and service statement by the [`Policy`]. Only then
//!    does it take the channel keys that the evidence covers.
//! 2. [`Client::request`] encapsulates a request to those keys; [`Client::infer`],
//!    [`Client::model_metadata`] and [`Client::server_metadata`] speak the Open
//!    Inference Protocol v2 that way. A request that names a model is judged by the
//!    policy first, and not sent if the policy does not let it use that model. Every hour, and when the server's keys have
//!    rotated, it verifies again first.
//! 3. [`proxy`] offers the same to unmodified clients as plain HTTP on loopback.
//! 4. [`observe`] verifies without a policy, for showing and for pinning.
//!
//! Hostile: the network, the server's operator, and the server itself until its
//! evidence is verified and judged. A status, a header or a body that came
//! outside the encapsulation is at most the reason of an error, never a result,
//! and nothing is ever sent in the clear instead.
//!
//! What this does not do: trust TLS. Behind `https://` it is used, for what it
//! hides from third parties, but nothing rests on it: load balancers may end it.
//!
//! [`Policy`]: occlude_attest::Policy
#![forbid(unsafe_code)]

mod client;
mod error;
mod path;
pub mod proxy;
mod token;
mod transport;
mod work;

pub use client::{Client, ClientOptions, observe};
pub use error::{ClientError, ErrorKind};
pub use token::{Token, TokenError};
