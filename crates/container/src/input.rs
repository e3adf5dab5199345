//! The model to be sealed: which bytes of the plaintext come from where.
//!
//! One walk finds the tensors, one writes the skeleton with their final places;
//! neither reads a payload. Then any part of the plaintext can be read on its own,
//! by several threads, from where it lies: the model's file, its external data, or
//! memory.
//!
//! The model may come from anywhere, so external data must lie in its folder.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use occlude_onnx::{
    EntryReader, ExternalRecord, FileSource, FoundTensor, OnnxError, Outline, Payload, Place,
    Replacement, Source, TensorProblem, splice,
};

use occlude_weakening::{Weakening, is};

use crate::format::{
    ALIGNMENT, HIGHEST_OPSET, LOWEST_OPSET, MAX_INDEX, PAYLOAD_LOCATION, PRELUDE_LENGTH,
    SMALLEST_EXTRACTED,
};
use crate::new_file::folder_of;
use crate::{Index, Metadata, SealError, TensorEntry, TensorPlace};

/// Files of external data kept open: some exporters write one for each tensor.
const OPEN_FILES: usize = 32;

/// A surveyed model, readable as the plaintext of a container.
pub(crate) struct Plaintext {
    files: Files,
    /// Prelude, index and skeleton.
    start: Vec<u8>,
    /// In order; what lies between two is zero.
    segments: Vec<Segment>,
    length: u64,
}

struct Segment {
    start: u64,
    length: u64,
    from: Origin,
}

enum Origin {
    File { file: usize, offset: u64 },
    Entries(EntryReader),
}

/// A tensor that leaves the graph.
struct Extracted {
    ordinal: u64,
    /// When the graph first uses it; unused ones come last.
    order: (u64, u64),
    entry: TensorEntry,
    from: Origin,
}

impl Plaintext {
    /// Surveys a model that is sealed with this metadata.
    pub(crate) fn survey(path: &Path, metadata: &Metadata) -> Result<Self, SealError> {
        let folder = folder_of(path);
        let folder = folder.canonicalize().map_err(SealError::read(folder))?;
        let mut files = Files::new(path)?;
        let model = files.open(MODEL)?;
        let mut extracted: Vec<Extracted> = Vec::new();
        let mut small = HashMap::new();
        let draft = splice::<SealError>(&*model, &mut |tensor| {
            let Some(found) = locate(tensor, &model, &folder, &mut files)? else {
                return Ok(Replacement::Keep);
            };
            if found.entry.length < SMALLEST_EXTRACTED {
                let bytes = read_small(&found, &files, &model)?;
                small.insert(tensor.ordinal, bytes.clone());
                return Ok(Replacement::Inline(bytes));
            }
            let record = record_of(&found.entry);
            extracted.push(found);
            Ok(record)
        })
        .map_err(|error| error.in_file(path))?;
        let outline = Outline::decode(&draft.bytes)?;
        drop(draft);
        check_opset(&outline)?;
        check_outputs(&outline, metadata)?;
        let order = place(&mut extracted, &outline);
        let skeleton = splice::<SealError>(&*model, &mut |tensor| {
            Ok(match order.get(&tensor.ordinal) {
                Some(&place) => record_of(&extracted[place].entry),
                None => small
                    .remove(&tensor.ordinal)
                    .map_or(Replacement::Keep, Replacement::Inline),
            })
        })
        .map_err(|error| error.in_file(path))?;
        Self::assemble(files, extracted, &skeleton.bytes, metadata)
    }

    fn assemble(
        files: Files,
        extracted: Vec<Extracted>,
        skeleton: &[u8],
        metadata: &Metadata,
    ) -> Result<Self, SealError> {
        let (tensors, sources): (Vec<_>, Vec<_>) = extracted
            .into_iter()
            .map(|tensor| (tensor.entry, tensor.from))
            .unzip();
        let index = Index {
            tensors,
            metadata: metadata.entries.clone(),
        };
        let json = serde_json::to_vec(&index).map_err(|error| SealError::Index {
            reason: error.to_string(),
        })?;
        if json.len() as u64 > MAX_INDEX {
            return Err(SealError::Index {
                reason: format!("it exceeds {MAX_INDEX} bytes"),
            });
        }
        let mut start = Vec::with_capacity(PRELUDE_LENGTH as usize + json.len() + skeleton.len());
        start.extend_from_slice(&(json.len() as u64).to_le_bytes());
        start.extend_from_slice(&(skeleton.len() as u64).to_le_bytes());
        start.extend_from_slice(&json);
        start.extend_from_slice(skeleton);
        let data_start = (start.len() as u64).next_multiple_of(ALIGNMENT);
        let segments = index
            .tensors
            .iter()
            .zip(sources)
            .map(|(entry, from)| Segment {
                start: data_start + entry.offset,
                length: entry.length,
                from,
            })
            .collect();
        let length = match index.data_length() {
            0 => start.len() as u64,
            data => data_start + data,
        };
        Ok(Self {
            files,
            start,
            segments,
            length,
        })
    }

    /// Contents that no model gives, to see them refused.
    #[cfg(test)]
    pub(crate) fn of_bytes(start: Vec<u8>) -> Self {
        Self {
            files: Files {
                paths: Vec::new(),
                numbers: HashMap::new(),
                lengths: Mutex::default(),
                opened: Mutex::default(),
            },
            length: start.len() as u64,
            start,
            segments: Vec::new(),
        }
    }

    /// Bytes up to the end of the last tensor.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `into` with the plaintext from `offset` on; zeros past its end.
    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), SealError> {
        let end = offset + into.len() as u64;
        let mut at = offset;
        // The part of `into` for plaintext from `from` to `to`, and zeros before it.
        let mut part = |from: u64, to: u64| -> std::ops::Range<usize> {
            let (from, to) = (from.clamp(at, end), to.clamp(at, end));
            into[(at - offset) as usize..(from - offset) as usize].fill(0);
            at = to;
            (from - offset) as usize..(to - offset) as usize
        };
        let mut reads = Vec::new();
        let start_length = self.start.len() as u64;
        if offset < start_length {
            reads.push((part(0, start_length), None));
        }
        let first = self
            .segments
            .partition_point(|segment| segment.start + segment.length <= offset);
        for segment in &self.segments[first..] {
            if segment.start >= end {
                break;
            }
            let range = part(segment.start, segment.start + segment.length);
            reads.push((range, Some(segment)));
        }
        part(end, end);
        for (range, segment) in reads {
            let from = offset + range.start as u64;
            let target = &mut into[range];
            match segment {
                // Within `start`, by construction.
                None => target.copy_from_slice(&self.start[from as usize..][..target.len()]),
                Some(segment) => self.read_segment(segment, from - segment.start, target)?,
            }
        }
        Ok(())
    }

    fn read_segment(&self, segment: &Segment, skip: u64, into: &mut [u8]) -> Result<(), SealError> {
        match &segment.from {
            Origin::File { file, offset } => self.files.read(*file, offset + skip, into),
            Origin::Entries(entries) => {
                let model = self.files.open(MODEL)?;
                entries
                    .read_exact_at(&*model, into, skip)
                    .map_err(|_| self.files.changed(MODEL))
            }
        }
    }
}

/// Where a tensor's values are, if they are to be taken out or were elsewhere.
fn locate(
    tensor: &FoundTensor,
    model: &FileSource,
    folder: &Path,
    files: &mut Files,
) -> Result<Option<Extracted>, SealError> {
    let (from, found) = match &tensor.payload {
        Payload::None | Payload::Strings => return Ok(None),
        Payload::Raw(span) if span.length < SMALLEST_EXTRACTED => return Ok(None),
        Payload::Raw(span) => {
            let offset = span.offset;
            (
                Origin::File {
                    file: MODEL,
                    offset,
                },
                span.length,
            )
        }
        Payload::Entries(..) => {
            if tensor.byte_length()? < SMALLEST_EXTRACTED {
                return Ok(None);
            }
            let entries = EntryReader::new(model, tensor)?;
            let length = entries.length();
            (Origin::Entries(entries), length)
        }
        Payload::External(record) => locate_external(tensor, record, folder, files)?,
    };
    let expected = tensor.byte_length()?;
    if found != expected {
        let problem = TensorProblem::Length { expected, found };
        return Err(tensor.problem(problem).into());
    }
    Ok(Some(Extracted {
        ordinal: tensor.ordinal,
        order: (tensor.node.unwrap_or(u64::MAX), u64::MAX),
        entry: TensorEntry {
            name: tensor.name.clone(),
            place: match tensor.place {
                Place::Initializer => TensorPlace::Initializer,
                Place::Nested => TensorPlace::Nested,
            },
            data_type: tensor.data_type,
            dims: tensor.dims.clone(),
            offset: 0,
            length: expected,
        },
        from,
    }))
}

fn locate_external(
    tensor: &FoundTensor,
    record: &ExternalRecord,
    folder: &Path,
    files: &mut Files,
) -> Result<(Origin, u64), SealError> {
    let file = files.add(&resolve(tensor, &record.location, folder)?);
    let source = files.open(file)?;
    let length = match record.length {
        Some(length) => length,
        None => tensor.byte_length()?,
    };
    let end = record.offset.saturating_add(length);
    if end > source.length() {
        return Err(SealError::TruncatedExternalData {
            tensor: tensor.name.clone(),
            path: files.paths[file].clone(),
            missing: end - source.length(),
        });
    }
    let offset = record.offset;
    Ok((Origin::File { file, offset }, length))
}

/// Finds a file of external data, which must lie in the model's `folder` (canonical).
fn resolve(tensor: &FoundTensor, location: &str, folder: &Path) -> Result<PathBuf, SealError> {
    let escapes = || SealError::EscapingPath {
        tensor: tensor.name.clone(),
        location: location.to_owned(),
    };
    if is(Weakening::AnyPath) {
        let path = folder.join(location);
        return path.canonicalize().map_err(SealError::read(&path));
    }
    let mut normal = 0;
    for component in Path::new(location).components() {
        match component {
            Component::Normal(_) => normal += 1,
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(escapes());
            }
        }
    }
    if normal == 0 {
        return Err(escapes());
    }
    let path = folder.join(location);
    let resolved = path.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SealError::MissingExternalData {
            tensor: tensor.name.clone(),
            path: path.clone(),
        },
        _ => SealError::read(&path)(source),
    })?;
    // A symbolic link may have led elsewhere.
    if !resolved.starts_with(folder) {
        return Err(escapes());
    }
    Ok(resolved)
}

fn read_small(found: &Extracted, files: &Files, model: &FileSource) -> Result<Vec<u8>, SealError> {
    // Below SMALLEST_EXTRACTED.
    let mut bytes = vec![0; found.entry.length as usize];
    match &found.from {
        Origin::File { file, offset } => files.read(*file, *offset, &mut bytes)?,
        Origin::Entries(entries) => entries.read_exact_at(model, &mut bytes, 0)?,
    }
    Ok(bytes)
}

fn record_of(entry: &TensorEntry) -> Replacement {
    Replacement::External(ExternalRecord {
        location: PAYLOAD_LOCATION.to_owned(),
        offset: entry.offset,
        length: Some(entry.length),
    })
}

fn check_opset(outline: &Outline) -> Result<(), SealError> {
    let found = outline
        .opset_import
        .iter()
        .filter(|set| matches!(set.domain.as_str(), "" | "ai.onnx"))
        .map(|set| set.version)
        .max();
    // A model of other operator sets only (`ai.onnx.ml`, `com.microsoft`) is fine.
    let only_others = found.is_none() && !outline.opset_import.is_empty();
    if only_others || found.is_some_and(|found| (LOWEST_OPSET..=HIGHEST_OPSET).contains(&found)) {
        return Ok(());
    }
    Err(SealError::UnsupportedOpset {
        found,
        lowest: LOWEST_OPSET,
        highest: HIGHEST_OPSET,
    })
}

fn check_outputs(outline: &Outline, metadata: &Metadata) -> Result<(), SealError> {
    let missing = metadata
        .outputs
        .iter()
        .find(|output| !outline.outputs.contains(output));
    match missing {
        None => Ok(()),
        Some(output) => Err(SealError::NoOutput {
            output: output.clone(),
            known: outline.outputs.clone(),
        }),
    }
}

/// Sorts by first use and gives each tensor its place; returns, for each ordinal of
/// the walk, the tensor's place in the list.
fn place(extracted: &mut [Extracted], outline: &Outline) -> HashMap<u64, usize> {
    for tensor in extracted.iter_mut() {
        if tensor.entry.place == TensorPlace::Initializer {
            let first_use = outline.first_use.get(&tensor.entry.name);
            tensor.order = first_use.copied().unwrap_or((u64::MAX, u64::MAX));
        }
    }
    extracted.sort_by_key(|tensor| (tensor.order, tensor.ordinal));
    let mut end = 0_u64;
    let mut places = HashMap::new();
    for (place, tensor) in extracted.iter_mut().enumerate() {
        tensor.entry.offset = end.next_multiple_of(ALIGNMENT);
        end = tensor.entry.offset + tensor.entry.length;
        places.insert(tensor.ordinal, place);
    }
    places
}

/// The model's own file among [`Files`].
const MODEL: usize = 0;

/// The files that a model is read from. A few stay open; others are opened again
/// when needed, and must have kept their length.
struct Files {
    paths: Vec<PathBuf>,
    numbers: HashMap<PathBuf, usize>,
    lengths: Mutex<HashMap<usize, u64>>,
    opened: Mutex<VecDeque<(usize, Arc<FileSource>)>>,
}

impl Files {
    fn new(model: &Path) -> Result<Self, SealError> {
        let files = Self {
            paths: vec![model.to_owned()],
            numbers: HashMap::new(),
            lengths: Mutex::default(),
            opened: Mutex::default(),
        };
        files.open(MODEL)?;
        Ok(files)
    }

    /// The file's number, a new one or the one that it has.
    fn add(&mut self, path: &Path) -> usize {
        let next = self.paths.len();
        let number = *self.numbers.entry(path.to_owned()).or_insert(next);
        if number == next {
            self.paths.push(path.to_owned());
        }
        number
    }

    fn open(&self, file: usize) -> Result<Arc<FileSource>, SealError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, source)) = opened.iter().find(|(number, _)| *number == file) {
            return Ok(Arc::clone(source));
        }
        let path = &self.paths[file];
        // Opening a pipe would wait for a writer.
        let metadata = path.metadata().map_err(SealError::read(path))?;
        if !metadata.is_file() {
            let path = path.clone();
            return Err(SealError::NotAFile { path });
        }
        let source = File::open(path)
            .and_then(FileSource::new)
            .map_err(SealError::read(path))?;
        let mut lengths = self.lengths.lock().unwrap_or_else(PoisonError::into_inner);
        if *lengths.entry(file).or_insert(source.length()) != source.length() {
            return Err(self.changed(file));
        }
        let source = Arc::new(source);
        if opened.len() == OPEN_FILES {
            // Never the model's own: it is in use all the time.
            opened.remove(1);
        }
        opened.push_back((file, Arc::clone(&source)));
        Ok(source)
    }

    fn read(&self, file: usize, offset: u64, into: &mut [u8]) -> Result<(), SealError> {
        self.open(file)?
            .read_exact_at(into, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.changed(file),
                _ => SealError::read(&self.paths[file])(error),
            })
    }

    fn changed(&self, file: usize) -> SealError {
        SealError::Changed {
            path: self.paths[file].clone(),
        }
    }
}

impl From<OnnxError> for SealError {
    fn from(error: OnnxError) -> Self {
        match error {
            OnnxError::Malformed { .. } | OnnxError::NotAModel { .. } => Self::NotOnnx(error),
            error => Self::Model(error),
        }
    }
}
