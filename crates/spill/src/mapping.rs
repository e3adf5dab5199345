//! Addresses taken from the system and given back to it.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// What the system calls a huge page on x86-64 and, with pages of 4 KiB, on aarch64.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Addresses that nothing else uses, and what is mapped there.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping itself gives no access to its memory, and nothing about it is tied
// to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes, at least one, of private memory, all zero. Pages cost memory
    /// once they are written.
    pub(crate) fn anonymous(length: usize, access: ProtFlags) -> io::Result<Self> {
        // SAFETY: a null hint and no MAP_FIXED: the kernel picks an address range that
        // nothing else uses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE)?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes from its start to where a huge page can begin.
    pub(crate) fn first_huge_page(&self) -> usize {
        self.start().addr().wrapping_neg() % HUGE_PAGE
    }

    /// Gives advice that leaves its contents as they are.
    pub(crate) fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the mapping is ours and as long as this.
        unsafe { rustix::mm::madvise(self.start().cast(), self.length, advice) }.map_err(Into::into)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the addresses are ours, and whoever has pointers into them owns this.
        // A failure would only leave ciphertext mapped.
        let _ = unsafe { rustix::mm::munmap(self.start().cast(), self.length) };
    }
}
