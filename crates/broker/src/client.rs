//! The inference server's side: evidence to the broker, a model key back.
//!
//! The broker and whoever stands between may be down, slow or lying. Nothing but
//! 32 bytes sealed to the key that this call made, and that the evidence covers,
//! is taken for a model key; whether it opens the container is for the container's
//! key commitment to say.

use std::sync::Arc;

use kbs_types::{Attestation, Challenge, CompositeEvidence, Request, RuntimeData, TeePubKey};
use occlude_attest::{AdditionalEvidence, Attester, CollectError};
use occlude_keys::{HeaderDigest, ModelKey, OwnerFingerprint};
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use crate::allowance::{
    Acknowledgement, Allowance, AllowanceKey, AllowanceRequest, Asked, SealedMessage, UsageReport,
};
use crate::kbs::jwe::{Curve, Jwe, JweError, RecipientKey, TeeKey};
use crate::kbs::messages::{
    AttestationAnswer, KBS_PREFIX, OCCLUDE_PREFIX, OccludeRequest, PROTOCOL_VERSION, kbs_tee,
};
use crate::kbs::report_data::{self, HashAlgorithmError, ReportHash, SUPPORTED_HASH_ALGORITHMS};
use crate::model_key_path;
use crate::transport::{Answer, CallError, ConnectError, ConnectOptions, Transport};

/// A JWT of Trustee with its evidence is some tens of kilobytes; a JWE less than one.
const LONGEST_ANSWER: usize = 256 * 1024;

/// Longest nonce that is signed over. Trustee's is 44 characters, that of IBM
/// Secure Execution a JSON document of a few kilobytes.
const LONGEST_NONCE: usize = 64 * 1024;

/// Asks one broker for model keys.
#[derive(Debug, Clone)]
pub struct BrokerClient {
    transport: Transport,
}

/// What an instance showed evidence for: the broker's session, and the key pair that the
/// evidence covers.
pub struct AttestedSession {
    transport: Transport,
    cookie: String,
    key: TeeKey,
}

/// One of the steps of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Asking for a challenge.
    Challenge,
    /// Sending evidence.
    Attestation,
    /// Asking for the key.
    Resource,
    /// Asking for queries.
    Allowance,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Challenge => "the challenge",
            Self::Attestation => "the attestation",
            Self::Resource => "the resource",
            Self::Allowance => "the request for queries",
        })
    }
}

/// Why there is no model key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The broker said no. A server that held the key unloads the model.
    #[error("the broker refuses the key: {reason}")]
    Refused {
        /// The broker's words.
        reason: String,
    },
    /// The broker is down, slow or in trouble. Later may be better.
    #[error("the broker is unavailable: {reason}")]
    Unavailable {
        /// What went wrong.
        reason: String,
    },
    /// An answer longer than any honest one.
    #[error("the broker's answer to {step} is longer than {limit} bytes")]
    AnswerTooLong {
        /// Which answer.
        step: Step,
        /// The limit in bytes.
        limit: usize,
    },
    /// An answer that is not of the protocol.
    #[error("the broker's answer to {step} is malformed: {reason}")]
    MalformedAnswer {
        /// Which answer.
        step: Step,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker wants evidence bound by a hash function that this crate refuses.
    #[error("the broker selects another hash function: {0}")]
    HashAlgorithm(#[from] HashAlgorithmError),
    /// The key's envelope is not for us, altered or of another kind.
    #[error("the broker's key message is refused: {0}")]
    Envelope(#[from] JweError),
    /// An answer about queries that is not the broker's to this request.
    #[error("the broker's answer about queries is not authentic")]
    Allowance,
    /// What the envelope holds is no model key.
    #[error("the broker sent {found} bytes, expected a model key of 32")]
    KeyLength {
        /// How many bytes came.
        found: usize,
    },
    /// The TEE gave no evidence.
    #[error("no evidence could be collected: {0}")]
    Collect(#[from] CollectError),
}

impl BrokerClient {
    /// A client for the broker at `url`, `http://` or `https://`. Plain HTTP is safe
    /// here: evidence is public, and the key is sealed to the attested key.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is sent yet.
    pub fn new(url: &str, options: &ConnectOptions) -> Result<Self, ConnectError> {
        Ok(Self {
            transport: Transport::new(url, options)?,
        })
    }

    /// Runs the whole exchange for one key: challenge, evidence over a key made for
    /// this call, resource. A lease is renewed by calling this again.
    ///
    /// # Errors
    /// [`FetchError`], which tells a refusal from an unavailable and from a lying
    /// broker.
    pub async fn fetch_model_key(
        &self,
        attester: &Arc<Attester>,
        owner: &OwnerFingerprint,
        digest: &HeaderDigest,
    ) -> Result<ModelKey, FetchError> {
        let session = self.attest(attester).await?;
        session.model_key(owner, digest).await
    }

    /// Shows evidence over a key made for this session. The broker forgets it after some
    /// minutes.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn attest(&self, attester: &Arc<Attester>) -> Result<AttestedSession, FetchError> {
        let (prefix, request) = request(attester);
        let answer = self
            .transport
            .post(&format!("{prefix}/auth"), None, request, LONGEST_ANSWER)
            .await
            .map_err(|error| failed(Step::Challenge, error))?;
        let challenge: Challenge = parse(Step::Challenge, &answer)?;
        let cookie = answer.session.ok_or(FetchError::MalformedAnswer {
            step: Step::Challenge,
            reason: "no session cookie".to_owned(),
        })?;
        if challenge.nonce.is_empty() || challenge.nonce.len() > LONGEST_NONCE {
            return Err(FetchError::MalformedAnswer {
                step: Step::Challenge,
                reason: format!("a nonce of {} characters", challenge.nonce.len()),
            });
        }

        let key = TeeKey::generate(Curve::P256);
        // A TEE may take its time, and no other task may wait for that.
        let (attester, public) = (Arc::clone(attester), key.public());
        let collected =
            tokio::task::spawn_blocking(move || attestation(&attester, public, challenge)).await;
        // The runtime cancels blocking work only while it shuts down.
        let attestation =
            collected.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let path = format!("{prefix}/attest");
        let answer = self
            .transport
            .post(&path, Some(&cookie), attestation, LONGEST_ANSWER)
            .await
            .map_err(|error| failed(Step::Attestation, error))?;
        let _: AttestationAnswer = parse(Step::Attestation, &answer)?;
        Ok(AttestedSession {
            transport: self.transport.clone(),
            cookie,
            key,
        })
    }
}

impl AttestedSession {
    /// The key of one sealed version.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn model_key(
        &self,
        owner: &OwnerFingerprint,
        digest: &HeaderDigest,
    ) -> Result<ModelKey, FetchError> {
        let path = format!("{KBS_PREFIX}/resource/{}", model_key_path(owner, digest));
        let answer = self
            .transport
            .get(&path, Some(&self.cookie), LONGEST_ANSWER)
            .await
            .map_err(|error| failed(Step::Resource, error))?;
        let envelope: Jwe = parse(Step::Resource, &answer)?;
        let content = self.key.open(&envelope)?;
        if content.len() != 32 {
            return Err(FetchError::KeyLength {
                found: content.len(),
            });
        }
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(&content);
        Ok(ModelKey::new(bytes))
    }

    /// Asks how many queries of a sealed version may be answered; `model` is its key, which
    /// the answer has to be sealed under. What is allowed is spent for the broker, used or
    /// not. A plain Trustee has no such path, and refuses.
    ///
    /// # Errors
    /// [`FetchError`]; [`FetchError::Allowance`] for an answer that is not to this request.
    pub async fn allowance(
        &self,
        owner: &OwnerFingerprint,
        digest: &HeaderDigest,
        model: &ModelKey,
        request: &AllowanceRequest,
    ) -> Result<Allowance, FetchError> {
        let asked = Asked::Allowance(request.clone());
        let allowance: Allowance = self.exchange((owner, digest, model), &asked).await?;
        if allowance.queries > request.queries {
            return Err(FetchError::Allowance);
        }
        Ok(allowance)
    }

    /// Tells the owner what was seen in one client's queries of a sealed version. It is in
    /// the broker's log when this returns.
    ///
    /// # Errors
    /// [`FetchError`]; [`FetchError::Allowance`] for an answer that is not to this report.
    pub async fn report(
        &self,
        owner: &OwnerFingerprint,
        digest: &HeaderDigest,
        model: &ModelKey,
        report: &UsageReport,
    ) -> Result<Acknowledgement, FetchError> {
        let asked = Asked::Report(report.clone());
        self.exchange((owner, digest, model), &asked).await
    }

    /// Sends what only the broker reads, and reads what only it can have answered.
    async fn exchange<T: DeserializeOwned>(
        &self,
        (owner, digest, model): (&OwnerFingerprint, &HeaderDigest, &ModelKey),
        asked: &Asked,
    ) -> Result<T, FetchError> {
        let public = RecipientKey::try_from(&self.key.public())?;
        let key = AllowanceKey::new(model, &public);
        let sealed = key.seal_request(asked);
        let path = format!("{OCCLUDE_PREFIX}/allowance/{owner}/{digest}");
        let answer = self
            .transport
            .post(&path, Some(&self.cookie), to_json(&sealed), LONGEST_ANSWER)
            .await
            .map_err(|error| failed(Step::Allowance, error))?;
        let answer: SealedMessage = parse(Step::Allowance, &answer)?;
        key.open_answer(&sealed.digest(), &answer)
            .ok_or(FetchError::Allowance)
    }
}

#[cfg(all(test, feature = "simulated"))]
impl AttestedSession {
    /// The same session, asked for elsewhere: what stands between may answer, too.
    pub(crate) fn at(self, url: &str) -> Self {
        let transport = Transport::new(url, &ConnectOptions::default()).expect("a URL");
        Self { transport, ..self }
    }
}

/// The first message and where it goes: KBS where it has a name for the TEE, our
/// own path where not.
fn request(attester: &Attester) -> (&'static str, Vec<u8>) {
    let version = PROTOCOL_VERSION.to_owned();
    let extra_params = json!({ SUPPORTED_HASH_ALGORITHMS: ["sha256", "sha384", "sha512"] });
    match kbs_tee(attester.kind()) {
        Some(tee) => {
            let request = Request {
                version,
                tee,
                extra_params,
            };
            (KBS_PREFIX, to_json(&request))
        }
        None => {
            let request = OccludeRequest {
                version,
                tee: attester.kind(),
                extra_params,
            };
            (OCCLUDE_PREFIX, to_json(&request))
        }
    }
}

fn attestation(
    attester: &Attester,
    tee_pubkey: TeePubKey,
    challenge: Challenge,
) -> Result<Vec<u8>, FetchError> {
    let hash = ReportHash::selected(&challenge.extra_params)?;
    let runtime_data = RuntimeData {
        nonce: challenge.nonce,
        tee_pubkey,
    };
    let device = report_data::device(hash, &runtime_data);
    let additional = attester.collect_additional(&device)?;
    let additional_evidence = additional_evidence(&additional);
    let primary = report_data::primary(hash, &runtime_data, &additional_evidence);
    let evidence = attester.collect_primary(&primary, Some(&runtime_data.nonce))?;
    Ok(to_json(&Attestation {
        init_data: None,
        runtime_data,
        tee_evidence: CompositeEvidence {
            primary_evidence: evidence.body().clone(),
            additional_evidence,
        },
    }))
}

/// Evidence of what else the machine has, as KBS carries it: JSON in a string, so that what
/// is hashed is what travels; an empty one if there is nothing.
fn additional_evidence(additional: &AdditionalEvidence) -> String {
    if additional.is_empty() {
        return String::new();
    }
    serde_json::to_string(additional).expect("a map of JSON always makes JSON")
}

fn to_json(message: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("a message of strings always makes JSON")
}

fn parse<T: DeserializeOwned>(step: Step, answer: &Answer) -> Result<T, FetchError> {
    serde_json::from_slice(&answer.body).map_err(|error| FetchError::MalformedAnswer {
        step,
        reason: error.to_string(),
    })
}

fn failed(step: Step, error: CallError) -> FetchError {
    match error {
        CallError::Refused { reason } => FetchError::Refused { reason },
        CallError::Unavailable { reason } => FetchError::Unavailable { reason },
        CallError::TooLong { limit } => FetchError::AnswerTooLong { step, limit },
    }
}
