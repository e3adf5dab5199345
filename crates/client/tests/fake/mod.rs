//! A server in the test's hands: genuine simulated evidence and a genuine
//! channel, and every way to misbehave that a man in the middle has.
#![allow(dead_code, reason = "each test file uses a part of it")]

#[path = "../../../attest/tests/support/ultravisor.rs"]
pub(crate) mod ultravisor;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, StatusCode};
use occlude_attest::{
    AttestationResponse, Attester, Binding, Evidence, Nonce, PROTOCOL_VERSION, Policy,
    SecurityConfiguration, ServedModel, ServiceStatement, TeeKind,
};
use occlude_channel::{
    Gateway, KEY_PROBLEM_TYPE, Kem, Limits, OpenError, PADDING, RESPONSE_MEDIA_TYPE,
};
use occlude_keys::{OwnerKey, OwnerPublic};
use ultravisor::Ultravisor;
use url::Url;

/// How the server treats what arrives.
#[derive(Clone, Default)]
pub(crate) enum Manner {
    #[default]
    Honest,
    /// Answers every encapsulated request in the clear, with a 200.
    InTheClear,
    /// Flips one bit of every encapsulated answer.
    Altering,
    /// Says that it does not know any key.
    Forgetful,
    /// Answers every question for evidence with this.
    Replaying(Vec<u8>),
    /// Shows evidence over its own statement, with another statement.
    Swapping(Box<ServiceStatement>),
    /// Answers everything with this status and body.
    Refusing(StatusCode, &'static str),
    /// Sends every request elsewhere.
    Redirecting(String),
    /// Wants so many bits of work for every answer.
    Wanting(u32),
    /// Says so of work, in that field, whatever was done.
    Insatiable(&'static str),
    /// Answers the verifier's request, as a machine of IBM's does.
    OnIbmZ(Arc<Ultravisor>),
}

pub(crate) struct Fake {
    pub(crate) gateway: Mutex<Arc<Gateway>>,
    pub(crate) manner: Mutex<Manner>,
    pub(crate) owner: Mutex<OwnerPublic>,
    /// The ids of the models that it states to serve, in version 3.
    pub(crate) models: Mutex<Vec<&'static str>>,
    pub(crate) configuration: SecurityConfiguration,
    attester: Attester,
    /// Every question for evidence.
    pub(crate) asked: Mutex<usize>,
    /// Every body that arrived at the channel.
    pub(crate) received: Mutex<Vec<Bytes>>,
    /// Every request that was opened.
    pub(crate) opened: Mutex<Vec<Request<Bytes>>>,
}

pub(crate) fn gateway() -> Gateway {
    Gateway::new(
        Kem::XWing,
        Limits {
            key_overlap: Duration::ZERO,
            ..Limits::default()
        },
    )
    .unwrap()
}

impl Fake {
    pub(crate) fn new() -> Self {
        let configuration = SecurityConfiguration {
            broker: Some("https://broker.example/".to_owned()),
            kem: "x-wing".to_owned(),
            padding: PADDING.to_owned(),
            client_authentication: "none".to_owned(),
            maximum_request_bytes: 1 << 20,
        };
        Self {
            gateway: Mutex::new(Arc::new(gateway())),
            manner: Mutex::default(),
            owner: Mutex::new(OwnerKey::generate().public()),
            models: Mutex::new(vec!["digits", "busy", "large", "withdrawn"]),
            attester: Attester::open(TeeKind::Simulated, configuration.digest()).unwrap(),
            configuration,
            asked: Mutex::default(),
            received: Mutex::default(),
            opened: Mutex::default(),
        }
    }

    pub(crate) fn statement(&self) -> ServiceStatement {
        let owner = *self.owner.lock().unwrap();
        let models = self.models.lock().unwrap();
        ServiceStatement {
            protocol: PROTOCOL_VERSION,
            tee: TeeKind::Simulated,
            channel_keys: self.gateway.lock().unwrap().key_configurations(),
            owners: vec![owner],
            models: models
                .iter()
                .map(|id| ServedModel {
                    id: id.parse().unwrap(),
                    version: 3,
                    header_digest: [0xd1; 32].into(),
                    owner,
                    guard: "none".to_owned(),
                })
                .collect(),
            configuration: self.configuration.clone(),
        }
    }

    pub(crate) fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// Serves one more model, as an operator can without anybody's consent.
    pub(crate) fn serve_also(&self, id: &'static str) {
        self.models.lock().unwrap().push(id);
    }

    /// The policy that accepts exactly this server and lists the models of now.
    pub(crate) fn policy(&self) -> Policy {
        let nonce = Nonce::generate();
        let response =
            AttestationResponse::collect(&self.attester, &nonce, &self.statement()).unwrap();
        let at = occlude_attest::UnixTime::now();
        Policy::pin(
            &response
                .verify(&occlude_attest::Verifier::default(), &nonce, at)
                .unwrap(),
        )
    }

    /// Starts it on a port of its own; it ends with the test.
    pub(crate) async fn start(self) -> (Arc<Self>, Url) {
        let fake = Arc::new(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/.well-known/occlude/attestation", get(attestation))
            .route("/.well-known/occlude/channel", post(channel))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::clone(&fake));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (fake, format!("http://{address}/").parse().unwrap())
    }
}

async fn attestation(State(fake): State<Arc<Fake>>, RawQuery(query): RawQuery) -> Response {
    *fake.asked.lock().unwrap() += 1;
    let query = query.unwrap();
    let (nonce, request) = match query.split_once("&request=") {
        Some((nonce, request)) => (nonce, Some(URL_SAFE_NO_PAD.decode(request).unwrap())),
        None => (&query[..], None),
    };
    let nonce: Nonce = nonce.strip_prefix("nonce=").unwrap().parse().unwrap();
    let statement = fake.statement().encode();
    let binding = Binding::for_statement(&nonce, &statement);
    let evidence = fake.attester.collect(&binding).unwrap();
    let manner = fake.manner.lock().unwrap().clone();
    match manner {
        Manner::OnIbmZ(ultravisor) => {
            let Some(request) = request else {
                return (StatusCode::BAD_REQUEST, "{\"error\":\"no request\"}").into_response();
            };
            let request = String::from_utf8(request).unwrap();
            let body = ultravisor.answer(&request, binding.as_bytes());
            let evidence = Evidence::new(TeeKind::Se, body);
            AttestationResponse::new(statement, evidence)
                .encode()
                .into_response()
        }
        Manner::Replaying(recorded) => recorded.into_response(),
        Manner::Swapping(other) => AttestationResponse::new(other.encode(), evidence)
            .encode()
            .into_response(),
        Manner::Refusing(status, body) => (status, body).into_response(),
        Manner::Redirecting(to) => (StatusCode::FOUND, [("location", to)]).into_response(),
        _ => AttestationResponse::new(statement, evidence)
            .encode()
            .into_response(),
    }
}

async fn channel(State(fake): State<Arc<Fake>>, body: Bytes) -> Response {
    fake.received.lock().unwrap().push(body.clone());
    let manner = fake.manner.lock().unwrap().clone();
    match &manner {
        Manner::InTheClear => {
            return axum::Json(serde_json::json!({"model_name": "digits", "outputs": []}))
                .into_response();
        }
        Manner::Refusing(status, body) => return (*status, *body).into_response(),
        Manner::Redirecting(to) => {
            return (StatusCode::TEMPORARY_REDIRECT, [("location", to.clone())]).into_response();
        }
        _ => {}
    }
    let gateway = Arc::clone(&fake.gateway.lock().unwrap());
    let opened = gateway.open(&body);
    let forgets = matches!(manner, Manner::Forgetful);
    let (request, responder) = match opened {
        Ok(opened) if !forgets => opened,
        Ok(_) | Err(OpenError::UnknownKey { .. } | OpenError::Inauthentic) => {
            let problem = serde_json::json!({"type": KEY_PROBLEM_TYPE});
            return (StatusCode::BAD_REQUEST, axum::Json(problem)).into_response();
        }
        Err(error) => return (StatusCode::CONFLICT, error.to_string()).into_response(),
    };
    let answer = match &manner {
        Manner::Wanting(bits) => {
            let wanted = format!("{bits} {}", "03".repeat(32));
            if worked(&request) < *bits {
                wanting(&wanted)
            } else {
                let mut answer = inner(&request);
                let field = wanted.parse().unwrap();
                answer.headers_mut().insert("occlude-work", field);
                answer
            }
        }
        Manner::Insatiable(wanted) => wanting(wanted),
        _ => inner(&request),
    };
    fake.opened.lock().unwrap().push(request);
    let mut sealed = responder.seal(answer).unwrap();
    if matches!(manner, Manner::Altering) {
        *sealed.last_mut().unwrap() ^= 1;
    }
    ([("content-type", RESPONSE_MEDIA_TYPE)], sealed).into_response()
}

fn wanting(wanted: &str) -> http::Response<Bytes> {
    http::Response::builder()
        .status(428)
        .header("occlude-work", wanted)
        .body(Bytes::from_static(b"{\"error\": \"work\"}"))
        .unwrap()
}

/// The leading zeros of what a client found, by another implementation of the hash.
fn worked(request: &Request<Bytes>) -> u32 {
    let field = |name: &str| {
        let value = request.headers().get(name)?.to_str().ok()?;
        value.parse::<u64>().ok()
    };
    let Some(number) = field("occlude-work") else {
        return 0;
    };
    let length = field("inference-header-content-length").unwrap_or(u64::MAX);
    let sha256 = |parts: &[&[u8]]| {
        let hash = ring::digest::digest(&ring::digest::SHA256, &parts.concat());
        <[u8; 32]>::try_from(hash.as_ref()).unwrap()
    };
    let length = length.to_le_bytes();
    let seed = sha256(&[b"occlude/v1/work\0", &[3; 32], &length, request.body()]);
    let hash = sha256(&[&seed, &number.to_le_bytes()]);
    u128::from_be_bytes(hash[..16].try_into().unwrap()).leading_zeros()
}

/// Tells what was asked for; a few paths have answers of their own.
fn inner(request: &Request<Bytes>) -> http::Response<Bytes> {
    let (status, body) = match request.uri().path() {
        "/v2/models/withdrawn" => (404, r#"{"error": "it is withdrawn"}"#.to_owned()),
        "/v2/models/busy" => (503, r#"{"error": "every session is busy: try again"}"#.to_owned()),
        "/v2/models/large" => (200, "x".repeat(2 << 20)),
        "/v2" => (
            200,
            r#"{"name": "fake", "version": "1", "extensions": []}"#.to_owned(),
        ),
        path if path.ends_with("/infer") => (
            200,
            r#"{"model_name": "digits", "outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": [0.5, 2]}]}"#.to_owned(),
        ),
        path => (200, format!("{} {path}", request.method())),
    };
    http::Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("server", "fake")
        .body(Bytes::from(body))
        .unwrap()
}
