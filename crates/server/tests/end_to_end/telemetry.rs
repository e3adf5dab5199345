//! Telemetry: what the owner hears of unusual clients, and what an operator or a client does
//! about it.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use occlude_broker::{AuditEvent, Unusual};
use occlude_client::{Client, ClientError};
use occlude_inference_protocol::{InferRequest, Parameter, Tensor};

use crate::budgets::Issuer;
use crate::middle::LyingBroker;
use crate::world::{CLASSES, FEATURES, World, http, id, serve};

/// One query.
pub(crate) type Image = [f32; FEATURES];

/// The model is not certain of it.
pub(crate) const UNCERTAIN: Image = [0.0; FEATURES];

/// The model is certain of it.
pub(crate) const CERTAIN: Image = {
    let mut image = UNCERTAIN;
    image[3] = 10.0;
    image
};

/// Numbers from -0.5 to 0.5 that nothing correlates: a linear congruence.
fn noise(seed: u64) -> Image {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [(); FEATURES].map(|()| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    })
}

/// An owner, and a model whose clients are looked at.
async fn watched(telemetry: &str) -> (World, Issuer, PathBuf) {
    let (world, issuer) = (World::new().await, Issuer::new());
    let guard = issuer.guard(&format!(
        "client = {{ window = 100000 }}\n[telemetry]\nqueries = 100\n{telemetry}"
    ));
    let model = world.publish_certain("digits", &guard).await;
    (world, issuer, model)
}

/// How many answers came, or the reason why none did.
pub(crate) async fn ask(client: &Client, images: &[Image]) -> Result<usize, String> {
    let shape = vec![images.len() as u64, FEATURES as u64];
    let request = InferRequest {
        inputs: vec![Tensor::from_values("image", shape, images.as_flattened()).unwrap()],
        ..InferRequest::default()
    };
    match client.infer(&id("digits"), None, &request).await {
        Ok(response) => {
            let scores = response.output("scores").unwrap();
            assert_eq!(scores.element_count(), images.len() * CLASSES);
            Ok(images.len())
        }
        Err(ClientError::Answered { status, message }) => {
            Err(format!("{} {message}", status.as_u16()))
        }
        Err(error) => panic!("{error}"),
    }
}

/// What the owner reads in the broker's log: queries, uncertain ones, what is unusual and for
/// how many seconds the client waits; each client by the number of its first report.
async fn reports(world: &World) -> Vec<(usize, u32, u32, Vec<Unusual>, Option<u64>)> {
    let export = world.admin.audit(&world.owner).await.unwrap();
    export.verify().unwrap();
    let (mut clients, mut found) = (Vec::new(), Vec::new());
    for entry in export.shown().unwrap() {
        if let AuditEvent::UsageReported {
            client,
            queries,
            uncertain,
            unusual,
            throttled_until,
            ..
        } = entry.event
        {
            let known = clients.iter().position(|known| *known == client);
            let number = known.unwrap_or_else(|| {
                clients.push(client);
                clients.len() - 1
            });
            let pause = throttled_until.map(|until| until - entry.time);
            found.push((number, queries, uncertain, unusual, pause));
        }
    }
    found
}

const ALICE: usize = 0;
const MALLORY: usize = 1;

#[tokio::test]
async fn the_owner_hears_of_each_window_and_what_is_unusual_in_it() {
    let (world, issuer, model) = watched("uncertain = { below = 0.5, share = 0.25 }").await;
    let serving = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &serving.url, "alice").await;
    let metadata = alice.model_metadata(&id("digits"), None).await.unwrap();
    for (name, expected) in [
        ("guard", Parameter::Text("budgets+telemetry".to_owned())),
        ("queries_watched", Parameter::Boolean(true)),
    ] {
        assert_eq!(metadata.parameters.get(name), Some(&expected));
    }
    let mallory = issuer.client(&world, &serving.url, "mallory").await;
    assert_eq!(ask(&alice, &[CERTAIN].repeat(80)).await, Ok(80));
    assert_eq!(ask(&mallory, &[UNCERTAIN].repeat(99)).await, Ok(99));
    assert_eq!(reports(&world).await, []);
    assert_eq!(ask(&alice, &[UNCERTAIN].repeat(20)).await, Ok(20));
    assert_eq!(ask(&mallory, &[CERTAIN]).await, Ok(1));
    let unusual = || vec![Unusual::Uncertain];
    let mut expected = vec![
        (ALICE, 100, 20, vec![], None),
        (MALLORY, 100, 99, unusual(), None),
    ];
    assert_eq!(reports(&world).await, expected);
    // Nothing else follows, and the next window begins anew.
    assert_eq!(ask(&mallory, &[UNCERTAIN].repeat(100)).await, Ok(100));
    expected.push((MALLORY, 100, 100, unusual(), None));
    assert_eq!(reports(&world).await, expected);
    // Monitoring hears of it, and of nobody's name.
    let url = format!("http://{}/metrics", world.broker_metrics);
    let metrics = http().get(url).send().await.unwrap().text().await.unwrap();
    let owner = world.owner.public().fingerprint();
    let labels = format!("owner=\"{owner}\",model=\"digits\"");
    for line in [
        format!("occlude_broker_usage_reports_total{{{labels}}} 3"),
        format!("occlude_broker_unusual_usage_total{{{labels},what=\"uncertain\"}} 2"),
        format!("occlude_broker_unusual_usage_total{{{labels},what=\"distances\"}} 0"),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
}

/// Somebody who makes inputs from inputs (Papernot et al., 2017) is certain of the answers,
/// and has each class.
#[tokio::test]
async fn inputs_that_were_made_from_each_other_are_unusual() {
    let (world, issuer, model) = watched("distances = { normality = 0.9 }").await;
    let serving = world.serve(&[&model]).await;
    let found: Vec<Image> = (0..100).map(noise).collect();
    let made: Vec<Image> = found[..50]
        .iter()
        .flat_map(|image| [*image, image.map(|value| value + 0.02)])
        .collect();
    let alice = issuer.client(&world, &serving.url, "alice").await;
    let mallory = issuer.client(&world, &serving.url, "mallory").await;
    for (client, images) in [(&alice, found), (&mallory, made)] {
        for some in images.chunks(7) {
            assert_eq!(ask(client, some).await, Ok(some.len()));
        }
    }
    let expected = [
        (ALICE, 100, 0, vec![], None),
        (MALLORY, 100, 0, vec![Unusual::Distances], None),
    ];
    assert_eq!(reports(&world).await, expected);
}

/// The operator starts servers and the broker again, and another beside them.
#[tokio::test]
async fn who_is_throttled_waits_whatever_is_started() {
    let (mut world, issuer, model) =
        watched("uncertain = { below = 0.5, share = 0.25 }\nthrottle-seconds = 600").await;
    let first = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &first.url, "alice").await;
    let mallory = issuer.client(&world, &first.url, "mallory").await;
    assert_eq!(ask(&alice, &[CERTAIN].repeat(100)).await, Ok(100));
    assert_eq!(ask(&mallory, &[UNCERTAIN].repeat(100)).await, Ok(100));
    let expected = [
        (ALICE, 100, 0, vec![], None),
        (MALLORY, 100, 100, vec![Unusual::Uncertain], Some(600)),
    ];
    assert_eq!(reports(&world).await, expected);

    let waits = async |mallory: &Client| {
        let refused = ask(mallory, &[CERTAIN]).await.unwrap_err();
        let (text, seconds) = refused.rsplit_once(" in ").unwrap();
        assert_eq!(text, "429 your budget has 0 answers left: there is more");
        let seconds: u32 = seconds.strip_suffix(" s").unwrap().parse().unwrap();
        assert!((500..=601).contains(&seconds), "{refused}");
    };
    waits(&mallory).await;
    assert_eq!(ask(&alice, &[CERTAIN]).await, Ok(1));
    let second = world.serve(&[&model]).await;
    waits(&issuer.client(&world, &second.url, "mallory").await).await;
    first.running.stopped().await;
    world.stop_broker().await;
    world.start_broker().await;
    let third = world.serve(&[&model]).await;
    waits(&issuer.client(&world, &third.url, "mallory").await).await;
    let alice = issuer.client(&world, &third.url, "alice").await;
    assert_eq!(ask(&alice, &[CERTAIN]).await, Ok(1));
}

/// The operator keeps reports from the broker.
#[tokio::test]
async fn a_client_gets_no_more_until_the_owner_can_hear_of_it() {
    let (world, issuer, model) = watched("uncertain = { below = 0.5, share = 0.25 }").await;
    let (lying, address) = LyingBroker::start(world.broker_address).await;
    let mut options = world.options(&[&model]);
    options.broker = format!("http://{address}").parse().unwrap();
    let serving = serve(options).await.unwrap();
    let mallory = issuer.client(&world, &serving.url, "mallory").await;
    // So many that the server holds enough for what follows.
    assert_eq!(ask(&mallory, &[UNCERTAIN].repeat(90)).await, Ok(90));
    assert_eq!(ask(&mallory, &[UNCERTAIN].repeat(5)).await, Ok(5));
    lying.plain.store(true, Ordering::SeqCst);
    assert_eq!(ask(&mallory, &[UNCERTAIN].repeat(5)).await, Ok(5));
    let expected = "503 the broker, which counts answers, allows none now: try again";
    for _ in 0..3 {
        assert_eq!(ask(&mallory, &[CERTAIN]).await.unwrap_err(), expected);
    }
    assert_eq!(reports(&world).await, []);
    lying.plain.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask(&mallory, &[CERTAIN]).await, Ok(1));
    let unusual = vec![Unusual::Uncertain];
    assert_eq!(reports(&world).await, [(0, 100, 100, unusual, None)]);
}

/// What no certainty can be read from is not answered: or nobody would be looked at.
#[tokio::test]
async fn answers_that_are_no_probabilities_are_not_given() {
    let telemetry = "[telemetry]\nqueries = 100\ndistances = { normality = 0.9 }";
    needs_probabilities(telemetry).await;
}

/// A model whose answers are none, guarded by something that goes by them, gives none.
pub(crate) async fn needs_probabilities(section: &str) {
    let (world, issuer) = (World::new().await, Issuer::new());
    let guard = issuer.guard(&format!("client = {{ window = 10 }}\n{section}"));
    let model = world.publish_guarded("digits", 1, &guard).await;
    let serving = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &serving.url, "alice").await;
    assert_eq!(
        ask(&alice, &[CERTAIN]).await.unwrap_err(),
        "400 the model's answers are not probabilities, which its guard needs"
    );
}
