//! Reads and writes attributes of nodes. One of another type than expected reads
//! as `None`, never as its default.

use occlude_onnx::messages::{AttributeProto, AttributeType, NodeProto};

pub(super) fn find<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
}

/// Whether `attribute` is of this type. Files of the first IR versions do not say.
fn is(attribute: &AttributeProto, expected: AttributeType) -> bool {
    attribute.ref_attr_name.is_empty()
        && (attribute.r#type == expected as i32
            || attribute.r#type == AttributeType::Undefined as i32)
}

pub(super) fn integer(node: &NodeProto, name: &str, default: i64) -> Option<i64> {
    match find(node, name) {
        None => Some(default),
        // A zero may be left out.
        Some(attribute) => is(attribute, AttributeType::Int).then(|| attribute.i.unwrap_or(0)),
    }
}

pub(super) fn float(node: &NodeProto, name: &str, default: f32) -> Option<f32> {
    match find(node, name) {
        None => Some(default),
        Some(attribute) => is(attribute, AttributeType::Float).then(|| attribute.f.unwrap_or(0.0)),
    }
}

/// `None` where the attribute has another type, an empty slice where it is absent.
pub(super) fn integers<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [i64]> {
    match find(node, name) {
        None => Some(&[]),
        Some(attribute) => is(attribute, AttributeType::Ints).then_some(attribute.ints.as_slice()),
    }
}

pub(super) fn string<'a>(
    node: &'a NodeProto,
    name: &str,
    default: &'static str,
) -> Option<&'a str> {
    match find(node, name) {
        None => Some(default),
        Some(attribute) if is(attribute, AttributeType::String) => {
            std::str::from_utf8(attribute.s.as_deref().unwrap_or_default()).ok()
        }
        Some(_) => None,
    }
}

pub(super) fn of_integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: Some(value),
        ..AttributeProto::default()
    }
}

pub(super) fn of_float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Float as i32,
        f: Some(value),
        ..AttributeProto::default()
    }
}

pub(super) fn of_integers(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Ints as i32,
        ints: values,
        ..AttributeProto::default()
    }
}

pub(super) fn of_floats(name: &str, values: Vec<f32>) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Floats as i32,
        floats: values,
        ..AttributeProto::default()
    }
}

/// Sets an integer, replacing what stands under that name.
pub(super) fn set_integer(node: &mut NodeProto, name: &str, value: i64) {
    let attribute = of_integer(name, value);
    match node.attribute.iter_mut().find(|other| other.name == name) {
        Some(other) => *other = attribute,
        None => node.attribute.push(attribute),
    }
}
