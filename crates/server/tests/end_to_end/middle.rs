//! Who stands between client and server: a recorder, a load balancer that ends
//! TLS, and a man in the middle; and one between a server and its broker.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum_server::tls_rustls::RustlsConfig;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, StatusCode};
use occlude_attest::{AttestationResponse, ServiceStatement};
use occlude_broker::kbs::jwe::RecipientKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::world::http;

/// Forwards bytes and keeps all of them.
pub(crate) struct Recorder {
    pub(crate) url: Url,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(target).await.unwrap();
                let (from_near, to_near) = near.into_split();
                let (from_far, to_far) = far.into_split();
                tokio::spawn(copy(from_near, to_far, Arc::clone(&kept)));
                tokio::spawn(copy(from_far, to_near, Arc::clone(&kept)));
            }
        });
        Self {
            url: url.parse().unwrap(),
            seen,
        }
    }

    /// Everything that passed, in both directions.
    pub(crate) fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap().clone()
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    kept: Arc<Mutex<Vec<u8>>>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        kept.lock().unwrap().extend_from_slice(&buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// What a man in the middle does to what it forwards.
#[derive(Clone)]
pub(crate) enum Tamper {
    /// Only what load balancers do: own headers in, own headers out.
    Nothing,
    /// Answers each question for evidence with the first answer.
    ReplayEvidence,
    /// Puts its own channel keys into the statement, the evidence untouched.
    SwapKeys(Vec<u8>),
    /// Puts another genuine server's statement beside the evidence.
    SwapStatement(Box<ServiceStatement>),
    /// Answers inference itself, in the clear.
    AnswerInTheClear,
}

#[derive(Clone)]
struct Middle {
    target: Url,
    tamper: Tamper,
    first_evidence: Arc<Mutex<Option<Bytes>>>,
    encapsulated: Arc<Mutex<Vec<Bytes>>>,
}

/// Bodies that a middle saw going to the channel.
pub(crate) type Encapsulated = Arc<Mutex<Vec<Bytes>>>;

/// A man in the middle over plain HTTP.
pub(crate) async fn plain(target: &Url, tamper: Tamper) -> (Url, Encapsulated) {
    let (router, encapsulated) = router(target, tamper);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}/").parse().unwrap(), encapsulated)
}

/// The authority that signed the load balancer's certificate.
pub(crate) const AUTHORITY: &[u8] = include_bytes!("certificates/ca.pem");

/// A load balancer that ends TLS and talks plain HTTP to the server.
pub(crate) async fn tls(target: &Url) -> Url {
    let (router, _) = router(target, Tamper::Nothing);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = RustlsConfig::from_pem(
        include_bytes!("certificates/leaf.pem").to_vec(),
        include_bytes!("certificates/leaf.key").to_vec(),
    )
    .await
    .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = axum_server::from_tcp_rustls(listener, tls).unwrap();
    tokio::spawn(server.serve(router.into_make_service()));
    format!("https://localhost:{}/", address.port())
        .parse()
        .unwrap()
}

/// How late [`LyingBroker::slow`] makes an allowance.
pub(crate) const LATE: Duration = Duration::from_millis(300);

/// Between a server and its broker: forwards faithfully until it starts to lie, and
/// then grants every request with a key of its own, sealed as the protocol wants.
#[derive(Clone)]
pub(crate) struct LyingBroker {
    broker: Url,
    pub(crate) lies: Arc<AtomicBool>,
    /// Answers each request for an allowance with the first answer that it saw.
    pub(crate) replays: Arc<AtomicBool>,
    first_allowance: Arc<Mutex<Option<Bytes>>>,
    /// Gives allowances late.
    pub(crate) slow: Arc<AtomicBool>,
    /// Knows nothing of allowances, as any other key broker.
    pub(crate) plain: Arc<AtomicBool>,
    /// The key that the last attestation covered: public, and so enough to lie with.
    recipient: Arc<Mutex<Option<RecipientKey>>>,
}

impl LyingBroker {
    pub(crate) async fn start(broker: SocketAddr) -> (Self, SocketAddr) {
        let lying = Self {
            broker: format!("http://{broker}/").parse().unwrap(),
            lies: Arc::default(),
            replays: Arc::default(),
            first_allowance: Arc::default(),
            slow: Arc::default(),
            plain: Arc::default(),
            recipient: Arc::default(),
        };
        let router = Router::new()
            .fallback(answer_as_broker)
            .with_state(lying.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (lying, address)
    }
}

async fn answer_as_broker(State(lying): State<LyingBroker>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path().to_owned();
    if path.ends_with("/attest") {
        let attestation: kbs_types::Attestation = serde_json::from_slice(&body).unwrap();
        let key = RecipientKey::try_from(&attestation.runtime_data.tee_pubkey).unwrap();
        *lying.recipient.lock().unwrap() = Some(key);
    }
    if path.contains("/resource/") && lying.lies.load(Ordering::SeqCst) {
        let recipient = lying.recipient.lock().unwrap().take().unwrap();
        return axum::Json(recipient.seal(&[7; 32])).into_response();
    }
    let allowance = path.contains("/allowance/");
    if allowance && lying.plain.load(Ordering::SeqCst) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if allowance && lying.replays.load(Ordering::SeqCst) {
        let first = lying.first_allowance.lock().unwrap().clone().unwrap();
        return ([(CONTENT_TYPE, "application/json")], first).into_response();
    }
    for name in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    let asked = http()
        .request(parts.method, lying.broker.join(&path).unwrap())
        .headers(parts.headers)
        .body(body);
    let Ok(answer) = asked.send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove(TRANSFER_ENCODING);
    let body = answer.bytes().await.unwrap();
    if allowance {
        let mut first = lying.first_allowance.lock().unwrap();
        first.get_or_insert(body.clone());
    }
    if allowance && lying.slow.load(Ordering::SeqCst) {
        tokio::time::sleep(LATE).await;
    }
    (status, headers, body).into_response()
}

fn router(target: &Url, tamper: Tamper) -> (Router, Encapsulated) {
    let encapsulated = Encapsulated::default();
    let middle = Middle {
        target: target.clone(),
        tamper,
        first_evidence: Arc::default(),
        encapsulated: Arc::clone(&encapsulated),
    };
    let router = Router::new().fallback(forward).with_state(middle);
    (router, encapsulated)
}

async fn forward(State(middle): State<Middle>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    if path.ends_with("/channel") {
        middle.encapsulated.lock().unwrap().push(body.clone());
        if matches!(middle.tamper, Tamper::AnswerInTheClear) {
            let forged = serde_json::json!({"model_name": "digits", "outputs": []});
            return axum::Json(forged).into_response();
        }
    }
    for name in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("via", "1.1 balancer"),
    ] {
        parts.headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    let answer = http()
        .request(parts.method, middle.target.join(&path).unwrap())
        .headers(parts.headers)
        .body(body)
        .send()
        .await
        .unwrap();
    let status = answer.status();
    let mut headers = answer.headers().clone();
    let mut body = answer.bytes().await.unwrap();
    if path.contains("/attestation") {
        body = middle.evidence(body);
    }
    for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers.insert("via", HeaderValue::from_static("1.1 balancer"));
    (status, headers, body).into_response()
}

impl Middle {
    fn evidence(&self, genuine: Bytes) -> Bytes {
        let response = || AttestationResponse::decode(&genuine).unwrap();
        let with = |statement: ServiceStatement| {
            AttestationResponse::new(statement.encode(), response().evidence().clone())
                .encode()
                .into()
        };
        match &self.tamper {
            Tamper::Nothing | Tamper::AnswerInTheClear => genuine,
            Tamper::ReplayEvidence => {
                let mut first = self.first_evidence.lock().unwrap();
                first.get_or_insert(genuine).clone()
            }
            Tamper::SwapKeys(keys) => {
                let mut statement = ServiceStatement::decode(response().statement()).unwrap();
                statement.channel_keys.clone_from(keys);
                with(statement)
            }
            Tamper::SwapStatement(statement) => with(statement.as_ref().clone()),
        }
    }
}
