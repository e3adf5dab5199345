//! A verifying proxy on this machine: plain HTTP in, the channel out.
//!
//! 1. [`Proxy::bind`] takes the port: on loopback, or anywhere if a [`Token`] is
//!    asked of every request.
//! 2. [`Proxy::run`] forwards the Open Inference Protocol (`/v2…`) through the
//!    channel, and gives back what came through it.
//!
//! While the server cannot be verified, it forwards nothing and answers 503 with
//! the reason; there is no way around the channel. A request for a model that the
//! policy does not list is not forwarded either: it gets 403 with the reason, and
//! 404 if the verified statement has no such model. Both are answers about one
//! model, so the others go on answering, and a client has no cause to try again.
//!
//! Hostile: the server and the network, as for the client; other programs on this
//! machine and web pages in its browser, as far as a token or loopback and the
//! `Host` header keep them out. Without a token, every local user may use it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum_server::Handle;
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use occlude_attest::{Policy, Refusal, VerifiedService};
use occlude_inference_protocol::{ErrorBody, INFERENCE_HEADER_CONTENT_LENGTH};
use occlude_weakening::{Weakening, is};
use tokio::sync::Semaphore;
use url::Url;

use crate::{Client, ClientError, ClientOptions, ErrorKind, Token};

/// Request fields that go through the channel. What a program on this machine
/// adds (cookies, credentials, its name) is not for the server.
const FORWARDED: [HeaderName; 4] = [
    ACCEPT,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    HeaderName::from_static(INFERENCE_HEADER_CONTENT_LENGTH),
];

/// Answer fields that come back.
const RETURNED: [HeaderName; 4] = [
    CONTENT_TYPE,
    RETRY_AFTER,
    WWW_AUTHENTICATE,
    HeaderName::from_static(INFERENCE_HEADER_CONTENT_LENGTH),
];

/// A server that was refused is not asked again within this time, so that a
/// client which tries in a loop does not become a flood.
const PAUSE: Duration = Duration::from_secs(2);

/// Requests in flight when the proxy is asked to stop may take this long.
const GRACE: Duration = Duration::from_secs(30);

/// How long a body may take to arrive from this machine.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Requests forwarded at once; each holds its body several times.
const AT_ONCE: usize = 32;

/// What a proxy is started with.
#[derive(Debug)]
pub struct ProxyOptions {
    /// Where to listen. Not on loopback, a token is required.
    pub listen: SocketAddr,
    /// The server.
    pub url: Url,
    /// What evidence and service to accept.
    pub policy: Policy,
    /// What every request must carry as bearer token.
    pub token: Option<Token>,
    /// Largest body that is forwarded, in bytes; the server has its own limit.
    pub maximum_request: u64,
    /// How the server is treated.
    pub client: ClientOptions,
}

impl ProxyOptions {
    /// Bodies up to 64 MiB, no token.
    #[must_use]
    pub fn new(listen: SocketAddr, url: Url, policy: Policy) -> Self {
        Self {
            listen,
            url,
            policy,
            token: None,
            maximum_request: 64 << 20,
            client: ClientOptions::default(),
        }
    }
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// Others could use the verified server as if they were on this machine.
    #[error(
        "{address} can be reached from other machines: listen on loopback, or ask for a token with --token-file"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The server's address is none.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A proxy that has its port.
#[derive(Debug)]
pub struct Proxy {
    listener: std::net::TcpListener,
    address: SocketAddr,
    forwarder: Arc<Forwarder>,
}

#[derive(Debug)]
struct Forwarder {
    client: Client,
    token: Option<Token>,
    maximum_request: u64,
    places: Semaphore,
    /// When verification last failed, and why.
    failure: Mutex<Option<(Instant, String)>>,
}

/// Binds and runs a proxy.
///
/// # Errors
/// [`ProxyError`]; [`ProxyError::Listen`] also if the listener fails later.
pub async fn serve(
    options: ProxyOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ProxyError> {
    let proxy = Proxy::bind(options)?;
    let address = proxy.address;
    proxy
        .run(shutdown)
        .await
        .map_err(|source| ProxyError::Listen { address, source })
}

impl Proxy {
    /// Takes the port. Nothing is answered before [`Proxy::run`].
    ///
    /// # Errors
    /// [`ProxyError`].
    pub fn bind(options: ProxyOptions) -> Result<Self, ProxyError> {
        let address = options.listen;
        if !address.ip().is_loopback() && options.token.is_none() {
            return Err(ProxyError::NotLoopback { address });
        }
        let client = Client::new(&options.url, options.policy, &options.client)?;
        let failed = |source| ProxyError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            forwarder: Arc::new(Forwarder {
                client,
                token: options.token,
                maximum_request: options.maximum_request,
                places: Semaphore::new(AT_ONCE),
                failure: Mutex::new(None),
            }),
        })
    }

    /// The address that was taken.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Verifies the server now, which the first request does otherwise: for
    /// telling the user before they send anything.
    ///
    /// # Errors
    /// [`ClientError`]; the proxy can be run all the same, and tries again.
    pub async fn verify(&self) -> Result<VerifiedService, ClientError> {
        self.forwarder.client.verified().await
    }

    /// Forwards until `shutdown` completes, then finishes the requests in flight,
    /// for at most 30 s.
    ///
    /// # Errors
    /// What the operating system says if the listener fails.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> std::io::Result<()> {
        let handle = Handle::new();
        let server = axum_server::from_tcp(self.listener)?.handle(handle.clone());
        let serving = server.serve(router(self.forwarder).into_make_service());
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => return result,
            () = shutdown => {}
        }
        handle.graceful_shutdown(Some(GRACE));
        serving.await
    }
}

fn router(forwarder: Arc<Forwarder>) -> Router {
    Router::new()
        .route("/v2", any(forward))
        .route("/v2/{*path}", any(forward))
        .fallback(async || {
            refused(
                StatusCode::NOT_FOUND,
                "only /v2 and what is below it is forwarded",
            )
        })
        .with_state(forwarder)
}

async fn forward(
    State(forwarder): State<Arc<Forwarder>>,
    request: Request,
) -> Result<Response, Refused> {
    forwarder.forward(request).await
}

/// Why the proxy itself answers: a status and the protocol's error text.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    reason: String,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: self.reason };
        let mut response = (self.status, axum::Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl Forwarder {
    async fn forward(&self, request: Request) -> Result<Response, Refused> {
        self.check_sender(request.headers())?;
        let _place = self.places.try_acquire().map_err(|_| {
            refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests are in flight: try again",
            )
        })?;
        self.check_server().await?;
        let (mut parts, body) = request.into_parts();
        parts.headers = only(&parts.headers, &FORWARDED);
        parts.extensions.clear();
        let body = self.read(body).await?;
        let answer = self
            .client
            .request(&http::Request::from_parts(parts, body))
            .await
            .map_err(|failure| Self::failed(&failure))?;
        let mut returned = (answer.status(), answer.body().clone()).into_response();
        let length = returned.headers().get(CONTENT_LENGTH).cloned();
        *returned.headers_mut() = only(answer.headers(), &RETURNED);
        if let Some(length) = length {
            returned.headers_mut().insert(CONTENT_LENGTH, length);
        }
        Ok(returned)
    }

    /// Whoever has the token, or is a program on this machine rather than a web
    /// page that found a name for loopback (DNS rebinding).
    fn check_sender(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match &self.token {
            Some(token) if token.is_in(headers.get(AUTHORIZATION)) || is(Weakening::AnyToken) => {
                Ok(())
            }
            Some(_) => Err(refused(
                StatusCode::UNAUTHORIZED,
                "expected the proxy's token as Authorization: Bearer",
            )),
            None if names_loopback(headers.get(HOST)) => Ok(()),
            None => Err(refused(
                StatusCode::FORBIDDEN,
                "expected localhost or a loopback address in Host",
            )),
        }
    }

    /// Nothing is read, and nothing forwarded, before the server is verified.
    async fn check_server(&self) -> Result<(), Refused> {
        let last = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((when, reason)) = last
            && when.elapsed() < PAUSE
        {
            return Err(refused(StatusCode::SERVICE_UNAVAILABLE, reason));
        }
        match self.client.verified().await {
            Ok(_) => {
                self.remember(None);
                Ok(())
            }
            Err(failure) => {
                let reason = failure.to_string();
                self.remember(Some((Instant::now(), reason.clone())));
                Err(refused(StatusCode::SERVICE_UNAVAILABLE, reason))
            }
        }
    }

    fn remember(&self, failure: Option<(Instant, String)>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    async fn read(&self, body: axum::body::Body) -> Result<Bytes, Refused> {
        let limit = usize::try_from(self.maximum_request).unwrap_or(usize::MAX);
        match tokio::time::timeout(BODY_TIME, Limited::new(body, limit).collect()).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(failure)) if failure.is::<LengthLimitError>() => Err(refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is longer than {limit} bytes"),
            )),
            Ok(Err(_)) => Err(refused(StatusCode::BAD_REQUEST, "the body ended early")),
            Err(_) => Err(refused(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            )),
        }
    }

    fn failed(failure: &ClientError) -> Refused {
        let status = match (failure.kind(), failure) {
            // The server itself would say the same of a model that is not there.
            (
                _,
                ClientError::ModelRefused {
                    refusal: Refusal::ModelNotServed { .. },
                    ..
                }
                | ClientError::NotAModel { .. },
            ) => StatusCode::NOT_FOUND,
            (_, ClientError::ModelRefused { .. }) => StatusCode::FORBIDDEN,
            (ErrorKind::Refused | ErrorKind::Unavailable, _) => StatusCode::SERVICE_UNAVAILABLE,
            (_, ClientError::RequestTooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            (_, ClientError::Request(_)) => StatusCode::BAD_REQUEST,
            (_, ClientError::TooMuchWork { .. }) => StatusCode::PRECONDITION_REQUIRED,
            _ => StatusCode::BAD_GATEWAY,
        };
        refused(status, failure.to_string())
    }
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    headers
        .iter()
        .filter(|(name, _)| names.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn names_loopback(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let Ok(url) = Url::parse(&format!("http://{host}/")) else {
        return false;
    };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn refused(status: StatusCode, reason: impl Into<String>) -> Refused {
    Refused {
        status,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &'static str) -> bool {
        names_loopback(Some(&HeaderValue::from_static(text)))
    }

    #[test]
    fn only_loopback_names_pass_without_a_token() {
        for name in [
            "localhost",
            "localhost:8080",
            "127.0.0.1:1",
            "[::1]:8080",
            "127.8.9.1",
        ] {
            assert!(host(name), "{name}");
        }
        for name in [
            "example.com",
            "127.0.0.1.example.com",
            "localhost.example.com",
            "10.0.0.1",
            "",
        ] {
            assert!(!host(name), "{name}");
        }
        assert!(!names_loopback(None));
    }

    #[test]
    fn what_a_program_adds_for_others_is_left_out() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("secret"));
        headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert(
            "inference-header-content-length",
            HeaderValue::from_static("7"),
        );
        let kept = only(&headers, &FORWARDED);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept["content-type"], "application/json");
        assert_eq!(kept["inference-header-content-length"], "7");
    }
}
