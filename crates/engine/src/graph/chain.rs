//! Makes one node of sealed convolutions that follow each other.
//!
//! A chain begins with any of them. The ones that it takes read, and add, its image and its
//! own results only; and nobody else reads these, but for the last one. So whatever else
//! depends on a chain depends on its last result, and putting all of it where that is made
//! closes no cycle.

use std::collections::{HashMap, HashSet};
use std::iter::once;

use occlude_onnx::messages::NodeProto;

use super::draft::Draft;
use super::order::{Reader, Readers};
use super::{SEALED_DOMAIN, attributes};

pub(super) fn chain(draft: &mut Draft) {
    let readers = draft.readers();
    let convolutions: Vec<usize> = (0..draft.nodes.len())
        .filter(|&index| is_chainable(&draft.nodes[index]))
        .collect();
    let mut chains: HashMap<usize, NodeProto> = HashMap::new();
    let mut chained = vec![false; draft.nodes.len()];
    for (position, &first) in convolutions.iter().enumerate() {
        if chained[first] {
            continue;
        }
        let free = convolutions[position..].iter().copied();
        let free = free.filter(|&index| !chained[index]);
        let links = links(&draft.nodes, &readers, free);
        let Some(&last) = links.last().filter(|_| links.len() > 1) else {
            continue;
        };
        let name = draft
            .names
            .fresh(&format!("chain/{}", draft.nodes[first].name));
        chains.insert(last, joined(&draft.nodes, &links, name));
        for link in links {
            chained[link] = true;
        }
    }
    let nodes = std::mem::take(&mut draft.nodes);
    let kept = nodes.into_iter().enumerate().filter_map(|(index, node)| {
        chains
            .remove(&index)
            .or_else(|| (!chained[index]).then_some(node))
    });
    draft.nodes = kept.collect();
}

fn is_chainable(node: &NodeProto) -> bool {
    node.domain == SEALED_DOMAIN && node.op_type == "SealedConvolution"
}

/// Where a sealed convolution reads its image, its bias and its residual.
const SOURCE: usize = 0;
const BIAS: usize = 1;
const RESIDUAL: usize = 2;

/// The input of `node` at `index`, if it is there.
fn input(node: &NodeProto, index: usize) -> Option<&str> {
    let name = node.input.get(index)?;
    (!name.is_empty()).then_some(name.as_str())
}

/// The longest chain of `free` whose image is what the first of them reads.
fn links(
    nodes: &[NodeProto],
    readers: &Readers,
    mut free: impl Iterator<Item = usize>,
) -> Vec<usize> {
    let Some(first) = free.next() else {
        return Vec::new();
    };
    let Some(image) = input(&nodes[first], SOURCE) else {
        return Vec::new();
    };
    let furthest = |name: &str| readers.of(name).iter().map(|reader| reader.node).max();
    let reads_here = |reader: &Reader| {
        let place = matches!(reader.input, Some(SOURCE | RESIDUAL));
        place && is_chainable(&nodes[reader.node])
    };
    let mut links: Vec<usize> = Vec::new();
    let mut results: HashSet<&str> = HashSet::new();
    // How many readings of results are still to join.
    let mut unread = 0;
    let mut longest = 0;
    // Behind the last reader of the image and of every result nothing can join.
    let mut last_reader = furthest(image);
    for index in once(first).chain(free) {
        if Some(index) > last_reader {
            break;
        }
        let node = &nodes[index];
        let (Some(source), [result]) = (input(node, SOURCE), node.output.as_slice()) else {
            continue;
        };
        let of_result = readers.of(result);
        if of_result.is_empty() && !readers.leaves(result) {
            continue;
        }
        let read = [Some(source), input(node, RESIDUAL)];
        let read = read.iter().flatten().filter(|&&name| name != image);
        if !read.clone().all(|name| results.contains(name)) {
            continue;
        }
        let ends = readers.leaves(result) || !of_result.iter().all(reads_here);
        let others = unread - read.count();
        if ends && others > 0 {
            continue;
        }
        links.push(index);
        unread = others;
        if unread == 0 {
            longest = links.len();
        }
        if ends {
            break;
        }
        results.insert(result);
        unread += of_result.len();
        last_reader = last_reader.max(furthest(result));
    }
    links.truncate(longest);
    links
}

/// One node that does what `links` do.
fn joined(nodes: &[NodeProto], links: &[usize], name: String) -> NodeProto {
    let nodes: Vec<&NodeProto> = links.iter().map(|&link| &nodes[link]).collect();
    let image = &nodes[0].input[SOURCE];
    let (mut inputs, mut values) = (vec![image.clone()], vec![image.as_str()]);
    let (mut sources, mut residuals, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for node in &nodes {
        let value = |index| {
            let name = input(node, index);
            let place = name.and_then(|name| values.iter().position(|&value| value == name));
            place.map_or(-1, |place| place as i64)
        };
        sources.push(value(SOURCE));
        residuals.push(value(RESIDUAL));
        biases.push(match input(node, BIAS) {
            Some(bias) => {
                inputs.push(bias.to_owned());
                inputs.len() as i64 - 1
            }
            None => -1,
        });
        values.push(&node.output[0]);
    }
    let integers = |name: &str| {
        let each = nodes.iter();
        let values = each.map(|node| attributes::integer(node, name, 0).unwrap_or(0));
        attributes::of_integers(name, values.collect())
    };
    let floats = |name: &str, default: f32| {
        let each = nodes.iter();
        let values = each.map(|node| attributes::float(node, name, default).unwrap_or(default));
        attributes::of_floats(name, values.collect())
    };
    NodeProto {
        op_type: "SealedConvolutions".to_owned(),
        domain: SEALED_DOMAIN.to_owned(),
        name,
        attribute: vec![
            integers("layer"),
            integers("activation"),
            floats("minimum", f32::NEG_INFINITY),
            floats("maximum", f32::INFINITY),
            integers("input_blocked"),
            integers("output_blocked"),
            attributes::of_integers("source", sources),
            attributes::of_integers("residual", residuals),
            attributes::of_integers("bias", biases),
        ],
        output: nodes[nodes.len() - 1].output.clone(),
        input: inputs,
        ..NodeProto::default()
    }
}
