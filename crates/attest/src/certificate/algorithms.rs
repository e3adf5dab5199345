//! The signature algorithms that vendors' certificates use, in Rust alone.
//!
//! Each pairs one encoding of the signer's key with one of the signature's
//! algorithm, so that a certificate cannot choose how its own signature is read.

use p384::ecdsa::signature::Verifier;
use rsa::pkcs1::DecodeRsaPublicKey;
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Sha256, Sha384};

/// All of them.
pub(super) static ALL: &[&dyn SignatureVerificationAlgorithm] = &[
    &P256_SHA256,
    &P384_SHA384,
    &P521_SHA512,
    &RSA_PKCS1_SHA256,
    &RSA_PKCS1_SHA384,
    &RSA_PSS_SHA384,
    &RSA_PSS_SHA384_WITH_TRAILER,
];

/// Verifies a signature of a message by a key, each as certificates hold it.
type Verify = fn(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()>;

/// One pair of encodings, and how to verify with it.
#[derive(Debug)]
struct Algorithm {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    verify: Verify,
}

impl SignatureVerificationAlgorithm for Algorithm {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        (self.verify)(public_key, message, signature).ok_or(InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

static P256_SHA256: Algorithm = Algorithm {
    key: alg_id::ECDSA_P256,
    signature: alg_id::ECDSA_SHA256,
    verify: |key, message, signature| {
        let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
        let signature = p256::ecdsa::DerSignature::from_bytes(signature).ok()?;
        key.verify(message, &signature).ok()
    },
};

static P384_SHA384: Algorithm = Algorithm {
    key: alg_id::ECDSA_P384,
    signature: alg_id::ECDSA_SHA384,
    verify: |key, message, signature| {
        let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
        let signature = p384::ecdsa::DerSignature::from_bytes(signature).ok()?;
        key.verify(message, &signature).ok()
    },
};

static P521_SHA512: Algorithm = Algorithm {
    key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA512,
    verify: |key, message, signature| {
        let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
        let signature = p521::ecdsa::DerSignature::from_bytes(signature).ok()?;
        key.verify(message, &signature).ok()
    },
};

static RSA_PKCS1_SHA256: Algorithm = Algorithm {
    key: alg_id::RSA_ENCRYPTION,
    signature: alg_id::RSA_PKCS1_SHA256,
    verify: |key, message, signature| {
        let key = rsa::pkcs1v15::VerifyingKey::<Sha256>::new(rsa_key(key)?);
        key.verify(message, &signature.try_into().ok()?).ok()
    },
};

static RSA_PKCS1_SHA384: Algorithm = Algorithm {
    key: alg_id::RSA_ENCRYPTION,
    signature: alg_id::RSA_PKCS1_SHA384,
    verify: |key, message, signature| {
        let key = rsa::pkcs1v15::VerifyingKey::<Sha384>::new(rsa_key(key)?);
        key.verify(message, &signature.try_into().ok()?).ok()
    },
};

/// AMD's, as most encode it: the trailer field, whose value is the default, is left
/// out (RFC 8017, appendix A.2.3).
static RSA_PSS_SHA384: Algorithm = Algorithm {
    key: alg_id::RSA_ENCRYPTION,
    signature: alg_id::RSA_PSS_SHA384,
    verify: verify_pss_sha384,
};

/// The same with the default written out.
static RSA_PSS_SHA384_WITH_TRAILER: Algorithm = Algorithm {
    key: alg_id::RSA_ENCRYPTION,
    signature: AlgorithmIdentifier::from_slice(&PSS_SHA384_WITH_TRAILER),
    verify: verify_pss_sha384,
};

/// id-RSASSA-PSS with SHA-384, MGF1 with SHA-384, a salt of 48 bytes, trailer 1,
/// as DER without the outer tag and length.
const PSS_SHA384_WITH_TRAILER: [u8; 70] = [
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x39, 0xa0, 0x0f, 0x30,
    0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa1, 0x1c,
    0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06,
    0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01,
    0x30, 0xa3, 0x03, 0x02, 0x01, 0x01,
];

fn verify_pss_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = rsa::pss::VerifyingKey::<Sha384>::new(rsa_key(key)?);
    key.verify(message, &signature.try_into().ok()?).ok()
}

/// A key as a certificate holds it: PKCS #1, at most 4,096 bits.
fn rsa_key(bytes: &[u8]) -> Option<rsa::PublicKey> {
    rsa::PublicKey::from_pkcs1_der(bytes).ok()
}
