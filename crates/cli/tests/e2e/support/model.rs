//! The model that is deployed, as tests ask for it.

use occlude_evaluate::protection::model::{self, is_close};
pub(crate) use occlude_evaluate::protection::model::{
    FEATURES, INPUT, OUTPUT, SecretModel, classifier, expected, external, npy, secret_input,
};

/// The answer in what `occlude infer --json` printed.
#[track_caller]
pub(crate) fn probabilities(printed: &str) -> Vec<f64> {
    model::probabilities(printed).expect("an answer as JSON")
}

#[track_caller]
pub(crate) fn assert_close(found: &[f64], expected: &[f64]) {
    assert!(is_close(found, expected), "{found:?} is not {expected:?}");
}
