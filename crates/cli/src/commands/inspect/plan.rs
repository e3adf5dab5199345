//! `occlude inspect --plan`: what a server would keep in protected memory.
//!
//! Names of layers are shown, since whoever has the owner's key is the owner.

use std::num::NonZeroUsize;
use std::sync::Arc;

use occlude_container::OpenContainer;
use occlude_engine::{LibrarySearch, LoadError, LoadOptions, Model, Plan, Runtime, RuntimeOptions};

use crate::arguments::InspectArguments;
use crate::failure::Failure;
use crate::output;

/// Loads the model as a server does, for as long as it takes to make the plan.
pub(super) fn of(open: &Arc<OpenContainer>, arguments: &InspectArguments) -> Result<Plan, Failure> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let runtime = RuntimeOptions {
        threads,
        ..RuntimeOptions::default()
    };
    let runtime =
        Runtime::load_with(&LibrarySearch::standard(), &runtime).map_err(Failure::failed)?;
    let (memory, process) = arguments.protected_memory.now();
    let options = LoadOptions {
        threads,
        sessions: arguments.sessions,
        memory,
        process,
        largest: arguments.max_shape.clone(),
        spill: arguments.spill.clone(),
        ..LoadOptions::default()
    };
    let path = arguments.container.display();
    let model = Model::load(runtime, open, &options)
        .map_err(|error| Failure::failed(told(error)).while_doing(path.to_string()))?;
    let known = |name: &str| model.inputs().iter().any(|input| input.name == name);
    if let Some(shape) = arguments
        .max_shape
        .iter()
        .find(|shape| !known(&shape.input))
    {
        return Err(Failure::usage(format!(
            "--max-shape names the input `{}`, which the model does not have",
            shape.input
        )));
    }
    Ok(model.plan().clone())
}

/// What the owner may know of an error.
fn told(error: LoadError) -> anyhow::Error {
    match &error {
        LoadError::Budget {
            set_by: Some(set_by),
            ..
        } => anyhow::anyhow!("{error} (`{}`)", set_by.name.reveal()),
        LoadError::Rejected(said) => anyhow::anyhow!("{error}: {}", said.reveal()),
        _ => error.into(),
    }
}

pub(super) fn json(plan: &Plan) -> serde_json::Value {
    let layers = plan.layers.iter().map(|layer| {
        serde_json::json!({
            "name": layer.name.reveal(),
            "kind": layer.kind.to_string(),
            "bytes": layer.bytes,
            "resident_bytes": layer.resident,
            "streamed_bytes": layer.streamed,
            "cost_ms": rounded(layer.cost_ms),
        })
    });
    serde_json::json!({
        "budget_bytes": plan.budget,
        "process_bytes": plan.process,
        "sessions": plan.sessions,
        "working_bytes_a_session": plan.working,
        "scratch_bytes_a_session": plan.scratch,
        "window_bytes": plan.window,
        "resident_bytes": plan.resident(),
        "streamed_bytes": plan.streamed(),
        "total_bytes": plan.total(),
        "cost_ms": rounded(plan.cost_ms()),
        "layers": layers.collect::<Vec<_>>(),
    })
}

/// Microseconds count, what is below is noise.
fn rounded(milliseconds: f64) -> f64 {
    (milliseconds * 1e3).round() / 1e3
}

pub(super) fn print(plan: &Plan) {
    let rows = plan.layers.iter().map(|layer| {
        vec![
            layer.name.reveal().to_owned(),
            layer.kind.to_string(),
            output::size(layer.bytes),
            output::size(layer.resident),
            output::size(layer.streamed),
            format!("{:.3}", layer.cost_ms),
        ]
    });
    output::table(
        &[
            "weight", "read by", "size", "resident", "streamed", "cost ms",
        ],
        rows.collect(),
        &[2, 3, 4, 5],
    );
    output::line("");
    let sizes = [
        ("budget", plan.budget),
        ("process", plan.budget.map(|_| plan.process)),
        ("a session", plan.working),
        ("its scratch", plan.scratch),
        ("read ahead", (plan.window > 0).then_some(plan.window)),
    ];
    for (what, bytes) in sizes {
        if let Some(bytes) = bytes {
            output::line(format_args!("{what:12} {}", output::size(bytes)));
        }
    }
    output::line(format_args!("{:12} {}", "sessions", plan.sessions));
    output::line(format_args!(
        "{:12} {}",
        "resident",
        output::size(plan.resident())
    ));
    output::line(format_args!(
        "{:12} {}",
        "streamed",
        output::size(plan.streamed())
    ));
    if let Some(total) = plan.total() {
        output::line(format_args!("{:12} {}", "in all", output::size(total)));
    }
    output::line(format_args!(
        "{:12} {:.3} ms longer than with all weights resident, by estimate",
        "a run takes",
        plan.cost_ms()
    ));
}
