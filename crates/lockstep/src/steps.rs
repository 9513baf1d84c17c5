//! The named steps of a command, at which it can be interrupted, watched and, in tests, held.
//!
//! Between two steps nothing is half done that the next start couldn't undo. With the cargo feature `test-hooks` and
//! `LOCKSTEP_STEPS_DIR` set, a step creates the file `DIR/NAME`, sleeps for the milliseconds in `DIR/NAME.delay` if
//! that file exists, and waits while `DIR/NAME.hold` exists. That is how tests kill Lockstep at every step and
//! stretch the time between two snapshots.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::threads;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on, SIGINT and SIGTERM end the command at its next step instead of at once. So does the end of its
/// terminal (SIGHUP), unless `nohup` makes it ignored.
///
/// # Errors
/// When the handler can't be installed, or the system starts no thread for it.
pub fn catch_signals() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let caught = [SIGINT, SIGTERM].into_iter().chain((!ignores(&status, SIGHUP)).then_some(SIGHUP));
    let mut signals = signal_hook::iterator::Signals::new(caught)
        .map_err(|e| Error::failed("cannot install the signal handler").because(e))?;
    let watch = move || {
        for _ in signals.forever() {
            INTERRUPTED.store(true, Ordering::SeqCst);
        }
    };
    threads::start(watch).map(drop)
}

/// Checks whether a signal is ignored, according to `/proc/PID/status`.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// From here on, a reader that goes away (`lockstep list | head`) ends the command silently, as it ends other
/// programs. Call this only when nothing but printing is left: until then, a closed stderr must not end a backup half
/// way.
pub fn end_with_the_reader() {
    let at_once = std::sync::Arc::new(AtomicBool::new(true));
    // If the handler can't be installed, printing fails as it did before.
    let _ = signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, at_once);
}

/// Returns whether a signal has asked the command to end.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Marks the step `name` as reached.
///
/// # Errors
/// [`Error::Interrupted`] when a signal has come since the last step.
pub fn reached(name: &str) -> Result<()> {
    tracing::debug!(step = name, "reached");
    passed(name)
}

/// The same for one of thousands of steps, such as in a loop: it isn't logged.
///
/// # Errors
/// [`Error::Interrupted`] when a signal has come since the last step.
pub fn passed(name: &str) -> Result<()> {
    #[cfg(feature = "test-hooks")]
    hooks::run(name);
    if interrupted() {
        return Err(Error::Interrupted { step: name.to_owned() });
    }
    Ok(())
}

#[cfg(feature = "test-hooks")]
mod hooks {
    use std::path::PathBuf;
    use std::time::Duration;

    pub(super) fn run(name: &str) {
        let Some(directory) = std::env::var_os("LOCKSTEP_STEPS_DIR").map(PathBuf::from) else {
            return;
        };
        // A hook that can't be written must not look like a step that wasn't reached.
        if let Err(error) = std::fs::write(directory.join(name), b"") {
            eprintln!("test hook: cannot write {name}: {error}");
        }
        if let Ok(text) = std::fs::read_to_string(directory.join(format!("{name}.delay")))
            && let Ok(milliseconds) = text.trim().parse()
        {
            std::thread::sleep(Duration::from_millis(milliseconds));
        }
        while directory.join(format!("{name}.hold")).exists() && !super::interrupted() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_seen() {
        use signal_hook::consts::{SIGHUP, SIGINT};
        let status = "Name:\tlockstep\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, SIGHUP));
        assert!(!ignores(status, SIGINT));
        assert!(!ignores("", SIGHUP));
    }
}
