//! Whatever is sent arrives the same, and no bytes make either end panic.

mod support;

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use occlude_channel::{Gateway, Kem, OpenError, Sender, padded_length};
use proptest::collection::vec;
use proptest::prelude::*;

use support::{encapsulate, gateway, request, sender};

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| gateway(Kem::X25519));
static SENDER: LazyLock<Sender> = LazyLock::new(|| sender(&GATEWAY));

proptest! {
    #[test]
    fn any_exchange_arrives_the_same(
        method in "GET|POST|PUT|X-[A-Z]{1,5}",
        path in "/[a-z0-9/._~%-]{0,40}(\\?[a-z0-9=&]{0,20})?",
        authority in proptest::option::of("[a-z]{1,9}(\\.[a-z]{1,9}){0,2}(:[1-9][0-9]{0,3})?"),
        fields in vec(("x-[a-z0-9-]{1,12}", "[ -~]{0,30}"), 0..8),
        body in vec(any::<u8>(), 0..6000),
        status in 200_u16..600,
    ) {
        let uri = authority.map_or(path.clone(), |authority| format!("https://{authority}{path}"));
        let mut sent = Request::builder()
            .method(method.as_str())
            .uri(uri)
            .body(Bytes::from(body.clone()))
            .unwrap();
        let mut answer = Response::builder().status(status).body(Bytes::from(body)).unwrap();
        for (name, value) in fields {
            let name = HeaderName::try_from(name).unwrap();
            let value = HeaderValue::try_from(value).unwrap();
            sent.headers_mut().append(name.clone(), value.clone());
            answer.headers_mut().append(name, value);
        }
        let (wire, opener) = SENDER.seal(&sent).unwrap();
        let (received, responder) = GATEWAY.open(&wire).unwrap();
        prop_assert_eq!(received.method(), sent.method());
        prop_assert_eq!(received.uri(), sent.uri());
        prop_assert_eq!(received.headers(), sent.headers());
        prop_assert_eq!(received.body(), sent.body());
        let opened = opener.open(&responder.seal(answer.clone()).unwrap()).unwrap();
        prop_assert_eq!(opened.status(), answer.status());
        prop_assert_eq!(opened.headers(), answer.headers());
        prop_assert_eq!(opened.body(), answer.body());
    }

    #[test]
    fn no_bytes_are_opened_or_make_the_gateway_panic(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(GATEWAY.open(&bytes).is_err());
    }

    #[test]
    fn no_bytes_are_taken_for_a_response(bytes in vec(any::<u8>(), 0..200)) {
        let (_, opener) = SENDER.seal(&request()).unwrap();
        prop_assert!(opener.open(&bytes).is_err());
    }

    #[test]
    fn no_message_makes_the_gateway_panic(message in vec(any::<u8>(), 0..200)) {
        match GATEWAY.open(&encapsulate(&GATEWAY, &message)) {
            Ok(_) | Err(OpenError::Message { .. }) => {}
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn no_key_configurations_make_the_client_panic(
        mut list in vec(any::<u8>(), 0..120), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let _ = Sender::from_key_configurations(&list);
        list = GATEWAY.key_configurations();
        let at = at.index(list.len());
        list[at] = byte;
        if let Ok(sender) = Sender::from_key_configurations(&list) {
            let _ = sender.seal(&request());
        }
    }

    #[test]
    fn padding_covers_the_message_and_costs_at_most_its_bucket(length in 0_usize..100_000_000) {
        let padded = padded_length(length);
        prop_assert!(padded >= length && padded >= 4096);
        prop_assert!(padded - length < (1 << 20).min(length.max(4096)) || length == 0);
        prop_assert_eq!(padded_length(padded), padded);
    }
}
