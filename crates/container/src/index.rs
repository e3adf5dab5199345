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
    /// What the owner sealed with the model, by name.
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

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"name":"w","place":"initializer","data_type":1,"dims":[2,300],"offset":4096,"length":2400}"#;

    fn parse(tensors: &[&str]) -> Result<Index, IndexError> {
        let json = format!(r#"{{"tensors":[{}],"metadata":{{}}}}"#, tensors.join(","));
        Index::parse(json.as_bytes(), 8192)
    }

    #[test]
    fn an_index_survives_json() {
        let index = parse(&[ONE]).unwrap();
        assert_eq!(index.tensors[0].length, 2400);
        assert_eq!(index.data_length(), 6496);
        let json = serde_json::to_vec(&index).unwrap();
        assert_eq!(Index::parse(&json, 8192), Ok(index));
    }

    #[test]
    fn tensors_that_lie_where_they_cannot_are_refused() {
        let moved = |offset: &str| ONE.replace("4096", offset);
        let elsewhere = moved("0").replace("\"w\"", "\"v\"");
        assert!(parse(&[&elsewhere, ONE]).is_ok());
        // Not aligned, beyond the end, past all numbers.
        for offset in ["1", "8192", "18446744073709551615", "18446744073709547520"] {
            assert_eq!(
                parse(&[&moved(offset)]),
                Err(IndexError::Place { tensor: 0 }),
                "{offset}"
            );
        }
        // Out of order, overlapping.
        assert_eq!(
            parse(&[ONE, &elsewhere]),
            Err(IndexError::Place { tensor: 1 })
        );
        let long = elsewhere.replace("300", "600").replace("2400", "4800");
        assert_eq!(parse(&[&long, ONE]), Err(IndexError::Place { tensor: 1 }));
    }

    #[test]
    fn shapes_of_another_length_and_unknown_types_are_refused() {
        let length = 2400;
        for altered in [
            ONE.replace("300", "301"),
            ONE.replace("300", "18446744073709551615"),
            ONE.replace("\"data_type\":1", "\"data_type\":8"),
            ONE.replace("\"data_type\":1", "\"data_type\":0"),
            ONE.replace("\"data_type\":1", "\"data_type\":99"),
        ] {
            assert_eq!(
                parse(&[&altered]),
                Err(IndexError::Shape { tensor: 0, length })
            );
        }
    }

    #[test]
    fn a_repeated_initializer_is_refused_and_a_repeated_nested_name_is_not() {
        let first = ONE.replace("4096", "0");
        assert_eq!(
            parse(&[&first, ONE]),
            Err(IndexError::RepeatedName { tensor: 1 })
        );
        let nested = ONE.replace("initializer", "nested");
        assert!(parse(&[&first, &nested]).is_ok());
    }

    #[test]
    fn json_that_is_not_the_index_is_refused() {
        for json in [
            "",
            "{}",
            "[]",
            r#"{"tensors":[]}"#,
            r#"{"tensors":[],"metadata":{},"more":1}"#,
            r#"{"tensors":[],"tensors":[],"metadata":{}}"#,
            r#"{"tensors":[{}],"metadata":{}}"#,
            r#"{"tensors":[],"metadata":{}} trailing"#,
        ] {
            assert!(
                matches!(
                    Index::parse(json.as_bytes(), 0),
                    Err(IndexError::Malformed { .. })
                ),
                "{json}"
            );
        }
        let signed = ONE.replace("4096", "-4096");
        assert!(matches!(
            parse(&[&signed]),
            Err(IndexError::Malformed { .. })
        ));
        let unknown = ONE.replace("\"name\"", "\"nom\"");
        assert!(matches!(
            parse(&[&unknown]),
            Err(IndexError::Malformed { .. })
        ));
    }
}
