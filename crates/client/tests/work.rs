//! Work that a server wants, which clients do and programs behind the proxy never see.

mod fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Fake, Manner};
use http::{Request, StatusCode};
use occlude_client::proxy::{Proxy, ProxyOptions};
use occlude_client::{Client, ClientOptions, ErrorKind};
use occlude_inference_protocol::{InferRequest, Tensor};
use url::Url;

async fn connect(fake: &Fake, url: &Url, most_work: u32) -> Client {
    let options = ClientOptions {
        most_work,
        ..ClientOptions::default()
    };
    Client::connect(url, fake.policy(), &options).await.unwrap()
}

fn post(body: &'static str) -> Request<Bytes> {
    Request::post("/v2/models/digits/infer")
        .body(Bytes::from_static(body.as_bytes()))
        .unwrap()
}

/// What each request said that was opened since.
fn found(fake: &Fake) -> Vec<Option<String>> {
    let opened = std::mem::take(&mut *fake.opened.lock().unwrap());
    let field = |request: &Request<Bytes>| {
        let value = request.headers().get("occlude-work")?;
        Some(value.to_str().unwrap().to_owned())
    };
    opened.iter().map(field).collect()
}

/// What an answer took.
async fn found_by(fake: &Fake, client: &Client, request: &InferRequest) -> Vec<Option<String>> {
    let digits = "digits".parse().unwrap();
    client.infer(&digits, Some(3), request).await.unwrap();
    found(fake)
}

#[tokio::test]
async fn work_is_done_and_its_price_remembered() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&fake, &url, 28).await;
    fake.behave(Manner::Wanting(12));
    let input = Tensor::from_values("image", vec![1, 4], &[1.5_f32, 2.5, 3.5, 4.5]).unwrap();
    let request = InferRequest {
        inputs: vec![input],
        ..InferRequest::default()
    };
    let digits = "digits".parse().unwrap();
    client.infer(&digits, Some(3), &request).await.unwrap();
    let first = found(&fake);
    assert!(matches!(&first[..], [None, Some(_)]), "{first:?}");
    // The next one like it is asked about once.
    client.infer(&digits, Some(3), &request).await.unwrap();
    assert_eq!(found(&fake), [first[1].clone()]);
    // Where it has become dearer, once more; and a larger one is another.
    fake.behave(Manner::Wanting(20));
    client.infer(&digits, Some(3), &request).await.unwrap();
    assert_eq!(found(&fake).len(), 2);
    // Where it has become cheaper, what was done once more was too much.
    let dear = found_by(&fake, &client, &request).await;
    fake.behave(Manner::Wanting(4));
    assert_eq!(found_by(&fake, &client, &request).await, dear);
    let cheap = found_by(&fake, &client, &request).await;
    let number = |found: &[Option<String>]| found[0].as_ref().unwrap().parse::<u64>().unwrap();
    assert!(number(&cheap) < number(&dear), "{cheap:?}");
    client.request(&post("0123456789")).await.unwrap();
    client.request(&post("012345678901234")).await.unwrap();
    client.request(&post("0123456789012345")).await.unwrap();
    let of_three = found(&fake);
    let none: Vec<bool> = of_three.iter().map(Option::is_none).collect();
    assert_eq!(none, [true, false, false, true, false]);
}

#[tokio::test]
async fn too_much_work_is_not_begun() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&fake, &url, 9).await;
    fake.behave(Manner::Wanting(10));
    let error = client.request(&post("{}")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the answer costs work, about 2^10 hashes, and no more than 2^9 are done: allow more with \
         --most-work 10, or ask about less at once"
    );
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert_eq!(found(&fake), [None]);
    // Where it has become less, it is done.
    fake.behave(Manner::Wanting(4));
    let answer = client.request(&post("{}")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn who_never_has_enough_is_not_worked_for_without_end() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&fake, &url, 28).await;
    let zeros = "1 0000000000000000000000000000000000000000000000000000000000000000";
    fake.behave(Manner::Insatiable(zeros));
    let answer = client.request(&post("{}")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PRECONDITION_REQUIRED);
    assert_eq!(found(&fake).len(), 5);
    for malformed in ["", "1", "1 00", "-1 00"] {
        fake.behave(Manner::Insatiable(malformed));
        let client = connect(&fake, &url, 28).await;
        let answer = client.request(&post("{}")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PRECONDITION_REQUIRED);
        assert_eq!(found(&fake), [None], "{malformed}");
    }
}

#[tokio::test]
async fn a_request_that_says_itself_what_was_found_goes_as_it_is() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&fake, &url, 28).await;
    fake.behave(Manner::Wanting(30));
    let mut request = post("{}");
    let number = http::HeaderValue::from_static("7");
    request.headers_mut().insert("occlude-work", number);
    let answer = client.request(&request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PRECONDITION_REQUIRED);
    assert_eq!(found(&fake), [Some("7".to_owned())]);
}

/// The work of a request whose sender is gone would go on for longer than this test.
#[test]
fn work_that_nobody_waits_for_is_given_up() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (fake, url) = Fake::new().start().await;
        let client = connect(&fake, &url, 64).await;
        fake.behave(Manner::Wanting(64));
        let request = post("{}");
        let begun = async {
            while fake.opened.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        tokio::select! {
            answer = client.request(&request) => panic!("{answer:?}"),
            () = begun => {}
        }
        assert_eq!(found(&fake), [None]);
    });
    // Ends once no thread of it works any more.
    let dropped = Instant::now();
    drop(runtime);
    assert!(dropped.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn programs_behind_the_proxy_get_answers_as_if_they_cost_nothing() {
    let (fake, url) = Fake::new().start().await;
    fake.behave(Manner::Wanting(12));
    let listen = "127.0.0.1:0".parse().unwrap();
    let mut options = ProxyOptions::new(listen, url, fake.policy());
    options.client.most_work = 12;
    let proxy = Proxy::bind(options).unwrap();
    let address = format!("http://{}/v2/models/digits/infer", proxy.local_address());
    tokio::spawn(proxy.run(std::future::pending()));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = async || {
        let answer = http.post(&address).body("{}").send().await.unwrap();
        let named = answer.headers().contains_key("occlude-work");
        assert!(!named, "what is between proxy and server stays there");
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, body) = asked().await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"outputs\""), "{body}");
    fake.behave(Manner::Wanting(30));
    let (status, body) = asked().await;
    assert_eq!(status, 428);
    assert!(body.contains("allow more with --most-work 30"), "{body}");
}
