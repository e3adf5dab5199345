//! `occlude guard`

use std::path::Path;
use std::sync::Arc;

use occlude_attest::UnixTime;
use occlude_container::Container;
use occlude_engine::{LibrarySearch, LoadOptions, Model, Runtime};
use occlude_evaluate::claim::{ClaimError, Suspect};
use occlude_guard::{Claims, Guard, GuardConfiguration, METADATA_KEY, issue};
use occlude_keys::IssuerKey;

use crate::arguments::{
    ClaimArguments, GuardAction, GuardArguments, IssuerKeygenArguments, TokenArguments,
};
use crate::failure::Failure;
use crate::output::{self, Progress};
use crate::{commands, tensors};

const SECONDS_A_DAY: u64 = 24 * 3600;

pub(crate) fn run(arguments: &GuardArguments) -> Result<(), Failure> {
    match &arguments.action {
        GuardAction::Keygen(arguments) => keygen(arguments),
        GuardAction::Token(arguments) => token(arguments),
        GuardAction::Claim(arguments) => claim(arguments),
    }
}

fn keygen(arguments: &IssuerKeygenArguments) -> Result<(), Failure> {
    let key = commands::new_or_existing_key(
        &arguments.key,
        IssuerKey::read_from,
        IssuerKey::generate,
        IssuerKey::write_new,
    )?;
    output::raw(key.public().to_string().as_bytes());
    Ok(())
}

fn token(arguments: &TokenArguments) -> Result<(), Failure> {
    for (name, value) in [
        ("--issuer", &arguments.issuer),
        ("--subject", &arguments.subject),
    ] {
        if !(1..=Claims::LONGEST_NAME).contains(&value.len()) {
            let (found, longest) = (value.len(), Claims::LONGEST_NAME);
            return Err(Failure::usage(format!(
                "{name} has {found} bytes, expected 1 to {longest}"
            )));
        }
    }
    let key = issuer_key(&arguments.key)?;
    let claims = Claims {
        iss: arguments.issuer.clone(),
        sub: arguments.subject.clone(),
        aud: arguments.model.to_string(),
        exp: UnixTime::now().0 + arguments.days * SECONDS_A_DAY,
    };
    output::line(issue(&key, &claims));
    Ok(())
}

fn claim(arguments: &ClaimArguments) -> Result<(), Failure> {
    let path = &arguments.model;
    let in_file = |failure: Failure| failure.while_doing(path.display().to_string());
    let inputs = tensors::read_npz(&arguments.inputs).map_err(Failure::failed)?;
    let answers = arguments
        .suspect
        .extension()
        .is_some_and(|end| end == "npy");
    let answers = answers.then(|| tensors::read_array(&arguments.suspect));
    let answers = answers.transpose().map_err(Failure::failed)?;
    let key = commands::owner_key(&arguments.key)?;
    let refused = |error| commands::container_failure(path, error);
    let container = Container::read(path).map_err(refused)?;
    let signed = container.verify_owner(&key.public()).map_err(refused)?;
    let model_key = occlude_container::model_key(&key, signed.header());
    let open = signed.open(&model_key);
    let open = open.map_err(|error| commands::open_failure(path, error))?;
    let guard = open.metadata().get(METADATA_KEY);
    let guard = guard.ok_or_else(|| in_file(Failure::failed(ClaimError::NoWatermark)))?;
    let guard = GuardConfiguration::from_json(guard);
    let guard = guard.map_err(|error| in_file(Failure::failed(error)))?;
    let runtime = Runtime::load(&LibrarySearch::standard()).map_err(Failure::failed)?;
    let model = Model::load(runtime, &Arc::new(open), &LoadOptions::default());
    let model = model.map_err(|error| in_file(Failure::failed(error)))?;
    let guard = Guard::new(guard, model.outputs(), &model_key);
    let guard = guard.map_err(|error| in_file(Failure::failed(error)))?;
    let progress = Progress::new("asking both");
    let suspect = match &answers {
        Some(answers) => Suspect::Answers(answers),
        None => Suspect::Model {
            runtime,
            path: &arguments.suspect,
            output: arguments.output.as_deref(),
        },
    };
    let found =
        occlude_evaluate::claim::claim((&model, &guard), &suspect, &inputs, &mut |done, all| {
            progress.at(done, all);
        })
        .map_err(Failure::failed)?;
    drop(progress);
    if arguments.json {
        return output::json(&found);
    }
    for (what, value) in [
        ("inputs", output::grouped(found.inputs)),
        ("marked", output::grouped(found.marked)),
        ("said as marked", output::grouped(found.matched)),
        (
            "by chance",
            format!("{:.1} at most", found.expected_by_chance),
        ),
        ("p-value", format!("{:.1e}", found.p_value)),
    ] {
        output::line(format_args!("{what:15} {value}"));
    }
    Ok(())
}

fn issuer_key(path: &Path) -> Result<IssuerKey, Failure> {
    IssuerKey::read_from(path).map_err(Failure::failed)
}
