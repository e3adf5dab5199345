//! Work: what answers cost, and what an operator or a client does about it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use occlude_client::{Client, ClientOptions};
use occlude_inference_protocol::{InferRequest, Parameter, Puzzle, Tensor, WORK, WorkWanted};
use url::Url;

use crate::budgets::Issuer;
use crate::telemetry::{CERTAIN, Image, UNCERTAIN, ask, needs_probabilities};
use crate::world::{FEATURES, World, id, inner_refusal};

/// What the first answers cost.
const BITS: u32 = 8;

/// And the dearest.
const MOST_BITS: u32 = 12;

/// An owner, and a model whose answers cost twice as much with each 4 gained.
async fn working() -> (World, Issuer, PathBuf) {
    let (world, issuer) = (World::new().await, Issuer::new());
    let guard = issuer.guard(&format!(
        "client = {{ window = 100000 }}\n[work]\nbits = {BITS}\ngain = 4.0\n\
         most-bits = {MOST_BITS}\n"
    ));
    let model = world.publish_certain("digits", &guard).await;
    (world, issuer, model)
}

fn request_of(images: &[Image]) -> InferRequest {
    let shape = vec![images.len() as u64, FEATURES as u64];
    InferRequest {
        inputs: vec![Tensor::from_values("image", shape, images.as_flattened()).unwrap()],
        ..InferRequest::default()
    }
}

/// What an answer to these would cost a client.
async fn price(
    (world, issuer): (&World, &Issuer),
    url: &Url,
    subject: &str,
    images: &[Image],
) -> u32 {
    let options = ClientOptions::default();
    let client = Client::connect(url, world.policy(), &options).await;
    let (client, token) = (client.unwrap(), issuer.token(subject));
    let of_one = wanted(&answer(&client, &token, images, &["x"]).await);
    if images.len() == 1 {
        return of_one.bits;
    }
    // How many they are is looked at where it would be enough for one.
    let found = puzzle(of_one, images).exactly(of_one.bits);
    wanted(&answer(&client, &token, images, &[&found]).await).bits
}

/// Asks one by one.
async fn ask_each(client: &Client, images: &[Image]) {
    for image in images {
        assert_eq!(ask(client, &[*image]).await, Ok(1));
    }
}

#[tokio::test]
async fn answers_cost_the_more_the_less_certain_those_before_were_and_clients_pay() {
    let (world, issuer, model) = working().await;
    let serving = world.serve(&[&model]).await;
    let costs = async |subject, images: &[Image]| {
        price((&world, &issuer), &serving.url, subject, images).await
    };
    let alice = issuer.client(&world, &serving.url, "alice").await;
    let metadata = alice.model_metadata(&id("digits"), None).await.unwrap();
    for (name, expected) in [
        ("guard", Parameter::Text("budgets+work".to_owned())),
        ("work_required", Parameter::Boolean(true)),
        ("queries_watched", Parameter::Boolean(false)),
    ] {
        assert_eq!(metadata.parameters.get(name), Some(&expected));
    }
    assert_eq!(costs("alice", &[CERTAIN]).await, BITS);
    ask_each(&alice, &[CERTAIN; 20]).await;
    assert_eq!(costs("alice", &[CERTAIN]).await, BITS);
    // An answer of ten classes that are the same tells 0.9.
    let mallory = issuer.client(&world, &serving.url, "mallory").await;
    ask_each(&mallory, &[UNCERTAIN; 4]).await;
    assert_eq!(costs("mallory", &[CERTAIN]).await, BITS);
    ask_each(&mallory, &[UNCERTAIN; 1]).await;
    assert_eq!(costs("mallory", &[CERTAIN]).await, BITS + 1);
    assert_eq!(ask(&mallory, &[UNCERTAIN; 11]).await, Ok(11));
    assert_eq!(costs("mallory", &[CERTAIN]).await, BITS + 3);
    assert_eq!(ask(&mallory, &[UNCERTAIN; 40]).await, Ok(40));
    assert_eq!(costs("mallory", &[UNCERTAIN]).await, MOST_BITS);
    // Many at once cost what each would.
    assert_eq!(costs("alice", &[CERTAIN; 5]).await, BITS + 3);
    assert_eq!(costs("alice", &[CERTAIN]).await, BITS, "nobody else's");
}

/// A client floods while answers are cheap.
#[tokio::test]
async fn answers_that_are_asked_for_at_once_cost_what_they_do_one_by_one() {
    let (world, issuer, model) = working().await;
    let serving = world.serve(&[&model]).await;
    let client = Arc::new(serving.client(world.policy()).await.unwrap());
    let token = issuer.token("mallory");
    let price = wanted(&answer(&client, &token, &[UNCERTAIN], &["x"]).await);
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..40_u8 {
        let image = UNCERTAIN.map(|value| value + 1e-3 * f32::from(number));
        let found = puzzle(price, &[image]).exactly(BITS);
        let (client, token) = (Arc::clone(&client), token.clone());
        flood.spawn(async move {
            let answer = answer(&client, &token, &[image], &[&found]).await;
            answer.status()
        });
    }
    let statuses = flood.join_all().await;
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    // Five of them tell more than 4.
    assert_eq!(count(StatusCode::OK), 5, "{statuses:?}");
    assert_eq!(count(StatusCode::PRECONDITION_REQUIRED), 35);
}

/// The operator starts servers again, and another beside them.
#[tokio::test]
async fn nothing_that_is_started_makes_answers_cheaper() {
    let (mut world, issuer, model) = working().await;
    let first = world.serve(&[&model]).await;
    let alice = issuer.client(&world, &first.url, "alice").await;
    let mallory = issuer.client(&world, &first.url, "mallory").await;
    ask_each(&alice, &[CERTAIN; 20]).await;
    ask_each(&mallory, &[UNCERTAIN; 14]).await;
    let costs = async |world: &World, url: &Url, subject| {
        price((world, &issuer), url, subject, &[CERTAIN]).await
    };
    assert_eq!(costs(&world, &first.url, "mallory").await, BITS + 3);

    let second = world.serve(&[&model]).await;
    assert!(costs(&world, &second.url, "mallory").await >= BITS + 3);
    // What the other holds counts until it says what it told: one doubling.
    assert!(costs(&world, &second.url, "alice").await <= BITS + 1);
    let alice = issuer.client(&world, &second.url, "alice").await;
    ask_each(&alice, &[CERTAIN; 30]).await;
    assert!(costs(&world, &second.url, "alice").await <= BITS + 1);

    first.running.stopped().await;
    second.running.stopped().await;
    world.stop_broker().await;
    world.start_broker().await;
    let third = world.serve(&[&model]).await;
    assert!(costs(&world, &third.url, "mallory").await >= BITS + 3);
    assert!(costs(&world, &third.url, "alice").await <= BITS + 2);
}

/// A request as it is, with what was found, or none.
async fn answer(client: &Client, token: &str, images: &[Image], found: &[&str]) -> Response<Bytes> {
    let encoded = request_of(images).encode(false).unwrap();
    let mut builder = Request::post("/v2/models/digits/infer");
    for number in found {
        builder = builder.header(WORK, *number);
    }
    let builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
    let request = builder.body(encoded.body).unwrap();
    client.request(&request).await.unwrap()
}

fn wanted(answer: &Response<Bytes>) -> WorkWanted {
    assert_eq!(answer.status(), StatusCode::PRECONDITION_REQUIRED);
    answer.headers()[WORK].to_str().unwrap().parse().unwrap()
}

/// What is to be solved for these.
fn puzzle(wanted: WorkWanted, images: &[Image]) -> Puzzle {
    let encoded = request_of(images).encode(false).unwrap();
    Puzzle::new(&wanted.salt, None, &encoded.body)
}

trait Solve {
    fn exactly(&self, bits: u32) -> String;
}

impl Solve for Puzzle {
    /// A number that is worth no more than so many bits, as others are by chance.
    fn exactly(&self, bits: u32) -> String {
        let found = (0..).find(|number| self.bits(*number) == bits);
        found.unwrap().to_string()
    }
}

/// A number that is enough for one image alone.
fn solved(wanted: WorkWanted, image: Image, others: &[(WorkWanted, Image)]) -> String {
    let own = puzzle(wanted, &[image]);
    let others: Vec<Puzzle> = others
        .iter()
        .map(|(wanted, image)| puzzle(*wanted, &[*image]))
        .collect();
    let enough = |puzzle: &Puzzle, number| puzzle.bits(number) >= wanted.bits;
    (0..)
        .find(|number| enough(&own, *number) && !others.iter().any(|other| enough(other, *number)))
        .unwrap()
        .to_string()
}

#[tokio::test]
async fn what_was_found_is_for_one_request_of_one_client() {
    let (world, issuer, model) = working().await;
    let serving = world.serve(&[&model]).await;
    let client = serving.client(world.policy()).await.unwrap();
    let (alice, bob) = (issuer.token("alice"), issuer.token("bob"));
    let asked =
        async |token: &str, image, found: &[&str]| answer(&client, token, &[image], found).await;
    let nothing = asked(&alice, CERTAIN, &["x"]).await;
    assert_eq!(
        inner_refusal(&nothing),
        (
            428,
            "this answer costs work, about 2^8 hashes: ask with a client of Occlude or through its \
             proxy, which do it"
                .to_owned()
        )
    );
    let of_alice = wanted(&nothing);
    let of_bob = wanted(&asked(&bob, CERTAIN, &["x"]).await);
    assert_eq!((of_alice.bits, of_bob.bits), (BITS, BITS));
    assert_ne!(of_alice.salt, of_bob.salt);
    let others = [(of_bob, CERTAIN), (of_alice, UNCERTAIN)];
    let found = solved(of_alice, CERTAIN, &others);
    let bad = [
        asked(&bob, CERTAIN, &[&found]).await,
        asked(&alice, UNCERTAIN, &[&found]).await,
        asked(&alice, CERTAIN, &[&format!("+{found}")]).await,
        asked(&alice, CERTAIN, &[&found, &found]).await,
        asked(&alice, CERTAIN, &["18446744073709551616"]).await,
    ];
    for answer in &bad {
        assert_eq!(wanted(answer).bits, BITS);
    }
    // Whoever asks the same again learns nothing more.
    for _ in 0..2 {
        let answer = asked(&alice, CERTAIN, &[&found]).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[WORK], of_alice.to_string());
    }
}

/// What no certainty can be read from is not answered: or nothing would ever cost more.
#[tokio::test]
async fn answers_that_are_no_probabilities_are_not_given() {
    needs_probabilities("[work]\nbits = 1\ngain = 4.0\nmost-bits = 2\n").await;
}
