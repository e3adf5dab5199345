//! `[evidence.nitro]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{judge_registers, pinned_registers};
use crate::nitro::{NitroDigest, NitroPlatform};
use crate::{Refusal, Register};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct NitroPolicy {
    pcrs: BTreeMap<Register, Vec<NitroDigest>>,
}

impl NitroPolicy {
    /// What the image is, not where it runs: registers 3 and 4 are the instance's.
    pub(super) fn pin(seen: &NitroPlatform) -> Self {
        Self {
            pcrs: pinned_registers(&[0, 1, 2, 8], &seen.pcrs),
        }
    }

    pub(super) fn judge(&self, found: &NitroPlatform) -> Result<(), Refusal> {
        judge_registers("nitro.pcrs", &found.pcrs, &self.pcrs)
    }
}
