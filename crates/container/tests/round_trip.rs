//! What is sealed comes back: graph, weights, order and every unknown field.

mod support;

use occlude_container::{Container, OpenContainer, TensorPlace, model_key, unseal_file};
use prost::Message;
use support::{Folder, decode, key, quiet, small_model};

fn open(path: &std::path::Path) -> OpenContainer {
    let signed = Container::read(path)
        .unwrap()
        .verify_owner(&key().public())
        .unwrap();
    let model_key = model_key(&key(), signed.header());
    signed.open(&model_key).unwrap()
}

#[test]
fn an_inline_model_comes_back_byte_for_byte() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let (sealed, _) = folder.seal(&model, "model.occ");
    let back = folder.path("back.onnx");
    unseal_file(&sealed, &back, &key(), &mut quiet).unwrap();
    assert!(std::fs::read(&model).unwrap() == std::fs::read(&back).unwrap());
    assert_eq!(folder.names(), ["back.onnx", "model.occ", "model.onnx"]);
}

#[test]
fn tensors_lie_in_the_order_of_their_first_use_and_read_back() {
    let folder = Folder::new();
    let model = folder.write_model("model.onnx", &small_model());
    let (sealed, _) = folder.seal(&model, "model.occ");
    let opened = open(&sealed);
    opened.verify_all(&mut quiet).unwrap();
    let names: Vec<&str> = opened.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["first", "", "second"]);
    assert_eq!(opened.tensors()[1].place, TensorPlace::Nested);
    for (index, seed) in [(0, 1), (1, 4), (2, 2)] {
        let mut bytes = vec![0; 2400];
        opened.read_tensor(index, &mut bytes).unwrap();
        assert!(bytes == support::noise(seed, 2400));
        assert_eq!(opened.tensors()[index].offset % 4096, 0);
    }
    let skeleton = occlude_onnx::messages::ModelProto::decode(opened.skeleton()).unwrap();
    assert!(
        skeleton
            .graph
            .unwrap()
            .initializer
            .iter()
            .all(|tensor| tensor.name == "bias" || tensor.raw_data.is_none())
    );
    let _ = decode(&model);
}
