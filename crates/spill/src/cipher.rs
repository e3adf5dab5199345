//! The ciphers that a store can use, and which is the fastest here.
//!
//! AEGIS is draft-irtf-cfrg-aegis-aead, in its authors' C library; AES-256-GCM is
//! NIST SP 800-38D, by `ring`. All take a nonce that is used once under a key, and
//! give a tag of 16 bytes.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::untrusted::{Cipher, Region};

/// Bytes of a panel on which ciphers are compared.
const TRIAL: usize = 64 << 10;

/// How long each is tried at once.
const TRIAL_TIME: Duration = Duration::from_millis(1);

/// How often each is tried, in turns: a core that is not at its full speed yet slows one
/// round only.
const ROUNDS: usize = 2;

/// An authenticated cipher for panels.
///
/// AEGIS is there on processors with AES instructions only. Without them its library
/// computes in software, which is slow, and nobody has watched how often that code reads
/// memory that others may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CipherKind {
    /// AEGIS-128L: two AES blocks at a time.
    Aegis128L,
    /// AEGIS-128X2: two of these at once, for AES on 256-bit vectors.
    Aegis128X2,
    /// AEGIS-128X4: four at once, for AES on 512-bit vectors.
    Aegis128X4,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl CipherKind {
    /// All there are.
    pub const ALL: [Self; 4] = [
        Self::Aegis128L,
        Self::Aegis128X2,
        Self::Aegis128X4,
        Self::Aes256Gcm,
    ];

    /// Whether this processor has what it takes.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Aegis128L | Self::Aegis128X2 | Self::Aegis128X4 => has_aes_instructions(),
            Self::Aes256Gcm => true,
        }
    }

    /// The one that opens panels the fastest on this processor, by trying each for
    /// about 2 ms in all.
    #[must_use]
    pub fn fastest() -> Self {
        let rate = |kind: Self| rate(kind).unwrap_or(0.0);
        (0..ROUNDS)
            .flat_map(|_| Self::ALL)
            .filter(|kind| kind.is_available())
            .map(|kind| (kind, rate(kind)))
            .max_by(|one, other| one.1.total_cmp(&other.1))
            .map_or(Self::Aes256Gcm, |(kind, _)| kind)
    }

    /// Bytes of the key.
    pub(crate) const fn key_length(self) -> usize {
        match self {
            Self::Aegis128L | Self::Aegis128X2 | Self::Aegis128X4 => 16,
            Self::Aes256Gcm => 32,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Aegis128L => "aegis-128l",
            Self::Aegis128X2 => "aegis-128x2",
            Self::Aegis128X4 => "aegis-128x4",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }
}

/// What AEGIS's library looks for before it computes in software.
fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("avx");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Bytes a second that `kind` opens, by the shortest of many openings: whoever else has the
/// core meanwhile does not count.
fn rate(kind: CipherKind) -> Option<f64> {
    let key = Zeroizing::new([7; 32]);
    let cipher = Cipher::new(kind, &key[..kind.key_length()]);
    let region = Region::new(TRIAL).ok()?;
    let mut panel = vec![0; TRIAL];
    let tag = cipher.seal(&mut region.target(0, TRIAL)?, 0, b"", &panel)?;
    let source = region.source(0, TRIAL)?;
    let (mut shortest, started) = (Duration::MAX, Instant::now());
    while started.elapsed() < TRIAL_TIME {
        let opening = Instant::now();
        cipher
            .open(source, 0, b"", &tag, &mut panel)
            .then_some(())?;
        shortest = shortest.min(opening.elapsed());
    }
    Some(TRIAL as f64 / shortest.as_secs_f64())
}

impl fmt::Display for CipherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a cipher's name is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CipherError {
    /// No cipher is called that.
    #[error("{found:?} is no cipher: aegis-128l, aegis-128x2, aegis-128x4 and aes-256-gcm are")]
    Unknown {
        /// The name.
        found: String,
    },
    /// This processor does not have what it takes.
    #[error("{kind} needs a processor with AES instructions: aes-256-gcm runs on any")]
    Unavailable {
        /// The cipher.
        kind: CipherKind,
    },
}

impl FromStr for CipherKind {
    type Err = CipherError;

    /// A cipher that is available here, by its name.
    fn from_str(name: &str) -> Result<Self, CipherError> {
        let kind = Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| CipherError::Unknown {
                found: name.to_owned(),
            })?;
        kind.checked()
    }
}

impl CipherKind {
    /// Itself, if it is available.
    pub(crate) fn checked(self) -> Result<Self, CipherError> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(CipherError::Unavailable { kind: self })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cipher_is_found_by_its_name() {
        for kind in CipherKind::ALL {
            assert_eq!(kind.to_string().parse(), kind.checked());
        }
        assert_eq!(
            "rot13".parse::<CipherKind>(),
            Err(CipherError::Unknown {
                found: "rot13".to_owned()
            }),
        );
    }

    #[test]
    fn the_fastest_is_one_that_works() {
        assert!(rate(CipherKind::fastest()).is_some());
        assert!(CipherKind::fastest().is_available());
    }

    #[test]
    fn a_cipher_without_its_instructions_is_refused_with_one_that_runs() {
        let kind = CipherKind::Aegis128L;
        assert_eq!(
            CipherError::Unavailable { kind }.to_string(),
            "aegis-128l needs a processor with AES instructions: aes-256-gcm runs on any"
        );
        assert_eq!(CipherKind::Aes256Gcm.checked(), Ok(CipherKind::Aes256Gcm));
    }
}
