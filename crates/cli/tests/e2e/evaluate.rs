//! `occlude evaluate` on a small model: what it writes, and that a browser shows it.
#![allow(clippy::print_stdout, reason = "says that a test was skipped")]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::deployment::{Owner, text};
use crate::support::model;
use crate::support::process::{
    PYTHON_PACKAGE, Service, binary, free_address, occlude, production_binary, python, run,
    run_binary, said,
};

/// A folder with the small model.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plain = model::classifier(1).onnx;
    std::fs::write(folder.path().join("classifier.onnx"), plain).expect("the model is written");
    folder
}

fn numbers(row: &Value, names: &[&str]) {
    for name in names {
        let number = row[name].as_f64();
        let number = number.unwrap_or_else(|| panic!("{name} in {row}"));
        assert!(number > 0.0 && number.is_finite(), "{name} in {row}");
    }
}

#[test]
fn the_cost_of_a_model_is_measured_in_every_way_and_drawn() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (model, json, html) = (at("classifier.onnx"), at("cost.json"), at("cost.html"));
    let printed = run([
        "evaluate",
        "cost",
        text(&model),
        "--runs",
        "3",
        "--budget",
        "resident",
        "--budget",
        "0%",
        "--budget",
        "1MiB",
        "--json",
        text(&json),
        "--report",
        text(&html),
    ])
    .success();
    let report: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("one JSON document");
    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "plain ONNX Runtime",
            "opened whole, then plain",
            "Occlude, resident",
            "Occlude, 0%",
            "Occlude, 1MiB",
            "over the channel, resident",
        ]
    );
    for (place, row) in rows.iter().enumerate() {
        if place == 4 {
            numbers(row, &["smallest_mib"]);
            continue;
        }
        let timed = ["p50_ms", "p99_ms", "min_ms", "per_second", "cpu_ms"];
        numbers(row, &timed);
        numbers(row, &["first_answer_ms", "ratio_p50"]);
        // Probabilities, from sums of 512 products.
        let difference = row["max_abs_diff"].as_f64().expect("a number");
        assert!((0.0..1e-6).contains(&difference), "{row}");
        if place < 4 {
            numbers(row, &["peak_protected_mib"]);
        }
    }
    numbers(&rows[3], &["opened_mib_per_second"]);
    assert_eq!(report["tee"]["service"], "simulated");
    assert_eq!(report["tee"]["present"], Value::Null);
    let meaning = report["tee"]["meaning"].as_str().expect("words");
    assert!(meaning.contains("no number here is a TEE's overhead"));
    for said in [meaning, "Occlude, 1MiB: does not fit, smallest"] {
        assert!(printed.contains(said), "{said} in {printed}");
    }
    for part in ["engine_ms", "crypto_ms", "channel_ms"] {
        assert!(report["costs"][part].is_f64(), "{report}");
    }

    let Some(shown) = shown(folder.path(), &html) else {
        return;
    };
    for words in [
        "What protection costs: classifier.onnx",
        meaning,
        "does not fit, smallest",
        "over the channel, resident",
        "<svg",
        "<polyline",
        "confidential_first_layer_weight",
    ] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
}

/// The page as a browser has it. Its rules forbid it everything from outside, and what it
/// tried nevertheless, or any other error, would be on the console.
fn shown(home: &Path, page: &Path) -> Option<String> {
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--enable-logging=stderr", "--disable-background-networking"])
        .arg(format!("--user-data-dir={}", text(&home.join("browser"))))
        .arg(format!("file://{}", text(page)))
        .env("HOME", home)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: chromium is not installed");
            return None;
        }
        output => output.expect("chromium runs"),
    };
    assert!(output.status.success(), "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr);
    let console = log.lines().find(|line| line.contains("CONSOLE"));
    assert_eq!(console, None);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is asked of models that count each client.
fn who_is_counted_is_in_it(report: &Value) {
    let listed = |name: &str| report[name].as_array().expect("a list").clone();
    let count = |one: &Value, name: &str| one[name].as_u64().expect("a number");
    let throttled = listed("throttled");
    // Honest ones, six who ask different things, two of them under five names, and one hidden.
    assert_eq!(throttled.len(), 1 + 6 + 2 + 1);
    for one in &throttled {
        let [answers, queries] = ["answers", "queries"].map(|name| count(one, name));
        match (one["who"].as_str(), count(one, "names")) {
            // A false alarm would be one of fifteen windows.
            (Some("honest"), _) => assert!(answers > queries / 2, "{one}"),
            // Of so few queries of five clients none has a window.
            (_, 5) => assert_eq!(answers, queries, "{one}"),
            (Some("knockoff, hidden"), _) => assert!(answers < queries, "{one}"),
            // It has digits.
            (Some("jbda"), _) => assert!(answers >= 100, "{one}"),
            // The first window stops them.
            _ => assert!(answers == 100 && queries > 200, "{one}"),
        }
    }
    let worked = listed("worked");
    let names: Vec<_> = worked.iter().map(|one| count(one, "names")).collect();
    assert_eq!(names, [1, 1, 1, 5]);
    let latency = report["latency"]["each"].as_array().expect("a list");
    let ratio = |one: &Value| one["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0);
    assert_eq!(latency.len(), 8);
    assert!(latency.iter().all(ratio), "{latency:?}");
}

/// Few queries: that all of it runs, and which way the numbers point.
#[test]
fn copies_of_guarded_models_are_worse_and_all_of_it_is_drawn() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (json, html) = (
        folder.path().join("guard.json"),
        folder.path().join("guard.html"),
    );
    let mut command = occlude(&binary());
    command
        .args(["evaluate", "guard", "--queries", "300"])
        .args(["--json", text(&json), "--report", text(&html)])
        .arg("--python")
        .arg(&python)
        .env("PYTHONPATH", PYTHON_PACKAGE);
    let printed = said(&command.output().expect("it runs")).success();
    let report: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("one JSON document");
    let clones = report["clones"].as_array().expect("clones");
    // Each with 100 queries and with 300: eight attackers on seven defences of one network, two
    // on six of the larger, one on three of the logistic regression.
    assert_eq!(clones.len(), 2 * (8 * 7 + 2 * 6 + 3));
    let claims = report["claims"].as_array().expect("claims");
    assert_eq!(claims.len(), 2 * (8 * 2));
    for claim in claims {
        let p = claim["p_value"].as_f64().expect("a number");
        let innocent = claim["learned_from"] == "none";
        assert!(!innocent || p > 1e-4, "{claim}");
    }
    // Each name has what it may have, and no more.
    let names = report["names"]["clones"].as_array().expect("clones");
    let found: Vec<_> = names
        .iter()
        .map(|clone| ["names", "answers", "beyond"].map(|name| clone[name].as_u64()))
        .collect();
    let expected = [1, 3, 10].map(|names| [Some(names), Some(30 * names), Some(0)]);
    assert_eq!(found, expected);
    who_is_counted_is_in_it(&report);
    // Honest clients, and each attacker under one name, under five, and hidden.
    let telemetry = &report["telemetry"];
    let clients = telemetry["clients"].as_array().expect("clients");
    assert_eq!(clients.len(), 1 + 8 * 3);
    let false_positives = telemetry["false_positive_rate"].as_f64().expect("a number");
    assert!(false_positives < 0.1, "{telemetry}");
    let unusual = |who: &str, names: u64| {
        let found = clients
            .iter()
            .find(|client| client["who"] == who && client["identities"].as_u64() == Some(names));
        let count = |name| found.and_then(|client| client[name].as_u64());
        (count("unusual"), count("windows"))
    };
    // All that ask about no digits; of so few queries of five clients none has a window.
    for who in ["knockoff", "copycat", "random"] {
        assert_eq!(unusual(who, 1), (Some(3), Some(3)));
        assert_eq!(unusual(who, 5), (Some(0), Some(0)));
    }
    // What work costs them.
    let bits = |who: &str, names: u64| {
        let mut found = clients
            .iter()
            .filter(|client| client["who"] == who && client["identities"].as_u64() == Some(names));
        let client = found.next().expect("a client");
        client["bits"].as_f64().expect("a number")
    };
    assert!(bits("honest", 40) < 11.0, "{telemetry}");
    for who in ["knockoff", "copycat", "random"] {
        assert!(
            bits(who, 1) > 11.0 && bits(who, 1) > bits(who, 5),
            "{telemetry}"
        );
    }
    assert!(bits("jbda", 1) < 11.0, "{telemetry}");
    let number = |attacker: &str, name: &str| report[attacker][name].as_f64().expect("a number");
    for attacker in ["knockoff", "copycat", "letters", "random"] {
        let [without, with] = ["undefended", "defended"]
            .map(|side| number(attacker, &format!("{side}_clone_accuracy")));
        assert!(without > with + 0.05, "{attacker}: {without} and {with}");
    }
    assert!(number("knockoff", "benign_loss_points") < 2.0);
    // Who has digits is not stopped, and the report may not say so.
    assert!(number("jbda", "defended_clone_accuracy") > 0.8);
    // Equations of a logistic regression have one solution.
    let solved = number("equations", "undefended_clone_accuracy");
    let logistic = report["victims"].as_array().expect("victims");
    let logistic = logistic.iter().find(|one| one["id"] == "logistic-none");
    assert_eq!(
        Some(solved),
        logistic.and_then(|one| one["accuracy"].as_f64())
    );
    assert!(printed.contains("knockoff: with 300 queries"), "{printed}");

    let Some(shown) = shown(folder.path(), &html) else {
        return;
    };
    for words in [
        "What a guard does",
        "<polyline",
        "misinformation",
        "jbda on digits",
        "Watermarks",
        "false alarm",
        "bits of work",
        "Several names",
        "Stopped by telemetry",
        "Slowed by work",
        "random, hidden",
    ] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
}

#[test]
fn python_without_what_is_needed_is_told_before_anything_is_begun() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let empty = folder.path().join("python");
    std::fs::write(&empty, "#!/bin/sh\necho 'No module named x' >&2\nexit 1\n").expect("written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&empty, executable).expect("set");
    let guard = |python: &str| run(["evaluate", "guard", "--python", python]);
    guard(text(&empty)).fails_with(2, "No module named x: `make venv` in a checkout");
    guard("/no/such/python").fails_with(2, "/no/such/python: No such file");
}

/// Every attack fails, and each succeeds where the protection that it is about was left
/// out, or the check would show nothing.
#[test]
fn every_protection_holds_and_every_weakening_is_caught() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("protection.json");
    let ended = run(["evaluate", "protection", "--json", text(&json)]);
    let report: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("one JSON document");
    let checks = report["checks"].as_array().expect("checks");
    let names: Vec<&str> = checks
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, occlude_evaluate::protection::names());
    for check in checks {
        assert_eq!(check["verdict"], "held", "{check}");
        assert_eq!(check["weakened"]["verdict"], "broke", "{check}");
        assert!(!check["tried"].as_str().unwrap_or_default().is_empty());
    }
    let printed = ended.success();
    let count = checks.len();
    let last = printed.lines().last().unwrap_or_default();
    assert_eq!(
        last,
        format!("{count} checks, {count} held, {count} of {count} weakenings caught")
    );
    assert!(printed.contains("The TEE is simulated"), "{printed}");
    // Nothing goes on running: not what a shell started either.
    let running = std::fs::read_dir("/proc").expect("processes").flatten();
    let commands = running.map(|process| std::fs::read(process.path().join("cmdline")));
    let left = commands.flatten().filter(|command| {
        let words = String::from_utf8_lossy(command);
        words.contains("serve") && words.contains("hostile.occ")
    });
    assert_eq!(left.count(), 0);
}

/// What could not be carried out is a shortfall, and is told.
#[test]
fn a_check_that_cannot_be_carried_out_is_none_that_held() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("occlude");
    // Without the library beside it nothing serves.
    std::fs::copy(binary(), &copy).expect("copied");
    let said = run_binary(
        &copy,
        ["evaluate", "protection", "--check", "replayed-request"],
    );
    let last = said.out.lines().last().unwrap_or_default();
    assert_eq!(
        last, "1 checks, 0 held, 0 of 1 weakenings caught",
        "{}",
        said.out
    );
    assert!(
        said.out.contains("NOT TRIED  replayed-request"),
        "{}",
        said.out
    );
    said.fails_saying(1, "not everything held, or was noticed: see above");
    run(["evaluate", "protection", "--check", "everything"]).fails_with(2, "there is no check");
}

/// Whoever left a protection out has evidence that says so, and nobody else believes it.
#[test]
fn a_weakened_process_is_refused_by_every_other() {
    let owner = Owner::new(95, &binary());
    let address = free_address();
    let mut command = owner.serve_command(&binary(), "model.occ", address, &[]);
    command.env("OCCLUDE_WEAKENING", "no-padding");
    let weakened = Service::spawn(&mut command, owner.at("weakened.log"), address);
    weakened.ends().fails_with(3, "debug");
    let mut unknown = occlude(&binary());
    unknown
        .env("OCCLUDE_WEAKENING", "everything")
        .args(["tee", "list"]);
    said(&unknown.output().expect("it runs"))
        .fails_saying(2, "OCCLUDE_WEAKENING=everything: no such weakening");
    let Some(production) = production_binary() else {
        return;
    };
    let mut deaf = occlude(&production);
    deaf.env("OCCLUDE_WEAKENING", "everything")
        .args(["tee", "list"]);
    said(&deaf.output().expect("it runs")).success();
}

#[test]
fn an_interrupted_evaluation_leaves_nothing() {
    let folder = folder();
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).expect("made");
    let model = folder.path().join("classifier.onnx");
    let mut command = occlude(&binary());
    command.env("TMPDIR", &temporary);
    command.args(["evaluate", "cost", text(&model), "--runs", "300"]);
    // The deployment is measured last, for some seconds.
    command.args(["--budget", "1MiB"]);
    let log = folder.path().join("log");
    let evaluation = Service::spawn(&mut command, log, free_address());
    let begun = std::time::Instant::now();
    let server_log = || {
        let folders = std::fs::read_dir(&temporary).expect("readable").flatten();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()));
        files.flatten().flatten().any(|file| {
            let name = file.file_name();
            name.to_string_lossy().starts_with("server-")
        })
    };
    while !server_log() {
        assert!(begun.elapsed().as_secs() < 120, "{}", evaluation.log());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    evaluation.signal("INT");
    evaluation.ends().fails_saying(1, "interrupted");
    assert_eq!(std::fs::read_dir(&temporary).expect("readable").count(), 0);
}

/// What the report says that it was measured in must be so.
#[test]
fn a_tee_that_the_machine_does_not_have_is_refused() {
    let folder = folder();
    let model = folder.path().join("classifier.onnx");
    let said = run(["evaluate", "cost", text(&model), "--tee", "nitro"]);
    let reason = "--tee nitro: this machine does not have it: /dev/nsm is not there";
    said.fails_saying(2, reason);
}

#[test]
fn a_report_that_could_not_be_written_is_refused_before_anything_is_measured() {
    let folder = folder();
    let model = folder.path().join("classifier.onnx");
    let nowhere = folder.path().join("absent/report.html");
    let said = run(["evaluate", "cost", text(&model), "--report", text(&nowhere)]);
    let reason = format!("{}: its folder is not there", text(&nowhere));
    said.fails_saying(1, &reason);
    let said = run([
        "evaluate",
        "cost",
        text(&model),
        "--json",
        text(folder.path()),
    ]);
    said.fails_saying(1, &format!("{}: it is a folder", text(folder.path())));
}
