//! A second place for what a store holds, from which the first is repaired.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a second copy of a store's file lies, and who is told of repairs.
#[derive(Clone)]
pub struct Mirror {
    folder: PathBuf,
    tell: Arc<dyn Fn(Repair) + Send + Sync>,
}

/// How a panel was had that was not in its place, or not authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// It was right when it was read once more.
    ReadAgain,
    /// It came from the second place, and was written back to the first.
    Repaired,
    /// It came from the second place; the first takes nothing.
    NotWritten,
}

impl Repair {
    /// What it is called in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadAgain => "read-again",
            Self::Repaired => "repaired",
            Self::NotWritten => "not-written",
        }
    }
}

impl Mirror {
    /// A second place in `folder`, best on another disk; `tell` is called at every repair.
    #[must_use]
    pub fn new(folder: &Path, tell: impl Fn(Repair) + Send + Sync + 'static) -> Self {
        Self {
            folder: folder.to_owned(),
            tell: Arc::new(tell),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn tell(&self, repair: Repair) {
        (self.tell)(repair);
    }
}

impl PartialEq for Mirror {
    fn eq(&self, other: &Self) -> bool {
        self.folder == other.folder && Arc::ptr_eq(&self.tell, &other.tell)
    }
}

impl Eq for Mirror {}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mirror").field(&self.folder).finish()
    }
}
