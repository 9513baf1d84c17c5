//! What a long command shows on a terminal while it works; nothing where stderr is none, or where what
//! is printed is for a program.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};

static SILENT: AtomicBool = AtomicBool::new(false);

/// From here on nothing is shown: `--json` was asked for.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// A line each for what is done at the same time.
#[derive(Debug)]
pub struct Progress(Option<MultiProgress>);

impl Progress {
    /// Lines on stderr, where that is a terminal.
    #[must_use]
    pub fn on_stderr() -> Self {
        let is_shown = std::io::stderr().is_terminal() && !SILENT.load(Ordering::Relaxed);
        Self(is_shown.then(MultiProgress::new))
    }

    /// Whether anybody sees it.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.0.is_some()
    }

    /// A line for bytes of which nobody knows how many they will be.
    #[must_use]
    pub fn bytes(&self, what: &str) -> ProgressBar {
        self.line(what, None, "{spinner} {msg}  {bytes} in {elapsed}, {bytes_per_sec}")
    }

    /// A line for bytes that will be `total` in the end, or a little less.
    #[must_use]
    pub fn bytes_of(&self, what: &str, total: u64) -> ProgressBar {
        let style = "{spinner} {msg}  {bytes} of {total_bytes} ({percent}%), {bytes_per_sec}{left}";
        self.line(what, Some(total), style)
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

/// How long the rest will take, once there is a rate to tell it from.
fn left(state: &ProgressState, to: &mut dyn Write) {
    if state.pos() > 0 {
        let _ = write!(to, ", {:#} left", HumanDuration(state.eta()));
    }
}
