//! What a hostile message costs in memory. One test, alone in its process: it looks
//! at the process's peak.

use std::fmt::Write;

use occlude_inference_protocol::{InferRequest, InferResponse, ProtocolError};

const BODY: usize = 32 << 20;

/// The highest resident memory of this process so far, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes << 10
}

/// `{"inputs":[],"<list>":[…]}` with `item` as often as the body has room.
fn flooded(before: &str, item: &str) -> (String, usize) {
    let count = BODY / (item.len() + 1);
    let mut body = String::with_capacity(BODY + 1024);
    body.push_str(before);
    for index in 0..count {
        let comma = if index == 0 { "" } else { "," };
        write!(body, "{comma}{item}").unwrap();
    }
    body.push_str("]}");
    (body, count)
}

fn costs_less_than_the_body(before: &str, decode: impl FnOnce()) {
    let peak_before = peak();
    decode();
    let grown = peak() - peak_before;
    assert!(grown < BODY, "{before}: {grown} bytes for {BODY}");
}

#[test]
fn a_flood_of_tensors_costs_less_memory_than_its_text() {
    let tensor = r#"{"name":"","datatype":"","shape":0}"#;
    let cases = [
        (r#"{"inputs":[],"outputs":["#, r#"{"name":""}"#),
        (
            r#"{"inputs":[],"outputs":["#,
            r#"{"name":"","parameters":{"":0}}"#,
        ),
        (r#"{"inputs":["#, tensor),
    ];
    for (before, item) in cases {
        let (body, found) = flooded(before, item);
        costs_less_than_the_body(before, || {
            assert_eq!(
                InferRequest::decode(body.as_bytes(), None).unwrap_err(),
                ProtocolError::TooManyTensors { found }
            );
        });
    }
    let (body, found) = flooded(r#"{"outputs":["#, tensor);
    costs_less_than_the_body("response", || {
        assert_eq!(
            InferResponse::decode(body.as_bytes(), None).unwrap_err(),
            ProtocolError::TooManyTensors { found }
        );
    });
}
