//! Recorded evidence of real machines, which is not part of the repository.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::print_stdout, reason = "says that a test was skipped")]

use std::path::PathBuf;

/// The folder of recorded evidence: `OCCLUDE_EVIDENCE`, else `shared/evidence` beside the
/// repository. Without it a test says that it was skipped.
pub(crate) fn folder() -> Option<PathBuf> {
    let beside = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/evidence").into();
    let folder: PathBuf = std::env::var_os("OCCLUDE_EVIDENCE").map_or_else(beside, PathBuf::from);
    if !folder.is_dir() {
        println!("skipped: no recorded evidence in {}", folder.display());
        return None;
    }
    Some(folder)
}

/// A recorded file.
pub(crate) fn file(name: &str) -> Vec<u8> {
    let path = folder().expect("asked for before").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file that a dependency's package carries for its own tests, unpacked by Cargo.
pub(crate) fn packaged(package: &str, name: &str) -> Option<Vec<u8>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = std::fs::read_dir(home.join("registry/src")).ok()?;
    let found = registries
        .filter_map(Result::ok)
        .find_map(|registry| std::fs::read(registry.path().join(package).join(name)).ok());
    if found.is_none() {
        println!("skipped: no {name} in Cargo's copy of {package}");
    }
    found
}
