//! What a policy says of one kind of TEE: its section below `[evidence]`.
//!
//! A section that is left out says what its defaults say, which docs/policy.md lists;
//! it does not accept that kind of TEE by itself.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::EvidencePolicy;
use super::refusal::listed;
use crate::snp::{ChipId, KeyDigest, SnpEndorsement, SnpPlatform, SnpProduct, SnpTcb};
use crate::{Platform, Refusal};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct SimulatedPolicy {
    pub(super) minimum_tcb: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct SnpPolicy {
    pub(super) products: Vec<SnpProduct>,
    pub(super) endorsements: Vec<SnpEndorsement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chip_ids: Option<Vec<ChipId>>,
    pub(super) vmpls: Vec<u32>,
    pub(super) minimum_guest_svn: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id_key_digests: Option<Vec<KeyDigest>>,
    pub(super) allow_migration: bool,
    pub(super) allow_smt: bool,
    pub(super) require_ciphertext_hiding: bool,
    pub(super) require_alias_check: bool,
    pub(super) minimum_tcb: BTreeMap<SnpProduct, SnpTcb>,
}

impl Default for SnpPolicy {
    fn default() -> Self {
        Self {
            products: SnpProduct::ALL.to_vec(),
            endorsements: vec![SnpEndorsement::Vcek, SnpEndorsement::Vlek],
            chip_ids: None,
            vmpls: vec![0],
            minimum_guest_svn: 0,
            id_key_digests: None,
            allow_migration: false,
            allow_smt: true,
            require_ciphertext_hiding: false,
            require_alias_check: false,
            minimum_tcb: BTreeMap::new(),
        }
    }
}

pub(super) fn is_default<T: Default + PartialEq>(section: &T) -> bool {
    *section == T::default()
}

impl EvidencePolicy {
    pub(super) fn judge_platform(&self, platform: &Platform) -> Result<(), Refusal> {
        match platform {
            Platform::Simulated { tcb } => {
                let minimum = self.simulated.minimum_tcb;
                check(*tcb >= minimum, || Refusal::Tcb {
                    found: tcb.to_string(),
                    minimum: minimum.to_string(),
                })
            }
            Platform::Snp(found) => self.snp.judge(found),
        }
    }

    /// Accepts this platform and later versions of its firmware.
    pub(super) fn pin_platform(&mut self, platform: &Platform) {
        match platform {
            Platform::Simulated { tcb } => self.simulated.minimum_tcb = *tcb,
            Platform::Snp(seen) => {
                self.snp = SnpPolicy {
                    products: vec![seen.product],
                    endorsements: vec![seen.endorsement],
                    vmpls: vec![seen.vmpl],
                    minimum_guest_svn: seen.guest_svn,
                    allow_migration: seen.migration,
                    allow_smt: seen.smt,
                    require_ciphertext_hiding: seen.ciphertext_hiding,
                    require_alias_check: seen.alias_check,
                    minimum_tcb: BTreeMap::from([(seen.product, seen.tcb)]),
                    ..SnpPolicy::default()
                }
            }
        }
    }
}

impl SnpPolicy {
    fn judge(&self, found: &SnpPlatform) -> Result<(), Refusal> {
        one_of("snp.products", &found.product, &self.products)?;
        if let Some(minimum) = self.minimum_tcb.get(&found.product) {
            check(found.tcb.reaches(minimum), || Refusal::Tcb {
                found: found.tcb.to_string(),
                minimum: minimum.to_string(),
            })?;
        }
        one_of("snp.endorsements", &found.endorsement, &self.endorsements)?;
        if let Some(accepted) = &self.chip_ids {
            let listed = found.chip_id.is_some_and(|id| accepted.contains(&id));
            check(listed, || Refusal::Platform {
                field: "snp.chip-ids",
                found: found
                    .chip_id
                    .map_or_else(|| "a chip that is hidden".to_owned(), |id| id.to_string()),
                accepted: format!("{} that are not it", accepted.len()),
            })?;
        }
        one_of("snp.vmpls", &found.vmpl, &self.vmpls)?;
        check(found.guest_svn >= self.minimum_guest_svn, || {
            Refusal::Platform {
                field: "snp.minimum-guest-svn",
                found: found.guest_svn.to_string(),
                accepted: format!("{} or more", self.minimum_guest_svn),
            }
        })?;
        if let Some(accepted) = &self.id_key_digests {
            one_of("snp.id-key-digests", &found.id_key_digest, accepted)?;
        }
        let setting = |field, found: bool, accepted: bool| {
            check(found == accepted, || Refusal::Platform {
                field,
                found: found.to_string(),
                accepted: accepted.to_string(),
            })
        };
        if !self.allow_migration {
            setting("snp.allow-migration", found.migration, false)?;
        }
        if !self.allow_smt {
            setting("snp.allow-smt", found.smt, false)?;
        }
        if self.require_ciphertext_hiding {
            setting(
                "snp.require-ciphertext-hiding",
                found.ciphertext_hiding,
                true,
            )?;
        }
        if self.require_alias_check {
            setting("snp.require-alias-check", found.alias_check, true)?;
        }
        Ok(())
    }
}

fn check(holds: bool, refusal: impl FnOnce() -> Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refusal()) }
}

fn one_of<T: PartialEq + Display>(
    field: &'static str,
    found: &T,
    accepted: &[T],
) -> Result<(), Refusal> {
    check(accepted.contains(found), || Refusal::Platform {
        field,
        found: found.to_string(),
        accepted: listed(accepted),
    })
}
