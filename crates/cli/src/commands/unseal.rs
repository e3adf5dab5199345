//! `occlude unseal`

use occlude_container::UnsealError;

use crate::arguments::UnsealArguments;
use crate::commands;
use crate::failure::Failure;
use crate::output::Progress;

pub(crate) fn run(arguments: &UnsealArguments) -> Result<(), Failure> {
    let key = commands::owner_key(&arguments.key)?;
    let progress = Progress::new("unsealing");
    occlude_container::unseal_file(&arguments.container, &arguments.output, &key, &mut |at| {
        progress.at(at.done, at.total);
    })
    .map_err(|error| match error {
        UnsealError::Container(error) => commands::container_failure(&arguments.container, error),
        UnsealError::Open(error) => commands::open_failure(&arguments.container, error),
        UnsealError::Write(_) => {
            Failure::failed(error).while_doing(arguments.output.display().to_string())
        }
        other => Failure::failed(other),
    })
}
