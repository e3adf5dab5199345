//! `occlude proxy`

use occlude_client::proxy::{Proxy, ProxyError, ProxyOptions};

use crate::arguments::ProxyArguments;
use crate::commands;
use crate::failure::Failure;

pub(crate) async fn run(arguments: ProxyArguments) -> Result<(), Failure> {
    let policy = commands::client_policy(&arguments.policy)?;
    let token = commands::token(arguments.token_file.as_deref())?;
    let client = commands::asker_options(&arguments.policy.collateral, &arguments.asker)?;
    let mut options = ProxyOptions::new(arguments.listen, arguments.url, policy);
    options.token = token;
    options.client = client;
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
