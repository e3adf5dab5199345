//! Real processes of the real binary, stopped when a test ends.

use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine to start a process and load a model.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The development binary: the one that `make build` makes.
pub(crate) fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_occlude").into()
}

/// The production binary, if `make test` made one.
pub(crate) fn production_binary() -> Option<PathBuf> {
    std::env::var_os("OCCLUDE_PRODUCTION_BINARY")
        .map(PathBuf::from)
        .filter(|path| path.exists())
}

/// A command without what the machine's environment may say.
pub(crate) fn occlude(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    let settings: Vec<_> = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_string_lossy().starts_with("OCCLUDE_"))
        .collect();
    for name in settings {
        command.env_remove(name);
    }
    command
}

/// What a finished command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the development binary to its end.
pub(crate) fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Said {
    run_binary(&binary(), arguments)
}

/// Runs a binary to its end.
pub(crate) fn run_binary<I: AsRef<std::ffi::OsStr>>(
    binary: &Path,
    arguments: impl IntoIterator<Item = I>,
) -> Said {
    let output = occlude(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    said(&output)
}

pub(crate) fn said(output: &Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Said {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(
            self.code, 0,
            "exit code {}: {}{}",
            self.code, self.out, self.err
        );
        self.out
    }

    /// Asserts the exit code and that the error says `reason`.
    #[track_caller]
    pub(crate) fn fails_with(self, code: i32, reason: &str) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        assert!(
            self.err.contains(reason),
            "expected {reason:?} in: {}",
            self.err
        );
    }

    /// Asserts the exit code and the whole of the error, which is said last.
    #[track_caller]
    pub(crate) fn fails_saying(self, code: i32, error: &str) {
        let said = self.err.lines().rev();
        let lines: Vec<&str> = said.take(error.lines().count()).collect();
        let found = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        assert_eq!(
            (self.code, found),
            (code, format!("occlude: {error}")),
            "{}{}",
            self.out,
            self.err
        );
    }
}

/// The folder of this repository's Python package.
pub(crate) const PYTHON_PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../python");

/// The project's Python environment, or word that the test is skipped.
pub(crate) fn python() -> Option<std::ffi::OsString> {
    let python = std::env::var_os("OCCLUDE_PYTHON").filter(|path| Path::new(path).exists());
    if python.is_none() {
        eprintln!("skipped: no Python environment (OCCLUDE_PYTHON); `make test` makes one");
    }
    python
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port on loopback")
}

/// A process that serves until the test ends.
pub(crate) struct Service {
    child: Child,
    log: PathBuf,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Service {
    /// Starts `command` and waits until `address` answers.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, log: PathBuf, address: SocketAddr) -> Self {
        let mut service = Self::spawn(command, log, address);
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = service.child.try_wait().expect("the child can be asked") {
                panic!("{command:?} ended with {status}: {}", service.log());
            }
            assert!(
                begun.elapsed() < START_LIMIT,
                "{command:?} does not listen: {}",
                service.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        service
    }

    /// Starts `command` without waiting.
    #[track_caller]
    pub(crate) fn spawn(command: &mut Command, log: PathBuf, address: SocketAddr) -> Self {
        let file = File::create(&log).expect("the log can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        Self {
            child,
            log,
            address,
        }
    }

    /// Waits for a process that is expected to end by itself.
    #[track_caller]
    pub(crate) fn ends(mut self) -> Said {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                let code = status.code().unwrap_or(-1);
                return Said {
                    code,
                    out: String::new(),
                    err: self.log(),
                };
            }
            assert!(begun.elapsed() < START_LIMIT, "it goes on: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All it said so far, on both streams.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        let _ = File::open(&self.log).and_then(|mut file| file.read_to_string(&mut text));
        text
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends a signal by its name, as `kill -NAME`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Kills the process and waits for its end.
    pub(crate) fn kill(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}
