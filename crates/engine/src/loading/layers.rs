//! Brings the weights of sealed operators from the container to where they are read:
//! opened slab by slab, laid out panel by panel, each panel then either encrypted into
//! the spill store or kept in protected memory.
//!
//! A tensor is never in memory as a whole: each thread holds one slab of it and one
//! panel. Both are zeroed when they go.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use occlude_container::OpenContainer;
use occlude_kernels::{BIAS_MULTIPLE, ConvolutionShape, Isa, Slab};
use occlude_spill::{CipherKind, Mirror, PanelName, Store};
use zeroize::Zeroizing;

use crate::error::LoadError;
use crate::graph::{self, BatchNorm, LayerKind, Source, Weight};
use crate::layers::{Brought, Layer, LayerKernel, Layers, Resident, Whole};
use crate::memory::ProtectedBuffer;
use crate::spill::Spill;

/// Where panels go at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination<'a> {
    /// Protected memory, all of them.
    Resident,
    /// The spill store, all of them.
    Store(CipherKind, &'a Spill, Option<&'a Mirror>),
}

/// Who computes with the weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Computing {
    /// Channels of a block.
    pub(super) block: usize,
    /// Threads for one request.
    pub(super) threads: usize,
    /// Requests at once.
    pub(super) sessions: usize,
}

/// Layers whose weights are still to come, and the work that brings them, in the order in
/// which a run wants them.
pub(super) struct Work {
    container: Arc<OpenContainer>,
    layers: Arc<Layers>,
    store: Option<Arc<dyn Store>>,
    origins: Vec<Origin>,
    jobs: Vec<(usize, Slab)>,
    next: AtomicUsize,
}

/// Where the weights of one layer come from, and where they are put meanwhile.
struct Origin {
    source: Source,
    scale: Option<Vec<f32>>,
    /// Until all slabs are done.
    panels: Mutex<Option<Brought>>,
    slabs_left: AtomicUsize,
}

/// What a loading thread holds.
#[derive(Default)]
pub(super) struct Buffers {
    slab: Zeroizing<Vec<f32>>,
    panel: Zeroizing<Vec<f32>>,
    whole: Zeroizing<Vec<u8>>,
}

impl Work {
    /// Layers for all that is `surveyed`, but without the weights of those that are
    /// `borrowed`, which ONNX Runtime gets.
    pub(super) fn new(
        container: &Arc<OpenContainer>,
        surveyed: &[graph::Layer],
        borrowed: &[bool],
        computing: Computing,
        destination: Destination<'_>,
    ) -> Result<Self, LoadError> {
        let Computing {
            block,
            threads,
            sessions,
        } = computing;
        let isa = Isa::detect_at_most(block);
        let prepared: Vec<Prepared> = surveyed
            .iter()
            .zip(borrowed)
            .map(|(layer, &borrowed)| Prepared::of(container, layer, borrowed, isa, threads, block))
            .collect::<Result<_, _>>()?;
        let store = match destination {
            Destination::Resident => None,
            Destination::Store(kind, spill, mirror) => {
                let context = *container.header().digest().as_bytes();
                let lengths: Vec<Vec<usize>> = prepared.iter().map(Prepared::lengths).collect();
                let store = spill.store(kind, &lengths, context, mirror);
                Some(store.map_err(resources("no spill store"))?)
            }
        };
        let (mut layers, mut origins, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
        for (index, layer) in prepared.into_iter().enumerate() {
            let slabs = layer.slabs();
            let (layer, origin) = layer.split(store.is_some(), slabs.len())?;
            if slabs.is_empty() {
                layer.bring(origin.panels().take());
            }
            jobs.extend(slabs.into_iter().map(|slab| (index, slab)));
            layers.push(layer);
            origins.push(origin);
        }
        let layers = Layers::new(block, threads, layers, store.clone(), sessions);
        Ok(Self {
            container: Arc::clone(container),
            layers: Arc::new(layers),
            store,
            origins,
            jobs,
            next: AtomicUsize::new(0),
        })
    }

    pub(super) fn layers(&self) -> &Arc<Layers> {
        &self.layers
    }

    /// Brings the next slab, and with the last one of its layer the layer. `None` when
    /// there are no more.
    pub(super) fn step(&self, buffers: &mut Buffers) -> Option<Result<(), LoadError>> {
        let (index, slab) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed))?;
        let (origin, layer) = (&self.origins[*index], &self.layers.layers[*index]);
        let done = self.pack(*index, origin, &layer.kernel, slab, buffers);
        // Of threads that did slabs of one layer the last one sees what all have done.
        if done.is_ok() && origin.slabs_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            layer.bring(origin.panels().take());
        }
        Some(done)
    }

    /// Makes the panels of one slab.
    fn pack(
        &self,
        index: usize,
        origin: &Origin,
        kernel: &LayerKernel,
        slab: &Slab,
        buffers: &mut Buffers,
    ) -> Result<(), LoadError> {
        let Buffers {
            slab: source,
            panel,
            whole,
        } = buffers;
        if let LayerKernel::Whole(_) = kernel {
            whole.clear();
            whole.resize(slab.source.len(), 0);
            read_bytes(&self.container, &origin.source, slab.source.start, whole)?;
        } else {
            read(&self.container, &origin.source, slab.source.clone(), source)?;
        }
        let scale = origin.scale.as_deref();
        for &number in &slab.panels {
            panel.clear();
            panel.resize(kernel.panel_bytes(number) / size_of::<f32>(), 0.0);
            match kernel {
                LayerKernel::Gemm(gemm) => {
                    gemm.pack(number, source, slab.source.start, scale, panel);
                }
                LayerKernel::Convolution(convolution) => {
                    convolution.pack(number, source, slab.source.start, scale, panel);
                }
                LayerKernel::Whole(_) => {}
            }
            let bytes: &[u8] = match kernel {
                LayerKernel::Whole(_) => whole,
                _ => bytemuck::cast_slice(panel),
            };
            // Containers hold fewer tensors, and tensors fewer panels, than 2^32.
            let name = PanelName {
                layer: index as u32,
                panel: number as u32,
            };
            let ticket = match &self.store {
                Some(store) => Some(store.append(name, bytes).map_err(|error| {
                    resources("the spill store takes no more")(io::Error::other(error))
                })?),
                None => None,
            };
            match origin.panels().as_mut() {
                Some(Brought::Store(tickets)) => tickets[number] = ticket,
                Some(Brought::Memory(Resident { buffer, places })) => {
                    buffer.as_mut_slice()[places[number].clone()].copy_from_slice(bytes);
                }
                None => {}
            }
        }
        Ok(())
    }
}

impl Origin {
    fn panels(&self) -> MutexGuard<'_, Option<Brought>> {
        self.panels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer whose kernel is known and whose weights are not loaded.
struct Prepared {
    kernel: LayerKernel,
    pads: Option<graph::Pads>,
    source: Source,
    scale: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl Prepared {
    fn of(
        container: &OpenContainer,
        layer: &graph::Layer,
        borrowed: bool,
        isa: Isa,
        threads: usize,
        block: usize,
    ) -> Result<Self, LoadError> {
        let (mut scale, mut bias, mut pads) = (None, None, None);
        let kernel = match &layer.kind {
            LayerKind::Gemm(gemm) => {
                scale = gemm.scale.map(|scale| vec![scale; gemm.n]);
                LayerKernel::Gemm(occlude_kernels::Gemm::new(
                    isa,
                    threads,
                    gemm.k,
                    gemm.n,
                    gemm.transposed,
                ))
            }
            LayerKind::Convolution(convolution) => {
                pads = Some(convolution.pads);
                if let Some(normalisation) = &convolution.batch_norm {
                    let (factors, offsets) = fold(container, normalisation)?;
                    (scale, bias) = (Some(factors), Some(offsets));
                }
                let shape = ConvolutionShape {
                    out_channels: convolution.out_channels,
                    in_channels_per_group: convolution.in_channels_per_group,
                    groups: convolution.groups,
                    kernel: convolution.kernel,
                    strides: convolution.strides,
                    dilations: convolution.dilations,
                };
                LayerKernel::Convolution(occlude_kernels::Convolution::new(
                    isa, threads, shape, block,
                ))
            }
            LayerKind::Whole => LayerKernel::Whole(Whole {
                bytes: if borrowed {
                    0
                } else {
                    super::addressable(layer.weight.length())?
                },
                dims: layer.weight.dims.clone(),
                data_type: layer.weight.data_type,
            }),
        };
        Ok(Self {
            kernel,
            pads,
            source: layer.weight.source.clone(),
            scale,
            bias,
        })
    }

    fn slabs(&self) -> Vec<Slab> {
        match &self.kernel {
            LayerKernel::Gemm(gemm) => gemm.slabs(),
            LayerKernel::Convolution(convolution) => convolution.slabs(),
            // In bytes.
            LayerKernel::Whole(whole) => (0..self.kernel.panels())
                .map(|panel| Slab {
                    source: whole.place(panel),
                    panels: vec![panel],
                })
                .collect(),
        }
    }

    /// Bytes of each panel.
    fn lengths(&self) -> Vec<usize> {
        (0..self.kernel.panels())
            .map(|panel| self.kernel.panel_bytes(panel))
            .collect()
    }

    /// The layer, and where its weights are to come from in so many slabs.
    fn split(self, spilled: bool, slabs: usize) -> Result<(Layer, Origin), LoadError> {
        let count = self.kernel.panels();
        let (panels, set_aside) = if spilled {
            (Brought::Store(vec![None; count]), 0)
        } else {
            let all: Vec<usize> = (0..count).collect();
            let (buffer, places) = room_in_memory(&self.kernel, &all)?;
            let set_aside = buffer.len();
            (Brought::Memory(Resident { buffer, places }), set_aside)
        };
        let origin = Origin {
            source: self.source,
            scale: self.scale,
            panels: Mutex::new(Some(panels)),
            slabs_left: AtomicUsize::new(slabs),
        };
        Ok((
            Layer::new(self.kernel, self.pads, self.bias, set_aside),
            origin,
        ))
    }
}

/// Protected memory for `panels` of `kernel`, and where in it each panel goes.
pub(super) fn room_in_memory(
    kernel: &LayerKernel,
    panels: &[usize],
) -> Result<(ProtectedBuffer, Vec<Range<usize>>), LoadError> {
    let mut places = vec![0..0; kernel.panels()];
    let mut end = 0_usize;
    for &panel in panels {
        let length = kernel.panel_bytes(panel);
        places[panel] = end..end + length;
        end += length.next_multiple_of(super::WEIGHT_ALIGNMENT);
    }
    let buffer = ProtectedBuffer::zeroed(end).map_err(resources("no memory for the weights"))?;
    Ok((buffer, places))
}

/// Reads numbers of a tensor of `f32`.
fn read(
    container: &OpenContainer,
    source: &Source,
    numbers: Range<usize>,
    into: &mut Zeroizing<Vec<f32>>,
) -> Result<(), LoadError> {
    into.clear();
    into.resize(numbers.len(), 0.0);
    let start = numbers.start * size_of::<f32>();
    read_bytes(container, source, start, bytemuck::cast_slice_mut(into))?;
    if cfg!(target_endian = "big") {
        for number in into.iter_mut() {
            *number = f32::from_bits(number.to_bits().swap_bytes());
        }
    }
    Ok(())
}

/// Reads bytes of a tensor from its byte `start` on.
fn read_bytes(
    container: &OpenContainer,
    source: &Source,
    start: usize,
    into: &mut [u8],
) -> Result<(), LoadError> {
    match source {
        Source::Sealed(tensor) => container.read_part(tensor.index, start as u64, into)?,
        Source::Inline(all) => match all.get(start..start + into.len()) {
            Some(part) => into.copy_from_slice(part),
            None => return Err(LoadError::Skeleton("a tensor is too short".to_owned())),
        },
    }
    Ok(())
}

/// Factors and bias of a convolution that batch normalisation follows.
fn fold(
    container: &OpenContainer,
    normalisation: &BatchNorm,
) -> Result<(Vec<f32>, Vec<f32>), LoadError> {
    let whole = |weight: &Weight| {
        let mut values = Zeroizing::new(Vec::new());
        let count = usize::try_from(weight.length()).unwrap_or(usize::MAX) / size_of::<f32>();
        read(container, &weight.source, 0..count, &mut values)?;
        Ok::<_, LoadError>(values)
    };
    let (scale, bias) = (whole(&normalisation.scale)?, whole(&normalisation.bias)?);
    let (mean, variance) = (whole(&normalisation.mean)?, whole(&normalisation.variance)?);
    let own = normalisation
        .convolution_bias
        .as_ref()
        .map(whole)
        .transpose()?;
    let factors: Vec<f32> = scale
        .iter()
        .zip(variance.iter())
        .map(|(scale, variance)| scale / (variance + normalisation.epsilon).sqrt())
        .collect();
    let mut offsets: Vec<f32> = factors
        .iter()
        .enumerate()
        .map(|(channel, factor)| {
            let own = own.as_ref().map_or(0.0, |own| own[channel]);
            (own - mean[channel]) * factor + bias[channel]
        })
        .collect();
    offsets.resize(offsets.len().next_multiple_of(BIAS_MULTIPLE), 0.0);
    Ok((factors, offsets))
}

fn resources(what: &'static str) -> impl Fn(io::Error) -> LoadError {
    move |source| LoadError::Resources { what, source }
}
