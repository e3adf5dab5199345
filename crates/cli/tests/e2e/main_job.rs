//! The main job, from a key to an answer.

use crate::support::deployment::{Owner, text};
use crate::support::model::{self, FEATURES, assert_close, expected, probabilities};
use crate::support::process::{Service, binary, free_address, occlude, python, run, said};

#[test]
fn a_sealed_model_answers_a_verified_user_as_the_plain_one_would() {
    let owner = Owner::new(1, &binary());
    let server = owner.serve("model.occ");
    let input = model::secret_input(2);
    let printed = owner.infer(&server.url(), "policy.toml", &input).success();
    assert_close(&probabilities(&printed), &expected(&owner.model, &input));
}

#[test]
fn inputs_may_be_json_and_outputs_json_npz_or_a_table() {
    let owner = Owner::new(12, &binary());
    let server = owner.serve("model.occ");
    let input = model::secret_input(13);
    let expected = expected(&owner.model, &input);
    std::fs::write(
        owner.at("input.json"),
        serde_json::json!([input]).to_string(),
    )
    .expect("written");
    let infer = |more: &[&str]| {
        let mut arguments = vec![
            "infer".to_owned(),
            server.url(),
            "--model".to_owned(),
            "classifier".to_owned(),
            "--policy".to_owned(),
            text(&owner.at("policy.toml")).to_owned(),
            "--input".to_owned(),
            format!("{}={}", model::INPUT, text(&owner.at("input.json"))),
        ];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        run(arguments).success()
    };
    assert_close(&probabilities(&infer(&["--json"])), &expected);
    let file = owner.at("out.json");
    infer(&["--output", text(&file)]);
    let written = std::fs::read_to_string(&file).expect("written");
    assert_close(&probabilities(&written), &expected);
    let table = infer(&[]);
    assert!(
        table.contains(model::OUTPUT) && table.contains("1x10"),
        "{table}"
    );
    let file = owner.at("out.npz");
    infer(&["--output", text(&file)]);
    let Some(python) = python() else { return };
    let script = "import json, numpy, sys; print(json.dumps({k: {'data': v.ravel().tolist()} for k, v in numpy.load(sys.argv[1]).items()}))";
    let output = std::process::Command::new(python)
        .args(["-c", script, text(&file)])
        .output()
        .expect("Python runs");
    assert_close(&probabilities(&said(&output).success()), &expected);
}

#[test]
fn unmodified_http_works_through_the_proxy_and_stops_with_the_server() {
    let owner = Owner::new(3, &binary());
    let server = owner.serve("model.occ");
    let address = free_address();
    let mut command = occlude(&binary());
    command
        .args([
            "proxy",
            &server.url(),
            "--listen",
            &address.to_string(),
            "--policy",
        ])
        .arg(owner.at("policy.toml"));
    let proxy = Service::start(&mut command, owner.at("proxy.log"), address);
    let input = model::secret_input(4);
    let request = serde_json::json!({
        "inputs": [{"name": model::INPUT, "datatype": "FP32", "shape": [1, FEATURES], "data": input}],
    });
    let asked = |path: &str, body: Option<&serde_json::Value>| -> (u16, serde_json::Value) {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--show-error", "--write-out", "\n%{http_code}"]);
        if let Some(body) = body {
            curl.args([
                "--header",
                "content-type: application/json",
                "--data",
                &body.to_string(),
            ]);
        }
        let output = curl
            .arg(format!("{}{path}", proxy.url()))
            .output()
            .expect("curl runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let (body, status) = text.rsplit_once('\n').expect("a status line");
        (
            status.parse().expect("a status"),
            serde_json::from_str(body).unwrap_or_default(),
        )
    };
    if std::process::Command::new("curl")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: curl is not installed");
        return;
    }
    let (status, answer) = asked("/v2/models/classifier/infer", Some(&request));
    assert_eq!(status, 200, "{answer}");
    let found: Vec<f64> = answer["outputs"][0]["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|value| value.as_f64().expect("a number"))
        .collect();
    assert_close(&found, &expected(&owner.model, &input));
    let (status, metadata) = asked("/v2/models/classifier", None);
    assert_eq!(
        (status, &metadata["inputs"][0]["name"]),
        (200, &serde_json::json!(model::INPUT))
    );
    server.kill();
    let (status, answer) = asked("/v2/models/classifier/infer", Some(&request));
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"].is_string(), "{answer}");
}

#[test]
fn an_unmodified_triton_client_gets_plain_onnx_runtimes_answers_through_the_proxy() {
    let Some(python) = python() else { return };
    let owner = Owner::new(10, &binary());
    let server = owner.serve("model.occ");
    let address = free_address();
    let mut command = occlude(&binary());
    command
        .args([
            "proxy",
            &server.url(),
            "--listen",
            &address.to_string(),
            "--policy",
        ])
        .arg(owner.at("policy.toml"));
    let _proxy = Service::start(&mut command, owner.at("proxy.log"), address);
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/e2e/support/unmodified_client.py"
    );
    let output = std::process::Command::new(python)
        .args([
            script,
            &address.to_string(),
            text(&owner.at("model.onnx")),
            "classifier",
        ])
        .output()
        .expect("Python runs");
    let said = said(&output);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
}

#[test]
fn the_onnx_checker_accepts_an_unsealed_model_and_its_weights_are_the_same() {
    let Some(python) = python() else { return };
    let owner = Owner::new(11, &binary());
    let external = model::external(owner.folder(), 4 << 20);
    for (original, name) in [(owner.at("model.onnx"), "inline"), (external, "external")] {
        let sealed = owner.at(&format!("{name}.occ"));
        let back = owner.at(&format!("{name}-back.onnx"));
        let key = owner.at("owner.key");
        run([
            "seal",
            text(&original),
            "-o",
            text(&sealed),
            "--key",
            text(&key),
        ])
        .success();
        run([
            "unseal",
            text(&sealed),
            "-o",
            text(&back),
            "--key",
            text(&key),
        ])
        .success();
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/e2e/support/same_model.py"
        );
        let output = std::process::Command::new(&python)
            .args([script, text(&original), text(&back)])
            .output()
            .expect("Python runs");
        let said = said(&output);
        assert_eq!(said.code, 0, "{name}: {}{}", said.out, said.err);
    }
}

#[test]
fn a_pinned_policy_works_says_that_nobody_reviewed_it_and_needs_a_word_for_simulated() {
    let owner = Owner::new(5, &binary());
    let server = owner.serve("model.occ");
    run(["attest", "pin", &server.url()]).fails_with(3, "--simulated");
    let pinned = run(["attest", "pin", &server.url(), "--simulated"]).success();
    assert!(pinned.contains("reviewed = false"), "{pinned}");
    std::fs::write(owner.at("pinned.toml"), pinned).expect("written");
    let said = owner.infer(&server.url(), "pinned.toml", &model::secret_input(6));
    assert!(said.err.contains("not reviewed"), "{}", said.err);
    said.success();
}

#[test]
fn a_policy_that_the_owner_signed_is_accepted_and_any_other_refused() {
    let owner = Owner::new(7, &binary());
    let server = owner.serve("model.occ");
    run([
        "policy",
        "sign",
        text(&owner.at("policy.toml")),
        "-o",
        text(&owner.at("policy.signed")),
        "--key",
        text(&owner.at("owner.key")),
    ])
    .success();
    let verify = |policy: &str| {
        run([
            "attest",
            "verify",
            &server.url(),
            "--policy",
            text(&owner.at(policy)),
            "--owner",
            &owner.public(),
        ])
    };
    verify("policy.signed").success();
    verify("policy.toml").fails_with(3, "not signed");
    let signed = std::fs::read_to_string(owner.at("policy.signed")).expect("read");
    std::fs::write(
        owner.at("forged.signed"),
        signed.replacen("minimum-version = 1", "minimum-version = 0", 1),
    )
    .expect("written");
    verify("forged.signed").fails_with(3, "signature");
}

#[test]
fn a_server_stops_cleanly_when_asked() {
    let owner = Owner::new(8, &binary());
    let server = owner.serve("model.occ");
    owner
        .infer(&server.url(), "policy.toml", &model::secret_input(9))
        .success();
    server.signal("TERM");
    let said = server.ends();
    assert_eq!(said.code, 0, "{}", said.err);
}

/// Chunks are repaired one by one; a file whose header is not in order is left alone.
#[test]
fn a_container_with_an_altered_header_is_served_from_its_copy() {
    let owner = Owner::new(97, &binary());
    let mirror = owner.at("mirror");
    std::fs::create_dir(&mirror).expect("made");
    std::fs::copy(owner.at("model.occ"), mirror.join("model.occ")).expect("copied");
    let mut altered = std::fs::read(owner.at("model.occ")).expect("read");
    altered[200] ^= 1;
    std::fs::write(owner.at("model.occ"), &altered).expect("written");
    owner
        .serve_refused(&binary(), "model.occ", &[])
        .fails_with(3, "model.occ: the owner's signature does not hold");
    let address = free_address();
    let more = ["--mirror", text(&mirror)];
    let mut command = owner.serve_command(&binary(), "model.occ", address, &more);
    let server = Service::start(&mut command, owner.at("mirrored.log"), address);
    owner
        .infer(&server.url(), "policy.toml", &model::secret_input(98))
        .success();
    assert!(
        server.log().contains("its copy is served"),
        "{}",
        server.log()
    );
    assert_eq!(std::fs::read(owner.at("model.occ")).expect("read"), altered);

    std::fs::remove_file(mirror.join("model.occ")).expect("removed");
    owner
        .serve_refused(&binary(), "model.occ", &more)
        .fails_with(3, "model.occ: the owner's signature does not hold");
    owner.seal("whole.occ", 3);
    owner.add_model("whole.occ").success();
    let said = owner.serve_refused(&binary(), "whole.occ", &more);
    said.fails_with(1, "mirror/whole.occ: No such file or directory");
}
