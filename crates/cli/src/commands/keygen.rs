//! `occlude keygen`

use occlude_keys::{OwnerKey, OwnerPublic};

use crate::arguments::KeygenArguments;
use crate::failure::Failure;
use crate::{commands, output};

pub(crate) fn run(arguments: &KeygenArguments) -> Result<(), Failure> {
    let public = match (&arguments.public, &arguments.output) {
        (Some(existing), _) => commands::owner_key(existing)?.public(),
        (None, Some(new)) => {
            let key = OwnerKey::generate();
            key.write_new(new).map_err(Failure::failed)?;
            output::note(format_args!(
                "occlude: wrote {} (keep it secret, keep a copy)",
                new.display()
            ));
            key.public()
        }
        (None, None) => return Err(Failure::usage("give --output or --public")),
    };
    print(&public, arguments.json)
}

fn print(public: &OwnerPublic, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&serde_json::json!({
            "public": public,
            "fingerprint": public.fingerprint(),
        }));
    }
    output::line(format_args!("public       {public}"));
    output::line(format_args!("fingerprint  {}", public.fingerprint()));
    Ok(())
}
