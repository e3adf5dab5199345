//! HTTP from here to a broker, which may be down, slow or lying.
//!
//! Every call has a deadline that covers the whole body, every answer a size
//! limit that is checked while it arrives; no redirect is followed and no proxy
//! is taken from the environment.

use std::net::IpAddr;
use std::time::Duration;

use kbs_types::ErrorInformation;
use reqwest::StatusCode;
use url::{Host, Url};

/// Longest reason of a broker that is shown, in characters.
const LONGEST_REASON: usize = 1000;

/// How a client reaches a broker.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// For the connection alone, TLS included.
    pub connect_timeout: Duration,
    /// For one call, from the first byte sent to the last byte read.
    pub call_timeout: Duration,
    /// PEM certificates of the authorities that the broker's certificate must
    /// come from, instead of the system's: an owner's own broker often has its own.
    pub certificate_authorities: Option<Vec<u8>>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(15),
            certificate_authorities: None,
        }
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Not a broker's address.
    #[error(
        "{url:?} is not a broker's URL: expected http:// or https:// and a host, without user, query or fragment"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// The certificates cannot be read.
    #[error("the broker's certificate authorities are unusable: {reason}")]
    CertificateAuthorities {
        /// What is wrong.
        reason: String,
    },
    /// TLS could not be set up.
    #[error("the HTTP client could not be set up: {reason}")]
    Client {
        /// What is wrong.
        reason: String,
    },
}

/// Why a call gave no answer that can be read on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CallError {
    /// The broker understood and said no.
    Refused { reason: String },
    /// The broker cannot be reached, is too slow or has trouble of its own.
    Unavailable { reason: String },
    /// The answer is longer than any honest one.
    TooLong { limit: usize },
}

#[derive(Debug, Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
    base: Url,
}

pub(crate) struct Answer {
    pub(crate) session: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Transport {
    pub(crate) fn new(url: &str, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let base = Url::parse(url)
            .ok()
            .filter(|base| {
                matches!(base.scheme(), "http" | "https")
                    && base.host().is_some()
                    && base.username().is_empty()
                    && base.password().is_none()
                    && base.query().is_none()
                    && base.fragment().is_none()
            })
            .ok_or_else(|| ConnectError::Url {
                url: url.to_owned(),
            })?;
        // Fails only if a provider is installed already, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .connect_timeout(options.connect_timeout)
            .timeout(options.call_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(pem) = &options.certificate_authorities {
            let authorities = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| {
                ConnectError::CertificateAuthorities {
                    reason: describe(&error),
                }
            })?;
            if authorities.is_empty() {
                return Err(ConnectError::CertificateAuthorities {
                    reason: "no certificate in the file".to_owned(),
                });
            }
            http = http.tls_certs_only(authorities);
        }
        let http = http.build().map_err(|error| ConnectError::Client {
            reason: describe(&error),
        })?;
        Ok(Self { http, base })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.base
    }

    /// Whether what is sent stays on this machine or travels under TLS.
    pub(crate) fn is_private(&self) -> bool {
        self.base.scheme() == "https"
            || match self.base.host() {
                Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
                Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
                Some(Host::Domain(name)) => name == "localhost",
                None => false,
            }
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        session: Option<&str>,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<Answer, CallError> {
        let request = self
            .http
            .post(self.endpoint(path))
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        Self::call(request, session, limit).await
    }

    pub(crate) async fn get(
        &self,
        path: &str,
        session: Option<&str>,
        limit: usize,
    ) -> Result<Answer, CallError> {
        Self::call(self.http.get(self.endpoint(path)), session, limit).await
    }

    fn endpoint(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    async fn call(
        mut request: reqwest::RequestBuilder,
        session: Option<&str>,
        limit: usize,
    ) -> Result<Answer, CallError> {
        if let Some(session) = session {
            request = request.header(
                reqwest::header::COOKIE,
                format!("{}={session}", crate::kbs::messages::SESSION_COOKIE),
            );
        }
        let unavailable = |error: &reqwest::Error| CallError::Unavailable {
            reason: describe(error),
        };
        let mut response = request.send().await.map_err(|error| unavailable(&error))?;
        let status = response.status();
        let session = session_cookie(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| unavailable(&error))?
        {
            if body.len() + chunk.len() > limit {
                return Err(CallError::TooLong { limit });
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(Answer { session, body });
        }
        let reason = match serde_json::from_slice::<ErrorInformation>(&body) {
            Ok(information) => crate::printable(&information.detail, LONGEST_REASON),
            Err(_) => format!("HTTP status {status} without a reason"),
        };
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(CallError::Unavailable { reason })
            }
            status if status.is_client_error() => Err(CallError::Refused { reason }),
            _ => Err(CallError::Unavailable { reason }),
        }
    }
}

/// The session's cookie, if it is one that can be sent back unchanged.
fn session_cookie(headers: &reqwest::header::HeaderMap) -> Option<String> {
    headers
        .get_all(reqwest::header::SET_COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .filter_map(|value| value.split(';').next()?.trim().split_once('='))
        .find(|(name, _)| *name == crate::kbs::messages::SESSION_COOKIE)
        .map(|(_, value)| value.to_owned())
}

/// An error with its causes, since `reqwest` prints only the outermost.
fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport(url: &str) -> Transport {
        Transport::new(url, &ConnectOptions::default()).unwrap()
    }

    #[test]
    fn only_loopback_and_tls_are_private() {
        for url in [
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "http://localhost",
            "https://broker.example",
        ] {
            assert!(transport(url).is_private(), "{url}");
        }
        for url in [
            "http://broker.example",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
        ] {
            assert!(!transport(url).is_private(), "{url}");
        }
    }

    #[test]
    fn a_url_that_is_no_brokers_is_refused() {
        for url in [
            "",
            "broker.example",
            "ftp://broker.example",
            "http://user@broker.example",
            "http://broker.example/?a=b",
        ] {
            let error = Transport::new(url, &ConnectOptions::default()).unwrap_err();
            assert!(
                matches!(&error, ConnectError::Url { url: refused } if refused == url),
                "{error}"
            );
        }
    }

    #[test]
    fn a_broker_behind_a_path_keeps_it() {
        assert_eq!(
            transport("https://broker.example/keys/")
                .endpoint("/kbs/v0/auth")
                .as_str(),
            "https://broker.example/keys/kbs/v0/auth"
        );
    }
}
