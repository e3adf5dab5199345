//! Messages into bodies.

use bytes::Bytes;
use serde::Serialize;

use crate::buffer::WipingBuffer;
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
        let mut json = Json::new(&self.inputs, |_| binary);
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
        Ok(json.finish(&self.inputs, |_| binary))
    }
}

impl InferResponse {
    /// Writes the response, each output as binary data where `binary` says so of its name
    /// (see [`InferRequest::wants_binary`]).
    ///
    /// # Errors
    /// The [`EncodeError`] that names the element which JSON cannot say.
    pub fn encode(&self, binary: impl Fn(&str) -> bool) -> Result<Encoded, EncodeError> {
        let binary = |tensor: &Tensor| binary(tensor.name());
        let mut json = Json::new(&self.outputs, binary);
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
        Ok(json.finish(&self.outputs, binary))
    }
}

/// Writes JSON objects; wiped with all that was written.
struct Json {
    buffer: WipingBuffer,
    /// Whether a comma is due before the next key or item.
    comma: bool,
}

impl Json {
    fn new(tensors: &[Tensor], binary: impl Fn(&Tensor) -> bool) -> Self {
        const NAMES_AND_SHAPES: usize = 256;
        // Digits of an element in JSON, as often as not enough; the buffer grows if they are not.
        const DIGITS: usize = 12;
        let size = tensors
            .iter()
            .map(|tensor| {
                NAMES_AND_SHAPES
                    + if binary(tensor) {
                        tensor.data().len()
                    } else {
                        tensor.element_count() * DIGITS
                    }
            })
            .sum::<usize>();
        Self {
            buffer: WipingBuffer::with_capacity(NAMES_AND_SHAPES + size),
            comma: false,
        }
    }

    /// Structure: brackets and literals.
    fn text(&mut self, text: &str) {
        self.buffer.push(text.as_bytes());
        self.comma = !text.ends_with(['{', '[', ':']);
    }

    /// A comma where one is due.
    fn separate(&mut self) {
        if self.comma {
            self.buffer.push(b",");
        }
    }

    fn value(&mut self, value: &impl Serialize) {
        // Writing to memory cannot fail, and no value here has keys that are not strings.
        let written = serde_json::to_writer(&mut self.buffer, value);
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

    fn finish(mut self, tensors: &[Tensor], binary: impl Fn(&Tensor) -> bool) -> Encoded {
        let header = self.buffer.len();
        let mut any = false;
        for tensor in tensors.iter().filter(|tensor| binary(tensor)) {
            self.buffer.push(tensor.data());
            any = true;
        }
        Encoded {
            body: Bytes::from_owner(self.buffer.into_inner()),
            inference_header_content_length: any.then_some(header),
        }
    }
}
