//! The sizes that messages are padded to.
//!
//! Against whoever counts bytes on the wire: a message of any length in a bucket
//! encapsulates to one length. Buckets double up to 1 MiB, so that padding costs
//! at most as much as the message; above that the step is constant, so that it
//! costs little.

use occlude_weakening::Weakening;
use zeroize::Zeroizing;

/// The name of this scheme, for the service statement.
pub const PADDING: &str = "powers-of-two-from-4KiB-to-1MiB-then-multiples-of-1MiB";

const SMALLEST: usize = 4 << 10;
const STEP: usize = 1 << 20;

/// The length that a message of `length` bytes is padded to.
///
/// A length within 1 MiB of [`usize::MAX`], which no message in memory has, is its own bucket.
#[must_use]
pub fn padded_length(length: usize) -> usize {
    if length <= STEP {
        length.max(SMALLEST).next_power_of_two()
    } else {
        length.checked_next_multiple_of(STEP).unwrap_or(length)
    }
}

/// Appends zeros (RFC 9292, section 3.8) up to the bucket. The caller reserved room for them, so
/// that the plaintext does not move.
pub(crate) fn pad(message: &mut Zeroizing<Vec<u8>>) {
    if occlude_weakening::is(Weakening::NoPadding) {
        return;
    }
    let length = padded_length(message.len());
    debug_assert!(message.capacity() >= length);
    message.resize(length, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_and_then_whole_mebibytes() {
        let cases = [
            (0, 4096),
            (1, 4096),
            (4096, 4096),
            (4097, 8192),
            (524_288, 524_288),
            (524_289, 1_048_576),
            (1_048_576, 1_048_576),
            (1_048_577, 2_097_152),
            (2_097_153, 3_145_728),
            (usize::MAX, usize::MAX),
        ];
        for (length, bucket) in cases {
            assert_eq!(padded_length(length), bucket, "{length}");
        }
    }
}
