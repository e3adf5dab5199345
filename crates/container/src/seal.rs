//! Sealing: a model in, a container out, in constant memory.
//!
//! Several threads read, encrypt and hash chunks; one at a time writes.
//! Whatever fails, no output file remains.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use occlude_keys::{ModelId, ModelVersion, OwnerKey, Salt};
use occlude_onnx::OnnxError;

use crate::chunk::{self, ChunkCipher, ChunkDigest};
use crate::format::{HEADER_LENGTH, Layout, MAX_CHUNKS};
use crate::header::Draft;
use crate::input::Plaintext;
use crate::{ChunkSize, Header, OutputError, Progress, new_file, parallel};

/// What the owner decides about a sealed model.
#[derive(Debug, Clone)]
pub struct SealOptions {
    /// The public id.
    pub id: ModelId,
    /// The version, 1 or more.
    pub version: ModelVersion,
    /// Plaintext bytes of each chunk.
    pub chunk_size: ChunkSize,
    /// What is sealed with it, of use to those who may open it.
    pub metadata: Metadata,
}

/// What an owner seals with a model. It is encrypted and authenticated as the graph is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Each entry by its name. A program that does not know one refuses the model.
    pub entries: BTreeMap<String, String>,
    /// Outputs of the model that the entries speak of.
    pub outputs: Vec<String>,
}

/// What sealing made.
#[derive(Debug)]
pub struct Sealed {
    /// The container's header.
    pub header: Header,
}

/// Why a model could not be sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The file is not an ONNX model.
    #[error(transparent)]
    NotOnnx(OnnxError),
    /// It is one, with something in it that cannot be sealed.
    #[error("the model cannot be sealed: {0}")]
    Model(OnnxError),
    /// The runtime does not know the model's operators.
    #[error(
        "the model's operator set is {}: versions {lowest} to {highest} are supported",
        found.map_or_else(|| "not stated".to_owned(), |found| format!("version {found}"))
    )]
    UnsupportedOpset {
        /// The version that the model imports, if any.
        found: Option<i64>,
        /// The lowest supported.
        lowest: i64,
        /// The highest supported.
        highest: i64,
    },
    /// A file of external data is not there.
    #[error("tensor {tensor:?}: its external data {} is missing", path.display())]
    MissingExternalData {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
    },
    /// A file of external data is too short.
    #[error("tensor {tensor:?}: its external data {} ends {missing} bytes early", path.display())]
    TruncatedExternalData {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// How many bytes are missing.
        missing: u64,
    },
    /// External data outside the model's folder.
    #[error(
        "tensor {tensor:?}: its external data {location:?} lies outside the model's folder \
         (absolute paths, `..` and symbolic links that leave it are refused)"
    )]
    EscapingPath {
        /// The tensor.
        tensor: String,
        /// The path in the model.
        location: String,
    },
    /// The model or its external data is a folder, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// A file changed while it was being sealed.
    #[error("{} changed while it was being sealed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The model version is 0.
    #[error("model version 0: versions start at 1")]
    VersionZero,
    /// The chunks are too many.
    #[error("the model takes {chunks} chunks, {limit} are possible: choose a larger chunk size")]
    TooManyChunks {
        /// How many it takes.
        chunks: u64,
        /// The most.
        limit: u64,
    },
    /// The metadata speaks of an output that is not there.
    #[error("the model has no output {output:?}: it has {}", known.join(", "))]
    NoOutput {
        /// The output.
        output: String,
        /// Those that the model has.
        known: Vec<String>,
    },
    /// The index cannot be written.
    #[error("the index of the tensors: {reason}")]
    Index {
        /// Why.
        reason: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The container could not be written: the disk is full, perhaps.
    #[error("writing the sealed model: {0}")]
    Write(io::Error),
    /// The output file could not be made.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl SealError {
    pub(crate) fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    /// Names the file that could not be read.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Model(OnnxError::Io(source)) => Self::read(path)(source),
            other => other,
        }
    }
}

/// Seals `model` into `sink`, from the sink's present position on.
///
/// The header is written last, so that what a failure leaves in the sink is no
/// container. `progress` hears of plaintext bytes.
///
/// # Errors
/// [`SealError`]; [`SealError::Write`] if the sink fails.
pub fn seal<W: Write + Seek>(
    model: &Path,
    sink: &mut W,
    key: &OwnerKey,
    options: &SealOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Sealed, SealError> {
    seal_with_salt(model, sink, key, options, &Salt::generate(), progress)
}

/// Seals `model` into the new file `output`, which appears only when it is complete.
///
/// # Errors
/// [`SealError`]; [`OutputError::Exists`] if `output` exists and is not a character
/// device such as `/dev/null`.
pub fn seal_file(
    model: &Path,
    output: &Path,
    key: &OwnerKey,
    options: &SealOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Sealed, SealError> {
    new_file::create(output, |file| {
        let plaintext = survey(model, options)?;
        let layout = layout(&plaintext, options)?;
        new_file::reserve(file, layout.file_length()).map_err(SealError::Write)?;
        let salt = Salt::generate();
        seal_plaintext(&plaintext, file, key, options, &salt, &mut |file, job| {
            write_in_place(file, job, progress)
        })
    })
}

/// [`seal`] with a salt that the caller chooses. Sealing two models with one salt,
/// id and version would use one key twice: only for the published test vector.
pub(crate) fn seal_with_salt<W: Write + Seek>(
    model: &Path,
    sink: &mut W,
    key: &OwnerKey,
    options: &SealOptions,
    salt: &Salt,
    progress: &mut dyn FnMut(Progress),
) -> Result<Sealed, SealError> {
    let plaintext = survey(model, options)?;
    seal_in_order(&plaintext, sink, key, options, salt, progress)
}

/// Seals into any sink.
pub(crate) fn seal_in_order<W: Write + Seek>(
    plaintext: &Plaintext,
    sink: &mut W,
    key: &OwnerKey,
    options: &SealOptions,
    salt: &Salt,
    progress: &mut dyn FnMut(Progress),
) -> Result<Sealed, SealError> {
    seal_plaintext(plaintext, sink, key, options, salt, &mut |sink, job| {
        write_in_order(sink, job, progress)
    })
}

fn survey(model: &Path, options: &SealOptions) -> Result<Plaintext, SealError> {
    if options.version == 0 {
        return Err(SealError::VersionZero);
    }
    Plaintext::survey(model, &options.metadata)
}

fn layout(plaintext: &Plaintext, options: &SealOptions) -> Result<Layout, SealError> {
    let chunk_size = options.chunk_size;
    let chunks = plaintext.length().div_ceil(u64::from(chunk_size.bytes()));
    if chunks > MAX_CHUNKS {
        let limit = MAX_CHUNKS;
        return Err(SealError::TooManyChunks { chunks, limit });
    }
    Ok(Layout {
        chunk_size,
        chunk_count: chunks,
    })
}

/// What the chunks are made of.
struct ChunkJob<'a> {
    plaintext: &'a Plaintext,
    layout: Layout,
    cipher: &'a ChunkCipher,
}

/// Writes all chunks from the sink's position on, leaves the position behind them
/// and returns their digests.
type WriteChunks<'a, W> =
    dyn FnMut(&mut W, &ChunkJob<'_>) -> Result<Vec<ChunkDigest>, SealError> + 'a;

fn seal_plaintext<W: Write + Seek>(
    plaintext: &Plaintext,
    sink: &mut W,
    key: &OwnerKey,
    options: &SealOptions,
    salt: &Salt,
    write_chunks: &mut WriteChunks<'_, W>,
) -> Result<Sealed, SealError> {
    let layout = layout(plaintext, options)?;
    let draft = Draft::new(layout, &options.id, options.version, &key.public(), salt);
    let model_key = key.model_key(salt, &options.id, options.version);
    let (cipher, commitment) = ChunkCipher::new(&model_key, draft.context());
    let start = sink.stream_position().map_err(SealError::Write)?;
    sink.write_all(&[0; HEADER_LENGTH])
        .map_err(SealError::Write)?;
    let job = ChunkJob {
        plaintext,
        layout,
        cipher: &cipher,
    };
    let digests = write_chunks(sink, &job)?;
    let header = draft.sign(key, &commitment, &chunk::root(&digests));
    let finish = |sink: &mut W| {
        sink.write_all(digests.as_flattened())?;
        sink.seek(SeekFrom::Start(start))?;
        sink.write_all(&header.to_bytes())?;
        sink.seek(SeekFrom::Start(start + layout.file_length()))?;
        sink.flush()
    };
    finish(sink).map_err(SealError::Write)?;
    Ok(Sealed { header })
}

impl ChunkJob<'_> {
    /// Reads, encrypts and hashes one chunk.
    fn seal_chunk(&self, index: u64, buffer: &mut [u8]) -> Result<ChunkDigest, SealError> {
        let size = self.layout.chunk_size.length();
        self.plaintext
            .read_at(index * size as u64, &mut buffer[..size])?;
        self.cipher.seal(index, buffer);
        Ok(chunk::digest(buffer))
    }

    fn progress(&self, chunks_done: u64) -> Progress {
        let total = self.plaintext.length();
        let done = (chunks_done * u64::from(self.layout.chunk_size.bytes())).min(total);
        Progress { done, total }
    }
}

/// For any sink: chunks are made in parallel and written one after the other.
fn write_in_order(
    sink: &mut impl Write,
    job: &ChunkJob<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<ChunkDigest>, SealError> {
    // At most MAX_CHUNKS, checked above.
    let mut digests = Vec::with_capacity(job.layout.chunk_count as usize);
    parallel::in_order(
        job.layout.chunk_count,
        job.layout.sealed_chunk_length(),
        &|index, buffer| job.seal_chunk(index, buffer),
        &mut |index, chunk, digest| {
            sink.write_all(chunk).map_err(SealError::Write)?;
            digests.push(digest);
            progress(job.progress(index + 1));
            Ok(())
        },
    )?;
    Ok(digests)
}

/// For files: chunks are written where they belong, in whatever order they are made.
/// One thread writes at a time, since the file system lets only one write to a file:
/// others would spin until it is their turn.
fn write_in_place(
    file: &mut File,
    job: &ChunkJob<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<ChunkDigest>, SealError> {
    let start = file.stream_position().map_err(SealError::Write)?;
    let length = job.layout.sealed_chunk_length();
    let shared = &*file;
    let digests = parallel::put_one_at_a_time(
        job.layout.chunk_count,
        length,
        &|index, buffer| job.seal_chunk(index, buffer),
        &|index, chunk| {
            shared
                .write_all_at(chunk, start + index * length as u64)
                .map_err(SealError::Write)
        },
        &mut |done| progress(job.progress(done)),
    )?;
    let end = start + job.layout.chunk_count * length as u64;
    file.seek(SeekFrom::Start(end)).map_err(SealError::Write)?;
    progress(job.progress(job.layout.chunk_count));
    Ok(digests)
}
