//! Small models whose larger constants are sealed, and what becomes of them.

use occlude_container::PAYLOAD_LOCATION;
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    AttributeProto, DataLocation, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
};
use prost::Message;

use super::*;
pub(super) use crate::support::{
    floats, graph, integers_attribute, model, node, subgraph, tensor, value, with,
};

/// Every operator that can be sealed is; blocks of 8 channels; only weights of at
/// least 4 KiB stream otherwise.
pub(super) const OPTIONS: RewriteOptions = RewriteOptions {
    sealed_operators: true,
    block: Some(8),
    smallest_streamed: 4096,
};

/// [`OPTIONS`] without the blocked layout.
pub(super) const PLAIN: RewriteOptions = RewriteOptions {
    block: None,
    ..OPTIONS
};

/// A tensor whose values are in the container.
pub(super) fn sealed(name: &str, data_type: DataType, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: data_type.number(),
        dims: dims.to_vec(),
        data_location: DataLocation::External as i32,
        external_data: vec![entry("location", PAYLOAD_LOCATION)],
        ..TensorProto::default()
    }
}

/// A sealed FP32 tensor.
pub(super) fn weight(name: &str, dims: &[i64]) -> TensorProto {
    sealed(name, DataType::Float, dims)
}

/// An FP32 tensor that stands in the skeleton.
pub(super) fn small(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>() as usize;
    floats(name, dims, &vec![0.5; count])
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

pub(super) fn survey(model: &ModelProto, options: &RewriteOptions) -> Survey {
    try_survey(model, options).unwrap()
}

/// Gives each sealed tensor of the main graph its place, then surveys.
pub(super) fn try_survey(
    model: &ModelProto,
    options: &RewriteOptions,
) -> Result<Survey, LoadError> {
    let mut model = model.clone();
    let mut tensors = HashMap::new();
    let graph = model.graph.get_or_insert_default();
    for (index, tensor) in graph.initializer.iter_mut().enumerate() {
        if tensor.data_location == DataLocation::External as i32 {
            let data_type = DataType::from_number(tensor.data_type).unwrap();
            let dims: Vec<u64> = tensor.dims.iter().map(|&extent| extent as u64).collect();
            let length = data_type.byte_length(&dims).unwrap();
            let offset = index as u64 * 4096;
            tensor.external_data.truncate(1);
            tensor.external_data.extend([
                entry("offset", &offset.to_string()),
                entry("length", &length.to_string()),
            ]);
            tensors.insert(offset, SealedTensor { index, length });
        }
    }
    Survey::of(
        &model.encode_to_vec(),
        &tensors,
        &mut |_| panic!("a tensor is read"),
        options,
    )
}

/// The emitted model and the names of the weights it borrows; nothing of kind
/// [`LayerKind::Whole`] is resident.
pub(super) fn emitted(survey: &Survey) -> (ModelProto, Vec<String>) {
    let emitted = survey.emit(&|_| false).unwrap();
    let model = ModelProto::decode(emitted.model.as_slice()).unwrap();
    let names = emitted.weights.into_iter().map(|weight| weight.name);
    (model, names.collect())
}

/// The emitted nodes, one a line: `results = Operator(inputs) attributes`.
pub(super) fn nodes(model: &ModelProto, options: &RewriteOptions) -> Vec<String> {
    lines(&emitted(&survey(model, options)).0)
}

pub(super) fn lines(model: &ModelProto) -> Vec<String> {
    let nodes = &model.graph.as_ref().unwrap().node;
    nodes.iter().map(line).collect()
}

fn line(node: &NodeProto) -> String {
    let prefix = match node.domain.as_str() {
        BLOCKED_DOMAIN => "nchwc.",
        _ => "",
    };
    let mut line = format!(
        "{} = {prefix}{}({})",
        node.output.join(", "),
        node.op_type,
        node.input.join(", "),
    );
    for attribute in &node.attribute {
        line += &format!(" {}={}", attribute.name, attribute_value(attribute));
    }
    line
}

fn attribute_value(attribute: &AttributeProto) -> String {
    match (attribute.i, attribute.f, &attribute.s) {
        (Some(integer), _, _) => integer.to_string(),
        (_, Some(float), _) => float.to_string(),
        (_, _, Some(string)) => String::from_utf8_lossy(string).into_owned(),
        _ => format!("{:?}", attribute.ints),
    }
}
