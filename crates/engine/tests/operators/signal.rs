//! A tensor in 64-bit floats with a bound on how far 32-bit arithmetic may be from it.
//!
//! The bound is the textbook one (Higham, *Accuracy and Stability of Numerical
//! Algorithms*, 2nd edition, section 3.1): a sum of n products, evaluated in any order, with
//! fused multiply-add or without, is within `gamma(n)` times the sum of the products'
//! absolute values of the exact sum, where `gamma(n) = n u / (1 - n u)` and `u` is the unit
//! roundoff, 2^-24. An input that is itself off by e adds |w| e. What follows a
//! layer (bias, scale, residual) adds a few roundings of terms of the same sum, also
//! where they are folded into the weights, as [`EPILOGUE`] allows for.
//!
//! The 64-bit values are no reference, only the scale of the bound: the reference
//! is ONNX Runtime, which must itself keep the bound here.

/// Unit roundoff of binary32, rounding to nearest.
const ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// Roundings that bias, alpha and beta, a folded normalisation (whose scale takes a
/// square root and a division) and a residual add to each term of a sum.
const EPILOGUE: usize = 12;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Signal {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
    /// The sum of the absolute values of the terms that each value is a sum of.
    magnitude: Vec<f64>,
    /// How far a 32-bit evaluation may be from the value; not finite where an operand
    /// was not.
    pub(crate) error: Vec<f64>,
}

/// One value in the making.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    value: f64,
    magnitude: f64,
    inherited: f64,
    terms: usize,
}

impl Sum {
    /// Adds the product of element `index` of `signal` and a constant.
    pub(crate) fn add(&mut self, signal: &Signal, index: usize, constant: f64) {
        let (value, error) = (signal.values[index], signal.error[index]);
        self.value += value * constant;
        self.magnitude += (value.abs() + error) * constant.abs();
        self.inherited += error * constant.abs();
        self.terms += 1;
    }

    /// Adds a constant that is no product.
    pub(crate) fn add_constant(&mut self, constant: f64) {
        self.value += constant;
        self.magnitude += constant.abs();
    }

    pub(crate) fn scale(&mut self, factor: f64) {
        self.value *= factor;
        self.magnitude *= factor.abs();
        self.inherited *= factor.abs();
    }

    /// Adds the error of a sum whose terms are as large as `magnitude` and go through so
    /// many more `roundings`.
    pub(crate) fn add_error(&mut self, magnitude: f64, roundings: usize) {
        self.inherited += gamma(self.terms + roundings + EPILOGUE) * magnitude;
    }
}

impl Signal {
    /// What a request brings is exact.
    pub(crate) fn exact(shape: Vec<usize>, values: &[f32]) -> Self {
        let values: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        let error: Vec<f64> = values
            .iter()
            .map(|value| {
                if value.is_finite() {
                    0.0
                } else {
                    f64::INFINITY
                }
            })
            .collect();
        Self {
            shape,
            magnitude: values.iter().map(|value| value.abs()).collect(),
            values,
            error,
        }
    }

    pub(crate) fn of_sums(shape: Vec<usize>, sums: impl IntoIterator<Item = Sum>) -> Self {
        let sums: Vec<Sum> = sums.into_iter().collect();
        assert_eq!(shape.iter().product::<usize>(), sums.len());
        Self {
            shape,
            values: sums.iter().map(|sum| sum.value).collect(),
            magnitude: sums.iter().map(|sum| sum.magnitude).collect(),
            error: sums
                .iter()
                .map(|sum| sum.inherited + gamma(sum.terms + EPILOGUE) * sum.magnitude)
                .collect(),
        }
    }

    /// The scale at an index times the value there plus both addends: terms of the same sum.
    pub(crate) fn affine(mut self, parameters: impl Fn(usize) -> (f64, [f64; 2])) -> Self {
        for index in 0..self.values.len() {
            let (scale, [a, b]) = parameters(index);
            self.values[index] = scale * self.values[index] + a + b;
            self.magnitude[index] = scale.abs() * self.magnitude[index] + a.abs() + b.abs();
            self.error[index] =
                scale.abs() * self.error[index] + gamma(EPILOGUE) * self.magnitude[index];
        }
        self
    }

    /// Adds a tensor of the same shape.
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        assert_eq!(self.shape, other.shape);
        for index in 0..self.values.len() {
            self.values[index] += other.values[index];
            self.magnitude[index] += other.values[index].abs() + other.error[index];
            self.error[index] += other.error[index] + gamma(EPILOGUE) * self.magnitude[index];
        }
        self
    }

    /// A function that moves no two values further apart, such as Relu.
    pub(crate) fn contract(mut self, function: impl Fn(f64) -> f64) -> Self {
        for (value, magnitude) in self.values.iter_mut().zip(&mut self.magnitude) {
            *value = function(*value);
            *magnitude = value.abs();
        }
        self
    }

    /// Each value the largest of the elements that `window` names.
    pub(crate) fn largest(
        &self,
        shape: Vec<usize>,
        windows: impl IntoIterator<Item = Vec<usize>>,
    ) -> Self {
        let windows: Vec<Vec<usize>> = windows.into_iter().collect();
        assert_eq!(shape.iter().product::<usize>(), windows.len());
        let over = |of: &[f64], start: f64| -> Vec<f64> {
            windows
                .iter()
                .map(|window| {
                    window
                        .iter()
                        .fold(start, |most, &index| most.max(of[index]))
                })
                .collect()
        };
        let values = over(&self.values, f64::NEG_INFINITY);
        Self {
            shape,
            magnitude: values.iter().map(|value| value.abs()).collect(),
            values,
            error: over(&self.error, 0.0),
        }
    }
}

fn gamma(terms: usize) -> f64 {
    let relative = terms as f64 * ROUNDOFF;
    relative / (1.0 - relative)
}
