//! Lines over the weights that stay resident, as SVG.
//!
//! `plotters` draws with fixed colours. Each is one that nothing else uses and is replaced by
//! a variable of the page, which has it for light, dark and paper.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One line.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) colour: Colour,
    /// Whether each point is drawn, with its name.
    pub(super) dots: bool,
    /// Resident weights in MiB, what is drawn over them, and the budget's name.
    pub(super) points: Vec<(f64, f64, String)>,
}

/// A colour of the page.
#[derive(Clone, Copy)]
pub(super) enum Colour {
    Ink,
    Grid,
    Plain,
    Occlude,
}

impl Colour {
    const ALL: [Self; 4] = [Self::Ink, Self::Grid, Self::Plain, Self::Occlude];

    fn drawn(self) -> RGBColor {
        RGBColor(1, 2, 3 + self as u8)
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Ink => "var(--ink)",
            Self::Grid => "var(--grid)",
            Self::Plain => "var(--plain)",
            Self::Occlude => "var(--occlude)",
        }
    }
}

const WIDTH: u32 = 760;
const HEIGHT: u32 = 340;
const FONT: &str = "sans-serif";

/// Draws `lines`, of which a constant one spans the whole width. `unit` is what is drawn.
pub(super) fn lines(unit: &str, lines: &[Line<'_>]) -> String {
    let mut svg = String::new();
    // Drawing into a text fails only where a chart has no area, which this one has.
    draw(&mut svg, unit, lines).expect("a chart can be drawn into a text");
    for colour in Colour::ALL {
        let RGBColor(red, green, blue) = colour.drawn();
        let written = format!("#{red:02X}{green:02X}{blue:02X}");
        svg = svg.replace(&written, colour.variable());
    }
    // The page sets its width.
    svg.replacen(
        &format!("width=\"{WIDTH}\" height=\"{HEIGHT}\""),
        "role=\"img\"",
        1,
    )
}

fn draw(
    svg: &mut String,
    unit: &str,
    lines: &[Line<'_>],
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let highest = |of: fn(&(f64, f64, String)) -> f64| points().map(of).fold(0.0, f64::max);
    let (right, top) = (highest(|point| point.0), highest(|point| point.1));
    // A chart without extent has no scale.
    let (right, top) = (right.max(1e-3) * 1.15, top.max(1e-3) * 1.15);
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let ink = Colour::Ink.drawn();
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .axis_style(ink)
        .bold_line_style(Colour::Grid.drawn())
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 13).into_font().color(&ink))
        .x_desc("weights that stay in protected memory, MiB")
        .y_desc(unit)
        .draw()?;
    for line in lines {
        let colour = line.colour.drawn();
        let places = line.points.iter().map(|&(x, y, _)| (x, y));
        chart
            .draw_series(LineSeries::new(places, colour.stroke_width(2)))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        for (x, y, name) in line.points.iter().filter(|_| line.dots) {
            let dot = Circle::new((0, 0), 3, colour.filled());
            // A name stays within the chart.
            let (from, away) = if *x > right / 2.0 {
                (HPos::Right, -5)
            } else {
                (HPos::Left, 5)
            };
            let style = (FONT, 12).into_font().color(&ink);
            let style = style.pos(Pos::new(from, VPos::Bottom));
            let text = Text::new(name.clone(), (away, -4), style);
            chart.draw_series([EmptyElement::at((*x, *y)) + dot + text])?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font((FONT, 13).into_font().color(&ink))
        .draw()?;
    area.present()
}
