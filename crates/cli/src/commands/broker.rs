//! `occlude broker`: running one, and giving orders to one.

use std::path::Path;

use occlude_broker::{
    AdminClient, AdminError, AuditExport, BrokerOptions, ConnectOptions, Listening, ModelRecord,
    SignedHead, TlsFiles,
};
use occlude_container::Container;
use occlude_keys::OwnerKey;

use crate::arguments::{AdminArguments, BrokerArguments, BrokerOrder, BrokerRunArguments};
use crate::failure::Failure;
use crate::{commands, output};

pub(crate) async fn run(arguments: BrokerArguments) -> Result<(), Failure> {
    match arguments.order {
        None => run_broker(arguments.run).await,
        Some(BrokerOrder::AddModel { container, admin }) => add_model(&container, &admin).await,
        Some(BrokerOrder::SetPolicy {
            policy,
            model,
            admin,
        }) => {
            let (key, broker) = connect(&admin)?;
            let name = policy.display().to_string();
            let text = std::fs::read_to_string(&policy)
                .map_err(|error| Failure::failed(error).while_doing(name))?;
            broker
                .set_policy(&key, model.as_ref(), &text)
                .await
                .map_err(admin_failure)?;
            output::note("occlude: the broker has the policy");
            Ok(())
        }
        Some(BrokerOrder::Withdraw {
            model,
            below_version,
            admin,
        }) => {
            let (key, broker) = connect(&admin)?;
            let withdrawal = broker
                .withdraw(&key, &model, below_version)
                .await
                .map_err(admin_failure)?;
            output::note(format_args!(
                "occlude: no version of {model} below {} gets its key any more ({} that the broker holds)",
                withdrawal.below_version,
                withdrawal.withdrawn.len()
            ));
            Ok(())
        }
        Some(BrokerOrder::Audit {
            export_head,
            since,
            json,
            admin,
        }) => audit(export_head.as_deref(), since.as_deref(), json, &admin).await,
    }
}

async fn run_broker(arguments: BrokerRunArguments) -> Result<(), Failure> {
    let options = BrokerOptions {
        listen: arguments.listen,
        database: arguments.database,
        master_key: arguments.master_key,
        tls: arguments
            .tls_certificate
            .zip(arguments.tls_key)
            .map(|(certificate, key)| TlsFiles { certificate, key }),
        metrics: arguments.metrics,
        collateral: arguments.collateral.collateral,
    };
    let ready = |listening: Listening| {
        let Listening { address, metrics } = listening;
        tracing::info!(%address, metrics = metrics.map(tracing::field::display), "the broker listens");
    };
    occlude_broker::serve(options, ready, commands::shutdown_signal())
        .await
        .map_err(Failure::failed)
}

async fn add_model(container: &Path, admin: &AdminArguments) -> Result<(), Failure> {
    let (key, broker) = connect(admin)?;
    let signed = Container::read(container)
        .and_then(|container| container.verify_owner(&key.public()))
        .map_err(|error| commands::container_failure(container, error))?;
    let header = signed.header();
    let record = ModelRecord {
        id: header.id().clone(),
        version: header.version(),
        header_digest: header.digest(),
    };
    let model_key = occlude_container::model_key(&key, header);
    broker
        .add_model(&key, &record, &model_key)
        .await
        .map_err(admin_failure)?;
    output::note(format_args!(
        "occlude: the broker has the key of {} version {}",
        record.id, record.version
    ));
    Ok(())
}

async fn audit(
    export_head: Option<&Path>,
    since: Option<&Path>,
    json: bool,
    admin: &AdminArguments,
) -> Result<(), Failure> {
    let (key, broker) = connect(admin)?;
    let export = broker.audit(&key).await.map_err(admin_failure)?;
    if let Some(path) = since {
        let name = path.display().to_string();
        let text =
            std::fs::read(path).map_err(|error| Failure::failed(error).while_doing(&*name))?;
        let earlier: SignedHead = serde_json::from_slice(&text)
            .map_err(|error| Failure::failed(error).while_doing(&*name))?;
        export.extends(&earlier).map_err(|error| {
            Failure::refused(error).while_doing("comparing with the earlier head")
        })?;
    }
    if let Some(path) = export_head {
        let text = serde_json::to_vec_pretty(&export.head).map_err(Failure::failed)?;
        commands::write_file(path, &text)?;
    }
    if json {
        return output::json(&entries(&export)?);
    }
    print(&export)
}

/// The entries that are shown to this owner, as they are.
fn entries(export: &AuditExport) -> Result<serde_json::Value, Failure> {
    let entries = export.shown().map_err(Failure::refused)?;
    Ok(serde_json::json!({ "entries": entries, "head": export.head }))
}

fn print(export: &AuditExport) -> Result<(), Failure> {
    // Strangers' words are among them: they must not steer the terminal.
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.replace(char::is_control, "\u{fffd}"),
        other => other.to_string(),
    };
    let entries = entries(export)?;
    let rows = entries["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            let details = entry
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(name, value)| {
                    !matches!(name.as_str(), "sequence" | "time" | "event" | "owner")
                        && !value.is_null()
                })
                .map(|(name, value)| format!("{name}={}", text(value)))
                .collect::<Vec<_>>()
                .join(" ");
            vec![
                text(&entry["sequence"]),
                text(&entry["time"]),
                text(&entry["event"]),
                details,
            ]
        });
    output::table(
        &["entry", "time", "event", "details"],
        rows.collect(),
        &[0, 1],
    );
    output::note(format_args!(
        "occlude: {} entries, chained and signed; compare the head with an earlier one by --since",
        export.head.head.sequence
    ));
    Ok(())
}

fn connect(admin: &AdminArguments) -> Result<(OwnerKey, AdminClient), Failure> {
    let key = commands::owner_key(&admin.key)?;
    let certificate_authorities = admin
        .broker_certificate
        .as_ref()
        .map(|path| {
            std::fs::read(path)
                .map_err(|error| Failure::failed(error).while_doing(path.display().to_string()))
        })
        .transpose()?;
    let options = ConnectOptions {
        certificate_authorities,
        ..ConnectOptions::default()
    };
    let broker = AdminClient::new(admin.broker.as_str(), &options).map_err(Failure::failed)?;
    Ok((key, broker))
}

fn admin_failure(error: AdminError) -> Failure {
    match error {
        AdminError::Refused { .. } | AdminError::InTheClear { .. } | AdminError::Audit(_) => {
            Failure::refused(error)
        }
        AdminError::Unavailable { .. } => Failure::unavailable(error),
        _ => Failure::failed(error),
    }
}
