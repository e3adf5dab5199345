//! From an unknown file to one that the owner signed.
//!
//! [`Container`]: the structure is right. [`SignedContainer`]: the owner signed the
//! header, and the digests of all chunks are those that it signed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use occlude_keys::{ModelKey, OwnerPublic};
use occlude_weakening::{Weakening, is};
use subtle::ConstantTimeEq;

use crate::chunk::{self, ChunkCipher, ChunkDigest};
use crate::format::{DIGEST_LENGTH, HEADER_LENGTH, Layout};
use crate::{Header, HeaderError, OpenContainer, OpenError, Progress, parallel};

/// Why a file is not a container of the owner's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The header is malformed or foreign.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file is shorter than its header says.
    #[error("the file is truncated: {missing} bytes are missing")]
    Truncated {
        /// How many.
        missing: u64,
    },
    /// The file is longer than its header says.
    #[error("the file has {extra} bytes too many")]
    TrailingBytes {
        /// How many.
        extra: u64,
    },
    /// The header names another owner.
    #[error("the model belongs to {found}, not to {expected}")]
    WrongOwner {
        /// Who should own it.
        expected: Box<OwnerPublic>,
        /// Who the header says owns it.
        found: Box<OwnerPublic>,
    },
    /// The owner did not sign this header.
    #[error("the owner's signature does not hold")]
    BadSignature,
    /// The list of chunk digests is not the one that the owner signed.
    #[error("the list of chunk digests is not the one that the owner signed")]
    AlteredDigests,
    /// A chunk is not the one that the owner signed.
    #[error("chunk {chunk} is not authentic")]
    Inauthentic {
        /// Which one.
        chunk: u64,
    },
    /// The file could not be read.
    #[error("{source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A file with the structure of a container. Whose it is remains to be verified.
#[derive(Debug)]
pub struct Container {
    file: ContainerFile,
}

/// A container whose header and chunk digests the owner signed.
#[derive(Debug)]
pub struct SignedContainer {
    file: ContainerFile,
    digests: Vec<ChunkDigest>,
}

#[derive(Debug)]
pub(crate) struct ContainerFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    second: Option<Second>,
}

/// A second copy of a container's file, and who is told of what came from it.
struct Second {
    file: File,
    tell: Box<dyn Fn(ChunkRepair) + Send + Sync>,
}

impl std::fmt::Debug for Second {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Second").finish_non_exhaustive()
    }
}

/// How a chunk was had that could not be read from its place, or was not authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChunkRepair {
    /// It was right when it was read once more.
    ReadAgain,
    /// It came from the second copy, and was written back to the first.
    Repaired,
    /// It came from the second copy; the first takes nothing.
    NotWritten,
}

impl ChunkRepair {
    /// What it is called in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadAgain => "read-again",
            Self::Repaired => "repaired",
            Self::NotWritten => "not-written",
        }
    }
}

impl Container {
    /// Opens a file and checks header and length.
    ///
    /// A block device is read as well, so that a virtual machine needs no file system for
    /// what its host hands it. It is often longer than a container, and what lies behind
    /// is never read.
    ///
    /// # Errors
    /// [`ContainerError::Header`], [`ContainerError::Truncated`],
    /// [`ContainerError::TrailingBytes`], [`ContainerError::Io`].
    pub fn read(path: &Path) -> Result<Self, ContainerError> {
        let io = io_error(path);
        // Opening a pipe would wait for a writer.
        let kind = path.metadata().map_err(&io)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let problem = "a folder, a pipe or a character device, not a regular file or a disk";
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        let mut file = File::open(path).map_err(&io)?;
        // A disk's metadata has no length.
        let found = file.seek(io::SeekFrom::End(0)).map_err(&io)?;
        file.rewind().map_err(&io)?;
        let mut start = Vec::with_capacity(HEADER_LENGTH);
        (&file)
            .take(HEADER_LENGTH as u64)
            .read_to_end(&mut start)
            .map_err(&io)?;
        let header = Header::parse(&start)?;
        let expected = header.file_length();
        if found < expected {
            let missing = expected - found;
            return Err(ContainerError::Truncated { missing });
        }
        if found > expected && kind.is_file() {
            let extra = found - expected;
            return Err(ContainerError::TrailingBytes { extra });
        }
        Ok(Self {
            file: ContainerFile {
                file,
                path: path.to_owned(),
                header,
                second: None,
            },
        })
    }

    /// The header, unverified.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.file.header
    }

    /// Checks that `owner` signed this container.
    ///
    /// # Errors
    /// [`ContainerError::WrongOwner`], [`ContainerError::BadSignature`],
    /// [`ContainerError::AlteredDigests`], [`ContainerError::Io`].
    pub fn verify_owner(self, owner: &OwnerPublic) -> Result<SignedContainer, ContainerError> {
        let file = self.file;
        let header = &file.header;
        if header.owner() != owner {
            return Err(ContainerError::WrongOwner {
                expected: Box::new(*owner),
                found: Box::new(*header.owner()),
            });
        }
        if header.check_signature().is_err() && !is(Weakening::AnySignature) {
            return Err(ContainerError::BadSignature);
        }
        let layout = header.layout();
        // At most MAX_CHUNKS, and the file has been found long enough.
        let mut digests = vec![[0; DIGEST_LENGTH]; layout.chunk_count as usize];
        file.file
            .read_exact_at(digests.as_flattened_mut(), layout.digests_offset())
            .map_err(io_error(&file.path))?;
        if chunk::root(&digests) != header.root() {
            return Err(ContainerError::AlteredDigests);
        }
        Ok(SignedContainer { file, digests })
    }
}

impl SignedContainer {
    /// The header, which the owner signed.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.file.header
    }

    /// Reads chunks from a copy of the file too, where they are not authentic in the file
    /// itself, and writes them back there; `tell` is called for each. Nothing in the copy is
    /// believed but what has the digest that the owner signed.
    ///
    /// # Errors
    /// [`ContainerError::Io`]: the copy cannot be opened.
    pub fn with_copy(
        mut self,
        copy: &Path,
        tell: impl Fn(ChunkRepair) + Send + Sync + 'static,
    ) -> Result<Self, ContainerError> {
        self.file.second = Some(Second {
            file: File::open(copy).map_err(io_error(copy))?,
            tell: Box::new(tell),
        });
        Ok(self)
    }

    /// Reads every chunk and compares it with what the owner signed. No key needed.
    ///
    /// # Errors
    /// [`ContainerError::Inauthentic`] with the first altered chunk,
    /// [`ContainerError::Io`].
    pub fn verify_ciphertext(
        &self,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ContainerError> {
        let layout = self.file.header.layout();
        let length = layout.sealed_chunk_length();
        let check = |index, buffer: &mut [u8]| {
            self.file
                .read_chunk(index, buffer)
                .map_err(io_error(&self.file.path))?;
            if chunk::digest(buffer) == self.digests[index as usize] {
                Ok(())
            } else {
                Err(ContainerError::Inauthentic { chunk: index })
            }
        };
        let total = layout.chunk_count * length as u64;
        parallel::in_order(layout.chunk_count, length, &check, &mut |index, _, ()| {
            let done = (index + 1) * length as u64;
            progress(Progress { done, total });
            Ok(())
        })
    }

    /// Opens the container with its key, and reads graph and index.
    ///
    /// # Errors
    /// [`OpenError::WrongKey`] if the header commits to another key, and whatever
    /// reading the graph meets.
    pub fn open(self, key: &ModelKey) -> Result<OpenContainer, OpenError> {
        let header = &self.file.header;
        let (cipher, commitment) = ChunkCipher::new(key, header.context());
        if !bool::from(commitment.ct_eq(&header.commitment())) {
            return Err(OpenError::WrongKey);
        }
        OpenContainer::new(Chunks {
            file: self.file,
            digests: self.digests,
            cipher,
        })
    }
}

impl ContainerFile {
    /// Copies one sealed chunk into private memory.
    fn read_chunk(&self, index: u64, into: &mut [u8]) -> io::Result<()> {
        let offset = self.header.layout().chunk_offset(index);
        self.file.read_exact_at(into, offset)
    }

    /// Has a chunk with this digest that was not read from its place: from there once more,
    /// or from the second copy, and then it is written back. Whether it is in `into`.
    fn recover(&self, index: u64, digest: &ChunkDigest, into: &mut [u8]) -> bool {
        let Some(second) = &self.second else {
            return false;
        };
        let offset = self.header.layout().chunk_offset(index);
        if self.read_chunk(index, into).is_ok() && chunk::digest(into) == *digest {
            (second.tell)(ChunkRepair::ReadAgain);
            return true;
        }
        let read = second.file.read_exact_at(into, offset);
        if read.is_err() || chunk::digest(into) != *digest {
            return false;
        }
        // It was opened for reading: most of its users may not write it.
        let written = File::options()
            .write(true)
            .open(&self.path)
            .and_then(|file| file.write_all_at(into, offset));
        (second.tell)(match written {
            Ok(()) => ChunkRepair::Repaired,
            Err(_) => ChunkRepair::NotWritten,
        });
        true
    }
}

/// The chunks of a signed container with the key that opens them.
pub(crate) struct Chunks {
    file: ContainerFile,
    digests: Vec<ChunkDigest>,
    cipher: ChunkCipher,
}

impl Chunks {
    pub(crate) fn header(&self) -> &Header {
        &self.file.header
    }

    pub(crate) fn layout(&self) -> Layout {
        self.file.header.layout()
    }

    /// Copies one chunk from the host into `buffer` (the sealed chunk's length),
    /// authenticates the copy and decrypts it there.
    pub(crate) fn open<'b>(&self, index: u64, buffer: &'b mut [u8]) -> Result<&'b [u8], OpenError> {
        let inauthentic = || OpenError::Inauthentic { chunk: index };
        let read = self.file.read_chunk(index, buffer);
        let digest = &self.digests[index as usize];
        if (read.is_ok() && chunk::digest(buffer) == *digest)
            || self.file.recover(index, digest, buffer)
        {
            return self.cipher.open(index, buffer).map_err(|_| inauthentic());
        }
        read.map_err(|source| OpenError::Io {
            path: self.file.path.clone(),
            source,
        })?;
        if is(Weakening::AnyChunk) {
            return Ok(self.cipher.open_anyway(index, buffer));
        }
        // Holders of the model key could forge chunks; only the owner signs digests.
        Err(inauthentic())
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> ContainerError {
    move |source| ContainerError::Io {
        path: path.to_owned(),
        source,
    }
}
