//! Reference integrity manifests: what NVIDIA says that a version of a driver or of a VBIOS
//! measures (TCG Reference Integrity Manifest Information Model, as a SWID tag of ISO
//! 19770-2), signed within the file (W3C XML Signature 1.1).
//!
//! One form of signature is read, the one that NVIDIA writes: over the whole document but
//! itself, canonical XML 1.1, ECDSA with SHA-384 on P-384. Any other is refused, so that
//! what is signed is always what is read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bergshamra_c14n::{C14nMode, canonicalize_doc};
use bergshamra_xml::nodeset::NodeSet;
use p384::ecdsa::Signature;
use p384::ecdsa::signature::Verifier;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha384};
use uppsala::parser::Parser;
use uppsala::{Document, NodeId};

use super::{MeasurementIndex, NvidiaDigest};
use crate::certificate::{self, CertifiedKey};
use crate::{UnixTime, VerifyError};

/// SHA-256 of `NVIDIA CoRIM signing Root CA` (DER), as NVIDIA's attestation SDK has it.
const ROOT: [u8; 32] = [
    0x12, 0x97, 0x7b, 0x51, 0x15, 0xac, 0xb0, 0x38, 0x11, 0x79, 0x27, 0x9f, 0xff, 0xeb, 0x5a, 0x8c,
    0x4d, 0x26, 0x49, 0x71, 0xeb, 0xb3, 0x22, 0x98, 0x02, 0x3a, 0x46, 0x5f, 0xa4, 0x1d, 0xf5, 0xd1,
];

/// What errors call the key that signed.
const SIGNER: &str = "the manifest's signer";

/// What errors call a manifest.
const THE_MANIFEST: &str = "the reference integrity manifest";

/// The most certificates that come along in one.
const MAX_CERTIFICATES: usize = 8;

/// Elements in elements; real ones have four.
const MAX_DEPTH: u32 = 16;

/// Namespaces and names of algorithms.
const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const SIGNATURE: &str = "http://www.w3.org/2000/09/xmldsig#";
const SHA384: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const CANONICAL_XML: &str = "http://www.w3.org/2006/12/xml-c14n11";
const WITHOUT_SIGNATURE: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
const DIGEST: &str = "http://www.w3.org/2001/04/xmldsig-more#sha384";
const ECDSA: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";

/// A manifest, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rim {
    text: String,
    /// The version that it speaks of.
    version: String,
    /// What the version is of: a chip for a driver, a board for a VBIOS.
    product: String,
}

/// Whose word counts, and when.
pub(super) struct Trusted<'a> {
    /// SHA-256 of the root's certificate.
    pub(super) root: &'a [u8; 32],
    pub(super) revocation_lists: &'a [Vec<u8>],
    pub(super) at: UnixTime,
}

/// One measurement and the values that it may have.
struct Expected {
    index: MeasurementIndex,
    values: Vec<NvidiaDigest>,
}

fn malformed(why: &dyn std::fmt::Display) -> VerifyError {
    VerifyError::malformed(THE_MANIFEST, why)
}

impl Rim {
    /// A file, if it is one.
    pub(crate) fn read(file: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(file).ok()?;
        let document = parse(text).ok()?;
        let root = document.document_element()?;
        let meta = document.first_child_element_by_name_ns(root, SWID, "Meta")?;
        let attribute = |name| Some(document.get_attribute(meta, name)?.to_owned());
        Some(Self {
            version: attribute("colloquialVersion")?,
            product: attribute("product")?,
            text: text.to_owned(),
        })
    }

    /// What it is for, by its own word.
    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.product, self.version)
    }

    /// Whether it speaks of this version; letters may be small or capital.
    pub(super) fn is_of(&self, version: &str) -> bool {
        self.version.eq_ignore_ascii_case(version)
    }

    pub(super) fn product(&self) -> &str {
        &self.product
    }

    /// Compares what was measured, after verifying the signature, and says when the first of
    /// the revocation lists that were used is to be replaced.
    ///
    /// `skipped` is a measurement that this device has no use for.
    pub(super) fn compare(
        &self,
        found: impl Fn(MeasurementIndex) -> Option<NvidiaDigest>,
        skipped: Option<MeasurementIndex>,
        revocation_lists: &[Vec<u8>],
        at: UnixTime,
    ) -> Result<Option<UnixTime>, VerifyError> {
        let trusted = Trusted {
            root: &ROOT,
            revocation_lists,
            at,
        };
        self.compare_below(&trusted, found, skipped)
    }

    pub(super) fn compare_below(
        &self,
        trusted: &Trusted<'_>,
        found: impl Fn(MeasurementIndex) -> Option<NvidiaDigest>,
        skipped: Option<MeasurementIndex>,
    ) -> Result<Option<UnixTime>, VerifyError> {
        let document = parse(&self.text)?;
        let element = document
            .document_element()
            .ok_or_else(|| malformed(&"it is empty"))?;
        let lists_until = verify_signature(&document, element, trusted)?;
        let differing: Vec<String> = expected(&document, element)?
            .into_iter()
            .filter(|expected| skipped != Some(expected.index))
            .filter(|expected| {
                !found(expected.index).is_some_and(|found| expected.values.contains(&found))
            })
            .map(|expected| expected.index.to_string())
            .collect();
        if differing.is_empty() {
            return Ok(lists_until);
        }
        Err(VerifyError::ReferenceValues {
            version: self.describe(),
            registers: differing.join(", "),
        })
    }
}

/// Reads all of a manifest that verifiers read, what stands behind NVIDIA's signature too:
/// for fuzzing, where nobody has that key.
#[cfg(fuzzing)]
pub fn read_as_if_signed(file: &[u8]) {
    let Some(rim) = Rim::read(file) else {
        return;
    };
    let Ok(document) = parse(&rim.text) else {
        return;
    };
    let Some(element) = document.document_element() else {
        return;
    };
    let trusted = Trusted {
        root: &ROOT,
        revocation_lists: &[],
        at: UnixTime(1_750_000_000),
    };
    assert!(verify_signature(&document, element, &trusted).is_err());
    let _ = expected(&document, element);
    // No digest of the fuzzer's is the document's: the certificates are read here.
    if let Ok(signature) = only_child(&document, element, SIGNATURE, "Signature") {
        let _ = signer(&document, signature, &trusted).map(|signer| signer.lists_until);
    }
}

fn parse(text: &str) -> Result<Document<'_>, VerifyError> {
    Parser::new()
        .with_max_depth(MAX_DEPTH)
        .with_forbid_dtd(true)
        .with_forbid_entities(true)
        .parse(text)
        .map_err(|error| malformed(&error))
}

/// The measurements that a manifest has values for. It counts them from 0, SPDM from 1.
fn expected(document: &Document<'_>, root: NodeId) -> Result<Vec<Expected>, VerifyError> {
    let payload = only_child(document, root, SWID, "Payload")?;
    let mut expected = Vec::new();
    for resource in document.child_elements_by_name_ns(payload, SWID, "Resource") {
        let attribute = |name: &str| {
            document
                .get_attribute(resource, name)
                .ok_or_else(|| malformed(&format_args!("a measurement without {name}")))
        };
        if attribute("active")?.eq_ignore_ascii_case("false") {
            continue;
        }
        let index = attribute("index")?
            .parse::<u8>()
            .ok()
            .and_then(|index| MeasurementIndex::new(index.checked_add(1)?))
            .ok_or_else(|| malformed(&"a measurement's number"))?;
        let alternatives: u8 = attribute("alternatives")?
            .parse()
            .map_err(|_| malformed(&"a number of alternatives"))?;
        let values = (0..alternatives).map(|number| {
            document
                .get_attribute_ns(resource, SHA384, &format!("Hash{number}"))
                .and_then(|value| value.parse::<NvidiaDigest>().ok())
                .ok_or_else(|| malformed(&format_args!("the value of measurement {index}")))
        });
        expected.push(Expected {
            index,
            values: values.collect::<Result<_, _>>()?,
        });
    }
    if expected.is_empty() {
        return Err(malformed(&"it has no measurement"));
    }
    Ok(expected)
}

/// Verifies the one signature of a document, which has to cover all else in it.
fn verify_signature(
    document: &Document<'_>,
    root: NodeId,
    trusted: &Trusted<'_>,
) -> Result<Option<UnixTime>, VerifyError> {
    let signature = only_child(document, root, SIGNATURE, "Signature")?;
    let info = only_child(document, signature, SIGNATURE, "SignedInfo")?;
    let reference = check_form(document, info)?;

    let bad = VerifyError::BadSignature {
        of: THE_MANIFEST,
        by: "NVIDIA",
    };
    let covered = NodeSet::all_without_comments(document)
        .subtract(&NodeSet::tree_with_comments(signature, document));
    let digest = Sha384::digest(canonical(document, &covered)?);
    let stated = base64_of(
        document,
        only_child(document, reference, SIGNATURE, "DigestValue")?,
    )?;
    if stated != digest[..] {
        return Err(bad);
    }
    let signer = signer(document, signature, trusted)?;
    let value = only_child(document, signature, SIGNATURE, "SignatureValue")?;
    let signed = canonical(document, &NodeSet::tree_without_comments(info, document))?;
    Signature::from_slice(&base64_of(document, value)?)
        .and_then(|value| signer.key.verify(&signed, &value))
        .map_err(|_| bad)?;
    Ok(signer.lists_until)
}

/// Checks that the signature has the one form that is read, and gives its reference.
fn check_form(document: &Document<'_>, info: NodeId) -> Result<NodeId, VerifyError> {
    let algorithm = |of: NodeId, name: &str| {
        let element = only_child(document, of, SIGNATURE, name)?;
        Ok::<_, VerifyError>(document.get_attribute(element, "Algorithm"))
    };
    let reference = only_child(document, info, SIGNATURE, "Reference")?;
    let transforms = only_child(document, reference, SIGNATURE, "Transforms")?;
    let transforms: Vec<_> = document
        .child_elements_by_name_ns(transforms, SIGNATURE, "Transform")
        .into_iter()
        .map(|transform| document.get_attribute(transform, "Algorithm"))
        .collect();
    let known = algorithm(info, "CanonicalizationMethod")? == Some(CANONICAL_XML)
        && algorithm(info, "SignatureMethod")? == Some(ECDSA)
        && document.get_attribute(reference, "URI") == Some("")
        && transforms == [Some(WITHOUT_SIGNATURE), Some(CANONICAL_XML)]
        && algorithm(reference, "DigestMethod")? == Some(DIGEST);
    if !known {
        return Err(VerifyError::Unsupported {
            what: "a manifest's signature in another form than NVIDIA's".to_owned(),
        });
    }
    Ok(reference)
}

/// The key that has to have signed, certified up to the root.
fn signer(
    document: &Document<'_>,
    signature: NodeId,
    trusted: &Trusted<'_>,
) -> Result<CertifiedKey, VerifyError> {
    let info = only_child(document, signature, SIGNATURE, "KeyInfo")?;
    let data = only_child(document, info, SIGNATURE, "X509Data")?;
    let elements = document.child_elements_by_name_ns(data, SIGNATURE, "X509Certificate");
    if elements.len() > MAX_CERTIFICATES {
        return Err(malformed(&format_args!("{} certificates", elements.len())));
    }
    let certificates = elements
        .into_iter()
        .map(|element| base64_of(document, element).map(CertificateDer::from))
        .collect::<Result<Vec<_>, _>>()?;
    certificate::p384_key(
        SIGNER,
        &certificates,
        trusted.root,
        trusted.revocation_lists,
        trusted.at,
    )
}

/// The only child of that name. Where there could be two, one could be verified and the
/// other read.
fn only_child(
    document: &Document<'_>,
    parent: NodeId,
    namespace: &str,
    name: &str,
) -> Result<NodeId, VerifyError> {
    match document.child_elements_by_name_ns(parent, namespace, name)[..] {
        [only] => Ok(only),
        ref found => Err(malformed(&format_args!("{} elements {name}", found.len()))),
    }
}

fn canonical(document: &Document<'_>, nodes: &NodeSet) -> Result<Vec<u8>, VerifyError> {
    let none: [&str; 0] = [];
    canonicalize_doc(document, C14nMode::Inclusive11, Some(nodes), &none)
        .map_err(|error| malformed(&error))
}

/// An element's text, in base64 that may be broken into lines.
fn base64_of(document: &Document<'_>, element: NodeId) -> Result<Vec<u8>, VerifyError> {
    let text = document.text_content_deep(element);
    let text: String = text.split_ascii_whitespace().collect();
    STANDARD.decode(text).map_err(|error| malformed(&error))
}
