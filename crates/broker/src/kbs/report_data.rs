//! What evidence is bound to on the broker's leg.
//!
//! The digest of the canonical JSON (RFC 8785) of nonce, key and additional
//! evidence, as Trustee computes it: SHA-384 unless the challenge selects another
//! function. It fills the first bytes of a [`Binding`]; the rest are zeros and are
//! compared like everything else, so evidence with anything else there is refused.

use kbs_types::{RuntimeData, TeePubKey};
use occlude_attest::{Binding, TeeKind};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// The key of the challenge's extra parameters that selects the hash function.
pub const SELECTED_HASH_ALGORITHM: &str = "selected-hash-algorithm";
/// The key of the request's extra parameters that lists what the client can do.
pub const SUPPORTED_HASH_ALGORITHMS: &str = "supported-hash-algorithms";

/// The hash functions whose output fits a [`Binding`] and that are no national
/// standard which no TEE here uses (KBS also names SM3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReportHash {
    /// SHA-256: 32 bytes and 32 zeros.
    Sha256,
    /// SHA-384, the default: 48 bytes and 16 zeros.
    #[default]
    Sha384,
    /// SHA-512: 64 bytes. IBM Secure Execution uses it.
    Sha512,
}

/// The hash function that one side asks for is none that the other can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the hash algorithm is {found}, expected {expected}")]
#[non_exhaustive]
pub struct HashAlgorithmError {
    /// What came, cut to 200 characters.
    pub found: String,
    /// What would do.
    pub expected: &'static str,
}

impl ReportHash {
    const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name that KBS has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The broker's choice for a kind of TEE, from the request's extra parameters.
    ///
    /// # Errors
    /// [`HashAlgorithmError`] if the client lists what it supports and the choice
    /// is not in the list.
    pub fn choose(tee: TeeKind, extra_params: &Value) -> Result<Self, HashAlgorithmError> {
        let choice = match tee {
            TeeKind::Se => Self::Sha512,
            _ => Self::Sha384,
        };
        match extra_params.get(SUPPORTED_HASH_ALGORITHMS) {
            None => Ok(choice),
            Some(Value::Array(names)) if names.iter().any(|name| name == choice.name()) => {
                Ok(choice)
            }
            Some(other) => Err(HashAlgorithmError {
                found: other.to_string().chars().take(200).collect(),
                expected: choice.name(),
            }),
        }
    }

    /// What the challenge's extra parameters select; SHA-384 if nothing.
    ///
    /// # Errors
    /// [`HashAlgorithmError`] for anything but SHA-256, SHA-384 and SHA-512.
    pub fn selected(extra_params: &Value) -> Result<Self, HashAlgorithmError> {
        let Some(selected) = extra_params.get(SELECTED_HASH_ALGORITHM) else {
            return Ok(Self::default());
        };
        let name = selected.as_str().map(str::to_ascii_lowercase);
        Self::ALL
            .into_iter()
            .find(|hash| name.as_deref() == Some(hash.name()))
            .ok_or_else(|| HashAlgorithmError {
                found: selected.to_string().chars().take(200).collect(),
                expected: "sha256, sha384 or sha512",
            })
    }

    /// The challenge's extra parameters that select this function.
    #[must_use]
    pub fn extra_params(self) -> Value {
        json!({ SELECTED_HASH_ALGORITHM: self.name() })
    }

    /// The digest, then zeros up to 64 bytes. No digest here is longer, so none
    /// is ever cut.
    fn binding(self, message: &[u8]) -> Binding {
        fn padded(digest: &[u8]) -> Binding {
            let mut bytes = [0; 64];
            bytes[..digest.len()].copy_from_slice(digest);
            Binding::from(bytes)
        }
        match self {
            Self::Sha256 => padded(&Sha256::digest(message)),
            Self::Sha384 => padded(&Sha384::digest(message)),
            Self::Sha512 => padded(&Sha512::digest(message)),
        }
    }
}

/// What the primary evidence of a TEE must carry. `additional_evidence` is that of
/// its devices exactly as it travels, `""` when it is alone.
#[must_use]
pub fn primary(hash: ReportHash, runtime_data: &RuntimeData, additional_evidence: &str) -> Binding {
    hash.binding(&canonical(&Primary {
        additional_evidence,
        nonce: &runtime_data.nonce,
        tee_pubkey: &runtime_data.tee_pubkey,
    }))
}

/// What the evidence of a device beside a TEE must carry: the same without the
/// additional evidence, which it is itself a part of.
#[must_use]
pub fn device(hash: ReportHash, runtime_data: &RuntimeData) -> Binding {
    hash.binding(&canonical(runtime_data))
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Primary<'a> {
    additional_evidence: &'a str,
    nonce: &'a str,
    tee_pubkey: &'a TeePubKey,
}

fn canonical(value: &impl Serialize) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(value).expect("strings always make canonical JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime_data() -> RuntimeData {
        RuntimeData {
            nonce: "bm9uY2U=".to_owned(),
            tee_pubkey: TeePubKey::EC {
                crv: "P-256".to_owned(),
                alg: "ECDH-ES+A256KW".to_owned(),
                x: "eA".to_owned(),
                y: "eQ".to_owned(),
            },
        }
    }

    const KEY: &str = r#"{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}"#;

    #[test]
    fn the_report_data_is_the_sha_384_of_the_documented_json_and_sixteen_zeros() {
        let json = format!(r#"{{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{KEY}}}"#);
        let binding = primary(ReportHash::Sha384, &runtime_data(), "");
        assert_eq!(binding.as_bytes()[..48], Sha384::digest(json)[..]);
        assert_eq!(binding.as_bytes()[48..], [0; 16]);
    }

    #[test]
    fn a_device_is_bound_without_the_additional_evidence() {
        let json = format!(r#"{{"nonce":"bm9uY2U=","tee-pubkey":{KEY}}}"#);
        assert_eq!(
            device(ReportHash::Sha512, &runtime_data()).as_bytes()[..],
            Sha512::digest(json)[..]
        );
    }

    #[test]
    fn the_short_hash_leaves_thirty_two_zeros_and_the_long_one_none() {
        let short = primary(ReportHash::Sha256, &runtime_data(), "{}");
        assert_eq!(short.as_bytes()[32..], [0; 32]);
        let long = primary(ReportHash::Sha512, &runtime_data(), "{}");
        assert_ne!(long.as_bytes()[48..], [0; 16]);
    }

    #[test]
    fn the_report_data_differs_by_nonce_key_and_additional_evidence() {
        let base = primary(ReportHash::Sha384, &runtime_data(), "");
        let mut other = runtime_data();
        other.nonce.push('x');
        assert_ne!(primary(ReportHash::Sha384, &other, ""), base);
        assert_ne!(primary(ReportHash::Sha384, &runtime_data(), "{}"), base);
    }

    #[test]
    fn the_selected_hash_algorithm_is_honoured_and_unknown_ones_refused() {
        for hash in ReportHash::ALL {
            assert_eq!(ReportHash::selected(&hash.extra_params()), Ok(hash));
        }
        for nothing in [json!(""), json!({}), Value::Null] {
            assert_eq!(ReportHash::selected(&nothing), Ok(ReportHash::Sha384));
        }
        for (selected, found) in [(json!("sm3"), "\"sm3\""), (json!(384), "384")] {
            assert_eq!(
                ReportHash::selected(&json!({ SELECTED_HASH_ALGORITHM: selected })),
                Err(HashAlgorithmError {
                    found: found.to_owned(),
                    expected: "sha256, sha384 or sha512"
                })
            );
        }
    }

    #[test]
    fn the_choice_must_be_among_what_the_client_supports() {
        let params = json!({ SUPPORTED_HASH_ALGORITHMS: ["sha256", "sha384"] });
        assert_eq!(
            ReportHash::choose(TeeKind::Snp, &params),
            Ok(ReportHash::Sha384)
        );
        assert_eq!(
            ReportHash::choose(TeeKind::Se, &json!("")),
            Ok(ReportHash::Sha512)
        );
        assert_eq!(
            ReportHash::choose(TeeKind::Se, &params),
            Err(HashAlgorithmError {
                found: r#"["sha256","sha384"]"#.to_owned(),
                expected: "sha512"
            })
        );
    }
}
