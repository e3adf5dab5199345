//! Against Trustee, which cannot be had from a registry: a transcript of the messages of one
//! key release is played both ways. Our client gets the service's side of it, our broker the
//! client's. The evidence in it is real, of a TPM in software.

#[path = "../../../../attest/tests/support/swtpm.rs"]
mod swtpm;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kbs_types::TeePubKey;
use occlude_attest::{Attester, Binding, Evidence, Machine, Platform, TeeKind, UnixTime, Verifier};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};
use swtpm::SoftwareTpm;

use super::rig::{MODEL_KEY, Rig, digest, listen};
use crate::kbs::jwe::{Curve, Jwe, RecipientKey, TeeKey};
use crate::{BrokerClient, ConnectOptions};

const TRANSCRIPT: &str = include_str!("transcripts/key-release.txt");

/// What stands for what differs each time, and its value.
type Names = BTreeMap<String, Value>;

/// One side's message.
#[derive(Debug, Clone)]
struct Message {
    /// Method and path, or status.
    first: String,
    headers: Vec<(String, String)>,
    body: Option<Value>,
}

impl Message {
    /// Lines of one side: the first, headers, and what has no mark, which is the body.
    fn read(lines: &[&str]) -> Self {
        let marked: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("> ").or(line.strip_prefix("< ")))
            .collect();
        let headers = marked[1..].iter().map(|header| {
            let (name, value) = header.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        });
        let body = lines.iter().find(|line| line.starts_with('{'));
        Self {
            first: marked[0].to_owned(),
            headers: headers.collect(),
            body: body.map(|body| serde_json::from_str(body).unwrap()),
        }
    }
}

/// Requests and their answers.
fn transcript() -> Vec<(Message, Message)> {
    let exchanges = TRANSCRIPT
        .split("\n\n")
        .filter(|part| part.starts_with('>'));
    let read = exchanges.map(|exchange| {
        let lines: Vec<&str> = exchange.lines().collect();
        let answer = lines.iter().position(|line| line.starts_with('<')).unwrap();
        (
            Message::read(&lines[..answer]),
            Message::read(&lines[answer..]),
        )
    });
    read.collect()
}

/// Compares what came with what the transcript has, and learns what stands for a name.
fn meets(expected: &Value, found: &Value, names: &mut Names) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let keys = |map: &serde_json::Map<String, Value>| {
                map.keys()
                    .cloned()
                    .collect::<std::collections::BTreeSet<_>>()
            };
            assert_eq!(keys(expected), keys(found));
            for (name, value) in expected {
                meets(value, &found[name], names);
            }
        }
        (Value::String(name), found) if name.starts_with('$') => {
            let known = names.entry(name.clone()).or_insert_with(|| found.clone());
            assert_eq!(known, found, "{name}");
        }
        (expected, found) => assert_eq!(expected, found),
    }
}

/// The same of text that ends with a name.
fn text_meets(expected: &str, found: &str, names: &mut Names) {
    match expected.split_once('$') {
        None => assert_eq!(expected, found),
        Some((before, name)) => {
            let value = found
                .strip_prefix(before)
                .unwrap_or_else(|| panic!("{found}"));
            // Attributes of a cookie are its owner's matter.
            let value = value.split(';').next().unwrap();
            meets(&json!(format!("${name}")), &json!(value), names);
        }
    }
}

/// Puts what is known for names.
fn filled(value: &Value, names: &Names) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), filled(value, names)))
            .collect(),
        Value::String(name) if name.starts_with('$') => names[name].clone(),
        other => other.clone(),
    }
}

fn filled_text(text: &str, names: &Names) -> String {
    let Some((before, name)) = text.split_once('$') else {
        return text.to_owned();
    };
    format!("{before}{}", names[&format!("${name}")].as_str().unwrap())
}

fn attester(tpm: &SoftwareTpm) -> Attester {
    let machine = Machine::at("/no-such-machine").with_tpm(tpm.socket());
    Attester::open_on(machine, TeeKind::Tpm, [0; 32]).unwrap()
}

/// What Trustee compares: SHA-384 of canonical JSON, written out here by hand.
fn binding(nonce: &str, key: &Value) -> Binding {
    let field = |name: &str| key[name].as_str().unwrap().to_owned();
    let text = format!(
        "{{\"additional-evidence\":\"\",\"nonce\":\"{nonce}\",\"tee-pubkey\":{{\"alg\":\"{}\",\
         \"crv\":\"{}\",\"kty\":\"EC\",\"x\":\"{}\",\"y\":\"{}\"}}}}",
        field("alg"),
        field("crv"),
        field("x"),
        field("y")
    );
    Binding::from_report_data_48(&Sha384::digest(text).into())
}

/// Trustee's side of the transcript, for our client.
struct Service {
    steps: Vec<(Message, Message)>,
    names: Names,
    step: usize,
}

async fn play(State(service): State<Arc<Mutex<Service>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let mut service = service.lock().unwrap();
    let Service { steps, names, step } = &mut *service;
    let (expected, answer) = steps[*step].clone();
    *step += 1;
    text_meets(
        &expected.first,
        &format!("{} {}", parts.method, parts.uri),
        names,
    );
    for (name, value) in &expected.headers {
        text_meets(value, parts.headers[name].to_str().unwrap(), names);
    }
    if let Some(expected) = &expected.body {
        let found: Value = serde_json::from_slice(&body).unwrap();
        meets(expected, &found, names);
        if let Some(evidence) = found.pointer("/tee-evidence/primary_evidence") {
            let runtime = &found["runtime-data"];
            let evidence = Evidence::new(TeeKind::Tpm, evidence.clone());
            let nonce = runtime["nonce"].as_str().unwrap();
            let binding = binding(nonce, &runtime["tee-pubkey"]);
            Verifier::default()
                .verify(&evidence, &binding, UnixTime::now())
                .unwrap();
            let key: TeePubKey = serde_json::from_value(runtime["tee-pubkey"].clone()).unwrap();
            let sealed = RecipientKey::try_from(&key).unwrap().seal(&MODEL_KEY);
            let sealed = serde_json::to_value(sealed).unwrap();
            meets(steps[*step].1.body.as_ref().unwrap(), &sealed, names);
        }
    }
    let headers: Vec<(String, String)> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), filled_text(value, names) + "; Path=/"))
        .collect();
    let body = filled(answer.body.as_ref().unwrap(), names).to_string();
    let mut response = body.into_response();
    for (name, value) in headers {
        let name = axum::http::HeaderName::try_from(name).unwrap();
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_gets_its_key_from_trustees_side_of_the_transcript() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let mut steps = transcript();
    // Asking again with the token is for clients that keep no cookies.
    steps.truncate(3);
    // A nonce and a token in Trustee's forms: 32 bytes in base64, and a JWT.
    let token = ["{\"alg\":\"ES256\"}", "{\"exp\":1}", "signature"];
    let token = token.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let names = Names::from([
        (
            "$SESSION".to_owned(),
            json!("0b1f4b6ca7e64e2ab5a0e1c9a8f2c4d1"),
        ),
        (
            "$NONCE".to_owned(),
            json!("q5oT0l3kZ5uPvVWmY0QmXh4J1bXvG8t9k2mJ7cQe1dA="),
        ),
        ("$TOKEN".to_owned(), json!(token)),
    ]);
    let service = Arc::new(Mutex::new(Service {
        steps,
        names,
        step: 0,
    }));
    let router = axum::Router::new()
        .fallback(play)
        .with_state(Arc::clone(&service));
    let url = listen(router).await;
    let client = BrokerClient::new(&url, &ConnectOptions::default()).unwrap();
    let owner = occlude_keys::OwnerKey::generate().public().fingerprint();
    let key = client
        .fetch_model_key(&Arc::new(attester(&tpm)), &owner, &digest(7))
        .await
        .unwrap();
    assert_eq!(key.expose(), &MODEL_KEY);
    let service = service.lock().unwrap();
    assert_eq!(service.step, 3);
    assert_eq!(
        service.names["$RESOURCE"],
        json!(crate::model_key_path(&owner, &digest(7)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn our_broker_answers_the_clients_side_of_the_transcript() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let (rig, attester) = (Rig::start().await, attester(&tpm));
    let seen = attester.collect(&Binding::from([1; 64])).unwrap();
    let seen = Verifier::default()
        .authenticate(&seen, UnixTime::now())
        .unwrap();
    let seen = seen.unbound_claims();
    let Platform::Tpm(platform) = seen.platform() else {
        panic!("{seen:?}");
    };
    rig.set_policy(&format!(
        "format = 1\nreviewed = true\n[evidence]\ntee = [\"tpm\"]\ntrust = [\"listed-key\"]\n\
         protection = [\"measured-boot-only\"]\n[evidence.tpm]\nattestation-keys = [\"{}\"]\n\
         pcrs.pcr7 = [\"{}\"]\n",
        platform.attestation_key,
        "00".repeat(32)
    ))
    .await;

    let key = TeeKey::generate(Curve::P256);
    let public = serde_json::to_value(key.public()).unwrap();
    let mut names = Names::from([
        ("$RESOURCE".to_owned(), json!(rig.path())),
        ("$X".to_owned(), public["x"].clone()),
        ("$Y".to_owned(), public["y"].clone()),
    ]);
    let mut released = 0;
    for (request, expected) in transcript() {
        if let Some(nonce) = names.get("$NONCE").and_then(Value::as_str) {
            let evidence = attester
                .collect_primary(&binding(nonce, &public), None)
                .unwrap();
            let (body, quote) = (evidence.body(), &evidence.body()["tpm_quote"]);
            names.extend([
                ("$AK".to_owned(), body["ak_public"].clone()),
                ("$MESSAGE".to_owned(), quote["message"].clone()),
                ("$PCRS".to_owned(), quote["pcrs"].clone()),
                ("$SIGNATURE".to_owned(), quote["signature"].clone()),
            ]);
        }
        let (method, path) = request.first.split_once(' ').unwrap();
        let url = format!("{}{}", rig.url, filled_text(path, &names));
        let mut sent = rig.http.request(method.parse().unwrap(), url);
        for (name, value) in &request.headers {
            sent = sent.header(name, filled_text(value, &names));
        }
        if let Some(body) = &request.body {
            sent = sent.body(filled(body, &names).to_string());
        }
        let answer = sent.send().await.unwrap();
        assert_eq!(
            answer.status().as_str(),
            expected.first,
            "{}",
            request.first
        );
        for (name, value) in &expected.headers {
            text_meets(value, answer.headers()[name].to_str().unwrap(), &mut names);
        }
        let found = answer.bytes().await.unwrap();
        let found: Value = serde_json::from_slice(&found).unwrap();
        meets(expected.body.as_ref().unwrap(), &found, &mut names);
        if found.get("ciphertext").is_some() {
            let sealed: Jwe = serde_json::from_value(found).unwrap();
            assert_eq!(key.open(&sealed).unwrap().as_slice(), MODEL_KEY);
            released += 1;
        }
    }
    assert_eq!(released, 2);
}
