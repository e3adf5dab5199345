//! Messages into bodies.

use std::io::{self, Write};

use bytes::Bytes;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::message::{BINARY_DATA, BINARY_DATA_SIZE};
use crate::{
    DataType, Element, EncodeError, InferRequest, InferResponse, Parameter, Parameters, Tensor,
};

/// A body, wiped when its last copy is dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// JSON, and after it the binary data of the tensors that travel so.
    pub body: Bytes,
    /// The value of [`crate::INFERENCE_HEADER_CONTENT_LENGTH`] when there is binary data.
    pub inference_header_content_length: Option<usize>,
}

impl Encoded {
    /// The `Content-Type` of the body.
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        match self.inference_header_content_length {
            Some(_) => "application/octet-stream",
            None => "application/json",
        }
    }
}

impl InferRequest {
    /// Writes the request, its inputs all as binary data or all as JSON.
    ///
    /// # Errors
    /// With JSON, the [`EncodeError`] that names the element which JSON cannot say.
    pub fn encode(&self, binary: bool) -> Result<Encoded, EncodeError> {
        let data = binary_data(&self.inputs, |_| binary);
        let header = length(|json| self.write(json, binary))?;
        encoded(header, &data, |json| self.write(json, binary))
    }

    fn write<W: Write>(&self, json: &mut Json<W>, binary: bool) -> Result<(), EncodeError> {
        json.text("{");
        if let Some(id) = &self.id {
            json.field("id", id);
        }
        json.parameters(&self.wire_parameters());
        json.tensors("inputs", &self.inputs, |_| binary)?;
        if !self.outputs.is_empty() {
            json.key("outputs");
            json.list(&self.outputs, |json, output| {
                json.text("{");
                json.field("name", &output.name);
                let mut parameters = output.parameters.clone();
                if let Some(binary) = output.binary_data {
                    parameters.set(BINARY_DATA, Parameter::Boolean(binary));
                }
                json.parameters(&parameters);
                json.text("}");
                Ok(())
            })?;
        }
        json.text("}");
        Ok(())
    }
}

impl InferResponse {
    /// Writes the response, each output as binary data where `binary` says so of its name
    /// (see [`InferRequest::wants_binary`]).
    ///
    /// # Errors
    /// The [`EncodeError`] that names the element which JSON cannot say.
    pub fn encode(&self, binary: impl Fn(&str) -> bool) -> Result<Encoded, EncodeError> {
        self.encode_admitted(binary, |_| true)
    }

    /// [`Self::encode`] for a caller who has only so much memory: `admit` is told the bytes
    /// of the body, and nothing is written where it says no.
    ///
    /// # Errors
    /// [`EncodeError::NotAdmitted`] then, and those of [`Self::encode`].
    pub fn encode_admitted(
        &self,
        binary: impl Fn(&str) -> bool,
        admit: impl FnOnce(usize) -> bool,
    ) -> Result<Encoded, EncodeError> {
        let binary = |tensor: &Tensor| binary(tensor.name());
        let data = binary_data(&self.outputs, binary);
        let header = length(|json| self.write(json, binary))?;
        let bytes = header + total(&data);
        if !admit(bytes) {
            return Err(EncodeError::NotAdmitted { bytes });
        }
        encoded(header, &data, |json| self.write(json, binary))
    }

    fn write<W: Write>(
        &self,
        json: &mut Json<W>,
        binary: impl Fn(&Tensor) -> bool,
    ) -> Result<(), EncodeError> {
        json.text("{");
        json.field("model_name", &self.model_name);
        if let Some(version) = &self.model_version {
            json.field("model_version", version);
        }
        if let Some(id) = &self.id {
            json.field("id", id);
        }
        json.parameters(&self.parameters);
        json.tensors("outputs", &self.outputs, binary)?;
        json.text("}");
        Ok(())
    }
}

/// The data that follows the JSON.
fn binary_data(tensors: &[Tensor], binary: impl Fn(&Tensor) -> bool) -> Vec<&[u8]> {
    let binary = tensors.iter().filter(|tensor| binary(tensor));
    binary.map(Tensor::data).collect()
}

fn total(data: &[&[u8]]) -> usize {
    data.iter().map(|data| data.len()).sum()
}

/// How many bytes `write` writes.
fn length(
    write: impl FnOnce(&mut Json<Length>) -> Result<(), EncodeError>,
) -> Result<usize, EncodeError> {
    let mut json = Json::new(Length(0));
    write(&mut json)?;
    Ok(json.writer.0)
}

/// A body whose JSON has `header` bytes, written where it never moves: what a buffer
/// leaves behind when it grows is not wiped.
fn encoded(
    header: usize,
    data: &[&[u8]],
    write: impl FnOnce(&mut Json<&mut Vec<u8>>) -> Result<(), EncodeError>,
) -> Result<Encoded, EncodeError> {
    let mut body = Zeroizing::new(Vec::with_capacity(header + total(data)));
    write(&mut Json::new(&mut *body))?;
    debug_assert_eq!(body.len(), header);
    for data in data {
        body.extend_from_slice(data);
    }
    Ok(Encoded {
        body: Bytes::from_owner(body),
        inference_header_content_length: (!data.is_empty()).then_some(header),
    })
}

/// Counts what is written to it.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes JSON objects to memory, which cannot fail.
struct Json<W> {
    writer: W,
    /// Whether a comma is due before the next key or item.
    comma: bool,
}

impl<W: Write> Json<W> {
    fn new(writer: W) -> Self {
        Self {
            writer,
            comma: false,
        }
    }

    fn write(&mut self, text: &[u8]) {
        let written = self.writer.write_all(text);
        debug_assert!(written.is_ok());
    }

    /// Structure: brackets and literals.
    fn text(&mut self, text: &str) {
        self.write(text.as_bytes());
        self.comma = !text.ends_with(['{', '[', ':']);
    }

    /// A comma where one is due.
    fn separate(&mut self) {
        if self.comma {
            self.write(b",");
        }
    }

    fn value(&mut self, value: &impl Serialize) {
        // No value here has keys that are not strings.
        let written = serde_json::to_writer(&mut self.writer, value);
        debug_assert!(written.is_ok());
        self.comma = true;
    }

    fn key(&mut self, name: &str) {
        self.separate();
        self.value(&name);
        self.text(":");
    }

    fn field(&mut self, name: &str, value: &impl Serialize) {
        self.key(name);
        self.value(value);
    }

    fn parameters(&mut self, parameters: &Parameters) {
        if !parameters.is_empty() {
            self.field("parameters", parameters);
        }
    }

    fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        self.text("[");
        for item in items {
            self.separate();
            write(self, item)?;
        }
        self.text("]");
        Ok(())
    }

    fn tensors(
        &mut self,
        key: &str,
        tensors: &[Tensor],
        binary: impl Fn(&Tensor) -> bool,
    ) -> Result<(), EncodeError> {
        self.key(key);
        self.list(tensors, |json, tensor| {
            json.text("{");
            json.field("name", &tensor.name());
            json.field("shape", &tensor.shape());
            json.field("datatype", &tensor.datatype());
            if binary(tensor) {
                let size = i64::try_from(tensor.data().len()).unwrap_or(i64::MAX);
                let mut parameters = Parameters::default();
                parameters.set(BINARY_DATA_SIZE, Parameter::Integer(size));
                json.parameters(&parameters);
            } else {
                json.key("data");
                json.data(tensor)?;
            }
            json.text("}");
            Ok(())
        })
    }

    fn data(&mut self, tensor: &Tensor) -> Result<(), EncodeError> {
        match tensor.datatype() {
            DataType::Bool => self.values::<bool>(tensor, |_| true),
            DataType::Uint8 => self.values::<u8>(tensor, |_| true),
            DataType::Uint16 => self.values::<u16>(tensor, |_| true),
            DataType::Uint32 => self.values::<u32>(tensor, |_| true),
            DataType::Uint64 => self.values::<u64>(tensor, |_| true),
            DataType::Int8 => self.values::<i8>(tensor, |_| true),
            DataType::Int16 => self.values::<i16>(tensor, |_| true),
            DataType::Int32 => self.values::<i32>(tensor, |_| true),
            DataType::Int64 => self.values::<i64>(tensor, |_| true),
            DataType::Fp32 => self.values::<f32>(tensor, f32::is_finite),
            DataType::Fp64 => self.values::<f64>(tensor, f64::is_finite),
            DataType::Bytes => self.strings(tensor),
            datatype @ (DataType::Fp16 | DataType::Bf16) => Err(EncodeError::NeedsBinary {
                tensor: tensor.name().to_owned(),
                datatype,
            }),
        }
    }

    /// Numbers, in the shortest digits that read back as the same value.
    fn values<T: Element + Serialize>(
        &mut self,
        tensor: &Tensor,
        has_json_form: fn(T) -> bool,
    ) -> Result<(), EncodeError> {
        let values = tensor
            .data()
            .chunks_exact(size_of::<T>())
            .map(T::from_little_endian);
        self.list(values.enumerate(), |json, (index, value)| {
            if !has_json_form(value) {
                return Err(EncodeError::NotFinite {
                    tensor: tensor.name().to_owned(),
                    index,
                });
            }
            json.value(&value);
            Ok(())
        })
    }

    fn strings(&mut self, tensor: &Tensor) -> Result<(), EncodeError> {
        self.list(tensor.elements().enumerate(), |json, (index, value)| {
            let value = std::str::from_utf8(value).map_err(|_| EncodeError::NotUtf8 {
                tensor: tensor.name().to_owned(),
                index,
            })?;
            json.value(&value);
            Ok(())
        })
    }
}
