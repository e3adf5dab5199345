//! Running a broker: its database, its listener, TLS and its end.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use occlude_attest::{CollateralError, LastingVerifier};

use crate::metrics;
use crate::service::Broker;
use crate::store::{Store, StoreError};

/// How long requests under way may take after the end was asked for.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// For the headers of one request, and for the first one on a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Plenty for four fields and a bearer token.
const LONGEST_HEADERS: usize = 64 * 1024;

/// What a broker is started with.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Where to listen; port 0 lets the operating system choose.
    pub listen: SocketAddr,
    /// A file's path (`SQLite`; made if it is not there) or a `postgres://` URL.
    pub database: String,
    /// The master key's file, made with a new database; `None` is
    /// `<database>.master-key`, for `SQLite` only.
    pub master_key: Option<PathBuf>,
    /// Serve https instead of http.
    pub tls: Option<TlsFiles>,
    /// Where to tell Prometheus how often clients asked unusually, in plain HTTP: to whoever
    /// reaches it. Nowhere by default.
    pub metrics: Option<SocketAddr>,
    /// The folder of what hardware vendors publish: see [`occlude_attest::Collateral`].
    pub collateral: Option<PathBuf>,
}

/// PEM files for https.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a broker does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The database or its master key.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate or a private key.
    #[error("{}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What hardware vendors publish cannot be read.
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    /// The server stopped by itself.
    #[error("the server stopped: {source}")]
    Stopped {
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Where a broker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// For servers and owners.
    pub address: SocketAddr,
    /// For Prometheus.
    pub metrics: Option<SocketAddr>,
}

/// Runs a broker until `shutdown` completes. `ready` is told where it listens once
/// connections are taken.
///
/// # Errors
/// [`ServeError`]. The address is taken first, so that a broker that has none makes no
/// database and no master key; requests are answered once the database was checked.
pub async fn serve(
    options: BrokerOptions,
    ready: impl FnOnce(Listening),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let verifier = LastingVerifier::new(options.collateral);
    verifier.current()?;
    let tls = options.tls.as_ref().map(tls_configuration).transpose()?;
    let (listener, address) = listen(options.listen)?;
    let metrics = options.metrics.map(listen).transpose()?;

    let store = Store::open(&options.database, options.master_key.as_deref()).await?;
    let broker = Arc::new(Broker::new(store, verifier));
    let router = Broker::routes(&broker).into_make_service();
    let server = server(listener, address)?;
    let handle = Handle::new();
    let stopping = handle.clone();
    let waiting = tokio::spawn(async move {
        shutdown.await;
        stopping.graceful_shutdown(Some(SHUTDOWN_TIMEOUT));
    });
    if tls.is_none() && !address.ip().is_loopback() {
        tracing::warn!(
            "plain http beyond this machine: owners' clients will hand over no model key here"
        );
    }
    let listening = Listening {
        address,
        metrics: metrics.as_ref().map(|(_, address)| *address),
    };
    if let Some((listener, address)) = metrics {
        let routes = metrics::router(Arc::clone(&broker)).into_make_service();
        let server = self::server(listener, address)?.handle(handle.clone());
        tokio::spawn(server.serve(routes));
    }
    ready(listening);
    let server = server.handle(handle);
    let served = match tls {
        Some(tls) => {
            let acceptor = axum_server::tls_rustls::RustlsAcceptor::new(tls);
            server.acceptor(acceptor).serve(router).await
        }
        None => server.serve(router).await,
    };
    waiting.abort();
    broker.write_folded().await?;
    served.map_err(|source| ServeError::Stopped { source })
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let cannot_listen = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    Ok((listener, address))
}

/// A server whose clients have to come to the point.
fn server(
    listener: TcpListener,
    address: SocketAddr,
) -> Result<axum_server::Server<SocketAddr>, ServeError> {
    let mut server = axum_server::from_tcp(listener)
        .map_err(|source| ServeError::Listen { address, source })?
        .http1_only()
        .first_request_timeout(HEADER_TIMEOUT);
    server
        .http_builder()
        .http1()
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(LONGEST_HEADERS);
    Ok(server)
}

fn tls_configuration(files: &TlsFiles) -> Result<RustlsConfig, ServeError> {
    let refused = |path: &Path, reason: &dyn std::fmt::Display| ServeError::Tls {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| refused(&files.certificate, &error))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| refused(&files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut configuration = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&files.certificate, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| refused(&files.certificate, &error))?;
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(RustlsConfig::from_config(Arc::new(configuration)))
}
