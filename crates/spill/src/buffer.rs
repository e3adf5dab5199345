//! Memory that files are read into past the page cache: private, aligned to pages, left
//! out of core dumps.
//!
//! It holds ciphertext only, as long as it is used for reading and writing files, so it
//! is neither locked nor wiped.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// What the system calls a huge page on x86-64 and, with pages of 4 KiB, on aarch64.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A part of a private mapping. Its pages cost memory once they are written.
pub(crate) struct AlignedBuffer {
    mapping: Arc<Mapping>,
    offset: usize,
    length: usize,
}

/// A private mapping of whole pages.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory; nothing about it is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a mapping itself gives no access to its memory. Buffers do, each to bytes that
// no other buffer has.
unsafe impl Sync for Mapping {}

impl AlignedBuffer {
    /// Maps `length` bytes, at least one.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let length = length.max(1);
        Ok(Self {
            mapping: Arc::new(Mapping::new(length)?),
            offset: 0,
            length,
        })
    }

    /// Maps `count` buffers of `length` bytes (a power of two, a page at least), in huge
    /// pages where the system has some: memory in one piece is read into by one request
    /// to the disk instead of one for each page.
    pub(crate) fn several(count: usize, length: usize) -> io::Result<Vec<Self>> {
        let mapping = Arc::new(Mapping::new((count * length).max(1) + HUGE_PAGE)?);
        // SAFETY: the mapping is ours and as long as this.
        let _ = unsafe {
            rustix::mm::madvise(
                mapping.start.as_ptr().cast(),
                mapping.length,
                Advice::LinuxHugepage,
            )
        };
        // What lies before the first huge page is never touched and costs nothing.
        let first = mapping.start.as_ptr().addr().wrapping_neg() % HUGE_PAGE;
        let buffers = (0..count).map(|index| Self {
            mapping: Arc::clone(&mapping),
            offset: first + index * length,
            length,
        });
        Ok(buffers.collect())
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is valid for `length` initialised bytes (anonymous memory
        // is zero) from `offset` on until it is dropped, which `self` prevents; they are
        // this buffer's alone, and `&self` rules out a live mutable slice.
        unsafe {
            std::slice::from_raw_parts(self.mapping.start.as_ptr().add(self.offset), self.length)
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes this the only slice.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.mapping.start.as_ptr().add(self.offset),
                self.length,
            )
        }
    }
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
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
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no buffer in it is left.
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
