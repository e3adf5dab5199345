//! A watermark in a copy, in the manner of DAWN (Szyller, Atli, Marchal and Asokan, "DAWN:
//! Dynamic Adversarial Watermarking of Neural Networks", ACM Multimedia 2021).
//!
//! For one input in so many, which a key decides, the answer's first class changes places
//! with another one, which the key decides, too: the same whenever that input is asked
//! about, by whom and with what else. A copy that learned the answers by heart says the same
//! of these inputs; a model that was made without them says it no more often than chance.
//!
//! The row stays the same numbers in other places, so that nothing but another model's
//! opinion tells it from an honest one.

use hmac::{Hmac, KeyInit, Mac};
use occlude_inference_protocol::{DataType, Tensor};
use occlude_keys::ModelKey;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::ConfigurationError;

/// The salt of the key's derivation.
const LABEL: &[u8] = b"occlude/v1/watermark";

/// Fewer classes leave no choice of another one.
pub(crate) const FEWEST_CLASSES: usize = 3;

/// How often an answer is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Watermark {
    /// One input in so many, 10 to 1,000,000.
    pub one_in: u32,
}

impl Watermark {
    pub(crate) fn check(self) -> Result<(), ConfigurationError> {
        if (10..=1_000_000).contains(&self.one_in) {
            return Ok(());
        }
        Err(ConfigurationError::Value {
            field: "watermark.one-in",
            found: self.one_in.to_string(),
            expected: "10 to 1000000",
        })
    }
}

/// What decides which answers are changed, and how: HKDF-SHA-256 of the model's key, so that
/// the owner can derive it again and nobody else can.
pub(crate) struct WatermarkKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for WatermarkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WatermarkKey(redacted)")
    }
}

/// The inputs of one request, told apart by their values: one for each example, or one for
/// all where the inputs do not share a first extent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks(Vec<[u8; 32]>);

impl Marks {
    /// What tells one input from another, for each.
    pub fn digests(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.0.iter()
    }
}

impl WatermarkKey {
    pub(crate) fn of(model: &ModelKey) -> Self {
        Self(model.derive(LABEL, &[]))
    }

    fn keyed(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&*self.0).expect("HMAC takes keys of any length")
    }

    /// HMAC-SHA-256 over each input by name: its name and values, each after its length (8
    /// bytes, little-endian).
    pub(crate) fn marks(&self, inputs: &[Tensor]) -> Marks {
        let examples = examples(inputs);
        let mut sorted: Vec<&Tensor> = inputs.iter().collect();
        sorted.sort_by_key(|input| input.name());
        let mark = |example: usize| {
            let mut hash = self.keyed();
            for input in &sorted {
                let length = input.data().len() / examples;
                let values = &input.data()[example * length..][..length];
                for part in [input.name().as_bytes(), values] {
                    hash.update(&(part.len() as u64).to_le_bytes());
                    hash.update(part);
                }
            }
            hash.finalize().into_bytes().into()
        };
        Marks((0..examples).map(mark).collect())
    }

    /// How far the class of one of `rows` answers is moved; `None` for most.
    fn shift(
        &self,
        watermark: Watermark,
        marks: &Marks,
        (row, rows): (usize, usize),
        classes: usize,
    ) -> Option<usize> {
        let of_one = rows.checked_div(marks.0.len())?.max(1);
        let mark = marks.0.get(row / of_one)?;
        let mut hash = self.keyed();
        hash.update(mark);
        hash.update(&((row % of_one) as u64).to_le_bytes());
        let drawn = hash.finalize().into_bytes();
        let (chosen, which) = (number(&drawn[..8]), number(&drawn[8..16]));
        let others = classes.checked_sub(1)?;
        let marked = classes >= FEWEST_CLASSES && below(chosen, watermark.one_in.into()) == 0;
        // At most as many as there are classes.
        marked.then(|| 1 + usize::try_from(below(which, others as u64)).unwrap_or(0))
    }

    /// Changes an answer in place, if it is one of those. Says the class that it then has.
    pub(crate) fn change(
        &self,
        watermark: Watermark,
        marks: &Marks,
        place: (usize, usize),
        answer: &mut [f64],
    ) -> Option<usize> {
        let shift = self.shift(watermark, marks, place, answer.len())?;
        let first = first(answer)?;
        let other = (first + shift) % answer.len();
        answer.swap(first, other);
        Some(other)
    }
}

/// The class of an answer: the first of the largest.
fn first(answer: &[f64]) -> Option<usize> {
    let largest = answer.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    answer.iter().position(|value| *value >= largest)
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// An even draw from 0 to `limit` - 1.
fn below(drawn: u64, limit: u64) -> u64 {
    let product = u128::from(drawn) * u128::from(limit);
    u64::try_from(product >> 64).unwrap_or(0)
}

/// How many examples inputs hold, 1 or more. Text has no fixed length, so that it cannot be
/// cut.
#[must_use]
pub fn examples(inputs: &[Tensor]) -> usize {
    let mut firsts = inputs.iter().map(|input| match input.datatype() {
        DataType::Bytes => None,
        _ => input.shape().first().copied(),
    });
    let Some(Some(first)) = firsts.next() else {
        return 1;
    };
    let shared = first > 0 && firsts.all(|other| other == Some(first));
    usize::try_from(first).ok().filter(|_| shared).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: usize = 10;
    const ONE_IN_TEN: Watermark = Watermark { one_in: 10 };

    fn key(byte: u8) -> WatermarkKey {
        WatermarkKey::of(&ModelKey::new(Zeroizing::new([byte; 32])))
    }

    /// Rows of two numbers.
    fn inputs(rows: std::ops::Range<usize>) -> Vec<Tensor> {
        let values: Vec<f32> = rows
            .clone()
            .flat_map(|row| [row as f32, 1.0 / (row + 1) as f32])
            .collect();
        vec![Tensor::from_values("image", vec![rows.len() as u64, 2], &values).unwrap()]
    }

    /// The class of each row's answer, where it is changed, all having class 4.
    fn changed(key: &WatermarkKey, inputs: &[Tensor], rows: usize) -> Vec<Option<usize>> {
        let marks = key.marks(inputs);
        (0..rows)
            .map(|row| {
                let mut answer = [0.05; CLASSES];
                answer[4] = 0.55;
                let other = key.change(ONE_IN_TEN, &marks, (row, rows), &mut answer);
                let shown = first(&answer).unwrap();
                assert_eq!(shown, other.unwrap_or(4));
                other
            })
            .collect()
    }

    #[test]
    fn about_one_in_so_many_is_changed_to_any_other_class() {
        let found = changed(&key(1), &inputs(0..20_000), 20_000);
        let marked: Vec<usize> = found.into_iter().flatten().collect();
        // Four standard deviations of 2,000 expected.
        assert!((1830..2170).contains(&marked.len()), "{}", marked.len());
        for class in 0..CLASSES {
            let share = marked.iter().filter(|other| **other == class).count();
            let expected = if class == 4 { 0..1 } else { 160..290 };
            assert!(expected.contains(&share), "{class}: {share}");
        }
    }

    #[test]
    fn an_input_has_the_same_answer_alone_and_among_others() {
        let all = changed(&key(1), &inputs(0..200), 200);
        assert!(all.iter().flatten().count() > 5);
        for (row, expected) in all.iter().enumerate() {
            assert_eq!(changed(&key(1), &inputs(row..row + 1), 1), [*expected]);
        }
        assert_eq!(changed(&key(1), &inputs(50..60), 10), all[50..60]);
        assert_ne!(changed(&key(2), &inputs(0..200), 200), all);
    }

    #[test]
    fn several_inputs_count_together_in_any_order() {
        let more = |value: f32| Tensor::from_values("scale", vec![4, 1], &[value; 4]).unwrap();
        let image = inputs(0..4).remove(0);
        let key = key(1);
        let one = key.marks(&[image.clone(), more(1.0)]);
        assert_eq!(key.marks(&[more(1.0), image.clone()]), one);
        assert_ne!(key.marks(&[image.clone(), more(2.0)]), one);
        assert_eq!(one.0.len(), 4);
        // What does not share a first extent is one example, and text always is.
        let other = Tensor::from_values::<f32>("scale", vec![1], &[1.0]).unwrap();
        assert_eq!(key.marks(&[image.clone(), other]).0.len(), 1);
        let text = Tensor::from_bytes("text", vec![4], &["a", "b", "c", "d"]).unwrap();
        assert_eq!(key.marks(&[image, text]).0.len(), 1);
        assert_eq!(key.marks(&[]).0.len(), 1);
    }

    #[test]
    fn each_of_several_rows_of_one_example_has_its_own_draw() {
        let marks = key(1).marks(&inputs(0..1));
        let shifts: std::collections::BTreeSet<_> = (0..400)
            .map(|row| key(1).shift(ONE_IN_TEN, &marks, (row, 400), CLASSES))
            .collect();
        assert!(shifts.len() > 5, "{shifts:?}");
    }

    #[test]
    fn two_classes_and_none_have_no_other_one() {
        let marks = key(1).marks(&inputs(0..50));
        for classes in [0, 1, 2] {
            let mut answer = vec![0.5; classes];
            for row in 0..50 {
                let changed = key(1).change(ONE_IN_TEN, &marks, (row, 50), &mut answer);
                assert_eq!(changed, None);
            }
        }
        let none = Marks::default();
        assert_eq!(key(1).shift(ONE_IN_TEN, &none, (0, 1), CLASSES), None);
    }

    /// Computed with Python's hmac and hashlib.
    #[test]
    fn the_draw_is_what_is_written_down() {
        let key = key(7);
        let marks = key.marks(&inputs(0..1));
        assert_eq!(
            hex::encode(*key.0),
            "e0caff748c5e1e9a11d5fe6f61a7b20d384a8427f355283e167af89d0b470940"
        );
        assert_eq!(
            hex::encode(marks.0[0]),
            "f4b87e06b5bbc69628ddf4fb7a11f1dbae39da3ff2e57a126c3d940f7bdd76f4"
        );
    }
}
