//! The format's description suffices: a reader written from it in another language,
//! sharing no code with this one, opens the published container.

#![allow(clippy::print_stdout, reason = "says that it was skipped")]

use std::process::Command;

#[test]
fn an_independent_reader_opens_the_published_container() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/read.py");
    let python = std::env::var("OCCLUDE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    match Command::new(&python).arg(script).output() {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => println!("skipped: {python}: {error}"),
    }
}
