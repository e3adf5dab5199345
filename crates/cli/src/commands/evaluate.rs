//! `occlude evaluate`

use std::path::Path;

use occlude_attest::{Machine, TeeChoice, TeeKind, automatic, survey};
use occlude_engine::LibrarySearch;
use occlude_evaluate::bench::BenchOptions;
use occlude_evaluate::cost::{self, CostReport};
use occlude_evaluate::deployment::{DeploymentOptions, Running};
use occlude_evaluate::guard::{self, GuardOptions, GuardReport};
use occlude_evaluate::protection::{self, CheckReport, ProtectionOptions, Verdict};

use serde::Serialize;

use crate::arguments::{
    EvaluateAction, EvaluateArguments, EvaluateCostArguments, EvaluateGuardArguments,
    EvaluateProtectionArguments, WrittenArguments,
};
use crate::commands::{self, bench, python};
use crate::failure::Failure;
use crate::output::{self, Activity};

pub(crate) async fn run(arguments: EvaluateArguments) -> Result<(), Failure> {
    let running = Running::default();
    let started = running.clone();
    let mut measuring = tokio::task::spawn_blocking(move || match arguments.action {
        EvaluateAction::Cost(arguments) => cost(&arguments, started),
        EvaluateAction::Protection(arguments) => protection(&arguments, started),
        EvaluateAction::Guard(arguments) => guard(&arguments, started),
    });
    tokio::select! {
        outcome = &mut measuring => outcome.map_err(Failure::failed)?,
        () = commands::shutdown_signal() => {
            running.stop();
            output::error(&Failure::failed(anyhow::anyhow!("interrupted")));
            // The measuring itself cannot be stopped, and holds nothing but memory.
            std::process::exit(1);
        }
    }
}

fn cost(arguments: &EvaluateCostArguments, running: Running) -> Result<(), Failure> {
    check_folders(&arguments.written)?;
    let inputs = bench::inputs(arguments.inputs.as_deref(), arguments.batch)?;
    let name = arguments.model.display().to_string();
    let options = BenchOptions {
        model: arguments.model.clone(),
        budgets: arguments.budget.clone(),
        spill: arguments.spill.clone(),
        cipher: arguments.spill_cipher,
        threads: arguments.threads,
        runs: arguments.runs,
        inputs,
        library: LibrarySearch::standard(),
        opened_whole: true,
    };
    let tee = tee(arguments.machine.tee)?;
    let present = tee.filter(|tee| tee.is_chosen_automatically());
    let deployment = tee.map(|tee| DeploymentOptions {
        binary: "/proc/self/exe".into(),
        model: arguments.model.clone(),
        tee,
        collateral: arguments.machine.collateral.collateral.clone(),
        serve: cost::serve_arguments(arguments.threads),
        running,
    });
    let activity = Activity::new();
    let report = cost::cost(
        &options,
        deployment.as_ref(),
        present,
        &bench::measuring_process,
        &mut |stage| activity.is(bench::describe(stage)),
    )
    .map_err(|error| bench::failure(error, name))?;
    drop(activity);
    print(&report);
    write(&arguments.written, &report, cost::html)
}

fn protection(arguments: &EvaluateProtectionArguments, running: Running) -> Result<(), Failure> {
    if let Some(path) = &arguments.json {
        commands::check_folder_of(path)?;
    }
    let tee = some_tee(arguments.machine.tee)?;
    let options = ProtectionOptions {
        binary: "/proc/self/exe".into(),
        tee,
        collateral: arguments.machine.collateral.collateral.clone(),
        only: arguments.check.clone(),
        running,
    };
    let activity = Activity::new();
    let report = protection::protection(&options, &mut |done, of, name| {
        activity.is(format!("check {} of {of}: {name}", done + 1));
    })
    .map_err(|error| Failure::usage(format!("--check: {error}")))?;
    drop(activity);
    for check in &report.checks {
        print_check(check);
    }
    output::line(&report.meaning);
    if report.weakened() == 0 {
        output::line(
            "This build leaves no protection out: that each check can fail was not shown.",
        );
    }
    write_json(arguments.json.as_deref(), &report)?;
    output::line(report.summary());
    if report.complete() {
        return Ok(());
    }
    Err(Failure::failed(anyhow::anyhow!(
        "not everything held, or was noticed: see above"
    )))
}

fn guard(arguments: &EvaluateGuardArguments, running: Running) -> Result<(), Failure> {
    check_folders(&arguments.written)?;
    let options = GuardOptions {
        binary: "/proc/self/exe".into(),
        tee: some_tee(arguments.machine.tee)?,
        collateral: arguments.machine.collateral.collateral.clone(),
        python: python::with(
            arguments.python.as_deref(),
            &["occlude.guard.evaluation.outliers", "sklearn", "onnx"],
        )?,
        queries: arguments.queries,
        seed: arguments.seed,
        running,
    };
    let activity = Activity::new();
    let report = guard::guard(&options, &mut |doing| activity.is(doing.to_owned()))
        .map_err(Failure::failed)?;
    drop(activity);
    print_guards(&report);
    write(&arguments.written, &report, guard::html)
}

fn print_guards(report: &GuardReport) {
    output::line("held-out digits that answers have right");
    let victims = report.victims.iter().map(|victim| victim.cells().into());
    let header = [
        "model",
        "defence",
        "tau",
        "alone",
        "guarded",
        "outliers kept",
    ];
    output::table(&header, victims.collect(), &[2, 3, 4, 5]);
    output::line("");
    output::line("held-out digits that copies have right (and answer as the served model does)");
    let (header, rows) = report.table();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let numbers: Vec<usize> = (2..header.len()).collect();
    output::table(&header, rows, &numbers);
    output::line("");
    output::line("watermarks found in copies, asked about what they learned from");
    let claims = report.claims.iter().map(|claim| claim.cells().into());
    let header = [
        "attacker",
        "learned from",
        "queries",
        "said as marked",
        "by chance",
        "p-value",
    ];
    output::table(&header, claims.collect(), &[2, 3, 4, 5]);
    output::line("");
    if let Some(names) = &report.names {
        output::line(format_args!(
            "copies by KnockoffNets of the unguarded model where each name has {} answers",
            names.of_each
        ));
        let clones = names.clones.iter().map(|clone| clone.cells().into());
        let header = ["names", "answers", "names beyond", "right"];
        output::table(&header, clones.collect(), &[0, 1, 2, 3]);
        output::line("");
    }
    print_counted(report);
    if let Some(telemetry) = &report.telemetry {
        output::line(format_args!(
            "windows of {} queries that telemetry finds unusual; {} of honest ones",
            telemetry.queries,
            percent(telemetry.false_positive_rate)
        ));
        let clients = telemetry.clients.iter().map(|client| client.cells().into());
        let header = [
            "who asks",
            "names",
            "queries",
            "unusual",
            "by certainty",
            "by distances",
            "gained",
            "bits of work",
        ];
        output::table(&header, clients.collect(), &[1, 2, 3, 4, 5, 6, 7]);
        output::line(format_args!(
            "an answer's work begins at {} bits, doubles with each {:.1} gained, and ends at {}",
            telemetry.bits.0, telemetry.gain, telemetry.bits.1
        ));
        output::line("");
    }
    for (name, explained) in &report.attackers {
        output::line(format_args!("{name}: {explained}"));
    }
    output::line("");
    for (name, one) in &report.summaries {
        output::line(format_args!(
            "{name}: with {} queries a copy has {} of the unguarded model and {} of the guarded \
             one, whose users lose {:.1} points{}",
            one.queries,
            percent(one.undefended_clone_accuracy),
            percent(one.defended_clone_accuracy),
            one.benign_loss_points,
            if one.reached_95_percent {
                ""
            } else {
                " (never as good as the model to 95%)"
            }
        ));
    }
    output::line("");
    output::line("milliseconds of an answer over the channel");
    let each = report.latency.each.iter().map(|one| one.cells().into());
    let header = ["model", "defence", "without", "with", "ratio"];
    output::table(&header, each.collect(), &[2, 3, 4]);
}

/// What comes of who asks models that telemetry watches, and whose answers cost work.
fn print_counted(report: &GuardReport) {
    if !report.throttled.is_empty() {
        output::line("answers before telemetry stops who asks, and copies of so many");
        let clients = report.throttled.iter().map(|client| client.cells().into());
        let header = ["who asks", "names", "answers", "right"];
        output::table(&header, clients.collect(), &[1, 2, 3]);
        output::line("");
    }
    if !report.worked.is_empty() {
        output::line("seconds that all answers take where they cost (cheap) work");
        let clients = report.worked.iter().map(|client| client.cells().into());
        let header = ["who asks", "names", "answers", "without", "with work"];
        output::table(&header, clients.collect(), &[1, 2, 3, 4]);
        output::line("");
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn print_check(check: &CheckReport) {
    let said = |verdict: &Verdict| match verdict {
        Verdict::Held(seen) => ("held", seen.clone()),
        Verdict::Broke(seen) => ("BROKE", seen.clone()),
        Verdict::NotTried(reason) => ("NOT TRIED", reason.clone()),
    };
    let (verdict, seen) = said(&check.verdict);
    let (name, attacker) = (check.name, check.attacker.name());
    output::line(format_args!("{verdict}  {name} (the {attacker})"));
    output::line(format_args!("  tried: {}", check.tried));
    output::line(format_args!("  seen:  {seen}"));
    if let Some(weakened) = &check.weakened {
        let (verdict, seen) = said(&weakened.verdict);
        let noticed = if weakened.caught() {
            "noticed"
        } else {
            "NOT NOTICED"
        };
        output::line(format_args!(
            "  weakened ({}): {noticed}: {}{seen}",
            weakened.without,
            if weakened.caught() { "" } else { verdict },
        ));
    }
    output::line("");
}

fn check_folders(written: &WrittenArguments) -> Result<(), Failure> {
    for path in [&written.report, &written.json].into_iter().flatten() {
        commands::check_folder_of(path)?;
    }
    Ok(())
}

fn write<T: Serialize>(
    written: &WrittenArguments,
    report: &T,
    html: fn(&T) -> String,
) -> Result<(), Failure> {
    write_json(written.json.as_deref(), report)?;
    match &written.report {
        Some(path) => commands::write_file(path, html(report).as_bytes()),
        None => Ok(()),
    }
}

fn write_json(path: Option<&Path>, report: &impl Serialize) -> Result<(), Failure> {
    let Some(path) = path else {
        return Ok(());
    };
    let mut json = serde_json::to_vec_pretty(report).map_err(Failure::failed)?;
    json.push(b'\n');
    commands::write_file(path, &json)
}

/// The TEE to deploy in.
fn some_tee(choice: TeeChoice) -> Result<TeeKind, Failure> {
    tee(choice)?.ok_or_else(|| {
        Failure::usage(
            "this machine has no TEE, and this build no simulated one: nothing serves here",
        )
    })
}

/// The TEE to deploy in, if there is any.
fn tee(choice: TeeChoice) -> Result<Option<TeeKind>, Failure> {
    let machine = Machine::default();
    let wanted = match choice {
        TeeChoice::Automatic => {
            let simulated = cfg!(feature = "simulated").then_some(TeeKind::Simulated);
            return Ok(automatic(&machine).or(simulated));
        }
        TeeChoice::Named(wanted) => wanted,
    };
    // A report says what it was measured in, so this is not taken on anybody's word.
    match survey(&machine)
        .into_iter()
        .find(|found| found.tee == wanted)
    {
        Some(found) if found.present => Ok(Some(wanted)),
        Some(found) => {
            let because = found.because.join("; ");
            Err(Failure::usage(format!(
                "--tee {wanted}: this machine does not have it: {because}"
            )))
        }
        None => Err(Failure::usage(format!(
            "--tee {wanted}: this machine does not have it"
        ))),
    }
}

fn print(report: &CostReport) {
    output::line(format_args!(
        "{}: {} threads, batch {}\n",
        report.model, report.threads, report.batch
    ));
    let mut header = vec![""];
    header.extend(CostReport::COLUMNS);
    let rows = report.rows.iter().map(|row| {
        let mut cells = vec![row.name.clone()];
        cells.extend(row.cells().unwrap_or_else(|| vec!["-".to_owned()]));
        cells
    });
    let numbers: Vec<usize> = (1..header.len()).collect();
    output::table(&header, rows.collect(), &numbers);
    output::line("");
    for row in &report.rows {
        if let Some(instead) = row.instead() {
            output::line(format_args!("{}: {instead}", row.name));
        }
    }
    output::line("More than plain ONNX Runtime, in the median:");
    for part in report.costs.parts() {
        output::line(format_args!("  {part}"));
    }
    output::line(&report.tee.meaning);
}
