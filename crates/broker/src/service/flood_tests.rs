//! Strangers who show nothing: they cannot fill the disk, push out honest
//! challenges, or write to the owner's terminal.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use occlude_attest::LastingVerifier;
use occlude_keys::{OwnerFingerprint, OwnerKey};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::Broker;
use super::refusals::WRITTEN_PER_MINUTE;
use crate::store::Store;
use crate::transport::{CallError, Transport};

/// A broker in this process.
pub(super) struct Flooded {
    router: Router,
    pub(super) broker: Arc<Broker>,
    #[cfg_attr(
        not(feature = "simulated"),
        expect(
            dead_code,
            reason = "kept; only sessions of simulated evidence look into it"
        )
    )]
    pub(super) folder: tempfile::TempDir,
}

impl Flooded {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("broker.db");
        let store = Store::open(database.to_str().unwrap(), None).await.unwrap();
        let broker = Arc::new(Broker::new(store, LastingVerifier::default()));
        Self {
            router: Broker::routes(&broker),
            broker,
            folder,
        }
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        cookie: &str,
        body: &Value,
    ) -> (StatusCode, Value, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("cookie", format!("kbs-session-id={cookie}"))
            .body(Body::from(body.to_string()))
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let cookie = response
            .headers()
            .get("set-cookie")
            .and_then(|value| value.to_str().ok()?.split([';', '=']).nth(1))
            .unwrap_or_default()
            .to_owned();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        (status, body, cookie)
    }

    pub(super) async fn entries(&self) -> Vec<Value> {
        let viewer = OwnerFingerprint::from([0; 32]);
        let page = self.broker.store.audit_page(1, &viewer).await.unwrap();
        page.entries
            .iter()
            .filter_map(|record| record.entry.as_deref())
            .map(|entry| serde_json::from_str(entry).unwrap())
            .collect()
    }
}

fn auth(version: &str) -> Value {
    json!({"version": version, "tee": "trustzone", "extra-params": ""})
}

/// Orders with a bad signature, and well signed ones for no challenge.
fn orders() -> [Value; 2] {
    let key = OwnerKey::generate();
    let owner = key.public().fingerprint();
    let order = crate::AdminRequest {
        challenge: "none".to_owned(),
        owner,
        action: crate::Action::Audit { from: 1 },
    };
    let signed = serde_json::to_value(crate::SignedRequest::sign(&order, &key)).unwrap();
    let mut forged = signed.clone();
    forged["signature"] = json!("00".repeat(64));
    [signed, forged]
}

#[tokio::test]
async fn refusals_without_evidence_are_written_only_so_often_and_then_counted() {
    let flooded = Flooded::start().await;
    let [unknown_challenge, bad_signature] = orders();
    let strangers = [
        ("GET", "/kbs/v0/resource/a/b/c", Value::Null),
        ("POST", "/occlude/v0/attest", Value::Null),
        ("POST", "/occlude/v0/auth", auth("0.1.1")),
        ("POST", "/occlude/v0/admin", unknown_challenge),
        ("POST", "/occlude/v0/admin", bad_signature),
    ];
    for _ in 0..50 {
        for (method, path, body) in &strangers {
            let (status, answer, _) = flooded.send(method, path, "unknown", body).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}: {answer}");
        }
    }
    let most = WRITTEN_PER_MINUTE as usize;
    let viewer = OwnerFingerprint::from([0; 32]);
    let page = flooded.broker.store.audit_page(1, &viewer).await.unwrap();
    assert_eq!(page.entries.len(), most);
    flooded.broker.write_folded().await.unwrap();
    flooded.broker.write_folded().await.unwrap();
    let last = flooded.entries().await.pop().unwrap();
    assert_eq!(last["sequence"], most + 1);
    assert_eq!(last["event"], "refusals-without-evidence");
    assert_eq!(last["count"], 250 - most);
}

#[tokio::test]
async fn evidence_that_is_not_believed_has_its_own_share_of_the_log() {
    let flooded = Flooded::start().await;
    for _ in 0..50 {
        flooded
            .send("GET", "/kbs/v0/resource/a/b/c", "", &Value::Null)
            .await;
    }
    for _ in 0..50 {
        let (_, _, cookie) = flooded
            .send("POST", "/occlude/v0/auth", "", &auth("0.4.0"))
            .await;
        let (status, ..) = flooded
            .send("POST", "/occlude/v0/attest", &cookie, &Value::Null)
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    let entries = flooded.entries().await;
    let refused = entries
        .iter()
        .filter(|entry| entry["event"] == "evidence-refused");
    assert_eq!(refused.count(), WRITTEN_PER_MINUTE as usize);
}

#[tokio::test]
async fn four_thousand_anonymous_requests_push_out_no_challenge() {
    let flooded = Flooded::start().await;
    let (_, _, cookie) = flooded
        .send("POST", "/occlude/v0/auth", "", &auth("0.4.0"))
        .await;
    let (_, order, _) = flooded
        .send("POST", "/occlude/v0/admin/challenge", "", &Value::Null)
        .await;
    for _ in 0..4096 {
        for (path, body) in [
            ("/occlude/v0/auth", auth("0.4.0")),
            ("/occlude/v0/admin/challenge", Value::Null),
        ] {
            let (status, ..) = flooded.send("POST", path, "", &body).await;
            assert_eq!(status, StatusCode::OK);
        }
    }
    let (_, answer, _) = flooded
        .send("POST", "/occlude/v0/attest", &cookie, &Value::Null)
        .await;
    let reason = answer["detail"].as_str().unwrap();
    assert!(reason.starts_with("the message is malformed"), "{reason}");
    let challenge = order["challenge"].as_str().unwrap();
    let taken = super::lock(&flooded.broker.orders).take(challenge, Instant::now());
    assert_eq!(taken, Some(()));
}

#[tokio::test]
async fn a_broker_full_of_open_challenges_says_so() {
    let flooded = Flooded::start().await;
    for _ in 0..crate::sessions::MOST_CHALLENGES {
        let now = Instant::now();
        super::lock(&flooded.broker.orders).insert((), now).unwrap();
    }
    let (status, answer, _) = flooded
        .send("POST", "/occlude/v0/admin/challenge", "", &Value::Null)
        .await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        answer["detail"],
        "too many challenges are open: try again in a minute"
    );
}

#[tokio::test]
async fn a_strangers_control_characters_do_not_reach_the_log() {
    let flooded = Flooded::start().await;
    let path = "/kbs/v0/resource/%1b%5d0;owned%07/model-key/%0d%c2%9b31m";
    flooded.send("GET", path, "", &Value::Null).await;
    let entry = flooded.entries().await.pop().unwrap();
    assert_eq!(
        entry["resource"],
        "\u{fffd}]0;owned\u{fffd}/model-key/\u{fffd}\u{fffd}31m"
    );
}

#[tokio::test]
async fn what_was_counted_is_written_when_the_broker_ends() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("broker.db").to_str().unwrap().to_owned();
    let options = crate::BrokerOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        database: database.clone(),
        master_key: None,
        tls: None,
        metrics: None,
        collateral: None,
    };
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (ready, address) = tokio::sync::oneshot::channel();
    let ended = tokio::spawn(async move {
        let ready = |listening: crate::Listening| ready.send(listening.address).unwrap();
        crate::serve(options, ready, async { stopped.await.unwrap() }).await
    });
    let url = format!("http://{}", address.await.unwrap());
    let http = Transport::new(&url, &crate::ConnectOptions::default()).unwrap();
    for _ in 0..WRITTEN_PER_MINUTE + 3 {
        let refused = http.get("/kbs/v0/resource/a/b/c", None, 4096).await;
        assert!(matches!(refused, Err(CallError::Refused { .. })));
    }
    stop.send(()).unwrap();
    ended.await.unwrap().unwrap();
    let store = Store::open(&database, None).await.unwrap();
    let viewer = OwnerFingerprint::from([0; 32]);
    let mut entries = store.audit_page(1, &viewer).await.unwrap().entries;
    let last: Value = serde_json::from_str(&entries.pop().unwrap().entry.unwrap()).unwrap();
    assert_eq!(last["event"], "refusals-without-evidence");
    assert_eq!(last["count"], 3);
}
