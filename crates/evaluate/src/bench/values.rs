//! Tensors of the protocol as values that ONNX Runtime owns, and back.
//!
//! The engine has its own way, which borrows and wipes; that would not be the plain
//! ONNX Runtime that others use, nor independent of what is measured.

use half::{bf16, f16};
use occlude_inference_protocol::{DataType, Tensor};
use ort::value::{DynValue, TensorElementType, ValueType};
use zeroize::Zeroizing;

use super::BenchError;

/// Matches a type of numbers and calls `$function` for the Rust type that it stands
/// for; booleans and strings are the caller's.
macro_rules! for_number {
    ($datatype:expr, $function:ident($($argument:expr),*), else $otherwise:expr) => {
        match $datatype {
            DataType::Uint8 => $function($($argument,)* u8::from_le_bytes, u8::to_le_bytes),
            DataType::Uint16 => $function($($argument,)* u16::from_le_bytes, u16::to_le_bytes),
            DataType::Uint32 => $function($($argument,)* u32::from_le_bytes, u32::to_le_bytes),
            DataType::Uint64 => $function($($argument,)* u64::from_le_bytes, u64::to_le_bytes),
            DataType::Int8 => $function($($argument,)* i8::from_le_bytes, i8::to_le_bytes),
            DataType::Int16 => $function($($argument,)* i16::from_le_bytes, i16::to_le_bytes),
            DataType::Int32 => $function($($argument,)* i32::from_le_bytes, i32::to_le_bytes),
            DataType::Int64 => $function($($argument,)* i64::from_le_bytes, i64::to_le_bytes),
            DataType::Fp16 => $function($($argument,)* f16::from_le_bytes, f16::to_le_bytes),
            DataType::Bf16 => $function($($argument,)* bf16::from_le_bytes, bf16::to_le_bytes),
            DataType::Fp32 => $function($($argument,)* f32::from_le_bytes, f32::to_le_bytes),
            DataType::Fp64 => $function($($argument,)* f64::from_le_bytes, f64::to_le_bytes),
            DataType::Bool | DataType::Bytes => $otherwise,
        }
    };
}

/// Copies a tensor into a value.
pub(super) fn to_onnx_runtime(tensor: &Tensor) -> Result<DynValue, ort::Error> {
    fn number<T, const SIZE: usize>(
        tensor: &Tensor,
        read: fn([u8; SIZE]) -> T,
        _: fn(T) -> [u8; SIZE],
    ) -> Result<DynValue, ort::Error>
    where
        T: ort::value::PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
    {
        let (elements, _) = tensor.data().as_chunks::<SIZE>();
        let elements: Vec<T> = elements.iter().map(|&bytes| read(bytes)).collect();
        Ok(ort::value::Tensor::from_array((dims(tensor), elements))?.into_dyn())
    }
    for_number!(tensor.datatype(), number(tensor), else {
        if tensor.datatype() == DataType::Bool {
            let elements: Vec<bool> = tensor.data().iter().map(|&byte| byte != 0).collect();
            return Ok(ort::value::Tensor::from_array((dims(tensor), elements))?.into_dyn());
        }
        let strings: Vec<String> = tensor
            .byte_strings()
            .map_err(|error| ort::Error::new(error.to_string()))?
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect();
        let dims = dims(tensor);
        Ok(ort::value::Tensor::from_string_array((dims, strings.as_slice()))?.into_dyn())
    })
}

/// Copies an output.
pub(super) fn from_onnx_runtime(name: &str, value: &DynValue) -> Result<Tensor, BenchError> {
    fn number<T, const SIZE: usize>(
        value: &DynValue,
        _: fn([u8; SIZE]) -> T,
        write: fn(T) -> [u8; SIZE],
    ) -> Result<Vec<u8>, ort::Error>
    where
        T: ort::value::PrimitiveTensorElementType + Copy,
    {
        let (_, elements) = value.try_extract_tensor::<T>()?;
        Ok(elements
            .iter()
            .flat_map(|&element| write(element))
            .collect())
    }
    let failed = |reason: String| BenchError::Plain(format!("output {name:?}: {reason}"));
    let kind = value.dtype();
    let ValueType::Tensor { ty, shape, .. } = kind else {
        return Err(failed(format!("{kind} is no tensor")));
    };
    let datatype = datatype(*ty).ok_or_else(|| failed(format!("{kind} is not of the protocol")))?;
    let shape: Vec<u64> = shape.iter().map(|&extent| extent.unsigned_abs()).collect();
    if datatype == DataType::Bytes {
        let (_, strings) = value
            .try_extract_strings()
            .map_err(|error| failed(error.to_string()))?;
        return Tensor::from_bytes(name, shape, &strings)
            .map_err(|error| failed(error.to_string()));
    }
    let data = for_number!(datatype, number(value), else {
        value
            .try_extract_tensor::<bool>()
            .map(|(_, elements)| elements.iter().map(|&element| u8::from(element)).collect())
    });
    data.map_err(|error| error.to_string())
        .and_then(|data| {
            Tensor::new(name, datatype, shape, Zeroizing::new(data))
                .map_err(|error| error.to_string())
        })
        .map_err(failed)
}

fn dims(tensor: &Tensor) -> Vec<i64> {
    // No memory holds more than 2^63 elements.
    tensor.shape().iter().map(|&extent| extent as i64).collect()
}

/// The protocol's name of an element type, if it has one.
pub(super) fn datatype(element: TensorElementType) -> Option<DataType> {
    Some(match element {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}
