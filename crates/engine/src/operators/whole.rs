//! `OpenedWeight` and `WipedAfter`: weights for operators of ONNX Runtime, opened right
//! before they are used and gone right after.
//!
//! `OpenedWeight(after...)` gives the weight of its layer in the type that the model
//! stores. What it reads only orders it: it runs once that is ready. `WipedAfter(y,
//! weight)` gives `y`, in the same memory where ONNX Runtime shares it, and zeroes the
//! weight, which nobody reads any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use occlude_kernels::Parallel;
use ort::operator::{
    ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::ValueType;

use super::threads::Threads;
use super::{Common, computed, guarded, input_shape, panels, session_memory, set_output};
use crate::allocator::Allocator;
use crate::layers::{LayerKernel, Layers, Whole};
use crate::value;

pub(super) struct OpenedWeight(pub(super) Arc<Layers>);

impl Operator for OpenedWeight {
    type Kernel<'a> = Opening;

    fn name(&self) -> &'static str {
        "OpenedWeight"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::variadic(0)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::variadic(1)]
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<(), ort::Error> {
        guarded(|| {
            let layer = usize::try_from(context.attr::<i64>("layer")?).unwrap_or(usize::MAX);
            let Some(LayerKernel::Whole(whole)) =
                self.0.layers.get(layer).map(|layer| &layer.kernel)
            else {
                return Ok(());
            };
            let Some(ty) = value::tensor_element_type(whole.data_type) else {
                return Ok(());
            };
            set_output(context, ty, whole.dims.clone(), &[])
        })
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> Result<Opening, ort::Error> {
        Ok(Opening {
            common: Common::of(node, &self.0)?,
            layers: Arc::clone(&self.0),
            memory: session_memory()?,
        })
    }
}

pub(super) struct Opening {
    common: Common,
    layers: Arc<Layers>,
    memory: Arc<Allocator>,
}

impl ort::operator::Kernel for Opening {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), ort::Error> {
        computed(
            &self.layers.layers[self.common.layer],
            |kernel| match kernel {
                LayerKernel::Whole(whole) => self.open(whole, context),
                _ => Err(ort::Error::new("the layer has a kernel of its own")),
            },
        )
    }
}

impl Opening {
    fn open(&self, whole: &Whole, context: &ComputeContext) -> Result<(), ort::Error> {
        self.memory.enter([(self.common.layer, 1)]);
        let mut output = context
            .output(0, whole.dims.clone())?
            .ok_or_else(|| ort::Error::new("no output"))?;
        let out = value::output_bytes(&mut output)?;
        if out.len() != whole.bytes {
            return Err(ort::Error::new("the weight has another size than its type"));
        }
        let panels = panels(&self.layers, self.common)?;
        let count = self.layers.layers[self.common.layer].kernel.panels();
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let mut pieces: Vec<Mutex<&mut [u8]>> = Vec::with_capacity(count);
        let mut rest = out;
        for panel in 0..count {
            let (piece, after) = rest.split_at_mut(whole.place(panel).len());
            pieces.push(Mutex::new(piece));
            rest = after;
        }
        let threads = Threads {
            context,
            count: self.layers.threads,
        };
        threads.run(threads.threads().min(count), &|_| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(piece) = pieces.get(index) else {
                    return;
                };
                let mut piece = piece.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = panels.open_bytes(index, &mut piece) {
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(ort::Error::new(error.to_string()));
                    return;
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

pub(super) struct WipedAfter;

impl Operator for WipedAfter {
    type Kernel<'a> = Wiping;

    const ALIASES: &[(u32, u32)] = &[(0, 0)];

    fn name(&self) -> &'static str {
        "WipedAfter"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::variadic(2)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::variadic(1)]
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<(), ort::Error> {
        guarded(|| {
            let Some((shape, symbols)) = input_shape(context) else {
                return Ok(());
            };
            match context.inputs().first() {
                Some(ValueType::Tensor { ty, .. }) => set_output(context, *ty, shape, &symbols),
                _ => Ok(()),
            }
        })
    }

    fn create_kernel<'a>(&self, _: &KernelContext<'a>) -> Result<Wiping, ort::Error> {
        Ok(Wiping)
    }
}

pub(super) struct Wiping;

impl ort::operator::Kernel for Wiping {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), ort::Error> {
        guarded(|| {
            let missing = || ort::Error::new("no input");
            let held = context.input(0)?.ok_or_else(missing)?;
            let ValueType::Tensor { shape, .. } = held.dtype() else {
                return Err(ort::Error::new("what is held is no tensor"));
            };
            let mut output = context
                .output(0, shape.to_vec())?
                .ok_or_else(|| ort::Error::new("no output"))?;
            value::hand_on(&held, &mut output)?;
            let weight = context.input(1)?.ok_or_else(missing)?;
            value::zero_input(&weight, &output);
            Ok(())
        })
    }
}
