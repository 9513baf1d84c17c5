//! What a long command shows on a terminal while it works; nothing where stderr is none.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A line each for what is done at the same time.
#[derive(Debug)]
pub struct Progress(Option<MultiProgress>);

impl Progress {
    /// Lines on stderr, where that is a terminal.
    #[must_use]
    pub fn on_stderr() -> Self {
        Self(std::io::stderr().is_terminal().then(MultiProgress::new))
    }

    /// A line for bytes of which nobody knows how many they will be.
    #[must_use]
    pub fn bytes(&self, what: &str) -> ProgressBar {
        let Some(lines) = &self.0 else { return ProgressBar::hidden() };
        let bar = lines.add(ProgressBar::no_length().with_message(what.to_owned()));
        let style = "{spinner} {msg}  {bytes} in {elapsed}, {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        bar
    }
}
