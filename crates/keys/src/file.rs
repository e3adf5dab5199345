//! Secret keys as files: mode 0600, written once, never overwritten.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Far more than a key needs, far less than a wrong file could cost.
const LONGEST_FILE: u64 = 4096;

/// Why a key file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// A key that exists is never overwritten: it may be the only one that opens
    /// some model.
    #[error("{} exists already, and a key is never overwritten: choose another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others on this machine could read the secret.
    #[error("{} can be read by others (mode {mode:o}): run chmod 600 on it", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} is not {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Whose key it should be, and how to tell.
        expected: &'static str,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Reads a key that [`write_private`] wrote. `parse` knows it, and `expected` says what it
/// is.
pub(crate) fn read_private<T>(
    path: &Path,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, KeyFileError> {
    let io = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    let mut text = Zeroizing::new(String::with_capacity(LONGEST_FILE as usize));
    let malformed = || KeyFileError::Malformed {
        path: path.to_owned(),
        expected,
    };
    let key = match file.take(LONGEST_FILE).read_to_string(&mut text) {
        Ok(_) => parse(&text).ok_or_else(malformed)?,
        Err(error) if error.kind() == ErrorKind::InvalidData => return Err(malformed()),
        Err(error) => return Err(io(error)),
    };
    // Only now, so that who names another file is not told to protect that one.
    if mode & 0o077 != 0 {
        return Err(KeyFileError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(key)
}

/// Writes a key to a new file with mode 0600; nothing half-written is left.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => KeyFileError::Exists {
                path: path.to_owned(),
            },
            _ => KeyFileError::Io {
                path: path.to_owned(),
                source,
            },
        })?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    written.map_err(|source| {
        // The file is ours and useless: leave nothing half-written behind.
        let _ = std::fs::remove_file(path);
        KeyFileError::Io {
            path: path.to_owned(),
            source,
        }
    })
}
