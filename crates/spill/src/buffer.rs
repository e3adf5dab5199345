//! Memory that files are read into past the page cache: private, aligned to pages, left
//! out of core dumps.
//!
//! It holds ciphertext only, as long as it is used for reading and writing files, so it
//! is neither locked nor wiped.

use std::io;
use std::sync::Arc;

use rustix::mm::{Advice, ProtFlags};

use crate::mapping::{HUGE_PAGE, Mapping};

/// A part of a private mapping. Its pages cost memory once they are written.
pub(crate) struct AlignedBuffer {
    mapping: Arc<Mapping>,
    offset: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Maps `length` bytes, at least one.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let length = length.max(1);
        Ok(Self {
            mapping: Arc::new(private(length)?),
            offset: 0,
            length,
        })
    }

    /// Maps `count` buffers of `length` bytes (a power of two, a page at least), in huge
    /// pages where the system has some: memory in one piece is read into by one request
    /// to the disk instead of one for each page.
    pub(crate) fn several(count: usize, length: usize) -> io::Result<Vec<Self>> {
        let mapping = Arc::new(private((count * length).max(1) + HUGE_PAGE)?);
        // Nothing but speed is lost without.
        let _ = mapping.advise(Advice::LinuxHugepage);
        // What lies before the first huge page is never touched and costs nothing.
        let first = mapping.first_huge_page();
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
        unsafe { std::slice::from_raw_parts(self.mapping.start().add(self.offset), self.length) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes this the only slice.
        unsafe {
            std::slice::from_raw_parts_mut(self.mapping.start().add(self.offset), self.length)
        }
    }
}

/// Private memory, left out of core dumps.
fn private(length: usize) -> io::Result<Mapping> {
    let mapping = Mapping::anonymous(length, ProtFlags::READ | ProtFlags::WRITE)?;
    // It only helps: what is dumped is ciphertext.
    let _ = mapping.advise(Advice::LinuxDontDump);
    Ok(mapping)
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
