//! The examples of the Open Inference Protocol and of the binary tensor extension, as their
//! documents print them.
//!
//! Sources: `inference_rest.md` of github.com/kserve/open-inference-protocol, "Inference Request
//! Examples", and `extension_binary_data.md` of github.com/triton-inference-server/server,
//! "Examples". Two slips of the former are mended: its BOOL tensor of shape [3] has one element
//! there, and its response lacks a comma.

use occlude_inference_protocol::{
    DataType, EncodeError, ErrorBody, InferRequest, InferResponse, ModelMetadata, ModelReady,
    RequestedOutput, ServerLive, ServerMetadata, Tensor, TensorMetadata,
};

const OIP_REQUEST: &str = r#"{
      "id" : "42",
      "inputs" : [
        {
          "name" : "input0",
          "shape" : [ 2, 2 ],
          "datatype" : "UINT32",
          "data" : [ 1, 2, 3, 4 ]
        },
        {
          "name" : "input1",
          "shape" : [ 3 ],
          "datatype" : "BOOL",
          "data" : [ true, false, true ]
        }
      ],
      "outputs" : [
        {
          "name" : "output0"
        }
      ]
    }"#;

const OIP_RESPONSE: &str = r#"{
      "id" : "42",
      "outputs" : [
        {
          "name" : "output0",
          "shape" : [ 3, 2 ],
          "datatype"  : "FP32",
          "data" : [ 1.0, 1.1, 2.0, 2.1, 3.0, 3.1 ]
        }
      ]
    }"#;

const BINARY_REQUEST: &str = r#"{
  "model_name" : "mymodel",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "parameters" : {
        "binary_data_size" : 16
      }
    },
    {
      "name" : "input1",
      "shape" : [ 3 ],
      "datatype" : "BOOL",
      "parameters" : {
        "binary_data_size" : 3
      }
    }
  ],
  "outputs" : [
    {
      "name" : "output0",
      "parameters" : {
        "binary_data" : true
      }
    }
  ]
}"#;

const BINARY_RESPONSE: &str = r#"{
  "outputs" : [
    {
      "name" : "output0",
      "shape" : [ 3, 2 ],
      "datatype"  : "FP32",
      "parameters" : {
        "binary_data_size" : 24
      }
    }
  ]
}"#;

fn inputs() -> Vec<Tensor> {
    vec![
        Tensor::from_values("input0", vec![2, 2], &[1_u32, 2, 3, 4]).unwrap(),
        Tensor::from_values("input1", vec![3], &[true, false, true]).unwrap(),
    ]
}

fn output() -> Tensor {
    Tensor::from_values("output0", vec![3, 2], &[1.0_f32, 1.1, 2.0, 2.1, 3.0, 3.1]).unwrap()
}

#[test]
fn the_protocols_request_is_read() {
    let request = InferRequest::decode(OIP_REQUEST.as_bytes(), None).unwrap();
    assert_eq!(
        request,
        InferRequest {
            id: Some("42".to_owned()),
            inputs: inputs(),
            outputs: vec![RequestedOutput::new("output0")],
            ..InferRequest::default()
        }
    );
    assert!(!request.wants_binary("output0"));
}

#[test]
fn the_protocols_response_is_read() {
    let response = InferResponse::decode(OIP_RESPONSE.as_bytes(), None).unwrap();
    assert_eq!(
        response,
        InferResponse {
            id: Some("42".to_owned()),
            outputs: vec![output()],
            ..InferResponse::default()
        }
    );
    assert_eq!(response.output("output0"), Some(&output()));
    assert_eq!(response.output("output1"), None);
}

#[test]
fn the_binary_extensions_request_is_read() {
    let mut body = BINARY_REQUEST.as_bytes().to_vec();
    let header = body.len();
    body.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    body.extend([1, 0, 1]);
    assert_eq!(body.len(), header + 19);
    let request = InferRequest::decode(&body, Some(header)).unwrap();
    assert_eq!(request.inputs, inputs());
    assert_eq!(request.outputs[0].binary_data, Some(true));
    assert!(request.wants_binary("output0"));
}

#[test]
fn the_binary_extensions_response_is_read() {
    let mut body = BINARY_RESPONSE.as_bytes().to_vec();
    let header = body.len();
    for value in [1.0_f32, 1.1, 2.0, 2.1, 3.0, 3.1] {
        body.extend(value.to_le_bytes());
    }
    assert_eq!(body.len(), header + 24);
    let response = InferResponse::decode(&body, Some(header)).unwrap();
    assert_eq!(response.outputs, vec![output()]);
}

#[test]
fn what_we_write_is_what_the_documents_say() {
    let request = InferRequest {
        id: Some("42".to_owned()),
        inputs: inputs(),
        outputs: vec![RequestedOutput {
            binary_data: Some(true),
            ..RequestedOutput::new("output0")
        }],
        ..InferRequest::default()
    };
    let json = request.encode(false).unwrap();
    assert_eq!(json.inference_header_content_length, None);
    assert_eq!(json.content_type(), "application/json");
    assert_eq!(
        std::str::from_utf8(&json.body).unwrap(),
        concat!(
            r#"{"id":"42","inputs":["#,
            r#"{"name":"input0","shape":[2,2],"datatype":"UINT32","data":[1,2,3,4]},"#,
            r#"{"name":"input1","shape":[3],"datatype":"BOOL","data":[true,false,true]}],"#,
            r#""outputs":[{"name":"output0","parameters":{"binary_data":true}}]}"#
        )
    );

    let response = InferResponse {
        model_name: "mymodel".to_owned(),
        model_version: Some("3".to_owned()),
        id: Some("42".to_owned()),
        outputs: vec![output()],
        ..InferResponse::default()
    };
    let json = response.encode(|_| false).unwrap();
    assert_eq!(
        std::str::from_utf8(&json.body).unwrap(),
        concat!(
            r#"{"model_name":"mymodel","model_version":"3","id":"42","outputs":["#,
            r#"{"name":"output0","shape":[3,2],"datatype":"FP32","#,
            r#""data":[1.0,1.1,2.0,2.1,3.0,3.1]}]}"#
        )
    );

    let binary = response.encode(|name| request.wants_binary(name)).unwrap();
    let header = binary.inference_header_content_length.unwrap();
    assert_eq!(binary.content_type(), "application/octet-stream");
    assert_eq!(binary.body.len(), header + 24);
    assert_eq!(
        std::str::from_utf8(&binary.body[..header]).unwrap(),
        concat!(
            r#"{"model_name":"mymodel","model_version":"3","id":"42","outputs":["#,
            r#"{"name":"output0","shape":[3,2],"datatype":"FP32","#,
            r#""parameters":{"binary_data_size":24}}]}"#
        )
    );
    assert_eq!(&binary.body[header..], output().data());
}

#[test]
fn a_body_is_written_only_where_there_is_memory_for_all_of_it() {
    let response = InferResponse {
        model_name: "mymodel".to_owned(),
        outputs: vec![output()],
        ..InferResponse::default()
    };
    for binary in [false, true] {
        let written = response.encode(|_| binary).unwrap();
        let bytes = written.body.len();
        let mut asked = 0;
        let refused = response.encode_admitted(
            |_| binary,
            |bytes| {
                asked = bytes;
                false
            },
        );
        assert_eq!(asked, bytes);
        assert_eq!(refused.unwrap_err(), EncodeError::NotAdmitted { bytes });
        let admitted = response.encode_admitted(|_| binary, |_| true).unwrap();
        assert_eq!(admitted, written);
    }
}

#[test]
fn binary_data_on_an_output_overrides_binary_data_output() {
    let request = InferRequest::decode(
        br#"{"inputs":[],"parameters":{"binary_data_output":true,"priority":3},
            "outputs":[{"name":"a","parameters":{"binary_data":false}},{"name":"b"}]}"#,
        None,
    )
    .unwrap();
    assert!(!request.wants_binary("a"));
    assert!(request.wants_binary("b"));
    assert!(request.wants_binary("not asked for by name"));
    let again = InferRequest::decode(&request.encode(false).unwrap().body, None).unwrap();
    assert_eq!(again, request);
}

#[test]
fn a_byte_string_has_its_length_before_it() {
    let tensor = Tensor::from_bytes("text", vec![2], &["hi", ""]).unwrap();
    assert_eq!(tensor.data(), [2, 0, 0, 0, b'h', b'i', 0, 0, 0, 0]);
    assert_eq!(tensor.datatype(), DataType::Bytes);
    let strings: Vec<&[u8]> = tensor.byte_strings().unwrap().collect();
    assert_eq!(strings, [b"hi".as_slice(), b""]);
}

#[test]
fn the_small_answers_have_the_protocols_fields() {
    let model: ModelMetadata = serde_json::from_str(
        r#"{"name":"mymodel","versions":["1"],"platform":"onnx_onnxv1",
            "inputs":[{"name":"x","datatype":"FP32","shape":[-1,64]}],"outputs":[]}"#,
    )
    .unwrap();
    assert_eq!(
        model.inputs,
        [TensorMetadata {
            name: "x".to_owned(),
            datatype: DataType::Fp32,
            shape: vec![-1, 64],
        }]
    );
    let written = [
        serde_json::to_string(&ServerMetadata {
            name: "n".to_owned(),
            version: "v".to_owned(),
            extensions: vec!["binary_tensor_data".to_owned()],
        }),
        serde_json::to_string(&ServerLive { live: true }),
        serde_json::to_string(&ModelReady {
            name: "m".to_owned(),
            ready: false,
        }),
        serde_json::to_string(&ErrorBody {
            error: "e".to_owned(),
        }),
    ]
    .map(Result::unwrap);
    assert_eq!(
        written,
        [
            r#"{"name":"n","version":"v","extensions":["binary_tensor_data"]}"#,
            r#"{"live":true}"#,
            r#"{"name":"m","ready":false}"#,
            r#"{"error":"e"}"#,
        ]
    );
}
