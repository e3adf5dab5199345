//! JSON tensor data, read straight into little-endian elements.
//!
//! The text was already checked to be JSON; here its elements are counted,
//! typed and ranged. No tree of values is made: that would take sixteen times the
//! text, and the text is the attacker's. Numbers are parsed from their own digits
//! into the type asked for, so that no value is rounded twice.

use std::borrow::Cow;

use zeroize::{Zeroize, Zeroizing};

use crate::tensor::element_count;
use crate::{DataType, Element, MAXIMUM_RANK, TensorError};

/// Reads a `shape`: an array of whole numbers of at least zero.
pub(crate) fn shape(json: &str) -> Result<Vec<u64>, TensorError> {
    let mut tokens = Tokens::new(json);
    if tokens.next() != Some(Token::Open) {
        return Err(TensorError::ShapeNotIntegers);
    }
    let mut shape = Vec::new();
    loop {
        match tokens.next() {
            Some(Token::Scalar(text)) => {
                if shape.len() == MAXIMUM_RANK {
                    return Err(TensorError::RankTooLarge);
                }
                shape.push(dimension(text, shape.len())?);
            }
            Some(Token::Close) => return Ok(shape),
            _ => return Err(TensorError::ShapeNotIntegers),
        }
    }
}

fn dimension(text: &str, dimension: usize) -> Result<u64, TensorError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !is_integer(digits) {
        return Err(TensorError::ShapeNotIntegers);
    }
    if digits.len() < text.len() {
        return Err(TensorError::NegativeDimension { dimension });
    }
    text.parse()
        .map_err(|_| TensorError::DimensionOverflow { dimension })
}

/// Reads `data`: a flat array in row-major order, or arrays nested as the shape says.
pub(crate) fn data(
    json: &str,
    datatype: DataType,
    shape: &[u64],
) -> Result<Zeroizing<Vec<u8>>, TensorError> {
    if !datatype.has_json_form() {
        return Err(TensorError::NeedsBinary { datatype });
    }
    let expected = element_count(datatype, shape)?;
    let mut tokens = Tokens::new(json);
    if tokens.next() != Some(Token::Open) {
        return Err(TensorError::DataNotArray);
    }
    // Each element takes a character and, but for the last, a comma.
    let room = expected.min(json.len() / 2 + 1);
    let capacity = match datatype.size() {
        Some(size) => room * size,
        // A string's bytes are no more than its text; its quotes and comma, all but one byte of
        // the length before it.
        None => json.len() + room * 4,
    };
    let mut reader = Reader {
        datatype,
        shape,
        expected,
        found: 0,
        data: Zeroizing::new(Vec::with_capacity(capacity)),
    };
    let mut rest = tokens.clone();
    if shape.len() > 1 && rest.next() == Some(Token::Open) {
        reader.nested(&mut tokens)?;
    } else {
        reader.flat(&mut tokens)?;
    }
    Ok(reader.data)
}

struct Reader<'a> {
    datatype: DataType,
    shape: &'a [u64],
    expected: usize,
    found: usize,
    data: Zeroizing<Vec<u8>>,
}

impl Reader<'_> {
    fn flat(&mut self, tokens: &mut Tokens<'_>) -> Result<(), TensorError> {
        loop {
            match tokens.next() {
                Some(Token::Scalar(text)) => self.element(text)?,
                Some(Token::Close) | None => break,
                Some(Token::Open | Token::Object) => return Err(self.mixed()),
            }
        }
        if self.found == self.expected {
            Ok(())
        } else {
            Err(self.count(self.found))
        }
    }

    fn nested(&mut self, tokens: &mut Tokens<'_>) -> Result<(), TensorError> {
        // The items seen so far in each array that is open; the outermost is.
        let mut counts = [0_u64; MAXIMUM_RANK];
        let mut depth = 0;
        loop {
            let token = tokens.next();
            if let Some(Token::Close) | None = token {
                if counts[depth] != self.shape[depth] {
                    return Err(self.nesting(depth, counts[depth]));
                }
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
                continue;
            }
            counts[depth] += 1;
            if counts[depth] > self.shape[depth] {
                return Err(self.nesting(depth, counts[depth]));
            }
            let innermost = depth + 1 == self.shape.len();
            match token {
                Some(Token::Open) if !innermost => {
                    depth += 1;
                    counts[depth] = 0;
                }
                Some(Token::Scalar(text)) if innermost => self.element(text)?,
                _ => return Err(self.mixed()),
            }
        }
    }

    fn element(&mut self, text: &str) -> Result<(), TensorError> {
        if self.found == self.expected {
            return Err(self.count(self.found + 1));
        }
        match self.datatype {
            DataType::Bool => match text {
                "true" => self.data.push(1),
                "false" => self.data.push(0),
                _ => return Err(self.kind()),
            },
            DataType::Uint8 => self.integer::<u8>(text)?,
            DataType::Uint16 => self.integer::<u16>(text)?,
            DataType::Uint32 => self.integer::<u32>(text)?,
            DataType::Uint64 => self.integer::<u64>(text)?,
            DataType::Int8 => self.integer::<i8>(text)?,
            DataType::Int16 => self.integer::<i16>(text)?,
            DataType::Int32 => self.integer::<i32>(text)?,
            DataType::Int64 => self.integer::<i64>(text)?,
            DataType::Fp32 => self.float::<f32>(text, f32::is_finite)?,
            DataType::Fp64 => self.float::<f64>(text, f64::is_finite)?,
            DataType::Bytes => self.string(text)?,
            DataType::Fp16 | DataType::Bf16 => {
                return Err(TensorError::NeedsBinary {
                    datatype: self.datatype,
                });
            }
        }
        self.found += 1;
        Ok(())
    }

    fn integer<T: Element + std::str::FromStr>(&mut self, text: &str) -> Result<(), TensorError> {
        if !is_integer(text.strip_prefix('-').unwrap_or(text)) {
            return Err(self.kind());
        }
        let text = if text == "-0" { "0" } else { text };
        let value: T = text.parse().map_err(|_| self.range())?;
        value.append(&mut self.data);
        Ok(())
    }

    fn float<T: Element + std::str::FromStr>(
        &mut self,
        text: &str,
        is_finite: impl FnOnce(T) -> bool,
    ) -> Result<(), TensorError> {
        if !text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
            return Err(self.kind());
        }
        let value: T = text.parse().map_err(|_| self.kind())?;
        if !is_finite(value) {
            return Err(self.range());
        }
        value.append(&mut self.data);
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), TensorError> {
        let inner = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
            .ok_or_else(|| self.kind())?;
        let mut value = if inner.contains('\\') {
            // Lone surrogates are the one fault that is still possible here.
            Cow::Owned(serde_json::from_str::<String>(text).map_err(|_| self.kind())?)
        } else {
            Cow::Borrowed(inner)
        };
        let length = u32::try_from(value.len())
            .map_err(|_| TensorError::BytesTooLong { index: self.found })?;
        self.data.extend_from_slice(&length.to_le_bytes());
        self.data.extend_from_slice(value.as_bytes());
        if let Cow::Owned(value) = &mut value {
            value.zeroize();
        }
        Ok(())
    }

    fn kind(&self) -> TensorError {
        TensorError::ElementKind {
            index: self.found,
            datatype: self.datatype,
        }
    }

    fn range(&self) -> TensorError {
        TensorError::ElementRange {
            index: self.found,
            datatype: self.datatype,
        }
    }

    fn mixed(&self) -> TensorError {
        TensorError::MixedNesting {
            shape: self.shape.to_vec(),
        }
    }

    fn count(&self, found: usize) -> TensorError {
        TensorError::ElementCount {
            shape: self.shape.to_vec(),
            expected: self.expected,
            found,
        }
    }

    fn nesting(&self, dimension: usize, found: u64) -> TensorError {
        TensorError::Nesting {
            shape: self.shape.to_vec(),
            dimension,
            expected: self.shape[dimension],
            found,
        }
    }
}

/// Whether JSON wrote a whole number, without sign, fraction or exponent.
fn is_integer(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What arrays of scalars are made of. Commas and blanks are left out: the text
/// is known to be JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Open,
    Close,
    /// A number, a literal, or a string with its quotes.
    Scalar(&'a str),
    /// An object begins, which no tensor has.
    Object,
}

#[derive(Clone)]
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn new(json: &'a str) -> Self {
        Self { rest: json }
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', ',']);
        let bytes = self.rest.as_bytes();
        let token = match bytes.first()? {
            b'[' => {
                self.take(1);
                Token::Open
            }
            b']' => {
                self.take(1);
                Token::Close
            }
            b'{' | b'}' | b':' => {
                self.take(1);
                Token::Object
            }
            b'"' => Token::Scalar(self.take(string_length(bytes))),
            _ => {
                let length = bytes
                    .iter()
                    .position(|byte| {
                        matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r')
                    })
                    .unwrap_or(bytes.len());
                Token::Scalar(self.take(length))
            }
        };
        Some(token)
    }
}

/// The length of the string that begins here, quotes included.
fn string_length(bytes: &[u8]) -> usize {
    let mut position = 1;
    while let Some(&byte) = bytes.get(position) {
        match byte {
            b'"' => return position + 1,
            b'\\' => position += 2,
            _ => position += 1,
        }
    }
    bytes.len()
}
