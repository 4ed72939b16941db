//! What commands print: results on standard output, everything else on standard error. All of it passes here, and nothing of it acts on a terminal:
//! text of relays, producers and ids is shown as what it is.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::ContentArrangement;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::{escape, redact};

/// Widest line of a table.
const COLUMNS: u16 = 80;

/// In which form a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON document per line.
    Json,
}

/// Prints a line of result, which stays one whatever it holds. A reader that is gone (`| head`) ends the program quietly.
pub fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", escape::line(text))
}

/// Prints each of these as a line.
pub fn lines<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> io::Result<()> {
    texts.into_iter().try_for_each(|text| line(text.as_ref()))
}

/// Prints a JSON document on a line of its own.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(json_text(&serde_json::to_string(value)?)?)
}

/// Prints a JSON document that somebody else wrote, on a line of its own.
pub fn json_text(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", escape::json(text.trim_end()))
}

/// Columns under a header, which fit 80 characters unless `wide` is asked for: what is longer is cut. Nothing of a cell acts on a terminal.
pub fn table(header: &[&str], rows: &[Vec<String>], wide: bool) -> Vec<String> {
    if rows.is_empty() {
        return Vec::new();
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(if wide { ContentArrangement::Disabled } else { ContentArrangement::Dynamic });
    table.set_width(COLUMNS);
    let cells = |row: &mut dyn Iterator<Item = &str>| {
        let mut row = comfy_table::Row::from(row.map(|text| escape::line(text).into_owned()).collect::<Vec<_>>());
        row.max_height(1);
        row
    };
    table.set_header(cells(&mut header.iter().copied()));
    table.add_rows(rows.iter().map(|row| cells(&mut row.iter().map(String::as_str))));
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if n + 1 == header.len() { 0 } else { 2 }));
        // What a person copies from a list, and short words, are whole; the last column gives way.
        if !wide && n + 1 < header.len() {
            column.set_constraint(comfy_table::ColumnConstraint::ContentWidth);
        }
    }
    table.set_truncation_indicator("\u{2026}");
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// A time for people: `40s`, `3m`, `12h`, `3d`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Prints text of our own that has to stay as it is, for another program to read.
pub fn raw(text: &[u8]) -> io::Result<()> {
    io::stdout().lock().write_all(text)
}

/// Begins the screen anew, where there is one.
pub fn clear_screen() -> io::Result<()> {
    let mut out = io::stdout().lock();
    if out.is_terminal() { write!(out, "\x1b[2J\x1b[H") } else { writeln!(out) }
}

/// So many of a thing, in words: `1 job`, `2 jobs`.
pub fn count(number: impl std::fmt::Display, thing: &str) -> String {
    let number = number.to_string();
    let end = if number == "1" { "" } else { "s" };
    format!("{number} {thing}{end}")
}

/// Prints a remark on standard error, without the secrets of this process. Of more than one line the others are indented: none of them passes for
/// another remark.
pub fn remark(text: &str) {
    // Without a standard error there is nobody to remark to.
    let _ = writeln!(io::stderr().lock(), "{}", shown(&redact::clean(text)));
}

fn shown(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().split('\n').map(|line| escape::line(line.trim_end_matches('\r'))).collect();
    lines.join("\n    ")
}

/// A progress bar; nothing where standard error is no terminal.
pub fn progress(total: u64, what: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template("{msg:>10} {bar:40} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_80_columns_keeps_its_first_column_whole_and_acts_on_no_terminal() {
        let id = "0190a5c0-7a10-7c3e-9d51-000000000001";
        let hostile = "a\u{1b}[2J\nok\u{202e}".repeat(20);
        let rows = vec![vec![id.to_owned(), "3m".to_owned(), hostile.clone()], vec!["short".to_owned(); 3]];
        let lines = table(&["id", "age", "detail"], &rows, false);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].starts_with("id ") && lines[1].starts_with(&format!("{id}  3m")), "{lines:#?}");
        for line in &lines {
            assert!(line.chars().count() <= 80 && !line.contains(['\u{1b}', '\n', '\u{202e}']), "{line:?}");
        }
        let wide = table(&["id", "age", "detail"], &rows, true);
        assert!(wide[1].ends_with(&*escape::line(&hostile)), "{wide:#?}");
        assert!(table(&["id"], &[], false).is_empty());
    }

    #[test]
    fn no_line_of_a_remark_passes_for_another_remark() {
        assert_eq!(shown("line 1: bad\r\nok\x1b[2J\n"), "line 1: bad\n    ok\\u{1b}[2J");
    }
}
