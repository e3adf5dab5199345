//! A node test in the form in which a model is sealed and served.
//!
//! No node test has initializers, so some of its inputs become initializers. And the
//! inference protocol carries dense tensors of its own element types only: for
//! the rest, nodes that convert are put before the inputs (such as Cast and
//! `SequenceConstruct`) and after the outputs (such as Cast and `SequenceAt`).
//! Operator sets older than those that can be sealed become the oldest of these.
//! Plain ONNX Runtime and Occlude run the same model.

use occlude_container::LOWEST_OPSET;
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    AttributeProto, AttributeType, ModelProto, NodeProto, TypeProto, ValueInfoProto, type_proto,
};

use crate::Outcome;
use crate::elements::{element_type, protocol_type, tensor, wider_type};
use crate::node_test::{NodeTest, Value};
use crate::support::{integer, integers, node, tensor_attribute, value, with};

/// Before this version of the IR, an initializer had to be an input too.
const FIRST_IR_VERSION_WITH_CONSTANTS: i64 = 4;

/// A model whose inputs and outputs the protocol can carry.
pub(crate) struct Served {
    pub(crate) model: ModelProto,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) expected: Vec<Tensor>,
    /// Whether it has nodes that the test has not, or another operator set.
    pub(crate) is_adapted: bool,
}

/// The inputs that may become initializers: dense tensors of numbers (BOOL among
/// them) after the first input, which stays what a request brings.
pub(crate) fn possible_constants(test: &NodeTest) -> Vec<usize> {
    let is_number = |value: &Value| match value {
        Value::Tensor(tensor) => element_type(tensor).is_ok_and(|kind| kind.bits().is_some()),
        _ => false,
    };
    (1..test.inputs.len())
        .filter(|&index| is_number(&test.inputs[index]))
        .collect()
}

/// Makes initializers of the inputs at `constants`.
pub(crate) fn serve(test: &NodeTest, constants: &[usize]) -> Outcome<Served> {
    let mut model = test.model.clone();
    let mut graph = model.graph.take().ok_or("the model has no graph")?;
    let mut ends = Ends::default();
    for (index, (input, value)) in graph.input.drain(..).zip(&test.inputs).enumerate() {
        match value {
            Value::Tensor(tensor) if constants.contains(&index) => {
                let mut tensor = tensor.as_ref().clone();
                tensor.name.clone_from(&input.name);
                graph.initializer.push(tensor);
                if model.ir_version < FIRST_IR_VERSION_WITH_CONSTANTS {
                    ends.constants.push(input);
                }
            }
            _ => ends.input(&input.name, declared(&input)?, value)?,
        }
    }
    for (output, value) in graph.output.drain(..).zip(&test.outputs) {
        ends.output(&output.name, declared(&output)?, value)?;
    }
    let is_raised = raise_operator_set(&mut model);
    let is_adapted = is_raised || !ends.before.is_empty() || !ends.after.is_empty();
    let middle = std::mem::take(&mut graph.node);
    graph.node = [ends.before, middle, ends.after].concat();
    graph.input = [ends.inputs, ends.constants].concat();
    graph.output = ends.outputs;
    model.graph = Some(graph);
    Ok(Served {
        model,
        inputs: ends.given,
        expected: ends.expected,
        is_adapted,
    })
}

/// Where the operators changed meanwhile, plain ONNX Runtime fails or its outputs are
/// not those expected, and the test does not count.
fn raise_operator_set(model: &mut ModelProto) -> bool {
    let too_old = model
        .opset_import
        .iter_mut()
        .find(|set| matches!(set.domain.as_str(), "" | "ai.onnx") && set.version < LOWEST_OPSET);
    let is_raised = too_old.is_some();
    if let Some(set) = too_old {
        set.version = LOWEST_OPSET;
    }
    is_raised
}

fn declared(value: &ValueInfoProto) -> Outcome<&TypeProto> {
    Ok(value.r#type.as_ref().ok_or("a value has no type")?)
}

/// Both ends of a graph.
#[derive(Default)]
struct Ends {
    constants: Vec<ValueInfoProto>,
    inputs: Vec<ValueInfoProto>,
    given: Vec<Tensor>,
    before: Vec<NodeProto>,
    after: Vec<NodeProto>,
    outputs: Vec<ValueInfoProto>,
    expected: Vec<Tensor>,
}

impl Ends {
    /// Makes the value `name` of what a request can bring.
    fn input(&mut self, name: &str, declared: &TypeProto, value: &Value) -> Outcome<()> {
        match value {
            Value::Tensor(stored) => {
                let element = element_type(stored)?;
                if protocol_type(element).is_some() {
                    self.inputs.push(value_info(name, declared.clone()));
                    self.given.push(tensor(name, stored)?);
                    return Ok(());
                }
                let wider = wider_type(element).ok_or_else(|| no_wider(element))?;
                let given = format!("{name}/given");
                self.inputs
                    .push(value_info(&given, of_element(declared, wider)?));
                self.given.push(tensor(&given, stored)?);
                let mut cast = cast(&given, name, element);
                if wider == DataType::Float {
                    // So that infinities stay what they are.
                    cast.attribute.push(integer("saturate", 0));
                }
                self.before.push(cast);
            }
            Value::Sequence(values) => {
                let inner = inner_type(declared)?;
                let names = parts(name, values.len());
                for (name, value) in names.iter().zip(values) {
                    self.input(name, inner, value)?;
                }
                self.before.push(if values.is_empty() {
                    let element = integer("dtype", i64::from(tensor_type(inner)?.elem_type));
                    with(node("SequenceEmpty", &[], &[name]), element)
                } else {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    node("SequenceConstruct", &names, &[name])
                });
            }
            Value::Optional(Some(value)) => {
                let inner = format!("{name}/value");
                self.input(&inner, inner_type(declared)?, value)?;
                self.before.push(node("Optional", &[&inner], &[name]));
            }
            Value::Optional(None) => {
                let kind = AttributeProto {
                    name: "type".to_owned(),
                    r#type: AttributeType::TypeProto as i32,
                    tp: Some(Box::new(inner_type(declared)?.clone())),
                    ..AttributeProto::default()
                };
                self.before.push(with(node("Optional", &[], &[name]), kind));
            }
        }
        Ok(())
    }

    /// Makes outputs that an answer can carry of the value `name`, as many as the
    /// expected `value` takes.
    fn output(&mut self, name: &str, declared: &TypeProto, value: &Value) -> Outcome<()> {
        match value {
            Value::Tensor(stored) => {
                let element = element_type(stored)?;
                if protocol_type(element).is_some() {
                    self.answer(declared.clone(), tensor(name, stored)?);
                    return Ok(());
                }
                let wider = wider_type(element).ok_or_else(|| no_wider(element))?;
                let answered = format!("{name}/answered");
                self.after.push(cast(name, &answered, wider));
                let kind = of_element(declared, wider)?;
                self.answer(kind, tensor(&answered, stored)?);
            }
            Value::Sequence(values) => {
                let length = format!("{name}/length");
                self.after.push(node("SequenceLength", &[name], &[&length]));
                let count = Tensor::from_values(length, vec![], &[values.len() as i64])?;
                self.answer(scalar(DataType::Int64), count);
                let parts = parts(name, values.len());
                for (index, (part, value)) in (0_i64..).zip(parts.iter().zip(values)) {
                    let at = format!("{part}/index");
                    let constant = integers("", &[], &[index]);
                    let constant = tensor_attribute("value", constant);
                    self.after
                        .push(with(node("Constant", &[], &[&at]), constant));
                    self.after.push(node("SequenceAt", &[name, &at], &[part]));
                    self.output(part, inner_type(declared)?, value)?;
                }
            }
            Value::Optional(Some(value)) => {
                let inner = format!("{name}/value");
                self.after
                    .push(node("OptionalGetElement", &[name], &[&inner]));
                self.output(&inner, inner_type(declared)?, value)?;
            }
            Value::Optional(None) => {
                let present = format!("{name}/present");
                self.after
                    .push(node("OptionalHasElement", &[name], &[&present]));
                let absent = Tensor::from_values(present, vec![], &[false])?;
                self.answer(scalar(DataType::Bool), absent);
            }
        }
        Ok(())
    }

    fn answer(&mut self, kind: TypeProto, expected: Tensor) {
        self.outputs.push(value_info(expected.name(), kind));
        self.expected.push(expected);
    }
}

fn parts(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|index| format!("{name}/{index}")).collect()
}

fn cast(from: &str, to: &str, element: DataType) -> NodeProto {
    let element = integer("to", i64::from(element.number()));
    with(node("Cast", &[from], &[to]), element)
}

fn no_wider(element: DataType) -> String {
    format!("the protocol has no type for {element}")
}

fn value_info(name: &str, kind: TypeProto) -> ValueInfoProto {
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(kind),
        ..ValueInfoProto::default()
    }
}

fn scalar(element: DataType) -> TypeProto {
    value("", element, &[]).r#type.unwrap_or_default()
}

/// The same shape with other elements.
fn of_element(declared: &TypeProto, element: DataType) -> Outcome<TypeProto> {
    let mut tensor = tensor_type(declared)?.clone();
    tensor.elem_type = element.number();
    Ok(TypeProto {
        value: Some(type_proto::Value::TensorType(tensor)),
        ..TypeProto::default()
    })
}

fn tensor_type(declared: &TypeProto) -> Outcome<&type_proto::Tensor> {
    match &declared.value {
        Some(type_proto::Value::TensorType(tensor)) => Ok(tensor),
        _ => Err("a tensor is declared as something else".into()),
    }
}

/// Of what a sequence or an optional value is.
fn inner_type(declared: &TypeProto) -> Outcome<&TypeProto> {
    match &declared.value {
        Some(type_proto::Value::SequenceType(sequence)) => sequence.elem_type.as_deref(),
        Some(type_proto::Value::OptionalType(optional)) => optional.elem_type.as_deref(),
        _ => None,
    }
    .ok_or_else(|| "a value is declared as something else".into())
}
