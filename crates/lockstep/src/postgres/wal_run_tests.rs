use std::path::{Path, PathBuf};

use pgfiles::lsn::SystemIdentifier;
use pgfiles::wal_name::WalSegmentSize;

use super::*;

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 7_000_000_000_000_000_007;

fn identity() -> WalIdentity {
    WalIdentity {
        system_identifier: SystemIdentifier::new(CLUSTER),
        segment_size: WalSegmentSize::MIN,
        timeline: TimelineId::FIRST,
    }
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn name(of: u32, number: u64) -> String {
    WalSegment { timeline: timeline(of), number }.file_name(WalSegmentSize::MIN)
}

struct PgWal(PathBuf);

impl PgWal {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lockstep-run-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a segment of PostgreSQL 15 under a name; its header says timeline `header` and position `at`.
    fn put(&self, name: &str, header: u32, at: u64, cluster: u64) {
        let mut bytes = vec![0u8; MIB as usize];
        bytes[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&2u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&header.to_le_bytes());
        bytes[8..16].copy_from_slice(&(at * MIB).to_le_bytes());
        bytes[24..32].copy_from_slice(&cluster.to_le_bytes());
        bytes[32..36].copy_from_slice(&(MIB as u32).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
        std::fs::write(self.0.join(name), bytes).unwrap();
    }

    fn segments(&self, of: u32, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| self.put(&name(of, number), of, number, CLUSTER));
    }

    fn history(&self, of: u32, text: &str) {
        std::fs::write(self.0.join(format!("{of:08X}.history")), text).unwrap();
    }

    fn run(&self, start: u64, needed: u64, of: u32) -> Result<Run> {
        self.find(start, needed, of, false)
    }

    fn to_the_end(&self, start: u64, of: u32) -> Result<Run> {
        self.find(start, 0, of, true)
    }

    fn find(&self, start: u64, needed: u64, of: u32, to_the_end: bool) -> Result<Run> {
        let wanted = Wanted {
            set: "s".into(),
            start: Lsn::new(start),
            needed: Lsn::new(needed),
            timeline: timeline(of),
            to_the_end,
        };
        run(&self.0, identity(), &wanted, &|_| false)
    }

    fn names(&self, start: u64, needed: u64, of: u32) -> Vec<String> {
        let run = self.run(start, needed, of).unwrap();
        run.segments.iter().map(|segment| segment.file_name(WalSegmentSize::MIN)).collect()
    }
}

impl Drop for PgWal {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn names(of: u32, numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|number| name(of, number)).collect()
}

#[test]
fn a_run_ends_before_what_is_missing_recycled_or_of_zeros() {
    let pg_wal = PgWal::new("ends");
    pg_wal.segments(1, 3..7);
    assert_eq!(pg_wal.names(3 * MIB + 40, 0, 1), names(1, 3..7));
    assert_eq!(pg_wal.run(5 * MIB, 0, 1).unwrap().end, Lsn::new(7 * MIB));
    // Made in advance: from an old one, or new.
    pg_wal.put(&name(1, 7), 1, 2, CLUSTER);
    assert_eq!(pg_wal.names(3 * MIB + 40, 0, 1), names(1, 3..7));
    std::fs::write(pg_wal.0.join(name(1, 7)), vec![0; MIB as usize]).unwrap();
    assert_eq!(pg_wal.names(3 * MIB + 40, 0, 1), names(1, 3..7));
    pg_wal.put(&name(1, 7), 1, 7, CLUSTER + 1);
    assert_eq!(pg_wal.names(3 * MIB + 40, 0, 1), names(1, 3..7));
    // What comes after it isn't reached.
    pg_wal.segments(1, 8..9);
    assert_eq!(pg_wal.names(3 * MIB + 40, 7 * MIB, 1), names(1, 3..7));
}

#[test]
fn a_run_that_does_not_reach_what_is_needed_is_refused_by_name() {
    let pg_wal = PgWal::new("refused");
    pg_wal.segments(1, 3..7);
    let refused = |start, needed, missing| {
        let error = pg_wal.run(start, needed, 1).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        let words = error.to_string();
        assert!(words.contains(&format!("segment {} isn't", name(1, missing))), "{words}");
        assert!(error.hint().is_some_and(|hint| hint.contains("another set")), "{error}");
    };
    refused(2 * MIB + 40, 0, 2);
    refused(3 * MIB + 40, 7 * MIB + 1, 7);
    std::fs::remove_file(pg_wal.0.join(name(1, 5))).unwrap();
    refused(3 * MIB + 40, 6 * MIB, 5);
    // Unless the set has that segment from elsewhere.
    let wanted = Wanted {
        set: "s".into(),
        start: Lsn::new(3 * MIB),
        needed: Lsn::new(7 * MIB),
        timeline: TimelineId::FIRST,
        to_the_end: true,
    };
    let found = run(&pg_wal.0, identity(), &wanted, &|known| known == name(1, 5)).unwrap();
    assert_eq!((found.segments.len(), found.end), (3, Lsn::new(7 * MIB)));
}

/// A segment that can't be read or has the wrong length isn't the end of the WAL.
#[test]
fn what_can_not_be_read_is_an_error() {
    let pg_wal = PgWal::new("unread");
    pg_wal.segments(1, 3..5);
    let fails = |why: &str| {
        let error = pg_wal.run(3 * MIB, 0, 1).unwrap_err().chain();
        assert!(error.contains(&name(1, 5)) && error.contains(why), "{error}");
    };
    let next = pg_wal.0.join(name(1, 5));
    std::os::unix::fs::symlink(name(1, 5), &next).unwrap();
    fails("Too many levels of symbolic links");
    std::fs::remove_file(&next).unwrap();
    std::fs::write(&next, b"short").unwrap();
    fails("it has 5 bytes instead of 1048576");
    pg_wal.put(&name(1, 5), 2, 5, CLUSTER);
    fails("is damaged");
}

/// Redo on timeline 1, minRecoveryPoint on timeline 2: a standby that was promoted a moment ago.
#[test]
fn a_run_goes_over_the_timelines_on_its_way() {
    let pg_wal = PgWal::new("promoted");
    pg_wal.segments(1, 2..6);
    // Timeline 2 begins in segment 5; its first segment begins as a copy of the old one.
    pg_wal.history(2, "1\t0/580000\tno recovery target specified\n");
    pg_wal.put(&name(2, 5), 1, 5, CLUSTER);
    pg_wal.segments(2, 6..8);
    // These belong to the old future and to nobody.
    pg_wal.segments(1, 6..9);
    let mut all = names(1, 3..6);
    all.extend(names(2, 5..8));
    assert_eq!(pg_wal.names(3 * MIB + 40, 7 * MIB + 40, 2), all);
    // A segment that was archived under another name, or removed, isn't needed if the new timeline has it.
    std::fs::remove_file(pg_wal.0.join(name(1, 5))).unwrap();
    all.retain(|known| *known != name(1, 5));
    assert_eq!(pg_wal.names(3 * MIB + 40, 7 * MIB + 40, 2), all);
    // The new timeline's segment is needed, even if the old one's exists.
    pg_wal.segments(1, 5..6);
    std::fs::remove_file(pg_wal.0.join(name(2, 5))).unwrap();
    let error = pg_wal.run(3 * MIB + 40, 7 * MIB, 2).unwrap_err().to_string();
    assert!(error.contains(&name(2, 5)), "{error}");
}

/// The history exists before pg_control names its timeline.
#[test]
fn a_timeline_that_pg_control_does_not_name_yet_goes_along() {
    let pg_wal = PgWal::new("newer");
    pg_wal.segments(1, 3..6);
    pg_wal.history(2, "1\t0/580000\tno recovery target specified\n");
    pg_wal.put(&name(2, 5), 1, 5, CLUSTER);
    pg_wal.segments(2, 6..7);
    let mut all = names(1, 3..6);
    all.extend(names(2, 5..7));
    all.sort_by_key(|name| name[8..].to_owned());
    assert_eq!(pg_wal.names(3 * MIB + 40, 5 * MIB + 40, 1), all);
    // A timeline that branches off before the end of the data files isn't this cluster's future.
    pg_wal.history(2, "1\t0/480000\tno recovery target specified\n");
    assert_eq!(pg_wal.names(3 * MIB + 40, 5 * MIB + 40, 1), names(1, 3..6));
    std::fs::write(pg_wal.0.join("00000002.history"), "nonsense\n").unwrap();
    let error = pg_wal.run(3 * MIB + 40, 0, 1).unwrap_err();
    assert!(error.to_string().contains("00000002.history"), "{error}");
}

/// The end of a recovery turns segments of the old timeline that come after the switch into future segments of the
/// new one, in any order: a later position may get an earlier name, or the same.
#[test]
fn what_a_recovery_recycled_is_no_wal() {
    let pg_wal = PgWal::new("recycled");
    pg_wal.segments(1, 3..6);
    pg_wal.history(2, "1\t0/580000\tno recovery target specified\n");
    pg_wal.put(&name(2, 5), 1, 5, CLUSTER);
    let mut all = names(1, 3..6);
    all.push(name(2, 5));
    for (at, of) in [(9, 1), (6, 1), (2, 1)] {
        pg_wal.put(&name(2, 6), of, at, CLUSTER);
        let run = pg_wal.run(3 * MIB + 40, 5 * MIB + 40, 2).unwrap();
        assert_eq!(run.end, Lsn::new(6 * MIB), "the run ends before what was recycled from {at}");
        assert_eq!(pg_wal.names(3 * MIB + 40, 5 * MIB + 40, 2), all);
        // Nor does it make a short run look long enough.
        let error = pg_wal.run(3 * MIB + 40, 6 * MIB + 40, 2).unwrap_err();
        assert!(error.to_string().contains(&name(2, 6)), "{error}");
    }
    // Nor does the segment of the switch itself, if an older one waits under its name.
    pg_wal.put(&name(2, 5), 1, 8, CLUSTER);
    assert!(pg_wal.run(3 * MIB + 40, 5 * MIB + 40, 2).is_err());
    // A third timeline that begins in the same segment as the second: its pages are still the first's.
    pg_wal.put(&name(2, 5), 1, 5, CLUSTER);
    pg_wal.history(3, "1\t0/580000\tx\n2\t0/5C0000\ty\n");
    pg_wal.put(&name(3, 5), 1, 5, CLUSTER);
    pg_wal.put(&name(3, 6), 3, 6, CLUSTER);
    pg_wal.put(&name(3, 7), 2, 7, CLUSTER);
    let run = pg_wal.run(5 * MIB + 40, 6 * MIB + 40, 3).unwrap();
    assert_eq!(run.end, Lsn::new(7 * MIB));
}

/// A checkpoint removes segments in the order of the folder, so a gap in the middle isn't the end.
#[test]
fn a_gap_is_not_the_end_of_the_wal() {
    let pg_wal = PgWal::new("gap");
    pg_wal.segments(1, 3..9);
    std::fs::remove_file(pg_wal.0.join(name(1, 5))).unwrap();
    std::fs::remove_file(pg_wal.0.join(name(1, 6))).unwrap();
    let error = pg_wal.to_the_end(3 * MIB + 40, 1).unwrap_err();
    let words = error.to_string();
    assert!(words.contains(&name(1, 5)) && words.contains("to 0/700000 at least"), "{words}");
    assert!(pg_wal.run(3 * MIB + 40, 5 * MIB, 1).is_ok(), "where it is known that it isn't needed");
    // Names made in advance, and those of other clusters and timelines, follow without a gap.
    pg_wal.segments(1, 5..7);
    pg_wal.put(&name(1, 9), 1, 2, CLUSTER);
    pg_wal.put(&name(1, 10), 1, 4, CLUSTER);
    assert_eq!(pg_wal.to_the_end(3 * MIB + 40, 1).unwrap().end, Lsn::new(9 * MIB));
    // After a recovery to a point in time: timeline 1 was left in segment 5, and its later segments wait to be
    // archived.
    std::fs::remove_file(pg_wal.0.join(name(1, 6))).unwrap();
    pg_wal.history(2, "1\t0/580000\tx\n");
    pg_wal.put(&name(2, 5), 1, 5, CLUSTER);
    pg_wal.put(&name(2, 6), 1, 9, CLUSTER);
    assert_eq!(pg_wal.to_the_end(3 * MIB + 40, 2).unwrap().end, Lsn::new(6 * MIB));
    std::fs::remove_file(pg_wal.0.join(name(2, 6))).unwrap();
    assert_eq!(pg_wal.to_the_end(3 * MIB + 40, 2).unwrap().end, Lsn::new(6 * MIB));
    // A promotion that pg_control doesn't name yet: the number exists on the new timeline.
    pg_wal.segments(2, 6..8);
    assert_eq!(pg_wal.to_the_end(5 * MIB + 40, 1).unwrap().end, Lsn::new(8 * MIB));
    std::fs::remove_file(pg_wal.0.join(name(2, 6))).unwrap();
    assert!(pg_wal.to_the_end(5 * MIB + 40, 1).is_err());
}

/// Nobody can tell where timeline 2 begins, so only the first segment may contain that point.
#[test]
fn without_a_history_only_the_first_segment_may_begin_on_an_older_timeline() {
    let pg_wal = PgWal::new("unknown");
    pg_wal.put(&name(2, 5), 1, 5, CLUSTER);
    pg_wal.segments(2, 6..7);
    pg_wal.put(&name(2, 7), 1, 7, CLUSTER);
    assert_eq!(pg_wal.names(5 * MIB + 40, 6 * MIB + 40, 2), names(2, 5..7));
    let check = |numbers: std::ops::Range<u64>| {
        let needed: Vec<_> =
            numbers.map(|number| WalSegment { timeline: timeline(2), number }).collect();
        super::super::wal::check(&pg_wal.0, identity(), &needed)
    };
    check(5..7).unwrap();
    let error = check(5..8).unwrap_err();
    assert!(error.to_string().contains("begins on timeline \"1\", not on \"2\""), "{error}");
    pg_wal.history(2, "1\t0/480000\tx\n");
    let error = check(5..7).unwrap_err();
    assert!(error.to_string().contains(&name(2, 5)), "{error}");
}

#[test]
fn only_pg_wal_itself_is_listed() {
    let missing = Path::new("/nonexistent/pg_wal");
    assert!(
        history(missing, WalSegmentSize::MIN, TimelineId::FIRST).is_ok(),
        "without a file: a root"
    );
    assert!(newer(missing, identity(), &TimelineHistory::root(timeline(1)), Lsn::INVALID).is_err());
}
