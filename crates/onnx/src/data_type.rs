//! Element types of tensors, and how many bytes their values take.

/// An element type of ONNX (`TensorProto.DataType`); the discriminants are the
/// numbers in the file. The six-bit floats of IR version 14 (27 and 28) are left out:
/// no runtime takes them yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
#[expect(missing_docs, reason = "named as in onnx.proto")]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4M3Fn = 17,
    Float8E4M3Fnuz = 18,
    Float8E5M2 = 19,
    Float8E5M2Fnuz = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2M1 = 23,
    Float8E8M0 = 24,
    Uint2 = 25,
    Int2 = 26,
}

impl DataType {
    /// All element types, by number.
    pub const ALL: [Self; 26] = [
        Self::Float,
        Self::Uint8,
        Self::Int8,
        Self::Uint16,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::String,
        Self::Bool,
        Self::Float16,
        Self::Double,
        Self::Uint32,
        Self::Uint64,
        Self::Complex64,
        Self::Complex128,
        Self::Bfloat16,
        Self::Float8E4M3Fn,
        Self::Float8E4M3Fnuz,
        Self::Float8E5M2,
        Self::Float8E5M2Fnuz,
        Self::Uint4,
        Self::Int4,
        Self::Float4E2M1,
        Self::Float8E8M0,
        Self::Uint2,
        Self::Int2,
    ];

    /// The element type with this number, if there is one.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(index).copied()
    }

    /// The number in the file.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// Bits of one element; `None` for STRING, whose elements differ.
    #[must_use]
    pub const fn bits(self) -> Option<u64> {
        Some(match self {
            Self::String => return None,
            Self::Uint2 | Self::Int2 => 2,
            Self::Uint4 | Self::Int4 | Self::Float4E2M1 => 4,
            Self::Uint8
            | Self::Int8
            | Self::Bool
            | Self::Float8E4M3Fn
            | Self::Float8E4M3Fnuz
            | Self::Float8E5M2
            | Self::Float8E5M2Fnuz
            | Self::Float8E8M0 => 8,
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => 16,
            Self::Float | Self::Int32 | Self::Uint32 => 32,
            Self::Int64 | Self::Double | Self::Uint64 | Self::Complex64 => 64,
            Self::Complex128 => 128,
        })
    }

    /// Bytes that a tensor of these extents takes in `raw_data`: elements under a
    /// byte are packed. `None` for STRING or if the number does not fit 64 bits.
    #[must_use]
    pub fn byte_length(self, dims: &[u64]) -> Option<u64> {
        let elements = element_count(dims)?;
        Some(elements.checked_mul(self.bits()?)?.div_ceil(8))
    }

    /// The name that ONNX gives it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "FLOAT",
            Self::Uint8 => "UINT8",
            Self::Int8 => "INT8",
            Self::Uint16 => "UINT16",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::String => "STRING",
            Self::Bool => "BOOL",
            Self::Float16 => "FLOAT16",
            Self::Double => "DOUBLE",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Complex64 => "COMPLEX64",
            Self::Complex128 => "COMPLEX128",
            Self::Bfloat16 => "BFLOAT16",
            Self::Float8E4M3Fn => "FLOAT8E4M3FN",
            Self::Float8E4M3Fnuz => "FLOAT8E4M3FNUZ",
            Self::Float8E5M2 => "FLOAT8E5M2",
            Self::Float8E5M2Fnuz => "FLOAT8E5M2FNUZ",
            Self::Uint4 => "UINT4",
            Self::Int4 => "INT4",
            Self::Float4E2M1 => "FLOAT4E2M1",
            Self::Float8E8M0 => "FLOAT8E8M0",
            Self::Uint2 => "UINT2",
            Self::Int2 => "INT2",
        }
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The product of the extents (1 for a scalar), or `None` if it exceeds 64 bits.
#[must_use]
pub fn element_count(dims: &[u64]) -> Option<u64> {
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_types_agree_both_ways() {
        for (index, data_type) in DataType::ALL.into_iter().enumerate() {
            assert_eq!(data_type.number(), index as i32 + 1);
            assert_eq!(DataType::from_number(data_type.number()), Some(data_type));
        }
        for number in [i32::MIN, -1, 0, 27, i32::MAX] {
            assert_eq!(DataType::from_number(number), None);
        }
    }

    #[test]
    fn lengths_pack_small_elements_and_never_overflow() {
        assert_eq!(DataType::Float.byte_length(&[3, 5]), Some(60));
        assert_eq!(DataType::Float.byte_length(&[]), Some(4));
        assert_eq!(DataType::Int4.byte_length(&[3]), Some(2));
        assert_eq!(DataType::Uint2.byte_length(&[5]), Some(2));
        assert_eq!(
            DataType::Float.byte_length(&[0, u64::MAX, u64::MAX]),
            Some(0)
        );
        assert_eq!(DataType::Float.byte_length(&[u64::MAX, 2]), None);
        assert_eq!(DataType::Double.byte_length(&[u64::MAX / 2]), None);
        assert_eq!(DataType::String.byte_length(&[1]), None);
    }
}
