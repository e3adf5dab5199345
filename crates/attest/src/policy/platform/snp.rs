//! `[evidence.snp]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{at_least, check, one_of, setting};
use crate::Refusal;
use crate::snp::{ChipId, KeyDigest, SnpEndorsement, SnpPlatform, SnpProduct, SnpTcb};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct SnpPolicy {
    products: Vec<SnpProduct>,
    endorsements: Vec<SnpEndorsement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chip_ids: Option<Vec<ChipId>>,
    vmpls: Vec<u32>,
    minimum_guest_svn: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_key_digests: Option<Vec<KeyDigest>>,
    allow_migration: bool,
    allow_smt: bool,
    require_ciphertext_hiding: bool,
    require_alias_check: bool,
    minimum_tcb: BTreeMap<SnpProduct, SnpTcb>,
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

impl SnpPolicy {
    pub(super) fn pin(seen: &SnpPlatform) -> Self {
        Self {
            products: vec![seen.product],
            endorsements: vec![seen.endorsement],
            vmpls: vec![seen.vmpl],
            minimum_guest_svn: seen.guest_svn,
            allow_migration: seen.migration,
            allow_smt: seen.smt,
            require_ciphertext_hiding: seen.ciphertext_hiding,
            require_alias_check: seen.alias_check,
            minimum_tcb: BTreeMap::from([(seen.product, seen.tcb)]),
            ..Self::default()
        }
    }

    pub(super) fn judge(&self, found: &SnpPlatform) -> Result<(), Refusal> {
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
        at_least(
            "snp.minimum-guest-svn",
            found.guest_svn,
            self.minimum_guest_svn,
        )?;
        if let Some(accepted) = &self.id_key_digests {
            one_of("snp.id-key-digests", &found.id_key_digest, accepted)?;
        }
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
