//! From a sealed file to a loaded model: signature, key, weights, session.
//!
//! The operator supplies the file and can replace it at any time, and may run
//! the broker's network; the owner's signature and the key's commitment decide.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use occlude_attest::Attester;
use occlude_broker::{BrokerClient, FetchError};
use occlude_container::{Container, OpenContainer, SignedContainer};
use occlude_engine::{LoadOptions, Model, Runtime};
use occlude_guard::{Guard, GuardConfiguration, METADATA_KEY};
use occlude_keys::{HeaderDigest, ModelKey, OwnerPublic};
use occlude_usage::SketchKey;
use occlude_weakening::{Weakening, is};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::budget::{BrokerAllowances, Meter, Watch};
use crate::error::StartError;
use crate::metrics::Metrics;
use crate::mirror::Mirrored;
use crate::models::Loaded;
use crate::settings::MemoryBudget;

/// A broker that takes longer to release a key is taken as unavailable.
const LONGEST_FETCH: Duration = Duration::from_secs(30);

/// What loading needs, at the start and again after a lease has lapsed.
pub(crate) struct Loader {
    pub(crate) attester: Arc<Attester>,
    pub(crate) broker: BrokerClient,
    pub(crate) runtime: &'static Runtime,
    /// All but the budget, which `memory` gives when a model is loaded.
    pub(crate) options: LoadOptions,
    pub(crate) memory: MemoryBudget,
    pub(crate) mirror: Option<Mirrored>,
    pub(crate) metrics: Arc<Metrics>,
    /// What the broker is called in errors.
    pub(crate) broker_name: String,
}

/// Why the broker gave no key.
#[derive(Debug)]
pub(crate) enum FetchKeyError {
    /// It said no.
    Refused { reason: String },
    /// It said nothing, or nothing that makes sense.
    Unavailable { reason: String },
}

/// What is kept of a model's key, to know it again when the lease is renewed.
///
/// Whoever stands between can seal 32 bytes of their own to this server's key, and
/// so prolong the lease on a withdrawn model; but they do not have the model's key.
pub(crate) struct KeyDigest(Zeroizing<[u8; 32]>);

impl KeyDigest {
    pub(crate) fn of(key: &ModelKey) -> Self {
        Self(Zeroizing::new(Sha256::digest(key.expose()).into()))
    }

    /// Compares digests, so that time tells nothing about the key.
    pub(crate) fn matches(&self, key: &ModelKey) -> bool {
        *self.0 == *Self::of(key).0
    }
}

/// Reads a sealed file and checks the signature of the owner whom it names; that
/// owner then stands in the service statement, for clients to judge.
///
/// Where there is a mirror, a file whose header is not in order is read from there, and of
/// another each chunk that is not authentic.
pub(crate) fn read(path: &Path, mirror: Option<&Mirrored>) -> Result<SignedContainer, StartError> {
    let refused = |source| StartError::Container {
        path: path.to_owned(),
        source,
    };
    let read = |path: &Path| {
        let container = Container::read(path)?;
        let owner = *container.header().owner();
        container.verify_owner(&owner)
    };
    let Some(mirror) = mirror else {
        return read(path).map_err(refused);
    };
    let copy = mirror.copy_of(path);
    match read(path) {
        Ok(container) => mirror
            .add(container, &copy)
            .map_err(|source| StartError::Container { path: copy, source }),
        Err(error) => {
            let container = read(&copy).map_err(|_| refused(error))?;
            tracing::warn!(path = %path.display(), "the container is altered: its copy is served");
            mirror.tell("container", "not-written");
            Ok(container)
        }
    }
}

/// A sealed file whose owner's signature holds.
pub(crate) struct Sealed {
    pub(crate) path: PathBuf,
    pub(crate) container: SignedContainer,
}

/// Reads all files that are to be served together: of one owner, and no version
/// twice.
///
/// The owner who releases a key judges this server's evidence, which does not say
/// whose graphs will run in one process with its weights. So that is decided here,
/// in code that the evidence measures, before there is any key.
pub(crate) fn read_all(
    paths: &[PathBuf],
    mirror: Option<&Mirrored>,
) -> Result<Vec<Sealed>, StartError> {
    let mut files: Vec<Sealed> = Vec::with_capacity(paths.len());
    for path in paths {
        let file = Sealed {
            path: path.clone(),
            container: read(path, mirror)?,
        };
        let header = file.container.header();
        for other in &files {
            let others = other.container.header();
            if others.owner() != header.owner() {
                return Err(StartError::SeveralOwners {
                    first: other.path.clone(),
                    first_owner: Box::new(*others.owner()),
                    second: file.path,
                    second_owner: Box::new(*header.owner()),
                });
            }
            if others.id() == header.id() && others.version() == header.version() {
                return Err(StartError::Duplicate {
                    id: header.id().clone(),
                    version: header.version(),
                });
            }
        }
        files.push(file);
    }
    Ok(files)
}

impl Loader {
    /// Asks the broker for the key of one sealed version, with fresh evidence.
    pub(crate) async fn fetch_key(
        &self,
        owner: &OwnerPublic,
        digest: &HeaderDigest,
    ) -> Result<ModelKey, FetchKeyError> {
        let owner = owner.fingerprint();
        let asked = self.broker.fetch_model_key(&self.attester, &owner, digest);
        match tokio::time::timeout(LONGEST_FETCH, asked).await {
            Ok(Ok(key)) => Ok(key),
            Ok(Err(error @ FetchError::Refused { .. })) => Err(FetchKeyError::Refused {
                reason: error.to_string(),
            }),
            Ok(Err(error)) => Err(FetchKeyError::Unavailable {
                reason: error.to_string(),
            }),
            Err(_) => Err(FetchKeyError::Unavailable {
                reason: format!("no answer within {} s", LONGEST_FETCH.as_secs()),
            }),
        }
    }

    /// Asks for the key again, and takes no other for it.
    pub(crate) async fn renew_key(
        &self,
        owner: &OwnerPublic,
        digest: &HeaderDigest,
        known: &KeyDigest,
    ) -> Result<ModelKey, FetchKeyError> {
        let key = self.fetch_key(owner, digest).await?;
        if known.matches(&key) {
            return Ok(key);
        }
        Err(FetchKeyError::Unavailable {
            reason: "the key that came is not the model's".to_owned(),
        })
    }

    /// Opens a container, starts the model with its guard, and takes its first allowance of
    /// queries where the guard has budgets: weights may still be loaded when this returns,
    /// see [`Model::start`].
    pub(crate) async fn start(
        self: &Arc<Self>,
        container: SignedContainer,
        path: PathBuf,
        key: ModelKey,
    ) -> Result<(Loaded, Option<Guard>), StartError> {
        let header = container.header().clone();
        let (model, guard, key) = Arc::clone(self).start_model(container, path, key).await?;
        let configuration = guard.as_ref().map(Guard::configuration);
        let budgets = configuration.and_then(|guard| guard.budgets);
        let work = configuration.and_then(|guard| guard.work);
        let watch = configuration
            .and_then(|guard| guard.telemetry)
            .map(|telemetry| Watch::new(telemetry, SketchKey::of(&key)));
        let Some(budgets) = budgets else {
            let meter = None;
            return Ok((Loaded { model, meter }, guard));
        };
        let (owner, digest) = (*header.owner(), header.digest());
        let allow = BrokerAllowances::new(Arc::clone(self), owner, digest, key);
        match Meter::open(budgets, (watch, work), allow).await {
            Ok(meter) => {
                let meter = Some(Arc::new(meter));
                Ok((Loaded { model, meter }, guard))
            }
            Err(source) => Err(StartError::Queries {
                broker: self.broker_name.clone(),
                id: header.id().clone(),
                version: header.version(),
                source,
            }),
        }
    }

    /// Starts a model, on a thread that may block.
    async fn start_model(
        self: Arc<Self>,
        container: SignedContainer,
        path: PathBuf,
        key: ModelKey,
    ) -> Result<(Model, Option<Guard>, ModelKey), StartError> {
        blocking(move || {
            let open = container.open(&key).map_err(|source| StartError::Open {
                path: path.clone(),
                source,
            })?;
            if is(Weakening::TemporaryCopy) {
                let copy = std::env::temp_dir().join("graph.onnx");
                let _ = std::fs::write(copy, open.skeleton());
            }
            let guard = guard_of(&open, &path)?;
            let (memory, process) = self.memory.now();
            let options = LoadOptions {
                memory,
                process,
                ..self.options.clone()
            };
            let model =
                Model::start(self.runtime, &Arc::new(open), &options).map_err(|source| {
                    StartError::Model {
                        path: path.clone(),
                        source,
                    }
                })?;
            let guard = guard
                .map(|guard| Guard::new(guard, model.outputs(), &key))
                .transpose()
                .map_err(|source| StartError::GuardOfAnother { path, source })?;
            let counts = model.layer_counts();
            // Totals only: names of layers are the owner's.
            let plan = model.plan();
            tracing::info!(
                budget = %options.memory,
                spill = %options.spill,
                spill_cipher = model.spill_cipher().map(tracing::field::display),
                weight_bytes = model.weight_bytes(),
                resident_bytes = model.resident_bytes(),
                streamed_bytes = plan.streamed(),
                streaming_costs_ms = (plan.cost_ms() * 1e3).round() / 1e3,
                sessions = plan.sessions,
                working_bytes_a_session = plan.working,
                process_bytes = plan.process,
                sealed_layers = counts.sealed,
                weights_opened_whole = counts.opened_whole,
                guarded = guard.is_some(),
                "sessions started",
            );
            Ok((model, guard, key))
        })
        .await
    }

    /// Reads the file again and loads it, if it still is the version that the
    /// service statement names.
    pub(crate) async fn reload(
        self: &Arc<Self>,
        path: PathBuf,
        digest: HeaderDigest,
        key: ModelKey,
    ) -> Result<Loaded, StartError> {
        let from = path.clone();
        let mirror = self.mirror.clone();
        let container = blocking(move || read(&from, mirror.as_ref())).await?;
        if container.header().digest() != digest {
            return Err(StartError::Replaced { path });
        }
        // The guard of a sealed version never changes.
        let (loaded, _) = self.start(container, path.clone(), key).await?;
        blocking(move || match loaded.model.wait_until_loaded() {
            Ok(()) => Ok(loaded),
            Err(source) => Err(StartError::Model { path, source }),
        })
        .await
    }
}

/// What the owner sealed with a model. Whatever this version does not know may be a
/// condition under which it may be served.
fn guard_of(open: &OpenContainer, path: &Path) -> Result<Option<GuardConfiguration>, StartError> {
    let metadata = open.metadata();
    if let Some(entry) = metadata.keys().find(|entry| *entry != METADATA_KEY) {
        return Err(StartError::Metadata {
            path: path.to_owned(),
            entry: entry.chars().take(80).collect(),
        });
    }
    let guard = metadata.get(METADATA_KEY);
    let guard = guard.map(|guard| GuardConfiguration::from_json(guard));
    guard.transpose().map_err(|source| StartError::Guard {
        path: path.to_owned(),
        source,
    })
}

/// Runs work that takes long or reads files away from the request threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime cancels blocking work only while it shuts down.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_does_not_pass_for_the_models() {
        let key = |byte| ModelKey::new(Zeroizing::new([byte; 32]));
        let known = KeyDigest::of(&key(1));
        assert!(known.matches(&key(1)));
        assert!(!known.matches(&key(2)));
    }
}
