//! `occlude inspect`

use std::collections::BTreeMap;
use std::sync::Arc;

use occlude_container::{Container, Dimension, Inspection, PublicView, ValueDescription};

use crate::arguments::InspectArguments;
use crate::commands;
use crate::failure::Failure;
use crate::output;

mod plan;

/// Tensors listed before the text says how many follow; `--json` has all.
const SHOWN_TENSORS: usize = 20;

pub(crate) fn run(arguments: &InspectArguments) -> Result<(), Failure> {
    let path = &arguments.container;
    let refused = |error| commands::container_failure(path, error);
    let container = Container::read(path).map_err(refused)?;
    let public = PublicView::of(container.header());
    let (mut model, mut plan, mut metadata) = (None, None, BTreeMap::new());
    if let Some(key) = &arguments.key {
        let key = commands::owner_key(key)?;
        let signed = container.verify_owner(&key.public()).map_err(refused)?;
        let model_key = occlude_container::model_key(&key, signed.header());
        let failed = |error| commands::open_failure(path, error);
        let open = Arc::new(signed.open(&model_key).map_err(failed)?);
        if arguments.plan {
            plan = Some(plan::of(&open, arguments)?);
        } else {
            model = Some(open.inspect().map_err(failed)?);
            metadata = open.metadata().clone();
        }
    }
    if arguments.json {
        return output::json(&match &plan {
            Some(plan) => serde_json::json!({ "public": public, "plan": plan::json(plan) }),
            None => {
                let mut all = serde_json::json!({ "public": public, "model": model });
                if !metadata.is_empty() {
                    all["metadata"] = serde_json::json!(metadata);
                }
                all
            }
        });
    }
    print_public(&public);
    if let Some(plan) = &plan {
        output::line("");
        plan::print(plan);
        return Ok(());
    }
    match &model {
        Some(model) => {
            for (entry, value) in &metadata {
                output::line(format_args!("{entry:12} {value}"));
            }
            print_model(model);
        }
        None => output::note(
            "occlude: this is all that anybody learns; --key shows the owner the model",
        ),
    }
    Ok(())
}

fn print_public(public: &PublicView) {
    output::line(format_args!("id           {}", public.id));
    output::line(format_args!("version      {}", public.version));
    output::line(format_args!("owner        {}", public.owner));
    output::line(format_args!("fingerprint  {}", public.owner_fingerprint));
    output::line(format_args!("digest       {}", public.header_digest));
    output::line(format_args!(
        "chunks       {} of {}",
        output::grouped(public.chunk_count),
        output::size(public.chunk_size.into())
    ));
    output::line(format_args!(
        "file         {}",
        output::size(public.file_length)
    ));
}

fn print_model(model: &Inspection) {
    let sets = model.operator_sets.iter().map(|set| {
        let domain = if set.domain.is_empty() {
            "ai.onnx"
        } else {
            &set.domain
        };
        format!("{domain} {}", set.version)
    });
    output::line(format_args!("producer     {}", model.producer));
    output::line(format_args!("IR           {}", model.ir_version));
    output::line(format_args!(
        "opset        {}",
        sets.collect::<Vec<_>>().join(", ")
    ));
    output::line(format_args!(
        "parameters   {}",
        output::grouped(model.parameters)
    ));
    for (what, values) in [("input", &model.inputs), ("output", &model.outputs)] {
        for value in values {
            output::line(format_args!("{what:12} {}", described(value)));
        }
    }
    output::line("");
    let operators = model.operators.iter().map(|operator| {
        let name = if operator.domain.is_empty() {
            operator.operator.clone()
        } else {
            format!("{}.{}", operator.domain, operator.operator)
        };
        vec![name, output::grouped(operator.count)]
    });
    output::table(&["operator", "count"], operators.collect(), &[1]);
    if !model.tensors.is_empty() {
        output::line("");
        let tensors = model.tensors.iter().take(SHOWN_TENSORS).map(|tensor| {
            let dims = tensor
                .dims
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("x");
            vec![
                tensor.name.clone(),
                tensor.data_type.clone(),
                dims,
                output::size(tensor.bytes),
            ]
        });
        output::table(
            &["tensor", "type", "shape", "size"],
            tensors.collect(),
            &[3],
        );
        if model.tensors.len() > SHOWN_TENSORS {
            output::line(format_args!(
                "… and {} smaller ones",
                model.tensors.len() - SHOWN_TENSORS
            ));
        }
    }
    for warning in &model.warnings {
        output::line("");
        output::line(format_args!(
            "warning: {} x {}: {}",
            warning.count, warning.operator, warning.explanation
        ));
    }
}

fn described(value: &ValueDescription) -> String {
    let shape = value.shape.as_ref().map(|shape| {
        let extents = shape.iter().map(|extent| match extent {
            Dimension::Fixed(extent) => extent.to_string(),
            Dimension::Named(name) => name.clone(),
            Dimension::Open(()) => "?".to_owned(),
        });
        format!("[{}]", extents.collect::<Vec<_>>().join(", "))
    });
    format!(
        "{} {} {}",
        value.name,
        value.data_type,
        shape.as_deref().unwrap_or("of any rank")
    )
}
