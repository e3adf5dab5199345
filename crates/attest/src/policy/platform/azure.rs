//! `[evidence.az-snp-vtpm]` and `[evidence.az-tdx-vtpm]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tpm::OF_A_BOOT;
use super::{judge_registers, one_of, pinned_registers, setting};
use crate::azure::{AzurePlatform, AzureProcessor};
use crate::tpm::TpmDigest;
use crate::{Measurement, Refusal, Register};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct AzurePolicy {
    paravisors: Vec<Measurement>,
    require_secure_boot: bool,
    allow_console: bool,
    pcrs: BTreeMap<Register, Vec<TpmDigest>>,
}

impl Default for AzurePolicy {
    fn default() -> Self {
        Self {
            paravisors: Vec::new(),
            require_secure_boot: true,
            allow_console: true,
            pcrs: BTreeMap::new(),
        }
    }
}

/// The names of fields, which the two sections have each for its own.
pub(super) struct Section {
    paravisors: &'static str,
    require_secure_boot: &'static str,
    allow_console: &'static str,
    pcrs: &'static str,
}

const SNP: Section = Section {
    paravisors: "az-snp-vtpm.paravisors",
    require_secure_boot: "az-snp-vtpm.require-secure-boot",
    allow_console: "az-snp-vtpm.allow-console",
    pcrs: "az-snp-vtpm.pcrs",
};

const TDX: Section = Section {
    paravisors: "az-tdx-vtpm.paravisors",
    require_secure_boot: "az-tdx-vtpm.require-secure-boot",
    allow_console: "az-tdx-vtpm.allow-console",
    pcrs: "az-tdx-vtpm.pcrs",
};

impl AzurePolicy {
    pub(super) fn pin(seen: &AzurePlatform) -> Self {
        Self {
            paravisors: vec![seen.paravisor.clone()],
            require_secure_boot: seen.secure_boot,
            allow_console: seen.console,
            pcrs: pinned_registers(&OF_A_BOOT, &seen.pcrs),
        }
    }

    /// Whether what was started may be told by the registers alone.
    pub(super) fn names_registers(&self) -> bool {
        !self.pcrs.is_empty()
    }

    pub(super) fn judge(&self, found: &AzurePlatform) -> Result<(), Refusal> {
        let section = match found.processor {
            AzureProcessor::Snp(_) => SNP,
            AzureProcessor::Tdx(_) => TDX,
        };
        one_of(section.paravisors, &found.paravisor, &self.paravisors)?;
        if self.require_secure_boot {
            setting(section.require_secure_boot, found.secure_boot, true)?;
        }
        if !self.allow_console {
            setting(section.allow_console, found.console, false)?;
        }
        judge_registers(section.pcrs, &found.pcrs, &self.pcrs)
    }
}
