//! Leases: what a withdrawn model and an unreachable broker lead to.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Request;

use crate::middle::LyingBroker;
use crate::service::metrics;
use crate::world::{
    Serving, World, assert_close, eventually, expected, id, inner_refusal, request, serve,
};

/// Long enough that a fetch of the key fits many times.
const PERIOD: Duration = Duration::from_millis(400);

async fn serving(world: &World) -> Serving {
    let model = world.publish("digits", 1, 1.0).await;
    let mut options = world.options(&[&model]);
    options.lease = PERIOD;
    serve(options).await.unwrap()
}

async fn counted(serving: &Serving, result: &str) -> bool {
    let line = format!("occlude_lease_renewals_total{{result=\"{result}\"}} ");
    metrics(serving).await.contains(&line)
}

#[tokio::test]
async fn a_lease_is_renewed_and_the_model_goes_on_answering() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let client = serving.client(world.policy()).await.unwrap();
    eventually("renewed", async || counted(&serving, "renewed").await).await;
    tokio::time::sleep(3 * PERIOD).await;
    client.infer(&id("digits"), None, &request()).await.unwrap();
    assert!(!counted(&serving, "lapsed").await);
}

#[tokio::test]
async fn a_withdrawn_model_is_unloaded_at_the_next_renewal() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let client = serving.client(world.policy()).await.unwrap();
    client.infer(&id("digits"), None, &request()).await.unwrap();
    world
        .admin
        .withdraw(&world.owner, &id("digits"), 2)
        .await
        .unwrap();
    eventually("refused", async || counted(&serving, "refused").await).await;

    let error = client
        .infer(&id("digits"), None, &request())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "404 Not Found: model \"digits\" version 1 is withdrawn"
    );
    let ready = Request::get("/v2/models/digits/ready")
        .body(Bytes::new())
        .unwrap();
    let ready = client.request(&ready).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.body(), r#"{"name":"digits","ready":false}"#);
    assert_eq!(serving.get("healthz").await.status(), 503);
    assert!(metrics(&serving).await.contains("occlude_models_loaded 0"));
}

#[tokio::test]
async fn without_a_broker_the_model_answers_until_its_lease_ends_and_again_when_the_broker_is_back()
{
    let mut world = World::new().await;
    let serving = serving(&world).await;
    let client = serving.client(world.policy()).await.unwrap();
    world.stop_broker().await;
    eventually("unavailable", async || {
        counted(&serving, "unavailable").await
    })
    .await;
    client.infer(&id("digits"), None, &request()).await.unwrap();

    eventually("lapsed", async || counted(&serving, "lapsed").await).await;
    let infer = Request::post("/v2/models/digits/infer")
        .body(Bytes::new())
        .unwrap();
    assert_eq!(
        inner_refusal(&client.request(&infer).await.unwrap()),
        (
            503,
            "model \"digits\" version 1 is unloaded until its broker answers again".to_owned()
        )
    );

    world.start_broker().await;
    eventually("loaded again", async || {
        metrics(&serving).await.contains("occlude_models_loaded 1")
    })
    .await;
    let response = client.infer(&id("digits"), None, &request()).await.unwrap();
    let scores = response.output("scores").unwrap();
    assert_close(&scores.to_values::<f32>().unwrap(), &expected(1.0));
}

#[tokio::test]
async fn a_file_replaced_meanwhile_is_not_loaded_in_the_others_place() {
    let mut world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let other = world.publish("digits", 2, 2.0).await;
    let mut options = world.options(&[&model]);
    options.lease = PERIOD;
    let serving = serve(options).await.unwrap();
    let client = serving.client(world.policy()).await.unwrap();
    world.stop_broker().await;
    eventually("lapsed", async || counted(&serving, "lapsed").await).await;
    std::fs::copy(&other, &model).unwrap();
    world.start_broker().await;
    tokio::time::sleep(3 * PERIOD).await;
    let error = client
        .infer(&id("digits"), None, &request())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "503 Service Unavailable: model \"digits\" version 1 is unloaded until its broker answers again"
    );
}

#[tokio::test]
async fn a_grant_with_another_key_prolongs_no_lease() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let (lying, address) = LyingBroker::start(world.broker_address).await;
    let mut options = world.options(&[&model]);
    options.lease = PERIOD;
    options.broker = format!("http://{address}").parse().unwrap();
    let serving = serve(options).await.unwrap();
    eventually("renewed", async || counted(&serving, "renewed").await).await;

    world
        .admin
        .withdraw(&world.owner, &id("digits"), 2)
        .await
        .unwrap();
    lying.lies.store(true, Ordering::SeqCst);
    eventually("lapsed", async || counted(&serving, "lapsed").await).await;
    let text = metrics(&serving).await;
    assert!(text.contains("occlude_models_loaded 0"), "{text}");
    assert!(counted(&serving, "unavailable").await);
}
