//! What a server answers to `GET /.well-known/occlude/attestation?nonce=<64
//! hexadecimal digits>`: its statement and evidence over it.

use crate::{
    Attester, Binding, Claims, CollectError, DecodeError, Evidence, Nonce, ServiceStatement,
    UnixTime, Verifier, VerifyError, canonical,
};

/// A server's answer, not verified.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AttestationResponse {
    #[serde(with = "canonical::base64_bytes")]
    statement: Vec<u8>,
    evidence: Evidence,
}

/// A server whose evidence holds and covers its statement. Only
/// [`AttestationResponse::verify`] makes one; a [`crate::Policy`] says whether it
/// is wanted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VerifiedService {
    claims: Claims,
    statement: ServiceStatement,
}

impl AttestationResponse {
    /// The longest encoding that is read: evidence, a statement in base64, and
    /// what is around them.
    pub const MAX_BYTES: usize =
        Evidence::MAX_BYTES + ServiceStatement::MAX_BYTES.div_ceil(3) * 4 + 1024;

    /// An answer from its parts.
    #[must_use]
    pub fn new(statement: Vec<u8>, evidence: Evidence) -> Self {
        Self {
            statement,
            evidence,
        }
    }

    /// Collects evidence over `nonce` and `statement`.
    ///
    /// # Errors
    /// [`CollectError`] if the TEE gives none.
    pub fn collect(
        attester: &Attester,
        nonce: &Nonce,
        statement: &ServiceStatement,
    ) -> Result<Self, CollectError> {
        Self::collect_answering(attester, nonce, statement, None)
    }

    /// The same for a verifier that made a request first.
    ///
    /// # Errors
    /// [`CollectError`] if the TEE gives none.
    pub fn collect_answering(
        attester: &Attester,
        nonce: &Nonce,
        statement: &ServiceStatement,
        request: Option<&str>,
    ) -> Result<Self, CollectError> {
        let statement = statement.encode();
        let binding = Binding::for_statement(nonce, &statement);
        let evidence = attester.collect_answering(&binding, request)?;
        Ok(Self::new(statement, evidence))
    }

    /// The statement's exact bytes, not verified.
    #[must_use]
    pub fn statement(&self) -> &[u8] {
        &self.statement
    }

    /// The evidence, not verified.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The one encoding, canonical JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads what [`AttestationResponse::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`]: too long, malformed, or not the one encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        canonical::decode(bytes, Self::MAX_BYTES)
    }

    /// Verifies the evidence over the nonce that was asked with and this very
    /// statement; the statement is read only then.
    ///
    /// # Errors
    /// [`VerifyError`]; nothing about the server is known then.
    pub fn verify(
        &self,
        verifier: &Verifier,
        nonce: &Nonce,
        at: UnixTime,
    ) -> Result<VerifiedService, VerifyError> {
        let binding = Binding::for_statement(nonce, &self.statement);
        let claims = verifier.verify(&self.evidence, &binding, at)?;
        let statement = ServiceStatement::decode(&self.statement)?;
        Ok(VerifiedService { claims, statement })
    }
}

impl VerifiedService {
    /// What the evidence says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What the server states, covered by the evidence.
    #[must_use]
    pub fn statement(&self) -> &ServiceStatement {
        &self.statement
    }

    /// A service as a test wants it.
    #[cfg(test)]
    pub(crate) fn for_test(claims: Claims, statement: ServiceStatement) -> Self {
        Self { claims, statement }
    }
}
