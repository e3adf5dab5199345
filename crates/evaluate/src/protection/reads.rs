//! What a process reads, as whoever has the machine sees it: `ptrace(2)`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::fs::{read_dir, read_link, read_to_string};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::processes::{DeploymentError, Process, failed};

const DOING: &str = "watching what a server reads";

/// By how many places threads that read ahead may overtake each other: they have 16
/// buffers between them.
const OVERTAKING: usize = 16;

/// One call that reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Read {
    /// A file's or a disk's path.
    pub(super) file: String,
    /// Where it begins; none where the call goes on from the last one.
    pub(super) offset: Option<u64>,
    /// How many bytes are asked for.
    pub(super) length: u64,
}

impl Read {
    /// Whether a thread that made this call after another one only asks for what that did not
    /// give: the kernel may give fewer bytes than were asked for, on a busy machine more often.
    fn is_rest_of(&self, other: &Self) -> bool {
        let end = |read: &Self| Some(read.offset? + read.length);
        self.file == other.file && self.offset > other.offset && end(self) == end(other)
    }
}

impl Display for Read {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {}", self.length, self.file)?;
        match self.offset {
            Some(offset) => write!(f, " at {offset}"),
            None => Ok(()),
        }
    }
}

/// Watches a process until it is stopped. Nobody may ask meanwhile whether the process
/// ended: the kernel would tell whoever asks of its stops.
pub(super) struct Tracing {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Read>, DeploymentError>>,
}

impl Tracing {
    pub(super) fn start(process: &Process) -> Result<Self, DeploymentError> {
        let pid = process.id();
        let stopping = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopping);
        let (begin, begun) = channel();
        // The kernel tells of stops to the thread that asked for them.
        let thread = std::thread::spawn(move || trace(pid, &begin, &seen));
        if begun.recv().is_ok() {
            return Ok(Self { stopping, thread });
        }
        let ended = thread
            .join()
            .map_err(|_| failed(DOING)("a thread panicked"))?;
        Err(ended.err().unwrap_or_else(|| failed(DOING)("it ended")))
    }

    /// Stops watching; `wake` has the process do something once more.
    pub(super) fn stop<T>(self, wake: impl FnOnce() -> T) -> Result<Vec<Read>, DeploymentError> {
        self.stopping.store(true, Ordering::SeqCst);
        wake();
        let ended = self.thread.join();
        ended.map_err(|_| failed(DOING)("a thread panicked"))?
    }
}

/// The process goes on alone when this thread ends.
fn trace(
    pid: u32,
    begin: &Sender<()>,
    stopping: &AtomicBool,
) -> Result<Vec<Read>, DeploymentError> {
    seize(pid)?;
    // Whoever waits for it is there until this thread ends.
    let _ = begin.send(());
    let mut reads = Vec::new();
    let mut last: BTreeMap<i32, Read> = BTreeMap::new();
    while !stopping.load(Ordering::SeqCst) {
        let of_this_thread = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let status = match waitpid(None, Some(of_this_thread)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => break,
            Err(error) => return Err(failed(DOING)(error)),
        };
        let (stopped, signal) = match status {
            WaitStatus::PtraceSyscall(thread) => {
                if let Some(read) = read_of(pid, thread) {
                    let before = last.insert(thread.as_raw(), read.clone());
                    if !before.is_some_and(|before| read.is_rest_of(&before)) {
                        reads.push(read);
                    }
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            _ => continue,
        };
        match ptrace::syscall(stopped, signal) {
            // It was ended meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(failed(DOING)(error)),
        }
    }
    Ok(reads)
}

/// Begins to watch every thread of a process, and those that they start.
fn seize(pid: u32) -> Result<(), DeploymentError> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
    let threads = || -> Result<BTreeSet<i32>, DeploymentError> {
        let listed = read_dir(format!("/proc/{pid}/task")).map_err(failed(DOING))?;
        let numbers = listed.flatten().map(|entry| entry.file_name());
        Ok(numbers
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect())
    };
    let mut watched = BTreeSet::new();
    loop {
        let new: Vec<i32> = threads()?.difference(&watched).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        for number in new {
            watched.insert(number);
            let thread = Pid::from_raw(number);
            match ptrace::seize(thread, options).and_then(|()| ptrace::interrupt(thread)) {
                // It ended, or came from one that is watched and so is too.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(_) if is_watched(number) => {}
                Err(error) => return Err(failed(DOING)(error.desc())),
            }
        }
    }
}

fn is_watched(thread: i32) -> bool {
    let status = read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// What a thread begins to read that stopped at a call.
fn read_of(pid: u32, thread: Pid) -> Option<Read> {
    let info = ptrace::syscall_info(thread).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // `proc_pid_syscall(5)`: its number, and six arguments in hexadecimal.
    let call = read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    let mut words = call.split(' ');
    let number: i64 = words.next()?.parse().ok()?;
    let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (file, _buffer, length, offset) = (argument()?, argument()?, argument()?, argument()?);
    let offset = match number {
        libc::SYS_read | libc::SYS_readv => None,
        libc::SYS_pread64 | libc::SYS_preadv | libc::SYS_preadv2 => Some(offset),
        _ => return None,
    };
    let file = read_link(format!("/proc/{pid}/fd/{file}")).ok()?;
    let file = file.to_str()?;
    // Sockets, pipes and the like have no path.
    let file = file.starts_with('/').then(|| file.to_owned())?;
    Some(Read {
        file,
        offset,
        length,
    })
}

/// Reads that every answer needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    /// For each answer.
    pub(super) reads: usize,
    /// By how many places some read was out of order, at most.
    pub(super) overtaking: usize,
}

/// Whether `answers` answers needed the same reads in the same order, over and over; or what
/// differs.
pub(super) fn same_each_time(reads: &[Read], answers: usize) -> Result<Repeated, String> {
    let mut places: BTreeMap<&Read, Vec<usize>> = BTreeMap::new();
    for (place, read) in reads.iter().enumerate() {
        places.entry(read).or_default().push(place);
    }
    let each = places.len();
    for (read, places) in &places {
        // Reading ahead, what begins with one answer may end with the next.
        if places.len().abs_diff(answers) > 1 {
            let times = places.len();
            return Err(format!(
                "{read} was read {times} times for {answers} inputs"
            ));
        }
    }
    // The mean of where a read is in its round says where it belongs.
    let mean = |places: &[usize]| -> f64 {
        let in_round = places.iter().enumerate();
        let sum: f64 = in_round
            .map(|(round, place)| *place as f64 - (round * each) as f64)
            .sum();
        sum / places.len() as f64
    };
    let mut ordered: Vec<_> = places.iter().collect();
    ordered.sort_by(|(_, one), (_, other)| mean(one).total_cmp(&mean(other)));
    let mut overtaking = 0;
    for (rank, (read, places)) in ordered.iter().enumerate() {
        for (round, place) in places.iter().enumerate() {
            let away = place.abs_diff(round * each + rank);
            if away > OVERTAKING {
                return Err(format!("{read} was {away} places from where it belongs"));
            }
            overtaking = overtaking.max(away);
        }
    }
    Ok(Repeated {
        reads: each,
        overtaking,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(number: usize) -> Read {
        Read {
            file: "/spill".to_owned(),
            offset: Some(number as u64 * 4096),
            length: 4096,
        }
    }

    /// Rounds of 40 reads, from the middle of one on.
    fn rounds(rounds: usize) -> Vec<Read> {
        (0..40 * rounds)
            .map(|place| read((place + 7) % 40))
            .collect()
    }

    #[test]
    fn what_a_call_did_not_give_is_no_other_read() {
        let whole = read(3);
        let at = |offset, length| Read {
            offset: Some(offset),
            length,
            ..whole.clone()
        };
        assert!(at(4 * 4096 - 512, 512).is_rest_of(&whole));
        assert!(!at(4 * 4096 - 512, 511).is_rest_of(&whole));
        assert!(!whole.is_rest_of(&whole));
        assert!(!whole.is_rest_of(&at(4 * 4096 - 512, 512)));
        let elsewhere = Read {
            file: "/other".to_owned(),
            ..at(4 * 4096 - 512, 512)
        };
        assert!(!elsewhere.is_rest_of(&whole));
        let unplaced = Read {
            offset: None,
            ..at(0, 512)
        };
        assert!(!unplaced.is_rest_of(&unplaced));
    }

    #[test]
    fn rounds_of_one_order_are_the_same_and_threads_may_overtake_each_other() {
        let mut reads = rounds(6);
        let found = |reads: &[Read]| same_each_time(reads, 6);
        let repeated = |overtaking| {
            Ok(Repeated {
                reads: 40,
                overtaking,
            })
        };
        assert_eq!(found(&reads), repeated(0));
        reads.swap(100, 103);
        assert_eq!(found(&reads), repeated(3));
        // One more at the end belongs to the next.
        reads.push(read(7));
        assert_eq!(found(&reads), repeated(3));
    }

    #[test]
    fn one_read_more_or_less_and_another_order_are_told() {
        let found = |reads: &[Read]| same_each_time(reads, 6).unwrap_err();
        let mut more = rounds(6);
        more.insert(90, read(41));
        assert_eq!(
            found(&more),
            "4096 bytes of /spill at 167936 was read 1 times for 6 inputs"
        );
        let mut less = rounds(6);
        less.retain(|one| *one != read(3));
        less.push(read(3));
        assert!(found(&less).ends_with("was read 1 times for 6 inputs"));
        let mut another = rounds(6);
        another[80..120].reverse();
        assert!(found(&another).ends_with("places from where it belongs"));
        let mut longer = rounds(6);
        longer[100].length += 512;
        assert!(found(&longer).contains("times for 6 inputs"));
    }
}
