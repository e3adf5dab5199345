//! Shared memory, mapped.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

use rustix::fd::OwnedFd;
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{Source, Target};
use crate::mapping::{HUGE_PAGE, Mapping};

/// Memory shared with whoever can reach its descriptor.
pub(crate) struct Region {
    pub(super) start: NonNull<u8>,
    length: usize,
    /// Unmaps it.
    _addresses: Mapping,
    /// Keeps a second mapping possible, for tests that play the host.
    #[cfg_attr(not(test), expect(dead_code, reason = "for tests"))]
    pub(crate) file: OwnedFd,
}

// SAFETY: nothing but the functions of `untrusted` touches the memory, through pointers,
// and none of them minds what others do with it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `length` bytes, all zero. From the size of a huge page on it is made of such pages
    /// where the system has them, and takes its memory at once.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let mapped = if length < HUGE_PAGE {
            length.max(1)
        } else {
            length
                .checked_next_multiple_of(HUGE_PAGE)
                .ok_or(io::ErrorKind::OutOfMemory)?
        };
        let file = rustix::fs::memfd_create("occlude-spill", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, mapped as u64)?;
        let with_slack = mapped
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let addresses = Mapping::anonymous(with_slack, ProtFlags::empty())?;
        // SAFETY: the addresses are this region's own, and there is room for `mapped`
        // bytes from the first huge page on.
        let start = unsafe {
            rustix::mm::mmap(
                addresses.start().add(addresses.first_huge_page()).cast(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                &file,
                0,
            )?
        };
        for advice in [Advice::LinuxDontDump, Advice::LinuxHugepage] {
            // Both only help: what is dumped is ciphertext.
            let _ = addresses.advise(advice);
        }
        let region = Self {
            start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            length,
            _addresses: addresses,
            file,
        };
        if mapped >= HUGE_PAGE {
            // Nothing but speed is lost without.
            let _ = region.take_huge_pages(mapped);
        }
        Ok(region)
    }

    /// Makes the first `mapped` bytes, a multiple of a huge page, of huge pages now. Shared
    /// memory gets them by itself only where an administrator switched that on
    /// (`transparent_hugepage/shmem_enabled`), but is made of them whenever a process asks
    /// for that (`MADV_COLLAPSE`, Linux 6.1, madvise(2)).
    ///
    /// With small pages, opening waits for the processor to look up each of them, and the
    /// processor's own reading ahead ends with each of them.
    fn take_huge_pages(&self, mapped: usize) -> io::Result<()> {
        for offset in (0..mapped).step_by(HUGE_PAGE) {
            // The system refuses where there is nothing yet.
            // SAFETY: within the mapping, which is zero and holds nothing.
            unsafe { self.start.add(offset).write_volatile(0) };
        }
        // SAFETY: the mapping is ours and as long as this; its contents stay.
        match unsafe { libc::madvise(self.start.as_ptr().cast(), mapped, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// `length` bytes from `offset` on, to be read; nothing if they are not inside.
    pub(crate) fn source(&self, offset: usize, length: usize) -> Option<Source<'_>> {
        Some(Source {
            start: self.at(offset, length)?,
            length,
            memory: PhantomData,
        })
    }

    /// `length` bytes from `offset` on, to be written; nothing if they are not inside.
    pub(crate) fn target(&self, offset: usize, length: usize) -> Option<Target<'_>> {
        Some(Target {
            start: self.at(offset, length)?,
            length,
            memory: PhantomData,
        })
    }

    /// Where they are, for asking caches to have them.
    pub(crate) fn address(&self, offset: usize, length: usize) -> Option<*const u8> {
        Some(self.at(offset, length)?.as_ptr().cast_const())
    }

    /// A pointer valid for `length` bytes.
    fn at(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        // SAFETY: within the mapping.
        (end <= self.length).then(|| unsafe { self.start.add(offset) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::untrusted::copy_once;

    #[test]
    fn places_outside_of_a_region_are_refused() {
        let region = Region::new(100).unwrap();
        assert!(region.at(0, 100).is_some());
        assert!(region.at(1, 100).is_none());
        assert!(region.at(usize::MAX, 2).is_none());
    }

    #[test]
    fn a_length_beyond_all_memory_is_refused() {
        assert!(Region::new(usize::MAX).is_err());
        assert!(Region::new(usize::MAX / 2).is_err());
    }

    /// Kibibytes of the mapping from `start` on that the system says are in huge pages.
    fn in_huge_pages(start: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines();
        lines
            .find(|line| line.starts_with(&format!("{start:x}-")))
            .unwrap();
        let line = lines
            .find(|line| line.starts_with("ShmemPmdMapped:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    #[allow(clippy::print_stdout, reason = "says that a part was skipped")]
    fn a_large_region_is_made_of_huge_pages_where_the_system_has_them() {
        let region = Region::new(2 * HUGE_PAGE + 1).unwrap();
        let start = region.start.as_ptr().addr();
        assert_eq!(start % HUGE_PAGE, 0);
        let huge = in_huge_pages(start);
        if let Err(error) = region.take_huge_pages(3 * HUGE_PAGE) {
            println!("skipped: no huge pages of shared memory: {error}");
            return;
        }
        assert_eq!(huge, 3 * HUGE_PAGE as u64 / 1024);
        let written: Vec<u8> = (0..=255).collect();
        rustix::io::pwrite(&region.file, &written, HUGE_PAGE as u64).unwrap();
        let mut read = vec![0; written.len()];
        copy_once(region.source(HUGE_PAGE, written.len()).unwrap(), &mut read);
        assert_eq!(read, written);
    }
}
