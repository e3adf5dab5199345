//! The Python package's part of what this program does.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::failure::Failure;

/// Python that can import all of these, before anything else is begun.
pub(crate) fn with(named: Option<&Path>, modules: &[&str]) -> Result<OsString, Failure> {
    let local = Path::new(".venv/bin/python");
    let python = match named {
        Some(named) => named.as_os_str().to_owned(),
        None if local.exists() => local.into(),
        None => "python3".into(),
    };
    let imports = format!("import {}", modules.join(", "));
    let tried = Command::new(&python).args(["-B", "-c", &imports]).output();
    let reason = match tried {
        Ok(output) if output.status.success() => return Ok(python),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            said.lines().last().unwrap_or("it fails").to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(Failure::usage(format!(
        "{}: {reason}: `make venv` in a checkout makes an environment that has what is needed; name \
         it with --python .venv/bin/python",
        python.display()
    )))
}
