//! Bodies into messages.
//!
//! The body is hostile. The JSON part is checked to be UTF-8 and JSON first, then each tensor in
//! turn: name, datatype, shape, and only then its data. Lists are counted while they are read:
//! what is too many is read past, not kept.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::error::JsonReason;
use crate::message::{BINARY_DATA, BINARY_DATA_OUTPUT, BINARY_DATA_SIZE};
use crate::tensor::check_name;
use crate::{
    DataType, InferRequest, InferResponse, MAXIMUM_LIST_PARAMETERS, MAXIMUM_NAME_BYTES,
    MAXIMUM_TENSORS, Parameter, Parameters, ProtocolError, RequestedOutput, Tensor, TensorError,
    scan,
};

impl InferRequest {
    /// Reads a request.
    ///
    /// `header_length` is the value of [`crate::INFERENCE_HEADER_CONTENT_LENGTH`], if that field
    /// is there; without it the whole body is JSON.
    ///
    /// # Errors
    /// The [`ProtocolError`] that names the fault and, where it is in a tensor, the tensor.
    pub fn decode(body: &[u8], header_length: Option<usize>) -> Result<Self, ProtocolError> {
        let (json, mut binary) = split(body, header_length)?;
        let wire: WireRequest<'_> = parse(json)?;
        let mut parameters = wire.parameters.unwrap_or_default();
        let binary_data_output = take_boolean(&mut parameters, BINARY_DATA_OUTPUT)?;
        let inputs = tensors(wire.inputs, &mut binary)?;
        binary.finish()?;
        Ok(Self {
            id: wire.id,
            parameters,
            inputs,
            outputs: match wire.outputs {
                Some(outputs) => requested_outputs(outputs)?,
                None => Vec::new(),
            },
            binary_data_output: binary_data_output.unwrap_or(false),
        })
    }
}

impl InferResponse {
    /// Reads a response; `header_length` as in [`InferRequest::decode`].
    ///
    /// # Errors
    /// As [`InferRequest::decode`].
    pub fn decode(body: &[u8], header_length: Option<usize>) -> Result<Self, ProtocolError> {
        let (json, mut binary) = split(body, header_length)?;
        let wire: WireResponse<'_> = parse(json)?;
        let outputs = tensors(wire.outputs, &mut binary)?;
        binary.finish()?;
        Ok(Self {
            model_name: wire.model_name.unwrap_or_default(),
            model_version: wire.model_version,
            id: wire.id,
            parameters: wire.parameters.unwrap_or_default(),
            outputs,
        })
    }
}

#[derive(Deserialize)]
struct WireRequest<'a> {
    id: Option<String>,
    parameters: Option<Parameters>,
    #[serde(borrow)]
    inputs: Counted<WireTensor<'a>>,
    outputs: Option<Counted<WireOutput>>,
}

#[derive(Deserialize)]
struct WireResponse<'a> {
    model_name: Option<String>,
    model_version: Option<String>,
    id: Option<String>,
    parameters: Option<Parameters>,
    #[serde(borrow)]
    outputs: Counted<WireTensor<'a>>,
}

#[derive(Deserialize)]
struct WireTensor<'a> {
    name: String,
    datatype: String,
    #[serde(borrow)]
    shape: &'a RawValue,
    parameters: Option<Parameters>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireOutput {
    name: String,
    parameters: Option<Parameters>,
}

/// An item of a list, which costs memory out of proportion to its text.
trait Item {
    fn parameters(&self) -> Option<&Parameters>;
}

impl Item for WireTensor<'_> {
    fn parameters(&self) -> Option<&Parameters> {
        self.parameters.as_ref()
    }
}

impl Item for WireOutput {
    fn parameters(&self) -> Option<&Parameters> {
        self.parameters.as_ref()
    }
}

/// A list that was counted while it was read, and not kept if it is too long.
///
/// An item takes up to twelve times its text in memory, and the text may be as long as a body.
/// The parser's own errors are texts, so the refusal is kept here until the list is asked for.
struct Counted<T>(Result<Vec<T>, ProtocolError>);

impl<'de, T: Item + Deserialize<'de>> Deserialize<'de> for Counted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemsVisitor<T>(PhantomData<T>);

        impl<'de, T: Item + Deserialize<'de>> Visitor<'de> for ItemsVisitor<T> {
            type Value = Counted<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Counted<T>, A::Error> {
                let mut items = Vec::new();
                let mut parameters = 0;
                while items.len() < MAXIMUM_TENSORS {
                    let Some(item) = list.next_element::<T>()? else {
                        return Ok(Counted(Ok(items)));
                    };
                    parameters += item.parameters().map_or(0, |found| found.iter().count());
                    if parameters > MAXIMUM_LIST_PARAMETERS {
                        read_past(&mut list)?;
                        return Ok(Counted(Err(ProtocolError::TooManyParameters)));
                    }
                    items.push(item);
                }
                Ok(Counted(match read_past(&mut list)? {
                    0 => Ok(items),
                    more => Err(ProtocolError::TooManyTensors {
                        found: items.len() + more,
                    }),
                }))
            }
        }

        deserializer.deserialize_seq(ItemsVisitor(PhantomData))
    }
}

/// Reads to the end of a list, keeping nothing of it; how many items there were.
fn read_past<'de, A: SeqAccess<'de>>(list: &mut A) -> Result<usize, A::Error> {
    let mut found = 0;
    while list.next_element::<IgnoredAny>()?.is_some() {
        found += 1;
    }
    Ok(found)
}

/// What follows the JSON part, handed out tensor by tensor.
struct Binary<'a> {
    rest: &'a [u8],
    announced: bool,
}

impl<'a> Binary<'a> {
    fn take(&mut self, size: u64) -> Result<&'a [u8], TensorError> {
        if !self.announced {
            return Err(TensorError::MissingHeaderLength);
        }
        let (taken, rest) = usize::try_from(size)
            .ok()
            .and_then(|size| self.rest.split_at_checked(size))
            .ok_or(TensorError::BinaryTruncated {
                size,
                remaining: self.rest.len(),
            })?;
        self.rest = rest;
        Ok(taken)
    }

    fn finish(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(ProtocolError::TrailingBytes { bytes }),
        }
    }
}

fn split(body: &[u8], header_length: Option<usize>) -> Result<(&[u8], Binary<'_>), ProtocolError> {
    if body.is_empty() {
        return Err(ProtocolError::Empty);
    }
    let length = header_length.unwrap_or(body.len());
    let (json, rest) = body
        .split_at_checked(length)
        .ok_or(ProtocolError::HeaderLength {
            header: length,
            body: body.len(),
        })?;
    let announced = header_length.is_some();
    Ok((json, Binary { rest, announced }))
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, ProtocolError> {
    let json = std::str::from_utf8(json).map_err(|error| ProtocolError::NotUtf8 {
        position: error.valid_up_to(),
    })?;
    // The parser's own message may quote the data, so only its place is kept.
    serde_json::from_str(json).map_err(|error| ProtocolError::Json {
        line: error.line(),
        column: error.column(),
        reason: match error.classify() {
            serde_json::error::Category::Data => JsonReason::Form,
            serde_json::error::Category::Eof => JsonReason::Truncated,
            _ => JsonReason::Syntax,
        },
    })
}

fn tensors(
    wire: Counted<WireTensor<'_>>,
    binary: &mut Binary<'_>,
) -> Result<Vec<Tensor>, ProtocolError> {
    let wire = wire.0?;
    let mut tensors: Vec<Tensor> = Vec::with_capacity(wire.len());
    for wire in wire {
        let name = quoted(&wire.name);
        let tensor = tensor(wire, binary).map_err(|reason| ProtocolError::Tensor {
            tensor: name,
            reason,
        })?;
        if tensors.iter().any(|other| other.name() == tensor.name()) {
            return Err(ProtocolError::DuplicateTensor {
                tensor: tensor.name().to_owned(),
            });
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn tensor(wire: WireTensor<'_>, binary: &mut Binary<'_>) -> Result<Tensor, TensorError> {
    check_name(&wire.name)?;
    let datatype: DataType = wire.datatype.parse()?;
    let shape = scan::shape(wire.shape.get())?;
    let size = match wire
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.get(BINARY_DATA_SIZE))
    {
        None => None,
        Some(&Parameter::Integer(size)) => {
            Some(u64::try_from(size).map_err(|_| TensorError::BinarySizeInvalid)?)
        }
        Some(_) => return Err(TensorError::BinarySizeInvalid),
    };
    let data = match (wire.data, size) {
        (Some(_), Some(_)) => return Err(TensorError::DataTwice),
        (None, None) => return Err(TensorError::MissingData),
        (Some(json), None) => scan::data(json.get(), datatype, &shape)?,
        (None, Some(size)) => {
            let data = binary.take(size)?;
            // Checked before the copy, so that a wrong size costs nothing.
            crate::tensor::check_data(datatype, &shape, data)?;
            Zeroizing::new(data.to_vec())
        }
    };
    Tensor::new(wire.name, datatype, shape, data)
}

fn requested_outputs(wire: Counted<WireOutput>) -> Result<Vec<RequestedOutput>, ProtocolError> {
    let wire = wire.0?;
    let mut outputs: Vec<RequestedOutput> = Vec::with_capacity(wire.len());
    for wire in wire {
        check_name(&wire.name).map_err(|reason| ProtocolError::Tensor {
            tensor: quoted(&wire.name),
            reason,
        })?;
        if outputs.iter().any(|other| other.name == wire.name) {
            return Err(ProtocolError::DuplicateTensor { tensor: wire.name });
        }
        let mut parameters = wire.parameters.unwrap_or_default();
        outputs.push(RequestedOutput {
            binary_data: take_boolean(&mut parameters, BINARY_DATA)?,
            name: wire.name,
            parameters,
        });
    }
    Ok(outputs)
}

fn take_boolean(
    parameters: &mut Parameters,
    parameter: &'static str,
) -> Result<Option<bool>, ProtocolError> {
    match parameters.remove(parameter) {
        None => Ok(None),
        Some(Parameter::Boolean(value)) => Ok(Some(value)),
        Some(_) => Err(ProtocolError::NotABoolean { parameter }),
    }
}

/// A name that is fit for a message.
fn quoted(name: &str) -> String {
    let mut end = name.len().min(MAXIMUM_NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}
