//! Rust's numbers as elements of a tensor.

use crate::DataType;

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that one of the protocol's datatypes is made of.
pub trait Element: sealed::Sealed + Copy {
    /// That datatype.
    const DATATYPE: DataType;

    /// Appends the value's little-endian bytes.
    fn append(self, data: &mut Vec<u8>);

    /// Reads a value of exactly its size in bytes.
    ///
    /// # Panics
    /// If there are fewer or more bytes.
    fn from_little_endian(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($number:ty => $datatype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $number {}
        impl Element for $number {
            const DATATYPE: DataType = DataType::$datatype;

            fn append(self, data: &mut Vec<u8>) {
                data.extend_from_slice(&self.to_le_bytes());
            }

            fn from_little_endian(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<Self>()];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }
        }
    )*};
}

numbers! {
    u8 => Uint8,
    u16 => Uint16,
    u32 => Uint32,
    u64 => Uint64,
    i8 => Int8,
    i16 => Int16,
    i32 => Int32,
    i64 => Int64,
    f32 => Fp32,
    f64 => Fp64,
}

impl sealed::Sealed for bool {}
impl Element for bool {
    const DATATYPE: DataType = DataType::Bool;

    fn append(self, data: &mut Vec<u8>) {
        data.push(u8::from(self));
    }

    fn from_little_endian(bytes: &[u8]) -> Self {
        let mut array = [0];
        array.copy_from_slice(bytes);
        array[0] != 0
    }
}
