//! The protobuf wire format, read through a small window.
//!
//! A hostile length is checked against the enclosing message before anything is
//! skipped or copied. See <https://protobuf.dev/programming-guides/encoding/>.

use crate::{Malformation, OnnxError, Source, limits};

/// Large enough that the metadata between two payloads takes one read.
const WINDOW: usize = 64 << 10;

/// A range of bytes in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first byte's offset.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl Span {
    pub(crate) fn end(self) -> u64 {
        self.offset + self.length
    }
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) value: Value,
    /// What follows the tag (and, where there is one, the length).
    pub(crate) body: Span,
    /// The whole field, tag included.
    pub(crate) whole: Span,
}

/// A field's value, by wire type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    Varint(u64),
    Fixed64,
    Fixed32,
    Delimited,
}

impl Field {
    fn wrong_kind(self) -> OnnxError {
        malformed(self.whole.offset, Malformation::FieldKind)
    }

    pub(crate) fn delimited(self) -> Result<Span, OnnxError> {
        match self.value {
            Value::Delimited => Ok(self.body),
            _ => Err(self.wrong_kind()),
        }
    }

    pub(crate) fn varint(self) -> Result<u64, OnnxError> {
        match self.value {
            Value::Varint(value) => Ok(value),
            _ => Err(self.wrong_kind()),
        }
    }
}

fn malformed(at: u64, reason: Malformation) -> OnnxError {
    OnnxError::Malformed { at, reason }
}

/// Moves `at` over `length` bytes of a message that ends at `end`.
fn skip(at: &mut u64, length: u64, end: u64, field: u64) -> Result<(), OnnxError> {
    if length > end - *at {
        return Err(malformed(field, Malformation::Length));
    }
    *at += length;
    Ok(())
}

/// Reads fields out of a source.
pub(crate) struct Reader<'a> {
    source: &'a dyn Source,
    window: Vec<u8>,
    start: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a dyn Source) -> Self {
        Self {
            source,
            window: Vec::new(),
            start: 0,
        }
    }

    pub(crate) fn whole(&self) -> Span {
        Span {
            offset: 0,
            length: self.source.length(),
        }
    }

    /// The field at `at`, which moves past it; `None` at the message's end.
    pub(crate) fn field(
        &mut self,
        at: &mut u64,
        message: Span,
    ) -> Result<Option<Field>, OnnxError> {
        let end = message.end();
        let start = *at;
        if start == end {
            return Ok(None);
        }
        let tag = self.varint(at, end)?;
        let number = u32::try_from(tag >> 3)
            .ok()
            .filter(|number| (1..1 << 29).contains(number))
            .ok_or_else(|| malformed(start, Malformation::FieldNumber))?;
        let mut body = *at;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint(at, end)?),
            1 => Value::Fixed64,
            2 => {
                let length = self.varint(at, end)?;
                body = *at;
                skip(at, length, end, start)?;
                Value::Delimited
            }
            5 => Value::Fixed32,
            _ => return Err(malformed(start, Malformation::WireType)),
        };
        match value {
            Value::Fixed64 => skip(at, 8, end, start)?,
            Value::Fixed32 => skip(at, 4, end, start)?,
            Value::Varint(_) | Value::Delimited => {}
        }
        Ok(Some(Field {
            number,
            value,
            body: Span {
                offset: body,
                length: *at - body,
            },
            whole: Span {
                offset: start,
                length: *at - start,
            },
        }))
    }

    /// A base-128 number that ends before `end`.
    pub(crate) fn varint(&mut self, at: &mut u64, end: u64) -> Result<u64, OnnxError> {
        let start = *at;
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            if *at >= end {
                return Err(malformed(start, Malformation::Varint));
            }
            let byte = self.byte(*at)?;
            *at += 1;
            if shift == 63 && byte > 1 {
                return Err(malformed(start, Malformation::Varint));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed(start, Malformation::Varint))
    }

    /// Text of at most [`limits::NAME`] bytes, or `None` if it is longer or not UTF-8.
    pub(crate) fn text(&mut self, span: Span) -> Result<Option<String>, OnnxError> {
        if span.length > limits::NAME {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.copy(span, &mut bytes)?;
        Ok(String::from_utf8(bytes).ok())
    }

    /// Appends the bytes of `span`, within the limit of a skeleton.
    pub(crate) fn copy(&mut self, span: Span, out: &mut Vec<u8>) -> Result<(), OnnxError> {
        let limit = limits::SKELETON;
        if span.length > limit.saturating_sub(out.len() as u64) {
            return Err(OnnxError::TooLarge { limit });
        }
        let from = out.len();
        let length = span.length as usize;
        if let Some(bytes) = self.windowed(span) {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        out.resize(from + length, 0);
        self.source.read_exact_at(&mut out[from..], span.offset)?;
        Ok(())
    }

    fn windowed(&self, span: Span) -> Option<&[u8]> {
        let from = usize::try_from(span.offset.checked_sub(self.start)?).ok()?;
        self.window
            .get(from..)?
            .get(..usize::try_from(span.length).ok()?)
    }

    fn byte(&mut self, at: u64) -> Result<u8, OnnxError> {
        let index = at.wrapping_sub(self.start);
        if index < self.window.len() as u64 {
            return Ok(self.window[index as usize]);
        }
        let length = (self.source.length() - at).min(WINDOW as u64) as usize;
        self.window.resize(length, 0);
        self.start = at;
        let read = self.source.read_exact_at(&mut self.window, at);
        if let Err(error) = read {
            self.window.clear();
            return Err(error.into());
        }
        Ok(self.window[0])
    }
}

/// Appends a base-128 number in its shortest form.
pub(crate) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends tag and length of a length-delimited field.
pub(crate) fn put_delimited(number: u32, length: u64, out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3 | 2, out);
    put_varint(length, out);
}
