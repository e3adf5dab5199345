//! `SealedGemm`: `y = activation(x W + bias + residual)`.

use std::sync::Arc;

use occlude_kernels::{Epilogue, Gemm, Workers};
use ort::operator::{
    ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType;

use super::threads::Threads;
use super::{
    Common, computed, extents, floats, guarded, input_shape, inputs, optional, outputs,
    padded_bias, panels, session_memory, set_output,
};
use crate::allocator::Allocator;
use crate::layers::{LayerKernel, Layers};

pub(super) struct SealedGemm(pub(super) Arc<Layers>);

impl Operator for SealedGemm {
    type Kernel<'a> = Kernel;

    fn name(&self) -> &'static str {
        "SealedGemm"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs()
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<(), ort::Error> {
        guarded(|| {
            let layer = usize::try_from(context.attr::<i64>("layer")?).unwrap_or(usize::MAX);
            let (Some((mut shape, mut symbols)), Some(LayerKernel::Gemm(gemm))) = (
                input_shape(context),
                self.0.layers.get(layer).map(|layer| &layer.kernel),
            ) else {
                return Ok(());
            };
            let Some(last) = shape.last_mut() else {
                return Ok(());
            };
            *last = gemm.columns() as i64;
            symbols.truncate(shape.len() - 1);
            set_output(context, TensorElementType::Float32, shape, &symbols)
        })
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> Result<Kernel, ort::Error> {
        Ok(Kernel {
            common: Common::of(node, &self.0)?,
            layers: Arc::clone(&self.0),
            memory: session_memory()?,
        })
    }
}

pub(super) struct Kernel {
    common: Common,
    layers: Arc<Layers>,
    memory: Arc<Allocator>,
}

impl ort::operator::Kernel for Kernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), ort::Error> {
        computed(
            &self.layers.layers[self.common.layer],
            |kernel| match kernel {
                LayerKernel::Gemm(gemm) => self.multiply(gemm, context),
                LayerKernel::Convolution(_) | LayerKernel::Whole(_) => {
                    Err(ort::Error::new("the layer is no matrix"))
                }
            },
        )
    }
}

impl Kernel {
    fn multiply(&self, gemm: &Gemm, context: &ComputeContext) -> Result<(), ort::Error> {
        let x = context
            .input(0)?
            .ok_or_else(|| ort::Error::new("no input"))?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let mut y_shape = shape.to_vec();
        let sides = extents(shape).unwrap_or_default();
        let (Some(last), Some(&k)) = (y_shape.last_mut(), sides.last()) else {
            return Err(ort::Error::new("the input is a scalar"));
        };
        if k != gemm.rows() {
            return Err(ort::Error::new("the input does not fit the weights"));
        }
        *last = gemm.columns() as i64;
        let rows = x.len().checked_div(k).unwrap_or(0);
        self.memory.enter([(self.common.layer, rows as u64)]);
        let layer = &self.layers.layers[self.common.layer];
        let bias = optional(context, 1)?;
        let bias = floats(bias.as_ref())?;
        let bias = padded_bias(layer.bias.as_ref(), bias, gemm.columns())?;
        let residual = optional(context, 2)?;
        let residual = floats(residual.as_ref())?;
        let mut output = context
            .output(0, y_shape)?
            .ok_or_else(|| ort::Error::new("no output"))?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        if residual.is_some_and(|values| values.len() != y.len()) {
            return Err(ort::Error::new("a residual has another shape"));
        }
        let epilogue = Epilogue {
            bias: bias.as_deref(),
            residual,
            bounds: self.common.bounds,
        };
        let threads = Threads {
            context,
            count: self.layers.threads,
        };
        let mut scratch = self
            .memory
            .scratch(gemm.scratch(threads.count))
            .map_err(|_| ort::Error::new("the memory for a run is used up"))?;
        let workers = Workers {
            panels: &panels(&self.layers, self.common)?,
            parallel: &threads,
            scratch: &mut scratch,
        };
        gemm.run(workers, x, &epilogue, y)
            .map_err(|error| ort::Error::new(error.to_string()))
    }
}
