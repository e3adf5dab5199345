//! The models served, and whether each may still answer.
//!
//! A model answers only while its lease runs. The end of the lease is looked at
//! for every request, so that an operator who delays the renewal task, or the
//! broker's answer, gains nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use occlude_container::Header;
use occlude_engine::Model;
use occlude_guard::{Guard, NO_GUARD};
use occlude_keys::{HeaderDigest, ModelId, ModelVersion, OwnerPublic};
use tokio::sync::Semaphore;

use crate::budget::Meter;
use crate::loading::KeyDigest;

/// All models of one server, in the order of their files: of one owner, and no
/// version twice ([`crate::loading::read_all`]).
pub(crate) struct Models(Vec<Arc<ServedModel>>);

/// One sealed version of one model: what its signed header says, and its state.
pub(crate) struct ServedModel {
    pub(crate) path: PathBuf,
    pub(crate) id: ModelId,
    pub(crate) version: ModelVersion,
    pub(crate) owner: OwnerPublic,
    pub(crate) digest: HeaderDigest,
    pub(crate) key: KeyDigest,
    /// One permit for each session, so that a request that must wait holds no
    /// thread meanwhile.
    pub(crate) sessions: Arc<Semaphore>,
    /// What its owner sealed with it, of which every version of the file has the same.
    pub(crate) guard: Option<Guard>,
    state: RwLock<State>,
}

/// What answers while the lease runs.
pub(crate) struct Loaded {
    pub(crate) model: Model,
    /// What may still be answered, where its guard has budgets.
    pub(crate) meter: Option<Arc<Meter>>,
}

enum State {
    Ready { loaded: Arc<Loaded>, until: Instant },
    Withdrawn,
    Lapsed,
}

/// Why a model that is served does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unready {
    /// The broker refused the key: the owner withdrew this version, or this
    /// server.
    Withdrawn,
    /// The broker could not be asked for longer than the lease runs.
    Lapsed,
}

impl Models {
    pub(crate) fn new(models: Vec<ServedModel>) -> Self {
        Self(models.into_iter().map(Arc::new).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ServedModel>> {
        self.0.iter()
    }

    /// The versions of a model, highest first; none if the id is unknown.
    pub(crate) fn versions(&self, id: &str) -> Vec<&Arc<ServedModel>> {
        let mut versions: Vec<_> = self
            .iter()
            .filter(|model| model.id.as_str() == id)
            .collect();
        versions.sort_by_key(|model| std::cmp::Reverse(model.version));
        versions
    }

    /// How many models answer now.
    pub(crate) fn ready(&self) -> usize {
        self.iter().filter(|model| model.loaded().is_ok()).count()
    }

    /// Whether every model that is not withdrawn answers now, and at least one does.
    pub(crate) fn all_ready(&self) -> bool {
        self.ready() > 0
            && self
                .iter()
                .all(|model| !matches!(model.loaded(), Err(Unready::Lapsed)))
    }
}

impl ServedModel {
    /// What a signed header says, ready to answer until the lease ends.
    pub(crate) fn new(
        path: &Path,
        header: &Header,
        key: KeyDigest,
        (loaded, guard): (Loaded, Option<Guard>),
        sessions: usize,
        until: Instant,
    ) -> Self {
        Self {
            key,
            path: path.to_owned(),
            id: header.id().clone(),
            version: header.version(),
            owner: *header.owner(),
            digest: header.digest(),
            sessions: Arc::new(Semaphore::new(sessions)),
            guard,
            state: RwLock::new(State::Ready {
                loaded: Arc::new(loaded),
                until,
            }),
        }
    }

    /// Its guard's defences, as statements tell them.
    pub(crate) fn guard_name(&self) -> String {
        let guard = self.guard.as_ref();
        guard.map_or_else(|| NO_GUARD.to_owned(), Guard::name)
    }

    /// The model, while its lease runs.
    pub(crate) fn loaded(&self) -> Result<Arc<Loaded>, Unready> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready { loaded, until } if Instant::now() < *until => Ok(Arc::clone(loaded)),
            State::Ready { .. } | State::Lapsed => Err(Unready::Lapsed),
            State::Withdrawn => Err(Unready::Withdrawn),
        }
    }

    /// When the lease ends; `None` if it has no model to hold one on.
    pub(crate) fn lease_end(&self) -> Option<Instant> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready { until, .. } => Some(*until),
            State::Lapsed | State::Withdrawn => None,
        }
    }

    /// Lets the loaded model answer until then.
    pub(crate) fn renew(&self, renewed_until: Instant) {
        if let State::Ready { until, .. } =
            &mut *self.state.write().unwrap_or_else(PoisonError::into_inner)
        {
            *until = renewed_until;
        }
    }

    /// Takes a model loaded again after its lease had lapsed.
    pub(crate) fn load(&self, loaded: Loaded, until: Instant) {
        self.replace(State::Ready {
            loaded: Arc::new(loaded),
            until,
        });
    }

    /// Unloads the model for good. Weights are wiped when the last inference that
    /// runs on them ends.
    pub(crate) fn withdraw(&self) {
        self.replace(State::Withdrawn);
    }

    /// Unloads the model until the broker answers again.
    pub(crate) fn lapse(&self) {
        self.replace(State::Lapsed);
    }

    fn replace(&self, state: State) {
        // The old model is dropped, which wipes it, after the lock is free.
        let old = std::mem::replace(
            &mut *self.state.write().unwrap_or_else(PoisonError::into_inner),
            state,
        );
        drop(old);
    }
}
