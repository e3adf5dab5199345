//! Budgets: who asks, how much they get, and what an operator or a client does about it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use occlude_attest::UnixTime;
use occlude_client::{Client, ClientError, ClientOptions, Token};
use occlude_guard::{Claims, issue};
use occlude_inference_protocol::{InferRequest, Parameter, Tensor};
use occlude_keys::IssuerKey;
use occlude_server::StartErrorKind;
use url::Url;

use crate::middle::{LATE, LyingBroker, Recorder};
use crate::world::{
    FEATURES, World, assert_close, expected, id, inner_refusal, request, request_of, serve,
};

const ISSUER: &str = "https://issuer.example";

/// Whoever says who asks.
pub(crate) struct Issuer(IssuerKey);

impl Issuer {
    pub(crate) fn new() -> Self {
        Self(IssuerKey::generate())
    }

    /// A guard with these budgets, in windows of a year.
    pub(crate) fn guard(&self, budgets: &str) -> String {
        format!(
            "format = 1\noutput = \"scores\"\n[budgets]\nwindow-seconds = 31536000\n{budgets}\n\
             [[issuers]]\nname = \"{ISSUER}\"\nkey = \"\"\"\n{}\"\"\"\n",
            self.0.public()
        )
    }

    fn claims(subject: &str) -> Claims {
        Claims {
            iss: ISSUER.to_owned(),
            sub: subject.to_owned(),
            aud: vec!["digits".to_owned()],
            exp: UnixTime::now().0 + 3600,
        }
    }

    pub(crate) fn token(&self, subject: &str) -> String {
        issue(&self.0, &Self::claims(subject))
    }

    /// A client of a server, by its name.
    pub(crate) async fn client(&self, world: &World, url: &Url, subject: &str) -> Client {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, self.token(subject)).unwrap();
        let options = ClientOptions {
            token: Some(Arc::new(Token::read(&path).unwrap())),
            ..ClientOptions::default()
        };
        Client::connect(url, world.policy(), &options)
            .await
            .unwrap()
    }
}

/// An owner, its broker and issuer, and a model with these budgets.
async fn guarded(budgets: &str) -> (World, Issuer, std::path::PathBuf) {
    let (world, issuer) = (World::new().await, Issuer::new());
    let model = world
        .publish_guarded("digits", 1, &issuer.guard(budgets))
        .await;
    (world, issuer, model)
}

/// How many answers came, or the reason why none did.
async fn ask(client: &Client, rows: usize) -> Result<usize, String> {
    let response = client.infer(&id("digits"), None, &request_of(rows)).await;
    match response {
        Ok(response) => {
            let scores = response.output("scores").unwrap();
            let scores = scores.to_values::<f32>().unwrap();
            let one = expected(f32::from(
                response.model_version.unwrap().parse::<u8>().unwrap(),
            ));
            assert_close(&scores, &one.repeat(rows));
            Ok(rows)
        }
        Err(ClientError::Answered { status, message }) => {
            Err(format!("{} {message}", status.as_u16()))
        }
        Err(error) => panic!("{error}"),
    }
}

/// Cuts the time off, which is never the same.
fn without_time(refused: Result<usize, String>) -> String {
    let refused = refused.unwrap_err();
    let (text, seconds) = refused.rsplit_once(" in ").unwrap();
    let seconds: u32 = seconds.strip_suffix(" s").unwrap().parse().unwrap();
    assert!((1..=31_536_001).contains(&seconds), "{refused}");
    text.to_owned()
}

const ALICE_HAS_NONE: &str = "429 your budget has 0 answers left: there is more";

/// A request with a token, or with none.
fn with_token(token: Option<&str>) -> Request<Bytes> {
    let encoded = request().encode(false).unwrap();
    let mut builder = Request::post("/v2/models/digits/infer");
    if let Some(token) = token {
        builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    builder.body(encoded.body).unwrap()
}

#[tokio::test]
async fn whoever_asks_shows_a_token_of_an_issuer_whom_the_owner_names() {
    let (world, issuer, model) = guarded("client = { total = 100 }").await;
    let serving = world.serve(&[&model]).await;
    let client = serving.client(world.policy()).await.unwrap();
    let metadata = client.model_metadata(&id("digits"), None).await.unwrap();
    for (name, expected) in [
        ("guard", Parameter::Text("budgets".to_owned())),
        ("answers_may_be_changed", Parameter::Boolean(false)),
        ("token_required", Parameter::Boolean(true)),
    ] {
        assert_eq!(metadata.parameters.get(name), Some(&expected));
    }

    let asked = async |token: Option<&str>| client.request(&with_token(token)).await.unwrap();
    let refused = async |token: Option<&str>| {
        let answer = asked(token).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let challenge = answer.headers()[WWW_AUTHENTICATE].to_str().unwrap();
        (challenge.to_owned(), inner_refusal(&answer).1)
    };
    let (challenge, reason) = refused(None).await;
    assert_eq!(challenge, "Bearer");
    assert!(reason.contains("wants to know who asks"), "{reason}");

    let good = issuer.token("alice");
    let of = |change: &dyn Fn(&mut Claims)| {
        let mut claims = Issuer::claims("alice");
        change(&mut claims);
        issue(&issuer.0, &claims)
    };
    for (token, expected) in [
        ("nonsense".to_owned(), "not a token of this model"),
        (
            Issuer::new().token("alice"),
            "the token's signature does not hold",
        ),
        (
            of(&|claims| claims.iss = "https://other.example".to_owned()),
            "an issuer whom the model's owner does not name",
        ),
        (
            of(&|claims| claims.aud = vec!["others".to_owned()]),
            "the token is for another model",
        ),
        (
            of(&|claims| claims.exp = UnixTime::now().0),
            "the token has expired",
        ),
    ] {
        let (challenge, reason) = refused(Some(&token)).await;
        assert_eq!(challenge, "Bearer error=\"invalid_token\"");
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(asked(Some(&good)).await.status(), StatusCode::OK);

    // Two are not one.
    let mut two = with_token(Some(&good));
    let value = format!("Bearer {good}").parse().unwrap();
    two.headers_mut().append(AUTHORIZATION, value);
    let answer = client.request(&two).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

/// By the broker's clock and this process's, not by the machine's.
#[tokio::test]
async fn a_token_ends() {
    let (world, issuer, model) = guarded("client = { total = 100 }").await;
    let serving = world.serve(&[&model]).await;
    let client = serving.client(world.policy()).await.unwrap();
    let mut claims = Issuer::claims("alice");
    claims.exp = UnixTime::now().0 + 4;
    let token = issue(&issuer.0, &claims);
    let status = async || {
        let asked = client.request(&with_token(Some(&token))).await;
        asked.unwrap().status()
    };
    assert_eq!(status().await, StatusCode::OK);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(status().await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn each_row_is_a_query_and_nobody_gets_more_than_there_is() {
    let (world, issuer, model) = guarded("client = { window = 5 }\nmodel = { window = 8 }").await;
    let serving = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &serving.url, "alice").await;
    let bob = issuer.client(&world, &serving.url, "bob").await;

    assert_eq!(
        ask(&alice, 6).await.unwrap_err(),
        "400 your budget has room for 5 answers: ask for fewer at once"
    );
    assert_eq!(ask(&alice, 3).await, Ok(3));
    assert_eq!(
        without_time(ask(&alice, 3).await),
        "429 your budget has 2 answers left: there is more"
    );
    assert_eq!(ask(&alice, 2).await, Ok(2));
    assert_eq!(without_time(ask(&alice, 1).await), ALICE_HAS_NONE);
    // Who switches names gets what is left for all.
    assert_eq!(ask(&bob, 3).await, Ok(3));
    assert_eq!(
        without_time(ask(&bob, 1).await),
        "429 the model's budget has 0 answers left: there is more"
    );
    let told = bob
        .request(&with_token(None))
        .await
        .map(|answer: Response<Bytes>| answer.headers()[RETRY_AFTER].to_str().unwrap().to_owned());
    assert!(told.unwrap().parse::<u32>().unwrap() >= 1);
}

#[tokio::test]
async fn a_total_does_not_come_back() {
    let world = World::new().await;
    let guard = "format = 1\noutput = \"scores\"\n[budgets]\nwindow-seconds = 1\n\
                 model = { total = 2 }\n";
    let model = world.publish_guarded("totals", 1, guard).await;
    let serving = world.serve(&[&model]).await;
    // No issuer is named, so anybody may ask.
    let client = serving.client(world.policy()).await.unwrap();
    let asked = async || client.infer(&id("totals"), None, &request()).await;
    asked().await.unwrap();
    asked().await.unwrap();
    let expected = "429 Too Many Requests: the model's budget has 0 answers left: there will be \
                    no more";
    assert_eq!(asked().await.unwrap_err().to_string(), expected);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(asked().await.unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn restarts_replicas_and_other_versions_give_nobody_more() {
    let (mut world, issuer, model) = guarded("client = { window = 5 }").await;
    let other = world
        .publish_guarded("digits", 2, &issuer.guard("client = { window = 5 }"))
        .await;
    let first = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &first.url, "alice").await;
    assert_eq!(ask(&alice, 2).await, Ok(2));

    // A replica beside it.
    let second = world.serve(&[&model]).await;
    let there = issuer.client(&world, &second.url, "alice").await;
    assert_eq!(ask(&there, 1).await, Ok(1));

    // The server, and then the broker, start again.
    first.running.stopped().await;
    second.running.stopped().await;
    let third = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &third.url, "alice").await;
    assert_eq!(ask(&alice, 1).await, Ok(1));
    world.stop_broker().await;
    world.start_broker().await;
    assert_eq!(ask(&alice, 1).await, Ok(1));
    assert_eq!(without_time(ask(&alice, 1).await), ALICE_HAS_NONE);

    // Another version, and a server that starts once more.
    let last = world.serve(&[&model, &other]).await;
    let alice = issuer.client(&world, &last.url, "alice").await;
    assert_eq!(without_time(ask(&alice, 1).await), ALICE_HAS_NONE);
    let bob = issuer.client(&world, &last.url, "bob").await;
    assert_eq!(ask(&bob, 5).await, Ok(5));
}

#[tokio::test]
async fn a_flood_is_answered_as_often_as_there_is_budget() {
    let (world, issuer, model) = guarded("client = { window = 5 }").await;
    let serving = world.serve(&[&model]).await;
    let alice = Arc::new(issuer.client(&world, &serving.url, "alice").await);
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let alice = Arc::clone(&alice);
        flood.spawn(async move { ask(&alice, 1).await });
    }
    let answers = flood.join_all().await;
    let (answered, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(answered.len(), 5, "{refused:?}");
    for refused in refused {
        let refused = refused.unwrap_err();
        assert!(
            refused.starts_with("429 ") || refused.starts_with("503 "),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_guarded_costs_nothing() {
    let (world, issuer, model) = guarded("client = { window = 1 }").await;
    let serving = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &serving.url, "alice").await;
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let image = Tensor::from_values("image", vec![1, FEATURES as u64], &[value; FEATURES]);
        let request = InferRequest {
            inputs: vec![image.unwrap()],
            ..InferRequest::default()
        };
        let refused = alice.infer(&id("digits"), None, &request).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.starts_with("400 "), "{refused}");
    }
    assert_eq!(ask(&alice, 1).await, Ok(1));
}

/// The operator records what a client sends, and sends it again.
#[tokio::test]
async fn a_replayed_request_is_neither_answered_nor_paid_for() {
    let (world, issuer, model) = guarded("client = { window = 2 }").await;
    let serving = world.serve(&[&model]).await;
    let (sealed, _) = serving.seal(&with_token(Some(&issuer.token("alice"))));
    assert_eq!(serving.post(sealed.clone()).await.status(), 200);
    for _ in 0..3 {
        assert_eq!(serving.post(sealed.clone()).await.status(), 409);
    }
    let alice = issuer.client(&world, &serving.url, "alice").await;
    assert_eq!(ask(&alice, 1).await, Ok(1));
    assert_eq!(without_time(ask(&alice, 1).await), ALICE_HAS_NONE);
}

/// The operator gives a server an allowance that the broker gave before.
#[tokio::test]
async fn an_old_allowance_is_none() {
    let (world, issuer, model) = guarded("client = { window = 5 }").await;
    let (lying, address) = LyingBroker::start(world.broker_address).await;
    let start = async || {
        let mut options = world.options(&[&model]);
        options.broker = format!("http://{address}").parse().unwrap();
        serve(options).await
    };
    let serving = start().await.unwrap();
    let alice = issuer.client(&world, &serving.url, "alice").await;
    assert_eq!(ask(&alice, 1).await, Ok(1));
    lying.replays.store(true, Ordering::SeqCst);
    let expected = "503 the broker, which counts answers, allows none now: try again";
    assert_eq!(ask(&alice, 1).await.unwrap_err(), expected);
    let error = start().await.err().unwrap();
    assert_eq!(error.kind(), StartErrorKind::Unavailable);
    assert!(
        error
            .to_string()
            .ends_with("the broker's answer about queries is not authentic"),
        "{error}"
    );
    // Nothing was lost for the client but what the server holds.
    lying.replays.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask(&alice, 4).await, Ok(4));
    assert_eq!(without_time(ask(&alice, 1).await), ALICE_HAS_NONE);
}

/// Any other broker of keys, such as a plain Trustee.
#[tokio::test]
async fn where_nobody_counts_a_model_with_budgets_is_refused() {
    let (world, _, model) = guarded("client = { window = 5 }").await;
    let (lying, address) = LyingBroker::start(world.broker_address).await;
    lying.plain.store(true, Ordering::SeqCst);
    let start = async |model: &Path| {
        let mut options = world.options(&[model]);
        options.broker = format!("http://{address}").parse().unwrap();
        serve(options).await
    };
    let error = start(&model).await.err().unwrap();
    assert_eq!(error.kind(), StartErrorKind::Refused);
    let text = error.to_string();
    assert!(
        text.contains("model digits version 1 is guarded by budgets, and the broker"),
        "{text}"
    );
    // One that is not counted is served.
    let other = world.publish("others", 1, 1.0).await;
    start(&other).await.unwrap();
}

#[tokio::test]
async fn while_the_broker_is_away_what_it_allowed_is_answered_and_no_more() {
    let (mut world, issuer, model) = guarded("client = { window = 64 }").await;
    let serving = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &serving.url, "alice").await;
    // One, and then two at once.
    assert_eq!(ask(&alice, 1).await, Ok(1));
    assert_eq!(ask(&alice, 1).await, Ok(1));
    world.stop_broker().await;
    assert_eq!(ask(&alice, 1).await, Ok(1));
    let away = "503 the broker, which counts answers, allows none now: try again";
    assert_eq!(ask(&alice, 1).await.unwrap_err(), away);
    world.start_broker().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask(&alice, 1).await, Ok(1));
}

/// A client that goes away while the broker is asked for the model loses what it asked for,
/// and nobody else anything.
#[tokio::test]
async fn clients_that_go_away_do_not_use_up_the_models_budget() {
    let (world, issuer, model) =
        guarded("client = { window = 1000 }\nmodel = { window = 1024 }").await;
    let (lying, address) = LyingBroker::start(world.broker_address).await;
    let mut options = world.options(&[&model]);
    options.broker = format!("http://{address}").parse().unwrap();
    let serving = serve(options).await.unwrap();
    let bob = issuer.client(&world, &serving.url, "bob").await;
    // So many that the next allowance is a large one, and nothing is left of this.
    assert_eq!(ask(&bob, 33).await, Ok(33));

    lying.slow.store(true, Ordering::SeqCst);
    for number in 0..8 {
        let name = format!("alice {number}");
        let alice = issuer.client(&world, &serving.url, &name).await;
        // Her own allowance has come then, and the model's is asked for.
        let gone = tokio::time::timeout(LATE * 3 / 2, ask(&alice, 1)).await;
        assert!(gone.is_err() || number > 0);
    }
    lying.slow.store(false, Ordering::SeqCst);
    assert_eq!(ask(&bob, 960).await, Ok(960));
}

#[tokio::test]
async fn nobody_between_sees_who_asks() {
    let (world, issuer, model) = guarded("client = { window = 5 }").await;
    let serving = world.serve(&[&model]).await;
    let recorder = Recorder::start(serving.address).await;
    let alice = issuer.client(&world, &recorder.url, "alice").await;
    assert_eq!(ask(&alice, 1).await, Ok(1));
    let token = issuer.token("alice");
    let signed = token.split('.').next().unwrap().as_bytes();
    let seen = recorder.seen();
    assert!(seen.windows(8).any(|found| found == b"POST /.w"));
    for secret in [signed, b"Bearer", b"alice"] {
        assert!(!seen.windows(secret.len()).any(|found| found == secret));
    }
}
