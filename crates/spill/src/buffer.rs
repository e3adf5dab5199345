//! Memory that files are read into past the page cache: private, aligned to pages, left
//! out of core dumps.
//!
//! It holds ciphertext only, as long as it is used for reading and writing files, so it
//! is neither locked nor wiped.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A private mapping of whole pages. Its pages cost memory once they are written.
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer owns its mapping alone; nothing about it is tied to a thread.
unsafe impl Send for AlignedBuffer {}
// SAFETY: through `&self` the memory can only be read.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// Maps `length` bytes, at least one.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let length = length.max(1);
        // SAFETY: a null hint and no MAP_FIXED: the kernel picks an address range that
        // nothing else uses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        // It only helps: what is dumped is ciphertext.
        // SAFETY: the mapping is ours and as long as this.
        let _ =
            unsafe { rustix::mm::madvise(start.as_ptr().cast(), length, Advice::LinuxDontDump) };
        Ok(Self { start, length })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is valid for `length` initialised bytes (anonymous memory
        // is zero) until drop, and `&self` rules out a live mutable slice.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Bytes of the first `length` of `file` that are in the page cache, page by page.
#[cfg(test)]
pub(crate) fn cached_bytes(file: &std::fs::File, length: usize) -> usize {
    use std::os::fd::AsRawFd;
    // SAFETY: a new mapping at an address that the system chooses, used by nobody else
    // and unmapped below; `mincore` writes one byte for each of its pages.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(start, libc::MAP_FAILED);
        let mut pages = vec![0_u8; length.div_ceil(4096)];
        assert_eq!(libc::mincore(start, length, pages.as_mut_ptr()), 0);
        libc::munmap(start, length);
        4096 * pages.iter().filter(|&&page| page & 1 != 0).count()
    }
}
