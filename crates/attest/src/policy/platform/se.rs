//! `[evidence.se]`.

use serde::{Deserialize, Serialize};

use super::one_of;
use crate::Refusal;
use crate::se::SePlatform;
use crate::tpm::KeyFingerprint;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct SePolicy {
    host_keys: Vec<KeyFingerprint>,
}

impl SePolicy {
    /// These two keys, which most often are one.
    pub(super) fn pin(seen: &SePlatform) -> Self {
        let mut host_keys = vec![seen.host_key, seen.image_host_key];
        host_keys.dedup();
        Self { host_keys }
    }

    pub(super) fn judge(&self, found: &SePlatform) -> Result<(), Refusal> {
        one_of("se.host-keys", &found.host_key, &self.host_keys)?;
        one_of("se.host-keys", &found.image_host_key, &self.host_keys)
    }
}
