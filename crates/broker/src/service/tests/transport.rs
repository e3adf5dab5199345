//! Brokers that are down, slow or lying, and what clients make of them; TLS,
//! limits, and a port in use.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use kbs_types::TeePubKey;
use occlude_keys::{OwnerFingerprint, OwnerKey};
use serde_json::{Value, json};

use super::rig::{self, Rig};
use crate::admin::{AdminClient, AdminError};
use crate::client::{BrokerClient, FetchError, Step};
use crate::kbs::jwe::{Curve, JweError, RecipientKey, TeeKey};
use crate::kbs::report_data::HashAlgorithmError;
use crate::serve::{BrokerOptions, Listening, ServeError, TlsFiles, serve};
use crate::transport::{ConnectError, ConnectOptions};

const CHALLENGE: &str =
    r#"{"nonce": "bm9uY2U=", "extra-params": {"selected-hash-algorithm": "sha256"}}"#;

/// What a lying broker answers.
#[derive(Clone)]
enum Answer {
    Body(String),
    Status(StatusCode, String),
    Slow,
    /// A key of that many bytes, sealed to the client's own key.
    Key(usize),
}

impl Answer {
    async fn respond(self, public: Option<TeePubKey>) -> Response<Body> {
        let response = Response::builder().header("set-cookie", "kbs-session-id=1");
        match self {
            Self::Body(body) => response.body(Body::from(body)),
            Self::Status(status, body) => response
                .status(status)
                .header("location", "/")
                .body(Body::from(body)),
            Self::Slow => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                response.body(Body::empty())
            }
            Self::Key(length) => {
                let recipient = RecipientKey::try_from(&public.unwrap()).unwrap();
                let sealed = recipient.seal(&vec![7; length]);
                response.body(Body::from(serde_json::to_string(&sealed).unwrap()))
            }
        }
        .unwrap()
    }
}

fn body(text: &str) -> Answer {
    Answer::Body(text.to_owned())
}

/// A broker that answers one step so, and the others well.
async fn lying_at(step: Step, lie: Answer) -> String {
    let answer = |this: Step, honest: Answer| if this == step { lie.clone() } else { honest };
    let challenge = answer(Step::Challenge, body(CHALLENGE));
    let attestation = answer(Step::Attestation, body(r#"{"token": "t"}"#));
    let resource = answer(Step::Resource, Answer::Key(32));
    let key = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&key);
    let router = Router::new()
        .route(
            "/occlude/v0/auth",
            post(async move || challenge.respond(None).await),
        )
        .route(
            "/occlude/v0/attest",
            post(async move |body: String| {
                let attestation_sent: Value = serde_json::from_str(&body).unwrap();
                let public = attestation_sent["runtime-data"]["tee-pubkey"].clone();
                *kept.lock().unwrap() = serde_json::from_value(public).unwrap();
                attestation.respond(None).await
            }),
        )
        .route(
            "/kbs/v0/resource/{*path}",
            get(async move || {
                let public = key.lock().unwrap().take();
                resource.respond(public).await
            }),
        );
    rig::listen(router).await
}

async fn fetch(url: &str) -> FetchError {
    let options = ConnectOptions {
        call_timeout: Duration::from_millis(800),
        ..ConnectOptions::default()
    };
    BrokerClient::new(url, &options)
        .unwrap()
        .fetch_model_key(
            &Arc::new(rig::attester()),
            &OwnerFingerprint::from([1; 32]),
            &rig::digest(7),
        )
        .await
        .unwrap_err()
}

const STEPS: [Step; 3] = [Step::Challenge, Step::Attestation, Step::Resource];

#[tokio::test]
async fn a_key_of_another_length_is_refused() {
    for length in [0, 31, 33, 4096] {
        let error = fetch(&lying_at(Step::Resource, Answer::Key(length)).await).await;
        assert!(
            matches!(error, FetchError::KeyLength { found } if found == length),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_key_sealed_to_another_is_refused() {
    let other = TeeKey::generate(Curve::P256).public();
    let sealed = RecipientKey::try_from(&other).unwrap().seal(&[7; 32]);
    let lie = Answer::Body(serde_json::to_string(&sealed).unwrap());
    let error = fetch(&lying_at(Step::Resource, lie).await).await;
    assert!(
        matches!(error, FetchError::Envelope(JweError::Inauthentic)),
        "{error}"
    );
}

#[tokio::test]
async fn a_garbage_envelope_is_refused() {
    let empty = r#"{"protected":"","encrypted_key":"","iv":"","ciphertext":"","tag":""}"#;
    let error = fetch(&lying_at(Step::Resource, body(empty)).await).await;
    assert!(
        matches!(
            error,
            FetchError::Envelope(JweError::Malformed { field: "protected" })
        ),
        "{error}"
    );
}

#[tokio::test]
async fn garbage_is_malformed_at_each_step() {
    for step in STEPS {
        for garbage in ["", "no JSON", "{}", "[]"] {
            let error = fetch(&lying_at(step, body(garbage)).await).await;
            assert!(
                matches!(error, FetchError::MalformedAnswer { step: found, .. } if found == step),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn a_challenge_without_a_nonce_or_for_an_unknown_hash_is_refused() {
    let empty = body(r#"{"nonce": "", "extra-params": ""}"#);
    let error = fetch(&lying_at(Step::Challenge, empty).await).await;
    assert!(
        matches!(
            &error,
            FetchError::MalformedAnswer { step: Step::Challenge, reason }
                if reason == "a nonce of 0 characters"
        ),
        "{error}"
    );
    let sm3 = body(r#"{"nonce": "n", "extra-params": {"selected-hash-algorithm": "sm3"}}"#);
    let error = fetch(&lying_at(Step::Challenge, sm3).await).await;
    assert!(
        matches!(
            &error,
            FetchError::HashAlgorithm(HashAlgorithmError { found, .. }) if found == "\"sm3\""
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_huge_answer_is_given_up_at_each_step() {
    for step in STEPS {
        let huge = Answer::Body("x".repeat(8 << 20));
        let error = fetch(&lying_at(step, huge).await).await;
        assert!(
            matches!(
                error,
                FetchError::AnswerTooLong { step: found, limit: 262_144 } if found == step
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_slow_broker_is_unavailable_after_the_deadline() {
    for step in STEPS {
        let url = lying_at(step, Answer::Slow).await;
        let started = Instant::now();
        let error = fetch(&url).await;
        assert!(matches!(error, FetchError::Unavailable { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_broker_that_is_down_is_unavailable() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let error = fetch(&url).await;
    assert!(
        matches!(&error, FetchError::Unavailable { reason } if reason.contains("refused")),
        "{error}"
    );
}

#[tokio::test]
async fn refusals_troubles_and_redirects_are_told_apart() {
    for step in STEPS {
        let words = r#"{"type": "t", "detail": "no\u001b[31m"}"#.to_owned();
        let lie = Answer::Status(StatusCode::FORBIDDEN, words.clone());
        let error = fetch(&lying_at(step, lie).await).await;
        assert!(
            matches!(&error, FetchError::Refused { reason } if reason == "no\u{fffd}[31m"),
            "{error}"
        );
        let lie = Answer::Status(StatusCode::INTERNAL_SERVER_ERROR, words);
        let error = fetch(&lying_at(step, lie).await).await;
        assert!(matches!(error, FetchError::Unavailable { .. }), "{error}");
        let lie = Answer::Status(StatusCode::TEMPORARY_REDIRECT, String::new());
        let error = fetch(&lying_at(step, lie).await).await;
        assert!(
            matches!(
                &error,
                FetchError::Unavailable { reason }
                    if reason == "HTTP status 307 Temporary Redirect without a reason"
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let rig = Rig::start().await;
    let huge = json!("x".repeat(600 * 1024));
    for path in ["/kbs/v0/auth", "/occlude/v0/attest", "/occlude/v0/admin"] {
        let (status, _) = rig.post(path, &huge).await;
        assert_eq!(status, 413, "{path}");
    }
}

#[tokio::test]
async fn an_unknown_path_and_method_are_refused_as_kbs_does() {
    let rig = Rig::start().await;
    let (status, answer) = rig.post("/kbs/v0/other", &Value::Null).await;
    assert_eq!(
        (status, rig::refusal(&answer)),
        (404, "the broker has no such path")
    );
    let (status, answer) = rig.post("/kbs/v0/resource/a/b/c", &Value::Null).await;
    assert_eq!(
        (status, rig::refusal(&answer)),
        (405, "the path has no such method")
    );
}

#[tokio::test]
async fn a_model_key_never_travels_in_the_clear() {
    let url = "http://192.0.2.1:8080/";
    let admin = AdminClient::new(url, &ConnectOptions::default()).unwrap();
    let error = admin
        .add_model(&OwnerKey::generate(), &rig::record(), &rig::model_key())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, AdminError::InTheClear { url: found } if found == url),
        "{error}"
    );
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("test-data")
        .join(name)
}

struct Served {
    address: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Result<(), ServeError>>,
    folder: tempfile::TempDir,
}

fn options(folder: &Path, listen: SocketAddr, tls: Option<TlsFiles>) -> BrokerOptions {
    BrokerOptions {
        listen,
        database: folder.join("broker.db").to_str().unwrap().to_owned(),
        master_key: None,
        tls,
        metrics: None,
        collateral: None,
    }
}

async fn served(tls: Option<TlsFiles>) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), "127.0.0.1:0".parse().unwrap(), tls);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (ready, address) = tokio::sync::oneshot::channel();
    let ended = tokio::spawn(async move {
        let ready = |listening: Listening| ready.send(listening.address).unwrap();
        serve(options, ready, async { stopped.await.unwrap() }).await
    });
    Served {
        address: address.await.unwrap(),
        stop,
        ended,
        folder,
    }
}

#[tokio::test]
async fn a_broker_serves_until_it_is_told_to_stop() {
    let served = served(None).await;
    let url = format!("http://{}", served.address);
    let owner = OwnerKey::generate();
    let admin = AdminClient::new(&url, &ConnectOptions::default()).unwrap();
    admin
        .add_model(&owner, &rig::record(), &rig::model_key())
        .await
        .unwrap();
    served.stop.send(()).unwrap();
    served.ended.await.unwrap().unwrap();
    assert!(matches!(
        admin.audit(&owner).await,
        Err(AdminError::Unavailable { .. })
    ));
    assert!(served.folder.path().join("broker.db.master-key").exists());
}

#[tokio::test]
async fn over_tls_only_the_named_authority_is_believed() {
    let served = served(Some(TlsFiles {
        certificate: file("broker.pem"),
        key: file("broker.key.pem"),
    }))
    .await;
    let url = format!("https://localhost:{}", served.address.port());
    let owner = OwnerKey::generate();
    let trusting = ConnectOptions {
        certificate_authorities: Some(std::fs::read(file("authority.pem")).unwrap()),
        ..ConnectOptions::default()
    };
    let admin = AdminClient::new(&url, &trusting).unwrap();
    admin
        .add_model(&owner, &rig::record(), &rig::model_key())
        .await
        .unwrap();
    let stranger = AdminClient::new(&url, &ConnectOptions::default()).unwrap();
    let error = stranger.audit(&owner).await.unwrap_err();
    assert!(
        matches!(&error, AdminError::Unavailable { reason } if reason.contains("certificate")),
        "{error}"
    );
    let plain = format!("http://{}", served.address);
    let plain = AdminClient::new(&plain, &ConnectOptions::default()).unwrap();
    assert!(matches!(
        plain.audit(&owner).await,
        Err(AdminError::Unavailable { .. })
    ));
}

#[tokio::test]
async fn unusable_certificates_are_refused_by_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let tls = TlsFiles {
        certificate: file("broker.key.pem"),
        key: file("broker.key.pem"),
    };
    let options = options(folder.path(), "127.0.0.1:0".parse().unwrap(), Some(tls));
    let error = serve(options, |_| {}, async {}).await.unwrap_err();
    assert!(
        matches!(&error, ServeError::Tls { path, .. } if *path == file("broker.key.pem")),
        "{error}"
    );
    let nothing = ConnectOptions {
        certificate_authorities: Some(b"nothing".to_vec()),
        ..ConnectOptions::default()
    };
    assert!(matches!(
        BrokerClient::new("https://localhost", &nothing),
        Err(ConnectError::CertificateAuthorities { .. })
    ));
}

#[tokio::test]
async fn a_port_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = serve(options(folder.path(), address, None), |_| {}, async {})
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            ServeError::Listen { address: found, source }
                if *found == address && source.kind() == std::io::ErrorKind::AddrInUse
        ),
        "{error}"
    );
}
