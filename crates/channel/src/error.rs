//! Why a message of the channel was refused.
//!
//! What the server may say in the clear is in [`OpenError`] apart from [`OpenError::Message`],
//! which belongs inside the encapsulation, like every later error.

use crate::{MAXIMUM_HEADER_BYTES, MAXIMUM_HEADER_FIELDS, MAXIMUM_TARGET_BYTES, Responder};

/// Why an encapsulated request was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Larger than the gateway takes.
    #[error("the encapsulated request has {found} bytes, at most {limit} are taken")]
    TooLarge {
        /// The gateway's limit.
        limit: usize,
        /// The request's size.
        found: usize,
    },
    /// Shorter than its header, encapsulated key and tag.
    #[error("the encapsulated request has {found} bytes, the shortest possible has {shortest}")]
    Truncated {
        /// The shortest that can be a request.
        shortest: usize,
        /// The request's size.
        found: usize,
    },
    /// No key of that identifier is alive: it was destroyed, or belongs to another process. The
    /// client should fetch evidence and key anew.
    #[error("no key {id} is in use here")]
    UnknownKey {
        /// The key identifier in the request.
        id: u8,
    },
    /// The request names another KEM, KDF or AEAD than the key configuration does.
    #[error("the request names algorithms that the key configuration does not")]
    UnsupportedSuite,
    /// The key has opened as many requests as it ever will. The client should fetch the new one.
    #[error("the key has opened as many requests as it may")]
    KeyExhausted,
    /// Made for another key, or altered: one variant on purpose, telling them apart helps an
    /// attacker.
    #[error("the encapsulated request is not authentic")]
    Inauthentic,
    /// This very request was opened before.
    #[error("the encapsulated request was seen before")]
    Replayed,
    /// The request is authentic, but the message in it is not one. The answer belongs into the
    /// encapsulation, hence the responder.
    #[error("the message in the request is malformed: {reason}")]
    Message {
        /// What is wrong with the message.
        reason: MessageError,
        /// Seals the answer that says so.
        responder: Box<Responder>,
    },
}

/// Why bytes are not a Binary HTTP message (RFC 9292) that this channel takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The message ends inside one of its parts.
    #[error("the message ends too early")]
    Truncated,
    /// The framing indicator is not that of a known-length message of the direction.
    #[error("the framing indicator is {found}, not {expected}")]
    Framing {
        /// 0 for a request, 1 for a response.
        expected: u64,
        /// What stood there.
        found: u64,
    },
    /// The method, scheme, authority or path is too long.
    #[error(
        "a part of the request line has {found} bytes, at most {MAXIMUM_TARGET_BYTES} are taken"
    )]
    TargetTooLong {
        /// Its length.
        found: u64,
    },
    /// The header fields are too large together.
    #[error("the header fields have {found} bytes, at most {MAXIMUM_HEADER_BYTES} are taken")]
    HeaderTooLarge {
        /// Their length.
        found: u64,
    },
    /// There are too many header fields.
    #[error("there are {found} header fields, at most {MAXIMUM_HEADER_FIELDS} are taken")]
    TooManyFields {
        /// How many there are.
        found: usize,
    },
    /// The method is not one, or is CONNECT, which has no meaning here.
    #[error("the method is not one that can be asked for here")]
    Method,
    /// Scheme, authority and path do not make an HTTP target with an absolute path.
    #[error("the target is not that of an HTTP request")]
    Target,
    /// The status is not a final one, from 200 to 599.
    #[error("the status {found} is not a final one")]
    Status {
        /// What stood there.
        found: u64,
    },
    /// A header field's name is not a token in lower case, or its value has control characters.
    #[error("header field {index} is malformed")]
    Field {
        /// Its place, from 0.
        index: usize,
    },
    /// A field that governs a connection, which an encapsulated message has none of.
    #[error("header field {index} governs a connection")]
    ConnectionField {
        /// Its place, from 0.
        index: usize,
    },
    /// A `content-length` that differs from the content's length.
    #[error("content-length does not say the content's length, {found}")]
    ContentLength {
        /// The content's length.
        found: usize,
    },
    /// Trailer fields, which nothing here sends.
    #[error("trailer fields are not taken")]
    Trailers,
    /// The padding has a byte other than zero (RFC 9292, section 3.8: the message is invalid).
    #[error("byte {position} of the padding is not zero")]
    Padding {
        /// Its place in the padding, from 0.
        position: usize,
    },
}

/// Why a request or an answer was not sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The message is one that the other side would refuse.
    #[error("the message cannot be sealed: {0}")]
    Message(#[from] MessageError),
    /// The cryptography failed, which it does for no message of any allowed size.
    #[error("the encapsulation failed")]
    Encapsulation,
}

/// Why an encapsulated response was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenResponseError {
    /// Larger than the client takes.
    #[error("the encapsulated response has {found} bytes, at most {limit} are taken")]
    TooLarge {
        /// The client's limit.
        limit: usize,
        /// The response's size.
        found: usize,
    },
    /// Not the answer to this request by the holder of the key, or altered.
    #[error("the encapsulated response is not authentic")]
    Inauthentic,
    /// Authentic, but the message in it is not one.
    #[error("the message in the response is malformed: {0}")]
    Message(#[from] MessageError),
}

/// Why an encoded list of key configurations was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyConfigurationError {
    /// Not a list of key configurations (RFC 9458, section 3).
    #[error("the key configurations are malformed")]
    Malformed,
    /// None of them is of a kind that this crate takes.
    #[error("no key configuration has a supported KEM and suite")]
    Unsupported,
}

/// The operating system gave no randomness, or the key could not be made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a channel key could not be made")]
pub struct KeyGenerationError;
