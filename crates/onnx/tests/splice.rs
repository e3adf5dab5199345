//! What the walk finds, what it copies, and what it refuses.

mod support;

use occlude_onnx::messages::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TensorProto, TrainingInfoProto,
};
use occlude_onnx::{
    DataType, ExternalRecord, FoundTensor, Malformation, OnnxError, Payload, Place, Replacement,
    TensorProblem, limits, splice,
};
use prost::Message;
use support::{delimited, external_tensor, floats, model_with, tensor_in_model, varint};

fn walk(bytes: &[u8]) -> Result<Vec<FoundTensor>, OnnxError> {
    let mut found = Vec::new();
    let copy = splice(&bytes, &mut |tensor: &FoundTensor| {
        found.push(tensor.clone());
        Ok::<_, OnnxError>(Replacement::Keep)
    })?;
    assert!(copy.bytes == bytes && copy.holes.is_empty());
    Ok(found)
}

fn malformation(bytes: &[u8]) -> (u64, Malformation) {
    match walk(bytes) {
        Err(OnnxError::Malformed { at, reason }) => (at, reason),
        other => panic!("{other:?}"),
    }
}

fn problem(tensor: &[u8]) -> TensorProblem {
    match walk(&tensor_in_model(tensor)) {
        Err(OnnxError::Tensor { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_are_found_wherever_onnx_puts_them() {
    let attribute = |t: &str| AttributeProto {
        t: Some(Box::new(floats(t, 1))),
        tensors: vec![floats(&format!("{t}-in-list"), 1)],
        ..Default::default()
    };
    let subgraph = GraphProto {
        initializer: vec![floats("in-subgraph", 1)],
        ..Default::default()
    };
    let sparse = |name: &str| SparseTensorProto {
        values: Some(floats(&format!("{name}-values"), 1)),
        indices: Some(floats(&format!("{name}-indices"), 1)),
        dims: vec![5],
    };
    let model = ModelProto {
        graph: Some(GraphProto {
            node: vec![
                NodeProto::default(),
                NodeProto {
                    attribute: vec![
                        attribute("constant"),
                        AttributeProto {
                            g: Some(Box::new(subgraph.clone())),
                            sparse_tensor: Some(Box::new(sparse("attribute"))),
                            ..Default::default()
                        },
                    ],
                    ..Default::default()
                },
            ],
            initializer: vec![floats("weight", 1)],
            sparse_initializer: vec![sparse("initializer")],
            ..Default::default()
        }),
        functions: vec![FunctionProto {
            attribute_proto: vec![attribute("default")],
            node: vec![NodeProto {
                attribute: vec![attribute("in-function")],
                ..Default::default()
            }],
            ..Default::default()
        }],
        training_info: vec![TrainingInfoProto {
            initialization: Some(subgraph.clone()),
            algorithm: Some(subgraph),
            ..Default::default()
        }],
        ..Default::default()
    };
    let found = walk(&model.encode_to_vec()).unwrap();
    let mut names: Vec<_> = found
        .iter()
        .map(|t| (t.name.as_str(), t.place, t.node))
        .collect();
    names.sort_by_key(|(name, ..)| *name);
    let nested = |name, node| (name, Place::Nested, node);
    assert_eq!(
        names,
        [
            nested("attribute-indices", Some(1)),
            nested("attribute-values", Some(1)),
            nested("constant", Some(1)),
            nested("constant-in-list", Some(1)),
            nested("default", None),
            nested("default-in-list", None),
            nested("in-function", None),
            nested("in-function-in-list", None),
            nested("in-subgraph", Some(1)),
            nested("in-subgraph", None),
            nested("in-subgraph", None),
            nested("initializer-indices", None),
            nested("initializer-values", None),
            ("weight", Place::Initializer, None),
        ]
    );
    assert!(
        found
            .iter()
            .zip(0..)
            .all(|(tensor, ordinal)| tensor.ordinal == ordinal)
    );
}

#[test]
fn a_payload_becomes_a_record_and_the_record_a_hole_and_all_else_stays() {
    let model = model_with(vec![floats("weight", 300)]).encode_to_vec();
    let record = ExternalRecord {
        location: "elsewhere".to_owned(),
        offset: 4096,
        length: Some(1200),
    };
    let skeleton = splice::<OnnxError>(&model.as_slice(), &mut |tensor| {
        assert!(matches!(tensor.payload, Payload::Raw(span) if span.length == 1200));
        Ok(Replacement::External(record.clone()))
    })
    .unwrap();
    assert!(skeleton.holes.is_empty() && skeleton.bytes.len() < 300);
    assert!(ModelProto::decode(skeleton.bytes.as_slice()).is_ok());
    let back = splice::<OnnxError>(&skeleton.bytes.as_slice(), &mut |tensor| {
        assert_eq!(tensor.payload, Payload::External(record.clone()));
        Ok(Replacement::Hole { length: 1200 })
    })
    .unwrap();
    let [hole] = back.holes[..] else { panic!() };
    let mut filled = back.bytes.clone();
    let weights = floats("weight", 300).raw_data.unwrap();
    filled.splice(hole.at..hole.at, weights);
    assert!(filled == model);
    assert_eq!(back.length(), Some(model.len() as u64));
}

#[test]
fn fields_that_nobody_knows_are_kept() {
    let mut tensor = floats("weight", 300).encode_to_vec();
    tensor.extend(delimited(77, b"of a later version"));
    let mut model = tensor_in_model(&tensor);
    model.extend(delimited(1000, b"and another"));
    let inline = splice::<OnnxError>(&model.as_slice(), &mut |_| {
        Ok(Replacement::Inline(vec![7; 3]))
    })
    .unwrap();
    let holds = |needle: &[u8]| {
        inline
            .bytes
            .windows(needle.len())
            .any(|window| window == needle)
    };
    assert!(holds(b"of a later version") && holds(b"and another"));
    assert!(inline.bytes.len() < 200);
}

#[test]
fn a_cut_model_is_refused_wherever_it_is_cut() {
    let model = model_with(vec![floats("weight", 3)]).encode_to_vec();
    for end in 1..model.len() {
        // Cut between two fields of the model it still is a protobuf.
        match walk(&model[..end]) {
            Ok(_) => assert!(ModelProto::decode(&model[..end]).is_ok(), "{end}"),
            Err(OnnxError::Malformed { reason, .. }) => {
                assert!(
                    matches!(reason, Malformation::Length | Malformation::Varint),
                    "{end}"
                );
            }
            Err(other) => panic!("{end}: {other}"),
        }
    }
}

#[test]
fn a_number_that_does_not_end_is_refused() {
    assert_eq!(malformation(&[0x80]), (0, Malformation::Varint));
    assert_eq!(malformation(&[0xff; 11]), (0, Malformation::Varint));
    assert_eq!(
        malformation(&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
        (1, Malformation::Varint)
    );
}

#[test]
fn wire_types_that_protobuf_3_lacks_are_refused() {
    for wire_type in [3, 4, 6, 7] {
        assert_eq!(
            malformation(&[8 | wire_type, 0]),
            (0, Malformation::WireType)
        );
    }
}

#[test]
fn field_numbers_out_of_range_are_refused() {
    assert_eq!(malformation(&[0, 0]), (0, Malformation::FieldNumber));
    assert_eq!(
        malformation(&varint(1 << 32)),
        (0, Malformation::FieldNumber)
    );
}

#[test]
fn a_length_beyond_the_message_is_refused_before_anything_is_read() {
    let mut huge = vec![7 << 3 | 2];
    huge.extend(varint(u64::MAX));
    assert_eq!(malformation(&huge), (0, Malformation::Length));
    // A node longer than its graph, with enough bytes after the graph.
    let graph = delimited(7, &[1 << 3 | 2, 5]);
    let model = [graph, vec![0; 20]].concat();
    assert_eq!(malformation(&model), (2, Malformation::Length));
}

#[test]
fn a_known_field_of_another_kind_is_refused() {
    assert_eq!(malformation(&[7 << 3, 1]), (0, Malformation::FieldKind));
    let raw_data_as_a_number = tensor_in_model(&[9 << 3, 1]);
    assert_eq!(
        malformation(&raw_data_as_a_number).1,
        Malformation::FieldKind
    );
}

#[test]
fn nesting_beyond_the_limit_is_refused_and_up_to_it_is_not() {
    let nested = |levels: usize| {
        let mut graph = Vec::new();
        for _ in 0..levels {
            let attribute = delimited(6, &graph);
            graph = delimited(1, &delimited(5, &attribute));
        }
        delimited(7, &graph)
    };
    assert!(walk(&nested(31)).is_ok());
    for levels in [32, 2000] {
        assert!(matches!(
            walk(&nested(levels)),
            Err(OnnxError::TooDeep {
                limit: limits::NESTING
            })
        ));
    }
}

#[test]
fn malformed_tensors_are_refused_each_with_its_reason() {
    let encoded = |tensor: TensorProto| tensor.encode_to_vec();
    let negative = TensorProto {
        dims: vec![2, -3],
        ..floats("w", 1)
    };
    assert_eq!(
        problem(&encoded(negative)),
        TensorProblem::NegativeExtent(-3)
    );
    let deep = TensorProto {
        dims: vec![1; 65],
        ..floats("w", 1)
    };
    assert_eq!(problem(&encoded(deep)), TensorProblem::Rank(limits::RANK));
    let long = floats(&"n".repeat(4097), 1);
    assert_eq!(problem(&encoded(long)), TensorProblem::Name(limits::NAME));
    let both = TensorProto {
        float_data: vec![1.0],
        ..floats("w", 1)
    };
    assert_eq!(problem(&encoded(both)), TensorProblem::SeveralPayloads);
    let mut twice = encoded(floats("w", 1));
    twice.extend(delimited(9, &[0; 4]));
    assert_eq!(problem(&twice), TensorProblem::SeveralPayloads);
    let elsewhere_too = TensorProto {
        raw_data: Some(vec![0; 4]),
        ..external_tensor("w", &[("location", "f")])
    };
    assert_eq!(
        problem(&encoded(elsewhere_too)),
        TensorProblem::SeveralPayloads
    );
    let nowhere = external_tensor("w", &[("offset", "0")]);
    assert_eq!(problem(&encoded(nowhere)), TensorProblem::ExternalRecord);
    for number in ["-1", "", "0x10", "18446744073709551616"] {
        let record = external_tensor("w", &[("location", "f"), ("offset", number)]);
        assert_eq!(problem(&encoded(record)), TensorProblem::ExternalRecord);
    }
    let many = external_tensor("w", &[("location", "f"); 17]);
    assert_eq!(problem(&encoded(many)), TensorProblem::ExternalRecord);
    let mut scattered = TensorProto {
        raw_data: None,
        ..floats("w", 1)
    }
    .encode_to_vec();
    for _ in 0..=limits::RUNS {
        scattered.extend(delimited(4, &[0; 4]));
    }
    assert_eq!(problem(&scattered), TensorProblem::Scattered(limits::RUNS));
}

#[test]
fn sizes_that_no_number_holds_are_refused() {
    let bytes = tensor_in_model(
        &TensorProto {
            dims: vec![i64::MAX, 8],
            ..floats("w", 1)
        }
        .encode_to_vec(),
    );
    let found = walk(&bytes).unwrap();
    assert!(matches!(
        found[0].byte_length(),
        Err(OnnxError::Tensor {
            problem: TensorProblem::Overflow,
            ..
        })
    ));
    let text = FoundTensor {
        data_type: DataType::String.number(),
        ..found[0].clone()
    };
    assert!(matches!(
        text.byte_length(),
        Err(OnnxError::Tensor {
            problem: TensorProblem::DataType(8),
            ..
        })
    ));
}

/// Protobuf's readers keep the low 32 bits of an enumeration; a walker that compared
/// all 64 would take the tensor for one without a payload and let its record pass.
#[test]
fn a_location_written_with_excess_bits_is_external_here_as_for_every_other_reader() {
    let record = external_tensor(
        "weight",
        &[("location", "../../etc/passwd"), ("offset", "0")],
    );
    let plain = record.encode_to_vec();
    // data_location is field 14, a varint: the tag 0x70, then 1.
    let place = plain
        .windows(2)
        .rposition(|pair| pair == [0x70, 1])
        .unwrap();
    let excessive = [
        &plain[..=place],
        &varint((1 << 32) | 1),
        &plain[place + 2..],
    ]
    .concat();
    let read = TensorProto::decode(excessive.as_slice()).unwrap();
    assert_eq!(read.data_location, 1);
    let found = walk(&tensor_in_model(&excessive)).unwrap();
    let Payload::External(found) = &found[0].payload else {
        panic!("{:?}", found[0].payload);
    };
    assert_eq!(found.location, "../../etc/passwd");
}
