//! Signed CBOR (RFC 9052, section 4.2: `COSE_Sign1`) and the keys that sign it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coset::iana::{self, EnumI64};
use coset::{
    CborSerializable, CoseKey, CoseSign1, KeyType, Label, RegisteredLabelWithPrivate,
    TaggedCborSerializable,
};
use p384::ecdsa::signature::Verifier as _;
use p384::pkcs8::EncodePublicKey;
use serde::Deserialize;

use crate::VerifyError;

/// A message of which nothing is left that its signature does not cover.
#[derive(Debug)]
pub(crate) struct Signed {
    message: CoseSign1,
    algorithm: iana::Algorithm,
}

/// A key that signs messages, by its curve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::ecdsa::VerifyingKey),
}

/// A key as JSON has it (RFC 7517; RFC 7518, section 6.2).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct JsonWebKey {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

impl Signed {
    /// Reads a message, tagged or not, and refuses whatever is not signed: unprotected
    /// headers, another encoding, bytes after the end.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, VerifyError> {
        let malformed = |why: &dyn std::fmt::Display| VerifyError::malformed(what, why);
        let tagged = CoseSign1::from_tagged_slice(bytes);
        let (message, written) = match tagged {
            Ok(message) => (message.clone(), message.to_tagged_vec()),
            Err(_) => {
                let message = CoseSign1::from_slice(bytes).map_err(|error| malformed(&error))?;
                (message.clone(), message.to_vec())
            }
        };
        if written.map_err(|error| malformed(&error))? != bytes {
            return Err(malformed(
                &"it is not in the one encoding that its signature covers",
            ));
        }
        if !message.unprotected.is_empty() {
            return Err(malformed(&"it has headers that are not signed"));
        }
        let header = &message.protected.header;
        let Some(RegisteredLabelWithPrivate::Assigned(algorithm)) = header.alg else {
            return Err(malformed(&"its headers name no algorithm"));
        };
        let expected = coset::Header {
            alg: header.alg.clone(),
            ..coset::Header::default()
        };
        if *header != expected {
            return Err(malformed(
                &"its headers have more than the algorithm of its signature",
            ));
        }
        Ok(Self { message, algorithm })
    }

    /// What is signed: nobody's word before [`Signed::verify`].
    pub(crate) fn payload(&self) -> &[u8] {
        self.message.payload.as_deref().unwrap_or_default()
    }

    /// Whether `key` signed it, with the algorithm that goes with its curve.
    pub(crate) fn verify(&self, key: &Key, bad: VerifyError) -> Result<(), VerifyError> {
        if self.algorithm != key.algorithm() {
            return Err(bad);
        }
        self.message
            .verify_signature(&[], |signature, signed| key.verify(signature, signed))
            .map_err(|_| bad)
    }
}

impl Key {
    /// A key from its point, uncompressed (SEC 1, section 2.3.3), on the curve whose
    /// points have that length.
    pub(crate) fn from_point(point: &[u8]) -> Option<Self> {
        match point.len() {
            65 => Some(Self::P256(
                p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?,
            )),
            97 => Some(Self::P384(
                p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?,
            )),
            133 => Some(Self::P521(
                p521::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?,
            )),
            _ => None,
        }
    }

    pub(crate) fn from_json(key: &JsonWebKey) -> Option<Self> {
        let x = URL_SAFE_NO_PAD.decode(&key.x).ok()?;
        let y = URL_SAFE_NO_PAD.decode(&key.y).ok()?;
        let bytes = match key.crv.as_str() {
            "P-256" => 32,
            "P-384" => 48,
            "P-521" => 66,
            _ => return None,
        };
        (key.kty == "EC" && x.len() == bytes && y.len() == bytes)
            .then(|| Self::from_point(&[&[4], &x[..], &y].concat()))?
    }

    /// A key as CBOR has it (RFC 9053, section 7.1).
    pub(crate) fn from_cbor(bytes: &[u8]) -> Option<Self> {
        let key = CoseKey::from_slice(bytes).ok()?;
        let parameter = |name: iana::Ec2KeyParameter| {
            let label = Label::Int(name.to_i64());
            let mut found = key.params.iter().filter(|(found, _)| *found == label);
            Some(&found.next()?.1)
        };
        let curve = parameter(iana::Ec2KeyParameter::Crv)?.as_integer()?;
        let bytes = match iana::EllipticCurve::from_i64(i128::from(curve).try_into().ok()?)? {
            iana::EllipticCurve::P_256 => 32,
            iana::EllipticCurve::P_384 => 48,
            iana::EllipticCurve::P_521 => 66,
            _ => return None,
        };
        let x = parameter(iana::Ec2KeyParameter::X)?.as_bytes()?;
        let y = parameter(iana::Ec2KeyParameter::Y)?.as_bytes()?;
        let ec2 = key.kty == KeyType::Assigned(iana::KeyType::EC2);
        (ec2 && x.len() == bytes && y.len() == bytes)
            .then(|| Self::from_point(&[&[4], &x[..], y].concat()))?
    }

    /// Its `SubjectPublicKeyInfo` (DER), over which a fingerprint is.
    pub(crate) fn public_key_info(&self) -> Vec<u8> {
        let der = match self {
            Self::P256(key) => p256::PublicKey::from(key).to_public_key_der(),
            Self::P384(key) => p384::PublicKey::from(key).to_public_key_der(),
            Self::P521(key) => p521::PublicKey::from(key).to_public_key_der(),
        };
        der.expect("a point on its curve has an encoding")
            .into_vec()
    }

    /// The algorithm that goes with the curve (RFC 9053, section 2.1; RFC 9864 fixes the
    /// pairs).
    fn algorithm(&self) -> iana::Algorithm {
        match self {
            Self::P256(_) => iana::Algorithm::ES256,
            Self::P384(_) => iana::Algorithm::ES384,
            Self::P521(_) => iana::Algorithm::ES512,
        }
    }

    fn verify(&self, signature: &[u8], signed: &[u8]) -> Result<(), p384::ecdsa::Error> {
        match self {
            Self::P256(key) => key.verify(signed, &p256::ecdsa::Signature::from_slice(signature)?),
            Self::P384(key) => key.verify(signed, &p384::ecdsa::Signature::from_slice(signature)?),
            Self::P521(key) => key.verify(signed, &p521::ecdsa::Signature::from_slice(signature)?),
        }
    }
}
