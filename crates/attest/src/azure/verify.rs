//! Verifying the chain of three: hardware, paravisor, quote.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use dcap_qvl::QuoteCollateralV3;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hcl::{HardwareKind, HclReport};
use super::{AzurePlatform, AzureProcessor};
use crate::binding::BindingForm;
use crate::tpm::{Quote, QuoteBody, Signature};
use crate::verifier::Part;
use crate::{
    Claims, Collateral, Measurement, Platform, TeeKind, UnixTime, VerifyError, canonical, intel,
    snp, tdx,
};

/// The version of evidence whose paravisor's report was made for it, and the one before.
/// Nothing here rests on the difference: what is bound is in the quote.
const VERSIONS: [u32; 2] = [1, 2];

/// Evidence's body on SNP.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnpBody {
    pub(super) hcl_report: String,
    /// In hexadecimal; its signature is RSA's alone.
    pub(super) tpm_quote: QuoteBody,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) vcek: Option<String>,
    pub(super) version: u32,
}

/// Evidence's body on TDX.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TdxBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) collateral: Option<QuoteCollateralV3>,
    pub(super) hcl_report: String,
    pub(super) td_quote: String,
    pub(super) tpm_quote: QuoteBody,
    pub(super) version: u32,
}

pub(crate) fn verify_snp(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: SnpBody = canonical::understood(body)?;
    let report = from_url_safe("hcl_report", &body.hcl_report)?;
    let report = HclReport::parse(&report)?;
    expect(&report, HardwareKind::Snp)?;
    let vcek = body.vcek.as_deref();
    let vcek = vcek.map(|vcek| from_url_safe("vcek", vcek)).transpose()?;
    let hardware = snp::verify_bytes(report.hardware, vcek, collateral, at)?;
    chain(&report, hardware, &body.tpm_quote, body.version)
}

pub(crate) fn verify_tdx(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    verify_tdx_under(&intel::ROOT, body, collateral, at)
}

/// Under the root with this SHA-256.
pub(super) fn verify_tdx_under(
    root: &[u8; 32],
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: TdxBody = canonical::understood(body)?;
    let report = from_url_safe("hcl_report", &body.hcl_report)?;
    // The hardware's report in it can be checked on that machine alone: nothing is taken
    // from it. Its quote stands for it.
    let report = HclReport::parse(&report)?;
    expect(&report, HardwareKind::Tdx)?;
    let quote = from_url_safe("td_quote", &body.td_quote)?;
    let travelled = body.collateral.as_ref();
    let hardware = tdx::verify_quote(root, &quote, None, travelled, collateral, at)?;
    chain(&report, hardware, &body.tpm_quote, body.version)
}

fn expect(report: &HclReport<'_>, kind: HardwareKind) -> Result<(), VerifyError> {
    if report.kind == kind {
        return Ok(());
    }
    Err(VerifyError::Unsupported {
        what: format!(
            "a paravisor's report over {:?} as evidence of {kind:?}",
            report.kind
        ),
    })
}

/// From genuine evidence of the hardware to the quote.
fn chain(
    report: &HclReport<'_>,
    hardware: Part,
    quote: &QuoteBody,
    version: u32,
) -> Result<Part, VerifyError> {
    if !VERSIONS.contains(&version) {
        return Err(VerifyError::Unsupported {
            what: format!("evidence of Azure in version {version}: 1 and 2 are known"),
        });
    }
    let data = report.vouched(&hardware.carried)?;
    let quote = Quote::verify(
        &from_hexadecimal("message", &quote.message)?,
        &Signature::from_rsa(&from_hexadecimal("signature", &quote.signature)?)?,
        &data.attestation_key()?,
        &quote.pcrs,
    )?;
    let claims = hardware.claims;
    let (tee, processor) = match claims.platform {
        Platform::Snp(snp) => (TeeKind::AzSnpVtpm, AzureProcessor::Snp(snp)),
        Platform::Tdx(tdx) => (TeeKind::AzTdxVtpm, AzureProcessor::Tdx(tdx)),
        _ => unreachable!("the hardware is one of the two"),
    };
    Ok(Part {
        carried: quote.qualifying_data,
        form: BindingForm::AzureQuote,
        claims: Claims {
            tee,
            measurement: Measurement::from(*quote.pcr_digest.as_bytes()),
            // What the host chose for the paravisor is not a server's configuration.
            configuration: None,
            platform: Platform::Azure(Box::new(AzurePlatform {
                paravisor: claims.measurement,
                pcrs: quote.pcrs,
                secure_boot: data.machine.secure_boot,
                console: data.machine.console_enabled,
                vm_id: data.machine.vm_unique_id,
                resets: quote.resets,
                restarts: quote.restarts,
                processor,
            })),
            ..claims
        },
    })
}

fn from_url_safe(field: &str, text: &str) -> Result<Vec<u8>, VerifyError> {
    URL_SAFE
        .decode(text)
        .map_err(|error| VerifyError::malformed(field, &error))
}

fn from_hexadecimal(field: &str, text: &str) -> Result<Vec<u8>, VerifyError> {
    if !occlude_keys::hexadecimal::is_lower_case(text) {
        return Err(VerifyError::malformed(field, &"capital hexadecimal digits"));
    }
    hex::decode(text).map_err(|error| VerifyError::malformed(field, &error))
}
