//! What is sealed comes back: graph, weights, order and every unknown field.

mod support;

use std::path::Path;

use occlude_container::{
    ChunkSize, Container, Dimension, Metadata, OpenContainer, Progress, PublicView, SealOptions,
    TensorPlace, WarningKind, model_key, seal, seal_file, unseal_file,
};
use occlude_onnx::DataType;
use occlude_onnx::messages::{AttributeProto, GraphProto, ModelProto, TensorProto};
use prost::Message;
use support::{
    Folder, constant, decode, external, floats, key, model, node, noise, options, quiet, raw,
    small_model,
};

fn open(path: &Path) -> OpenContainer {
    let signed = Container::read(path)
        .unwrap()
        .verify_owner(&key().public())
        .unwrap();
    let model_key = model_key(&key(), signed.header());
    signed.open(&model_key).unwrap()
}

fn read(opened: &OpenContainer, tensor: usize) -> Vec<u8> {
    let mut bytes = vec![0; opened.tensors()[tensor].length as usize];
    opened.read_tensor(tensor, &mut bytes).unwrap();
    bytes
}

/// Seals, checks every chunk, unseals.
fn there_and_back(folder: &Folder, model: &Path) -> ModelProto {
    let (sealed, _) = folder.seal(model, "model.occ");
    open(&sealed).verify_all(&mut quiet).unwrap();
    let back = folder.path("back.onnx");
    unseal_file(&sealed, &back, &key(), &mut quiet).unwrap();
    decode(&back)
}

#[test]
fn an_inline_model_comes_back_byte_for_byte() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    there_and_back(&folder, &model);
    assert!(std::fs::read(&model).unwrap() == std::fs::read(folder.path("back.onnx")).unwrap());
    assert_eq!(folder.names(), ["back.onnx", "model.occ", "model.onnx"]);
}

#[test]
fn a_model_without_weights_comes_back_too() {
    let folder = Folder::new();
    let model = folder.write_model(
        "model.onnx",
        &model(vec![node("Relu", &["x"], "y")], vec![]),
    );
    there_and_back(&folder, &model);
    assert!(std::fs::read(&model).unwrap() == std::fs::read(folder.path("back.onnx")).unwrap());
    assert_eq!(open(&folder.path("model.occ")).data_length(), 0);
}

#[test]
fn tensors_lie_in_the_order_of_their_first_use_and_read_back() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let (sealed, _) = folder.seal(&model, "model.occ");
    let opened = open(&sealed);
    let names: Vec<&str> = opened.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["first", "", "second"]);
    assert_eq!(opened.tensors()[1].place, TensorPlace::Nested);
    for (tensor, seed) in [(0, 1), (1, 4), (2, 2)] {
        assert!(read(&opened, tensor) == noise(seed, 2400));
        assert_eq!(opened.tensors()[tensor].offset % 4096, 0);
    }
}

#[test]
fn a_runnable_skeleton_has_only_initializers_outside() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let (sealed, _) = folder.seal(&model, "model.occ");
    let opened = open(&sealed);
    let inside = |skeleton: &[u8]| {
        let graph = ModelProto::decode(skeleton).unwrap().graph.unwrap();
        let constant = graph.node[1].attribute[0].t.clone().unwrap();
        let outside = |tensor: &TensorProto| tensor.raw_data.is_none();
        let weights: Vec<bool> = graph.initializer.iter().map(outside).collect();
        (constant.raw_data, weights)
    };
    let outside = vec![true, false, true];
    assert_eq!(inside(opened.skeleton()), (None, outside.clone()));
    let runnable = opened.runnable_skeleton().unwrap();
    assert_eq!(inside(&runnable), (Some(noise(4, 2400)), outside));
}

#[test]
fn values_in_typed_fields_become_raw_bytes() {
    let folder = Folder::new();
    let integers: Vec<i64> = (0..3000).map(|index| index * index - 5).collect();
    let halves: Vec<i32> = (0..3000).collect();
    let numbers: Vec<f32> = (0..3000).map(|index| index as f32 / 7.0).collect();
    let typed = |name: &str, data_type: DataType| TensorProto {
        raw_data: None,
        ..raw(name, data_type, &[3000], vec![])
    };
    let weights = vec![
        TensorProto {
            int64_data: integers.clone(),
            ..typed("integers", DataType::Int64)
        },
        TensorProto {
            int32_data: halves.clone(),
            ..typed("halves", DataType::Float16)
        },
        TensorProto {
            float_data: numbers.clone(),
            ..typed("numbers", DataType::Float)
        },
    ];
    let model = folder.write_model("model.onnx", &model(vec![], weights));
    let back = there_and_back(&folder, &model).graph.unwrap().initializer;
    let raw: Vec<Vec<u8>> = back
        .into_iter()
        .map(|tensor| tensor.raw_data.unwrap())
        .collect();
    assert!(
        raw[0]
            == integers
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
    );
    assert!(
        raw[1]
            == halves
                .iter()
                .flat_map(|&v| (v as u16).to_le_bytes())
                .collect::<Vec<_>>()
    );
    assert!(
        raw[2]
            == numbers
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
    );
}

#[test]
fn external_data_is_sealed_with_the_model_and_comes_back_inline() {
    let folder = Folder::new();
    let data = noise(9, 40_000);
    folder.write("weights.bin", &data);
    std::fs::create_dir(folder.path("sub")).unwrap();
    std::fs::write(folder.path("sub/more.bin"), noise(10, 4000)).unwrap();
    let weights = vec![
        external("a", 5000, "weights.bin", 100, Some(20_000)),
        external("no-length", 1000, "./sub/more.bin", 0, None),
        external("tiny", 2, "weights.bin", 8, Some(8)),
        floats("inline", 5, 400),
    ];
    let model = folder.write_model("model.onnx", &model(vec![], weights));
    let back = there_and_back(&folder, &model).graph.unwrap().initializer;
    let expected = [
        data[100..20_100].to_vec(),
        noise(10, 4000),
        data[8..16].to_vec(),
        noise(5, 1600),
    ];
    for (tensor, expected) in back.iter().zip(expected) {
        assert!(
            tensor.raw_data.as_ref() == Some(&expected),
            "{}",
            tensor.name
        );
        assert!(tensor.external_data.is_empty() && tensor.data_location == 0);
    }
    assert_eq!(open(&folder.path("model.occ")).tensors().len(), 3);
}

#[test]
fn a_tensor_may_span_many_chunks_and_many_tensors_one() {
    for chunk_size in [4 << 10, 64 << 10, 1 << 20] {
        let folder = Folder::new();
        let weights = (0..20)
            .map(|n| floats(&format!("w{n}"), n, 300 + 977 * n as usize))
            .collect();
        let model = folder.write_model("model.onnx", &model(vec![], weights));
        let output = folder.path("model.occ");
        let chunk_size = ChunkSize::new(chunk_size).unwrap();
        let options = SealOptions {
            chunk_size,
            ..options()
        };
        seal_file(&model, &output, &key(), &options, &mut quiet).unwrap();
        let opened = open(&output);
        opened.verify_all(&mut quiet).unwrap();
        for (tensor, entry) in opened.tensors().iter().enumerate() {
            let seed = entry.name[1..].parse().unwrap();
            assert!(read(&opened, tensor) == noise(seed, entry.length as usize));
        }
    }
}

#[test]
fn metadata_is_read_back_by_who_opens_and_is_not_in_the_file() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let output = folder.path("model.occ");
    let entries = [("guard".to_owned(), "how it is guarded".to_owned())];
    let options = SealOptions {
        metadata: Metadata {
            entries: entries.into(),
            outputs: vec![],
        },
        ..options()
    };
    seal_file(&model, &output, &key(), &options, &mut quiet).unwrap();
    assert_eq!(open(&output).metadata(), &options.metadata.entries);
    let bytes = std::fs::read(&output).unwrap();
    assert!(!bytes.windows(7).any(|found| found == b"guarded"));
    assert!(
        open(&folder.seal(&model, "plain.occ").0)
            .metadata()
            .is_empty()
    );
}

#[test]
fn sealing_twice_gives_files_with_nothing_in_common() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let (first, one) = folder.seal(&model, "one.occ");
    let (second, other) = folder.seal(&model, "other.occ");
    assert_ne!(one.header.salt(), other.header.salt());
    assert_ne!(one.header.digest(), other.header.digest());
    let chunks = |path| std::fs::read(path).unwrap()[4096..].to_vec();
    let (first, second) = (chunks(first), chunks(second));
    assert!(first.chunks(16).zip(second.chunks(16)).all(|(a, b)| a != b));
}

#[test]
fn a_sealed_file_shows_no_name_and_no_weight() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let (sealed, _) = folder.seal(&model, "model.occ");
    let bytes = std::fs::read(sealed).unwrap();
    let contains = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    for needle in [
        b"second".as_slice(),
        b"occlude-tests",
        b"Constant",
        &noise(1, 16),
        &noise(2, 2400)[2384..],
    ] {
        assert!(!contains(needle));
    }
}

#[test]
fn progress_reaches_its_total_and_never_falls() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let mut seen: Vec<Progress> = Vec::new();
    let mut sink = std::io::Cursor::new(Vec::new());
    seal(&model, &mut sink, &key(), &options(), &mut |progress| {
        seen.push(progress);
    })
    .unwrap();
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    assert_eq!(
        seen.last().map(|last| last.done),
        seen.last().map(|last| last.total)
    );
}

#[test]
fn a_sink_need_not_start_at_zero() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let mut sink = std::io::Cursor::new(b"before".to_vec());
    sink.set_position(6);
    let sealed = seal(&model, &mut sink, &key(), &options(), &mut quiet).unwrap();
    assert_eq!(sink.position(), 6 + sealed.header.file_length());
    let bytes = sink.into_inner();
    assert_eq!(&bytes[..6], b"before");
    let output = folder.write("model.occ", &bytes[6..]);
    open(&output).verify_all(&mut quiet).unwrap();
}

#[test]
fn without_the_key_only_the_header_is_told() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let (output, sealed) = folder.seal(&model, "model.occ");
    let view = PublicView::of(Container::read(&output).unwrap().header());
    assert_eq!((view.id.as_str(), view.version), ("test", 1));
    assert_eq!(view.owner, key().public());
    assert_eq!(view.header_digest, sealed.header.digest());
    assert_eq!(view.file_length, output.metadata().unwrap().len());
}

#[test]
fn with_the_key_a_model_tells_what_it_is_made_of() {
    let folder = Folder::new();
    let body = GraphProto {
        node: vec![node("NonZero", &["d"], "z")],
        output: vec![support::value("z", &[])],
        ..Default::default()
    };
    let mut branch = node("If", &["b"], "ignored");
    branch.attribute.push(AttributeProto {
        name: "then_branch".to_owned(),
        g: Some(Box::new(body)),
        ..Default::default()
    });
    let mut graph = small_model();
    let nodes = &mut graph.graph.as_mut().unwrap().node;
    nodes.push(branch);
    nodes.push(node("Gather", &["first", "x"], "looked_up"));
    // Constant indices, and indices computed from a shape only, tell nothing.
    nodes.push(node("Gather", &["x", "c"], "fixed"));
    nodes.push(node("Shape", &["x"], "shape"));
    nodes.push(node("Gather", &["first", "shape"], "by_shape"));
    let model = folder.write_model("model.onnx", &graph);
    let (output, _) = folder.seal(&model, "model.occ");
    let inspection = open(&output).inspect().unwrap();
    assert_eq!(inspection.inputs.len(), 1);
    assert_eq!(inspection.inputs[0].name, "x");
    assert_eq!(inspection.inputs[0].data_type, "FLOAT");
    let fixed = [1, 600].map(Dimension::Fixed).to_vec();
    assert_eq!(inspection.outputs[0].shape, Some(fixed));
    assert_eq!(inspection.operator_sets[0].version, 17);
    let counts: Vec<_> = inspection
        .operators
        .iter()
        .map(|o| (o.operator.as_str(), o.count))
        .collect();
    assert_eq!(
        counts,
        [
            ("Add", 3),
            ("Gather", 3),
            ("Constant", 1),
            ("If", 1),
            ("Mul", 1),
            ("NonZero", 1),
            ("Shape", 1)
        ]
    );
    assert_eq!(inspection.parameters, 1801);
    assert_eq!(inspection.tensors.len(), 3);
    let warnings: Vec<_> = inspection
        .warnings
        .iter()
        .map(|warning| (warning.kind, warning.operator.as_str(), warning.count))
        .collect();
    assert_eq!(
        warnings,
        [
            (WarningKind::Access, "Gather", 1),
            (WarningKind::Flow, "If", 1),
            (WarningKind::Size, "NonZero", 1),
        ]
    );
}

#[test]
fn a_large_constant_is_sealed_where_its_node_is() {
    let folder = Folder::new();
    let nodes = vec![
        node("Add", &["x", "w"], "a"),
        constant("c", floats("", 4, 600)),
    ];
    let model = folder.write_model("model.onnx", &model(nodes, vec![floats("w", 1, 600)]));
    there_and_back(&folder, &model);
    let opened = open(&folder.path("model.occ"));
    let places: Vec<_> = opened.tensors().iter().map(|tensor| tensor.place).collect();
    assert_eq!(places, [TensorPlace::Initializer, TensorPlace::Nested]);
}
