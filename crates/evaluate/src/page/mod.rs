//! Reports as one HTML file that loads nothing, for light, dark and paper.

pub(crate) mod chart;

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;

/// What every report looks like.
const PAGE: &str = include_str!("page.html");

/// Fills a template that extends `page.html`.
///
/// # Panics
/// If the template is malformed, or names what is not given.
pub(crate) fn render(template: &'static str, page: &impl Serialize) -> String {
    let mut environment = Environment::new();
    // The name has HTML escaped.
    let parsed = environment
        .add_template("page.html", PAGE)
        .and_then(|()| environment.add_template("report.html", template));
    parsed.expect("the template is well formed");
    environment
        .get_template("report.html")
        .and_then(|template| template.render(Serde(page)))
        .expect("the template names what it is given")
}
