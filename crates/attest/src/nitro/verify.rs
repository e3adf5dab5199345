//! Verifying an attestation document.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p384::ecdsa::VerifyingKey;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use serde_json::Value;

use super::{NitroDigest, NitroPlatform};
use crate::binding::BindingForm;
use crate::certificate;
use crate::cose::{Key, Signed};
use crate::verifier::Part;
use crate::{
    Claims, Measurement, Platform, Protection, Register, TeeKind, Trust, UnixTime, VerifyError,
    canonical,
};

/// The longest document that is read; the device gives at most 16 KiB (`NSM_RESPONSE_MAX_SIZE`
/// is 12 KiB).
const MAX_DOCUMENT_BYTES: usize = 16 * 1024;

/// The most certificates between the root and the enclave's; there are four.
const MAX_CERTIFICATES: usize = 16;

/// SHA-256 of AWS's root certificate ("aws.nitro-enclaves", G1), which comes along with
/// every document and whose digest AWS publishes.
const ROOT: [u8; 32] = [
    0x64, 0x1a, 0x03, 0x21, 0xa3, 0xe2, 0x44, 0xef, 0xe4, 0x56, 0x46, 0x31, 0x95, 0xd6, 0x06, 0x31,
    0x7e, 0xd7, 0xcd, 0xcc, 0x3c, 0x17, 0x56, 0xe0, 0x98, 0x93, 0xf3, 0xc6, 0x8f, 0x79, 0xbb, 0x5b,
];

/// What errors call the signing key.
const KEY: &str = "the key that signs the document";

/// Evidence's body.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    document: String,
}

/// The document, as the signature covers it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    module_id: String,
    digest: String,
    /// Milliseconds since 1970.
    timestamp: u64,
    pcrs: BTreeMap<u64, ByteBuf>,
    certificate: ByteBuf,
    cabundle: Vec<ByteBuf>,
    /// Whose that would be is not said anywhere: nothing relies on it.
    #[serde(rename = "public_key")]
    _public_key: Option<ByteBuf>,
    user_data: Option<ByteBuf>,
    /// What is bound is in `user_data`, a nonce included.
    #[serde(rename = "nonce")]
    _nonce: Option<ByteBuf>,
}

pub(crate) fn verify(body: &Value, at: UnixTime) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let document = canonical::from_base64("document", &body.document)?;
    verify_document(&document, &ROOT, at)
}

fn verify_document(bytes: &[u8], root: &[u8; 32], at: UnixTime) -> Result<Part, VerifyError> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(VerifyError::Malformed {
            reason: format!(
                "{} bytes, a document has at most {MAX_DOCUMENT_BYTES}",
                bytes.len()
            ),
        });
    }
    let signed = Signed::parse("the document", bytes)?;
    let document = Document::read(signed.payload())?;
    let key = document.endorse(root, at)?;
    let bad = VerifyError::BadSignature {
        of: "the document",
        by: "the key of its certificate",
    };
    signed.verify(&Key::P384(key), bad)?;
    document.into_part(at)
}

impl Document {
    fn read(payload: &[u8]) -> Result<Self, VerifyError> {
        let malformed =
            |why: &dyn std::fmt::Display| VerifyError::malformed("the document's content", why);
        let mut rest = payload;
        let document: Self =
            coset::cbor::from_reader(&mut rest).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes after its end"));
        }
        if document.digest != "SHA384" {
            return Err(malformed(&format_args!("digest {:?}", document.digest)));
        }
        if document.cabundle.len() > MAX_CERTIFICATES {
            return Err(malformed(&format_args!(
                "{} certificates",
                document.cabundle.len()
            )));
        }
        Ok(document)
    }

    /// The key that has to have signed, certified up to the root.
    fn endorse(&self, root: &[u8; 32], at: UnixTime) -> Result<VerifyingKey, VerifyError> {
        let certificates = std::iter::once(&self.certificate).chain(&self.cabundle);
        let chain: Vec<_> = certificates
            .map(|bytes| CertificateDer::from(bytes.to_vec()))
            .collect();
        Ok(certificate::p384_key(KEY, &chain, root, &[], at)?.key)
    }

    fn into_part(self, at: UnixTime) -> Result<Part, VerifyError> {
        let mut pcrs = BTreeMap::new();
        for (number, value) in &self.pcrs {
            let register = Register::new(*number);
            let value: Result<[u8; 48], _> = value.as_slice().try_into();
            let (Some(register), Ok(value)) = (register, value) else {
                return Err(VerifyError::Malformed {
                    reason: format!("the document's content: register {number}"),
                });
            };
            pcrs.insert(register, NitroDigest::from(value));
        }
        let image = Register::new(0).and_then(|image| pcrs.get(&image).copied());
        let image = image.ok_or_else(|| VerifyError::Malformed {
            reason: "the document's content: no register 0".to_owned(),
        })?;
        // An enclave in debug mode measures nothing: its registers are zero.
        let debug = *image.as_bytes() == [0; 48];
        pcrs.retain(|_, value| *value.as_bytes() != [0; 48]);
        Ok(Part {
            carried: self.user_data.map(ByteBuf::into_vec).unwrap_or_default(),
            form: BindingForm::Whole,
            claims: Claims {
                tee: TeeKind::Nitro,
                trust: Trust::Hardware,
                protection: Protection::ConfidentialMemory,
                measurement: Measurement::from(*image.as_bytes()),
                configuration: None,
                debug,
                verified_at: at,
                collateral_until: None,
                additional: Vec::new(),
                platform: Platform::Nitro(Box::new(NitroPlatform {
                    module_id: self.module_id,
                    pcrs,
                    timestamp: UnixTime(self.timestamp / 1000),
                })),
            },
        })
    }
}

impl Body {
    pub(super) fn of_document(document: &[u8]) -> Self {
        Self {
            document: STANDARD.encode(document),
        }
    }
}

#[cfg(test)]
mod tests {
    use coset::cbor::Value as Cbor;
    use coset::{CborSerializable, CoseSign1Builder, HeaderBuilder, iana};
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
        PKCS_ECDSA_P384_SHA384, SigningKey,
    };

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::Binding;

    const AT: UnixTime = UnixTime(1_750_000_000);

    /// A hypervisor of the test's own, under a root of its own.
    struct Hypervisor {
        root: CertifiedIssuer<'static, KeyPair>,
        certificate: Vec<u8>,
        key: KeyPair,
    }

    impl Hypervisor {
        fn new() -> Self {
            let key = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
            let mut authority = CertificateParams::default();
            authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let root = CertifiedIssuer::self_signed(authority, key()).unwrap();
            let signing = key();
            let leaf = CertificateParams::default()
                .signed_by(&signing, &root)
                .unwrap();
            Self {
                certificate: leaf.der().to_vec(),
                key: signing,
                root,
            }
        }

        fn digest(&self) -> [u8; 32] {
            Sha256::digest(self.root.der()).into()
        }

        fn fields(&self) -> Vec<(&'static str, Cbor)> {
            let bytes = |bytes: &[u8]| Cbor::Bytes(bytes.to_vec());
            vec![
                ("module_id", "i-1-enc2".into()),
                ("digest", "SHA384".into()),
                ("timestamp", 1_750_000_000_123_u64.into()),
                (
                    "pcrs",
                    Cbor::Map(vec![
                        (0.into(), bytes(&[0xa0; 48])),
                        (1.into(), bytes(&[0xa1; 48])),
                        (3.into(), bytes(&[0; 48])),
                    ]),
                ),
                ("certificate", bytes(&self.certificate)),
                ("cabundle", Cbor::Array(vec![bytes(self.root.der())])),
                ("public_key", Cbor::Null),
                ("user_data", bytes(&[0x5a; 64])),
                ("nonce", Cbor::Null),
            ]
        }

        /// A document with one field changed, or one more.
        fn signed(&self, field: &'static str, value: Option<Cbor>) -> Vec<u8> {
            let mut fields = self.fields();
            fields.retain(|(name, _)| *name != field);
            fields.extend(value.map(|value| (field, value)));
            self.sign(fields)
        }

        fn sign(&self, fields: Vec<(&'static str, Cbor)>) -> Vec<u8> {
            let map = fields.into_iter().map(|(name, value)| (name.into(), value));
            let mut payload = Vec::new();
            coset::cbor::into_writer(&Cbor::Map(map.collect()), &mut payload).unwrap();
            self.seal(payload, iana::Algorithm::ES384)
        }

        fn seal(&self, payload: Vec<u8>, algorithm: iana::Algorithm) -> Vec<u8> {
            let header = HeaderBuilder::new().algorithm(algorithm).build();
            let sign = |bytes: &[u8]| -> Vec<u8> {
                let signature = self.key.sign(bytes).unwrap();
                p384::ecdsa::Signature::from_der(&signature)
                    .unwrap()
                    .to_vec()
            };
            let builder = CoseSign1Builder::new().protected(header).payload(payload);
            builder
                .create_signature(&[], sign)
                .build()
                .to_vec()
                .unwrap()
        }

        fn verify(&self, document: &[u8]) -> Result<Claims, VerifyError> {
            verify_document(document, &self.digest(), AT)?.bound_to(&Binding::from([0x5a; 64]))
        }
    }

    fn malformed(reason: &str) -> Result<Claims, VerifyError> {
        Err(VerifyError::Malformed {
            reason: reason.to_owned(),
        })
    }

    #[test]
    fn a_document_bound_to_the_statement_gives_its_claims() {
        let hypervisor = Hypervisor::new();
        let claims = hypervisor
            .verify(&hypervisor.sign(hypervisor.fields()))
            .unwrap();
        assert_eq!(claims.measurement().as_bytes(), [0xa0; 48]);
        assert!(!claims.debug());
        let Platform::Nitro(platform) = claims.platform() else {
            panic!("{claims:?}");
        };
        assert_eq!(platform.pcrs.len(), 2);
        assert_eq!(platform.timestamp, AT);
    }

    #[test]
    fn what_is_bound_is_the_user_data_whole() {
        let hypervisor = Hypervisor::new();
        for other in [vec![0x5b; 64], vec![0x5a; 63], vec![0x5a; 65], Vec::new()] {
            let document = hypervisor.signed("user_data", Some(Cbor::Bytes(other)));
            assert_eq!(
                hypervisor.verify(&document),
                Err(VerifyError::BindingMismatch)
            );
        }
        let document = hypervisor.signed("user_data", Some(Cbor::Null));
        assert_eq!(
            hypervisor.verify(&document),
            Err(VerifyError::BindingMismatch)
        );
        // A nonce with the same bytes is no binding.
        let mut fields = hypervisor.fields();
        fields.retain(|(name, _)| !matches!(*name, "user_data" | "nonce"));
        fields.push(("nonce", Cbor::Bytes(vec![0x5a; 64])));
        fields.push(("user_data", Cbor::Null));
        let document = hypervisor.sign(fields);
        assert_eq!(
            hypervisor.verify(&document),
            Err(VerifyError::BindingMismatch)
        );
    }

    #[test]
    fn each_malformation_of_the_content_is_told() {
        let hypervisor = Hypervisor::new();
        let bytes = |length| Cbor::Bytes(vec![1; length]);
        for (field, value, reason) in [
            ("digest", "SHA256".into(), "digest \"SHA256\""),
            ("pcrs", Cbor::Map(vec![(0.into(), bytes(32))]), "register 0"),
            (
                "pcrs",
                Cbor::Map(vec![(0.into(), bytes(48)), (32.into(), bytes(48))]),
                "register 32",
            ),
            (
                "pcrs",
                Cbor::Map(vec![(1.into(), bytes(48))]),
                "no register 0",
            ),
            (
                "cabundle",
                Cbor::Array(vec![bytes(1); 17]),
                "17 certificates",
            ),
        ] {
            let document = hypervisor.signed(field, Some(value));
            let said = hypervisor.verify(&document);
            assert_eq!(
                said,
                malformed(&format!("the document's content: {reason}"))
            );
        }
        for (document, part) in [
            (
                hypervisor.signed("timestamp", None),
                "missing field `timestamp`",
            ),
            (
                hypervisor.signed("more", Some(Cbor::Null)),
                "unknown field `more`",
            ),
        ] {
            let said = hypervisor.verify(&document).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn another_root_than_the_pinned_one_is_refused() {
        let (hypervisor, other) = (Hypervisor::new(), Hypervisor::new());
        let document = other.sign(other.fields());
        assert_eq!(
            hypervisor.verify(&document),
            Err(VerifyError::Certificate {
                what: KEY,
                problem: crate::CertificateProblem::UnknownIssuer
            })
        );
    }

    #[test]
    fn another_key_or_another_algorithm_is_refused() {
        let hypervisor = Hypervisor::new();
        let mut stranger = Hypervisor::new();
        stranger.certificate.clone_from(&hypervisor.certificate);
        let mut fields = hypervisor.fields();
        let document = stranger.sign(fields.clone());
        assert_eq!(
            hypervisor.verify(&document),
            Err(VerifyError::BadSignature {
                of: "the document",
                by: "the key of its certificate"
            })
        );
        let mut payload = Vec::new();
        let map = fields
            .drain(..)
            .map(|(name, value)| (name.into(), value))
            .collect();
        coset::cbor::into_writer(&Cbor::Map(map), &mut payload).unwrap();
        assert_eq!(
            hypervisor.verify(&hypervisor.seal(payload, iana::Algorithm::ES256)),
            Err(VerifyError::BadSignature {
                of: "the document",
                by: "the key of its certificate"
            })
        );
    }

    #[test]
    fn headers_that_are_not_signed_and_bytes_behind_the_end_are_refused() {
        let hypervisor = Hypervisor::new();
        let document = hypervisor.sign(hypervisor.fields());
        let mut message = coset::CoseSign1::from_slice(&document).unwrap();
        message.unprotected.key_id = vec![1];
        assert_eq!(
            hypervisor.verify(&message.to_vec().unwrap()),
            malformed("the document: it has headers that are not signed")
        );
        let longer = [&document[..], &[0]].concat();
        assert!(matches!(
            hypervisor.verify(&longer),
            Err(VerifyError::Malformed { .. })
        ));
        assert_eq!(
            hypervisor.verify(&vec![0; MAX_DOCUMENT_BYTES + 1]),
            malformed("16385 bytes, a document has at most 16384")
        );
    }
}
