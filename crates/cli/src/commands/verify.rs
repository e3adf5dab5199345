//! `occlude verify`

use occlude_container::Container;

use crate::arguments::VerifyArguments;
use crate::commands;
use crate::failure::Failure;
use crate::output::{self, Progress};

pub(crate) fn run(arguments: &VerifyArguments) -> Result<(), Failure> {
    let key = arguments
        .key
        .as_deref()
        .map(commands::owner_key)
        .transpose()?;
    let owner = match (&arguments.owner, &key) {
        (Some(owner), Some(key)) if *owner != key.public() => {
            return Err(Failure::usage("--owner is not the public half of --key"));
        }
        (Some(owner), _) => *owner,
        (None, Some(key)) => key.public(),
        (None, None) => return Err(Failure::usage("give --owner or --key")),
    };
    let path = &arguments.container;
    let refused = |error| commands::container_failure(path, error);
    let signed = Container::read(path)
        .and_then(|container| container.verify_owner(&owner))
        .map_err(refused)?;
    let header = signed.header().clone();
    let progress = Progress::new("verifying");
    let mut report = |at: occlude_container::Progress| progress.at(at.done, at.total);
    match &key {
        None => signed.verify_ciphertext(&mut report).map_err(refused)?,
        Some(key) => {
            let model_key = occlude_container::model_key(key, &header);
            signed
                .open(&model_key)
                .and_then(|open| open.verify_all(&mut report))
                .map_err(|error| commands::open_failure(path, error))?;
        }
    }
    drop(progress);
    let checked = if key.is_some() {
        "signature, structure and every chunk"
    } else {
        "signature, structure and ciphertext digests"
    };
    if arguments.json {
        return output::json(&serde_json::json!({
            "verified": true,
            "checked": checked,
            "id": header.id(),
            "version": header.version(),
            "owner": header.owner(),
            "digest": header.digest(),
        }));
    }
    output::line(format_args!(
        "{}: {checked} hold",
        arguments.container.display()
    ));
    output::line(format_args!("id       {}", header.id()));
    output::line(format_args!("version  {}", header.version()));
    output::line(format_args!("owner    {}", header.owner()));
    output::line(format_args!("digest   {}", header.digest()));
    Ok(())
}
