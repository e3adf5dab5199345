//! Whatever is written reads back the same, and no bytes make the reader panic.

use occlude_inference_protocol::{
    DataType, InferRequest, InferResponse, Parameter, Parameters, RequestedOutput, Tensor,
};
use proptest::collection::vec;
use proptest::prelude::*;
use zeroize::Zeroizing;

fn shape() -> impl Strategy<Value = Vec<u64>> {
    vec(0_u64..4, 0..4)
}

fn count(shape: &[u64]) -> usize {
    shape.iter().product::<u64>() as usize
}

/// Tensors that have a JSON form.
fn tensor() -> impl Strategy<Value = Tensor> {
    (shape(), "[a-z\"\\\\é]{1,9}", 0..12_u8, any::<u64>()).prop_map(|(shape, name, kind, seed)| {
        let mut state = seed;
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 29)
        };
        let count = count(&shape);
        macro_rules! values {
            ($type:ty) => {{
                let values: Vec<$type> = (0..count).map(|_| next() as $type).collect();
                Tensor::from_values(name, shape, &values)
            }};
        }
        match kind {
            0 => values!(u8),
            1 => values!(u16),
            2 => values!(u32),
            3 => values!(u64),
            4 => values!(i8),
            5 => values!(i16),
            6 => values!(i32),
            7 => values!(i64),
            8 => {
                let values: Vec<bool> = (0..count).map(|_| next() & 1 == 1).collect();
                Tensor::from_values(name, shape, &values)
            }
            9 => {
                let values: Vec<f32> = (0..count)
                    .map(|_| f32::from_bits(next() as u32))
                    .map(|value| if value.is_finite() { value } else { -0.0 })
                    .collect();
                Tensor::from_values(name, shape, &values)
            }
            10 => {
                let values: Vec<f64> = (0..count)
                    .map(|_| f64::from_bits(next()))
                    .map(|value| if value.is_finite() { value } else { -0.0 })
                    .collect();
                Tensor::from_values(name, shape, &values)
            }
            _ => {
                let values: Vec<String> = (0..count)
                    .map(|_| {
                        next()
                            .to_le_bytes()
                            .iter()
                            .map(|&byte| char::from(byte))
                            .collect()
                    })
                    .collect();
                Tensor::from_bytes(name, shape, &values)
            }
        }
        .unwrap()
    })
}

fn request() -> impl Strategy<Value = InferRequest> {
    (
        vec(tensor(), 0..4),
        proptest::option::of(".{0,8}"),
        any::<bool>(),
        any::<i64>(),
        proptest::option::of(any::<bool>()),
    )
        .prop_map(|(tensors, id, binary_data_output, number, binary_data)| {
            let inputs = tensors
                .into_iter()
                .enumerate()
                .map(|(index, tensor)| {
                    let name = format!("{}{index}", tensor.name());
                    tensor.renamed(name).unwrap()
                })
                .collect();
            let mut parameters = Parameters::default();
            parameters.set("number", Parameter::Integer(number));
            parameters.set("text", Parameter::Text("a \"quoted\" word".to_owned()));
            parameters.set("fraction", Parameter::Number(0.5));
            InferRequest {
                id,
                parameters,
                inputs,
                outputs: vec![RequestedOutput {
                    binary_data,
                    ..RequestedOutput::new("output")
                }],
                binary_data_output,
            }
        })
}

proptest! {
    #[test]
    fn requests_read_back_the_same(request in request(), binary in any::<bool>()) {
        let encoded = request.encode(binary).unwrap();
        let decoded =
            InferRequest::decode(&encoded.body, encoded.inference_header_content_length).unwrap();
        prop_assert_eq!(decoded, request);
    }

    #[test]
    fn responses_read_back_the_same(request in request(), mask in any::<u8>()) {
        let response = InferResponse {
            model_name: "model".to_owned(),
            model_version: None,
            id: request.id,
            parameters: request.parameters,
            outputs: request.inputs,
        };
        let encoded = response
            .encode(|name| (mask >> (name.len() % 8)) & 1 == 1)
            .unwrap();
        let decoded =
            InferResponse::decode(&encoded.body, encoded.inference_header_content_length).unwrap();
        prop_assert_eq!(decoded, response);
    }

    #[test]
    fn nested_and_flat_data_are_the_same_tensor(
        rows in 1_usize..5, columns in 1_usize..5, seed in any::<i32>()
    ) {
        let values: Vec<i32> = (0..rows * columns)
            .map(|index| seed.wrapping_mul(index as i32 + 1))
            .collect();
        let flat = format!("{values:?}");
        let nested = format!("{:?}", values.chunks(columns).collect::<Vec<_>>());
        let read = |data: &str| {
            let body = format!(
                r#"{{"inputs":[{{"data":{data},"shape":[{rows},{columns}],"datatype":"INT32","name":"x"}}]}}"#
            );
            InferRequest::decode(body.as_bytes(), None).unwrap().inputs
        };
        prop_assert_eq!(read(&flat), read(&nested));
    }

    #[test]
    fn every_finite_float_survives_json(bits in any::<u32>(), wide in any::<u64>()) {
        let (narrow, wide) = (f32::from_bits(bits), f64::from_bits(wide));
        prop_assume!(narrow.is_finite() && wide.is_finite());
        let response = InferResponse {
            outputs: vec![
                Tensor::from_values("narrow", vec![], &[narrow]).unwrap(),
                Tensor::from_values("wide", vec![], &[wide]).unwrap(),
            ],
            ..InferResponse::default()
        };
        let encoded = response.encode(|_| false).unwrap();
        let decoded = InferResponse::decode(&encoded.body, None).unwrap();
        prop_assert_eq!(decoded.outputs[0].data(), narrow.to_le_bytes());
        prop_assert_eq!(decoded.outputs[1].data(), wide.to_le_bytes());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        body in vec(any::<u8>(), 0..300), header in proptest::option::of(0_usize..400)
    ) {
        let _ = InferRequest::decode(&body, header);
        let _ = InferResponse::decode(&body, header);
    }

    #[test]
    fn no_altered_request_makes_the_reader_panic(
        request in request(), binary in any::<bool>(), at in any::<prop::sample::Index>(), with in any::<u8>()
    ) {
        let encoded = request.encode(binary).unwrap();
        let mut body = encoded.body.to_vec();
        let at = at.index(body.len());
        body[at] = with;
        if let Ok(read) = InferRequest::decode(&body, encoded.inference_header_content_length) {
            for tensor in read.inputs {
                prop_assert_eq!(
                    tensor.element_count() as u64, tensor.shape().iter().product::<u64>()
                );
            }
        }
    }

    #[test]
    fn no_array_text_makes_the_reader_panic(
        data in "[\\[\\]{}:,\" \\\\u0-9a-eE.+-]{0,40}", shape in shape(), kind in 0_usize..14
    ) {
        let datatype = DataType::ALL[kind];
        let body = format!(
            r#"{{"inputs":[{{"name":"x","shape":{shape:?},"datatype":"{datatype}","data":{data}}}]}}"#
        );
        let _ = InferRequest::decode(body.as_bytes(), None);
    }

    #[test]
    fn a_tensor_is_made_of_exactly_its_bytes(
        shape in shape(), kind in 0_usize..13, length in 0_usize..300
    ) {
        let datatype = DataType::ALL[kind];
        let made = Tensor::new("x", datatype, shape.clone(), Zeroizing::new(vec![0; length]));
        prop_assert_eq!(made.is_ok(), length == count(&shape) * datatype.size().unwrap());
    }
}
