//! Tensors as files: `.npy`, `.npz` and `.json` in; `.npz`, `.json` or a table out.
//!
//! A `.npy` file says its own type and shape. A `.json` file holds nested lists, so
//! its type is the one that the model's metadata names.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use npyz::{DType, NpyHeader, Order, TypeChar, TypeStr, WriterBuilder};
use occlude_inference_protocol::{
    DataType, Element, InferRequest, Tensor, TensorError, TensorMetadata,
};
use serde_json::Value;
use zeroize::Zeroizing;
use zip::write::SimpleFileOptions;

use crate::output;

/// A file larger than this is no input of one request: requests are far smaller.
const LARGEST_INPUT: u64 = 4 << 30;

/// Numbers shown of each output before the table says how many follow.
const SHOWN_VALUES: usize = 16;

/// Why a tensor file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TensorFileError {
    #[error("--input {argument}: expected NAME=FILE")]
    NoName { argument: String },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: inputs are .npy or .json files", path.display())]
    UnknownForm { path: PathBuf },
    #[error("{}: outputs are written to .npz or .json files", path.display())]
    UnknownOutputForm { path: PathBuf },
    #[error("{}: {what} is not supported in .npy files: expected little-endian bool, integers or floats in C order", path.display())]
    UnsupportedArray { path: PathBuf, what: String },
    #[error("{} is {size} bytes: an input has at most {LARGEST_INPUT}", path.display())]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{}: the header promises {expected} bytes of data, the file has {found}", path.display())]
    WrongLength {
        path: PathBuf,
        expected: u64,
        found: u64,
    },
    #[error("{}: {reason}", path.display())]
    Archive { path: PathBuf, reason: String },
    #[error("the model has no input {name:?}; its inputs are {expected}")]
    UnknownInput { name: String, expected: String },
    #[error("{}: {reason}", path.display())]
    Json { path: PathBuf, reason: String },
    #[error("output {name:?} is {datatype}, which has no form as text: choose --output FILE.npz")]
    NoText { name: String, datatype: DataType },
    #[error("output {name:?}: {source}")]
    Tensor { name: String, source: TensorError },
}

/// One `--input NAME=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl std::str::FromStr for InputFile {
    type Err = TensorFileError;

    fn from_str(argument: &str) -> Result<Self, Self::Err> {
        let (name, path) = match argument.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => (name, path),
            _ => {
                return Err(TensorFileError::NoName {
                    argument: argument.to_owned(),
                });
            }
        };
        let path = PathBuf::from(path);
        match extension(&path) {
            Some("npy" | "json") => Ok(Self {
                name: name.to_owned(),
                path,
            }),
            _ => Err(TensorFileError::UnknownForm { path }),
        }
    }
}

impl InputFile {
    /// Reads the tensor; `inputs` is what the model takes.
    pub(crate) fn read(&self, inputs: &[TensorMetadata]) -> Result<Tensor, TensorFileError> {
        let (file, size) = open(&self.path)?;
        if extension(&self.path) == Some("npy") {
            self.read_npy(BufReader::new(file), size)
        } else {
            self.read_json(BufReader::new(file), inputs)
        }
    }

    fn read_npy(&self, mut reader: impl Read, size: u64) -> Result<Tensor, TensorFileError> {
        let io = |source| TensorFileError::Io {
            path: self.path.clone(),
            source,
        };
        let unsupported = |what: String| TensorFileError::UnsupportedArray {
            path: self.path.clone(),
            what,
        };
        let header = NpyHeader::from_reader(&mut reader).map_err(io)?;
        let datatype = match header.dtype() {
            DType::Plain(plain) => {
                datatype_of(&plain).ok_or_else(|| unsupported(format!("the type {plain}")))?
            }
            other => return Err(unsupported(format!("the type {}", other.descr()))),
        };
        // One-dimensional arrays are in both orders at once.
        let dimensions = header.shape().iter().filter(|&&extent| extent != 1).count();
        if header.order() == Order::Fortran && dimensions > 1 {
            return Err(unsupported("Fortran order".to_owned()));
        }
        let shape = header.shape().to_vec();
        let expected = shape
            .iter()
            .try_fold(datatype.size().unwrap_or(1) as u64, |product, &extent| {
                product.checked_mul(extent)
            })
            .filter(|&expected| expected <= size)
            .ok_or_else(|| unsupported("a shape larger than the file".to_owned()))?;
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        reader.read_to_end(&mut bytes).map_err(io)?;
        let found = bytes.len() as u64;
        if found != expected {
            return Err(TensorFileError::WrongLength {
                path: self.path.clone(),
                expected,
                found,
            });
        }
        Tensor::new(self.name.clone(), datatype, shape, Zeroizing::new(bytes))
            .map_err(|error| unsupported(error.to_string()))
    }

    /// Through the protocol's own reader, so that a file means what a request means.
    fn read_json(
        &self,
        reader: impl Read,
        inputs: &[TensorMetadata],
    ) -> Result<Tensor, TensorFileError> {
        let malformed = |reason: String| TensorFileError::Json {
            path: self.path.clone(),
            reason,
        };
        let input = inputs
            .iter()
            .find(|input| input.name == self.name)
            .ok_or_else(|| TensorFileError::UnknownInput {
                name: self.name.clone(),
                expected: inputs
                    .iter()
                    .map(|input| input.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        let data: Value =
            serde_json::from_reader(reader).map_err(|error| malformed(error.to_string()))?;
        let request = serde_json::json!({
            "inputs": [{
                "name": self.name,
                "datatype": input.datatype,
                "shape": shape_of(&data),
                "data": data,
            }],
        });
        let request = InferRequest::decode(request.to_string().as_bytes(), None)
            .map_err(|error| malformed(error.to_string()))?;
        request
            .inputs
            .into_iter()
            .next()
            .ok_or_else(|| malformed("no tensor".to_owned()))
    }
}

/// Reads a `.npy` file.
pub(crate) fn read_array(path: &Path) -> Result<Tensor, TensorFileError> {
    let (file, size) = open(path)?;
    let array = InputFile {
        name: "array".to_owned(),
        path: path.to_owned(),
    };
    array.read_npy(BufReader::new(file), size)
}

/// Reads every array of a `.npz` file, which holds a `.npy` file for each input.
pub(crate) fn read_npz(path: &Path) -> Result<Vec<Tensor>, TensorFileError> {
    let malformed = |reason: String| TensorFileError::Archive {
        path: path.to_owned(),
        reason,
    };
    let (file, _) = open(path)?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|error| malformed(error.to_string()))?;
    (0..archive.len())
        .map(|index| {
            let unreadable =
                |error| malformed(format!("{error}; numpy.savez writes what can be read here"));
            let entry = archive.by_index(index).map_err(unreadable)?;
            let name = entry.name().map_err(unreadable)?.into_owned();
            let input = InputFile {
                name: name.strip_suffix(".npy").unwrap_or(&name).to_owned(),
                path: path.join(&name),
            };
            let size = entry.size();
            input.read_npy(entry.take(LARGEST_INPUT), size)
        })
        .collect()
}

/// Opens a file of at most [`LARGEST_INPUT`] bytes, and says how many it has.
fn open(path: &Path) -> Result<(File, u64), TensorFileError> {
    let io = |source| TensorFileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size > LARGEST_INPUT {
        return Err(TensorFileError::TooLarge {
            path: path.to_owned(),
            size,
        });
    }
    Ok((file, size))
}

/// Refuses an output file whose form is not known, before anything is asked.
pub(crate) fn check_output(path: &Path) -> Result<(), TensorFileError> {
    match extension(path) {
        Some("npz" | "json") => Ok(()),
        _ => Err(TensorFileError::UnknownOutputForm {
            path: path.to_owned(),
        }),
    }
}

/// Writes outputs to a `.npz` or `.json` file; nothing half-written is left.
pub(crate) fn write(path: &Path, outputs: &[Tensor]) -> Result<(), TensorFileError> {
    let io = |source: std::io::Error| TensorFileError::Io {
        path: path.to_owned(),
        source,
    };
    check_output(path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    if extension(path) == Some("npz") {
        write_npz(file.as_file_mut(), outputs).map_err(io)?;
    } else {
        let json = to_json(outputs)?;
        serde_json::to_writer(file.as_file_mut(), &json).map_err(|error| io(error.into()))?;
    }
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

/// Outputs as one JSON object: name to datatype, shape and data in row-major order.
///
/// JSON has no NaN and no infinities: they become null. Byte strings that are no
/// UTF-8 become lists of bytes.
pub(crate) fn to_json(outputs: &[Tensor]) -> Result<Value, TensorFileError> {
    let mut object = serde_json::Map::new();
    for tensor in outputs {
        let value = serde_json::json!({
            "datatype": tensor.datatype(),
            "shape": tensor.shape(),
            "data": values(tensor)?,
        });
        object.insert(tensor.name().to_owned(), value);
    }
    Ok(object.into())
}

/// Prints outputs for people: one row each, long ones cut.
pub(crate) fn print_table(outputs: &[Tensor]) -> Result<(), TensorFileError> {
    let mut rows = Vec::new();
    for tensor in outputs {
        let values = values(tensor)?;
        let shown = values.iter().take(SHOWN_VALUES).map(|value| match value {
            Value::Null => "NaN".to_owned(),
            Value::Number(number) if tensor.datatype() == DataType::Fp32 => number
                .as_f64()
                .map_or_else(String::new, |number| (number as f32).to_string()),
            other => other.to_string(),
        });
        let mut shown = shown.collect::<Vec<_>>().join(" ");
        if values.len() > SHOWN_VALUES {
            let more = output::grouped((values.len() - SHOWN_VALUES) as u64);
            shown.push_str(&format!(" … {more} more"));
        }
        let shape = tensor
            .shape()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("x");
        rows.push(vec![
            tensor.name().to_owned(),
            tensor.datatype().to_string(),
            shape,
            shown,
        ]);
    }
    output::table(&["output", "type", "shape", "values"], rows, &[]);
    Ok(())
}

/// The elements in row-major order.
fn values(tensor: &Tensor) -> Result<Vec<Value>, TensorFileError> {
    fn numbers<T: Element + Into<Value>>(tensor: &Tensor) -> Result<Vec<Value>, TensorError> {
        Ok(tensor
            .to_values::<T>()?
            .into_iter()
            .map(Into::into)
            .collect())
    }
    let values = match tensor.datatype() {
        DataType::Bool => numbers::<bool>(tensor),
        DataType::Uint8 => numbers::<u8>(tensor),
        DataType::Uint16 => numbers::<u16>(tensor),
        DataType::Uint32 => numbers::<u32>(tensor),
        DataType::Uint64 => numbers::<u64>(tensor),
        DataType::Int8 => numbers::<i8>(tensor),
        DataType::Int16 => numbers::<i16>(tensor),
        DataType::Int32 => numbers::<i32>(tensor),
        DataType::Int64 => numbers::<i64>(tensor),
        DataType::Fp32 => numbers::<f32>(tensor),
        DataType::Fp64 => numbers::<f64>(tensor),
        DataType::Bytes => tensor.byte_strings().map(|strings| {
            strings
                .map(|bytes| std::str::from_utf8(bytes).map_or_else(|_| bytes.into(), Value::from))
                .collect()
        }),
        other => {
            return Err(TensorFileError::NoText {
                name: tensor.name().to_owned(),
                datatype: other,
            });
        }
    };
    values.map_err(|source| TensorFileError::Tensor {
        name: tensor.name().to_owned(),
        source,
    })
}

fn write_npz(file: &mut File, outputs: &[Tensor]) -> std::io::Result<()> {
    let mut archive = zip::ZipWriter::new(file);
    let options = SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .large_file(true);
    for tensor in outputs {
        let Some(descriptor) = npy_type(tensor.datatype()) else {
            return Err(std::io::Error::other(format!(
                "output {:?} is {}, which .npz cannot hold: choose .json",
                tensor.name(),
                tensor.datatype()
            )));
        };
        archive.start_file(format!("{}.npy", tensor.name()), options)?;
        let plain: TypeStr = descriptor.parse().map_err(std::io::Error::other)?;
        npyz::WriteOptions::new_header_only()
            .dtype(DType::Plain(plain))
            .shape(tensor.shape())
            .writer(&mut archive)
            .write_header_only()?;
        archive.write_all(tensor.data())?;
    }
    archive.finish()?;
    Ok(())
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|extension| extension.to_str())
}

/// NumPy's name of a type; strings and bfloat16 have none that is portable.
fn npy_type(datatype: DataType) -> Option<&'static str> {
    Some(match datatype {
        DataType::Bool => "|b1",
        DataType::Uint8 => "|u1",
        DataType::Uint16 => "<u2",
        DataType::Uint32 => "<u4",
        DataType::Uint64 => "<u8",
        DataType::Int8 => "|i1",
        DataType::Int16 => "<i2",
        DataType::Int32 => "<i4",
        DataType::Int64 => "<i8",
        DataType::Fp16 => "<f2",
        DataType::Fp32 => "<f4",
        DataType::Fp64 => "<f8",
        _ => return None,
    })
}

fn datatype_of(plain: &TypeStr) -> Option<DataType> {
    if plain.endianness() == npyz::Endianness::Big && plain.size_field() > 1 {
        return None;
    }
    Some(match (plain.type_char(), plain.size_field()) {
        (TypeChar::Bool, 1) => DataType::Bool,
        (TypeChar::Uint, 1) => DataType::Uint8,
        (TypeChar::Uint, 2) => DataType::Uint16,
        (TypeChar::Uint, 4) => DataType::Uint32,
        (TypeChar::Uint, 8) => DataType::Uint64,
        (TypeChar::Int, 1) => DataType::Int8,
        (TypeChar::Int, 2) => DataType::Int16,
        (TypeChar::Int, 4) => DataType::Int32,
        (TypeChar::Int, 8) => DataType::Int64,
        (TypeChar::Float, 2) => DataType::Fp16,
        (TypeChar::Float, 4) => DataType::Fp32,
        (TypeChar::Float, 8) => DataType::Fp64,
        _ => return None,
    })
}

/// The shape that nested lists have along their first elements.
fn shape_of(value: &Value) -> Vec<u64> {
    let mut shape = Vec::new();
    let mut inner = Some(value);
    while let Some(Value::Array(elements)) = inner {
        shape.push(elements.len() as u64);
        inner = elements.first();
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.save` of `numpy.array([[1.5, -2.0, 0.25]], dtype=numpy.float32)`.
    const NUMPY_FILE: &[u8] = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }                                                          \n\x00\x00\xc0?\x00\x00\x00\xc0\x00\x00\x80>";

    fn input(name: &str, bytes: &[u8]) -> (tempfile::TempDir, InputFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (
            folder,
            InputFile {
                name: "x".to_owned(),
                path,
            },
        )
    }

    #[test]
    fn a_file_that_numpy_wrote_is_read() {
        let (_folder, file) = input("x.npy", NUMPY_FILE);
        let tensor = file.read(&[]).unwrap();
        assert_eq!(
            (tensor.datatype(), tensor.shape()),
            (DataType::Fp32, &[1, 3][..])
        );
        assert_eq!(values(&tensor).unwrap(), [1.5, -2.0, 0.25].map(Value::from));
    }

    #[test]
    fn a_cut_file_and_an_unknown_form_are_refused() {
        let (_folder, file) = input("x.npy", &NUMPY_FILE[..NUMPY_FILE.len() - 1]);
        let error = file.read(&[]).unwrap_err();
        assert!(
            matches!(
                error,
                TensorFileError::WrongLength {
                    expected: 12,
                    found: 11,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn an_input_needs_a_name_and_a_file() {
        for argument in ["x.npy", "=x.npy", "x="] {
            let error = argument.parse::<InputFile>().unwrap_err();
            assert!(
                matches!(error, TensorFileError::NoName { argument: ref given } if given == argument)
            );
        }
        assert_eq!(
            "x=x.png".parse::<InputFile>().unwrap_err().to_string(),
            "x.png: inputs are .npy or .json files"
        );
    }

    #[test]
    fn outputs_written_as_npz_read_back_as_they_were() {
        let (folder, file) = input("x.npy", NUMPY_FILE);
        let tensor = file.read(&[]).unwrap();
        let path = folder.path().join("out.npz");
        write(&path, std::slice::from_ref(&tensor)).unwrap();
        assert_eq!(read_npz(&path).unwrap(), [tensor]);
        let mut archive = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
        let mut bytes = Vec::new();
        archive
            .by_name("x.npy")
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert!(bytes.starts_with(b"\x93NUMPY"));
    }

    #[test]
    fn what_is_no_archive_is_no_npz() {
        let (_folder, file) = input("x.npz", NUMPY_FILE);
        let error = read_npz(&file.path).unwrap_err();
        assert!(matches!(error, TensorFileError::Archive { .. }), "{error}");
    }
}
