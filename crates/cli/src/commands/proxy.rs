//! `occlude proxy`

use std::sync::Arc;

use occlude_client::proxy::{Proxy, ProxyError, ProxyOptions};

use crate::arguments::ProxyArguments;
use crate::commands;
use crate::failure::Failure;

pub(crate) async fn run(arguments: ProxyArguments) -> Result<(), Failure> {
    let policy = commands::client_policy(&arguments.policy)?;
    let token = commands::token(arguments.token_file.as_deref())?;
    let client_token = commands::token(arguments.client_token.as_deref())?;
    let mut options = ProxyOptions::new(arguments.listen, arguments.url, policy);
    options.token = token;
    options.client = commands::client_options(&arguments.policy.collateral);
    options.client.token = client_token.map(Arc::new);
    let proxy = Proxy::bind(options).map_err(proxy_failure)?;
    tracing::info!(address = %proxy.local_address(), "the proxy listens");
    proxy
        .run(commands::shutdown_signal())
        .await
        .map_err(Failure::failed)
}

fn proxy_failure(error: ProxyError) -> Failure {
    match error {
        ProxyError::NotLoopback { .. } => Failure::usage(error.to_string()),
        _ => Failure::failed(error),
    }
}
