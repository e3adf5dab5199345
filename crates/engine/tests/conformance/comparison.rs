//! Whether two tensors are the same by the rule of `onnx.backend.test`: type and
//! shape equal, strings equal, and numbers `a` near `b`, which is
//! `|a - b| <= absolute + relative * |b|`. NaN is near NaN, and an infinity near
//! itself (`numpy.testing.assert_allclose`).

use occlude_inference_protocol::{DataType, Tensor};

use crate::elements::numbers;
use crate::node_test::Tolerance;

/// Two units in the last place of BF16, which the runner of `onnx.backend.test`
/// allows whatever the test says.
const BF16_RELATIVE: f64 = 1.0 / 64.0;

/// What tells `found` from `expected` first, if anything does.
pub(crate) fn difference(
    found: &[Tensor],
    expected: &[Tensor],
    tolerance: Tolerance,
) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} outputs, not {}", found.len(), expected.len()));
    }
    found.iter().zip(expected).find_map(|(found, expected)| {
        one_difference(found, expected, tolerance)
            .map(|difference| format!("output {}: {difference}", expected.name()))
    })
}

fn one_difference(found: &Tensor, expected: &Tensor, mut tolerance: Tolerance) -> Option<String> {
    if found.datatype() != expected.datatype() {
        return Some(format!("{}, not {}", found.datatype(), expected.datatype()));
    }
    if found.shape() != expected.shape() {
        let (found, expected) = (found.shape(), expected.shape());
        return Some(format!("shape {found:?}, not {expected:?}"));
    }
    if expected.datatype() == DataType::Bytes {
        return (found.data() != expected.data()).then(|| "other strings".to_owned());
    }
    if expected.datatype() == DataType::Bf16 {
        tolerance.relative = tolerance.relative.max(BF16_RELATIVE);
    }
    let (found, expected) = (numbers(found), numbers(expected));
    let apart: Vec<usize> = (0..expected.len())
        .filter(|&index| !is_near(found[index], expected[index], tolerance))
        .collect();
    let first = *apart.first()?;
    Some(format!(
        "{} of {} elements, the first at {first}: {:e}, not {:e}",
        apart.len(),
        expected.len(),
        found[first],
        expected[first],
    ))
}

fn is_near(found: f64, expected: f64, tolerance: Tolerance) -> bool {
    if found.is_finite() && expected.is_finite() {
        return (found - expected).abs()
            <= tolerance.absolute + tolerance.relative * expected.abs();
    }
    found == expected || (found.is_nan() && expected.is_nan())
}
