//! Brings the weights of sealed operators from the container to where they are read:
//! opened slab by slab, laid out panel by panel, each panel then either encrypted into
//! the spill store or kept in protected memory.
//!
//! A tensor is never in memory as a whole: each thread holds one slab of it and one
//! panel. Both are zeroed when they go.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use occlude_container::OpenContainer;
use occlude_kernels::{BIAS_MULTIPLE, ConvolutionShape, Isa, Slab};
use occlude_spill::{CipherKind, PanelName, Store, Ticket};
use zeroize::Zeroizing;

use crate::error::LoadError;
use crate::graph::{self, BatchNorm, LayerKind, Source, Weight};
use crate::layers::{Layer, LayerKernel, Layers, Resident, Whole};
use crate::memory::ProtectedBuffer;
use crate::spill::Spill;

/// Where panels go at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination<'a> {
    /// Protected memory, all of them.
    Resident,
    /// The spill store, all of them.
    Store(CipherKind, &'a Spill),
}

/// Opens and lays out the weights of `surveyed` with `threads` threads, for operators
/// that run on `computing` in `sessions`; not those that are `borrowed`, which ONNX
/// Runtime gets.
#[expect(clippy::too_many_arguments, reason = "one caller")]
pub(super) fn load(
    container: &OpenContainer,
    surveyed: &[graph::Layer],
    borrowed: &[bool],
    block: usize,
    computing: usize,
    threads: usize,
    destination: Destination<'_>,
    sessions: usize,
) -> Result<Layers, LoadError> {
    let isa = Isa::detect_at_most(block);
    let prepared: Vec<Prepared> = surveyed
        .iter()
        .zip(borrowed)
        .map(|(layer, &borrowed)| Prepared::of(container, layer, borrowed, isa, block))
        .collect::<Result<_, _>>()?;
    let store = match destination {
        Destination::Resident => None,
        Destination::Store(kind, spill) => {
            let context = *container.header().digest().as_bytes();
            let lengths: Vec<Vec<usize>> = prepared.iter().map(Prepared::lengths).collect();
            let store = spill.store(kind, &lengths, context);
            Some(store.map_err(resources("no spill store"))?)
        }
    };
    let shelves: Vec<Shelf> = prepared
        .iter()
        .map(|layer| layer.shelf(store.is_some()))
        .collect::<Result<_, _>>()?;
    let jobs: Vec<(usize, Slab)> = prepared
        .iter()
        .enumerate()
        .flat_map(|(index, layer)| layer.slabs().into_iter().map(move |slab| (index, slab)))
        .collect();

    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<(), LoadError> {
        let mut buffers = Buffers::default();
        while !failed.load(Ordering::Relaxed) {
            let Some((index, slab)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let done = prepared[*index].pack(
                container,
                *index,
                slab,
                store.as_deref(),
                &shelves[*index],
                &mut buffers,
            );
            failed.fetch_or(done.is_err(), Ordering::Relaxed);
            done?;
        }
        Ok(())
    };
    let outcomes: Vec<Result<(), LoadError>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut outcomes = vec![work()];
        for thread in others {
            let joined = thread.join();
            outcomes.push(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcomes
    });
    outcomes.into_iter().collect::<Result<(), LoadError>>()?;

    let layers = prepared
        .into_iter()
        .zip(shelves)
        .map(|(layer, shelf)| layer.finish(shelf))
        .collect();
    Ok(Layers::new(block, computing, layers, store, sessions))
}

/// A layer whose kernel is known and whose weights are not loaded.
struct Prepared {
    kernel: LayerKernel,
    pads: Option<graph::Pads>,
    source: Source,
    scale: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

/// Where a layer's panels are put while they are made.
enum Shelf {
    Store(Mutex<Vec<Option<Ticket>>>),
    Memory(Mutex<ProtectedBuffer>, Vec<Range<usize>>),
}

/// What a loading thread holds.
#[derive(Default)]
struct Buffers {
    slab: Zeroizing<Vec<f32>>,
    panel: Zeroizing<Vec<f32>>,
    whole: Zeroizing<Vec<u8>>,
}

impl Prepared {
    fn of(
        container: &OpenContainer,
        layer: &graph::Layer,
        borrowed: bool,
        isa: Isa,
        block: usize,
    ) -> Result<Self, LoadError> {
        let (mut scale, mut bias, mut pads) = (None, None, None);
        let kernel = match &layer.kind {
            LayerKind::Gemm(gemm) => {
                scale = gemm.scale.map(|scale| vec![scale; gemm.n]);
                LayerKernel::Gemm(occlude_kernels::Gemm::new(
                    isa,
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
                LayerKernel::Convolution(occlude_kernels::Convolution::new(isa, shape, block))
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

    fn shelf(&self, spilled: bool) -> Result<Shelf, LoadError> {
        let panels = self.kernel.panels();
        if spilled {
            return Ok(Shelf::Store(Mutex::new(vec![None; panels])));
        }
        let (buffer, places) = room_in_memory(&self.kernel, &(0..panels).collect::<Vec<_>>())?;
        Ok(Shelf::Memory(Mutex::new(buffer), places))
    }

    /// Makes the panels of one slab.
    fn pack(
        &self,
        container: &OpenContainer,
        index: usize,
        slab: &Slab,
        store: Option<&dyn Store>,
        shelf: &Shelf,
        buffers: &mut Buffers,
    ) -> Result<(), LoadError> {
        let Buffers {
            slab: source,
            panel,
            whole,
        } = buffers;
        if let LayerKernel::Whole(_) = &self.kernel {
            whole.clear();
            whole.resize(slab.source.len(), 0);
            read_bytes(container, &self.source, slab.source.start, whole)?;
        } else {
            read(container, &self.source, slab.source.clone(), source)?;
        }
        let scale = self.scale.as_deref();
        for &number in &slab.panels {
            panel.clear();
            panel.resize(self.kernel.panel_bytes(number) / size_of::<f32>(), 0.0);
            match &self.kernel {
                LayerKernel::Gemm(gemm) => {
                    gemm.pack(number, source, slab.source.start, scale, panel);
                }
                LayerKernel::Convolution(convolution) => {
                    convolution.pack(number, source, slab.source.start, scale, panel);
                }
                LayerKernel::Whole(_) => {}
            }
            let bytes: &[u8] = match &self.kernel {
                LayerKernel::Whole(_) => whole,
                _ => bytemuck::cast_slice(panel),
            };
            match (shelf, store) {
                (Shelf::Memory(buffer, places), _) => {
                    let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
                    buffer.as_mut_slice()[places[number].clone()].copy_from_slice(bytes);
                }
                (Shelf::Store(tickets), Some(store)) => {
                    // Containers hold fewer tensors, and tensors fewer panels, than 2^32.
                    let name = PanelName {
                        layer: index as u32,
                        panel: number as u32,
                    };
                    let ticket = store.append(name, bytes).map_err(|error| {
                        resources("the spill store takes no more")(io::Error::other(error))
                    })?;
                    tickets.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(ticket);
                }
                (Shelf::Store(_), None) => {}
            }
        }
        Ok(())
    }

    fn finish(self, shelf: Shelf) -> Layer {
        let resident = OnceLock::new();
        let mut tickets = vec![None; self.kernel.panels()];
        match shelf {
            Shelf::Store(made) => {
                tickets = made.into_inner().unwrap_or_else(PoisonError::into_inner);
            }
            Shelf::Memory(buffer, places) => {
                let buffer = buffer.into_inner().unwrap_or_else(PoisonError::into_inner);
                // Nothing else was ever set.
                let _ = resident.set(Resident { buffer, places });
            }
        }
        Layer {
            kernel: self.kernel,
            pads: self.pads,
            tickets,
            resident,
            bias: self.bias,
        }
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
