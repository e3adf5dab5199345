//! Which nodes become sealed operators, and which weights can be opened in time for
//! an operator of ONNX Runtime.
//!
//! A weight stays resident for all who read it as soon as one of them reads places
//! that depend on values (a look-up), is a subgraph or a function, hands the weight
//! on as it is, or is an operator that this does not know.

use std::collections::{HashMap, HashSet};

use occlude_onnx::DataType;
use occlude_onnx::messages::NodeProto;

use super::draft::{Draft, is_onnx};
use super::emit::MAY_MAKE_NO_TENSOR;
use super::{
    Convolution, Gemm, Layer, LayerKind, Pads, RewriteOptions, SEALED_DOMAIN, Source, Weight,
    attributes,
};

/// ONNX's own operators that look up places of an input that depend on values, and
/// the first of their inputs that is no table.
const LOOK_UPS: &[(&str, usize)] = &[
    ("Gather", 1),
    ("GatherElements", 1),
    ("GatherND", 1),
    ("OneHot", 3),
    ("RotaryEmbedding", 4),
    ("Scatter", 1),
    ("ScatterElements", 1),
    ("ScatterND", 1),
];

/// ONNX's own operators whose result may be their first input, not a copy: wiping
/// the weight would wipe the result.
const ALIASES: &[&str] = &["Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"];

/// ONNX Runtime's own operators that read the whole of their weights.
const KNOWN_TO_READ_ALL: &[&str] = &[
    "Attention",
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "MatMulBnb4",
    "MatMulInteger16",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "NhwcFusedConv",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "TransposeMatMul",
];

/// Largest extent, stride, dilation or pad of a convolution: sums and products of a
/// few of them stay far from overflow.
const LARGEST: i64 = i32::MAX as i64;

/// Replaces Conv, Gemm and MatMul over constant FP32 weights.
pub(super) fn seal(draft: &mut Draft, options: &RewriteOptions) {
    read_through_identities(draft);
    let resident = must_stay_resident(draft);
    let mut sealing = Sealing {
        transposes: plain_transposes(draft),
        resident,
        smallest: options.smallest_streamed,
    };
    for node in std::mem::take(&mut draft.nodes) {
        let nodes = sealing.replace(draft, &node);
        draft.nodes.extend(nodes.unwrap_or_else(|| vec![node]));
    }
    drop_unread_transposes(draft, &sealing.transposes);
}

/// Makes a layer of every other weight of at least `smallest_streamed` bytes that can
/// be opened just before the operators that read it.
pub(super) fn find_whole(draft: &mut Draft, options: &RewriteOptions) {
    let readers = draft.readers();
    let mut found = Vec::new();
    for name in &draft.constant_order {
        let Some(weight) = draft.constants.get(name) else {
            continue;
        };
        let all_open = readers.of(name).iter().all(|reader| {
            let node = &draft.nodes[reader.node];
            reader
                .input
                .is_some_and(|input| opens_whole(draft, node, input))
        });
        if weight.length() >= options.smallest_streamed.max(1)
            && is_streamable(weight.data_type)
            && !readers.leaves(name)
            && !readers.of(name).is_empty()
            && all_open
        {
            found.push(layer(weight.clone(), LayerKind::Whole));
        }
    }
    draft.layers.extend(found);
}

/// Makes one layer of those that are equal, and numbers layers in the order in which
/// they are first read.
pub(super) fn merge_equal(draft: &mut Draft) {
    let readers = draft.readers();
    let mut first_read = vec![usize::MAX; draft.layers.len()];
    for (position, node) in draft.nodes.iter().enumerate() {
        if let Some(first) = layer_index(node).and_then(|index| first_read.get_mut(index)) {
            *first = position.min(*first);
        }
    }
    for (layer, first) in draft.layers.iter().zip(&mut first_read) {
        if layer.kind == LayerKind::Whole {
            let nodes = readers.of(&layer.weight.name).iter().map(|r| r.node);
            *first = nodes.min().unwrap_or(usize::MAX);
        }
    }
    let mut order: Vec<usize> = (0..draft.layers.len()).collect();
    order.sort_by_key(|&index| first_read[index]);

    let mut merged: Vec<Layer> = Vec::new();
    let mut numbers = vec![0; draft.layers.len()];
    for index in order {
        let layer = &draft.layers[index];
        let equal = merged.iter().position(|other| other == layer);
        numbers[index] = equal.unwrap_or(merged.len());
        if equal.is_none() {
            merged.push(layer.clone());
        }
    }
    for node in &mut draft.nodes {
        if let Some(&number) = layer_index(node).and_then(|index| numbers.get(index)) {
            attributes::set_integer(node, "layer", number as i64);
        }
    }
    draft.layers = merged;
}

/// The layer of a sealed operator.
pub(super) fn layer_index(node: &NodeProto) -> Option<usize> {
    (node.domain == SEALED_DOMAIN)
        .then(|| attributes::integer(node, "layer", -1))
        .flatten()
        .and_then(|index| usize::try_from(index).ok())
}

fn layer(weight: Weight, kind: LayerKind) -> Layer {
    Layer {
        name: weight.name.clone(),
        weight,
        kind,
    }
}

/// Exporters name one constant several times with Identity.
fn read_through_identities(draft: &mut Draft) {
    let readers = draft.readers();
    let mut nodes = std::mem::take(&mut draft.nodes);
    let mut renamed: HashMap<String, String> = HashMap::new();
    nodes.retain(|node| {
        let ([from], [to]) = (node.input.as_slice(), node.output.as_slice()) else {
            return true;
        };
        let from = renamed.get(from).unwrap_or(from).clone();
        let only_inputs = readers.of(to).iter().all(|reader| reader.input.is_some());
        let pointless = draft.is_standard(node, "Identity")
            && draft.constants.contains_key(&from)
            && !readers.leaves(to)
            && only_inputs;
        if pointless {
            renamed.insert(to.clone(), from);
        }
        !pointless
    });
    for input in nodes.iter_mut().flat_map(|node| &mut node.input) {
        if let Some(from) = renamed.get(input) {
            input.clone_from(from);
        }
    }
    draft.nodes = nodes;
}

fn must_stay_resident(draft: &Draft) -> HashSet<String> {
    let readers = draft.readers();
    let stays = |name: &&String| {
        readers.leaves(name)
            || readers.of(name).iter().any(|reader| {
                let node = &draft.nodes[reader.node];
                !reader
                    .input
                    .is_some_and(|input| opens_whole(draft, node, input))
            })
    };
    draft.constants.keys().filter(stays).cloned().collect()
}

/// Whether this input of `node` can be a tensor that is wiped right after `node` ran.
fn opens_whole(draft: &Draft, node: &NodeProto, input: usize) -> bool {
    let operator = node.op_type.as_str();
    let is_table = LOOK_UPS
        .iter()
        .any(|&(name, tables)| name == operator && input < tables);
    let known = match node.domain.as_str() {
        domain if is_onnx(domain) => {
            // ONNX Runtime leaves a Dropout out, and takes the wrong one of its inputs for
            // its result if only a later one comes from a node.
            !is_table
                && operator != "Dropout"
                && !MAY_MAKE_NO_TENSOR.contains(&operator)
                && (input > 0 || !ALIASES.contains(&operator) || changes_type(draft, node))
        }
        "com.microsoft" => KNOWN_TO_READ_ALL.contains(&operator),
        _ => false,
    };
    known && !draft.is_function(node) && node.output.iter().any(|name| !name.is_empty())
}

/// Whether `node` makes another type of its constant input, and so a copy.
fn changes_type(draft: &Draft, node: &NodeProto) -> bool {
    let from = node
        .input
        .first()
        .and_then(|name| draft.constants.get(name));
    let to = attributes::integer(node, "to", 0);
    node.op_type == "Cast"
        && from
            .is_some_and(|weight| to.is_some_and(|to| to != i64::from(weight.data_type.number())))
}

/// Whether ONNX Runtime's custom operators can make tensors of this type.
fn is_streamable(data_type: DataType) -> bool {
    !matches!(
        data_type,
        DataType::String | DataType::Complex64 | DataType::Complex128
    ) && data_type.bits().is_some_and(|bits| bits >= 8)
}

/// What is transposed by each Transpose that swaps a constant's two axes, by name of
/// the result.
fn plain_transposes(draft: &Draft) -> HashMap<String, String> {
    let transposes = draft.nodes.iter().filter_map(|node| {
        let ([from], [to]) = (node.input.as_slice(), node.output.as_slice()) else {
            return None;
        };
        let swaps = draft.is_standard(node, "Transpose")
            && draft.constants.get(from).is_some_and(|w| w.dims.len() == 2)
            && matches!(attributes::integers(node, "perm"), Some([] | [1, 0]));
        swaps.then(|| (to.clone(), from.clone()))
    });
    transposes.collect()
}

fn drop_unread_transposes(draft: &mut Draft, transposes: &HashMap<String, String>) {
    let readers = draft.readers();
    let unread: HashSet<&str> = transposes
        .keys()
        .map(String::as_str)
        .filter(|to| readers.of(to).is_empty() && !readers.leaves(to))
        .collect();
    draft.nodes.retain(|node| match node.output.as_slice() {
        [output] => !unread.contains(output.as_str()),
        _ => true,
    });
}

struct Sealing {
    transposes: HashMap<String, String>,
    resident: HashSet<String>,
    smallest: u64,
}

impl Sealing {
    /// What `node` becomes, if it becomes sealed.
    fn replace(&mut self, draft: &mut Draft, node: &NodeProto) -> Option<Vec<NodeProto>> {
        let has_one = |names: &[String]| names.first().is_some_and(|name| !name.is_empty());
        if node.output.len() != 1 || !has_one(&node.output) || !has_one(&node.input) {
            return None;
        }
        if draft.is_standard(node, "Conv") {
            self.convolution(draft, node)
        } else if draft.is_standard(node, "Gemm") {
            self.gemm(draft, node)
        } else if draft.is_standard(node, "MatMul") {
            self.matmul(draft, node)
        } else {
            None
        }
    }

    fn convolution(&self, draft: &mut Draft, node: &NodeProto) -> Option<Vec<NodeProto>> {
        let (x, weight, bias) = match node.input.as_slice() {
            [x, weight] => (x, weight, ""),
            [x, weight, bias] => (x, weight, bias.as_str()),
            _ => return None,
        };
        let weight = self.weight(draft, weight)?.clone();
        let convolution = read_convolution(node, &weight)?;
        let out_channels = i64::try_from(convolution.out_channels).ok()?;
        if let Some(bias) = draft.constants.get(bias)
            && (bias.dims != [out_channels] || bias.data_type != DataType::Float)
        {
            return None;
        }
        let layer = layer(weight, LayerKind::Convolution(convolution));
        let mut sealed = sealed_operator(draft, "SealedConvolution", node, layer);
        sealed.input = inputs([x, bias, ""]);
        attributes::set_integer(&mut sealed, "input_blocked", 0);
        attributes::set_integer(&mut sealed, "output_blocked", 0);
        Some(vec![sealed])
    }

    fn matmul(&self, draft: &mut Draft, node: &NodeProto) -> Option<Vec<NodeProto>> {
        let [x, weight] = node.input.as_slice() else {
            return None;
        };
        let (weight, gemm) = self.matrix(draft, weight, false)?;
        let mut sealed = sealed_operator(
            draft,
            "SealedGemm",
            node,
            layer(weight, LayerKind::Gemm(gemm)),
        );
        sealed.input = inputs([x, "", ""]);
        Some(vec![sealed])
    }

    fn gemm(&self, draft: &mut Draft, node: &NodeProto) -> Option<Vec<NodeProto>> {
        let (x, weight, c) = match node.input.as_slice() {
            [x, weight] => (x, weight, ""),
            [x, weight, c] => (x, weight, c.as_str()),
            _ => return None,
        };
        let transposed = match attributes::integer(node, "transB", 0)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        if attributes::integer(node, "transA", 0)? != 0 {
            return None;
        }
        let alpha = attributes::float(node, "alpha", 1.0)?;
        let beta = attributes::float(node, "beta", 1.0)?;
        let (weight, mut gemm) = self.matrix(draft, weight, transposed)?;
        gemm.scale = (alpha != 1.0).then_some(alpha);
        let n = i64::try_from(gemm.n).ok()?;
        let mut sealed = sealed_operator(
            draft,
            "SealedGemm",
            node,
            layer(weight, LayerKind::Gemm(gemm)),
        );

        let mut nodes = Vec::new();
        let c = if c.is_empty() || beta == 0.0 {
            String::new()
        } else if beta == 1.0 {
            c.to_owned()
        } else {
            scaled(draft, c, beta, &mut nodes)
        };
        if c.is_empty() || is_row(draft, &c, n) {
            sealed.input = inputs([x, &c, ""]);
            nodes.push(sealed);
        } else {
            sealed.input = inputs([x, "", ""]);
            let product = draft.names.fresh(&format!("product/{}", node.output[0]));
            sealed.output = vec![product.clone()];
            nodes.push(sealed);
            nodes.push(NodeProto {
                op_type: "Add".to_owned(),
                name: draft.names.fresh(&format!("sum/{}", node.output[0])),
                input: vec![product, c],
                output: node.output.clone(),
                ..NodeProto::default()
            });
        }
        Some(nodes)
    }

    /// A matrix that may be sealed, seen through one Transpose; `transposed` says
    /// whether the operator transposes it as well.
    fn matrix(&self, draft: &Draft, name: &str, transposed: bool) -> Option<(Weight, Gemm)> {
        let (name, transposed) = match self.transposes.get(name) {
            Some(from) => (from.as_str(), !transposed),
            None => (name, transposed),
        };
        let weight = self.weight(draft, name)?;
        if matches!(weight.source, Source::Inline(_)) && weight.length() < self.smallest {
            return None;
        }
        let [rows, columns] = weight.dims[..] else {
            return None;
        };
        let (rows, columns) = (extent(rows)?, extent(columns)?);
        let (k, n) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let gemm = Gemm {
            k,
            n,
            transposed,
            scale: None,
        };
        Some((weight.clone(), gemm))
    }

    /// An FP32 constant that need not be resident for others.
    fn weight<'a>(&self, draft: &'a Draft, name: &str) -> Option<&'a Weight> {
        let weight = draft.constants.get(name)?;
        (weight.data_type == DataType::Float && !self.resident.contains(name)).then_some(weight)
    }
}

fn sealed_operator(
    draft: &mut Draft,
    operator: &str,
    original: &NodeProto,
    layer: Layer,
) -> NodeProto {
    let index = draft.layers.len();
    draft.layers.push(layer);
    NodeProto {
        op_type: operator.to_owned(),
        domain: SEALED_DOMAIN.to_owned(),
        name: original.name.clone(),
        output: original.output.clone(),
        attribute: vec![
            attributes::of_integer("layer", index as i64),
            attributes::of_integer("activation", 0),
        ],
        ..NodeProto::default()
    }
}

/// The inputs of a sealed operator: `x`, bias and residual, the last ones left out
/// where they are empty.
pub(super) fn inputs(names: [&str; 3]) -> Vec<String> {
    let count = names
        .iter()
        .rposition(|name| !name.is_empty())
        .map_or(0, |last| last + 1);
    names[..count].iter().map(|&name| name.to_owned()).collect()
}

/// `c` times `beta`: another constant where its values are known, else a node's
/// result.
fn scaled(draft: &mut Draft, c: &str, beta: f32, nodes: &mut Vec<NodeProto>) -> String {
    if let Some(values) = draft.floats(c)
        && let Some(dims) = draft.constants.get(c).map(|weight| weight.dims.clone())
    {
        let values: Vec<f32> = values.iter().map(|value| value * beta).collect();
        return draft.add_floats(&format!("scaled/{c}"), &dims, &values);
    }
    let factor = draft.add_floats("beta", &[], &[beta]);
    let result = draft.names.fresh(&format!("scaled/{c}"));
    nodes.push(NodeProto {
        op_type: "Mul".to_owned(),
        name: draft.names.fresh(&format!("scale/{c}")),
        input: vec![c.to_owned(), factor],
        output: vec![result.clone()],
        ..NodeProto::default()
    });
    result
}

/// Whether `name` is surely of shape `[n]` or `[1, n]`.
fn is_row(draft: &Draft, name: &str, n: i64) -> bool {
    let dims = match draft.constants.get(name) {
        Some(weight) => Some(weight.dims.clone()),
        None => super::shapes::fixed_input(&draft.inputs, name),
    };
    matches!(dims.as_deref(), Some([only] | [1, only]) if *only == n)
}

fn read_convolution(node: &NodeProto, weight: &Weight) -> Option<Convolution> {
    let (one_dimensional, kernel) = match weight.dims[..] {
        [_, _, width] => (true, [1, width]),
        [_, _, height, width] => (false, [height, width]),
        _ => return None,
    };
    let axes = if one_dimensional {
        &kernel[1..]
    } else {
        &kernel[..]
    };
    if !matches!(attributes::integers(node, "kernel_shape")?, stated if stated.is_empty() || stated == axes)
    {
        return None;
    }
    // One value for each axis, 1 where nothing is said.
    let per_axis = |name: &str| -> Option<[usize; 2]> {
        match (attributes::integers(node, name)?, one_dimensional) {
            ([], _) => Some([1, 1]),
            ([width], true) => Some([1, extent(*width)?]),
            ([height, width], false) => Some([extent(*height)?, extent(*width)?]),
            _ => None,
        }
    };
    let stated_pads = attributes::integers(node, "pads")?;
    let pads = match attributes::string(node, "auto_pad", "NOTSET")? {
        "SAME_UPPER" => Pads::SameUpper,
        "SAME_LOWER" => Pads::SameLower,
        "VALID" => Pads::Explicit([0; 4]),
        "NOTSET" | "" => Pads::Explicit(match (stated_pads, one_dimensional) {
            ([], _) => [0; 4],
            ([left, right], true) => [0, pad(*left)?, 0, pad(*right)?],
            ([top, left, bottom, right], false) => {
                [pad(*top)?, pad(*left)?, pad(*bottom)?, pad(*right)?]
            }
            _ => return None,
        }),
        _ => return None,
    };
    let (out_channels, in_channels_per_group) = (extent(weight.dims[0])?, extent(weight.dims[1])?);
    let groups = extent(attributes::integer(node, "group", 1)?)?;
    let convolution = Convolution {
        out_channels,
        in_channels_per_group,
        groups,
        kernel: [extent(kernel[0])?, extent(kernel[1])?],
        strides: per_axis("strides")?,
        dilations: per_axis("dilations")?,
        pads,
        one_dimensional,
        batch_norm: None,
    };
    (out_channels % groups == 0).then_some(convolution)
}

/// A size of at least 1.
fn extent(value: i64) -> Option<usize> {
    (1..=LARGEST).contains(&value).then_some(value as usize)
}

fn pad(value: i64) -> Option<usize> {
    (0..=LARGEST).contains(&value).then_some(value as usize)
}
