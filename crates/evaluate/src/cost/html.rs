//! The report as one HTML file that loads nothing.

use serde::Serialize;

use super::CostReport;
use super::report::{Figures, LayerSplit, Part, RowOutcome};
use crate::number;
use crate::page;
use crate::page::chart::{self, Axis, Colour, Line};

const TEMPLATE: &str = include_str!("report.html");

/// Layers that are drawn, those that take the most.
const MOST_LAYERS: usize = 40;

/// Points are this close, as shares of the chart's width and height, when their names would
/// overlap.
const CLOSE: (f64, f64) = (0.12, 0.05);

/// What the template names.
#[derive(Serialize)]
struct Page<'a> {
    report: &'a CostReport,
    /// All weights, in MiB.
    weights: Option<String>,
    columns: [&'static str; 10],
    rows: Vec<ShownRow>,
    costs: Vec<Part>,
    latency: String,
    memory: String,
    bars: Vec<Bar>,
    layers_left_out: usize,
}

/// One row of the table, as text.
#[derive(Serialize)]
struct ShownRow {
    name: String,
    cells: Vec<String>,
    /// Why there are no cells.
    instead: Option<String>,
}

/// One layer's bar: parts of the longest, in percent.
#[derive(Serialize)]
struct Bar {
    name: String,
    kind: String,
    compute: f64,
    opening: f64,
    compute_ms: String,
    opening_ms: String,
}

/// Draws a report.
#[must_use]
pub fn html(report: &CostReport) -> String {
    let page = Page {
        report,
        weights: report.weights_mib.map(number),
        columns: CostReport::COLUMNS,
        rows: shown_rows(report),
        costs: report.costs.parts(),
        latency: chart(report, "median latency, ms", |it| Some(it.speed.p50_ms)),
        memory: chart(report, "peak protected memory, MiB", |it| {
            it.peak_protected_mib
        }),
        bars: bars(&report.layers),
        layers_left_out: report.layers.len().saturating_sub(MOST_LAYERS),
    };
    page::render(TEMPLATE, &page)
}

fn shown_rows(report: &CostReport) -> Vec<ShownRow> {
    let rows = report.rows.iter().map(|row| ShownRow {
        name: row.name.clone(),
        cells: row.cells().unwrap_or_default(),
        instead: row.instead(),
    });
    rows.collect()
}

/// One figure of every budget over the weights that stay resident, and of plain ONNX Runtime
/// all along.
fn chart(report: &CostReport, unit: &str, figure: impl Fn(&Figures) -> Option<f64>) -> String {
    let mut points: Vec<(f64, f64, String)> = Vec::new();
    for row in &report.rows {
        let RowOutcome::Measured(figures) = &row.outcome else {
            continue;
        };
        if let (Some(resident), Some(value)) = (figures.resident_mib, figure(figures)) {
            let name = row.name.rsplit(", ").next().unwrap_or(&row.name);
            points.push((resident, value, name.to_owned()));
        }
    }
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (right, top) = points
        .iter()
        .fold((0.0_f64, 0.0_f64), |(right, top), point| {
            (right.max(point.0), top.max(point.1))
        });
    name_once(&mut points, (right * CLOSE.0, top * CLOSE.1));
    let mut lines = Vec::new();
    if let Some(RowOutcome::Measured(plain)) = report.rows.first().map(|row| &row.outcome)
        && let (Some(value), Some(last)) = (figure(plain), points.last())
    {
        lines.push(Line {
            name: "plain ONNX Runtime",
            colour: Colour::Plain,
            dots: false,
            points: vec![(0.0, value, String::new()), (last.0, value, String::new())],
        });
    }
    lines.push(Line {
        name: "Occlude",
        colour: Colour::Occlude,
        dots: true,
        points,
    });
    let across = Axis::linear("weights that stay in protected memory, MiB");
    chart::lines(&across, unit, &lines)
}

/// Joins the names of points that lie so close together that they would hide each other.
fn name_once(points: &mut [(f64, f64, String)], close: (f64, f64)) {
    for place in 1..points.len() {
        let (before, from) = points.split_at_mut(place);
        let point = &mut from[0];
        let near = |other: &&mut (f64, f64, String)| {
            let away = (point.0 - other.0, point.1 - other.1);
            !other.2.is_empty() && away.0.abs() < close.0 && away.1.abs() < close.1
        };
        if let Some(other) = before.iter_mut().find(near) {
            other.2 = format!("{}, {}", other.2, std::mem::take(&mut point.2));
        }
    }
}

/// The layers that take the most, in the model's order.
fn bars(layers: &[LayerSplit]) -> Vec<Bar> {
    let time = |layer: &LayerSplit| layer.compute_ms + layer.opening_ms;
    let mut places: Vec<usize> = (0..layers.len()).collect();
    places.sort_by(|&one, &other| time(&layers[other]).total_cmp(&time(&layers[one])));
    places.truncate(MOST_LAYERS);
    places.sort_unstable();
    let longest = layers.iter().map(time).fold(1e-9, f64::max);
    places
        .into_iter()
        .map(|place| &layers[place])
        .map(|layer| Bar {
            name: layer.name.clone(),
            kind: layer.kind.clone(),
            compute: 100.0 * layer.compute_ms / longest,
            opening: 100.0 * layer.opening_ms / longest,
            compute_ms: number(layer.compute_ms),
            opening_ms: number(layer.opening_ms),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64, name: &str) -> (f64, f64, String) {
        (x, y, name.to_owned())
    }

    #[test]
    fn points_that_lie_close_share_a_name() {
        let mut points = [
            point(0.0, 9.0, "0%"),
            point(50.0, 9.0, "50%"),
            point(99.0, 9.1, "100%"),
            point(99.5, 9.0, "resident"),
            point(99.6, 30.0, "far above"),
            point(99.6, 9.0, "64MiB"),
        ];
        name_once(&mut points, (5.0, 1.0));
        let names: Vec<&str> = points.iter().map(|point| &*point.2).collect();
        assert_eq!(
            names,
            ["0%", "50%", "100%, resident, 64MiB", "", "far above", ""]
        );
    }

    #[test]
    fn the_layers_that_take_the_most_are_drawn_in_the_models_order() {
        let layers: Vec<LayerSplit> = (0..100)
            .map(|place| LayerSplit {
                name: place.to_string(),
                kind: "matrix".to_owned(),
                compute_ms: f64::from(place % 50),
                opening_ms: 1.0,
            })
            .collect();
        let bars = bars(&layers);
        assert_eq!(bars.len(), MOST_LAYERS);
        assert_eq!(bars[0].name, "30");
        assert_eq!(bars[MOST_LAYERS - 1].name, "99");
        let longest = bars.iter().map(|bar| bar.compute + bar.opening);
        assert!((longest.fold(0.0, f64::max) - 100.0).abs() < 1e-9);
    }
}
