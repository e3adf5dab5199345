//! Keeps ONNX Runtime's telemetry from starting.
//!
//! Its builds for Linux have, since version 1.29, a client that notes the device, the
//! program and its sessions in the user's cache folder and sends them to its makers. It
//! starts with ONNX Runtime's environment, before the API's own switch can be used, and
//! only this variable keeps all of it away: files, threads and connections.

use std::fs;
use std::io;

/// The variable, and what it has to be.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
const FORBIDDEN: &str = "1";

/// Why telemetry could not be forbidden.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForbidTelemetryError {
    /// Environment variables can be changed only while there is one thread.
    #[error(
        "this process has {threads} threads already: telemetry is forbidden before there is a second"
    )]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// It cannot be told how many threads there are.
    #[error("/proc/self/task: {0}")]
    Io(#[from] io::Error),
}

/// Forbids it for this process and those that it starts, whatever the environment says.
/// Call it first thing in `main`: [`crate::Runtime::load`] refuses without it.
///
/// # Errors
/// [`ForbidTelemetryError`]; nothing has changed then.
pub fn forbid_telemetry() -> Result<(), ForbidTelemetryError> {
    if telemetry_is_forbidden() {
        return Ok(());
    }
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(ForbidTelemetryError::Threads { threads });
    }
    // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var(VARIABLE, FORBIDDEN) };
    Ok(())
}

/// Whether ONNX Runtime would start without it.
pub(crate) fn telemetry_is_forbidden() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == FORBIDDEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests have it set from the start (`.cargo/config.toml`), since they run in threads.
    #[test]
    fn where_it_is_forbidden_already_threads_do_not_matter() {
        assert!(telemetry_is_forbidden());
        forbid_telemetry().unwrap();
    }
}
