//! What the user sees: results on standard output, everything else on standard
//! error; progress bars only on a terminal.
//!
//! A reader that has had enough (`occlude inspect … | head`) ends the command
//! quietly.

use std::io::{ErrorKind, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::{Exit, Failure};

/// One line of result.
pub(crate) fn line(text: impl std::fmt::Display) {
    result(format_args!("{text}\n"));
}

/// Result as it stands, to the last byte.
pub(crate) fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    end_on_closed_pipe(out.write_all(bytes).and_then(|()| out.flush()));
}

/// One line beside the result: a warning, or what was done.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The last line of a command that did not do what it was asked.
pub(crate) fn error(failure: &Failure) {
    let _ = writeln!(std::io::stderr(), "occlude: {failure}");
}

/// One JSON document of result.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    line(text);
    Ok(())
}

/// A table without lines, columns aligned, numbers to the right where the caller
/// says so.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, numbers: &[usize]) {
    use comfy_table::{CellAlignment, Table, presets};
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec())
        .add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in table.to_string().lines() {
        line(row.trim_end());
    }
}

fn result(text: std::fmt::Arguments<'_>) {
    end_on_closed_pipe(std::io::stdout().write_fmt(text));
}

/// Nobody is left to read the rest; anything else that stops standard output is an
/// error, since a result that was cut must not look whole.
fn end_on_closed_pipe(written: std::io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            note(format_args!("occlude: standard output: {error}"));
            std::process::exit(Exit::Failed as i32);
        }
    }
}

/// A count with thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A size in bytes, as people read it.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A line that says what is being done; silent where standard error is no terminal.
pub(crate) struct Activity(ProgressBar);

impl Activity {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, progress_target());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(crate) fn is(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
        self.0.tick();
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn progress_target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// A progress bar over bytes; silent where standard error is no terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(what: &'static str) -> Self {
        let style = ProgressStyle::with_template(
            "{msg} [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        );
        // Nothing is drawn before the length is known.
        let bar = ProgressBar::with_draw_target(Some(0), progress_target()).with_message(what);
        Self(match style {
            Ok(style) => bar.with_style(style.progress_chars("=> ")),
            Err(_) => bar,
        })
    }

    pub(crate) fn at(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(138_357_544), "138,357,544");
    }
}
