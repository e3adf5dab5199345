//! A tensor whose name, datatype, shape and data agree.
//!
//! There is no other way to a [`Tensor`] than through the checks of
//! [`Tensor::new`], so that whoever holds one may index its data by its shape.

use std::fmt;

use zeroize::Zeroizing;

use crate::{DataType, Element, MAXIMUM_NAME_BYTES, MAXIMUM_RANK, TensorError};

/// Bytes of the length before each element of a BYTES tensor.
const LENGTH_PREFIX: usize = 4;

/// A named, typed array in row-major order.
///
/// The data is kept as the binary extension carries it: little-endian elements without padding;
/// for BYTES each element is a 32-bit little-endian length and that many bytes. It is wiped on drop.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    name: String,
    datatype: DataType,
    shape: Vec<u64>,
    elements: usize,
    data: Zeroizing<Vec<u8>>,
}

impl Drop for Tensor {
    /// `zeroize` wipes the elements of a vector one after the other, which takes 0.15 ms for the
    /// bytes of an image, and capacity without elements all at once.
    fn drop(&mut self) {
        self.data.clear();
    }
}

impl Tensor {
    /// Makes a tensor of data in the form of the binary extension.
    ///
    /// # Errors
    /// The [`TensorError`] that names what does not agree: the name's length, the rank, a product
    /// of the shape that overflows, a data length other than the shape's, a BOOL byte that is
    /// neither 0 nor 1, or BYTES elements that do not add up.
    pub fn new(
        name: impl Into<String>,
        datatype: DataType,
        shape: Vec<u64>,
        data: Zeroizing<Vec<u8>>,
    ) -> Result<Self, TensorError> {
        let name = name.into();
        check_name(&name)?;
        let elements = check_data(datatype, &shape, &data)?;
        Ok(Self {
            name,
            datatype,
            shape,
            elements,
            data,
        })
    }

    /// Makes a tensor of numbers.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_values<T: Element>(
        name: impl Into<String>,
        shape: Vec<u64>,
        values: &[T],
    ) -> Result<Self, TensorError> {
        let mut data = Zeroizing::new(Vec::with_capacity(size_of_val(values)));
        for value in values {
            value.append(&mut data);
        }
        Self::new(name, T::DATATYPE, shape, data)
    }

    /// Makes a BYTES tensor.
    ///
    /// # Errors
    /// As [`Tensor::new`], and [`TensorError::BytesTooLong`].
    pub fn from_bytes<T: AsRef<[u8]>>(
        name: impl Into<String>,
        shape: Vec<u64>,
        values: &[T],
    ) -> Result<Self, TensorError> {
        let length = values
            .iter()
            .map(|value| LENGTH_PREFIX + value.as_ref().len())
            .sum();
        let mut data = Zeroizing::new(Vec::with_capacity(length));
        for (index, value) in values.iter().enumerate() {
            let value = value.as_ref();
            let length =
                u32::try_from(value.len()).map_err(|_| TensorError::BytesTooLong { index })?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(value);
        }
        Self::new(name, DataType::Bytes, shape, data)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    #[must_use]
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// Its dimensions; none for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The product of its dimensions.
    #[must_use]
    pub fn element_count(&self) -> usize {
        self.elements
    }

    /// Its data, as the binary extension carries it.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Its numbers.
    ///
    /// # Errors
    /// [`TensorError::Datatype`] if it holds another type.
    pub fn to_values<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        if self.datatype != T::DATATYPE {
            return Err(TensorError::Datatype {
                expected: T::DATATYPE,
                found: self.datatype,
            });
        }
        Ok(self
            .data
            .chunks_exact(size_of::<T>())
            .map(T::from_little_endian)
            .collect())
    }

    /// The elements of a BYTES tensor.
    ///
    /// # Errors
    /// [`TensorError::Datatype`] if it holds another type.
    pub fn byte_strings(&self) -> Result<Elements<'_>, TensorError> {
        if self.datatype == DataType::Bytes {
            Ok(self.elements())
        } else {
            Err(TensorError::Datatype {
                expected: DataType::Bytes,
                found: self.datatype,
            })
        }
    }

    pub(crate) fn elements(&self) -> Elements<'_> {
        Elements { rest: &self.data }
    }

    /// The same data under another name.
    ///
    /// # Errors
    /// [`TensorError::NameTooLong`].
    pub fn renamed(mut self, name: impl Into<String>) -> Result<Self, TensorError> {
        let name = name.into();
        check_name(&name)?;
        self.name = name;
        Ok(self)
    }
}

impl fmt::Debug for Tensor {
    /// Without the data, which is the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("name", &self.name)
            .field("datatype", &self.datatype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// Walks the elements of a BYTES tensor; made by [`Tensor::byte_strings`].
#[derive(Clone)]
pub struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (element, rest) = split_element(self.rest).ok()?;
        self.rest = rest;
        Some(element)
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), TensorError> {
    if name.len() > MAXIMUM_NAME_BYTES {
        return Err(TensorError::NameTooLong { length: name.len() });
    }
    Ok(())
}

/// The product of a shape, if its elements can be addressed. Nothing was allocated by then.
pub(crate) fn element_count(datatype: DataType, shape: &[u64]) -> Result<usize, TensorError> {
    if shape.len() > MAXIMUM_RANK {
        return Err(TensorError::RankTooLarge);
    }
    let overflow = || TensorError::ShapeOverflow {
        shape: shape.to_vec(),
    };
    // A zero anywhere makes the product zero, whatever the other dimensions say.
    if shape.contains(&0) {
        return Ok(0);
    }
    let smallest = datatype.size().unwrap_or(LENGTH_PREFIX);
    let elements = shape
        .iter()
        .try_fold(1_usize, |product, &dimension| {
            product.checked_mul(usize::try_from(dimension).ok()?)
        })
        .ok_or_else(overflow)?;
    // `isize::MAX` bounds every allocation.
    elements
        .checked_mul(smallest)
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(overflow)?;
    Ok(elements)
}

/// Whether data is what datatype and shape ask for; gives the number of elements.
pub(crate) fn check_data(
    datatype: DataType,
    shape: &[u64],
    data: &[u8],
) -> Result<usize, TensorError> {
    let elements = element_count(datatype, shape)?;
    match datatype.size() {
        Some(size) => {
            let expected = elements * size;
            if data.len() != expected {
                return Err(TensorError::DataLength {
                    datatype,
                    shape: shape.to_vec(),
                    expected,
                    found: data.len(),
                });
            }
        }
        None => check_byte_strings(shape, elements, data)?,
    }
    if datatype == DataType::Bool
        && let Some(index) = data.iter().position(|&byte| byte > 1)
    {
        return Err(TensorError::NotABoolean {
            index,
            value: data[index],
        });
    }
    Ok(elements)
}

fn check_byte_strings(shape: &[u64], expected: usize, data: &[u8]) -> Result<(), TensorError> {
    let mut rest = data;
    let mut found = 0;
    while !rest.is_empty() {
        if found == expected {
            return Err(TensorError::ElementCount {
                shape: shape.to_vec(),
                expected,
                found: found + 1,
            });
        }
        (_, rest) = split_element(rest).map_err(|missing| TensorError::BytesTruncated {
            index: found,
            missing,
        })?;
        found += 1;
    }
    if found == expected {
        Ok(())
    } else {
        Err(TensorError::ElementCount {
            shape: shape.to_vec(),
            expected,
            found,
        })
    }
}

/// The first element and what follows it, or how many bytes are missing.
fn split_element(data: &[u8]) -> Result<(&[u8], &[u8]), usize> {
    let (prefix, rest) = data
        .split_first_chunk::<LENGTH_PREFIX>()
        .ok_or_else(|| LENGTH_PREFIX - data.len())?;
    let length = usize::try_from(u32::from_le_bytes(*prefix)).map_err(|_| usize::MAX)?;
    rest.split_at_checked(length)
        .ok_or_else(|| length - rest.len())
}
