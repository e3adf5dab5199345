//! `occlude tee`

use occlude_attest::{Machine, automatic, survey};

use crate::arguments::{TeeAction, TeeArguments};
use crate::failure::Failure;
use crate::output;

pub(crate) fn run(arguments: TeeArguments) -> Result<(), Failure> {
    let TeeAction::List { root, json } = arguments.action;
    let machine = Machine::at(root);
    let found = survey(&machine);
    if json {
        return output::json(&found);
    }
    for one in &found {
        let present = if one.present { "present" } else { "absent" };
        output::line(format_args!(
            "{:12}  {present:7}  {}",
            one.tee.name(),
            one.collection
        ));
        for reason in &one.because {
            output::line(format_args!("              {reason}"));
        }
    }
    match automatic(&machine) {
        Some(tee) => output::note(format_args!("occlude: --tee auto is {tee} here")),
        None => output::note(
            "occlude: --tee auto finds nothing here: no TEE that hides memory is present",
        ),
    }
    Ok(())
}
