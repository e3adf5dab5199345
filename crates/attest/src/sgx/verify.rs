//! Verifying a quote of an SGX enclave.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::quote::Report;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SgxMemory, SgxPlatform};
use crate::binding::BindingForm;
use crate::intel;
use crate::verifier::Part;
use crate::{
    Claims, Collateral, Platform, Protection, TeeKind, Trust, UnixTime, VerifyError, canonical,
};

/// Evidence's body: that of the KBS protocol, and our own `collateral`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    quote: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collateral: Option<QuoteCollateralV3>,
}

/// The bit of an enclave's attributes that lets the host debug it.
const DEBUG: u8 = 2;

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let bytes = canonical::from_base64("quote", &body.quote)?;
    let quote = intel::verify(
        &intel::ROOT,
        &bytes,
        body.collateral.as_ref(),
        collateral,
        at,
    )?;
    let Report::SgxEnclave(report) = &quote.claims.report else {
        return Err(VerifyError::Unsupported {
            what: "a quote of a TDX guest as evidence of sgx".to_owned(),
        });
    };
    let memory = match quote.claims.platform.pck.sgx_type {
        0 => SgxMemory::Standard,
        1 => SgxMemory::Scalable,
        2 => SgxMemory::ScalableWithIntegrity,
        other => {
            return Err(VerifyError::Unsupported {
                what: format!("SGX of type {other}"),
            });
        }
    };
    Ok(Part {
        carried: report.report_data.to_vec(),
        form: BindingForm::Whole,
        claims: Claims {
            tee: TeeKind::Sgx,
            trust: Trust::Hardware,
            protection: Protection::ConfidentialMemory,
            measurement: report.mr_enclave.into(),
            configuration: None,
            debug: report.attributes[0] & DEBUG != 0,
            verified_at: at,
            collateral_until: Some(quote.collateral_until),
            additional: Vec::new(),
            platform: Platform::Sgx(Box::new(SgxPlatform {
                signer: report.mr_signer.into(),
                product_id: report.isv_prod_id,
                svn: report.isv_svn,
                attributes: report.attributes.into(),
                memory,
                intel: quote.platform,
            })),
        },
    })
}

impl Body {
    pub(super) fn of_quote(quote: &[u8]) -> Self {
        Self {
            quote: STANDARD.encode(quote),
            collateral: None,
        }
    }
}
