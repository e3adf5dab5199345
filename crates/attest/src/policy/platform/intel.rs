//! `[evidence.tdx]` and `[evidence.sgx]`.

use serde::{Deserialize, Serialize};

use super::{at_least, check, one_of, setting};
use crate::Refusal;
use crate::intel::{IntelPlatform, TcbStatus};
use crate::sgx::{SgxMemory, SgxPlatform, SgxSigner};
use crate::tdx::{TdxDigest, TdxPlatform};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct TdxPolicy {
    tcb_statuses: Vec<TcbStatus>,
    minimum_evaluation_number: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtmr0: Option<Vec<TdxDigest>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtmr1: Option<Vec<TdxDigest>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtmr2: Option<Vec<TdxDigest>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtmr3: Option<Vec<TdxDigest>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modules: Option<Vec<TdxDigest>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owners: Option<Vec<TdxDigest>>,
    require_sept_ve_disable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::policy) struct SgxPolicy {
    tcb_statuses: Vec<TcbStatus>,
    minimum_evaluation_number: u32,
    memory: Vec<SgxMemory>,
    signers: Vec<SignerPolicy>,
}

/// Enclaves by who signed them, whatever they measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct SignerPolicy {
    signer: SgxSigner,
    product_id: u16,
    minimum_svn: u16,
}

impl Default for TdxPolicy {
    fn default() -> Self {
        Self {
            tcb_statuses: vec![TcbStatus::UpToDate],
            minimum_evaluation_number: 0,
            rtmr0: None,
            rtmr1: None,
            rtmr2: None,
            rtmr3: None,
            modules: None,
            owners: None,
            require_sept_ve_disable: true,
        }
    }
}

impl Default for SgxPolicy {
    fn default() -> Self {
        Self {
            tcb_statuses: vec![TcbStatus::UpToDate],
            minimum_evaluation_number: 0,
            memory: vec![
                SgxMemory::Standard,
                SgxMemory::Scalable,
                SgxMemory::ScalableWithIntegrity,
            ],
            signers: Vec::new(),
        }
    }
}

impl TdxPolicy {
    pub(super) fn pin(seen: &TdxPlatform) -> Self {
        let [rtmr0, rtmr1, rtmr2, rtmr3] = seen.rtmr.map(|register| Some(vec![register]));
        Self {
            tcb_statuses: vec![seen.intel.tcb_status],
            minimum_evaluation_number: seen.intel.evaluation_number,
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            // Intel updates it while guests run.
            modules: None,
            owners: Some(vec![seen.mr_owner]),
            require_sept_ve_disable: seen.attributes.sept_ve_disable(),
        }
    }

    pub(super) fn judge(&self, found: &TdxPlatform) -> Result<(), Refusal> {
        judge_status("tdx.tcb-statuses", &self.tcb_statuses, &found.intel)?;
        at_least(
            "tdx.minimum-evaluation-number",
            found.intel.evaluation_number,
            self.minimum_evaluation_number,
        )?;
        let [rtmr0, rtmr1, rtmr2, rtmr3] = &found.rtmr;
        for (field, accepted, found) in [
            ("tdx.rtmr0", &self.rtmr0, rtmr0),
            ("tdx.rtmr1", &self.rtmr1, rtmr1),
            ("tdx.rtmr2", &self.rtmr2, rtmr2),
            ("tdx.rtmr3", &self.rtmr3, rtmr3),
            ("tdx.modules", &self.modules, &found.mr_seam),
            ("tdx.owners", &self.owners, &found.mr_owner),
        ] {
            if let Some(accepted) = accepted {
                one_of(field, found, accepted)?;
            }
        }
        if self.require_sept_ve_disable {
            let found = found.attributes.sept_ve_disable();
            setting("tdx.require-sept-ve-disable", found, true)?;
        }
        Ok(())
    }
}

impl SgxPolicy {
    /// By measurement, not by signer: who signs can sign something else tomorrow.
    pub(super) fn pin(seen: &SgxPlatform) -> Self {
        Self {
            tcb_statuses: vec![seen.intel.tcb_status],
            minimum_evaluation_number: seen.intel.evaluation_number,
            memory: vec![seen.memory],
            signers: Vec::new(),
        }
    }

    pub(super) fn accepts_signer(&self, found: &SgxPlatform) -> bool {
        self.signers.iter().any(|accepted| {
            accepted.signer == found.signer
                && accepted.product_id == found.product_id
                && accepted.minimum_svn <= found.svn
        })
    }

    pub(super) fn judge(&self, found: &SgxPlatform) -> Result<(), Refusal> {
        judge_status("sgx.tcb-statuses", &self.tcb_statuses, &found.intel)?;
        at_least(
            "sgx.minimum-evaluation-number",
            found.intel.evaluation_number,
            self.minimum_evaluation_number,
        )?;
        one_of("sgx.memory", &found.memory, &self.memory)
    }
}

/// Intel's judgement must be one that is accepted; what the platform is open to is told.
fn judge_status(
    field: &'static str,
    accepted: &[TcbStatus],
    found: &IntelPlatform,
) -> Result<(), Refusal> {
    check(accepted.contains(&found.tcb_status), || {
        Refusal::TcbStatus {
            field,
            found: found.tcb_status,
            advisories: found.advisories.clone(),
            accepted: accepted.to_vec(),
        }
    })
}
