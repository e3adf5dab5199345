//! `occlude bench`

use std::path::Path;
use std::process::Command;

use occlude_engine::{LibrarySearch, Spill};
use occlude_evaluate::bench::{
    self, BenchError, BenchOptions, BudgetReport, Inputs, Measured, Outcome, Report, Stage,
};
use occlude_evaluate::number;

use crate::arguments::BenchArguments;
use crate::failure::Failure;
use crate::output::{self, Activity};
use crate::tensors;

/// What the text says of its last column but three.
const MEMORY_NOTE: &str = "\
Peak: the highest anonymous memory (RssAnon) of a process of its own, from its start to
its last run, loading included, nothing subtracted.";

/// What it says with each store of streamed weights.
const SHARED_NOTE: &str = "\
Sealed weights lie in a shared mapping, which is untrusted memory, and are not in it.";
const DIRECT_NOTE: &str = "\
Sealed weights lie in a file, and are not in it; the buffers that it is read into are.";

pub(crate) fn run(arguments: BenchArguments) -> Result<(), Failure> {
    let inputs = inputs(arguments.inputs.as_deref(), arguments.batch)?;
    let name = arguments.model.display().to_string();
    let options = BenchOptions {
        model: arguments.model,
        budgets: arguments.budget,
        spill: arguments.spill,
        cipher: arguments.spill_cipher,
        threads: arguments.threads,
        runs: arguments.runs,
        inputs,
        library: LibrarySearch::standard(),
        opened_whole: false,
    };
    let activity = Activity::new();
    let report = bench::bench(&options, &measuring_process, None, &mut |stage| {
        activity.is(describe(stage));
    })
    .map_err(|error| failure(error, name))?;
    drop(activity);
    if arguments.json {
        return output::json(&report);
    }
    print(&report);
    Ok(())
}

/// What a model is measured on: the arguments of every command that measures.
pub(super) fn inputs(given: Option<&Path>, batch: u64) -> Result<Inputs, Failure> {
    Ok(match given {
        Some(path) => Inputs::Given(tensors::read_npz(path).map_err(Failure::failed)?),
        None => Inputs::Random { batch },
    })
}

/// Why `model` was not measured.
pub(super) fn failure(error: BenchError, model: String) -> Failure {
    match error {
        BenchError::FixedBatch { .. } => Failure::usage(format!("--batch: {error}")),
        _ => Failure::failed(error).while_doing(model),
    }
}

/// One of [`run`]'s measuring processes.
pub(crate) fn measure_memory() -> Result<(), Failure> {
    let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
    bench::measure_memory(&LibrarySearch::standard(), input, output).map_err(Failure::failed)
}

/// This very program, even if its file has been replaced since.
pub(super) fn measuring_process() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("measure-memory");
    command
}

pub(super) fn describe(stage: Stage<'_>) -> String {
    match stage {
        Stage::Sealing(at) => format!(
            "sealing: {} of {}",
            output::size(at.done),
            output::size(at.total)
        ),
        Stage::Loading { what } => format!("{what}: loading"),
        Stage::Running { what, done, total } => format!("{what}: turn {done} of {total}"),
        Stage::Memory { what } => format!("{what}: measuring memory"),
        _ => String::new(),
    }
}

fn print(report: &Report) {
    let threads = if report.threads.get() == 1 {
        "thread"
    } else {
        "threads"
    };
    output::line(format_args!(
        "{}: {} {threads}, batch {}\n",
        report.model, report.threads, report.batch
    ));
    let plain = &report.plain;
    let mut rows = vec![vec![
        "plain ONNX Runtime".to_owned(),
        number(plain.speed.p50_ms),
        String::new(),
        number(plain.speed.min_ms),
        String::new(),
        number(plain.load_ms),
        number(plain.first_answer_ms),
        number(plain.peak_mib),
    ]];
    rows.extend(report.budgets.iter().map(row));
    output::table(
        &[
            "",
            "p50 ms",
            "ratio",
            "min ms",
            "ratio",
            "load ms",
            "first answer ms",
            "peak MiB",
            "resident MiB",
            "opened MiB/run",
            "largest difference",
        ],
        rows,
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    );
    output::line("");
    for entry in &report.budgets {
        if let Outcome::Refused { refused, .. } = &entry.outcome {
            output::line(format_args!("{}: {refused}", entry.budget));
        }
    }
    if let Some(measured) = report.budgets.iter().find_map(measured) {
        output::line(format_args!(
            "Weights: {} MiB. Outputs: up to {}. Wiping memory after an answer: {} ms, not in a run.",
            number(measured.occlude.weights_mib),
            number(measured.max_abs_output),
            number(measured.occlude.wipe_ms)
        ));
    }
    let mut ciphers = report.budgets.iter().filter_map(measured);
    if let Some(cipher) = ciphers.find_map(|measured| measured.occlude.spill_cipher) {
        output::line(format_args!(
            "Streamed weights are encrypted with {cipher}."
        ));
    }
    for entry in &report.budgets {
        if let Some((measured, read)) =
            measured(entry).and_then(|it| Some((it, it.occlude.read_ms?)))
        {
            output::line(format_args!(
                "{}: the disk takes {} ms for the {} MiB that a run opens, if nothing is done but to read.",
                entry.budget,
                number(read),
                number(measured.occlude.opened_mib_per_run)
            ));
        }
    }
    output::line(MEMORY_NOTE);
    output::line(match report.spill {
        Spill::Direct { .. } => DIRECT_NOTE,
        _ => SHARED_NOTE,
    });
}

fn measured(entry: &BudgetReport) -> Option<&Measured> {
    entry.outcome.measured()
}

fn row(entry: &BudgetReport) -> Vec<String> {
    let mut row = vec![entry.budget.to_string()];
    match measured(entry) {
        Some(measured) => {
            let occlude = &measured.occlude;
            row.extend([
                number(occlude.speed.p50_ms),
                format!("{:.2}", measured.ratio_p50),
                number(occlude.speed.min_ms),
                format!("{:.2}", measured.ratio_min),
                number(occlude.load_ms),
                number(occlude.first_answer_ms),
                number(occlude.peak_protected_mib),
                number(occlude.resident_mib),
                number(occlude.opened_mib_per_run),
                format!("{:.1e}", measured.max_abs_diff),
            ]);
        }
        None => row.push("refused".to_owned()),
    }
    row
}
