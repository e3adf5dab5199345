//! A client of one server that it has verified.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use occlude_attest::{LastingVerifier, Nonce, Policy, UnixTime, VerifiedService};
use occlude_channel::Sender;
use occlude_inference_protocol::{
    ErrorBody, INFERENCE_HEADER_CONTENT_LENGTH, InferRequest, InferResponse, ModelMetadata,
    ServerMetadata, WORK,
};
use occlude_keys::{ModelId, ModelVersion};
use occlude_weakening::Weakening;
use tokio::sync::Mutex;
use url::Url;

use crate::path::named_model;
use crate::transport::{Answer, Transport};
use crate::work::Worker;
use crate::{ClientError, Token};

/// A server that wants more work this often for one request never has enough.
const MOST_PRICES: usize = 4;

/// How a client treats its server, apart from the policy.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Evidence that is older is asked for again before the next request; 1 h.
    pub reverify: Duration,
    /// How long connecting may take; 10 s.
    pub connect_time: Duration,
    /// How long one exchange may take, inference included; 5 min.
    pub answer_time: Duration,
    /// Largest encapsulated answer, in bytes; 256 MiB.
    pub maximum_answer: u64,
    /// PEM bundles of TLS roots besides the system's.
    pub certificates: Vec<Vec<u8>>,
    /// The folder of what hardware vendors publish: see [`occlude_attest::Collateral`].
    pub collateral: Option<PathBuf>,
    /// Tells the server who asks, where a model wants to know: sent with every request,
    /// through the channel alone.
    pub token: Option<Arc<Token>>,
    /// Work that is done for one request where a server wants that, at most: `2^bits` hashes; 28
    /// bits.
    pub most_work: u32,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            reverify: Duration::from_secs(3600),
            connect_time: Duration::from_secs(10),
            answer_time: Duration::from_secs(300),
            maximum_answer: 256 << 20,
            certificates: Vec::new(),
            collateral: None,
            token: None,
            most_work: 28,
        }
    }
}

/// A client of one server. It sends nothing before that server's evidence is
/// verified and satisfies the policy.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    policy: Policy,
    verifier: LastingVerifier,
    reverify: Duration,
    token: Option<Arc<Token>>,
    worker: Worker,
    /// `None` until the first verification, and after one that failed.
    session: Mutex<Option<Arc<Session>>>,
}

/// What one verification gave.
struct Session {
    service: VerifiedService,
    sender: Sender,
    /// When the evidence was asked for; it cannot be older.
    asked: Instant,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Verifies a server's evidence without judging it: for showing and for pinning.
///
/// # Errors
/// [`ClientError`] if there is no server or its evidence does not hold.
pub async fn observe(url: &Url, options: &ClientOptions) -> Result<VerifiedService, ClientError> {
    let verifier = LastingVerifier::new(options.collateral.clone());
    verify(&Transport::new(url, options)?, &verifier).await
}

/// Asks for evidence over a fresh nonce and verifies it.
async fn verify(
    transport: &Transport,
    verifier: &LastingVerifier,
) -> Result<VerifiedService, ClientError> {
    let verifier = verifier.current()?;
    let nonce = Nonce::generate();
    // Without what IBM Secure Execution needs in the collateral, it is another kind of TEE.
    let request = verifier.request().ok();
    let response = transport.attestation(&nonce, request.as_deref()).await?;
    response
        .verify(&verifier, &nonce, UnixTime::now())
        .map_err(|source| ClientError::Unverified {
            server: transport.server().to_owned(),
            source,
        })
}

impl Client {
    /// A client that will verify before its first request.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn new(url: &Url, policy: Policy, options: &ClientOptions) -> Result<Self, ClientError> {
        Ok(Self {
            transport: Transport::new(url, options)?,
            policy,
            verifier: LastingVerifier::new(options.collateral.clone()),
            reverify: options.reverify,
            token: options.token.clone(),
            worker: Worker::new(options.most_work),
            session: Mutex::new(None),
        })
    }

    /// A client that has verified its server.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::kind`] tells a refusal from an outage.
    pub async fn connect(
        url: &Url,
        policy: Policy,
        options: &ClientOptions,
    ) -> Result<Self, ClientError> {
        let client = Self::new(url, policy, options)?;
        client.verified().await?;
        Ok(client)
    }

    /// The server's claims and statement, verified and accepted by the policy, at
    /// most [`ClientOptions::reverify`] old.
    ///
    /// # Errors
    /// [`ClientError`] if they have to be asked for again and that fails.
    pub async fn verified(&self) -> Result<VerifiedService, ClientError> {
        Ok(self.session(None).await?.service.clone())
    }

    /// Sends a request through the channel. Its path and query say what is asked
    /// for; scheme and authority are not used.
    ///
    /// Where the model's owner wants work for an answer, it is done, up to
    /// [`ClientOptions::most_work`], and the request sent again; one that says itself what was
    /// found goes as it is.
    ///
    /// A path of a model (`/v2/models/{id}` and below it) is sent only if the policy
    /// lets that model be used and the verified statement has it. Whatever status
    /// the answer has, it is the verified server's.
    ///
    /// # Errors
    /// [`ClientError::ModelRefused`] and [`ClientError::NotAModel`] before anything
    /// is sent; [`ClientError::TooMuchWork`]; otherwise [`ClientError`]. Nothing that came outside the channel is a result.
    pub async fn request(&self, request: &Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let mut request = self.with_token(request);
        let session = self.session(None).await?;
        self.judge_model(&session, &request)?;
        if request.headers().contains_key(WORK) {
            return self.send(&request).await;
        }
        self.worker.expect(&mut request).await?;
        let mut answer = self.send(&request).await?;
        for _ in 0..MOST_PRICES {
            if !self.worker.follow(&mut request, &answer).await? {
                break;
            }
            answer = self.send(&request).await?;
        }
        Ok(answer)
    }

    /// Sends it, once more where the keys have rotated.
    async fn send(&self, request: &Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let session = self.session(None).await?;
        self.judge_model(&session, request)?;
        if let Some(response) = self.exchange(&session, request).await? {
            return Ok(response);
        }
        // The keys have rotated, or someone on the way says so.
        let session = self.session(Some(&session)).await?;
        self.judge_model(&session, request)?;
        self.exchange(&session, request)
            .await?
            .ok_or_else(|| ClientError::Unavailable {
                server: self.server(),
                reason: "it does not know the channel key that its own evidence covers".to_owned(),
            })
    }

    /// Runs a model on tensors; the server chooses the version if none is given.
    /// Tensors travel as binary data both ways.
    ///
    /// # Errors
    /// [`ClientError::Answered`] with the server's reason, which names what was
    /// expected; otherwise as [`Client::request`].
    pub async fn infer(
        &self,
        model: &ModelId,
        version: Option<ModelVersion>,
        request: &InferRequest,
    ) -> Result<InferResponse, ClientError> {
        let mut request = request.clone();
        request.binary_data_output = true;
        let encoded = request.encode(true)?;
        let mut builder = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/infer", path(model, version)))
            .header(http::header::CONTENT_TYPE, encoded.content_type());
        if let Some(length) = encoded.inference_header_content_length {
            builder = builder.header(INFERENCE_HEADER_CONTENT_LENGTH, length);
        }
        let request = builder.body(encoded.body).expect(VALID);
        let answer = succeeded(self.request(&request).await?)?;
        let header_length = answer
            .headers()
            .get(INFERENCE_HEADER_CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        Ok(InferResponse::decode(answer.body(), header_length)?)
    }

    /// What the server says about itself.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn server_metadata(&self) -> Result<ServerMetadata, ClientError> {
        self.ask("/v2").await
    }

    /// What a model takes and gives.
    ///
    /// # Errors
    /// [`ClientError::Answered`] if there is no such version; otherwise as
    /// [`Client::request`].
    pub async fn model_metadata(
        &self,
        model: &ModelId,
        version: Option<ModelVersion>,
    ) -> Result<ModelMetadata, ClientError> {
        self.ask(&path(model, version)).await
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = Request::get(path).body(Bytes::new()).expect(VALID);
        let answer = succeeded(self.request(&request).await?)?;
        serde_json::from_slice(answer.body()).map_err(ClientError::MalformedMetadata)
    }

    /// The current session, or a new one: if there is none, if it is too old, or
    /// if it is the one that failed. Whoever comes meanwhile waits for the same.
    async fn session(&self, failed: Option<&Arc<Session>>) -> Result<Arc<Session>, ClientError> {
        let mut current = self.session.lock().await;
        if let Some(session) = &*current
            && session.asked.elapsed() < self.reverify
            && failed.is_none_or(|failed| !Arc::ptr_eq(failed, session))
        {
            return Ok(Arc::clone(session));
        }
        *current = None;
        let session = Arc::new(self.verify().await?);
        *current = Some(Arc::clone(&session));
        Ok(session)
    }

    async fn verify(&self) -> Result<Session, ClientError> {
        let asked = Instant::now();
        let service = verify(&self.transport, &self.verifier).await?;
        self.policy
            .judge_service(&service)
            .map_err(|refusal| ClientError::Refused {
                server: self.server(),
                refusal,
            })?;
        let sender = Sender::from_key_configurations(&service.statement().channel_keys)
            .map_err(|source| ClientError::ChannelKeys {
                server: self.server(),
                source,
            })?
            .with_maximum_response_bytes(self.transport.maximum_answer());
        let stated = &service.statement().configuration.kem;
        if sender.kem().name() != stated {
            return Err(ClientError::ChannelKem {
                server: self.server(),
                stated: stated.clone(),
                found: sender.kem(),
            });
        }
        Ok(Session {
            service,
            sender,
            asked,
        })
    }

    /// Whether the policy lets the model be used that the request's path names.
    fn judge_model(&self, session: &Session, request: &Request<Bytes>) -> Result<(), ClientError> {
        let named = named_model(request.uri().path()).map_err(|source| ClientError::NotAModel {
            server: self.server(),
            source,
        })?;
        let Some(model) = named else {
            return Ok(());
        };
        self.policy
            .judge_model(&session.service, &model)
            .map_err(|refusal| ClientError::ModelRefused {
                server: self.server(),
                refusal,
            })
    }

    /// One encapsulated exchange; `None` if the server does not know the key.
    async fn exchange(
        &self,
        session: &Session,
        request: &Request<Bytes>,
    ) -> Result<Option<Response<Bytes>>, ClientError> {
        if occlude_weakening::is(Weakening::PlainChannel) {
            return self.transport.exchange_plainly(request).await.map(Some);
        }
        let (encapsulated, opener) = session.sender.seal(request).map_err(ClientError::Request)?;
        let limit = session
            .service
            .statement()
            .configuration
            .maximum_request_bytes;
        if encapsulated.len() as u64 > limit {
            return Err(ClientError::RequestTooLarge {
                found: encapsulated.len() as u64,
                limit,
            });
        }
        match self.transport.exchange(encapsulated).await? {
            Answer::UnknownKey => Ok(None),
            Answer::Encapsulated(sealed) => {
                opener
                    .open(&sealed)
                    .map(Some)
                    .map_err(|_| ClientError::InauthenticAnswer {
                        server: self.server(),
                    })
            }
        }
    }

    /// The request, with the client's token unless it has one of its own.
    fn with_token(&self, request: &Request<Bytes>) -> Request<Bytes> {
        let mut request = request.clone();
        if let Some(token) = &self.token
            && !request.headers().contains_key(AUTHORIZATION)
        {
            request.headers_mut().insert(AUTHORIZATION, token.header());
        }
        request
    }

    fn server(&self) -> String {
        self.transport.server().to_owned()
    }
}

/// Model ids have only characters that a path may have.
const VALID: &str = "a path of a model's id and a version is one";

fn path(model: &ModelId, version: Option<ModelVersion>) -> String {
    match version {
        Some(version) => format!("/v2/models/{model}/versions/{version}"),
        None => format!("/v2/models/{model}"),
    }
}

/// The verified server's own errors, as errors.
fn succeeded(answer: Response<Bytes>) -> Result<Response<Bytes>, ClientError> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let message = serde_json::from_slice::<ErrorBody>(answer.body())
        .map_or_else(|_| "no reason is given".to_owned(), |body| body.error);
    Err(ClientError::Answered { status, message })
}
