//! Exit codes, and the errors that carry them.

use std::process::ExitCode;

/// What the process says to its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed: a file, a format, an answer that was an error.
    Failed = 1,
    /// Used wrongly.
    Usage = 2,
    /// Refused by policy or verification: do not simply try again.
    Refused = 3,
    /// Not available now: try again later.
    Unavailable = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error on its way to the user, with the exit code that it ends in.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    /// Exit code 1.
    pub(crate) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Failed,
            error: error.into(),
        }
    }

    /// Exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            error: anyhow::Error::msg(message.into()),
        }
    }

    /// Exit code 3.
    pub(crate) fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Refused,
            error: error.into(),
        }
    }

    /// Exit code 4.
    pub(crate) fn unavailable(error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Unavailable,
            error: error.into(),
        }
    }

    /// Says what was being done.
    pub(crate) fn while_doing(self, what: impl Into<String>) -> Self {
        Self {
            error: self.error.context(what.into()),
            ..self
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The whole chain on one line: `while doing: what: why`. An error that
        // already quotes what stands before it, or its source, is not repeated.
        let mut said = String::new();
        for cause in self.error.chain() {
            let text = cause.to_string();
            if text.contains(&said) {
                said = text;
            } else if !said.contains(&text) {
                said.push_str(": ");
                said.push_str(&text);
            }
        }
        f.write_str(&said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_done_and_why_it_failed_once() {
        let failure = Failure::refused(anyhow::anyhow!("no key")).while_doing("opening model.occ");
        assert_eq!(failure.to_string(), "opening model.occ: no key");
        assert_eq!(failure.exit(), Exit::Refused);
        let repeated =
            Failure::failed(anyhow::anyhow!("disk full")).while_doing("writing: disk full");
        assert_eq!(repeated.to_string(), "writing: disk full");
        let named = Failure::failed(anyhow::anyhow!("x.onnx: no such file")).while_doing("x.onnx");
        assert_eq!(named.to_string(), "x.onnx: no such file");
    }
}
