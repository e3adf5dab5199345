//! An ultravisor of IBM Z in software: it opens requests and answers them as its maker
//! documents it, with nothing of the code that it tests.
#![allow(dead_code, reason = "each test uses a part")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p521::elliptic_curve::sec1::ToSec1Point;
use p521::{PublicKey, SecretKey};
use rcgen::{
    CertificateParams, CertifiedIssuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SignatureAlgorithm,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A machine with a guest in it.
pub(crate) struct Ultravisor {
    pub(crate) host: SecretKey,
    /// The header of the guest's image.
    pub(crate) header: Vec<u8>,
    /// What stands for the key that the image was opened with, if not the host's.
    pub(crate) image_host_key: Option<[u8; 32]>,
    /// The host key document.
    pub(crate) document: Vec<u8>,
}

/// A key on P-521, under an algorithm that the maker of certificates knows: only the point
/// is read.
struct HostKey(Vec<u8>);

impl PublicKeyData for HostKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// A header that an image might have.
pub(crate) fn header(byte: u8) -> Vec<u8> {
    let mut header = vec![byte; 0x280];
    header[..8].copy_from_slice(b"IBMSecEx");
    header[8..12].copy_from_slice(&0x100_u32.to_be_bytes());
    header[12..16].copy_from_slice(&0x280_u32.to_be_bytes());
    header
}

/// A key from a number: tests need no secret ones.
fn key(number: u8) -> SecretKey {
    let mut bytes = [number; 66];
    bytes[0] = 0;
    SecretKey::from_slice(&bytes).expect("a number below the order")
}

impl Ultravisor {
    /// A machine, by a number that makes its key, that started an image.
    pub(crate) fn new(machine: u8, image: u8) -> Self {
        let host = key(machine);
        let point = host.public_key().to_sec1_point(false);
        let issuer = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let issuer = CertifiedIssuer::self_signed(CertificateParams::default(), issuer);
        let document = CertificateParams::default()
            .signed_by(
                &HostKey(point.as_bytes().to_vec()),
                &issuer.expect("an issuer"),
            )
            .expect("a certificate");
        Self {
            host,
            header: header(image),
            image_host_key: None,
            document: document.der().to_vec(),
        }
    }

    /// SHA-256 over the host key's coordinates, each in 80 bytes.
    pub(crate) fn host_key_hash(&self) -> [u8; 32] {
        let point = self.host.public_key().to_sec1_point(false);
        let point = &point.as_bytes()[1..];
        let zeros = [0; 14];
        Sha256::digest([&zeros[..], &point[..66], &zeros, &point[66..]].concat()).into()
    }

    /// What a request holds, if it was made for this machine.
    pub(crate) fn open(&self, request: &[u8]) -> Option<Vec<u8>> {
        let number = |at: usize| u32::from_be_bytes(request[at..at + 4].try_into().unwrap());
        assert_eq!((number(8), number(12) as usize), (0x100, request.len()));
        let (x, y) = (&request[0x4e..0x90], &request[0x9e..0xe0]);
        let customer = PublicKey::from_sec1_bytes(&[&[4], x, y].concat()).expect("a point");
        let shared =
            p521::ecdh::diffie_hellman(self.host.to_nonzero_scalar(), customer.as_affine());
        let shared = [shared.raw_secret_bytes().as_slice(), &[0, 0, 0, 1]].concat();
        let (associated, encrypted) = request.split_at(request.len() - 0x50 - 16);
        let ours = self.host_key_hash();
        let slot = associated[0xe0..]
            .chunks(80)
            .find(|slot| slot[..32] == ours)?;
        let protection = opened(&Sha256::digest(shared), [0; 12], &[], &slot[32..])?;
        let iv = request[16..28].try_into().unwrap();
        opened(&protection, iv, associated, encrypted)
    }

    /// The answer to a request in the KBS protocol's form, with 64 bytes of the guest's.
    pub(crate) fn answer(&self, request: &str, user_data: &[u8; 64]) -> Value {
        let request: Value = serde_json::from_str(request).expect("a request");
        let blob = request["request_blob"].as_str().expect("text");
        let blob = STANDARD.decode(blob).expect("base64");
        let secrets = self.open(&blob).expect("a request for this machine");
        let (key, nonce) = secrets.split_at(64);
        let host = self.host_key_hash();
        let additional = [self.image_host_key.unwrap_or(host), host].concat();
        let cuid = [0xc1; 16];
        let measured = [
            &self.header[0xe0..0x1a0],
            &self.header[0x270..],
            &cuid,
            &[0, 64, 0, 0, 0, 0, 0, 64],
            user_data,
            nonce,
            &additional,
        ]
        .concat();
        let key = hmac::Key::new(hmac::HMAC_SHA512, key);
        json!({
            "measurement": STANDARD.encode(hmac::sign(&key, &measured)),
            "additional_data": STANDARD.encode(additional),
            "user_data": STANDARD.encode(user_data),
            "cuid": STANDARD.encode(cuid),
            "encr_measurement_key": request["encr_measurement_key"],
            "encr_request_nonce": request["encr_request_nonce"],
            "image_hdr_tags": request["image_hdr_tags"],
        })
    }
}

/// Opens AES-256-GCM.
pub(crate) fn opened(
    key: &[u8],
    nonce: [u8; 12],
    context: &[u8],
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes"));
    let mut bytes = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let opened = key.open_in_place(nonce, Aad::from(context), &mut bytes);
    Some(opened.ok()?.to_vec())
}
