//! Open Inference Protocol messages, JSON and binary, from a hostile user or server.
//!
//! Nothing panics; a tensor that is read has as many elements as its shape says;
//! and the tensors are the same when they are written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_inference_protocol::{InferRequest, InferResponse};

fuzz_target!(|body: &[u8]| {
    check(body, None);
    // The JSON part often ends with the last brace; what follows is then binary data.
    if let Some(brace) = body.iter().rposition(|&byte| byte == b'}') {
        check(body, Some(brace + 1));
    }
});

fn check(body: &[u8], header_length: Option<usize>) {
    if let Ok(request) = InferRequest::decode(body, header_length) {
        for input in &request.inputs {
            let product: u64 = input
                .shape()
                .iter()
                .fold(1, |product, &dimension| product.saturating_mul(dimension));
            assert!(product == input.element_count() as u64 || input.shape().contains(&0));
        }
        let encoded = request
            .encode(true)
            .expect("binary data can say everything");
        let again = InferRequest::decode(&encoded.body, encoded.inference_header_content_length)
            .expect("our own request");
        assert_eq!(again.inputs, request.inputs);
        assert_eq!(again.id, request.id);
        if let Ok(encoded) = request.encode(false) {
            let again = InferRequest::decode(&encoded.body, None).expect("our own request");
            assert_eq!(again.inputs, request.inputs);
        }
    }
    if let Ok(response) = InferResponse::decode(body, header_length) {
        let encoded = response
            .encode(|_| true)
            .expect("binary data can say everything");
        let again = InferResponse::decode(&encoded.body, encoded.inference_header_content_length)
            .expect("our own response");
        assert_eq!(again.outputs, response.outputs);
    }
}
