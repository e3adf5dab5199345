//! The owner's keys, model keys and the names they go by.
//!
//! 1. [`OwnerKey::generate`] makes the owner's two secrets: one that sealing
//!    derives model keys from, one that signs (Ed25519, RFC 8032).
//! 2. [`OwnerKey::model_key`] derives the key of one sealed version of one model
//!    (HKDF-SHA-256, RFC 5869). Only that key ever leaves the owner, to a broker.
//! 3. [`OwnerPublic`] checks what the owner signed; [`OwnerFingerprint`] names the
//!    owner in paths and policies.
//! 4. [`IssuerKey`] signs the tokens that say who a client is; [`IssuerPublic`] is what an
//!    owner seals with a model.
//!
//! Hostile: every string and file that these types are parsed from. Nothing here
//! opens a socket, and no secret type can be cloned, printed or compared in
//! variable time.
#![forbid(unsafe_code)]

mod digest;
mod file;
pub mod hexadecimal;
mod issuer;
mod model;
mod owner;
mod owner_file;

pub use digest::HeaderDigest;
pub use file::KeyFileError;
pub use hexadecimal::HexadecimalError;
pub use issuer::{IssuerKey, IssuerPublic, IssuerPublicParseError};
pub use model::{ModelId, ModelIdError, ModelKey, ModelVersion, Salt};
pub use owner::{
    Domain, InvalidSignature, OwnerFingerprint, OwnerKey, OwnerPublic, OwnerPublicParseError,
    Signature,
};
