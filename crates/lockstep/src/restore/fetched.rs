//! What a restore_command fetched and said, by the server's log.
//!
//! What could go wrong: PostgreSQL takes each code from 1 to 125 for the end of the archive (RestoreArchivedFile in
//! xlogarchive.c). A command that fails for want of a right, or because it writes where a server in its namespace may
//! not, ends recovery early, and the cluster that comes of it looks whole. Nothing but the command's own words tells.

use super::Problem;

/// What is the matter with a recovery to the end of the archive; `said` is the server's log, `before`: segments that
/// were restored by an earlier start of it. `None` where nothing looks wrong.
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
            "not one segment of WAL came from restore_command: recovery ended with the set's own{end}. Does it find what comes after that?"
        );
    }
    None
}

/// What to do about one of a restore_command's complaints.
pub(super) fn hint(line: &str) -> &'static str {
    if line.contains(READ_ONLY) {
        "name the folder that it writes to in clone.writable, then restore again: in recovery all but a few file systems are read-only"
    } else {
        "see that os_user may run it and read the archive, then restore again"
    }
}

const READ_ONLY: &str = "Read-only file system";

/// The line with which a command, and not PostgreSQL, said that it couldn't do its work. That a file isn't there it says
/// at the end of each archive.
pub(super) fn complaint(said: &[String]) -> Option<&str> {
    const WORDS: [&str; 4] =
        [READ_ONLY, "ermission denied", "Operation not permitted", "command not found"];
    let is_complaint =
        |line: &&str| WORDS.iter().any(|words| line.contains(words)) || is_no_command(line);
    // What follows is another command's, as archive_command.
    let is_in_recovery = |line: &&str| !line.contains("ready to accept connections");
    let lines = said.iter().map(String::as_str).take_while(is_in_recovery);
    lines.filter(|line| !is_of_postgresql(line)).find(is_complaint)
}

/// As dash says it: `sh: 1: wal-g: not found`. Tools say "not found" of segments.
fn is_no_command(line: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    line.strip_suffix(": not found").is_some_and(|line| line.split(": ").any(is_number))
}

/// Whether a line is the server's own: of these the level is followed by two spaces, whatever log_line_prefix is, and
/// what is longer than a line goes on behind a tab (send_message_to_server_log in elog.c).
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

/// How many segments came from the archive.
pub(super) fn segments(said: &[String]) -> usize {
    let names = said.iter().filter_map(|line| line.split_once("restored log file \"")?.1.get(..25));
    let is_segment = |name: &&str| {
        name.strip_suffix('"').is_some_and(|name| name.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    names.filter(is_segment).count()
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
        ] {
            assert_eq!(complaint(&lines(&["t [7] LOG:  x", line])), Some(line));
            let ready = "t [7] LOG:  database system is ready to accept connections";
            assert_eq!(complaint(&lines(&[ready, line])), None, "it is archive_command's");
            let problem = problem(&lines(&[line]), 3, Some("LSN 0/3000000")).unwrap();
            assert!(problem.what.contains(line) && problem.what.contains("0/3000000"));
            let is_read_only = line.contains("Read-only");
            assert_eq!(problem.hint.contains("clone.writable"), is_read_only, "{line}");
        }
        for line in [
            "cp: cannot stat '/archive/00000002.history': No such file or directory",
            "2026-11-27 18:04:13.120 UTC [7] LOG:  could not open file \"x\": Permission denied",
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
