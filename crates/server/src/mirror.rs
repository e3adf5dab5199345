//! A second place of the operator's for containers and streamed weights. It is believed as
//! little as the first: what comes from there has to be authentic.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use occlude_container::{ContainerError, SignedContainer};
use occlude_engine::Mirror;

use crate::metrics::Metrics;

/// A folder with second copies, and where repairs are counted.
#[derive(Clone)]
pub(crate) struct Mirrored {
    folder: PathBuf,
    metrics: Arc<Metrics>,
}

impl Mirrored {
    pub(crate) fn new(folder: &Path, metrics: &Arc<Metrics>) -> Self {
        Self {
            folder: folder.to_owned(),
            metrics: Arc::clone(metrics),
        }
    }

    /// Where the copy of a container is.
    pub(crate) fn copy_of(&self, path: &Path) -> PathBuf {
        self.folder.join(path.file_name().unwrap_or_default())
    }

    /// The container, with its copy.
    pub(crate) fn add(
        &self,
        container: SignedContainer,
        copy: &Path,
    ) -> Result<SignedContainer, ContainerError> {
        let mirrored = self.clone();
        container.with_copy(copy, move |repair| {
            mirrored.tell("container", repair.name());
        })
    }

    /// For what a model streams.
    pub(crate) fn of_weights(&self) -> Mirror {
        let mirrored = self.clone();
        Mirror::new(&self.folder, move |repair| {
            mirrored.tell("weights", repair.name());
        })
    }

    /// Counts a repair and tells the operator, who sees it anyway.
    pub(crate) fn tell(&self, what: &'static str, outcome: &'static str) {
        self.metrics.repair(what, outcome);
        tracing::warn!(what, outcome, "altered, and had from elsewhere");
    }
}
