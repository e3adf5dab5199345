//! A model that is guarded against being copied by asking it: made, sealed and served as its
//! owner would.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::deployment::{Owner, text};
use crate::support::model::{self, FEATURES};
use crate::support::process::{
    PYTHON_PACKAGE, Said, Service, binary, free_address, occlude, python, run, said,
};

fn support(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/e2e/support")
        .join(script)
}

/// Runs Python with the package of this repository.
fn run_python(python: &std::ffi::OsStr, arguments: &[&str]) -> Said {
    let mut command = Command::new(python);
    command
        .args(["-B"])
        .args(arguments)
        .env("PYTHONPATH", PYTHON_PACKAGE)
        .env("OCCLUDE_BINARY", binary());
    said(&command.output().expect("Python runs"))
}

#[test]
fn a_guarded_model_answers_as_the_paper_says_and_shows_nothing_else() {
    let Some(python) = python() else { return };
    let owner = Owner::new(111, &binary());
    let at = |name: &str| text(&owner.at(name)).to_owned();
    let by_python = |arguments: &[&str]| run_python(&python, arguments).success();
    by_python(&[text(&support("guarded_model.py")), text(owner.folder())]);
    let (model, guarded) = (at("digits.onnx"), at("guarded.onnx"));
    let (known, held_out) = (at("known.npz"), at("held-out.npz"));
    by_python(&[
        "-m",
        "occlude.guard",
        "train",
        &model,
        "--data",
        &known,
        "-o",
        &guarded,
    ]);
    let guard = at("guard.toml");
    let table = by_python(&[
        "-m",
        "occlude.guard",
        "tune",
        &guarded,
        "--data",
        &held_out,
        "--tau",
        "0.8",
        "--guard",
        &guard,
    ]);
    assert!(table.contains("0.80"), "{table}");
    let written = std::fs::read_to_string(owner.at("guard.toml")).expect("written");
    let more = format!("{written}\n[shaping]\ndecimals = 2\n");
    std::fs::write(owner.at("guard.toml"), more).expect("written");

    let sealed = at("guarded.occ");
    let key = at("owner.key");
    run([
        "seal", &guarded, "-o", &sealed, "--key", &key, "--id", "digits", "--guard", &guard,
    ])
    .success();
    let inspected = run(["inspect", &sealed, "--key", &key]).success();
    assert!(
        inspected.contains("guard        {\"format\":1"),
        "{inspected}"
    );
    // Nobody else sees it.
    let bytes = std::fs::read(owner.at("guarded.occ")).expect("read");
    assert!(!bytes.windows(14).any(|found| found == b"misinformation"));
    owner.add_model("guarded.occ").success();

    let server = owner.serve("guarded.occ");
    let policy = std::fs::read_to_string(owner.at("policy.toml")).expect("read");
    let policy = policy.replace("\"classifier\"", "\"digits\"");
    std::fs::write(owner.at("digits.toml"), &policy).expect("written");
    let address = free_address();
    let listen = address.to_string();
    let mut command = occlude(&binary());
    command.args(["proxy", &server.url(), "--listen", &listen]);
    command.args(["--policy", &at("digits.toml")]);
    let _proxy = Service::start(&mut command, owner.at("proxy.log"), address);
    let answers = support("guarded_answers.py");
    by_python(&[text(&answers), text(owner.folder()), &listen, "0.8"]);

    // A user is told that there is a guard, can see it, and refuse it.
    let input = format!("X={}", at("input.npy"));
    std::fs::write(owner.at("input.npy"), model::npy(&[0.5; FEATURES])).expect("written");
    let (url, policy_path) = (server.url(), at("digits.toml"));
    let asked = run([
        "infer",
        &url,
        "--model",
        "digits",
        "--policy",
        &policy_path,
        "--input",
        &input,
    ]);
    let told = "model digits has the guard \"misinformation+shaping\": its answers may be changed";
    assert!(asked.err.contains(told), "{}", asked.err);
    asked.success();
    let verify = |policy: &str| {
        run([
            "attest",
            "verify",
            &server.url(),
            "--policy",
            text(&owner.at(policy)),
        ])
    };
    assert!(
        verify("digits.toml")
            .success()
            .contains("misinformation+shaping")
    );
    let without = policy.replace("id = \"digits\"", "id = \"digits\", guards = [\"none\"]");
    std::fs::write(owner.at("none.toml"), without).expect("written");
    verify("none.toml").fails_with(
        3,
        "model digits has the guard \"misinformation+shaping\", the policy accepts [\"none\"]",
    );
}

#[test]
fn a_guard_that_is_none_or_does_not_fit_is_refused_before_anything_is_written() {
    let owner = Owner::new(112, &binary());
    let sealed = || {
        run([
            "seal",
            text(&owner.at("model.onnx")),
            "-o",
            text(&owner.at("guarded.occ")),
            "--key",
            text(&owner.at("owner.key")),
            "--guard",
            text(&owner.at("guard.toml")),
        ])
    };
    for (guard, reason) in [
        (
            "format = 1\noutput = \"p\"\n",
            "guard.toml: it has no defence",
        ),
        (
            "format = 1\noutput = 3\n",
            "guard.toml: line 2: invalid type",
        ),
        (
            "format = 1\noutput = \"class_probabilities\"\n[misinformation]\noutput = \"g\"\ntau = 2\n",
            "guard.toml: misinformation.tau: found 2, expected a probability from 0 to 1",
        ),
        (
            "format = 1\noutput = \"p\"\n[shaping]\ntop = 1\n",
            "the model has no output \"p\": it has class_probabilities",
        ),
        (
            "format = 1\noutput = \"class_probabilities\"\n[misinformation]\noutput = \"g\"\ntau = 0.5\n",
            "the model has no output \"g\": it has class_probabilities",
        ),
    ] {
        std::fs::write(owner.at("guard.toml"), guard).expect("written");
        sealed().fails_with(1, reason);
        assert!(!owner.at("guarded.occ").exists(), "{guard}");
    }
    std::fs::remove_file(owner.at("guard.toml")).expect("removed");
    sealed().fails_with(1, "guard.toml: No such file");
}

#[test]
fn the_python_packages_own_tests_pass() {
    let Some(python) = python() else { return };
    let tests = format!("{PYTHON_PACKAGE}/tests");
    run_python(
        &python,
        &["-m", "unittest", "discover", "--start-directory", &tests],
    )
    .success();
}
