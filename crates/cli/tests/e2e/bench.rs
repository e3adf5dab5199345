//! `occlude bench` on a small model: what it prints, and that the numbers can be.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::deployment::text;
use crate::support::model;
use crate::support::process::{binary, occlude, run, said};

/// The small model in a folder of its own.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(
        folder.path().join("classifier.onnx"),
        model::classifier(1).onnx,
    )
    .expect("the model is written");
    folder
}

fn bench(folder: &tempfile::TempDir, more: &[&str]) -> Value {
    let model = folder.path().join("classifier.onnx");
    let mut arguments = vec!["bench", text(&model), "--runs", "3", "--json"];
    arguments.extend(more);
    let printed = run(arguments).success();
    serde_json::from_str(&printed).expect("one JSON document and nothing else")
}

/// One example under this name, as `numpy.savez` would write it.
fn inputs(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = folder.path().join("x.npz");
    let mut archive = zip::ZipWriter::new(File::create(&path).expect("created"));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive
        .start_file(format!("{name}.npy"), stored)
        .expect("started");
    archive
        .write_all(&model::npy(&model::secret_input(5)))
        .expect("written");
    archive.finish().expect("finished");
    path
}

fn fields(object: &Value) -> Vec<&str> {
    let object = object.as_object().expect("an object");
    let mut fields: Vec<&str> = object.keys().map(String::as_str).collect();
    fields.sort_unstable();
    fields
}

fn positive(object: &Value, names: &[&str]) {
    for name in names {
        let number = object[name].as_f64().expect("a number");
        assert!(number > 0.0 && number.is_finite(), "{name} is {number}");
    }
}

#[test]
fn json_has_exactly_the_documented_fields_with_plausible_numbers() {
    let folder = folder();
    let report = bench(&folder, &[]);
    assert_eq!(
        fields(&report),
        ["batch", "budgets", "model", "plain", "spill", "threads"]
    );
    assert_eq!(report["model"], "classifier.onnx");
    assert_eq!(report["spill"], "shared");
    assert_eq!(
        (&report["threads"], &report["batch"]),
        (&2.into(), &1.into())
    );
    let plain = [
        "cpu_ms",
        "first_answer_ms",
        "load_ms",
        "min_ms",
        "p50_ms",
        "p99_ms",
        "peak_mib",
        "per_second",
    ];
    assert_eq!(fields(&report["plain"]), plain);
    positive(&report["plain"], &plain);

    let budgets = report["budgets"].as_array().expect("a list");
    let names: Vec<&str> = budgets
        .iter()
        .map(|entry| entry["budget"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["resident", "50%", "25%", "0%"]);
    for entry in budgets {
        assert_eq!(
            fields(entry),
            [
                "budget",
                "max_abs_diff",
                "max_abs_output",
                "occlude",
                "ratio_min",
                "ratio_p50"
            ],
            "{entry}"
        );
        assert_eq!(
            fields(&entry["occlude"]),
            [
                "cpu_ms",
                "first_answer_ms",
                "load_ms",
                "min_ms",
                "opened_mib_per_run",
                "p50_ms",
                "p99_ms",
                "peak_protected_mib",
                "per_second",
                "resident_mib",
                "spill_cipher",
                "weights_mib",
                "wipe_ms",
            ],
        );
        positive(entry, &["ratio_p50", "ratio_min", "max_abs_output"]);
        let timed = [
            "p50_ms",
            "p99_ms",
            "min_ms",
            "per_second",
            "cpu_ms",
            "load_ms",
            "first_answer_ms",
        ];
        positive(&entry["occlude"], &timed);
        positive(&entry["occlude"], &["peak_protected_mib", "weights_mib"]);
        // Probabilities, from sums of 512 products.
        let difference = entry["max_abs_diff"].as_f64().expect("a number");
        assert!((0.0..1e-6).contains(&difference), "{difference}");
        assert!(entry["max_abs_output"].as_f64() <= Some(1.0));
    }
    let streamed = &budgets[3]["occlude"];
    let ciphers = ["aegis-128l", "aegis-128x2", "aegis-128x4", "aes-256-gcm"];
    let cipher = streamed["spill_cipher"].as_str().expect("a name");
    assert!(ciphers.contains(&cipher), "{cipher}");
    assert!(streamed["resident_mib"].as_f64() < streamed["weights_mib"].as_f64());
    positive(streamed, &["opened_mib_per_run"]);
    assert_eq!(budgets[0]["occlude"]["opened_mib_per_run"], 0.0);
}

#[test]
fn a_batch_is_as_large_as_asked_for_or_as_the_inputs_are() {
    let folder = folder();
    let asked = bench(&folder, &["--batch", "3", "--budget", "resident"]);
    assert_eq!(asked["batch"], 3);

    let inputs = inputs(&folder, model::INPUT);
    let given = bench(
        &folder,
        &["--inputs", text(&inputs), "--budget", "resident"],
    );
    assert_eq!(given["batch"], 1);
}

#[test]
fn without_json_a_table_says_how_memory_was_taken() {
    let folder = folder();
    let model = folder.path().join("classifier.onnx");
    let printed = run(["bench", text(&model), "--runs", "1", "--budget", "25%"]).success();
    assert!(
        printed.starts_with("classifier.onnx: 2 threads, batch 1\n"),
        "{printed}"
    );
    for said in [
        "\nplain ONNX Runtime ",
        "\n25% ",
        "\nStreamed weights are encrypted with ",
        "shared mapping",
        "nothing subtracted",
    ] {
        assert!(printed.contains(said), "{said} is not in {printed}");
    }
}

#[test]
fn weights_in_a_file_give_the_same_answers_and_a_folder_in_memory_is_refused() {
    let folder = folder();
    // On a disk wherever programs are built on one.
    let program = std::env::current_exe().expect("a program");
    let place = program.parent().expect("a folder");
    let spill = format!("direct:{}", text(place));
    let report = bench(&folder, &["--budget", "0%", "--spill", &spill]);
    assert_eq!(report["spill"], spill);
    let budget = &report["budgets"][0];
    if let Some(refused) = budget["refused"].as_str() {
        eprintln!("skipped: {refused}");
        return;
    }
    positive(
        &budget["occlude"],
        &["opened_mib_per_run", "p50_ms", "read_ms", "read_p50_ms"],
    );
    assert!(budget["max_abs_diff"].as_f64() < Some(1e-6), "{budget}");
    let model = folder.path().join("classifier.onnx");
    let arguments = [
        "bench",
        text(&model),
        "--runs",
        "1",
        "--budget",
        "0%",
        "--spill",
        &spill,
    ];
    let printed = run(arguments).success();
    for said in ["Sealed weights lie in a file", "\n0%: the disk takes "] {
        assert!(printed.contains(said), "{said} is not in {printed}");
    }

    let report = bench(&folder, &["--budget", "0%", "--spill", "direct:/dev/shm"]);
    let refused = report["budgets"][0]["refused"]
        .as_str()
        .expect("a sentence");
    assert!(refused.contains("/dev/shm: its file system"), "{refused}");
}

#[test]
fn a_budget_that_cannot_work_is_shown_with_the_reason_and_the_others_run() {
    let folder = folder();
    let report = bench(&folder, &["--budget", "1KiB", "--budget", "0%"]);
    let budgets = report["budgets"].as_array().expect("a list");
    assert_eq!(fields(&budgets[0]), ["budget", "refused", "smallest_mib"]);
    assert_eq!(budgets[0]["budget"], "1KiB");
    let refused = budgets[0]["refused"].as_str().expect("a sentence");
    assert!(refused.contains("not enough"), "{refused}");
    positive(&budgets[1], &["ratio_p50"]);

    let model = folder.path().join("classifier.onnx");
    let printed = run(["bench", text(&model), "--runs", "1", "--budget", "1KiB"]).success();
    assert!(printed.contains(" refused\n"), "{printed}");
    // What the process itself takes differs a little from one to the next.
    let (said, _) = refused.split_once(" needs ").expect("what it needs");
    assert!(
        printed.contains(&format!("\n1KiB: {said} needs ")),
        "{printed}"
    );
}

#[test]
fn inputs_of_another_name_are_an_error_that_says_so() {
    let folder = folder();
    let model = folder.path().join("classifier.onnx");
    let inputs = inputs(&folder, "other");
    run(["bench", text(&model), "--inputs", text(&inputs)])
        .fails_with(1, "classifier.onnx: plain ONNX Runtime: ");
}

#[test]
fn what_is_no_model_is_told_by_its_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("text.onnx");
    std::fs::write(&path, "this is no protobuf of any kind").expect("written");
    run(["bench", text(&path)]).fails_with(1, "text.onnx: not an ONNX model");
}

/// Its telemetry client begins by writing an id and a store of events into these folders;
/// without them it never ran, and so sent nothing.
#[test]
fn onnx_runtime_keeps_and_sends_no_telemetry_whatever_the_environment_says() {
    let folder = folder();
    let model = folder.path().join("classifier.onnx");
    for value in [None, Some("0"), Some("")] {
        let home = tempfile::tempdir().expect("a temporary folder");
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let mut command = occlude(&binary());
        // Where it takes itself to be tested, it keeps quiet by itself.
        for name in [
            "CI",
            "GITHUB_ACTIONS",
            "TF_BUILD",
            "XDG_CACHE_HOME",
            "ORT_DISABLE_TELEMETRY",
        ] {
            command.env_remove(name);
        }
        command.envs(value.map(|value| ("ORT_DISABLE_TELEMETRY", value)));
        command
            .env("HOME", home.path())
            .env("TMPDIR", temporary.path());
        command.args(["bench", text(&model), "--runs", "3", "--budget", "resident"]);
        said(&command.output().expect("the binary runs")).success();
        for folder in [&home, &temporary] {
            let left: Vec<_> = std::fs::read_dir(folder).expect("readable").collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}
