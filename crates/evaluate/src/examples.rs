//! Inputs of many examples, a few at a time.

use occlude_inference_protocol::{DataType, Tensor, TensorMetadata};
use zeroize::Zeroizing;

/// Inputs that are asked about at once, where models leave that open.
const AT_ONCE: u64 = 256;

/// Why inputs are not those of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExamplesError {
    /// An array that is not an input, or one that is missing.
    #[error("the inputs are {found:?}, the {whose} takes {expected:?}")]
    Inputs {
        /// Whose they should be.
        whose: &'static str,
        /// The arrays that there are.
        found: Vec<String>,
        /// The inputs of the model.
        expected: Vec<String>,
    },
    /// Arrays that do not hold one example for each first index.
    #[error(
        "input {input:?} cannot be cut into examples: expected numbers, with the same first extent as the others"
    )]
    Examples {
        /// The array.
        input: String,
    },
}

/// The inputs under the names of a model's own; of two single ones the names do not matter.
pub(crate) fn named(
    whose: &'static str,
    inputs: &[Tensor],
    wanted: &[TensorMetadata],
) -> Result<Vec<Tensor>, ExamplesError> {
    if let ([input], [wanted]) = (inputs, wanted) {
        return Ok(vec![input.clone().renamed(wanted.name.as_str()).map_err(
            |_| ExamplesError::Examples {
                input: input.name().to_owned(),
            },
        )?]);
    }
    let has = |wanted: &TensorMetadata| inputs.iter().any(|input| input.name() == wanted.name);
    if inputs.len() == wanted.len() && wanted.iter().all(has) {
        return Ok(inputs.to_vec());
    }
    Err(ExamplesError::Inputs {
        whose,
        found: inputs.iter().map(|input| input.name().to_owned()).collect(),
        expected: wanted.iter().map(|wanted| wanted.name.clone()).collect(),
    })
}

/// The first extent, which all inputs share.
pub(crate) fn examples(inputs: &[Tensor]) -> Result<u64, ExamplesError> {
    let first = inputs.first().and_then(|input| input.shape().first());
    let wrong = inputs.iter().find(|input| {
        input.datatype() == DataType::Bytes
            || input.shape().first().is_none_or(|own| Some(own) != first)
    });
    match wrong {
        None => Ok(first.copied().unwrap_or(0)),
        Some(input) => Err(ExamplesError::Examples {
            input: input.name().to_owned(),
        }),
    }
}

/// Where each part of so many examples begins and how many it has, for models with these
/// inputs. Models of a fixed size take no fewer, so that what does not fill a part of theirs
/// is left out.
pub(crate) fn parts<'a>(
    examples: u64,
    inputs: impl IntoIterator<Item = &'a TensorMetadata>,
) -> Vec<(u64, u64)> {
    let firsts = inputs.into_iter().filter_map(|input| input.shape.first());
    let fixed = firsts.filter_map(|first| u64::try_from(*first).ok()).max();
    let at_once = fixed.unwrap_or(AT_ONCE).max(1);
    let fewest = if fixed.is_some() { at_once } else { 1 };
    let (mut at, mut parts) = (0, Vec::new());
    while examples - at >= fewest {
        let rows = at_once.min(examples - at);
        parts.push((at, rows));
        at += rows;
    }
    parts
}

/// Some of the examples.
pub(crate) fn cut(inputs: &[Tensor], at: u64, rows: u64) -> Result<Vec<Tensor>, ExamplesError> {
    let some = |input: &Tensor| {
        let (first, rest) = input.shape().split_first()?;
        let length = input.data().len() / usize::try_from(*first).ok()?;
        let (at, count) = (usize::try_from(at).ok()?, usize::try_from(rows).ok()?);
        let data = input.data().get(at * length..(at + count) * length)?;
        let shape = [&[rows], rest].concat();
        Tensor::new(
            input.name(),
            input.datatype(),
            shape,
            Zeroizing::new(data.to_vec()),
        )
        .ok()
    };
    inputs
        .iter()
        .map(|input| {
            some(input).ok_or_else(|| ExamplesError::Examples {
                input: input.name().to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_many_as_a_model_takes() {
        let input = |first| TensorMetadata {
            name: "x".to_owned(),
            datatype: DataType::Fp32,
            shape: vec![first, 2],
        };
        let of = |examples, first| parts(examples, &[input(first)]);
        assert_eq!(of(7, 3), [(0, 3), (3, 3)]);
        assert_eq!(of(6, 3), [(0, 3), (3, 3)]);
        assert_eq!(of(2, 3), []);
        assert_eq!(of(0, -1), []);
        assert_eq!(of(AT_ONCE + 1, -1), [(0, AT_ONCE), (AT_ONCE, 1)]);
        assert_eq!(of(2, 0), [(0, 1), (1, 1)]);
    }

    #[test]
    fn inputs_are_cut_by_their_first_extent() {
        let image = Tensor::from_values("image", vec![3, 2], &[0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let image = image.unwrap();
        assert_eq!(examples(std::slice::from_ref(&image)).unwrap(), 3);
        let middle = cut(std::slice::from_ref(&image), 1, 1).unwrap();
        assert_eq!(middle[0].shape(), [1, 2]);
        assert_eq!(middle[0].to_values::<f32>().unwrap(), [2.0, 3.0]);
        let other = Tensor::from_values("scale", vec![2], &[0.0_f32; 2]).unwrap();
        assert!(examples(&[image, other]).is_err());
    }
}
