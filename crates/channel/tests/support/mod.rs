//! What the tests of the channel have in common.
#![allow(dead_code, reason = "each test file uses its own part")]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use occlude_channel::{Gateway, Kem, Limits, OpenError, Responder, Sender};

pub(crate) const BOTH: [Kem; 2] = [Kem::XWing, Kem::X25519];

pub(crate) fn gateway(kem: Kem) -> Gateway {
    Gateway::new(kem, Limits::default()).unwrap()
}

pub(crate) fn sender(gateway: &Gateway) -> Sender {
    Sender::from_key_configurations(&gateway.key_configurations()).unwrap()
}

pub(crate) fn request() -> Request<Bytes> {
    Request::post("https://model.example/v2/models/digits/infer?trace=no")
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .body(Bytes::from_static(b"{\"inputs\":[]}"))
        .unwrap()
}

pub(crate) fn response(status: StatusCode, body: &'static [u8]) -> Response<Bytes> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Bytes::from_static(body))
        .unwrap()
}

/// Encapsulates any bytes to a gateway, as a client that does not keep to the rules would.
pub(crate) fn encapsulate(gateway: &Gateway, message: &[u8]) -> Vec<u8> {
    sender(gateway).seal_message(message).unwrap().0
}

/// An [`OpenError`] that can be compared, without its data.
#[allow(clippy::needless_pass_by_value, reason = "so that it wraps the call")]
pub(crate) fn refusal(opened: Result<(Request<Bytes>, Responder), OpenError>) -> &'static str {
    match opened {
        Ok(_) => "opened",
        Err(OpenError::TooLarge { .. }) => "too large",
        Err(OpenError::Truncated { .. }) => "truncated",
        Err(OpenError::UnknownKey { .. }) => "unknown key",
        Err(OpenError::UnsupportedSuite) => "unsupported suite",
        Err(OpenError::KeyExhausted) => "key exhausted",
        Err(OpenError::Inauthentic) => "inauthentic",
        Err(OpenError::Replayed) => "replayed",
        Err(OpenError::Message { .. }) => "message",
        Err(_) => "another",
    }
}
