//! `[evidence.cca]` and `[evidence.trustzone]`.

use serde::{Deserialize, Serialize};

use super::{check, one_of};
use crate::arm::{ArmPlatform, ImplementationId};
use crate::cca::CcaPlatform;
use crate::tpm::KeyFingerprint;
use crate::trustzone::TrustZonePlatform;
use crate::{Measurement, Refusal};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct CcaPolicy {
    attestation_keys: Vec<KeyFingerprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    implementations: Option<Vec<ImplementationId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    components: Option<Vec<Measurement>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rem0: Option<Vec<Measurement>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rem1: Option<Vec<Measurement>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rem2: Option<Vec<Measurement>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rem3: Option<Vec<Measurement>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct TrustZonePolicy {
    attestation_keys: Vec<KeyFingerprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    implementations: Option<Vec<ImplementationId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    components: Option<Vec<Measurement>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<Vec<i32>>,
}

/// The names of fields, which the two sections have each for its own.
struct Section {
    attestation_keys: &'static str,
    implementations: &'static str,
    components: &'static str,
}

const CCA: Section = Section {
    attestation_keys: "cca.attestation-keys",
    implementations: "cca.implementations",
    components: "cca.components",
};

const TRUSTZONE: Section = Section {
    attestation_keys: "trustzone.attestation-keys",
    implementations: "trustzone.implementations",
    components: "trustzone.components",
};

impl CcaPolicy {
    pub(super) fn pin(seen: &CcaPlatform) -> Self {
        let [rem0, rem1, rem2, rem3] = seen.rem.clone().map(|register| Some(vec![register]));
        Self {
            attestation_keys: vec![seen.platform.attestation_key],
            implementations: Some(vec![seen.platform.implementation_id]),
            components: Some(measurements(&seen.platform)),
            rem0,
            rem1,
            rem2,
            rem3,
        }
    }

    pub(super) fn judge(&self, found: &CcaPlatform) -> Result<(), Refusal> {
        CCA.judge(
            &found.platform,
            &self.attestation_keys,
            self.implementations.as_deref(),
            self.components.as_deref(),
        )?;
        let [rem0, rem1, rem2, rem3] = &found.rem;
        for (field, accepted, found) in [
            ("cca.rem0", &self.rem0, rem0),
            ("cca.rem1", &self.rem1, rem1),
            ("cca.rem2", &self.rem2, rem2),
            ("cca.rem3", &self.rem3, rem3),
        ] {
            if let Some(accepted) = accepted {
                one_of(field, found, accepted)?;
            }
        }
        Ok(())
    }
}

impl TrustZonePolicy {
    pub(super) fn pin(seen: &TrustZonePlatform) -> Self {
        Self {
            attestation_keys: vec![seen.platform.attestation_key],
            implementations: Some(vec![seen.platform.implementation_id]),
            components: Some(measurements(&seen.platform)),
            clients: Some(vec![seen.client_id]),
        }
    }

    pub(super) fn judge(&self, found: &TrustZonePlatform) -> Result<(), Refusal> {
        TRUSTZONE.judge(
            &found.platform,
            &self.attestation_keys,
            self.implementations.as_deref(),
            self.components.as_deref(),
        )?;
        if let Some(accepted) = &self.clients {
            one_of("trustzone.clients", &found.client_id, accepted)?;
        }
        Ok(())
    }
}

fn measurements(platform: &ArmPlatform) -> Vec<Measurement> {
    let components = platform.components.iter();
    components.map(|one| one.measurement.clone()).collect()
}

impl Section {
    /// Judges the device: its key, what made it, and each part of its firmware.
    fn judge(
        &self,
        found: &ArmPlatform,
        keys: &[KeyFingerprint],
        implementations: Option<&[ImplementationId]>,
        components: Option<&[Measurement]>,
    ) -> Result<(), Refusal> {
        one_of(self.attestation_keys, &found.attestation_key, keys)?;
        if let Some(accepted) = implementations {
            one_of(self.implementations, &found.implementation_id, accepted)?;
        }
        let Some(accepted) = components else {
            return Ok(());
        };
        for component in &found.components {
            check(accepted.contains(&component.measurement), || {
                let name = component.name.as_deref().unwrap_or("a part");
                Refusal::Platform {
                    field: self.components,
                    found: format!("{name} = {}", component.measurement),
                    accepted: format!("{} that are not it", accepted.len()),
                }
            })?;
        }
        Ok(())
    }
}
