//! Random layers against ONNX Runtime: convolutions and matrix products with what
//! follows them in networks, their weights resident and streamed.
//!
//! The reference is ONNX Runtime's own run of the plain model, and the tolerance
//! is what rounding can do to either (see [`signal`]). Where an input is not finite,
//! outputs must be not finite wherever ONNX Runtime's are.
//!
//! `PROPTEST_CASES` sets how many networks each test draws.

mod cases;
#[path = "../../../kernels/tests/definition/filtering.rs"]
mod filtering;
mod network;
mod signal;
mod steps;
#[path = "../support/mod.rs"]
mod support;
mod windows;

use std::fmt::Display;

use network::{Network, Request};
use occlude_engine::Model;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use signal::Signal;
use support::{everything_streamed, opened, plain_run, property_tests, runtime, two_threads};

/// Networks for each test unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 128;

/// Each model is loaded once and answers so many requests, the second with a
/// larger batch if the model allows it.
const REQUESTS: u64 = 2;

proptest! {
    #![proptest_config(property_tests(CASES))]

    #[test]
    fn convolutions_are_as_near_as_rounding_allows(network in cases::convolution()) {
        compare(&network)?;
    }

    #[test]
    fn chains_of_convolutions_are_as_near_as_rounding_allows(network in cases::chain()) {
        compare(&network)?;
    }

    #[test]
    fn convolutions_in_tiles_are_as_near_as_rounding_allows(
        network in cases::tiled_convolution(),
    ) {
        compare(&network)?;
    }

    #[test]
    fn transposed_convolutions_are_as_near_as_rounding_allows(
        network in cases::transposed_convolution(),
    ) {
        compare(&network)?;
    }

    #[test]
    fn gemms_are_as_near_as_rounding_allows(network in cases::gemm()) {
        compare(&network)?;
    }

    #[test]
    fn matrix_products_are_as_near_as_rounding_allows(network in cases::matrix_product()) {
        compare(&network)?;
    }

    #[test]
    fn what_is_not_finite_stays_so_through_convolutions(mut network in cases::convolution()) {
        network.has_specials = true;
        compare(&network)?;
    }

    #[test]
    fn what_is_not_finite_stays_so_through_products(
        mut network in prop_oneof![cases::gemm(), cases::matrix_product()],
    ) {
        network.has_specials = true;
        compare(&network)?;
    }
}

fn compare(network: &Network) -> TestCaseResult {
    let requests: Vec<Request> = (0..REQUESTS)
        .map(|number| network.request(number))
        .collect();
    let container = opened(&requests[0].model);
    let load =
        |options| Model::load(runtime(), &container, &options).map_err(|error| failed(&error));
    let resident = load(two_threads())?;
    let streamed = load(everything_streamed())?;
    for request in requests {
        let plain = plain_answer(&request);
        near(&plain, &request.expected, None)
            .map_err(|why| failed(&format!("plain ONNX Runtime: {why}")))?;
        for (how, model) in [("resident", &resident), ("streamed", &streamed)] {
            let answers = model
                .run(request.inputs.clone(), &[])
                .map_err(|error| failed(&error))?;
            let shape: Vec<u64> = request.expected.shape.iter().map(|&n| n as u64).collect();
            prop_assert_eq!(answers[0].shape(), shape.as_slice());
            let values: Vec<f32> = answers[0].to_values().map_err(|error| failed(&error))?;
            near(&values, &request.expected, Some(&plain))
                .map_err(|why| failed(&format!("{how}: {why}")))?;
        }
    }
    Ok(())
}

fn failed(why: &dyn Display) -> TestCaseError {
    TestCaseError::fail(why.to_string())
}

fn plain_answer(request: &Request) -> Vec<f32> {
    let inputs: Vec<(&str, Vec<i64>, Vec<f32>)> = request
        .inputs
        .iter()
        .map(|tensor| {
            let dims = tensor.shape().iter().map(|&extent| extent as i64).collect();
            (tensor.name(), dims, tensor.to_values().expect("FP32"))
        })
        .collect();
    let inputs: Vec<(&str, &[i64], &[f32])> = inputs
        .iter()
        .map(|(name, dims, values)| (*name, dims.as_slice(), values.as_slice()))
        .collect();
    plain_run(&request.model, &inputs).remove(0)
}

/// Whether `found` is within one error of the exact values, or within two of
/// `reference`, which is as far off.
///
/// Where something not finite went in, all that counts is that `found` is not finite
/// where `reference` is not: what a fused Relu makes of NaN is nobody's promise.
fn near(found: &[f32], exact: &Signal, reference: Option<&[f32]>) -> Result<(), String> {
    for (at, (&value, &error)) in exact.values.iter().zip(&exact.error).enumerate() {
        let (expected, tolerance) = match reference {
            Some(reference) => (f64::from(reference[at]), 2.0 * error),
            None => (value, error),
        };
        let found = f64::from(found[at]);
        let is_near = if error.is_finite() {
            (found - expected).abs() <= tolerance
        } else {
            reference.is_none() || expected.is_finite() || !found.is_finite()
        };
        if !is_near {
            return Err(format!(
                "element {at} of {:?} is {found:e}, not {expected:e} within {tolerance:e}",
                exact.shape,
            ));
        }
    }
    Ok(())
}
