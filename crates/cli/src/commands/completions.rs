//! `occlude completions`

use clap::CommandFactory;

use crate::arguments::{Arguments, CompletionsArguments};
use crate::failure::Failure;

#[expect(clippy::unnecessary_wraps, reason = "every command has one signature")]
pub(crate) fn run(arguments: &CompletionsArguments) -> Result<(), Failure> {
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "occlude",
        &mut std::io::stdout(),
    );
    Ok(())
}
