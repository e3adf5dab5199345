//! Collateral is fetched from services that answer what vendors once answered, on loopback.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::recorded::recorded_evidence::{file, folder};
use crate::support::deployment::text;
use crate::support::process::{Said, run};

/// When the recorded quote's collateral held.
const AT: &str = "2025-06-20T00:00:00Z";

/// A header and a body.
type Recorded = (String, Vec<u8>);

/// A service with an answer for each path, and what it was asked for.
struct Vendor {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Vendor {
    fn start(answers: BTreeMap<String, Recorded>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut request = BufReader::new(stream.try_clone().expect("a stream")).lines();
                let first = request.next().expect("a line").expect("text");
                let path = first.split(' ').nth(1).expect("a path").to_owned();
                // The rest of the head.
                request
                    .by_ref()
                    .find(|line| line.as_ref().is_ok_and(String::is_empty));
                let (status, header, body) = match answers.get(&path) {
                    Some((header, body)) => ("200 OK", header.as_str(), &body[..]),
                    None => ("404 Not Found", "", &b""[..]),
                };
                log.lock().expect("a log").push(path);
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{header}\r\n",
                    body.len()
                );
                // Who asked may have gone.
                let _ = stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.write_all(body));
            }
        });
        Self { url, asked }
    }

    /// What it was asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().expect("a log"))
    }
}

/// Fetches for recorded evidence of a kind.
fn fetch(vendor: &Vendor, cache: &Path, evidence: &str, tee: &str, more: &[&str]) -> Said {
    let evidence = folder().expect("asked for before").join(evidence);
    let fixed = [
        "attest",
        "collateral",
        "fetch",
        "--cache",
        text(cache),
        "--evidence",
        text(&evidence),
        "--tee",
        tee,
        "--amd-url",
        &vendor.url,
        "--intel-url",
        &vendor.url,
        "--nvidia-url",
        &vendor.url,
    ];
    run(fixed.iter().chain(more))
}

/// Verifies it with what was fetched: nobody bound it to anything of ours.
fn verify(cache: &Path, evidence: &str, tee: &str) -> Said {
    let evidence = folder().expect("asked for before").join(evidence);
    std::fs::create_dir_all(cache).expect("a folder");
    let policy = cache.with_file_name("policy.toml");
    std::fs::write(&policy, "format = 1\nreviewed = true\n").expect("written");
    run([
        "attest",
        "verify",
        "--evidence",
        text(&evidence),
        "--tee",
        tee,
        "--collateral",
        text(cache),
        "--policy",
        text(&policy),
        "--at",
        AT,
    ])
}

fn intel() -> Value {
    serde_json::from_slice(&file("sgx/sgx_quote_collateral.json")).expect("JSON")
}

fn hexadecimal(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("text")).expect("digits")
}

#[test]
fn the_certificate_of_a_chip_is_fetched_once_and_its_list_when_it_is_over() {
    if folder().is_none() {
        return;
    }
    let (report, recorded) = ("snp/report_milan.hex", file("snp/report_milan.hex"));
    let report_bytes = hex::decode(recorded.trim_ascii()).expect("digits");
    let chip = hex::encode(&report_bytes[0x1a0..0x1e0]);
    let tcb = &report_bytes[0x180..0x188];
    let key = format!(
        "/vcek/v1/Milan/{chip}?blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        tcb[0], tcb[1], tcb[6], tcb[7]
    );
    // A list of AMD's own was never recorded; this one is of another issuer, and old.
    let list = hexadecimal(&intel()["root_ca_crl"]);
    let vendor = Vendor::start(BTreeMap::from([
        (key.clone(), (String::new(), file("snp/vcek_milan.der"))),
        (
            "/vcek/v1/Milan/crl".to_owned(),
            (String::new(), list.clone()),
        ),
        ("/vcek/v1/Genoa/crl".to_owned(), (String::new(), list)),
    ]));
    let root = tempfile::tempdir().expect("a folder");
    let cache = root.path().join("cache");
    verify(&cache, report, "snp").fails_with(3, &format!("the VCEK certificate of chip {chip}"));

    let said = fetch(&vendor, &cache, report, "snp", &[]).success();
    assert_eq!(said.matches("fetched").count(), 3, "{said}");
    // A report of version 2 does not say of which of two lines its chip is.
    let lists = ["/vcek/v1/Milan/crl", "/vcek/v1/Genoa/crl"];
    assert_eq!(vendor.asked(), [&key[..], lists[0], lists[1]]);
    let shown = verify(&cache, report, "snp");
    assert!(shown.err.contains("binding not checked"), "{}", shown.err);
    assert!(shown.out.contains("milan"), "{}", shown.out);

    let said = fetch(&vendor, &cache, report, "snp", &[]).success();
    assert_eq!(said.matches("kept").count(), 1, "{said}");
    assert_eq!(vendor.asked(), lists);
    fetch(&vendor, &cache, report, "snp", &["--again"]).success();
    assert_eq!(vendor.asked().len(), 3);
}

#[test]
fn intels_collateral_is_put_together_from_a_caches_answers() {
    if folder().is_none() {
        return;
    }
    let recorded = intel();
    let signed = |content: &str, name: &str| {
        // As it was signed, to the byte.
        let text = recorded[content].as_str().expect("text");
        let signature = &recorded[format!("{content}_signature")];
        format!("{{\"{name}\":{text},\"signature\":{signature}}}").into_bytes()
    };
    let chain = |header: &str, field: &str| {
        let pem = recorded[field].as_str().expect("text");
        let escaped = pem
            .replace('%', "%25")
            .replace('\n', "%0A")
            .replace(' ', "%20");
        format!("{header}: {escaped}\r\n")
    };
    let list = hexadecimal(&recorded["root_ca_crl"]);
    let answers: BTreeMap<String, Recorded> = [
        (
            "/sgx/certification/v4/pckcrl?ca=AUTHORITY&encoding=der",
            chain("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain"),
            hexadecimal(&recorded["pck_crl"]),
        ),
        (
            "/sgx/certification/v4/tcb?fmspc=FMSPC",
            chain("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain"),
            signed("tcb_info", "tcbInfo"),
        ),
        (
            "/sgx/certification/v4/qe/identity",
            chain(
                "SGX-Enclave-Identity-Issuer-Chain",
                "qe_identity_issuer_chain",
            ),
            signed("qe_identity", "enclaveIdentity"),
        ),
        (
            "/sgx/certification/v4/rootcacrl",
            String::new(),
            hex::encode(list).into_bytes(),
        ),
    ]
    .into_iter()
    .map(|(path, header, body)| {
        let information: Value =
            serde_json::from_str(recorded["tcb_info"].as_str().expect("text")).expect("JSON");
        let fmspc = information["fmspc"].as_str().expect("text").to_lowercase();
        let path = path
            .replace("FMSPC", &fmspc)
            .replace("AUTHORITY", "processor");
        (path, (header, body))
    })
    .collect();
    let vendor = Vendor::start(answers);
    let root = tempfile::tempdir().expect("a folder");
    let cache = root.path().join("cache");
    let quote = "sgx/sgx_quote";
    verify(&cache, quote, "sgx").fails_with(3, "Intel's collateral for SGX");
    let json = fetch(&vendor, &cache, quote, "sgx", &["--json"]).success();
    let fetched: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(fetched[0]["new"], true);
    assert_eq!(vendor.asked().len(), 4);
    let shown = verify(&cache, quote, "sgx");
    assert!(shown.err.contains("binding not checked"), "{}", shown.err);
}

#[test]
fn what_a_service_has_not_and_what_is_no_collateral_leaves_nothing_behind() {
    if folder().is_none() {
        return;
    }
    let devices = "nvidia/hopper_evidence.json";
    let driver = "/v1/rim/NV_GPU_DRIVER_GH100_590.12".to_owned();
    let root = tempfile::tempdir().expect("a folder");
    let cache = root.path().join("cache");
    let silent = Vendor::start(BTreeMap::new());
    fetch(&silent, &cache, devices, "nvidia", &[]).fails_saying(
        4,
        &format!("{}{driver}: HTTP 404: the service has none", silent.url),
    );
    let page = Vendor::start(BTreeMap::from([(
        driver.clone(),
        (String::new(), b"{\"rim\":\"PGh0bWw+\"}".to_vec()),
    )]));
    fetch(&page, &cache, devices, "nvidia", &[]).fails_saying(
        4,
        "nvidia/NV_GPU_DRIVER_GH100_590.12.xml: the answer cannot be used: it is no collateral",
    );
    assert!(!cache.exists());

    let manifest = file("nvidia/NV_GPU_DRIVER_GH100_550.144.03.xml");
    let answer =
        serde_json::json!({"id": "any", "rim": STANDARD.encode(&manifest), "sha256": "any"});
    let answer = (String::new(), answer.to_string().into_bytes());
    let board = "/v1/rim/NV_GPU_VBIOS_G520_0200_885_9600A50001".to_owned();
    let vendor = Vendor::start(BTreeMap::from([
        (driver, answer.clone()),
        (board.clone(), answer),
    ]));
    fetch(&vendor, &cache, devices, "nvidia", &[]).success();
    assert_eq!(vendor.asked().last(), Some(&board));
    let kept = std::fs::read(cache.join("nvidia/NV_GPU_DRIVER_GH100_590.12.xml"));
    assert_eq!(kept.expect("a manifest"), manifest);
}

#[test]
fn evidence_that_brings_all_it_needs_has_nothing_to_fetch() {
    if folder().is_none() {
        return;
    }
    let root = tempfile::tempdir().expect("a folder");
    let vendor = Vendor::start(BTreeMap::new());
    let document = "nitro/valid-attestation-doc-bytes";
    fetch(&vendor, &root.path().join("cache"), document, "nitro", &[]).fails_saying(
        1,
        "nothing is to be fetched for evidence of nitro: its certificates come with the evidence",
    );
    assert!(vendor.asked().is_empty());
}
