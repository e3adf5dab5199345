//! Queries: counted for ever, whatever is restarted, replayed or rolled back.

use super::rig::{MODEL_KEY, Rig, digest, model_key, policy, record, refusal};
use crate::allowance::{
    Allowance, AllowanceKey, AllowanceRequest, Asked, ClientDigest, Credit, QueryLimits,
    SealedMessage, Unusual, UsageReport,
};
use crate::audit::AuditEvent;
use crate::client::{AttestedSession, FetchError};
use crate::kbs::jwe::{Curve, RecipientKey, TeeKey};
use crate::test_databases::{TestDatabase, on_both_databases};
use occlude_keys::{HeaderDigest, ModelKey};
use serde_json::{Value, json};
use zeroize::Zeroizing;

on_both_databases! {
    queries_are_counted_across_sessions_replicas_and_restarts,
    clients_are_counted_apart_and_versions_together,
    a_withdrawn_version_and_another_measurement_get_no_queries,
    every_allowance_is_in_the_audit_log,
    what_a_client_did_not_learn_is_credited_once_at_every_broker,
    who_is_throttled_waits_at_every_broker,
}

/// Windows of ten years: no test runs while one ends.
const WINDOW_SECONDS: u32 = 315_360_000;

fn asked(queries: u64, client: Option<u8>) -> AllowanceRequest {
    AllowanceRequest {
        client: client.map(|client| ClientDigest::from([client; 32])),
        queries,
        limits: QueryLimits {
            window_seconds: WINDOW_SECONDS,
            window: Some(10),
            total: Some(1000),
        },
        credit: None,
    }
}

impl Rig {
    async fn ask_as(
        &self,
        session: &AttestedSession,
        digest: &HeaderDigest,
        request: &AllowanceRequest,
    ) -> Result<Allowance, FetchError> {
        session
            .allowance(&self.fingerprint(), digest, &model_key(), request)
            .await
    }

    async fn ask(&self, request: &AllowanceRequest) -> Result<Allowance, FetchError> {
        let session = self.session().await?;
        self.ask_as(&session, &digest(7), request).await
    }

    async fn queries(&self, request: &AllowanceRequest) -> u64 {
        self.ask(request).await.unwrap().queries
    }

    async fn refused_queries(&self) -> String {
        match self.ask(&asked(1, None)).await {
            Err(FetchError::Refused { reason }) => reason,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }
}

async fn queries_are_counted_across_sessions_replicas_and_restarts(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let session = rig.session().await.unwrap();
    let asked = asked(4, None);
    for expected in [4, 4] {
        let allowance = rig.ask_as(&session, &digest(7), &asked).await.unwrap();
        assert_eq!(allowance.queries, expected);
        assert!((1..=WINDOW_SECONDS).contains(&allowance.ends_in));
    }
    // Another instance, which has what is left and no more.
    assert_eq!(rig.queries(&asked).await, 2);
    assert_eq!(rig.queries(&asked).await, 0);
    // A broker that starts anew, and the first one still.
    let session = rig.session_at_another_broker().await;
    let allowance = rig.ask_as(&session, &digest(7), &asked).await.unwrap();
    assert_eq!((allowance.queries, allowance.more_later), (0, true));
    let mut more = asked.clone();
    more.limits.window = Some(11);
    let allowance = rig.ask_as(&session, &digest(7), &more).await.unwrap();
    assert_eq!(allowance.queries, 1);
    assert_eq!(rig.queries(&more).await, 0, "what another broker allowed");
}

async fn clients_are_counted_apart_and_versions_together(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    for client in [None, Some(1), Some(2)] {
        assert_eq!(rig.queries(&asked(7, client)).await, 7);
    }
    let mut other = record();
    (other.version, other.header_digest) = (2, digest(8));
    rig.admin
        .add_model(&rig.owner, &other, &model_key())
        .await
        .unwrap();
    let session = rig.session().await.unwrap();
    for client in [None, Some(1), Some(2)] {
        let asked = asked(7, client);
        let allowance = rig.ask_as(&session, &digest(8), &asked).await.unwrap();
        assert_eq!(allowance.queries, 3);
    }
}

async fn a_withdrawn_version_and_another_measurement_get_no_queries(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let accepted = policy(rig.claims().measurement());
    rig.set_policy(&policy("a5".repeat(32))).await;
    let reason = rig.refused_queries().await;
    assert!(reason.contains("measurement"), "{reason}");
    rig.set_policy(&accepted).await;
    assert_eq!(rig.queries(&asked(1, None)).await, 1);
    rig.admin
        .withdraw(&rig.owner, &"digits".parse().unwrap(), 2)
        .await
        .unwrap();
    assert_eq!(
        rig.refused_queries().await,
        "version 1 of digits is withdrawn: the lowest that still gets its key is 2"
    );
}

async fn every_allowance_is_in_the_audit_log(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    for _ in 0..2 {
        rig.queries(&asked(10, Some(5))).await;
    }
    let export = rig.admin.audit(&rig.owner).await.unwrap();
    export.verify().unwrap();
    let mut allowed = Vec::new();
    for entry in export.shown().unwrap() {
        if let AuditEvent::QueriesAllowed {
            client, queries, ..
        } = entry.event
        {
            allowed.push((client.unwrap(), queries));
        }
    }
    let client = ClientDigest::from([5; 32]);
    assert_eq!(allowed, [(client, 10), (client, 0)]);
}

async fn what_a_client_did_not_learn_is_credited_once_at_every_broker(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let gained = |allowance: Allowance| allowance.gained;
    assert_eq!(rig.ask(&asked(4, Some(5))).await.map(gained).unwrap(), 4000);
    let mut credited = asked(1, Some(5));
    credited.credit = Some(Credit {
        of: u64::MAX,
        thousandths: 3500,
    });
    assert_eq!(rig.ask(&credited).await.map(gained).unwrap(), 1500);
    // The instance was not told, and says it again.
    assert_eq!(rig.ask(&credited).await.map(gained).unwrap(), 2500);
    let other = rig.session_at_another_broker().await;
    for (request, expected) in [(&asked(0, Some(5)), 2500), (&credited, 3500)] {
        let allowance = rig.ask_as(&other, &digest(7), request).await;
        assert_eq!(allowance.map(gained).unwrap(), expected);
    }
}

/// What an instance says of client 5.
fn report(throttle_seconds: Option<u32>) -> UsageReport {
    UsageReport {
        client: ClientDigest::from([5; 32]),
        queries: 100,
        uncertain: 60,
        unusual: vec![Unusual::Uncertain],
        throttle_seconds,
    }
}

async fn who_is_throttled_waits_at_every_broker(database: TestDatabase) {
    let rig = Rig::start_on(database).await;
    let (owner, digest, key) = (rig.fingerprint(), digest(7), model_key());
    let session = rig.session().await.unwrap();
    let told = async |report: &UsageReport| {
        let taken = session.report(&owner, &digest, &key, report).await;
        taken.unwrap().throttled_for
    };
    assert_eq!(told(&report(None)).await, 0);
    assert_eq!(rig.queries(&asked(1, Some(5))).await, 1);
    assert_eq!(told(&report(Some(WINDOW_SECONDS))).await, WINDOW_SECONDS);
    let waiting = rig.ask(&asked(1, Some(5))).await.unwrap();
    assert_eq!((waiting.queries, waiting.more_later), (0, true));
    assert!(waiting.ends_in > WINDOW_SECONDS - 600);
    let other = rig.session_at_another_broker().await;
    let waiting = rig.ask_as(&other, &digest, &asked(1, Some(5))).await;
    assert_eq!(waiting.unwrap().queries, 0);
    assert_eq!(rig.queries(&asked(1, Some(6))).await, 1, "somebody else");

    let export = rig.admin.audit(&rig.owner).await.unwrap();
    export.verify().unwrap();
    let mut until = Vec::new();
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
            assert_eq!(client, ClientDigest::from([5; 32]));
            assert_eq!((queries, uncertain), (100, 60));
            assert_eq!(unusual, [Unusual::Uncertain]);
            until.push(throttled_until.map(|until| until - entry.time));
        }
    }
    let [None, Some(seconds)] = until[..] else {
        panic!("{until:?}")
    };
    assert!(seconds <= u64::from(WINDOW_SECONDS));
}

/// A session whose key is the test's own, and what a request has to be sealed with.
struct Raw {
    session: super::rig::Session,
    key: AllowanceKey,
}

impl Raw {
    async fn start(rig: &Rig, model: [u8; 32]) -> Self {
        let session = rig.challenge().await;
        let key = TeeKey::generate(Curve::P256).public();
        let evidence = rig.report(session.binding(&key)).sign();
        assert_eq!(rig.attest(&session, &key, &evidence).await.0, 200);
        let model = ModelKey::new(Zeroizing::new(model));
        let key = AllowanceKey::new(&model, &RecipientKey::try_from(&key).unwrap());
        Self { session, key }
    }

    fn seal(&self, request: AllowanceRequest) -> SealedMessage {
        self.key.seal_request(&Asked::Allowance(request))
    }

    async fn post(&self, rig: &Rig, sealed: &SealedMessage) -> (u16, Value) {
        let path = format!("/occlude/v0/allowance/{}/{}", rig.fingerprint(), digest(7));
        let sealed = serde_json::to_value(sealed).unwrap();
        rig.post_to(&path, &self.session, &sealed).await
    }
}

#[tokio::test]
async fn a_request_is_answered_once_and_in_its_session_alone() {
    let rig = Rig::start().await;
    let first = Raw::start(&rig, MODEL_KEY).await;
    let second = Raw::start(&rig, MODEL_KEY).await;
    let sealed = first.seal(asked(3, None));
    assert_eq!(first.post(&rig, &sealed).await.0, 200);
    let (status, answer) = first.post(&rig, &sealed).await;
    assert_eq!(
        (status, refusal(&answer)),
        (401, "this request was answered already")
    );
    let (status, answer) = second.post(&rig, &sealed).await;
    assert_eq!(status, 401);
    assert_eq!(
        refusal(&answer),
        "the request is not sealed under the model's key and the session's"
    );
    assert_eq!(rig.queries(&asked(10, None)).await, 7, "nothing was spent");
}

#[tokio::test]
async fn a_request_without_the_models_key_a_session_or_sense_is_refused() {
    let rig = Rig::start().await;
    let stranger = Raw::start(&rig, [0xac; 32]).await;
    let sealed = stranger.seal(asked(3, None));
    let (status, answer) = stranger.post(&rig, &sealed).await;
    assert_eq!(status, 401);
    assert_eq!(
        refusal(&answer),
        "the request is not sealed under the model's key and the session's"
    );

    let honest = Raw::start(&rig, MODEL_KEY).await;
    let mut timeless = asked(3, None);
    timeless.limits.window_seconds = 0;
    let sealed = honest.seal(timeless);
    let (status, answer) = honest.post(&rig, &sealed).await;
    assert_eq!(
        (status, refusal(&answer)),
        (400, "a window of 0 seconds, it has 1 or more")
    );

    let mut senseless = report(None);
    senseless.uncertain = senseless.queries + 1;
    let sealed = honest.key.seal_request(&Asked::Report(senseless));
    let (status, answer) = honest.post(&rig, &sealed).await;
    assert_eq!(
        (status, refusal(&answer)),
        (400, "a report of more uncertain answers than answers")
    );

    let owner = rig.fingerprint();
    let sealed = serde_json::to_value(honest.seal(asked(3, None))).unwrap();
    let path = format!("/occlude/v0/allowance/{owner}/{}", digest(7));
    let (status, answer) = rig.post(&path, &sealed).await;
    assert_eq!((status, refusal(&answer)), (401, super::NO_SESSION));
    for path in [
        format!("/occlude/v0/allowance/{owner}/latest"),
        format!("/occlude/v0/allowance/default/{}", digest(7)),
        format!("/occlude/v0/allowance/{owner}/{}", digest(99)),
    ] {
        let (status, answer) = rig.post_to(&path, &honest.session, &sealed).await;
        assert_eq!(
            (status, refusal(&answer)),
            (404, "the broker has no such key"),
            "{path}"
        );
    }
    let path = format!("/occlude/v0/allowance/{owner}/{}", digest(7));
    for body in [
        json!({}),
        json!({"sealed": "zz"}),
        json!({"sealed": "", "more": 1}),
    ] {
        let (status, _) = rig.post_to(&path, &honest.session, &body).await;
        assert_eq!(status, 400, "{body}");
    }
    let empty = json!({"sealed": ""});
    assert_eq!(rig.post_to(&path, &honest.session, &empty).await.0, 401);
    assert_eq!(rig.queries(&asked(10, None)).await, 10, "nothing was spent");
}

#[tokio::test]
async fn an_answer_that_is_not_the_brokers_allows_nothing() {
    let rig = Rig::start().await;
    // Whoever stands between has no key of the model's.
    let session = rig.session().await.unwrap();
    let other = ModelKey::new(Zeroizing::new([0xac; 32]));
    let asked = asked(3, None);
    let (owner, digest) = (rig.fingerprint(), digest(7));
    let answer = session.allowance(&owner, &digest, &other, &asked).await;
    assert!(matches!(answer, Err(FetchError::Refused { .. })));
    let liar = axum::Router::new().fallback(async || r#"{"sealed":"00"}"#);
    let url = super::rig::listen(liar).await;
    let session = session.at(&url);
    let answer = rig.ask_as(&session, &digest, &asked).await;
    assert!(matches!(answer, Err(FetchError::Allowance)), "{answer:?}");
}

#[tokio::test]
async fn a_broker_that_knows_no_allowances_refuses() {
    let rig = Rig::start().await;
    let plain = axum::Router::new().fallback(async || axum::http::StatusCode::NOT_FOUND);
    let url = super::rig::listen(plain).await;
    let session = rig.session().await.unwrap().at(&url);
    let answer = rig.ask_as(&session, &digest(7), &asked(3, None)).await;
    assert!(
        matches!(answer, Err(FetchError::Refused { .. })),
        "{answer:?}"
    );
}
