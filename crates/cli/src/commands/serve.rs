//! `occlude serve`

use occlude_channel::Kem;
use occlude_server::{Server, Settings, SettingsError, StartErrorKind};

use crate::arguments::{KemArgument, ServeArguments};
use crate::commands;
use crate::failure::Failure;

pub(crate) async fn run(arguments: Box<ServeArguments>) -> Result<(), Failure> {
    let file = match &arguments.config {
        Some(path) => Settings::read(path).map_err(|error| settings_failure(&error))?,
        None => Settings::default(),
    };
    let options = flags(*arguments)
        .or(file)
        .resolve()
        .map_err(|error| settings_failure(&error))?;
    let server = Server::bind(options).await;
    let server = server.map_err(|error| failure(error.kind(), error))?;
    let ran = server.run(commands::shutdown_signal()).await;
    ran.map_err(|error| failure(error.kind(), error))
}

/// Flags, and the environment where a flag was not given.
fn flags(arguments: ServeArguments) -> Settings {
    Settings {
        model: arguments.model,
        broker: arguments.broker,
        tee: arguments.tee,
        tpm: arguments.evidence.tpm,
        evidence_command: arguments.evidence.command,
        gpu_evidence_command: arguments.evidence.gpu_command,
        additional_evidence: arguments.evidence.additional,
        listen: arguments.listen,
        threads: arguments.threads,
        sessions: arguments.sessions,
        protected_memory: arguments.protected_memory,
        max_shape: arguments.max_shape,
        spill: arguments.spill,
        spill_cipher: arguments.spill_cipher,
        mirror: arguments.mirror,
        kem: arguments.kem.map(|kem| match kem {
            KemArgument::XWing => Kem::XWing,
            KemArgument::X25519 => Kem::X25519,
        }),
        maximum_request: arguments.maximum_request,
        lease_seconds: arguments.lease_seconds,
        ..Settings::default()
    }
}

fn settings_failure(error: &SettingsError) -> Failure {
    Failure::usage(error.to_string())
}

fn failure<E: Into<anyhow::Error>>(kind: StartErrorKind, error: E) -> Failure {
    match kind {
        StartErrorKind::Refused => Failure::refused(error),
        StartErrorKind::Unavailable => Failure::unavailable(error),
        StartErrorKind::Failed => Failure::failed(error),
    }
}
