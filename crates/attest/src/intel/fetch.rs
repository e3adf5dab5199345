//! What Intel publishes for a kind of processor (Intel PCS API, version 4), from Intel or
//! from a cache of it.

use dcap_qvl::QuoteCollateralV3;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::verify::{parse, pck_chain};
use crate::fetch::{Client, FetchError, INTEL, Wanted, unusable};
use crate::{VerifyError, canonical, certificate};

/// Where the root's certificate says that its revocation list is.
const ROOT_LIST: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

/// What errors call the processor's key.
const PCK: &str = "the processor's key (PCK)";

/// Collateral for the processor of a quote in a field of a body.
pub(crate) fn wanted(body: &Value, field: &str) -> Result<Vec<Wanted>, VerifyError> {
    let text = body[field].as_str().unwrap_or_default();
    let bytes = canonical::from_base64(field, text)?;
    let (_, quote) = parse(&bytes)?;
    let pck = pck_chain(&quote)?;
    let fmspc = dcap_qvl::intel::parse_pck_extension(&pck[0])
        .map_err(|error| VerifyError::malformed(PCK, &error))?
        .fmspc;
    let tee = if quote.header.is_sgx() { "sgx" } else { "tdx" };
    let fmspc = hex::encode(fmspc);
    let authority = authority(&pck[0])?;
    Ok(vec![Wanted {
        name: format!("intel/{tee}-{fmspc}.json"),
        get: Box::new(move |client| collateral(client, tee, &fmspc, authority)),
    }])
}

/// Which of Intel's two authorities certified a processor.
fn authority(pck: &CertificateDer<'_>) -> Result<&'static str, VerifyError> {
    let issuer = certificate::parse(PCK, pck)?;
    let issuer = issuer.tbs_certificate().issuer().to_string();
    Ok(if issuer.contains("Platform") {
        "platform"
    } else {
        "processor"
    })
}

/// Something that is signed, in the very bytes that are.
#[derive(Deserialize)]
struct Signed<'a> {
    #[serde(borrow, alias = "tcbInfo", alias = "enclaveIdentity")]
    content: &'a RawValue,
    signature: String,
}

fn collateral(
    client: &Client<'_>,
    tee: &str,
    fmspc: &str,
    authority: &str,
) -> Result<Vec<u8>, FetchError> {
    let base = client.services.intel.trim_end_matches('/');
    let (pck_crl_issuer_chain, pck_crl) = with_chain(
        client,
        &format!("{base}/sgx/certification/v4/pckcrl?ca={authority}&encoding=der"),
        "sgx-pck-crl-issuer-chain",
    )?;
    let (tcb_info_issuer_chain, tcb_info, tcb_info_signature) = signed(
        client,
        &format!("{base}/{tee}/certification/v4/tcb?fmspc={fmspc}"),
        "tcb-info-issuer-chain",
    )?;
    let (qe_identity_issuer_chain, qe_identity, qe_identity_signature) = signed(
        client,
        &format!("{base}/{tee}/certification/v4/qe/identity"),
        "sgx-enclave-identity-issuer-chain",
    )?;
    let collateral = QuoteCollateralV3 {
        pck_crl_issuer_chain,
        root_ca_crl: root_list(client, base)?,
        pck_crl,
        tcb_info_issuer_chain,
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain,
        qe_identity,
        qe_identity_signature,
        pck_certificate_chain: None,
    };
    serde_json::to_vec(&collateral).map_err(|error| unusable(base, error))
}

/// The root's revocation list: from a cache in hexadecimal digits, from Intel, whose service
/// has no path for it, as it is.
fn root_list(client: &Client<'_>, base: &str) -> Result<Vec<u8>, FetchError> {
    if base == INTEL {
        return Ok(client.get(ROOT_LIST)?.body);
    }
    let url = format!("{base}/sgx/certification/v4/rootcacrl");
    let answer = client.get(&url)?;
    hex::decode(answer.body.trim_ascii()).map_err(|error| unusable(&url, error))
}

/// A body and the certificates that a header has for it.
fn with_chain(
    client: &Client<'_>,
    url: &str,
    header: &str,
) -> Result<(String, Vec<u8>), FetchError> {
    let answer = client.get(url)?;
    let chain = answer
        .headers
        .get(header)
        .ok_or_else(|| unusable(url, format_args!("no header {header}")))?;
    let chain = percent_encoding::percent_decode_str(chain)
        .decode_utf8()
        .map_err(|error| unusable(url, error))?;
    Ok((chain.into_owned(), answer.body))
}

/// The certificates, what is signed and the signature.
fn signed(
    client: &Client<'_>,
    url: &str,
    header: &str,
) -> Result<(String, String, Vec<u8>), FetchError> {
    let (chain, body) = with_chain(client, url, header)?;
    let signed: Signed<'_> = serde_json::from_slice(&body).map_err(|error| unusable(url, error))?;
    let signature = hex::decode(&signed.signature).map_err(|error| unusable(url, error))?;
    Ok((chain, signed.content.get().to_owned(), signature))
}
