//! Collecting simulated evidence.
//!
//! The measurement is what this process was started from, read once, before
//! anything was served: a file replaced later does not change it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::SimulatedReport;
use crate::{Binding, CollectError, ConfigurationDigest, Evidence};

/// The kernel's name for the file that this process runs.
const EXECUTABLE: &str = "/proc/self/exe";

/// The pretended version of a firmware that there is not.
const TCB: u32 = 1;

/// A process that says it is a TEE.
#[derive(Debug)]
pub(crate) struct SimulatedTee {
    measurement: [u8; 32],
    configuration: ConfigurationDigest,
}

impl SimulatedTee {
    pub(crate) fn open(configuration: ConfigurationDigest) -> Result<Self, CollectError> {
        let path = Path::new(EXECUTABLE);
        let measurement = measure(path).map_err(|source| CollectError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            measurement,
            configuration,
        })
    }

    pub(crate) fn collect(&self, binding: &Binding) -> Evidence {
        SimulatedReport {
            report_data: *binding,
            measurement: self.measurement,
            configuration: self.configuration,
            tcb: TCB,
            debug: occlude_weakening::any(),
        }
        .sign()
    }
}

fn measure(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&piece[..length]),
        }
    }
}
