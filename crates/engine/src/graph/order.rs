//! Who reads which value, and an order in which nodes can run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use occlude_onnx::messages::{GraphProto, NodeProto};

/// Every name of a value that `node` reads, its subgraphs' captures included.
/// An input left out has no name and is not listed.
pub(super) fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).collect();
    names.extend(captures(node));
    names.retain(|name| !name.is_empty());
    names
}

/// The outer values that `node`'s subgraphs read, at any depth.
pub(super) fn captures(node: &NodeProto) -> Vec<&str> {
    let graphs = node
        .attribute
        .iter()
        .flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs));
    let mut names = Vec::new();
    for graph in graphs {
        let own = own_values(graph);
        let read = graph.node.iter().flat_map(reads);
        let returned = graph.output.iter().map(|output| output.name.as_str());
        names.extend(read.chain(returned).filter(|name| !own.contains(name)));
    }
    names
}

fn own_values(graph: &GraphProto) -> HashSet<&str> {
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    let constants = graph.initializer.iter().map(|tensor| tensor.name.as_str());
    let results = graph.node.iter().flat_map(|node| &node.output);
    inputs
        .chain(constants)
        .chain(results.map(String::as_str))
        .collect()
}

/// Which node makes each value.
pub(super) fn producers(nodes: &[NodeProto]) -> HashMap<&str, usize> {
    nodes
        .iter()
        .enumerate()
        .flat_map(|(index, node)| node.output.iter().map(move |name| (name.as_str(), index)))
        .filter(|(name, _)| !name.is_empty())
        .collect()
}

/// Sorts `nodes` so that each follows those whose values it reads, and otherwise
/// keeps their order. Where they form a cycle or two make the same value, it leaves
/// them as they are and returns false.
#[must_use]
pub(super) fn sort(nodes: &mut Vec<NodeProto>) -> bool {
    let Some(order) = sorted(nodes) else {
        return false;
    };
    let mut unsorted: Vec<Option<NodeProto>> =
        std::mem::take(nodes).into_iter().map(Some).collect();
    nodes.extend(order.into_iter().filter_map(|index| unsorted[index].take()));
    true
}

fn sorted(nodes: &[NodeProto]) -> Option<Vec<usize>> {
    let makers = producers(nodes);
    let values = nodes.iter().flat_map(|node| &node.output);
    if values.filter(|name| !name.is_empty()).count() != makers.len() {
        return None;
    }
    let mut followers = vec![Vec::new(); nodes.len()];
    let mut missing = vec![0_usize; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for maker in reads(node).iter().filter_map(|name| makers.get(name)) {
            followers[*maker].push(index);
            missing[index] += 1;
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len())
        .filter(|&index| missing[index] == 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &follower in &followers[index] {
            missing[follower] -= 1;
            if missing[follower] == 0 {
                ready.push(Reverse(follower));
            }
        }
    }
    (order.len() == nodes.len()).then_some(order)
}

/// Where a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reader {
    pub(super) node: usize,
    /// Which input; none for a subgraph of the node.
    pub(super) input: Option<usize>,
}

/// All readers of all values, and the values that leave the graph.
pub(super) struct Readers {
    of: HashMap<String, Vec<Reader>>,
    outputs: HashSet<String>,
}

impl Readers {
    pub(super) fn new(nodes: &[NodeProto], outputs: &HashSet<String>) -> Self {
        let mut of: HashMap<String, Vec<Reader>> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            let inputs = node.input.iter().enumerate();
            let direct = inputs.map(|(input, name)| (name.as_str(), Some(input)));
            let captured = captures(node).into_iter().map(|name| (name, None));
            for (name, input) in direct.chain(captured).filter(|(name, _)| !name.is_empty()) {
                let reader = Reader { node: index, input };
                of.entry(name.to_owned()).or_default().push(reader);
            }
        }
        Self {
            of,
            outputs: outputs.clone(),
        }
    }

    pub(super) fn of(&self, name: &str) -> &[Reader] {
        self.of.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn leaves(&self, name: &str) -> bool {
        self.outputs.contains(name)
    }

    /// The node and input that alone read `name`, if one does.
    pub(super) fn only(&self, name: &str) -> Option<(usize, usize)> {
        match self.of(name) {
            [reader] if !self.leaves(name) => Some((reader.node, reader.input?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::{graph, node, subgraph, value, with};
    use occlude_onnx::DataType;

    fn outputs(nodes: &[NodeProto]) -> Vec<&str> {
        nodes.iter().map(|node| node.output[0].as_str()).collect()
    }

    #[test]
    fn nodes_are_moved_only_as_far_as_they_must() {
        let mut nodes = vec![
            node("Relu", &["c"], &["d"]),
            node("Relu", &["x"], &["a"]),
            node("Add", &["a", "b"], &["c"]),
            node("Relu", &["x"], &["b"]),
        ];
        assert!(sort(&mut nodes));
        assert_eq!(outputs(&nodes), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_node_follows_what_its_subgraphs_capture() {
        let branch = graph(
            vec![node("Neg", &["late"], &["inner"])],
            vec![],
            vec![value("inner", DataType::Float, &[])],
            vec![],
        );
        let mut nodes = vec![
            with(
                node("If", &["c"], &["y"]),
                subgraph("then_branch", branch.clone()),
            ),
            node("Relu", &["x"], &["late"]),
        ];
        assert_eq!(captures(&nodes[0]), ["late"]);
        assert!(sort(&mut nodes));
        assert_eq!(outputs(&nodes), ["late", "y"]);
    }

    #[test]
    fn what_a_subgraph_defines_itself_is_no_capture() {
        let branch = graph(
            vec![
                node("Neg", &["given"], &["inner"]),
                node("Abs", &["inner"], &["result"]),
            ],
            vec![value("given", DataType::Float, &[])],
            vec![value("result", DataType::Float, &[])],
            vec![],
        );
        let outer = with(node("Loop", &["c"], &["y"]), subgraph("body", branch));
        assert!(captures(&outer).is_empty());
    }

    #[test]
    fn cycles_and_values_made_twice_have_no_order() {
        let cycle = vec![node("Relu", &["a"], &["b"]), node("Relu", &["b"], &["a"])];
        let twice = vec![node("Relu", &["x"], &["a"]), node("Neg", &["x"], &["a"])];
        for nodes in [cycle, twice] {
            let mut sorted = nodes.clone();
            assert!(!sort(&mut sorted));
            assert_eq!(sorted, nodes);
        }
    }

    #[test]
    fn a_value_that_leaves_the_graph_or_is_read_twice_has_no_only_reader() {
        let nodes = [
            node("Relu", &["x"], &["a"]),
            node("Add", &["a", "b"], &["c"]),
            node("Mul", &["b", "b"], &["d"]),
        ];
        let readers = Readers::new(&nodes, &HashSet::from(["x".to_owned()]));
        assert_eq!(readers.only("a"), Some((1, 0)));
        assert_eq!(readers.only("b"), None);
        assert_eq!(readers.only("x"), None);
        assert_eq!(readers.only("d"), None);
    }
}
