//! Devices' keys, in the JSON that Veraison reads: a list of `{"instance-id",
//! "implementation-id", "pkey"}`.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{ImplementationId, InstanceId};
use crate::cose::{JsonWebKey, Key};
use crate::tpm::KeyFingerprint;

/// The key of tokens for tests, whose private half is published: of Trusted Firmware-A on
/// models, and of what verifiers are tested with.
const TEST_KEY: &str = "0928f896cb02326566530a62a1e36329a12d0a4a308f4fc81e8ff5560bca6bca";

/// The most keys in one file: those of a large cluster's devices.
const MAX_KEYS: usize = 16 * 1024;

/// The key of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceKey {
    pub(crate) instance_id: InstanceId,
    pub(crate) implementation_id: ImplementationId,
    pub(crate) key: Key,
}

/// The keys in a file, if it is one of keys.
pub(crate) fn device_keys(file: &[u8]) -> Option<Vec<DeviceKey>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Entry {
        instance_id: String,
        implementation_id: String,
        pkey: JsonWebKey,
    }
    let entries: Vec<Entry> = serde_json::from_slice(file).ok()?;
    if entries.is_empty() || entries.len() > MAX_KEYS {
        return None;
    }
    let keys = entries.iter().map(|entry| {
        // Either case is in use.
        Some(DeviceKey {
            instance_id: entry.instance_id.to_lowercase().parse().ok()?,
            implementation_id: entry.implementation_id.to_lowercase().parse().ok()?,
            key: Key::from_json(&entry.pkey)?,
        })
    });
    keys.collect()
}

impl DeviceKey {
    pub(crate) fn fingerprint(&self) -> KeyFingerprint {
        let digest: [u8; 32] = Sha256::digest(self.key.public_key_info()).into();
        digest.into()
    }

    /// Whether anybody can sign with it.
    pub(crate) fn is_published(&self) -> bool {
        self.fingerprint().to_string() == TEST_KEY
    }
}
