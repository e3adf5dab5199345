//! `[evidence.nitro]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check;
use super::listed;
use crate::Refusal;
use crate::nitro::{NitroDigest, NitroPlatform, Register};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct NitroPolicy {
    pcrs: BTreeMap<Register, Vec<NitroDigest>>,
}

impl NitroPolicy {
    /// What the image is, not where it runs: registers 3 and 4 are the instance's.
    pub(super) fn pin(seen: &NitroPlatform) -> Self {
        let image = [0, 1, 2, 8].into_iter().filter_map(Register::new);
        let pinned =
            image.filter_map(|register| Some((register, vec![*seen.pcrs.get(&register)?])));
        Self {
            pcrs: pinned.collect(),
        }
    }

    pub(super) fn judge(&self, found: &NitroPlatform) -> Result<(), Refusal> {
        for (register, accepted) in &self.pcrs {
            let value = found.pcrs.get(register);
            let listed_there = value.is_some_and(|value| accepted.contains(value));
            check(listed_there, || Refusal::Platform {
                field: "nitro.pcrs",
                found: match value {
                    Some(value) => format!("{register} = {value}"),
                    None => format!("{register} = 0"),
                },
                accepted: listed(accepted),
            })?;
        }
        Ok(())
    }
}
