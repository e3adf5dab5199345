//! From a container's skeleton to the model that ONNX Runtime runs.
//!
//! 1. [`normalise`](mod@normalise) makes every constant an initializer of the main
//!    graph and checks each reference to a sealed tensor.
//! 2. [`layers`] replaces Conv, Gemm and MatMul over constant weights by the sealed
//!    operators, and finds what else can be opened just before it is used.
//! 3. [`fuse`] folds bias, batch normalisation, residual addition and activation
//!    into them.
//! 4. [`layout`] lets convolutions and what lies between them exchange values in
//!    ONNX Runtime's blocked layout.
//! 5. [`chain`](mod@chain) makes one node of convolutions that only read each other.
//! 6. [`emit`] writes the model, with those weights to borrow that stay resident.
//!
//! No step reads the values of sealed weights, and none needs ONNX Runtime.
//! Guaranteed: a pattern that is not surely the one meant stays as it is. The
//! skeleton is authentic (its owner sealed it), but may have been made from
//! anything: nothing here panics on it.

mod attributes;
mod chain;
mod draft;
mod emit;
mod fuse;
mod layers;
mod layout;
mod normalise;
mod order;
mod shapes;
mod wipe;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use occlude_onnx::DataType;
use occlude_onnx::messages::ModelProto;
use zeroize::Zeroizing;

use crate::error::LoadError;

pub(crate) use emit::{Emitted, ZEROS_FILE_NAME};

/// The operator set of the sealed operators, version 1.
pub(crate) const SEALED_DOMAIN: &str = "occlude";

/// ONNX Runtime's operator set for the blocked layout, version 1.
pub(crate) const BLOCKED_DOMAIN: &str = "com.microsoft.nchwc";

/// How a skeleton is rewritten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RewriteOptions {
    /// Whether to use operators of [`SEALED_DOMAIN`] at all. Without them there are
    /// no layers, and ONNX Runtime borrows every weight.
    pub(crate) sealed_operators: bool,
    /// Channels in a block of the blocked layout on this processor (8 or 16), or
    /// none where ONNX Runtime has no such layout.
    pub(crate) block: Option<usize>,
    /// Smallest weight in bytes that is opened just in time for an operator of ONNX
    /// Runtime; smaller ones stay resident. Weights of sealed operators have no
    /// such limit, since these keep small ones resident themselves.
    pub(crate) smallest_streamed: u64,
}

/// One tensor of the container, as the skeleton refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SealedTensor {
    /// Its place among the container's tensors.
    pub(crate) index: usize,
    /// Its size in bytes.
    pub(crate) length: u64,
}

/// A constant of the main graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Its name in the main graph.
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) dims: Vec<i64>,
    pub(crate) source: Source,
}

/// Where a constant's values are.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// In the container.
    Sealed(SealedTensor),
    /// In the skeleton, as the bytes that `raw_data` holds: the tensor is smaller
    /// than what leaves a model when it is sealed.
    Inline(Arc<Zeroizing<Vec<u8>>>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sealed(tensor) => tensor.fmt(f),
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
        }
    }
}

impl Weight {
    /// Its size in bytes.
    pub(crate) fn length(&self) -> u64 {
        match &self.source {
            Source::Sealed(tensor) => tensor.length,
            Source::Inline(bytes) => bytes.len() as u64,
        }
    }
}

/// A weight that need not be resident, with what reads it. Several nodes may share
/// one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layer {
    /// For people: the weight's name.
    pub(crate) name: String,
    pub(crate) weight: Weight,
    pub(crate) kind: LayerKind,
}

/// What reads a layer's weight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LayerKind {
    /// SealedGemm.
    Gemm(Gemm),
    /// SealedConvolution.
    Convolution(Convolution),
    /// An operator of ONNX Runtime, behind OpenedWeight.
    Whole,
}

/// `y = x W`, where `W` is `[k, n]`, in FP32.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gemm {
    pub(crate) k: usize,
    pub(crate) n: usize,
    /// Whether the weight is stored as `[n, k]`.
    pub(crate) transposed: bool,
    /// What the weight is to be multiplied by when it is packed.
    pub(crate) scale: Option<f32>,
}

/// A convolution over one or two spatial axes, in FP32. One axis is the second of
/// two, the first having extent 1. The weight is stored as
/// `[out_channels, in_channels_per_group, kernel[0], kernel[1]]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Convolution {
    pub(crate) out_channels: usize,
    pub(crate) in_channels_per_group: usize,
    pub(crate) groups: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) dilations: [usize; 2],
    pub(crate) pads: Pads,
    /// Whether the operator's tensors have rank 3.
    pub(crate) one_dimensional: bool,
    /// To be folded into weight and bias when they are packed.
    pub(crate) batch_norm: Option<Box<BatchNorm>>,
}

/// Zeros around a convolution's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pads {
    /// Top, left, bottom, right.
    Explicit([usize; 4]),
    /// As many as the output needs to have `ceil(extent / stride)`; an odd one at
    /// the end.
    SameUpper,
    /// As many as the output needs to have `ceil(extent / stride)`; an odd one at
    /// the beginning.
    SameLower,
}

/// Normalisation of a convolution's output with fixed statistics; all tensors are
/// FP32 of shape `[out_channels]`:
/// `y = (convolution + convolution_bias - mean) / sqrt(variance + epsilon) * scale + bias`.
///
/// The node of such a layer has no bias input: the bias comes from here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BatchNorm {
    pub(crate) convolution_bias: Option<Weight>,
    pub(crate) scale: Weight,
    pub(crate) bias: Weight,
    pub(crate) mean: Weight,
    pub(crate) variance: Weight,
    pub(crate) epsilon: f32,
}

/// A skeleton whose layers are known. Wiped when it is dropped.
pub(crate) struct Survey {
    model: ModelProto,
    layers: Vec<Layer>,
    borrowed: Vec<Weight>,
    unranked: HashSet<String>,
}

impl Drop for Survey {
    fn drop(&mut self) {
        wipe::model(&mut self.model);
    }
}

impl Survey {
    /// Decodes and rewrites `skeleton`.
    ///
    /// `tensors` maps an offset in the sealed plaintext to the tensor there; `read`
    /// returns the bytes of one that has to go into the skeleton.
    ///
    /// # Errors
    /// [`LoadError::Skeleton`] where the skeleton is no model, disagrees with
    /// `tensors` or already uses the operators that this writes; whatever `read`
    /// returns.
    pub(crate) fn of(
        skeleton: &[u8],
        tensors: &HashMap<u64, SealedTensor>,
        read: &mut dyn FnMut(usize) -> Result<Vec<u8>, LoadError>,
        options: &RewriteOptions,
    ) -> Result<Self, LoadError> {
        let normalised = normalise::normalise(skeleton, tensors, read)?;
        let mut survey = Self {
            model: normalised.model,
            layers: Vec::new(),
            borrowed: normalised.weights,
            unranked: normalised.unranked,
        };
        if options.sealed_operators {
            survey.rewrite(options)?;
        }
        Ok(survey)
    }

    /// The layers; attributes `layer` of the sealed operators are indices here.
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The weights that ONNX Runtime borrows whatever the plan, in the order of the
    /// main graph's initializers. Their sources are sealed.
    pub(crate) fn borrowed(&self) -> &[Weight] {
        &self.borrowed
    }

    /// The main graph's inputs and outputs whose rank the model leaves open.
    pub(crate) fn unranked(&self) -> &HashSet<String> {
        &self.unranked
    }

    fn rewrite(&mut self, options: &RewriteOptions) -> Result<(), LoadError> {
        normalise::refuse_own_operators(&self.model)?;
        let Some(mut draft) = draft::Draft::of(&self.model, &self.borrowed) else {
            return Ok(());
        };
        layers::seal(&mut draft, options);
        fuse::fuse(&mut draft);
        if let Some(block) = options.block {
            layout::block(&mut draft, block as u64);
        }
        layers::find_whole(&mut draft, options);
        layers::merge_equal(&mut draft);
        chain::chain(&mut draft);
        draft.finish(&mut self.model, &mut self.borrowed, &mut self.layers);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
