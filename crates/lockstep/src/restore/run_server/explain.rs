//! Explains why recovery ended where it did, and what to do.

use std::path::PathBuf;

use super::{CONSISTENT, NOT_REACHED, has_said};
use crate::error::Error;
use crate::postgres::server::{self, Server};
use crate::postgres::target::Target;
use crate::refusal::Refusal;
use crate::restore::build::Build;
use crate::restore::{control, fetched, original};
use crate::set::manifest::Manifest;

/// Adds to the error PostgreSQL's reason for ending recovery, if Lockstep knows it.
pub(in crate::restore) fn explain(build: &Build, server: &Server, error: Error) -> Error {
    let said = |words: &str| has_said(server, words);
    if said("requested recovery stop point is before consistent recovery point") {
        let earliest = match build.manifest.floor_lsn {
            Some(floor) => format!("LSN {floor}"),
            None => "the end of the WAL in the set".into(),
        };
        let target = build.recovery.target.to_string();
        return Refusal::TargetBeforeConsistency { target, earliest }.into();
    }
    if said(NOT_REACHED) && said(CONSISTENT) && build.recovery.target == Target::Immediate {
        return error.with_hint(
            "it became consistent with the last record of its WAL, where PostgreSQL neither pauses nor stops: leave out --target-action, and it is promoted there",
        );
    }
    if said(NOT_REACHED) {
        let end = came_to(server.said()).or_else(|| {
            let control = control::read(&build.placement.data).ok()?;
            Some(format!("LSN {} at least", control.min_recovery_point))
        });
        let end = end.map_or_else(String::new, |end| format!("recovery came to {end}; "));
        return error.with_hint(match build.recovery.restore_command {
            None => format!(
                "{end}the set's own WAL ends before the target: give --restore-command so that recovery can fetch more, or check the target"
            ),
            Some(_) => match fetched::complaint(server.said()) {
                Some(line) => format!("{end}restore_command said \"{line}\": {}", fetched::hint(line)),
                None => format!(
                    "{end}take a target up to there, or see that restore_command finds what comes after it{}",
                    if original_runs(build) { ": the original runs here, and `SELECT pg_switch_wal()` on it archives its last segment" } else { "" }
                ),
            },
        });
    }
    let is_standby = build.recovery.standby.is_some();
    if let Some(hint) = of_another_timeline(&build.manifest, is_standby, server.said()) {
        return error.with_hint(hint);
    }
    if said("Read-only file system") {
        return error.with_hint(
            "recovery tried to write outside the restored cluster: the log of a restore_command, perhaps, or a tablespace that was made after the set. If it may, add the folder to clone.writable; a tablespace's has to belong to the server's user, and to no other cluster",
        );
    }
    if let Some(hint) = lacks_a_file(server.said()) {
        return error.with_hint(hint);
    }
    if let Some(hint) = has_errors(server.said(), build.request.clone.is_some()) {
        return error.with_hint(hint);
    }
    // The first message of a server that has its settings and its memory (StartupXLOG in xlog.c).
    if said("FATAL:  ") && !said("database system was ") {
        return error.with_hint(not_as_there(build.request.clone.is_some()));
    }
    error
}

/// Returns what to do if the configuration includes what isn't on this host: that ended the server
/// (ParseConfigDirectory in guc-file.l, load_hba in hba.c).
fn lacks_a_file(said: &[String]) -> Option<String> {
    const LACKING: [&str; 4] = [
        "could not open configuration ",
        "could not open included ",
        "could not open secondary authentication file ",
        "could not open file ",
    ];
    let is_of_it = |line: &&String| LACKING.iter().any(|words| line.contains(words));
    let begins = said.iter().any(|line| line.contains("database system was "));
    let is_fatal = ["contains errors", "could not load "];
    let ended = |line: &String| is_fatal.iter().any(|words| line.contains(words));
    let (line, true) = (said.iter().find(is_of_it)?, !begins && said.iter().any(ended)) else {
        return None;
    };
    let (_, what) = line.split_once("could not open ")?;
    Some(format!(
        "the configuration includes what is neither in the set nor on this host ({what}): with an empty file or folder in its place the server starts, without what was set there"
    ))
}

/// Returns what to do if the server's files have errors (ProcessConfigFileInternal in guc-file.l, PostmasterMain in
/// postmaster.c).
fn has_errors(said: &[String], is_clone: bool) -> Option<&'static str> {
    let begins = said.iter().any(|line| line.contains("database system was "));
    let ends = ["configuration file \"", "could not load "];
    let is_it =
        |line: &String| line.contains("FATAL:  ") && ends.iter().any(|it| line.contains(it));
    (!begins && said.iter().any(is_it)).then_some(match is_clone {
        true => "the set's configuration has errors (the lines above): correct the original's, and take another set; or restore this one, whose files can be corrected",
        false => "the set's configuration has errors (the lines above), which --setting can't correct: restore without --start, correct the files in the restored data directory, and start its server with pg_ctl",
    })
}

/// Returns what to do if a server didn't even begin recovery.
fn not_as_there(is_clone: bool) -> &'static str {
    if is_clone {
        "the server ended before recovery: if this host lacks what the original's had (memory, ssl files, libraries, locales), change it for clones with settings of [clusters.NAME.clone]"
    } else {
        "the server ended before recovery: if this host lacks what the original's had (memory, ssl files, libraries, locales), change it with --setting NAME=VALUE, for example --setting shared_buffers=1GB or --setting ssl=off"
    }
}

/// Whether the set's cluster runs on this host.
fn original_runs(build: &Build) -> bool {
    let all = original::here(build.cx, &build.manifest, &build.placement);
    let is_reachable = |data: &&PathBuf| build.cx.zfs.suspended_at(data).is_none();
    let mut all = all.iter().filter(is_reachable);
    all.any(|data| server::running(data).is_ok_and(|running| running.is_some()))
}

/// Returns why recovery can't begin with the set: it follows a timeline that doesn't contain the set's end
/// (InitWalRecovery in xlogrecovery.c). PostgreSQL's own hint for that is meant for a server that has crashed: a copy
/// without its backup_label starts, and is silently wrong.
fn of_another_timeline(set: &Manifest, is_standby: bool, said: &[String]) -> Option<String> {
    let says = |words: &str| said.iter().any(|line| line.contains(words));
    let timeline = set.timeline();
    let id = &set.set;
    let before = format!("take a set from before the point where timeline {timeline} was left");
    let other = match is_standby {
        // It has to follow its primary's timeline.
        true => before,
        false => format!(
            "{before} (with --target-time and no set given, Lockstep finds it), or give --target-timeline {timeline} to recover along the set's own"
        ),
    };
    if says("is not a child of this server's history")
        || says("does not contain minimum recovery point")
    {
        return Some(format!(
            "set {id} is of timeline {timeline}, which was left before the set's end for the one that recovery follows: {other}"
        ));
    }
    if !says("could not locate required checkpoint record")
        && !says("could not locate a valid checkpoint record")
    {
        return None;
    }
    let start = set.start_lsn.map_or_else(String::new, |start| format!(" (from {start} on)"));
    Some(format!(
        "the WAL that recovery reads isn't the one that set {id} was taken with{start}: is it of another timeline, or does restore_command deliver another cluster's? In the first case {other}. Leave backup_label where it is: without it the cluster would start, and be wrong"
    ))
}

/// Returns how far recovery got, in the words of the server (PerformWalRecovery in xlogrecovery.c).
pub(super) fn came_to(said: &[String]) -> Option<String> {
    let behind = |words: &str| {
        let rest = said.iter().rev().find_map(|line| line.split_once(words))?.1;
        (!rest.is_empty()).then_some(rest)
    };
    let lsn = behind("redo done at ").and_then(|rest| rest.split_whitespace().next());
    let time = behind("last completed transaction was at log time ");
    match (lsn, time) {
        (Some(lsn), Some(time)) => Some(format!("LSN {lsn}, its last commit is of {time}")),
        (Some(lsn), None) => Some(format!("LSN {lsn}")),
        (None, Some(time)) => Some(format!("a commit of {time}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_recovery_came_is_read_from_the_log() {
        let lines =
            |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let said = lines(&[
            "t [7] LOG:  redo done at 0/70000A0 system usage: CPU: user: 0.00 s",
            "t [7] LOG:  last completed transaction was at log time 2026-11-26 20:10:11.5+00",
            "t [7] FATAL:  recovery ended before configured recovery target was reached",
        ]);
        assert_eq!(
            came_to(&said).unwrap(),
            "LSN 0/70000A0, its last commit is of 2026-11-26 20:10:11.5+00"
        );
        assert_eq!(came_to(&said[..1]).unwrap(), "LSN 0/70000A0");
        assert_eq!(came_to(&lines(&["t [7] LOG:  redo starts at 0/7000028"])), None);
    }

    #[test]
    fn what_the_configuration_includes_is_named() {
        let hint = |lines: &[&str]| {
            lacks_a_file(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>())
        };
        let folder =
            "LOG:  could not open configuration directory \"/etc/x\": No such file or directory";
        let file = "LOG:  could not open file \"/etc/hba\": No such file or directory";
        let errors = "FATAL:  configuration file \"/r/data/postgresql.conf\" contains errors";
        let load = "FATAL:  could not load /r/data/pg_hba.conf";
        assert!(hint(&[folder, errors]).unwrap().contains("directory \"/etc/x\""));
        assert!(hint(&[file, load]).unwrap().contains("file \"/etc/hba\""));
        assert_eq!(hint(&[file, "LOG:  database system was interrupted", load]), None);
        assert_eq!(hint(&[errors]), None);
        assert_eq!(hint(&[folder]), None);
    }

    #[test]
    fn a_set_of_a_timeline_that_was_left_is_explained() {
        let set = crate::set::manifest::tests::manifest("20261123T194512Z-k3fa", Vec::new());
        let of = |is_standby, line: &str| {
            of_another_timeline(&set, is_standby, &["t LOG:  x".into(), line.to_owned()])
        };
        let hint = |line: &str| of(false, line);
        let not_a_child = "FATAL:  requested timeline 4 is not a child of this server's history";
        let no_checkpoint = "FATAL:  could not locate required checkpoint record at 0/2000060";
        let without_its_end = "FATAL:  requested timeline 4 does not contain minimum recovery point 0/2000100 on timeline 3";
        for line in [not_a_child, no_checkpoint, without_its_end] {
            let hint = hint(line).unwrap();
            assert!(hint.contains("--target-timeline 3"), "{hint}");
            assert!(!hint.contains("remov"), "{hint}");
        }
        assert_eq!(hint("FATAL:  the database system is starting up"), None);
        // --standby forbids it.
        assert!(!of(true, not_a_child).unwrap().contains("--target-timeline"));
    }
}
