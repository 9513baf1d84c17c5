//! How things are shown: JSON, tables, errors.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::set::manifest::json;
use crate::steps;

/// The first thing that couldn't be printed, and why.
static UNSAID: OnceLock<io::Error> = OnceLock::new();

/// Prints a line on stdout as `println!` does, but never panics: a command must not end half way because its reader
/// has gone or because the disk that stdout goes to is full.
macro_rules! say {
    () => { $crate::cli::output::line(format_args!("")) };
    ($($said:tt)*) => { $crate::cli::output::line(format_args!($($said)*)) };
}
pub(super) use say;

/// See [`say`].
pub(super) fn line(said: fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout(), "{said}") {
        let _ = UNSAID.set(error);
    }
}

/// Prints a line on stderr as `eprintln!` does, but never panics: a terminal that has gone away, or the full disk that
/// stderr goes to, must neither end a command half way nor change its exit code.
macro_rules! tell {
    ($($said:tt)*) => { $crate::cli::output::told(format_args!($($said)*)) };
}
pub(super) use tell;

/// See [`tell`].
pub(super) fn told(said: fmt::Arguments<'_>) {
    // There is nowhere left to report this.
    let _ = writeln!(io::stderr(), "{said}");
}

/// Checks that everything could be printed. A reader that has gone doesn't want more, so that is no error.
///
/// # Errors
/// When writing to stdout failed for another reason.
pub(super) fn all_said() -> Result<()> {
    if let Err(error) = io::stdout().flush() {
        let _ = UNSAID.set(error);
    }
    match UNSAID.get() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let what = format!("the output couldn't be written to stdout: {error}");
            Err(Error::failed(what).with_hint("the command itself has done its work"))
        }
        _ => Ok(()),
    }
}

/// The version of every JSON shape; docs/json.md documents them.
pub(super) const JSON_VERSION: u32 = 1;

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    steps::end_with_the_reader();
    say!("{}", serde_json::to_string_pretty(value).map_err(json("write JSON"))?);
    Ok(())
}

/// A table of plain columns, as wide as the terminal.
pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().map(|word| word.to_uppercase()));
    table
}

/// Prints a table without the blanks around it.
pub(super) fn print_table(table: &Table) {
    for line in table.to_string().lines() {
        say!("{}", without_blanks(line));
    }
}

fn without_blanks(line: &str) -> &str {
    line.strip_prefix(' ').unwrap_or(line).trim_end()
}

/// `error: …` and `hint: …`.
pub(super) fn error(error: &Error) {
    tell!("error: {}", error.chain());
    if let Some(hint) = error.hint() {
        tell!("hint: {hint}");
    }
}

/// Bytes of a recordsize, short: `8K`, `128K`, `1M`.
pub(super) fn recordsize(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 20 && b.is_multiple_of(1 << 20) => format!("{}M", b >> 20),
        b if b >= 1 << 10 && b.is_multiple_of(1 << 10) => format!("{}K", b >> 10),
        b => b.to_string(),
    }
}

/// A path with its control characters escaped, so that a newline in a name can't pass for a line.
pub(super) fn path(path: &std::path::Path) -> String {
    path.display().to_string().chars().fold(String::new(), |mut text, c| {
        if c.is_control() {
            text.extend(c.escape_default())
        } else {
            text.push(c)
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output that other tests compare has its column widths removed, because they depend on values that vary. So
    /// this tests them.
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = table(&["set", "size", "what it holds"]);
        table.add_row(["20261124T041030Z-u1h6", "7 B", "data"]);
        table.add_row(["été", "1012.4 MiB", ""]);
        table.add_row([
            "",
            "",
            "a long text, of which the terminal's width cuts nothing off, nor breaks it",
        ]);
        let text = table.to_string();
        let lines: Vec<_> = text.lines().map(without_blanks).collect();
        assert_eq!(
            lines,
            [
                "SET                    SIZE        WHAT IT HOLDS",
                "20261124T041030Z-u1h6  7 B         data",
                "été                    1012.4 MiB",
                "                                   a long text, of which the terminal's width cuts nothing off, nor breaks it",
            ]
        );
    }
}
