//! Plain ONNX Runtime, in its default configuration, on a model with its weights
//! in it: the reference.

use occlude_inference_protocol::{DataType, Tensor};
use occlude_onnx::messages::ModelProto;
use ort::memory::Allocator;
use ort::session::Session;
use ort::value::{DynTensor, DynValue, TensorElementType, ValueType};
use prost::Message;
use zeroize::Zeroizing;

use crate::Outcome;
use crate::support::runtime;

/// Every output, in the model's order.
pub(crate) fn run(model: &ModelProto, inputs: &[Tensor]) -> Outcome<Vec<Tensor>> {
    let mut session =
        Session::builder(runtime().environment())?.commit_from_memory(&model.encode_to_vec())?;
    let feeds: Vec<(&str, DynValue)> = inputs
        .iter()
        .map(|tensor| Ok((tensor.name(), value(tensor)?)))
        .collect::<Outcome<_>>()?;
    let names: Vec<String> = session
        .outputs()
        .iter()
        .map(|output| output.name().to_owned())
        .collect();
    let outputs = session.run(feeds)?;
    names
        .iter()
        .map(|name| tensor(name, outputs.get(name).ok_or("an output is missing")?))
        .collect()
}

fn value(tensor: &Tensor) -> Outcome<DynValue> {
    let shape: Vec<i64> = tensor.shape().iter().map(|&extent| extent as i64).collect();
    if tensor.datatype() == DataType::Bytes {
        let strings: Vec<String> = tensor
            .byte_strings()?
            .map(|string| String::from_utf8(string.to_vec()))
            .collect::<Result<_, _>>()?;
        let value = ort::value::Tensor::from_string_array((shape, strings.as_slice()))?;
        return Ok(value.into_dyn());
    }
    let element = element_type(tensor.datatype());
    let mut value = DynTensor::new(&Allocator::default(), element, shape)?;
    if !tensor.data().is_empty() {
        let start = value.data_ptr_mut().cast::<u8>();
        // SAFETY: ONNX Runtime allocated the elements of this type and shape, which are
        // as many bytes as the tensor has, and nothing else refers to them yet.
        unsafe { start.copy_from_nonoverlapping(tensor.data().as_ptr(), tensor.data().len()) };
    }
    Ok(value.into_dyn())
}

fn tensor(name: &str, value: &DynValue) -> Outcome<Tensor> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err("an output is no tensor".into());
    };
    let dims: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
    if *ty == TensorElementType::String {
        let (_, strings) = value.try_extract_strings()?;
        return Ok(Tensor::from_bytes(name, dims, &strings)?);
    }
    let datatype = DataType::ALL
        .into_iter()
        .find(|&datatype| datatype != DataType::Bytes && element_type(datatype) == *ty)
        .ok_or("an output has a type that the protocol lacks")?;
    let length = shape.num_elements() * datatype.size().unwrap_or(0);
    let mut data = Zeroizing::new(vec![0; length]);
    if length > 0 {
        let tensor = value.view().downcast::<ort::value::DynTensorValueType>()?;
        let start = tensor.data_ptr().cast::<u8>();
        // SAFETY: the value is a tensor on the CPU, so this many bytes of elements lie
        // there as long as `value` lives; `data` is as long and memory of its own.
        unsafe { data.as_mut_ptr().copy_from_nonoverlapping(start, length) };
    }
    Ok(Tensor::new(name, datatype, dims, data)?)
}

fn element_type(datatype: DataType) -> TensorElementType {
    match datatype {
        DataType::Bool => TensorElementType::Bool,
        DataType::Uint8 => TensorElementType::Uint8,
        DataType::Uint16 => TensorElementType::Uint16,
        DataType::Uint32 => TensorElementType::Uint32,
        DataType::Uint64 => TensorElementType::Uint64,
        DataType::Int8 => TensorElementType::Int8,
        DataType::Int16 => TensorElementType::Int16,
        DataType::Int32 => TensorElementType::Int32,
        DataType::Int64 => TensorElementType::Int64,
        DataType::Fp16 => TensorElementType::Float16,
        DataType::Bf16 => TensorElementType::Bfloat16,
        DataType::Fp32 => TensorElementType::Float32,
        DataType::Fp64 => TensorElementType::Float64,
        DataType::Bytes => TensorElementType::String,
    }
}
