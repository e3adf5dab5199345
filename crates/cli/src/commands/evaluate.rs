//! `occlude evaluate`

use occlude_attest::{Machine, TeeChoice, TeeKind, automatic, survey};
use occlude_engine::LibrarySearch;
use occlude_evaluate::bench::BenchOptions;
use occlude_evaluate::cost::{self, CostReport};
use occlude_evaluate::deployment::{DeploymentOptions, Running};
use occlude_evaluate::protection::{self, CheckReport, ProtectionOptions, Verdict};

use crate::arguments::{
    EvaluateAction, EvaluateArguments, EvaluateCostArguments, EvaluateProtectionArguments,
};
use crate::commands::{self, bench};
use crate::failure::Failure;
use crate::output::{self, Activity};

pub(crate) async fn run(arguments: EvaluateArguments) -> Result<(), Failure> {
    let running = Running::default();
    let started = running.clone();
    let mut measuring = tokio::task::spawn_blocking(move || match arguments.action {
        EvaluateAction::Cost(arguments) => cost(&arguments, started),
        EvaluateAction::Protection(arguments) => protection(&arguments, started),
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
    for path in [&arguments.report, &arguments.json].into_iter().flatten() {
        commands::check_folder_of(path)?;
    }
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
    let tee = tee(arguments.tee)?;
    let present = tee.filter(|tee| tee.is_chosen_automatically());
    let deployment = tee.map(|tee| DeploymentOptions {
        binary: "/proc/self/exe".into(),
        model: arguments.model.clone(),
        tee,
        collateral: arguments.collateral.collateral.clone(),
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
    if let Some(path) = &arguments.json {
        let mut json = serde_json::to_vec_pretty(&report).map_err(Failure::failed)?;
        json.push(b'\n');
        commands::write_file(path, &json)?;
    }
    if let Some(path) = &arguments.report {
        commands::write_file(path, cost::html(&report).as_bytes())?;
    }
    Ok(())
}

fn protection(arguments: &EvaluateProtectionArguments, running: Running) -> Result<(), Failure> {
    if let Some(path) = &arguments.json {
        commands::check_folder_of(path)?;
    }
    let tee = tee(arguments.tee)?.ok_or_else(|| {
        Failure::usage(
            "this machine has no TEE, and this build no simulated one: nothing serves here",
        )
    })?;
    let options = ProtectionOptions {
        binary: "/proc/self/exe".into(),
        tee,
        collateral: arguments.collateral.collateral.clone(),
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
    if let Some(path) = &arguments.json {
        let mut json = serde_json::to_vec_pretty(&report).map_err(Failure::failed)?;
        json.push(b'\n');
        commands::write_file(path, &json)?;
    }
    output::line(report.summary());
    if report.complete() {
        return Ok(());
    }
    Err(Failure::failed(anyhow::anyhow!(
        "not everything held, or was noticed: see above"
    )))
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
