//! Verifying a quote of a TDX guest, and the event log that comes with it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::quote::{Report, TDReport10};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{TdxAttributes, TdxDigest, TdxPlatform};
use crate::binding::BindingForm;
use crate::event_log::{Algorithm, EventLog};
use crate::intel;
use crate::verifier::Part;
use crate::{
    Claims, Collateral, ConfigurationDigest, Platform, Protection, TeeKind, Trust, UnixTime,
    VerifyError, canonical,
};

/// Evidence's body: `TdxEvidence` of the KBS protocol, and our own `collateral`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cc_eventlog: Option<String>,
    pub(super) quote: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) collateral: Option<QuoteCollateralV3>,
}

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let quote = canonical::from_base64("quote", &body.quote)?;
    let event_log = body.cc_eventlog.as_deref().filter(|log| !log.is_empty());
    let travelled = body.collateral.as_ref();
    verify_quote(&intel::ROOT, &quote, event_log, travelled, collateral, at)
}

/// Verifies a quote's bytes, under the root with this SHA-256, with the event log (base64)
/// and Intel's collateral if they came along.
pub(crate) fn verify_quote(
    root: &[u8; 32],
    quote: &[u8],
    event_log: Option<&str>,
    travelled: Option<&QuoteCollateralV3>,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let quote = intel::verify(root, quote, travelled, collateral, at)?;
    let report = match &quote.claims.report {
        Report::TD10(report) => report,
        Report::TD15(report) => &report.base,
        Report::TD15Ex(report) => &report.base.base,
        Report::SgxEnclave(_) => {
            return Err(VerifyError::Unsupported {
                what: "a quote of an SGX enclave as evidence of tdx".to_owned(),
            });
        }
    };
    let attributes = TdxAttributes::from(report.td_attributes);
    let event_log_entries = event_log
        .map(|log| check_event_log(log, report))
        .transpose()?;
    Ok(Part {
        carried: report.report_data.to_vec(),
        form: BindingForm::Whole,
        claims: Claims {
            tee: TeeKind::Tdx,
            trust: Trust::Hardware,
            protection: Protection::ConfidentialMemory,
            measurement: report.mr_td.into(),
            configuration: ConfigurationDigest::of_launch(&report.mr_config_id),
            debug: attributes.debug(),
            verified_at: at,
            collateral_until: Some(quote.collateral_until),
            additional: Vec::new(),
            platform: Platform::Tdx(Box::new(TdxPlatform {
                rtmr: registers(report).map(TdxDigest::from),
                mr_seam: report.mr_seam.into(),
                mr_config_id: report.mr_config_id.into(),
                mr_owner: report.mr_owner.into(),
                mr_owner_config: report.mr_owner_config.into(),
                attributes,
                xfam: report.xfam.into(),
                quote_version: quote.claims.header.version,
                event_log_entries,
                intel: quote.platform,
            })),
        },
    })
}

fn registers(report: &TDReport10) -> [[u8; 48]; 4] {
    [report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3]
}

/// Replays the log: each register that it has entries of must be the report's. Register
/// 1 to 4 of the log are the guest's run-time registers, 0 is what it started with.
fn check_event_log(log: &str, report: &TDReport10) -> Result<usize, VerifyError> {
    let log = EventLog::parse(&canonical::from_base64("cc_eventlog", log)?)?;
    let replayed = log
        .replay(Algorithm::Sha384)
        .ok_or_else(|| VerifyError::Malformed {
            reason: "the event log has entries without a SHA-384 digest".to_owned(),
        })?;
    let reported = registers(report);
    for (register, value) in replayed {
        let place = (register as usize).checked_sub(1);
        let reported = place.and_then(|place| reported.get(place));
        if reported.is_none_or(|reported| reported[..] != value[..]) {
            return Err(VerifyError::EventLog {
                register: format!("register {register} of the event log"),
            });
        }
    }
    Ok(log.events.len())
}

impl Body {
    pub(super) fn of_quote(quote: &[u8], event_log: Option<&[u8]>) -> Self {
        Self {
            cc_eventlog: event_log.map(|log| STANDARD.encode(log)),
            quote: STANDARD.encode(quote),
            collateral: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::{file, folder};

    /// Without the quote's signature: Intel's collateral of that machine was not recorded.
    fn check_event_log_of_quote(quote: &[u8], log: &[u8]) -> Result<usize, VerifyError> {
        let quote = dcap_qvl::quote::Quote::parse(quote).unwrap();
        check_event_log(&STANDARD.encode(log), quote.report.as_td10().unwrap())
    }

    /// A boot of a cloud's machine, with the log of what it measured.
    fn logged() -> (Vec<u8>, Vec<u8>) {
        (
            file("tdx/gtg-cos-113-tdx-quote.dat"),
            file("tdx/gtg-ccel_data.dat"),
        )
    }

    #[test]
    fn an_event_log_leads_to_the_registers_of_its_quote() {
        if folder().is_none() {
            return;
        }
        let (quote, log) = logged();
        check_event_log_of_quote(&quote, &log).unwrap();
    }

    #[test]
    fn an_event_log_with_any_digest_changed_or_an_entry_less_leads_elsewhere() {
        if folder().is_none() {
            return;
        }
        let (quote, log) = logged();
        let end = log.iter().rposition(|byte| *byte != 0xff).unwrap() + 1;
        let mut refused = 0;
        for place in (65..end).step_by(11) {
            let mut changed = log.clone();
            changed[place] ^= 1;
            refused += usize::from(check_event_log_of_quote(&quote, &changed).is_err());
        }
        // What entries say in words is not measured, their digests are.
        assert!(refused > 100, "{refused}");
        let mut first = log.clone();
        // The first digest: behind the first entry and the next one's head.
        first[65 + 14] ^= 1;
        assert_eq!(
            check_event_log_of_quote(&quote, &first),
            Err(VerifyError::EventLog {
                register: "register 1 of the event log".to_owned()
            })
        );
        assert!(check_event_log_of_quote(&quote, &log[..end - 1]).is_err());
    }
}
