//! The report as HTML.

use serde::Serialize;

use super::{
    ClaimReport, ClientReport, DefenceLatency, GuardReport, NamedClone, OutcomeReport, SweepReport,
    TelemetryReport, ThrottledReport, VictimReport, WorkedReport, percent,
};
use crate::page;
use crate::page::chart::{self, Axis, Colour, Line};

const TEMPLATE: &str = include_str!("report.html");

/// Each defence and its colour.
const COLOURS: [(&str, Colour); 6] = [
    ("none", Colour::Ink),
    ("rounded", Colour::Soft),
    ("labels", Colour::Plain),
    ("exposure", Colour::Opening),
    ("misinformation", Colour::Occlude),
    ("together", Colour::Other),
];

/// What the template names.
#[derive(Serialize)]
struct Page<'a> {
    occlude: &'static str,
    report: &'a GuardReport,
    victims: Vec<[String; 6]>,
    latency: Vec<[String; 5]>,
    charts: Vec<Chart>,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    claims: Vec<[String; 6]>,
    telemetry: Option<Telemetry<'a>>,
    names: Option<Names>,
    throttled: Vec<[String; 4]>,
    worked: Vec<[String; 5]>,
}

/// Copies under several names.
#[derive(Serialize)]
struct Names {
    of_each: u32,
    clones: Vec<[String; 4]>,
}

/// Who was looked at.
#[derive(Serialize)]
struct Telemetry<'a> {
    report: &'a TelemetryReport,
    share: String,
    normality: String,
    false_positives: String,
    gain: String,
    clients: Vec<[String; 8]>,
}

/// How well copies of one attacker's do.
#[derive(Serialize)]
struct Chart {
    name: String,
    explained: String,
    svg: String,
}

/// One file that loads nothing.
///
/// # Panics
/// Never: the template is part of the program.
#[must_use]
pub fn html(report: &GuardReport) -> String {
    let (columns, rows) = report.table();
    let page = Page {
        occlude: env!("CARGO_PKG_VERSION"),
        report,
        victims: report.victims.iter().map(VictimReport::cells).collect(),
        latency: (report.latency.each.iter().map(DefenceLatency::cells)).collect(),
        throttled: (report.throttled.iter().map(ThrottledReport::cells)).collect(),
        worked: report.worked.iter().map(WorkedReport::cells).collect(),
        charts: charts(report),
        columns,
        rows,
        claims: report.claims.iter().map(ClaimReport::cells).collect(),
        names: report.names.as_ref().map(|report| Names {
            of_each: report.of_each,
            clones: report.clones.iter().map(NamedClone::cells).collect(),
        }),
        telemetry: report.telemetry.as_ref().map(|report| Telemetry {
            report,
            share: percent(report.share),
            normality: format!("{:.3}", report.normality),
            false_positives: percent(report.false_positive_rate),
            gain: format!("{:.1}", report.gain),
            clients: report.clients.iter().map(ClientReport::cells).collect(),
        }),
    };
    page::render(TEMPLATE, &page)
}

fn charts(report: &GuardReport) -> Vec<Chart> {
    let mut charts: Vec<Chart> = report.sweeps.iter().map(swept).collect();
    for network in ["digits", "large", "logistic"] {
        for (attacker, explained) in &report.attackers {
            let lines = lines(report, network, attacker);
            if lines.is_empty() {
                continue;
            }
            let across = Axis::logarithmic("inputs asked about", 80.0);
            charts.push(Chart {
                name: format!("{attacker} on {network}"),
                explained: explained.clone(),
                svg: chart::lines(&across, "right answers of copies, %", &lines),
            });
        }
    }
    charts
}

/// What thresholds do to one network.
fn swept(sweep: &SweepReport) -> Chart {
    let line = |name, colour, of: fn(&OutcomeReport) -> f64| Line {
        name,
        colour,
        dots: true,
        points: (sweep.outcomes.iter())
            .map(|outcome| (outcome.tau, 100.0 * of(outcome), String::new()))
            .collect(),
    };
    let lines = [
        line("digits", Colour::Occlude, |one| one.benign_kept),
        line("outliers", Colour::Other, |one| one.outliers_kept),
    ];
    let trained = if sweep.exposed { "with" } else { "without" };
    Chart {
        name: format!(
            "Thresholds on {}, trained {trained} outliers",
            sweep.network
        ),
        explained:
            "Answers that keep the label which the model alone gives, by tau: computed, not \
                    asked"
                .to_owned(),
        svg: chart::lines(&Axis::linear("tau"), "labels kept, %", &lines),
    }
}

fn lines<'a>(report: &GuardReport, network: &str, attacker: &str) -> Vec<Line<'a>> {
    let of = |defence: &str| {
        let clones = report.clones.iter().filter(|clone| {
            clone.network == network && clone.attacker == attacker && clone.defence == defence
        });
        let point = |queries: u32, accuracy: f64| {
            (f64::from(queries).log10(), 100.0 * accuracy, String::new())
        };
        clones
            .map(|clone| point(clone.queries, clone.accuracy))
            .collect::<Vec<_>>()
    };
    COLOURS
        .into_iter()
        .map(|(name, colour)| Line {
            name,
            colour,
            dots: true,
            points: of(name),
        })
        .filter(|line| !line.points.is_empty())
        .collect()
}
