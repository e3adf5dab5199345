//! One case for each way in which a message can be wrong, with its exact error.

use occlude_inference_protocol::{
    DataType, EncodeError, InferRequest, InferResponse, JsonReason, MAXIMUM_LIST_PARAMETERS,
    MAXIMUM_NAME_BYTES, MAXIMUM_PARAMETERS, MAXIMUM_RANK, MAXIMUM_TENSORS, ProtocolError,
    RequestedOutput, Tensor, TensorError, UnknownDatatype,
};
use zeroize::Zeroizing;

/// A request whose one input `x` has these fields after its name.
fn with_input(fields: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x",{fields}}}]}}"#)
}

fn decode(fields: &str) -> Result<Tensor, ProtocolError> {
    InferRequest::decode(with_input(fields).as_bytes(), None)
        .map(|request| request.inputs.into_iter().next().unwrap())
}

fn decode_binary(fields: &str, binary: &[u8]) -> Result<Tensor, ProtocolError> {
    let mut body = with_input(fields).into_bytes();
    let header = body.len();
    body.extend_from_slice(binary);
    InferRequest::decode(&body, Some(header))
        .map(|request| request.inputs.into_iter().next().unwrap())
}

fn refused(fields: &str) -> TensorError {
    reason(decode(fields))
}

fn refused_binary(fields: &str, binary: &[u8]) -> TensorError {
    reason(decode_binary(fields, binary))
}

fn reason(result: Result<Tensor, ProtocolError>) -> TensorError {
    match result.unwrap_err() {
        ProtocolError::Tensor { tensor, reason } => {
            assert_eq!(tensor, "x");
            reason
        }
        other => panic!("{other:?}"),
    }
}

fn request(body: &str) -> ProtocolError {
    InferRequest::decode(body.as_bytes(), None).unwrap_err()
}

#[test]
fn an_empty_body_is_refused() {
    assert_eq!(
        InferRequest::decode(b"", None).unwrap_err(),
        ProtocolError::Empty
    );
    assert_eq!(
        InferResponse::decode(b"", Some(0)).unwrap_err(),
        ProtocolError::Empty
    );
}

#[test]
fn a_header_length_past_the_body_is_refused() {
    assert_eq!(
        InferRequest::decode(br#"{"inputs":[]}"#, Some(14)).unwrap_err(),
        ProtocolError::HeaderLength {
            header: 14,
            body: 13
        }
    );
}

#[test]
fn json_that_is_not_utf8_is_refused() {
    let mut body = br#"{"inputs":[],"id":"?"}"#.to_vec();
    body[19] = 0xff;
    assert_eq!(
        InferRequest::decode(&body, None).unwrap_err(),
        ProtocolError::NotUtf8 { position: 19 }
    );
}

#[test]
fn what_is_not_json_is_refused() {
    let error = |column, reason| ProtocolError::Json {
        line: 1,
        column,
        reason,
    };
    assert_eq!(request("nothing"), error(2, JsonReason::Syntax));
    assert_eq!(request(r#"{"inputs":["#), error(11, JsonReason::Truncated));
    assert_eq!(request(r#"{"inputs":[]} x"#), error(15, JsonReason::Syntax));
    assert_eq!(request("{}"), error(2, JsonReason::Form));
    assert_eq!(request(r#"{"inputs":7}"#), error(11, JsonReason::Form));
    assert_eq!(
        request(r#"{"inputs":[],"inputs":[]}"#),
        error(21, JsonReason::Form)
    );
    assert_eq!(
        InferRequest::decode(br#"{"inputs":[]}"#, Some(0)).unwrap_err(),
        ProtocolError::Json {
            line: 1,
            column: 0,
            reason: JsonReason::Truncated
        }
    );
}

#[test]
fn json_nested_without_end_is_refused_without_exhausting_the_stack() {
    let body = with_input(&format!(
        r#""datatype":"FP32","shape":[1],"data":{}"#,
        "[".repeat(1_000_000)
    ));
    let error = InferRequest::decode(body.as_bytes(), None).unwrap_err();
    assert!(matches!(
        error,
        ProtocolError::Json {
            reason: JsonReason::Syntax,
            ..
        }
    ));
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(
        refused(&format!(r#""datatype":"FP32","shape":[1],"data":{nested}"#)),
        TensorError::MixedNesting { shape: vec![1] }
    );
}

#[test]
fn an_unknown_datatype_is_refused_by_its_name() {
    for name in ["FLOAT", "fp32", "", "INT128"] {
        assert_eq!(
            refused(&format!(r#""datatype":"{name}","shape":[1],"data":[1]"#)),
            TensorError::UnknownDatatype(UnknownDatatype {
                name: name.to_owned()
            })
        );
    }
}

#[test]
fn a_negative_dimension_is_refused() {
    assert_eq!(
        refused(r#""datatype":"FP32","shape":[2,-1],"data":[1]"#),
        TensorError::NegativeDimension { dimension: 1 }
    );
}

#[test]
fn a_dimension_beyond_64_bits_is_refused() {
    assert_eq!(
        refused(r#""datatype":"FP32","shape":[18446744073709551616],"data":[1]"#),
        TensorError::DimensionOverflow { dimension: 0 }
    );
}

#[test]
fn a_shape_that_is_not_whole_numbers_is_refused() {
    for shape in [
        "3", "[1.0]", "[1e2]", "[\"1\"]", "[[1]]", "[null]", "{}", "\"[1]\"", "[-]x",
    ] {
        let result = decode(&format!(r#""datatype":"FP32","shape":{shape},"data":[1]"#));
        if shape == "[-]x" {
            assert!(matches!(result, Err(ProtocolError::Json { .. })));
        } else {
            assert_eq!(reason(result), TensorError::ShapeNotIntegers, "{shape}");
        }
    }
}

#[test]
fn a_shape_whose_product_overflows_is_refused_before_anything_is_allocated() {
    let shape = vec![1 << 32, 1 << 32];
    assert_eq!(
        refused(r#""datatype":"UINT8","shape":[4294967296,4294967296],"data":[1]"#),
        TensorError::ShapeOverflow {
            shape: shape.clone()
        }
    );
    assert_eq!(
        refused_binary(
            r#""datatype":"UINT8","shape":[4294967296,4294967296],"parameters":{"binary_data_size":1}"#,
            &[1]
        ),
        TensorError::ShapeOverflow { shape }
    );
    // The elements can be counted, their bytes cannot.
    assert_eq!(
        refused(r#""datatype":"FP64","shape":[2305843009213693952],"data":[1]"#),
        TensorError::ShapeOverflow {
            shape: vec![1 << 61]
        }
    );
    // As many as could be addressed: refused for the data, without making room for them.
    assert_eq!(
        refused(r#""datatype":"UINT8","shape":[1152921504606846976],"data":[1]"#),
        TensorError::ElementCount {
            shape: vec![1 << 60],
            expected: 1 << 60,
            found: 1
        }
    );
}

#[test]
fn too_many_dimensions_are_refused() {
    let shape = |rank: usize| vec!["1"; rank].join(",");
    let fields = |rank| format!(r#""datatype":"FP32","shape":[{}],"data":[1]"#, shape(rank));
    assert!(decode(&fields(MAXIMUM_RANK)).is_ok());
    assert_eq!(
        refused(&fields(MAXIMUM_RANK + 1)),
        TensorError::RankTooLarge
    );
    assert_eq!(
        Tensor::from_values("x", vec![1; MAXIMUM_RANK + 1], &[1_u8]).unwrap_err(),
        TensorError::RankTooLarge
    );
}

#[test]
fn flat_data_that_does_not_match_the_shape_is_refused() {
    let error = |found| TensorError::ElementCount {
        shape: vec![2, 2],
        expected: 4,
        found,
    };
    for (data, found) in [("[1,2,3]", 3), ("[1,2,3,4,5,6,7]", 5), ("[]", 0)] {
        assert_eq!(
            refused(&format!(r#""datatype":"INT8","shape":[2,2],"data":{data}"#)),
            error(found)
        );
    }
}

#[test]
fn nested_data_that_does_not_match_the_shape_is_refused() {
    let nesting = |dimension, expected, found| TensorError::Nesting {
        shape: vec![2, 3],
        dimension,
        expected,
        found,
    };
    let mixed = || TensorError::MixedNesting { shape: vec![2, 3] };
    let cases = [
        ("[[1,2,3]]", nesting(0, 2, 1)),
        ("[[1,2,3],[4,5,6],[7,8,9]]", nesting(0, 2, 3)),
        ("[[1,2,3],[4,5]]", nesting(1, 3, 2)),
        ("[[1,2,3,4],[4,5,6]]", nesting(1, 3, 4)),
        ("[[1,2,3],4]", mixed()),
        ("[1,[2,3]]", mixed()),
        ("[[[1],[2],[3]],[4,5,6]]", mixed()),
        ("[[1,2,3],{}]", mixed()),
    ];
    for (data, error) in cases {
        assert_eq!(
            refused(&format!(r#""datatype":"INT8","shape":[2,3],"data":{data}"#)),
            error,
            "{data}"
        );
    }
}

#[test]
fn data_that_is_not_an_array_is_refused() {
    for data in ["1", "\"AAAA\"", "{}", "true"] {
        assert_eq!(
            refused(&format!(r#""datatype":"INT8","shape":[1],"data":{data}"#)),
            TensorError::DataNotArray
        );
    }
}

#[test]
fn an_element_of_another_kind_is_refused_with_its_place() {
    let cases = [
        ("INT32", "1.0", DataType::Int32),
        ("INT32", "1e3", DataType::Int32),
        ("INT32", "true", DataType::Int32),
        ("INT32", "null", DataType::Int32),
        ("INT32", "\"1\"", DataType::Int32),
        ("UINT8", "\"1\"", DataType::Uint8),
        ("BOOL", "1", DataType::Bool),
        ("FP32", "\"NaN\"", DataType::Fp32),
        ("FP64", "null", DataType::Fp64),
        ("BYTES", "1", DataType::Bytes),
        ("BYTES", r#""\ud800""#, DataType::Bytes),
    ];
    for (name, element, datatype) in cases {
        let good = match datatype {
            DataType::Bool => "false",
            DataType::Bytes => "\"\"",
            _ => "0",
        };
        assert_eq!(
            refused(&format!(
                r#""datatype":"{name}","shape":[2],"data":[{good},{element}]"#
            )),
            TensorError::ElementKind { index: 1, datatype },
            "{name} {element}"
        );
    }
}

#[test]
fn nan_and_the_infinities_are_not_json() {
    for spelling in ["NaN", "Infinity", "-Infinity", "nan", "inf"] {
        let error = decode(&format!(
            r#""datatype":"FP32","shape":[1],"data":[{spelling}]"#
        ))
        .unwrap_err();
        assert!(
            matches!(
                error,
                ProtocolError::Json {
                    reason: JsonReason::Syntax,
                    ..
                }
            ),
            "{spelling}: {error:?}"
        );
    }
}

#[test]
fn nan_and_the_infinities_pass_as_binary_data() {
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let tensor = Tensor::from_values("x", vec![3], &values).unwrap();
    let request = InferRequest {
        inputs: vec![tensor.clone()],
        ..InferRequest::default()
    };
    let encoded = request.encode(true).unwrap();
    let decoded =
        InferRequest::decode(&encoded.body, encoded.inference_header_content_length).unwrap();
    assert_eq!(decoded.inputs[0].data(), tensor.data());
}

#[test]
fn a_number_out_of_range_is_refused() {
    let cases = [
        ("UINT8", "256", DataType::Uint8),
        ("UINT8", "-1", DataType::Uint8),
        ("INT8", "128", DataType::Int8),
        ("INT8", "-129", DataType::Int8),
        ("UINT64", "18446744073709551616", DataType::Uint64),
        ("INT64", "9223372036854775808", DataType::Int64),
        ("FP32", "1e39", DataType::Fp32),
        ("FP64", "-1e309", DataType::Fp64),
    ];
    for (name, element, datatype) in cases {
        assert_eq!(
            refused(&format!(
                r#""datatype":"{name}","shape":[1],"data":[{element}]"#
            )),
            TensorError::ElementRange { index: 0, datatype },
            "{name} {element}"
        );
    }
}

#[test]
fn half_precision_in_json_is_refused() {
    for datatype in [DataType::Fp16, DataType::Bf16] {
        assert_eq!(
            refused(&format!(
                r#""datatype":"{datatype}","shape":[1],"data":[1.0]"#
            )),
            TensorError::NeedsBinary { datatype }
        );
        let tensor = Tensor::new("x", datatype, vec![1], Zeroizing::new(vec![0, 0x3c])).unwrap();
        let response = InferResponse {
            outputs: vec![tensor],
            ..InferResponse::default()
        };
        assert_eq!(
            response.encode(|_| false).unwrap_err(),
            EncodeError::NeedsBinary {
                tensor: "x".to_owned(),
                datatype
            }
        );
        assert!(response.encode(|_| true).is_ok());
    }
}

#[test]
fn what_json_cannot_say_is_not_written() {
    let encode = |tensor| {
        InferResponse {
            outputs: vec![tensor],
            ..InferResponse::default()
        }
        .encode(|_| false)
        .unwrap_err()
    };
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(
            encode(Tensor::from_values("y", vec![2], &[0.0, bad]).unwrap()),
            EncodeError::NotFinite {
                tensor: "y".to_owned(),
                index: 1
            }
        );
    }
    assert_eq!(
        encode(Tensor::from_bytes("y", vec![2], &[b"ok".as_slice(), b"\xff"]).unwrap()),
        EncodeError::NotUtf8 {
            tensor: "y".to_owned(),
            index: 1
        }
    );
}

#[test]
fn data_that_is_missing_or_given_twice_is_refused() {
    assert_eq!(
        refused(r#""datatype":"INT8","shape":[1]"#),
        TensorError::MissingData
    );
    assert_eq!(
        refused_binary(
            r#""datatype":"INT8","shape":[1],"data":[1],"parameters":{"binary_data_size":1}"#,
            &[1]
        ),
        TensorError::DataTwice
    );
}

#[test]
fn a_binary_data_size_that_does_not_match_is_refused() {
    let fields = |size: &str| {
        format!(r#""datatype":"INT16","shape":[2],"parameters":{{"binary_data_size":{size}}}"#)
    };
    assert_eq!(
        refused_binary(&fields("3"), &[0; 3]),
        TensorError::DataLength {
            datatype: DataType::Int16,
            shape: vec![2],
            expected: 4,
            found: 3
        }
    );
    for size in ["-1", "4.0", "\"4\"", "true"] {
        assert_eq!(
            refused_binary(&fields(size), &[0; 4]),
            TensorError::BinarySizeInvalid
        );
    }
    assert_eq!(
        refused_binary(&fields("4"), &[0; 3]),
        TensorError::BinaryTruncated {
            size: 4,
            remaining: 3
        }
    );
    assert_eq!(
        refused_binary(&fields("9223372036854775807"), &[0; 3]),
        TensorError::BinaryTruncated {
            size: i64::MAX as u64,
            remaining: 3
        }
    );
    assert_eq!(
        decode_binary(&fields("4"), &[0; 6]).unwrap_err(),
        ProtocolError::TrailingBytes { bytes: 2 }
    );
    assert_eq!(refused(&fields("4")), TensorError::MissingHeaderLength);
}

#[test]
fn bytes_after_json_tensors_are_refused() {
    assert_eq!(
        decode_binary(r#""datatype":"INT8","shape":[1],"data":[1]"#, &[7]).unwrap_err(),
        ProtocolError::TrailingBytes { bytes: 1 }
    );
}

#[test]
fn a_boolean_byte_other_than_0_and_1_is_refused() {
    assert_eq!(
        refused_binary(
            r#""datatype":"BOOL","shape":[3],"parameters":{"binary_data_size":3}"#,
            &[0, 1, 2]
        ),
        TensorError::NotABoolean { index: 2, value: 2 }
    );
}

#[test]
fn byte_strings_that_do_not_add_up_are_refused() {
    let new = |shape: u64, data: &[u8]| {
        Tensor::new(
            "x",
            DataType::Bytes,
            vec![shape],
            Zeroizing::new(data.to_vec()),
        )
        .unwrap_err()
    };
    assert_eq!(
        new(1, &[1, 0, 0]),
        TensorError::BytesTruncated {
            index: 0,
            missing: 1
        }
    );
    assert_eq!(
        new(2, &[0, 0, 0, 0, 3, 0, 0, 0, 7]),
        TensorError::BytesTruncated {
            index: 1,
            missing: 2
        }
    );
    assert_eq!(
        new(1, &[255, 255, 255, 255, 7]),
        TensorError::BytesTruncated {
            index: 0,
            missing: u32::MAX as usize - 1
        }
    );
    let count = |expected, found| TensorError::ElementCount {
        shape: vec![expected as u64],
        expected,
        found,
    };
    assert_eq!(new(2, &[0, 0, 0, 0]), count(2, 1));
    assert_eq!(new(1, &[0; 12]), count(1, 2));
    assert_eq!(new(0, &[0; 4]), count(0, 1));
}

/// Found by fuzzing: what is missing was computed where nothing is, which overflows in builds that
/// check for it.
#[test]
fn byte_strings_longer_than_a_length_are_taken() {
    let body = with_input(r#""datatype":"BYTES","shape":[2],"data":["hello","world"]"#);
    let request = InferRequest::decode(body.as_bytes(), None).unwrap();
    let strings: Vec<&[u8]> = request.inputs[0].byte_strings().unwrap().collect();
    assert_eq!(strings, [b"hello", b"world"]);
}

#[test]
fn a_name_that_is_too_long_is_refused_and_not_repeated_whole() {
    let long = "é".repeat(MAXIMUM_NAME_BYTES);
    let body =
        format!(r#"{{"inputs":[{{"name":"{long}","datatype":"INT8","shape":[1],"data":[1]}}]}}"#);
    let ProtocolError::Tensor { tensor, reason } = request(&body) else {
        panic!("another error");
    };
    assert_eq!(tensor.len(), MAXIMUM_NAME_BYTES);
    assert_eq!(
        reason,
        TensorError::NameTooLong {
            length: 2 * MAXIMUM_NAME_BYTES
        }
    );
    let body = format!(r#"{{"inputs":[],"outputs":[{{"name":"{long}"}}]}}"#);
    assert!(matches!(
        request(&body),
        ProtocolError::Tensor {
            reason: TensorError::NameTooLong { .. },
            ..
        }
    ));
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let input = r#"{"name":"x","datatype":"INT8","shape":[1],"data":[1]}"#;
    let duplicate = ProtocolError::DuplicateTensor {
        tensor: "x".to_owned(),
    };
    assert_eq!(
        request(&format!(r#"{{"inputs":[{input},{input}]}}"#)),
        duplicate
    );
    assert_eq!(
        request(r#"{"inputs":[],"outputs":[{"name":"x"},{"name":"x"}]}"#),
        duplicate
    );
}

#[test]
fn too_many_tensors_are_refused() {
    let outputs = vec![r#"{"name":"x"}"#; MAXIMUM_TENSORS + 1].join(",");
    let too_many = ProtocolError::TooManyTensors {
        found: MAXIMUM_TENSORS + 1,
    };
    assert_eq!(
        request(&format!(r#"{{"inputs":[],"outputs":[{outputs}]}}"#)),
        too_many
    );
    let input = r#"{"name":"x","datatype":"INT8","shape":[1],"data":[1]}"#;
    let inputs = vec![input; MAXIMUM_TENSORS + 1].join(",");
    assert_eq!(request(&format!(r#"{{"inputs":[{inputs}]}}"#)), too_many);

    let as_many_as_allowed: Vec<String> = (0..MAXIMUM_TENSORS)
        .map(|index| format!(r#"{{"name":"{index}"}}"#))
        .collect();
    let body = format!(
        r#"{{"inputs":[],"outputs":[{}]}}"#,
        as_many_as_allowed.join(",")
    );
    let request = InferRequest::decode(body.as_bytes(), None).unwrap();
    assert_eq!(request.outputs.len(), MAXIMUM_TENSORS);
}

#[test]
fn more_parameters_than_all_tensors_may_have_are_refused() {
    let parameters = (0..MAXIMUM_PARAMETERS)
        .map(|index| format!(r#""{index}":0"#))
        .collect::<Vec<_>>()
        .join(",");
    let full = MAXIMUM_LIST_PARAMETERS / MAXIMUM_PARAMETERS;
    let list = |count: usize, more: &str| {
        let tensors: Vec<String> = (0..count)
            .map(|index| format!(r#"{{"name":"{index}","parameters":{{{parameters}}}{more}}}"#))
            .collect();
        tensors.join(",")
    };
    let outputs = |count| format!(r#"{{"inputs":[],"outputs":[{}]}}"#, list(count, ""));
    let request_of = |body: String| InferRequest::decode(body.as_bytes(), None);
    assert_eq!(request_of(outputs(full)).unwrap().outputs.len(), full);
    assert_eq!(
        request_of(outputs(full + 1)).unwrap_err(),
        ProtocolError::TooManyParameters
    );
    let tensor = r#","datatype":"INT8","shape":[1],"data":[1]"#;
    let inputs = |count| format!(r#"{{"inputs":[{}]}}"#, list(count, tensor));
    assert_eq!(request_of(inputs(full)).unwrap().inputs.len(), full);
    assert_eq!(
        request_of(inputs(full + 1)).unwrap_err(),
        ProtocolError::TooManyParameters
    );
}

#[test]
fn too_many_or_malformed_parameters_are_refused() {
    let parameters = |count: usize| {
        (0..count)
            .map(|index| format!(r#""p{index}":{index}"#))
            .collect::<Vec<_>>()
            .join(",")
    };
    let body = |parameters: &str| format!(r#"{{"inputs":[],"parameters":{{{parameters}}}}}"#);
    let decode = |parameters: &str| InferRequest::decode(body(parameters).as_bytes(), None);
    assert!(decode(&parameters(MAXIMUM_PARAMETERS)).is_ok());
    for bad in [
        parameters(MAXIMUM_PARAMETERS + 1).as_str(),
        r#""p":1,"p":2"#,
        r#""p":[1]"#,
        r#""p":null"#,
        r#""p":18446744073709551615"#,
    ] {
        assert!(
            matches!(
                decode(bad).unwrap_err(),
                ProtocolError::Json {
                    reason: JsonReason::Form,
                    ..
                }
            ),
            "{bad}"
        );
    }
    assert_eq!(
        decode(r#""binary_data_output":1"#).unwrap_err(),
        ProtocolError::NotABoolean {
            parameter: "binary_data_output"
        }
    );
    assert_eq!(
        request(r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"binary_data":"yes"}}]}"#),
        ProtocolError::NotABoolean {
            parameter: "binary_data"
        }
    );
}

#[test]
fn reading_a_tensor_as_another_type_is_refused() {
    let tensor = Tensor::from_values("x", vec![1], &[1_i32]).unwrap();
    let error = |expected| TensorError::Datatype {
        expected,
        found: DataType::Int32,
    };
    assert_eq!(
        tensor.to_values::<f32>().unwrap_err(),
        error(DataType::Fp32)
    );
    assert_eq!(tensor.byte_strings().err().unwrap(), error(DataType::Bytes));
}

#[test]
fn errors_and_debug_output_do_not_repeat_the_data() {
    let secret = "4815162342";
    let body = with_input(&format!(
        r#""datatype":"UINT8","shape":[1],"data":[{secret}]"#
    ));
    let error = InferRequest::decode(body.as_bytes(), None).unwrap_err();
    assert!(!error.to_string().contains(secret));
    let body = format!(r#"{{"inputs":[],"id":{secret}}}"#);
    assert!(!request(&body).to_string().contains(secret));
    let tensor = Tensor::from_values("x", vec![1], &[4_815_162_342_u64]).unwrap();
    let request = InferRequest {
        inputs: vec![tensor],
        outputs: vec![RequestedOutput::new("y")],
        ..InferRequest::default()
    };
    assert!(!format!("{request:?}").contains(secret));
}

#[test]
fn scalars_and_empty_tensors_are_taken() {
    let scalar = decode(r#""datatype":"INT8","shape":[],"data":[5]"#).unwrap();
    assert_eq!(scalar.to_values::<i8>().unwrap(), [5]);
    assert!(scalar.shape().is_empty());
    for data in ["[]", "[[],[]]"] {
        let empty = decode(&format!(r#""datatype":"FP32","shape":[2,0],"data":{data}"#)).unwrap();
        assert_eq!(empty.element_count(), 0);
        assert!(empty.data().is_empty());
    }
    assert_eq!(
        refused(r#""datatype":"INT8","shape":[],"data":[5,6]"#),
        TensorError::ElementCount {
            shape: vec![],
            expected: 1,
            found: 2
        }
    );
}
