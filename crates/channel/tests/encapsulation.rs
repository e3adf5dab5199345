//! Requests and responses, whole, altered, cut and mixed up.

mod support;

use bytes::Bytes;
use http::{Request, StatusCode};
use occlude_channel::{
    Gateway, Kem, KeyConfigurationError, Limits, OpenError, OpenResponseError, Sender, UnknownKem,
};

use support::{BOTH, encapsulate, gateway, refusal, request, response, sender};

/// Key identifier, KEM, KDF and AEAD (RFC 9458, section 4.3).
const HEADER: usize = 7;
const TAG: usize = 16;

fn encapsulated_key_length(kem: Kem) -> usize {
    match kem {
        Kem::XWing => 1120,
        Kem::X25519 => 32,
    }
}

/// Every byte with X25519; with X-Wing, which is slower, every byte of what differs.
fn step(kem: Kem) -> usize {
    match kem {
        Kem::XWing => 37,
        Kem::X25519 => 1,
    }
}

#[test]
fn a_request_and_its_answer_arrive_as_they_were_sent() {
    for kem in BOTH {
        let gateway = gateway(kem);
        let sender = sender(&gateway);
        assert_eq!((gateway.kem(), sender.kem()), (kem, kem));
        let sent = request();
        let (encapsulated, opener) = sender.seal(&sent).unwrap();
        let (received, responder) = gateway.open(&encapsulated).unwrap();
        assert_eq!(received.method(), sent.method());
        assert_eq!(received.uri(), sent.uri());
        assert_eq!(received.headers(), sent.headers());
        assert_eq!(received.body(), sent.body());

        let answer = response(StatusCode::NOT_FOUND, b"{\"error\":\"no such model\"}");
        let sealed = responder.seal(answer.clone()).unwrap();
        let opened = opener.open(&sealed).unwrap();
        assert_eq!(opened.status(), answer.status());
        assert_eq!(opened.headers(), answer.headers());
        assert_eq!(opened.body(), answer.body());
    }
}

#[test]
fn the_post_quantum_kem_is_the_default_and_both_have_names() {
    assert_eq!(Kem::default(), Kem::XWing);
    for kem in BOTH {
        assert_eq!(kem.to_string().parse(), Ok(kem));
    }
    assert_eq!("p256".parse::<Kem>(), Err(UnknownKem));
}

#[test]
fn nothing_of_a_message_can_be_read_on_the_wire() {
    let gateway = gateway(Kem::XWing);
    let secret = b"a secret input of a user";
    let sent = Request::post("/v2/models/digits/infer")
        .body(Bytes::from_static(secret))
        .unwrap();
    let (encapsulated, opener) = sender(&gateway).seal(&sent).unwrap();
    let (_, responder) = gateway.open(&encapsulated).unwrap();
    let sealed = responder.seal(response(StatusCode::OK, secret)).unwrap();
    for wire in [&encapsulated, &sealed] {
        for part in [&secret[..8], b"/v2/models", b"application"] {
            assert!(!wire.windows(part.len()).any(|window| window == part));
        }
    }
    assert_eq!(opener.open(&sealed).unwrap().body(), &secret[..]);
}

#[test]
fn a_request_altered_in_any_byte_is_refused() {
    for kem in BOTH {
        let gateway = gateway(kem);
        let (mut wire, _) = sender(&gateway).seal(&request()).unwrap();
        let key = HEADER + encapsulated_key_length(kem);
        for position in (0..key).chain((key..wire.len()).step_by(step(kem))) {
            // Each bit of an X25519 key, of which the last is ignored by the curve itself.
            let bits = if (key - 32..key).contains(&position) {
                0..8
            } else {
                position % 8..position % 8 + 1
            };
            for bit in bits {
                wire[position] ^= 1 << bit;
                let expected = match position {
                    0 => "unknown key",
                    1..HEADER => "unsupported suite",
                    _ => "inauthentic",
                };
                assert_eq!(refusal(gateway.open(&wire)), expected, "byte {position}");
                wire[position] ^= 1 << bit;
            }
        }
        // None of that was remembered in place of the request itself.
        assert_eq!(refusal(gateway.open(&wire)), "opened");
    }
}

#[test]
fn a_request_cut_at_any_length_is_refused() {
    for kem in BOTH {
        let gateway = gateway(kem);
        let (wire, _) = sender(&gateway).seal(&request()).unwrap();
        let shortest = HEADER + encapsulated_key_length(kem) + TAG;
        for length in (0..shortest).chain((shortest..wire.len()).step_by(step(kem))) {
            let opened = gateway.open(&wire[..length]);
            if length < shortest {
                assert!(
                    matches!(opened, Err(OpenError::Truncated { shortest: s, found })
                        if s == shortest && found == length)
                );
            } else {
                assert_eq!(refusal(opened), "inauthentic", "length {length}");
            }
        }
        assert_eq!(refusal(gateway.open(&wire)), "opened");
    }
}

#[test]
fn a_request_with_bytes_after_it_is_refused() {
    let gateway = gateway(Kem::X25519);
    let (mut wire, _) = sender(&gateway).seal(&request()).unwrap();
    wire.push(0);
    assert_eq!(refusal(gateway.open(&wire)), "inauthentic");
}

#[test]
fn a_request_over_the_limit_is_refused_by_its_size() {
    let (wire, _) = {
        let open = gateway(Kem::X25519);
        sender(&open).seal(&request()).unwrap()
    };
    let limits = Limits {
        maximum_encapsulated_bytes: wire.len() - 1,
        ..Limits::default()
    };
    let gateway = Gateway::new(Kem::X25519, limits).unwrap();
    assert!(
        matches!(gateway.open(&wire), Err(OpenError::TooLarge { limit, found })
            if limit == wire.len() - 1 && found == wire.len())
    );
}

#[test]
fn a_request_for_another_gateway_is_refused() {
    for kem in BOTH {
        let (mine, other) = (gateway(kem), gateway(kem));
        let (mut wire, _) = sender(&other).seal(&request()).unwrap();
        // Under the same identifier, which two processes have by chance.
        wire[0] = mine.key_configurations()[2];
        assert_eq!(refusal(mine.open(&wire)), "inauthentic");
        let unused = wire[0].wrapping_add(1);
        wire[0] = unused;
        assert!(matches!(
            mine.open(&wire),
            Err(OpenError::UnknownKey { id }) if id == unused
        ));
    }
}

#[test]
fn a_response_altered_in_any_byte_is_refused() {
    let gateway = gateway(Kem::X25519);
    let sender = sender(&gateway);
    let mut position = 0;
    loop {
        let (wire, opener) = sender.seal(&request()).unwrap();
        let (_, responder) = gateway.open(&wire).unwrap();
        let mut sealed = responder.seal(response(StatusCode::OK, b"{}")).unwrap();
        let Some(byte) = sealed.get_mut(position) else {
            return;
        };
        *byte ^= 1 << (position % 8);
        assert_eq!(
            opener.open(&sealed).unwrap_err(),
            OpenResponseError::Inauthentic,
            "byte {position}"
        );
        position += 1;
    }
}

#[test]
fn a_response_cut_at_any_length_is_refused() {
    let gateway = gateway(Kem::X25519);
    let sender = sender(&gateway);
    for length in (0..100).chain([1000, 4096, 4143]) {
        let (wire, opener) = sender.seal(&request()).unwrap();
        let (_, responder) = gateway.open(&wire).unwrap();
        let sealed = responder.seal(response(StatusCode::OK, b"{}")).unwrap();
        assert_eq!(
            opener.open(&sealed[..length]).unwrap_err(),
            OpenResponseError::Inauthentic,
            "length {length}"
        );
    }
}

#[test]
fn the_response_to_another_request_is_refused() {
    for kem in BOTH {
        let gateway = gateway(kem);
        let sender = sender(&gateway);
        let (first, first_opener) = sender.seal(&request()).unwrap();
        let (second, second_opener) = sender.seal(&request()).unwrap();
        let (_, first_responder) = gateway.open(&first).unwrap();
        let (_, second_responder) = gateway.open(&second).unwrap();
        let first_answer = first_responder
            .seal(response(StatusCode::OK, b"1"))
            .unwrap();
        let second_answer = second_responder
            .seal(response(StatusCode::OK, b"2"))
            .unwrap();
        assert_eq!(
            first_opener.open(&second_answer).unwrap_err(),
            OpenResponseError::Inauthentic
        );
        assert_eq!(
            second_opener.open(&first_answer).unwrap_err(),
            OpenResponseError::Inauthentic
        );
    }
}

#[test]
fn a_plain_answer_is_never_taken_for_a_response() {
    let gateway = gateway(Kem::XWing);
    for plain in [
        b"".as_slice(),
        b"{\"outputs\":[]}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        &[0; 5000],
    ] {
        let (_, opener) = sender(&gateway).seal(&request()).unwrap();
        assert_eq!(
            opener.open(plain).unwrap_err(),
            OpenResponseError::Inauthentic
        );
    }
}

#[test]
fn a_response_over_the_clients_limit_is_refused_by_its_size() {
    let gateway = gateway(Kem::X25519);
    let sender = sender(&gateway).with_maximum_response_bytes(100);
    let (_, opener) = sender.seal(&request()).unwrap();
    assert_eq!(
        opener.open(&[0; 101]).unwrap_err(),
        OpenResponseError::TooLarge {
            limit: 100,
            found: 101
        }
    );
}

#[test]
fn a_malformed_message_is_answered_inside_the_encapsulation() {
    let gateway = gateway(Kem::X25519);
    let client =
        ohttp::ClientRequest::from_encoded_config_list(&gateway.key_configurations()).unwrap();
    let (wire, opener) = client.encapsulate(b"\x07 not Binary HTTP").unwrap();
    let Err(OpenError::Message { responder, .. }) = gateway.open(&wire) else {
        panic!("opened");
    };
    let sealed = responder
        .seal(response(StatusCode::BAD_REQUEST, b"{}"))
        .unwrap();
    let message = opener.decapsulate(&sealed).unwrap();
    // Framing indicator 1, status 400 in two bytes.
    assert_eq!(message[..3], [1, 0x41, 0x90]);
    assert_eq!(message.len(), 4096);
    // It counts as seen.
    assert_eq!(refusal(gateway.open(&wire)), "replayed");
}

#[test]
fn a_request_that_names_other_algorithms_is_refused() {
    let gateway = gateway(Kem::X25519);
    let wire = encapsulate(&gateway, b"");
    let aead_aes_128_gcm = 1;
    let mut altered = wire.clone();
    altered[6] = aead_aes_128_gcm;
    assert_eq!(refusal(gateway.open(&altered)), "unsupported suite");
    assert_eq!(wire[..7], [wire[0], 0, 0x20, 0, 1, 0, 3]);
}

#[test]
fn key_configurations_that_are_not_any_are_refused() {
    let list = gateway(Kem::XWing).key_configurations();
    let refused = |list: &[u8]| Sender::from_key_configurations(list).unwrap_err();
    for length in 1..list.len() {
        assert_eq!(
            refused(&list[..length]),
            KeyConfigurationError::Malformed,
            "length {length}"
        );
    }
    assert_eq!(refused(&[]), KeyConfigurationError::Unsupported);
    let mut longer = list.clone();
    longer.push(0);
    assert_eq!(refused(&longer), KeyConfigurationError::Malformed);
    // A byte more inside the one configuration.
    longer[1] += 1;
    assert_eq!(refused(&longer), KeyConfigurationError::Malformed);
    // P-256, which exists, but not here; and a KEM that does not exist.
    for kem in [[0x00, 0x10], [0xff, 0xff]] {
        let mut other = list.clone();
        other[3..5].copy_from_slice(&kem);
        assert_eq!(refused(&other), KeyConfigurationError::Unsupported);
    }
    // Only suites that we do not take: AES-128-GCM, and one that does not exist.
    let aead = list.len() - 1;
    for algorithm in [1, 77] {
        let mut other = list.clone();
        other[aead] = algorithm;
        assert_eq!(refused(&other), KeyConfigurationError::Unsupported);
    }
}

#[test]
fn the_first_supported_key_configuration_is_used() {
    let (first, second) = (gateway(Kem::XWing), gateway(Kem::X25519));
    let mut unsupported = second.key_configurations();
    unsupported[3..5].copy_from_slice(&[0xff, 0xff]);
    let list = [
        unsupported,
        first.key_configurations(),
        second.key_configurations(),
    ]
    .concat();
    let sender = Sender::from_key_configurations(&list).unwrap();
    assert_eq!(sender.kem(), Kem::XWing);
    let (wire, _) = sender.seal(&request()).unwrap();
    assert_eq!(refusal(first.open(&wire)), "opened");
}

#[test]
fn the_key_configuration_of_rfc_9458_is_read() {
    // RFC 9458, appendix A: X25519, with AES-128-GCM and ChaCha20-Poly1305.
    let configuration = hex(
        "01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003",
    );
    let length = u16::try_from(configuration.len()).unwrap().to_be_bytes();
    let list = [length.to_vec(), configuration].concat();
    let sender = Sender::from_key_configurations(&list).unwrap();
    assert_eq!(sender.kem(), Kem::X25519);
    let (wire, _) = sender.seal(&request()).unwrap();
    assert_eq!(wire[..3], [1, 0, 0x20]);
}

#[test]
fn debug_output_tells_nothing_of_keys() {
    let gateway = gateway(Kem::X25519);
    let sender = sender(&gateway);
    let (wire, opener) = sender.seal(&request()).unwrap();
    let (_, responder) = gateway.open(&wire).unwrap();
    for text in [
        format!("{gateway:?}"),
        format!("{sender:?}"),
        format!("{opener:?}"),
        format!("{responder:?}"),
    ] {
        assert!(text.ends_with(" .. }") && text.len() < 250, "{text}");
    }
}

#[test]
fn the_level_at_which_keys_are_logged_is_compiled_out() {
    assert!(log::STATIC_MAX_LEVEL < log::LevelFilter::Trace);
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
