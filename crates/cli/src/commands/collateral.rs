//! `occlude attest collateral`: a folder of what hardware vendors publish.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use occlude_attest::fetch::{Answer, FetchError, Services, Transport, fetch};
use occlude_attest::{Collateral, RecordedEvidence, UnixTime};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use url::Url;

use super::attest::read_recorded;
use crate::arguments::{CollateralAction, FetchArguments};
use crate::failure::Failure;
use crate::{commands, output};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(action: CollateralAction) -> Result<(), Failure> {
    match action {
        CollateralAction::List { cache, at, json } => {
            list(&cache, at.unwrap_or_else(UnixTime::now), json)
        }
        CollateralAction::Fetch(arguments) => fetch_into(&arguments),
    }
}

fn fetch_into(arguments: &FetchArguments) -> Result<(), Failure> {
    let bytes = commands::read_file(&arguments.evidence, RecordedEvidence::MAX_FILE_BYTES)?;
    let evidence = read_recorded(&bytes, arguments.tee)?.evidence;
    let base = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
    let services = Services {
        amd: base(&arguments.amd_url),
        intel: base(&arguments.intel_url),
        nvidia: base(&arguments.nvidia_url),
    };
    let fetched = fetch(
        &evidence,
        &arguments.cache,
        &services,
        &Http::new(),
        UnixTime::now(),
        arguments.again,
    )
    .map_err(|error| match error {
        FetchError::Unavailable { .. } | FetchError::Unusable { .. } => Failure::unavailable(error),
        FetchError::Evidence(_) => Failure::refused(error),
        _ => Failure::failed(error),
    })?;
    if arguments.json {
        return output::json(&fetched);
    }
    for file in &fetched {
        output::line(format_args!(
            "{}  {:20}  {}",
            if file.new { "fetched" } else { "kept   " },
            commands::until(file.until),
            file.path.display()
        ));
    }
    Ok(())
}

/// HTTP and HTTPS, with the system's authorities.
struct Http(ureq::Agent);

impl Http {
    fn new() -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .max_redirects(0)
            .tls_config(tls)
            .build();
        Self(config.into())
    }
}

impl Transport for Http {
    fn get(&self, url: &str) -> Result<Answer, String> {
        output::note(format_args!("occlude: {url}"));
        let mut answer = self.0.get(url).call().map_err(|error| match error {
            ureq::Error::StatusCode(429) => {
                "HTTP 429: the service was asked too often, try again later".to_owned()
            }
            ureq::Error::StatusCode(404) => "HTTP 404: the service has none".to_owned(),
            ureq::Error::StatusCode(code) => format!("HTTP {code}"),
            other => other.to_string(),
        })?;
        if answer.status().as_u16() != 200 {
            return Err(format!("HTTP {}", answer.status().as_u16()));
        }
        let headers = answer.headers().iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        });
        let headers = headers.collect();
        let body = answer
            .body_mut()
            .with_config()
            .limit(Collateral::MAX_FILE_BYTES)
            .read_to_vec()
            .map_err(|error| error.to_string())?;
        Ok(Answer { headers, body })
    }
}

fn list(folder: &Path, at: UnixTime, json: bool) -> Result<(), Failure> {
    let items = Collateral::read(folder).map_err(Failure::failed)?.items();
    if json {
        return output::json(&items);
    }
    let is_over = |until: Option<UnixTime>| until.is_some_and(|until| until < at);
    let over = items.iter().filter(|item| is_over(item.until)).count();
    for item in &items {
        let mark = if is_over(item.until) { "over" } else { "" };
        output::line(
            format!(
                "{:20}  {mark:4}  {:15}  {}",
                commands::until(item.until),
                item.kind,
                item.of
            )
            .trim_end(),
        );
    }
    output::note(format_args!(
        "occlude: {} in all, {over} over at {at}; each is verified where it is used",
        items.len()
    ));
    Ok(())
}
