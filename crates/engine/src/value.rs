//! Tensors of the protocol as values of ONNX Runtime, and back.
//!
//! Inputs and weights are borrowed, never copied (a misaligned input excepted).
//! Outputs are copied once. Numbers lie in memory that [`crate::allocator`] wipes, the
//! contents of byte strings elsewhere: those [`wipe_strings`] zeroes.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;

use occlude_inference_protocol::{DataType, Tensor};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::sys::{ONNXTensorElementDataType as ElementType, OrtValue};
use ort::value::{DynValue, TensorElementType, ValueRef, ValueRefMut, ValueType};
use zeroize::{Zeroize, Zeroizing};

use crate::error::RunError;

/// A value of ONNX Runtime over bytes that it does not own.
pub(crate) struct Borrowed<'a> {
    value: DynValue,
    /// An aligned copy, where the tensor's own bytes would not do.
    _aligned: Option<Zeroizing<Vec<u64>>>,
    bytes: PhantomData<&'a [u8]>,
}

impl Drop for Borrowed<'_> {
    /// Byte strings are no borrowed bytes but ONNX Runtime's copy.
    fn drop(&mut self) {
        wipe_strings(&mut self.value);
    }
}

impl Borrowed<'_> {
    pub(crate) fn value(&self) -> &DynValue {
        &self.value
    }
}

/// Makes an input of `tensor`, whose extents fit `dims` exactly.
pub(crate) fn borrow<'a>(tensor: &'a Tensor, dims: &[i64]) -> Result<Borrowed<'a>, ort::Error> {
    if tensor.datatype() == DataType::Bytes {
        return string_value(tensor, dims);
    }
    let element = element_type(tensor.datatype());
    let alignment = tensor.datatype().size().unwrap_or(1);
    let bytes = tensor.data();
    let aligned = (bytes.as_ptr().align_offset(alignment) != 0).then(|| aligned_copy(bytes));
    let start = aligned
        .as_ref()
        .map_or(bytes.as_ptr(), |copy| copy.as_ptr().cast());
    // SAFETY: `start` is valid for `bytes.len()` bytes and aligned for the element;
    // `Tensor` guarantees that the length is that of its shape and type, and both the
    // tensor and the aligned copy live as long as the returned value. Inputs are
    // never written by ONNX Runtime.
    let value = unsafe { value_over(start, bytes.len(), dims, element)? };
    Ok(Borrowed {
        value,
        _aligned: aligned,
        bytes: PhantomData,
    })
}

/// Makes a value over `length` bytes at `start`.
///
/// # Safety
/// The bytes must be initialised, aligned for `element`, exactly as many as
/// `dims` and `element` take, and outlive the value and every session that it is
/// given to as an initializer. ONNX Runtime must have been loaded.
pub(crate) unsafe fn value_over(
    start: *const u8,
    length: usize,
    dims: &[i64],
    element: ElementType,
) -> Result<DynValue, ort::Error> {
    let memory = MemoryInfo::default();
    let mut value: *mut OrtValue = ptr::null_mut();
    // SAFETY: the caller vouches for the bytes; `dims` is valid for its length; the
    // new value is written to `value` on success only.
    unsafe {
        let status = (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            start.cast_mut().cast::<c_void>(),
            length,
            dims.as_ptr(),
            dims.len(),
            element,
            &raw mut value,
        );
        ort::Error::result_from_status(status)?;
        own(value)
    }
}

/// # Safety
/// `value` must be null or a tensor that nothing else owns.
unsafe fn own(value: *mut OrtValue) -> Result<DynValue, ort::Error> {
    let value =
        NonNull::new(value).ok_or_else(|| ort::Error::new("ONNX Runtime returned no value"))?;
    // SAFETY: by this function's contract; a value over borrowed bytes frees none of
    // them, and string tensors are made with the default allocator.
    Ok(unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) })
}

fn string_value<'a>(tensor: &Tensor, dims: &[i64]) -> Result<Borrowed<'a>, ort::Error> {
    let allocator = Allocator::default();
    let mut value: *mut OrtValue = ptr::null_mut();
    // SAFETY: `dims` is valid for its length; the new value is written to `value` on
    // success only.
    let mut value = unsafe {
        let status = (ort::api().CreateTensorAsOrtValue)(
            allocator.ptr().cast_mut(),
            dims.as_ptr(),
            dims.len(),
            ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
            &raw mut value,
        );
        ort::Error::result_from_status(status)?;
        own(value)?
    };
    let elements = tensor
        .byte_strings()
        .map_err(|error| ort::Error::new(error.to_string()))?;
    for (index, element) in elements.enumerate() {
        string_buffer(&mut value, index, element.len())?.copy_from_slice(element);
    }
    Ok(Borrowed {
        value,
        _aligned: None,
        bytes: PhantomData,
    })
}

/// The memory of element `index`, a string that takes `length` bytes from now on.
fn string_buffer(
    value: &mut DynValue,
    index: usize,
    length: usize,
) -> Result<&mut [u8], ort::Error> {
    let mut buffer: *mut c_char = ptr::null_mut();
    // SAFETY: ONNX Runtime checks type and index; on success `buffer` points at
    // `length` bytes inside the value, which `value` borrows mutably meanwhile.
    unsafe {
        let status = (ort::api().GetResizedStringTensorElementBuffer)(
            value.ptr_mut(),
            index,
            length,
            &raw mut buffer,
        );
        ort::Error::result_from_status(status)?;
        if length == 0 || buffer.is_null() {
            return Ok(&mut []);
        }
        Ok(slice::from_raw_parts_mut(buffer.cast(), length))
    }
}

fn string_length(value: &DynValue, index: usize) -> Result<usize, ort::Error> {
    let mut length = 0;
    // SAFETY: ONNX Runtime checks type and index and writes one length.
    unsafe {
        let status = (ort::api().GetStringTensorElementLength)(value.ptr(), index, &raw mut length);
        ort::Error::result_from_status(status)?;
    }
    Ok(length)
}

fn aligned_copy(bytes: &[u8]) -> Zeroizing<Vec<u64>> {
    let mut words = Zeroizing::new(vec![0; bytes.len().div_ceil(size_of::<u64>())]);
    // SAFETY: the words are at least `bytes.len()` initialised bytes, any byte
    // pattern is a valid u64, and the slice ends before `words` is used again.
    let copy = unsafe { slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes.len()) };
    copy.copy_from_slice(bytes);
    words
}

/// Copies an output.
pub(crate) fn copy_out(name: &str, value: &mut DynValue) -> Result<Tensor, RunError> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(no_tensor());
    };
    let datatype = protocol_type(*ty).ok_or_else(no_tensor)?;
    let dims: Vec<u64> = shape
        .iter()
        .map(|&extent| u64::try_from(extent))
        .collect::<Result<_, _>>()
        .map_err(|_| no_tensor())?;
    if datatype == DataType::Bytes {
        let count = shape.num_elements();
        let strings = copy_strings(value, count).map_err(|error| RunError::Failed(error.into()))?;
        return Tensor::from_bytes(name, dims, &strings).map_err(RunError::Output);
    }
    let data = Zeroizing::new(numeric_bytes(value, datatype).to_vec());
    Tensor::new(name, datatype, dims, data).map_err(RunError::Output)
}

fn no_tensor() -> RunError {
    RunError::Failed(ort::Error::new("an output is no tensor of the protocol's types").into())
}

fn copy_strings(value: &mut DynValue, count: usize) -> Result<Vec<Zeroizing<Vec<u8>>>, ort::Error> {
    (0..count)
        .map(|index| {
            let length = string_length(value, index)?;
            Ok(Zeroizing::new(
                string_buffer(value, index, length)?.to_vec(),
            ))
        })
        .collect()
}

fn numeric_bytes(value: &DynValue, datatype: DataType) -> &[u8] {
    let length = numeric_length(value, datatype);
    let start = tensor_data(value);
    if length == 0 || start.is_null() {
        return &[];
    }
    // SAFETY: a tensor on the CPU holds exactly its elements at this address, as long
    // as the value lives, which the slice borrows. Sessions here have no other device.
    unsafe { slice::from_raw_parts(start.cast(), length) }
}

fn numeric_length(value: &DynValue, datatype: DataType) -> usize {
    match value.dtype() {
        ValueType::Tensor { shape, .. } => shape.num_elements() * datatype.size().unwrap_or(0),
        _ => 0,
    }
}

fn tensor_data(value: &DynValue) -> *mut c_void {
    let mut start = ptr::null_mut();
    // SAFETY: the call only reads the value and writes one pointer.
    let result = unsafe {
        let status = (ort::api().GetTensorMutableData)(value.ptr().cast_mut(), &raw mut start);
        ort::Error::result_from_status(status)
    };
    match result {
        Ok(()) => start,
        Err(_) => ptr::null_mut(),
    }
}

/// The type of a weight in a graph; nothing where ONNX Runtime has none.
pub(crate) fn tensor_element_type(data_type: occlude_onnx::DataType) -> Option<TensorElementType> {
    weight_element_type(data_type).map(TensorElementType::from)
}

fn bytes_of_tensor(value: &DynValue) -> Result<usize, ort::Error> {
    let mut size = 0;
    // SAFETY: ONNX Runtime checks that the value is a tensor of numbers and writes one
    // size.
    unsafe {
        let status = (ort::api().GetTensorSizeInBytes)(value.ptr(), &raw mut size);
        ort::Error::result_from_status(status)?;
    }
    Ok(size)
}

/// The bytes of an output that an operator of ours is about to write.
pub(crate) fn output_bytes<'a>(
    output: &'a mut ValueRefMut<'_>,
) -> Result<&'a mut [u8], ort::Error> {
    let (length, start) = (bytes_of_tensor(output)?, tensor_data(output));
    if length == 0 || start.is_null() {
        return Ok(&mut []);
    }
    // SAFETY: ONNX Runtime allocated as many bytes for this output, which our operator
    // alone has now; any bytes are values of numbers.
    Ok(unsafe { slice::from_raw_parts_mut(start.cast(), length) })
}

/// Makes `output` hold what `input` does; nothing is to be done where ONNX Runtime gave
/// both the same memory.
pub(crate) fn hand_on(input: &DynValue, output: &mut ValueRefMut<'_>) -> Result<(), ort::Error> {
    let (from, to) = (tensor_data(input), tensor_data(output));
    if from == to {
        return Ok(());
    }
    let length = bytes_of_tensor(input)?;
    if bytes_of_tensor(output)? != length {
        return Err(ort::Error::new("a value is handed on as another type"));
    }
    if length > 0 {
        // SAFETY: both tensors hold as many bytes of numbers; memory that ONNX Runtime
        // does not share it keeps apart.
        unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast(), length) };
    }
    Ok(())
}

/// Zeroes a tensor of numbers that an operator of ours read last, unless `kept` is in
/// the same memory: ONNX Runtime leaves out operators that change nothing, and others
/// give their input as their output.
pub(crate) fn zero_input(input: &ValueRef<'_>, kept: &DynValue) {
    let (length, start) = (bytes_of_tensor(input).unwrap_or(0), tensor_data(input));
    let (kept_length, kept_start) = (bytes_of_tensor(kept).unwrap_or(0), tensor_data(kept));
    let (start_address, kept_address) = (start as usize, kept_start as usize);
    let apart =
        start_address >= kept_address + kept_length || kept_address >= start_address + length;
    if length > 0 && !start.is_null() && apart {
        // SAFETY: ONNX Runtime allocated this memory for an output of `OpenedWeight`,
        // and frees it after the node that calls this: nothing else reads it, and what
        // it hands on lies elsewhere.
        unsafe { slice::from_raw_parts_mut(start.cast::<u8>(), length) }.zeroize();
    }
}

/// The bytes that [`copy_out`] takes: of byte strings two copies at once, each with its
/// length.
pub(crate) fn bytes_to_copy(value: &DynValue) -> usize {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return 0;
    };
    match protocol_type(*ty) {
        None => 0,
        Some(DataType::Bytes) => (0..shape.num_elements())
            .map(|index| {
                let length = string_length(value, index).unwrap_or(0);
                2 * (length + size_of::<u32>())
            })
            .sum(),
        Some(datatype) => numeric_length(value, datatype),
    }
}

/// Zeroes the contents of byte strings, which ONNX Runtime keeps in the C++ runtime's
/// memory. Leaves other values as they are.
pub(crate) fn wipe_strings(value: &mut DynValue) {
    let ValueType::Tensor {
        ty: TensorElementType::String,
        shape,
        ..
    } = value.dtype()
    else {
        return;
    };
    for index in 0..shape.num_elements() {
        let length = string_length(value, index).unwrap_or(0);
        if let Ok(buffer) = string_buffer(value, index, length) {
            buffer.zeroize();
        }
    }
}

/// The protocol's name of an element type of ONNX Runtime, if it has one.
pub(crate) fn protocol_type(element: TensorElementType) -> Option<DataType> {
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

fn element_type(datatype: DataType) -> ElementType {
    match datatype {
        DataType::Bool => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Bf16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Fp32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

/// ONNX Runtime's element type of a weight, where it has one that can be borrowed.
pub(crate) fn weight_element_type(data_type: occlude_onnx::DataType) -> Option<ElementType> {
    use occlude_onnx::DataType as Onnx;
    Some(match data_type {
        Onnx::Float => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        Onnx::Uint8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        Onnx::Int8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        Onnx::Uint16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        Onnx::Int16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        Onnx::Int32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        Onnx::Int64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        Onnx::Bool => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        Onnx::Float16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        Onnx::Double => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        Onnx::Uint32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        Onnx::Uint64 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        Onnx::Bfloat16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        Onnx::Float8E4M3Fn => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        Onnx::Float8E4M3Fnuz => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ,
        Onnx::Float8E5M2 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
        Onnx::Float8E5M2Fnuz => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ,
        Onnx::Uint4 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4,
        Onnx::Int4 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
        Onnx::Uint2 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT2,
        Onnx::Int2 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT2,
        Onnx::Float4E2M1 | Onnx::Float8E8M0 | Onnx::Complex64 | Onnx::Complex128 | Onnx::String => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::runtime;

    #[test]
    fn wiping_zeroes_byte_strings_short_and_long() {
        runtime();
        let strings = [
            "short",
            "a string too long to be kept inside its own header",
        ];
        let tensor = Tensor::from_bytes("x", vec![2], &strings).unwrap();
        let mut input = string_value(&tensor, &[2]).unwrap();
        let value = &mut input.value;
        assert_eq!(copy_strings(value, 2).unwrap()[0].as_slice(), b"short");
        wipe_strings(value);
        let wiped = copy_strings(value, 2).unwrap();
        assert!(
            wiped
                .iter()
                .flat_map(|string| string.iter())
                .all(|&byte| byte == 0)
        );
    }

    #[test]
    fn a_misaligned_input_is_copied_to_where_its_elements_are_aligned() {
        let bytes: Vec<u8> = (0..32).collect();
        let copy = aligned_copy(&bytes[3..20]);
        // SAFETY: the copy holds 17 bytes at least.
        let copied = unsafe { slice::from_raw_parts(copy.as_ptr().cast::<u8>(), 17) };
        assert_eq!(copied, &bytes[3..20]);
        assert_eq!(copy.as_ptr().align_offset(8), 0);
    }
}
