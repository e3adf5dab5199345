//! Made-up GPUs and manifests, below a root of the test's own: what nobody recorded.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CustomExtension, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, RevokedCertParams, SigningKey,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha384};

use super::rim::{Rim, Trusted};
use super::verify::verify_below;
use super::{MeasurementIndex, NvidiaDigest, NvidiaMode, Reference};
use crate::{
    Binding, CertificateProblem, Claims, Collateral, Platform, UnixTime, VerifyError, support,
};

const AT: UnixTime = UnixTime(1_770_000_000);
const GPU_SERIAL: u64 = 7;
const FIRMWARE: [u8; 48] = [0xf1; 48];

fn binding() -> Binding {
    Binding::from([0x5a; 64])
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()
}

/// A root, which certifies GPUs and signs manifests.
struct Vendor {
    root: CertifiedIssuer<'static, KeyPair>,
}

/// A GPU with a key that its vendor certifies.
struct Gpu {
    certificates: String,
    key: KeyPair,
}

/// What a report says.
#[derive(Clone)]
struct Report {
    nonce: Vec<u8>,
    blocks: Vec<(u8, u8, Vec<u8>)>,
    opaque: Vec<(u16, Vec<u8>)>,
}

impl Vendor {
    fn new() -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            root: CertifiedIssuer::self_signed(authority, key()).unwrap(),
        }
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.root.der()).into()
    }

    /// A GPU whose certificate names a firmware, or none.
    fn gpu(&self, firmware: Option<[u8; 48]>) -> Gpu {
        self.device("GH100 A01 GSP FMC LF", firmware)
    }

    /// The same of any device of the vendor's, by what its certificate calls it.
    fn device(&self, name: &str, firmware: Option<[u8; 48]>) -> Gpu {
        let key = key();
        let mut leaf = CertificateParams::default();
        leaf.serial_number = Some(GPU_SERIAL.into());
        leaf.distinguished_name = DistinguishedName::new();
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.custom_extensions
            .extend(firmware.map(firmware_extension));
        let leaf = leaf.signed_by(&key, &self.root).unwrap();
        Gpu {
            certificates: pem(leaf.der()) + &pem(self.root.der()),
            key,
        }
    }

    fn verify_each(
        &self,
        devices: &[Value],
        collateral: &Collateral,
    ) -> Result<Claims, VerifyError> {
        let body = json!({ "device_evidence_list": devices });
        verify_below(&body, &self.digest(), collateral, AT)?.bound_to(&binding())
    }

    /// A revocation list with this many of its certificates on it, to be replaced then.
    fn list(&self, revoked: &[u64], next: (i32, u8, u8)) -> Vec<u8> {
        let time = |(year, month, day)| rcgen::date_time_ymd(year, month, day);
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: time((2024, 1, 1)),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: time((2024, 1, 1)),
            next_update: time(next),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.root).unwrap().der().to_vec()
    }

    fn verify(&self, device: Value) -> Result<Claims, VerifyError> {
        self.verify_each(&[device], &Collateral::default())
    }
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// Version, a key of nobody's, algorithm and digest.
fn firmware_extension(firmware: [u8; 48]) -> CustomExtension {
    let digest = [&[0x04, 48], &firmware[..]].concat();
    let algorithm = [
        0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02,
    ];
    let named = [&[0x30, 61], &algorithm[..], &digest].concat();
    let whole = [&[0x30, 68], &[0x02, 1, 1][..], &[0x30, 0], &named].concat();
    CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], whole)
}

impl Report {
    fn new() -> Self {
        let opaque = [
            (6, vec![0, 0xa5, 0, 0x96, 1, 0, 0, 0]),
            (3, b"590.12\0".to_vec()),
            (11, vec![0xaa]),
            (20, FIRMWARE.to_vec()),
            (36, vec![1, 0]),
        ];
        Self {
            nonce: Sha256::digest([0x5a; 64]).to_vec(),
            blocks: (1..=4)
                .map(|number| (number, 1, vec![number; 48]))
                .collect(),
            opaque: opaque.to_vec(),
        }
    }

    fn with_field(mut self, number: u16, value: &[u8]) -> Self {
        self.opaque.retain(|(other, _)| *other != number);
        self.opaque.push((number, value.to_vec()));
        self
    }

    /// Request and response, without a signature.
    fn encode(&self) -> Vec<u8> {
        let mut record = Vec::new();
        for (number, specification, value) in &self.blocks {
            let length = value.len() as u16;
            record.extend([*number, *specification]);
            record.extend((length + 3).to_le_bytes());
            record.push(1);
            record.extend(length.to_le_bytes());
            record.extend(value);
        }
        let mut opaque = Vec::new();
        for (number, value) in &self.opaque {
            opaque.extend(number.to_le_bytes());
            opaque.extend((value.len() as u16).to_le_bytes());
            opaque.extend(value);
        }
        let mut message = vec![0x11, 0xe0, 1, 0xff];
        message.extend(&self.nonce);
        message.extend([0, 0x11, 0x60, 0, 0, self.blocks.len() as u8]);
        message.extend(&(record.len() as u32).to_le_bytes()[..3]);
        message.extend(record);
        message.extend([0x77; 32]);
        message.extend((opaque.len() as u16).to_le_bytes());
        message.extend(opaque);
        message
    }
}

impl Gpu {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(message).unwrap();
        p384::ecdsa::Signature::from_der(&signature)
            .unwrap()
            .to_vec()
    }

    fn show(&self, message: &[u8]) -> Value {
        let evidence = [message, &self.sign(message)].concat();
        json!({
            "arch": "HOPPER",
            "evidence": STANDARD.encode(evidence),
            "certificate": STANDARD.encode(&self.certificates),
        })
    }

    fn report(&self, report: &Report) -> Value {
        self.show(&report.encode())
    }
}

fn index(number: u8) -> MeasurementIndex {
    MeasurementIndex::new(number).unwrap()
}

#[test]
fn reports_of_several_gpus_give_their_claims() {
    let vendor = Vendor::new();
    let (one, other) = (vendor.gpu(Some(FIRMWARE)), vendor.gpu(Some(FIRMWARE)));
    let report = Report::new();
    let devices = [one.report(&report), other.report(&report)];
    let claims = vendor
        .verify_each(&devices, &Collateral::default())
        .unwrap();
    let Platform::Nvidia(platform) = claims.platform() else {
        panic!("{claims:?}");
    };
    assert_eq!(platform.devices.len(), 2);
    let device = &platform.devices[0];
    assert_eq!(device.mode, NvidiaMode::MultiplePassThrough);
    assert_eq!(device.vbios_version, "96.00.a5.00.01");
    assert_eq!(device.measurements[&index(3)], NvidiaDigest::from([3; 48]));
}

#[test]
fn each_report_has_to_be_bound_to_the_statement() {
    let vendor = Vendor::new();
    let (one, other) = (vendor.gpu(Some(FIRMWARE)), vendor.gpu(Some(FIRMWARE)));
    let mut elsewhere = Report::new();
    elsewhere.nonce[31] ^= 1;
    assert_eq!(
        vendor.verify(one.report(&elsewhere)),
        Err(VerifyError::BindingMismatch)
    );
    let devices = [one.report(&Report::new()), other.report(&elsewhere)];
    assert_eq!(
        vendor.verify_each(&devices, &Collateral::default()),
        Err(VerifyError::BindingMismatch)
    );
}

#[test]
fn another_root_another_key_and_another_firmware_are_refused() {
    let (vendor, stranger) = (Vendor::new(), Vendor::new());
    let report = Report::new();
    assert_eq!(
        vendor.verify(stranger.gpu(Some(FIRMWARE)).report(&report)),
        Err(VerifyError::Certificate {
            what: "the GPU's key",
            problem: CertificateProblem::UnknownIssuer
        })
    );
    let mut thief = vendor.gpu(Some(FIRMWARE));
    thief.certificates = vendor.gpu(Some(FIRMWARE)).certificates;
    assert_eq!(
        vendor.verify(thief.report(&report)),
        Err(VerifyError::BadSignature {
            of: "the GPU's report",
            by: "the key of its certificate"
        })
    );
    for certified in [Some([0xf2; 48]), None] {
        assert_eq!(
            vendor.verify(vendor.gpu(certified).report(&report)),
            Err(VerifyError::EndorsementMismatch {
                what: "another firmware of the GPU"
            })
        );
    }
}

/// The label beside a report is not signed: the certificate says what answered.
#[test]
fn another_device_of_nvidias_is_not_taken_for_the_gpu_that_its_label_names() {
    let vendor = Vendor::new();
    for name in [
        "GB100 A01 GSP FMC LF",
        "LS10 A01",
        "GH1000 A01",
        "A01 GH100",
        "",
    ] {
        let device = vendor.device(name, Some(FIRMWARE));
        assert_eq!(
            vendor.verify(device.report(&Report::new())),
            Err(VerifyError::EndorsementMismatch {
                what: "another kind of device"
            }),
            "{name}"
        );
    }
}

/// NVIDIA takes certificates back in lists, which the verifier has.
#[test]
fn a_gpu_whose_certificate_was_taken_back_is_refused_and_an_old_list_is_told() {
    let vendor = Vendor::new();
    let device = vendor.gpu(Some(FIRMWARE)).report(&Report::new());
    let verify = |revoked: &[u64], next| {
        let mut collateral = Collateral::default();
        assert!(collateral.add(&vendor.list(revoked, next)));
        vendor.verify_each(std::slice::from_ref(&device), &collateral)
    };
    assert_eq!(
        verify(&[GPU_SERIAL], (2030, 1, 1)),
        Err(VerifyError::Certificate {
            what: "the GPU's key",
            problem: CertificateProblem::Revoked
        })
    );
    let claims = verify(&[GPU_SERIAL + 1], (2025, 1, 1)).unwrap();
    assert_eq!(claims.collateral_until(), Some(UnixTime(1_735_689_600)));
}

#[test]
fn each_malformation_of_a_report_is_told() {
    let vendor = Vendor::new();
    let gpu = vendor.gpu(Some(FIRMWARE));
    let said = |message: &[u8]| vendor.verify(gpu.show(message)).unwrap_err().to_string();
    let malformed = |report: &Report, reason: &str| {
        let reason = format!("the evidence is malformed: the GPU's report: {reason}");
        assert_eq!(said(&report.encode()), reason);
    };
    let report = Report::new();
    let blocks = |blocks: &[(u8, u8, Vec<u8>)]| Report {
        blocks: blocks.to_vec(),
        ..report.clone()
    };
    malformed(&blocks(&[(0, 1, vec![1; 48])]), "measurement 0");
    malformed(&blocks(&[(240, 1, vec![1; 48])]), "measurement 240");
    malformed(&blocks(&[(1, 2, vec![1; 48])]), "measurement 1");
    malformed(&blocks(&[(1, 1, vec![1; 32])]), "measurement 1");
    let twice = blocks(&[(1, 1, vec![1; 48]), (1, 1, vec![2; 48])]);
    malformed(&twice, "measurement 1 twice");
    let field = |number, value: &[u8]| report.clone().with_field(number, value);
    malformed(&field(3, b""), "its driver's version is no text");
    malformed(&field(3, b"a b"), "its driver's version is no text");
    malformed(&field(6, &[1; 7]), "its VBIOS's version has not 8 bytes");
    malformed(
        &field(20, &[1; 32]),
        "its firmware is not named by 48 bytes",
    );
    let mut again = report.clone();
    again.opaque.push((3, b"1".to_vec()));
    malformed(&again, "field 3 twice");
    let mut without = report.clone();
    without.opaque.retain(|(number, _)| *number != 20);
    malformed(&without, "no field 20");

    let message = report.encode();
    let mut more = message.clone();
    more.push(0);
    assert!(said(&more).ends_with("1 bytes more"), "{}", said(&more));
    let mut few = message.clone();
    few[41] -= 1;
    assert!(said(&few).ends_with("55 bytes more"), "{}", said(&few));
    let mut long = message.clone();
    long[43] = 0xff;
    assert!(said(&long).ends_with("it ends early"), "{}", said(&long));
    let mut kind = message.clone();
    kind[38] = 0xe0;
    assert!(
        said(&kind).ends_with("a message of kind 0xe0"),
        "{}",
        said(&kind)
    );
    let mut version = message;
    version[0] = 0x12;
    assert_eq!(
        said(&version),
        "the evidence cannot be verified by this version: SPDM 1.2"
    );
    assert!(said(&vec![0; 16 * 1024]).ends_with("16480 bytes, it has at most 16384"));
}

/// A manifest in NVIDIA's form, signed by a vendor of the test's own.
struct Manifest {
    product: &'static str,
    version: &'static str,
    /// A measurement's number, counted from 0, and its values.
    values: Vec<(u8, Vec<[u8; 48]>)>,
}

const HEAD: &str = "<SoftwareIdentity xmlns=\"http://standards.iso.org/iso/19770/-2/2015/schema.xsd\" \
    xmlns:h=\"http://www.w3.org/2001/04/xmlenc#sha384\" name=\"GH100\">";
const SIGNED_INFO: &str = "<ds:SignedInfo><ds:CanonicalizationMethod \
    Algorithm=\"http://www.w3.org/2006/12/xml-c14n11\"></ds:CanonicalizationMethod><ds:SignatureMethod \
    Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384\"></ds:SignatureMethod><ds:Reference \
    URI=\"\"><ds:Transforms><ds:Transform \
    Algorithm=\"http://www.w3.org/2000/09/xmldsig#enveloped-signature\"></ds:Transform><ds:Transform \
    Algorithm=\"http://www.w3.org/2006/12/xml-c14n11\"></ds:Transform></ds:Transforms><ds:DigestMethod \
    Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#sha384\"></ds:DigestMethod><ds:DigestValue>DIGEST</ds:DigestValue>\
    </ds:Reference></ds:SignedInfo>";

impl Manifest {
    /// The document is written as canonical XML has it, so that what is signed is what is
    /// written.
    fn sign(&self, vendor: &Vendor) -> String {
        let mut content = format!(
            "<Meta colloquialVersion=\"{}\" product=\"{}\"></Meta><Payload>",
            self.version, self.product
        );
        for (number, values) in &self.values {
            write!(
                content,
                "<Resource active=\"True\" alternatives=\"{}\" index=\"{number}\"",
                values.len()
            )
            .unwrap();
            for (alternative, value) in values.iter().enumerate() {
                write!(content, " h:Hash{alternative}=\"{}\"", hex::encode(value)).unwrap();
            }
            content += "></Resource>";
        }
        content += "</Payload>";
        let signer = vendor.gpu(None);
        let ordered = |head: &str| head.replace(" name=\"GH100\"", "");
        let whole = format!("{HEAD}{content}</SoftwareIdentity>");
        let digest = STANDARD.encode(Sha384::digest(&whole));
        let info = SIGNED_INFO.replace("DIGEST", &digest);
        let namespaces = ordered(HEAD);
        let namespaces = namespaces
            .trim_start_matches("<SoftwareIdentity")
            .trim_end_matches('>');
        let (default, rest) = namespaces.split_once(" xmlns:h").unwrap();
        let signed = info.replacen(
            "<ds:SignedInfo",
            &format!("<ds:SignedInfo{default} xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\" xmlns:h{rest}"),
            1,
        );
        let signature = STANDARD.encode(signer.sign(signed.as_bytes()));
        let certificates = signer
            .certificates
            .replace("-----BEGIN CERTIFICATE-----", "<ds:X509Certificate>");
        let certificates =
            certificates.replace("-----END CERTIFICATE-----", "</ds:X509Certificate>");
        format!(
            "{HEAD}{content}<ds:Signature xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\">{info}\
             <ds:SignatureValue>{signature}</ds:SignatureValue><ds:KeyInfo><ds:X509Data>{certificates}\
             </ds:X509Data></ds:KeyInfo></ds:Signature></SoftwareIdentity>"
        )
    }
}

fn compare(text: &str, root: &[u8; 32], found: &[(u8, [u8; 48])]) -> Result<(), VerifyError> {
    let rim = Rim::read(text.as_bytes()).unwrap();
    let value = |number: MeasurementIndex| {
        let found = found.iter().find(|(index, _)| *index == number.0);
        found.map(|(_, value)| NvidiaDigest::from(*value))
    };
    let trusted = Trusted {
        root,
        revocation_lists: &[],
        at: AT,
    };
    rim.compare_below(&trusted, value, Some(index(36)))
        .map(drop)
}

#[test]
fn a_manifest_is_compared_from_one_on_and_with_each_alternative() {
    let vendor = Vendor::new();
    let text = Manifest {
        product: "GH100",
        version: "590.12",
        values: vec![
            (1, vec![[2; 48]]),
            (2, vec![[9; 48], [3; 48]]),
            (35, vec![[1; 48]]),
        ],
    }
    .sign(&vendor);
    let root = vendor.digest();
    compare(&text, &root, &[(2, [2; 48]), (3, [3; 48])]).unwrap();
    compare(&text, &root, &[(2, [2; 48]), (3, [9; 48])]).unwrap();
    for (found, registers) in [
        (&[(2, [2; 48]), (3, [4; 48])][..], "3"),
        (&[(3, [3; 48])], "2"),
        (&[], "2, 3"),
    ] {
        assert_eq!(
            compare(&text, &root, found),
            Err(VerifyError::ReferenceValues {
                version: "GH100 590.12".to_owned(),
                registers: registers.to_owned(),
            })
        );
    }
}

#[test]
fn a_manifest_that_was_changed_or_that_another_signed_is_refused() {
    let vendor = Vendor::new();
    let text = Manifest {
        product: "GH100",
        version: "590.12",
        values: vec![(1, vec![[2; 48]])],
    }
    .sign(&vendor);
    let (root, found) = (vendor.digest(), [(2, [2; 48])]);
    compare(&text, &root, &found).unwrap();
    let refused = |text: &str| compare(text, &root, &found).unwrap_err();
    let bad = VerifyError::BadSignature {
        of: "the reference integrity manifest",
        by: "NVIDIA",
    };
    let other = hex::encode([3; 48]);
    assert_eq!(refused(&text.replace(&hex::encode([2; 48]), &other)), bad);
    assert_eq!(refused(&text.replace("index=\"1\"", "index=\"2\"")), bad);
    assert_eq!(
        refused(&text.replace("active=\"True\"", "active=\"False\"")),
        bad
    );
    assert_eq!(
        refused(&text.replace("</Payload>", "</Payload><More></More>")),
        bad
    );
    // The digest made to fit: the signature is over it.
    let mut fitted = text.replace("index=\"1\"", "index=\"2\"");
    let start = fitted.find("<ds:Signature ").unwrap();
    let end = fitted.find("</ds:Signature>").unwrap() + "</ds:Signature>".len();
    let content = [&fitted[..start], &fitted[end..]].concat();
    let stated = fitted.find("<ds:DigestValue>").unwrap() + "<ds:DigestValue>".len();
    let digest = STANDARD.encode(Sha384::digest(content));
    fitted.replace_range(stated..stated + digest.len(), &digest);
    assert_eq!(refused(&fitted), bad);
    // A second payload, beside the one that is signed.
    let signature = &text[start..end];
    for (changed, reason) in [
        (
            text.replace(signature, &signature.repeat(2)),
            "2 elements Signature",
        ),
        (text.replace(signature, ""), "0 elements Signature"),
    ] {
        let reason = format!("the reference integrity manifest: {reason}");
        assert_eq!(refused(&changed), VerifyError::Malformed { reason });
    }
    for (known, another) in [
        ("xmldsig-more#ecdsa-sha384", "xmldsig-more#hmac-sha384"),
        ("URI=\"\"", "URI=\"#payload\""),
        ("xmldsig#enveloped-signature", "xmldsig#base64"),
    ] {
        assert_eq!(
            refused(&text.replace(known, another)),
            VerifyError::Unsupported {
                what: "a manifest's signature in another form than NVIDIA's".to_owned()
            }
        );
    }
    assert_eq!(
        compare(&text, &Vendor::new().digest(), &found),
        Err(VerifyError::Certificate {
            what: "the manifest's signer",
            problem: CertificateProblem::UnknownIssuer
        })
    );
}

/// A driver has one version for every chip, and measures other things on each.
#[test]
fn a_manifest_is_of_one_chip_and_one_version() {
    let vendor = Vendor::new();
    let device = vendor.gpu(Some(FIRMWARE)).report(&Report::new());
    let verify = |product, version| {
        let values = vec![(1, vec![[2; 48]])];
        let manifest = Manifest {
            product,
            version,
            values,
        };
        let mut collateral = Collateral::default();
        assert!(collateral.add(manifest.sign(&vendor).as_bytes()));
        vendor.verify_each(std::slice::from_ref(&device), &collateral)
    };
    for (product, version) in [
        ("GB100", "590.12"),
        ("GH100", "590.1"),
        ("GH100", "590.120"),
    ] {
        let claims = verify(product, version).unwrap();
        let Platform::Nvidia(platform) = claims.platform() else {
            panic!("{claims:?}");
        };
        assert_eq!(platform.devices[0].driver_reference, Reference::None);
    }
    // One that is used has to be NVIDIA's.
    for (product, version) in [("GH100", "590.12"), ("G520", "96.00.A5.00.01")] {
        assert_eq!(
            verify(product, version),
            Err(VerifyError::Certificate {
                what: "the manifest's signer",
                problem: CertificateProblem::UnknownIssuer
            })
        );
    }
}

#[test]
fn what_is_no_manifest_is_not_read_as_one() {
    for text in [
        "",
        "<a/>",
        "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
        &"<a>".repeat(100_000),
    ] {
        assert_eq!(Rim::read(text.as_bytes()), None);
    }
}

#[test]
fn a_recorded_manifest_holds_and_no_flipped_or_cut_byte_of_it() {
    if support::folder().is_none() {
        return;
    }
    let text = support::file("nvidia/NV_GPU_DRIVER_GH100_550.144.03.xml");
    let compare = |text: &[u8]| {
        let rim = Rim::read(text)?;
        Some(rim.compare(|_| None, None, &[], AT))
    };
    // It was verified, and of a device that measured nothing all of it differs.
    let said = compare(&text).unwrap().unwrap_err();
    assert!(
        matches!(&said, VerifyError::ReferenceValues { version, registers }
            if version == "GH100 550.144.03" && registers.starts_with("8, 22, ")),
        "{said}"
    );
    let mut held = 0;
    for place in (0..text.len()).step_by(37) {
        let mut flipped = text.clone();
        flipped[place] ^= 1;
        if let Some(Err(VerifyError::ReferenceValues { .. })) = compare(&flipped) {
            // White space between attributes or in base64, and the text's own quotes.
            held += 1;
        }
    }
    assert!(held <= 3, "{held}");
    for length in 0..text.trim_ascii_end().len() {
        assert!(compare(&text[..length]).is_none(), "{length} bytes");
    }
}
