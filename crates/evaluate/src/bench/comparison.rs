//! How far two answers differ.

use half::{bf16, f16};
use occlude_inference_protocol::{DataType, Tensor};

/// The largest differences found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Difference {
    /// Between two elements; [`f64::MAX`] where one is NaN or infinite and the other
    /// is not, since JSON has no infinity.
    pub(super) largest: f64,
    /// The largest finite float expected, without its sign.
    pub(super) largest_output: f64,
}

impl Difference {
    /// Compares every element of `answer` with `expected`.
    ///
    /// Floats by their distance, where NaN equals NaN; everything else counts 0 if a
    /// tensor is the same and 1 if not.
    ///
    /// # Errors
    /// A sentence if outputs differ in number, type or shape.
    pub(super) fn add(&mut self, answer: &[Tensor], expected: &[Tensor]) -> Result<(), String> {
        if answer.len() != expected.len() {
            return Err(format!(
                "it gives {} outputs, plain ONNX Runtime {}",
                answer.len(),
                expected.len()
            ));
        }
        for (answer, expected) in answer.iter().zip(expected) {
            let described = |tensor: &Tensor| format!("{} {:?}", tensor.datatype(), tensor.shape());
            if described(answer) != described(expected) {
                return Err(format!(
                    "output {:?} is {}, plain ONNX Runtime's {}",
                    answer.name(),
                    described(answer),
                    described(expected)
                ));
            }
            match (floats(answer), floats(expected)) {
                (Some(answer), Some(expected)) => {
                    for (found, expected) in answer.zip(expected) {
                        self.add_float(found, expected);
                    }
                }
                _ if answer.data() == expected.data() => {}
                _ => self.largest = self.largest.max(1.0),
            }
        }
        Ok(())
    }

    fn add_float(&mut self, found: f64, expected: f64) {
        if expected.is_finite() {
            self.largest_output = self.largest_output.max(expected.abs());
        }
        let same = found == expected || (found.is_nan() && expected.is_nan());
        let distance = (found - expected).abs();
        if !same {
            let distance = if distance.is_finite() {
                distance
            } else {
                f64::MAX
            };
            self.largest = self.largest.max(distance);
        }
    }
}

/// The elements of a tensor of floats.
fn floats(tensor: &Tensor) -> Option<Box<dyn Iterator<Item = f64> + '_>> {
    fn elements<const SIZE: usize>(
        tensor: &Tensor,
        convert: fn([u8; SIZE]) -> f64,
    ) -> Option<Box<dyn Iterator<Item = f64> + '_>> {
        let (elements, _) = tensor.data().as_chunks::<SIZE>();
        Some(Box::new(elements.iter().map(move |&bytes| convert(bytes))))
    }
    match tensor.datatype() {
        DataType::Fp16 => elements(tensor, |bytes| f16::from_le_bytes(bytes).into()),
        DataType::Bf16 => elements(tensor, |bytes| bf16::from_le_bytes(bytes).into()),
        DataType::Fp32 => elements(tensor, |bytes| f32::from_le_bytes(bytes).into()),
        DataType::Fp64 => elements(tensor, f64::from_le_bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(answer: &Tensor, expected: &Tensor) -> Difference {
        let mut difference = Difference::default();
        difference
            .add(std::slice::from_ref(answer), std::slice::from_ref(expected))
            .unwrap();
        difference
    }

    fn single(values: &[f32]) -> Tensor {
        Tensor::from_values("y", vec![values.len() as u64], values).unwrap()
    }

    #[test]
    fn floats_differ_by_their_distance_and_nan_equals_nan() {
        let found = difference(
            &single(&[1.0, -8.0, f32::NAN, f32::INFINITY]),
            &single(&[1.5, -8.0, f32::NAN, f32::INFINITY]),
        );
        assert_eq!((found.largest, found.largest_output), (0.5, 8.0));
    }

    #[test]
    fn a_number_for_nan_or_infinity_is_the_largest_difference() {
        for (answer, expected) in [
            (1.0, f32::NAN),
            (f32::NAN, 1.0),
            (f32::INFINITY, f32::NEG_INFINITY),
            (f32::INFINITY, 1.0),
        ] {
            assert_eq!(
                difference(&single(&[answer]), &single(&[expected])).largest,
                f64::MAX
            );
        }
    }

    #[test]
    fn half_precision_is_compared_as_numbers() {
        let half = |value: f32| {
            let bytes = f16::from_f32(value).to_le_bytes().to_vec();
            Tensor::new("y", DataType::Fp16, vec![1], zeroize::Zeroizing::new(bytes)).unwrap()
        };
        assert_eq!(difference(&half(2.0), &half(1.75)).largest, 0.25);
    }

    #[test]
    fn other_types_are_the_same_or_differ_by_one() {
        let labels = |label: i64| Tensor::from_values("y", vec![1], &[label]).unwrap();
        assert_eq!(difference(&labels(7), &labels(7)).largest, 0.0);
        assert_eq!(difference(&labels(7), &labels(2)).largest, 1.0);
    }

    #[test]
    fn another_shape_is_told() {
        let mut found = Difference::default();
        let error = found
            .add(&[single(&[1.0])], &[single(&[1.0, 2.0])])
            .unwrap_err();
        assert_eq!(
            error,
            "output \"y\" is FP32 [1], plain ONNX Runtime's FP32 [2]"
        );
        let error = found.add(&[], &[single(&[1.0])]).unwrap_err();
        assert_eq!(error, "it gives 0 outputs, plain ONNX Runtime 1");
    }
}
