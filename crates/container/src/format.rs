//! The numbers of the format, and where each part of a file lies.

/// The header's length: one page, so that the first chunk's offset never changes.
pub const HEADER_LENGTH: usize = 4096;

/// Tensors start at multiples of this within the tensor data.
pub const ALIGNMENT: u64 = 4096;

/// Most chunks in a file: their digests (128 MiB) are held in memory. A TiB at the
/// default chunk size, 64 TiB at the largest.
pub const MAX_CHUNKS: u64 = 1 << 22;

/// Longest index in bytes: a million tensors with names of ordinary length.
pub const MAX_INDEX: u64 = 256 << 20;

/// Smallest payload that leaves the graph: shapes, scalars and most biases are
/// smaller, and a runtime wants to see their values while it loads the graph.
pub const SMALLEST_EXTRACTED: u64 = 1024;

/// The `location` of an extracted tensor's external-data record in the skeleton.
pub const PAYLOAD_LOCATION: &str = "occlude";

/// Lowest version of ONNX's own operator set that ONNX Runtime promises to run.
pub const LOWEST_OPSET: i64 = 7;

/// Highest version of ONNX's own operator set that the pinned ONNX Runtime runs.
pub const HIGHEST_OPSET: i64 = 28;

pub(crate) const MAGIC: [u8; 8] = *b"OCCLUDE\n";
pub(crate) const FORMAT_VERSION: u16 = 1;
/// AES-256-GCM, HKDF-SHA-256, BLAKE3, Ed25519.
pub(crate) const SUITE: u16 = 1;
pub(crate) const TAG_LENGTH: usize = 16;
pub(crate) const DIGEST_LENGTH: usize = 32;
/// Lengths of index and skeleton.
pub(crate) const PRELUDE_LENGTH: u64 = 16;

/// Plaintext bytes of a chunk: a power of two, 4 KiB to 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// 256 KiB: fits a core's cache together with its ciphertext.
    pub const DEFAULT: Self = Self(256 << 10);
    /// 4 KiB, a page.
    pub const SMALLEST: Self = Self(4 << 10);
    /// 16 MiB, so that a few in flight stay within the memory promised.
    pub const LARGEST: Self = Self(16 << 20);

    /// Takes a number of bytes.
    ///
    /// # Errors
    /// [`ChunkSizeError`] unless it is a power of two within the limits.
    pub fn new(bytes: u64) -> Result<Self, ChunkSizeError> {
        u32::try_from(bytes)
            .ok()
            .filter(|size| size.is_power_of_two())
            .map(Self)
            .filter(|size| (Self::SMALLEST..=Self::LARGEST).contains(size))
            .ok_or(ChunkSizeError { found: bytes })
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// As an index into memory.
    pub(crate) const fn length(self) -> usize {
        self.0 as usize
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A chunk size outside the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of {found} bytes: expected a power of two from 4 KiB to 16 MiB")]
pub struct ChunkSizeError {
    /// What was given.
    pub found: u64,
}

/// Where the parts of a file lie. Nothing here overflows: at most [`MAX_CHUNKS`]
/// chunks of at most 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) chunk_size: ChunkSize,
    pub(crate) chunk_count: u64,
}

impl Layout {
    pub(crate) fn sealed_chunk_length(self) -> usize {
        self.chunk_size.length() + TAG_LENGTH
    }

    pub(crate) fn chunk_offset(self, chunk: u64) -> u64 {
        HEADER_LENGTH as u64 + chunk * self.sealed_chunk_length() as u64
    }

    pub(crate) fn digests_offset(self) -> u64 {
        self.chunk_offset(self.chunk_count)
    }

    pub(crate) fn file_length(self) -> u64 {
        self.digests_offset() + self.chunk_count * DIGEST_LENGTH as u64
    }

    /// Plaintext bytes that the chunks hold, padding included.
    pub(crate) fn capacity(self) -> u64 {
        self.chunk_count * u64::from(self.chunk_size.bytes())
    }
}
