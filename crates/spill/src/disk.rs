//! What a disk gives, to compare a reader with.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::buffer::AlignedBuffer;
use crate::direct::{DirectError, unnamed_file};
use crate::read_ahead::{SPAN, THREADS};

/// An unnamed file that is read past the page cache as a [`DirectStore`]'s reader reads
/// its own, while nothing is opened and nothing computed.
///
/// [`DirectStore`]: crate::DirectStore
#[derive(Debug)]
pub struct Disk {
    file: File,
    length: usize,
}

impl Disk {
    /// Writes a file of at least `length` bytes in `folder`; it goes with the value.
    ///
    /// # Errors
    /// [`DirectError`]
    pub fn new(folder: &Path, length: usize) -> Result<Self, DirectError> {
        let (file, _) = unnamed_file(folder)?;
        let refused = |source: io::Error| DirectError::Refused {
            folder: folder.to_owned(),
            doing: format!("writing {length} bytes"),
            source,
        };
        let length = length.next_multiple_of(SPAN);
        let mut buffer = AlignedBuffer::new(SPAN).map_err(refused)?;
        // Of zeros there might be nothing to read.
        getrandom::fill(buffer.as_mut_slice()).map_err(|error| refused(io::Error::other(error)))?;
        for offset in (0..length).step_by(SPAN) {
            file.write_all_at(buffer.as_slice(), offset as u64)
                .map_err(refused)?;
        }
        Ok(Self { file, length })
    }

    /// Reads all of it, in order, with as many reads at once as a reader has.
    ///
    /// # Errors
    /// The operating system's.
    pub fn read(&self) -> io::Result<()> {
        let next = AtomicUsize::new(0);
        let read = &|mut buffer: AlignedBuffer| {
            loop {
                let offset = next.fetch_add(SPAN, Ordering::Relaxed);
                if offset >= self.length {
                    return Ok(());
                }
                self.file
                    .read_exact_at(buffer.as_mut_slice(), offset as u64)?;
            }
        };
        let buffers = AlignedBuffer::several(THREADS, SPAN)?;
        thread::scope(|scope| {
            let threads: Vec<_> = buffers
                .into_iter()
                .map(|buffer| scope.spawn(move || read(buffer)))
                .collect();
            // All of them, whatever the first one says: the end of a scope is nothing that
            // the thread sanitizer sees.
            let outcomes: Vec<io::Result<()>> = threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect();
            outcomes.into_iter().collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_the_file_is_read_and_none_of_it_from_the_page_cache() {
        let program = std::env::current_exe().unwrap();
        match Disk::new(program.parent().unwrap(), 3 * SPAN + 1) {
            Ok(disk) => {
                assert_eq!(disk.length, 4 * SPAN);
                assert_eq!(disk.file.metadata().unwrap().len(), disk.length as u64);
                disk.read().unwrap();
                assert_eq!(crate::buffer::cached_bytes(&disk.file, disk.length), 0);
                disk.file.set_len(1).unwrap();
                let kind = disk.read().unwrap_err().kind();
                assert_eq!(kind, io::ErrorKind::UnexpectedEof);
            }
            Err(DirectError::Unsuitable { reason, .. }) => {
                assert!(reason.contains("file system"), "{reason}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}
