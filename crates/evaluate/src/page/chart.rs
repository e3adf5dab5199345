//! Lines, as SVG.
//!
//! `plotters` draws with fixed colours. Each is one that nothing else uses and is replaced by
//! a variable of the page, which has it for light, dark and paper.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One line.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) colour: Colour,
    /// Whether each point is drawn, with its name.
    pub(crate) dots: bool,
    /// Where it is across, how high, and what the point is called.
    pub(crate) points: Vec<(f64, f64, String)>,
}

/// What goes across.
pub(crate) struct Axis<'a> {
    name: &'a str,
    /// Where it begins.
    from: f64,
    label: fn(f64) -> String,
    /// How much wider the chart is than its points.
    room: f64,
}

impl<'a> Axis<'a> {
    /// From 0 on.
    pub(crate) fn linear(name: &'a str) -> Self {
        Self {
            name,
            from: 0.0,
            // Steps of a tenth add up to no round number.
            label: |at| ((at * 1000.0).round() / 1000.0).to_string(),
            room: 1.15,
        }
    }

    /// Numbers by their decimal logarithm, from this one on.
    pub(crate) fn logarithmic(name: &'a str, from: f64) -> Self {
        Self {
            name,
            from: from.log10(),
            label: |at| format!("{:.0}", 10_f64.powf(at)),
            // For the lines' names, which are at the right.
            room: 1.4,
        }
    }
}

/// A colour of the page.
#[derive(Clone, Copy)]
pub(crate) enum Colour {
    Ink,
    Grid,
    Plain,
    Occlude,
    Soft,
    Opening,
    Other,
}

impl Colour {
    const ALL: [Self; 7] = [
        Self::Ink,
        Self::Grid,
        Self::Plain,
        Self::Occlude,
        Self::Soft,
        Self::Opening,
        Self::Other,
    ];

    fn drawn(self) -> RGBColor {
        RGBColor(1, 2, 3 + self as u8)
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Ink => "var(--ink)",
            Self::Grid => "var(--grid)",
            Self::Plain => "var(--plain)",
            Self::Occlude => "var(--occlude)",
            Self::Soft => "var(--soft)",
            Self::Opening => "var(--opening)",
            Self::Other => "var(--other)",
        }
    }
}

const WIDTH: u32 = 760;
const HEIGHT: u32 = 340;
const FONT: &str = "sans-serif";

/// Draws `lines`, of which a constant one spans the whole width. `unit` is what is drawn.
pub(crate) fn lines(across: &Axis<'_>, unit: &str, lines: &[Line<'_>]) -> String {
    let mut svg = String::new();
    // Drawing into a text fails only where a chart has no area, which this one has.
    draw(&mut svg, across, unit, lines).expect("a chart can be drawn into a text");
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
    across: &Axis<'_>,
    unit: &str,
    lines: &[Line<'_>],
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let highest = |of: fn(&(f64, f64, String)) -> f64| points().map(of).fold(0.0, f64::max);
    let (right, top) = (highest(|point| point.0), highest(|point| point.1));
    // A chart without extent has no scale.
    let right = across.from + (right - across.from).max(1e-3) * across.room;
    let top = top.max(1e-3) * 1.15;
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let ink = Colour::Ink.drawn();
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(across.from..right, 0.0..top)?;
    chart
        .configure_mesh()
        .axis_style(ink)
        .bold_line_style(Colour::Grid.drawn())
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 13).into_font().color(&ink))
        .x_desc(across.name)
        .x_label_formatter(&|at| (across.label)(*at))
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
            let (from, away) = if *x > across.from.midpoint(right) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_an_axis_have_round_numbers() {
        let axis = Axis::linear("tau");
        for (at, text) in [
            (0.0, "0"),
            (0.1 + 0.2, "0.3"),
            (0.799_999_999_999_999_9, "0.8"),
            (0.125, "0.125"),
            (150.0, "150"),
        ] {
            assert_eq!((axis.label)(at), text);
        }
        let axis = Axis::logarithmic("queries", 80.0);
        assert_eq!((axis.label)(3.0), "1000");
    }
}
