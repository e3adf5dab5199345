//! How long answers take, as somebody on the way sees it.

use std::time::Instant;

use occlude_weakening::Weakening;

use super::network::request;
use super::site::Site;
use super::storage::streaming;
use super::wire::ask;
use super::{Attacker, Check, Seen, model};
use crate::processes::{DeploymentError, Service, failed};

pub(super) const CHECKS: &[Check] = &[Check {
    name: "answer-times",
    attacker: Attacker::Network,
    tried: "tell inputs apart by how long their answers take, of a model in memory and of one whose \
            weights are streamed: in turns, Mann-Whitney test",
    weakening: Weakening::EarlyAnswers,
    carry_out: answer_times,
}];

/// A difference is taken for one if it would come once in a thousand checks without any,
/// and is larger than this: that of 65 answers in 100.
const EFFECT: f64 = 0.3;
const CHANCE: f64 = 0.001;

fn answer_times(site: &Site) -> Result<Seen, DeploymentError> {
    let in_memory = told_apart("in memory", site, &site.serve()?, 150)?;
    let Seen::Held(in_memory) = in_memory else {
        return Ok(in_memory);
    };
    let (large, server) = streaming(site, &[])?;
    Ok(match told_apart("streamed", &large, &server, 60)? {
        Seen::Held(streamed) => Seen::Held(format!("{in_memory}; {streamed}")),
        broke @ Seen::Broke(_) => broke,
    })
}

/// Compares answers to each of several inputs with those to a random one, in turns.
fn told_apart(
    what: &str,
    site: &Site,
    server: &Service,
    runs: usize,
) -> Result<Seen, DeploymentError> {
    const DOING: &str = "timing answers";
    let proxy = site.proxy(server, &[])?;
    let time = |values: &[f32]| -> Result<f64, DeploymentError> {
        let request = request(values);
        let begun = Instant::now();
        let given = ask(proxy.address, &request).map_err(failed(DOING))?;
        let elapsed = begun.elapsed().as_secs_f64();
        if given.status != 200 {
            return Err(failed(DOING)(String::from_utf8_lossy(&given.body)));
        }
        Ok(elapsed)
    };
    let inputs = [
        ("random", model::secret_input(36)),
        ("zeros", vec![0.0; model::FEATURES]),
        ("negative", vec![-1.0; model::FEATURES]),
        ("huge", vec![1e30; model::FEATURES]),
        ("subnormal", vec![1e-40; model::FEATURES]),
        ("another random", model::secret_input(37)),
    ];
    let mut times = vec![Vec::new(); inputs.len()];
    // Each input is at each place of a turn equally often; the first turns are left out.
    const FIRST: usize = 6;
    for run in 0..FIRST + runs {
        for place in 0..inputs.len() {
            let chosen = (place + run) % inputs.len();
            let taken = time(&inputs[chosen].1)?;
            if run >= FIRST {
                times[chosen].push(taken);
            }
        }
    }
    let (of_random, others) = times.split_at_mut(1);
    let of_random = &mut of_random[0];
    let tests = others.iter().map(|other| MannWhitney::of(other, of_random));
    let named = tests.zip(&inputs[1..]);
    let (test, (input, _)) = named
        .min_by(|(one, _), (other, _)| one.p.total_cmp(&other.p))
        .ok_or_else(|| failed(DOING)("no input to compare"))?;
    let seen = format!(
        "{what}, median {:.2} ms, of {} inputs {input} differs most from random: effect \
         (rank-biserial) {:.2}, p = {:.2}",
        median(of_random) * 1e3,
        inputs.len(),
        test.effect,
        test.p
    );
    // As many comparisons, as many chances (Bonferroni).
    let unlikely = test.p < CHANCE / others.len() as f64;
    Ok(if unlikely && test.effect.abs() > EFFECT {
        Seen::Broke(seen)
    } else {
        Seen::Held(seen)
    })
}

/// Whether two samples are of one distribution (Mann and Whitney, "On a test of whether one
/// of two random variables is stochastically larger than the other", 1947), by the normal
/// approximation; ties are as good as none in times.
struct MannWhitney {
    /// Rank-biserial correlation: 0 where neither is larger, 1 and -1 where one always is.
    effect: f64,
    /// The chance of a difference like this where there is none.
    p: f64,
}

impl MannWhitney {
    fn of(one: &[f64], other: &[f64]) -> Self {
        let (n, m) = (one.len() as f64, other.len() as f64);
        let wins: f64 = one
            .iter()
            .flat_map(|x| other.iter().map(move |y| if x > y { 1.0 } else { 0.0 }))
            .sum();
        let deviation = (n * m * (n + m + 1.0) / 12.0).sqrt();
        let z = (wins - n * m / 2.0) / deviation;
        Self {
            effect: 2.0 * wins / (n * m) - 1.0,
            p: complementary_error(z.abs() / std::f64::consts::SQRT_2),
        }
    }
}

/// The complementary error function of a number that is not negative, to 1.5e-7
/// (Abramowitz and Stegun, 7.1.26).
fn complementary_error(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let polynomial = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ]
    .into_iter()
    .fold(0.0, |sum, factor| sum * t + factor);
    polynomial * t * (-x * x).exp()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chance beyond 1.96 standard deviations is every table's.
    #[test]
    fn a_difference_is_told_from_none() {
        let (odd, even): (Vec<f64>, Vec<f64>) = (
            (0..50).map(|n| f64::from(2 * n + 1)).collect(),
            (0..50).map(|n| f64::from(2 * n)).collect(),
        );
        let none = MannWhitney::of(&odd, &even);
        assert!(
            none.effect.abs() < 0.03 && none.p > 0.8,
            "{} {}",
            none.effect,
            none.p
        );
        let later: Vec<f64> = even.iter().map(|x| x + 1000.0).collect();
        let all = MannWhitney::of(&later, &odd);
        assert!((all.effect - 1.0).abs() < 1e-12 && all.p < 1e-15);
        assert!((complementary_error(1.96 / std::f64::consts::SQRT_2) - 0.049_995_8).abs() < 1e-6);
        assert!((complementary_error(0.0) - 1.0).abs() < 1e-6);
    }
}
