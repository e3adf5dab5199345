//! Sealing and opening one chunk.
//!
//! Key and commitment come from the model key and the header's context by
//! HKDF-SHA-256; the nonce is the chunk's index, which is safe because a fresh salt
//! gives each seal its own key. The associated data repeats context and index.

use hkdf::Hkdf;
use occlude_keys::ModelKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::format::{DIGEST_LENGTH, TAG_LENGTH};

const KEY_LABEL: &[u8] = b"occlude/v1/chunk-key";
const COMMITMENT_LABEL: &[u8] = b"occlude/v1/key-commitment";
const ROOT_CONTEXT: &str = "occlude/v1/chunk-digests";

/// BLAKE3 of a sealed chunk, tag included.
pub(crate) type ChunkDigest = [u8; DIGEST_LENGTH];

/// Seals and opens the chunks of one container.
pub(crate) struct ChunkCipher {
    // On the heap, where an allocator that wipes reaches it: ring itself does not.
    key: Box<LessSafeKey>,
    context: [u8; 32],
}

/// The chunk is not what the owner sealed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inauthentic;

impl ChunkCipher {
    /// Derives the chunks' key and the commitment to it.
    pub(crate) fn new(model_key: &ModelKey, context: [u8; 32]) -> (Self, [u8; 32]) {
        let derived = Hkdf::<Sha256>::new(Some(&context), model_key.expose());
        let mut key = Zeroizing::new([0; 32]);
        let mut commitment = [0; 32];
        derived
            .expand(KEY_LABEL, key.as_mut_slice())
            .and_then(|()| derived.expand(COMMITMENT_LABEL, &mut commitment))
            .expect("32 bytes are a valid HKDF-SHA-256 output length");
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice())
            .expect("32 bytes are the length of an AES-256 key");
        let cipher = Self {
            key: Box::new(LessSafeKey::new(key)),
            context,
        };
        (cipher, commitment)
    }

    /// Encrypts all of `chunk` but its last [`TAG_LENGTH`] bytes, which become the tag.
    pub(crate) fn seal(&self, index: u64, chunk: &mut [u8]) {
        let (text, place) = chunk.split_at_mut(chunk.len() - TAG_LENGTH);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(index), self.associated_data(index), text)
            .expect("a chunk is shorter than AES-GCM's limit");
        place.copy_from_slice(tag.as_ref());
    }

    /// Decrypts `chunk` (text and tag) in place.
    pub(crate) fn open<'c>(
        &self,
        index: u64,
        chunk: &'c mut [u8],
    ) -> Result<&'c [u8], Inauthentic> {
        self.key
            .open_in_place(nonce(index), self.associated_data(index), chunk)
            .map(|text| &*text)
            .map_err(|_| Inauthentic)
    }

    /// Decrypts `chunk` in place, or leaves what it is where it is not authentic: for a
    /// process that was weakened.
    pub(crate) fn open_anyway<'c>(&self, index: u64, chunk: &'c mut [u8]) -> &'c [u8] {
        let length = chunk.len() - TAG_LENGTH;
        let _ = self.open(index, chunk);
        &chunk[..length]
    }

    fn associated_data(&self, index: u64) -> Aad<[u8; 40]> {
        let mut data = [0; 40];
        data[..32].copy_from_slice(&self.context);
        data[32..].copy_from_slice(&index.to_le_bytes());
        Aad::from(data)
    }
}

/// Four zero bytes, then the index (little-endian).
fn nonce(index: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&index.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

pub(crate) fn digest(sealed_chunk: &[u8]) -> ChunkDigest {
    blake3::hash(sealed_chunk).into()
}

/// The root that the owner signs: BLAKE3 in its key-derivation mode over all
/// chunks' digests, so that no chunk can pass for a list of digests.
pub(crate) fn root(digests: &[ChunkDigest]) -> [u8; 32] {
    blake3::Hasher::new_derive_key(ROOT_CONTEXT)
        .update(digests.as_flattened())
        .finalize()
        .into()
}
