//! SHA-256 digests that travel as lower-case hexadecimal.
//!
//! Exact length both ways: a digest is never padded and never truncated.

use crate::hexadecimal_bytes;

hexadecimal_bytes! {
    /// SHA-256 of a sealed container's signed header: the name of one sealed
    /// version of one model, in policies, statements and the broker's paths.
    pub HeaderDigest, 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hexadecimal::HexadecimalError;

    #[test]
    fn a_digest_survives_text_and_json() {
        let digest = HeaderDigest::from([0xa5; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<HeaderDigest>(&json).unwrap(), digest);
    }

    #[test]
    fn a_short_a_long_and_an_upper_case_digest_are_refused() {
        for text in [
            "a5".repeat(31),
            "a5".repeat(33),
            "A5".repeat(32),
            "g5".repeat(32),
        ] {
            assert_eq!(
                text.parse::<HeaderDigest>(),
                Err(HexadecimalError {
                    expected: 64,
                    found: text.clone(),
                })
            );
        }
    }
}
