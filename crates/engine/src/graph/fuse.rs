//! Folds what follows a sealed operator into it.
//!
//! A node is folded only if it alone reads the value in between and that value does
//! not leave the graph. The order is that of the operators: batch normalisation or
//! bias, residual addition, activation.

use occlude_onnx::DataType;
use occlude_onnx::messages::NodeProto;

use super::draft::Draft;
use super::layers::{inputs, layer_index};
use super::order::{self, Readers};
use super::shapes::Shapes;
use super::{BatchNorm, LayerKind, Weight, attributes};

/// Whether SealedGemm adds residuals. ONNX Runtime joins addition and layer
/// normalisation of a transformer's residual, which saves more.
const GEMM_ADDS_RESIDUAL: bool = false;

/// `activation` of the sealed operators.
const RELU: i64 = 1;
const CLIP: i64 = 2;

pub(super) fn fuse(draft: &mut Draft) {
    let mut fusion = Fusion {
        readers: draft.readers(),
        nodes: std::mem::take(&mut draft.nodes)
            .into_iter()
            .map(Some)
            .collect(),
    };
    let sealed: Vec<usize> = (0..fusion.nodes.len())
        .filter(|&index| fusion.layer(index).is_some())
        .collect();
    for &index in &sealed {
        let _ = fusion
            .batch_norm(draft, index)
            .or_else(|| fusion.bias(draft, index));
    }
    let shapes = Shapes::new(draft, fusion.nodes.iter().flatten());
    // Where two sealed results are added, the later adds: the other one is ready then.
    for &index in sealed.iter().rev() {
        let _ = fusion.residual(draft, &shapes, index);
    }
    for &index in &sealed {
        let _ = fusion.activation(draft, index);
    }
    draft.nodes = fusion.nodes.into_iter().flatten().collect();
    // A residual may come from further down. No cycle can arise: what is added does
    // not depend on the addition. Were there one, ONNX Runtime would find it.
    let _ = order::sort(&mut draft.nodes);
}

/// The nodes, where `None` stands for one that is folded into another.
struct Fusion {
    readers: Readers,
    nodes: Vec<Option<NodeProto>>,
}

impl Fusion {
    fn layer(&self, index: usize) -> Option<usize> {
        layer_index(self.nodes[index].as_ref()?)
    }

    /// The node that alone reads the result of node `index`, and by which input.
    fn follower(&self, index: usize) -> Option<(usize, usize, &NodeProto)> {
        let result = self.nodes[index].as_ref()?.output.first()?;
        let (follower, input) = self.readers.only(result)?;
        let node = self.nodes[follower].as_ref()?;
        (node.output.len() == 1).then_some((follower, input, node))
    }

    /// Removes node `follower`, whose result now comes from node `index`.
    fn fold(&mut self, index: usize, follower: usize) -> Option<&mut NodeProto> {
        let result = self.nodes[follower].take()?.output;
        let node = self.nodes[index].as_mut()?;
        node.output = result;
        Some(node)
    }

    fn batch_norm(&mut self, draft: &mut Draft, index: usize) -> Option<()> {
        let layer = self.layer(index)?;
        let (follower, 0, node) = self.follower(index)? else {
            return None;
        };
        let LayerKind::Convolution(convolution) = &draft.layers.get(layer)?.kind else {
            return None;
        };
        let training = attributes::integer(node, "training_mode", 0)? != 0;
        let spatial = attributes::integer(node, "spatial", 1)? == 1;
        if !draft.is_standard(node, "BatchNormalization") || training || !spatial {
            return None;
        }
        let [_, scale, bias, mean, variance] = node.input.as_slice() else {
            return None;
        };
        let channels = i64::try_from(convolution.out_channels).ok()?;
        let constant = |name: &str| -> Option<Weight> {
            let weight = draft.constants.get(name)?;
            let fits = weight.data_type == DataType::Float && weight.dims == [channels];
            fits.then(|| weight.clone())
        };
        let own = self.nodes[index].as_ref()?;
        let convolution_bias = match own.input.get(1).map(String::as_str) {
            None | Some("") => None,
            Some(name) => Some(constant(name)?),
        };
        let batch_norm = BatchNorm {
            convolution_bias,
            scale: constant(scale)?,
            bias: constant(bias)?,
            mean: constant(mean)?,
            variance: constant(variance)?,
            epsilon: attributes::float(node, "epsilon", 1e-5)?,
        };
        if let LayerKind::Convolution(convolution) = &mut draft.layers.get_mut(layer)?.kind {
            convolution.batch_norm = Some(Box::new(batch_norm));
        }
        let node = self.fold(index, follower)?;
        node.input.truncate(1);
        Some(())
    }

    /// An addition of a constant for each column or channel.
    fn bias(&mut self, draft: &Draft, index: usize) -> Option<()> {
        let layer = self.layer(index)?;
        let own = self.nodes[index].as_ref()?;
        if own.input.len() != 1 {
            return None;
        }
        let (follower, input, node) = self.follower(index)?;
        let (true, [_, _]) = (draft.is_standard(node, "Add"), node.input.as_slice()) else {
            return None;
        };
        let name = &node.input[1 - input];
        let bias = draft.constants.get(name)?;
        let count = |count: usize| i64::try_from(count).ok();
        let fits = match &draft.layers.get(layer)?.kind {
            LayerKind::Gemm(gemm) => bias.dims == [count(gemm.n)?],
            LayerKind::Convolution(convolution) => {
                let channels = count(convolution.out_channels)?;
                match (bias.dims.as_slice(), convolution.one_dimensional) {
                    ([n, 1] | [1, n, 1], true) | ([n, 1, 1] | [1, n, 1, 1], false) => {
                        *n == channels
                    }
                    _ => false,
                }
            }
            LayerKind::Whole => false,
        };
        if !fits || bias.data_type != DataType::Float {
            return None;
        }
        let bias = name.clone();
        self.fold(index, follower)?.input.push(bias);
        Some(())
    }

    fn residual(&mut self, draft: &Draft, shapes: &Shapes, index: usize) -> Option<()> {
        let layer = self.layer(index)?;
        let convolution = matches!(draft.layers.get(layer)?.kind, LayerKind::Convolution(_));
        if !convolution && !GEMM_ADDS_RESIDUAL {
            return None;
        }
        let (follower, input, node) = self.follower(index)?;
        let (true, [_, _]) = (draft.is_standard(node, "Add"), node.input.as_slice()) else {
            return None;
        };
        let residual = node.input[1 - input].clone();
        let own = self.nodes[index].as_ref()?;
        if draft.constants.contains_key(&residual)
            || own.input.len() > 2
            || !shapes.are_equal(&residual, &own.output[0])
        {
            return None;
        }
        let node = self.fold(index, follower)?;
        let bias = node.input.get(1).cloned().unwrap_or_default();
        node.input = inputs([&node.input[0], &bias, &residual]);
        Some(())
    }

    fn activation(&mut self, draft: &Draft, index: usize) -> Option<()> {
        self.layer(index)?;
        let (follower, 0, node) = self.follower(index)? else {
            return None;
        };
        if draft.is_standard(node, "Relu") {
            let node = self.fold(index, follower)?;
            attributes::set_integer(node, "activation", RELU);
            return Some(());
        }
        let (minimum, maximum) = clip_bounds(draft, node)?;
        let node = self.fold(index, follower)?;
        attributes::set_integer(node, "activation", CLIP);
        node.attribute
            .push(attributes::of_float("minimum", minimum));
        node.attribute
            .push(attributes::of_float("maximum", maximum));
        Some(())
    }
}

/// The bounds of a Clip of FP32 values, if they are fixed numbers. A bound left out
/// is the largest finite number, as in ONNX Runtime.
pub(super) fn clip_bounds(draft: &Draft, node: &NodeProto) -> Option<(f32, f32)> {
    /// Since this version bounds are inputs.
    const BOUNDS_ARE_INPUTS: i64 = 11;
    if !draft.is_standard(node, "Clip") {
        return None;
    }
    let bound = |input: usize, name: &str, default: f32| {
        if draft.opset < BOUNDS_ARE_INPUTS {
            return attributes::float(node, name, default);
        }
        match node.input.get(input).map(String::as_str) {
            None | Some("") => Some(default),
            Some(name) => draft.scalar(name),
        }
    };
    let minimum = bound(1, "min", f32::MIN)?;
    let maximum = bound(2, "max", f32::MAX)?;
    (!minimum.is_nan() && !maximum.is_nan()).then_some((minimum, maximum))
}

/// What a sealed operator's activation makes of zero.
pub(super) fn activation_of_zero(node: &NodeProto) -> Option<f32> {
    match attributes::integer(node, "activation", 0)? {
        CLIP => {
            let minimum = attributes::float(node, "minimum", f32::MIN)?;
            let maximum = attributes::float(node, "maximum", f32::MAX)?;
            Some(0_f32.max(minimum).min(maximum))
        }
        _ => Some(0.0),
    }
}
