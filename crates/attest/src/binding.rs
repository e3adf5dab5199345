//! What evidence is bound to, so that none can be reused elsewhere or later.
//!
//! The operator records all traffic and can start as many genuine servers as it
//! likes. A binding ties evidence to one verifier's fresh nonce and to the exact
//! statement (channel keys included) of one server; it is never optional.

use std::fmt::{Display, Formatter};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use occlude_keys::hexadecimal_bytes;
use sha2::{Digest, Sha256, Sha512};
use x509_cert::der::DateTime;

use crate::{AdditionalEvidence, canonical};

/// The version of the statement and of how it is bound.
pub const PROTOCOL_VERSION: u32 = 1;

/// Begins what the binding of a statement hashes. It contains no zero byte but
/// the last, and everything after it has a fixed length.
const STATEMENT_LABEL: &[u8] = b"occlude/v1/service-statement\0";

/// The same for a TEE that vouches for evidence of what else its machine has.
const COMPOSITE_LABEL: &[u8] = b"occlude/v1/composite-evidence\0";

hexadecimal_bytes! {
    /// 32 random bytes of the verifier; evidence over them is fresh.
    pub Nonce, 32
}

impl Nonce {
    /// Draws a fresh nonce from the operating system.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system's random source failed");
        Self(bytes)
    }
}

hexadecimal_bytes! {
    /// The 64 bytes of report data that evidence must carry.
    pub Binding, 64
}

impl Binding {
    /// The user's leg: `SHA-512("occlude/v1/service-statement" || 0x00 ||
    /// protocol version (4 bytes, little-endian) || nonce || SHA-512(statement))`,
    /// over the statement's exact bytes as they travel.
    #[must_use]
    pub fn for_statement(nonce: &Nonce, statement: &[u8]) -> Self {
        let hash = Sha512::new()
            .chain_update(STATEMENT_LABEL)
            .chain_update(PROTOCOL_VERSION.to_le_bytes())
            .chain_update(nonce.as_bytes())
            .chain_update(Sha512::digest(statement))
            .finalize();
        Self(hash.into())
    }

    /// The broker's leg: the KBS protocol's SHA-384, then 16 zero bytes, which
    /// are compared like the rest.
    #[must_use]
    pub fn from_report_data_48(report_data: &[u8; 48]) -> Self {
        let mut bytes = [0; 64];
        bytes[..48].copy_from_slice(report_data);
        Self(bytes)
    }

    /// What a TEE's own evidence carries where evidence of what else its machine has
    /// comes along, which itself carries this binding:
    /// `SHA-512("occlude/v1/composite-evidence" || 0x00 || binding || SHA-512(additional
    /// evidence))`, over its canonical JSON. So the TEE vouches for what it collected, and
    /// no part can be exchanged or left out. This binding if nothing comes along.
    #[must_use]
    pub fn covering(&self, additional: &AdditionalEvidence) -> Self {
        if additional.is_empty() {
            return *self;
        }
        let hash = Sha512::new()
            .chain_update(COMPOSITE_LABEL)
            .chain_update(self.0)
            .chain_update(Sha512::digest(canonical::encode(additional)))
            .finalize();
        Self(hash.into())
    }

    /// The bytes that evidence of a technology carries: one value for each binding.
    pub(crate) fn in_form(&self, form: BindingForm) -> Vec<u8> {
        let (report_data, rest) = self.0.split_at(48);
        let from_broker = rest.iter().all(|byte| *byte == 0);
        match form {
            BindingForm::Whole => self.0.to_vec(),
            BindingForm::Digest if from_broker => report_data[..32].to_vec(),
            BindingForm::AzureQuote if from_broker => report_data.to_vec(),
            BindingForm::Digest | BindingForm::AzureQuote => Sha256::digest(self.0).to_vec(),
        }
    }
}

/// How evidence of a technology carries a binding.
///
/// Not every field holds 64 bytes. What is shorter is still one hash over the whole, of
/// 32 bytes at least. On the broker's leg it is what a Trustee KBS compares, so that
/// either broker can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BindingForm {
    /// All 64 bytes.
    Whole,
    /// 32 bytes, which is what every TPM takes as qualifying data and NVIDIA's devices
    /// take as nonce: SHA-256 of the binding; on the broker's leg the first 32 bytes of
    /// its SHA-384.
    Digest,
    /// The qualifying data of Azure's TPM: SHA-256 of the binding; on the broker's leg
    /// its SHA-384 as it is.
    AzureQuote,
}

/// Seconds since 1970-01-01 00:00 UTC, by the verifier's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The time of this machine's clock; 0 if it stands before 1970.
    #[must_use]
    pub fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        )
    }
}

impl Display for UnixTime {
    /// As RFC 3339 has it, `2025-12-10T22:14:21Z`; in seconds from the year 10000 on.
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match DateTime::from_unix_duration(Duration::from_secs(self.0)) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// A text that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no time: expected one as in 2026-11-27T12:00:00Z, or seconds since 1970")]
#[non_exhaustive]
pub struct UnixTimeError {
    /// What was given, cut to 80 characters.
    pub found: String,
}

impl FromStr for UnixTime {
    type Err = UnixTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds = text.parse().ok();
        let time = || DateTime::from_str(text).ok();
        seconds
            .or_else(|| Some(time()?.unix_duration().as_secs()))
            .map(Self)
            .ok_or_else(|| UnixTimeError {
                found: text.chars().take(80).collect(),
            })
    }
}

impl serde::Serialize for UnixTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_the_documented_hash() {
        let nonce = Nonce::from([7; 32]);
        let mut message = b"occlude/v1/service-statement\0\x01\0\0\0".to_vec();
        message.extend([7; 32]);
        message.extend(Sha512::digest(b"{}"));
        assert_eq!(
            Binding::for_statement(&nonce, b"{}").as_bytes()[..],
            Sha512::digest(&message)[..]
        );
    }

    #[test]
    fn a_composite_binding_is_the_documented_hash() {
        let binding = Binding::from([7; 64]);
        assert_eq!(binding.covering(&AdditionalEvidence::new()), binding);
        let body = serde_json::json!({"b": 1, "a": 2});
        let additional = AdditionalEvidence::from([(crate::TeeKind::Tpm, body)]);
        let mut message = b"occlude/v1/composite-evidence\0".to_vec();
        message.extend([7; 64]);
        message.extend(Sha512::digest(br#"{"tpm":{"a":2,"b":1}}"#));
        assert_eq!(
            binding.covering(&additional).as_bytes()[..],
            Sha512::digest(&message)[..]
        );
    }

    #[test]
    fn a_binding_differs_by_nonce_and_by_statement() {
        let base = Binding::for_statement(&Nonce::from([7; 32]), b"{}");
        assert_ne!(base, Binding::for_statement(&Nonce::from([8; 32]), b"{}"));
        assert_ne!(base, Binding::for_statement(&Nonce::from([7; 32]), b"{} "));
    }

    #[test]
    fn a_time_has_two_spellings() {
        let time = UnixTime(1_765_404_861);
        assert_eq!(time.to_string(), "2025-12-10T22:14:21Z");
        assert_eq!(time.to_string().parse(), Ok(time));
        assert_eq!("1765404861".parse(), Ok(time));
        assert_eq!(
            UnixTime(u64::MAX).to_string(),
            format!("{} s after 1970", u64::MAX)
        );
        for text in [
            "",
            "-1",
            "2025-12-10",
            "2025-12-10T22:14:21",
            "2025-13-10T22:14:21Z",
        ] {
            assert_eq!(
                text.parse::<UnixTime>().unwrap_err().to_string(),
                format!(
                    "{text:?} is no time: expected one as in 2026-11-27T12:00:00Z, or seconds \
                     since 1970"
                )
            );
        }
    }

    #[test]
    fn short_report_data_is_followed_by_sixteen_zero_bytes() {
        let binding = Binding::from_report_data_48(&[0xa5; 48]);
        assert_eq!(binding.as_bytes()[..48], [0xa5; 48]);
        assert_eq!(binding.as_bytes()[48..], [0; 16]);
    }

    #[test]
    fn a_shorter_field_holds_a_hash_over_the_whole_binding() {
        let user = Binding::from([0x5a; 64]);
        let broker = Binding::from_report_data_48(&[0xa5; 48]);
        for (form, of_user, of_broker) in [
            (BindingForm::Whole, vec![0x5a; 64], broker.0.to_vec()),
            (
                BindingForm::Digest,
                Sha256::digest([0x5a; 64]).to_vec(),
                vec![0xa5; 32],
            ),
            (
                BindingForm::AzureQuote,
                Sha256::digest([0x5a; 64]).to_vec(),
                vec![0xa5; 48],
            ),
        ] {
            assert_eq!(user.in_form(form), of_user);
            assert_eq!(broker.in_form(form), of_broker);
        }
    }

    #[test]
    fn a_nonce_survives_text_and_other_spellings_are_refused() {
        let nonce = Nonce::generate();
        assert_eq!(nonce.to_string().parse(), Ok(nonce));
        assert_ne!(nonce, Nonce::generate());
        for text in [
            "",
            "a5",
            &"A5".repeat(32),
            &"a5".repeat(33),
            &"g5".repeat(32),
        ] {
            assert_eq!(
                text.parse::<Nonce>().unwrap_err().to_string(),
                format!("expected 64 lower-case hexadecimal digits, found {text:?}")
            );
        }
    }
}
