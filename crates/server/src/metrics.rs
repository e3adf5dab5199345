//! What an operator may count.
//!
//! Whoever scrapes `/metrics` is the attacker, so nothing here depends on what
//! is inside the channel: not the model asked for, not whether its answer was an
//! error. Every label and number can also be read off the wire.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// Upper bounds of the duration histogram's buckets, in seconds.
const DURATIONS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

const DURATION_NAME: &str = "occlude_http_request_duration_seconds";

/// One server's own registry: two servers in one process do not mix.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    tee: &'static str,
}

impl Metrics {
    /// An empty registry that says which build and which kind of TEE this is.
    pub(crate) fn new(tee: &'static str) -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(DURATION_NAME.to_owned()), &DURATIONS)
            .expect("the buckets are not empty")
            .build_recorder();
        let handle = recorder.handle();
        let metrics = Self {
            recorder,
            handle,
            tee,
        };
        metrics.describe();
        metrics
            .gauge(
                "occlude_build_info",
                vec![
                    Label::new("version", env!("CARGO_PKG_VERSION")),
                    Label::new("tee_type", tee),
                ],
            )
            .set(1.0);
        metrics
    }

    /// One answered HTTP request, as seen from outside the channel.
    pub(crate) fn request(&self, route: &'static str, status: u16, took: Duration) {
        self.counter(
            "occlude_http_requests_total",
            vec![
                Label::new("route", route),
                Label::new("status", status.to_string()),
            ],
        )
        .increment(1);
        self.histogram(DURATION_NAME, vec![Label::new("route", route)])
            .record(took.as_secs_f64());
    }

    /// Evidence was asked for, and collected or not.
    pub(crate) fn attestation(&self, collected: bool) {
        let outcome = if collected {
            "occlude_attestation_successes_total"
        } else {
            "occlude_attestation_failures_total"
        };
        for name in ["occlude_attestation_requests_total", outcome] {
            self.counter(name, vec![Label::new("tee_type", self.tee)])
                .increment(1);
        }
    }

    /// An encapsulated request was opened (`opened`) or refused, and why.
    pub(crate) fn encapsulation(&self, result: &'static str) {
        self.counter(
            "occlude_channel_requests_total",
            vec![Label::new("result", result)],
        )
        .increment(1);
    }

    /// A lease was `renewed`, `refused`, `unavailable` or `lapsed`.
    pub(crate) fn lease(&self, result: &'static str) {
        self.counter(
            "occlude_lease_renewals_total",
            vec![Label::new("result", result)],
        )
        .increment(1);
    }

    /// The broker `answered`, `refused` or could not be asked (`unavailable`) how many queries
    /// there may be; what it said is sealed.
    pub(crate) fn allowance(&self, result: &'static str) {
        self.counter(
            "occlude_allowance_requests_total",
            vec![Label::new("result", result)],
        )
        .increment(1);
    }

    /// Part of a `container` or of streamed `weights` was not as it was written, and came
    /// from elsewhere.
    pub(crate) fn repair(&self, what: &'static str, outcome: &'static str) {
        self.counter(
            "occlude_repairs_total",
            vec![Label::new("what", what), Label::new("outcome", outcome)],
        )
        .increment(1);
    }

    /// The registry in Prometheus' text format, with these gauges as of now.
    pub(crate) fn render(&self, models: usize, requests: usize, bytes: u64) -> String {
        #[expect(clippy::cast_precision_loss, reason = "gauges are doubles")]
        for (name, value) in [
            ("occlude_models_loaded", models as f64),
            ("occlude_requests_in_flight", requests as f64),
            ("occlude_request_bytes_in_flight", bytes as f64),
        ] {
            self.gauge(name, Vec::new()).set(value);
        }
        self.handle.run_upkeep();
        self.handle.render()
    }

    fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder
            .register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: Vec<Label>) -> Gauge {
        self.recorder
            .register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    fn histogram(&self, name: &'static str, labels: Vec<Label>) -> Histogram {
        self.recorder
            .register_histogram(&Key::from_parts(name, labels), &METADATA)
    }

    fn describe(&self) {
        for (name, text) in [
            (
                "occlude_http_requests_total",
                "HTTP requests answered, by route and status outside the channel.",
            ),
            (
                "occlude_attestation_requests_total",
                "Times that evidence was asked for.",
            ),
            (
                "occlude_attestation_successes_total",
                "Times that evidence was collected.",
            ),
            (
                "occlude_attestation_failures_total",
                "Times that the TEE gave no evidence.",
            ),
            (
                "occlude_channel_requests_total",
                "Encapsulated requests, opened or refused, and why.",
            ),
            (
                "occlude_lease_renewals_total",
                "Times that a model's lease was renewed, refused, or could not be renewed.",
            ),
            (
                "occlude_allowance_requests_total",
                "Times that the broker was asked how many queries may be answered.",
            ),
            (
                "occlude_repairs_total",
                "Parts of containers and of streamed weights that were altered, and had from a mirror.",
            ),
        ] {
            self.recorder
                .describe_counter(name.into(), None, text.into());
        }
        for (name, text) in [
            ("occlude_build_info", "Always 1; the labels say what runs."),
            ("occlude_models_loaded", "Models that answer now."),
            (
                "occlude_requests_in_flight",
                "Encapsulated requests that have come whole and are in flight.",
            ),
            (
                "occlude_request_bytes_in_flight",
                "Protected memory reserved for requests in flight.",
            ),
        ] {
            self.recorder.describe_gauge(name.into(), None, text.into());
        }
        self.recorder.describe_histogram(
            DURATION_NAME.into(),
            Some(metrics::Unit::Seconds),
            "Time to answer, by route outside the channel.".into(),
        );
    }
}

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_rendered_with_the_usual_names() {
        let metrics = Metrics::new("simulated");
        metrics.request("channel", 200, Duration::from_millis(3));
        metrics.attestation(true);
        metrics.encapsulation("replayed");
        metrics.lease("refused");
        metrics.allowance("answered");
        let text = metrics.render(1, 2, 4096);
        for line in [
            format!(
                "occlude_build_info{{version=\"{}\",tee_type=\"simulated\"}} 1",
                env!("CARGO_PKG_VERSION")
            ),
            "occlude_http_requests_total{route=\"channel\",status=\"200\"} 1".to_owned(),
            "occlude_http_request_duration_seconds_bucket{route=\"channel\",le=\"0.005\"} 1"
                .to_owned(),
            "occlude_attestation_requests_total{tee_type=\"simulated\"} 1".to_owned(),
            "occlude_attestation_successes_total{tee_type=\"simulated\"} 1".to_owned(),
            "occlude_channel_requests_total{result=\"replayed\"} 1".to_owned(),
            "occlude_lease_renewals_total{result=\"refused\"} 1".to_owned(),
            "occlude_allowance_requests_total{result=\"answered\"} 1".to_owned(),
            "occlude_models_loaded 1".to_owned(),
            "occlude_requests_in_flight 2".to_owned(),
            "occlude_request_bytes_in_flight 4096".to_owned(),
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
