//! Verifying a report: the certificate's chain to AMD's root, then that the
//! certificate is of this chip and these firmware versions, then the signature.
//!
//! Certificates may come with the evidence or from the verifier's collateral; who
//! sent them does not matter, since only what chains to a pinned root counts. AMD's
//! intermediate for chips (ASK) is part of this program, that for clouds (ASVK) is
//! not: it has to travel.

use std::sync::LazyLock;

use p384::ecdsa::signature::Verifier as _;
use p384::ecdsa::{Signature, VerifyingKey};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde_json::Value;
use sev::certs::snp::builtin;
use sev::firmware::host::{CertTableEntry, CertType, TcbVersion};
use x509_cert::der::Decode;
use x509_cert::der::asn1::{ObjectIdentifier, OctetString, UintRef};

use super::report::{Body, Report};
use super::{SnpEndorsement, SnpPlatform, SnpProduct, SnpTcb};
use crate::binding::BindingForm;
use crate::certificate::{self, Chain};
use crate::verifier::Part;
use crate::{
    Claims, Collateral, ConfigurationDigest, Platform, Protection, TeeKind, Trust, UnixTime,
    VerifyError, canonical,
};

/// What errors call the signing key.
const KEY: &str = "the key that signs the report";

/// A certificate's object identifiers below AMD's `1.3.6.1.4.1.3704.1` (AMD 57230,
/// section 3.2).
const HARDWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
const BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");

/// AMD's roots and intermediates, in the order of [`SnpProduct::ALL`].
struct Pinned {
    roots: Vec<TrustAnchor<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
}

static PINNED: LazyLock<Pinned> = LazyLock::new(|| {
    let der = |certificate: std::io::Result<sev::certs::snp::Certificate>| {
        let der = certificate.and_then(|certificate| certificate.to_der());
        CertificateDer::from(der.expect("the sev crate's certificates are certificates"))
    };
    Pinned {
        roots: [
            builtin::milan::ark(),
            builtin::genoa::ark(),
            builtin::turin::ark(),
        ]
        .map(|root| certificate::pinned_root(&der(root)))
        .into(),
        intermediates: [
            builtin::milan::ask(),
            builtin::genoa::ask(),
            builtin::turin::ask(),
        ]
        .map(der)
        .into(),
    }
});

pub(crate) fn verify(
    body: &Value,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let body: Body = canonical::understood(body)?;
    let report = Report::from_fields(&body.attestation_report)?;
    let table = body.cert_chain.as_deref().unwrap_or_default();
    verify_report(&report, table, collateral, at)
}

/// Verifies a report's bytes, with the certificate of the chip's key if it came along.
pub(crate) fn verify_bytes(
    report: &[u8],
    vcek: Option<Vec<u8>>,
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let report = Report::parse(report)?;
    let vcek = vcek.map(|der| CertTableEntry::new(CertType::VCEK, der));
    verify_report(&report, vcek.as_slice(), collateral, at)
}

fn verify_report(
    report: &Report,
    table: &[CertTableEntry],
    collateral: &Collateral,
    at: UnixTime,
) -> Result<Part, VerifyError> {
    let (platform, key, collateral_until) = endorse(report, table, collateral, at)?;
    let signature = Signature::from_slice(&report.signature()).map_err(|_| BAD_SIGNATURE)?;
    key.verify(report.signed(), &signature)
        .map_err(|_| BAD_SIGNATURE)?;
    let fields = &report.fields;
    Ok(Part {
        carried: fields.report_data.to_vec(),
        form: BindingForm::Whole,
        claims: Claims {
            tee: TeeKind::Snp,
            trust: Trust::Hardware,
            protection: Protection::ConfidentialMemory,
            measurement: fields.measurement.into(),
            configuration: ConfigurationDigest::of_launch(platform.host_data.as_bytes()),
            debug: fields.policy.debug_allowed(),
            platform: Platform::Snp(Box::new(platform)),
            verified_at: at,
            collateral_until,
            additional: Vec::new(),
        },
    })
}

const BAD_SIGNATURE: VerifyError = VerifyError::BadSignature {
    of: "the report",
    by: "the key of its certificate",
};

/// Finds the certificate that stands for the report's signing key and checks that it
/// does; what the report says of its platform is told along.
fn endorse(
    report: &Report,
    table: &[CertTableEntry],
    collateral: &Collateral,
    at: UnixTime,
) -> Result<(SnpPlatform, VerifyingKey, Option<UnixTime>), VerifyError> {
    let fields = &report.fields;
    let endorsement = match (
        fields.key_info.mask_chip_key(),
        fields.key_info.signing_key(),
    ) {
        (false, 0) => SnpEndorsement::Vcek,
        (false, 1) => SnpEndorsement::Vlek,
        _ => {
            return Err(VerifyError::BadSignature {
                of: "the report",
                by: "any key: the host had signing turned off",
            });
        }
    };
    let mut intermediates = PINNED.intermediates.clone();
    let mut candidates = Vec::new();
    for entry in table {
        let list = match &entry.cert_type {
            CertType::ASK => &mut intermediates,
            CertType::VCEK if endorsement == SnpEndorsement::Vcek => &mut candidates,
            CertType::VLEK if endorsement == SnpEndorsement::Vlek => &mut candidates,
            // The root is pinned, and whoever sends another one changes nothing.
            CertType::ARK | CertType::VCEK | CertType::VLEK => continue,
            other => {
                return Err(VerifyError::Malformed {
                    reason: format!("a certificate of type {other} does not belong to a report"),
                });
            }
        };
        list.extend(certificate::from_pem_or_der(KEY, &entry.data)?);
    }
    // The verifier's own are asked only if the evidence brings none.
    if candidates.is_empty() {
        candidates.extend(
            collateral
                .certificates()
                .filter(|der| Endorsement::read(der).is_ok_and(|key| key.check(report).is_ok()))
                .cloned(),
        );
    }
    intermediates.extend(collateral.certificates().cloned());
    let leaf = candidates
        .first()
        .ok_or_else(|| VerifyError::CollateralMissing {
            what: missing(report, endorsement),
        })?;
    let verified = Chain {
        what: KEY,
        leaf,
        intermediates: &intermediates,
        roots: &PINNED.roots,
        revocation_lists: collateral.revocation_lists(),
    }
    .verify(at)?;
    let product = SnpProduct::ALL[verified.root];
    check_product(report, product)?;
    let key = Endorsement::read(leaf)?;
    key.check(report)?;
    let verifying_key =
        VerifyingKey::from_sec1_bytes(&key.public_key).map_err(|_| BAD_SIGNATURE)?;
    let platform = SnpPlatform {
        product,
        tcb: tcb_of(&fields.reported_tcb),
        endorsement,
        chip_id: (endorsement == SnpEndorsement::Vcek).then(|| fields.chip_id.into()),
        vmpl: fields.vmpl,
        guest_svn: fields.guest_svn,
        family_id: fields.family_id.into(),
        image_id: fields.image_id.into(),
        host_data: fields.host_data.into(),
        id_key_digest: fields.id_key_digest.into(),
        author_key_digest: fields.author_key_digest.into(),
        migration: fields.policy.migrate_ma_allowed(),
        smt: fields.policy.smt_allowed(),
        ciphertext_hiding: fields.plat_info.ciphertext_hiding_enabled(),
        alias_check: fields.plat_info.alias_check_complete(),
        report_version: fields.version,
    };
    Ok((platform, verifying_key, verified.lists_until))
}

fn missing(report: &Report, endorsement: SnpEndorsement) -> String {
    let fields = &report.fields;
    let tcb = tcb_of(&fields.reported_tcb);
    match endorsement {
        SnpEndorsement::Vcek => format!(
            "the VCEK certificate of chip {} for {tcb}",
            hex::encode(fields.chip_id)
        ),
        SnpEndorsement::Vlek => format!("the VLEK certificate for {tcb}"),
    }
}

/// The processor that the report names must be of the line whose root was used:
/// firmware versions mean something else on another.
pub(super) fn check_product(report: &Report, product: SnpProduct) -> Result<(), VerifyError> {
    let fields = &report.fields;
    let named = match (fields.cpuid_fam_id, fields.cpuid_mod_id) {
        (Some(family), Some(model)) => match sev::Generation::identify_cpu(family, model) {
            Ok(sev::Generation::Milan) => Some(SnpProduct::Milan),
            Ok(sev::Generation::Genoa) => Some(SnpProduct::Genoa),
            Ok(sev::Generation::Turin) => Some(SnpProduct::Turin),
            _ => None,
        },
        // Version 2 has no such fields; Turin's numbers were read differently.
        _ => {
            (fields.reported_tcb.fmc.is_some() == (product == SnpProduct::Turin)).then_some(product)
        }
    };
    if named != Some(product) {
        return Err(VerifyError::EndorsementMismatch {
            what: "another line of processors",
        });
    }
    Ok(())
}

/// What a certificate of a signing key says.
struct Endorsement {
    tcb: SnpTcb,
    /// Of a chip's key only.
    hardware_id: Option<Vec<u8>>,
    public_key: Vec<u8>,
}

impl Endorsement {
    fn read(der: &CertificateDer<'_>) -> Result<Self, VerifyError> {
        let parsed = certificate::parse(KEY, der)?;
        let tbs = parsed.tbs_certificate();
        let extension = |id: ObjectIdentifier| {
            let mut found = tbs
                .extensions()
                .into_iter()
                .flatten()
                .filter(|extension| extension.extn_id == id);
            // Twice the same would leave open which one holds.
            found.next().filter(|_| found.next().is_none())
        };
        let version = |id: ObjectIdentifier| {
            let value = extension(id)?.extn_value.as_bytes();
            match UintRef::from_der(value).ok()?.as_bytes() {
                [byte] => Some(*byte),
                _ => None,
            }
        };
        let tcb = || {
            Some(SnpTcb {
                fmc: version(FMC),
                bootloader: version(BOOTLOADER)?,
                tee: version(TEE)?,
                snp: version(SNP)?,
                microcode: version(MICROCODE)?,
            })
        };
        let key = tbs.subject_public_key_info();
        Ok(Self {
            tcb: tcb().ok_or(VerifyError::EndorsementMismatch {
                what: "no firmware versions",
            })?,
            hardware_id: extension(HARDWARE_ID).map(|extension| {
                // Old ones hold the identifier as it is, new ones as an octet string.
                let value = extension.extn_value.as_bytes();
                match OctetString::from_der(value) {
                    Ok(inner) if value.len() != 64 => inner.as_bytes().to_vec(),
                    _ => value.to_vec(),
                }
            }),
            public_key: key.subject_public_key.raw_bytes().to_vec(),
        })
    }

    /// Whether it stands for the report's key, by chip and firmware versions.
    fn check(&self, report: &Report) -> Result<(), VerifyError> {
        let fields = &report.fields;
        let mismatch = |what| Err(VerifyError::EndorsementMismatch { what });
        match (&self.hardware_id, fields.key_info.signing_key()) {
            (Some(id), 0) if is_chip(&fields.chip_id, id) => {}
            (Some(_), 0) => return mismatch("another chip"),
            (None, 1) => {}
            _ => return mismatch("another kind of key"),
        }
        if self.tcb != tcb_of(&fields.reported_tcb) {
            return mismatch("other firmware versions");
        }
        Ok(())
    }
}

/// Whether a certificate's hardware identifier is the report's chip: 64 bytes, or
/// Turin's 8, which a report follows with zeros.
fn is_chip(reported: &[u8; 64], certified: &[u8]) -> bool {
    matches!(certified.len(), 8 | 64)
        && reported.starts_with(certified)
        && reported[certified.len()..].iter().all(|byte| *byte == 0)
}

pub(super) fn tcb_of(version: &TcbVersion) -> SnpTcb {
    SnpTcb {
        fmc: version.fmc,
        bootloader: version.bootloader,
        tee: version.tee,
        snp: version.snp,
        microcode: version.microcode,
    }
}
