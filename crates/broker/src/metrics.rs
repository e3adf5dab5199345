//! What a broker counts, for its owner's monitoring: how often clients asked unusually.
//!
//! The audit log is where it is counted, so that a restart resets nothing and brokers on one
//! database agree. Nobody is named here: which client it was, the log says to the model's
//! owner.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use occlude_keys::{ModelId, OwnerFingerprint};

use crate::allowance::{Reports, Unusual};
use crate::service::Broker;

const REPORTS: &str = "occlude_broker_usage_reports_total";
const UNUSUAL: &str = "occlude_broker_unusual_usage_total";

/// `GET /metrics`, in Prometheus' text format.
pub(crate) fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/metrics", get(answer))
        .with_state(broker)
}

async fn answer(State(broker): State<Arc<Broker>>) -> Result<String, StatusCode> {
    let reports = broker.reports().await.map_err(|error| {
        tracing::error!(%error, "the audit log cannot be read");
        StatusCode::INTERNAL_SERVER_ERROR
    })?;
    Ok(render(&reports))
}

fn render(reports: &BTreeMap<(OwnerFingerprint, ModelId), Reports>) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    for (name, meaning) in [
        (
            REPORTS,
            "Windows of a client's queries of a guarded model that servers looked at.",
        ),
        (UNUSUAL, "Those of them that were unusual, by what it was."),
    ] {
        recorder.describe_counter(name.into(), None, meaning.into());
    }
    let count = |name: &'static str, labels: Vec<Label>, value| {
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let counter = recorder.register_counter(&Key::from_parts(name, labels), &metadata);
        counter.absolute(value);
    };
    for ((owner, model), reports) in reports {
        let labels = || {
            vec![
                Label::new("owner", owner.to_string()),
                Label::new("model", model.to_string()),
            ]
        };
        count(REPORTS, labels(), reports.count);
        for what in [Unusual::Uncertain, Unusual::Distances] {
            let found = reports.unusual.get(&what).copied().unwrap_or_default();
            let mut labels = labels();
            labels.push(Label::new("what", what.name()));
            count(UNUSUAL, labels, found);
        }
    }
    recorder.handle().render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_its_counts_and_no_client_is_named() {
        let owner = OwnerFingerprint::from([1; 32]);
        let reports = Reports {
            count: 3,
            unusual: [(Unusual::Distances, 2)].into(),
        };
        let rendered = render(&[((owner, "digits".parse().unwrap()), reports)].into());
        let labels = format!("owner=\"{owner}\",model=\"digits\"");
        for line in [
            format!("{REPORTS}{{{labels}}} 3"),
            format!("{UNUSUAL}{{{labels},what=\"distances\"}} 2"),
            format!("{UNUSUAL}{{{labels},what=\"uncertain\"}} 0"),
        ] {
            assert!(rendered.lines().any(|found| found == line), "{rendered}");
        }
    }
}
