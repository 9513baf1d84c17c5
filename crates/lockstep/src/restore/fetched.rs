//! What a restore_command fetched and said, from the server's log.
//!
//! What could go wrong: PostgreSQL takes each exit code from 1 to 125 for the end of the archive (RestoreArchivedFile
//! in xlogarchive.c). If a command lacks a permission, writes where a server in its namespace must not, or can't reach
//! the archive for a moment, recovery ends early, and the resulting cluster looks complete. `cp` ends with 1 whatever
//! its reason is. Only the command's own output shows it.

use pgfiles::lsn::{Lsn, TimelineId};
use pgfiles::wal_name::{WalSegment, WalSegmentSize};

use super::Problem;

/// Returns what is wrong with a recovery to the end of the archive; `None` if nothing looks wrong. `said` is the
/// server's log, `before` the number of segments that an earlier start of it restored.
pub(super) fn problem(said: &[String], before: usize, end: Option<&str>) -> Option<Problem> {
    let end = end.map_or_else(String::new, |end| format!(" at {end}"));
    if let Some(line) = complaint(said) {
        return Some(Problem {
            what: format!(
                "recovery ended{end}, and that may be too early: restore_command said \"{line}\""
            ),
            hint: hint(line).to_owned(),
        });
    }
    if before + segments(said) == 0 {
        tracing::warn!(
            "restore_command delivered no WAL: recovery ended with the set's own{end}. Does restore_command find what comes after that?"
        );
    }
    None
}

/// Returns what to do about a restore_command's complaint.
pub(super) fn hint(line: &str) -> &'static str {
    if line.contains(READ_ONLY) {
        "add the folder that it writes to to clone.writable, then restore again: during recovery all but a few file systems are read-only"
    } else if says(line, &NO_ROOM) {
        "make room for WAL in the restored cluster's pg_wal, or where else the command writes, then restore again"
    } else if says(line, &OUT_OF_REACH) {
        "see that the archive can be reached and read without errors, then restore again"
    } else {
        "check that os_user can run it and read the archive, then restore again"
    }
}

const READ_ONLY: &str = "Read-only file system";
/// In the words of the C library (ENOSPC, EDQUOT).
const NO_ROOM: [&str; 2] = ["No space left on device", "quota exceeded"];
/// The same for an archive that is there, and can't be read: a disk, a mount, the network. ssh's exit code ends recovery
/// with an error; those of cp, scp, rsync and curl don't.
const OUT_OF_REACH: [&str; 16] = [
    "Input/output error",
    "Remote I/O error",
    "Stale file handle",
    "Stale NFS file handle",
    "Transport endpoint is not connected",
    "Host is down",
    "No route to host",
    "etwork is unreachable",
    "onnection refused",
    "onnection reset by peer",
    "timed out",
    "ould not resolve host",
    "name resolution",
    "Too many open files",
    "Cannot allocate memory",
    "annot fork",
];

fn says(line: &str, known: &[&str]) -> bool {
    known.iter().any(|words| line.contains(words))
}

/// Returns the line in which a command, not PostgreSQL, said that it couldn't do its work. That a file is missing is
/// normal: it says so at the end of each archive.
pub(super) fn complaint(said: &[String]) -> Option<&str> {
    const WORDS: [&str; 4] =
        [READ_ONLY, "ermission denied", "Operation not permitted", "command not found"];
    // What follows belongs to another command, such as archive_command.
    let ready = said.iter().position(|line| line.contains("ready to accept connections"));
    let said = &said[..ready.unwrap_or(said.len())];
    // A command that was cut off and tried again has delivered what it was asked for: recovery went on.
    let before_end = before_end(said);
    let went_on = before_end.iter().rposition(|line| line.contains("restored log file"));
    let ends = went_on.map_or(0, |at| at + 1)..before_end.len();
    let is_complaint = |at: usize, line: &str| {
        let for_a_moment = says(line, &NO_ROOM) || says(line, &OUT_OF_REACH);
        // A history is asked for once: without it recovery goes on, along another timeline.
        let counts = ends.contains(&at) || line.contains(".history");
        says(line, &WORDS) || is_no_command(line) || (for_a_moment && counts)
    };
    let lines = said.iter().map(String::as_str).enumerate();
    let mut complaints =
        lines.filter(|(at, line)| !is_of_postgresql(line) && is_complaint(*at, line));
    complaints.next().map(|(_, line)| line)
}

/// Returns what was said before replay ended. After that, PostgreSQL asks for the last segment once more.
fn before_end(said: &[String]) -> &[String] {
    let end = said.iter().position(|line| line.contains("redo done at"));
    &said[..end.unwrap_or(said.len())]
}

/// dash writes `sh: 1: wal-g: not found`. Other tools say "not found" about segments.
fn is_no_command(line: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    line.strip_suffix(": not found").is_some_and(|line| line.split(": ").any(is_number))
}

/// Whether a line is the server's own: its level is followed by two spaces, whatever log_line_prefix is, and a
/// continuation line begins with a tab (send_message_to_server_log in elog.c).
fn is_of_postgresql(line: &str) -> bool {
    const LEVELS: [&str; 11] = [
        "LOG",
        "FATAL",
        "PANIC",
        "ERROR",
        "WARNING",
        "NOTICE",
        "INFO",
        "DETAIL",
        "HINT",
        "CONTEXT",
        "STATEMENT",
    ];
    line.starts_with('\t')
        || line
            .split_once(":  ")
            .is_some_and(|(before, _)| LEVELS.iter().any(|level| before.ends_with(level)))
}

/// Returns how many segments came from the archive.
pub(super) fn segments(said: &[String]) -> usize {
    let names = said.iter().filter_map(|line| line.split_once("restored log file \"")?.1.get(..25));
    let is_segment = |name: &&str| {
        name.strip_suffix('"').is_some_and(|name| name.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    names.filter(is_segment).count()
}

/// Returns the segments that came from the archive.
pub(super) fn delivered(said: &[String], size: WalSegmentSize) -> Vec<WalSegment> {
    let names =
        said.iter().filter_map(|line| line.split_once("restored log file \"")?.1.split_once('"'));
    names.filter_map(|(name, _)| WalSegment::parse(name, size).ok()).collect()
}

/// Returns the last segment that came from the archive, if recovery ended because of what the WAL reader said about
/// it (xlogreader.c). What the reader says about the next file, recycled in pg_wal, appears at the end of every
/// recovery.
pub(super) fn unreadable(said: &[String], size: WalSegmentSize) -> Option<(String, &str)> {
    let said = before_end(said);
    let (at, name) = said.iter().enumerate().rev().find_map(|(at, line)| {
        let (name, _) = line.split_once("restored log file \"")?.1.split_once('"')?;
        WalSegment::parse(name, size).ok().map(|segment| (at, segment))
    })?;
    let words = said[at..].iter().filter_map(|line| Some(line.split_once("LOG:  ")?.1));
    let of_it =
        |words: &&str| READER.iter().any(|known| words.contains(known)) && is_of(words, name, size);
    Some((name.file_name(size), words.rev().find(of_it)?))
}

/// In the words of PostgreSQL 13 to 18, which names a record by its LSN, and a page by its segment's name too.
const READER: [&str; 11] = [
    "magic number",
    "info bits",
    "pageaddr",
    "record length",
    "record offset",
    "resource manager",
    "prev-link",
    "contrecord",
    "database system",
    "timeline ID",
    "block_id",
];

fn is_of(words: &str, segment: WalSegment, size: WalSegmentSize) -> bool {
    let behind = |before: &'static str| {
        let rests = words.split(before).skip(1);
        rests.map(|rest| rest.split([' ', ',', ':', ';']).next().unwrap_or_default())
    };
    if let Some(name) = behind("segment ").next() {
        return name == segment.file_name(size);
    }
    let lsn = behind(" at ").find_map(|lsn| lsn.parse::<Lsn>().ok());
    lsn.is_some_and(|lsn| WalSegment::containing(segment.timeline, lsn, size) == segment)
}

/// Returns the timeline that the server began at the end of recovery (StartupXLOG in xlog.c).
pub(super) fn begun_timeline(said: &[String]) -> Option<TimelineId> {
    let behind =
        |line: &String| Some(line.split_once("selected new timeline ID: ")?.1.trim().to_owned());
    TimelineId::new(said.iter().rev().find_map(behind)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_command_that_could_not_is_told_from_an_archive_that_ends() {
        for line in [
            "cp: cannot stat '/archive/000000010000000000000003': Permission denied",
            "/srv/rc: 3: cannot create /srv/log/restore.log: Read-only file system",
            "sh: 1: wal-g: not found",
            "/srv/rc: line 3: wal-g: command not found",
            "postgres@archive: Permission denied (publickey).",
            "cp: error writing 'pg_wal/RECOVERYXLOG': No space left on device",
            "cp: error reading '/archive/000000010000000000000003': Input/output error",
            "cp: cannot stat '/archive/000000010000000000000003': Stale file handle",
            "rsync: [Receiver] failed to connect to archive (10.0.0.7): Connection refused (111)",
            "curl: (28) Operation timed out after 30001 milliseconds with 0 bytes received",
            "curl: (6) Could not resolve host: archive",
        ] {
            assert_eq!(complaint(&lines(&["t [7] LOG:  x", line])), Some(line));
            let ready = "t [7] LOG:  database system is ready to accept connections";
            assert_eq!(complaint(&lines(&[ready, line])), None, "it is archive_command's");
            let problem = problem(&lines(&[line]), 3, Some("LSN 0/3000000")).unwrap();
            assert!(problem.what.contains(line) && problem.what.contains("0/3000000"));
            let is_read_only = line.contains("Read-only");
            assert_eq!(problem.hint.contains("clone.writable"), is_read_only, "{line}");
            let is_full = line.contains("No space");
            assert_eq!(problem.hint.contains("make room"), is_full, "{line}");
        }
        // It was tried again, and the segment came.
        let tried_again = [
            "curl: (56) Recv failure: Connection reset by peer",
            "t [7] LOG:  restored log file \"000000010000000000000003\" from archive",
            "t [7] LOG:  redo done at 0/3FFFFF8",
        ];
        assert_eq!(complaint(&lines(&tried_again)), None);
        let [reset, restored, done] = tried_again;
        assert_eq!(complaint(&lines(&[restored, reset, done, restored])), Some(reset));
        for line in [
            "cp: cannot stat '/archive/00000002.history': No such file or directory",
            "2026-11-27 18:04:13.120 UTC [7] LOG:  could not open file \"x\": Permission denied",
            "2026-11-27 18:04:13.120 UTC [7] LOG:  could not write file \"x\": No space left on device",
            "FATAL:  could not create directory \"/srv/ts\": Read-only file system",
            "fatal error: An error occurred (404) when calling the HeadObject operation: Not Found",
            "ERROR: archive/000000010000000000000003: not found",
            "\tPermission denied",
        ] {
            assert_eq!(complaint(&lines(&[line])), None, "{line}");
            assert!(problem(&lines(&[line]), 0, None).is_none());
        }
    }

    #[test]
    fn a_segment_that_could_not_be_read_is_told_from_the_end_of_the_wal() {
        let restored = "t [7] LOG:  restored log file \"000000010000000000000005\" from archive";
        let done = "t [7] LOG:  redo done at 0/4FFFFD8 system usage: x";
        let of = |line: &str| {
            let said = lines(&[restored, &format!("t [7] LOG:  {line}"), done]);
            unreadable(&said, WalSegmentSize::DEFAULT).map(|(_, words)| words.to_owned())
        };
        for line in [
            "unexpected pageaddr 0/4000000 in log segment 000000010000000000000005, offset 0",
            "unexpected pageaddr 0/4000000 in WAL segment 000000010000000000000005, LSN 0/5000000, offset 0",
            "invalid magic number 0000 in log segment 000000010000000000000005, offset 8192",
            "incorrect resource manager data checksum in record at 0/5000100",
            "invalid record length at 0/5000028: wanted 24, got 0",
            "invalid record length at 0/5000028: expected at least 24, got 0",
            "record with incorrect prev-link 0/3000028 at 0/5000100",
            "invalid resource manager ID 102 at 0/5000100",
        ] {
            assert_eq!(of(line).as_deref(), Some(line));
        }
        for line in [
            "unexpected pageaddr 0/3000000 in log segment 000000010000000000000006, offset 0",
            "invalid magic number 0000 in WAL segment 000000010000000000000006, LSN 0/6000000, offset 0",
            "there is no contrecord flag at 0/6000000",
            "consistent recovery state reached at 0/5000100",
            "database system is ready to accept read-only connections",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
        let before = "t [7] LOG:  invalid record length at 0/5000028: wanted 24, got 0";
        assert_eq!(unreadable(&lines(&[before, done]), WalSegmentSize::DEFAULT), None);
        assert_eq!(unreadable(&lines(&[restored, done, before]), WalSegmentSize::DEFAULT), None);
        let begun = lines(&[done, "t [7] LOG:  selected new timeline ID: 12"]);
        assert_eq!(begun_timeline(&begun), TimelineId::new(12));
        assert_eq!(begun_timeline(&begun[..1]), None);
    }

    #[test]
    fn segments_are_counted_and_histories_are_not() {
        let said = lines(&[
            "t [7] LOG:  restored log file \"00000002.history\" from archive",
            "t [7] LOG:  restored log file \"000000010000000000000003\" from archive",
            "t [7] LOG:  redo done at 0/3000000",
            "t [7] LOG:  restored log file \"0000000100000000000000",
        ]);
        assert_eq!(segments(&said), 1);
    }
}
