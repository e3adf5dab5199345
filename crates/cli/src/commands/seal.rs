//! `occlude seal`

use std::path::Path;

use occlude_container::{ChunkSize, Metadata, SealError, SealOptions};
use occlude_guard::METADATA_KEY;
use occlude_keys::ModelId;

use crate::arguments::SealArguments;
use crate::commands;
use crate::failure::Failure;
use crate::output::{self, Progress};

pub(crate) fn run(arguments: &SealArguments) -> Result<(), Failure> {
    let chunk_size = ChunkSize::new(arguments.chunk_size.as_u64())
        .map_err(|error| Failure::usage(format!("--chunk-size: {error}")))?;
    let key = commands::owner_key(&arguments.key)?;
    let metadata = match &arguments.guard {
        Some(guard) => metadata_of(guard)?,
        None => Metadata::default(),
    };
    let options = SealOptions {
        id: arguments.id.clone().unwrap_or_else(ModelId::random),
        version: arguments.version,
        chunk_size,
        metadata,
    };
    let progress = Progress::new("sealing");
    let sealed = occlude_container::seal_file(
        &arguments.model,
        &arguments.output,
        &key,
        &options,
        &mut |at| progress.at(at.done, at.total),
    )
    .map_err(|error| match error {
        SealError::Output(_) => Failure::failed(error),
        SealError::Write(_) => {
            Failure::failed(error).while_doing(arguments.output.display().to_string())
        }
        _ => Failure::failed(error).while_doing(arguments.model.display().to_string()),
    })?;
    drop(progress);
    let header = &sealed.header;
    if arguments.json {
        return output::json(&serde_json::json!({
            "id": header.id(),
            "version": header.version(),
            "owner": header.owner(),
            "digest": header.digest(),
        }));
    }
    output::line(format_args!("id       {}", header.id()));
    output::line(format_args!("version  {}", header.version()));
    output::line(format_args!("digest   {}", header.digest()));
    Ok(())
}

/// What is sealed with a guarded model.
fn metadata_of(guard: &Path) -> Result<Metadata, Failure> {
    let guard = commands::guard::read(guard)?;
    let wrong = guard.misinformation.as_ref().map(|wrong| &wrong.output);
    Ok(Metadata {
        entries: [(METADATA_KEY.to_owned(), guard.to_json())].into(),
        outputs: [Some(&guard.output), wrong]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
    })
}
