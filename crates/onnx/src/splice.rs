//! Walks a model and copies it with tensors' payloads replaced or left out.
//!
//! Everything else, fields unknown here included, is copied byte by byte; only the
//! lengths of the messages around a replaced payload change. Payloads are skipped,
//! not read, so the walk costs what the graph costs, however large the weights.

use occlude_weakening::Weakening;

use crate::wire::{Field, Reader, Span, Value, put_delimited, put_varint};
use crate::{DataType, OnnxError, Source, TensorProblem, limits};

/// A tensor that the walk came upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTensor {
    /// Its place in the walk: 0, 1, 2…
    pub ordinal: u64,
    /// Its name; often empty outside initializers.
    pub name: String,
    /// The number of its element type.
    pub data_type: i32,
    /// Its extents.
    pub dims: Vec<u64>,
    /// Whether it is an initializer of the main graph.
    pub place: Place,
    /// The node of the main graph that holds it in an attribute.
    pub node: Option<u64>,
    /// Where its values are.
    pub payload: Payload,
}

impl FoundTensor {
    /// An error about this tensor.
    #[must_use]
    pub fn problem(&self, problem: TensorProblem) -> OnnxError {
        OnnxError::Tensor {
            name: self.name.clone(),
            problem,
        }
    }

    /// The bytes that type and extents ask for.
    ///
    /// # Errors
    /// [`TensorProblem::DataType`] for STRING and unknown types,
    /// [`TensorProblem::Overflow`].
    pub fn byte_length(&self) -> Result<u64, OnnxError> {
        DataType::from_number(self.data_type)
            .filter(|data_type| *data_type != DataType::String)
            .ok_or_else(|| self.problem(TensorProblem::DataType(self.data_type)))?
            .byte_length(&self.dims)
            .ok_or_else(|| self.problem(TensorProblem::Overflow))
    }
}

/// What holds a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The main graph's list of initializers.
    Initializer,
    /// Anything else: a subgraph, an attribute, a function, a sparse tensor.
    Nested,
}

/// Where a tensor's values are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nowhere: no values.
    None,
    /// In `raw_data`.
    Raw(Span),
    /// In `float_data` and its kin: see [`crate::EntryReader`].
    Entries(Encoding, Vec<Span>),
    /// In `string_data`.
    Strings,
    /// In another file.
    External(ExternalRecord),
}

/// Which field holds a tensor's values, entry by entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `float_data`: FLOAT and COMPLEX64.
    Float,
    /// `int32_data`: INT32 and everything of 16 bits or fewer.
    Int32,
    /// `int64_data`: INT64.
    Int64,
    /// `double_data`: DOUBLE and COMPLEX128.
    Double,
    /// `uint64_data`: UINT32 and UINT64.
    Uint64,
}

impl Encoding {
    fn of_field(number: u32) -> Self {
        match number {
            4 => Self::Float,
            5 => Self::Int32,
            7 => Self::Int64,
            10 => Self::Double,
            _ => Self::Uint64,
        }
    }

    /// Whether entries are little-endian as in `raw_data`, not base-128 numbers.
    pub(crate) fn is_fixed(self) -> bool {
        matches!(self, Self::Float | Self::Double)
    }

    /// Where ONNX wants the values of this type.
    pub(crate) fn of_type(data_type: DataType) -> Option<Self> {
        Some(match data_type {
            DataType::String => return None,
            DataType::Float | DataType::Complex64 => Self::Float,
            DataType::Double | DataType::Complex128 => Self::Double,
            DataType::Int64 => Self::Int64,
            DataType::Uint32 | DataType::Uint64 => Self::Uint64,
            _ => Self::Int32,
        })
    }
}

/// The record of a tensor's external data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalRecord {
    /// The file, relative to the model's folder. Not checked yet.
    pub location: String,
    /// Where the values start.
    pub offset: u64,
    /// How many bytes they take, if the record says.
    pub length: Option<u64>,
}

/// What becomes of a tensor's values in the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// They stay as they are.
    Keep,
    /// They become these bytes, as `raw_data`.
    Inline(Vec<u8>),
    /// They become a record of external data.
    External(ExternalRecord),
    /// They become `raw_data` of that many bytes, which the copy leaves out: the
    /// caller puts them in ([`Spliced::holes`]).
    Hole {
        /// How many bytes.
        length: u64,
    },
}

/// A copy of a model, perhaps with holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spliced {
    /// The copy without what belongs into the holes.
    pub bytes: Vec<u8>,
    /// The holes, in order.
    pub holes: Vec<Hole>,
}

/// Bytes that belong into a copy and are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The tensor's place in the walk.
    pub ordinal: u64,
    /// Where it is: before this byte of [`Spliced::bytes`].
    pub at: usize,
    /// How many bytes belong there.
    pub length: u64,
}

impl Spliced {
    /// The copy's length with its holes filled; `None` past 64 bits.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.holes
            .iter()
            .try_fold(self.bytes.len() as u64, |sum, hole| {
                sum.checked_add(hole.length)
            })
    }
}

/// Copies a model, asking `replace` what to do with each tensor.
///
/// # Errors
/// What `replace` returns; any [`OnnxError`] but `DuplicateInitializer`.
pub fn splice<E: From<OnnxError>>(
    source: &dyn Source,
    replace: &mut dyn FnMut(&FoundTensor) -> Result<Replacement, E>,
) -> Result<Spliced, E> {
    let reader = Reader::new(source);
    let whole = reader.whole();
    let mut walk = Walk {
        reader,
        replace,
        tensors: 0,
    };
    let top = Context {
        depth: 0,
        place: Place::Nested,
        node: None,
    };
    walk.message(Kind::Model, whole, top)
}

/// Messages that tensors may be found in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
    TrainingInfo,
    SparseTensor,
    Tensor,
}

impl Kind {
    /// The message that a field holds, if tensors may be found there.
    fn child(self, field: u32) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) | (Self::TrainingInfo, 1 | 2) => {
                Self::Graph
            }
            (Self::Model, 20) => Self::TrainingInfo,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::SparseTensor,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Graph | Self::Attribute, 5)
            | (Self::Attribute, 10)
            | (Self::SparseTensor, 1 | 2) => Self::Tensor,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy)]
struct Context {
    depth: u32,
    place: Place,
    node: Option<u64>,
}

struct Walk<'a, E> {
    reader: Reader<'a>,
    replace: &'a mut dyn FnMut(&FoundTensor) -> Result<Replacement, E>,
    tensors: u64,
}

impl<E: From<OnnxError>> Walk<'_, E> {
    fn message(&mut self, kind: Kind, span: Span, context: Context) -> Result<Spliced, E> {
        if context.depth > limits::NESTING && !occlude_weakening::is(Weakening::AnyNesting) {
            let limit = limits::NESTING;
            return Err(OnnxError::TooDeep { limit }.into());
        }
        if kind == Kind::Tensor {
            return self.tensor(span, context);
        }
        let main_graph =
            kind == Kind::Graph && context.depth == 1 && context.place == Place::Initializer;
        let mut nodes = 0;
        let mut out = Spliced::default();
        let mut at = span.offset;
        while let Some(field) = self.reader.field(&mut at, span)? {
            let Some(child) = kind.child(field.number) else {
                self.reader.copy(field.whole, &mut out.bytes)?;
                continue;
            };
            let mut below = Context {
                depth: context.depth + 1,
                ..context
            };
            if kind == Kind::Model && child == Kind::Graph {
                below.place = Place::Initializer;
            } else if !(main_graph && child == Kind::Tensor) {
                below.place = Place::Nested;
            }
            if main_graph && child == Kind::Node {
                below.node = Some(nodes);
                nodes += 1;
            }
            let inner = self.message(child, field.delimited()?, below)?;
            append(&mut out, field.number, &inner)?;
        }
        Ok(out)
    }

    fn tensor(&mut self, span: Span, context: Context) -> Result<Spliced, E> {
        let ordinal = self.tensors;
        self.tensors += 1;
        if ordinal >= limits::TENSORS {
            let limit = limits::TENSORS;
            return Err(OnnxError::TooManyTensors { limit }.into());
        }
        let tensor = self.describe(span, context, ordinal)?;
        let replacement = match tensor.payload {
            Payload::None => Replacement::Keep,
            _ => (self.replace)(&tensor)?,
        };
        let mut out = Spliced::default();
        if replacement == Replacement::Keep {
            self.reader.copy(span, &mut out.bytes)?;
            return Ok(out);
        }
        let mut replacement = Some(replacement);
        let mut at = span.offset;
        while let Some(field) = self.reader.field(&mut at, span)? {
            if !PAYLOAD_FIELDS.contains(&field.number) {
                self.reader.copy(field.whole, &mut out.bytes)?;
            } else if let Some(replacement) = replacement.take() {
                put(&replacement, ordinal, &mut out);
            }
        }
        Ok(out)
    }

    /// Reads all of a tensor but its values.
    fn describe(
        &mut self,
        span: Span,
        context: Context,
        ordinal: u64,
    ) -> Result<FoundTensor, OnnxError> {
        let mut found = FoundTensor {
            ordinal,
            name: String::new(),
            data_type: 0,
            dims: Vec::new(),
            place: context.place,
            node: context.node,
            payload: Payload::None,
        };
        let mut problem = None;
        let mut parts = Parts::default();
        let mut at = span.offset;
        while let Some(field) = self.reader.field(&mut at, span)? {
            let outcome = match field.number {
                1 => self.dims(field, &mut found.dims)?,
                2 => {
                    // An int32 travels as 64 bits, the upper ones repeating its sign.
                    found.data_type = field.varint()? as i32;
                    Ok(())
                }
                8 => match self.reader.text(field.delimited()?)? {
                    Some(name) => {
                        found.name = name;
                        Ok(())
                    }
                    None => Err(TensorProblem::Name(limits::NAME)),
                },
                _ => parts.take(field, &mut self.reader)?,
            };
            problem = problem.or(outcome.err());
        }
        match problem.map_or_else(|| parts.payload(), Err) {
            Ok(payload) => {
                found.payload = payload;
                Ok(found)
            }
            Err(problem) => Err(found.problem(problem)),
        }
    }

    fn dims(
        &mut self,
        field: Field,
        dims: &mut Vec<u64>,
    ) -> Result<Result<(), TensorProblem>, OnnxError> {
        let mut push = |value: u64| {
            if dims.len() == limits::RANK {
                return Err(TensorProblem::Rank(limits::RANK));
            }
            let extent = value as i64;
            dims.push(u64::try_from(extent).map_err(|_| TensorProblem::NegativeExtent(extent))?);
            Ok(())
        };
        if let Value::Varint(value) = field.value {
            return Ok(push(value));
        }
        let packed = field.delimited()?;
        let mut at = packed.offset;
        while at < packed.end() {
            let value = self.reader.varint(&mut at, packed.end())?;
            if let Err(problem) = push(value) {
                return Ok(Err(problem));
            }
        }
        Ok(Ok(()))
    }
}

/// The fields of a tensor that hold values or say where they are.
#[derive(Default)]
struct Parts {
    raw: Option<Span>,
    entries: Option<(Encoding, Vec<Span>)>,
    strings: bool,
    external: bool,
    record: Vec<(String, String)>,
}

/// The fields that a replacement replaces: all values, `external_data`, `data_location`.
const PAYLOAD_FIELDS: &[u32] = &[4, 5, 6, 7, 9, 10, 11, 13, 14];

impl Parts {
    fn take(
        &mut self,
        field: Field,
        reader: &mut Reader<'_>,
    ) -> Result<Result<(), TensorProblem>, OnnxError> {
        match field.number {
            4 | 5 | 7 | 10 | 11 => return self.take_entries(field),
            6 => self.strings = true,
            9 if self.raw.is_some() => return Ok(Err(TensorProblem::SeveralPayloads)),
            9 => self.raw = Some(field.delimited()?),
            13 => {
                if self.record.len() == limits::EXTERNAL_ENTRIES {
                    return Ok(Err(TensorProblem::ExternalRecord));
                }
                let Some(entry) = string_pair(reader, field.delimited()?)? else {
                    return Ok(Err(TensorProblem::Name(limits::NAME)));
                };
                self.record.push(entry);
            }
            // Truncated as protobuf's own readers truncate an enumeration, so that no
            // reader after this one sees another location.
            14 => self.external = field.varint()? as i32 == 1,
            _ => {}
        }
        Ok(Ok(()))
    }

    fn take_entries(&mut self, field: Field) -> Result<Result<(), TensorProblem>, OnnxError> {
        let encoding = Encoding::of_field(field.number);
        let run = match field.value {
            Value::Delimited => field.body,
            // One entry on its own, not packed.
            Value::Fixed32 if encoding == Encoding::Float => field.body,
            Value::Fixed64 if encoding == Encoding::Double => field.body,
            Value::Varint(_) if !encoding.is_fixed() => field.body,
            _ => return field.delimited().map(|_| Ok(())),
        };
        if run.length == 0 {
            return Ok(Ok(()));
        }
        let (first, runs) = self.entries.get_or_insert((encoding, Vec::new()));
        if *first != encoding {
            return Ok(Err(TensorProblem::SeveralPayloads));
        }
        if runs.len() == limits::RUNS {
            return Ok(Err(TensorProblem::Scattered(limits::RUNS)));
        }
        runs.push(run);
        Ok(Ok(()))
    }

    fn payload(self) -> Result<Payload, TensorProblem> {
        let inline = u8::from(self.raw.is_some())
            + u8::from(self.entries.is_some())
            + u8::from(self.strings);
        if inline + u8::from(self.external) > 1 {
            return Err(TensorProblem::SeveralPayloads);
        }
        let payload = if self.external {
            Payload::External(external_record(self.record)?)
        } else if let Some(span) = self.raw {
            Payload::Raw(span)
        } else if let Some((encoding, runs)) = self.entries {
            Payload::Entries(encoding, runs)
        } else if self.strings {
            Payload::Strings
        } else {
            Payload::None
        };
        Ok(payload)
    }
}

fn string_pair(reader: &mut Reader<'_>, span: Span) -> Result<Option<(String, String)>, OnnxError> {
    let (mut key, mut value) = (Some(String::new()), Some(String::new()));
    let mut at = span.offset;
    while let Some(field) = reader.field(&mut at, span)? {
        match field.number {
            1 => key = reader.text(field.delimited()?)?,
            2 => value = reader.text(field.delimited()?)?,
            _ => {}
        }
    }
    Ok(key.zip(value))
}

fn external_record(entries: Vec<(String, String)>) -> Result<ExternalRecord, TensorProblem> {
    let (mut location, mut offset, mut length) = (None, 0, None);
    let number = |text: &str| text.parse().map_err(|_| TensorProblem::ExternalRecord);
    for (key, value) in entries {
        match key.as_str() {
            "location" => location = Some(value),
            "offset" => offset = number(&value)?,
            "length" => length = Some(number(&value)?),
            // `checksum` (SHA-1, optional) and whatever else a writer adds.
            _ => {}
        }
    }
    Ok(ExternalRecord {
        location: location.ok_or(TensorProblem::ExternalRecord)?,
        offset,
        length,
    })
}

/// Appends `inner` as a field of `out`.
fn append(out: &mut Spliced, number: u32, inner: &Spliced) -> Result<(), OnnxError> {
    let limit = limits::SKELETON;
    let length = inner.length().ok_or(OnnxError::TooLarge { limit })?;
    put_delimited(number, length, &mut out.bytes);
    let from = out.bytes.len();
    if inner.bytes.len() as u64 > limit.saturating_sub(from as u64) {
        return Err(OnnxError::TooLarge { limit });
    }
    out.bytes.extend_from_slice(&inner.bytes);
    out.holes.extend(inner.holes.iter().map(|hole| Hole {
        at: hole.at + from,
        ..*hole
    }));
    Ok(())
}

/// Appends what takes a payload's place.
fn put(replacement: &Replacement, ordinal: u64, out: &mut Spliced) {
    match replacement {
        Replacement::Keep => {}
        Replacement::Inline(bytes) => {
            put_delimited(9, bytes.len() as u64, &mut out.bytes);
            out.bytes.extend_from_slice(bytes);
        }
        Replacement::Hole { length } => {
            put_delimited(9, *length, &mut out.bytes);
            out.holes.push(Hole {
                ordinal,
                at: out.bytes.len(),
                length: *length,
            });
        }
        Replacement::External(record) => {
            put_pair("location", &record.location, &mut out.bytes);
            put_pair("offset", &record.offset.to_string(), &mut out.bytes);
            if let Some(length) = record.length {
                put_pair("length", &length.to_string(), &mut out.bytes);
            }
            // data_location (14) = EXTERNAL (1)
            put_varint(14 << 3, &mut out.bytes);
            put_varint(1, &mut out.bytes);
        }
    }
}

fn put_pair(key: &str, value: &str, out: &mut Vec<u8>) {
    let mut entry = Vec::new();
    for (number, text) in [(1, key), (2, value)] {
        put_delimited(number, text.len() as u64, &mut entry);
        entry.extend_from_slice(text.as_bytes());
    }
    put_delimited(13, entry.len() as u64, out);
    out.extend_from_slice(&entry);
}
