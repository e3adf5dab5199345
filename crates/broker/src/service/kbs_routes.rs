//! Request, challenge, attestation, resource (KBS, and the same for the kinds of
//! TEE that KBS has no name for).
//!
//! A nonce answers one attestation, whatever comes of it. Evidence is believed
//! only if it carries the report data of this nonce and this key; the owner's
//! policy is asked anew for every key, with what it says at that moment.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kbs_types::{Attestation, Challenge, Request};
use occlude_attest::{
    AdditionalEvidence, Claims, Evidence, LastingVerifier, PolicyFile, TeeKind, UnixTime,
};
use occlude_keys::{HeaderDigest, ModelKey, OwnerFingerprint};
use occlude_weakening::{Weakening, is};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::{Attested, Broker, Challenged, lock};
use crate::audit::AuditEvent;
use crate::kbs::jwe::{Jwe, RecipientKey};
use crate::kbs::messages::{
    AttestationAnswer, KBS_PREFIX, MODEL_KEY_TYPE, OCCLUDE_PREFIX, OccludeRequest,
    PROTOCOL_VERSION, SESSION_COOKIE, kbs_tee, tee_kind,
};
use crate::kbs::report_data::{self, ReportHash};
use crate::store::{Store, StoreError, StoredModel};
use crate::{printable, random};

/// Longest path that is kept in an entry, in characters: an honest one has 140.
const LONGEST_RESOURCE: usize = 200;

pub(super) type Answered<T> = Result<T, Problem>;
type CookieAndChallenge = ([(HeaderName, String); 1], Json<Challenge>);

pub(super) async fn kbs_auth(
    State(broker): State<Arc<Broker>>,
    body: Bytes,
) -> Answered<CookieAndChallenge> {
    let request: Request = parse(&body)?;
    let tee = tee_kind(request.tee).ok_or_else(|| {
        Problem::unauthorized(format!(
            "the TEE {} proves nothing that this broker can verify",
            request.tee
        ))
    });
    let challenge = check_version(&request.version)
        .and(tee)
        .and_then(|tee| broker.challenge(KBS_PREFIX, tee, &request.extra_params));
    broker
        .record_refusal(challenge, Some(request.tee.to_string()))
        .await
}

pub(super) async fn own_auth(
    State(broker): State<Arc<Broker>>,
    body: Bytes,
) -> Answered<CookieAndChallenge> {
    let request: OccludeRequest = parse(&body)?;
    if kbs_tee(request.tee).is_some() {
        return Err(Problem::malformed(format!(
            "KBS has a name for the TEE {}: use {KBS_PREFIX}/auth",
            request.tee
        )));
    }
    let challenge = check_version(&request.version)
        .and_then(|()| broker.challenge(OCCLUDE_PREFIX, request.tee, &request.extra_params));
    broker
        .record_refusal(challenge, Some(request.tee.to_string()))
        .await
}

pub(super) async fn kbs_attest(
    state: State<Arc<Broker>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answered<Json<AttestationAnswer>> {
    attest(KBS_PREFIX, state, headers, body).await
}

pub(super) async fn own_attest(
    state: State<Arc<Broker>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answered<Json<AttestationAnswer>> {
    attest(OCCLUDE_PREFIX, state, headers, body).await
}

async fn attest(
    prefix: &'static str,
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answered<Json<AttestationAnswer>> {
    let cookie = cookie(&headers)
        .ok_or_else(|| Problem::unauthorized("no session cookie: ask for a challenge first"))?;
    // Taken before anything else is looked at: one challenge, one attestation.
    let challenged = lock(&broker.challenges)
        .take(cookie, Instant::now())
        .filter(|challenged| challenged.prefix == prefix)
        .ok_or_else(|| {
            Problem::unauthorized("the challenge is unknown, used or expired: ask for another")
        });
    let challenged = broker.record_refusal(challenged, None).await?;
    let tee = challenged.tee;
    match judge_evidence(&broker.verifier, &challenged, &body) {
        Ok(attested) => {
            let event = AuditEvent::EvidenceAccepted {
                tee,
                measurement: attested.claims.measurement().clone(),
                configuration: attested.claims.configuration().copied(),
                additional: attested
                    .claims
                    .additional()
                    .iter()
                    .map(Claims::tee)
                    .collect(),
            };
            broker.store.record(&event).await?;
            let (attested, now) = (Arc::new(attested), Instant::now());
            let mut sessions = lock(&broker.sessions);
            sessions.insert_under(cookie, Arc::clone(&attested), now)?;
            let token = sessions.insert(attested, now)?;
            Ok(Json(AttestationAnswer { token }))
        }
        Err(problem) => {
            let reason = problem.reason();
            let event = AuditEvent::EvidenceRefused { tee, reason };
            broker.record_disbelief(&event).await?;
            Err(problem)
        }
    }
}

/// Verifies an attestation against the challenge that it answers.
fn judge_evidence(
    verifier: &LastingVerifier,
    challenged: &Challenged,
    body: &[u8],
) -> Answered<Attested> {
    let attestation: Attestation = parse(body)?;
    let runtime_data = &attestation.runtime_data;
    if runtime_data.nonce != challenged.nonce {
        return Err(Problem::unauthorized(
            "the nonce is not the one of this session's challenge",
        ));
    }
    let composite = attestation.tee_evidence;
    let additional = additional_evidence(&composite.additional_evidence)?;
    let recipient = RecipientKey::try_from(&runtime_data.tee_pubkey)
        .map_err(|error| Problem::malformed(error.to_string()))?;
    let primary = report_data::primary(
        challenged.hash,
        runtime_data,
        &composite.additional_evidence,
    );
    let device = report_data::device(challenged.hash, runtime_data);
    let evidence =
        Evidence::new(challenged.tee, composite.primary_evidence).with_additional(additional);
    let claims = verifier
        .current()
        .map_err(|error| Problem::unavailable(error.to_string()))?
        .authenticate(&evidence, UnixTime::now())
        .and_then(|genuine| genuine.bound_to_each(&primary, &device))
        .map_err(|error| Problem::unauthorized(error.to_string()))?;
    Ok(Attested::new(claims, recipient))
}

/// Evidence of what else the machine has, as KBS carries it: JSON in a string.
fn additional_evidence(text: &str) -> Answered<AdditionalEvidence> {
    if text.is_empty() {
        return Ok(AdditionalEvidence::new());
    }
    serde_json::from_str(text)
        .map_err(|error| Problem::malformed(format!("additional_evidence: {error}")))
}

pub(super) async fn resource(
    State(broker): State<Arc<Broker>>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Answered<Json<Jwe>> {
    let resource = printable(&format!("{repository}/{kind}/{tag}"), LONGEST_RESOURCE);
    let attested = session(&broker, &headers);
    let parsed = (kind == MODEL_KEY_TYPE)
        .then(|| repository.parse().ok().zip(tag.parse().ok()))
        .flatten();
    let refused = |owner, problem: &Problem| AuditEvent::KeyRefused {
        owner,
        resource: resource.clone(),
        tee: attested.as_ref().map(|attested| attested.claims.tee()),
        measurement: attested
            .as_ref()
            .map(|attested| attested.claims.measurement().clone()),
        reason: problem.reason(),
    };
    let (attested, (owner, digest)): (&Attested, (OwnerFingerprint, HeaderDigest)) =
        match (&attested, parsed) {
            (Some(attested), Some(parsed)) => (attested, parsed),
            (attested, parsed) => {
                let owner = parsed.map(|(owner, _)| owner);
                let problem = if attested.is_none() {
                    let problem = no_session();
                    broker.record_stranger(&refused(owner, &problem)).await?;
                    problem
                } else {
                    let problem = unknown_resource();
                    broker.store.record(&refused(owner, &problem)).await?;
                    problem
                };
                return Err(problem);
            }
        };
    let store = &broker.store;
    let decision = store
        .decide(&owner, &digest, |model, _| {
            match judge_release(store, model, &attested.claims) {
                Ok((model, key)) => {
                    let event = AuditEvent::KeyGranted {
                        owner,
                        header_digest: digest,
                        model: model.record.id.clone(),
                        version: model.record.version,
                        tee: attested.claims.tee(),
                        measurement: attested.claims.measurement().clone(),
                    };
                    (Ok(key), event)
                }
                Err(problem) => {
                    let event = refused(Some(owner), &problem);
                    (Err(problem), event)
                }
            }
        })
        .await?;
    Ok(Json(attested.recipient.seal(decision?.expose())))
}

/// Decides whether these claims get this key.
pub(super) fn judge_release<'a>(
    store: &Store,
    model: Result<Option<&'a StoredModel>, &StoreError>,
    claims: &Claims,
) -> Answered<(&'a StoredModel, ModelKey)> {
    let model = model
        .map_err(Problem::tampered)?
        .ok_or_else(unknown_resource)?;
    let record = &model.record;
    if record.version < model.below_version && !is(Weakening::AnyVersion) {
        return Err(Problem::forbidden(format!(
            "version {} of {} is withdrawn: the lowest that still gets its key is {}",
            record.version, record.id, model.below_version
        )));
    }
    let text = model.policy.as_deref().ok_or_else(|| {
        Problem::forbidden(format!("the owner has set no policy for {}", record.id))
    })?;
    // Checked when it was set; a later program may still read it differently.
    let policy = PolicyFile::parse(text, None)
        .map_err(|error| Problem::forbidden(format!("the owner's policy is unusable: {error}")))?
        .into_policy();
    policy
        .judge_claims(claims)
        .map_err(|refusal| Problem::forbidden(refusal.to_string()))?;
    let key = store
        .open_key(model)
        .map_err(|error| Problem::tampered(&error))?;
    Ok((model, key))
}

pub(super) fn no_session() -> Problem {
    Problem::unauthorized("no attested session, or it expired: show evidence first")
}

pub(super) fn unknown_resource() -> Problem {
    Problem::not_found("the broker has no such key")
}

impl Broker {
    /// Writes a refusal without evidence to the audit log, or counts it, before it
    /// is told.
    pub(super) async fn record_refusal<T>(
        &self,
        answer: Answered<T>,
        tee: Option<String>,
    ) -> Answered<T> {
        if let Err(problem) = &answer {
            let reason = problem.reason();
            let event = AuditEvent::RequestRefused { tee, reason };
            self.record_stranger(&event).await?;
        }
        answer
    }

    fn challenge(
        &self,
        prefix: &'static str,
        tee: TeeKind,
        extra_params: &serde_json::Value,
    ) -> Answered<CookieAndChallenge> {
        let hash = ReportHash::choose(tee, extra_params)
            .map_err(|error| Problem::malformed(error.to_string()))?;
        // Its challenge is a request that only its ultravisor can open, as with Trustee.
        let nonce = if tee == TeeKind::Se {
            let unavailable = |error: &dyn std::fmt::Display| {
                Problem::unavailable(format!("this broker cannot challenge {tee}: {error}"))
            };
            let verifier = self
                .verifier
                .current()
                .map_err(|error| unavailable(&error))?;
            verifier.request().map_err(|error| unavailable(&error))?
        } else {
            STANDARD.encode(random::<32>())
        };
        let challenged = Challenged {
            prefix,
            tee,
            hash,
            nonce: nonce.clone(),
        };
        let session = lock(&self.challenges).insert(challenged, Instant::now())?;
        let cookie = format!("{SESSION_COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict");
        let challenge = Challenge {
            nonce,
            extra_params: hash.extra_params(),
        };
        Ok(([(SET_COOKIE, cookie)], Json(challenge)))
    }
}

fn check_version(found: &str) -> Answered<()> {
    if found == PROTOCOL_VERSION {
        return Ok(());
    }
    let found: String = found.chars().take(40).collect();
    Err(Problem::unauthorized(format!(
        "the protocol version is {found:?}, expected {PROTOCOL_VERSION:?}"
    )))
}

/// The attested session that the cookie or the bearer token stands for.
pub(super) fn session(broker: &Broker, headers: &HeaderMap) -> Option<Arc<Attested>> {
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let sessions = lock(&broker.sessions);
    let now = Instant::now();
    bearer
        .into_iter()
        .chain(cookie(headers))
        .find_map(|secret| sessions.get(secret, now).cloned())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == SESSION_COOKIE)
        .map(|(_, value)| value)
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Answered<T> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::malformed(format!("the message is malformed: {error}")))
}
