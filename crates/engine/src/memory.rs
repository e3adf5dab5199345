//! Memory for opened weights, and what the process does to keep its memory its own.
//!
//! The attacker here is the rest of the machine's software: swap files, core
//! dumps, crash reporters and debuggers that are not root's. Against root or the
//! hypervisor only a real TEE helps.
//!
//! Guaranteed: a [`ProtectedBuffer`] is left out of core dumps and is zeroed
//! before it returns to the kernel. Best effort: keeping it out of swap, which
//! the operating system may refuse; [`ProtectedBuffer::is_locked`] and
//! [`Hardening`] say what it refused.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::slice;

use occlude_weakening::Weakening;
use rustix::mm::{Advice, MapFlags, MlockAllFlags, ProtFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use zeroize::Zeroize;

/// Anonymous memory for secrets: page-aligned, zero at first, out of core
/// dumps, locked where the operating system allows it, zeroed on drop.
pub struct ProtectedBuffer {
    start: NonNull<u8>,
    length: usize,
    locked: bool,
}

impl ProtectedBuffer {
    /// Maps `length` bytes, all zero. Pages cost memory once they are written,
    /// or at once where they can be locked.
    ///
    /// # Errors
    /// When the kernel refuses the mapping or to keep it out of core dumps.
    pub fn zeroed(length: usize) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self {
                start: NonNull::<u64>::dangling().cast(),
                length,
                locked: true,
            });
        }
        // SAFETY: a null hint and no MAP_FIXED: the kernel picks an address range
        // that nothing else uses, so no existing memory is affected.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::other("the kernel mapped page zero"))?;
        let mut buffer = Self {
            start,
            length,
            locked: false,
        };
        buffer.advise(Advice::LinuxDontDump)?;
        // Fewer TLB misses while weights are read; without it nothing but speed is lost.
        let _ = buffer.advise(Advice::LinuxHugepage);
        // SAFETY: the range is exactly the live mapping made above; locking does
        // not change its contents.
        buffer.locked = unsafe { rustix::mm::mlock(buffer.pointer(), length) }.is_ok();
        Ok(buffer)
    }

    /// Whether the kernel keeps this buffer out of swap.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// Bytes in the buffer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the buffer has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The contents.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `length` initialised bytes (anonymous memory
        // is zero) until drop, and `&self` rules out a live mutable slice.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The contents, to be written.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes this the only slice.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    fn pointer(&self) -> *mut c_void {
        self.start.as_ptr().cast()
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is this buffer's own mapping, and only advice is passed
        // that leaves its contents as they are.
        unsafe { rustix::mm::madvise(self.pointer(), self.length, advice) }.map_err(Into::into)
    }
}

impl Drop for ProtectedBuffer {
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        self.as_mut_slice().zeroize();
        // SAFETY: the range is exactly the mapping made in `zeroed`, which nothing
        // borrows any more. Unmapping also unlocks it.
        let unmapped = unsafe { rustix::mm::munmap(self.pointer(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping failed");
    }
}

// SAFETY: the buffer owns its mapping alone; nothing about it is tied to a thread.
unsafe impl Send for ProtectedBuffer {}
// SAFETY: through `&self` the memory can only be read.
unsafe impl Sync for ProtectedBuffer {}

impl fmt::Debug for ProtectedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectedBuffer")
            .field("length", &self.length)
            .field("locked", &self.locked)
            .finish_non_exhaustive()
    }
}

/// What [`harden_process`] achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hardening {
    /// No core dump is written, and no process but root's may attach.
    pub core_dumps_disabled: bool,
    /// Every page of the process stays out of swap; when false, weights may still
    /// be locked buffer by buffer.
    pub memory_locked: bool,
    /// What did not work and why, one sentence each, fit for a log.
    pub shortfalls: Vec<String>,
}

/// Asks the kernel to keep this process's memory out of core dumps, debuggers
/// and swap. Call it first thing in `main`, before any key is in memory and before
/// there are threads: those that start later share one heap, as locked pages stay with
/// a heap when what lay in them is freed.
///
/// The process stays non-dumpable for its whole life, so it cannot be undone.
#[must_use = "the operating system may have refused a part"]
pub fn harden_process() -> Hardening {
    let mut shortfalls = Vec::new();
    if occlude_weakening::is(Weakening::NoHardening) {
        shortfalls.push("left out on purpose".to_owned());
        return Hardening {
            core_dumps_disabled: false,
            memory_locked: false,
            shortfalls,
        };
    }
    let mut attempt = |what: &str, result: rustix::io::Result<()>| match result {
        Ok(()) => true,
        Err(error) => {
            shortfalls.push(format!("{what}: {error}"));
            false
        }
    };
    let no_cores = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = attempt(
        "core dumps are not limited to nothing",
        rustix::process::setrlimit(Resource::Core, no_cores),
    );
    let undumpable = attempt(
        "the process can be dumped and traced",
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
    );
    share_one_heap();
    let memory_locked = if may_lock_all_memory() {
        // ONFAULT: reserved but untouched address space (thread stacks, arenas)
        // must not become resident because of this.
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        attempt("memory may be swapped out", rustix::mm::mlockall(flags))
    } else {
        shortfalls.push(
            "memory may be swapped out: the process has neither CAP_IPC_LOCK nor an unlimited \
             RLIMIT_MEMLOCK"
                .to_owned(),
        );
        false
    };
    Hardening {
        core_dumps_disabled: limited && undumpable,
        memory_locked,
        shortfalls,
    }
}

/// Bytes that the operating system can still give this process, if it says so: what the
/// machine has available, and the limits of the process's control groups allow.
#[must_use]
pub fn available() -> Option<u64> {
    let machine = read("/proc/meminfo").and_then(|text| kibibytes(&text, "MemAvailable:"));
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let groups = groups
        .lines()
        .filter_map(Group::of)
        .flat_map(Group::lineage);
    let limits = groups.filter_map(|group| group.left());
    limits.chain(machine).min()
}

/// Bytes of this process that no file stands behind (`RssAnon`), if the operating system
/// says: what a TEE would have to protect.
#[must_use]
pub fn anonymous() -> Option<u64> {
    kibibytes(&read("/proc/self/status")?, "RssAnon:")
}

/// Keeps glibc from making a heap for each thread. The kernel refuses to take single pages
/// of a heap back that are locked (`MADV_DONTNEED`, `madvise(2)`), so each heap would hold
/// what its threads once needed: with the threads that load a model some 2 MiB. Every
/// thread has some freed pieces of each size at hand, so few wait for each other.
fn share_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the function may be called at any time and changes no memory that is in
        // use. Nothing but memory is lost where it is refused.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// Gives freed memory of the heap back to the kernel, where the heap can.
pub(crate) fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the function may be called at any time, from any thread, and changes no
        // memory that is in use.
        unsafe { libc::malloc_trim(0) };
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The value of the line of `text` that starts with `name`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A control group that limits memory (`cgroups(7)`), of version 1 or 2.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl Group {
    /// From a line of `/proc/self/cgroup`: `0::/path` or `4:memory:/path`.
    fn of(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            return Some(Self {
                folder: Path::new("/sys/fs/cgroup").join(path),
                limit: "memory.max",
                usage: "memory.current",
            });
        }
        let memory = controllers.split(',').any(|name| name == "memory");
        memory.then(|| Self {
            folder: Path::new("/sys/fs/cgroup/memory").join(path),
            limit: "memory.limit_in_bytes",
            usage: "memory.usage_in_bytes",
        })
    }

    /// The group and those around it, whose limits hold too.
    fn lineage(self) -> Vec<Self> {
        let around = self.folder.ancestors();
        let around = around.take_while(|folder| folder.starts_with("/sys/fs/cgroup"));
        around
            .map(|folder| Self {
                folder: folder.to_owned(),
                ..self
            })
            .collect()
    }

    /// Bytes up to its limit, if it has one. What only caches files goes when memory is
    /// short, so it counts as free.
    fn left(&self) -> Option<u64> {
        let number = |name| read(self.folder.join(name))?.trim().parse::<u64>().ok();
        let statistics = read(self.folder.join("memory.stat")).unwrap_or_default();
        let cached = statistics
            .lines()
            .find_map(|line| line.strip_prefix("inactive_file "))
            .and_then(|bytes| bytes.trim().parse().ok());
        left(
            number(self.limit)?,
            number(self.usage)?,
            cached.unwrap_or(0),
        )
    }
}

/// A limit this high is none: version 1 has no other word for it.
const NO_LIMIT: u64 = 1 << 60;

fn left(limit: u64, used: u64, cached: u64) -> Option<u64> {
    let used = used.saturating_sub(cached);
    (limit < NO_LIMIT).then(|| limit.saturating_sub(used))
}

/// Whether locking all future memory is safe. Under a finite limit `mlockall`
/// may succeed now and make every later allocation beyond the limit fail.
fn may_lock_all_memory() -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    if rustix::process::getrlimit(Resource::Memlock)
        .current
        .is_none()
    {
        return true;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAP_IPC_LOCK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protected_buffer_starts_zeroed_and_keeps_what_is_written() {
        let mut buffer = ProtectedBuffer::zeroed(10_000).unwrap();
        assert!(buffer.as_slice().iter().all(|&byte| byte == 0));
        buffer.as_mut_slice().fill(0xa5);
        assert_eq!(buffer.as_slice(), vec![0xa5; 10_000]);
    }

    #[test]
    fn an_empty_protected_buffer_maps_nothing() {
        let mut buffer = ProtectedBuffer::zeroed(0).unwrap();
        assert!(buffer.is_empty());
        assert_eq!(buffer.as_mut_slice(), &mut [] as &mut [u8]);
    }

    #[test]
    fn a_protected_buffer_is_marked_to_be_left_out_of_core_dumps() {
        let buffer = ProtectedBuffer::zeroed(1 << 20).unwrap();
        let flags = mapping_flags(buffer.as_slice().as_ptr() as usize);
        assert!(flags.contains(&"dd".to_owned()), "no `dd` in {flags:?}");
        assert_eq!(flags.contains(&"lo".to_owned()), buffer.is_locked());
    }

    #[test]
    fn control_groups_of_both_versions_are_found_with_those_around_them() {
        let group = Group::of("0::/system.slice/occlude.service").unwrap();
        assert_eq!(group.limit, "memory.max");
        let folders: Vec<PathBuf> = group
            .lineage()
            .into_iter()
            .map(|group| group.folder)
            .collect();
        let folder = |path: &str| Path::new("/sys/fs/cgroup").join(path);
        assert_eq!(
            folders,
            [
                folder("system.slice/occlude.service"),
                folder("system.slice"),
                folder(""),
            ]
        );
        let old = Group::of("4:cpu,memory:/docker/1").unwrap();
        assert_eq!(old.folder, folder("memory/docker/1"));
        assert_eq!(old.usage, "memory.usage_in_bytes");
        assert_eq!(Group::of("5:cpuset:/"), None);
        assert_eq!(Group::of("nonsense"), None);
    }

    #[test]
    fn a_control_group_leaves_what_is_neither_used_nor_cached() {
        assert_eq!(left(1000, 400, 100), Some(700));
        assert_eq!(left(1000, 1200, 0), Some(0));
        assert_eq!(left(0x7fff_ffff_ffff_f000, 400, 0), None);
    }

    #[test]
    fn the_system_tells_what_is_available_and_what_is_taken() {
        let (available, taken) = (available().unwrap(), anonymous().unwrap());
        assert!(available > 0 && taken > 0);
    }

    #[test]
    fn debug_output_shows_no_contents() {
        let mut buffer = ProtectedBuffer::zeroed(4).unwrap();
        buffer.as_mut_slice().copy_from_slice(b"key!");
        let shown = format!("{buffer:?}");
        assert!(!shown.contains("key") && !shown.contains("107"), "{shown}");
    }

    /// `VmFlags` of the mapping that holds `address`.
    fn mapping_flags(address: usize) -> Vec<String> {
        let mut inside = false;
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let range = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            if let Some((Ok(from), Ok(to))) = range.map(|(from, to)| {
                (
                    usize::from_str_radix(from, 16),
                    usize::from_str_radix(to, 16),
                )
            }) {
                inside = (from..to).contains(&address);
            } else if inside && line.starts_with("VmFlags:") {
                return line.split_whitespace().skip(1).map(str::to_owned).collect();
            }
        }
        panic!("no mapping holds {address:#x}");
    }
}
