//! Reads `float_data` and its kin as the bytes that `raw_data` would hold.
//!
//! Fixed-width entries are those bytes already. Base-128 ones are counted once,
//! with a mark every [`STRIDE`] entries, so that any part can be read without
//! decoding from the start and nothing grows with the tensor but the marks.

use crate::wire::{Reader, Span};
use crate::{DataType, Encoding, FoundTensor, OnnxError, Payload, Source, TensorProblem};

/// Entries between two marks: 16 bytes of marks for at least 16 KiB of entries.
const STRIDE: u64 = 16 << 10;

/// One tensor's entries, readable as raw bytes at any offset.
#[derive(Debug)]
pub struct EntryReader {
    runs: Vec<Span>,
    length: u64,
    decode: Decode,
}

#[derive(Debug)]
enum Decode {
    /// The bytes as they stand.
    Fixed,
    /// Numbers, each of which becomes `width` bytes; `marks[n]` is where entry
    /// `n * STRIDE` starts: the run's index and the offset in the source.
    Varint {
        width: u64,
        marks: Vec<(usize, u64)>,
    },
}

impl EntryReader {
    /// Checks that a tensor's entries fill its shape exactly.
    ///
    /// # Errors
    /// [`TensorProblem::DataType`] if the type is not stored in entries of this
    /// encoding (or `tensor` has none), [`TensorProblem::Length`] if they do not
    /// fill the shape; malformed numbers; reading.
    pub fn new(source: &dyn Source, tensor: &FoundTensor) -> Result<Self, OnnxError> {
        let wrong_type = || tensor.problem(TensorProblem::DataType(tensor.data_type));
        let Payload::Entries(encoding, runs) = &tensor.payload else {
            return Err(wrong_type());
        };
        let expected = tensor.byte_length()?;
        let data_type = DataType::from_number(tensor.data_type).ok_or_else(wrong_type)?;
        if Encoding::of_type(data_type) != Some(*encoding) {
            return Err(wrong_type());
        }
        let (found, decode) = if encoding.is_fixed() {
            (runs.iter().map(|run| run.length).sum(), Decode::Fixed)
        } else {
            // Elements under a byte are packed into bytes, one byte an entry.
            let width = data_type.bits().ok_or_else(wrong_type)?.div_ceil(8);
            let (count, marks) = count_entries(source, runs)?;
            (count.saturating_mul(width), Decode::Varint { width, marks })
        };
        if found != expected {
            return Err(tensor.problem(TensorProblem::Length { expected, found }));
        }
        Ok(Self {
            runs: runs.clone(),
            length: expected,
            decode,
        })
    }

    /// How many raw bytes the entries make.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `into` with raw bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` past [`EntryReader::length`]; malformed numbers (the source
    /// changed meanwhile); reading.
    pub fn read_exact_at(
        &self,
        source: &dyn Source,
        into: &mut [u8],
        offset: u64,
    ) -> Result<(), OnnxError> {
        if into.len() as u64 > self.length.saturating_sub(offset) {
            return Err(end_of_source());
        }
        match &self.decode {
            Decode::Fixed => self.read_fixed(source, into, offset),
            Decode::Varint { width, marks } => {
                self.read_varints(source, into, offset, *width, marks)
            }
        }
    }

    fn read_fixed(
        &self,
        source: &dyn Source,
        mut into: &mut [u8],
        mut offset: u64,
    ) -> Result<(), OnnxError> {
        for run in &self.runs {
            if offset >= run.length {
                offset -= run.length;
                continue;
            }
            let length = (run.length - offset).min(into.len() as u64) as usize;
            let (now, later) = into.split_at_mut(length);
            source.read_exact_at(now, run.offset + offset)?;
            (into, offset) = (later, 0);
            if into.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn read_varints(
        &self,
        source: &dyn Source,
        into: &mut [u8],
        offset: u64,
        width: u64,
        marks: &[(usize, u64)],
    ) -> Result<(), OnnxError> {
        let first = offset / width;
        let mark = first / STRIDE;
        let Some(&(mut run, mut at)) = usize::try_from(mark).ok().and_then(|mark| marks.get(mark))
        else {
            return Ok(());
        };
        let mut skip = first - mark * STRIDE;
        let mut within = (offset % width) as usize;
        let mut written = 0;
        let mut reader = Reader::new(source);
        while written < into.len() {
            let end = self.runs.get(run).ok_or_else(end_of_source)?.end();
            if at >= end {
                run += 1;
                at = self.runs.get(run).ok_or_else(end_of_source)?.offset;
                continue;
            }
            let value = reader.varint(&mut at, end)?;
            if skip > 0 {
                skip -= 1;
                continue;
            }
            // Little-endian, cut to the type's width, as every ONNX reader does.
            let bytes = value.to_le_bytes();
            let entry = &bytes[within..width as usize];
            let length = entry.len().min(into.len() - written);
            into[written..written + length].copy_from_slice(&entry[..length]);
            written += length;
            within = 0;
        }
        Ok(())
    }
}

fn end_of_source() -> OnnxError {
    OnnxError::Io(std::io::ErrorKind::UnexpectedEof.into())
}

fn count_entries(
    source: &dyn Source,
    runs: &[Span],
) -> Result<(u64, Vec<(usize, u64)>), OnnxError> {
    let mut reader = Reader::new(source);
    let mut count = 0_u64;
    let mut marks = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let mut at = run.offset;
        while at < run.end() {
            if count.is_multiple_of(STRIDE) {
                marks.push((index, at));
            }
            reader.varint(&mut at, run.end())?;
            count += 1;
        }
    }
    Ok((count, marks))
}
