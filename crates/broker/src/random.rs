//! Randomness for nonces, sessions and keys, from the operating system only.

/// Draws `LENGTH` random bytes.
///
/// # Panics
/// If the operating system has no randomness to give.
pub(crate) fn random<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    getrandom::fill(&mut bytes).expect("the operating system's random source failed");
    bytes
}
