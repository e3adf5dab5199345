//! Orders of owners: signature first, then the challenge, then the order.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use occlude_attest::PolicyFile;

use super::problem::Problem;
use super::{Broker, lock};
use crate::admin::{Action, AdminChallenge, AdminRequest, Done, EnvelopeError, SignedRequest};
use crate::audit::AuditEvent;

pub(super) async fn challenge(
    State(broker): State<Arc<Broker>>,
) -> Result<Json<AdminChallenge>, Problem> {
    let challenge = lock(&broker.orders).insert((), Instant::now())?;
    Ok(Json(AdminChallenge { challenge }))
}

pub(super) async fn order(
    State(broker): State<Arc<Broker>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let signed: SignedRequest = serde_json::from_slice(&body)
        .map_err(|error| Problem::malformed(format!("the order is malformed: {error}")))?;
    // Its memory holds a key; this copy of it is not needed any more. What the
    // HTTP server read it through is beyond reach.
    drop(body);
    let carried_out = match broker.authenticate(&signed) {
        Ok(request) => broker.carry_out(request).await,
        Err(problem) => Err(Refused::Stranger(problem)),
    };
    let event = |problem: &Problem| AuditEvent::OrderRefused {
        claimed_owner: signed.owner.fingerprint(),
        reason: problem.reason(),
    };
    match carried_out {
        Ok(response) => Ok(response),
        Err(Refused::Broker(problem)) => Err(problem),
        Err(Refused::Stranger(problem)) => {
            broker.record_stranger(&event(&problem)).await?;
            Err(problem)
        }
        Err(Refused::Order(problem)) => {
            broker.store.record(&event(&problem)).await?;
            Err(problem)
        }
    }
}

/// Why an order came to nothing.
enum Refused {
    /// Nobody is known to stand behind it; only so many go to the audit log.
    Stranger(Problem),
    /// The order itself; it goes to the audit log.
    Order(Problem),
    /// The broker's own trouble.
    Broker(Problem),
}

impl From<crate::store::StoreError> for Refused {
    fn from(error: crate::store::StoreError) -> Self {
        if error.is_tampering() {
            Self::Order(Problem::tampered(&error))
        } else {
            Self::Broker(error.into())
        }
    }
}

impl Broker {
    /// A challenge is used up only by an order that is signed: others cannot use
    /// up an owner's.
    fn authenticate(&self, signed: &SignedRequest) -> Result<AdminRequest, Problem> {
        let request = signed.verify().map_err(|error| match error {
            EnvelopeError::Malformed { .. } => Problem::malformed(error.to_string()),
            EnvelopeError::Signature => Problem::unauthorized(error.to_string()),
            EnvelopeError::ForeignOwner { .. } => Problem::forbidden(error.to_string()),
        })?;
        lock(&self.orders)
            .take(&request.challenge, Instant::now())
            .ok_or_else(|| {
                Problem::unauthorized("the order's challenge is unknown, used or expired")
            })?;
        Ok(request)
    }

    async fn carry_out(&self, request: AdminRequest) -> Result<Response, Refused> {
        let (store, owner) = (&self.store, &request.owner);
        match request.action {
            Action::AddModel { model, key } => {
                let key = key.decode().ok_or_else(|| {
                    Refused::Order(Problem::malformed(
                        "the model key is not 32 bytes of base64",
                    ))
                })?;
                store.add_model(owner, &model, &key).await?;
                Ok(Json(Done {}).into_response())
            }
            Action::SetPolicy { model, policy } => {
                // A policy that this build never honours would only look like one.
                PolicyFile::parse(&policy, None)
                    .map_err(|error| Refused::Order(Problem::malformed(error.to_string())))?
                    .policy()
                    .check_enforceable()
                    .map_err(|refusal| Refused::Order(Problem::forbidden(refusal.to_string())))?;
                store.set_policy(owner, model.as_ref(), &policy).await?;
                Ok(Json(Done {}).into_response())
            }
            Action::Withdraw {
                model,
                below_version,
            } => {
                let withdrawal = store.withdraw(owner, &model, below_version).await?;
                Ok(Json(withdrawal).into_response())
            }
            Action::Audit { from } => {
                self.write_counted().await?;
                let page = store.audit_page(from, owner).await?;
                Ok(Json(page).into_response())
            }
        }
    }
}
