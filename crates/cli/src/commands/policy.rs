//! `occlude policy`

use occlude_attest::sign_policy;

use crate::arguments::{PolicyAction, PolicyArguments};
use crate::failure::Failure;
use crate::{commands, output};

pub(crate) fn run(arguments: &PolicyArguments) -> Result<(), Failure> {
    match &arguments.action {
        PolicyAction::Sign {
            policy,
            output,
            key,
        } => {
            let name = policy.display().to_string();
            let key = commands::owner_key(key)?;
            let text = std::fs::read_to_string(policy)
                .map_err(|error| Failure::failed(error).while_doing(&*name))?;
            let signed = sign_policy(&text, &key)
                .map_err(|error| Failure::failed(error).while_doing(&*name))?;
            commands::write_file(output, signed.as_bytes())?;
            output::note(format_args!("occlude: wrote {}", output.display()));
            Ok(())
        }
        PolicyAction::Show {
            policy,
            owner,
            json,
        } => {
            let policy = commands::policy(policy, owner.as_ref())?;
            if *json {
                return output::json(&policy);
            }
            output::line(policy.to_toml().trim_end());
            Ok(())
        }
    }
}
