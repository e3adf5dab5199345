//! What the documents name has to exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The names of all functions: some tests are run by others, once for each database.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("readable");
            for line in source.lines().map(str::trim_start) {
                let line = line.strip_prefix("async ").unwrap_or(line);
                if let Some(rest) = line.strip_prefix("fn ") {
                    let name = rest.split(['(', '<']).next().unwrap_or_default();
                    names.insert(name.to_owned());
                }
            }
        }
    }
}

/// A row that claims a test which is not there, or that says neither what proves it nor
/// that nothing does, would be a promise without a proof.
#[test]
fn every_attack_names_tests_that_exist_or_says_that_there_is_none() {
    let mut known = BTreeSet::new();
    functions(&repository().join("crates"), &mut known);
    assert!(known.len() > 1000, "{}", known.len());
    let checks = occlude_evaluate::protection::names();
    known.extend(checks.iter().map(|name| (*name).to_owned()));
    let page = std::fs::read_to_string(repository().join("docs/attacks.md")).expect("readable");
    for check in checks {
        assert!(page.contains(&format!("`{check}`")), "{check} is not there");
    }
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        // The two outer ones are empty.
        assert_eq!(cells.len(), 10, "{line}");
        let (attack, does, proof, remains) = (cells[1], cells[6], cells[7], cells[8]);
        if attack == "attack" {
            continue;
        }
        rows += 1;
        let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        for name in &named {
            assert!(
                known.contains(*name),
                "{attack}: there is no test and no check {name}"
            );
        }
        if named.is_empty() {
            assert!(remains.contains("**Open**"), "{attack}: {remains}");
        } else if !does.contains("**Stopped") {
            assert!(
                !remains.is_empty(),
                "{attack}: not stopped, and nothing remains?"
            );
        }
    }
    assert!(rows > 30, "{rows} attacks");
}
