//! `[evidence.tpm]` and `[evidence.txt]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{check, judge_registers, pinned_registers, setting};
use crate::tpm::{KeyFingerprint, RootFingerprint, TpmDigest, TpmPlatform};
use crate::{Refusal, Register};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct TpmPolicy {
    attestation_keys: Vec<KeyFingerprint>,
    roots: Vec<RootFingerprint>,
    require_event_log: bool,
    pcrs: BTreeMap<Register, Vec<TpmDigest>>,
}

/// What differs between the two sections.
pub(super) struct Section {
    attestation_keys: &'static str,
    pcrs: &'static str,
    require_event_log: &'static str,
    /// The registers that tell what was launched: a policy that accepts by registers
    /// names at least these. Of an ordinary boot any may be named.
    launch: &'static [u64],
    /// What is pinned of a machine that was seen.
    pinned: &'static [u64],
}

/// What is pinned of an ordinary boot: the firmware, what it started and whom it trusts, the
/// boot loader's, systemd's.
pub(super) const OF_A_BOOT: [u64; 8] = [0, 2, 4, 7, 8, 9, 11, 12];

pub(super) const TPM: Section = Section {
    attestation_keys: "tpm.attestation-keys",
    pcrs: "tpm.pcrs",
    require_event_log: "tpm.require-event-log",
    launch: &[],
    pinned: &OF_A_BOOT,
};

pub(super) const TXT: Section = Section {
    attestation_keys: "txt.attestation-keys",
    pcrs: "txt.pcrs",
    require_event_log: "txt.require-event-log",
    launch: &[17, 18],
    pinned: &[17, 18],
};

impl TpmPolicy {
    pub(super) fn pin(section: &Section, seen: &TpmPlatform) -> Self {
        Self {
            attestation_keys: vec![seen.attestation_key],
            roots: Vec::new(),
            require_event_log: seen.event_log_entries.is_some(),
            pcrs: pinned_registers(section.pinned, &seen.pcrs),
        }
    }

    /// Exactly these registers, of any of these keys.
    pub(in crate::policy) fn expect(
        registers: &BTreeMap<Register, TpmDigest>,
        attestation_keys: Vec<KeyFingerprint>,
    ) -> Self {
        let registers = registers.iter();
        Self {
            attestation_keys,
            pcrs: registers
                .map(|(register, value)| (*register, vec![*value]))
                .collect(),
            ..Self::default()
        }
    }

    /// Whether what was started may be told by the registers alone.
    pub(super) fn names_registers(&self, section: &Section) -> bool {
        let mut launch = section.launch.iter().copied().filter_map(Register::new);
        !self.pcrs.is_empty() && launch.all(|register| self.pcrs.contains_key(&register))
    }

    pub(super) fn judge(&self, section: &Section, found: &TpmPlatform) -> Result<(), Refusal> {
        let listed = self.attestation_keys.contains(&found.attestation_key);
        let certified = found
            .certified_by
            .is_some_and(|root| self.roots.contains(&root));
        check(listed || certified, || Refusal::Platform {
            field: section.attestation_keys,
            found: match found.certified_by {
                Some(root) => format!("{}, certified by {root},", found.attestation_key),
                None => format!("{}, which nobody certifies,", found.attestation_key),
            },
            accepted: format!(
                "{} keys and {} roots that are not it",
                self.attestation_keys.len(),
                self.roots.len()
            ),
        })?;
        if self.require_event_log {
            let logged = found.event_log_entries.is_some();
            setting(section.require_event_log, logged, true)?;
        }
        judge_registers(section.pcrs, &found.pcrs, &self.pcrs)
    }
}
