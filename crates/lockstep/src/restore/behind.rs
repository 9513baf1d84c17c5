//! What lies beyond the end of a recovery that was meant to reach the end of an archive.
//!
//! What could go wrong: PostgreSQL ends recovery at the first record that it can't read, and at the first segment
//! that restore_command doesn't deliver, and promotes there. A segment that is damaged in the archive, or that
//! couldn't be read for a moment, hides everything after it. So restore_command is asked for what comes next. A longer
//! gap in the archive hides that, too; but sets from after it may prove that there was more. And what the original had
//! not archived when it was lost is in its pg_wal, if that still exists.

use std::path::Path;

use pgfiles::lsn::{Lsn, TimelineId};
use pgfiles::timeline_history::TimelineHistory;
use pgfiles::wal_name::{WalSegment, WalSegmentSize};

use super::build::Build;
use super::{Problem, fetched, history_command, original};
use crate::context::lockstep;
use crate::error::{Error, Result};
use crate::files;
use crate::postgres::wal::{self, Found, WalIdentity};
use crate::postgres::{instance, server};
use crate::process::{Program, quote};
use crate::set::branches::{Branches, Member};

/// How many segments are asked for: if one is missing or damaged itself, the next may still be there.
const ASKED: u64 = 2;

/// Where a recovery that was followed by a promotion has ended.
pub(super) struct End {
    /// The history of the timeline that the restored cluster began there.
    history: TimelineHistory,
    lsn: Lsn,
    identity: WalIdentity,
}

impl End {
    /// Finds the end, from the server's messages and the history that it wrote.
    pub(super) fn find(build: &Build, said: &[String]) -> Result<Option<Self>> {
        let Some(begun) = fetched::begun_timeline(said) else { return Ok(None) };
        let identity = build.manifest.wal_identity()?;
        let history = wal::history(&build.placement.wal, identity.segment_size, begun)?;
        let end = history.switches().last().map(|switch| switch.lsn);
        Ok(end.map(|lsn| Self { lsn, identity, history }))
    }

    /// Returns the timeline that recovery was to follow (writeTimeLineHistory in timeline.c).
    fn followed(&self) -> Option<TimelineId> {
        self.history.switches().last().map(|switch| switch.timeline)
    }

    /// Returns a segment with WAL that recovery replayed although it was to leave that timeline before, and where: if
    /// nothing delivers the segment of the timeline that it follows, PostgreSQL reads the ancestor's
    /// (XLogFileReadAnyTLI in xlogrecovery.c), and then writes a history that says otherwise.
    fn strayed(&self, delivered: &[WalSegment]) -> Option<(WalSegment, Lsn)> {
        let size = self.identity.segment_size;
        let followed = self.followed()?;
        // What was fetched ahead of replay doesn't count.
        let last = WalSegment::ending_at(followed, self.lsn, size).number;
        delivered.iter().find_map(|segment| {
            let left = self.history.switch_point(segment.timeline)?;
            let first = WalSegment::containing(followed, left, size).number;
            let is_left = segment.timeline != followed && self.lsn > left;
            let is_newer = |other: &WalSegment| {
                other.number == segment.number && other.timeline > segment.timeline
            };
            (is_left && (first..=last).contains(&segment.number) && !delivered.iter().any(is_newer))
                .then_some((*segment, left))
        })
    }

    /// Returns a problem if recovery didn't follow the timeline that it was to follow.
    pub(super) fn of_another_way(&self, said: &[String]) -> Option<Problem> {
        let size = self.identity.segment_size;
        let (segment, left) = self.strayed(&fetched::delivered(said, size))?;
        let (name, of) = (segment.file_name(size), segment.timeline);
        let followed = self.followed()?;
        Some(Problem {
            what: format!(
                "recovery was to follow timeline {followed}, which left timeline {of} at LSN {left}, but restore_command delivered {name} and not that timeline's segment: what timeline {of} has after that LSN was replayed instead"
            ),
            hint: format!(
                "the server of timeline {followed} archives a segment when it is full, or at `SELECT pg_switch_wal()`: then restore again. If timeline {of} is wanted, restore again with --target-timeline {of}. Don't have this cluster's history archived: it says that it comes from timeline {followed}"
            ),
        })
    }

    /// Returns the segments that recovery would have read next, in its order.
    fn next(&self) -> impl Iterator<Item = WalSegment> {
        let size = self.identity.segment_size;
        let first = first_after(self.lsn, size);
        let followed = self.followed();
        (first..first.saturating_add(ASKED)).flat_map(move |number| {
            let timelines = self.history.timelines_of_segment(number, size);
            let is_on_the_way = move |timeline: &TimelineId| {
                // The new timeline is the restored cluster's own, and what an ancestor has after its end is of
                // another future.
                let left = self.history.switch_point(*timeline);
                let goes_on = Some(*timeline) == followed;
                *timeline != self.history.timeline()
                    && left.is_none_or(|left| {
                        goes_on || WalSegment::ending_at(*timeline, left, size).number >= number
                    })
            };
            timelines.filter(is_on_the_way).map(move |timeline| WalSegment { timeline, number })
        })
    }

    /// Returns a problem if `command` delivers a segment that comes after the end.
    pub(super) fn problem(
        &self,
        build: &Build,
        command: &str,
        said: &[String],
    ) -> Result<Option<Problem>> {
        let size = self.identity.segment_size;
        let unreadable = fetched::unreadable(said, size);
        for segment in self.next() {
            let name = segment.file_name(size);
            let gives = history_command::fetch_file(build.cx, command, &name, |path| {
                let folder = path.parent().unwrap_or(Path::new("/"));
                Ok(matches!(wal::look(folder, self.identity, segment, None)?, Found::Written)
                    .then_some(()))
            });
            match gives {
                Ok(None) => {}
                // A live server has archived it meanwhile, unless there is a gap before it.
                Ok(Some(())) if unreadable.is_none() && self.is_next(segment) => {
                    tracing::warn!(
                        "recovery ended at LSN {}, and restore_command now delivers {name}, which comes next: if the original doesn't run, restore_command failed silently before; restore again",
                        self.lsn
                    );
                    return Ok(None);
                }
                Ok(Some(())) => return Ok(Some(self.hides(&name, unreadable))),
                Err(interrupted @ Error::Interrupted { .. }) => return Err(interrupted),
                // It has another length, or the command can't tell now.
                Err(error) => tracing::debug!(error = %error.chain(), "{name} can't be looked at"),
            }
        }
        if let Some((last, words)) = unreadable {
            tracing::warn!(
                "recovery ended in {last}, the last segment that restore_command delivered: PostgreSQL said \"{words}\". That is normal for the last segment of a server that crashed, but an archived one should be readable to its end: check whether it is damaged in the archive"
            );
        }
        Ok(None)
    }

    fn is_next(&self, segment: WalSegment) -> bool {
        segment.number == first_after(self.lsn, self.identity.segment_size)
    }

    fn hides(&self, name: &str, unreadable: Option<(String, &str)>) -> Problem {
        let said = match unreadable {
            Some((segment, words)) => format!("; of {segment} PostgreSQL said \"{words}\""),
            None => String::new(),
        };
        Problem {
            what: format!(
                "recovery ended at LSN {}, but the archive continues: restore_command delivers {name}, which comes after that{said}",
                self.lsn
            ),
            hint: "check that the archive has each segment up to there, intact (`pg_waldump` can read it) and readable for os_user, then restore again: what was committed after that LSN isn't in the restored cluster".into(),
        }
    }

    /// Returns a problem if one of the cluster's sets goes on along the timeline, for at least a whole segment after the
    /// end: the archive has a gap. (The segment in which a newer set ends may not be full yet.) If recovery ended before
    /// that timeline began, the gap is in an ancestor's WAL, and the ancestor's sets prove it too.
    pub(super) fn before_a_set(&self, sets: impl IntoIterator<Item = Member>) -> Option<Problem> {
        let size = self.identity.segment_size;
        let followed = self.followed()?;
        let number = first_after(self.lsn, size);
        let is_on_the_way = |timeline: TimelineId, end: Lsn| {
            let left = self.history.switch_point(timeline);
            timeline == followed || left.is_some_and(|left| end <= left)
        };
        let is_beyond = |set: &Member| {
            let is_its = set.system_identifier == self.identity.system_identifier;
            let end = set.end.filter(|end| is_its && is_on_the_way(set.timeline, *end));
            end.is_some_and(|end| WalSegment::ending_at(set.timeline, end, size).number > number)
        };
        let sets: Vec<Member> = sets.into_iter().collect();
        let set = sets.iter().filter(|set| is_beyond(set)).min_by_key(|set| set.end)?;
        let end = set.end?;
        // Two restores of one set may have the same timeline: what was given up mustn't be restored instead.
        let branches = Branches::of(sets.iter().cloned(), jiff::Timestamp::now());
        let condition = match branches.is_of_two(set) {
            true => format!(
                "sets of timeline {} are of two clusters, or one has a wrong date: `{} check` names them. If set {} isn't of the one that was given up: ",
                set.timeline,
                lockstep(),
                set.set
            ),
            false => String::new(),
        };
        // PostgreSQL names the timeline that it follows as the parent even if it ended before that one's beginning.
        let left_later = self.history.switches().iter().find(|switch| switch.lsn > self.lsn);
        let timeline = left_later.map_or(followed, |switch| switch.timeline);
        let name = WalSegment { timeline, number }.file_name(size);
        Some(Problem {
            what: format!(
                "recovery ended at LSN {}, but timeline {timeline} went on: set {} of timeline {} goes to {end}, and restore_command doesn't deliver {name}",
                self.lsn, set.set, set.timeline
            ),
            hint: format!(
                "{condition}restore set {} or a newer one, which needs nothing before it; or find what the archive lacks from {name} on, and restore again: what was committed after LSN {} isn't in the restored cluster",
                set.set, self.lsn
            ),
        })
    }

    /// Warns if the pg_wal of the original, whose server doesn't run, has transactions after the end.
    pub(super) fn warn_of_what_the_original_has(
        &self,
        build: &Build,
        bin_dir: &Path,
        command: &str,
    ) {
        let on = self.followed();
        for data in original::here(build.cx, &build.manifest, &build.placement) {
            if build.cx.zfs.suspended_at(&data).is_some() {
                continue;
            }
            let Ok(control) = instance::read_control(&data) else { continue };
            let is_it = control.system_identifier == self.identity.system_identifier
                && Some(control.checkpoint_copy.timeline) == on
                && server::running(&data).is_ok_and(|running| running.is_none());
            let pg_wal = data.join("pg_wal");
            if !is_it || !self.has_transactions(&pg_wal, bin_dir, control.checkpoint_copy.timeline)
            {
                continue;
            }
            let from = quote(&pg_wal.display().to_string());
            tracing::warn!(
                "\"{}\" has transactions after LSN {}, where recovery ended: the archive doesn't have them. To get them too, restore again with --restore-command {}",
                pg_wal.display(),
                self.lsn,
                quote(&format!("{command} || cp {from}/%f %p"))
            );
        }
    }

    fn has_transactions(&self, pg_wal: &Path, bin_dir: &Path, timeline: TimelineId) -> bool {
        let identity = WalIdentity { timeline, ..self.identity };
        let size = identity.segment_size;
        let within = WalSegment::containing(timeline, self.lsn, size);
        let is_there = pg_wal.join(within.file_name(size)).exists();
        let number = first_after(self.lsn, size);
        let from = if is_there { self.lsn } else { WalSegment { timeline, number }.start(size) };
        let end = wal::end_of_run(pg_wal, identity, from);
        if end <= from {
            return false;
        }
        // Its owner's rights are enough, whatever is in it.
        let Ok(reader) = files::reader_of(pg_wal) else { return false };
        // If there is none, it reaches the end of the WAL, which it reports as an error.
        let pg_waldump = Program::new(bin_dir.join("pg_waldump"))
            .arg("-p")
            .arg(pg_wal)
            .args(["-r", "Transaction", "-n", "1", "-t", &timeline.get().to_string()])
            .args(["-s", &from.to_string(), "-e", &end.to_string()])
            .as_user(reader);
        pg_waldump.run_for_output().is_ok_and(|text| text.contains("rmgr: Transaction"))
    }
}

/// Returns the first segment of which nothing was read.
fn first_after(lsn: Lsn, size: WalSegmentSize) -> u64 {
    lsn.as_u64().div_ceil(size.bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::branches::Primary;
    use pgfiles::lsn::SystemIdentifier;

    fn next(history: &str, begun: u32, lsn: &str) -> Vec<String> {
        let timeline = TimelineId::new(begun).unwrap();
        let identity = WalIdentity {
            system_identifier: SystemIdentifier::new(7),
            segment_size: WalSegmentSize::DEFAULT,
            timeline,
        };
        let history = TimelineHistory::parse(timeline, history.as_bytes()).unwrap();
        let end = End { history, lsn: lsn.parse().unwrap(), identity };
        end.next().map(|segment| segment.file_name(identity.segment_size)).collect()
    }

    #[test]
    fn a_set_that_goes_further_proves_a_gap() {
        let tli = |number| TimelineId::new(number).unwrap();
        let identity = WalIdentity {
            system_identifier: SystemIdentifier::new(7),
            segment_size: WalSegmentSize::DEFAULT,
            timeline: tli(2),
        };
        let history = TimelineHistory::parse(tli(2), b"1\t0/5000028\tx\n").unwrap();
        let end = End { history, lsn: "0/5000028".parse().unwrap(), identity };
        let set = |name: &str, timeline, cluster, end: &str| Member {
            set: name.into(),
            system_identifier: SystemIdentifier::new(cluster),
            timeline: tli(timeline),
            end: Some(end.parse().unwrap()),
            history: Vec::new(),
            primary: None,
        };
        let others = [
            set("before", 1, 7, "0/5000020"),
            // The next segment may not be archived yet.
            set("next", 1, 7, "0/6FFFF00"),
            set("another's", 1, 8, "0/9000000"),
            set("of the new timeline", 2, 7, "0/9000000"),
        ];
        assert_eq!(end.before_a_set(others.clone()), None);
        let further = [set("second", 1, 7, "0/9000000"), set("first", 1, 7, "0/7000100")];
        let problem = end.before_a_set(others.into_iter().chain(further)).unwrap();
        for words in ["0/5000028", "set first", "0/7000100", "000000010000000000000006"] {
            assert!(problem.what.contains(words), "{words}: {}", problem.what);
        }
        assert!(problem.hint.starts_with("restore set first"), "{}", problem.hint);

        // After these sets the cluster was restored once more, onto the same timeline.
        let taken = |name: &str, day: u8, begin: &str, to: &str| {
            let time = |minute: u8| format!("2026-11-0{day}T00:0{minute}:00Z").parse().unwrap();
            let primary = Primary {
                begun: time(0),
                finished: time(1),
                at: Some(begin.parse().unwrap()),
                owner: String::new(),
                data_directory: "/pg".into(),
                snapshot: None,
            };
            Member { primary: Some(primary), ..set(name, 1, 7, to) }
        };
        let given_up = taken("given up", 1, "0/8000028", "0/8000100");
        let living = taken("living", 2, "0/4000028", "0/4000100");
        let problem = end.before_a_set([given_up, living]).unwrap();
        assert!(problem.hint.contains("If set given up isn't of the one"), "{}", problem.hint);

        // The archive has timeline 2's history: that one was followed, and recovery ended before its beginning.
        let text = b"1\t0/A000028\tx\n\n2\t0/5000028\tx\n";
        let history = TimelineHistory::parse(tli(3), text).unwrap();
        let end = End { history, lsn: "0/5000028".parse().unwrap(), identity };
        let given_up = set("given up", 1, 7, "0/B000000");
        assert_eq!(end.before_a_set([given_up.clone()]), None, "of another future");
        for (timeline, to) in [(1, "0/9000000"), (2, "0/C000000")] {
            let problem = end.before_a_set([given_up.clone(), set("its", timeline, 7, to)]);
            let what = problem.unwrap().what;
            let names = ["set its", to, "timeline 1 went on", "000000010000000000000006"];
            assert!(names.iter().all(|words| what.contains(words)), "{what}");
        }
    }

    #[test]
    fn an_ancestor_s_wal_from_after_its_end_is_another_way() {
        let size = WalSegmentSize::DEFAULT;
        let strayed = |history: &str, lsn: &str, delivered: &[(u32, u64)]| {
            let timeline = TimelineId::new(3).unwrap();
            let identity = WalIdentity {
                system_identifier: SystemIdentifier::new(7),
                segment_size: size,
                timeline,
            };
            let history = TimelineHistory::parse(timeline, history.as_bytes()).unwrap();
            let end = End { history, lsn: lsn.parse().unwrap(), identity };
            let segment = |(timeline, number): &(u32, u64)| WalSegment {
                timeline: TimelineId::new(*timeline).unwrap(),
                number: *number,
            };
            let delivered: Vec<_> = delivered.iter().map(segment).collect();
            end.strayed(&delivered).map(|(segment, _)| segment.file_name(size))
        };
        let name = |timeline: u32, number: u32| Some(format!("{timeline:08X}00000000{number:08X}"));
        let left = "1\t0/50002B0\tx\n2\t0/7000000\tx\n";
        assert_eq!(strayed(left, "0/7000000", &[(1, 4), (1, 5), (1, 6)]), name(1, 5));
        assert_eq!(strayed(left, "0/7000000", &[(1, 4), (1, 5), (2, 5), (2, 6)]), None);
        // It was fetched ahead, and not replayed.
        assert_eq!(strayed(left, "0/7000000", &[(1, 4), (2, 5), (2, 6), (1, 7)]), None);
        // Nothing was replayed after the place where the timeline was left.
        let at_once = "1\t0/50002B0\tx\n2\t0/50002B0\tx\n";
        assert_eq!(strayed(at_once, "0/50002B0", &[(1, 4), (1, 5)]), None);
    }

    #[test]
    fn what_comes_next_is_of_the_timelines_that_recovery_followed() {
        let name = |timeline: u32, number: u32| format!("{timeline:08X}00000000{number:08X}");
        // At the end of a segment, and within one.
        assert_eq!(next("1\t0/5000000\tx\n", 2, "0/5000000"), [name(1, 5), name(1, 6)]);
        assert_eq!(next("1\t0/5000028\tx\n", 2, "0/5000028"), [name(1, 6), name(1, 7)]);
        // What the old timeline wrote after it was left belongs to another future.
        let left = "1\t0/5000028\tx\n2\t0/7000000\tx\n";
        assert_eq!(next(left, 3, "0/7000000"), [name(2, 7), name(2, 8)]);
        let at_once = "1\t0/7000000\tx\n2\t0/7000000\tx\n";
        assert_eq!(next(at_once, 3, "0/7000000"), [name(2, 7), name(2, 8)]);
        // Before the place where the followed timeline was to begin; the segment of the switch has two names.
        let early = "1\t0/8000028\tx\n2\t0/7000000\tx\n";
        assert_eq!(next(early, 3, "0/7000000"), [name(1, 7), name(2, 8), name(1, 8)]);
    }
}
