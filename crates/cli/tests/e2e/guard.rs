//! A model that is guarded against being copied by asking it: made, sealed and served as its
//! owner would.
#![allow(clippy::print_stdout, reason = "says that a test was skipped")]

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
    let tuned = |more: &[&str]| {
        let mut command = occlude(&binary());
        command.args(["guard", "tune", &guarded, "--data", &held_out]);
        command.arg("--python").arg(&python).args(more);
        command.env("PYTHONPATH", PYTHON_PACKAGE);
        said(&command.output().expect("it runs"))
    };
    let table = tuned(&["--tau", "0.8", "--guard", &guard]);
    assert!(
        table.err.contains("seal with occlude seal"),
        "{}",
        table.err
    );
    let table = table.success();
    assert!(table.contains("\n0.80 "), "{table}");
    let tune = ["-m", "occlude.guard", "tune", &guarded, "--data", &held_out];
    assert_eq!(table, by_python(&tune));
    let plot = at("tune.svg");
    let json = tuned(&["--json", "--nu", "10", "--plot", &plot]).success();
    let outcomes: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(outcomes[0]["benign_accuracy"].is_number(), "{json}");
    let drawn = std::fs::read_to_string(owner.at("tune.svg")).expect("written");
    assert!(drawn.starts_with("<svg"), "{drawn}");
    tuned(&["--answers", "others"]).fails_with(1, "others");
    tuned(&["--tau", "0.8"]).fails_with(2, "--guard <GUARD.toml>");
    let elsewhere = at("nowhere");
    tuned(&["--python", &elsewhere]).fails_with(2, "cannot be used multiple times");
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

/// A token for a client by the owner's own issuer.
fn token(owner: &Owner, subject: &str, models: &[&str]) -> Said {
    let (key, issuer) = (owner.at("issuer.pem"), "https://issuer.example");
    let token = ["guard", "token", "--key", text(&key), "--issuer", issuer];
    let models = models.iter().flat_map(|model| ["--model", model]);
    run([&token[..], &["--subject", subject]]
        .concat()
        .into_iter()
        .chain(models))
}

/// Asks the owner's classifier once, as a user does.
fn infer(owner: &Owner, server: &Service, more: &[&str]) -> Said {
    std::fs::write(owner.at("input.npy"), model::npy(&[0.5; FEATURES])).expect("written");
    let (url, policy) = (server.url(), owner.at("policy.toml"));
    let input = format!("{}={}", model::INPUT, text(&owner.at("input.npy")));
    let infer = ["infer", &url, "--model", "classifier", "--input", &input];
    run([&infer[..], &["--policy", text(&policy)], more].concat())
}

/// How many answers a program gets that knows nothing of tokens or work, through a proxy.
fn counted_answers(
    python: &std::ffi::OsStr,
    owner: &Owner,
    server: &Service,
    token: &str,
) -> String {
    let address = free_address();
    let listen = address.to_string();
    let mut command = occlude(&binary());
    command.args(["proxy", &server.url(), "--listen", &listen]);
    command.arg("--policy").arg(owner.at("policy.toml"));
    command.args(["--client-token", token]);
    let _proxy = Service::start(&mut command, owner.at("proxy.log"), address);
    let script = support("counted_answers.py");
    let features = FEATURES.to_string();
    let asked = [
        text(&script),
        &listen,
        "classifier",
        model::INPUT,
        &features,
    ];
    run_python(python, &asked).success()
}

#[test]
fn a_counted_model_answers_whom_an_issuer_names_as_often_as_its_owner_said() {
    let Some(python) = python() else { return };
    let owner = Owner::new(113, &binary());
    let at = |name: &str| text(&owner.at(name)).to_owned();
    let keygen = || run(["guard", "keygen", "-o", &at("issuer.pem")]);
    let public = keygen().success();
    keygen().fails_with(1, "exists already, and a key is never overwritten");
    let shown = run(["guard", "keygen", "--public", &at("issuer.pem")]).success();
    assert_eq!(shown, public);

    let (other_public, bob) = (at("other.pub"), at("bob.token"));
    let script = support("issued_token.py");
    let issuer = "https://other.example";
    let issue = [
        text(&script),
        &other_public,
        &bob,
        issuer,
        "bob",
        "classifier",
    ];
    run_python(&python, &issue).success();
    let other = std::fs::read_to_string(&other_public).expect("read");
    let guard = format!(
        "format = 1\noutput = \"{}\"\n[budgets]\nwindow-seconds = 31536000\n\
         client = {{ window = 3 }}\n\
         [[issuers]]\nname = \"https://issuer.example\"\nkey = \"\"\"\n{public}\"\"\"\n\
         [[issuers]]\nname = \"{issuer}\"\nkey = \"\"\"\n{other}\"\"\"\n",
        model::OUTPUT
    );
    std::fs::write(owner.at("guard.toml"), guard).expect("written");
    owner.seal_with("counted.occ", 2, &["--guard", &at("guard.toml")]);
    owner.add_model("counted.occ").success();
    let server = owner.serve("counted.occ");

    let token = |subject: &str, models: &[&str]| token(&owner, subject, models);
    let alice = at("alice.token");
    std::fs::write(&alice, token("alice", &["others", "classifier"]).success()).expect("written");
    token("", &["classifier"]).fails_with(2, "--subject has 0 bytes, expected 1 to 256");
    let ask = |token: Option<&str>| {
        let token = token.map(|token| ["--client-token", token]);
        infer(&owner, &server, token.as_slice().as_flattened())
    };
    ask(None).fails_with(1, "401 Unauthorized: this model wants to know who asks");
    for _ in 0..3 {
        let said = ask(Some(&alice));
        assert!(!said.err.contains("may be changed"), "{}", said.err);
        said.success();
    }
    ask(Some(&alice)).fails_with(
        1,
        "429 Too Many Requests: your budget has 0 answers left: there is more in ",
    );
    let others = at("others.token");
    std::fs::write(&others, token("alice", &["others"]).success()).expect("written");
    ask(Some(&others)).fails_with(1, "401 Unauthorized: the token is for another model");

    // Another issuer's client, through a proxy, with a program that knows nothing of tokens.
    ask(Some(&bob)).success();
    assert_eq!(counted_answers(&python, &owner, &server, &bob), "2\n");

    // The owner sees how often, and of whom no more than a digest.
    let log = run(owner.order(&["audit"])).success();
    assert!(log.contains("queries"), "{log}");
    assert!(!log.contains("alice") && !log.contains("bob"), "{log}");
}

#[test]
fn answers_that_cost_work_are_given_to_clients_and_to_programs_that_know_nothing_of_it() {
    let Some(python) = python() else { return };
    let owner = Owner::new(116, &binary());
    let at = |name: &str| text(&owner.at(name)).to_owned();
    let public = run(["guard", "keygen", "-o", &at("issuer.pem")]).success();
    let guard = format!(
        "format = 1\noutput = \"{}\"\n[budgets]\nwindow-seconds = 31536000\n\
         client = {{ window = 3 }}\n[work]\nbits = 12\ngain = 100\nmost-bits = 20\n\
         [[issuers]]\nname = \"https://issuer.example\"\nkey = \"\"\"\n{public}\"\"\"\n",
        model::OUTPUT
    );
    std::fs::write(owner.at("guard.toml"), guard).expect("written");
    owner.seal_with("dear.occ", 2, &["--guard", &at("guard.toml")]);
    owner.add_model("dear.occ").success();
    let server = owner.serve("dear.occ");
    let alice = at("alice.token");
    std::fs::write(&alice, token(&owner, "alice", &["classifier"]).success()).expect("written");
    let ask = |most_work: &str| {
        let asker = ["--client-token", &alice, "--most-work", most_work];
        infer(&owner, &server, &asker)
    };
    ask("11").fails_with(
        1,
        "the answer costs work, about 2^12 hashes, and no more than 2^11 are done: allow more with \
         --most-work 12, or ask about less at once",
    );
    ask("12").success();
    ask("65").fails_with(2, "65 is not in 0..=64");
    assert_eq!(counted_answers(&python, &owner, &server, &alice), "2\n");
}

#[test]
fn a_copy_is_known_by_the_watermark_and_another_model_is_not() {
    let Some(python) = python() else { return };
    let owner = Owner::new(114, &binary());
    let at = |name: &str| text(&owner.at(name)).to_owned();
    let guard = format!(
        "format = 1\noutput = \"{}\"\n[watermark]\none-in = 10\n",
        model::OUTPUT
    );
    std::fs::write(owner.at("guard.toml"), guard).expect("written");
    owner.seal_with("marked.occ", 2, &["--guard", &at("guard.toml")]);
    let (sealed, key) = (at("marked.occ"), at("owner.key"));
    owner.add_model("marked.occ").success();
    let server = owner.serve("marked.occ");
    let address = free_address();
    let listen = address.to_string();
    let mut command = occlude(&binary());
    command.args(["proxy", &server.url(), "--listen", &listen]);
    command.args(["--policy", &at("policy.toml")]);
    let _proxy = Service::start(&mut command, owner.at("proxy.log"), address);
    let script = support("watermark.py");
    run_python(&python, &[text(&script), text(owner.folder()), &listen]).success();

    let candidates = at("candidates.npz");
    let claim = |suspect: &str, model: &str| {
        let (suspect, model) = (at(suspect), at(model));
        let claim = ["guard", "claim", &suspect, "--model", &model, "--key", &key];
        run([&claim[..], &["--inputs", &candidates, "--json"]].concat())
    };
    let found = |suspect: &str| {
        let said = claim(suspect, "marked.occ").success();
        let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let number = |name: &str| json[name].as_f64().expect("a number");
        (
            number("inputs"),
            number("marked"),
            number("matched"),
            number("p_value"),
        )
    };
    let copy = found("copy.onnx");
    // What a model behind an interface answered.
    assert_eq!(found("labels.npy"), copy);
    assert_eq!(found("rows.npy"), copy);
    claim("fewer.npy", "marked.occ").fails_with(1, "1500 answers to 1700 inputs");
    let (inputs, marked, matched, p) = copy;
    assert!(
        inputs == 1500.0 && matched == marked,
        "{matched} of {marked}"
    );
    assert!(p < 1e-90, "{p}");
    let (inputs, others, matched, p) = found("honest.onnx");
    assert!(
        inputs == 1500.0 && others == marked && matched == 0.0,
        "{matched}"
    );
    assert!(p > 0.99, "{p}");
    claim("copy.onnx", "model.occ").fails_with(1, "it was sealed without a guard");
    let text = run([
        "guard",
        "claim",
        &at("copy.onnx"),
        "--model",
        &sealed,
        "--key",
        &key,
        "--inputs",
        &candidates,
    ])
    .success();
    assert!(text.contains("inputs          1,500\n"), "{text}");
    assert!(text.contains("p-value         "), "{text}");
}

#[test]
fn an_owner_sees_what_a_guard_would_say_of_queries() {
    let Some(python) = python() else { return };
    let owner = Owner::new(115, &binary());
    let at = |name: &str| text(&owner.at(name)).to_owned();
    let script = support("telemetry.py");
    run_python(&python, &[text(&script), text(owner.folder())]).success();
    let expected = std::fs::read(owner.at("expected.json")).expect("written");
    let expected: serde_json::Value = serde_json::from_slice(&expected).expect("JSON");
    let issuer = run(["guard", "keygen", "-o", &at("issuer.pem")]).success();
    let guard = |telemetry: &str| {
        format!(
            "format = 1\noutput = \"{}\"\n[budgets]\nwindow-seconds = 60\nclient = {{ window = 1 }}\n\
             {telemetry}[[issuers]]\nname = \"someone\"\nkey = \"\"\"\n{issuer}\"\"\"\n",
            model::OUTPUT
        )
    };
    let telemetry = |queries: u32| {
        format!(
            "[telemetry]\nqueries = {queries}\nuncertain = {{ below = 0.35, share = 0.0 }}\n\
             distances = {{ normality = 0.9 }}\n"
        )
    };
    for (name, telemetry) in [
        ("guard.toml", telemetry(100)),
        ("longer.toml", telemetry(1000)),
        ("counted.toml", String::new()),
        (
            "dear.toml",
            "[work]\nbits = 10\ngain = 20\nmost-bits = 22\n".to_owned(),
        ),
    ] {
        std::fs::write(owner.at(name), guard(&telemetry)).expect("written");
    }
    owner.seal_with("watched.occ", 2, &["--guard", &at("guard.toml")]);
    owner.seal_with("counted.occ", 3, &["--guard", &at("counted.toml")]);
    let (key, queries) = (at("owner.key"), at("queries.npz"));
    let watch = |model: &str, more: &[&str]| {
        let model = at(model);
        let watch = [
            "guard", "watch", &model, "--key", &key, "--inputs", &queries,
        ];
        run([&watch[..], more].concat())
    };
    let said = watch("watched.occ", &["--json"]).success();
    let found: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let found = found["windows"].as_array().expect("windows");
    assert_eq!(found.len(), 4);
    let number = |of: &serde_json::Value, name: &str| of[name].as_f64().expect("a number");
    let windows = expected["windows"].as_array().expect("windows");
    for (found, expected) in found.iter().zip(windows) {
        assert_eq!(number(found, "queries"), 100.0);
        for name in ["uncertain", "normality"] {
            let (found, expected) = (number(found, name), number(expected, name));
            assert!(
                (found - expected).abs() < 1e-4,
                "{name}: {found}, {expected}"
            );
        }
        let unusual = number(expected, "uncertain") > 0.0;
        assert_eq!(found["uncertain-unusual"], unusual);
        assert_eq!(
            found["distances-unusual"],
            number(expected, "normality") < 0.9
        );
    }
    let made: Vec<bool> = found
        .iter()
        .map(|one| one["distances-unusual"] == true)
        .collect();
    assert_eq!(made, [false, false, false, true], "{said}");

    let text = watch("watched.occ", &[]).success();
    assert!(text.contains("windows         4\n"), "{text}");
    assert!(text.contains("  distances     1\n"), "{text}");
    let longer = at("longer.toml");
    watch("watched.occ", &["--guard", &longer])
        .fails_with(1, "no file has the 1000 queries of a window");
    watch("model.occ", &[]).fails_with(1, "it was sealed without a guard");
    watch("counted.occ", &[]).fails_with(1, "the guard has neither [telemetry] nor [work]");

    // What they would have cost.
    let dear = at("dear.toml");
    let said = watch("watched.occ", &["--guard", &dear, "--json"]).success();
    let found: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(found["windows"], serde_json::json!([]));
    let work = &found["work"][0];
    for name in ["answers", "gained", "hashes", "bits"] {
        let (found, expected) = (number(work, name), number(&expected["work"], name));
        assert!(
            (found / expected - 1.0).abs() < 1e-3,
            "{name}: {found}, {expected}"
        );
    }
    assert!(number(work, "bits") > 15.0, "{said}");
    let text = watch("watched.occ", &["--guard", &dear]).success();
    assert!(text.contains("clients         1\n"), "{text}");
    assert!(text.contains("\nbits, mean "), "{text}");
}

/// Runs the Python package's own tests, or those of them that a pattern says.
fn python_tests(python: &std::ffi::OsStr, more: &[&str]) {
    let tests = format!("{PYTHON_PACKAGE}/tests");
    let discover = ["-m", "unittest", "discover", "--start-directory", &tests];
    run_python(python, &[&discover[..], more].concat()).success();
}

#[test]
fn the_python_packages_own_tests_pass() {
    let Some(python) = python() else { return };
    python_tests(&python, &[]);
}

#[test]
fn guards_are_trained_with_pytorch_where_it_is_installed() {
    let Some(python) = python() else { return };
    if run_python(&python, &["-c", "import torch"]).code != 0 {
        println!("skipped: PyTorch is not installed, which takes gigabytes");
        return;
    }
    python_tests(&python, &["-k", "TrainingWithTorch"]);
}
