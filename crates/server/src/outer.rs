//! What anyone on the network reaches: evidence, the channel, health, metrics.
//!
//! Whoever is here is hostile: the operator, or a stranger. Nothing said here
//! depends on what is inside an encapsulation, and no inference is reached but
//! through the channel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, RawQuery, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use occlude_attest::{CollectError, Nonce};
use occlude_channel::{
    Gateway, KEY_PROBLEM_TYPE, OpenError, REQUEST_MEDIA_TYPE, RESPONSE_MEDIA_TYPE, Responder,
    SealError,
};
use occlude_weakening::{Weakening, is};
use tower::ServiceExt;

use crate::admission::{Admission, AnswerMemory, Memory, Overloaded, Reservation};
use crate::answer;
use crate::attestation::{Attestation, AttestationError};
use crate::inner::NO_MEMORY;
use crate::loading::blocking;
use crate::metrics::Metrics;
use crate::models::Models;

/// What the outer routes need.
pub(crate) struct Outer {
    pub(crate) attestation: Arc<Attestation>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) models: Arc<Models>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admission: Admission,
    pub(crate) inner: Router,
    pub(crate) started: Instant,
    pub(crate) maximum_request: u64,
    pub(crate) body_time: Duration,
}

/// All that is reached without the channel.
pub(crate) fn router(outer: Arc<Outer>) -> Router {
    Router::new()
        .route("/.well-known/occlude/attestation", get(attestation))
        .route("/.well-known/occlude/channel", post(channel))
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .route("/v2", any(not_encapsulated))
        .route("/v2/{*path}", any(not_encapsulated))
        .fallback(async || answer::error(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || {
            answer::error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not for this path",
            )
        })
        .layer(from_fn_with_state(Arc::clone(&outer), count))
        .with_state(outer)
}

/// A nonce and, of a verifier that made one, a request in base64 that a URL can have.
fn asked(query: &str) -> Option<(Nonce, Option<String>)> {
    let query = query.strip_prefix("nonce=")?;
    let Some((nonce, request)) = query.split_once("&request=") else {
        return Some((query.parse().ok()?, None));
    };
    let request = URL_SAFE_NO_PAD.decode(request).ok()?;
    Some((nonce.parse().ok()?, Some(String::from_utf8(request).ok()?)))
}

async fn attestation(State(outer): State<Arc<Outer>>, RawQuery(query): RawQuery) -> Response {
    let Some((nonce, request)) = query.as_deref().and_then(asked) else {
        return answer::error(
            StatusCode::BAD_REQUEST,
            "expected ?nonce= and exactly 64 lower-case hexadecimal digits",
        );
    };
    outer.rotate();
    let response = match outer.attestation.respond(nonce, request).await {
        Ok(response) => response,
        Err(AttestationError::Busy) => {
            return answer::error(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many ask for evidence at once: try again",
            );
        }
        Err(AttestationError::Failed(
            error @ (CollectError::NoRequest | CollectError::Request { .. }),
        )) => return answer::error(StatusCode::BAD_REQUEST, error.to_string()),
        Err(AttestationError::Failed(error)) => {
            outer.metrics.attestation(false);
            tracing::error!(%error, "the TEE gave no evidence");
            return answer::error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the trusted execution environment gave no evidence",
            );
        }
    };
    outer.metrics.attestation(true);
    (
        [
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ],
        response,
    )
        .into_response()
}

/// Opens one encapsulated request, answers it inside, and seals the answer,
/// errors included.
async fn channel(State(outer): State<Arc<Outer>>, request: Request) -> Response {
    match exchange(&outer, request).await {
        Ok(sealed) => (
            [
                (CONTENT_TYPE, HeaderValue::from_static(RESPONSE_MEDIA_TYPE)),
                (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ],
            sealed,
        )
            .into_response(),
        Err(refusal) => {
            outer.metrics.encapsulation(refusal.result);
            refusal.into_response()
        }
    }
}

async fn exchange(outer: &Arc<Outer>, request: Request) -> Result<Bytes, Refusal> {
    if request
        .headers()
        .get(CONTENT_TYPE)
        .is_none_or(|found| found.as_bytes() != REQUEST_MEDIA_TYPE.as_bytes())
    {
        return Err(Refusal::new(
            "malformed",
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("expected an encapsulated request of type {REQUEST_MEDIA_TYPE}"),
        ));
    }
    let (body, reservation) = outer.receive(request).await?;

    outer.rotate();
    let gateway = Arc::clone(&outer.gateway);
    let (mut request, responder) = match blocking(move || gateway.open(&body)).await {
        Ok(opened) => opened,
        // Authentic, so that the answer belongs inside, where nobody sees it.
        Err(OpenError::Message { reason, responder }) => {
            outer.metrics.encapsulation("opened");
            let answer = answer::error(StatusCode::BAD_REQUEST, reason.to_string());
            return seal(*responder, whole(answer).await, Arc::new(reservation)).await;
        }
        Err(_) if is(Weakening::Fragile) => std::process::abort(),
        Err(error) => return Err(not_opened(&error)),
    };
    outer.metrics.encapsulation("opened");

    // Work goes on where a client goes away, so what it holds stays counted.
    let reservation = Arc::new(reservation);
    request.extensions_mut().insert(Arc::clone(&reservation));
    let answer = outer.answer(request).await;
    seal(responder, answer, reservation).await
}

impl Outer {
    /// Reads a body and reserves what the request takes.
    async fn receive(&self, request: Request) -> Result<(Bytes, Reservation), Refusal> {
        let maximum = if is(Weakening::NoLimits) {
            u64::MAX
        } else {
            self.maximum_request
        };
        let declared = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > maximum) {
            return Err(self.too_large());
        }
        let read = self.read(request.into_body(), maximum, declared);
        let Ok(read) = tokio::time::timeout(self.body_time, read).await else {
            return Err(Refusal::new(
                "slow",
                StatusCode::REQUEST_TIMEOUT,
                format!(
                    "the body did not arrive within {} s",
                    self.body_time.as_secs()
                ),
            ));
        };
        let (body, memory) = read?;
        Ok((body, self.admission.admit(memory)?))
    }

    /// Reads a body, reserving memory for what came and not for what was declared.
    async fn read(
        &self,
        mut body: Body,
        maximum: u64,
        declared: Option<u64>,
    ) -> Result<(Bytes, Memory), Refusal> {
        let mut memory = self.admission.begin()?;
        if is(Weakening::DeclaredMemory) {
            memory.grow(declared.unwrap_or(0))?;
        }
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Refusal::new("malformed", StatusCode::BAD_REQUEST, "the body ended early")
            })?;
            // Trailers say nothing that is used.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = (read.len() + data.len()) as u64;
            if length > maximum {
                return Err(self.too_large());
            }
            memory.grow(length)?;
            read.extend_from_slice(&data);
        }
        // Gives back the room that growing left over.
        Ok((read.into_boxed_slice().into(), memory))
    }

    /// Asks the inner routes, which never fail: every error is an answer.
    async fn answer(&self, request: http::Request<Bytes>) -> http::Response<Bytes> {
        let Ok(response) = self.inner.clone().oneshot(request.map(Body::from)).await;
        whole(response).await
    }

    /// Answers outside the channel: for a process that was weakened.
    async fn answer_plainly(&self, request: Request) -> Response {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let headers = request.headers().clone();
        let (body, reservation) = match self.receive(request).await {
            Ok(received) => received,
            Err(refusal) => return refusal.into_response(),
        };
        let mut request = http::Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(Arc::new(reservation));
        self.answer(request).await.map(Body::from)
    }

    /// Replaces and destroys the channel's keys that are due.
    pub(crate) fn rotate(&self) {
        match self.gateway.rotate_if_due(self.started.elapsed()) {
            Ok(false) => {}
            Ok(true) => tracing::info!("the channel's key was replaced"),
            // The current key stays in use; the next request tries again.
            Err(error) => tracing::error!(%error, "the channel's key could not be replaced"),
        }
    }

    fn too_large(&self) -> Refusal {
        Refusal::new(
            "too-large",
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the encapsulated request is longer than {} bytes",
                self.maximum_request
            ),
        )
    }
}

/// An inner answer with its body, which is in memory already.
async fn whole(answer: Response) -> http::Response<Bytes> {
    let (parts, body) = answer.into_parts();
    match body.collect().await {
        Ok(body) => http::Response::from_parts(parts, body.to_bytes()),
        Err(_) => {
            let mut failed = http::Response::new(Bytes::new());
            *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            failed
        }
    }
}

/// Why an encapsulated request was not opened, for the clear.
///
/// A client whose key may be outdated is told so by the problem type of RFC 9458,
/// section 5.3; it verifies again. A request that does not authenticate is among
/// them: a restarted server may use the same key identifier.
fn not_opened(error: &OpenError) -> Refusal {
    let (result, status, outdated) = match error {
        OpenError::UnknownKey { .. } => ("unknown-key", StatusCode::BAD_REQUEST, true),
        OpenError::KeyExhausted => ("key-exhausted", StatusCode::BAD_REQUEST, true),
        OpenError::Inauthentic => ("inauthentic", StatusCode::BAD_REQUEST, true),
        OpenError::Replayed => ("replayed", StatusCode::CONFLICT, false),
        OpenError::TooLarge { .. } => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, false),
        _ => ("malformed", StatusCode::BAD_REQUEST, false),
    };
    Refusal {
        outdated,
        ..Refusal::new(result, status, error.to_string())
    }
}

/// Seals an answer. The request's place is free then; the memory of what is sent stays
/// reserved until it was sent.
async fn seal(
    responder: Responder,
    mut answer: http::Response<Bytes>,
    reservation: Arc<Reservation>,
) -> Result<Bytes, Refusal> {
    if reservation.answer().reserve(answer.body().len()).is_err() {
        answer = whole(answer::error(StatusCode::SERVICE_UNAVAILABLE, NO_MEMORY)).await;
    }
    blocking(move || {
        let bytes = responder.seal(answer)?;
        let memory = Arc::clone(reservation.answer());
        memory.keep(bytes.len());
        Ok(Bytes::from_owner(Sent {
            bytes,
            _memory: memory,
        }))
    })
    .await
    .map_err(|error: SealError| {
        tracing::error!(%error, "an answer could not be sealed");
        Refusal::new(
            "unsealed",
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer could not be encapsulated",
        )
    })
}

/// An encapsulated answer on its way.
struct Sent {
    bytes: Vec<u8>,
    _memory: Arc<AnswerMemory>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A refusal outside the channel.
struct Refusal {
    /// Its name in the metrics.
    result: &'static str,
    status: StatusCode,
    message: String,
    /// Whether the client's key may be outdated, so that it should verify again.
    outdated: bool,
}

impl Refusal {
    fn new(result: &'static str, status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            result,
            status,
            message: message.into(),
            outdated: false,
        }
    }
}

impl From<Overloaded> for Refusal {
    fn from(_: Overloaded) -> Self {
        Self::new(
            "overloaded",
            StatusCode::SERVICE_UNAVAILABLE,
            "too many requests are in flight: try again",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if !self.outdated {
            return answer::error(self.status, self.message);
        }
        let problem = serde_json::json!({"type": KEY_PROBLEM_TYPE, "error": self.message});
        let mut response = answer::json(self.status, &problem);
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

async fn health(State(outer): State<Arc<Outer>>) -> Response {
    let ready = outer.models.all_ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer::json(status, &serde_json::json!({"live": true, "ready": ready}))
}

async fn metrics(State(outer): State<Arc<Outer>>) -> Response {
    let text = outer.metrics.render(
        outer.models.ready(),
        outer.admission.requests(),
        outer.admission.bytes(),
    );
    (
        [(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        )],
        text,
    )
        .into_response()
}

async fn not_encapsulated(State(outer): State<Arc<Outer>>, request: Request) -> Response {
    if is(Weakening::PlainChannel) {
        return outer.answer_plainly(request).await;
    }
    answer::error(
        StatusCode::MISDIRECTED_REQUEST,
        "inference is answered only inside the channel: use `occlude infer` or `occlude proxy`",
    )
}

/// Counts every request by the route that it matched.
async fn count(State(outer): State<Arc<Outer>>, request: Request, next: Next) -> Response {
    let route = match request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str)
    {
        Some("/.well-known/occlude/attestation") => "attestation",
        Some("/.well-known/occlude/channel") => "channel",
        Some("/healthz") => "healthz",
        Some("/metrics") => "metrics",
        Some(_) => "not-encapsulated",
        None => "other",
    };
    let asked = Instant::now();
    let response = next.run(request).await;
    outer
        .metrics
        .request(route, response.status().as_u16(), asked.elapsed());
    response
}
