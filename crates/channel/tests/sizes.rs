//! What an onlooker learns of a size: its bucket, and nothing else.

mod support;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use occlude_channel::{Gateway, Kem, Sender, padded_length};

use support::{BOTH, gateway, response, sender};

/// Header, encapsulated key and tag around a request.
fn request_overhead(kem: Kem) -> usize {
    match kem {
        Kem::XWing => 7 + 1120 + 16,
        Kem::X25519 => 7 + 32 + 16,
    }
}

/// Nonce (as long as the AEAD's key) and tag around a response.
const RESPONSE_OVERHEAD: usize = 32 + 16;

/// The message around a body: framing, `POST`, `https`, no authority, `/x`, no fields, the
/// content's length and no trailers.
fn message_length(body: usize) -> usize {
    let length_of_length = match body {
        0..64 => 1,
        64..16_384 => 2,
        _ => 4,
    };
    1 + 5 + 6 + 1 + 3 + 1 + length_of_length + body + 1
}

fn exchange(gateway: &Gateway, sender: &Sender, body: usize) -> (usize, usize) {
    let request = Request::post("/x")
        .body(Bytes::from(vec![7; body]))
        .unwrap();
    let (wire, opener) = sender.seal(&request).unwrap();
    let (received, responder) = gateway.open(&wire).unwrap();
    assert_eq!(received.body(), request.body());
    let sealed = responder.seal(Response::new(received.into_body())).unwrap();
    let opened = opener.open(&sealed).unwrap();
    assert_eq!(opened.body(), request.body());
    (wire.len(), sealed.len())
}

#[test]
fn the_size_of_an_encapsulated_message_is_that_of_its_bucket() {
    for kem in BOTH {
        let gateway = gateway(kem);
        let sender = sender(&gateway);
        let edges = [4096, 8192, 65_536, 1 << 20, 2 << 20, 3 << 20];
        let around = edges
            .into_iter()
            .flat_map(|edge| (edge - 30)..(edge + 2))
            .step_by(5);
        for body in [0, 1, 63, 64, 1000].into_iter().chain(around) {
            let (request, response) = exchange(&gateway, &sender, body);
            assert_eq!(
                request,
                request_overhead(kem) + padded_length(message_length(body)),
                "{body}"
            );
            assert_eq!((response - RESPONSE_OVERHEAD) % 4096, 0);
        }
    }
}

#[test]
fn messages_that_fill_a_bucket_exactly_are_not_padded_further() {
    let gateway = gateway(Kem::X25519);
    let sender = sender(&gateway);
    let fits = 4096 - message_length(64) + 64;
    assert_eq!(exchange(&gateway, &sender, fits).0, 4096 + 55);
    assert_eq!(exchange(&gateway, &sender, fits + 1).0, 8192 + 55);
}

#[test]
fn an_error_is_as_long_as_an_answer() {
    let gateway = gateway(Kem::XWing);
    let sender = sender(&gateway);
    let mut lengths = Vec::new();
    for (status, body) in [
        (
            StatusCode::OK,
            b"{\"outputs\":[{\"name\":\"y\"}]}".as_slice(),
        ),
        (StatusCode::NO_CONTENT, b""),
        (
            StatusCode::BAD_REQUEST,
            b"{\"error\":\"no input of that name\"}",
        ),
        (StatusCode::INTERNAL_SERVER_ERROR, &[b'x'; 3000]),
    ] {
        let request = Request::get("/v2").body(Bytes::new()).unwrap();
        let (wire, _) = sender.seal(&request).unwrap();
        let (_, responder) = gateway.open(&wire).unwrap();
        lengths.push(responder.seal(response(status, body)).unwrap().len());
    }
    assert_eq!(lengths, [4096 + RESPONSE_OVERHEAD; 4]);
}
