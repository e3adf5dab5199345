//! Binary HTTP: the RFC's examples, and one case for each malformation.

mod support;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use occlude_channel::{
    Gateway, Kem, MAXIMUM_HEADER_BYTES, MAXIMUM_HEADER_FIELDS, MAXIMUM_TARGET_BYTES, MessageError,
    OpenError, OpenResponseError, SealError, Sender,
};

use support::{encapsulate, gateway, request, sender};

/// RFC 9292, section 5.1, figure 8.
const RFC_REQUEST: &str = "
    00034745 54056874 74707300 0a2f6865 6c6c6f2e 74787440 6c0a7573 65722d61
    67656e74 34637572 6c2f372e 31362e33 206c6962 6375726c 2f372e31 362e3320
    4f70656e 53534c2f 302e392e 376c207a 6c69622f 312e322e 3304686f 73740f77
    77772e65 78616d70 6c652e63 6f6d0f61 63636570 742d6c61 6e677561 67650665
    6e2c206d 690000";

/// RFC 9458, appendix A: the request and the response in the encapsulation.
const RFC_9458_REQUEST: &str = "00034745540568747470730b6578616d706c652e636f6d012f";
const RFC_9458_RESPONSE: &str = "0140c8";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Opens a message that was encapsulated as it stands.
fn open(message: &[u8]) -> Result<Request<Bytes>, MessageError> {
    let gateway = gateway(Kem::X25519);
    match gateway.open(&encapsulate(&gateway, message)) {
        Ok((request, _)) => Ok(request),
        Err(OpenError::Message { reason, .. }) => Err(reason),
        Err(other) => panic!("{other:?}"),
    }
}

/// Opens a response message that was encapsulated as it stands.
fn open_response(message: &[u8]) -> Result<Response<Bytes>, OpenResponseError> {
    use ohttp::hpke::{Aead, Kdf, Kem};
    let suite = ohttp::SymmetricSuite::new(Kdf::HkdfSha256, Aead::ChaCha20Poly1305);
    let configuration = ohttp::KeyConfig::new(1, Kem::X25519Sha256, vec![suite]).unwrap();
    let server = ohttp::Server::new(configuration).unwrap();
    let list = ohttp::KeyConfig::encode_list(&[server.config()]).unwrap();
    let sender = Sender::from_key_configurations(&list).unwrap();
    let (wire, opener) = sender.seal(&request()).unwrap();
    let (_, response) = server.decapsulate(&wire).unwrap();
    opener.open(&response.encapsulate(message).unwrap())
}

/// What a sealed request is before it is encapsulated.
fn sealed(request: &Request<Bytes>) -> Vec<u8> {
    use ohttp::hpke::{Aead, Kdf, Kem};
    let suite = ohttp::SymmetricSuite::new(Kdf::HkdfSha256, Aead::ChaCha20Poly1305);
    let configuration = ohttp::KeyConfig::new(1, Kem::X25519Sha256, vec![suite]).unwrap();
    let server = ohttp::Server::new(configuration).unwrap();
    let list = ohttp::KeyConfig::encode_list(&[server.config()]).unwrap();
    let sender = Sender::from_key_configurations(&list).unwrap();
    server
        .decapsulate(&sender.seal(request).unwrap().0)
        .unwrap()
        .0
}

/// A request line and then whatever the case is about.
fn with_line(rest: &[u8]) -> Vec<u8> {
    [b"\x00\x03GET\x05https\x00\x02/x", rest].concat()
}

fn with_fields(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut section = Vec::new();
    for part in fields.iter().flat_map(|(name, value)| [name, value]) {
        section.push(u8::try_from(part.len()).unwrap());
        section.extend_from_slice(part);
    }
    let length = u16::try_from(section.len()).unwrap() | 0x4000;
    with_line(&[&length.to_be_bytes()[..], &section, &[0, 0]].concat())
}

#[test]
fn the_request_of_rfc_9292_is_read_whole_and_truncated() {
    let message = hex(RFC_REQUEST);
    // "The last two bytes can each be removed without altering the semantics."
    for removed in 0..=2 {
        let request = open(&message[..message.len() - removed]).unwrap();
        assert_eq!(request.method(), Method::GET);
        assert_eq!(request.uri(), "/hello.txt");
        let headers: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(
            headers,
            [
                (
                    "user-agent",
                    "curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"
                ),
                ("host", "www.example.com"),
                ("accept-language", "en, mi"),
            ]
        );
        assert!(request.body().is_empty());
    }
    assert_eq!(
        open(&message[..message.len() - 3]).unwrap_err(),
        MessageError::Truncated
    );
}

#[test]
fn the_request_of_rfc_9292_is_written_and_then_padded() {
    let request = Request::get("/hello.txt")
        .header(
            "User-Agent",
            "curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3",
        )
        .header("Host", "www.example.com")
        .header("Accept-Language", "en, mi")
        .body(Bytes::new())
        .unwrap();
    let mut expected = hex(RFC_REQUEST);
    expected.resize(4096, 0);
    assert_eq!(sealed(&request), expected);
}

#[test]
fn the_messages_of_rfc_9458_are_read() {
    let request = open(&hex(RFC_9458_REQUEST)).unwrap();
    assert_eq!(request.method(), Method::GET);
    assert_eq!(request.uri(), "https://example.com/");
    assert!(request.headers().is_empty() && request.body().is_empty());
    let response = open_response(&hex(RFC_9458_RESPONSE)).unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().is_empty() && response.body().is_empty());
}

#[test]
fn padding_is_ignored_if_it_is_zeros_and_refused_if_not() {
    let mut message = hex(RFC_REQUEST);
    let end = message.len();
    message.resize(end + 100, 0);
    assert!(open(&message).is_ok());
    message[end + 42] = 1;
    assert_eq!(
        open(&message).unwrap_err(),
        MessageError::Padding { position: 42 }
    );
    let mut message = hex(RFC_9458_RESPONSE);
    message.resize(50, 0);
    assert!(open_response(&message).is_ok());
    message[49] = 0xff;
    assert_eq!(
        open_response(&message).unwrap_err(),
        OpenResponseError::Message(MessageError::Padding { position: 43 })
    );
}

#[test]
fn a_message_cut_within_a_part_is_refused() {
    let message = hex(RFC_REQUEST);
    let line = 23;
    for length in 0..message.len() - 2 {
        // After the request line everything may be missing.
        let opened = open(&message[..length]);
        if length == line {
            assert!(opened.is_ok());
        } else {
            assert_eq!(opened.unwrap_err(), MessageError::Truncated, "{length}");
        }
    }
}

#[test]
fn a_length_beyond_the_message_is_refused() {
    let longest = [0xff; 8];
    assert_eq!(
        open(&with_line(&[&[0], &longest[..]].concat())).unwrap_err(),
        MessageError::Truncated
    );
    assert_eq!(
        open(&with_line(&[0, 5, b'x'])).unwrap_err(),
        MessageError::Truncated
    );
    assert_eq!(
        open(&with_line(&longest)).unwrap_err(),
        MessageError::HeaderTooLarge {
            found: (1 << 62) - 1
        }
    );
    // A field that is longer than its section.
    assert_eq!(
        open(&with_line(&[3, 1, b'a', 9, 0, 0])).unwrap_err(),
        MessageError::Truncated
    );
}

#[test]
fn another_framing_is_refused() {
    for (indicator, found) in [(1, 1), (2, 2), (3, 3), (4, 4), (0x3f, 0x3f)] {
        let mut message = hex(RFC_REQUEST);
        message[0] = indicator;
        assert_eq!(
            open(&message).unwrap_err(),
            MessageError::Framing { expected: 0, found }
        );
    }
    assert_eq!(
        open_response(&hex(RFC_9458_REQUEST)).unwrap_err(),
        OpenResponseError::Message(MessageError::Framing {
            expected: 1,
            found: 0
        })
    );
}

#[test]
fn a_target_that_is_too_long_is_refused_on_both_sides() {
    let path = format!("/{}", "x".repeat(MAXIMUM_TARGET_BYTES));
    let found = u64::try_from(path.len()).unwrap();
    let error = MessageError::TargetTooLong { found };
    let request = Request::get(path.as_str()).body(Bytes::new()).unwrap();
    assert_eq!(
        sender(&gateway(Kem::X25519)).seal(&request).unwrap_err(),
        SealError::Message(error.clone())
    );
    let length = u16::try_from(path.len()).unwrap() | 0x4000;
    let message = [
        b"\x00\x03GET\x05https\x00",
        &length.to_be_bytes()[..],
        path.as_bytes(),
    ]
    .concat();
    assert_eq!(open(&message).unwrap_err(), error);
}

#[test]
fn header_fields_that_are_too_large_are_refused_on_both_sides() {
    let value = "x".repeat(MAXIMUM_HEADER_BYTES);
    let request = Request::get("/")
        .header("a", value.as_str())
        .body(Bytes::new())
        .unwrap();
    assert!(matches!(
        sender(&gateway(Kem::X25519)).seal(&request).unwrap_err(),
        SealError::Message(MessageError::HeaderTooLarge { found })
            if found > u64::try_from(MAXIMUM_HEADER_BYTES).unwrap()
    ));
    let found = MAXIMUM_HEADER_BYTES as u32 + 1;
    let section = (found | 0x8000_0000).to_be_bytes();
    assert_eq!(
        open(&with_line(&section)).unwrap_err(),
        MessageError::HeaderTooLarge {
            found: u64::from(found)
        }
    );
}

#[test]
fn too_many_header_fields_are_refused_on_both_sides() {
    let found = MAXIMUM_HEADER_FIELDS + 1;
    let mut request = Request::get("/").body(Bytes::new()).unwrap();
    for _ in 0..found {
        request
            .headers_mut()
            .append("a", http::HeaderValue::from_static("b"));
    }
    assert_eq!(
        sender(&gateway(Kem::X25519)).seal(&request).unwrap_err(),
        SealError::Message(MessageError::TooManyFields { found })
    );
    let fields = vec![(b"a".as_slice(), b"b".as_slice()); found];
    assert_eq!(
        open(&with_fields(&fields)).unwrap_err(),
        MessageError::TooManyFields { found }
    );
    assert!(open(&with_fields(&fields[1..])).is_ok());
}

#[test]
fn a_method_that_is_not_one_is_refused() {
    for method in ["CONNECT", "", "G T", "GET\r"] {
        let length = u8::try_from(method.len()).unwrap();
        let message = [&[0, length], method.as_bytes(), b"\x05https\x00\x02/x"].concat();
        assert_eq!(open(&message).unwrap_err(), MessageError::Method);
    }
    let connect = Request::builder()
        .method(Method::CONNECT)
        .uri("example.com:443")
        .body(Bytes::new())
        .unwrap();
    assert_eq!(
        sender(&gateway(Kem::X25519)).seal(&connect).unwrap_err(),
        SealError::Message(MessageError::Method)
    );
}

#[test]
fn a_target_that_is_not_one_is_refused() {
    let cases: [(&str, &str, &str); 9] = [
        ("ftp", "", "/x"),
        ("", "", "/x"),
        ("HTTPS", "", "/x"),
        ("https", "", ""),
        ("https", "", "x"),
        ("https", "", "*"),
        ("https", "", "/x y"),
        ("https", "", "/x#fragment"),
        ("https", "a b", "/x"),
    ];
    for (scheme, authority, path) in cases {
        let mut message = b"\x00\x03GET".to_vec();
        for part in [scheme, authority, path] {
            message.push(u8::try_from(part.len()).unwrap());
            message.extend_from_slice(part.as_bytes());
        }
        assert_eq!(
            open(&message).unwrap_err(),
            MessageError::Target,
            "{scheme} {authority} {path}"
        );
    }
    let asterisk = Request::options("*").body(Bytes::new()).unwrap();
    assert_eq!(
        sender(&gateway(Kem::X25519)).seal(&asterisk).unwrap_err(),
        SealError::Message(MessageError::Target)
    );
}

#[test]
fn a_malformed_header_field_is_refused_with_its_place() {
    let good = (b"accept".as_slice(), b"x".as_slice());
    for bad in [
        (b"Accept".as_slice(), b"x".as_slice()),
        (b":path", b"/y"),
        (b"a b", b"x"),
        (b"a\n", b"x"),
        (b"a", b"x\r\ny: z"),
        (b"a", b"\0"),
    ] {
        assert_eq!(
            open(&with_fields(&[good, bad])).unwrap_err(),
            MessageError::Field { index: 1 },
            "{bad:?}"
        );
    }
}

#[test]
fn a_field_of_the_connection_is_refused_and_never_sent() {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ] {
        assert_eq!(
            open(&with_fields(&[(name.as_bytes(), b"x")])).unwrap_err(),
            MessageError::ConnectionField { index: 0 }
        );
        let request = Request::get("/x")
            .header(name, "x")
            .header("content-length", "0")
            .body(Bytes::new())
            .unwrap();
        assert!(open(&sealed(&request)).unwrap().headers().is_empty());
    }
}

#[test]
fn a_content_length_is_taken_if_it_is_true() {
    let name = b"content-length".as_slice();
    assert!(open(&with_fields(&[(name, b"0")])).is_ok());
    for value in [b"1".as_slice(), b"00", b"-0", b""] {
        assert_eq!(
            open(&with_fields(&[(name, value)])).unwrap_err(),
            MessageError::ContentLength { found: 0 }
        );
    }
}

#[test]
fn trailers_are_refused() {
    assert_eq!(
        open(&with_line(&[0, 0, 4, 1, b'a', 1, b'b'])).unwrap_err(),
        MessageError::Trailers
    );
}

#[test]
fn a_status_that_is_not_final_is_refused_on_both_sides() {
    // The response of RFC 9292, section 5.2, begins with 102, an interim response.
    for (status, found) in [
        ([0x40, 102], 102_u64),
        ([0x40, 199], 199),
        ([0x42, 0x58], 600),
    ] {
        assert_eq!(
            open_response(&[1, status[0], status[1]]).unwrap_err(),
            OpenResponseError::Message(MessageError::Status { found })
        );
    }
    for status in [100_u16, 103, 600, 999] {
        let gateway: Gateway = gateway(Kem::X25519);
        let (wire, _) = sender(&gateway).seal(&request()).unwrap();
        let (_, responder) = gateway.open(&wire).unwrap();
        let response = Response::builder()
            .status(status)
            .body(Bytes::new())
            .unwrap();
        assert_eq!(
            responder.seal(response).unwrap_err(),
            SealError::Message(MessageError::Status {
                found: u64::from(status)
            })
        );
    }
}
