//! `occlude completions`

use clap::CommandFactory;

use crate::arguments::{Arguments, CompletionsArguments};
use crate::failure::Failure;
use crate::output;

#[expect(clippy::unnecessary_wraps, reason = "every command has one signature")]
pub(crate) fn run(arguments: &CompletionsArguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "occlude",
        &mut script,
    );
    output::raw(&script);
    Ok(())
}
