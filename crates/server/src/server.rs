//! Starting, running and stopping.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum_server::Handle;
use occlude_attest::{Attester, SecurityConfiguration, ServiceStatement};
use occlude_broker::{BrokerClient, ConnectOptions};
use occlude_channel::{Gateway, Limits, PADDING};
use occlude_engine::{LoadOptions, Runtime, RuntimeOptions, memory};
use occlude_weakening::{Weakening, is};

use crate::admission::Admission;
use crate::attestation::Attestation;
use crate::error::{ServeError, StartError};
use crate::inner::{self, Inner};
use crate::lease::{self, Lease};
use crate::loading::{self, FetchKeyError, KeyDigest, Loader, Sealed, blocking};
use crate::metrics::Metrics;
use crate::mirror::Mirrored;
use crate::models::{Models, ServedModel};
use crate::outer::{self, Outer};
use crate::settings::ServerOptions;
use crate::write_limit::WriteLimit;

/// Requests in flight when the server is asked to stop may take this long.
const GRACE: Duration = Duration::from_secs(30);

/// Request heads that are longer are refused (hyper answers 431); it looks between
/// two reads, so up to as much again can pass. The protocol's own heads have some
/// hundred bytes; load balancers add a few more.
const LONGEST_HEAD: usize = 64 * 1024;

/// A connection must send its head within this time.
const HEAD_TIME: Duration = Duration::from_secs(15);

/// How often it is looked whether the channel's keys are due for rotation, when
/// no request does.
const ROTATION_CHECK: Duration = Duration::from_secs(60);

/// A server whose models are loaded and whose port is taken.
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    outer: Arc<Outer>,
    leases: Vec<Lease>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Takes the port, opens the TEE, fetches the models' keys from the broker
    /// and loads the models. Nothing is answered before [`Server::run`].
    ///
    /// # Errors
    /// [`StartError`]; [`StartError::kind`] tells a refusal from an outage.
    pub async fn bind(options: ServerOptions) -> Result<Self, StartError> {
        let hardening = memory::harden_process();
        for shortfall in &hardening.shortfalls {
            tracing::warn!(%shortfall, "this process is not fully hardened");
        }
        let (listener, address) = listen(options.listen)?;

        let configuration = configuration(&options);
        let attester =
            Attester::open_on(options.machine.clone(), options.tee, configuration.digest())?
                .with_additional(&options.additional_evidence)?;
        let attester = Arc::new(attester);
        let tee = attester.kind();
        if tee == occlude_attest::TeeKind::Simulated {
            tracing::warn!(
                "the TEE is SIMULATED: nothing is protected from this machine's administrator"
            );
        }
        let library = options.library.clone();
        let runtime_options = RuntimeOptions {
            threads: options.threads,
            ..RuntimeOptions::default()
        };
        let runtime = blocking(move || Runtime::load_with(&library, &runtime_options)).await?;
        let metrics = Arc::new(Metrics::new(tee.name()));
        let mirror = options
            .mirror
            .as_deref()
            .filter(|_| !is(Weakening::NoMirror))
            .map(|folder| Mirrored::new(folder, &metrics));
        let loader = Arc::new(Loader {
            attester: Arc::clone(&attester),
            broker: broker(&options)?,
            runtime,
            options: LoadOptions {
                threads: options.threads,
                sessions: options.sessions,
                largest: options.max_shape.clone(),
                spill: options.spill.clone(),
                cipher: options.spill_cipher,
                mirror: mirror.as_ref().map(Mirrored::of_weights),
                ..LoadOptions::default()
            },
            memory: options.protected_memory,
            mirror: mirror.clone(),
            metrics: Arc::clone(&metrics),
            broker_name: options.broker.to_string(),
        });

        let paths = options.models.clone();
        let mut models = Vec::new();
        for file in blocking(move || loading::read_all(&paths, mirror.as_ref())).await? {
            models.push(start_model(&options, &loader, file).await?);
        }
        let models = Arc::new(Models::new(models));
        check_shapes(&options, &models)?;
        let gateway = Arc::new(gateway(&options)?);
        let attestation = Arc::new(Attestation::new(
            attester,
            configuration,
            Arc::clone(&models),
            Arc::clone(&gateway),
        ));
        check_length(&attestation.statement())?;

        let leases = models
            .iter()
            .map(|model| Lease {
                model: Arc::clone(model),
                loader: Arc::clone(&loader),
                metrics: Arc::clone(&metrics),
                period: options.lease,
            })
            .collect();
        let inner = inner::router(Arc::new(Inner {
            models: Arc::clone(&models),
            queue_time: options.queue_time,
        }));
        let outer = Arc::new(Outer {
            attestation,
            gateway,
            models,
            metrics,
            admission: Admission::new(options.requests_in_flight, options.request_memory),
            inner,
            started: Instant::now(),
            maximum_request: options.maximum_request,
            body_time: options.body_time,
        });
        Ok(Self {
            listener,
            address,
            outer,
            leases,
        })
    }

    /// The address that was taken, with the port that the system chose if none
    /// was asked for.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What this server states about itself now.
    #[must_use]
    pub fn statement(&self) -> ServiceStatement {
        self.outer.attestation.statement().as_ref().clone()
    }

    /// Answers until `shutdown` completes, then finishes the requests in flight,
    /// for at most 30 s. Requests wait for weights that are still being loaded.
    ///
    /// # Errors
    /// [`ServeError`]: the listener fails, or weights cannot be loaded.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let handle = Handle::new();
        let mut server = axum_server::from_tcp(self.listener)?
            .acceptor(WriteLimit(self.outer.body_time))
            .http1_only()
            .first_request_timeout(HEAD_TIME)
            .handle(handle.clone());
        server
            .http_builder()
            .http1()
            .max_buf_size(LONGEST_HEAD)
            .header_read_timeout(HEAD_TIME);

        let mut background = tokio::task::JoinSet::new();
        for lease in self.leases {
            background.spawn(lease.keep());
        }
        background.spawn(rotate(Arc::clone(&self.outer)));
        let loading = loading_failure(&self.outer.models);

        tracing::info!(address = %self.address, "listening");
        let serving = server.serve(outer::router(self.outer).into_make_service());
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => return Ok(result?),
            failure = loading => return Err(failure),
            () = shutdown => {}
        }
        tracing::info!("stopping: finishing the requests in flight");
        handle.graceful_shutdown(Some(GRACE));
        Ok(serving.await?)
        // Dropping the set ends the background tasks.
    }
}

/// Waits for the weights of all models; completes only if some cannot be loaded.
fn loading_failure(models: &Models) -> impl Future<Output = ServeError> + use<> {
    let mut loading = tokio::task::JoinSet::new();
    for served in models.iter() {
        let Ok(loaded) = served.loaded() else {
            continue;
        };
        let served = Arc::clone(served);
        loading.spawn(async move {
            match blocking(move || loaded.model.wait_until_loaded()).await {
                Ok(()) => {
                    tracing::info!(model = %served.id, version = served.version, "weights loaded");
                    None
                }
                Err(source) => Some(ServeError::Model {
                    path: served.path.clone(),
                    source,
                }),
            }
        });
    }
    async move {
        while let Some(outcome) = loading.join_next().await {
            if let Ok(Some(failure)) = outcome {
                return failure;
            }
        }
        std::future::pending().await
    }
}

/// Rotates the channel's keys also when nobody asks for anything, so that old
/// ones are destroyed in time.
async fn rotate(outer: Arc<Outer>) {
    loop {
        tokio::time::sleep(ROTATION_CHECK).await;
        outer.rotate();
    }
}

fn listen(address: SocketAddr) -> Result<(std::net::TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    let taken = listener.local_addr().map_err(failed)?;
    Ok((listener, taken))
}

/// What clients and owners can rely on; covered by the evidence.
fn configuration(options: &ServerOptions) -> SecurityConfiguration {
    SecurityConfiguration {
        broker: Some(options.broker.to_string()),
        kem: options.kem.name().to_owned(),
        padding: PADDING.to_owned(),
        client_authentication: "none".to_owned(),
        maximum_request_bytes: options.maximum_request,
    }
}

/// From a signed file to a model with a lease.
async fn start_model(
    options: &ServerOptions,
    loader: &Arc<Loader>,
    file: Sealed,
) -> Result<ServedModel, StartError> {
    let Sealed { path, container } = file;
    let header = container.header().clone();
    let (id, version, digest) = (header.id().clone(), header.version(), header.digest());
    tracing::info!(model = %id, version, digest = %digest, "asking the broker for the key");
    let asked = Instant::now();
    let broker = loader.broker_name.clone();
    let key = match loader.fetch_key(header.owner(), &digest).await {
        Ok(key) => key,
        Err(FetchKeyError::Refused { reason }) => {
            return Err(StartError::KeyRefused {
                broker,
                id,
                version,
                reason,
            });
        }
        Err(FetchKeyError::Unavailable { reason }) => {
            return Err(StartError::KeyUnavailable {
                broker,
                id,
                version,
                reason,
            });
        }
    };
    let known = KeyDigest::of(&key);
    let started = loader.start(container, path.clone(), key).await?;
    Ok(ServedModel::new(
        &path,
        &header,
        known,
        started,
        options.sessions.get(),
        lease::end(asked, options.lease),
    ))
}

fn broker(options: &ServerOptions) -> Result<BrokerClient, StartError> {
    let refused = |reason: String| StartError::Broker {
        broker: options.broker.to_string(),
        reason,
    };
    let certificate_authorities = match &options.broker_authorities {
        Some(path) => Some(
            std::fs::read(path).map_err(|error| refused(format!("{}: {error}", path.display())))?,
        ),
        None => None,
    };
    let connect = ConnectOptions {
        certificate_authorities,
        ..ConnectOptions::default()
    };
    BrokerClient::new(options.broker.as_str(), &connect).map_err(|error| refused(error.to_string()))
}

fn gateway(options: &ServerOptions) -> Result<Gateway, StartError> {
    let limits = Limits {
        maximum_encapsulated_bytes: usize::try_from(options.maximum_request).unwrap_or(usize::MAX),
        ..Limits::default()
    };
    Ok(Gateway::new(options.kem, limits)?)
}

/// A shape for an input that no model has limits nothing, and whoever gave it thinks that
/// it does.
fn check_shapes(options: &ServerOptions, models: &Models) -> Result<(), StartError> {
    let has = |model: &ServedModel, input: &str| {
        model.loaded().is_ok_and(|loaded| {
            loaded
                .model
                .inputs()
                .iter()
                .any(|known| known.name == input)
        })
    };
    let unknown = options
        .max_shape
        .iter()
        .find(|shape| !models.iter().any(|model| has(model, &shape.input)));
    match unknown {
        None => Ok(()),
        Some(shape) => Err(StartError::UnknownInput {
            input: shape.input.clone(),
        }),
    }
}

fn check_length(statement: &ServiceStatement) -> Result<(), StartError> {
    let bytes = statement.encode().len();
    if bytes > ServiceStatement::MAX_BYTES {
        return Err(StartError::StatementTooLong {
            bytes,
            limit: ServiceStatement::MAX_BYTES,
        });
    }
    Ok(())
}
