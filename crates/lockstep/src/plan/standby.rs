//! The strategies for a server in recovery: what each requires, and its order of steps.
//!
//! Three things differ from a primary. A standby writes no WAL, so the end of a set is pg_control's minRecoveryPoint,
//! which PostgreSQL moves ahead of every page that it flushes in recovery (UpdateMinRecoveryPoint in xlog.c) and
//! enforces when the set is restored. Its restartpoints move pg_control's checkpoint at any time, so `ordered` needs
//! a label that says where recovery starts. And only the primary's full_page_writes matters: the standby's own
//! setting says nothing.

use super::facts::Facts;
use super::strategy::{self, Lacking, Step, Strategy, WalSource, groups, lacking};
use crate::config::CheckpointMode;

/// Checks that a running standby can be backed up with this strategy.
pub(super) fn possible(facts: &Facts, strategy: Strategy) -> Result<(), Lacking> {
    match strategy {
        Strategy::Cold => {
            strategy::cold(facts)?;
            recovered(facts)
        }
        Strategy::Label => strategy::label(facts),
        Strategy::Atomic => {
            strategy::one_pool(facts)?;
            recovered(facts)?;
            whole_pages(facts)
        }
        Strategy::Ordered => {
            recovered(facts)?;
            whole_pages(facts)
        }
    }
}

/// Refuses a standby that was itself made from a backup and hasn't replayed that to its end: with our label, recovery
/// would no longer wait for what pg_control waits for (backupStartPoint), and the set would be silently corrupt. A cold
/// set would wait for it, but the WAL up to there isn't in it.
fn recovered(facts: &Facts) -> Result<(), Lacking> {
    if facts.control.is_in_backup_recovery() || facts.backup_label {
        return lacking(
            "the standby hasn't yet replayed the base backup that it was made from",
            "wait until its log says \"consistent recovery state reached\"",
        );
    }
    Ok(())
}

/// Refuses records smaller than a page. Without the backup API nothing tells whether the primary had full_page_writes
/// on all the time, so torn pages must be impossible: a ZFS record of a page or more is written whole.
fn whole_pages(facts: &Facts) -> Result<(), Lacking> {
    match strategy::small_records(facts) {
        Some(volume) => lacking(
            format!(
                "dataset \"{}\" has a recordsize of {} bytes, less than a page, and whether the primary's full_page_writes was on throughout can't be told here",
                volume.dataset, volume.recordsize
            ),
            "use label, for which PostgreSQL tells, or set recordsize=8K and rewrite the files",
        ),
        None => Ok(()),
    }
}

/// The steps, in order.
pub(super) fn steps(facts: &Facts, strategy: Strategy) -> Vec<Step> {
    let layout = &facts.layout;
    let data = layout.data_volumes();
    let connected = facts.server.is_ok();
    let freeze_wal = strategy::freeze_wal(facts);
    let source = if freeze_wal.is_some() { WalSource::Frozen } else { WalSource::Live };
    let mut steps = Vec::new();
    match strategy {
        Strategy::Cold => return strategy::cold_steps(facts),
        Strategy::Label => {
            steps.push(Step::Slot);
            steps.push(Step::StartBackup { fast: facts.checkpoint == CheckpointMode::Fast });
            // The data directory comes last: the restored cluster is consistent at its pg_control's minRecoveryPoint,
            // so it must not be older than any page of the set.
            steps.extend(groups(facts, &data_directory_last(facts, &data)));
            steps.extend([Step::CheckLayout, Step::StopBackup, Step::CheckRecovery]);
            steps.extend(freeze_wal);
            steps.push(Step::TakeWal(source));
        }
        Strategy::Atomic => {
            steps.push(Step::ReplayFloor);
            let volumes = (0..layout.volumes.len()).collect();
            steps.push(Step::Snapshot { volumes, one_moment: true });
            steps.extend([Step::CheckRecovery, Step::CheckLayout]);
        }
        Strategy::Ordered => {
            if connected {
                steps.push(Step::Slot);
            }
            steps.push(Step::FirstControl);
            let (first, rest) = data.split_at(data.len().min(1));
            steps.push(Step::Snapshot { volumes: first.to_vec(), one_moment: false });
            steps.extend(groups(facts, rest));
            steps.extend([Step::CheckLayout, Step::LastControl]);
            steps.extend(freeze_wal);
            steps.push(Step::TakeWal(source));
        }
    }
    if facts.has_primary && matches!(strategy, Strategy::Label | Strategy::Ordered) {
        steps.push(Step::SwitchPrimary);
    }
    steps
}

/// The volumes of other pools first, then those of the data directory's pool, with the data directory at the end. So
/// if one command takes all volumes of a pool, the last command takes the data directory.
fn data_directory_last(facts: &Facts, data: &[usize]) -> Vec<usize> {
    let Some((&first, rest)) = data.split_first() else { return Vec::new() };
    let pool = |volume: usize| facts.layout.volumes[volume].pool();
    let (near, far): (Vec<usize>, Vec<usize>) =
        rest.iter().copied().partition(|&volume| pool(volume) == pool(first));
    far.into_iter().chain(near).chain([first]).collect()
}
