//! `occlude guard`

use std::path::Path;

use occlude_attest::UnixTime;
use occlude_guard::{Claims, issue};
use occlude_keys::IssuerKey;

use crate::arguments::{GuardAction, GuardArguments, IssuerKeygenArguments, TokenArguments};
use crate::failure::Failure;
use crate::output;

const SECONDS_A_DAY: u64 = 24 * 3600;

pub(crate) fn run(arguments: &GuardArguments) -> Result<(), Failure> {
    match &arguments.action {
        GuardAction::Keygen(arguments) => keygen(arguments),
        GuardAction::Token(arguments) => token(arguments),
    }
}

fn keygen(arguments: &IssuerKeygenArguments) -> Result<(), Failure> {
    let public = match (&arguments.public, &arguments.output) {
        (Some(existing), _) => issuer_key(existing)?.public(),
        (None, Some(new)) => {
            let key = IssuerKey::generate();
            key.write_new(new).map_err(Failure::failed)?;
            output::note(format_args!(
                "occlude: wrote {} (keep it secret, keep a copy)",
                new.display()
            ));
            key.public()
        }
        (None, None) => return Err(Failure::usage("give --output or --public")),
    };
    output::raw(public.to_string().as_bytes());
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

fn issuer_key(path: &Path) -> Result<IssuerKey, Failure> {
    IssuerKey::read_from(path).map_err(Failure::failed)
}
