//! Unsealing: the same model back, for its owner.
//!
//! Weights come back byte for byte, inline (`raw_data`) while the model stays below
//! protobuf's limit, else in a file of external data beside it. Everything that was
//! not a payload comes back byte for byte too.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use occlude_keys::OwnerKey;
use occlude_onnx::{ExternalRecord, Replacement, Spliced};
use zeroize::Zeroizing;

use crate::new_file::{create, folder_of, reserve};
use crate::{
    Container, ContainerError, OpenContainer, OpenError, OutputError, Progress, TensorPlace,
    model_key, parallel,
};

/// Protobuf's readers take no message of 2 GiB or more.
const LARGEST_PROTOBUF: u64 = (1 << 31) - 1;

/// Output bytes that one thread makes at a time.
const BLOCK: usize = 4 << 20;

/// Why a container could not be unsealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnsealError {
    /// The file is not a container of this owner's.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Its contents could not be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Even without initializers the model exceeds what a protobuf can hold.
    #[error("the model takes {length} bytes without its initializers, a protobuf holds {limit}")]
    TooLarge {
        /// Its length.
        length: u64,
        /// The most.
        limit: u64,
    },
    /// The output's name cannot stand in a model.
    #[error("{} has no file name in UTF-8", path.display())]
    OutputName {
        /// The output.
        path: PathBuf,
    },
    /// The model could not be written: the disk is full, perhaps.
    #[error("writing the model: {0}")]
    Write(io::Error),
    /// The output file could not be made.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Writes the model in `container` to the new file `output`.
///
/// A model of 2 GiB or more gets its initializers in a second new file, `output`'s
/// name followed by `.data`.
///
/// # Errors
/// [`UnsealError`]; nothing half-written remains.
pub fn unseal_file(
    container: &Path,
    output: &Path,
    key: &OwnerKey,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), UnsealError> {
    unseal_within(LARGEST_PROTOBUF, container, output, key, progress)
}

impl OpenContainer {
    /// The whole model in memory, as the bytes of a protobuf.
    ///
    /// # Errors
    /// [`UnsealError::TooLarge`] if it would be longer than a protobuf can be;
    /// [`UnsealError::Open`] if a part is not authentic.
    pub fn unsealed(&self) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let inline = self.splice_inline()?;
        let model = Model::new(self, &inline);
        let length = usize::try_from(model.length)
            .ok()
            .filter(|_| model.length <= LARGEST_PROTOBUF)
            .ok_or(UnsealError::TooLarge {
                length: model.length,
                limit: LARGEST_PROTOBUF,
            })?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        model.write_to(&mut *bytes, &mut |_| ())?;
        Ok(bytes)
    }

    /// The model with room for its weights inside.
    fn splice_inline(&self) -> Result<Spliced, OpenError> {
        self.splice(&mut |_, entry| {
            let length = entry.length;
            Ok(Replacement::Hole { length })
        })
    }
}

/// [`unseal_file`] with another limit for inline models.
fn unseal_within(
    limit: u64,
    container: &Path,
    output: &Path,
    key: &OwnerKey,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), UnsealError> {
    let signed = Container::read(container)?.verify_owner(&key.public())?;
    let model_key = model_key(key, signed.header());
    let opened = signed.open(&model_key)?;
    let inline = opened.splice_inline()?;
    if inline.length().is_some_and(|length| length <= limit) {
        let model = Model::new(&opened, &inline);
        let total = model.length;
        return create(output, |file| {
            model.write(file, &mut |done| progress(Progress { done, total }))
        });
    }
    unseal_with_external_data(limit, &opened, output, progress)
}

fn unseal_with_external_data(
    limit: u64,
    opened: &OpenContainer,
    output: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), UnsealError> {
    let name = output
        .file_name()
        .and_then(|name| name.to_str())
        .map(|name| format!("{name}.data"))
        .ok_or_else(|| UnsealError::OutputName {
            path: output.to_owned(),
        })?;
    let outside = opened.splice(&mut |_, entry| {
        let length = entry.length;
        Ok(match entry.place {
            TensorPlace::Nested => Replacement::Hole { length },
            TensorPlace::Initializer => Replacement::External(ExternalRecord {
                location: name.clone(),
                offset: entry.offset,
                length: Some(length),
            }),
        })
    })?;
    let model = Model::new(opened, &outside);
    if model.length > limit {
        let length = model.length;
        return Err(UnsealError::TooLarge { length, limit });
    }
    let data = Model {
        opened,
        bytes: &[],
        pieces: vec![Piece {
            start: 0,
            length: opened.data_length(),
            from: Origin::Data(0),
        }],
        length: opened.data_length(),
    };
    let total = model.length + data.length;
    let data_path = folder_of(output).join(&name);
    let mut data_exists = false;
    let written = create(output, |file| {
        model.write(file, &mut |done| progress(Progress { done, total }))?;
        create(&data_path, |file| {
            data.write(file, &mut |done| {
                let done = model.length + done;
                progress(Progress { done, total });
            })
        })?;
        data_exists = true;
        Ok(())
    });
    if written.is_err() && data_exists {
        // Ours, and useless without the model.
        let _ = std::fs::remove_file(&data_path);
    }
    written
}

/// The model as it is written: bytes of the graph, and tensors between them.
struct Model<'a> {
    opened: &'a OpenContainer,
    bytes: &'a [u8],
    pieces: Vec<Piece>,
    length: u64,
}

struct Piece {
    start: u64,
    length: u64,
    from: Origin,
}

enum Origin {
    /// The graph's bytes from here on.
    Graph(usize),
    /// Tensor data from this offset on.
    Data(u64),
}

impl<'a> Model<'a> {
    fn new(opened: &'a OpenContainer, spliced: &'a Spliced) -> Self {
        let mut pieces = Vec::new();
        let mut length = 0;
        let mut push = |bytes: u64, from| {
            pieces.push(Piece {
                start: length,
                length: bytes,
                from,
            });
            length += bytes;
        };
        let mut at = 0;
        for hole in &spliced.holes {
            push((hole.at - at) as u64, Origin::Graph(at));
            at = hole.at;
            // Only extracted tensors become holes.
            if let Some(entry) = opened.entry_of(hole.ordinal) {
                push(hole.length, Origin::Data(opened.tensors()[entry].offset));
            }
        }
        push((spliced.bytes.len() - at) as u64, Origin::Graph(at));
        Self {
            opened,
            bytes: &spliced.bytes,
            pieces,
            length,
        }
    }

    fn write(&self, file: &mut File, progress: &mut dyn FnMut(u64)) -> Result<(), UnsealError> {
        reserve(file, self.length).map_err(UnsealError::Write)?;
        self.write_to(file, progress)
    }

    fn write_to(
        &self,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), UnsealError> {
        // A large chunk is opened as often as blocks touch it.
        let chunk = self.opened.header().chunk_size().bytes() as usize;
        let block = BLOCK.max(chunk);
        let length_of = |index: u64| (self.length - index * block as u64).min(block as u64);
        let fill = |index: u64, buffer: &mut [u8]| {
            let length = length_of(index) as usize;
            self.read_at(index * block as u64, &mut buffer[..length])
        };
        let blocks = self.length.div_ceil(block as u64);
        parallel::in_order(blocks, block, &fill, &mut |index, buffer, ()| {
            let length = length_of(index);
            out.write_all(&buffer[..length as usize])
                .map_err(UnsealError::Write)?;
            progress(index * block as u64 + length);
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, mut into: &mut [u8]) -> Result<(), UnsealError> {
        let first = self
            .pieces
            .partition_point(|piece| piece.start + piece.length <= offset);
        let mut at = offset;
        for piece in &self.pieces[first..] {
            if into.is_empty() {
                break;
            }
            let skip = at - piece.start;
            let length = (piece.length - skip).min(into.len() as u64);
            let (now, later) = into.split_at_mut(length as usize);
            match piece.from {
                Origin::Graph(from) => {
                    let from = from + skip as usize;
                    now.copy_from_slice(&self.bytes[from..from + now.len()]);
                }
                Origin::Data(from) => self.opened.read_data(from + skip, now)?,
            }
            into = later;
            at += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use occlude_onnx::messages::{ModelProto, TensorProto};
    use prost::Message;

    use super::*;

    fn vectors() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
    }

    fn owner() -> OwnerKey {
        OwnerKey::from_secret(&std::array::from_fn(|index| index as u8))
    }

    fn unseal_outside(output: &Path) -> Result<(), UnsealError> {
        let sealed = vectors().join("sealed.occ");
        unseal_within(2000, &sealed, output, &owner(), &mut |_| ())
    }

    fn initializers(model: &Path) -> Vec<TensorProto> {
        let bytes = std::fs::read(model).unwrap();
        let graph = ModelProto::decode(bytes.as_slice()).unwrap().graph;
        graph.unwrap().initializer
    }

    #[test]
    fn a_model_too_large_for_a_protobuf_comes_back_with_external_data() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("back.onnx");
        unseal_outside(&output).unwrap();
        let data = std::fs::read(folder.path().join("back.onnx.data")).unwrap();
        let inline = initializers(&vectors().join("plain.onnx"));
        for (outside, inline) in initializers(&output).iter().zip(inline) {
            let entry = |key: &str| {
                let mut entries = outside.external_data.iter();
                entries
                    .find(|entry| entry.key == key)
                    .unwrap()
                    .value
                    .clone()
            };
            assert_eq!(entry("location"), "back.onnx.data");
            let offset: usize = entry("offset").parse().unwrap();
            let length: usize = entry("length").parse().unwrap();
            assert!(inline.raw_data.unwrap() == data[offset..offset + length]);
        }
    }

    #[test]
    fn in_memory_it_is_the_model_that_was_sealed() {
        let container = Container::read(&vectors().join("sealed.occ")).unwrap();
        let signed = container.verify_owner(&owner().public()).unwrap();
        let key = model_key(&owner(), signed.header());
        let bytes = signed.open(&key).unwrap().unsealed().unwrap();
        let plain = std::fs::read(vectors().join("plain.onnx")).unwrap();
        assert_eq!(
            ModelProto::decode(bytes.as_slice()),
            ModelProto::decode(plain.as_slice())
        );
    }

    #[test]
    fn neither_file_is_written_if_either_exists() {
        for taken in ["back.onnx", "back.onnx.data"] {
            let folder = tempfile::tempdir().unwrap();
            let taken = folder.path().join(taken);
            std::fs::write(&taken, "precious").unwrap();
            let error = unseal_outside(&folder.path().join("back.onnx")).unwrap_err();
            assert!(matches!(
                error,
                UnsealError::Output(OutputError::Exists { path }) if path == taken
            ));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
            assert_eq!(std::fs::read(&taken).unwrap(), b"precious");
        }
    }

    #[test]
    fn a_graph_too_large_for_a_protobuf_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("back.onnx");
        let sealed = vectors().join("sealed.occ");
        let error = unseal_within(100, &sealed, &output, &owner(), &mut |_| ()).unwrap_err();
        assert!(matches!(error, UnsealError::TooLarge { limit: 100, .. }));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
