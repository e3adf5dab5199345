//! What honest users and honest mistakes meet.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use occlude_attest::TeeKind;
use occlude_client::proxy::{Proxy, ProxyOptions};
use occlude_client::{ClientError, ClientOptions, ErrorKind, observe};
use occlude_inference_protocol::{DataType, InferRequest, InferResponse, RequestedOutput, Tensor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{
    FEATURES, Serving, World, assert_close, eventually, example, expected, http, id, inner_refusal,
    refusal, request, request_of, serve,
};

async fn serving(world: &World) -> Serving {
    let model = world.publish("digits", 3, 1.0).await;
    world.serve(&[&model]).await
}

#[tokio::test]
async fn a_verified_client_gets_the_plain_models_answer() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let client = serving.client(world.policy()).await.unwrap();

    let response = client.infer(&id("digits"), None, &request()).await.unwrap();
    assert_eq!(response.model_name, "digits");
    assert_eq!(response.model_version.as_deref(), Some("3"));
    let scores = response.output("scores").unwrap();
    assert_eq!(scores.shape(), [1, 8]);
    assert_close(&scores.to_values::<f32>().unwrap(), &expected(1.0));

    let metadata = client.model_metadata(&id("digits"), Some(3)).await.unwrap();
    assert_eq!(metadata.versions, Some(vec!["3".to_owned()]));
    assert_eq!(metadata.inputs[0].name, "image");
    assert_eq!(metadata.inputs[0].datatype, DataType::Fp32);
    assert_eq!(metadata.inputs[0].shape, [-1, FEATURES as i64]);
    let server = client.server_metadata().await.unwrap();
    assert_eq!(server.name, "occlude");
    assert_eq!(server.extensions, ["binary_tensor_data"]);
}

#[tokio::test]
async fn the_statement_says_what_is_served_and_how() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let seen = observe(&serving.url, &ClientOptions::default())
        .await
        .unwrap();
    let statement = seen.statement();
    assert_eq!(statement, &serving.statement);
    assert_eq!(statement.tee, TeeKind::Simulated);
    assert_eq!(statement.owners, [world.owner.public()]);
    assert_eq!(statement.models.len(), 1);
    assert_eq!(statement.models[0].id, id("digits"));
    assert_eq!(statement.models[0].version, 3);
    let configuration = &statement.configuration;
    assert_eq!(
        configuration.broker.as_deref(),
        Some(format!("http://{}/", world.broker_address).as_str())
    );
    assert_eq!(configuration.kem, "x-wing");
    assert_eq!(configuration.maximum_request_bytes, 1 << 20);
    assert_eq!(
        seen.claims().configuration(),
        Some(&configuration.digest()),
        "the evidence measures the configuration"
    );
}

#[tokio::test]
async fn of_two_versions_the_highest_answers_unless_one_is_named() {
    let world = World::new().await;
    let old = world.publish("digits", 1, 1.0).await;
    let new = world.publish("digits", 2, 2.0).await;
    let other = world.publish("letters", 7, 3.0).await;
    let serving = world.serve(&[&old, &new, &other]).await;
    let client = serving.client(world.policy()).await.unwrap();
    for (name, version, factor) in [
        ("digits", None, 2.0),
        ("digits", Some(1), 1.0),
        ("digits", Some(2), 2.0),
        ("letters", None, 3.0),
    ] {
        let response = client.infer(&id(name), version, &request()).await.unwrap();
        let scores = response.output("scores").unwrap();
        assert_close(&scores.to_values::<f32>().unwrap(), &expected(factor));
    }
    let metadata = client.model_metadata(&id("digits"), None).await.unwrap();
    assert_eq!(
        metadata.versions,
        Some(vec!["2".to_owned(), "1".to_owned()])
    );
}

#[tokio::test]
async fn an_unmodified_program_gets_json_through_the_proxy() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let listen = "127.0.0.1:0".parse().unwrap();
    let proxy = Proxy::bind(ProxyOptions::new(
        listen,
        serving.url.clone(),
        world.policy(),
    ))
    .unwrap();
    proxy.verify().await.unwrap();
    let base = format!("http://{}", proxy.local_address());
    tokio::spawn(proxy.run(std::future::pending()));

    let ready = http().get(format!("{base}/v2/health/ready")).send().await;
    assert_eq!(ready.unwrap().text().await.unwrap(), r#"{"ready":true}"#);
    let body = serde_json::json!({
        "id": "7",
        "inputs": [{"name": "image", "shape": [1, FEATURES], "datatype": "FP32", "data": example()}],
    });
    let answer = http()
        .post(format!("{base}/v2/models/digits/infer"))
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let answer: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(answer["id"], "7");
    assert_eq!(answer["outputs"][0]["shape"], serde_json::json!([1, 8]));
    let scores: Vec<f32> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
    assert_close(&scores, &expected(1.0));
}

#[tokio::test]
async fn a_wrong_input_is_refused_with_what_was_expected() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let client = serving.client(world.policy()).await.unwrap();
    let digits = id("digits");
    let image = |shape: Vec<u64>| {
        let count = shape.iter().product::<u64>() as usize;
        Tensor::from_values("image", shape, &vec![0f32; count]).unwrap()
    };
    let with = |inputs| InferRequest {
        inputs,
        ..InferRequest::default()
    };
    let cases = [
        (
            with(vec![
                Tensor::from_values("picture", vec![1], &[0f32]).unwrap(),
            ]),
            "400 Bad Request: the model has no input `picture`; its inputs are `image`",
        ),
        (
            with(Vec::new()),
            "400 Bad Request: the input `image` (FP32, shape [any, 64]) is missing",
        ),
        (
            with(vec![image(vec![1, 63])]),
            "400 Bad Request: the input `image` takes shape [any, 64], not [1, 63]",
        ),
        (
            with(vec![
                Tensor::from_values("image", vec![1, 64], &[0i64; 64]).unwrap(),
            ]),
            "400 Bad Request: the input `image` takes FP32, not INT64",
        ),
        (
            InferRequest {
                outputs: vec![RequestedOutput::new("logits")],
                ..with(vec![image(vec![1, 64])])
            },
            "400 Bad Request: the model has no output `logits`; its outputs are `scores`",
        ),
    ];
    for (request, expected) in cases {
        let error = client.infer(&digits, None, &request).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), ErrorKind::Failed);
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_the_protocol_is_told_inside_the_channel() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let infer = "/v2/models/digits/infer";
    let post = |path: &str, body: &'static str| {
        Request::post(path).body(Bytes::from_static(body.as_bytes()))
    };
    let cases = [
        (
            post("/v2/models/letters/infer", "{}"),
            (404, "there is no model \"letters\""),
        ),
        (
            post("/v2/models/digits/versions/4/infer", "{}"),
            (404, "model \"digits\" has no version \"4\", it has 3"),
        ),
        (post("/v2/models", ""), (404, "there is nothing here")),
        (
            Request::get(infer).body(Bytes::new()),
            (405, "this method is not for this path"),
        ),
        (
            Request::post(infer)
                .header("inference-header-content-length", "many")
                .body(Bytes::new()),
            (
                400,
                "expected one whole number in Inference-Header-Content-Length",
            ),
        ),
        (
            Request::post(infer)
                .header("content-encoding", "gzip")
                .body(Bytes::new()),
            (
                415,
                "compressed bodies are not taken: their size tells about their contents",
            ),
        ),
        (post(infer, ""), (400, "the body is empty")),
        (
            post(infer, "image"),
            (400, "line 1, column 1: this is not JSON"),
        ),
    ];
    for (request, (status, text)) in cases {
        let answer = serving.ask(&request.unwrap()).await;
        assert_eq!(inner_refusal(&answer), (status, text.to_owned()));
    }
}

#[tokio::test]
async fn an_answer_that_json_cannot_say_is_not_the_requests_fault() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1e38).await;
    let serving = world.serve(&[&model]).await;
    let client = serving.client(world.policy()).await.unwrap();
    let large: Vec<f32> = example().iter().map(|value| value * 1e30).collect();
    let image = Tensor::from_values("image", vec![1, FEATURES as u64], &large).unwrap();
    let mut request = InferRequest {
        inputs: vec![image],
        ..InferRequest::default()
    };
    let post = |request: &InferRequest| {
        let body = request.encode(false).unwrap().body;
        Request::post("/v2/models/digits/infer").body(body).unwrap()
    };
    let answer = client.request(&post(&request)).await.unwrap();
    assert_eq!(
        inner_refusal(&answer),
        (
            406,
            "element 0 of `scores` is not finite, which JSON cannot say: ask for binary data"
                .to_owned()
        )
    );

    request.binary_data_output = true;
    let answer = client.request(&post(&request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let header = answer.headers()["inference-header-content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let answer = InferResponse::decode(answer.body(), Some(header)).unwrap();
    let scores = answer.output("scores").unwrap().to_values::<f32>().unwrap();
    assert!(!scores[0].is_finite(), "{}", scores[0]);
}

#[tokio::test]
async fn answers_and_errors_have_one_size_on_the_wire() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let mut sizes = Vec::new();
    for path in ["/v2", "/v2/models/digits", "/v2/models/absent", "/x"] {
        let (sealed, _) = serving.seal(&Request::get(path).body(Bytes::new()).unwrap());
        let answer = serving.post(sealed).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "message/ohttp-res");
        sizes.push(answer.bytes().await.unwrap().len());
    }
    sizes.dedup();
    assert_eq!(sizes.len(), 1, "{sizes:?}");
}

#[tokio::test]
async fn outside_the_channel_there_is_no_inference() {
    let world = World::new().await;
    let serving = serving(&world).await;
    for path in [
        "v2",
        "v2/models/digits",
        "v2/models/digits/infer",
        "v2/health/ready",
    ] {
        let url = serving.url.join(path).unwrap();
        let answer = http().post(url).body("{}").send().await.unwrap();
        let expected = "inference is answered only inside the channel: \
                        use `occlude infer` or `occlude proxy`";
        assert_eq!(refusal(answer).await, (421, expected.to_owned()));
    }
    let answer = serving.get("models").await;
    assert_eq!(
        refusal(answer).await,
        (404, "there is nothing here".to_owned())
    );
}

#[tokio::test]
async fn a_nonce_is_exactly_64_hexadecimal_digits() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let long = format!("?nonce={}", "a5".repeat(33));
    let upper = format!("?nonce={}", "A5".repeat(32));
    let more = format!("?nonce={}&more=1", "a5".repeat(32));
    let request = format!("?nonce={}&request=%", "a5".repeat(32));
    for query in ["", "?nonce=", "?nonce=a5", &long, &upper, &more, &request] {
        let answer = serving
            .get(&format!(".well-known/occlude/attestation{query}"))
            .await;
        assert_eq!(
            refusal(answer).await,
            (
                400,
                "expected ?nonce= and exactly 64 lower-case hexadecimal digits".to_owned()
            ),
            "{query}"
        );
    }
}

/// Only IBM Secure Execution has a use for one.
#[tokio::test]
async fn a_verifiers_request_is_read_by_the_tee_that_needs_one_alone() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let query = format!("?nonce={}&request=e30", "a5".repeat(32));
    let answer = serving
        .get(&format!(".well-known/occlude/attestation{query}"))
        .await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn an_oversized_body_is_refused_whether_its_length_is_told_or_not() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let too_large = "the encapsulated request is longer than 1048576 bytes";
    // The server answers to the length alone and closes, so nothing more is sent.
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    let head = "POST /.well-known/occlude/channel HTTP/1.1\r\nhost: x\r\n\
                content-type: message/ohttp-req\r\ncontent-length: 1048577\r\n\
                connection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains(too_large), "{answer}");

    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    let head = "POST /.well-known/occlude/channel HTTP/1.1\r\nhost: x\r\n\
                content-type: message/ohttp-req\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and close before it has read all of this.
    let _ = stream.write_all(b"100001\r\n").await;
    let _ = stream.write_all(&vec![0; (1 << 20) + 1]).await;
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains(too_large), "{answer}");

    let client = serving.client(world.policy()).await.unwrap();
    let image = Tensor::from_values("image", vec![8192, 64], &vec![0f32; 8192 * 64]).unwrap();
    let request = InferRequest {
        inputs: vec![image],
        ..InferRequest::default()
    };
    let error = client
        .infer(&id("digits"), None, &request)
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::RequestTooLarge {
                limit: 1_048_576,
                ..
            }
        ),
        "{error}"
    );
}

/// Reads until the peer is silent for a moment or closes.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let wait = Duration::from_secs(5);
    while let Ok(Ok(read @ 1..)) = tokio::time::timeout(wait, stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..read]);
        if answer.windows(4).any(|window| window == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_no_encapsulated_request_is_refused() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let channel = serving.url.join(".well-known/occlude/channel").unwrap();
    let answer = http().post(channel).body("{}").send().await.unwrap();
    assert_eq!(
        refusal(answer).await,
        (
            415,
            "expected an encapsulated request of type message/ohttp-req".to_owned()
        )
    );
    assert_eq!(
        refusal(serving.post(Vec::new()).await).await,
        (
            400,
            "the encapsulated request has 0 bytes, the shortest possible has 1143".to_owned()
        )
    );
}

/// Begins a request whose body stays incomplete.
async fn begin(serving: &Serving, body: &[u8], length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    let head = format!(
        "POST /.well-known/occlude/channel HTTP/1.1\r\nhost: x\r\n\
         content-type: message/ohttp-req\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream
}

const OVERLOADED: &str = "too many requests are in flight: try again";

#[tokio::test]
async fn connections_that_declare_much_and_send_little_block_nobody() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut options = world.options(&[&model]);
    options.requests_in_flight = 1;
    // For one request of the largest size.
    options.request_memory = 3 << 20;
    let serving = serve(options).await.unwrap();
    let client = serving.client(world.policy()).await.unwrap();
    let mut idle = Vec::new();
    for body in [b"".as_slice(), b"x", b"", b"x"] {
        idle.push(begin(&serving, body, 1 << 20).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.infer(&id("digits"), None, &request()).await.unwrap();
}

#[tokio::test]
async fn a_request_for_which_there_is_no_memory_is_sent_away_and_may_come_back() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut options = world.options(&[&model]);
    options.request_memory = 3 << 20;
    let serving = serve(options).await.unwrap();
    let client = serving.client(world.policy()).await.unwrap();
    let taken = |bytes: u64| format!("occlude_request_bytes_in_flight {bytes}\n");

    let first = begin(&serving, &vec![0; (1 << 20) - 1], 1 << 20).await;
    eventually("the bytes that came are counted", async || {
        metrics(&serving).await.contains(&taken(3 << 20))
    })
    .await;
    let digits = id("digits");
    let error = client.infer(&digits, None, &request()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is unavailable: 503 Service Unavailable \"{OVERLOADED}\"",
            serving.url
        )
    );
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    drop(first);
    eventually("given back", async || {
        metrics(&serving).await.contains(&taken(0))
    })
    .await;
    client.infer(&digits, None, &request()).await.unwrap();
}

/// Asks for answers of 1 MiB for each row, or some 3 MiB in JSON.
fn tiles_request(rows: usize, binary: bool) -> Request<Bytes> {
    let request = InferRequest {
        binary_data_output: binary,
        ..request_of(rows)
    };
    let encoded = request.encode(true).unwrap();
    let length = encoded.inference_header_content_length.unwrap();
    Request::post("/v2/models/tiles/infer")
        .header("inference-header-content-length", length)
        .body(encoded.body)
        .unwrap()
}

const NO_MEMORY: &str =
    "there is no memory left for the answer: try again, or ask for less at once";

#[tokio::test]
async fn an_answer_for_which_there_is_no_memory_is_refused_inside_the_channel() {
    let world = World::new().await;
    let model = world.publish_tiled("tiles").await;
    let mut options = world.options(&[&model]);
    // 1 MiB and a little is padded to 2 MiB and held up to four times.
    options.request_memory = 9 << 20;
    let serving = serve(options).await.unwrap();
    for (rows, binary) in [(2, true), (1, false)] {
        let refused = serving.ask(&tiles_request(rows, binary)).await;
        assert_eq!(
            inner_refusal(&refused),
            (503, NO_MEMORY.to_owned()),
            "{rows} rows, binary: {binary}"
        );
    }
    let answer = serving.ask(&tiles_request(1, true)).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.body().len() > 1 << 20);
}

#[tokio::test]
async fn tensors_as_text_for_which_there_is_no_memory_are_refused_inside_the_channel() {
    const ROWS: usize = 1800;
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut options = world.options(&[&model]);
    // A little more than 512 KiB come: three times that is reserved, or five times.
    options.request_memory = 2 << 20;
    let serving = serve(options).await.unwrap();
    let ask = async |request: &InferRequest, binary| {
        let encoded = request.encode(binary).unwrap();
        assert!((400 << 10..500 << 10).contains(&encoded.body.len()));
        let mut inner = Request::post("/v2/models/digits/infer");
        if let Some(length) = encoded.inference_header_content_length {
            inner = inner.header("inference-header-content-length", length);
        }
        serving.ask(&inner.body(encoded.body).unwrap()).await
    };
    let as_data = InferRequest {
        binary_data_output: true,
        ..request_of(ROWS)
    };
    let answered = ask(&as_data, true).await;
    assert_eq!(answered.status(), 200);
    let zeros = vec![0_i64; ROWS * FEATURES * 2];
    let image = Tensor::from_values("image", vec![2 * ROWS as u64, 64], &zeros).unwrap();
    let as_text = InferRequest {
        inputs: vec![image],
        ..InferRequest::default()
    };
    let refused = ask(&as_text, false).await;
    assert_eq!(
        inner_refusal(&refused),
        (
            503,
            "there is no memory left for tensors as text: try again, or send them as binary data"
                .to_owned()
        )
    );
}

#[tokio::test]
async fn an_answer_that_nobody_takes_holds_memory_until_its_connection_is_closed() {
    const ROWS: usize = 16;
    let world = World::new().await;
    let model = world.publish_tiled("tiles").await;
    let mut options = world.options(&[&model]);
    // Four times 17 MiB for one answer while it is made, 17 MiB while it is sent.
    options.request_memory = 80 << 20;
    options.body_time = Duration::from_secs(3);
    let serving = serve(options).await.unwrap();
    let request = tiles_request(ROWS, true);
    assert_eq!(serving.ask(&request).await.status(), 200);

    let (sealed, _) = serving.seal(&request);
    let mut idle = begin(&serving, &sealed, sealed.len()).await;
    idle.read_exact(&mut [0; 1]).await.unwrap();
    let refused = serving.ask(&request).await;
    assert_eq!(inner_refusal(&refused), (503, NO_MEMORY.to_owned()));

    eventually("the memory is given back", async || {
        serving.ask(&request).await.status() == 200
    })
    .await;
    let mut rest = Vec::new();
    let read = idle.read_to_end(&mut rest).await;
    assert!(read.is_err() || rest.len() < ROWS << 20, "it was closed");
}

#[tokio::test]
async fn a_request_for_which_there_is_no_place_is_sent_away() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut options = world.options(&[&model]);
    options.requests_in_flight = 0;
    let serving = serve(options).await.unwrap();
    let (sealed, _) = serving.seal(&Request::get("/v2").body(Bytes::new()).unwrap());
    assert_eq!(
        refusal(serving.post(sealed).await).await,
        (503, OVERLOADED.to_owned())
    );
}

#[tokio::test]
async fn a_head_is_refused_when_it_is_too_long() {
    let world = World::new().await;
    let serving = serving(&world).await;
    for (length, expected) in [(60 * 1024, "HTTP/1.1 200 "), (256 * 1024, "HTTP/1.1 431 ")] {
        let mut stream = TcpStream::connect(serving.address).await.unwrap();
        let head = format!(
            "GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n",
            "a".repeat(length)
        );
        // The server may answer and close before it has read all of this.
        let _ = stream.write_all(head.as_bytes()).await;
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with(expected), "{length}: {answer}");
    }
}

#[tokio::test]
async fn a_connection_whose_head_does_not_arrive_within_15_seconds_is_closed() {
    let world = World::new().await;
    let serving = serving(&world).await;
    // One that sends nothing, and one that always sends a little more.
    tokio::join!(
        closed_in_time(&serving, b""),
        closed_in_time(&serving, b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ")
    );
}

/// Sends the beginning of a head, then one byte more each second if there was one,
/// until the server closes the connection.
async fn closed_in_time(serving: &Serving, begun: &[u8]) {
    let start = Instant::now();
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    stream.write_all(begun).await.unwrap();
    let mut answer = [0; 256];
    let second = Duration::from_secs(1);
    while tokio::time::timeout(second, stream.read(&mut answer))
        .await
        .is_err()
    {
        assert!(start.elapsed() < Duration::from_secs(20), "never closed");
        if !begun.is_empty() {
            let _ = stream.write_all(b"a").await;
        }
    }
    assert!(start.elapsed() > Duration::from_secs(14), "closed early");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_refused() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut options = world.options(&[&model]);
    options.body_time = Duration::from_millis(300);
    let serving = serve(options).await.unwrap();
    let mut stream = begin(&serving, b"slow", 1000).await;
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn a_request_in_flight_is_finished_when_the_server_stops() {
    let world = World::new().await;
    let mut serving = serving(&world).await;
    let (sealed, opener) = serving.seal(&Request::get("/v2").body(Bytes::new()).unwrap());
    let half = sealed.len() / 2;
    let mut stream = begin(&serving, &sealed[..half], sealed.len()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    serving.running.ask_to_stop();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        TcpStream::connect(serving.address).await.is_err(),
        "new connections are not taken"
    );
    stream.write_all(&sealed[half..]).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let head = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    let answer = opener.open(&answer[head + 4..]).unwrap();
    assert_eq!(answer.status(), 200);
    serving.running.stopped().await;
}

#[tokio::test]
async fn health_and_metrics_tell_nothing_of_what_was_asked() {
    let world = World::new().await;
    let serving = serving(&world).await;
    let health = serving.get("healthz").await;
    assert_eq!(health.status(), 200);
    assert_eq!(
        health.text().await.unwrap(),
        r#"{"live":true,"ready":true}"#
    );

    let client = serving.client(world.policy()).await.unwrap();
    client.infer(&id("digits"), None, &request()).await.unwrap();
    let before = metrics(&serving).await;
    // An error inside counts like an answer.
    let absent = Request::get("/v2/models/absent").body(Bytes::new());
    assert_eq!(serving.ask(&absent.unwrap()).await.status(), 404);
    let after = metrics(&serving).await;
    for text in [&before, &after] {
        for word in ["digits", "absent", "image", "scores", "status=\"404\""] {
            assert!(!text.contains(word), "{word} is in\n{text}");
        }
    }
    for line in [
        "occlude_http_requests_total{route=\"attestation\",status=\"200\"} 1",
        "occlude_http_requests_total{route=\"channel\",status=\"200\"} 2",
        "occlude_channel_requests_total{result=\"opened\"} 2",
        "occlude_attestation_successes_total{tee_type=\"simulated\"} 1",
        "occlude_models_loaded 1",
        "occlude_requests_in_flight 0",
        "occlude_request_bytes_in_flight 0",
    ] {
        assert!(
            after.lines().any(|found| found == line),
            "{line} is not in\n{after}"
        );
    }
}

pub(crate) async fn metrics(serving: &Serving) -> String {
    serving.get("metrics").await.text().await.unwrap()
}

#[tokio::test]
async fn the_other_key_encapsulation_is_stated_and_judged() {
    let world = World::new().await;
    let model = world.publish("digits", 1, 1.0).await;
    let mut options = world.options(&[Path::new(&model)]);
    options.kem = occlude_channel::Kem::X25519;
    let serving = serve(options).await.unwrap();
    let error = serving.client(world.policy()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let weaker = world.policy_with("[service.configuration]\nkem = [\"x25519\"]");
    let client = serving.client(weaker).await.unwrap();
    let response = client.infer(&id("digits"), None, &request()).await.unwrap();
    let scores = response.output("scores").unwrap();
    assert_close(&scores.to_values::<f32>().unwrap(), &expected(1.0));
}
