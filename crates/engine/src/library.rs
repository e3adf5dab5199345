//! Finding ONNX Runtime's shared library and loading exactly the pinned one.
//!
//! The operator may replace any file, also between a check and its use. So the
//! library is copied into an anonymous file, sealed against change, and that
//! copy is first checked and then loaded: nothing on disk is read twice.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ort::environment::{Environment, GlobalThreadPoolOptions};
use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest, Sha256};

use crate::telemetry::telemetry_is_forbidden;

/// How often a busy copy is sealed again, and after which time.
const SEALING_TRIES: usize = 20;
const SEALING_PAUSE: Duration = Duration::from_millis(100);

/// The version of ONNX Runtime this engine is built for.
pub const ONNX_RUNTIME_VERSION: &str = "1.32.0";

/// The file name under which the shared library is looked for.
pub const LIBRARY_FILE_NAME: &str = "libonnxruntime.so.1.32.0";

/// The shared library of this processor architecture, out of the wheel that
/// `scripts/onnxruntime-requirements.txt` pins; `None` where no build is pinned.
const PINNED: Option<PinnedLibrary> = if cfg!(target_arch = "x86_64") {
    Some(PinnedLibrary {
        bytes: 34_824_680,
        sha256: [
            0x6c, 0x15, 0x85, 0xd1, 0xbb, 0xf4, 0x5b, 0x07, 0x12, 0xea, 0x4a, 0x21, 0xb7, 0x05,
            0xc5, 0xfc, 0xb4, 0xba, 0x04, 0xff, 0x2e, 0x30, 0xf1, 0xfb, 0xf8, 0x1a, 0x49, 0xfa,
            0xf6, 0x58, 0x63, 0x8f,
        ],
    })
} else if cfg!(target_arch = "aarch64") {
    Some(PinnedLibrary {
        bytes: 27_165_936,
        sha256: [
            0x49, 0x85, 0x22, 0x28, 0xa9, 0x39, 0x95, 0x15, 0x8b, 0x2a, 0x81, 0x3d, 0x4d, 0xf4,
            0x87, 0xd4, 0x7a, 0x1b, 0x76, 0xb0, 0xea, 0xa8, 0x94, 0x50, 0x7e, 0xf4, 0x9e, 0x91,
            0xb6, 0xd7, 0x95, 0x4a,
        ],
    })
} else {
    None
};

struct PinnedLibrary {
    bytes: u64,
    sha256: [u8; 32],
}

/// ONNX Runtime, loaded into this process once and for its whole life.
pub struct Runtime {
    environment: Environment,
    options: RuntimeOptions,
}

/// How ONNX Runtime computes. A process has one pool of threads, which all sessions
/// share, so this is settled when the library is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// How many cores one request may use: the thread that asks, and the pool.
    pub threads: NonZeroUsize,
    /// Whether threads of the pool wait for work in a loop, at the cost of a core each
    /// while a request runs and shortly after. Where every core computes for one
    /// request at a time this saves microseconds for each operator.
    pub spinning: bool,
}

impl Default for RuntimeOptions {
    /// Every core, and none of them busy waiting.
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            spinning: false,
        }
    }
}

impl Runtime {
    /// [`Self::load_with`] the default options.
    ///
    /// # Errors
    /// As for [`Self::load_with`].
    pub fn load(search: &LibrarySearch) -> Result<&'static Self, LoadLibraryError> {
        Self::load_with(search, &RuntimeOptions::default())
    }

    /// Loads the pinned library, or returns the runtime that an earlier call
    /// loaded: then without searching again, and with that call's [`Self::options`].
    ///
    /// # Errors
    /// [`LoadLibraryError`]; a later call may try again.
    pub fn load_with(
        search: &LibrarySearch,
        options: &RuntimeOptions,
    ) -> Result<&'static Self, LoadLibraryError> {
        static RUNTIME: OnceLock<Runtime> = OnceLock::new();
        static LOADING: Mutex<()> = Mutex::new(());

        let _one_at_a_time = LOADING
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime);
        }
        if !telemetry_is_forbidden() {
            return Err(LoadLibraryError::Telemetry);
        }
        let pinned = PINNED.ok_or(LoadLibraryError::UnsupportedArchitecture {
            architecture: std::env::consts::ARCH,
        })?;
        let library = sealed_copy(&search.find()?, &pinned)?;
        // The library stays mapped after the descriptor closes.
        let path = format!("/proc/self/fd/{}", library.as_raw_fd());
        let builder =
            ort::init_from(path).map_err(|error| LoadLibraryError::Rejected(error.to_string()))?;
        let environment = global_thread_pool(options)
            .map(|pool| builder.with_global_thread_pool(pool))
            .map_err(|error| LoadLibraryError::Rejected(error.to_string()))?
            .with_name("occlude")
            .with_telemetry(false)
            // ONNX Runtime's messages name tensors and layers: none is ever written.
            .with_logger(Arc::new(|_, _, _, _, _| {}))
            .build()
            .map_err(|error| LoadLibraryError::Rejected(error.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        Ok(RUNTIME.get_or_init(|| Self {
            environment,
            options: *options,
        }))
    }

    /// The options in force: those of the call that loaded the library.
    #[must_use]
    pub fn options(&self) -> &RuntimeOptions {
        &self.options
    }

    /// ONNX Runtime's environment, of which a process has one: for running plain
    /// models beside sealed ones, when measuring.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}

fn global_thread_pool(options: &RuntimeOptions) -> Result<GlobalThreadPoolOptions, ort::Error> {
    GlobalThreadPoolOptions::default()
        .with_intra_threads(options.threads.get())?
        // Operators run one after the other: no threads for running several.
        .with_inter_threads(1)?
        // See `subnormal`: this is for the pool's threads.
        .with_flush_to_zero()?
        .with_spin_control(options.spinning)
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("version", &ONNX_RUNTIME_VERSION)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Where to look for the shared library.
///
/// The path is no secret and needs no trust: whatever is found must have the
/// pinned digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibrarySearch {
    paths: Vec<PathBuf>,
}

impl LibrarySearch {
    /// Next to the executable, then `occlude/` in the user's cache folder
    /// (`$XDG_CACHE_HOME`, else `~/.cache`). Builds with debug assertions look
    /// at `$ORT_DYLIB_PATH` before both.
    #[must_use]
    pub fn standard() -> Self {
        let mut paths = Vec::new();
        if cfg!(debug_assertions) {
            paths.extend(folder_variable("ORT_DYLIB_PATH"));
        }
        if let Ok(executable) = std::env::current_exe() {
            paths.extend(
                executable
                    .parent()
                    .map(|folder| folder.join(LIBRARY_FILE_NAME)),
            );
        }
        let cache = folder_variable("XDG_CACHE_HOME")
            .or_else(|| folder_variable("HOME").map(|home| home.join(".cache")));
        paths.extend(cache.map(|cache| cache.join("occlude").join(LIBRARY_FILE_NAME)));
        Self { paths }
    }

    /// Only this file.
    #[must_use]
    pub fn only(path: impl Into<PathBuf>) -> Self {
        Self {
            paths: vec![path.into()],
        }
    }

    fn find(&self) -> Result<PathBuf, LoadLibraryError> {
        self.paths
            .iter()
            .find(|path| path.is_file())
            .cloned()
            .ok_or_else(|| LoadLibraryError::NotFound {
                searched: self.paths.clone(),
            })
    }
}

impl Default for LibrarySearch {
    fn default() -> Self {
        Self::standard()
    }
}

/// Why ONNX Runtime could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadLibraryError {
    /// The program did not call [`crate::forbid_telemetry`].
    #[error(
        "this program would let ONNX Runtime send telemetry: it has to call `forbid_telemetry` at \
         the start of `main`, or be started with ORT_DISABLE_TELEMETRY=1"
    )]
    Telemetry,
    /// None of the places has the file.
    #[error(
        "{LIBRARY_FILE_NAME} is not there ({}); run `make onnxruntime` in a checkout of Occlude, \
         or put the file of that name from the onnxruntime {ONNX_RUNTIME_VERSION} wheel next to \
         the executable",
        list(searched)
    )]
    NotFound {
        /// The paths that were tried, in order.
        searched: Vec<PathBuf>,
    },
    /// The file is another build of ONNX Runtime, or was changed.
    #[error(
        "{} is not the pinned ONNX Runtime {ONNX_RUNTIME_VERSION}: its SHA-256 is {}, expected \
         {}; delete it and run `make onnxruntime`",
        path.display(), hex::encode(found), hex::encode(expected)
    )]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// The pinned SHA-256.
        expected: [u8; 32],
        /// The file's SHA-256, counted up to the pinned length and one byte more.
        found: [u8; 32],
    },
    /// No build of ONNX Runtime is pinned for this processor.
    #[error("no ONNX Runtime is pinned for {architecture}; x86_64 and aarch64 have one")]
    UnsupportedArchitecture {
        /// Rust's name of the architecture.
        architecture: &'static str,
    },
    /// The file could not be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The kernel gave no sealed memory for the copy.
    #[error("no sealed memory for the library's copy: {0}")]
    NoSealedMemory(io::Error),
    /// The dynamic linker or ONNX Runtime itself refused.
    #[error("the pinned library does not load: {0}")]
    Rejected(String),
}

/// Copies `path` into a sealed anonymous file and checks that copy.
fn sealed_copy(path: &Path, pinned: &PinnedLibrary) -> Result<File, LoadLibraryError> {
    let unreadable = |source| LoadLibraryError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let source = File::open(path).map_err(unreadable)?;
    let mut copy = executable_memfd().map_err(LoadLibraryError::NoSealedMemory)?;
    // One byte more than the pinned length, so that a longer file differs.
    let mut source = source.take(pinned.bytes + 1);
    let mut block = vec![0; 1 << 20];
    loop {
        let read = source.read(&mut block).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        copy.write_all(&block[..read])
            .map_err(LoadLibraryError::NoSealedMemory)?;
    }
    seal(&copy).map_err(LoadLibraryError::NoSealedMemory)?;

    let found = digest(&copy, &mut block).map_err(LoadLibraryError::NoSealedMemory)?;
    if found == pinned.sha256 {
        Ok(copy)
    } else {
        Err(LoadLibraryError::WrongDigest {
            path: path.to_owned(),
            expected: pinned.sha256,
            found,
        })
    }
}

/// Forbids all changes. While the kernel holds on to a page that was just written, it says that
/// the file is busy (fcntl(2), `F_ADD_SEALS`): that passes.
fn seal(copy: &File) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    for _ in 0..SEALING_TRIES {
        match rustix::fs::fcntl_add_seals(copy, seals) {
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(SEALING_PAUSE),
            sealed => return sealed.map_err(io::Error::from),
        }
    }
    rustix::fs::fcntl_add_seals(copy, seals).map_err(io::Error::from)
}

fn executable_memfd() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know EXEC, and need no permission to execute.
    let created = rustix::fs::memfd_create("onnxruntime", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("onnxruntime", flags))?;
    Ok(File::from(created))
}

fn digest(file: &File, block: &mut [u8]) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut position = 0;
    loop {
        let read = file.read_at(block, position)?;
        if read == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&block[..read]);
        position += read as u64;
    }
}

fn folder_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value: &OsString| !value.is_empty())
        .map(PathBuf::from)
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &[u8] = b"a stand-in for the library";

    fn pinned_to(contents: &[u8]) -> PinnedLibrary {
        PinnedLibrary {
            bytes: contents.len() as u64,
            sha256: Sha256::digest(contents).into(),
        }
    }

    fn file_with(contents: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        file
    }

    #[test]
    fn the_sealed_copy_has_the_contents_and_cannot_be_changed() {
        let file = file_with(SMALL);
        let copy = sealed_copy(file.path(), &pinned_to(SMALL)).unwrap();
        let mut contents = vec![0; SMALL.len()];
        copy.read_exact_at(&mut contents, 0).unwrap();
        assert_eq!(contents, SMALL);

        let write = copy.write_at(b"X", 0).unwrap_err();
        assert_eq!(write.kind(), io::ErrorKind::PermissionDenied);
        let shrink = copy.set_len(1).unwrap_err();
        assert_eq!(shrink.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_library_with_one_bit_changed_is_refused_with_both_digests() {
        let mut altered = SMALL.to_vec();
        altered[3] ^= 1;
        let file = file_with(&altered);
        let error = sealed_copy(file.path(), &pinned_to(SMALL)).unwrap_err();
        let LoadLibraryError::WrongDigest {
            path,
            expected,
            found,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(path, file.path());
        assert_eq!(expected, <[u8; 32]>::from(Sha256::digest(SMALL)));
        assert_eq!(found, <[u8; 32]>::from(Sha256::digest(&altered)));
    }

    #[test]
    fn a_library_with_bytes_after_the_pinned_length_is_refused() {
        let file = file_with(&[SMALL, b"more"].concat());
        let error = sealed_copy(file.path(), &pinned_to(SMALL)).unwrap_err();
        assert!(
            matches!(error, LoadLibraryError::WrongDigest { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_missing_library_says_where_it_was_looked_for_and_what_to_run() {
        let error = LibrarySearch::only("/nowhere/lib.so").find().unwrap_err();
        assert_eq!(
            error.to_string(),
            "libonnxruntime.so.1.32.0 is not there (/nowhere/lib.so); run `make onnxruntime` in a \
             checkout of Occlude, or put the file of that name from the onnxruntime 1.32.0 wheel \
             next to the executable",
        );
    }

    #[test]
    fn the_standard_search_starts_next_to_the_executable_in_release_builds() {
        let search = LibrarySearch::standard();
        let beside = std::env::current_exe()
            .unwrap()
            .with_file_name(LIBRARY_FILE_NAME);
        if cfg!(debug_assertions) {
            assert!(search.paths.contains(&beside));
        } else {
            assert_eq!(search.paths[0], beside);
        }
    }
}
