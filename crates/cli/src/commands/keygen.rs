//! `occlude keygen`

use occlude_keys::{OwnerKey, OwnerPublic};

use crate::arguments::KeygenArguments;
use crate::failure::Failure;
use crate::{commands, output};

pub(crate) fn run(arguments: &KeygenArguments) -> Result<(), Failure> {
    let key = commands::new_or_existing_key(
        &arguments.key,
        OwnerKey::read_from,
        OwnerKey::generate,
        OwnerKey::write_new,
    )?;
    print(&key.public(), arguments.json)
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
