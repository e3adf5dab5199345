//! The only module that touches memory that the host may be writing.
//!
//! A Rust reference to such memory would be undefined behaviour the moment somebody
//! writes, so there is none: pointers go to the cipher's C code, or to a copy.
//!
//! AEGIS opens from source to destination. In the C library (its version is pinned in
//! this workspace) every path of `decrypt_detached` loads a block of ciphertext into a
//! register once, derives plaintext and state from the register, and stores; nothing
//! reads the source again. The tag is computed over what was loaded. `ring` opens in
//! place, so its ciphertext is first copied into the private destination. The tests in
//! `single_read` hold the compiled code to that.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Once;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use crate::cipher::CipherKind;

mod region;

pub(crate) use region::Region;

// Only for its C library.
use aegis as _;

/// Bytes of a tag.
pub(crate) const TAG: usize = 16;

/// Bytes of associated data, at most.
pub(crate) const MOST_ASSOCIATED: usize = 64;

type Seal = unsafe extern "C" fn(
    ciphertext: *mut u8,
    tag: *mut u8,
    tag_length: usize,
    plaintext: *const u8,
    length: usize,
    associated: *const u8,
    associated_length: usize,
    nonce: *const u8,
    key: *const u8,
) -> c_int;

type Open = unsafe extern "C" fn(
    plaintext: *mut u8,
    ciphertext: *const u8,
    length: usize,
    tag: *const u8,
    tag_length: usize,
    associated: *const u8,
    associated_length: usize,
    nonce: *const u8,
    key: *const u8,
) -> c_int;

macro_rules! declare {
    ($($seal:ident, $open:ident;)*) => {
        unsafe extern "C" {
            fn aegis_init() -> c_int;
            $(
                fn $seal(
                    ciphertext: *mut u8, tag: *mut u8, tag_length: usize, plaintext: *const u8,
                    length: usize, associated: *const u8, associated_length: usize,
                    nonce: *const u8, key: *const u8,
                ) -> c_int;
                fn $open(
                    plaintext: *mut u8, ciphertext: *const u8, length: usize, tag: *const u8,
                    tag_length: usize, associated: *const u8, associated_length: usize,
                    nonce: *const u8, key: *const u8,
                ) -> c_int;
            )*
        }
    };
}

declare! {
    aegis128l_encrypt_detached, aegis128l_decrypt_detached;
    aegis128x2_encrypt_detached, aegis128x2_decrypt_detached;
    aegis128x4_encrypt_detached, aegis128x4_decrypt_detached;
}

/// A cipher with its key.
pub(crate) enum Cipher {
    Aegis {
        seal: Seal,
        open: Open,
        key: Zeroizing<[u8; 16]>,
    },
    // As large as its expanded key, hence apart.
    Gcm(Box<LessSafeKey>),
}

impl Cipher {
    /// # Panics
    /// If `key` is not as long as `kind` says.
    pub(crate) fn new(kind: CipherKind, key: &[u8]) -> Self {
        assert_eq!(key.len(), kind.key_length(), "a key's length");
        let (seal, open): (Seal, Open) = match kind {
            CipherKind::Aegis128L => (aegis128l_encrypt_detached, aegis128l_decrypt_detached),
            CipherKind::Aegis128X2 => (aegis128x2_encrypt_detached, aegis128x2_decrypt_detached),
            CipherKind::Aegis128X4 => (aegis128x4_encrypt_detached, aegis128x4_decrypt_detached),
            CipherKind::Aes256Gcm => {
                let Ok(key) = UnboundKey::new(&AES_256_GCM, key) else {
                    unreachable!("the length was checked")
                };
                return Self::Gcm(Box::new(LessSafeKey::new(key)));
            }
        };
        static CHOOSE_INSTRUCTIONS: Once = Once::new();
        // SAFETY: takes nothing; looks at the processor and sets function pointers,
        // once. (Without it the library falls back to software.)
        CHOOSE_INSTRUCTIONS.call_once(|| unsafe {
            aegis_init();
        });
        let mut own = Zeroizing::new([0; 16]);
        own.copy_from_slice(key);
        Self::Aegis {
            seal,
            open,
            key: own,
        }
    }

    /// Encrypts `plaintext` to `target`, which is as long, and returns the tag; nothing
    /// if that is too long for the cipher.
    pub(crate) fn seal(
        &self,
        target: &mut Target<'_>,
        number: u64,
        associated: &[u8],
        plaintext: &[u8],
    ) -> Option<[u8; TAG]> {
        assert_eq!(target.length, plaintext.len(), "a panel's length");
        match self {
            Self::Aegis { seal, key, .. } => {
                let (nonce, mut tag) = (nonce::<16>(number), [0; TAG]);
                // SAFETY: `target` is valid for as many bytes as the plaintext has, the
                // slices for their lengths, tag, nonce and key have the lengths that
                // the algorithm takes.
                let outcome = unsafe {
                    seal(
                        target.start.as_ptr(),
                        tag.as_mut_ptr(),
                        TAG,
                        plaintext.as_ptr(),
                        plaintext.len(),
                        associated.as_ptr(),
                        associated.len(),
                        nonce.as_ptr(),
                        key.as_ptr(),
                    )
                };
                (outcome == 0).then_some(tag)
            }
            Self::Gcm(key) => {
                let mut copy = Zeroizing::new(plaintext.to_vec());
                let nonce = Nonce::assume_unique_for_key(nonce(number));
                let tag = key
                    .seal_in_place_separate_tag(nonce, Aad::from(associated), &mut copy)
                    .ok()?;
                // SAFETY: both are valid for the length and do not overlap.
                unsafe {
                    std::ptr::copy_nonoverlapping(copy.as_ptr(), target.start.as_ptr(), copy.len());
                }
                tag.as_ref().try_into().ok()
            }
        }
    }

    /// Decrypts `source` into `out`, which is as long. False if it is not what was
    /// encrypted with this number, associated data and tag; `out` is then zero.
    pub(crate) fn open(
        &self,
        source: Source<'_>,
        number: u64,
        associated: &[u8],
        tag: &[u8; TAG],
        out: &mut [u8],
    ) -> bool {
        assert_eq!(source.length, out.len(), "a panel's length");
        let opened = match self {
            Self::Aegis { open, key, .. } => {
                let nonce = nonce::<16>(number);
                // SAFETY: as for `seal`. Others may write the source meanwhile; the
                // function reads each byte once (see the module) and nothing in Rust
                // reads it at all.
                let outcome = unsafe {
                    open(
                        out.as_mut_ptr(),
                        source.start.as_ptr(),
                        out.len(),
                        tag.as_ptr(),
                        TAG,
                        associated.as_ptr(),
                        associated.len(),
                        nonce.as_ptr(),
                        key.as_ptr(),
                    )
                };
                outcome == 0
            }
            Self::Gcm(key) => {
                copy_once(source, out);
                let nonce = Nonce::assume_unique_for_key(nonce(number));
                key.open_in_place_separate_tag(
                    nonce,
                    Aad::from(associated),
                    Tag::from(*tag),
                    out,
                    0..,
                )
                .is_ok()
            }
        };
        if !opened {
            out.zeroize();
        }
        opened
    }
}

/// Ciphertext to be opened; others may be writing it.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    start: NonNull<u8>,
    length: usize,
    memory: PhantomData<&'a u8>,
}

impl<'a> Source<'a> {
    /// In memory that is nobody else's.
    pub(crate) fn private(bytes: &'a [u8]) -> Self {
        Self {
            start: NonNull::from(bytes).cast(),
            length: bytes.len(),
            memory: PhantomData,
        }
    }
}

/// Where ciphertext goes; others may read and write it too.
pub(crate) struct Target<'a> {
    start: NonNull<u8>,
    length: usize,
    memory: PhantomData<&'a mut u8>,
}

impl<'a> Target<'a> {
    /// In memory that is nobody else's.
    pub(crate) fn private(bytes: &'a mut [u8]) -> Self {
        Self {
            length: bytes.len(),
            start: NonNull::from(bytes).cast(),
            memory: PhantomData,
        }
    }
}

/// A number as a nonce: no two panels of a store have the same.
fn nonce<const LENGTH: usize>(number: u64) -> [u8; LENGTH] {
    let mut nonce = [0; LENGTH];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce
}

/// Copies from memory that may change meanwhile: whatever arrives is private then.
fn copy_once(source: Source<'_>, out: &mut [u8]) {
    // `memcpy` of the C library, which the compiler can neither leave out nor repeat,
    // since it does not see through this pointer.
    type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;
    unsafe extern "C" {
        fn memcpy(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void;
    }
    let copy: Copy = std::hint::black_box(memcpy);
    let length = out.len().min(source.length);
    // SAFETY: the source is valid for its length, `out` for its own, and no `&mut` slice
    // is part of a source.
    unsafe {
        copy(
            out.as_mut_ptr().cast(),
            source.start.as_ptr().cast(),
            length,
        );
    }
}

// A sanitizer has handlers and memory of its own in the way.
#[cfg(all(test, not(sanitized), target_os = "linux", target_arch = "x86_64"))]
mod single_read;

#[cfg(test)]
mod tests {
    use super::*;

    /// draft-irtf-cfrg-aegis-aead, AEGIS-128L test vector 1, and AEGIS-128X2 and X4
    /// test vector 1 where they have the same form.
    #[test]
    fn aegis_128l_gives_the_drafts_first_test_vector() {
        let key = hex::decode("10010000000000000000000000000000").unwrap();
        let region = Region::new(64).unwrap();
        let cipher = Cipher::new(CipherKind::Aegis128L, &key);
        let Cipher::Aegis { seal, key, .. } = &cipher else {
            unreachable!()
        };
        let nonce = hex::decode("10000200000000000000000000000000").unwrap();
        let mut tag = [0; TAG];
        let mut out = [0; 16];
        // SAFETY: all arrays have the lengths given.
        let outcome = unsafe {
            seal(
                region.start.as_ptr(),
                tag.as_mut_ptr(),
                TAG,
                [0; 16].as_ptr(),
                16,
                std::ptr::null(),
                0,
                nonce.as_ptr(),
                key.as_ptr(),
            )
        };
        copy_once(region.source(0, 16).unwrap(), &mut out);
        assert_eq!(outcome, 0);
        assert_eq!(hex::encode(out), "c1c0e58bd913006feba00f4b3cc3594e");
        assert_eq!(hex::encode(tag), "abe0ece80c24868a226a35d16bdae37a");
    }
}
