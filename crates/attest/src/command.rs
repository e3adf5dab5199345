//! Evidence that a command of the operator's fetches, where no interface of the kernel's
//! gives it. The command is in the TEE, and nothing that it prints is believed: it is
//! evidence, to be verified by whoever asked.

use std::io::{Error, ErrorKind, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::{Binding, CollectError};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most that it may print.
const MAX_BYTES: u64 = 256 * 1024;

/// Runs a command with the binding as 128 hexadecimal digits behind its own arguments, and
/// gives what it prints.
pub(crate) fn run(command: &[String], binding: &Binding) -> Result<Vec<u8>, CollectError> {
    run_with(command, &binding.to_string())
}

/// The same with another last argument than the binding as it is.
pub(crate) fn run_with(command: &[String], argument: &str) -> Result<Vec<u8>, CollectError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(CollectError::NoCommand);
    };
    let failed = |source| CollectError::Io {
        path: program.into(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let output = child.stdout.take();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut printed = Vec::new();
        let read = output.map_or(Ok(0), |output| {
            output.take(MAX_BYTES + 1).read_to_end(&mut printed)
        });
        // Nobody listens any more if it took too long.
        let _ = sender.send(read.map(|_| printed));
    });
    let printed = receiver.recv_timeout(PATIENCE);
    if printed.is_err() {
        // It may have ended by itself just now.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let printed = printed
        .map_err(|_| failed(ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    // First, since a program that nobody reads any more fails for that alone.
    if printed.len() as u64 > MAX_BYTES {
        return Err(failed(Error::other(format!(
            "it printed more than {MAX_BYTES} bytes"
        ))));
    }
    if !status.success() {
        return Err(failed(Error::other(status.to_string())));
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Vec<u8>, CollectError> {
        let command = ["sh", "-c", script, "sh"].map(str::to_owned);
        run(&command, &Binding::from([0x5a; 64]))
    }

    #[test]
    fn a_command_is_given_the_binding_and_prints_evidence() {
        assert_eq!(shell("printf %s $1").unwrap(), "5a".repeat(64).as_bytes());
    }

    #[test]
    fn a_command_that_fails_or_prints_without_end_gives_none() {
        let said = |script: &str| shell(script).unwrap_err().to_string();
        assert_eq!(said("printf evidence; exit 3"), "sh: exit status: 3");
        assert_eq!(
            said("exec head -c 300000 /dev/zero"),
            "sh: it printed more than 262144 bytes"
        );
        let absent = run(&["/no/such/command".to_owned()], &Binding::from([1; 64]));
        assert_eq!(
            absent.unwrap_err().to_string(),
            "/no/such/command: No such file or directory (os error 2)"
        );
        let none = run(&[], &Binding::from([1; 64])).unwrap_err().to_string();
        assert_eq!(
            none,
            "no command fetches this evidence: give one with --evidence-command"
        );
    }
}
