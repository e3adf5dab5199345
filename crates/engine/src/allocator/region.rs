//! Memory taken from the kernel and given back to it.
//!
//! Every region is left out of core dumps. Keeping it out of swap is best effort:
//! the operating system may refuse, and [`Region::is_locked`] says so.

use std::ffi::c_void;
use std::io;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// The smallest page of the architectures that an ONNX Runtime is pinned for.
pub(super) const PAGE: usize = 4096;

/// Regions of at least this size start at a multiple of it and ask for huge pages:
/// fewer TLB misses where a model's intermediate results are large.
const HUGE_PAGE: usize = 2 << 20;

/// Anonymous memory, zero at first, that nothing else in the process uses.
pub(super) struct Region {
    start: usize,
    length: usize,
    locked: bool,
}

impl Region {
    /// Maps `length` bytes, which is a multiple of [`PAGE`] and not zero.
    pub(super) fn map(length: usize) -> io::Result<Self> {
        let slack = if length >= HUGE_PAGE {
            HUGE_PAGE - PAGE
        } else {
            0
        };
        let mapped = length
            .checked_add(slack)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a null hint and no MAP_FIXED: the kernel picks an address range that
        // nothing else uses, so no existing memory is affected.
        let lowest = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        }
        .expose_provenance();
        let start = if slack > 0 {
            lowest.next_multiple_of(HUGE_PAGE)
        } else {
            lowest
        };
        unmap(lowest, start - lowest);
        unmap(start + length, lowest + mapped - (start + length));

        let mut region = Self {
            start,
            length,
            locked: false,
        };
        region.advise(Advice::LinuxDontDump)?;
        if slack > 0 {
            // Without it nothing but speed is lost.
            let _ = region.advise(Advice::LinuxHugepage);
        }
        // SAFETY: the range is exactly the live mapping made above; locking does not
        // change its contents.
        region.locked = unsafe { rustix::mm::mlock(region.pointer(), length) }.is_ok();
        Ok(region)
    }

    /// The address of the first byte; its provenance is exposed.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Whether the kernel keeps this region out of swap.
    pub(super) fn is_locked(&self) -> bool {
        self.locked
    }

    fn pointer(&self) -> *mut c_void {
        ptr::with_exposed_provenance_mut(self.start)
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is this region's own mapping, and only advice is passed that
        // leaves its contents as they are.
        unsafe { rustix::mm::madvise(self.pointer(), self.length, advice) }.map_err(Into::into)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        unmap(self.start, self.length);
    }
}

/// Gives a part of a mapping of this module back. Nothing may use it any more.
fn unmap(start: usize, length: usize) {
    if length == 0 {
        return;
    }
    // SAFETY: callers pass whole pages of a mapping that `Region::map` made, either
    // before anyone knows of them or when the region that owned them is dropped.
    let unmapped = unsafe { rustix::mm::munmap(ptr::with_exposed_provenance_mut(start), length) };
    debug_assert!(unmapped.is_ok(), "munmap of an own mapping failed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_region_starts_where_a_huge_page_can() {
        let region = Region::map(HUGE_PAGE + PAGE).unwrap();
        assert_eq!(region.start() % HUGE_PAGE, 0);
        assert_eq!(region.length(), HUGE_PAGE + PAGE);
    }

    #[test]
    fn a_region_that_no_address_space_holds_is_refused() {
        let largest = usize::MAX / PAGE * PAGE;
        assert!(Region::map(largest).is_err());
        assert!(Region::map(largest / 2 / PAGE * PAGE).is_err());
    }
}
