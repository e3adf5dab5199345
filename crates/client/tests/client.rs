//! The client against a server that it should believe, and against every manner
//! in which a man in the middle or a look-alike can answer.

mod fake;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fake::ultravisor::Ultravisor;
use fake::{Fake, Manner, gateway};
use http::{Request, StatusCode};
use occlude_attest::{AttestationResponse, Policy, Refusal, TeeKind, VerifyError};
use occlude_client::{Client, ClientError, ClientOptions, ErrorKind, observe};
use occlude_inference_protocol::{InferRequest, Tensor};
use occlude_keys::{ModelId, OwnerKey};
use url::Url;

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

async fn connect(url: &Url, policy: Policy) -> Result<Client, ClientError> {
    Client::connect(url, policy, &ClientOptions::default()).await
}

/// Neither text nor structure of the request is in what the network saw.
fn assert_nothing_in_the_clear(fake: &Fake, secret: &[u8]) {
    for body in fake.received.lock().unwrap().iter() {
        assert!(!body.windows(secret.len()).any(|window| window == secret));
    }
}

#[tokio::test]
async fn a_verified_server_answers_and_the_network_sees_nothing_of_it() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    let verified = client.verified().await.unwrap();
    assert_eq!(verified.claims().tee(), TeeKind::Simulated);
    assert_eq!(verified.statement(), &fake.statement());

    let input = Tensor::from_values("image", vec![1, 4], &[1.5f32, 2.5, 3.5, 4.5]).unwrap();
    let request = InferRequest {
        inputs: vec![input.clone()],
        ..InferRequest::default()
    };
    let response = client
        .infer(&"digits".parse().unwrap(), Some(3), &request)
        .await
        .unwrap();
    let output = response.output("y").unwrap();
    assert_eq!(output.to_values::<f32>().unwrap(), [0.5, 2.0]);

    let opened = fake.opened.lock().unwrap().remove(0);
    assert_eq!(opened.uri().path(), "/v2/models/digits/versions/3/infer");
    assert_nothing_in_the_clear(&fake, input.data());
    assert_nothing_in_the_clear(&fake, b"digits");
    assert_eq!(client.server_metadata().await.unwrap().name, "fake");
    assert_eq!(
        *fake.asked.lock().unwrap(),
        1,
        "one verification serves all"
    );
}

#[tokio::test]
async fn the_default_policy_refuses_a_simulated_server() {
    let (_fake, url) = Fake::new().start().await;
    let error = connect(&url, Policy::default()).await.unwrap_err();
    let ClientError::Refused { refusal, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        *refusal,
        Refusal::Tee {
            found: TeeKind::Simulated,
            accepted: TeeKind::DEFAULT.to_vec()
        }
    );
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_genuine_server_of_another_owner_is_refused() {
    let (fake, url) = Fake::new().start().await;
    let policy = fake.policy();
    let expected = *fake.owner.lock().unwrap();
    let other = OwnerKey::generate().public();
    *fake.owner.lock().unwrap() = other;
    let error = connect(&url, policy).await.unwrap_err();
    let ClientError::Refused { refusal, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        refusal,
        Refusal::Owner {
            found: Box::new(other),
            accepted: vec![expected]
        }
    );
}

#[tokio::test]
async fn recorded_evidence_is_refused() {
    let (fake, url) = Fake::new().start().await;
    let recorded = AttestationResponse::collect(
        &occlude_attest::Attester::open(TeeKind::Simulated, fake.configuration.digest()).unwrap(),
        &occlude_attest::Nonce::generate(),
        &fake.statement(),
    )
    .unwrap();
    fake.behave(Manner::Replaying(recorded.encode()));
    let error = connect(&url, fake.policy()).await.unwrap_err();
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
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn fresh_evidence_with_the_channel_key_of_a_man_in_the_middle_is_refused() {
    let (fake, url) = Fake::new().start().await;
    let mut statement = fake.statement();
    statement.channel_keys = gateway().key_configurations();
    fake.behave(Manner::Swapping(Box::new(statement)));
    let error = connect(&url, fake.policy()).await.unwrap_err();
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
    let error = observe(&url, &ClientOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unverified { .. }), "{error}");
}

/// IBM Secure Execution has no quote: the verifier asks first, and only it can verify.
#[tokio::test]
async fn a_machine_of_ibms_is_asked_with_what_the_collateral_has() {
    let (fake, url) = Fake::new().start().await;
    let ultravisor = Arc::new(Ultravisor::new(1, 1));
    fake.behave(Manner::OnIbmZ(Arc::clone(&ultravisor)));
    let folder = tempfile::tempdir().unwrap();
    let options = ClientOptions {
        collateral: Some(folder.path().to_owned()),
        ..ClientOptions::default()
    };
    let error = observe(&url, &options).await.unwrap_err();
    assert!(error.to_string().contains("no request"), "{error}");

    std::fs::write(folder.path().join("hkd.crt"), &ultravisor.document).unwrap();
    std::fs::write(folder.path().join("hdr.bin"), &ultravisor.header).unwrap();
    let service = observe(&url, &options).await.unwrap();
    assert_eq!(service.claims().tee(), TeeKind::Se);
    // The same machine, with an image that the verifier does not know.
    fake.behave(Manner::OnIbmZ(Arc::new(Ultravisor::new(1, 2))));
    let error = observe(&url, &options).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::Unverified {
                source: VerifyError::BadSignature { .. },
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_in_the_clear_is_no_result() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    fake.behave(Manner::InTheClear);
    let error = client.request(&get("/v2/x")).await.unwrap_err();
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
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn an_altered_answer_is_no_result() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    fake.behave(Manner::Altering);
    let error = client.request(&get("/v2/x")).await.unwrap_err();
    assert!(
        matches!(error, ClientError::InauthenticAnswer { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_rotated_key_is_verified_again_and_the_request_sent_once_more() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    let gateway = std::sync::Arc::clone(&fake.gateway.lock().unwrap());
    assert!(
        gateway
            .rotate_if_due(Duration::from_secs(25 * 3600))
            .unwrap()
    );
    let answer = client.request(&get("/v2/x")).await.unwrap();
    assert_eq!(answer.body(), "GET /v2/x");
    assert_eq!(*fake.asked.lock().unwrap(), 2);
    assert_eq!(fake.opened.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_look_alike_that_takes_over_is_refused_before_anything_is_sent_to_it() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    *fake.owner.lock().unwrap() = OwnerKey::generate().public();
    *fake.gateway.lock().unwrap() = std::sync::Arc::new(gateway());
    let error = client.request(&get("/v2/x")).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::Refused {
                refusal: Refusal::Owner { .. },
                ..
            }
        ),
        "{error}"
    );
    // What it received was sealed to the key of the server that was verified.
    assert!(fake.opened.lock().unwrap().is_empty());
    let before = fake.received.lock().unwrap().len();
    client.request(&get("/v2/x")).await.unwrap_err();
    assert_eq!(fake.received.lock().unwrap().len(), before);
}

#[tokio::test]
async fn a_server_that_forgets_every_key_is_unavailable_after_one_more_try() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    fake.behave(Manner::Forgetful);
    let error = client.request(&get("/v2/x")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{url} is unavailable: it does not know the channel key that its own evidence covers"
        )
    );
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(*fake.asked.lock().unwrap(), 2);
    assert_eq!(fake.received.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn old_evidence_is_asked_for_again_and_judged_again() {
    let (fake, url) = Fake::new().start().await;
    let options = ClientOptions {
        reverify: Duration::from_millis(50),
        ..ClientOptions::default()
    };
    let client = Client::connect(&url, fake.policy(), &options)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    client.request(&get("/v2/x")).await.unwrap();
    assert_eq!(*fake.asked.lock().unwrap(), 2);

    tokio::time::sleep(Duration::from_millis(60)).await;
    fake.behave(Manner::Refusing(StatusCode::SERVICE_UNAVAILABLE, "down"));
    let error = client.request(&get("/v2/x")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{url} is unavailable: 503 Service Unavailable \"down\"")
    );
    assert_eq!(fake.received.lock().unwrap().len(), 1, "nothing was sent");
}

#[tokio::test]
async fn errors_inside_and_outside_the_channel_are_told_apart() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    let withdrawn = "withdrawn".parse().unwrap();
    let error = client.model_metadata(&withdrawn, None).await.unwrap_err();
    assert_eq!(error.to_string(), "404 Not Found: it is withdrawn");
    assert_eq!(error.kind(), ErrorKind::Failed);
    let busy = "busy".parse().unwrap();
    let error = client.model_metadata(&busy, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);

    fake.behave(Manner::Refusing(
        StatusCode::NOT_FOUND,
        r#"{"error": "it is withdrawn"}"#,
    ));
    let error = client.model_metadata(&withdrawn, None).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::NotOpened {
                status: StatusCode::NOT_FOUND,
                ..
            }
        ),
        "{error}"
    );
}

/// Every way to ask for a model, and to spell the same path.
const UNLISTED: [&str; 9] = [
    "/v2/models/unlisted",
    "/v2/models/unlisted/infer",
    "/v2/models/unlisted/ready",
    "/v2/models/unlisted/versions/3/infer",
    "/v2/models/unlisted?of=digits",
    "/v2/models/%75nlisted/infer",
    "/v2/models/%75%6E%6c%69%73%74%65%64",
    "/v2/%6dodels/unlisted/infer",
    "https://digits.example/v2/models/unlisted",
];

#[tokio::test]
async fn a_model_that_the_policy_does_not_list_is_refused_before_anything_is_sent() {
    let (fake, url) = Fake::new().start().await;
    let policy = fake.policy();
    fake.serve_also("unlisted");
    let client = connect(&url, policy).await.unwrap();
    let unlisted: ModelId = "unlisted".parse().unwrap();
    let refused = |error: ClientError| {
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(
            error.to_string(),
            format!("nothing was sent to {url}: model unlisted is not in the policy")
        );
        let ClientError::ModelRefused { refusal, .. } = error else {
            panic!("{error}");
        };
        let id = unlisted.clone();
        assert_eq!(refusal, Refusal::ModelNotNamed { id });
    };
    for path in UNLISTED {
        refused(client.request(&get(path)).await.unwrap_err());
    }
    let request = InferRequest::default();
    refused(client.infer(&unlisted, None, &request).await.unwrap_err());
    refused(client.model_metadata(&unlisted, Some(3)).await.unwrap_err());
    assert!(fake.received.lock().unwrap().is_empty());
    assert_eq!(*fake.asked.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_model_that_the_verified_statement_lacks_is_refused_before_anything_is_sent() {
    let (fake, url) = Fake::new().start().await;
    let mut policy = fake.policy().to_toml();
    // Such a policy takes any model of the owner, so only the statement can say no.
    let models = policy.find("[[service.models]]").unwrap();
    let configuration = policy.find("[service.configuration]").unwrap();
    policy.replace_range(models..configuration, "");
    let client = connect(&url, Policy::parse(&policy).unwrap())
        .await
        .unwrap();
    let error = client.request(&get("/v2/models/absent")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let ClientError::ModelRefused { refusal, .. } = error else {
        panic!("{error}");
    };
    let id = "absent".parse().unwrap();
    assert_eq!(refusal, Refusal::ModelNotServed { id });
    assert!(fake.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_models_id_is_refused_before_anything_is_sent() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    for (path, named) in [
        ("/v2/models/", ""),
        ("/v2/models//infer", ""),
        ("/v2/models/../models/digits", ".."),
        ("/v2/models/%2e%2e/digits", ".."),
        ("/v2/models/digits%2finfer", "digits/infer"),
        ("/v2/models/digits%00", "digits\0"),
        ("/v2/models/%ff", "\u{fffd}"),
        ("/v2/models/%2564igits", "%64igits"),
        ("/v2/models/digits+", "digits+"),
        ("/v2/models/%zz", "%zz"),
    ] {
        let error = client.request(&get(path)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let ClientError::NotAModel { source, .. } = error else {
            panic!("{path}: {error}");
        };
        assert_eq!(source.found, named, "{path}");
    }
    assert!(fake.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn listed_models_in_any_spelling_and_paths_that_name_none_pass() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    for path in [
        "/v2/models/digits",
        "/v2/models/%64igits/versions/3/ready",
        "/v2/models/digits?of=unlisted",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
    ] {
        let answer = client.request(&get(path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(fake.opened.lock().unwrap().len(), 7);
}

#[tokio::test]
async fn after_another_verification_the_model_is_judged_again() {
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    client.request(&get("/v2/models/digits")).await.unwrap();
    fake.opened.lock().unwrap().clear();
    // A restart with other models: its keys are new, and so is its statement.
    fake.models.lock().unwrap().retain(|id| *id != "digits");
    *fake.gateway.lock().unwrap() = std::sync::Arc::new(gateway());
    let error = client.request(&get("/v2/models/digits")).await.unwrap_err();
    let ClientError::ModelRefused { refusal, .. } = error else {
        panic!("{error}");
    };
    let id = "digits".parse().unwrap();
    assert_eq!(refusal, Refusal::ModelNotServed { id });
    assert_eq!(*fake.asked.lock().unwrap(), 2);
    assert!(fake.opened.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, other) = Fake::new().start().await;
    let (fake, url) = Fake::new().start().await;
    let client = connect(&url, fake.policy()).await.unwrap();
    fake.behave(Manner::Redirecting(format!(
        "{other}.well-known/occlude/channel"
    )));
    let error = client.request(&get("/v2/x")).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ClientError::NotOpened {
                status: StatusCode::TEMPORARY_REDIRECT,
                ..
            }
        ),
        "{error}"
    );
    assert!(elsewhere.received.lock().unwrap().is_empty());
}

#[tokio::test]
async fn sizes_are_limited_both_ways() {
    let (fake, url) = Fake::new().start().await;
    let options = ClientOptions {
        maximum_answer: 1 << 20,
        ..ClientOptions::default()
    };
    let client = Client::connect(&url, fake.policy(), &options)
        .await
        .unwrap();
    let error = client.request(&get("/v2/models/large")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the answer of {url} is longer than 1048576 bytes")
    );

    let large = Request::post("/v2/x")
        .body(Bytes::from(vec![0; 1 << 20]))
        .unwrap();
    let before = fake.received.lock().unwrap().len();
    let error = client.request(&large).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::RequestTooLarge { limit: 1_048_576, found } if *found > 1 << 20),
        "{error}"
    );
    assert_eq!(fake.received.lock().unwrap().len(), before);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    drop(listener);
    let error = connect(&url, Policy::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("{url} is unavailable: no connection: ")),
        "{text}"
    );
}

#[tokio::test]
async fn evidence_that_is_none_or_endless_is_refused() {
    let (fake, url) = Fake::new().start().await;
    fake.behave(Manner::Replaying(b"{}".to_vec()));
    let error = connect(&url, fake.policy()).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::MalformedEvidence { .. }),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Refused);

    fake.behave(Manner::Replaying(vec![b' '; 1 << 20]));
    let error = connect(&url, fake.policy()).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::AnswerTooLarge { limit, .. } if *limit == AttestationResponse::MAX_BYTES as u64),
        "{error}"
    );
}
