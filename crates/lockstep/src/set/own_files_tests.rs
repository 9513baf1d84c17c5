use std::io::Write as _;

use pgfiles::{ControlFile, SystemIdentifier};

use super::*;
use crate::set::manifest::SetWal;
use crate::set::manifest::tests::manifest;

/// PostgreSQL 15, crashed: redo at 0/704F3B0 on timeline 1, in segments of 16 MiB.
const CONTROL: &[u8] = include_bytes!("../../../pgfiles/testdata/15/crashed.pg_control");
const SIZE: u64 = 16 << 20;

struct Frozen {
    root: PathBuf,
    manifest: Manifest,
}

impl Frozen {
    /// An atomic set whose manifest has the redo location of an earlier checkpoint.
    fn new(name: &str, segments: &[(u32, u64)], control: &[u8]) -> Self {
        let root = format!("lockstep-own-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(root);
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("wal")).unwrap();
        std::fs::create_dir_all(root.join("data/global")).unwrap();
        std::fs::write(root.join("data/global/pg_control"), control).unwrap();
        let parsed = ControlFile::parse(control).unwrap();
        let mut manifest = manifest("20261101T000000Z-aaaa", vec![]);
        manifest.strategy = Strategy::Atomic;
        manifest.postgres.system_identifier = parsed.system_identifier;
        manifest.postgres.timeline = TimelineId::FIRST;
        manifest.postgres.standby = false;
        manifest.start_lsn = Some(Lsn::new(2 * SIZE + 40));
        (manifest.stop_lsn, manifest.floor_lsn) = (None, None);
        manifest.wal = SetWal::default();
        manifest.files.clear();
        let frozen = Self { root, manifest };
        for &(timeline, number) in segments {
            let mut header = [0u8; 8192];
            header[..2].copy_from_slice(&0xD110u16.to_le_bytes());
            header[2] = 2;
            header[4..8].copy_from_slice(&timeline.to_le_bytes());
            header[8..16].copy_from_slice(&(number * SIZE).to_le_bytes());
            header[24..32].copy_from_slice(&parsed.system_identifier.as_u64().to_le_bytes());
            header[32..36].copy_from_slice(&(SIZE as u32).to_le_bytes());
            header[36..40].copy_from_slice(&8192u32.to_le_bytes());
            let mut file = std::fs::File::create(frozen.segment(timeline, number)).unwrap();
            file.write_all(&header).unwrap();
            file.set_len(SIZE).unwrap();
        }
        frozen
    }

    fn segment(&self, timeline: u32, number: u64) -> PathBuf {
        self.root.join("wal").join(name(timeline, number))
    }

    fn find(&self) -> Result<FrozenWal> {
        let control = self.root.join("data").join(instance::PG_CONTROL);
        FrozenWal::find(&self.manifest, self.root.join("wal"), Some(&control))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn name(timeline: u32, number: u64) -> String {
    format!("{timeline:08X}00000000{number:08X}")
}

/// A checkpoint came between the first look and the snapshot, and the earlier one's WAL is gone.
#[test]
fn recovery_starts_where_the_snapshots_own_pg_control_says() {
    let mut set = Frozen::new("start", &[(1, 7), (1, 8)], CONTROL);
    let found = set.find().unwrap();
    assert_eq!(found.names, [name(1, 7), name(1, 8)]);
    let redo = Lsn::new(0x704_F3B0);
    assert_eq!(found.start, Some((redo, TimelineId::FIRST)));
    assert_eq!(found.replayed(&set.manifest), Some((redo, Lsn::new(9 * SIZE))));
    // If nobody can look into the data directory, the manifest has to do.
    let refused = FrozenWal::find(&set.manifest, set.root.join("wal"), None).err().unwrap();
    assert!(refused.to_string().contains(&name(1, 2)), "{refused}");
    // It doesn't hold everything that it should.
    set.manifest.floor_lsn = Some(Lsn::new(9 * SIZE + 1));
    let refused = set.find().err().unwrap();
    assert!(refused.to_string().contains(&name(1, 9)), "{refused}");
    set.manifest.floor_lsn = Some(Lsn::new(9 * SIZE));
    assert!(set.find().is_ok());
    std::fs::remove_file(set.segment(1, 7)).unwrap();
    let refused = set.find().err().unwrap();
    assert_eq!(refused.exit_code(), 4);
    assert!(refused.to_string().contains(&name(1, 7)), "{refused}");
    // Another cluster's.
    set.manifest.postgres.system_identifier = SystemIdentifier::new(7);
    assert!(set.find().err().unwrap().to_string().contains("pg_control is of cluster"));
}

/// A checkpoint removed segments in the order of the folder before pg_wal was frozen.
#[test]
fn a_gap_is_no_end_where_nothing_else_says_where_the_end_is() {
    let mut set = Frozen::new("gap", &[(1, 7), (1, 9)], CONTROL);
    for strategy in [Strategy::Atomic, Strategy::Ordered] {
        set.manifest.strategy = strategy;
        let refused = set.find().err().unwrap();
        assert_eq!(refused.exit_code(), 4);
        assert!(refused.to_string().contains(&name(1, 8)), "{refused}");
    }
    // What was frozen before the floor was written needs no more; nor does a cluster that was stopped.
    set.manifest.floor_lsn = Some(Lsn::new(8 * SIZE));
    assert_eq!(set.find().unwrap().end, Some(Lsn::new(8 * SIZE)));
    set.manifest.floor_lsn = None;
    set.manifest.strategy = Strategy::Cold;
    assert_eq!(set.find().unwrap().end, Some(Lsn::new(8 * SIZE)));
    // For an atomic set the floor was written before its snapshot.
    set.manifest.strategy = Strategy::Atomic;
    set.manifest.floor_lsn = Some(Lsn::new(8 * SIZE));
    assert!(set.find().is_err());
    set.manifest.postgres.standby = true;
    assert!(set.find().is_ok(), "its pg_control says where it is consistent");
}

/// minRecoveryPoint is on the next timeline.
#[test]
fn wal_of_the_timeline_that_pg_control_names_goes_along() {
    let control = ControlFile::parse(CONTROL).unwrap();
    let point = Lsn::new(8 * SIZE + 100);
    let control = control.with_min_recovery_point(point, TimelineId::new(2).unwrap());
    let set = Frozen::new("timelines", &[(1, 7), (2, 7), (2, 8)], &control);
    std::fs::write(set.root.join("wal/00000002.history"), "1\t0/7080000\tpromoted\n").unwrap();
    std::fs::write(set.root.join("wal/my notes.history"), "nobody's").unwrap();
    let found = set.find().unwrap();
    let all = [name(1, 7), name(2, 7), name(2, 8), "00000002.history".to_owned()];
    assert_eq!(found.names, all);
    std::fs::remove_file(set.segment(2, 8)).unwrap();
    let refused = set.find().err().unwrap();
    assert!(refused.to_string().contains(&name(2, 8)), "{refused}");
}
