//! NVIDIA's GPUs: a recorded report holds, a recorded manifest is verified, and nothing that
//! was changed in them is believed. The two are of different drivers, so that comparing one
//! with the other is tested on made-up ones, beside the code.

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use occlude_attest::nvidia::{NvidiaDevice, NvidiaMode, Reference, evidence_of_devices};
use occlude_attest::{
    Binding, CertificateProblem, Claims, Collateral, CollateralKind, Evidence, Platform, Policy,
    Protection, RecordedEvidence, Refusal, TeeKind, Trust, UnixTime, Verifier, VerifyError,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use support::{file, folder};

const RECORDED: &str = "nvidia/hopper_evidence.json";
const RIM: &str = "nvidia/NV_GPU_DRIVER_GH100_550.144.03.xml";
const AT: UnixTime = UnixTime(1_770_000_000);

fn recorded() -> Evidence {
    evidence_of_devices(&file(RECORDED)).unwrap()
}

fn claims(evidence: &Evidence) -> Result<Claims, VerifyError> {
    let genuine = Verifier::default().authenticate(evidence, AT)?;
    Ok(genuine.unbound_claims())
}

fn device(claims: &Claims) -> &NvidiaDevice {
    let Platform::Nvidia(platform) = claims.platform() else {
        panic!("{claims:?}");
    };
    &platform.devices[0]
}

/// The recorded evidence with one of its two parts changed.
fn with(part: &str, bytes: &[u8]) -> Evidence {
    let mut body = recorded().body().clone();
    body["device_evidence_list"][0][part] = STANDARD.encode(bytes).into();
    Evidence::new(TeeKind::Nvidia, body)
}

fn part(part: &str) -> Vec<u8> {
    let body = recorded();
    let text = body.body()["device_evidence_list"][0][part].as_str();
    STANDARD.decode(text.unwrap()).unwrap()
}

#[test]
fn a_recorded_report_gives_its_claims() {
    if folder().is_none() {
        return;
    }
    let claims = claims(&recorded()).unwrap();
    assert_eq!(
        (claims.tee(), claims.trust(), claims.protection()),
        (
            TeeKind::Nvidia,
            Trust::Hardware,
            Protection::DeviceMemoryOnly
        )
    );
    // As another reader of SPDM's messages shows them.
    let device = device(&claims);
    assert_eq!(device.driver_version, "590.12");
    assert_eq!(device.vbios_version, "96.00.a5.00.01");
    assert_eq!(device.chip, "GH100");
    assert_eq!(device.mode, NvidiaMode::ProtectedPcie);
    assert!(device.firmware.to_string().starts_with("956ecf09ee4191f1"));
    assert_eq!(device.driver_reference, Reference::None);
    assert_eq!(device.measurements.len(), 28);
    let value = |index: &str| {
        let index = index.to_owned().try_into().unwrap();
        device.measurements.get(&index).map(ToString::to_string)
    };
    assert!(value("2").unwrap().starts_with("f21c16b08086efe5"));
    assert!(value("42").unwrap().starts_with("11baaa3599e7a7b7"));
    assert_eq!(value("1"), None);
}

#[test]
fn a_recorded_report_is_bound_to_its_own_nonce_alone() {
    if folder().is_none() {
        return;
    }
    // No binding of ours hashes to it, and the broker's form is its first 32 bytes.
    let json: Value = serde_json::from_slice(&file(RECORDED)).unwrap();
    let nonce = hex::decode(json[0]["nonce"].as_str().unwrap()).unwrap();
    let mut report_data = [0; 48];
    report_data[..32].copy_from_slice(&nonce);
    let verify = |binding| Verifier::default().verify(&recorded(), &binding, AT);
    verify(Binding::from_report_data_48(&report_data)).unwrap();
    report_data[31] ^= 1;
    for binding in [
        Binding::from_report_data_48(&report_data),
        Binding::from([0; 64]),
        Binding::from([7; 64]),
    ] {
        assert_eq!(verify(binding), Err(VerifyError::BindingMismatch));
    }
}

#[test]
fn recorded_reports_are_read_in_each_form_that_tools_print() {
    if folder().is_none() {
        return;
    }
    let list = String::from_utf8(file(RECORDED)).unwrap();
    let body = recorded();
    for text in [
        list.clone(),
        format!("{{\"evidences\":{list},\"result_code\":0}}"),
        body.body().to_string(),
    ] {
        let read = RecordedEvidence::read(text.as_bytes(), Some(TeeKind::Nvidia)).unwrap();
        assert!(read.evidence == body);
    }
    let none = RecordedEvidence::read(b"report", Some(TeeKind::Nvidia));
    assert_eq!(
        none.unwrap_err().to_string(),
        "the evidence is malformed: the devices: expected value at line 1 column 1"
    );
}

#[test]
fn a_report_with_a_byte_flipped_or_cut_is_refused() {
    if folder().is_none() {
        return;
    }
    let report = part("evidence");
    for place in (0..report.len()).step_by(5) {
        let mut flipped = report.clone();
        flipped[place] ^= 1;
        assert!(claims(&with("evidence", &flipped)).is_err(), "byte {place}");
    }
    for length in 0..report.len() {
        let cut = with("evidence", &report[..length]);
        assert!(claims(&cut).is_err(), "{length} bytes");
    }
    let longer = [&report[..], &[0]].concat();
    assert!(claims(&with("evidence", &longer)).is_err());
}

/// The text around the certificates, and white space within them, is not theirs: a change
/// there is allowed if the certificates are the same.
#[test]
fn certificates_with_a_byte_flipped_or_cut_are_refused() {
    if folder().is_none() {
        return;
    }
    let pem = part("certificate");
    let certificates = |pem: &[u8]| {
        CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .ok()
    };
    let genuine = certificates(&pem);
    let mut accepted = 0;
    for place in (0..pem.len()).step_by(7) {
        let mut flipped = pem.clone();
        flipped[place] ^= 1;
        if claims(&with("certificate", &flipped)).is_ok() {
            assert_eq!(certificates(&flipped), genuine, "byte {place}");
            accepted += 1;
        }
    }
    assert!(accepted < pem.len() / 7 / 10, "{accepted} of {}", pem.len());
    let text = pem.trim_ascii_end().len();
    for length in 0..text {
        let cut = with("certificate", &pem[..length]);
        assert!(claims(&cut).is_err(), "{length} bytes");
    }
}

#[test]
fn each_certificate_is_needed_and_only_nvidias_root_will_do() {
    if folder().is_none() {
        return;
    }
    let pem = String::from_utf8(part("certificate")).unwrap();
    let end = "-----END CERTIFICATE-----\n";
    let certificates: Vec<&str> = pem.split_inclusive(end).collect();
    assert_eq!(certificates.len(), 5);
    let problem = |chain: String| claims(&with("certificate", chain.as_bytes())).unwrap_err();
    for missing in 1..5 {
        let mut chain = certificates.clone();
        chain.remove(missing);
        assert_eq!(
            problem(chain.concat()),
            VerifyError::Certificate {
                what: "the GPU's key",
                problem: CertificateProblem::UnknownIssuer
            },
            "{missing}"
        );
    }
    // A genuine key of NVIDIA's, and not one that signs reports.
    assert_eq!(
        problem(certificates[1..].concat()),
        VerifyError::Certificate {
            what: "the GPU's key",
            problem: CertificateProblem::Unacceptable {
                reason: "CaUsedAsEndEntity".to_owned()
            }
        }
    );
    assert_eq!(
        problem(String::new()),
        VerifyError::Certificate {
            what: "the GPU's key",
            problem: CertificateProblem::Unacceptable {
                reason: "TrailingData(SignedData)".to_owned()
            }
        }
    );
    let many = certificates[0].repeat(9);
    assert_eq!(
        problem(many).to_string(),
        "the evidence is malformed: 9 certificates of a device"
    );
}

#[test]
fn other_chips_the_same_device_twice_and_no_device_are_refused() {
    if folder().is_none() {
        return;
    }
    let list = |devices: Vec<Value>| {
        let body = serde_json::json!({ "device_evidence_list": devices });
        claims(&Evidence::new(TeeKind::Nvidia, body))
            .unwrap_err()
            .to_string()
    };
    let device = recorded().body()["device_evidence_list"][0].clone();
    assert_eq!(
        list(vec![device.clone(); 2]),
        "the evidence is malformed: the same device twice"
    );
    assert_eq!(
        list(Vec::new()),
        "the evidence is malformed: 0 devices, there are 1 to 12"
    );
    assert_eq!(
        list(vec![device.clone(); 13]),
        "the evidence is malformed: 13 devices, there are 1 to 12"
    );
    let mut other = device;
    other["arch"] = "BLACKWELL".into();
    assert_eq!(
        list(vec![other]),
        "the evidence cannot be verified by this version: a device of NVIDIA's \"BLACKWELL\": \
         HOPPER is known"
    );
}

#[test]
fn a_gpu_alone_satisfies_no_policy_that_does_not_say_so() {
    if folder().is_none() {
        return;
    }
    let claims = claims(&recorded()).unwrap();
    let judge = |text: &str| {
        let policy = Policy::parse(&format!("format = 1\n[evidence]\n{text}")).unwrap();
        policy
            .judge_claims(&claims)
            .map_err(|refusal| refusal.to_string())
    };
    assert!(
        judge("")
            .unwrap_err()
            .starts_with("the evidence is of nvidia, the policy accepts")
    );
    assert_eq!(
        judge("tee = [\"nvidia\"]\n").unwrap_err(),
        "the TEE gives device-memory-only, the policy accepts confidential-memory"
    );
    let alone = "tee = [\"nvidia\"]\nprotection = [\"device-memory-only\"]\n";
    assert_eq!(
        judge(alone).unwrap_err(),
        "the evidence has no manifest of its driver in the collateral for \
         nvidia.require-reference, the policy accepts measurements that were compared with \
         NVIDIA's"
    );
    let pinned = format!(
        "{alone}[evidence.nvidia]\nrequire-reference = false\nmeasurements.2 = [\"{}\"]\n",
        device(&claims).measurements.values().next().unwrap()
    );
    judge(&pinned).unwrap();
    let unpinned = format!("{alone}[evidence.nvidia]\nrequire-reference = false\n");
    assert_eq!(
        judge(&unpinned).unwrap_err(),
        Refusal::Measurement {
            found: claims.measurement().clone()
        }
        .to_string()
    );
}

/// A manifest of the driver that a report speaks of, as NVIDIA signed it for another one.
fn manifest_of_this_driver() -> String {
    let text = String::from_utf8(file(RIM)).unwrap();
    assert_eq!(text.matches("colloquialVersion=\"550.144.03\"").count(), 1);
    text.replace(
        "colloquialVersion=\"550.144.03\"",
        "colloquialVersion=\"590.12\"",
    )
}

#[test]
fn a_recorded_manifest_is_known_by_what_it_holds() {
    if folder().is_none() {
        return;
    }
    let mut collateral = Collateral::default();
    assert!(collateral.add(&file(RIM)));
    let items = collateral.items();
    assert_eq!((items.len(), items[0].kind), (1, CollateralKind::Rim));
    assert_eq!(items[0].of, "GH100 550.144.03");
    // It is of another driver than the report, and so of no use for it.
    let genuine = Verifier::new(collateral)
        .authenticate(&recorded(), AT)
        .unwrap();
    let claims = genuine.unbound_claims();
    assert_eq!(device(&claims).driver_reference, Reference::None);
}

#[test]
fn a_manifest_that_was_made_one_of_another_driver_is_refused() {
    if folder().is_none() {
        return;
    }
    let mut collateral = Collateral::default();
    assert!(collateral.add(manifest_of_this_driver().as_bytes()));
    let refused = Verifier::new(collateral).authenticate(&recorded(), AT);
    assert_eq!(
        refused.unwrap_err(),
        VerifyError::BadSignature {
            of: "the reference integrity manifest",
            by: "NVIDIA"
        }
    );
}
