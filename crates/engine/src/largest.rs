//! The largest shape of an input, as whoever runs the model promises it.

use std::fmt;
use std::str::FromStr;

/// The largest shape that requests may give an input: memory is planned for it, and
/// larger ones are refused.
///
/// Written `NAME=1x3x224x224`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargestShape {
    /// The input's name.
    pub input: String,
    /// Its extents, each at least 1.
    pub extents: Vec<u64>,
}

/// A text that is no [`LargestShape`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an input's name and its largest extents, such as image=1x3x224x224")]
pub struct LargestShapeError;

impl FromStr for LargestShape {
    type Err = LargestShapeError;

    fn from_str(text: &str) -> Result<Self, LargestShapeError> {
        // Names may hold an equals sign, extents do not.
        let (input, extents) = text.rsplit_once('=').ok_or(LargestShapeError)?;
        let extents: Option<Vec<u64>> = extents
            .split('x')
            .map(|extent| extent.parse().ok().filter(|&extent| extent > 0))
            .collect();
        match extents {
            Some(extents) if !input.is_empty() => Ok(Self {
                input: input.to_owned(),
                extents,
            }),
            _ => Err(LargestShapeError),
        }
    }
}

impl fmt::Display for LargestShape {
    /// In a form that [`FromStr`] reads back as the same shape.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extents: Vec<String> = self.extents.iter().map(ToString::to_string).collect();
        write!(f, "{}={}", self.input, extents.join("x"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_largest_shape_reads_back_as_it_is_written() {
        for (text, input, extents) in [
            ("image=1x3x224x224", "image", vec![1, 3, 224, 224]),
            ("input_ids=128", "input_ids", vec![128]),
            ("a=b=2x3", "a=b", vec![2, 3]),
        ] {
            let shape: LargestShape = text.parse().unwrap();
            assert_eq!((shape.input.as_str(), &shape.extents), (input, &extents));
            assert_eq!(shape.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_shape_is_refused() {
        for text in [
            "", "x", "x=", "=1x2", "x=0", "x=1x", "x=1,2", "x=-1", "x=1x0x2",
        ] {
            assert_eq!(
                text.parse::<LargestShape>(),
                Err(LargestShapeError),
                "{text}"
            );
        }
    }
}
