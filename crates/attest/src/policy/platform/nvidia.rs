//! `[evidence.nvidia]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{check, one_of};
use crate::Refusal;
use crate::nvidia::{
    MeasurementIndex, NvidiaDevice, NvidiaDigest, NvidiaMode, NvidiaPlatform, Reference,
};
use crate::policy::refusal::listed;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct NvidiaPolicy {
    require_reference: bool,
    minimum_devices: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver_versions: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vbios_versions: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modes: Option<Vec<NvidiaMode>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    measurements: BTreeMap<MeasurementIndex, Vec<NvidiaDigest>>,
}

impl Default for NvidiaPolicy {
    fn default() -> Self {
        Self {
            require_reference: true,
            minimum_devices: 1,
            driver_versions: None,
            vbios_versions: None,
            modes: None,
            measurements: BTreeMap::new(),
        }
    }
}

impl NvidiaPolicy {
    /// These devices, with their drivers and firmware: what NVIDIA signed for them where it
    /// was compared, else what was measured.
    pub(super) fn pin(seen: &NvidiaPlatform) -> Self {
        let devices = || seen.devices.iter();
        let compared = devices().all(|device| {
            device.driver_reference == Reference::Matched
                && device.vbios_reference == Reference::Matched
        });
        let mut measurements: BTreeMap<_, Vec<_>> = BTreeMap::new();
        if !compared {
            for (index, value) in devices().flat_map(|device| &device.measurements) {
                push_new(measurements.entry(*index).or_default(), value);
            }
        }
        Self {
            require_reference: compared,
            minimum_devices: u32::try_from(seen.devices.len()).unwrap_or(u32::MAX),
            driver_versions: Some(each(devices().map(|device| &device.driver_version))),
            vbios_versions: Some(each(devices().map(|device| &device.vbios_version))),
            modes: Some(each(devices().map(|device| &device.mode))),
            measurements,
        }
    }

    pub(super) fn judge(&self, found: &NvidiaPlatform) -> Result<(), Refusal> {
        let devices = u32::try_from(found.devices.len()).unwrap_or(u32::MAX);
        check(devices >= self.minimum_devices, || Refusal::Platform {
            field: "nvidia.minimum-devices",
            found: devices.to_string(),
            accepted: format!("{} or more", self.minimum_devices),
        })?;
        found
            .devices
            .iter()
            .try_for_each(|device| self.judge_device(device))
    }

    fn judge_device(&self, device: &NvidiaDevice) -> Result<(), Refusal> {
        for (what, reference) in [
            ("driver", device.driver_reference),
            ("VBIOS", device.vbios_reference),
        ] {
            let compared = reference == Reference::Matched;
            check(compared || !self.require_reference, || Refusal::Platform {
                field: "nvidia.require-reference",
                found: format!("no manifest of its {what} in the collateral"),
                accepted: "measurements that were compared with NVIDIA's".to_owned(),
            })?;
        }
        if let Some(accepted) = &self.driver_versions {
            one_of("nvidia.driver-versions", &device.driver_version, accepted)?;
        }
        if let Some(accepted) = &self.vbios_versions {
            one_of("nvidia.vbios-versions", &device.vbios_version, accepted)?;
        }
        if let Some(accepted) = &self.modes {
            one_of("nvidia.modes", &device.mode, accepted)?;
        }
        for (index, accepted) in &self.measurements {
            let value = device.measurements.get(index);
            let listed_there = value.is_some_and(|value| accepted.contains(value));
            check(listed_there, || Refusal::Platform {
                field: "nvidia.measurements",
                found: match value {
                    Some(value) => format!("{index} = {value}"),
                    None => format!("no measurement {index}"),
                },
                accepted: listed(accepted),
            })?;
        }
        Ok(())
    }

    /// Whether it says of its own what has to have been measured.
    pub(super) fn names_measurements(&self) -> bool {
        self.require_reference || !self.measurements.is_empty()
    }
}

/// Each value once.
fn each<'a, T: Clone + PartialEq + 'a>(values: impl Iterator<Item = &'a T>) -> Vec<T> {
    let mut each = Vec::new();
    for value in values {
        push_new(&mut each, value);
    }
    each
}

fn push_new<T: Clone + PartialEq>(values: &mut Vec<T>, value: &T) {
    if !values.contains(value) {
        values.push(value.clone());
    }
}
