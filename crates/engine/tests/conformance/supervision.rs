//! The parent process: hands tests to child processes and outlives what kills them.
//!
//! A test that kills or stalls plain ONNX Runtime is tried again without what did
//! it; one that kills or stalls Occlude is different, and the next child goes on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::worker::{Message, Request, Sealed, Verdict};
use crate::{Outcome, WORKER_FLAG};

/// The slowest test takes a second; a child that says nothing for this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of what a child wrote to standard error at last that are shown.
const LONGEST_COMPLAINT: usize = 400;

/// Judges the tests `names` in `tests`, with as many children as there are cores.
pub(crate) fn judge_all(tests: &Path, names: &[String]) -> Outcome<BTreeMap<String, Verdict>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(names.iter());
    let work = || -> Result<Vec<(String, Verdict)>, String> {
        let mut worker = None;
        let mut verdicts = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(name) = next else {
                return Ok(verdicts);
            };
            let verdict =
                judge(tests, name, &mut worker).map_err(|error| format!("{name}: {error}"))?;
            verdicts.push((name.clone(), verdict));
        }
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err("a thread panicked".into()))
            })
            .collect()
    });
    let mut verdicts = BTreeMap::new();
    for outcome in outcomes {
        verdicts.extend(outcome?);
    }
    Ok(verdicts)
}

/// Judges one test with `worker`, or with a new one where there is none; a worker
/// that died is left behind as `None`.
fn judge(tests: &Path, name: &str, worker: &mut Option<Worker>) -> Outcome<Verdict> {
    let mut request = Request {
        name: name.to_owned(),
        deadly: Vec::new(),
    };
    loop {
        let child = match worker {
            Some(child) => child,
            None => worker.insert(Worker::start(tests)?),
        };
        child.ask(&request)?;
        let mut last = None;
        let death = loop {
            match child.messages.recv_timeout(PATIENCE) {
                Ok(Message::Verdict(verdict)) => return Ok(verdict),
                Ok(message) => last = Some(message),
                Err(error) => break child.bury(error),
            }
        };
        *worker = None;
        match last {
            Some(Message::Plain { constants }) if !request.deadly.contains(&constants) => {
                request.deadly.push(constants);
            }
            Some(Message::Sealed(passed)) => {
                let why = format!("the process {}", death?);
                return Ok(Verdict::PlainPasses(passed, Sealed::Different { why }));
            }
            _ => return Err(format!("the child process {}", death?).into()),
        }
    }
}

/// A child process.
struct Worker {
    process: Child,
    requests: ChildStdin,
    messages: Receiver<Message>,
    complaints: std::fs::File,
}

impl Worker {
    fn start(tests: &Path) -> Outcome<Self> {
        let complaints = tempfile::tempfile()?;
        let mut process = Command::new(std::env::current_exe()?)
            .arg(WORKER_FLAG)
            .arg(tests)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone()?)
            .spawn()?;
        let (requests, answers) = (process.stdin.take(), process.stdout.take());
        let requests = requests.ok_or("the child has no input")?;
        let answers = BufReader::new(answers.ok_or("the child has no output")?);
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for line in answers.lines().map_while(Result::ok) {
                // What is no message was printed by a library.
                if let Ok(message) = serde_json::from_str(&line)
                    && sender.send(message).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self {
            process,
            requests,
            messages,
            complaints,
        })
    }

    fn ask(&mut self, request: &Request) -> Outcome<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        Ok(self.requests.write_all(&line)?)
    }

    /// Ends the child, if it has not ended, and says how it did.
    fn bury(&mut self, error: mpsc::RecvTimeoutError) -> Outcome<String> {
        let how = match error {
            mpsc::RecvTimeoutError::Timeout => {
                self.process.kill()?;
                self.process.wait()?;
                format!("hangs for {} s", PATIENCE.as_secs())
            }
            mpsc::RecvTimeoutError::Disconnected => format!("dies: {}", self.process.wait()?),
        };
        let mut complaints = String::new();
        self.complaints.seek(SeekFrom::Start(0))?;
        self.complaints.read_to_string(&mut complaints)?;
        let start = complaints.len().saturating_sub(LONGEST_COMPLAINT);
        let start = complaints.ceil_char_boundary(start);
        let words: Vec<&str> = complaints[start..].split_whitespace().collect();
        Ok(format!("{how} ({})", words.join(" ")))
    }
}

impl Drop for Worker {
    /// Without an error path: a child that cannot be ended has ended.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
