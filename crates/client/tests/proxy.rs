//! The proxy as an unmodified program meets it: plain HTTP on loopback.

mod fake;

use std::net::SocketAddr;
use std::sync::Arc;

use fake::{Fake, Manner};
use occlude_attest::Policy;
use occlude_client::Token;
use occlude_client::proxy::{Proxy, ProxyError, ProxyOptions, serve};
use url::Url;

const LOOPBACK: &str = "127.0.0.1:0";

/// Starts a proxy for this server; it ends with the test.
fn start(options: ProxyOptions) -> SocketAddr {
    let proxy = Proxy::bind(options).unwrap();
    let address = proxy.local_address();
    tokio::spawn(proxy.run(std::future::pending()));
    address
}

fn options(url: &Url, policy: Policy) -> ProxyOptions {
    ProxyOptions::new(LOOPBACK.parse().unwrap(), url.clone(), policy)
}

async fn verified() -> (Arc<Fake>, SocketAddr) {
    let (fake, url) = Fake::new().start().await;
    let address = start(options(&url, fake.policy()));
    (fake, address)
}

fn http() -> reqwest::Client {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn error(text: &str) -> String {
    serde_json::from_str::<serde_json::Value>(text).unwrap()["error"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn method_path_query_body_and_the_protocols_fields_go_through_and_nothing_else() {
    let (fake, address) = verified().await;
    let answer = http()
        .post(format!("http://{address}/v2/models/digits?a=b"))
        .header("content-type", "application/octet-stream")
        .header("inference-header-content-length", "7")
        .header("cookie", "secret=1")
        .header("authorization", "Bearer secret")
        .body("1234567890")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert!(!answer.headers().contains_key("server"));
    assert_eq!(answer.text().await.unwrap(), "POST /v2/models/digits");

    let opened = fake.opened.lock().unwrap().remove(0);
    assert_eq!(
        opened.uri().path_and_query().unwrap(),
        "/v2/models/digits?a=b"
    );
    assert_eq!(opened.body(), "1234567890");
    let mut names: Vec<_> = opened
        .headers()
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    names.retain(|name| *name != "accept");
    assert_eq!(names, ["content-type", "inference-header-content-length"]);
}

#[tokio::test]
async fn the_servers_own_errors_come_back_as_they_are() {
    let (_fake, address) = verified().await;
    let answer = http()
        .get(format!("http://{address}/v2/models/withdrawn"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(error(&answer.text().await.unwrap()), "it is withdrawn");
}

#[tokio::test]
async fn a_model_that_the_policy_does_not_list_is_not_asked_for() {
    let (fake, url) = Fake::new().start().await;
    let address = start(options(&url, fake.policy()));
    fake.serve_also("unlisted");
    for (path, id) in [
        ("unlisted/infer", "unlisted"),
        ("%75nlisted/infer", "unlisted"),
        ("absent/infer", "absent"),
    ] {
        let answer = http()
            .post(format!("http://{address}/v2/models/{path}"))
            .body("input")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 403, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(
            error(&answer.text().await.unwrap()),
            format!("nothing was sent to {url}: model {id} is not in the policy")
        );
    }
    assert!(fake.received.lock().unwrap().is_empty());

    // The server is not refused, so the models that are listed go on answering.
    let answer = http()
        .post(format!("http://{address}/v2/models/digits/infer"))
        .body("input")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(*fake.asked.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_model_that_does_not_exist_is_not_found_without_asking_the_server() {
    let (fake, url) = Fake::new().start().await;
    let policy = fake.policy();
    fake.models.lock().unwrap().retain(|id| *id != "digits");
    let address = start(options(&url, policy));
    for (path, reason) in [
        ("digits", "the service does not serve model digits"),
        (
            "digits%2Finfer",
            "\"digits/infer\" is not a model id: expected ",
        ),
    ] {
        let answer = http()
            .get(format!("http://{address}/v2/models/{path}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        let found = error(&answer.text().await.unwrap());
        let expected = format!("nothing was sent to {url}: {reason}");
        assert!(found.starts_with(&expected), "{found}");
    }
    assert!(fake.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn while_the_server_is_refused_nothing_is_forwarded_and_the_reason_is_told() {
    let (fake, url) = Fake::new().start().await;
    let address = start(options(&url, Policy::default()));
    for _ in 0..2 {
        let answer = http()
            .post(format!("http://{address}/v2/models/digits/infer"))
            .body("input")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 503);
        let reason = error(&answer.text().await.unwrap());
        assert!(
            reason.starts_with(&format!(
                "the policy refuses {url}: the evidence is of simulated"
            )),
            "{reason}"
        );
    }
    assert!(fake.received.lock().unwrap().is_empty());
    assert_eq!(*fake.asked.lock().unwrap(), 1, "it is not asked in a loop");
}

#[tokio::test]
async fn an_answer_in_the_clear_is_not_passed_on() {
    let (fake, address) = verified().await;
    fake.behave(Manner::InTheClear);
    let answer = http()
        .get(format!("http://{address}/v2/x"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 503);
    let reason = error(&answer.text().await.unwrap());
    assert!(
        reason.ends_with("answered 200 OK outside the channel; the answer is not believed"),
        "{reason}"
    );
}

#[tokio::test]
async fn paths_outside_the_protocol_are_not_forwarded() {
    let (fake, address) = verified().await;
    for path in [
        "/",
        "/metrics",
        "/v1/models",
        "/.well-known/occlude/attestation",
    ] {
        let answer = http()
            .get(format!("http://{address}{path}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 404, "{path}");
    }
    assert!(fake.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn with_a_token_every_request_must_carry_it() {
    let (fake, url) = Fake::new().start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    let address = start(ProxyOptions {
        token: Some(Token::read(&file).unwrap()),
        ..options(&url, fake.policy())
    });
    let ask = |token: &'static str| {
        http()
            .get(format!("http://{address}/v2/x"))
            .header("authorization", token)
            .send()
    };
    assert_eq!(ask("Bearer 0123456789abcdef").await.unwrap().status(), 200);
    let refused = ask("Bearer 0123456789abcdeX").await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    assert_eq!(fake.opened.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_web_page_under_another_name_is_refused() {
    let (fake, address) = verified().await;
    let answer = http()
        .get(format!("http://{address}/v2/x"))
        .header("host", "rebound.example")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 403);
    assert!(fake.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let (fake, url) = Fake::new().start().await;
    let address = start(ProxyOptions {
        maximum_request: 1000,
        ..options(&url, fake.policy())
    });
    let answer = http()
        .post(format!("http://{address}/v2/x"))
        .body(vec![0; 1001])
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(
        error(&answer.text().await.unwrap()),
        "the body is longer than 1000 bytes"
    );
    assert!(fake.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn other_machines_are_let_in_only_with_a_token() {
    let url: Url = "http://127.0.0.1:1/".parse().unwrap();
    let listen: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let error = Proxy::bind(ProxyOptions::new(listen, url, Policy::default())).unwrap_err();
    assert!(
        matches!(error, ProxyError::NotLoopback { address } if address == listen),
        "{error}"
    );
}

#[tokio::test]
async fn a_port_in_use_is_told() {
    let taken = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let address = taken.local_addr().unwrap();
    let url: Url = "http://127.0.0.1:1/".parse().unwrap();
    let options = ProxyOptions::new(address, url, Policy::default());
    let error = serve(options, std::future::pending()).await.unwrap_err();
    assert!(
        matches!(&error, ProxyError::Listen { address: at, source }
            if *at == address && source.kind() == std::io::ErrorKind::AddrInUse),
        "{error}"
    );
}
