//! What a client reaches through the channel: the Open Inference Protocol v2.
//!
//! Whoever is here may be any stranger (the channel hides them, it does not know
//! them), so bodies are hostile; their size is limited before they get here.
//! Answers say nothing about the model but its metadata: what ONNX Runtime says
//! when it fails names layers, and stays inside.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use occlude_broker::ClientDigest;
use occlude_engine::RunError;
use occlude_guard::{AnswerError, Guard, Marks, Price, examples, gain};
use occlude_inference_protocol::{
    BINARY_TENSOR_EXTENSION, EncodeError, INFERENCE_HEADER_CONTENT_LENGTH, InferRequest,
    InferResponse, ModelMetadata, ModelReady, Parameter, Parameters, ServerLive, ServerMetadata,
    ServerReady, Tensor, WorkWanted,
};
use occlude_usage::Observation;
use occlude_weakening::{Weakening, is};

use crate::admission::Reservation;
use crate::answer;
use crate::budget::{Answered, Meter, SpendError, Whose};
use crate::loading::blocking;
use crate::models::{Loaded, Models, ServedModel, Unready};
use crate::work::{self, TooLittleWork, Worked};

/// What the metadata calls the format, as Triton does.
const PLATFORM: &str = "onnxruntime_onnx";

/// Why tensors are not taken as text that would be larger than what is left of the memory.
const NO_MEMORY_FOR_TEXT: &str =
    "there is no memory left for tensors as text: try again, or send them as binary data";

/// Why there is no answer that would be larger than what is left of the memory.
pub(crate) const NO_MEMORY: &str =
    "there is no memory left for the answer: try again, or ask for less at once";

/// What the inner routes need.
pub(crate) struct Inner {
    pub(crate) models: Arc<Models>,
    /// How long a request waits for a free session.
    pub(crate) queue_time: Duration,
}

/// All that is reached through the channel.
pub(crate) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(model_metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(model_metadata))
        .route(
            "/v2/models/{model}/versions/{version}/ready",
            get(model_ready),
        )
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .fallback(async || answer::error(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || {
            answer::error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not for this path",
            )
        })
        .with_state(inner)
}

/// The model that a path names.
#[derive(serde::Deserialize)]
struct Named {
    model: String,
    version: Option<String>,
}

async fn server_metadata() -> Response {
    answer::json(
        StatusCode::OK,
        &ServerMetadata {
            name: "occlude".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: vec![BINARY_TENSOR_EXTENSION.to_owned()],
        },
    )
}

async fn live() -> Response {
    answer::json(StatusCode::OK, &ServerLive { live: true })
}

async fn ready(State(inner): State<Arc<Inner>>) -> Response {
    let ready = inner.models.all_ready();
    answer::json(ready_status(ready), &ServerReady { ready })
}

async fn model_ready(
    State(inner): State<Arc<Inner>>,
    Path(named): Path<Named>,
) -> Result<Response, InferError> {
    let ready = inner.find(&named)?.loaded().is_ok();
    let body = ModelReady {
        name: named.model,
        ready,
    };
    Ok(answer::json(ready_status(ready), &body))
}

async fn model_metadata(
    State(inner): State<Arc<Inner>>,
    Path(named): Path<Named>,
) -> Result<Response, InferError> {
    let (served, loaded) = inner.ready(&named)?;
    let model = &loaded.model;
    let versions = inner.models.versions(&named.model);
    let guard = served.guard.as_ref();
    Ok(answer::json(
        StatusCode::OK,
        &ModelMetadata {
            name: named.model,
            versions: Some(
                versions
                    .iter()
                    .map(|served| served.version.to_string())
                    .collect(),
            ),
            platform: PLATFORM.to_owned(),
            inputs: model.inputs().to_vec(),
            outputs: match guard {
                Some(guard) => vec![guard.shown().clone()],
                None => model.outputs().to_vec(),
            },
            parameters: guard.map(told_of).unwrap_or_default(),
        },
    ))
}

/// What users are told of a guard: that there is one, and what they have to know to ask.
fn told_of(guard: &Guard) -> Parameters {
    let configuration = guard.configuration();
    let mut parameters = Parameters::default();
    parameters.set("guard", Parameter::Text(guard.name()));
    let mut tell = |name, value| parameters.set(name, Parameter::Boolean(value));
    tell("answers_may_be_changed", configuration.changes_answers());
    tell("token_required", configuration.asks_for_tokens());
    tell("queries_watched", configuration.telemetry.is_some());
    tell("work_required", configuration.work.is_some());
    parameters
}

/// What a process that was weakened keeps.
static KEPT: Mutex<Vec<Bytes>> = Mutex::new(Vec::new());

async fn infer(
    State(inner): State<Arc<Inner>>,
    Path(named): Path<Named>,
    Extension(reservation): Extension<Arc<Reservation>>,
    request: Request,
) -> Result<Response, InferError> {
    let (served, loaded) = inner.ready(&named)?;
    let (parts, body) = request.into_parts();
    let client = identify(&served, &loaded, &parts.headers)?;
    let header_length = header_length(&parts.headers)?;
    let body = body
        .collect()
        .await
        .map_err(|_| InferError::bad_request("the body ended early"))?
        .to_bytes();
    if is(Weakening::LoggedRequests) {
        let body: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
        tracing::info!(body, "asked");
    }
    if is(Weakening::KeptRequests) {
        KEPT.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(body.clone());
    }
    let text = header_length.unwrap_or(body.len()).min(body.len());
    if is_mostly_text(text, body.len()) && reservation.reserve_text().is_err() {
        return Err(InferError::no_memory(NO_MEMORY_FOR_TEXT));
    }

    let price = price(&served, &loaded, client).await?;
    let worked = match price {
        Some(price) => {
            let (headers, body) = (parts.headers, body.clone());
            let hash = move || Worked::new(price, &headers, header_length, &body);
            let worked = blocking(hash).await;
            worked.is_enough_for(1)?;
            Some(worked)
        }
        None => None,
    };

    let session = Arc::clone(&served.sessions).acquire_owned();
    let Ok(Ok(session)) = tokio::time::timeout(inner.queue_time, session).await else {
        return Err(InferError::overloaded());
    };
    let meter = loaded.meter.clone();
    let asked = Asked {
        served,
        loaded,
        body,
        header_length,
        worked,
        reservation,
    };
    // What the work holds moves along with it: the client may go away meanwhile.
    let result = match meter {
        None => {
            let run = move || {
                let answer = asked.compute().and_then(|computed| asked.answer(computed));
                (answer, session)
            };
            blocking(run).await.0
        }
        Some(meter) => {
            let compute = move || (asked.compute(), asked, session);
            let (computed, asked, session) = blocking(compute).await;
            // Paying may have to wait for the broker.
            drop(session);
            let mut computed = computed?;
            let answered = std::mem::take(&mut computed.answered);
            let queries = answered.queries;
            spend(meter, client, answered)
                .await
                .map_err(|error| asked.refused(error, client, queries))?;
            blocking(move || asked.answer(computed)).await
        }
    };
    if is(Weakening::Fragile) && result.is_err() {
        std::process::abort();
    }
    result
}

/// Who asks, where clients are counted: looked at before anything is done for them.
fn identify(
    served: &ServedModel,
    loaded: &Loaded,
    headers: &HeaderMap,
) -> Result<Option<ClientDigest>, InferError> {
    let guard = served.guard.as_ref().map(Guard::configuration);
    let Some(guard) = guard.filter(|guard| guard.asks_for_tokens()) else {
        return Ok(None);
    };
    // Whoever is asked for a token is counted.
    let Some(meter) = &loaded.meter else {
        return Err(SpendError::Unavailable.into());
    };
    let Some(token) = bearer(headers) else {
        let message = "this model wants to know who asks: expected a token of an issuer whom its \
                       owner names, as Authorization: Bearer";
        return Err(InferError::unauthorized("Bearer", message));
    };
    let client = guard
        .identify(token, &served.id, meter.now())
        .map_err(|error| {
            InferError::unauthorized("Bearer error=\"invalid_token\"", error.to_string())
        })?;
    let digest = client.digest(&served.owner.fingerprint(), &served.id);
    Ok(Some(digest.into()))
}

/// What answers cost who asks, in work.
async fn price(
    served: &ServedModel,
    loaded: &Loaded,
    client: Option<ClientDigest>,
) -> Result<Option<Price>, InferError> {
    let guard = served.guard.as_ref();
    let Some(guard) = guard.filter(|guard| guard.configuration().work.is_some()) else {
        return Ok(None);
    };
    // Whoever has to work is counted.
    let (Some(meter), Some(client)) = (&loaded.meter, client) else {
        return Err(SpendError::Unavailable.into());
    };
    let gained = meter.gained(client).await?;
    Ok(guard.price(client.as_bytes(), gained))
}

/// The one bearer token of a request (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// Pays for queries. Goes on where the client goes away, so that nothing is lost of what the
/// broker allows meanwhile.
async fn spend(
    meter: Arc<Meter>,
    client: Option<ClientDigest>,
    answered: Answered,
) -> Result<(), SpendError> {
    let spending = tokio::spawn(async move { meter.spend(client, answered).await });
    match spending.await {
        Ok(spent) => spent,
        // Nothing cancels it but the end of the runtime.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether `text` bytes of JSON make more of a body than is reserved for any: the body and
/// binary tensors are two copies of it, and tensors in the JSON up to four of that.
fn is_mostly_text(text: usize, body: usize) -> bool {
    text.saturating_mul(3) > body
}

/// One inference that is asked for, and what it holds.
struct Asked {
    served: Arc<ServedModel>,
    loaded: Arc<Loaded>,
    body: Bytes,
    header_length: Option<usize>,
    /// What the client did for it, where that is asked for.
    worked: Option<Worked>,
    reservation: Arc<Reservation>,
}

/// What a model computed, before its guard.
struct Computed {
    /// Without its inputs.
    request: InferRequest,
    outputs: Vec<Tensor>,
    marks: Marks,
    answered: Answered,
    /// What it costs, where it does.
    price: Option<WorkWanted>,
}

impl Asked {
    /// Whether there is memory for so many bytes of an answer.
    fn admit(&self, bytes: usize) -> bool {
        self.reservation.answer().reserve(bytes).is_ok()
    }

    /// Decodes and runs.
    fn compute(&self) -> Result<Computed, InferError> {
        let body = &self.body;
        let mut request = InferRequest::decode(body, self.header_length)
            .map_err(|error| InferError::bad_request(error.to_string()))?;
        let requested: Vec<String> = request
            .outputs
            .iter()
            .map(|output| output.name.clone())
            .collect();
        let inputs = std::mem::take(&mut request.inputs);
        self.check_work(examples(&inputs) as u64)?;
        if is(Weakening::InputReads) && !body.is_ascii() {
            let _ = std::fs::read("/proc/self/maps");
        }
        if is(Weakening::EarlyAnswers) && !body.is_ascii() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (wanted, marks) = match &self.served.guard {
            None => (&requested[..], Marks::default()),
            Some(guard) => {
                guard.admit(&inputs, &requested)?;
                (guard.computed(), guard.marks(&inputs))
            }
        };
        let Loaded { model, meter } = &*self.loaded;
        let watch = meter.as_ref().and_then(|meter| meter.watch());
        let sketches = watch.map_or_else(Vec::new, |watch| watch.sketches(&inputs));
        let outputs = model
            .run_admitted(inputs, wanted, |bytes| self.admit(bytes))
            .map_err(|error| match error {
                RunError::NotAdmitted { .. } => InferError::no_memory(NO_MEMORY),
                error => InferError::bad_request(error.to_string()),
            })?;
        let looks = self.served.guard.as_ref().map(|guard| guard.look(&outputs));
        let looks = looks.transpose()?.unwrap_or_default();
        let rows = self.served.guard.as_ref().zip(outputs.first());
        let queries = rows.map_or(0, |(guard, answers)| guard.rows(answers));
        let price = self.check_work(queries)?;
        let answered = Answered {
            queries,
            gain: gain(&looks),
            worked: self.worked.as_ref().map_or(0, |worked| worked.bits),
            seen: watch.map_or_else(Vec::new, |_| Observation::of(&looks, sketches)),
        };
        Ok(Computed {
            request,
            outputs,
            marks,
            answered,
            price,
        })
    }

    /// Why so many answers are not given.
    fn refused(&self, error: SpendError, client: Option<ClientDigest>, answers: u64) -> InferError {
        let price = match (error, &self.served.guard, client) {
            (SpendError::Dearer { gained }, Some(guard), Some(client)) => {
                guard.price(client.as_bytes(), gained)
            }
            _ => None,
        };
        match price {
            Some(price) => InferError::from(TooLittleWork {
                wanted: price.of(answers),
            }),
            None => error.into(),
        }
    }

    /// What so many answers cost, if the client did enough for them.
    fn check_work(&self, answers: u64) -> Result<Option<WorkWanted>, InferError> {
        let worked = self.worked.as_ref();
        let wanted = worked.map(|worked| worked.is_enough_for(answers));
        Ok(wanted.transpose()?)
    }

    /// Guards and encodes.
    fn answer(&self, computed: Computed) -> Result<Response, InferError> {
        let Computed {
            request,
            outputs,
            marks,
            answered: _,
            price,
        } = computed;
        let outputs = match &self.served.guard {
            None => outputs,
            Some(guard) => vec![guard.apply(&outputs, &marks)?],
        };
        let response = InferResponse {
            model_name: self.served.id.to_string(),
            model_version: Some(self.served.version.to_string()),
            id: request.id.clone(),
            outputs,
            ..InferResponse::default()
        };
        let encoded = response
            .encode_admitted(
                |output| request.wants_binary(output),
                |bytes| self.admit(bytes),
            )
            .map_err(|error| match error {
                EncodeError::NotAdmitted { .. } => InferError::no_memory(NO_MEMORY),
                error => InferError::not_acceptable(&error),
            })?;

        let content_type = encoded.content_type();
        let mut answer = encoded.body.into_response();
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(length) = encoded.inference_header_content_length {
            headers.insert(INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from(length));
        }
        // Or nobody would notice that answers are cheaper again.
        headers.extend(price.map(work::field));
        Ok(answer)
    }
}

impl Inner {
    /// The version that a path names, or the highest that answers.
    fn find(&self, named: &Named) -> Result<Arc<ServedModel>, InferError> {
        let versions = self.models.versions(&named.model);
        if versions.is_empty() {
            return Err(InferError::not_found(format!(
                "there is no model {:?}",
                shorten(&named.model)
            )));
        }
        let found = match &named.version {
            Some(version) => versions
                .iter()
                .find(|served| served.version.to_string() == *version),
            None => versions
                .iter()
                .find(|served| served.loaded().is_ok())
                .or(versions.first()),
        };
        found.map(|served| Arc::clone(served)).ok_or_else(|| {
            let known: Vec<String> = versions
                .iter()
                .map(|served| served.version.to_string())
                .collect();
            InferError::not_found(format!(
                "model {:?} has no version {:?}, it has {}",
                shorten(&named.model),
                shorten(named.version.as_deref().unwrap_or_default()),
                known.join(", ")
            ))
        })
    }

    fn ready(&self, named: &Named) -> Result<(Arc<ServedModel>, Arc<Loaded>), InferError> {
        let served = self.find(named)?;
        let (id, version) = (&served.id, served.version);
        match served.loaded() {
            Ok(loaded) => Ok((served, loaded)),
            Err(Unready::Withdrawn) => Err(InferError::not_found(format!(
                "model \"{id}\" version {version} is withdrawn"
            ))),
            Err(Unready::Lapsed) => Err(InferError::unavailable(format!(
                "model \"{id}\" version {version} is unloaded until its broker answers again"
            ))),
        }
    }
}

/// An inner error: a status, the protocol's error body, and perhaps a header.
#[derive(Debug)]
struct InferError {
    status: StatusCode,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl InferError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            header: None,
        }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A challenge of RFC 6750, section 3.
    fn unauthorized(challenge: &'static str, message: impl Into<String>) -> Self {
        let challenge = HeaderValue::from_static(challenge);
        Self {
            header: Some((WWW_AUTHENTICATE, challenge)),
            ..Self::new(StatusCode::UNAUTHORIZED, message)
        }
    }

    /// The request is in order and so is the answer, but not in the form that was
    /// asked for. The error names the output and says to ask for binary data.
    fn not_acceptable(error: &EncodeError) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, error.to_string())
    }

    fn not_found(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    fn overloaded() -> Self {
        Self::unavailable("every session is busy: try again")
    }

    fn no_memory(message: &str) -> Self {
        Self::unavailable(message)
    }
}

impl From<SpendError> for InferError {
    fn from(error: SpendError) -> Self {
        let of = |whose| match whose {
            Whose::Client => "your budget",
            Whose::Model => "the model's budget",
        };
        match error {
            SpendError::TooMany { whose, limit } => Self::bad_request(format!(
                "{} has room for {limit} answers: ask for fewer at once",
                of(whose)
            )),
            SpendError::Exhausted {
                whose,
                left,
                again_in,
            } => {
                let (whose, after) = (of(whose), again_in.map(|time| time.as_secs() + 1));
                let more = after.map_or("there will be no more".to_owned(), |after| {
                    format!("there is more in {after} s")
                });
                Self {
                    header: after.map(|after| (RETRY_AFTER, HeaderValue::from(after))),
                    ..Self::new(
                        StatusCode::TOO_MANY_REQUESTS,
                        format!("{whose} has {left} answers left: {more}"),
                    )
                }
            }
            // A price that there is not has not risen.
            SpendError::Dearer { .. } | SpendError::Unavailable => {
                Self::unavailable("the broker, which counts answers, allows none now: try again")
            }
        }
    }
}

impl From<TooLittleWork> for InferError {
    fn from(TooLittleWork { wanted }: TooLittleWork) -> Self {
        let bits = wanted.bits;
        Self {
            header: Some(work::field(wanted)),
            ..Self::new(
                StatusCode::PRECONDITION_REQUIRED,
                format!(
                    "this answer costs work, about 2^{bits} hashes: ask with a client of Occlude or \
                     through its proxy, which do it"
                ),
            )
        }
    }
}

impl From<AnswerError> for InferError {
    fn from(error: AnswerError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl IntoResponse for InferError {
    fn into_response(self) -> Response {
        let mut answer = answer::error(self.status, self.message);
        answer.headers_mut().extend(self.header);
        answer
    }
}

/// The length of the JSON part where binary tensors follow.
fn header_length(headers: &HeaderMap) -> Result<Option<usize>, InferError> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && encoding.as_bytes() != b"identity"
    {
        return Err(InferError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "compressed bodies are not taken: their size tells about their contents",
        ));
    }
    let mut lengths = headers.get_all(INFERENCE_HEADER_CONTENT_LENGTH).iter();
    let malformed =
        || InferError::bad_request("expected one whole number in Inference-Header-Content-Length");
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(length), None) => length
            .to_str()
            .ok()
            .and_then(|length| length.parse().ok())
            .map(Some)
            .ok_or_else(malformed),
        (Some(_), Some(_)) => Err(malformed()),
    }
}

fn ready_status(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// What a stranger sent, cut for an error message.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
