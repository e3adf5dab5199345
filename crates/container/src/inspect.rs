//! What a model is made of: for its owner, who holds the key, and for everybody.
//!
//! Warnings name operators whose memory accesses, work or result sizes depend on the
//! *values* of a request: whoever watches addresses or timing learns something of
//! them. A look-up at constant or shape-derived indices is none, so values are
//! followed through the graph from its inputs. The analysis errs on the warning side.

use std::collections::{BTreeMap, HashSet};

use occlude_keys::{HeaderDigest, ModelId, ModelVersion, OwnerFingerprint, OwnerPublic};
use occlude_onnx::messages::tensor_shape_proto::dimension;
use occlude_onnx::messages::type_proto::Value;
use occlude_onnx::messages::{
    GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto,
};
use occlude_onnx::{DataType, OnnxError, element_count};
use prost::Message;

use crate::{Header, TensorEntry};

/// All that a container tells without its key.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct PublicView {
    /// The public id.
    pub id: ModelId,
    /// The version.
    pub version: ModelVersion,
    /// Who claims to own it.
    pub owner: OwnerPublic,
    /// That owner's fingerprint.
    pub owner_fingerprint: OwnerFingerprint,
    /// The name of this sealed version.
    pub header_digest: HeaderDigest,
    /// Plaintext bytes of a chunk.
    pub chunk_size: u32,
    /// How many chunks.
    pub chunk_count: u64,
    /// Bytes of the file: it bounds the model's size from above.
    pub file_length: u64,
}

impl PublicView {
    /// What anybody reads from the header.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self {
            id: header.id().clone(),
            version: header.version(),
            owner: *header.owner(),
            owner_fingerprint: header.owner().fingerprint(),
            header_digest: header.digest(),
            chunk_size: header.chunk_size().bytes(),
            chunk_count: header.chunk_count(),
            file_length: header.file_length(),
        }
    }
}

/// What a model is made of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The IR version that the file was written for.
    pub ir_version: i64,
    /// What wrote it, and that program's version.
    pub producer: String,
    /// What a request must carry: the graph's inputs that no initializer gives.
    pub inputs: Vec<ValueDescription>,
    /// What an answer carries.
    pub outputs: Vec<ValueDescription>,
    /// The operator sets.
    pub operator_sets: Vec<OperatorSet>,
    /// The operators, most frequent first, those in subgraphs and functions included.
    pub operators: Vec<OperatorCount>,
    /// Elements of all constant tensors but text.
    pub parameters: u64,
    /// The sealed tensors, largest first.
    pub tensors: Vec<TensorSize>,
    /// What a model's owner and users should know.
    pub warnings: Vec<Warning>,
}

/// An input or an output.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ValueDescription {
    /// Its name.
    pub name: String,
    /// The element type, or the kind of value if it is no tensor.
    pub data_type: String,
    /// The shape; `None` if even the rank is open.
    pub shape: Option<Vec<Dimension>>,
}

/// One extent of a shape.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Dimension {
    /// A number.
    Fixed(i64),
    /// A name, such as `batch`.
    Named(String),
    /// Not stated.
    Open(()),
}

/// An operator set.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct OperatorSet {
    /// Its name; empty for ONNX's own.
    pub domain: String,
    /// Its version.
    pub version: i64,
}

/// How often an operator occurs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct OperatorCount {
    /// The operator set; empty for ONNX's own.
    pub domain: String,
    /// The operator.
    pub operator: String,
    /// How often.
    pub count: u64,
}

/// A sealed tensor and its size.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct TensorSize {
    /// Its name.
    pub name: String,
    /// The element type.
    pub data_type: String,
    /// The extents.
    pub dims: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
}

/// Operators that tell something about the values of a request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// What depends on the values.
    pub kind: WarningKind,
    /// The operator set; empty for ONNX's own.
    pub domain: String,
    /// The operator.
    pub operator: String,
    /// How many of them.
    pub count: u64,
    /// The consequence, in a sentence.
    pub explanation: &'static str,
}

/// What depends on the values of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WarningKind {
    /// Which addresses are read or written.
    Access,
    /// Which operators run, or how often.
    Flow,
    /// How much work is done, or which branches are taken inside the operator.
    Work,
    /// How large the result is, and with it what follows.
    Size,
}

impl WarningKind {
    fn explanation(self) -> &'static str {
        match self {
            Self::Access => {
                "it reads or writes at addresses computed from the request, so whoever sees \
                 memory addresses learns indices such as token ids"
            }
            Self::Flow => {
                "the request's values decide which operators run or how often, which timing shows"
            }
            Self::Work => "its branches and the time it takes depend on the request's values",
            Self::Size => {
                "the size of its result depends on the request's values, and memory use and \
                 timing of all that follows show it"
            }
        }
    }
}

/// Which inputs of an operator matter for a warning.
enum Inputs {
    All,
    Only(&'static [usize]),
}

/// The operators that warn, and about which of their inputs.
fn hazard(domain: &str, operator: &str) -> Option<(WarningKind, Inputs)> {
    use Inputs::{All, Only};
    use WarningKind::{Access, Flow, Size, Work};
    Some(match (domain, operator) {
        ("", "Gather" | "GatherElements" | "GatherND" | "Scatter" | "ScatterElements")
        | ("", "ScatterND" | "GridSample" | "MaxUnpool" | "ReverseSequence" | "DeformConv")
        | ("com.microsoft", "GatherND" | "GatherBlockQuantized") => (Access, Only(&[1])),
        ("", "RoiAlign" | "MaxRoiPool") => (Access, Only(&[1, 2])),
        ("", "OneHot") => (Access, Only(&[0])),
        ("", "TensorScatter") => (Access, Only(&[2])),
        ("com.microsoft", "EmbedLayerNormalization") => (Access, Only(&[0, 1])),
        ("", "Slice" | "Pad") => (Size, Only(&[1, 2, 3, 4])),
        ("", "If") => (Flow, Only(&[0])),
        ("", "Loop" | "SequenceMap") => (Flow, All),
        ("com.microsoft", "BeamSearch" | "GreedySearch" | "Sampling") => (Flow, All),
        ("", "TopK" | "Multinomial" | "StringNormalizer" | "StringSplit" | "RegexFullMatch") => {
            (Work, All)
        }
        ("", "TfIdfVectorizer" | "TreeEnsemble") => (Work, All),
        ("ai.onnx.ml", "TreeEnsemble" | "TreeEnsembleClassifier" | "TreeEnsembleRegressor")
        | ("ai.onnx.ml", "LabelEncoder" | "CategoryMapper" | "DictVectorizer" | "OneHotEncoder")
        | ("ai.onnx.ml", "ArrayFeatureExtractor" | "CastMap") => (Work, All),
        ("com.microsoft", "MoE" | "QMoE") => (Access, All),
        ("", "NonZero" | "Compress" | "Unique" | "NonMaxSuppression" | "Range") => (Size, All),
        ("", "ConstantOfShape") => (Size, Only(&[0])),
        ("", "Reshape" | "Expand" | "Tile" | "CenterCropPad") => (Size, Only(&[1])),
        ("", "Resize" | "Upsample") => (Size, Only(&[1, 2, 3])),
        _ => return None,
    })
}

pub(crate) fn inspect(skeleton: &[u8], sealed: &[TensorEntry]) -> Result<Inspection, OnnxError> {
    let model = ModelProto::decode(skeleton).map_err(|error| OnnxError::NotAModel {
        reason: error.to_string(),
    })?;
    let graph = model.graph.unwrap_or_default();
    let mut survey = Survey::default();
    let initializers: HashSet<&str> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    let inputs = graph
        .input
        .iter()
        .filter(|input| !initializers.contains(input.name.as_str()));
    let mut values = inputs.clone().map(|input| input.name.clone()).collect();
    survey.graph(&graph, &mut values);
    for function in &model.functions {
        // Called with who knows what: every input counts as the request's.
        let mut values = function.input.iter().cloned().collect();
        survey.nodes(&function.node, &mut values);
    }
    let mut tensors: Vec<TensorSize> = sealed.iter().map(size_of).collect();
    tensors.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    Ok(Inspection {
        ir_version: model.ir_version,
        producer: format!("{} {}", model.producer_name, model.producer_version)
            .trim()
            .to_owned(),
        inputs: inputs.map(describe).collect(),
        outputs: graph.output.iter().map(describe).collect(),
        operator_sets: model
            .opset_import
            .into_iter()
            .map(|set| OperatorSet {
                domain: set.domain,
                version: set.version,
            })
            .collect(),
        operators: survey.operators(),
        parameters: survey.parameters,
        tensors,
        warnings: survey.warnings(),
    })
}

#[derive(Default)]
struct Survey {
    operators: BTreeMap<(String, String), u64>,
    hazards: BTreeMap<(WarningKind, String, String), u64>,
    parameters: u64,
}

impl Survey {
    /// `values`: the names whose values come from the request; grows on the way.
    fn graph(&mut self, graph: &GraphProto, values: &mut HashSet<String>) {
        for tensor in &graph.initializer {
            self.count_parameters(tensor);
        }
        for tensor in &graph.sparse_initializer {
            self.parameters += tensor.values.as_ref().map_or(0, elements);
        }
        self.nodes(&graph.node, values);
    }

    fn nodes(&mut self, nodes: &[NodeProto], values: &mut HashSet<String>) {
        for node in nodes {
            self.node(node, values);
        }
    }

    fn node(&mut self, node: &NodeProto, values: &mut HashSet<String>) {
        let domain = match node.domain.as_str() {
            "ai.onnx" => "",
            domain => domain,
        };
        let name = (domain.to_owned(), node.op_type.clone());
        *self.operators.entry(name).or_default() += 1;
        let mut tainted = node.input.iter().any(|input| values.contains(input));
        for attribute in &node.attribute {
            for tensor in attribute.t.as_deref().into_iter().chain(&attribute.tensors) {
                self.count_parameters(tensor);
            }
            for graph in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
                // Shadowed names and the body's own inputs count as the request's.
                let mut inner = values.clone();
                inner.extend(graph.input.iter().map(|input| input.name.clone()));
                self.graph(graph, &mut inner);
                tainted |= graph
                    .output
                    .iter()
                    .any(|output| inner.contains(&output.name));
            }
        }
        if let Some((kind, inputs)) = hazard(domain, &node.op_type) {
            let from_request = |input: &String| values.contains(input);
            let warns = match inputs {
                Inputs::All => tainted,
                Inputs::Only(which) => which
                    .iter()
                    .filter_map(|&input| node.input.get(input))
                    .any(from_request),
            };
            if warns {
                let name = (kind, domain.to_owned(), node.op_type.clone());
                *self.hazards.entry(name).or_default() += 1;
            }
        }
        let only_shape = domain.is_empty() && matches!(node.op_type.as_str(), "Shape" | "Size");
        if tainted && !only_shape {
            values.extend(node.output.iter().filter(|name| !name.is_empty()).cloned());
        }
    }

    fn count_parameters(&mut self, tensor: &TensorProto) {
        self.parameters += elements(tensor);
    }

    fn operators(&self) -> Vec<OperatorCount> {
        let mut operators: Vec<OperatorCount> = self
            .operators
            .iter()
            .map(|((domain, operator), &count)| OperatorCount {
                domain: domain.clone(),
                operator: operator.clone(),
                count,
            })
            .collect();
        operators.sort_by_key(|operator| std::cmp::Reverse(operator.count));
        operators
    }

    fn warnings(&self) -> Vec<Warning> {
        self.hazards
            .iter()
            .map(|((kind, domain, operator), &count)| Warning {
                kind: *kind,
                domain: domain.clone(),
                operator: operator.clone(),
                count,
                explanation: kind.explanation(),
            })
            .collect()
    }
}

fn elements(tensor: &TensorProto) -> u64 {
    if tensor.data_type == DataType::String.number() {
        return 0;
    }
    let dims: Option<Vec<u64>> = tensor
        .dims
        .iter()
        .map(|&dim| u64::try_from(dim).ok())
        .collect();
    dims.and_then(|dims| element_count(&dims)).unwrap_or(0)
}

fn size_of(entry: &TensorEntry) -> TensorSize {
    TensorSize {
        name: entry.name.clone(),
        data_type: type_name(entry.data_type),
        dims: entry.dims.clone(),
        bytes: entry.length,
    }
}

fn type_name(number: i32) -> String {
    DataType::from_number(number)
        .map_or_else(|| format!("UNKNOWN({number})"), |known| known.to_string())
}

fn describe(value: &ValueInfoProto) -> ValueDescription {
    let (data_type, shape) = match value.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(Value::TensorType(tensor)) => (type_name(tensor.elem_type), tensor.shape.as_ref()),
        Some(other) => (kind_name(other), None),
        None => ("UNDEFINED".to_owned(), None),
    };
    let shape = shape.map(|shape| {
        let dims = shape.dim.iter().map(|dim| match &dim.value {
            Some(dimension::Value::DimValue(value)) => Dimension::Fixed(*value),
            Some(dimension::Value::DimParam(name)) => Dimension::Named(name.clone()),
            None => Dimension::Open(()),
        });
        dims.collect()
    });
    ValueDescription {
        name: value.name.clone(),
        data_type,
        shape,
    }
}

fn kind_name(value: &Value) -> String {
    let inner = |inner: &Option<Box<TypeProto>>| {
        let value = inner.as_ref().and_then(|inner| inner.value.as_ref());
        value.map_or_else(|| "UNDEFINED".to_owned(), kind_name)
    };
    match value {
        Value::TensorType(tensor) => type_name(tensor.elem_type),
        Value::SparseTensorType(tensor) => format!("sparse({})", type_name(tensor.elem_type)),
        Value::OpaqueType(opaque) => format!("opaque({}.{})", opaque.domain, opaque.name),
        Value::SequenceType(sequence) => format!("sequence({})", inner(&sequence.elem_type)),
        Value::OptionalType(optional) => format!("optional({})", inner(&optional.elem_type)),
        Value::MapType(map) => {
            let key = type_name(map.key_type);
            format!("map({key}, {})", inner(&map.value_type))
        }
    }
}
