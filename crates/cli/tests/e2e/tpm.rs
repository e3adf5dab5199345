//! A whole deployment on a machine with a TPM: its memory is open, and everybody who
//! accepts that says so.

#[path = "../../../attest/tests/support/swtpm.rs"]
mod swtpm;

use serde_json::Value;
use swtpm::SoftwareTpm;

use crate::support::deployment::{Owner, text};
use crate::support::model;
use crate::support::process::{Said, Service, binary, free_address, run};

/// What evidence of this TPM says, collected and shown as an owner does who writes a
/// policy.
fn seen(owner: &Owner, tpm: &SoftwareTpm, kind: &str) -> Value {
    let (socket, file) = (tpm.socket(), owner.at("evidence.json"));
    let zero = "00".repeat(64);
    run([
        "attest",
        "collect",
        "--tee",
        kind,
        "--tpm",
        text(&socket),
        "--report-data",
        &zero,
        "-o",
        text(&file),
    ])
    .success();
    std::fs::write(owner.at("any.toml"), "format = 1\nreviewed = true\n").expect("written");
    let any = owner.at("any.toml");
    let shown = run([
        "attest",
        "verify",
        "--evidence",
        text(&file),
        "--policy",
        text(&any),
        "--json",
    ]);
    assert_eq!(shown.code, 3, "{}", shown.err);
    assert!(shown.err.contains("binding not checked"), "{}", shown.err);
    let claims: Value = serde_json::from_str(&shown.out).expect("JSON");
    claims["platform"][kind].clone()
}

/// A policy on evidence of this TPM with what is in these registers now.
fn policy(kind: &str, seen: &Value, registers: &[&str]) -> String {
    let mut policy = format!(
        "format = 1\nreviewed = true\n\n[evidence]\ntee = [\"{kind}\"]\ntrust = \
         [\"listed-key\"]\nprotection = [\"measured-boot-only\"]\n\n[evidence.{kind}]\n\
         attestation-keys = [{}]\n",
        seen["attestation-key"]
    );
    for register in registers {
        policy += &format!("pcrs.{register} = [{}]\n", seen["pcrs"][register]);
    }
    policy
}

fn serve(owner: &Owner, tpm: &SoftwareTpm, kind: &str) -> Service {
    let address = free_address();
    let log = owner.at(&format!("server-{}.log", address.port()));
    let socket = tpm.socket();
    let tee = ["--tee", kind, "--tpm", text(&socket)];
    let mut command = owner.serve_command(&binary(), "model.occ", address, &tee);
    Service::start(&mut command, log, address)
}

fn serve_refused(owner: &Owner, tpm: &SoftwareTpm, kind: &str) -> Said {
    let socket = tpm.socket();
    let tee = ["--tee", kind, "--tpm", text(&socket)];
    owner.serve_refused(&binary(), "model.occ", &tee)
}

/// From a key to an answer, and nothing any more once `change` changed what was measured.
fn serves_until(kind: &str, registers: &[&str], tpm: &SoftwareTpm, change: impl FnOnce()) {
    let owner = Owner::new(91, &binary());
    // The owner of `Owner::new` accepts the simulated TEE alone.
    serve_refused(&owner, tpm, kind).fails_with(3, &format!("the evidence is of {kind}"));

    let accepted = policy(kind, &seen(&owner, tpm, kind), registers);
    std::fs::write(owner.at("broker-policy.toml"), &accepted).expect("written");
    owner.set_policy("broker-policy.toml").success();
    let service = format!("\n[service]\nowners = [\"{}\"]\n", owner.public());
    std::fs::write(owner.at("open.toml"), accepted + &service).expect("written");
    let default = format!("format = 1\nreviewed = true\n{service}");
    std::fs::write(owner.at("default.toml"), default).expect("written");

    let server = serve(&owner, tpm, kind);
    let input = model::secret_input(92);
    owner.infer(&server.url(), "open.toml", &input).success();
    owner
        .infer(&server.url(), "default.toml", &input)
        .fails_with(3, &format!("the evidence is of {kind}"));
    let pinned = run(["attest", "pin", &server.url()]).success();
    std::fs::write(owner.at("pinned.toml"), pinned).expect("written");
    owner.infer(&server.url(), "pinned.toml", &input).success();

    change();
    for policy in ["open.toml", "pinned.toml"] {
        let field = format!("for {kind}.pcrs, the policy accepts");
        owner
            .infer(&server.url(), policy, &input)
            .fails_with(3, &field);
    }
    server.kill();
    serve_refused(&owner, tpm, kind).fails_with(3, &format!("for {kind}.pcrs"));
}

#[test]
fn a_measured_boot_serves_who_accepts_it_until_its_registers_change() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    tpm.extend(4, &[4; 32]);
    serves_until("tpm", &["pcr4"], &tpm, || tpm.extend(4, &[5; 32]));
}

/// The simulated TEE with a TPM beside it: the broker and the user want both, and a server
/// without the TPM gets neither a key nor an input.
#[test]
fn a_tee_serves_with_the_tpm_that_its_policy_wants_beside_it() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let owner = Owner::new(94, &binary());
    let seen = seen(&owner, &tpm, "tpm");
    let (socket, tee) = (tpm.socket(), ["--tee", "simulated"]);
    let both = [
        &tee[..],
        &["--tpm", text(&socket), "--additional-evidence", "tpm"],
    ]
    .concat();

    // The owner of `Owner::new` accepts the simulated TEE alone.
    owner
        .serve_refused(&binary(), "model.occ", &both)
        .fails_with(3, "evidence of tpm came along, the policy accepts none");
    let plain = std::fs::read_to_string(owner.at("policy.toml")).expect("a policy");
    let wanted = plain.replace("[evidence]\n", "[evidence]\nadditional = [\"tpm\"]\n")
        + &format!(
            "\n[evidence.tpm]\nattestation-keys = [{}]\npcrs.pcr7 = [{}]\n",
            seen["attestation-key"], seen["pcrs"]["pcr7"]
        );
    std::fs::write(owner.at("with-tpm.toml"), wanted).expect("written");
    owner.set_policy("with-tpm.toml").success();
    owner
        .serve_refused(&binary(), "model.occ", &tee)
        .fails_with(3, "evidence of tpm is missing, which the policy wants");

    let address = free_address();
    let log = owner.at("with-tpm.log");
    let mut command = owner.serve_command(&binary(), "model.occ", address, &both);
    let server = Service::start(&mut command, log, address);
    let input = model::secret_input(95);
    owner
        .infer(&server.url(), "with-tpm.toml", &input)
        .success();
    owner
        .infer(&server.url(), "policy.toml", &input)
        .fails_with(3, "evidence of tpm came along");
    let audit = run(owner.order(&["audit", "--json"])).success();
    let accepted = audit.replace(char::is_whitespace, "");
    assert!(accepted.contains("\"additional\":[\"tpm\"]"), "{audit}");
    let shown = run(["attest", "show", &server.url()]).success();
    let shows = |name: &str, value: &str| {
        let shown = shown.lines().any(|line| {
            let (found, rest) = line.split_at_checked(name.len()).unwrap_or_default();
            found == name && rest.trim() == value
        });
        assert!(shown, "{name} {value}");
    };
    shows("trust", "simulated");
    shows("tpm trust", "listed-key");
    shows("tpm protection", "measured-boot-only");
    let pinned = run(["attest", "pin", "--simulated", &server.url()]).success();
    assert!(pinned.contains("additional = [\"tpm\"]"), "{pinned}");
    std::fs::write(owner.at("pinned.toml"), pinned).expect("written");
    owner.infer(&server.url(), "pinned.toml", &input).success();
    tpm.extend(7, &[7; 32]);
    owner
        .infer(&server.url(), "with-tpm.toml", &input)
        .fails_with(3, "for tpm.pcrs, the policy accepts");
}

#[test]
fn a_simulated_launch_serves_who_accepts_it_until_another_is_launched() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let owner = Owner::new(93, &binary());
    let socket = tpm.socket();
    let zero = "00".repeat(64);
    let file = owner.at("evidence.json");
    let tee = [
        "--tee",
        "txt",
        "--tpm",
        text(&socket),
        "--report-data",
        &zero,
    ];
    run(["attest", "collect", "-o", text(&file)].iter().chain(&tee)).success();
    let policy = owner.at("policy.toml");
    let verify = ["attest", "verify", "--evidence", text(&file)];
    run(verify.iter().chain(&["--policy", text(&policy)])).fails_with(
        3,
        "no dynamic launch took place: pcr17 was not measured into",
    );
    tpm.launch(b"authenticated code", &[0x18; 32]);
    serves_until("txt", &["pcr17", "pcr18"], &tpm, || {
        tpm.launch(b"authenticated code", &[0x19; 32]);
    });
}
