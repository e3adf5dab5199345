//! Why a request has no result.

use http::StatusCode;
use occlude_attest::{CollateralError, DecodeError, Refusal, VerifyError};
use occlude_channel::{Kem, KeyConfigurationError, SealError};
use occlude_inference_protocol::{EncodeError, ProtocolError};
use occlude_keys::ModelIdError;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Not the address of a server.
    #[error("{found} is not a server's address: {reason}")]
    Address {
        /// What was given.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What hardware vendors publish cannot be read.
    #[error("the collateral cannot be read: {0}")]
    Collateral(#[from] CollateralError),
    /// The server could not be reached, or says that it is overloaded.
    #[error("{server} is unavailable: {reason}")]
    Unavailable {
        /// The server.
        server: String,
        /// What happened.
        reason: String,
    },
    /// The server's answer to a question for evidence cannot be read.
    #[error("{server} gave no evidence that can be read: {source}")]
    MalformedEvidence {
        /// The server.
        server: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The evidence does not hold, or not for the nonce and the statement.
    #[error("{server} is not believed: {source}")]
    Unverified {
        /// The server.
        server: String,
        /// What is wrong with it.
        source: VerifyError,
    },
    /// The evidence holds, and the policy refuses what it says.
    #[error("the policy refuses {server}: {refusal}")]
    Refused {
        /// The server.
        server: String,
        /// What was found and what was wanted.
        refusal: Refusal,
    },
    /// The request is for a model that the policy does not let it use, or that
    /// this server does not state to serve. Nothing was sent.
    #[error("nothing was sent to {server}: {refusal}")]
    ModelRefused {
        /// The server.
        server: String,
        /// What is wrong with the model.
        refusal: Refusal,
    },
    /// The request's path has something else where a model's id belongs, so that
    /// the policy cannot judge it. Nothing was sent.
    #[error("nothing was sent to {server}: {source}")]
    NotAModel {
        /// The server.
        server: String,
        /// What stands there, percent-decoded.
        source: ModelIdError,
    },
    /// The service statement has no channel key that this client can use.
    #[error("the channel keys of {server} cannot be used: {source}")]
    ChannelKeys {
        /// The server.
        server: String,
        /// Why not.
        source: KeyConfigurationError,
    },
    /// The channel keys are of another kind than the statement's configuration says,
    /// which the policy has judged.
    #[error("{server} states the key encapsulation {stated:?}, its channel keys are {found}")]
    ChannelKem {
        /// The server.
        server: String,
        /// What the statement says.
        stated: String,
        /// What the keys are.
        found: Kem,
    },
    /// The server answered in the clear where an encapsulated answer belongs.
    /// Such an answer can come from anyone, and is thrown away.
    #[error("{server} answered {status} outside the channel; the answer is not believed")]
    Unencapsulated {
        /// The server.
        server: String,
        /// The status of the answer.
        status: StatusCode,
    },
    /// The encapsulated answer was altered, or belongs to another request.
    #[error("the answer of {server} is not authentic")]
    InauthenticAnswer {
        /// The server.
        server: String,
    },
    /// The request was refused before it was opened. The message is not
    /// authentic: anyone on the way can write one.
    #[error("{server} did not open the request: {status} {message:?}")]
    NotOpened {
        /// The server.
        server: String,
        /// The status of the answer.
        status: StatusCode,
        /// What stands in it, cut to 200 characters.
        message: String,
    },
    /// The request is larger than the server states that it takes.
    #[error("the request takes {found} bytes, the server takes at most {limit}")]
    RequestTooLarge {
        /// Bytes of the encapsulated request.
        found: u64,
        /// Bytes that the service statement allows.
        limit: u64,
    },
    /// The answer is larger than this client takes.
    #[error("the answer of {server} is longer than {limit} bytes")]
    AnswerTooLarge {
        /// The server.
        server: String,
        /// The limit.
        limit: u64,
    },
    /// The model's owner wants more work for an answer than this client does.
    #[error(
        "the answer costs work, about 2^{bits} hashes, and no more than 2^{limit} are done: allow more \
         with --most-work {bits}, or ask about less at once"
    )]
    TooMuchWork {
        /// Bits that are wanted.
        bits: u32,
        /// Bits at most.
        limit: u32,
    },
    /// The request cannot be encapsulated.
    #[error(transparent)]
    Request(SealError),
    /// The verified server answered with an error, through the channel.
    #[error("{status}: {message}")]
    Answered {
        /// The status.
        status: StatusCode,
        /// The protocol's error text.
        message: String,
    },
    /// A tensor cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The verified server's answer to an inference is not one of the protocol's.
    #[error("the answer is malformed: {0}")]
    MalformedAnswer(#[from] ProtocolError),
    /// The verified server's metadata is not the protocol's.
    #[error("the answer is malformed: {0}")]
    MalformedMetadata(serde_json::Error),
}

/// The ways to fail that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A policy or a verification said no.
    Refused,
    /// The server is not reachable or overloaded; trying again may help.
    Unavailable,
    /// Anything else.
    Failed,
}

impl ClientError {
    /// Which way this failed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::MalformedEvidence { .. }
            | Self::Unverified { .. }
            | Self::Refused { .. }
            | Self::ModelRefused { .. }
            | Self::NotAModel { .. }
            | Self::ChannelKeys { .. }
            | Self::ChannelKem { .. }
            | Self::Unencapsulated { .. }
            | Self::InauthenticAnswer { .. } => ErrorKind::Refused,
            Self::Unavailable { .. }
            | Self::Answered {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..
            } => ErrorKind::Unavailable,
            _ => ErrorKind::Failed,
        }
    }
}
