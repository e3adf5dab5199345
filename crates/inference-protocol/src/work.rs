//! Work that a client does for an answer, so that asking for many costs something.
//!
//! A server that wants some answers 428 (RFC 6585, section 3) with [`WORK`]: how much, and a
//! salt. The client looks for a number with which the hash of its request has so many leading
//! zeros, and asks again with that number in the same field: a proof of work in the manner of
//! Hashcash (Back, "Hashcash: A Denial of Service Counter-Measure", 2002).
//!
//! The hash is SHA-256 over 32 bytes that stand for salt and request, and the number (8 bytes,
//! little-endian). Those 32 are SHA-256 over `occlude/v1/work`, 0x00, the salt, the value of
//! `Inference-Header-Content-Length` (8 bytes, little-endian; all ones without the field), and
//! the body. So a proof is for one request; the same request has it for ever.
//!
//! SHA-256 is computed faster by special hardware than by what users have: see the documents
//! of the guard for what that means.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// The field that says how much work is wanted, and of a request what was found.
pub const WORK: &str = "occlude-work";

/// Begins the hash of every request.
const LABEL: &[u8] = b"occlude/v1/work\0";

/// Numbers between two looks at whether to go on: some milliseconds.
const LOOK_EVERY: u64 = 1 << 14;

/// How much work a server wants for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkWanted {
    /// Leading zeros of the hash; each more doubles the work, of `2^bits` hashes on average.
    pub bits: u32,
    /// What else is hashed: the server's for this client.
    pub salt: [u8; 32],
}

/// Not what a server wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of bits up to 256, a space and 64 hexadecimal digits in occlude-work")]
pub struct WorkWantedError;

impl fmt::Display for WorkWanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bits, hex::encode(self.salt))
    }
}

impl FromStr for WorkWanted {
    type Err = WorkWantedError;

    fn from_str(text: &str) -> Result<Self, WorkWantedError> {
        let (bits, salt) = text.split_once(' ').ok_or(WorkWantedError)?;
        let bits = work_number(bits)
            .filter(|bits| *bits <= 256)
            .ok_or(WorkWantedError)?;
        let mut wanted = Self {
            bits: u32::try_from(bits).map_err(|_| WorkWantedError)?,
            salt: [0; 32],
        };
        hex::decode_to_slice(salt, &mut wanted.salt).map_err(|_| WorkWantedError)?;
        Ok(wanted)
    }
}

/// What is to be solved for one request.
#[derive(Debug, Clone)]
pub struct Puzzle {
    /// The hash of all that comes before the number.
    seed: [u8; 32],
}

impl Puzzle {
    /// The one of a body; `header_length` is the value of `Inference-Header-Content-Length`.
    #[must_use]
    pub fn new(salt: &[u8; 32], header_length: Option<u64>, body: &[u8]) -> Self {
        let hash = Sha256::new()
            .chain_update(LABEL)
            .chain_update(salt)
            .chain_update(header_length.unwrap_or(u64::MAX).to_le_bytes())
            .chain_update(body);
        Self {
            seed: hash.finalize().into(),
        }
    }

    /// Leading zeros of the hash with this number.
    #[must_use]
    pub fn bits(&self, number: u64) -> u32 {
        let hash = Sha256::new()
            .chain_update(self.seed)
            .chain_update(number.to_le_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        let zeros = hash.iter().take_while(|byte| **byte == 0).count();
        let rest = hash.get(zeros).map_or(0, |byte| byte.leading_zeros());
        8 * u32::try_from(zeros).unwrap_or_default() + rest
    }

    /// Looks for a number with so many leading zeros, from 0 on; `None` where it is to give
    /// up, which is asked every few milliseconds.
    pub fn solve(&self, bits: u32, give_up: impl Fn() -> bool) -> Option<u64> {
        for number in 0.. {
            if self.bits(number) >= bits {
                return Some(number);
            }
            if number % LOOK_EVERY == 0 && give_up() {
                break;
            }
        }
        None
    }
}

/// The number in a request's field: digits alone.
#[must_use]
pub fn work_number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: [u8; 32] = [7; 32];

    /// Python's `hashlib` found these: the first number with so many zeros.
    #[test]
    fn the_numbers_are_those_that_another_implementation_finds() {
        for (header_length, body, bits, expected) in [
            (None, "{}", 0, 0),
            (None, "{}", 1, 2),
            (None, "{}", 9, 892),
            (Some(2), "{}\0\x01", 12, 6879),
            (Some(0), "", 16, 10_846),
            (None, "{\"inputs\":[]}", 18, 99_705),
        ] {
            let puzzle = Puzzle::new(&SALT, header_length, body.as_bytes());
            let found = puzzle.solve(bits, || false);
            assert_eq!(found, Some(expected), "{header_length:?} {body} {bits}");
        }
    }

    #[test]
    fn a_proof_is_for_one_request() {
        let puzzle = Puzzle::new(&SALT, Some(2), b"{}\0");
        let number = puzzle.solve(16, || false).unwrap();
        for other in [
            Puzzle::new(&[8; 32], Some(2), b"{}\0"),
            Puzzle::new(&SALT, None, b"{}\0"),
            Puzzle::new(&SALT, Some(3), b"{}\0"),
            Puzzle::new(&SALT, Some(2), b"{}\x01"),
        ] {
            assert!(other.bits(number) < 16);
        }
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        let puzzle = Puzzle::new(&SALT, None, b"");
        assert_eq!(puzzle.solve(257, || true), None);
    }

    #[test]
    fn what_is_wanted_is_written_and_read_back() {
        let wanted = WorkWanted {
            bits: 18,
            salt: SALT,
        };
        let text = wanted.to_string();
        assert_eq!(text, format!("18 {}", "07".repeat(32)));
        assert_eq!(text.parse(), Ok(wanted));
        for malformed in [
            String::new(),
            "18".to_owned(),
            format!("257 {}", "07".repeat(32)),
            format!("+18 {}", "07".repeat(32)),
            format!(" {}", "07".repeat(32)),
            format!("18  {}", "07".repeat(32)),
            format!("18 {}", "07".repeat(31)),
            format!("18 {}", "0x".repeat(32)),
        ] {
            assert_eq!(malformed.parse::<WorkWanted>(), Err(WorkWantedError));
        }
        for (text, expected) in [("0", Some(0)), ("", None), ("-1", None), ("+1", None)] {
            assert_eq!(work_number(text), expected);
        }
        assert_eq!(work_number("18446744073709551615"), Some(u64::MAX));
        assert_eq!(work_number("18446744073709551616"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<WorkWanted>();
            let _ = work_number(&text);
        }
    }
}
