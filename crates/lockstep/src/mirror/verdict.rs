//! Judges whether a mirror follows, and if not, why: a pure function of what was seen.

use std::path::Path;

use serde::Serialize;

use super::primary::Slot;
use super::record::{HOW_TO_MOUNT, Phase};
use crate::volume::zfs::Away;

/// What was seen of a mirror.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its phase.
    pub phase: Phase,
    /// Somebody is working on it at this moment.
    pub busy: bool,
    /// Which of its pools is suspended; then nothing else of it was looked at.
    pub suspended: Option<String>,
    /// Which of its datasets isn't mounted where it should be, in words.
    pub unmounted: Option<String>,
    /// Its server is running.
    pub running: bool,
    /// The end of its server's log, oldest first.
    pub log: Vec<String>,
    /// `restore_command` is set, and replay makes progress.
    pub is_fed: bool,
    /// What the mirror says about itself, or why it couldn't be asked.
    pub own: Result<Own, String>,
    /// What the primary says, or why it couldn't be asked.
    pub primary: Result<Theirs, String>,
}

/// What a mirror says about itself.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// Not promoted.
    pub in_recovery: bool,
    /// A WAL receiver is streaming.
    pub streams: bool,
    /// Somebody paused replay.
    pub paused: bool,
    /// The last WAL that was received.
    pub received: Option<String>,
    /// The last WAL that was replayed.
    pub replayed: Option<String>,
    /// Its timeline.
    pub timeline: u32,
    /// Seconds since the last commit that was replayed.
    pub last_commit_age: Option<f64>,
}

/// What a primary says.
#[derive(Debug, Clone)]
pub struct Theirs {
    /// The position of its WAL.
    pub current: String,
    /// It is itself a standby.
    pub in_recovery: bool,
    /// The mirror's slot.
    pub slot: Option<Slot>,
}

/// The judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "why")]
pub enum Verdict {
    /// It follows.
    Follows,
    /// Another command is working on it.
    Busy,
    /// `create`, `destroy` or `recreate` was interrupted.
    Unfinished(String),
    /// This pool is suspended.
    Suspended(String),
    /// A dataset isn't mounted.
    NotMounted(String),
    /// Its server isn't running: the server's last words.
    Stopped(String),
    /// The same, where those words are about the folder of one of the primary's tablespaces that doesn't exist here
    /// or can't be used. In JSON it is `stopped` like any other.
    #[serde(rename = "stopped")]
    LacksFolder(String),
    /// WAL that it needs is gone.
    WalGone(String),
    /// Its slot is gone: nothing keeps the WAL that it needs.
    SlotGone,
    /// Its slot has lost WAL that it needs.
    SlotLost(String),
    /// The same, where nothing used it for too long (PostgreSQL 18). The WAL may still be there. In JSON it is
    /// `slot-lost` like any other.
    #[serde(rename = "slot-lost")]
    SlotIdle(String),
    /// Its timeline diverged from its primary's.
    Diverged(String),
    /// It was promoted.
    Promoted,
    /// Settings of the primary are higher than its own.
    SettingsTooSmall(String),
    /// Somebody paused replay.
    Paused,
    /// Nothing streams to it.
    NotStreaming(String),
    /// It streams from a server that is itself in recovery: nobody knows whether that one follows anybody.
    PrimaryInRecovery,
    /// It follows as far as it can tell, but the primary couldn't be asked.
    PrimaryUnreachable(String),
}

impl Verdict {
    /// Whether it does what it should.
    #[must_use]
    pub fn is_well(&self) -> bool {
        matches!(self, Self::Follows | Self::Busy)
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Follows => "follows".into(),
            Self::Busy => "another lockstep works on it".into(),
            Self::Unfinished(what) => format!("{what} was interrupted"),
            Self::Suspended(pool) => format!("pool \"{pool}\" is suspended"),
            Self::NotMounted(what) => what.clone(),
            Self::Stopped(why) if why.is_empty() => "stopped".into(),
            Self::Stopped(why) | Self::LacksFolder(why) => format!("stopped: {why}"),
            Self::WalGone(why) => format!("WAL that it needs is gone: {why}"),
            Self::SlotGone => "its slot on the primary is gone".into(),
            Self::SlotLost(why) | Self::SlotIdle(why) => why.clone(),
            Self::Diverged(why) => format!("it diverged from its primary: {why}"),
            Self::Promoted => "it was promoted, and is no standby any more".into(),
            Self::SettingsTooSmall(why) => format!("settings of the primary have grown: {why}"),
            Self::Paused => "replay is paused".into(),
            Self::NotStreaming(why) if why.is_empty() => "nothing streams to it".into(),
            Self::NotStreaming(why) => format!("nothing streams to it: {why}"),
            Self::PrimaryInRecovery => {
                "the server that it streams from is itself in recovery, and no primary".into()
            }
            Self::PrimaryUnreachable(why) => format!("the primary can't be asked: {why}"),
        }
    }

    /// What to do about it; `is_free` says whether a path of this host doesn't exist or is an empty folder.
    #[must_use]
    pub fn hint(&self, name: &str, is_free: impl Fn(&Path) -> bool) -> Option<String> {
        let lockstep = crate::context::program();
        let text = match self {
            Self::Follows | Self::Busy => return None,
            Self::Unfinished(what) if what == "recreate" => {
                format!("{lockstep} mirror recreate {name}")
            }
            Self::Unfinished(_) => format!("{lockstep} mirror destroy {name}"),
            Self::Suspended(pool) => Away::Suspended.command(pool),
            Self::NotMounted(_) => format!("{HOW_TO_MOUNT}; then {lockstep} mirror start {name}"),
            Self::LacksFolder(why) => {
                // On the primary's own host it exists, full of the primary's files.
                let elsewhere = folder_of(why).filter(|folder| is_free(folder)).map(|folder| {
                    format!(
                        "; if the primary is on another host, you can also mount a dataset at \"{}\" here, add that folder to clone.writable of this cluster, and run {lockstep} mirror start {name}",
                        folder.display()
                    )
                });
                format!(
                    "a tablespace that was made on the primary? {lockstep} mirror recreate {name} makes a dataset for it{}",
                    elsewhere.unwrap_or_default()
                )
            }
            Self::Stopped(_) => format!("{lockstep} mirror start {name}"),
            Self::WalGone(_) | Self::SlotLost(_) => format!("{lockstep} mirror recreate {name}"),
            // What it has received beyond the place where the timelines parted may be nowhere else.
            Self::Diverged(_) => format!(
                "it has received what its primary doesn't have, and recreate gives that up: if somebody may need it, take a set of it first, which stays: {} backup; then {lockstep} mirror recreate {name}",
                crate::context::lockstep_of(name)
            ),
            Self::Promoted => format!(
                "if somebody may need what was written to it since, take a set of it first: {0} backup; then {lockstep} mirror recreate {name} --discard-writes. While that set is there, it is the latest, and later ones count as left behind: get what you need out of it, and remove it with {0} prune --local --set ID",
                crate::context::lockstep_of(name)
            ),
            Self::SlotGone | Self::SlotIdle(_) => format!(
                "{lockstep} mirror stop {name}; {lockstep} mirror start {name}: start makes the slot again"
            ),
            Self::SettingsTooSmall(_) => {
                format!(
                    "{lockstep} mirror stop {name}; {lockstep} mirror start {name}: start takes them over"
                )
            }
            Self::Paused => "SELECT pg_wal_replay_resume() on the mirror".into(),
            Self::NotStreaming(_) => format!(
                "check the primary, its pg_hba.conf and the network; the mirror continues by itself when they work again. Was the password changed? Write it to the mirror's password file, and {lockstep} mirror start {name} hands it to the server"
            ),
            Self::PrimaryInRecovery => format!(
                "whether that one follows anybody can't be seen from here: after a failover, name the server that is the primary now: {lockstep} mirror recreate {name} --from 'host=… user=…'"
            ),
            Self::PrimaryUnreachable(_) => format!(
                "check that the primary runs, and that it lets this host in; the mirror continues by itself. If it is lost, take a set of the mirror before anything else, because it may have received what no other server has: {} backup. If another server has taken its place for good, then: {lockstep} mirror recreate {name} --from 'host=… user=…'",
                crate::context::lockstep_of(name)
            ),
        };
        Some(text)
    }
}

/// Judges what was seen. Certain causes come before those that may pass by themselves.
#[must_use]
pub fn judge(seen: &Seen) -> Verdict {
    if seen.busy {
        return Verdict::Busy;
    }
    if let Some(pool) = &seen.suspended {
        return Verdict::Suspended(pool.clone());
    }
    match seen.phase {
        Phase::Making => return Verdict::Unfinished("create".into()),
        Phase::Recreating => return Verdict::Unfinished("recreate".into()),
        Phase::Destroying => return Verdict::Unfinished("destroy".into()),
        Phase::Ready => {}
    }
    if let Some(what) = &seen.unmounted {
        return Verdict::NotMounted(what.clone());
    }
    let own = seen.own.as_ref().ok();
    let streams = own.is_some_and(|own| own.streams);
    let log = of_now(&seen.log);
    // While it streams, the log's earlier complaints no longer count.
    if !streams {
        if let Some(line) = wal_gone(log)
            && !(seen.running && seen.is_fed)
        {
            return Verdict::WalGone(line);
        }
        if let Some(line) = last_with(
            log,
            &[
                "forked off current database system timeline",
                "is not in this server's history",
                "is ahead of the WAL flush position",
            ],
        ) {
            return Verdict::Diverged(line);
        }
        // Logged once, but true until the next start, however often streaming begins.
        if let Some(line) = last_with(
            since(&seen.log, &[STARTED]),
            &["insufficient parameter settings", "hot standby is not possible because"],
        ) {
            return Verdict::SettingsTooSmall(line);
        }
    }
    if let Ok(theirs) = &seen.primary {
        match &theirs.slot {
            None => return Verdict::SlotGone,
            Some(slot) if slot.is_lost() => {
                return match slot.invalidation_reason.as_deref() {
                    None | Some("wal_removed") => Verdict::SlotLost(
                        "its slot on the primary has lost its WAL (max_slot_wal_keep_size)".into(),
                    ),
                    Some("idle_timeout") => Verdict::SlotIdle(
                        "its slot on the primary was invalidated because nothing used it (idle_replication_slot_timeout)".into(),
                    ),
                    Some(why) => Verdict::SlotLost(format!(
                        "its slot on the primary was invalidated: {why}"
                    )),
                };
            }
            Some(_) => {}
        }
    }
    if !seen.running {
        let why = last_with(log, &["FATAL:", "PANIC:"]).unwrap_or_default();
        return match folder_of(&why) {
            Some(_) => Verdict::LacksFolder(why),
            None => Verdict::Stopped(why),
        };
    }
    match own {
        None => {
            let why = seen.own.as_ref().err().cloned().unwrap_or_default();
            return Verdict::NotStreaming(why);
        }
        Some(own) if !own.in_recovery => return Verdict::Promoted,
        Some(own) if own.paused => return Verdict::Paused,
        Some(_) => {}
    }
    match &seen.primary {
        Err(why) => Verdict::PrimaryUnreachable(why.clone()),
        // It streams, and has what that one has, even if that one gets nothing any more.
        Ok(theirs) if streams && theirs.in_recovery => Verdict::PrimaryInRecovery,
        Ok(_) if streams => Verdict::Follows,
        Ok(_) if seen.is_fed => Verdict::NotStreaming(
            "meanwhile its restore_command fetches WAL, and it catches up".into(),
        ),
        Ok(_) => Verdict::NotStreaming(last_with(log, &["FATAL:", "ERROR:"]).unwrap_or_default()),
    }
}

/// The folder in PostgreSQL's words: `directory "/srv/ts" does not exist`.
fn folder_of(words: &str) -> Option<&Path> {
    let (_, rest) = words.split_once("directory \"")?;
    rest.rsplit_once('"').map(|(folder, _)| Path::new(folder))
}

/// What PostgreSQL logs when it starts, and when it begins to stream WAL.
const STARTED: &str = "starting PostgreSQL ";
const STREAMED: &str = "started streaming WAL from primary";

/// The log since the server was last started or last began to stream; everything before is out of date. When WAL is
/// gone, each try logs its own "started streaming" before the failure.
fn of_now(log: &[String]) -> &[String] {
    since(log, &[STARTED, STREAMED])
}

/// The log from the last line that contains one of the words; all of it if no line does.
fn since<'a>(log: &'a [String], words: &[&str]) -> &'a [String] {
    let begin = log.iter().rposition(|line| words.iter().any(|word| line.contains(word)));
    &log[begin.unwrap_or(0)..]
}

/// The primary's message that it no longer has the WAL that the mirror needs, unless an archive delivered WAL
/// afterwards.
pub(super) fn wal_gone(log: &[String]) -> Option<String> {
    let log = of_now(log);
    let is_gone = |line: &String| line.contains(REMOVED);
    let restored = log.iter().rposition(|line| line.contains("restored log file"));
    let gone = log.iter().rposition(is_gone).filter(|at| restored.is_none_or(|other| other < *at));
    gone.and_then(|_| last_with(log, &[REMOVED]))
}

/// Whether the primary has answered again and again that it no longer has the WAL that the mirror needs, and no archive
/// delivered any since.
pub(super) fn is_starved(log: &[String]) -> bool {
    const OFTEN: usize = 3;
    let restored = log.iter().rposition(|line| line.contains("restored log file"));
    let since = &log[restored.map_or(0, |at| at + 1)..];
    since.iter().filter(|line| line.contains(REMOVED)).count() >= OFTEN
}

const REMOVED: &str = "has already been removed";

/// What a server answers to a connection while it starts, recovers or shuts down, including our own. It explains
/// nothing, and is logged after the real reason.
const TURNED_AWAY: &str = "the database system is ";

/// The last line that contains one of the words, without its time and process.
fn last_with(log: &[String], words: &[&str]) -> Option<String> {
    // When the primary answers this, the log line begins with "could not connect to the primary server".
    let is_answer = |line: &String| {
        let words = line.split_once("FATAL:").map(|(_, rest)| rest.trim_start());
        words.is_some_and(|words| words.starts_with(TURNED_AWAY))
    };
    let mut said = log.iter().rev().filter(|line| !is_answer(line));
    let line = said.find(|line| words.iter().any(|word| line.contains(word)))?;
    let text = ["FATAL:", "PANIC:", "ERROR:", "WARNING:", "LOG:"]
        .iter()
        .find_map(|level| line.split_once(level).map(|(_, rest)| rest));
    Some(text.unwrap_or(line).trim().to_owned())
}

/// The bytes between two LSNs as PostgreSQL prints them; 0 if the second isn't behind the first.
#[must_use]
pub fn lag_bytes(current: &str, replayed: &str) -> Option<u64> {
    let lsn = |text: &str| text.parse::<pgfiles::lsn::Lsn>().ok();
    Some(lsn(current)?.bytes_since(lsn(replayed)?).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_gets_no_wal_from_anywhere_is_starved() {
        let gone = "t [7] FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000020000000000000005 has already been removed".to_owned();
        let restored = "t [6] LOG:  restored log file \"000000020000000000000005\" from archive";
        let mut log = vec![gone.clone(); 2];
        assert!(!is_starved(&log));
        log.push(gone.clone());
        assert!(is_starved(&log));
        log.push(restored.to_owned());
        log.extend(vec![gone; 2]);
        assert!(!is_starved(&log));
    }

    fn slot(status: &str) -> Slot {
        Slot {
            active: true,
            wal_status: Some(status.into()),
            invalidation_reason: None,
            restart_lsn: Some("0/3000000".into()),
            kept_bytes: Some(0),
            safe_bytes: None,
        }
    }

    fn well() -> Seen {
        Seen {
            phase: Phase::Ready,
            busy: false,
            suspended: None,
            unmounted: None,
            running: true,
            is_fed: false,
            log: vec![
                "x [7] LOG:  started streaming WAL from primary at 0/3000000 on timeline 1".into(),
            ],
            own: Ok(Own { in_recovery: true, streams: true, ..Own::default() }),
            primary: Ok(Theirs {
                current: "0/3000100".into(),
                in_recovery: false,
                slot: Some(slot("reserved")),
            }),
        }
    }

    fn with(change: impl FnOnce(&mut Seen)) -> Verdict {
        let mut seen = well();
        change(&mut seen);
        judge(&seen)
    }

    fn quiet(seen: &mut Seen, line: &str) {
        seen.own = Ok(Own { in_recovery: true, ..Own::default() });
        seen.log.push(format!("2026-11-23 19:45:12.1 UTC [7] {line}"));
    }

    #[test]
    fn each_reason_is_told() {
        assert_eq!(with(|_| ()), Verdict::Follows);
        assert_eq!(with(|seen| seen.busy = true), Verdict::Busy);
        assert_eq!(
            with(|seen| seen.phase = Phase::Recreating),
            Verdict::Unfinished("recreate".into())
        );
        let unmounted = with(|seen| seen.unmounted = Some("dataset \"t/m\" isn't mounted".into()));
        assert_eq!(unmounted.words(), "dataset \"t/m\" isn't mounted");
        assert!(unmounted.hint("m", |_| true).unwrap().contains("zfs load-key"));
        let gone = with(|seen| {
            quiet(
                seen,
                "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has already been removed",
            );
        });
        assert!(
            matches!(&gone, Verdict::WalGone(why) if why.contains("000000010000000000000003")),
            "{gone:?}"
        );
        assert_eq!(gone.hint("m", |_| true).as_deref(), Some("lockstep mirror recreate m"));
        let diverged = with(|seen| {
            quiet(
                seen,
                "LOG:  new timeline 2 forked off current database system timeline 1 before current recovery point 0/5000000",
            );
        });
        assert!(matches!(diverged, Verdict::Diverged(_)));
        let hint = diverged.hint("m", |_| true).unwrap();
        let (first, then) = (hint.find("--cluster m backup"), hint.find("mirror recreate m"));
        assert!(first.is_some() && first < then, "{hint}");
        let small = with(|seen| {
            quiet(
                seen,
                "WARNING:  hot standby is not possible because of insufficient parameter settings",
            );
        });
        assert!(matches!(small, Verdict::SettingsTooSmall(_)));
        let lost = with(|seen| seen.primary.as_mut().unwrap().slot = Some(slot("lost")));
        assert!(matches!(lost, Verdict::SlotLost(_)));
        let invalidated = |why: &str| {
            with(|seen| {
                let reason = Some(why.to_owned());
                let slot = Slot { invalidation_reason: reason, ..slot("lost") };
                seen.primary.as_mut().unwrap().slot = Some(slot);
            })
        };
        let recreated =
            |verdict: &Verdict| verdict.hint("m", |_| true).unwrap().contains("recreate");
        assert!(recreated(&lost) && recreated(&invalidated("wal_removed")));
        let idle = invalidated("idle_timeout");
        assert!(matches!(idle, Verdict::SlotIdle(_)) && !recreated(&idle));
        assert!(invalidated("rows_removed").words().ends_with("rows_removed"));
        let gone = with(|seen| seen.primary.as_mut().unwrap().slot = None);
        assert_eq!(gone, Verdict::SlotGone);
        let stopped = with(|seen| {
            quiet(seen, "FATAL:  could not access file \"foo\"");
            seen.running = false;
            seen.own = Err("no server".into());
        });
        assert_eq!(stopped, Verdict::Stopped("could not access file \"foo\"".into()));
        // A connection attempt while it was shutting down was logged after the reason.
        let asked = with(|seen| {
            quiet(seen, "FATAL:  directory \"/srv/new\" does not exist");
            seen.log.push("FATAL:  the database system is in recovery mode".into());
            seen.running = false;
            seen.own = Err("no server".into());
        });
        assert_eq!(asked, Verdict::LacksFolder("directory \"/srv/new\" does not exist".into()));
        assert!(stopped.hint("m", |_| true).unwrap().starts_with("lockstep mirror start"));
        let suspended = with(|seen| {
            seen.suspended = Some("a pool".into());
            seen.running = false;
            seen.log.clear();
        });
        assert_eq!(suspended, Verdict::Suspended("a pool".into()));
        assert_eq!(suspended.hint("m", |_| true).unwrap(), "zpool clear 'a pool'");
        assert!(!suspended.is_well());
        let words = "directory \"/srv/new\" does not exist";
        let tablespace = with(|seen| {
            quiet(seen, &format!("FATAL:  {words}"));
            seen.running = false;
        });
        assert_eq!(tablespace, Verdict::LacksFolder(words.into()));
        assert_eq!(tablespace.words(), format!("stopped: {words}"));
        let json = serde_json::json!({ "state": "stopped", "why": words });
        assert_eq!(serde_json::to_value(&tablespace).unwrap(), json);
        // If the folder exists, it may be the primary's own.
        let hint = tablespace.hint("m", |_| false).unwrap();
        assert!(hint.contains("mirror recreate m") && !hint.contains("writable"), "{hint}");
        let hint = tablespace.hint("m", |folder| folder == Path::new("/srv/new")).unwrap();
        assert!(hint.contains("if the primary is on another host"), "{hint}");
        assert_eq!(with(|seen| seen.own.as_mut().unwrap().paused = true), Verdict::Paused);
        let promoted = with(|seen| seen.own.as_mut().unwrap().in_recovery = false);
        assert_eq!(promoted, Verdict::Promoted);
        let hint = promoted.hint("m", |_| true).unwrap();
        assert!(hint.contains("--cluster m backup") && hint.contains("--discard-writes"), "{hint}");
        assert!(hint.contains("--cluster m prune --local --set"), "{hint}");
        let unreachable = with(|seen| seen.primary = Err("refused".into()));
        assert_eq!(unreachable, Verdict::PrimaryUnreachable("refused".into()));
        let hint = unreachable.hint("m", |_| true).unwrap();
        let first = hint.find("--cluster m backup");
        assert!(first.is_some() && first < hint.find("mirror recreate m --from"), "{hint}");
        let standby = with(|seen| seen.primary.as_mut().unwrap().in_recovery = true);
        assert_eq!(standby, Verdict::PrimaryInRecovery);
        assert!(!standby.is_well() && standby.hint("m", |_| true).unwrap().contains("--from"));
        let json = serde_json::json!({ "state": "primary-in-recovery" });
        assert_eq!(serde_json::to_value(&standby).unwrap(), json);
        let starting =
            "could not connect to the primary server: FATAL:  the database system is starting up";
        let not_yet = with(|seen| quiet(seen, &format!("FATAL:  {starting}")));
        assert_eq!(not_yet, Verdict::NotStreaming(starting.into()));
        let not_streaming = with(|seen| quiet(seen, "FATAL:  no pg_hba.conf entry"));
        assert_eq!(not_streaming, Verdict::NotStreaming("no pg_hba.conf entry".into()));
    }

    #[test]
    fn what_the_log_said_before_is_past_while_it_streams() {
        let seen = with(|seen| {
            seen.log.insert(0, "x FATAL:  requested WAL segment 7 has already been removed".into());
        });
        assert_eq!(seen, Verdict::Follows);
    }

    /// WAL was gone hours ago; since then the server was started or streamed again, and now it merely doesn't stream.
    #[test]
    fn what_the_log_said_before_its_last_turn_is_past() {
        let gone = "FATAL:  requested WAL segment 7 has already been removed";
        let streamed = "LOG:  started streaming WAL from primary at 0/3000000 on timeline 1";
        let started = "LOG:  starting PostgreSQL 15.18 on x86_64-pc-linux-gnu";
        let refused = "FATAL:  streaming replication receiver could not connect: refused";
        for turn in [streamed, started] {
            let seen = with(|seen| [gone, turn, refused].iter().for_each(|line| quiet(seen, line)));
            assert!(
                matches!(&seen, Verdict::NotStreaming(why) if why.contains("refused")),
                "{seen:?}"
            );
            let seen = with(|seen| [turn, gone].iter().for_each(|line| quiet(seen, line)));
            assert!(matches!(seen, Verdict::WalGone(_)), "{seen:?}");
        }
        // The settings stay too small until the next start.
        let small =
            "WARNING:  hot standby is not possible because of insufficient parameter settings";
        let seen = with(|seen| [small, streamed].iter().for_each(|line| quiet(seen, line)));
        assert!(matches!(seen, Verdict::SettingsTooSmall(_)), "{seen:?}");
        let seen = with(|seen| [small, started].iter().for_each(|line| quiet(seen, line)));
        assert!(matches!(seen, Verdict::NotStreaming(_)), "{seen:?}");
        let stopped = with(|seen| {
            [refused, started].iter().for_each(|line| quiet(seen, line));
            seen.running = false;
        });
        assert_eq!(stopped, Verdict::Stopped(String::new()));
    }

    #[test]
    fn wal_that_the_archive_has_is_not_gone() {
        let gone = "FATAL:  requested WAL segment 7 has already been removed";
        let restored = "LOG:  restored log file \"000000010000000000000007\" from archive";
        let seen = with(|seen| [gone, restored].iter().for_each(|line| quiet(seen, line)));
        assert!(matches!(seen, Verdict::NotStreaming(_)), "{seen:?}");
        // Between two segments from the archive, streaming is tried again.
        let asked_again = |is_fed| {
            with(|seen| {
                [gone, restored, gone].iter().for_each(|line| quiet(seen, line));
                seen.is_fed = is_fed;
            })
        };
        assert!(matches!(asked_again(false), Verdict::WalGone(_)));
        let seen = asked_again(true);
        assert!(
            matches!(&seen, Verdict::NotStreaming(why) if why.contains("restore_command")),
            "{seen:?}"
        );
    }

    #[test]
    fn lag_is_never_negative() {
        assert_eq!(lag_bytes("1/0", "0/FFFFFF00"), Some(256));
        assert_eq!(lag_bytes("0/1", "0/2"), Some(0));
        assert_eq!(lag_bytes("x", "0/2"), None);
    }
}
