//! The outer HTTP: nothing that comes from here is believed.
//!
//! Bodies are read up to a limit, redirects are not followed, and a status other
//! than the expected one becomes an error.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use occlude_attest::{AttestationResponse, Nonce};
use occlude_channel::{KEY_PROBLEM_TYPE, REQUEST_MEDIA_TYPE, RESPONSE_MEDIA_TYPE};
use url::Url;

use crate::{ClientError, ClientOptions};

/// Longest unauthenticated error that is read, to show a part of it.
const LONGEST_ERROR: usize = 4096;

/// Collecting evidence takes hardware some tenths of a second.
const EVIDENCE_TIME: Duration = Duration::from_secs(30);

/// One server, as the network shows it.
#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    attestation: Url,
    channel: Url,
    /// The server's name in errors, without credentials.
    server: String,
    maximum_answer: usize,
}

/// What came back for an encapsulated request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Something that may be an encapsulated response.
    Encapsulated(Bytes),
    /// The server says that it does not have the key. Not authentic, so all that
    /// follows is to verify again.
    UnknownKey,
}

impl Transport {
    pub(crate) fn new(url: &Url, options: &ClientOptions) -> Result<Self, ClientError> {
        let server = name(url);
        let refused = |reason: String| ClientError::Address {
            found: server.clone(),
            reason,
        };
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(refused("expected http://HOST or https://HOST".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("expected no query and no fragment".to_owned()));
        }
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Losing the race to another thread leaves a provider all the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(options.connect_time)
            .timeout(options.answer_time);
        let mut certificates = Vec::new();
        for pem in &options.certificates {
            let bundle = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|error| refused(format!("a certificate cannot be read: {error}")))?;
            certificates.extend(bundle);
        }
        // The system's certificates are not looked for where no TLS is used.
        builder = if url.scheme() == "https" {
            builder.tls_certs_merge(certificates)
        } else {
            builder.tls_certs_only(certificates)
        };
        Ok(Self {
            http: builder.build().map_err(|error| refused(chain(&error)))?,
            attestation: below(url, ".well-known/occlude/attestation"),
            channel: below(url, ".well-known/occlude/channel"),
            maximum_answer: usize::try_from(options.maximum_answer).unwrap_or(usize::MAX),
            server,
        })
    }

    /// The server's name in errors.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Largest encapsulated answer that is read, in bytes.
    pub(crate) fn maximum_answer(&self) -> usize {
        self.maximum_answer
    }

    /// Asks for evidence over a nonce. What comes back is not verified.
    pub(crate) async fn attestation(
        &self,
        nonce: &Nonce,
        request: Option<&str>,
    ) -> Result<AttestationResponse, ClientError> {
        let mut url = self.attestation.clone();
        let request = request.map_or(String::new(), |request| {
            format!("&request={}", URL_SAFE_NO_PAD.encode(request))
        });
        url.set_query(Some(&format!("nonce={nonce}{request}")));
        let response = self
            .http
            .get(url)
            .timeout(EVIDENCE_TIME)
            .send()
            .await
            .map_err(|error| self.unavailable(&error))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        let body = self.read(response, AttestationResponse::MAX_BYTES).await?;
        AttestationResponse::decode(&body).map_err(|source| ClientError::MalformedEvidence {
            server: self.server.clone(),
            source,
        })
    }

    /// Sends one encapsulated request.
    pub(crate) async fn exchange(&self, encapsulated: Vec<u8>) -> Result<Answer, ClientError> {
        let response = self
            .http
            .post(self.channel.clone())
            .header(CONTENT_TYPE, REQUEST_MEDIA_TYPE)
            .body(encapsulated)
            .send()
            .await
            .map_err(|error| self.unavailable(&error))?;
        let status = response.status();
        let encapsulated = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|found| found.as_bytes() == RESPONSE_MEDIA_TYPE.as_bytes());
        if status == StatusCode::OK && encapsulated {
            let body = self.read(response, self.maximum_answer).await?;
            return Ok(Answer::Encapsulated(body));
        }
        if status.is_success() {
            return Err(ClientError::Unencapsulated {
                server: self.server.clone(),
                status,
            });
        }
        match self.refusal(response).await {
            ClientError::NotOpened {
                status: StatusCode::BAD_REQUEST,
                message,
                ..
            } if message == KEY_PROBLEM_TYPE => Ok(Answer::UnknownKey),
            error => Err(error),
        }
    }

    /// Asks outside the channel: for a process that was weakened.
    pub(crate) async fn exchange_plainly(
        &self,
        request: &http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, ClientError> {
        let mut url = self.channel.clone();
        url.set_path(request.uri().path());
        let response = self
            .http
            .request(request.method().clone(), url)
            .headers(request.headers().clone())
            .body(request.body().clone())
            .send()
            .await
            .map_err(|error| self.unavailable(&error))?;
        let mut plain = http::Response::new(Bytes::new());
        *plain.status_mut() = response.status();
        *plain.headers_mut() = response.headers().clone();
        *plain.body_mut() = self.read(response, self.maximum_answer).await?;
        Ok(plain)
    }

    /// Reads a body up to a limit.
    async fn read(
        &self,
        mut response: reqwest::Response,
        limit: usize,
    ) -> Result<Bytes, ClientError> {
        let too_large = || ClientError::AnswerTooLarge {
            server: self.server.clone(),
            limit: limit as u64,
        };
        let declared = response.content_length().unwrap_or(0);
        if declared > limit as u64 {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(part) = response
            .chunk()
            .await
            .map_err(|error| self.unavailable(&error))?
        {
            if part.len() > limit - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&part);
        }
        Ok(body.freeze())
    }

    /// The error that an outer status stands for.
    async fn refusal(&self, response: reqwest::Response) -> ClientError {
        let status = response.status();
        let body = self.read(response, LONGEST_ERROR).await.unwrap_or_default();
        let message = message(&body);
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => ClientError::Unavailable {
                server: self.server.clone(),
                reason: format!("{status} {message:?}"),
            },
            _ => ClientError::NotOpened {
                server: self.server.clone(),
                status,
                message,
            },
        }
    }

    fn unavailable(&self, error: &reqwest::Error) -> ClientError {
        ClientError::Unavailable {
            server: self.server.clone(),
            reason: chain(error),
        }
    }
}

/// A path below the server's address, which may itself have one.
fn below(url: &Url, path: &str) -> Url {
    let mut url = url.clone();
    let base = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{base}/{path}"));
    url
}

/// The address without credentials.
fn name(url: &Url) -> String {
    let mut url = url.clone();
    // These fail only for addresses that have no place for credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// An error and its causes, without the address, which may hold credentials.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "no answer in time".to_owned()
    } else if error.is_connect() {
        "no connection".to_owned()
    } else {
        "the exchange failed".to_owned()
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What stands in an unauthenticated error, without anything that a terminal
/// would obey.
fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Problem {
        r#type: Option<String>,
        error: Option<String>,
    }
    let text = match serde_json::from_slice::<Problem>(body) {
        Ok(Problem {
            r#type: Some(kind), ..
        }) => kind,
        Ok(Problem {
            error: Some(error), ..
        }) => error,
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars()
        .filter(|character| !character.is_control())
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn paths_go_below_the_address() {
        for (base, expected) in [
            ("http://host", "http://host/a/b"),
            ("http://host/", "http://host/a/b"),
            ("https://host:8443/tenant/", "https://host:8443/tenant/a/b"),
        ] {
            assert_eq!(below(&url(base), "a/b").as_str(), expected);
        }
    }

    #[test]
    fn credentials_do_not_get_into_errors() {
        assert_eq!(name(&url("https://user:word@host/x")), "https://host/x");
    }

    #[test]
    fn other_schemes_and_queries_are_refused() {
        for (address, reason) in [
            ("ftp://host/", "expected http://HOST or https://HOST"),
            ("http://host/?a=b", "expected no query and no fragment"),
            ("http://host/#a", "expected no query and no fragment"),
        ] {
            let error = Transport::new(&url(address), &ClientOptions::default()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{address} is not a server's address: {reason}")
            );
        }
    }

    #[test]
    fn an_unauthenticated_message_is_cut_and_cannot_drive_a_terminal() {
        assert_eq!(message(b"\x1b[31mred\x07"), "[31mred");
        assert_eq!(message("x".repeat(500).as_bytes()), "x".repeat(200));
        assert_eq!(message(br#"{"error": "busy"}"#), "busy");
    }
}
