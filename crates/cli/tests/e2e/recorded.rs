//! Evidence that somebody recorded, verified offline.

#[path = "../../../attest/tests/support/mod.rs"]
pub(crate) mod recorded_evidence;

use std::path::Path;

use snapbox::{assert_data_eq, file};

use crate::golden::transcript;
use crate::support::deployment::{Owner, text};
use crate::support::process::{Said, binary, run};
use crate::support::wire;

#[test]
fn a_servers_recorded_answer_holds_for_the_nonce_that_was_asked_and_for_no_other() {
    let owner = Owner::new(71, &binary());
    let server = owner.serve("model.occ");
    let nonce = "5a".repeat(32);
    let path = format!("/.well-known/occlude/attestation?nonce={nonce}");
    let answer = wire::get(server.address, &path).body;
    std::fs::write(owner.at("answer.json"), &answer).expect("written");
    let mut changed: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    std::fs::write(owner.at("evidence.json"), changed["evidence"].to_string()).expect("written");
    changed["evidence"]["body"]["debug"] = true.into();
    std::fs::write(owner.at("changed.json"), changed.to_string()).expect("written");
    server.kill();

    let verify = |file: &str, more: &[&str]| -> Said {
        let file = owner.at(file);
        let policy = owner.at("policy.toml");
        let fixed = [
            "attest",
            "verify",
            "--evidence",
            text(&file),
            "--policy",
            text(&policy),
        ];
        run(fixed.iter().chain(more))
    };
    let refused = |file: &str, more: &[&str], reason: &str| {
        let error = format!("{}: {reason}", owner.at(file).display());
        verify(file, more).fails_saying(3, &error);
    };
    let shown = verify("answer.json", &["--nonce", &nonce]).success();
    assert!(shown.contains("classifier version 1"), "{shown}");
    const MISMATCH: &str =
        "binding mismatch: the evidence was made for another nonce or another statement";
    let other = "5b".repeat(32);
    refused("answer.json", &["--nonce", &other], MISMATCH);
    refused(
        "answer.json",
        &["--report-data", &"5a".repeat(64)],
        MISMATCH,
    );
    let statement = owner.at("statement");
    std::fs::write(&statement, "{}").expect("written");
    let with_statement = ["--nonce", &nonce, "--statement", text(&statement)];
    refused("answer.json", &with_statement, MISMATCH);
    refused(
        "changed.json",
        &["--nonce", &nonce],
        "bad signature: the report is not signed by the published test root",
    );
    refused(
        "answer.json",
        &["--tee", "snp", "--nonce", &nonce],
        "it is evidence of simulated, not of snp",
    );
    verify("evidence.json", &["--nonce", &nonce]).fails_saying(
        2,
        &format!(
            "{}: the file has no statement of the server: give it with --statement",
            owner.at("evidence.json").display()
        ),
    );
    let unbound = verify("evidence.json", &[]);
    assert!(unbound.out.contains("simulated"), "{}", unbound.out);
    unbound.fails_with(3, "binding not checked");
}

#[test]
fn recorded_reports_of_real_machines_are_verified_word_for_word() {
    let Some(recorded) = recorded_evidence::folder() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    for name in ["amd", "aws"] {
        std::fs::create_dir(at(name)).expect("made");
    }
    for (from, to) in [
        ("report_milan.hex", "report.hex"),
        ("trustee-test-vlek-report.bin", "vlek.bin"),
        ("vcek_milan.der", "amd/vcek.der"),
        ("trustee-test-vlek.der", "aws/vlek.der"),
        ("milan_ask_ark_asvk.pem", "aws/chain.pem"),
    ] {
        std::fs::copy(recorded.join("snp").join(from), at(to)).expect("copied");
    }
    let report = hex::decode(read(&at("report.hex")).trim_ascii()).expect("hexadecimal");
    let mut changed = report.clone();
    changed[0x90] ^= 1;
    std::fs::write(at("changed.bin"), changed).expect("written");
    std::fs::write(at("cut.bin"), &report[..1183]).expect("written");
    let policy = |name: &str, section: &str| {
        let measurement = hex::encode(&report[0x90..0xc0]);
        let text = format!(
            "format = 1\nreviewed = true\n[evidence]\nmeasurements = [\"{measurement}\"]\n{section}"
        );
        std::fs::write(at(name), text).expect("written");
    };
    policy("policy.toml", "");
    policy(
        "floor.toml",
        "snp.minimum-tcb.milan = { snp = 24, microcode = 219 }\n",
    );
    policy("no-milan.toml", "snp.products = [\"genoa\", \"turin\"]\n");
    std::fs::write(at("nothing.toml"), "format = 1\nreviewed = true\n").expect("written");
    let binding = hex::encode(&report[0x50..0x90]);
    let other = "00".repeat(64);
    let now = "--at 2026-11-27T00:00:00Z";
    let milan = format!("attest verify --tee snp --collateral amd {now}");
    let said = transcript(
        folder.path(),
        &[
            &format!("{milan} --evidence report.hex --policy policy.toml --report-data {binding}"),
            &format!(
                "{milan} --evidence report.hex --policy policy.toml --report-data {binding} --json"
            ),
            &format!("{milan} --evidence report.hex --policy policy.toml --report-data {other}"),
            &format!("{milan} --evidence report.hex --policy policy.toml"),
            &format!("{milan} --evidence report.hex --policy nothing.toml --report-data {binding}"),
            &format!("{milan} --evidence report.hex --policy floor.toml --report-data {binding}"),
            &format!(
                "{milan} --evidence report.hex --policy no-milan.toml --report-data {binding}"
            ),
            &format!("{milan} --evidence changed.bin --policy policy.toml --report-data {binding}"),
            &format!("{milan} --evidence cut.bin --policy policy.toml --report-data {binding}"),
            &format!(
                "attest verify --tee snp {now} --evidence report.hex --policy policy.toml --report-data {binding}"
            ),
            &format!(
                "attest verify {now} --evidence report.hex --policy policy.toml --report-data {binding}"
            ),
            "attest verify --tee snp --collateral amd --at 2031-01-01T00:00:00Z --evidence report.hex --policy policy.toml",
            "attest verify --tee snp --collateral amd --at 2001-01-01T00:00:00Z --evidence report.hex --policy policy.toml",
            "attest verify --tee snp --collateral aws --at 2025-06-01T00:00:00Z --evidence vlek.bin --policy policy.toml",
            &format!(
                "attest verify --tee snp --collateral aws {now} --evidence vlek.bin --policy policy.toml"
            ),
            "attest verify --tee snp --collateral absent --evidence vlek.bin --policy policy.toml",
            "attest verify --tee snp --evidence absent.bin --policy policy.toml",
        ],
    );
    assert_data_eq!(said, file!["../golden/recorded.txt"]);
}

#[test]
fn a_folder_of_collateral_is_listed_by_when_it_ends() {
    let Some(recorded) = recorded_evidence::folder() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["all/amd", "all/arm", "all/intel", "empty"] {
        std::fs::create_dir_all(folder.path().join(name)).expect("made");
    }
    for (from, to) in [
        ("snp/vcek_milan.der", "amd/vcek.der"),
        ("snp/trustee-test-vlek.der", "amd/vlek.der"),
        ("snp/milan_ask_ark_asvk.pem", "amd/chain.pem"),
        ("cca/ta-tfa.json", "arm/keys.json"),
        ("sgx/sgx_quote_collateral.json", "intel/sgx.json"),
        ("tdx/tdx_quote_outdated_collateral.json", "intel/tdx.json"),
    ] {
        let to = folder.path().join("all").join(to);
        std::fs::copy(recorded.join(from), to).expect("copied");
    }
    let said = transcript(
        folder.path(),
        &[
            "attest collateral list --cache all --at 2026-01-01T00:00:00Z",
            "attest collateral list --cache all --json",
            "attest collateral list --cache empty --at 2026-01-01T00:00:00Z",
            "attest collateral list --cache absent",
        ],
    );
    assert_data_eq!(said, file!["../golden/collateral.txt"]);
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("read")
}

#[test]
fn recorded_evidence_of_other_kinds_is_verified_word_for_word() {
    let Some(recorded) = recorded_evidence::folder() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["arm", "vendors"] {
        std::fs::create_dir(folder.path().join(name)).expect("made");
    }
    for (from, to) in [
        ("az-snp-vtpm/evidence-v2.json", "azure.json"),
        ("cca/cca-token-draft-ffm-00.cbor", "token.cbor"),
        ("cca/ta-tfa.json", "arm/keys.json"),
        ("tpm/tpm_evidence.json", "tpm.json"),
        ("tpm/ubuntu-2404-amd-sevsnp.bin", "log.bin"),
        ("nvidia/hopper_evidence.json", "gpu.json"),
        (
            "nvidia/NV_GPU_DRIVER_GH100_550.144.03.xml",
            "vendors/driver.xml",
        ),
        ("ibm-se/secure_guest.hdr", "vendors/hdr.bin"),
    ] {
        std::fs::copy(recorded.join(from), folder.path().join(to)).expect("copied");
    }
    let policy = |name: &str, evidence: &str| {
        let text = format!("format = 1\nreviewed = true\n[evidence]\n{evidence}\n");
        std::fs::write(folder.path().join(name), text).expect("written");
    };
    policy("default.toml", "");
    policy(
        "azure.toml",
        "[evidence.az-snp-vtpm]\nparavisors = [\"5b0ce64ad1c1f6375dbda5f760b98526ca1bcf91b8195091afc28e7b024251d68fe32e05af34048d6607678cd23283ff\"]\n\
         pcrs.pcr7 = [\"f014e5cbfa297ee787a976abc51bc1d67e23e1b9e4a60128a1106dd0adef0c5b\"]",
    );
    policy(
        "gpu.toml",
        "tee = [\"nvidia\"]\nprotection = [\"device-memory-only\"]",
    );
    // The nonce that the device was asked with, as a broker's binding has it.
    let gpu = format!(
        "e97b23a1718095a0e9e35edca810768c70a6a5a389b705e753b197912bc11576{}",
        "00".repeat(32)
    );
    let asked = "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef";
    let zeros = "00".repeat(16);
    let azure = format!(
        "attest verify --tee az-snp-vtpm --at 2025-11-24T00:00:00Z --evidence azure.json \
         --report-data {asked}{zeros}"
    );
    let cca = "attest verify --tee cca --at 2025-11-24T00:00:00Z --evidence token.cbor";
    let said = transcript(
        folder.path(),
        &[
            &format!("{azure} --policy default.toml"),
            &format!("{azure} --policy azure.toml"),
            &format!("{cca} --policy default.toml"),
            &format!("{cca} --collateral arm --policy default.toml"),
            "attest verify --tee tpm --at 2025-11-24T00:00:00Z --evidence tpm.json --policy default.toml",
            "attest verify --tee txt --at 2025-11-24T00:00:00Z --evidence tpm.json --policy default.toml",
            "attest verify --tee nvidia --at 2026-02-01T00:00:00Z --evidence gpu.json --policy default.toml",
            &format!(
                "attest verify --tee nvidia --at 2026-02-01T00:00:00Z --evidence gpu.json --report-data {gpu} --policy gpu.toml"
            ),
            "attest collateral list --cache vendors --at 2026-02-01T00:00:00Z",
            &format!(
                "attest measure tpm --event-log log.bin --attestation-key {}",
                "ab".repeat(32)
            ),
            "attest measure tpm --event-log token.cbor",
            "attest measure snp --firmware absent --processors 1 --processor-type EPYC-v4",
            "attest measure snp --firmware token.cbor --processors 1 --processor-type EPYC-v4",
        ],
    );
    assert_data_eq!(said, file!["../golden/recorded-others.txt"]);
}
