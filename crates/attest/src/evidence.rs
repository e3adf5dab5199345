//! Evidence as it travels, and its verification.
//!
//! Whoever sends evidence is hostile until [`verify`] says otherwise: it may be
//! recorded in another session, made for another statement, altered, or signed by
//! a root that this build does not accept.

use serde_json::Value;

use crate::{Binding, Claims, DecodeError, StatementError, TeeKind, UnixTime, canonical};

/// Evidence of one TEE, not verified.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    tee: TeeKind,
    body: Value,
}

impl Evidence {
    /// The longest encoding that is read. The largest honest evidence is a GPU's
    /// report with its certificate chain, some tens of kilobytes.
    pub const MAX_BYTES: usize = 256 * 1024;

    /// Evidence from its two parts, as the KBS protocol carries them apart. A body
    /// with a fraction in it has no canonical form: [`Evidence::decode`] refuses it.
    #[must_use]
    pub fn new(tee: TeeKind, body: Value) -> Self {
        Self { tee, body }
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
    /// A kind of TEE whose evidence cannot be verified yet.
    #[error("evidence of {tee} cannot be verified by this version")]
    NotSupportedYet {
        /// The kind.
        tee: TeeKind,
    },
    /// Not of the shape of that TEE's evidence.
    #[error("the evidence is malformed: {reason}")]
    Malformed {
        /// What the parser says, cut to 200 characters.
        reason: String,
    },
    /// Not signed by the root of that TEE, or altered since.
    #[error("the evidence is not authentic")]
    Inauthentic,
    /// Genuine, but made for another nonce, statement, key or session.
    #[error("the evidence was made for another nonce or another statement")]
    BindingMismatch,
    /// Genuine evidence over a statement that is none.
    #[error("the service statement is refused: {0}")]
    Statement(#[from] StatementError),
}

/// Verifies evidence: signature first, then that it carries `binding`.
///
/// `at` is the verifier's time, for the validity of certificates; simulated
/// evidence has none.
///
/// # Errors
/// [`VerifyError`]; nothing about the sender is known then.
pub fn verify(evidence: &Evidence, binding: &Binding, at: UnixTime) -> Result<Claims, VerifyError> {
    // No certificate is checked until a TEE with certificates is supported.
    let _ = at;
    match evidence.tee {
        TeeKind::Simulated => verify_simulated(evidence, binding),
        tee => Err(VerifyError::NotSupportedYet { tee }),
    }
}

#[cfg(feature = "simulated")]
fn verify_simulated(evidence: &Evidence, binding: &Binding) -> Result<Claims, VerifyError> {
    crate::simulated::verify(&evidence.body, binding)
}

#[cfg(not(feature = "simulated"))]
fn verify_simulated(_: &Evidence, _: &Binding) -> Result<Claims, VerifyError> {
    Err(VerifyError::SimulatedDisabled)
}
