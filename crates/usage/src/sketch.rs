//! Inputs in a few numbers.

use half::{bf16, f16};
use hmac::{Hmac, KeyInit, Mac};
use occlude_guard::examples;
use occlude_inference_protocol::{DataType, Tensor};
use occlude_keys::ModelKey;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The salt of the key's derivation.
const LABEL: &[u8] = b"occlude/v1/telemetry";

/// Numbers of a sketch: distances are right to about one part in eight.
const NUMBERS: usize = 64;

/// Stands for one input: a count sketch (Charikar, Chen and Farach-Colton, "Finding frequent
/// items in data streams", 2002), in which each value of the input is added to or taken from
/// one of 64 numbers. Inputs of up to 64 values are their own sketch.
#[derive(Clone)]
pub struct Sketch(Zeroizing<[f32; NUMBERS]>);

impl std::fmt::Debug for Sketch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sketch(redacted)")
    }
}

impl Sketch {
    /// The Euclidean distance.
    #[must_use]
    pub fn distance(&self, other: &Self) -> f64 {
        let pairs = self.0.iter().zip(&*other.0);
        let squares = pairs.map(|(one, other)| (f64::from(*one) - f64::from(*other)).powi(2));
        squares.sum::<f64>().sqrt()
    }
}

/// What decides where each value goes: HKDF-SHA-256 of the model's key, so that no client
/// knows which inputs look alike.
pub struct SketchKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for SketchKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SketchKey(redacted)")
    }
}

impl SketchKey {
    /// The one of a model.
    #[must_use]
    pub fn of(model: &ModelKey) -> Self {
        Self(model.derive(LABEL, &[]))
    }

    /// A sketch of each example, whatever the order of the inputs. Text is looked at as its
    /// bytes.
    #[must_use]
    pub fn sketches(&self, inputs: &[Tensor]) -> Vec<Sketch> {
        let examples = examples(inputs);
        let mut sorted: Vec<&Tensor> = inputs.iter().collect();
        sorted.sort_by_key(|input| input.name());
        let values: Vec<Zeroizing<Vec<f64>>> = sorted.iter().map(|input| values(input)).collect();
        let of_one = |values: &Zeroizing<Vec<f64>>| values.len() / examples;
        let exact = values.iter().map(of_one).sum::<usize>() <= NUMBERS;
        let mut sums = vec![Zeroizing::new([0.0_f64; NUMBERS]); examples];
        let mut before = 0;
        for (input, values) in sorted.iter().zip(&values) {
            let length = of_one(values);
            if length == 0 {
                continue;
            }
            let mut places = self.places(input.name());
            for at in 0..length {
                let (number, sign) = if exact {
                    (before + at, 1.0)
                } else {
                    places.next().unwrap_or_default()
                };
                for (example, sum) in sums.iter_mut().enumerate() {
                    sum[number] += sign * values[example * length + at];
                }
            }
            before += length;
        }
        sums.iter()
            .map(|sum| Sketch(Zeroizing::new(sum.map(narrow))))
            .collect()
    }

    /// Where each value of one input goes, and with which sign: a byte each of SHA-256 over a
    /// key of the input's and a counter.
    fn places(&self, input: &str) -> impl Iterator<Item = (usize, f64)> {
        let mut keyed = Hmac::<Sha256>::new_from_slice(&*self.0).expect("HMAC takes any key");
        keyed.update(input.as_bytes());
        let key = Zeroizing::new(<[u8; 32]>::from(keyed.finalize().into_bytes()));
        let blocks = (0_u64..).map(move |block| {
            let hash = Sha256::new().chain_update(*key);
            <[u8; 32]>::from(hash.chain_update(block.to_le_bytes()).finalize())
        });
        blocks.flatten().map(|byte| {
            let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
            (usize::from(byte) % NUMBERS, sign)
        })
    }
}

/// The nearest number that is finite; 0 for what is none.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a sketch has the precision of what it keeps"
)]
fn narrow(value: f64) -> f32 {
    if value.is_nan() {
        return 0.0;
    }
    value.clamp(f32::MIN.into(), f32::MAX.into()) as f32
}

/// The values of a tensor.
fn values(tensor: &Tensor) -> Zeroizing<Vec<f64>> {
    fn numbers<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        let numbers = data.as_chunks::<N>().0.iter();
        numbers.map(|bytes| read(*bytes)).collect()
    }
    let data = tensor.data();
    Zeroizing::new(match tensor.datatype() {
        DataType::Fp64 => numbers(data, f64::from_le_bytes),
        DataType::Fp32 => numbers(data, |bytes| f32::from_le_bytes(bytes).into()),
        DataType::Fp16 => numbers(data, |bytes| f16::from_le_bytes(bytes).into()),
        DataType::Bf16 => numbers(data, |bytes| bf16::from_le_bytes(bytes).into()),
        DataType::Int64 => numbers(data, |bytes| i64::from_le_bytes(bytes) as f64),
        DataType::Int32 => numbers(data, |bytes| i32::from_le_bytes(bytes).into()),
        DataType::Int16 => numbers(data, |bytes| i16::from_le_bytes(bytes).into()),
        DataType::Int8 => numbers(data, |bytes| i8::from_le_bytes(bytes).into()),
        DataType::Uint64 => numbers(data, |bytes| u64::from_le_bytes(bytes) as f64),
        DataType::Uint32 => numbers(data, |bytes| u32::from_le_bytes(bytes).into()),
        DataType::Uint16 => numbers(data, |bytes| u16::from_le_bytes(bytes).into()),
        DataType::Uint8 | DataType::Bool | DataType::Bytes => {
            numbers(data, |[byte]: [u8; 1]| byte.into())
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key(byte: u8) -> SketchKey {
        SketchKey::of(&ModelKey::new(Zeroizing::new([byte; 32])))
    }

    /// Numbers that nothing correlates: a linear congruence.
    pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
        };
        for _ in 0..8 {
            next();
        }
        (0..count).map(|_| next()).collect()
    }

    fn rows(rows: &[Vec<f32>]) -> Tensor {
        let shape = vec![rows.len() as u64, rows[0].len() as u64];
        Tensor::from_values("image", shape, &rows.concat()).unwrap()
    }

    fn exact(one: &[f32], other: &[f32]) -> f64 {
        let pairs = one.iter().zip(other);
        let squares = pairs.map(|(one, other)| f64::from(one - other).powi(2));
        squares.sum::<f64>().sqrt()
    }

    #[test]
    fn distances_of_sketches_are_about_those_of_inputs() {
        let inputs: Vec<Vec<f32>> = (0..40).map(|seed| numbers(seed, 5000)).collect();
        let sketches = key(1).sketches(&[rows(&inputs)]);
        let ratio = |one: usize, other: usize| {
            sketches[one].distance(&sketches[other]) / exact(&inputs[one], &inputs[other])
        };
        let ratios: Vec<f64> = (1..40).map(|other| ratio(0, other)).collect();
        assert!(
            ratios.iter().all(|ratio| (0.6..1.4).contains(ratio)),
            "{ratios:?}"
        );
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        assert!((mean - 1.0).abs() < 0.06, "{mean}");
        assert!(sketches[3].distance(&sketches[3]) < 1e-9);
    }

    #[test]
    fn small_inputs_are_their_own_sketch() {
        let inputs = [numbers(1, NUMBERS), numbers(2, NUMBERS)];
        let sketches = key(1).sketches(&[rows(&inputs)]);
        let found = sketches[0].distance(&sketches[1]);
        assert!(
            (found - exact(&inputs[0], &inputs[1])).abs() < 1e-5,
            "{found}"
        );
        let longer = [numbers(1, NUMBERS + 1), numbers(2, NUMBERS + 1)];
        let sketches = key(1).sketches(&[rows(&longer)]);
        let found = sketches[0].distance(&sketches[1]);
        assert!(
            (found - exact(&longer[0], &longer[1])).abs() > 1e-5,
            "{found}"
        );
    }

    #[test]
    fn an_input_has_the_same_sketch_alone_among_others_and_in_any_order() {
        let (one, other) = (numbers(1, 500), numbers(2, 500));
        let scale = |values: &[f32]| {
            Tensor::from_values("scale", vec![values.len() as u64, 1], values).unwrap()
        };
        let both = key(1).sketches(&[rows(&[one.clone(), other.clone()]), scale(&[1.0, 2.0])]);
        let alone = key(1).sketches(&[scale(&[2.0]), rows(std::slice::from_ref(&other))]);
        assert_eq!((both.len(), alone.len()), (2, 1));
        assert_eq!(both[1].0, alone[0].0);
        // Another model's key, and the other input, look otherwise.
        let foreign = key(2).sketches(&[scale(&[2.0]), rows(&[other])]);
        assert_ne!(foreign[0].0, alone[0].0);
        assert_ne!(both[0].0, both[1].0);
    }

    #[test]
    fn every_type_has_values_and_none_of_them_is_infinite() {
        for datatype in DataType::ALL {
            let data = match datatype {
                DataType::Bytes => [4_u32.to_le_bytes(), [b'a'; 4]].concat(),
                DataType::Bool => vec![1],
                other => vec![0x7f; other.size().unwrap()],
            };
            let data = Zeroizing::new(data);
            let tensor = Tensor::new("x", datatype, vec![1], data).unwrap();
            let [sketch] = &key(1).sketches(&[tensor])[..] else {
                panic!("{datatype}")
            };
            assert!(
                sketch.0.iter().all(|number| number.is_finite()),
                "{datatype}"
            );
        }
        let none = Tensor::from_values::<f32>("x", vec![0], &[]).unwrap();
        assert_eq!(key(1).sketches(&[none]).len(), 1);
        assert_eq!(key(1).sketches(&[]).len(), 1);
    }

    #[test]
    fn numbers_that_are_as_large_as_can_be_have_a_distance() {
        let large = [vec![f32::MAX; 100], vec![f32::MIN; 100]];
        let sketches = key(1).sketches(&[rows(&large)]);
        assert!(sketches[0].distance(&sketches[1]).is_finite());
        let wide = Tensor::from_values("x", vec![2, 1], &[1e300, -1e300]).unwrap();
        let sketches = key(1).sketches(&[wide]);
        assert!(sketches[0].distance(&sketches[1]).is_finite());
    }
}
