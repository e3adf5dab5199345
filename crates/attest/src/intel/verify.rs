//! Verifying a quote.

use dcap_qvl::quote::{AuthData, Quote};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuoteCollateralV3};
use parity_scale_codec::Encode;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::{IntelPlatform, TcbStatus, sept_ve};
use crate::certificate::{self, Chain};
use crate::{Collateral, UnixTime, VerifyError, canonical};

/// The longest quote that is read. Intel's library reserves 8 KiB for one.
const MAX_QUOTE_BYTES: usize = 32 * 1024;

/// SHA-256 of Intel's root certificate ("Intel SGX Root CA"), which comes along with
/// every quote.
pub(crate) const ROOT: [u8; 32] = [
    0x44, 0xa0, 0x19, 0x6b, 0x2b, 0x99, 0xf8, 0x89, 0xb8, 0xe1, 0x49, 0xe9, 0x5b, 0x80, 0x7a, 0x35,
    0x0e, 0x74, 0x24, 0x96, 0x43, 0x99, 0xe8, 0x85, 0xa7, 0xcb, 0xb8, 0xcc, 0xfa, 0xb6, 0x74, 0xd3,
];

/// The type of certification data that hold the quoting enclave's report (Intel TDX DCAP
/// quoting library API, appendix 3.9).
const QE_REPORT: u16 = 6;

/// What errors call the certificates.
const PCK: &str = "the processor's key (PCK)";

/// A quote that holds.
pub(crate) struct VerifiedQuote {
    pub(crate) claims: QuoteClaims,
    pub(crate) platform: IntelPlatform,
    /// When the first of Intel's collateral was to be replaced.
    pub(crate) collateral_until: UnixTime,
}

/// Verifies a quote as of `at`, under the root with this SHA-256, with collateral that came
/// along or is the verifier's.
pub(crate) fn verify(
    root: &[u8; 32],
    bytes: &[u8],
    travelled: Option<&QuoteCollateralV3>,
    own: &Collateral,
    at: UnixTime,
) -> Result<VerifiedQuote, VerifyError> {
    let (bytes, quote) = parse(bytes)?;
    let pck = pck_chain(&quote)?;
    let fmspc = dcap_qvl::intel::parse_pck_extension(&pck[0])
        .map_err(|error| refused(&error))?
        .fmspc;
    let wanted = Wanted {
        id: if quote.header.is_sgx() { "SGX" } else { "TDX" },
        fmspc,
    };
    let candidates = travelled.into_iter().chain(own.intel());
    let (collateral, dates) = candidates
        .filter_map(|collateral| Some((collateral, Dates::of(collateral, &wanted)?)))
        .max_by_key(|(_, dates)| dates.until)
        .ok_or_else(|| VerifyError::CollateralMissing {
            what: format!(
                "Intel's collateral for {} on processors of kind {}",
                wanted.id,
                hex::encode(fmspc)
            ),
        })?;
    let root = check_certificates(root, &pck, collateral, at)?;
    let until = UnixTime(dates.until);
    // It may bring another chain for the processor's key than the quote's, which is the
    // one that was checked.
    let collateral = QuoteCollateralV3 {
        pck_certificate_chain: None,
        ..collateral.clone()
    };
    // Our own policy refuses debugging, and says so.
    let verifier = QuoteVerifier::new(root.to_vec()).allow_debug(true);
    let claims = sept_ve::verify(verifier, bytes, quote, collateral, at.min(until))
        .map_err(|error| refused(&error))?;
    Ok(VerifiedQuote {
        platform: platform(&claims)?,
        claims,
        collateral_until: until,
    })
}

/// A quote, and its bytes without the zeros that some kernels fill their buffer with.
pub(super) fn parse(bytes: &[u8]) -> Result<(&[u8], Quote), VerifyError> {
    if bytes.len() > MAX_QUOTE_BYTES {
        return Err(VerifyError::Malformed {
            reason: format!(
                "{} bytes, a quote has at most {MAX_QUOTE_BYTES}",
                bytes.len()
            ),
        });
    }
    let malformed = |error: &dyn std::fmt::Display| VerifyError::Malformed {
        reason: format!("the quote cannot be read: {}", canonical::reason(error)),
    };
    let quote = Quote::parse(bytes).map_err(|error| malformed(&error))?;
    if let AuthData::V4(data) = &quote.auth_data
        && data.certification_data.cert_type != QE_REPORT
    {
        return Err(malformed(&"its certification data are of another type"));
    }
    // The parser leaves out what lengths inside cover and it has no use for.
    let read = quote.encode();
    let rest = bytes
        .strip_prefix(&read[..])
        .ok_or_else(|| malformed(&"it has bytes that mean nothing"))?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(malformed(&"bytes after its end are not zero"));
    }
    Ok((&bytes[..read.len()], quote))
}

/// The certificates in a quote: the processor's, its issuer's, and the root's.
pub(super) fn pck_chain(quote: &Quote) -> Result<Vec<CertificateDer<'static>>, VerifyError> {
    let unsupported = || VerifyError::Unsupported {
        what: "a quote without the certificates of the processor's key".to_owned(),
    };
    // A quote can hold an encrypted platform identifier instead (kinds 2 and 3).
    let pem = quote.raw_cert_chain().map_err(|_| unsupported())?;
    let pem = pem.strip_suffix(b"\0").unwrap_or(pem);
    let chain = certificate::from_pem_or_der(PCK, pem)?;
    if chain.is_empty() {
        return Err(unsupported());
    }
    Ok(chain)
}

/// Which collateral a quote needs.
struct Wanted {
    id: &'static str,
    fmspc: [u8; 6],
}

/// When collateral was to be replaced, by its own word, which is verified later.
struct Dates {
    until: u64,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dated {
    #[serde(default)]
    id: String,
    #[serde(default)]
    fmspc: String,
    next_update: String,
}

/// What collateral is for and when it was to be replaced, by its own word.
pub(crate) fn described(collateral: &QuoteCollateralV3) -> Option<(String, UnixTime)> {
    let information: Dated = serde_json::from_str(&collateral.tcb_info).ok()?;
    let fmspc = hex::decode(&information.fmspc).ok()?;
    let dates = Dates::read(collateral, &information)?;
    let of = format!(
        "{} on processors of kind {}",
        information.id,
        hex::encode(fmspc)
    );
    Some((of, UnixTime(dates.until)))
}

impl Dates {
    /// Of collateral that is for this kind of quote and processor.
    fn of(collateral: &QuoteCollateralV3, wanted: &Wanted) -> Option<Self> {
        let information: Dated = serde_json::from_str(&collateral.tcb_info).ok()?;
        let fmspc = hex::decode(&information.fmspc).ok()?;
        if information.id != wanted.id || fmspc != wanted.fmspc {
            return None;
        }
        Self::read(collateral, &information)
    }

    fn read(collateral: &QuoteCollateralV3, information: &Dated) -> Option<Self> {
        let identity: Dated = serde_json::from_str(&collateral.qe_identity).ok()?;
        let seconds = |text: &str| text.parse::<UnixTime>().ok().map(|time| time.0);
        let mut until = seconds(&information.next_update)?.min(seconds(&identity.next_update)?);
        for list in [&collateral.root_ca_crl, &collateral.pck_crl] {
            until = until.min(certificate::list_until(list)?.0);
        }
        Some(Self { until })
    }
}

/// Every certificate must hold now, whenever the collateral was to be replaced, and none
/// of them may be on a list. The root that they lead to is returned.
fn check_certificates(
    root: &[u8; 32],
    pck: &[CertificateDer<'static>],
    collateral: &QuoteCollateralV3,
    at: UnixTime,
) -> Result<CertificateDer<'static>, VerifyError> {
    let lists = [collateral.root_ca_crl.clone(), collateral.pck_crl.clone()];
    let chain = |what: &'static str, pem: &str| {
        let chain = certificate::from_pem_or_der(what, pem.as_bytes())?;
        Ok::<_, VerifyError>((what, chain))
    };
    let chains = [
        (PCK, pck.to_vec()),
        chain("Intel's TCB information", &collateral.tcb_info_issuer_chain)?,
        chain(
            "the quoting enclave's identity",
            &collateral.qe_identity_issuer_chain,
        )?,
    ];
    let found = chains
        .iter()
        .flat_map(|(_, chain)| chain)
        .find(|certificate| Sha256::digest(certificate)[..] == root[..]);
    let roots: Vec<_> = found.into_iter().map(certificate::pinned_root).collect();
    for (what, chain) in &chains {
        let [leaf, intermediates @ ..] = &chain[..] else {
            return Err(VerifyError::CollateralMissing {
                what: format!("the certificate of {what}"),
            });
        };
        Chain {
            what,
            leaf,
            intermediates,
            roots: &roots,
            revocation_lists: &lists,
        }
        .verify(at)?;
    }
    found
        .cloned()
        .ok_or_else(|| VerifyError::CollateralMissing {
            what: "Intel's root certificate".to_owned(),
        })
}

fn platform(claims: &QuoteClaims) -> Result<IntelPlatform, VerifyError> {
    let mut advisories = claims.tcb.advisory_ids.clone();
    advisories.sort();
    Ok(IntelPlatform {
        tcb_status: status(claims.tcb.status)?,
        tcb_date: UnixTime(claims.platform.tcb_date_tag),
        advisories,
        evaluation_number: claims.tcb.eval_data_number,
        fmspc: claims.platform.pck.fmspc.into(),
    })
}

fn status(status: dcap_qvl::TcbStatus) -> Result<TcbStatus, VerifyError> {
    use dcap_qvl::TcbStatus as Intel;
    Ok(match status {
        Intel::UpToDate => TcbStatus::UpToDate,
        Intel::SWHardeningNeeded => TcbStatus::SWHardeningNeeded,
        Intel::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
        Intel::ConfigurationAndSWHardeningNeeded => TcbStatus::ConfigurationAndSWHardeningNeeded,
        Intel::OutOfDate => TcbStatus::OutOfDate,
        Intel::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
        Intel::TDRelaunchAdvised => TcbStatus::TDRelaunchAdvised,
        Intel::TDRelaunchAdvisedConfigurationNeeded => {
            TcbStatus::TDRelaunchAdvisedConfigurationNeeded
        }
        Intel::Revoked => {
            return Err(VerifyError::Quote {
                reason: "TCB status is invalid: Revoked".to_owned(),
            });
        }
    })
}

/// What the verifier said, its causes with it.
fn refused(error: &anyhow::Error) -> VerifyError {
    VerifyError::Quote {
        reason: canonical::reason(&format!("{error:#}")),
    }
}
