//! Explains a plan: what each step does and why the set is consistent.

use super::layout::Layout;
use super::strategy::{Step, Strategy, WalSource};

/// Why a set of this strategy is consistent, in one paragraph; it is kept in the manifest.
#[must_use]
pub fn why_consistent(strategy: Strategy, standby: bool) -> &'static str {
    match strategy {
        Strategy::Label if standby => {
            "Recovery starts at the restartpoint that pg_backup_start made before the first snapshot. The data directory was frozen last of all data: its pg_control's minRecoveryPoint lies behind every page of the set, and PostgreSQL does not call the cluster consistent before it. pg_backup_stop found the standby not promoted, and no WAL written with full_page_writes=off."
        }
        Strategy::Atomic if standby => {
            "All snapshots are of one transaction group of one pool: together they are what a power cut of the standby at that moment would have left. Its pg_control's minRecoveryPoint lies behind every page, and PostgreSQL does not call the cluster consistent before it."
        }
        Strategy::Ordered if standby => {
            "Recovery starts at the checkpoint that pg_control named before the first snapshot, by a backup_label made from it. pg_control was read again after the last: its minRecoveryPoint, which PostgreSQL moves ahead of every page it flushes in recovery, lies behind every page of the set, and PostgreSQL does not call the cluster consistent before it."
        }
        Strategy::Cold => {
            "The cluster was shut down before the first snapshot and still was after the last: no file changed in between."
        }
        Strategy::Label => {
            "Recovery starts at the checkpoint that pg_backup_start made before the first snapshot, and PostgreSQL does not call the cluster consistent before the end-of-backup record that pg_backup_stop wrote after the last. Full page images of that time repair every page that a snapshot caught."
        }
        Strategy::Atomic => {
            "All snapshots are of one transaction group of one pool: together they are what a power cut at that moment would have left, and PostgreSQL's crash recovery makes it whole."
        }
        Strategy::Ordered => {
            "A page reaches its file only after its WAL is flushed, and a snapshot holds every completed write. pg_control was frozen first, so recovery starts at or before the state of every other volume; pg_wal was frozen last, so it holds the WAL of every page frozen before it."
        }
    }
}

/// What a step does, in words.
#[must_use]
pub fn step(step: &Step, layout: &Layout) -> String {
    match step {
        Step::Slot => {
            "make a temporary replication slot, which keeps the WAL from the last redo point".into()
        }
        Step::StartBackup { fast: true } => "pg_backup_start with an immediate checkpoint".into(),
        Step::StartBackup { fast: false } => {
            "pg_backup_start with a checkpoint spread over time".into()
        }
        Step::Snapshot { volumes, one_moment } => {
            let names: Vec<_> = volumes
                .iter()
                .map(|&volume| {
                    let parts: Vec<_> =
                        layout.parts_on(volume).map(|part| part.kind.to_string()).collect();
                    format!("{} ({})", layout.volumes[volume].dataset, parts.join(", "))
                })
                .collect();
            let how =
                if *one_moment && volumes.len() > 1 { " in one transaction group" } else { "" };
            format!("snapshot {}{how}", names.join(", "))
        }
        Step::CheckLayout => "read the layout again: it must be the same".into(),
        Step::Floor => "write a WAL record and flush it: its LSN is the set's floor".into(),
        Step::ReplayFloor => {
            "note how far the standby has replayed: that LSN is the set's floor".into()
        }
        Step::FirstControl => {
            "read pg_control: its checkpoint is where recovery of the set will start".into()
        }
        Step::LastControl => {
            "read pg_control again: its minRecoveryPoint is where the set is consistent".into()
        }
        Step::CheckRecovery => {
            "check in pg_control that the standby wasn't promoted and is on the same timeline".into()
        }
        Step::SwitchPrimary => {
            "pg_switch_wal on the primary, so that its archive gets the set's last segment".into()
        }
        Step::StopBackup => {
            "pg_backup_stop, which ends the backup (on a primary with a WAL record and a new segment)"
                .into()
        }
        Step::TakeWal(WalSource::Frozen) => {
            "check that the set's own WAL is whole in pg_wal's snapshot".into()
        }
        Step::TakeWal(WalSource::Live) => "copy the set's own WAL from pg_wal".into(),
        Step::CheckShutDown => "check in pg_control that the cluster is shut down".into(),
    }
}
