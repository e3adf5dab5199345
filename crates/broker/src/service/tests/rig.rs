//! A broker on a loopback port with one owner, one model and its honest server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kbs_types::{RuntimeData, TeePubKey};
use occlude_attest::simulated::SimulatedReport;
use occlude_attest::{
    Attester, Binding, Claims, ConfigurationDigest, Evidence, LastingVerifier, TeeKind, UnixTime,
    Verifier,
};
use occlude_keys::{HeaderDigest, ModelKey, OwnerFingerprint, OwnerKey};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::admin::{AdminClient, ModelRecord};
use crate::client::{AttestedSession, BrokerClient, FetchError};
use crate::kbs::report_data::{self, ReportHash};
use crate::model_key_path;
use crate::service::Broker;
use crate::sessions::{CHALLENGE_LIFETIME, SESSION_LIFETIME};
use crate::test_databases::TestDatabase;
use crate::transport::ConnectOptions;

pub(super) const MODEL_KEY: [u8; 32] = [0xab; 32];

/// Longer than the lives of [`Rig::start_with_short_lives`].
pub(super) const SHORT_LIFE: Duration = Duration::from_millis(700);

pub(super) struct Rig {
    pub(super) url: String,
    pub(super) owner: OwnerKey,
    pub(super) admin: AdminClient,
    client: BrokerClient,
    attester: Arc<Attester>,
    pub(super) http: reqwest::Client,
    database: TestDatabase,
}

pub(super) struct Session {
    pub(super) cookie: String,
    pub(super) nonce: String,
}

impl Session {
    /// The report data of an honest attestation.
    pub(super) fn binding(&self, key: &TeePubKey) -> Binding {
        self.binding_with(key, "")
    }

    /// The same with additional evidence.
    pub(super) fn binding_with(&self, key: &TeePubKey, additional: &str) -> Binding {
        let runtime_data = RuntimeData {
            nonce: self.nonce.clone(),
            tee_pubkey: key.clone(),
        };
        report_data::primary(ReportHash::Sha384, &runtime_data, additional)
    }
}

impl Rig {
    /// Over `SQLite`, for what the store has no part in.
    pub(super) async fn start() -> Self {
        Self::start_on(TestDatabase::sqlite()).await
    }

    pub(super) async fn start_on(database: TestDatabase) -> Self {
        let rig = Self::start_without_policy(database).await;
        rig.set_policy(&policy(rig.claims().measurement())).await;
        rig
    }

    pub(super) async fn start_without_policy(database: TestDatabase) -> Self {
        Self::start_with(database, CHALLENGE_LIFETIME, SESSION_LIFETIME).await
    }

    pub(super) async fn start_with_short_lives() -> Self {
        let rig = Self::start_with(TestDatabase::sqlite(), SHORT_LIFE / 2, SHORT_LIFE / 2).await;
        rig.set_policy(&policy(rig.claims().measurement())).await;
        rig
    }

    /// With a folder of collateral, and without a policy.
    pub(super) async fn start_with_collateral(folder: &Path) -> Self {
        let database = TestDatabase::sqlite();
        let verifier = LastingVerifier::new(Some(folder.to_owned()));
        let broker = Broker::new(database.open().await, verifier);
        Self::start_as(database, broker).await
    }

    async fn start_with(database: TestDatabase, challenge: Duration, session: Duration) -> Self {
        let broker = Broker::with_lifetimes(database.open().await, challenge, session);
        Self::start_as(database, broker).await
    }

    async fn start_as(database: TestDatabase, broker: Broker) -> Self {
        let url = listen(broker.router()).await;
        let options = ConnectOptions::default();
        let rig = Self {
            owner: OwnerKey::generate(),
            admin: AdminClient::new(&url, &options).unwrap(),
            client: BrokerClient::new(&url, &options).unwrap(),
            attester: Arc::new(attester()),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            url,
            database,
        };
        rig.admin
            .add_model(&rig.owner, &record(), &model_key())
            .await
            .unwrap();
        rig
    }

    pub(super) fn fingerprint(&self) -> OwnerFingerprint {
        self.owner.public().fingerprint()
    }

    pub(super) fn path(&self) -> String {
        model_key_path(&self.fingerprint(), &digest(7))
    }

    pub(super) async fn fetch(&self) -> Result<ModelKey, FetchError> {
        self.client
            .fetch_model_key(&self.attester, &self.fingerprint(), &digest(7))
            .await
    }

    /// A session of this process's at the broker.
    pub(super) async fn session(&self) -> Result<AttestedSession, FetchError> {
        self.client.attest(&self.attester).await
    }

    /// The same at a broker that starts now on the same database.
    pub(super) async fn session_at_another_broker(&self) -> AttestedSession {
        let store = self.database.open().await;
        let url = listen(Broker::new(store, LastingVerifier::default()).router()).await;
        let client = BrokerClient::new(&url, &ConnectOptions::default()).unwrap();
        client.attest(&self.attester).await.unwrap()
    }

    pub(super) async fn set_policy(&self, text: &str) {
        self.admin
            .set_policy(&self.owner, None, text)
            .await
            .unwrap();
    }

    /// What this process's honest evidence says.
    pub(super) fn claims(&self) -> Claims {
        let binding = Binding::from([1; 64]);
        let evidence = self.attester.collect(&binding).unwrap();
        Verifier::default()
            .verify(&evidence, &binding, UnixTime::now())
            .unwrap()
    }

    /// This process's report over any binding, to be signed by whoever likes to.
    pub(super) fn report(&self, report_data: Binding) -> SimulatedReport {
        let claims = self.claims();
        SimulatedReport {
            report_data,
            measurement: claims.measurement().as_bytes().try_into().unwrap(),
            configuration: *claims.configuration().unwrap(),
            tcb: 1,
            debug: false,
        }
    }

    pub(super) async fn challenge(&self) -> Session {
        self.challenge_of("/occlude/v0", "simulated").await
    }

    pub(super) async fn challenge_of(&self, prefix: &str, tee: &str) -> Session {
        let request = json!({"version": "0.4.0", "tee": tee, "extra-params": ""});
        let response = self
            .http
            .post(format!("{}{prefix}/auth", self.url))
            .body(request.to_string())
            .send()
            .await
            .unwrap();
        let cookie = response.headers()["set-cookie"]
            .to_str()
            .unwrap()
            .to_owned();
        let (first, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
        let cookie = first.strip_prefix("kbs-session-id=").unwrap().to_owned();
        let challenge: Value = read(response).await.1;
        Session {
            cookie,
            nonce: challenge["nonce"].as_str().unwrap().to_owned(),
        }
    }

    /// A session whose honest evidence was accepted.
    pub(super) async fn attested(&self) -> Session {
        let session = self.challenge().await;
        let key = crate::kbs::jwe::TeeKey::generate(crate::kbs::jwe::Curve::P256).public();
        let evidence = self.report(session.binding(&key)).sign();
        let (status, _) = self.attest(&session, &key, &evidence).await;
        assert_eq!(status, 200);
        session
    }

    pub(super) async fn attest(
        &self,
        session: &Session,
        key: &TeePubKey,
        evidence: &Evidence,
    ) -> (u16, Value) {
        self.post_attestation(session, &attestation(session, key, evidence))
            .await
    }

    pub(super) async fn post_attestation(
        &self,
        session: &Session,
        attestation: &Value,
    ) -> (u16, Value) {
        self.post_to("/occlude/v0/attest", session, attestation)
            .await
    }

    pub(super) async fn post_to(
        &self,
        path: &str,
        session: &Session,
        body: &Value,
    ) -> (u16, Value) {
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .header("cookie", format!("a=b; kbs-session-id={}", session.cookie))
            .body(body.to_string());
        read(request.send().await.unwrap()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .body(body.to_string());
        read(request.send().await.unwrap()).await
    }

    pub(super) async fn resource(&self, session: &Session, path: &str) -> (u16, Value) {
        let cookie = format!("kbs-session-id={}", session.cookie);
        self.get_resource(path, "cookie", &cookie).await
    }

    pub(super) async fn get_resource(&self, path: &str, name: &str, value: &str) -> (u16, Value) {
        let request = self
            .http
            .get(format!("{}/kbs/v0/resource/{path}", self.url))
            .header(name, value);
        read(request.send().await.unwrap()).await
    }
}

pub(super) async fn listen(router: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

pub(super) fn attester() -> Attester {
    Attester::open(TeeKind::Simulated, ConfigurationDigest::from([3; 32])).unwrap()
}

pub(super) fn attestation(session: &Session, key: &TeePubKey, evidence: &Evidence) -> Value {
    json!({
        "runtime-data": {"nonce": session.nonce, "tee-pubkey": key},
        "tee-evidence": {"primary_evidence": evidence.body(), "additional_evidence": ""},
    })
}

pub(super) fn refusal(answer: &Value) -> &str {
    answer["detail"]
        .as_str()
        .unwrap_or_else(|| panic!("no refusal: {answer}"))
}

/// A policy that accepts one measurement of the simulated TEE.
pub(super) fn policy(measurement: impl std::fmt::Display) -> String {
    format!(
        "format = 1\nreviewed = true\n[evidence]\ntee = [\"simulated\"]\n\
         trust = [\"simulated\"]\nmeasurements = [\"{measurement}\"]\n"
    )
}

pub(super) fn digest(number: u8) -> HeaderDigest {
    HeaderDigest::from([number; 32])
}

pub(super) fn record() -> ModelRecord {
    ModelRecord {
        id: "digits".parse().unwrap(),
        version: 1,
        header_digest: digest(7),
    }
}

pub(super) fn model_key() -> ModelKey {
    ModelKey::new(Zeroizing::new(MODEL_KEY))
}

async fn read(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}
