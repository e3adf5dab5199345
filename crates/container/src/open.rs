//! An opened container: the graph, and tensors on demand.
//!
//! Every byte that comes out was copied from the host once, then compared with the
//! digest that the owner signed, then decrypted and authenticated in private memory.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use occlude_onnx::{OnnxError, Payload, Replacement, Spliced, splice};
use zeroize::{Zeroize, Zeroizing};

use crate::format::{ALIGNMENT, MAX_INDEX, PAYLOAD_LOCATION, PRELUDE_LENGTH};
use crate::inspect::{self, Inspection};
use crate::read::Chunks;
use crate::{Header, Index, IndexError, Progress, TensorEntry, TensorPlace, parallel};

/// Why a container's contents could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The key is that of another container.
    #[error("the key does not open this model")]
    WrongKey,
    /// Wrong position or altered bytes: one variant on purpose.
    #[error("chunk {chunk} is not authentic")]
    Inauthentic {
        /// Which one.
        chunk: u64,
    },
    /// The plaintext starts with lengths that it cannot have.
    #[error("the container's contents have impossible lengths")]
    Prelude,
    /// The index is malformed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The graph is no ONNX model.
    #[error("the container's graph: {0}")]
    Graph(#[from] OnnxError),
    /// The graph's records of its tensors are not those of the index.
    #[error("the container's graph does not fit its index")]
    GraphDoesNotFitIndex,
    /// What fills the space between and after the tensors is not zero.
    #[error("the container's padding is not zero")]
    Padding,
    /// The caller asked for a tensor that is not there, or with a buffer of another length.
    #[error("there is no tensor {tensor} of {length} bytes")]
    NoSuchTensor {
        /// Which one.
        tensor: usize,
        /// The buffer's length.
        length: usize,
    },
    /// The file could not be read.
    #[error("{source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A container that has been opened with its key. Reading is thread-safe.
pub struct OpenContainer {
    chunks: Chunks,
    skeleton: Zeroizing<Vec<u8>>,
    index: Index,
    /// Where the graph ends in the plaintext.
    graph_end: u64,
    /// Where the tensor data starts: the next multiple of [`ALIGNMENT`].
    data_start: u64,
    /// For the n-th tensor that a walk over the skeleton meets: its index entry.
    entry_of_tensor: Vec<Option<usize>>,
}

impl OpenContainer {
    pub(crate) fn new(chunks: Chunks) -> Result<Self, OpenError> {
        let capacity = chunks.layout().capacity();
        let mut prelude = [0; PRELUDE_LENGTH as usize];
        read_plaintext(&chunks, 0, &mut prelude)?;
        let [index_length, skeleton_length] =
            [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| prelude[at + byte])));
        if index_length > MAX_INDEX || skeleton_length > occlude_onnx::limits::SKELETON {
            return Err(OpenError::Prelude);
        }
        let skeleton_start = PRELUDE_LENGTH + index_length;
        let graph_end = skeleton_start + skeleton_length;
        let data_start = graph_end.next_multiple_of(ALIGNMENT);
        let data_length = capacity.checked_sub(data_start).ok_or(OpenError::Prelude)?;
        // Both lengths are within the file by now.
        let mut json = Zeroizing::new(vec![0; index_length as usize]);
        read_plaintext(&chunks, PRELUDE_LENGTH, &mut json)?;
        let mut skeleton = Zeroizing::new(vec![0; skeleton_length as usize]);
        read_plaintext(&chunks, skeleton_start, &mut skeleton)?;
        let index = Index::parse(&json, data_length)?;
        let entry_of_tensor = match_graph_to_index(&skeleton, &index)?;
        Ok(Self {
            chunks,
            skeleton,
            index,
            graph_end,
            data_start,
            entry_of_tensor,
        })
    }

    /// The header, which the owner signed.
    #[must_use]
    pub fn header(&self) -> &Header {
        self.chunks.header()
    }

    /// The model without the payloads of [`OpenContainer::tensors`]: a valid ONNX
    /// protobuf, in which each of them is a record of external data with location
    /// [`PAYLOAD_LOCATION`](crate::PAYLOAD_LOCATION), [`TensorEntry::offset`] and
    /// [`TensorEntry::length`].
    #[must_use]
    pub fn skeleton(&self) -> &[u8] {
        &self.skeleton
    }

    /// The skeleton with all payloads but those of the main graph's initializers put
    /// back inline: what a runtime that borrows initializers loads.
    ///
    /// # Errors
    /// As [`OpenContainer::read_tensor`].
    pub fn runnable_skeleton(&self) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let spliced = self.splice(&mut |tensor, entry| {
            if entry.place == TensorPlace::Initializer {
                return Ok(Replacement::Keep);
            }
            // Within the file, which was checked.
            let mut bytes = vec![0; entry.length as usize];
            self.read_tensor(tensor, &mut bytes)?;
            Ok(Replacement::Inline(bytes))
        })?;
        Ok(Zeroizing::new(spliced.bytes))
    }

    /// The extracted tensors, in the order in which the graph first uses them.
    #[must_use]
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.index.tensors
    }

    /// What the owner sealed with the model, by name. Who runs the model refuses what it
    /// does not know: it may be a condition.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.index.metadata
    }

    /// Bytes from the start of the first tensor to the end of the last one.
    #[must_use]
    pub fn data_length(&self) -> u64 {
        self.index.data_length()
    }

    /// Fills `into` with the values of tensor `index`, little-endian, as ONNX's
    /// `raw_data` has them; `into` must have the tensor's length.
    ///
    /// # Errors
    /// [`OpenError::NoSuchTensor`]; [`OpenError::Inauthentic`] or [`OpenError::Io`],
    /// after which `into` is all zeros.
    pub fn read_tensor(&self, index: usize, into: &mut [u8]) -> Result<(), OpenError> {
        let entry = self.index.tensors.get(index);
        let entry = entry.filter(|entry| entry.length == into.len() as u64);
        let Some(entry) = entry else {
            return Err(OpenError::NoSuchTensor {
                tensor: index,
                length: into.len(),
            });
        };
        self.read_data(entry.offset, into)
    }

    /// Fills `into` with a part of tensor `index`, from its byte `start` on, so that a
    /// large tensor need not be in memory as a whole.
    ///
    /// # Errors
    /// [`OpenError::NoSuchTensor`] if the part is not inside the tensor; otherwise as
    /// [`Self::read_tensor`].
    pub fn read_part(&self, index: usize, start: u64, into: &mut [u8]) -> Result<(), OpenError> {
        let inside = |length: u64| {
            start
                .checked_add(into.len() as u64)
                .is_some_and(|end| end <= length)
        };
        let entry = self.index.tensors.get(index);
        let Some(entry) = entry.filter(|entry| inside(entry.length)) else {
            return Err(OpenError::NoSuchTensor {
                tensor: index,
                length: into.len(),
            });
        };
        self.read_data(entry.offset + start, into)
    }

    /// Fills `into` with tensor data, padding included, from `offset` on.
    pub(crate) fn read_data(&self, offset: u64, into: &mut [u8]) -> Result<(), OpenError> {
        read_plaintext(&self.chunks, self.data_start + offset, into)
    }

    /// Opens every chunk and checks that all padding is zero.
    ///
    /// # Errors
    /// [`OpenError::Inauthentic`] with the first such chunk, [`OpenError::Padding`],
    /// [`OpenError::Io`].
    pub fn verify_all(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), OpenError> {
        let layout = self.chunks.layout();
        let size = u64::from(layout.chunk_size.bytes());
        let total = layout.capacity();
        let open = |chunk, buffer: &mut [u8]| {
            let text = self.chunks.open(chunk, buffer)?;
            self.check_padding(chunk * size, text)
        };
        let length = layout.sealed_chunk_length();
        parallel::in_order(layout.chunk_count, length, &open, &mut |chunk, _, ()| {
            let done = (chunk + 1) * size;
            progress(Progress { done, total });
            Ok(())
        })
    }

    /// What the model is made of.
    ///
    /// # Errors
    /// [`OpenError::Graph`] if the graph does not decode.
    pub fn inspect(&self) -> Result<Inspection, OpenError> {
        Ok(inspect::inspect(&self.skeleton, &self.index.tensors)?)
    }

    /// Walks the skeleton and replaces extracted tensors' records.
    pub(crate) fn splice(
        &self,
        replace: &mut dyn FnMut(usize, &TensorEntry) -> Result<Replacement, OpenError>,
    ) -> Result<Spliced, OpenError> {
        splice(
            &self.skeleton.as_slice(),
            &mut |found| match self.entry_of(found.ordinal) {
                Some(tensor) => replace(tensor, &self.index.tensors[tensor]),
                None => Ok(Replacement::Keep),
            },
        )
    }

    /// The index entry of the n-th tensor that a walk over the skeleton meets.
    pub(crate) fn entry_of(&self, ordinal: u64) -> Option<usize> {
        let ordinal = usize::try_from(ordinal).ok()?;
        self.entry_of_tensor.get(ordinal).copied().flatten()
    }

    /// `text` lies at `start` in the plaintext.
    fn check_padding(&self, start: u64, text: &[u8]) -> Result<(), OpenError> {
        let end = start + text.len() as u64;
        let tensors = &self.index.tensors;
        let span = |entry: &TensorEntry| {
            let from = self.data_start + entry.offset;
            (from, from + entry.length)
        };
        let first = tensors.partition_point(|entry| span(entry).1 <= start);
        let mut at = start.max(self.graph_end);
        for (from, to) in tensors[first..].iter().map(span) {
            if from >= end {
                break;
            }
            all_zero(text, start, at, from)?;
            at = at.max(to);
        }
        all_zero(text, start, at, end)
    }
}

impl std::fmt::Debug for OpenContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenContainer")
            .field("header", self.header())
            .finish_non_exhaustive()
    }
}

/// Checks the bytes from `from` to `to` of `text`, which lies at `start`.
fn all_zero(text: &[u8], start: u64, from: u64, to: u64) -> Result<(), OpenError> {
    let place = |at: u64| at.clamp(start, start + text.len() as u64) - start;
    let (from, to) = (place(from) as usize, place(to) as usize);
    if from < to && text[from..to].iter().any(|&byte| byte != 0) {
        return Err(OpenError::Padding);
    }
    Ok(())
}

/// Fills `into` from `offset` of the plaintext, which must be within it; zeroes it
/// again if anything fails.
fn read_plaintext(chunks: &Chunks, offset: u64, into: &mut [u8]) -> Result<(), OpenError> {
    let layout = chunks.layout();
    let size = u64::from(layout.chunk_size.bytes());
    let mut buffer = Zeroizing::new(vec![0; layout.sealed_chunk_length()]);
    let mut written = 0;
    while written < into.len() {
        let at = offset + written as u64;
        let text = match chunks.open(at / size, &mut buffer) {
            Ok(text) => &text[(at % size) as usize..],
            Err(error) => {
                into.zeroize();
                return Err(error);
            }
        };
        let length = text.len().min(into.len() - written);
        into[written..written + length].copy_from_slice(&text[..length]);
        written += length;
    }
    Ok(())
}

/// Each record of the skeleton must be an entry of the index, and each entry exactly
/// one record; a record of any other file would let the graph read the host's files.
fn match_graph_to_index(skeleton: &[u8], index: &Index) -> Result<Vec<Option<usize>>, OpenError> {
    let mut entry_of_tensor = Vec::new();
    let mut matched = vec![false; index.tensors.len()];
    splice(&skeleton, &mut |found| {
        entry_of_tensor.resize(found.ordinal as usize, None);
        let Payload::External(record) = &found.payload else {
            entry_of_tensor.push(None);
            return Ok(Replacement::Keep);
        };
        let place = match found.place {
            occlude_onnx::Place::Initializer => TensorPlace::Initializer,
            occlude_onnx::Place::Nested => TensorPlace::Nested,
        };
        let entry = index
            .tensors
            .binary_search_by_key(&record.offset, |entry| entry.offset)
            .map_err(|_| OpenError::GraphDoesNotFitIndex)?;
        let tensor = &index.tensors[entry];
        let agrees = record.location == PAYLOAD_LOCATION
            && record.length == Some(tensor.length)
            && found.name == tensor.name
            && found.data_type == tensor.data_type
            && found.dims == tensor.dims
            && place == tensor.place;
        if !agrees || std::mem::replace(&mut matched[entry], true) {
            return Err(OpenError::GraphDoesNotFitIndex);
        }
        entry_of_tensor.push(Some(entry));
        Ok(Replacement::Keep)
    })?;
    if matched.contains(&false) {
        return Err(OpenError::GraphDoesNotFitIndex);
    }
    Ok(entry_of_tensor)
}
