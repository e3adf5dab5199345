//! What a broker answers over HTTP.
//!
//! Everyone who reaches it may send anything. Bodies are limited before they are
//! read, every request has a deadline, and each refusal says why, in the words
//! that also go to the audit log. No key leaves before its entry is written. Of those
//! who show nothing, only so many are written a minute: see [`refusals`].

mod admin_routes;
mod allowance_routes;
mod kbs_routes;
mod problem;
mod refusals;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{get, post};
use occlude_attest::{Claims, LastingVerifier, TeeKind};
use occlude_keys::{ModelId, OwnerFingerprint};
use tower_http::timeout::TimeoutLayer;

use crate::allowance::{MessageDigest, Reports};
use crate::kbs::jwe::RecipientKey;
use crate::kbs::messages::{KBS_PREFIX, OCCLUDE_PREFIX};
use crate::kbs::report_data::ReportHash;
use crate::sessions::{
    CHALLENGE_LIFETIME, Expiring, MOST_CHALLENGES, MOST_SESSIONS, SESSION_LIFETIME,
};
use crate::store::{Store, StoreError};
use refusals::Refusals;

/// The longest body: evidence with its certificates is some tens of kilobytes, a
/// policy less.
const LONGEST_BODY: usize = 512 * 1024;

/// For one request, its body's arrival included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Broker {
    store: Store,
    verifier: LastingVerifier,
    challenges: Mutex<Expiring<Challenged>>,
    sessions: Mutex<Expiring<Arc<Attested>>>,
    orders: Mutex<Expiring<()>>,
    /// Refusals of those who showed nothing.
    strangers: Mutex<Refusals>,
    /// Refusals of evidence that does not hold.
    disbelieved: Mutex<Refusals>,
}

/// A session that has its challenge.
#[derive(Debug)]
struct Challenged {
    /// Which of the two prefixes it began under; it goes on there.
    prefix: &'static str,
    tee: TeeKind,
    hash: ReportHash,
    nonce: String,
}

/// A session whose evidence was accepted.
#[derive(Debug)]
struct Attested {
    claims: Claims,
    recipient: RecipientKey,
    /// Requests for allowances that were answered: none is answered twice.
    answered: Mutex<HashSet<MessageDigest>>,
}

impl Attested {
    fn new(claims: Claims, recipient: RecipientKey) -> Self {
        Self {
            claims,
            recipient,
            answered: Mutex::default(),
        }
    }
}

impl Broker {
    pub(crate) fn new(store: Store, verifier: LastingVerifier) -> Self {
        Self {
            verifier,
            ..Self::with_lifetimes(store, CHALLENGE_LIFETIME, SESSION_LIFETIME)
        }
    }

    fn with_lifetimes(store: Store, challenge: Duration, session: Duration) -> Self {
        Self {
            store,
            verifier: LastingVerifier::default(),
            challenges: Mutex::new(Expiring::new(challenge, MOST_CHALLENGES)),
            sessions: Mutex::new(Expiring::new(session, MOST_SESSIONS)),
            orders: Mutex::new(Expiring::new(challenge, MOST_CHALLENGES)),
            strangers: Mutex::default(),
            disbelieved: Mutex::default(),
        }
    }

    /// The broker's routes.
    #[cfg(all(test, feature = "simulated"))]
    fn router(self) -> Router {
        Self::routes(&Arc::new(self))
    }

    /// What was reported of each model.
    pub(crate) async fn reports(
        &self,
    ) -> Result<BTreeMap<(OwnerFingerprint, ModelId), Reports>, StoreError> {
        self.store.reports().await
    }

    /// The routes of a broker.
    pub(crate) fn routes(broker: &Arc<Self>) -> Router {
        let kbs = |path: &str| format!("{KBS_PREFIX}{path}");
        let own = |path: &str| format!("{OCCLUDE_PREFIX}{path}");
        Router::new()
            .route(&kbs("/auth"), post(kbs_routes::kbs_auth))
            .route(&kbs("/attest"), post(kbs_routes::kbs_attest))
            .route(
                &kbs("/resource/{repository}/{type}/{tag}"),
                get(kbs_routes::resource),
            )
            .route(&own("/auth"), post(kbs_routes::own_auth))
            .route(&own("/attest"), post(kbs_routes::own_attest))
            .route(
                &own("/allowance/{owner}/{digest}"),
                post(allowance_routes::allow),
            )
            .route(&own("/admin/challenge"), post(admin_routes::challenge))
            .route(&own("/admin"), post(admin_routes::order))
            .fallback(problem::no_such_path)
            .method_not_allowed_fallback(problem::no_such_method)
            .layer(DefaultBodyLimit::max(LONGEST_BODY))
            .layer(TimeoutLayer::with_status_code(
                StatusCode::REQUEST_TIMEOUT,
                REQUEST_TIMEOUT,
            ))
            .with_state(Arc::clone(broker))
    }
}

/// A lock that outlives a panic elsewhere: what it guards is whole after each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod flood_tests;
#[cfg(all(test, feature = "simulated"))]
mod tampered_tests;
#[cfg(all(test, feature = "simulated"))]
mod tests;
