//! One file per command.

pub(crate) mod attest;
pub(crate) mod bench;
pub(crate) mod broker;
pub(crate) mod collateral;
pub(crate) mod completions;
pub(crate) mod evaluate;
pub(crate) mod guard;
pub(crate) mod infer;
pub(crate) mod inspect;
pub(crate) mod keygen;
pub(crate) mod policy;
pub(crate) mod proxy;
mod python;
pub(crate) mod seal;
pub(crate) mod serve;
pub(crate) mod tee;
pub(crate) mod unseal;
pub(crate) mod verify;

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use occlude_attest::{Policy, PolicyFile, PolicyFileError, UnixTime};
use occlude_client::{ClientError, ClientOptions, ErrorKind, Token};
use occlude_container::{ContainerError, OpenError};
use occlude_keys::{KeyFileError, OwnerKey, OwnerPublic};

use crate::arguments::{AskerArguments, CollateralArguments, NewOrExistingKey, PolicySource};
use crate::failure::Failure;
use crate::output;

/// Reads the owner's key file.
fn owner_key(path: &Path) -> Result<OwnerKey, Failure> {
    OwnerKey::read_from(path).map_err(Failure::failed)
}

/// Reads the key that was asked for, or makes a new one and says so.
fn new_or_existing_key<K>(
    arguments: &NewOrExistingKey,
    read: fn(&Path) -> Result<K, KeyFileError>,
    generate: fn() -> K,
    write_new: fn(&K, &Path) -> Result<(), KeyFileError>,
) -> Result<K, Failure> {
    match (&arguments.public, &arguments.output) {
        (Some(existing), _) => read(existing).map_err(Failure::failed),
        (None, Some(new)) => {
            let key = generate();
            write_new(&key, new).map_err(Failure::failed)?;
            output::note(format_args!(
                "occlude: wrote {} (keep it secret, keep a copy)",
                new.display()
            ));
            Ok(key)
        }
        (None, None) => Err(Failure::usage("give --output or --public")),
    }
}

/// Reads a policy, signed by `owner` if one is named.
fn policy(path: &Path, owner: Option<&OwnerPublic>) -> Result<Policy, Failure> {
    PolicyFile::read(path, owner)
        .map(PolicyFile::into_policy)
        .map_err(|error| {
            let failure = match error {
                PolicyFileError::NotSigned { .. }
                | PolicyFileError::SignedByAnother { .. }
                | PolicyFileError::MalformedSignature
                | PolicyFileError::BadSignature => Failure::refused(error),
                _ => Failure::failed(error),
            };
            failure.while_doing(path.display().to_string())
        })
}

/// Reads a client's policy and says aloud when nobody has reviewed it.
fn client_policy(source: &PolicySource) -> Result<Policy, Failure> {
    let policy = policy(&source.policy, source.owner.as_ref())?;
    if !policy.reviewed() {
        output::note(format_args!(
            "occlude: {} is not reviewed: it trusts what one server said of itself",
            source.policy.display()
        ));
    }
    if policy.names_simulated() {
        output::note("occlude: this policy accepts the SIMULATED TEE, which protects nothing");
    }
    Ok(policy)
}

/// How a server is treated.
fn client_options(collateral: &CollateralArguments) -> ClientOptions {
    ClientOptions {
        collateral: collateral.collateral.clone(),
        ..ClientOptions::default()
    }
}

/// The same, by one who asks about models that may be guarded.
fn asker_options(
    collateral: &CollateralArguments,
    asker: &AskerArguments,
) -> Result<ClientOptions, Failure> {
    Ok(ClientOptions {
        token: token(asker.client_token.as_deref())?.map(Arc::new),
        most_work: asker.most_work,
        ..client_options(collateral)
    })
}

/// Reads a bearer token.
fn token(path: Option<&Path>) -> Result<Option<Token>, Failure> {
    path.map(Token::read).transpose().map_err(Failure::failed)
}

/// A client's error, with its exit code.
fn client_failure(error: ClientError) -> Failure {
    match error.kind() {
        _ if matches!(error, ClientError::Address { .. }) => Failure::usage(error.to_string()),
        ErrorKind::Refused => Failure::refused(error),
        ErrorKind::Unavailable => Failure::unavailable(error),
        ErrorKind::Failed => Failure::failed(error),
    }
}

/// What a container that is not believed ends in; one that cannot be read at all is
/// a failure of another kind.
fn container_failure(path: &Path, error: ContainerError) -> Failure {
    let failure = match error {
        ContainerError::Io { .. } => Failure::failed(error),
        _ => Failure::refused(error),
    };
    failure.while_doing(path.display().to_string())
}

/// The same, for what lies under the encryption.
fn open_failure(path: &Path, error: OpenError) -> Failure {
    let failure = match error {
        OpenError::Io { .. } => Failure::failed(error),
        _ => Failure::refused(error),
    };
    failure.while_doing(path.display().to_string())
}

/// Reads a whole file, or pipe, of at most `limit` bytes.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let failed =
        |error: anyhow::Error| Failure::failed(error).while_doing(path.display().to_string());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| failed(error.into()))?;
    if bytes.len() as u64 > limit {
        return Err(failed(anyhow::anyhow!("more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Refuses a path that no file could be written to, before long work is done for it.
fn check_folder_of(path: &Path) -> Result<(), Failure> {
    let folder = folder_of(path);
    if folder.is_dir() && !path.is_dir() {
        return Ok(());
    }
    let found = if path.is_dir() {
        "it is a folder"
    } else {
        "its folder is not there"
    };
    Err(Failure::failed(anyhow::anyhow!(found)).while_doing(path.display().to_string()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Writes a whole file by renaming, so that a reader sees the old one or the new one.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    tempfile::NamedTempFile::new_in(folder_of(path))
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.persist(path).map_err(|error| error.error)
        })
        .map(|_| ())
        .map_err(|error| Failure::failed(error).while_doing(path.display().to_string()))
}

/// Resolves when the process is asked to stop, by Ctrl-C or by SIGTERM.
async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be caught; Ctrl-C still stops cleanly");
            let _ = tokio::signal::ctrl_c().await;
            return;
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// When something is over, as tables show it.
fn until(until: Option<UnixTime>) -> String {
    until.map_or("for ever".to_owned(), |until| until.to_string())
}
