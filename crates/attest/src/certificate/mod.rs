//! Certificate chains (RFC 5280): from a key in hostile hands to a vendor's root that
//! this program pins.
//!
//! Paths are built and checked by `webpki`: signatures, names, validity at the given
//! time, basic constraints, path lengths, unknown critical extensions, revocation
//! lists. The number of signatures that it checks is limited, so that a made-up heap
//! of certificates cannot keep it busy.

mod algorithms;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use sha2::{Digest, Sha256};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, ExtendedKeyUsageValidator,
    KeyPurposeIdIter, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_cert::der::{Decode, Encode};

use crate::{CertificateProblem, UnixTime, VerifyError};

/// A vendor's key and everything that may connect it to a root.
pub(crate) struct Chain<'a> {
    /// What the key is, for errors: "the chip's key (VCEK)".
    pub(crate) what: &'static str,
    pub(crate) leaf: &'a CertificateDer<'a>,
    pub(crate) intermediates: &'a [CertificateDer<'a>],
    pub(crate) roots: &'a [TrustAnchor<'a>],
    /// DER. A list of another issuer is not used.
    pub(crate) revocation_lists: &'a [Vec<u8>],
}

/// A chain that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Which of the roots it ends at.
    pub(crate) root: usize,
    /// When the first of the revocation lists that were used is to be replaced; none if
    /// there was none of an issuer of this chain. That may be past.
    pub(crate) lists_until: Option<UnixTime>,
}

/// Any purpose: these keys sign evidence, for which there is no identifier that all
/// vendors use.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

impl Chain<'_> {
    /// Checks the chain as of `at`.
    ///
    /// # Errors
    /// [`VerifyError::Certificate`]. That a revocation list is past its date is for the
    /// policy to judge: it is told.
    pub(crate) fn verify(&self, at: UnixTime) -> Result<Verified, VerifyError> {
        let problem = |error| self.problem(&error);
        let leaf = EndEntityCert::try_from(self.leaf).map_err(problem)?;
        let lists: Vec<CertRevocationList<'_>> = self
            .revocation_lists
            .iter()
            .map(|list| {
                Ok(webpki::BorrowedCertRevocationList::from_der(list)?
                    .to_owned()?
                    .into())
            })
            .collect::<Result<_, _>>()
            .map_err(problem)?;
        let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let at = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(at.0));
        let path = leaf
            .verify_for_usage(
                algorithms::ALL,
                self.roots,
                self.intermediates,
                at,
                AnyPurpose,
                revocation,
                None,
            )
            .map_err(problem)?;
        let root = self
            .roots
            .iter()
            .position(|root| std::ptr::eq(root, path.anchor()))
            .ok_or_else(|| self.problem(&webpki::Error::UnknownIssuer))?;
        let mut issuers: Vec<Vec<u8>> = path
            .intermediate_certificates()
            .map(|issuer| issuer.subject().to_vec())
            .collect();
        issuers.push(path.anchor().subject.to_vec());
        let lists_until = self
            .revocation_lists
            .iter()
            .filter_map(|list| next_update(list, &issuers))
            .min();
        Ok(Verified { root, lists_until })
    }

    fn problem(&self, error: &webpki::Error) -> VerifyError {
        use webpki::Error;
        let seconds = |time: &rustls_pki_types::UnixTime| UnixTime(time.as_secs());
        let problem = match error {
            Error::CertExpired { not_after, .. } => CertificateProblem::Expired {
                not_after: seconds(not_after),
            },
            Error::CertNotValidYet { not_before, .. } => CertificateProblem::NotYetValid {
                not_before: seconds(not_before),
            },
            Error::CertRevoked => CertificateProblem::Revoked,
            Error::InvalidSignatureForPublicKey => CertificateProblem::BadSignature,
            Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                CertificateProblem::UnusualAlgorithm
            }
            Error::UnknownIssuer => CertificateProblem::UnknownIssuer,
            other => CertificateProblem::Unacceptable {
                reason: crate::canonical::reason(other),
            },
        };
        VerifyError::Certificate {
            what: self.what,
            problem,
        }
    }
}

/// A key on P-384 whose chain holds.
pub(crate) struct CertifiedKey {
    pub(crate) key: p384::ecdsa::VerifyingKey,
    /// The key's own certificate.
    pub(crate) certificate: x509_cert::Certificate,
    /// As in [`Verified`].
    pub(crate) lists_until: Option<UnixTime>,
}

/// The key of the first certificate of a chain, on P-384, if the chain leads to the
/// certificate whose SHA-256 is `root`, which has to be in it.
///
/// # Errors
/// [`VerifyError::Certificate`]; [`VerifyError::Unsupported`] for a key on another curve.
pub(crate) fn p384_key(
    what: &'static str,
    chain: &[CertificateDer<'_>],
    root: &[u8; 32],
    revocation_lists: &[Vec<u8>],
    at: UnixTime,
) -> Result<CertifiedKey, VerifyError> {
    let [leaf, intermediates @ ..] = chain else {
        return Err(VerifyError::CollateralMissing {
            what: format!("the certificate of {what}"),
        });
    };
    let roots: Vec<_> = intermediates
        .iter()
        .filter(|certificate| Sha256::digest(certificate)[..] == *root)
        .map(pinned_root)
        .collect();
    let verified = Chain {
        what,
        leaf,
        intermediates,
        roots: &roots,
        revocation_lists,
    }
    .verify(at)?;
    let certificate = parse(what, leaf)?;
    let key = &certificate
        .tbs_certificate()
        .subject_public_key_info()
        .subject_public_key;
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key.raw_bytes()).map_err(|_| {
        VerifyError::Unsupported {
            what: format!("{what} that is not on P-384"),
        }
    })?;
    Ok(CertifiedKey {
        key,
        certificate,
        lists_until: verified.lists_until,
    })
}

type RevocationList = x509_cert::crl::CertificateList<x509_cert::certificate::Rfc5280>;

/// When a revocation list is to be replaced, by its own word.
pub(crate) fn list_until(list: &[u8]) -> Option<UnixTime> {
    replaced_at(&RevocationList::from_der(list).ok()?)
}

/// Whose revocation list it is, by its own word.
pub(crate) fn list_issuer(list: &[u8]) -> Option<String> {
    let list = RevocationList::from_der(list).ok()?;
    Some(list.tbs_cert_list.issuer.to_string())
}

/// When a list of one of these issuers is to be replaced. One that does not say when, or
/// is of somebody else, is not used (RFC 5280, section 5.1.2.5).
fn next_update(list: &[u8], issuers: &[Vec<u8>]) -> Option<UnixTime> {
    let list = RevocationList::from_der(list).ok()?;
    let issuer = list.tbs_cert_list.issuer.to_der().ok()?;
    let ours = issuers.iter().any(|ours| issuer.ends_with(ours));
    replaced_at(&list).filter(|_| ours)
}

fn replaced_at(list: &RevocationList) -> Option<UnixTime> {
    let next = list.tbs_cert_list.next_update?;
    Some(UnixTime(next.to_unix_duration().as_secs()))
}

/// A root that this program pins.
///
/// # Panics
/// If `certificate` is none: it is part of this program.
pub(crate) fn pinned_root(certificate: &CertificateDer<'_>) -> TrustAnchor<'static> {
    root(certificate).expect("a pinned root is a certificate")
}

/// A certificate as the end of a chain, if it is one: whether it is believed is for
/// somebody else to say.
pub(crate) fn root(certificate: &CertificateDer<'_>) -> Option<TrustAnchor<'static>> {
    let root = webpki::anchor_from_trusted_cert(certificate).ok()?;
    Some(root.to_owned())
}

/// Reads one certificate in full, for what its extensions say. Only after
/// [`Chain::verify`] are they more than somebody's word.
pub(crate) fn parse(
    what: &'static str,
    certificate: &[u8],
) -> Result<x509_cert::Certificate, VerifyError> {
    x509_cert::Certificate::from_der(certificate).map_err(|error| VerifyError::Certificate {
        what,
        problem: CertificateProblem::Unacceptable {
            reason: crate::canonical::reason(&error),
        },
    })
}

/// Certificates as PEM or DER.
pub(crate) fn from_pem_or_der(
    what: &'static str,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, VerifyError> {
    if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Ok(vec![CertificateDer::from(bytes.to_vec())]);
    }
    use rustls_pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| VerifyError::Certificate {
            what,
            problem: CertificateProblem::Unacceptable {
                reason: crate::canonical::reason(&format!("{error:?}")),
            },
        })
}
