//! A store in a file that is read and written past the page cache.
//!
//! In a confidential virtual machine every page is protected memory, those of the page
//! cache and of shared memory too, so a store there would save nothing. Here the disk
//! holds the ciphertext, and protected memory only the buffers that it goes through.
//!
//! The host stores the file and may alter, cut or put back any byte of it, at any time.
//! What was read lies in private memory before it is authenticated.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use occlude_weakening::{Weakening, is};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use zeroize::Zeroize;

use crate::buffer::AlignedBuffer;
use crate::cipher::CipherKind;
use crate::locks::Mutex;
use crate::mirror::{Mirror, Repair};
use crate::read_ahead::{DEFAULT_READ_AHEAD, LEAST_READ_AHEAD, ReadAhead};
use crate::store::{AppendError, Observer, OpenError, PanelName, Reader, Sealer, Store, Ticket};
use crate::untrusted::{Source, Target};

/// What offsets and lengths are multiples of where the kernel does not say (before Linux
/// 6.1): no disk has larger logical blocks.
const USUAL_BLOCK: usize = 4096;

/// Buffers start at pages, so a file system may ask for no more.
const PAGE: usize = 4096;

/// File systems in memory. Since Linux 6.6 tmpfs takes `O_DIRECT` and ignores it.
const IN_MEMORY: [(u32, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// Why there is no store in a folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectError {
    /// The file system cannot do it.
    #[error(
        "{}: {reason}; name a folder on a disk, with a file system such as ext4 or XFS",
        folder.display()
    )]
    Unsuitable {
        /// The folder.
        folder: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// The operating system refuses.
    #[error("{}: {doing}: {source}", folder.display())]
    Refused {
        /// The folder.
        folder: PathBuf,
        /// What was asked for.
        doing: String,
        /// What it answered.
        source: io::Error,
    },
}

/// Panels in an unnamed file, encrypted under a key of their own.
pub struct DirectStore {
    file: File,
    /// The same once more, elsewhere.
    second: Option<(File, Mirror)>,
    sealer: Sealer,
    /// Where each panel of each layer lies: offset and length.
    places: Vec<Vec<(usize, usize)>>,
    length: usize,
    /// What offsets and lengths are multiples of.
    block: usize,
    /// Bytes of the longest panel, in blocks.
    longest: usize,
    /// Bytes of each reader's buffers.
    read_ahead: usize,
    /// Buffers for single panels, as many as there ever were threads at once.
    spare: Mutex<Vec<AlignedBuffer>>,
}

impl DirectStore {
    /// Makes an unnamed file in `folder` for panels of the lengths that `layers` has, and
    /// for the model that `context` (a digest) names. The file goes with the store.
    ///
    /// # Errors
    /// [`DirectError`]
    pub fn new(
        kind: CipherKind,
        folder: &Path,
        layers: &[Vec<usize>],
        context: [u8; 32],
    ) -> Result<Self, DirectError> {
        Self::mirrored(kind, folder, None, layers, context)
    }

    /// The same with a second file of the same content, from which panels come that are not
    /// authentic in the first.
    ///
    /// # Errors
    /// [`DirectError`]
    pub fn mirrored(
        kind: CipherKind,
        folder: &Path,
        mirror: Option<&Mirror>,
        layers: &[Vec<usize>],
        context: [u8; 32],
    ) -> Result<Self, DirectError> {
        let (file, block) = unnamed_file(folder)?;
        let second = mirror.map(|mirror| {
            let (second, its_block) = unnamed_file(mirror.folder())?;
            Ok::<_, DirectError>((second, its_block, mirror.clone()))
        });
        let second = second.transpose()?;
        // What is whole blocks here is whole blocks there.
        let block = second.as_ref().map_or(block, |(_, its, _)| block.max(*its));
        let refused = |doing: String| {
            move |source: io::Error| DirectError::Refused {
                folder: folder.to_owned(),
                doing,
                source,
            }
        };
        let (mut places, mut end, mut longest) = (Vec::with_capacity(layers.len()), 0, 0);
        for lengths in layers {
            let mut layer = Vec::with_capacity(lengths.len());
            for &length in lengths {
                layer.push((end, length));
                let taken = length.next_multiple_of(block);
                longest = taken.max(longest);
                end += taken;
            }
            places.push(layer);
        }
        // All blocks now: a full disk is told before anything is sealed.
        for file in std::iter::once(&file).chain(second.as_ref().map(|(file, ..)| file)) {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, end.max(block) as u64) {
                Err(Errno::OPNOTSUPP) => rustix::fs::ftruncate(file, end as u64),
                outcome => outcome,
            }
            .map_err(|error| refused(format!("no room for {end} bytes"))(error.into()))?;
        }
        Ok(Self {
            file,
            second: second.map(|(file, _, mirror)| (file, mirror)),
            sealer: Sealer::new(kind, context).map_err(refused("no key".to_owned()))?,
            places,
            length: end,
            block,
            longest,
            read_ahead: DEFAULT_READ_AHEAD,
            spare: Mutex::new(Vec::new()),
        })
    }

    /// The same, but each reader reads ahead into `bytes` of protected memory instead of
    /// [`DEFAULT_READ_AHEAD`]; into [`LEAST_READ_AHEAD`] at least.
    ///
    /// [`LEAST_READ_AHEAD`]: crate::LEAST_READ_AHEAD
    #[must_use]
    pub fn reading_ahead(self, bytes: usize) -> Self {
        Self {
            read_ahead: bytes.max(LEAST_READ_AHEAD),
            ..self
        }
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> usize {
        self.length
    }

    /// Reads `into`, whole blocks, from `offset` on, and tells the observer.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset as u64)
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    pub(crate) fn blocks(&self, length: usize) -> usize {
        length.next_multiple_of(self.block)
    }

    #[cfg(test)]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    #[cfg(test)]
    pub(crate) fn second_file(&self) -> &File {
        &self.second.as_ref().expect("a second file").0
    }

    /// Opens a panel from one of the files; `with` is given its blocks if it is authentic.
    fn open_from(
        &self,
        file: &File,
        name: PanelName,
        ticket: &Ticket,
        out: &mut [u8],
        with: impl FnOnce(&[u8]),
    ) -> Result<(), OpenError> {
        let blocks = self.blocks(ticket.length);
        let opened = self.with_buffer(|buffer| {
            let buffer = &mut buffer.as_mut_slice()[..blocks];
            file.read_exact_at(buffer, ticket.offset as u64)
                .map_err(|error| error.kind())?;
            if is(Weakening::ClearPanels) {
                out.copy_from_slice(&buffer[..ticket.length]);
                return Ok(Ok(()));
            }
            let source = Source::private(&buffer[..ticket.length]);
            let opened = self.sealer.open(source, name, ticket, out);
            if opened.is_ok() {
                with(buffer);
            }
            Ok(opened)
        });
        opened.unwrap_or_else(|kind| {
            out.zeroize();
            Err(OpenError::Unreadable { name, kind })
        })
    }

    /// Has a panel that could not be opened from the first file, whatever `error` says:
    /// from there once more, or from the second, and then it is written back.
    ///
    /// # Errors
    /// `error`, if there is no second file or the panel is not authentic there either.
    pub(crate) fn recover(
        &self,
        error: OpenError,
        name: PanelName,
        ticket: &Ticket,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let Some((second, mirror)) = &self.second else {
            return Err(error);
        };
        if self.blocks(ticket.length) > self.longest {
            return Err(error);
        }
        if self
            .open_from(&self.file, name, ticket, out, |_| ())
            .is_ok()
        {
            mirror.tell(Repair::ReadAgain);
            return Ok(());
        }
        let mut repair = Repair::NotWritten;
        let opened = self.open_from(second, name, ticket, out, |blocks| {
            if self.file.write_all_at(blocks, ticket.offset as u64).is_ok() {
                repair = Repair::Repaired;
            }
        });
        if opened.is_err() {
            return Err(error);
        }
        mirror.tell(repair);
        Ok(())
    }

    /// Lends a buffer for the longest panel.
    fn with_buffer<T>(
        &self,
        work: impl FnOnce(&mut AlignedBuffer) -> Result<T, io::ErrorKind>,
    ) -> Result<T, io::ErrorKind> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = spare().pop();
        let mut buffer = match kept {
            Some(buffer) => buffer,
            None => AlignedBuffer::new(self.longest).map_err(|error| error.kind())?,
        };
        let outcome = work(&mut buffer);
        spare().push(buffer);
        outcome
    }
}

impl Store for DirectStore {
    fn cipher(&self) -> CipherKind {
        self.sealer.kind()
    }

    fn append(&self, name: PanelName, panel: &[u8]) -> Result<Ticket, AppendError> {
        let unplanned = AppendError::Unplanned {
            name,
            length: panel.len(),
        };
        let place = self
            .places
            .get(name.layer as usize)
            .and_then(|layer| layer.get(name.panel as usize));
        let Some(&(offset, length)) = place else {
            return Err(unplanned);
        };
        if length != panel.len() {
            return Err(unplanned);
        }
        let written = self.with_buffer(|buffer| {
            let blocks = &mut buffer.as_mut_slice()[..self.blocks(length)];
            let (target, padding) = blocks.split_at_mut(length);
            padding.fill(0);
            let Some(ticket) = self
                .sealer
                .seal(&mut Target::private(target), offset, name, panel)
            else {
                return Ok(None);
            };
            if is(Weakening::ClearPanels) {
                blocks[..length].copy_from_slice(panel);
            }
            let written = self.file.write_all_at(blocks, offset as u64);
            let written = written.and_then(|()| match &self.second {
                Some((second, _)) => second.write_all_at(blocks, offset as u64),
                None => Ok(()),
            });
            written.map(|()| Some(ticket)).map_err(|error| error.kind())
        });
        match written {
            Ok(Some(ticket)) => Ok(ticket),
            Ok(None) => Err(unplanned),
            Err(kind) => Err(AppendError::Unwritable { name, kind }),
        }
    }

    fn open(&self, name: PanelName, ticket: &Ticket, out: &mut [u8]) -> Result<(), OpenError> {
        assert_eq!(out.len(), ticket.length, "a panel's length");
        let blocks = self.blocks(ticket.length);
        if blocks > self.longest {
            // Of another store: there is no buffer for it, and no such panel.
            out.zeroize();
            return Err(OpenError::Inauthentic { name });
        }
        self.sealer.note_read(ticket.offset, blocks);
        let opened = self.open_from(&self.file, name, ticket, out, |_| ());
        opened.or_else(|error| self.recover(error, name, ticket, out))
    }

    fn reader(
        self: Arc<Self>,
        panels: &[(PanelName, Ticket)],
        threads: usize,
    ) -> io::Result<Box<dyn Reader>> {
        let bytes = self.read_ahead;
        Ok(Box::new(ReadAhead::new(self, panels, bytes, threads)?))
    }

    fn reader_bytes(&self, threads: usize) -> usize {
        self.read_ahead + threads * self.longest
    }

    fn observe(&self, observer: Observer) {
        self.sealer.observe(observer);
    }
}

impl std::fmt::Debug for DirectStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectStore")
            .field("cipher", &self.sealer.kind())
            .field("bytes", &self.length)
            .field("block", &self.block)
            .finish_non_exhaustive()
    }
}

/// A file without a name in `folder`, past the page cache, and its block size.
pub(crate) fn unnamed_file(folder: &Path) -> Result<(File, usize), DirectError> {
    let unsuitable = |reason: &str| DirectError::Unsuitable {
        folder: folder.to_owned(),
        reason: reason.to_owned(),
    };
    let refused = |doing: &str, error: Errno| DirectError::Refused {
        folder: folder.to_owned(),
        doing: doing.to_owned(),
        source: error.into(),
    };
    // EXCL: nobody can give it a name later.
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
    let file = match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => File::from(file),
        Err(Errno::INVAL) => {
            return Err(unsuitable(
                "its file system refuses to read past the page cache (O_DIRECT)",
            ));
        }
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            return Err(unsuitable(
                "its file system has no unnamed files (O_TMPFILE)",
            ));
        }
        Err(error) => return Err(refused("no unnamed file can be made", error)),
    };
    let system = rustix::fs::fstatfs(&file).map_err(|error| refused("its file system", error))?;
    if let Some((_, name)) = IN_MEMORY
        .iter()
        .find(|(magic, _)| *magic == system.f_type as u32)
    {
        return Err(unsuitable(&format!(
            "its file system is {name}, which lies in memory"
        )));
    }
    let block = match rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(told) if told.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let (memory, offset) = (
                told.stx_dio_mem_align as usize,
                told.stx_dio_offset_align as usize,
            );
            if offset == 0 || memory > PAGE {
                return Err(unsuitable(
                    "its file system cannot read this file past the page cache",
                ));
            }
            offset
        }
        _ => USUAL_BLOCK,
    };
    Ok((file, block))
}
