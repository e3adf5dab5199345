//! Where the kernel shows what a technology is reached by.

use std::path::{Path, PathBuf};

use crate::tpm;

/// Azure's metadata service: on every machine, and reachable from it alone.
const METADATA_SERVICE: &str = "http://169.254.169.254";

/// The machine that this process runs on. Every path below is looked up in its root, so
/// that a test can show a made-up machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    root: PathBuf,
    tpm: Option<PathBuf>,
    metadata_service: Option<String>,
    evidence_command: Vec<String>,
    gpu_evidence_command: Vec<String>,
}

impl Default for Machine {
    /// The real one.
    fn default() -> Self {
        Self::at("/")
    }
}

impl Machine {
    /// A machine whose `/sys` and `/dev` are in another folder.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            tpm: None,
            metadata_service: None,
            evidence_command: Vec::new(),
            gpu_evidence_command: Vec::new(),
        }
    }

    /// The same machine with another TPM: a device, or the socket of one in software. The
    /// one that Linux shows if there is none.
    #[must_use]
    pub fn with_tpm(self, tpm: impl Into<Option<PathBuf>>) -> Self {
        Self {
            tpm: tpm.into(),
            ..self
        }
    }

    /// The same machine with another metadata service, by its URL.
    #[must_use]
    pub fn with_metadata_service(self, url: impl Into<String>) -> Self {
        Self {
            metadata_service: Some(url.into()),
            ..self
        }
    }

    /// The same machine with a command that fetches evidence, its arguments included.
    #[must_use]
    pub fn with_evidence_command(self, command: Vec<String>) -> Self {
        Self {
            evidence_command: command,
            ..self
        }
    }

    /// The same machine with a command that fetches evidence of its GPUs, its arguments
    /// included.
    #[must_use]
    pub fn with_gpu_evidence_command(self, command: Vec<String>) -> Self {
        Self {
            gpu_evidence_command: command,
            ..self
        }
    }

    /// What fetches evidence of GPUs; empty if nothing.
    pub(crate) fn gpu_evidence_command(&self) -> &[String] {
        &self.gpu_evidence_command
    }

    /// What fetches evidence where no interface of the kernel's gives it; empty if nothing.
    pub(crate) fn evidence_command(&self) -> &[String] {
        &self.evidence_command
    }

    /// Where the cloud tells a machine of itself, by its URL.
    pub(crate) fn metadata_service(&self) -> &str {
        self.metadata_service.as_deref().unwrap_or(METADATA_SERVICE)
    }

    /// Where its TPM is.
    pub(crate) fn tpm(&self) -> PathBuf {
        self.tpm.clone().unwrap_or_else(|| self.path(tpm::DEVICE))
    }

    /// Where an absolute path lies.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(
            Path::new(absolute)
                .strip_prefix("/")
                .unwrap_or(Path::new(absolute)),
        )
    }
}
