//! Names and messages around those of `kbs-types`.
//!
//! KBS has no name for some kinds of TEE. Those use the same messages under
//! [`OCCLUDE_PREFIX`], with our own request, and are never disguised as one of
//! the kinds that KBS has, least of all as `sample`.

use kbs_types::Tee;
use occlude_attest::TeeKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The only protocol version that Trustee accepts today, and we too.
pub const PROTOCOL_VERSION: &str = "0.4.0";
/// Where KBS lives.
pub const KBS_PREFIX: &str = "/kbs/v0";
/// Where our own requests live.
pub const OCCLUDE_PREFIX: &str = "/occlude/v0";
/// The session's cookie.
pub const SESSION_COOKIE: &str = "kbs-session-id";
/// The type part of the path of a model key.
pub const MODEL_KEY_TYPE: &str = "model-key";

/// The request for a challenge by a kind of TEE that KBS has no name for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OccludeRequest {
    /// [`PROTOCOL_VERSION`].
    pub version: String,
    /// The kind of TEE.
    pub tee: TeeKind,
    /// As in KBS.
    #[serde(rename = "extra-params")]
    pub extra_params: Value,
}

/// The answer to an attestation. Trustee's token is a JWT; ours is opaque.
#[derive(Clone, Serialize, Deserialize)]
pub struct AttestationAnswer {
    /// Stands for the session as a bearer token.
    pub token: String,
}

/// The kind of TEE that a KBS name stands for; `None` for the sample TEEs, which
/// prove nothing, and for those that this project does not know.
#[must_use]
pub fn tee_kind(tee: Tee) -> Option<TeeKind> {
    match tee {
        Tee::AzSnpVtpm => Some(TeeKind::AzSnpVtpm),
        Tee::AzTdxVtpm => Some(TeeKind::AzTdxVtpm),
        Tee::Nvidia => Some(TeeKind::Nvidia),
        Tee::Sgx => Some(TeeKind::Sgx),
        Tee::Snp => Some(TeeKind::Snp),
        Tee::Tdx => Some(TeeKind::Tdx),
        Tee::Cca => Some(TeeKind::Cca),
        Tee::Se => Some(TeeKind::Se),
        Tee::Tpm => Some(TeeKind::Tpm),
        Tee::Csv | Tee::HygonDcu | Tee::NvidiaDpu | Tee::Sample | Tee::SampleDevice => None,
    }
}

/// The KBS name of a kind of TEE, if it has one.
#[must_use]
pub fn kbs_tee(kind: TeeKind) -> Option<Tee> {
    match kind {
        TeeKind::AzSnpVtpm => Some(Tee::AzSnpVtpm),
        TeeKind::AzTdxVtpm => Some(Tee::AzTdxVtpm),
        TeeKind::Nvidia => Some(Tee::Nvidia),
        TeeKind::Sgx => Some(Tee::Sgx),
        TeeKind::Snp => Some(Tee::Snp),
        TeeKind::Tdx => Some(Tee::Tdx),
        TeeKind::Cca => Some(Tee::Cca),
        TeeKind::Se => Some(Tee::Se),
        TeeKind::Tpm => Some(Tee::Tpm),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_tee_has_a_kbs_name_that_leads_back_or_none() {
        let named = TeeKind::ALL.into_iter().filter(|kind| {
            kbs_tee(*kind).is_some_and(|tee| {
                assert_eq!(tee_kind(tee), Some(*kind));
                true
            })
        });
        assert_eq!(named.count(), 9);
        for kind in [
            TeeKind::Simulated,
            TeeKind::Nitro,
            TeeKind::Txt,
            TeeKind::TrustZone,
        ] {
            assert_eq!(kbs_tee(kind), None);
        }
    }

    #[test]
    fn the_sample_tees_stand_for_nothing() {
        assert_eq!(tee_kind(Tee::Sample), None);
        assert_eq!(tee_kind(Tee::SampleDevice), None);
    }
}
