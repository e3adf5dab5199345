//! Attacks that must fail, each with the error that says how it failed.

use std::sync::PoisonError;

use bytes::Bytes;
use http::{Request, StatusCode};
use occlude_attest::{Policy, Refusal, VerifyError};
use occlude_channel::{Gateway, Kem, Limits};
use occlude_client::{Client, ClientError, ClientOptions};

use crate::middle::{self, AUTHORITY, Recorder, Tamper};
use crate::world::{Serving, World, assert_close, example, expected, id, refusal, request, weight};

async fn serving(world: &World) -> Serving {
    let model = world.publish("digits", 1, 1.0).await;
    world.serve(&[&model]).await
}

async fn connect(url: &url::Url, policy: Policy) -> Result<Client, ClientError> {
    Client::connect(url, policy, &ClientOptions::default()).await
}

fn assert_not_for_this_nonce(result: Result<Client, ClientError>) {
    let error = result.unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::Unverified {
                source: VerifyError::BindingMismatch,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn evidence_recorded_by_a_man_in_the_middle_is_refused() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let (url, _) = middle::plain(&serving.url, Tamper::ReplayEvidence).await;
    connect(&url, world.policy()).await.unwrap();
    assert_not_for_this_nonce(connect(&url, world.policy()).await);
}

#[tokio::test]
async fn a_man_in_the_middle_with_its_own_channel_key_is_refused() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let own = Gateway::new(Kem::XWing, Limits::default()).unwrap();
    let tamper = Tamper::SwapKeys(own.key_configurations());
    let (url, encapsulated) = middle::plain(&serving.url, tamper).await;
    assert_not_for_this_nonce(connect(&url, world.policy()).await);
    assert!(encapsulated.lock().unwrap().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn another_genuine_servers_statement_is_refused() {
    let world = World::new().await;
    let operator = World::new().await;
    let genuine = serving(&world).await;
    let look_alike = serving(&operator).await;
    // Evidence of the operator's server beside the statement of the owner's.
    let tamper = Tamper::SwapStatement(Box::new(genuine.statement.clone()));
    let (url, _) = middle::plain(&look_alike.url, tamper).await;
    assert_not_for_this_nonce(connect(&url, world.policy()).await);
}

#[tokio::test]
async fn a_genuine_server_with_the_operators_model_owner_and_broker_is_refused() {
    let world = World::new().await;
    let operator = World::new().await;
    let look_alike = serving(&operator).await;
    let error = connect(&look_alike.url, world.policy()).await.unwrap_err();
    let ClientError::Refused { refusal, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        refusal,
        Refusal::Owner {
            found: Box::new(operator.owner.public()),
            accepted: vec![world.owner.public()],
        }
    );
}

#[tokio::test]
async fn a_server_of_another_measurement_is_refused() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let policy = Policy::parse(&format!(
        "format = 1\n[evidence]\ntee = [\"simulated\"]\ntrust = [\"simulated\"]\n\
         measurements = [\"{}\"]\n[service]\nowners = [\"{}\"]\n",
        "a5".repeat(32),
        world.owner.public()
    ))
    .unwrap();
    let error = connect(&serving.url, policy).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::Refused {
                refusal: Refusal::Measurement { .. },
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_older_version_than_the_policy_wants_is_refused() {
    let world = World::new().await;
    let old = world.publish("digits", 1, 1.0).await;
    let serving = world.serve(&[&old]).await;
    let policy = world.policy_with("models = [{ id = \"digits\", minimum-version = 2 }]");
    let error = connect(&serving.url, policy).await.unwrap_err();
    let ClientError::Refused { refusal, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        refusal,
        Refusal::ModelVersion {
            id: id("digits"),
            found: 1,
            minimum: 2
        }
    );
}

#[tokio::test]
async fn two_files_swapped_answer_under_the_names_that_their_owner_signed() {
    let world = World::new().await;
    let digits = world.publish("digits", 1, 1.0).await;
    let letters = world.publish("letters", 1, 2.0).await;
    let aside = digits.with_file_name("aside");
    std::fs::rename(&digits, &aside).unwrap();
    std::fs::rename(&letters, &digits).unwrap();
    std::fs::rename(&aside, &letters).unwrap();
    let serving = world.serve(&[&digits, &letters]).await;
    let client = serving.client(world.policy()).await.unwrap();
    for (name, factor) in [("digits", 1.0), ("letters", 2.0)] {
        let response = client.infer(&id(name), None, &request()).await.unwrap();
        let scores = response.output("scores").unwrap();
        assert_close(&scores.to_values::<f32>().unwrap(), &expected(factor));
    }
}

#[tokio::test]
async fn a_replayed_request_is_refused_by_this_process_and_by_the_next() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let serving = world.serve(&[&model]).await;
    let (url, encapsulated) = middle::plain(&serving.url, Tamper::Nothing).await;
    let client = connect(&url, world.policy()).await.unwrap();
    client.infer(&id("digits"), None, &request()).await.unwrap();
    let recorded = encapsulated
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(0)
        .to_vec();
    assert_eq!(
        refusal(serving.post(recorded.clone()).await).await,
        (409, "the encapsulated request was seen before".to_owned())
    );

    let next = world.serve(&[&model]).await;
    let (status, text) = refusal(next.post(recorded).await).await;
    assert_eq!(status, 400);
    // The next process may happen to use the same key identifier.
    assert!(
        text.starts_with("no key ") || text == "the encapsulated request is not authentic",
        "{text}"
    );
}

#[tokio::test]
async fn a_client_verifies_again_when_the_server_was_restarted() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let first = world.serve(&[&model]).await;
    let client = first.client(world.policy()).await.unwrap();
    first.running.stopped().await;
    let mut options = world.options(&[&model]);
    options.listen = first.address;
    let _second = crate::world::serve(options).await.unwrap();
    let response = client.infer(&id("digits"), None, &request()).await.unwrap();
    let scores = response.output("scores").unwrap();
    assert_close(&scores.to_values::<f32>().unwrap(), &expected(1.0));
}

#[tokio::test]
async fn an_answer_in_the_clear_is_not_taken_for_a_result() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let (url, _) = middle::plain(&serving.url, Tamper::AnswerInTheClear).await;
    let client = connect(&url, world.policy()).await.unwrap();
    let error = client
        .infer(&id("digits"), None, &request())
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::Unencapsulated {
                status: StatusCode::OK,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_altered_request_is_refused_wherever_it_is_altered() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let (sealed, _) = serving.seal(&Request::get("/v2").body(Bytes::new()).unwrap());
    for position in (1..sealed.len()).step_by(379) {
        let mut altered = sealed.clone();
        altered[position] ^= 1;
        let (status, _) = refusal(serving.post(altered).await).await;
        assert_eq!(status, 400, "at {position}");
    }
    assert_eq!(serving.post(sealed).await.status(), 200);
}

#[tokio::test]
async fn a_load_balancer_that_ends_tls_changes_nothing() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let url = middle::tls(&serving.url).await;
    let options = ClientOptions {
        certificates: vec![AUTHORITY.to_vec()],
        ..ClientOptions::default()
    };
    let client = Client::connect(&url, world.policy(), &options)
        .await
        .unwrap();
    let response = client.infer(&id("digits"), None, &request()).await.unwrap();
    let scores = response.output("scores").unwrap();
    assert_close(&scores.to_values::<f32>().unwrap(), &expected(1.0));
}

#[tokio::test]
async fn neither_input_nor_weights_nor_names_are_on_the_wire() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let recorder = Recorder::start(serving.address).await;
    let client = connect(&recorder.url, world.policy()).await.unwrap();
    client.infer(&id("digits"), None, &request()).await.unwrap();
    let wire = recorder.seen();
    assert!(wire.len() > 4096);

    let bytes =
        |values: Vec<f32>| -> Vec<u8> { values.into_iter().flat_map(f32::to_le_bytes).collect() };
    let weights = (0..64 * 8).map(|index| weight(index / 8, index % 8, 1.0));
    for secret in [bytes(example()), bytes(weights.collect())] {
        for window in secret.windows(16) {
            assert!(!wire.windows(16).any(|seen| seen == window));
        }
    }
    for name in ["secret_projection", "/v2/models", "datatype"] {
        let name = name.as_bytes();
        assert!(!wire.windows(name.len()).any(|seen| seen == name));
    }
}
