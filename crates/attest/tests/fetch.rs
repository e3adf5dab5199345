//! Fetching collateral from services that lie, are silent, or answer something else.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use occlude_attest::fetch::{Answer, FetchError, Fetched, Services, Transport, fetch};
use occlude_attest::{Evidence, RecordedEvidence, TeeKind, UnixTime};
use support::{file, folder};

const AT: UnixTime = UnixTime(1_750_000_000);

/// Answers, by the last part of a path.
struct Answers(BTreeMap<&'static str, Answer>);

impl Transport for Answers {
    fn get(&self, url: &str) -> Result<Answer, String> {
        let found = self.0.iter().find(|(part, _)| url.contains(**part));
        found
            .map(|(_, answer)| answer.clone())
            .ok_or_else(|| "silent".to_owned())
    }
}

fn answer(header: Option<(&str, &str)>, body: impl Into<Vec<u8>>) -> Answer {
    let headers = header.into_iter();
    Answer {
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: body.into(),
    }
}

fn recorded(name: &str, tee: TeeKind) -> Evidence {
    RecordedEvidence::read(&file(name), Some(tee))
        .unwrap()
        .evidence
}

fn services() -> Services {
    let service = |name: &str| format!("https://{name}.example");
    Services {
        amd: service("amd"),
        intel: service("intel"),
        nvidia: service("nvidia"),
    }
}

fn ask(evidence: &Evidence, folder: &Path, answers: &Answers) -> Result<Vec<Fetched>, FetchError> {
    fetch(evidence, folder, &services(), answers, AT, false)
}

/// What is said where one of Intel's answers is another than it should be.
fn of_intel(changed: &'static str, with: Answer) -> String {
    let quote = recorded("sgx/sgx_quote", TeeKind::Sgx);
    let good = |header| answer(Some((header, "-")), r#"{"tcbInfo":{},"signature":"00"}"#);
    let mut answers = BTreeMap::from([
        ("pckcrl", good("sgx-pck-crl-issuer-chain")),
        ("/tcb?", good("tcb-info-issuer-chain")),
        ("qe/identity", good("sgx-enclave-identity-issuer-chain")),
        ("rootcacrl", answer(None, "00")),
    ]);
    answers.insert(changed, with);
    let root = tempfile::tempdir().unwrap();
    let said = ask(&quote, root.path(), &Answers(answers)).unwrap_err();
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    said.to_string()
}

#[test]
fn each_answer_of_intels_that_cannot_be_used_is_named() {
    if folder().is_none() {
        return;
    }
    let base = "https://intel.example/sgx/certification/v4";
    assert_eq!(
        of_intel("pckcrl", answer(None, "")),
        format!(
            "{base}/pckcrl?ca=processor&encoding=der: the answer cannot be used: no header \
             sgx-pck-crl-issuer-chain"
        )
    );
    let header = Some(("tcb-info-issuer-chain", "%ff"));
    let said = of_intel("/tcb?", answer(header, ""));
    assert!(said.contains("invalid utf-8"), "{said}");
    let header = Some(("sgx-enclave-identity-issuer-chain", "-"));
    let said = of_intel("qe/identity", answer(header, "<html>"));
    assert!(
        said.starts_with(&format!("{base}/qe/identity: the answer cannot be used: ")),
        "{said}"
    );
    let said = of_intel("rootcacrl", answer(None, "a list"));
    assert!(
        said.starts_with(&format!("{base}/rootcacrl: the answer cannot be used: ")),
        "{said}"
    );
    // All are well formed, and together they are no collateral.
    assert_eq!(
        of_intel("rootcacrl", answer(None, "01")),
        "intel/sgx-00a067110000.json: the answer cannot be used: it is no collateral"
    );
}

#[test]
fn intels_own_service_has_the_roots_list_elsewhere() {
    if folder().is_none() {
        return;
    }
    let quote = recorded("sgx/sgx_quote", TeeKind::Sgx);
    let good = |header| answer(Some((header, "-")), r#"{"tcbInfo":{},"signature":"00"}"#);
    let answers = Answers(BTreeMap::from([
        ("pckcrl", good("sgx-pck-crl-issuer-chain")),
        ("/tcb?", good("tcb-info-issuer-chain")),
        ("qe/identity", good("sgx-enclave-identity-issuer-chain")),
    ]));
    let root = tempfile::tempdir().unwrap();
    let said = fetch(
        &quote,
        root.path(),
        &Services::default(),
        &answers,
        AT,
        false,
    );
    assert_eq!(
        said.unwrap_err().to_string(),
        "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der: silent"
    );
}

#[test]
fn a_key_that_a_cloud_loaded_is_published_nowhere() {
    if folder().is_none() {
        return;
    }
    let report = recorded("snp/trustee-test-vlek-report.bin", TeeKind::Snp);
    let list = file("sgx/sgx_quote_collateral.json");
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    let list = hex::decode(list["root_ca_crl"].as_str().unwrap()).unwrap();
    let answers = Answers(BTreeMap::from([("/vlek/v1/", answer(None, list))]));
    let root = tempfile::tempdir().unwrap();
    let fetched = ask(&report, root.path(), &answers).unwrap();
    for file in &fetched {
        let name = file
            .path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        assert!(name.ends_with("-vlek.crl"), "{name}");
    }
}

#[test]
fn the_manifests_of_gpus_beside_a_tee_are_fetched_as_well() {
    if folder().is_none() {
        return;
    }
    let gpu = occlude_attest::nvidia::evidence_of_devices(&file("nvidia/hopper_evidence.json"));
    let gpu = gpu.unwrap().body().clone();
    let evidence = recorded("snp/report_milan.hex", TeeKind::Snp)
        .with_additional([(TeeKind::Nvidia, gpu)].into());
    let vcek = answer(None, file("snp/vcek_milan.der"));
    let answers = Answers(BTreeMap::from([("/vcek/v1/", vcek)]));
    let root = tempfile::tempdir().unwrap();
    let said = ask(&evidence, root.path(), &answers).unwrap_err();
    assert_eq!(
        said.to_string(),
        "https://nvidia.example/v1/rim/NV_GPU_DRIVER_GH100_590.12: silent"
    );
    // What was fetched before it stays.
    assert!(root.path().join("amd").is_dir());
}

#[test]
fn evidence_that_needs_nothing_or_what_nobody_publishes_says_so() {
    let root = tempfile::tempdir().unwrap();
    for tee in TeeKind::ALL {
        let evidence = Evidence::new(tee, serde_json::json!({}));
        let said = ask(&evidence, root.path(), &Answers(BTreeMap::new()));
        match tee {
            TeeKind::Snp | TeeKind::Tdx | TeeKind::Sgx | TeeKind::Nvidia => {
                assert!(matches!(said, Err(FetchError::Evidence(_))), "{tee}");
            }
            tee => assert!(
                matches!(said, Err(FetchError::Nothing { tee: named, .. }) if named == tee),
                "{tee}"
            ),
        }
    }
}
