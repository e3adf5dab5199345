//! The model, sealed into memory under a key that is thrown away.
//!
//! The container lies in an anonymous file: shared memory, as a mapped file would
//! be, and no part of any process's anonymous memory. Processes that measure memory
//! inherit its descriptor.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use occlude_container::{
    ChunkSize, Container, Metadata, OpenContainer, Progress, SealOptions, model_key, seal,
};
use occlude_keys::{ModelId, ModelKey, OwnerKey, OwnerPublic};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::BenchError;

/// A sealed model that nobody else knows of.
pub(super) struct SealedModel {
    file: File,
    access: Access,
}

/// All that opening it takes, in this process or one that inherits the file.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
pub(super) struct Access {
    #[zeroize(skip)]
    descriptor: RawFd,
    #[zeroize(skip)]
    owner: OwnerPublic,
    /// The model key.
    key: [u8; 32],
}

impl SealedModel {
    pub(super) fn seal(
        model: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, BenchError> {
        let mut file = anonymous_file("occlude-bench-container")?;
        let key = OwnerKey::generate();
        let options = SealOptions {
            id: ModelId::random(),
            version: 1,
            chunk_size: ChunkSize::DEFAULT,
            metadata: Metadata::default(),
        };
        let sealed = seal(model, &mut file, &key, &options, progress)?;
        let model_key = model_key(&key, &sealed.header);
        Ok(Self {
            access: Access {
                descriptor: file.as_raw_fd(),
                owner: key.public(),
                key: *model_key.expose(),
            },
            file,
        })
    }

    pub(super) fn open(&self) -> Result<Arc<OpenContainer>, BenchError> {
        self.access.open()
    }

    pub(super) fn access(&self) -> &Access {
        debug_assert_eq!(self.access.descriptor, self.file.as_raw_fd());
        &self.access
    }
}

impl Access {
    pub(super) fn open(&self) -> Result<Arc<OpenContainer>, BenchError> {
        let container = Container::read(&path(self.descriptor))?;
        let signed = container.verify_owner(&self.owner)?;
        let open = signed.open(&ModelKey::new(Zeroizing::new(self.key)))?;
        Ok(Arc::new(open))
    }
}

/// A file without a name, in memory, that processes started from here inherit.
pub(super) fn anonymous_file(name: &str) -> Result<File, BenchError> {
    rustix::fs::memfd_create(name, MemfdFlags::empty())
        .map(File::from)
        .map_err(|error| BenchError::AnonymousFile(error.into()))
}

/// The path under which a process reaches a file that it has open or inherited.
pub(super) fn path(descriptor: RawFd) -> PathBuf {
    format!("/proc/self/fd/{descriptor}").into()
}
