//! Lets convolutions and what lies between them exchange values in blocks of
//! channels, the layout of ONNX Runtime's operator set `com.microsoft.nchwc`: a value
//! of shape `[N, C, H, W]` has shape `[N, C rounded up to a block, H, W]` there, and
//! memory `[N, C / block, H, W, block]`. Which operators that set has and what they
//! take is told by ONNX Runtime's `nchwc_schema_defs.cc` and `nchwc_transformer.cc`.
//!
//! Guaranteed: the channels that round a value up are zero. Only operators which keep
//! zeros zero may make a value that has such channels; so nothing but zeros can come
//! from there into a sum, and nothing that is not finite.
//!
//! 1. From inputs to outputs: which values could be blocked.
//! 2. From outputs to inputs: for which of them that pays, because a convolution or a
//!    pool reads them, be it behind elementwise operators. A convolution that need not
//!    write blocks writes the plain layout itself.
//! 3. Where one of the others reads a blocked value, ReorderOutput makes it plain, once.

use std::collections::{HashMap, HashSet};

use occlude_onnx::messages::{AttributeProto, NodeProto};

use super::draft::Draft;
use super::fuse::{activation_of_zero, clip_bounds};
use super::layers::layer_index;
use super::order::captures;
use super::shapes::{Extent, Shapes};
use super::{BLOCKED_DOMAIN, LayerKind, attributes};

/// Where SealedConvolution reads its residual.
const RESIDUAL: usize = 2;

/// Elementwise operators that make zero of zero.
const KEEP_ZERO: &[&str] = &[
    "Abs",
    "Ceil",
    "Dropout",
    "Elu",
    "Erf",
    "Floor",
    "Gelu",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Round",
    "Selu",
    "Sign",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
];

/// Elementwise operators that may make anything of zero.
const MAY_MOVE_ZERO: &[&str] = &[
    "Clip",
    "Exp",
    "HardSigmoid",
    "Reciprocal",
    "Sigmoid",
    "Softplus",
];

/// Operators of two or more values of one shape that make zero of zeros.
const COMBINE: &[&str] = &["Add", "Max", "Min", "Mul", "Sub", "Sum"];

pub(super) fn block(draft: &mut Draft, block: u64) {
    let mut layout = Layout {
        shapes: Shapes::new(draft, draft.nodes.iter()),
        block,
        channels: HashMap::new(),
    };
    let mut roles: Vec<Role> = Vec::with_capacity(draft.nodes.len());
    for node in &draft.nodes {
        let (role, channels) = layout.role(draft, node);
        if let (Some(channels), Some(output)) = (channels, node.output.first()) {
            layout.channels.insert(output.clone(), channels);
        }
        roles.push(role);
    }
    keep_what_pays(&draft.nodes, &mut roles);
    layout.write(draft, &roles);
}

/// What a node does with blocked values.
#[derive(Debug, Clone, Default)]
struct Role {
    /// The inputs that it reads blocked.
    reads: Vec<usize>,
    /// Whether its result is blocked.
    writes: bool,
    /// Whether it gains by that, and not only passes it on.
    gains: bool,
    /// The input that has to have the layout of the result.
    residual: Option<usize>,
}

struct Layout {
    shapes: Shapes,
    block: u64,
    /// The values that can be blocked, with their channels.
    channels: HashMap<String, u64>,
}

impl Layout {
    fn of(&self, name: &str) -> Option<u64> {
        self.channels.get(name).copied()
    }

    /// Whether a value of this many channels has no others.
    fn is_whole(&self, channels: u64) -> bool {
        channels.is_multiple_of(self.block)
    }

    /// What `node` can do, and the channels of its result if that can be blocked.
    fn role(&self, draft: &Draft, node: &NodeProto) -> (Role, Option<u64>) {
        if !matches!(node.output.as_slice(), [name] if !name.is_empty()) {
            return (Role::default(), None);
        }
        if layer_index(node).is_some() {
            return self.convolution(draft, node);
        }
        let Some(first) = node.input.first().and_then(|name| self.of(name)) else {
            return self.with_number_first(draft, node).unwrap_or_default();
        };
        let role = |reads, gains| Role {
            reads,
            gains,
            writes: true,
            residual: None,
        };
        if is_blocked_pool(draft, node) {
            return (role(vec![0], true), Some(first));
        }
        if self.is_elementwise(draft, node, first) {
            return (role(vec![0], false), Some(first));
        }
        let all: Vec<usize> = (0..node.input.len()).collect();
        if self.combines(draft, node) {
            return (role(all, false), Some(first));
        }
        match self.concatenates(draft, node) {
            Some(channels) => (role(all, false), Some(channels)),
            None => (Role::default(), None),
        }
    }

    fn convolution(&self, draft: &Draft, node: &NodeProto) -> (Role, Option<u64>) {
        let kind = layer_index(node).and_then(|index| draft.layers.get(index));
        let Some(LayerKind::Convolution(convolution)) = kind.map(|layer| &layer.kind) else {
            return (Role::default(), None);
        };
        let [out_channels, per_group, groups] = [
            convolution.out_channels as u64,
            convolution.in_channels_per_group as u64,
            convolution.groups as u64,
        ];
        let residual = node.input.get(RESIDUAL).filter(|name| !name.is_empty());
        let fits = residual.is_none_or(|name| self.of(name) == Some(out_channels))
            && (self.is_whole(out_channels) || activation_of_zero(node) == Some(0.0));
        let reads = self.of(&node.input[0]) == Some(per_group * groups);
        let (reads, writes) = if convolution.one_dimensional {
            (false, false)
        } else if groups == 1 {
            (reads, fits && out_channels >= self.block)
        } else if per_group == 1 && out_channels == groups {
            // One layout for both.
            (reads && fits, reads && fits)
        } else if self.is_whole(per_group) && self.is_whole(out_channels / groups) {
            (reads, fits)
        } else {
            (false, false)
        };
        let is_depthwise = groups > 1 && per_group == 1 && out_channels == groups;
        let role = Role {
            reads: if reads { vec![0] } else { vec![] },
            writes,
            gains: is_depthwise,
            residual: residual.map(|_| RESIDUAL),
        };
        (role, writes.then_some(out_channels))
    }

    fn is_elementwise(&self, draft: &Draft, node: &NodeProto, channels: u64) -> bool {
        let operator = node.op_type.as_str();
        if !draft.is_standard(node, operator) {
            return false;
        }
        if KEEP_ZERO.contains(&operator) {
            // Of training and masks nothing is known here.
            return operator != "Dropout" || node.input.len() <= 2;
        }
        if operator == "PRelu" {
            return node
                .input
                .get(1)
                .and_then(|slope| draft.scalar(slope))
                .is_some();
        }
        if let Some((minimum, maximum)) = clip_bounds(draft, node)
            && 0_f32.max(minimum).min(maximum) == 0.0
        {
            return true;
        }
        if MAY_MOVE_ZERO.contains(&operator) {
            return self.is_whole(channels);
        }
        let Some(number) = node.input.get(1).and_then(|name| number(draft, name)) else {
            return false;
        };
        match operator {
            "Mul" if number.is_finite() => true,
            "Div" if number.is_finite() && number != 0.0 => true,
            "Add" | "Sub" if number == 0.0 => true,
            "Add" | "Sub" | "Mul" | "Div" => self.is_whole(channels),
            _ => false,
        }
    }

    /// An elementwise operator of a number and a blocked value, in that order.
    fn with_number_first(&self, draft: &Draft, node: &NodeProto) -> Option<(Role, Option<u64>)> {
        let [first, second] = node.input.as_slice() else {
            return None;
        };
        let (number, channels) = (number(draft, first)?, self.of(second)?);
        let operator = node.op_type.as_str();
        let keeps_zero = match operator {
            "Mul" => number.is_finite(),
            "Add" | "Sub" => number == 0.0,
            "Div" => false,
            _ => return None,
        };
        let role = Role {
            reads: vec![1],
            writes: true,
            ..Role::default()
        };
        (draft.is_standard(node, operator) && (keeps_zero || self.is_whole(channels)))
            .then_some((role, Some(channels)))
    }

    /// Whether `node` combines blocked values of surely one shape.
    fn combines(&self, draft: &Draft, node: &NodeProto) -> bool {
        let first = &node.input[0];
        COMBINE.contains(&node.op_type.as_str())
            && draft.is_standard(node, &node.op_type)
            && node.input.iter().all(|name| {
                self.of(name).is_some() && (name == first || self.shapes.are_equal(name, first))
            })
    }

    /// The channels of a concatenation of values without other channels.
    fn concatenates(&self, draft: &Draft, node: &NodeProto) -> Option<u64> {
        let axis = attributes::integer(node, "axis", 0)?;
        if !draft.is_standard(node, "Concat") || !matches!(axis, 1 | -3) {
            return None;
        }
        node.input.iter().try_fold(0_u64, |sum, name| {
            let channels = self.of(name).filter(|&channels| self.is_whole(channels))?;
            sum.checked_add(channels)
        })
    }

    /// A value of one pixel without other channels is the same in both layouts.
    fn is_same_in_both(&self, name: &str) -> bool {
        let one_pixel = self
            .shapes
            .of(name)
            .is_some_and(|shape| matches!(shape[..], [_, _, Extent::Known(1), Extent::Known(1)]));
        one_pixel
            && self
                .of(name)
                .is_some_and(|channels| self.is_whole(channels))
    }

    fn write(&self, draft: &mut Draft, roles: &[Role]) {
        let nodes = std::mem::take(&mut draft.nodes);
        let names = self.blocked_names(draft, &nodes, roles);
        let plainly_read = plainly_read(draft, &nodes, roles);
        for (mut node, role) in nodes.into_iter().zip(roles) {
            for &input in &role.reads {
                if let Some(name) = names.get(&node.input[input]) {
                    node.input[input].clone_from(name);
                }
            }
            let result = node.output.first().cloned().unwrap_or_default();
            let blocked = names.get(&result).filter(|_| role.writes);
            if let Some(name) = blocked {
                node.output[0].clone_from(name);
            }
            if layer_index(&node).is_some() {
                if node.op_type == "SealedConvolution" {
                    let reads = role.reads.contains(&0);
                    attributes::set_integer(&mut node, "input_blocked", reads.into());
                    attributes::set_integer(&mut node, "output_blocked", role.writes.into());
                }
            } else if role.writes && role.gains {
                BLOCKED_DOMAIN.clone_into(&mut node.domain);
                node.attribute.retain(|attribute| {
                    attribute.name != "dilations"
                        || attribute.ints.iter().any(|&dilation| dilation != 1)
                });
            }
            draft.nodes.push(node);
            if let (Some(blocked), Some(channels)) = (blocked, self.of(&result))
                && *blocked != result
                && plainly_read.contains(&result)
            {
                let reorder = reorder_output(draft, blocked, &result, channels);
                draft.nodes.push(reorder);
            }
        }
    }

    /// What blocked values are called.
    fn blocked_names(
        &self,
        draft: &mut Draft,
        nodes: &[NodeProto],
        roles: &[Role],
    ) -> HashMap<String, String> {
        let written = nodes.iter().zip(roles).filter(|(_, role)| role.writes);
        let results = written.map(|(node, _)| &node.output[0]);
        results
            .map(|name| {
                let blocked = if self.is_same_in_both(name) {
                    name.clone()
                } else {
                    draft.names.fresh(&format!("blocked/{name}"))
                };
                (name.clone(), blocked)
            })
            .collect()
    }
}

/// Takes the blocked layout away from results that gain nothing from it, last ones
/// first, and from those inputs of their nodes that only pass it on.
fn keep_what_pays(nodes: &[NodeProto], roles: &mut [Role]) {
    let mut wanted: HashSet<&str> = HashSet::new();
    for (node, role) in nodes.iter().zip(roles).rev() {
        let is_wanted = |name: &String| wanted.contains(name.as_str());
        role.writes &= role.gains || node.output.first().is_some_and(is_wanted);
        if layer_index(node).is_none() && !role.writes {
            role.reads.clear();
        }
        if role.writes {
            role.reads.extend(role.residual);
        }
        wanted.extend(role.reads.iter().map(|&input| node.input[input].as_str()));
    }
}

/// The values that somebody reads in the plain layout.
fn plainly_read(draft: &Draft, nodes: &[NodeProto], roles: &[Role]) -> HashSet<String> {
    let mut names = draft.outputs.clone();
    for (node, role) in nodes.iter().zip(roles) {
        let inputs = node.input.iter().enumerate();
        let plain = inputs.filter(|(input, _)| !role.reads.contains(input));
        names.extend(plain.map(|(_, name)| name.clone()));
        names.extend(captures(node).into_iter().map(str::to_owned));
    }
    names
}

/// A constant that can be broadcast over four axes.
fn number(draft: &Draft, name: &str) -> Option<f32> {
    let rank = draft.constants.get(name)?.dims.len();
    draft.scalar(name).filter(|_| rank <= 4)
}

/// Whether the blocked operator set has this very pool.
fn is_blocked_pool(draft: &Draft, node: &NodeProto) -> bool {
    let knows = |attribute: &AttributeProto| {
        matches!(
            attribute.name.as_str(),
            "auto_pad" | "kernel_shape" | "dilations" | "strides" | "pads" | "ceil_mode"
        )
    };
    let is_flat = matches!(attributes::integers(node, "kernel_shape"), Some([_, _]));
    let rounds_up = attributes::integer(node, "ceil_mode", 0) != Some(0);
    let is_dilated =
        attributes::integers(node, "dilations").is_none_or(|all| all.iter().any(|&one| one != 1));
    draft.is_standard(node, &node.op_type)
        && match node.op_type.as_str() {
            "GlobalAveragePool" | "GlobalMaxPool" => node.attribute.is_empty(),
            "MaxPool" => {
                let order = |attribute: &AttributeProto| attribute.name == "storage_order";
                is_flat && node.attribute.iter().all(|one| knows(one) || order(one))
            }
            // Later versions of the plain operator count differently at the end of a
            // value when rounding up.
            "AveragePool" => {
                let count = |attribute: &AttributeProto| attribute.name == "count_include_pad";
                let known = node.attribute.iter().all(|one| knows(one) || count(one));
                is_flat && known && !rounds_up && !is_dilated
            }
            _ => false,
        }
}

fn reorder_output(draft: &mut Draft, blocked: &str, plain: &str, channels: u64) -> NodeProto {
    NodeProto {
        op_type: "ReorderOutput".to_owned(),
        domain: BLOCKED_DOMAIN.to_owned(),
        name: draft.names.fresh(&format!("reorder/{plain}")),
        input: vec![blocked.to_owned()],
        output: vec![plain.to_owned()],
        attribute: vec![attributes::of_integer("channels", channels as i64)],
        ..NodeProto::default()
    }
}
