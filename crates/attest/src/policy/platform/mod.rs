//! What a policy says of one kind of TEE: its section below `[evidence]`.
//!
//! A section that is left out says what its defaults say, which docs/policy.md lists;
//! it does not accept that kind of TEE by itself.

mod arm;
mod azure;
mod intel;
mod nitro;
mod nvidia;
mod se;
mod snp;
#[cfg(test)]
mod tests;
mod tpm;

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

pub(super) use arm::{CcaPolicy, TrustZonePolicy};
pub(super) use azure::AzurePolicy;
pub(super) use intel::{SgxPolicy, TdxPolicy};
pub(super) use nitro::NitroPolicy;
pub(super) use nvidia::NvidiaPolicy;
pub(super) use se::SePolicy;
pub(super) use snp::SnpPolicy;
pub(super) use tpm::TpmPolicy;

use super::EvidencePolicy;
use super::refusal::listed;
use crate::azure::{AzurePlatform, AzureProcessor};
use crate::{Claims, Platform, Refusal, Register};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct SimulatedPolicy {
    pub(super) minimum_tcb: u32,
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
            Platform::Tdx(found) => self.tdx.judge(found),
            Platform::Sgx(found) => self.sgx.judge(found),
            Platform::Nitro(found) => self.nitro.judge(found),
            Platform::Azure(found) => {
                self.azure(found).judge(found)?;
                match &found.processor {
                    AzureProcessor::Snp(found) => self.snp.judge(found),
                    AzureProcessor::Tdx(found) => self.tdx.judge(found),
                }
            }
            Platform::Cca(found) => self.cca.judge(found),
            Platform::TrustZone(found) => self.trustzone.judge(found),
            Platform::Tpm(found) => self.tpm.judge(&tpm::TPM, found),
            Platform::Txt(found) => self.txt.judge(&tpm::TXT, found),
            Platform::Nvidia(found) => self.nvidia.judge(found),
            Platform::Se(found) => self.se.judge(found),
        }
    }

    fn azure(&self, found: &AzurePlatform) -> &AzurePolicy {
        match found.processor {
            AzureProcessor::Snp(_) => &self.az_snp_vtpm,
            AzureProcessor::Tdx(_) => &self.az_tdx_vtpm,
        }
    }

    /// Whether the code that a TEE started with is accepted: by its measurement; of an
    /// enclave by who signed it, of a TPM by the registers that its section names, of a GPU
    /// by what its vendor signed or its section names.
    pub(super) fn accepts_measurement(&self, claims: &Claims) -> bool {
        let otherwise = match claims.platform() {
            Platform::Sgx(found) => self.sgx.accepts_signer(found),
            Platform::Azure(found) => self.azure(found).names_registers(),
            Platform::Tpm(_) => self.tpm.names_registers(&tpm::TPM),
            Platform::Txt(_) => self.txt.names_registers(&tpm::TXT),
            Platform::Nvidia(_) => self.nvidia.names_measurements(),
            _ => false,
        };
        otherwise || self.measurements.contains(claims.measurement())
    }

    /// Accepts this platform and later versions of its firmware.
    pub(super) fn pin_platform(&mut self, platform: &Platform) {
        match platform {
            Platform::Simulated { tcb } => self.simulated.minimum_tcb = *tcb,
            Platform::Snp(seen) => self.snp = SnpPolicy::pin(seen),
            Platform::Tdx(seen) => self.tdx = TdxPolicy::pin(seen),
            Platform::Sgx(seen) => self.sgx = SgxPolicy::pin(seen),
            Platform::Nitro(seen) => self.nitro = NitroPolicy::pin(seen),
            Platform::Azure(seen) => match &seen.processor {
                AzureProcessor::Snp(processor) => {
                    self.az_snp_vtpm = AzurePolicy::pin(seen);
                    self.snp = SnpPolicy::pin(processor);
                }
                AzureProcessor::Tdx(processor) => {
                    self.az_tdx_vtpm = AzurePolicy::pin(seen);
                    self.tdx = TdxPolicy::pin(processor);
                }
            },
            Platform::Cca(seen) => self.cca = CcaPolicy::pin(seen),
            Platform::TrustZone(seen) => self.trustzone = TrustZonePolicy::pin(seen),
            Platform::Tpm(seen) => self.tpm = TpmPolicy::pin(&tpm::TPM, seen),
            Platform::Txt(seen) => self.txt = TpmPolicy::pin(&tpm::TXT, seen),
            Platform::Nvidia(seen) => self.nvidia = NvidiaPolicy::pin(seen),
            Platform::Se(seen) => self.se = SePolicy::pin(seen),
        }
    }
}

fn setting(field: &'static str, found: bool, accepted: bool) -> Result<(), Refusal> {
    check(found == accepted, || Refusal::Platform {
        field,
        found: found.to_string(),
        accepted: accepted.to_string(),
    })
}

fn at_least(field: &'static str, found: u32, minimum: u32) -> Result<(), Refusal> {
    check(found >= minimum, || Refusal::Platform {
        field,
        found: found.to_string(),
        accepted: format!("{minimum} or more"),
    })
}

fn check(holds: bool, refusal: impl FnOnce() -> Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refusal()) }
}

/// Of these registers those that were seen, each with the value that it held.
fn pinned_registers<T: Copy>(
    numbers: &[u64],
    seen: &BTreeMap<Register, T>,
) -> BTreeMap<Register, Vec<T>> {
    let registers = numbers.iter().copied().filter_map(Register::new);
    registers
        .filter_map(|register| Some((register, vec![*seen.get(&register)?])))
        .collect()
}

/// Each register that a policy names must hold what it lists for it.
fn judge_registers<T: PartialEq + Display>(
    field: &'static str,
    found: &BTreeMap<Register, T>,
    accepted: &BTreeMap<Register, Vec<T>>,
) -> Result<(), Refusal> {
    for (register, accepted) in accepted {
        let value = found.get(register);
        let listed_there = value.is_some_and(|value| accepted.contains(value));
        check(listed_there, || Refusal::Platform {
            field,
            found: match value {
                Some(value) => format!("{register} = {value}"),
                None => format!("no {register}"),
            },
            accepted: listed(accepted),
        })?;
    }
    Ok(())
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
