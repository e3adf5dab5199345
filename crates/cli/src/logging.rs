//! Logs go to standard error, as text or as JSON, one event a line.
//!
//! `OCCLUDE_LOG` takes a filter such as `occlude_server=debug`; the default shows
//! what an operator needs and no more. No event carries a key, a weight, an input
//! or an output.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("OCCLUDE_LOG").unwrap_or_else(|_| {
        EnvFilter::new(
            "warn,occlude_server=info,occlude_broker=info,occlude_client=info,occlude=info",
        )
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
