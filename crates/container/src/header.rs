//! The clear, signed header.
//!
//! It holds what anybody may know (`docs/container-format.md` has the table) and
//! nothing about the model but its public id, version and size. Every bit of it is
//! either covered by the owner's signature, the signature itself, or required zero.

use std::fmt::Debug;

use occlude_keys::{
    Domain, HeaderDigest, InvalidSignature, ModelId, ModelKey, ModelVersion, OwnerKey, OwnerPublic,
    Salt, Signature,
};
use sha2::{Digest, Sha256};

use crate::format::{ChunkSize, FORMAT_VERSION, HEADER_LENGTH, Layout, MAGIC, MAX_CHUNKS, SUITE};

/// Where each field starts; the last one is where the zeros start.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const FORMAT_VERSION: usize = 8;
    pub(super) const SUITE: usize = 10;
    pub(super) const CHUNK_SIZE: usize = 12;
    pub(super) const CHUNK_COUNT: usize = 16;
    pub(super) const MODEL_VERSION: usize = 24;
    pub(super) const ID_LENGTH: usize = 32;
    pub(super) const ID: usize = 33;
    pub(super) const RESERVED: usize = 97;
    pub(super) const OWNER: usize = 104;
    pub(super) const SALT: usize = 136;
    pub(super) const COMMITMENT: usize = 168;
    pub(super) const ROOT: usize = 200;
    pub(super) const SIGNATURE: usize = 232;
    pub(super) const PADDING: usize = 296;
}

/// The header of a container. Its owner and signature are not verified yet: see
/// [`crate::Container::verify_owner`].
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; at::PADDING],
    layout: Layout,
    id: ModelId,
    owner: OwnerPublic,
}

/// Why bytes are not the header of a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The first bytes are not the format's.
    #[error("not a sealed model: it does not start as one")]
    NotAContainer,
    /// The file ends within the header.
    #[error("the file ends {missing} bytes before its header does")]
    Truncated {
        /// Bytes missing from the header alone.
        missing: u64,
    },
    /// Another version of the format.
    #[error("format version {found}: this program reads version {supported}")]
    ForeignVersion {
        /// The file's.
        found: u16,
        /// Ours.
        supported: u16,
    },
    /// Another set of algorithms.
    #[error("cryptographic suite {found}: this program knows suite {supported}")]
    ForeignSuite {
        /// The file's.
        found: u16,
        /// Ours.
        supported: u16,
    },
    /// A chunk size outside the format.
    #[error("impossible chunk size {found}")]
    ChunkSize {
        /// The header's.
        found: u32,
    },
    /// No chunks, or more than can be.
    #[error("impossible number of chunks {found}: expected 1 to {limit}")]
    ChunkCount {
        /// The header's.
        found: u64,
        /// The most.
        limit: u64,
    },
    /// Version 0.
    #[error("model version 0: versions start at 1")]
    ModelVersion,
    /// An id that is none, or not followed by zeros.
    #[error("the model's id is malformed")]
    ModelId,
    /// The owner's key is no key.
    #[error("the owner's public key is malformed")]
    Owner,
    /// A byte that must be zero is not.
    #[error("byte {offset} of the header must be zero")]
    NotZero {
        /// The first such byte.
        offset: usize,
    },
}

impl Header {
    /// Parses the first [`HEADER_LENGTH`] bytes of a file.
    ///
    /// # Errors
    /// [`HeaderError`], one variant for each malformation. Bytes that only a
    /// signature protects are not among them.
    pub fn parse(file: &[u8]) -> Result<Self, HeaderError> {
        let known = file.len().min(MAGIC.len());
        if known == 0 || file[..known] != MAGIC[..known] {
            return Err(HeaderError::NotAContainer);
        }
        let Some(page) = file.first_chunk::<HEADER_LENGTH>() else {
            return Err(HeaderError::Truncated {
                missing: (HEADER_LENGTH - file.len()) as u64,
            });
        };
        let found = u16::from_le_bytes(field(page, at::FORMAT_VERSION));
        if found != FORMAT_VERSION {
            let supported = FORMAT_VERSION;
            return Err(HeaderError::ForeignVersion { found, supported });
        }
        let found = u16::from_le_bytes(field(page, at::SUITE));
        if found != SUITE {
            let supported = SUITE;
            return Err(HeaderError::ForeignSuite { found, supported });
        }
        let found = u32::from_le_bytes(field(page, at::CHUNK_SIZE));
        let chunk_size =
            ChunkSize::new(u64::from(found)).map_err(|_| HeaderError::ChunkSize { found })?;
        let chunk_count = u64::from_le_bytes(field(page, at::CHUNK_COUNT));
        if !(1..=MAX_CHUNKS).contains(&chunk_count) {
            return Err(HeaderError::ChunkCount {
                found: chunk_count,
                limit: MAX_CHUNKS,
            });
        }
        if field(page, at::MODEL_VERSION) == [0; 8] {
            return Err(HeaderError::ModelVersion);
        }
        must_be_zero(page, at::RESERVED..at::OWNER)?;
        must_be_zero(page, at::PADDING..HEADER_LENGTH)?;
        Ok(Self {
            bytes: field(page, 0),
            layout: Layout {
                chunk_size,
                chunk_count,
            },
            id: parse_id(page)?,
            owner: OwnerPublic::from_bytes(&field(page, at::OWNER))
                .map_err(|_| HeaderError::Owner)?,
        })
    }

    /// The model's public id.
    #[must_use]
    pub fn id(&self) -> &ModelId {
        &self.id
    }

    /// The model's version.
    #[must_use]
    pub fn version(&self) -> ModelVersion {
        u64::from_le_bytes(self.field(at::MODEL_VERSION))
    }

    /// Who claims to own the model.
    #[must_use]
    pub fn owner(&self) -> &OwnerPublic {
        &self.owner
    }

    /// The salt that the model key is derived with.
    #[must_use]
    pub fn salt(&self) -> Salt {
        Salt(self.field(at::SALT))
    }

    /// Plaintext bytes of each chunk.
    #[must_use]
    pub fn chunk_size(&self) -> ChunkSize {
        self.layout.chunk_size
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.layout.chunk_count
    }

    /// The length that the whole file must have.
    #[must_use]
    pub fn file_length(&self) -> u64 {
        self.layout.file_length()
    }

    /// SHA-256 of all that is signed: names this sealed version.
    #[must_use]
    pub fn digest(&self) -> HeaderDigest {
        HeaderDigest::from(<[u8; 32]>::from(Sha256::digest(
            &self.bytes[..at::SIGNATURE],
        )))
    }

    /// The [`HEADER_LENGTH`] bytes that the file starts with.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut page = self.bytes.to_vec();
        page.resize(HEADER_LENGTH, 0);
        page
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// What chunk keys are derived with and every chunk is bound to.
    pub(crate) fn context(&self) -> [u8; 32] {
        context(&self.bytes)
    }

    pub(crate) fn commitment(&self) -> [u8; 32] {
        self.field(at::COMMITMENT)
    }

    pub(crate) fn root(&self) -> [u8; 32] {
        self.field(at::ROOT)
    }

    pub(crate) fn check_signature(&self) -> Result<(), InvalidSignature> {
        let signature: Signature = self.field(at::SIGNATURE);
        let signed = &self.bytes[..at::SIGNATURE];
        self.owner
            .verify(Domain::ContainerHeader, signed, &signature)
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        field(&self.bytes, offset)
    }
}

impl Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header")
            .field("id", &self.id.as_str())
            .field("version", &self.version())
            .field("owner", &self.owner)
            .field("digest", &self.digest())
            .field("chunk_size", &self.chunk_size().bytes())
            .field("chunk_count", &self.chunk_count())
            .finish_non_exhaustive()
    }
}

/// Derives the key that opens the container with this header.
///
/// The header need not be verified: another header gives another key, which opens
/// nothing of this owner's.
#[must_use]
pub fn model_key(key: &OwnerKey, header: &Header) -> ModelKey {
    key.model_key(&header.salt(), header.id(), header.version())
}

/// A header on its way to be signed.
pub(crate) struct Draft {
    bytes: [u8; at::PADDING],
    layout: Layout,
    id: ModelId,
}

impl Draft {
    pub(crate) fn new(
        layout: Layout,
        id: &ModelId,
        version: ModelVersion,
        owner: &OwnerPublic,
        salt: &Salt,
    ) -> Self {
        let mut bytes = [0; at::PADDING];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        let id_bytes = id.as_str().as_bytes();
        put(at::MAGIC, &MAGIC);
        put(at::FORMAT_VERSION, &FORMAT_VERSION.to_le_bytes());
        put(at::SUITE, &SUITE.to_le_bytes());
        put(at::CHUNK_SIZE, &layout.chunk_size.bytes().to_le_bytes());
        put(at::CHUNK_COUNT, &layout.chunk_count.to_le_bytes());
        put(at::MODEL_VERSION, &version.to_le_bytes());
        // At most ModelId::MAX_LENGTH, which is the field's length.
        put(at::ID_LENGTH, &[id_bytes.len() as u8]);
        put(at::ID, id_bytes);
        put(at::OWNER, owner.as_bytes());
        put(at::SALT, &salt.0);
        Self {
            bytes,
            layout,
            id: id.clone(),
        }
    }

    pub(crate) fn context(&self) -> [u8; 32] {
        context(&self.bytes)
    }

    pub(crate) fn sign(mut self, key: &OwnerKey, commitment: &[u8; 32], root: &[u8; 32]) -> Header {
        self.bytes[at::COMMITMENT..at::ROOT].copy_from_slice(commitment);
        self.bytes[at::ROOT..at::SIGNATURE].copy_from_slice(root);
        let signature = key.sign(Domain::ContainerHeader, &self.bytes[..at::SIGNATURE]);
        self.bytes[at::SIGNATURE..].copy_from_slice(&signature);
        Header {
            bytes: self.bytes,
            layout: self.layout,
            id: self.id,
            owner: key.public(),
        }
    }
}

/// SHA-256 of what is fixed before the first chunk is sealed.
fn context(bytes: &[u8; at::PADDING]) -> [u8; 32] {
    Sha256::digest(&bytes[..at::COMMITMENT]).into()
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[offset..offset + N]);
    value
}

fn must_be_zero(page: &[u8], range: std::ops::Range<usize>) -> Result<(), HeaderError> {
    match range.clone().find(|&offset| page[offset] != 0) {
        Some(offset) => Err(HeaderError::NotZero { offset }),
        None => Ok(()),
    }
}

fn parse_id(page: &[u8; HEADER_LENGTH]) -> Result<ModelId, HeaderError> {
    let text = &page[at::ID..at::RESERVED];
    let (text, rest) = text
        .split_at_checked(usize::from(page[at::ID_LENGTH]))
        .ok_or(HeaderError::ModelId)?;
    if rest.iter().any(|&byte| byte != 0) {
        return Err(HeaderError::ModelId);
    }
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(HeaderError::ModelId)
}
