//! Output files that appear whole or not at all.
//!
//! On Linux file systems that know `O_TMPFILE` the file has no name until it is
//! complete, so that not even a killed process leaves anything. Elsewhere a named
//! temporary file stands in, which a killed process would leave.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

/// Everybody may read a sealed file.
const MODE: u32 = 0o644;

/// Why an output file could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// Something has that name already.
    #[error("{} exists already and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl OutputError {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Lets `write` fill a new file, which gets its name only if that succeeds.
/// A character device (`/dev/null`) is written to directly.
pub(crate) fn create<T, E: From<OutputError>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let error = OutputError::io(path);
    match path.symlink_metadata() {
        Ok(_) if is_character_device(path) => {
            let mut device = File::options().write(true).open(path).map_err(error)?;
            return write(&mut device);
        }
        Ok(_) => return Err(exists(path).into()),
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => {}
        Err(other) => return Err(error(other).into()),
    }
    let folder = folder_of(path);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, folder, flags, Mode::from_raw_mode(MODE)) {
        Ok(unnamed) => {
            let mut file = File::from(unnamed);
            let value = write(&mut file)?;
            name_it(&file, path)?;
            Ok(value)
        }
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => create_named(path, folder, write),
        Err(errno) => Err(error(errno.into()).into()),
    }
}

/// Takes the disk space for a file before it is written: a disk that is too full says
/// so at once, and writing is faster. File systems and devices that cannot are left
/// to say so when they are written to.
pub(crate) fn reserve(file: &File, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(full @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(full.into()),
        _ => Ok(()),
    }
}

/// The folder that holds `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn is_character_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.file_type().is_char_device())
}

fn exists(path: &Path) -> OutputError {
    OutputError::Exists {
        path: path.to_owned(),
    }
}

fn name_it(file: &File, path: &Path) -> Result<(), OutputError> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(exists(path)),
        Err(errno) => Err(OutputError::io(path)(errno.into())),
    }
}

fn create_named<T, E: From<OutputError>>(
    path: &Path,
    folder: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let mut file = tempfile::Builder::new()
        .prefix(".occlude-")
        .suffix(".partial")
        .permissions(PermissionsExt::from_mode(MODE))
        .tempfile_in(folder)
        .map_err(OutputError::io(path))?;
    let value = write(file.as_file_mut())?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(value),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(exists(path).into())
        }
        Err(error) => Err(OutputError::io(path)(error.error).into()),
    }
}
