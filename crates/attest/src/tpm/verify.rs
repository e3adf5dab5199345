//! Verifying a quote of a TPM, whose key it is, and the log of the boot that came along.

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use x509_cert::der::Encode;

use super::{AttestationKey, Quote, RootFingerprint, Signature, TpmDigest, TpmPlatform};
use crate::binding::BindingForm;
use crate::certificate::{self, Chain};
use crate::event_log::{Algorithm, EventLog};
use crate::verifier::Part;
use crate::{
    Claims, Collateral, Measurement, Platform, Protection, Register, TeeKind, Trust, UnixTime,
    VerifyError, canonical,
};

/// What errors call the signing key.
const KEY: &str = "the attestation key";

/// The most certificates that come along: the key's own, some intermediates, a root.
const MAX_CERTIFICATES: usize = 16;

/// The last register that nothing changes after the firmware handed over, so that the
/// firmware's log has to lead to it.
const LAST_OF_THE_BOOT: u32 = 9;

/// Evidence's body: that of the KBS protocol, and two fields of our own.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) ak_public: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ak_certificates: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) event_log: Option<String>,
    pub(super) tpm_quote: QuoteBody,
}

/// A quote as it travels, in the encoding of its kind of evidence.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuoteBody {
    pub(crate) message: String,
    pub(crate) pcrs: Vec<TpmDigest>,
    pub(crate) signature: String,
}

/// A quote that holds, and whose word it is.
pub(crate) struct Verified {
    pub(crate) platform: TpmPlatform,
    pub(crate) pcr_digest: TpmDigest,
    pub(crate) qualifying_data: Vec<u8>,
    pub(crate) collateral_until: Option<UnixTime>,
}

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let verified = verify_quote(body, collateral, at)?;
    let measurement = Measurement::from(*verified.pcr_digest.as_bytes());
    Ok(verified.into_part(TeeKind::Tpm, measurement, Platform::Tpm, at))
}

/// Verifies evidence of any kind that is a TPM's quote.
pub(crate) fn verify_quote(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Verified, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let public = canonical::from_base64("ak_public", &body.ak_public)?;
    let message = canonical::from_base64("message", &body.tpm_quote.message)?;
    let signature = canonical::from_base64("signature", &body.tpm_quote.signature)?;
    let quote = Quote::verify(
        &message,
        &Signature::from_tpm(&signature)?,
        &AttestationKey::from_public_key_info(&public)?,
        &body.tpm_quote.pcrs,
    )?;
    let certified = certify(&public, &body.ak_certificates, collateral, at)?;
    let log = body.event_log.as_deref();
    let event_log_entries = log.map(|log| check_event_log(log, &quote)).transpose()?;
    let (certified_by, collateral_until) = certified.unzip();
    Ok(Verified {
        platform: TpmPlatform {
            attestation_key: fingerprint(&public).into(),
            certified_by,
            pcrs: quote.pcrs,
            firmware_version: quote.firmware_version,
            resets: quote.resets,
            restarts: quote.restarts,
            event_log_entries,
        },
        pcr_digest: quote.pcr_digest,
        qualifying_data: quote.qualifying_data,
        collateral_until: collateral_until.flatten(),
    })
}

impl Verified {
    pub(crate) fn into_part(
        self,
        tee: TeeKind,
        measurement: Measurement,
        platform: fn(Box<TpmPlatform>) -> Platform,
        at: UnixTime,
    ) -> Part {
        Part {
            carried: self.qualifying_data,
            form: BindingForm::Digest,
            claims: Claims {
                tee,
                trust: Trust::ListedKey,
                protection: Protection::MeasuredBootOnly,
                measurement,
                configuration: None,
                debug: false,
                platform: platform(Box::new(self.platform)),
                verified_at: at,
                collateral_until: self.collateral_until,
                additional: Vec::new(),
            },
        }
    }
}

/// Which root certifies a key: by certificates that came along, else by the verifier's
/// own. None if there is no certificate of that key; one that does not hold is refused.
fn certify(
    public: &[u8],
    sent: &[String],
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Option<(RootFingerprint, Option<UnixTime>)>, VerifyError> {
    if sent.len() > MAX_CERTIFICATES {
        return Err(VerifyError::Malformed {
            reason: format!("{} certificates of the attestation key", sent.len()),
        });
    }
    let sent = sent.iter().map(|text| {
        let der = canonical::from_base64("ak_certificates", text)?;
        Ok(CertificateDer::from(der))
    });
    let sent: Vec<_> = sent.collect::<Result<_, VerifyError>>()?;
    let all: Vec<_> = sent.iter().chain(collateral.certificates()).collect();
    let mut leaf = None;
    let mut roots = Vec::new();
    for certificate in &all {
        let parsed = certificate::parse(KEY, certificate)?;
        let parsed = parsed.tbs_certificate();
        let key = parsed.subject_public_key_info().to_der();
        if leaf.is_none() && key.is_ok_and(|key| key == public) {
            leaf = Some(*certificate);
        }
        // Which of them are believed is the policy's to say.
        if parsed.subject() == parsed.issuer()
            && let Some(root) = certificate::root(certificate)
        {
            roots.push((*certificate, root));
        }
    }
    let Some(leaf) = leaf else {
        if sent.is_empty() {
            return Ok(None);
        }
        return Err(VerifyError::EndorsementMismatch {
            what: "another key",
        });
    };
    let (certificates, roots): (Vec<&CertificateDer<'_>>, Vec<_>) = roots.into_iter().unzip();
    let intermediates: Vec<_> = all.iter().map(|one| (*one).clone()).collect();
    let verified = Chain {
        what: KEY,
        leaf,
        intermediates: &intermediates,
        roots: &roots,
        revocation_lists: collateral.revocation_lists(),
    }
    .verify(at)?;
    let root = fingerprint(certificates[verified.root]);
    Ok(Some((root.into(), verified.lists_until)))
}

/// Replays the log: each register up to 9 that it has entries of must be the quote's. The
/// others go on being extended by whoever was started.
fn check_event_log(log: &str, quote: &Quote) -> Result<usize, VerifyError> {
    let log = EventLog::parse(&canonical::from_base64("event_log", log)?)?;
    for (register, value) in registers_of(&log)? {
        if quote.pcrs.get(&register) != Some(&value) {
            return Err(VerifyError::EventLog {
                register: register.to_string(),
            });
        }
    }
    Ok(log.events.len())
}

/// The registers that a log of a boot leads to: those up to 9, which nothing changes after
/// the firmware handed over.
///
/// # Errors
/// [`VerifyError::Malformed`].
pub fn registers_of_log(log: &[u8]) -> Result<BTreeMap<Register, TpmDigest>, VerifyError> {
    registers_of(&EventLog::parse(log)?)
}

fn registers_of(log: &EventLog) -> Result<BTreeMap<Register, TpmDigest>, VerifyError> {
    let replayed = log.replay(Algorithm::Sha256).ok_or_else(without_digest)?;
    let boot = replayed.range(..=LAST_OF_THE_BOOT);
    let registers = boot.map(|(number, value)| {
        let register = Register::new(u64::from(*number));
        let value: Option<[u8; 32]> = value.as_slice().try_into().ok();
        register
            .zip(value.map(TpmDigest::from))
            .ok_or_else(without_digest)
    });
    registers.collect()
}

fn without_digest() -> VerifyError {
    VerifyError::Malformed {
        reason: "the event log has entries without a SHA-256 digest".to_owned(),
    }
}

fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}
