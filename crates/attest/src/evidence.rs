//! Evidence as it travels, and why it may not be believed.
//!
//! Whoever sends evidence is hostile until a [`crate::Verifier`] says otherwise: it may
//! be recorded in another session, made for another statement, altered, or signed by
//! a root that this build does not accept.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{DecodeError, Register, StatementError, TeeKind, UnixTime, canonical};

/// Evidence of one TEE, and of what else the machine has, such as a GPU or a TPM; not
/// verified.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    tee: TeeKind,
    body: Value,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    additional: AdditionalEvidence,
}

/// The bodies of evidence beside a TEE's own, by their kinds.
pub type AdditionalEvidence = BTreeMap<TeeKind, Value>;

impl Evidence {
    /// The longest encoding that is read. The largest honest evidence is that of a machine
    /// with twelve devices beside its TEE, some hundred and fifty kilobytes.
    pub const MAX_BYTES: usize = 256 * 1024;

    /// Evidence from its two parts, as the KBS protocol carries them apart. A body
    /// with a fraction in it has no canonical form: [`Evidence::decode`] refuses it.
    #[must_use]
    pub fn new(tee: TeeKind, body: Value) -> Self {
        Self {
            tee,
            body,
            additional: AdditionalEvidence::new(),
        }
    }

    /// The same with evidence of what else the machine has.
    #[must_use]
    pub fn with_additional(self, additional: AdditionalEvidence) -> Self {
        Self { additional, ..self }
    }

    /// The kind of TEE that it says it comes from.
    #[must_use]
    pub fn tee(&self) -> TeeKind {
        self.tee
    }

    /// The TEE's own part.
    #[must_use]
    pub fn body(&self) -> &Value {
        &self.body
    }

    /// Evidence of what else the machine has.
    #[must_use]
    pub fn additional(&self) -> &AdditionalEvidence {
        &self.additional
    }

    /// The one encoding, canonical JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads what [`Evidence::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`]: too long, malformed, or not the one encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        canonical::decode(bytes, Self::MAX_BYTES)
    }
}

/// Why evidence is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Simulated evidence, and this build does not take any.
    #[error(
        "this build refuses simulated evidence whatever the policy says: it lacks the `simulated` feature, which is for development only"
    )]
    SimulatedDisabled,
    /// A version or variant of that TEE's evidence that is not known.
    #[error("the evidence cannot be verified by this version: {what}")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// Not of the shape of that TEE's evidence.
    #[error("the evidence is malformed: {reason}")]
    Malformed {
        /// What the parser says, cut to 200 characters.
        reason: String,
    },
    /// Altered, or signed by somebody else.
    #[error("bad signature: {of} is not signed by {by}")]
    BadSignature {
        /// What was to be signed.
        of: &'static str,
        /// Whose key was to sign it.
        by: &'static str,
    },
    /// A certificate on the way to the vendor's root does not hold.
    #[error("the certificates of {what} do not hold: {problem}")]
    Certificate {
        /// Whose certificates.
        what: &'static str,
        /// What is wrong.
        problem: CertificateProblem,
    },
    /// A genuine certificate that is not of the key which this evidence needs.
    #[error("the certificate that came along is for {what}")]
    EndorsementMismatch {
        /// What it is for.
        what: &'static str,
    },
    /// A quote that does not hold, for a reason that its verifier gives.
    #[error("the quote does not hold: {reason}")]
    Quote {
        /// What it says, cut to 200 characters.
        reason: String,
    },
    /// An event log that does not lead to what was measured.
    #[error("the event log does not lead to what the evidence says was measured: {register}")]
    EventLog {
        /// Which register differs.
        register: String,
    },
    /// Registers that are not those which a TPM signed for.
    #[error("the registers that came along are not those of the quote")]
    Registers,
    /// A TPM whose registers say that no dynamic launch took place.
    #[error("no dynamic launch took place: {register} was not measured into, or not quoted")]
    NoLaunch {
        /// The register of the launch.
        register: Register,
    },
    /// Something that the vendor publishes came neither with the evidence nor from the
    /// verifier.
    #[error("{what} is missing: it came neither with the evidence nor is it in the collateral")]
    CollateralMissing {
        /// What it is.
        what: String,
    },
    /// Genuine, but made for another nonce, statement, key or session.
    #[error("binding mismatch: the evidence was made for another nonce or another statement")]
    BindingMismatch,
    /// Evidence beside a TEE's own does not hold.
    #[error("evidence of {tee} that came along: {source}")]
    Additional {
        /// Its kind.
        tee: TeeKind,
        /// Why.
        source: Box<VerifyError>,
    },
    /// Measurements that are not those which the vendor says a version has.
    #[error(
        "the measurements are not those of {version}, as its vendor has published them: {registers} differ"
    )]
    ReferenceValues {
        /// What was measured, by its version.
        version: String,
        /// Which differ.
        registers: String,
    },
    /// Genuine evidence over a statement that is none.
    #[error("the service statement is refused: {0}")]
    Statement(#[from] StatementError),
}

impl VerifyError {
    /// The same of evidence beside a TEE's own.
    pub(crate) fn of_additional(self, tee: TeeKind) -> Self {
        Self::Additional {
            tee,
            source: Box::new(self),
        }
    }

    /// What a parser says of a part of evidence, cut to 200 characters.
    pub(crate) fn malformed(what: &str, why: &dyn std::fmt::Display) -> Self {
        Self::Malformed {
            reason: format!("{what}: {}", canonical::reason(why)),
        }
    }
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// Its time is over.
    #[error("a certificate expired at {not_after}")]
    Expired {
        /// When.
        not_after: UnixTime,
    },
    /// Its time has not come.
    #[error("a certificate is valid from {not_before} only")]
    NotYetValid {
        /// When it comes.
        not_before: UnixTime,
    },
    /// Its issuer took it back.
    #[error("a certificate is revoked")]
    Revoked,
    /// Altered, or signed by another key than its issuer's.
    #[error("a certificate has a bad signature")]
    BadSignature,
    /// Signed with an algorithm that no vendor uses, or one that is not of its issuer's
    /// key.
    #[error("a certificate is signed with an algorithm that no vendor uses")]
    UnusualAlgorithm,
    /// No path leads to a root that this program pins.
    #[error("they do not lead to the vendor's root")]
    UnknownIssuer,
    /// Not a certificate, or one that may not stand where it does.
    #[error("a certificate cannot be used: {reason}")]
    Unacceptable {
        /// What the parser or the path builder says, cut to 200 characters.
        reason: String,
    },
}
