//! Checks that WAL doesn't wait for the archive for long.
//!
//! What could go wrong: PostgreSQL counts a failure only where the command ends with a code of 1 to 125. With a greater
//! one (255 of an ssh that reaches nobody, 127 of a program that isn't there) the archiver ends and is started again
//! (shell_archive.c), and with a command that hangs nothing happens at all: pg_stat_archiver then says that all is well.
//! So what waits is looked for on disk.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Finding, failure, wrong};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::plan::facts::ServerFacts;
use crate::words::counted;

const SUBJECT: &str = "archiving";
/// How long a file may wait.
const LONG: Duration = Duration::from_secs(3600);

/// What waits to be archived.
struct Waiting {
    files: u64,
    /// The one that has waited for the longest.
    oldest: String,
    since: SystemTime,
}

/// Returns what has waited for too long, unless archiving was found to be wrong anyway.
pub(super) fn check(cx: &Context, server: &ServerFacts) -> Option<Finding> {
    let archives = match server.archive_mode.as_str() {
        "off" => false,
        "always" => true,
        _ => !server.in_recovery,
    };
    if !archives || server.archiver.is_empty() || server.archive_failed.is_some() {
        return None;
    }
    match waiting(&cx.cluster.data_directory.join("pg_wal/archive_status")) {
        Ok(found) => too_long(&found?, SystemTime::now()),
        Err(error) => Some(failure(SUBJECT, &error)),
    }
}

/// Returns what this archive_status has `.ready` files of. PostgreSQL makes one when a segment is full, and renames it
/// once that is archived.
fn waiting(archive_status: &Path) -> Result<Option<Waiting>> {
    let mut all: Option<Waiting> = None;
    for path in files::list(archive_status)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_suffix(".ready")) else { continue };
        let since = match std::fs::metadata(&path).and_then(|found| found.modified()) {
            // It has just been archived.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            found => found.map_err(Error::io("look at", &path))?,
        };
        let this = Waiting { files: 1, oldest: name.to_owned(), since };
        all = Some(match all {
            None => this,
            Some(all) => {
                let files = all.files + 1;
                let older = if this.since < all.since { this } else { all };
                Waiting { files, ..older }
            }
        });
    }
    Ok(all)
}

/// A pure function.
fn too_long(waiting: &Waiting, now: SystemTime) -> Option<Finding> {
    let age = now.duration_since(waiting.since).unwrap_or_default();
    (age >= LONG).then(|| {
        wrong(
            SUBJECT,
            format!(
                "{} of WAL not archived yet, the oldest, {}, for {}",
                counted(waiting.files, "file"),
                waiting.oldest,
                counted(age.as_secs() / 3600, "hour")
            ),
            "the server's log has the reason: a command that hangs, or that ends with a code above 125 (255 of ssh, 127 of a program that isn't there), counts as no failure in pg_stat_archiver; WAL piles up in pg_wal meanwhile",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn what_waits_for_an_hour_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let now = SystemTime::UNIX_EPOCH + 400_000 * hour;
        assert!(waiting(&scratch.path().join("none")).unwrap().is_none());
        for (name, hours) in [
            ("000000010000000000000005.done", 9_u32),
            ("000000010000000000000007.ready", 1),
            ("000000010000000000000006.ready", 3),
            ("000000010000000000000008.ready", 0),
        ] {
            let file = std::fs::File::create(scratch.path().join(name)).unwrap();
            file.set_modified(now - hours * hour).unwrap();
        }
        let found = waiting(scratch.path()).unwrap().unwrap();
        let late = too_long(&found, now).unwrap();
        assert_eq!(late.severity, Severity::Error);
        let said =
            "3 files of WAL not archived yet, the oldest, 000000010000000000000006, for 3 hours";
        assert_eq!(late.what, said);
        assert!(too_long(&found, now - 2 * hour).unwrap().what.ends_with("for 1 hour"));
        assert_eq!(too_long(&found, now - 2 * hour - hour / 60), None);
        assert_eq!(too_long(&found, now - 4 * hour), None, "the clock was set back");
    }
}
