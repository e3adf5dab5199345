//! What a verifier asks an ultravisor: an attestation request control block, version 1
//! (`struct` by `struct` as s390-tools writes it).

use std::sync::Arc;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p521::elliptic_curve::sec1::ToSec1Point;
use p521::{PublicKey, SecretKey};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_cert::der::Decode;
use zeroize::Zeroizing;

use super::ImageTags;
use crate::{Collateral, VerifyError};

/// Version, and which measurement: HMAC-SHA-512.
const VERSION: u32 = 0x100;
const HMAC_SHA_512: u32 = 1;

/// Bits from the left: a nonce, the image's host key, the request's host key.
const FLAGS: u64 = (1 << 62) | (1 << 61) | (1 << 60);

/// Bytes of a coordinate of P-521 as requests have it, zeros in front.
const COORDINATE_BYTES: usize = 80;

/// Bytes of what only the ultravisor reads: the measurement's key and the nonce.
pub(super) const KEY_BYTES: usize = 64;
pub(super) const NONCE_BYTES: usize = 16;
const CONFIDENTIAL_BYTES: usize = KEY_BYTES + NONCE_BYTES;

/// Bytes of a measurement, and of what comes with it: the two host keys' hashes.
pub(super) const MEASUREMENT_BYTES: usize = 64;
pub(super) const ADDITIONAL_BYTES: usize = 64;

/// Bytes of AES-GCM's tag and of its nonce.
const TAG_BYTES: usize = 16;
const IV_BYTES: usize = 12;

/// The most host keys of one request; more machines than one verifier serves.
const MAX_HOST_KEYS: usize = 64;

/// Begins what the sealing of a verifier's secrets authenticates.
const SEAL_LABEL: &[u8] = b"occlude/v1/se-exchange\0";

/// A request as it travels, in the KBS protocol's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeRequest {
    pub(super) request_blob: String,
    pub(super) measurement_size: u32,
    pub(super) additional_size: u32,
    pub(super) encr_measurement_key: String,
    pub(super) encr_request_nonce: String,
    pub(super) image_hdr_tags: String,
}

/// What a verifier seals its secrets with between a request and its answer. It lives as
/// long as the verifier's process.
#[derive(Clone)]
pub(crate) struct ExchangeKey(Arc<Aes256Gcm>);

impl std::fmt::Debug for ExchangeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExchangeKey")
    }
}

impl Default for ExchangeKey {
    /// Draws one from the operating system.
    fn default() -> Self {
        Self(Arc::new(aes(&Zeroizing::new(random()))))
    }
}

impl ExchangeKey {
    /// Seals a secret for the verifier itself.
    fn seal(&self, secret: &[u8], tags: &ImageTags) -> Vec<u8> {
        let iv = random::<IV_BYTES>();
        let sealed = encrypt(&self.0, iv, &seal_context(tags.as_bytes()), secret);
        [&iv[..], &sealed].concat()
    }

    /// Opens what [`ExchangeKey::seal`] sealed; none if it is of another verifier.
    pub(super) fn open<const N: usize>(
        &self,
        sealed: &[u8],
        tags: &[u8],
    ) -> Option<Zeroizing<[u8; N]>> {
        let (iv, msg) = sealed.split_first_chunk::<IV_BYTES>()?;
        let aad = &seal_context(tags);
        let opened = self.0.decrypt(iv.into(), Payload { msg, aad });
        let opened = Zeroizing::new(opened.ok()?);
        Some(Zeroizing::new(opened[..].try_into().ok()?))
    }
}

fn seal_context(tags: &[u8]) -> Vec<u8> {
    [SEAL_LABEL, tags].concat()
}

impl SeRequest {
    /// A request that the ultravisors of the machines in `collateral` can open.
    ///
    /// # Errors
    /// [`VerifyError::CollateralMissing`] if it has no host key or no image.
    pub(crate) fn new(
        collateral: &Collateral,
        exchange: &ExchangeKey,
    ) -> Result<Self, VerifyError> {
        let missing = |what: &str| VerifyError::CollateralMissing {
            what: what.to_owned(),
        };
        let hosts = collateral.host_keys();
        if hosts.is_empty() {
            return Err(missing("the host key document of an IBM Z machine"));
        }
        let tags = collateral
            .images()
            .first()
            .ok_or_else(|| missing("the header of an image for IBM Secure Execution"))?;
        let secrets = Secrets {
            key: Zeroizing::new(random()),
            nonce: Zeroizing::new(random()),
        };
        let blob = secrets.request(
            &hosts[..hosts.len().min(MAX_HOST_KEYS)],
            &customer_key(),
            &Zeroizing::new(random()),
            random(),
        );
        Ok(Self {
            request_blob: STANDARD.encode(blob),
            measurement_size: MEASUREMENT_BYTES as u32,
            additional_size: ADDITIONAL_BYTES as u32,
            encr_measurement_key: STANDARD.encode(exchange.seal(&*secrets.key, tags)),
            encr_request_nonce: STANDARD.encode(exchange.seal(&*secrets.nonce, tags)),
            image_hdr_tags: STANDARD.encode(tags.as_bytes()),
        })
    }
}

/// The key of a host key document: a certificate of a key on P-521.
pub(crate) fn host_key(certificate: &CertificateDer<'static>) -> Option<PublicKey> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    PublicKey::from_sec1_bytes(key.subject_public_key.raw_bytes()).ok()
}

/// The key that one request is encrypted from.
fn customer_key() -> SecretKey {
    loop {
        // Below the group's order but for once in 2^260 draws.
        let mut bytes = Zeroizing::new(random::<66>());
        bytes[0] &= 1;
        if let Ok(key) = SecretKey::from_slice(&*bytes) {
            return key;
        }
    }
}

/// What only the ultravisor may read.
pub(super) struct Secrets {
    pub(super) key: Zeroizing<[u8; KEY_BYTES]>,
    pub(super) nonce: Zeroizing<[u8; NONCE_BYTES]>,
}

impl Secrets {
    /// The request: a header, what is measured how, the customer's key, a slot for each
    /// host key, and then encrypted, with all before as associated data, the secrets.
    pub(super) fn request(
        &self,
        hosts: &[PublicKey],
        customer: &SecretKey,
        protection_key: &[u8; 32],
        iv: [u8; IV_BYTES],
    ) -> Vec<u8> {
        let slots: Vec<u8> = hosts
            .iter()
            .flat_map(|host| key_slot(host, customer, protection_key))
            .collect();
        let length = 48 + 16 + 2 * COORDINATE_BYTES + slots.len() + CONFIDENTIAL_BYTES + TAG_BYTES;
        let mut request = vec![0; 8];
        request.extend(VERSION.to_be_bytes());
        request.extend((length as u32).to_be_bytes());
        request.extend(iv);
        request.extend([0; 4 + 7]);
        request.push(hosts.len() as u8);
        request.extend([0; 4]);
        request.extend((CONFIDENTIAL_BYTES as u32).to_be_bytes());
        request.extend(FLAGS.to_be_bytes());
        request.extend(HMAC_SHA_512.to_be_bytes());
        request.extend([0; 4]);
        request.extend(coordinates(&customer.public_key()));
        request.extend(slots);
        let secrets = Zeroizing::new([&self.key[..], &self.nonce[..]].concat());
        let secrets = encrypt(&aes(protection_key), iv, &request, &secrets);
        [request, secrets].concat()
    }
}

/// The protection key, encrypted so that one host can open it.
fn key_slot(host: &PublicKey, customer: &SecretKey, protection_key: &[u8; 32]) -> Vec<u8> {
    let shared = Zeroizing::new(shared_key(host, customer));
    let wrapped = encrypt(&aes(&shared), [0; IV_BYTES], &[], protection_key);
    [&host_key_hash(host)[..], &wrapped].concat()
}

/// What names a host key: SHA-256 over its coordinates.
pub(super) fn host_key_hash(host: &PublicKey) -> [u8; 32] {
    Sha256::digest(coordinates(host)).into()
}

/// The secret of one host and one customer: SHA-256 over that of ECDH and a counter (NIST SP
/// 800-56C, section 4, option 1, but with the counter behind).
fn shared_key(one: &PublicKey, other: &SecretKey) -> [u8; 32] {
    let shared = p521::ecdh::diffie_hellman(other.to_nonzero_scalar(), one.as_affine());
    Sha256::new()
        .chain_update(shared.raw_secret_bytes())
        .chain_update([0, 0, 0, 1])
        .finalize()
        .into()
}

fn coordinates(key: &PublicKey) -> Vec<u8> {
    let point = key.to_sec1_point(false);
    let (_, xy) = point.as_bytes().split_at(1);
    let zeros = [0; COORDINATE_BYTES - 66];
    let (x, y) = xy.split_at(66);
    [&zeros[..], x, &zeros, y].concat()
}

fn aes(key: &[u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(key.into())
}

/// Encrypts with AES-256-GCM; the tag is behind.
fn encrypt(key: &Aes256Gcm, iv: [u8; IV_BYTES], aad: &[u8], msg: &[u8]) -> Vec<u8> {
    key.encrypt(&iv.into(), Payload { msg, aad })
        .expect("some hundred bytes are not too many")
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's random source failed");
    bytes
}
