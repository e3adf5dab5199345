//! Allowances of queries, to sessions whose evidence the owner's policy accepts, and reports
//! from them.
//!
//! The same policy is asked as for the key, at every request: a withdrawn version answers
//! no further query once what it has is used up.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use occlude_attest::UnixTime;
use occlude_keys::{HeaderDigest, OwnerFingerprint};

use super::kbs_routes::{Answered, judge_release, no_session, parse, session, unknown_resource};
use super::problem::Problem;
use super::{Attested, Broker, lock};
use crate::allowance::{AllowanceKey, Asked, Scope, SealedMessage};
use crate::audit::AuditEvent;

/// Requests of one session that are answered: an honest server starts a new one long before.
const MOST_ANSWERS: usize = 4096;

pub(super) async fn allow(
    State(broker): State<Arc<Broker>>,
    Path((owner, digest)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answered<Json<SealedMessage>> {
    let attested = session(&broker, &headers).ok_or_else(no_session);
    let attested = broker.record_refusal(attested, None).await?;
    let path = owner.parse().ok().zip(digest.parse().ok());
    let path = path.ok_or_else(unknown_resource);
    let (owner, header_digest): (OwnerFingerprint, HeaderDigest) =
        broker.record_refusal(path, None).await?;
    let sealed: SealedMessage = parse(&body)?;
    let store = &broker.store;
    store
        .decide(&owner, &header_digest, |model, ledger| {
            let judged = judge_release(store, model, &attested.claims).and_then(|(model, key)| {
                let key = AllowanceKey::new(&key, &attested.recipient);
                let request = open(&attested, &key, &sealed)?;
                Ok((model, key, request))
            });
            match judged {
                Ok((model, key, request)) => {
                    let model = model.record.id.clone();
                    let scope = |client| Scope {
                        owner,
                        model,
                        client,
                    };
                    let (digest, now) = (sealed.digest(), UnixTime::now());
                    let (answer, event) = match request {
                        Asked::Allowance(request) => {
                            let scope = scope(request.client);
                            let (allowance, event) = ledger.allow(scope, &request, now);
                            (key.seal_answer(&digest, &allowance), event)
                        }
                        Asked::Report(report) => {
                            let scope = scope(Some(report.client));
                            let (taken, event) = ledger.report(scope, &report, now);
                            (key.seal_answer(&digest, &taken), event)
                        }
                    };
                    (Ok(Json(answer)), event)
                }
                Err(problem) => {
                    let event = AuditEvent::QueriesRefused {
                        owner,
                        header_digest,
                        reason: problem.reason(),
                    };
                    (Err(problem), event)
                }
            }
        })
        .await?
}

/// Opens a request that this session has not made before.
fn open(attested: &Attested, key: &AllowanceKey, sealed: &SealedMessage) -> Answered<Asked> {
    let request = key.open_request(sealed).ok_or_else(|| {
        Problem::unauthorized("the request is not sealed under the model's key and the session's")
    })?;
    match &request {
        Asked::Allowance(request) if request.limits.window_seconds == 0 => {
            return Err(Problem::malformed(
                "a window of 0 seconds, it has 1 or more",
            ));
        }
        Asked::Report(report) if report.uncertain > report.queries => {
            return Err(Problem::malformed(
                "a report of more uncertain answers than answers",
            ));
        }
        _ => {}
    }
    let mut answered = lock(&attested.answered);
    if answered.len() >= MOST_ANSWERS {
        return Err(Problem::unauthorized(format!(
            "this session asked {MOST_ANSWERS} times: show evidence anew"
        )));
    }
    if !answered.insert(sealed.digest()) {
        return Err(Problem::unauthorized("this request was answered already"));
    }
    Ok(request)
}
