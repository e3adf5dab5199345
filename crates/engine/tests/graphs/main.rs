//! Random networks that branch and join, against ONNX Runtime: what the rewrite makes of
//! neighbours, of values with several readers, of outputs in the middle and of weights
//! that two layers share.
//!
//! The reference is ONNX Runtime's own run of the plain model. Errors of rounding are
//! bounded for single layers elsewhere (`operators`); here a rewrite that is wrong is
//! looked for, and that is off by far more than [`TOLERANCE`].
//!
//! `PROPTEST_CASES` sets how many networks are drawn.

mod drawing;
mod images;
mod sequences;
#[path = "../support/mod.rs"]
mod support;

use std::fmt::Display;

use drawing::{Drawn, Kind, Plan};
use occlude_engine::{LargestShape, LoadOptions, Model, ProtectedMemory};
use occlude_inference_protocol::Tensor;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use support::{
    everything_streamed, opened, plain_run_of, plain_session, property_tests, runtime, two_threads,
};

/// Networks unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 512;

/// Networks that plain ONNX Runtime may refuse; there was one in 8,000.
const MOST_REFUSED: u32 = 8;

/// How far an answer may be off, as a part of the largest of its output.
const TOLERANCE: f32 = 1e-3;

proptest! {
    #![proptest_config(ProptestConfig {
        max_global_rejects: MOST_REFUSED,
        ..property_tests(CASES)
    })]

    #[test]
    fn networks_on_images_give_the_answers_of_the_plain_model(
        plan in drawing::plan(Kind::Images),
    ) {
        compare(&plan)?;
    }

    #[test]
    fn networks_on_sequences_give_the_answers_of_the_plain_model(
        plan in drawing::plan(Kind::Sequences),
    ) {
        compare(&plan)?;
    }
}

fn compare(plan: &Plan) -> TestCaseResult {
    let Drawn { model, shape, x } = drawing::draw(plan);
    // It refuses some that are valid: it takes a Div away that a MatMul reads, although
    // another operator reads it too.
    let Ok(mut session) = plain_session(&model) else {
        return Err(TestCaseError::reject(
            "ONNX Runtime refuses the plain model",
        ));
    };
    let expected = plain_run_of(&mut session, &[("x", &shape, &x)]);
    let container = opened(&model);
    let shape: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
    let half = LoadOptions {
        memory: ProtectedMemory::WeightShare(0.5),
        largest: vec![LargestShape {
            input: "x".to_owned(),
            extents: shape.clone(),
        }],
        ..everything_streamed()
    };
    for (how, options) in [
        ("resident", two_threads()),
        ("streamed", everything_streamed()),
        ("half resident", half),
    ] {
        let failed = |why: &dyn Display| TestCaseError::fail(format!("{how}: {why}"));
        let model = Model::load(runtime(), &container, &options).map_err(|error| failed(&error))?;
        // Twice: memory is laid out anew for the second run.
        for _ in 0..2 {
            let request = Tensor::from_values("x", shape.clone(), &x).expect("a tensor");
            let answers = model
                .run(vec![request], &[])
                .map_err(|error| failed(&error))?;
            prop_assert_eq!(answers.len(), expected.len());
            for (answer, expected) in answers.iter().zip(&expected) {
                let found: Vec<f32> = answer.to_values().map_err(|error| failed(&error))?;
                near(&found, expected)
                    .map_err(|why| failed(&format!("output {}: {why}", answer.name())))?;
            }
        }
    }
    Ok(())
}

fn near(found: &[f32], expected: &[f32]) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} numbers, not {}", found.len(), expected.len()));
    }
    let largest = expected.iter().fold(0.0_f32, |most, y| most.max(y.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (found - expected).abs();
        // NaN is near nothing; no network here makes one.
        if off.is_nan() || off > TOLERANCE * largest.max(1e-6) {
            return Err(format!(
                "number {at} is {found:e}, not {expected:e}; the largest is {largest:e}"
            ));
        }
    }
    Ok(())
}
