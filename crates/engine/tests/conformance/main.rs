//! Conformance: the node tests of the `onnx` package that plain ONNX Runtime
//! passes, sealed and run by Occlude.
//!
//! ```text
//! conformance [--all] [--json] [PART OF A NAME]...
//! ```
//!
//! For each test: inputs after the first become weights, as far as plain ONNX
//! Runtime still gives the published outputs then ([`served`]); that model is
//! sealed, opened and loaded with everything streamed that can be ([`sealed`]); and
//! its outputs are compared with plain ONNX Runtime's within the test's own
//! tolerance ([`comparison`]). Tests run in child processes ([`supervision`]), since a
//! fault of ONNX Runtime ends a process.
//!
//! Without `--all` it is a fifth of the tests, always the same. `make conformance`
//! runs them all. The tests lie where `scripts/node-tests.py` puts them, or where
//! `OCCLUDE_NODE_TESTS` says.
//!
//! It has a main function of its own, and ends with lines like those of Rust's
//! test harness: each node test counts as a test.

#![expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]

mod comparison;
mod elements;
mod node_test;
mod plain;
mod report;
mod sealed;
mod served;
mod supervision;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use report::Report;
use sha2::{Digest, Sha256};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The first argument of a child process; the second is where the tests lie.
const WORKER_FLAG: &str = "--worker";

/// Where the tests lie; `target/node-tests` if it is not set.
const TESTS_VARIABLE: &str = "OCCLUDE_NODE_TESTS";

/// One in so many tests is run unless all are asked for.
const ONE_IN: u8 = 5;

/// What `cargo test` and people give to every test program at once.
const HARNESS_FLAGS: [&str; 5] = [
    "--show-output",
    "--nocapture",
    "--no-capture",
    "--quiet",
    "--test-threads=1",
];

fn main() -> Outcome<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, tests] = arguments.as_slice()
        && flag == WORKER_FLAG
    {
        worker::work(Path::new(tests))?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options::parse(&arguments)?;
    let Some(tests) = tests_folder() else {
        println!("test node_tests_of_the_onnx_package ... ignored, `make node-tests` writes them");
        println!("\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n");
        return Ok(ExitCode::SUCCESS);
    };
    let names = names(&tests)?;
    let chosen: Vec<String> = names
        .iter()
        .filter(|name| options.chooses(name))
        .cloned()
        .collect();
    let report = Report::new(names.len(), supervision::judge_all(&tests, &chosen)?);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}\n\n{}", report.for_people(), report.for_cargo());
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[derive(Default)]
struct Options {
    all: bool,
    json: bool,
    names: Vec<String>,
}

impl Options {
    /// Cargo hands its own flags for Rust's test harness to every test program.
    fn parse(arguments: &[String]) -> Outcome<Self> {
        let mut options = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "--all" => options.all = true,
                "--json" => options.json = true,
                flag if HARNESS_FLAGS.contains(&flag) => {}
                flag if flag.starts_with('-') => {
                    return Err(format!("{flag} is none of --all and --json").into());
                }
                name => options.names.push(name.to_owned()),
            }
        }
        Ok(options)
    }

    fn chooses(&self, name: &str) -> bool {
        if !self.names.is_empty() {
            return self.names.iter().any(|part| name.contains(part));
        }
        self.all || Sha256::digest(name)[0] % ONE_IN == 0
    }
}

fn tests_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(TESTS_VARIABLE) {
        return Some(folder.into());
    }
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("target/node-tests"))
        .find(|folder| folder.join("stamp").is_file())
}

fn names(tests: &Path) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    let entries = std::fs::read_dir(tests)
        .map_err(|error| format!("{}: {error}; run `make node-tests`", tests.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
