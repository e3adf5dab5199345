//! What an answer costs whoever asks, in work: the more, the more a client has learned (Dziedzic,
//! Kaleem, Lu and Papernot, "Increasing the Cost of Model Extraction with Calibrated Proof of
//! Work", ICLR 2022).
//!
//! A client learns from an answer what the model was not certain of: 1 less the largest
//! probability, of the model's own answer and not of what the guard made of it. All of that in
//! one window is what the client gained, and each so much doubles what its next answer costs. So
//! who asks about what the model knows hardly notices, and who copies it pays ever more.

use hmac::{Hmac, KeyInit, Mac};
use occlude_inference_protocol::WorkWanted;
use occlude_keys::ModelKey;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{ConfigurationError, Look};

/// The salt of the key's derivation.
const LABEL: &[u8] = b"occlude/v1/work";

/// More takes days on one core.
const MOST_BITS: u32 = 40;

/// The largest step.
const LARGEST_GAIN: f64 = 1e6;

/// Gain is counted in thousandths of the most that one answer tells.
pub const GAIN_OF_ANSWER: u64 = 1000;

/// What answers cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Work {
    /// The first answers cost `2^bits` hashes each, 1 to 40 bits.
    pub bits: u32,
    /// So much gained in a window doubles that, and so much more again; 1 to 1,000,000. A gain
    /// of 1 is what an answer would tell of which the model was not certain at all.
    pub gain: f64,
    /// An answer never costs more than `2^most_bits` hashes, from `bits` to 40.
    pub most_bits: u32,
}

impl Work {
    pub(crate) fn check(&self) -> Result<(), ConfigurationError> {
        if !(1..=MOST_BITS).contains(&self.bits) {
            return Err(ConfigurationError::value("work.bits", self.bits, "1 to 40"));
        }
        if !(self.bits..=MOST_BITS).contains(&self.most_bits) {
            return Err(ConfigurationError::value(
                "work.most-bits",
                self.most_bits,
                "work.bits to 40",
            ));
        }
        if !(1.0..=LARGEST_GAIN).contains(&self.gain) {
            return Err(ConfigurationError::value(
                "work.gain",
                self.gain,
                "a number from 1 to 1000000",
            ));
        }
        Ok(())
    }

    /// Bits that one answer costs a client who has gained so many thousandths.
    #[must_use]
    pub fn bits_after(&self, gained: u64) -> u32 {
        let steps = gained as f64 / GAIN_OF_ANSWER as f64 / self.gain;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "40 at most, and never below 0"
        )]
        let steps = steps.min(MOST_BITS.into()) as u32;
        (self.bits + steps).min(self.most_bits)
    }

    /// Bits that so many answers to one request cost: each as much as one alone.
    #[must_use]
    pub fn bits_of(&self, gained: u64, answers: u64) -> u32 {
        self.bits_after(gained) + doublings(answers)
    }
}

/// How often 1 is doubled until it is so many.
fn doublings(answers: u64) -> u32 {
    u64::BITS - answers.saturating_sub(1).leading_zeros()
}

/// What answers tell, in thousandths: up to 1,000 each.
#[must_use]
pub fn gain(looks: &[Look]) -> u64 {
    let gains = looks.iter().map(|look| {
        let uncertain = (1.0 - look.certainty).clamp(0.0, 1.0);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1,000"
        )]
        let thousandths = (uncertain * GAIN_OF_ANSWER as f64).round() as u64;
        thousandths
    });
    gains.sum()
}

/// What the next answers cost one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    bits: u32,
    salt: [u8; 32],
}

impl Price {
    /// What so many answers to one request cost: each as much as one alone.
    #[must_use]
    pub fn of(&self, answers: u64) -> WorkWanted {
        WorkWanted {
            bits: self.bits + doublings(answers),
            salt: self.salt,
        }
    }
}

/// What gives each client a salt: HKDF-SHA-256 of the model's key, so that no client knows one
/// before it asks, nor anybody else's.
pub(crate) struct WorkKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for WorkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkKey(redacted)")
    }
}

impl WorkKey {
    pub(crate) fn of(model: &ModelKey) -> Self {
        Self(model.derive(LABEL, &[]))
    }

    /// What a client who has gained so much pays: `client` is what stands for it.
    pub(crate) fn price(&self, work: &Work, client: &[u8; 32], gained: u64) -> Price {
        let mut salt = Hmac::<Sha256>::new_from_slice(&*self.0).expect("HMAC takes any key");
        salt.update(client);
        Price {
            bits: work.bits_after(gained),
            salt: salt.finalize().into_bytes().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work {
        bits: 10,
        gain: 2.5,
        most_bits: 20,
    };

    fn key(byte: u8) -> WorkKey {
        WorkKey::of(&ModelKey::new(Zeroizing::new([byte; 32])))
    }

    #[test]
    fn each_so_much_gained_doubles_the_work_up_to_the_most() {
        for (gained, expected) in [
            (0, 10),
            (2_499, 10),
            (2_500, 11),
            (4_999, 11),
            (5_000, 12),
            (24_999, 19),
            (25_000, 20),
            (1_000_000, 20),
            (u64::MAX, 20),
        ] {
            assert_eq!(WORK.bits_after(gained), expected, "{gained}");
        }
    }

    #[test]
    fn an_answer_tells_what_the_model_was_not_certain_of() {
        let look = |certainty| Look {
            class: 0,
            certainty,
        };
        for (certainty, expected) in [
            (1.0, 0),
            (0.9996, 0),
            (0.9994, 1),
            (0.25, 750),
            // Half precision's rounding, and what is no probability.
            (1.01, 0),
            (-0.01, 1000),
            (f64::NEG_INFINITY, 1000),
        ] {
            assert_eq!(gain(&[look(certainty)]), expected, "{certainty}");
        }
        assert_eq!(gain(&[look(0.5), look(0.9)]), 600);
        assert_eq!(gain(&[]), 0);
    }

    #[test]
    fn many_answers_cost_as_much_as_one_by_one() {
        let price = key(1).price(&WORK, &[1; 32], 2_500);
        for (answers, expected) in [
            (0, 11),
            (1, 11),
            (2, 12),
            (3, 13),
            (4, 13),
            (5, 14),
            (1 << 20, 31),
            ((1 << 63) + 1, 75),
        ] {
            assert_eq!(price.of(answers).bits, expected, "{answers}");
        }
    }

    #[test]
    fn each_client_of_each_model_has_a_salt() {
        let salt = |key: &WorkKey, client, gained| key.price(&WORK, &[client; 32], gained).salt;
        let first = salt(&key(1), 1, 0);
        assert_eq!(salt(&key(1), 1, 100_000), first);
        assert_ne!(salt(&key(1), 2, 0), first);
        assert_ne!(salt(&key(2), 1, 0), first);
    }
}
