//! The end-to-end channel: Oblivious HTTP whose key is bound into attestation evidence.
//!
//! 1. The server, inside the TEE, makes a [`Gateway`]; its [`Gateway::key_configurations`] go into
//!    the service statement that the evidence binds.
//! 2. The client, having verified the evidence, makes a [`Sender`] from exactly those bytes.
//! 3. [`Sender::seal`] encapsulates a request; the server's [`Gateway::open`] authenticates it,
//!    refuses it if it ever saw it before, and gives a [`Responder`].
//! 4. [`Responder::seal`] encapsulates the answer, errors included; [`ResponseOpener::open`] reads it.
//!
//! The messages are Oblivious HTTP (RFC 9458) around Binary HTTP (RFC 9292, known length), so
//! that they cross load balancers and TLS terminators. Requests and answers are padded inside the
//! encapsulation: what an onlooker learns of a size is its bucket ([`PADDING`]).
//!
//! Who is hostile: everybody between the client's [`Sender`] and the [`Gateway`]. They read,
//! alter, drop, repeat and reorder messages, set clocks, and encapsulate requests of their own
//! with the public key. A message that was altered anywhere is refused with one opaque error. A
//! request is accepted once in its key's life, whatever any clock says: the gateway remembers each
//! encapsulation until the key itself is destroyed.
//!
//! What this does not do: it knows nothing of evidence (a [`Sender`] made of an unverified key
//! protects nobody), it does not hide how many requests there are or when, and it does not
//! survive the cloning of a running TEE's memory, which the TEE itself has to prevent. The private
//! key stays in this process and goes when it ends; it is never written anywhere.
//!
//! Plaintext is wiped when the last [`bytes::Bytes`] of a body is dropped. Header fields and
//! targets live in ordinary strings, and are not.

#![forbid(unsafe_code)]

mod error;
mod gateway;
mod key;
mod message;
mod padding;
mod sender;

pub use error::{
    KeyConfigurationError, KeyGenerationError, MessageError, OpenError, OpenResponseError,
    SealError,
};
pub use gateway::{Gateway, Limits, Responder};
pub use key::{Kem, UnknownKem};
pub use padding::{PADDING, padded_length};
pub use sender::{ResponseOpener, Sender};

/// The media type of an encapsulated request (RFC 9458, section 9.2).
pub const REQUEST_MEDIA_TYPE: &str = "message/ohttp-req";

/// The media type of an encapsulated response (RFC 9458, section 9.3).
pub const RESPONSE_MEDIA_TYPE: &str = "message/ohttp-res";

/// The problem type (RFC 9457) that tells a client to fetch the key anew (RFC 9458, section 5.3).
pub const KEY_PROBLEM_TYPE: &str = "https://iana.org/assignments/http-problem-types#ohttp-key";

/// Bytes of a method, scheme, authority or path. Servers commonly allow 8 KiB for a request line.
pub const MAXIMUM_TARGET_BYTES: usize = 8 << 10;

/// Bytes of all header fields together. The inference protocol needs a few hundred.
pub const MAXIMUM_HEADER_BYTES: usize = 16 << 10;

/// Header fields of one message.
pub const MAXIMUM_HEADER_FIELDS: usize = 128;
