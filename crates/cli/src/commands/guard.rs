//! `occlude guard`

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use occlude_attest::UnixTime;
use occlude_container::Container;
use occlude_engine::{LibrarySearch, LoadOptions, Model, Runtime};
use occlude_evaluate::claim::Suspect;
use occlude_evaluate::watch::{WatchedWindow, WatchedWork, quantile};
use occlude_guard::{Claims, Guard, GuardConfiguration, METADATA_KEY, issue};
use occlude_keys::{IssuerKey, ModelKey};
use occlude_usage::SketchKey;

use crate::arguments::{
    ClaimArguments, GuardAction, GuardArguments, IssuerKeygenArguments, TokenArguments,
    TuneArguments, WatchArguments,
};
use crate::commands::python;
use crate::failure::Failure;
use crate::output::{self, Progress};
use crate::{commands, tensors};

const SECONDS_A_DAY: u64 = 24 * 3600;

pub(crate) fn run(arguments: &GuardArguments) -> Result<(), Failure> {
    match &arguments.action {
        GuardAction::Keygen(arguments) => keygen(arguments),
        GuardAction::Token(arguments) => token(arguments),
        GuardAction::Tune(arguments) => tune(arguments),
        GuardAction::Claim(arguments) => claim(arguments),
        GuardAction::Watch(arguments) => watch(arguments),
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
        aud: arguments.model.iter().map(ToString::to_string).collect(),
        exp: UnixTime::now().0 + arguments.days * SECONDS_A_DAY,
    };
    output::line(issue(&key, &claims));
    Ok(())
}

/// As the Python package does it.
fn tune(arguments: &TuneArguments) -> Result<(), Failure> {
    let python = python::with(arguments.python.as_deref(), &["occlude.guard"])?;
    let mut command = Command::new(python);
    command.args(["-B", "-m", "occlude.guard", "tune"]);
    command
        .arg(&arguments.model)
        .arg("--data")
        .arg(&arguments.data);
    let numbers = [("--nu", arguments.nu), ("--tau", arguments.tau)];
    for (name, number) in numbers {
        command.args(number.map(|number| format!("{name}={number}")));
    }
    for (name, file) in [("--plot", &arguments.plot), ("--guard", &arguments.guard)] {
        if let Some(file) = file {
            command.arg(name).arg(file);
        }
    }
    if let Some(answers) = &arguments.answers {
        command.args(["--answers", answers]);
    }
    if arguments.json {
        command.arg("--json");
    }
    let said = command.output().map_err(Failure::failed)?;
    let notes = String::from_utf8_lossy(&said.stderr).into_owned();
    if !said.status.success() {
        // Its own errors begin so; any other ends with what it is.
        let own = notes
            .split_once("occlude.guard: ")
            .map(|(_, reason)| reason);
        let mut lines = notes.lines().rev();
        let last = lines.find(|line| !line.trim().is_empty());
        let reason = own.or(last).unwrap_or("Python said nothing").trim();
        return Err(Failure::failed(anyhow::Error::msg(reason.to_owned())));
    }
    output::raw(&said.stdout);
    for note in notes.lines() {
        output::note(note);
    }
    Ok(())
}

fn claim(arguments: &ClaimArguments) -> Result<(), Failure> {
    let inputs = tensors::read_npz(&arguments.inputs).map_err(Failure::failed)?;
    let answers = arguments
        .suspect
        .extension()
        .is_some_and(|end| end == "npy");
    let answers = answers.then(|| tensors::read_array(&arguments.suspect));
    let answers = answers.transpose().map_err(Failure::failed)?;
    let Owned {
        runtime,
        model,
        guard,
        ..
    } = Owned::load(&arguments.model, &arguments.key, None)?;
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

fn watch(arguments: &WatchArguments) -> Result<(), Failure> {
    let owned = Owned::load(&arguments.model, &arguments.key, arguments.guard.as_deref())?;
    let key = SketchKey::of(&owned.key);
    let progress = Progress::new("asking");
    let (mut windows, mut work) = (Vec::new(), Vec::new());
    for path in &arguments.inputs {
        let inputs = tensors::read_npz(path).map_err(Failure::failed)?;
        let mut at = |done, all| progress.at(done, all);
        let model = (&owned.model, &owned.guard, &key);
        let found = occlude_evaluate::watch::watch(model, &inputs, &mut at);
        let in_file = |error| Failure::failed(error).while_doing(path.display().to_string());
        let found = found.map_err(in_file)?;
        windows.extend(found.windows);
        work.extend(found.work);
    }
    drop(progress);
    if windows.is_empty() && work.is_empty() {
        let queries = owned.guard.configuration().telemetry;
        let queries = queries.map_or(0, |telemetry| telemetry.queries);
        return Err(Failure::failed(anyhow::anyhow!(
            "no file has the {queries} queries of a window"
        )));
    }
    if arguments.json {
        return output::json(&serde_json::json!({ "windows": windows, "work": work }));
    }
    if !windows.is_empty() {
        show_windows(&windows);
    }
    if !work.is_empty() {
        show_work(&work);
    }
    Ok(())
}

fn show_windows(windows: &[WatchedWindow]) {
    let count = |unusual: fn(&WatchedWindow) -> bool| {
        windows.iter().filter(|window| unusual(window)).count()
    };
    for (what, count) in [
        ("windows", windows.len()),
        ("unusual", count(WatchedWindow::is_unusual)),
        ("  uncertain", count(|window| window.uncertain_unusual)),
        ("  distances", count(|window| window.distances_unusual)),
    ] {
        output::line(format_args!("{what:15} {}", output::grouped(count as u64)));
    }
    let shares: Vec<f64> = windows.iter().map(|window| window.uncertain).collect();
    let normalities: Vec<f64> = windows.iter().filter_map(|one| one.normality).collect();
    output::line("");
    show_quantiles(3, &[("uncertain", shares), ("normality", normalities)]);
    output::line("");
}

/// Each file as one client's.
fn show_work(work: &[WatchedWork]) {
    output::line(format_args!(
        "clients         {}",
        output::grouped(work.len() as u64)
    ));
    let each = |value: fn(&WatchedWork) -> f64| work.iter().map(value).collect::<Vec<f64>>();
    output::line("");
    show_quantiles(
        1,
        &[
            ("answers", each(|one| one.answers as f64)),
            ("gained", each(|one| one.gained)),
            ("bits, then", each(|one| f64::from(one.bits))),
            (
                "bits, mean",
                each(|one| (one.hashes / one.answers.max(1) as f64).log2()),
            ),
        ],
    );
}

fn show_quantiles(decimals: usize, rows: &[(&str, Vec<f64>)]) {
    output::line("                 least      1%  median     99%    most");
    for (what, values) in rows {
        let cells: String = [0.0, 0.01, 0.5, 0.99, 1.0]
            .map(|share| match quantile(values.iter().copied(), share) {
                Some(value) => format!(" {value:7.decimals$}"),
                None => "       -".to_owned(),
            })
            .concat();
        output::line(format_args!("{what:14}{cells}"));
    }
}

/// A model as its owner has it, with its guard.
struct Owned {
    runtime: &'static Runtime,
    model: Model,
    guard: Guard,
    key: ModelKey,
}

impl Owned {
    /// Opens a sealed model with its own guard or another.
    fn load(path: &Path, key: &Path, guard: Option<&Path>) -> Result<Self, Failure> {
        let in_file = |failure: Failure| failure.while_doing(path.display().to_string());
        let key = commands::owner_key(key)?;
        let refused = |error| commands::container_failure(path, error);
        let container = Container::read(path).map_err(refused)?;
        let signed = container.verify_owner(&key.public()).map_err(refused)?;
        let key = occlude_container::model_key(&key, signed.header());
        let open = signed.open(&key);
        let open = open.map_err(|error| commands::open_failure(path, error))?;
        let configuration = match guard {
            Some(guard) => read(guard)?,
            None => {
                let sealed = open.metadata().get(METADATA_KEY);
                let sealed = sealed.ok_or_else(|| {
                    in_file(Failure::failed(anyhow::Error::msg(
                        "it was sealed without a guard",
                    )))
                })?;
                let read = GuardConfiguration::from_json(sealed);
                read.map_err(|error| in_file(Failure::failed(error)))?
            }
        };
        let runtime = Runtime::load(&LibrarySearch::standard()).map_err(Failure::failed)?;
        let model = Model::load(runtime, &Arc::new(open), &LoadOptions::default());
        let model = model.map_err(|error| in_file(Failure::failed(error)))?;
        let guard = Guard::new(configuration, model.outputs(), &key);
        let guard = guard.map_err(|error| in_file(Failure::failed(error)))?;
        Ok(Self {
            runtime,
            model,
            guard,
            key,
        })
    }
}

/// What an owner wrote.
pub(crate) fn read(path: &Path) -> Result<GuardConfiguration, Failure> {
    let in_file = |failure: Failure| failure.while_doing(path.display().to_string());
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| in_file(Failure::failed(error)))?;
    GuardConfiguration::from_toml(&text).map_err(|error| in_file(Failure::failed(error)))
}

fn issuer_key(path: &Path) -> Result<IssuerKey, Failure> {
    IssuerKey::read_from(path).map_err(Failure::failed)
}
