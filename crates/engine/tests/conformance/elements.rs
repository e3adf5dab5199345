//! ONNX's element types and those of the inference protocol: which of the one are
//! which of the other, and the rest made wider so that the protocol has them.

use occlude_inference_protocol::{DataType, Tensor};
use occlude_onnx::DataType as Onnx;
use occlude_onnx::messages::TensorProto;
use zeroize::Zeroizing;

use crate::Outcome;

/// The protocol's name of an element type, if it has it.
pub(crate) fn protocol_type(element: Onnx) -> Option<DataType> {
    Some(match element {
        Onnx::Float => DataType::Fp32,
        Onnx::Uint8 => DataType::Uint8,
        Onnx::Int8 => DataType::Int8,
        Onnx::Uint16 => DataType::Uint16,
        Onnx::Int16 => DataType::Int16,
        Onnx::Int32 => DataType::Int32,
        Onnx::Int64 => DataType::Int64,
        Onnx::String => DataType::Bytes,
        Onnx::Bool => DataType::Bool,
        Onnx::Float16 => DataType::Fp16,
        Onnx::Double => DataType::Fp64,
        Onnx::Uint32 => DataType::Uint32,
        Onnx::Uint64 => DataType::Uint64,
        Onnx::Bfloat16 => DataType::Bf16,
        _ => return None,
    })
}

/// The narrowest type of the protocol that holds every value of a type that the
/// protocol lacks.
pub(crate) fn wider_type(element: Onnx) -> Option<Onnx> {
    Some(match element {
        Onnx::Uint4 | Onnx::Uint2 => Onnx::Uint8,
        Onnx::Int4 | Onnx::Int2 => Onnx::Int8,
        Onnx::Float8E4M3Fn
        | Onnx::Float8E4M3Fnuz
        | Onnx::Float8E5M2
        | Onnx::Float8E5M2Fnuz
        | Onnx::Float4E2M1
        | Onnx::Float8E8M0 => Onnx::Float,
        _ => return None,
    })
}

/// `stored` as a tensor of the protocol named `name`, made wider where it must be.
/// Its values are in `raw_data`, or in `string_data`.
pub(crate) fn tensor(name: &str, stored: &TensorProto) -> Outcome<Tensor> {
    let shape: Vec<u64> = stored
        .dims
        .iter()
        .map(|&extent| u64::try_from(extent))
        .collect::<Result<_, _>>()?;
    let element = element_type(stored)?;
    if element == Onnx::String {
        return Ok(Tensor::from_bytes(name, shape, &stored.string_data)?);
    }
    let raw = stored.raw_data.clone().unwrap_or_default();
    let (datatype, data) = match protocol_type(element) {
        Some(datatype) => (datatype, raw),
        None => {
            let wider = wider_type(element)
                .and_then(protocol_type)
                .ok_or_else(|| format!("{element} has no wider type"))?;
            let count = usize::try_from(shape.iter().product::<u64>())?;
            (wider, widened(element, &raw, count))
        }
    };
    Ok(Tensor::new(name, datatype, shape, Zeroizing::new(data))?)
}

pub(crate) fn element_type(stored: &TensorProto) -> Outcome<Onnx> {
    let number = stored.data_type;
    Ok(Onnx::from_number(number).ok_or_else(|| format!("no element type has number {number}"))?)
}

fn widened(element: Onnx, raw: &[u8], count: usize) -> Vec<u8> {
    let bits = element.bits().map_or(8, |bits| bits as usize);
    let each = 8 / bits;
    let elements = (0..count).map(|index| {
        let byte = raw[index / each];
        byte >> (index % each * bits) & (0xff >> (8 - bits))
    });
    match element {
        Onnx::Uint4 | Onnx::Uint2 => elements.collect(),
        Onnx::Int4 | Onnx::Int2 => elements
            .map(|value| (((value << (8 - bits)) as i8) >> (8 - bits)) as u8)
            .collect(),
        _ => elements
            .flat_map(|value| small_float(element, value).to_le_bytes())
            .collect(),
    }
}

/// The value of a float of eight bits or fewer; see the ONNX documents "Float
/// stored in 8 bits" and "in 4 bits", and the OCP Microscaling formats 1.0.
fn small_float(element: Onnx, byte: u8) -> f32 {
    let (exponent_bits, mantissa_bits, bias) = match element {
        Onnx::Float8E4M3Fn => (4, 3, 7),
        Onnx::Float8E4M3Fnuz => (4, 3, 8),
        Onnx::Float8E5M2 => (5, 2, 15),
        Onnx::Float8E5M2Fnuz => (5, 2, 16),
        Onnx::Float4E2M1 => (2, 1, 1),
        // A power of two without sign, mantissa or zero.
        _ => {
            return if byte == 0xff {
                f32::NAN
            } else {
                2_f64.powi(i32::from(byte) - 127) as f32
            };
        }
    };
    let sign = byte >> (exponent_bits + mantissa_bits) & 1;
    let exponent = i32::from(byte >> mantissa_bits & ((1 << exponent_bits) - 1));
    let mantissa = byte & ((1 << mantissa_bits) - 1);
    let special = match element {
        Onnx::Float8E4M3Fn if byte & 0x7f == 0x7f => Some(f64::NAN),
        Onnx::Float8E4M3Fnuz | Onnx::Float8E5M2Fnuz if byte == 0x80 => Some(f64::NAN),
        Onnx::Float8E5M2 if exponent == 31 && mantissa == 0 => Some(f64::INFINITY),
        Onnx::Float8E5M2 if exponent == 31 => Some(f64::NAN),
        _ => None,
    };
    let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
    let magnitude = special.unwrap_or_else(|| match exponent {
        0 => fraction * 2_f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2_f64.powi(exponent - bias),
    });
    (if sign == 1 { -magnitude } else { magnitude }) as f32
}

/// The elements of a numeric tensor as 64-bit floats; integers beyond 53 bits are
/// rounded, as NumPy does when it compares with a tolerance.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    let data = tensor.data();
    match tensor.datatype() {
        DataType::Bool | DataType::Uint8 => data.iter().map(|&value| f64::from(value)).collect(),
        DataType::Int8 => data.iter().map(|&value| f64::from(value as i8)).collect(),
        DataType::Uint16 => each(data, |bytes| f64::from(u16::from_le_bytes(bytes))),
        DataType::Int16 => each(data, |bytes| f64::from(i16::from_le_bytes(bytes))),
        DataType::Uint32 => each(data, |bytes| f64::from(u32::from_le_bytes(bytes))),
        DataType::Int32 => each(data, |bytes| f64::from(i32::from_le_bytes(bytes))),
        DataType::Uint64 => each(data, |bytes| u64::from_le_bytes(bytes) as f64),
        DataType::Int64 => each(data, |bytes| i64::from_le_bytes(bytes) as f64),
        DataType::Fp16 => each(data, |bytes| half(u16::from_le_bytes(bytes))),
        DataType::Bf16 => each(data, |bytes| {
            f64::from(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
        }),
        DataType::Fp32 => each(data, |bytes| f64::from(f32::from_le_bytes(bytes))),
        DataType::Fp64 => each(data, f64::from_le_bytes),
        DataType::Bytes => Vec::new(),
    }
}

fn each<const SIZE: usize>(data: &[u8], number: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
    data.as_chunks()
        .0
        .iter()
        .map(|&bytes| number(bytes))
        .collect()
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let exponent = i32::from(bits >> 10 & 0x1f);
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    let magnitude = match (exponent, fraction) {
        (31, 0.0) => f64::INFINITY,
        (31, _) => f64::NAN,
        (0, _) => fraction * 2_f64.powi(-14),
        _ => (1.0 + fraction) * 2_f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 {
        -magnitude
    } else {
        magnitude
    }
}
