//! Shows progress on a terminal while a long command works; nothing if stderr isn't a terminal, or if the output is
//! for a program.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};

static SILENT: AtomicBool = AtomicBool::new(false);

/// From here on nothing is shown, because of `--json`.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// One line for each thing done at the same time.
#[derive(Debug)]
pub struct Progress(Option<MultiProgress>);

impl Progress {
    /// Creates lines on stderr, if that is a terminal.
    #[must_use]
    pub fn on_stderr() -> Self {
        let is_shown = std::io::stderr().is_terminal() && !SILENT.load(Ordering::Relaxed);
        Self(is_shown.then(MultiProgress::new))
    }

    /// Returns whether anybody sees it.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.0.is_some()
    }

    /// Adds a line for an unknown number of bytes.
    #[must_use]
    pub fn bytes(&self, what: &str) -> ProgressBar {
        self.line(what, None, "{spinner} {msg}  {bytes} in {elapsed}, {bytes_per_sec}")
    }

    /// Adds a line for bytes that will be `total` in the end, or a little less.
    #[must_use]
    pub fn bytes_of(&self, what: &str, total: u64) -> ProgressBar {
        let style = "{spinner} {msg}  {bytes} of {total_bytes} ({percent}%), {bytes_per_sec}{left}";
        self.line(what, Some(total), style)
    }

    /// Adds a line for bytes whose total is known with the first report, and which ends when this value is dropped.
    #[must_use]
    pub fn told<'a>(&'a self, what: &'a str) -> Told<'a> {
        Told { lines: self, what, bar: None }
    }

    fn line(&self, what: &str, total: Option<u64>, style: &str) -> ProgressBar {
        let Some(lines) = &self.0 else { return ProgressBar::hidden() };
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let bar = lines.add(bar.with_message(what.to_owned()));
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.with_key("left", left));
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        bar
    }
}

/// A line that appears once there is something to report.
#[derive(Debug)]
pub struct Told<'a> {
    lines: &'a Progress,
    what: &'a str,
    bar: Option<ProgressBar>,
}

impl Told<'_> {
    /// Reports that `done` of `total` bytes are done.
    pub fn bytes(&mut self, done: u64, total: u64) {
        if total > 0 {
            let bar = || self.lines.bytes_of(self.what, total);
            self.bar.get_or_insert_with(bar).set_position(done);
        }
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes how long the rest will take, once there is a rate to estimate it from.
fn left(state: &ProgressState, to: &mut dyn Write) {
    if state.pos() > 0 {
        let _ = write!(to, ", {:#} left", HumanDuration(state.eta()));
    }
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressDrawTarget;

    use super::*;

    #[test]
    fn a_line_comes_with_the_first_bytes_and_goes_with_its_end() {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let lines = Progress(Some(lines));
        let mut line = lines.told("offsite");
        line.bytes(0, 0);
        assert!(line.bar.is_none(), "nothing to tell");
        line.bytes(3, 10);
        let bar = line.bar.clone().unwrap();
        line.bytes(7, 10);
        assert_eq!((bar.position(), bar.length(), bar.is_finished()), (7, Some(10), false));
        drop(line);
        assert!(bar.is_finished());
    }
}
