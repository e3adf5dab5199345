//! A platform of the test's own: certificates, collateral and signatures under a root that
//! is not Intel's, for the reports of recorded quotes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::quote::{AuthData, EnclaveReport, Quote, Report, TDReport10};
use p256::ecdsa::Signature;
use parity_scale_codec::{Decode, Encode};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CustomExtension, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SerialNumber, SigningKey, date_time_ymd,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_cert::der::Decode as _;

use super::verify::{parse, pck_chain};
use crate::UnixTime;

/// In the middle of every validity.
pub(crate) const AT: UnixTime = UnixTime(1_750_000_000);

type Issuer = CertifiedIssuer<'static, KeyPair>;

pub(crate) struct Platform {
    /// SHA-256 of its root.
    pub(crate) root: [u8; 32],
    pub(crate) collateral: QuoteCollateralV3,
    pck: String,
    pck_key: KeyPair,
    attestation_key: KeyPair,
}

impl Platform {
    /// A platform that says of itself what the recorded one does, whose collateral finds
    /// nothing missing in it.
    pub(crate) fn like(recorded: &[u8]) -> Self {
        let (_, quote) = parse(recorded).unwrap();
        let root = CertifiedIssuer::self_signed(parameters("root", true), key()).unwrap();
        let below = |name, authority| {
            CertifiedIssuer::signed_by(parameters(name, authority), key(), &root).unwrap()
        };
        let (authority, signer) = (below("platform", true), below("signer", false));
        let leaf = pck_chain(&quote).unwrap().remove(0);
        let pck_key = key();
        let mut pck = parameters("PCK", false);
        pck.custom_extensions = vec![sgx_extension(&leaf)];
        let pck = pck.signed_by(&pck_key, &authority).unwrap();
        let pck = pem(&[pck.der(), authority.der(), root.der()]);
        let tcb_info = tcb_info(&quote, &leaf).to_string();
        let qe_identity = qe_identity(&quote).to_string();
        let collateral = QuoteCollateralV3 {
            pck_crl_issuer_chain: pem(&[authority.der(), root.der()]),
            root_ca_crl: revoking_nothing(&root),
            pck_crl: revoking_nothing(&authority),
            tcb_info_issuer_chain: pem(&[signer.der(), root.der()]),
            tcb_info_signature: sign(signer.key(), tcb_info.as_bytes()),
            tcb_info,
            qe_identity_issuer_chain: pem(&[signer.der(), root.der()]),
            qe_identity_signature: sign(signer.key(), qe_identity.as_bytes()),
            qe_identity,
            pck_certificate_chain: None,
        };
        Self {
            root: Sha256::digest(root.der()).into(),
            collateral,
            pck,
            pck_key,
            attestation_key: key(),
        }
    }

    /// The recorded quote with a changed report, signed by this platform.
    pub(crate) fn quote(&self, recorded: &[u8], change: impl FnOnce(&mut TDReport10)) -> Vec<u8> {
        let (_, mut quote) = parse(recorded).unwrap();
        let report = match &mut quote.report {
            Report::TD10(report) => report,
            Report::TD15(report) => &mut report.base,
            Report::TD15Ex(report) => &mut report.base.base,
            Report::SgxEnclave(_) => panic!("no guest"),
        };
        change(report);
        let signed_length = quote.signed_length();
        let signed = quote.encode()[..signed_length].to_vec();
        let AuthData::V4(data) = &mut quote.auth_data else {
            panic!("a quote of a guest");
        };
        let public = self.attestation_key.public_key_raw();
        data.ecdsa_attestation_key = public[1..].try_into().unwrap();
        data.ecdsa_signature = sign(&self.attestation_key, &signed).try_into().unwrap();
        let enclave = &mut data.qe_report_data;
        let vouched = [&public[1..], &enclave.qe_auth_data.data].concat();
        // The report data are its last 64 bytes.
        enclave.qe_report[320..352].copy_from_slice(&Sha256::digest(vouched));
        let signature = sign(&self.pck_key, &enclave.qe_report);
        enclave.qe_report_signature = signature.try_into().unwrap();
        enclave.certification_data.body.data = self.pck.clone().into_bytes();
        quote.encode()
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn parameters(name: &str, authority: bool) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let names = &mut parameters.distinguished_name;
    names.push(rcgen::DnType::CommonName, name);
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(2030, 1, 1);
    if authority {
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    parameters
}

/// What the processor's certificate says of the platform.
fn sgx_extension(leaf: &[u8]) -> CustomExtension {
    const SGX: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];
    let certificate = x509_cert::Certificate::from_der(leaf).unwrap();
    let extensions = certificate.tbs_certificate().extensions().unwrap();
    let oid = SGX.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
    let found = extensions.iter().find(|one| one.extn_id.to_string() == oid);
    CustomExtension::from_oid_content(&SGX, found.unwrap().extn_value.as_bytes().to_vec())
}

fn tcb_info(quote: &Quote, leaf: &[u8]) -> Value {
    let fmspc = dcap_qvl::intel::parse_pck_extension(leaf).unwrap().fmspc;
    let guest = quote.report.as_td10().unwrap();
    let module = json!({
        "mrsigner": hex::encode(guest.mr_signer_seam),
        "attributes": "0000000000000000",
        "attributesMask": "FFFFFFFFFFFFFFFF",
    });
    let mut identity = module.clone();
    identity["id"] = format!("TDX_{:02X}", guest.tee_tcb_svn[1]).into();
    identity["tcbLevels"] = json!([level(&json!({"isvsvn": guest.tee_tcb_svn[0]}))]);
    let components = vec![json!({"svn": 0}); 16];
    json!({
        "id": "TDX",
        "version": 3,
        "issueDate": "2025-06-01T00:00:00Z",
        "nextUpdate": "2025-07-01T00:00:00Z",
        "fmspc": hex::encode_upper(fmspc),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 17,
        "tdxModule": module,
        "tdxModuleIdentities": [identity],
        "tcbLevels": [level(&json!({
            "sgxtcbcomponents": components, "tdxtcbcomponents": components, "pcesvn": 0
        }))],
    })
}

fn qe_identity(quote: &Quote) -> Value {
    let report = EnclaveReport::decode(&mut &quote.qe_report()[..]).unwrap();
    json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": "2025-06-01T00:00:00Z",
        "nextUpdate": "2025-07-01T00:00:00Z",
        "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": hex::encode(report.attributes),
        "attributesMask": "FF".repeat(16),
        "mrsigner": hex::encode(report.mr_signer),
        "isvprodid": report.isv_prod_id,
        "tcbLevels": [level(&json!({"isvsvn": report.isv_svn}))],
    })
}

fn level(tcb: &Value) -> Value {
    json!({"tcb": tcb, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": "UpToDate"})
}

fn revoking_nothing(issuer: &Issuer) -> Vec<u8> {
    let parameters = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 6, 1),
        next_update: date_time_ymd(2025, 7, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    parameters.signed_by(issuer).unwrap().der().to_vec()
}

/// As Intel writes signatures: two numbers of 32 bytes.
fn sign(key: &KeyPair, bytes: &[u8]) -> Vec<u8> {
    let signature = key.sign(bytes).unwrap();
    Signature::from_der(&signature).unwrap().to_bytes().to_vec()
}

fn pem(chain: &[&[u8]]) -> String {
    let one = |der: &&[u8]| {
        let text = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    chain.iter().map(one).collect()
}
