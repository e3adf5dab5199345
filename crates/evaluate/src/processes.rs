//! Processes of the `occlude` binary, and the folders that they use.
//!
//! All of them are known to one [`Running`], so that whoever is interrupted can end them
//! and leave nothing behind; otherwise each ends with the value that stands for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use occlude_weakening::Weakening;

use crate::protection::wire;

/// Long enough for the weights of a large model to be opened on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(600);

/// How often is looked.
const PAUSE: Duration = Duration::from_millis(5);

/// Why something could not be done, in words for people.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct DeploymentError {
    doing: &'static str,
    reason: String,
}

/// What `doing` failed for.
pub(crate) fn failed<E: std::fmt::Display>(
    doing: &'static str,
) -> impl Fn(E) -> DeploymentError + Copy {
    move |error| DeploymentError {
        doing,
        reason: error.to_string(),
    }
}

/// Everything that runs and lies on the disk.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    stopped: bool,
    next: u64,
    processes: BTreeMap<u64, Child>,
    folders: BTreeMap<u64, tempfile::TempDir>,
}

impl Running {
    /// Ends every process and removes every folder; nothing is started afterwards.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        for child in state.processes.values_mut() {
            end(child);
        }
        state.processes.clear();
        state.folders.clear();
    }

    /// A new temporary folder.
    pub(crate) fn folder(&self) -> Result<Folder, DeploymentError> {
        const DOING: &str = "making a folder";
        let mut state = self.started(DOING)?;
        let folder = tempfile::tempdir().map_err(failed(DOING))?;
        let path = folder.path().to_owned();
        let key = state.key();
        state.folders.insert(key, folder);
        Ok(Folder {
            running: self.clone(),
            key,
            path,
        })
    }

    /// A new process.
    pub(crate) fn spawn(
        &self,
        doing: &'static str,
        command: &mut Command,
    ) -> Result<Process, DeploymentError> {
        let mut state = self.started(doing)?;
        let child = command.spawn().map_err(failed(doing))?;
        let id = child.id();
        let key = state.key();
        state.processes.insert(key, child);
        Ok(Process {
            running: self.clone(),
            key,
            id,
        })
    }

    fn started(&self, doing: &'static str) -> Result<MutexGuard<'_, State>, DeploymentError> {
        let state = self.lock();
        if state.stopped {
            return Err(failed(doing)("interrupted"));
        }
        Ok(state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl State {
    fn key(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// A folder that goes with this.
pub(crate) struct Folder {
    running: Running,
    key: u64,
    path: PathBuf,
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let folder = self.running.lock().folders.remove(&self.key);
        drop(folder);
    }
}

/// A process that ends with this.
pub(crate) struct Process {
    running: Running,
    key: u64,
    id: u32,
}

impl Process {
    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// How it ended, if it did, or was stopped.
    pub(crate) fn ended(&self) -> Option<Option<ExitStatus>> {
        let mut state = self.running.lock();
        let Some(child) = state.processes.get_mut(&self.key) else {
            return Some(None);
        };
        match child.try_wait() {
            Ok(None) => None,
            Ok(status) => Some(status),
            Err(_) => Some(None),
        }
    }

    /// Processor time so far (`proc_pid_stat(5)`, fields 14 and 15).
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?;
        // The second field is a name in parentheses, which may hold spaces.
        let fields = stat.rsplit_once(')')?.1.split_whitespace();
        let ticks: Option<Vec<u64>> = fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse().ok())
            .collect();
        let ticks: u64 = ticks.filter(|ticks| ticks.len() == 2)?.iter().sum();
        let a_second = rustix::param::clock_ticks_per_second();
        Some(Duration::from_secs_f64(ticks as f64 / a_second as f64))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.running.lock().processes.remove(&self.key);
        if let Some(mut child) = child {
            end(&mut child);
        }
    }
}

/// A process that listens.
pub(crate) struct Service {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Service {
    /// Starts a command, whose both streams go into `log`, without waiting.
    pub(crate) fn spawn(
        running: &Running,
        doing: &'static str,
        command: &mut Command,
        log: PathBuf,
        address: SocketAddr,
    ) -> Result<Self, DeploymentError> {
        let file = File::create(&log).map_err(failed(doing))?;
        let out = file.try_clone().map_err(failed(doing))?;
        let process = running.spawn(doing, command.stdout(out).stderr(file))?;
        Ok(Self {
            process,
            address,
            log,
        })
    }

    /// Waits until it listens.
    pub(crate) fn listening(self, doing: &'static str) -> Result<Self, DeploymentError> {
        self.until(doing, Self::listens)?
            .map_err(|said| failed(doing)(said.reason()))
    }

    pub(crate) fn listens(&self) -> bool {
        TcpStream::connect(self.address).is_ok()
    }

    /// Waits until a server says that its models are loaded.
    pub(crate) fn answering(self, doing: &'static str) -> Result<Self, DeploymentError> {
        self.until(doing, Self::answers)?
            .map_err(|said| failed(doing)(said.reason()))
    }

    pub(crate) fn answers(&self) -> bool {
        wire::get(self.address, "/healthz").is_ok_and(|given| given.status == 200)
    }

    /// Waits until it is ready, or ends by itself, and says how.
    pub(crate) fn until(
        self,
        doing: &'static str,
        ready: impl Fn(&Self) -> bool,
    ) -> Result<Result<Self, Said>, DeploymentError> {
        let begun = Instant::now();
        loop {
            if let Some(said) = self.said() {
                return Ok(Err(said));
            }
            if ready(&self) {
                return Ok(Ok(self));
            }
            if begun.elapsed() > START_LIMIT {
                return Err(failed(doing)("it is neither ready nor ends"));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What it said, if it ended.
    fn said(&self) -> Option<Said> {
        let status = self.process.ended()?;
        Some(Said {
            code: status.and_then(|status| status.code()).unwrap_or(-1),
            out: String::new(),
            err: self.log(),
        })
    }

    /// What it said, if it ends by itself in time.
    pub(crate) fn ends_within(&self, time: Duration) -> Option<Said> {
        let begun = Instant::now();
        loop {
            let said = self.said();
            if said.is_some() || begun.elapsed() > time {
                return said;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// All it said so far.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// What a command that ended said.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// Its exit code; -1 where a signal ended it.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// The last line of its errors, which says why it failed.
    pub(crate) fn reason(&self) -> &str {
        self.err.lines().last().unwrap_or("it said nothing")
    }
}

/// The `occlude` binary, as it is run here.
#[derive(Debug, Clone)]
pub(crate) struct Binary {
    pub(crate) path: PathBuf,
    pub(crate) weakening: Option<Weakening>,
}

impl Binary {
    /// A command without what the environment sets for people.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.path);
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// The same for a command that starts the binary in the end.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let settings = std::env::vars_os().map(|(name, _)| name);
        for name in settings.filter(|name| name.to_string_lossy().starts_with("OCCLUDE_")) {
            command.env_remove(name);
        }
        if let Some((name, value)) = self.weakening.and_then(occlude_weakening::of_child) {
            command.env(name, value);
        }
        command.stdin(Stdio::null());
    }

    /// Runs a command to its end.
    pub(crate) fn said<S: AsRef<std::ffi::OsStr>>(
        &self,
        doing: &'static str,
        arguments: &[S],
    ) -> Result<Said, DeploymentError> {
        said(doing, &mut self.command(arguments))
    }

    /// The standard output of a command that succeeds.
    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        doing: &'static str,
        arguments: &[S],
    ) -> Result<String, DeploymentError> {
        let said = self.said(doing, arguments)?;
        if said.code == 0 {
            return Ok(said.out);
        }
        Err(failed(doing)(said.reason()))
    }
}

/// Runs a command to its end.
pub(crate) fn said(doing: &'static str, command: &mut Command) -> Result<Said, DeploymentError> {
    let output = command.output().map_err(failed(doing))?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr, DeploymentError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(failed("finding a free port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_processor_time_that_only_grows() {
        let mut busy = Command::new("sh");
        busy.args(["-c", "while :; do :; done"]);
        let process = Running::default().spawn("working", &mut busy).unwrap();
        let before = process.cpu_time().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let after = process.cpu_time().unwrap();
        assert!(after > before, "{before:?} {after:?}");
    }

    #[test]
    fn what_is_stopped_leaves_neither_process_nor_file_and_starts_no_more() {
        let running = Running::default();
        let folder = running.folder().unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let process = running.spawn("sleeping", &mut sleep).unwrap();
        running.clone().stop();
        assert!(!folder.path().exists());
        assert!(!Path::new(&format!("/proc/{}", process.id())).exists());
        let more = running.spawn("sleeping", &mut sleep);
        assert_eq!(more.err().unwrap().to_string(), "sleeping: interrupted");
    }

    #[test]
    fn a_process_or_folder_ends_with_what_stands_for_it() {
        let running = Running::default();
        let folder = running.folder().unwrap();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
        let mut sleep = Command::new("sleep");
        let process = running.spawn("sleeping", sleep.arg("600")).unwrap();
        let id = process.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_process_that_ends_instead_of_listening_says_why() {
        let running = Running::default();
        let folder = running.folder().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no port >&2; exit 4"]);
        let address = free_address().unwrap();
        let mut start = || {
            Service::spawn(
                &running,
                "starting it",
                &mut command,
                folder.at("log"),
                address,
            )
            .unwrap()
        };
        let error = start().listening("starting it").err().unwrap();
        assert_eq!(error.to_string(), "starting it: no port");
        let Ok(Err(said)) = start().until("starting it", Service::listens) else {
            panic!("it listens");
        };
        assert_eq!((said.code, said.reason()), (4, "no port"));
    }
}
