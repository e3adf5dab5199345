//! The encrypted index: which tensors there are and where they lie.
//!
//! The owner wrote it, yet it is checked as if anybody had: what comes out has
//! offsets in order, without overlap, within the container, of the right lengths.

use std::collections::{BTreeMap, HashSet};

use occlude_onnx::DataType;

use crate::format::ALIGNMENT;

/// What lies where in a container's plaintext.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The tensors, in the order in which the graph first uses them.
    pub tensors: Vec<TensorEntry>,
    /// Room for what later versions of the sealing program note; empty today.
    pub metadata: BTreeMap<String, String>,
}

/// One extracted tensor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// The tensor's name; unique among initializers, often empty elsewhere.
    pub name: String,
    /// What holds it in the graph.
    pub place: TensorPlace,
    /// The number of its element type ([`DataType`]).
    pub data_type: i32,
    /// Its extents.
    pub dims: Vec<u64>,
    /// Where it starts, counted from the start of the tensor data; a multiple of
    /// [`ALIGNMENT`]. The skeleton's record has the same number.
    pub offset: u64,
    /// How many bytes it has, as `raw_data` has them.
    pub length: u64,
}

/// What holds a tensor in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TensorPlace {
    /// The main graph's list of initializers.
    Initializer,
    /// Anything else: a subgraph, an attribute, a function, a sparse tensor.
    Nested,
}

/// Why an index is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Not the JSON that it should be.
    #[error("the index is malformed: {reason}")]
    Malformed {
        /// What the JSON parser said.
        reason: String,
    },
    /// An element type that cannot be stored, or a shape of another length.
    #[error("tensor {tensor} of the index: type and shape do not make {length} bytes")]
    Shape {
        /// Which entry.
        tensor: usize,
        /// The length it claims.
        length: u64,
    },
    /// Not aligned, out of order, overlapping or beyond the container.
    #[error("tensor {tensor} of the index lies where it cannot")]
    Place {
        /// Which entry.
        tensor: usize,
    },
    /// Two initializers of one name.
    #[error("tensor {tensor} of the index repeats a name")]
    RepeatedName {
        /// Which entry.
        tensor: usize,
    },
}

impl Index {
    /// Parses and checks an index. `data_length`: bytes of tensor data that the
    /// container has room for.
    ///
    /// # Errors
    /// [`IndexError`], one variant for each malformation.
    pub fn parse(json: &[u8], data_length: u64) -> Result<Self, IndexError> {
        let index: Self = serde_json::from_slice(json).map_err(|error| IndexError::Malformed {
            reason: error.to_string(),
        })?;
        let mut end = 0;
        let mut names = HashSet::new();
        for (tensor, entry) in index.tensors.iter().enumerate() {
            let length = DataType::from_number(entry.data_type)
                .and_then(|data_type| data_type.byte_length(&entry.dims));
            if length != Some(entry.length) {
                return Err(IndexError::Shape {
                    tensor,
                    length: entry.length,
                });
            }
            let entry_end = entry.offset.checked_add(entry.length);
            let fits = entry_end.is_some_and(|end| end <= data_length);
            if entry.offset < end || !entry.offset.is_multiple_of(ALIGNMENT) || !fits {
                return Err(IndexError::Place { tensor });
            }
            end = entry.offset + entry.length;
            if entry.place == TensorPlace::Initializer && !names.insert(entry.name.as_str()) {
                return Err(IndexError::RepeatedName { tensor });
            }
        }
        Ok(index)
    }

    /// Bytes of tensor data, up to the end of the last tensor.
    #[must_use]
    pub fn data_length(&self) -> u64 {
        self.tensors
            .last()
            .map_or(0, |entry| entry.offset + entry.length)
    }
}
