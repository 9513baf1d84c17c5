//! The set's own WAL: which segments it needs, whether they exist and are what their names say, and how they are
//! copied.
//!
//! A segment that is still in pg_wal after the freeze was in it at the freeze: PostgreSQL never makes an old segment
//! again; it only removes it or renames it to a future one (RemoveOldXlogFiles in xlog.c). The contents of a file
//! that waits to be used say nothing about its position: at the end of a recovery the old timeline's segments beyond
//! the switch get future names of the new one in any order (RemoveNonParentXlogFiles), so such a file may be from a
//! later position than its name says, or from that same position on the timeline that was left.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pgfiles::lsn::{Lsn, SystemIdentifier, TimelineId};
use pgfiles::timeline_history::TimelineHistory;
use pgfiles::wal_name::{WalFileName, WalSegment, WalSegmentSize};
use pgfiles::wal_page::{self, WalPageError};

use crate::error::{Error, Result};
use crate::files::{copy_with_holes, create_directories, sync_directory};
use crate::refusal::Refusal;

/// What identifies a cluster's WAL.
#[derive(Debug, Clone, Copy)]
pub struct WalIdentity {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The size of a segment in bytes.
    pub segment_size: WalSegmentSize,
    /// The timeline on which the set is taken.
    pub timeline: TimelineId,
}

/// The segments that cover all of `[from, to)`.
#[must_use]
pub fn segments(identity: WalIdentity, from: Lsn, to: Lsn) -> Vec<WalSegment> {
    let WalIdentity { segment_size: size, timeline, .. } = identity;
    let last = WalSegment::ending_at(timeline, to, size);
    let mut segment = WalSegment::containing(timeline, from, size);
    let mut all = vec![segment];
    while segment.number < last.number {
        segment = segment.next();
        all.push(segment);
    }
    all
}

/// Checks that every segment is in `pg_wal`, has the full length, and begins with its own page.
///
/// # Errors
/// [`Refusal::WalRecycledBeforeFreeze`] or [`Refusal::WalDamaged`].
pub fn check(pg_wal: &Path, identity: WalIdentity, needed: &[WalSegment]) -> Result<()> {
    let mut last: Option<TimelineHistory> = None;
    for segment in needed {
        let known = last.take().filter(|history| history.timeline() == segment.timeline);
        let is_first = known.is_none();
        let history = match known {
            Some(history) => history,
            None => history(pg_wal, identity.segment_size, segment.timeline)?,
        };
        let begins = first_page(&history, identity, *segment, is_first);
        check_segment(pg_wal, identity, *segment, begins)?;
        last = Some(history);
    }
    Ok(())
}

/// Reads a timeline's history. Like PostgreSQL, it takes a timeline without a history file for one without ancestors.
pub(crate) fn history(
    pg_wal: &Path,
    size: WalSegmentSize,
    timeline: TimelineId,
) -> Result<TimelineHistory> {
    let path = pg_wal.join(WalFileName::History(timeline).file_name(size));
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(TimelineHistory::root(timeline)),
        other => {
            let bytes = other.map_err(Error::io("read", &path))?;
            TimelineHistory::parse(timeline, &bytes).map_err(|error| {
                Error::failed(format!("\"{}\" is damaged", path.display()))
                    .because(error)
                    .with_hint("the archive has the same file, if there is one")
            })
        }
    }
}

/// The timeline that a segment's first page must be on, according to the history of its own timeline or of one that
/// continues from it. If a later timeline's history doesn't exist, this is unknown (`None`) for the first segment
/// that is read, which may be the one with the switch; all others come after it.
pub(super) fn first_page(
    history: &TimelineHistory,
    identity: WalIdentity,
    segment: WalSegment,
    is_first: bool,
) -> Option<TimelineId> {
    let is_unknown = history.switches().is_empty() && history.timeline() > TimelineId::FIRST;
    let start = segment.start(identity.segment_size);
    (!(is_first && is_unknown)).then(|| history.timeline_of_page(segment.timeline, start))
}

fn check_segment(
    pg_wal: &Path,
    identity: WalIdentity,
    segment: WalSegment,
    begins: Option<TimelineId>,
) -> Result<()> {
    match look(pg_wal, identity, segment, begins)? {
        Found::Written => Ok(()),
        Found::Missing => {
            let needed = segment.file_name(identity.segment_size);
            let oldest = oldest(pg_wal, identity.segment_size)?;
            Err(Refusal::WalRecycledBeforeFreeze { needed, oldest }.into())
        }
        Found::Unwritten(why) => Err(damaged(identity, segment, why.to_string())),
    }
}

/// What is in `pg_wal` under a segment's name.
pub(crate) enum Found {
    /// The segment.
    Written,
    /// Nothing.
    Missing,
    /// A file that waits to be used: of zeros, or with the contents that it had under an older name. WAL ends before
    /// it.
    Unwritten(WalPageError),
}

/// Looks at a segment whose first page is on the timeline `begins` at least, if that is known. A segment that doesn't
/// exist or hasn't been written yet is the end of the WAL; anything else that keeps it from being read isn't.
pub(crate) fn look(
    pg_wal: &Path,
    identity: WalIdentity,
    segment: WalSegment,
    begins: Option<TimelineId>,
) -> Result<Found> {
    let size = identity.segment_size;
    let path = pg_wal.join(segment.file_name(size));
    let mut file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Missing),
        other => other.map_err(Error::io("read", &path))?,
    };
    let length = file.metadata().map_err(Error::io("look at", &path))?.len();
    if length != u64::from(size.bytes()) {
        let why = format!("it has {length} bytes instead of {}", size.bytes());
        return Err(damaged(identity, segment, why));
    }
    let mut page = [0u8; 8192];
    file.read_exact(&mut page).map_err(Error::io("read", &path))?;
    let cluster = Some(identity.system_identifier);
    match wal_page::check_segment_header(&page, segment, size, cluster) {
        Ok(header) => Ok(match begins.filter(|begins| header.timeline < *begins) {
            None => Found::Written,
            Some(expected) => {
                Found::Unwritten(WalPageError::EarlierTimeline { found: header.timeline, expected })
            }
        }),
        Err(
            why @ (WalPageError::AllZero
            | WalPageError::OtherCluster { .. }
            | WalPageError::OtherPosition { .. }),
        ) => Ok(Found::Unwritten(why)),
        Err(why) => Err(damaged(identity, segment, why.to_string())),
    }
}

fn damaged(identity: WalIdentity, segment: WalSegment, why: String) -> Error {
    Refusal::WalDamaged { segment: segment.file_name(identity.segment_size), why }.into()
}

/// The end of the unbroken run of segments in `pg_wal` that begins with `from`'s.
#[must_use]
pub fn end_of_run(pg_wal: &Path, identity: WalIdentity, from: Lsn) -> Lsn {
    let size = identity.segment_size;
    let mut segment = WalSegment::containing(identity.timeline, from, size);
    while pg_wal.join(segment.file_name(size)).exists() {
        segment = segment.next();
    }
    segment.start(size)
}

/// Copies the segments and the timeline's history from `pg_wal` to `to`, then checks the copies, so that a segment
/// recycled meanwhile is noticed. Returns the history's name, if there is one.
///
/// # Errors
/// As [`check`], and when a file can't be copied.
pub fn copy(
    pg_wal: &Path,
    to: &Path,
    identity: WalIdentity,
    needed: &[WalSegment],
) -> Result<Option<String>> {
    create_directories(to)?;
    check(pg_wal, identity, needed)?;
    for segment in needed {
        let name = segment.file_name(identity.segment_size);
        // Links in pg_wal aren't followed: the set is root's, and a restore gives it to os_user.
        copy_with_holes(&pg_wal.join(&name), &to.join(&name))?;
    }
    let history = WalFileName::History(identity.timeline).file_name(identity.segment_size);
    let has_history = pg_wal.join(&history).exists();
    if has_history {
        copy_with_holes(&pg_wal.join(&history), &to.join(&history))?;
    }
    check(to, identity, needed)?;
    sync_directory(to)?;
    Ok(has_history.then_some(history))
}

pub(crate) fn oldest(pg_wal: &Path, size: WalSegmentSize) -> Result<String> {
    let names = names(pg_wal)?.into_iter();
    let segments = names.filter(|name| WalSegment::parse(name, size).is_ok());
    Ok(segments.min().unwrap_or_else(|| "none".into()))
}

/// The names in `pg_wal`; PostgreSQL's own are all ASCII.
pub(crate) fn names(pg_wal: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(pg_wal).map_err(Error::io("list", pg_wal))? {
        let name = entry.map_err(Error::io("list", pg_wal))?.file_name();
        names.extend(name.into_string().ok());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> WalIdentity {
        WalIdentity {
            system_identifier: SystemIdentifier::new(7),
            segment_size: WalSegmentSize::new(1 << 24).unwrap(),
            timeline: TimelineId::FIRST,
        }
    }

    #[test]
    fn the_last_segment_is_the_one_before_the_end() {
        let names = |from: &str, to: &str| {
            segments(identity(), from.parse().unwrap(), to.parse().unwrap())
                .iter()
                .map(|s| s.file_name(identity().segment_size))
                .collect::<Vec<_>>()
        };
        assert_eq!(names("0/2000028", "0/2000138"), ["000000010000000000000002"]);
        assert_eq!(names("0/2000028", "0/4000000").len(), 2);
        assert_eq!(names("0/2000028", "0/4000001").len(), 3);
    }

    #[test]
    fn a_missing_and_a_foreign_segment_are_refused_by_name() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("wal");
        std::fs::create_dir_all(&dir).unwrap();
        let needed = segments(identity(), Lsn::new(0x200_0028), Lsn::new(0x200_0138));
        let missing = check(&dir, identity(), &needed).unwrap_err();
        assert!(missing.to_string().contains("000000010000000000000002 is gone"), "{missing}");
        let path = dir.join("000000010000000000000002");
        std::fs::write(&path, b"short").unwrap();
        assert!(check(&dir, identity(), &needed).unwrap_err().to_string().contains("5 bytes"));
        std::fs::write(&path, vec![0u8; 1 << 24]).unwrap();
        let foreign = check(&dir, identity(), &needed).unwrap_err();
        assert!(foreign.to_string().contains("is damaged"), "{foreign}");
    }
}
