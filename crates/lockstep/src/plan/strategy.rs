//! Decides which strategy makes a set consistent here, why, and in which order it is taken.
//!
//! The rules are those of docs/consistency.md, which names the PostgreSQL and OpenZFS sources that they are based on.
//! A strategy is either provably consistent given the facts, or refused with what it lacks; nothing is tried on the
//! off chance.

use std::fmt;

use pgfiles::control_file::WalLevel;
use serde::{Deserialize, Serialize};

use super::facts::Facts;
use super::layout::{Reserved, Volume};
use super::standby;
use super::warnings::{self, Warning};
use crate::config::{CheckpointMode, StrategyChoice};
use crate::refusal::Refusal;

/// Why a set is consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The cluster is shut down.
    Cold,
    /// PostgreSQL's backup API around the snapshots.
    Label,
    /// One transaction group holds everything.
    Atomic,
    /// PGDATA's snapshot first, pg_wal's last.
    Ordered,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Label => "label",
            Self::Atomic => "atomic",
            Self::Ordered => "ordered",
        })
    }
}

/// Where the set's own WAL is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalSource {
    /// It is in pg_wal's own snapshot, which is taken once all of it has been written.
    Frozen,
    /// It is copied from the live pg_wal.
    Live,
}

/// One step of a backup; volumes are indexes into the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a temporary physical slot that keeps the WAL from the last redo point on.
    Slot,
    /// pg_backup_start.
    StartBackup {
        /// An immediate checkpoint, or one spread over time.
        fast: bool,
    },
    /// Snapshots of volumes of one pool.
    Snapshot {
        /// The volumes.
        volumes: Vec<usize>,
        /// They must be in one transaction group.
        one_moment: bool,
    },
    /// The layout is read again and must not have changed.
    CheckLayout,
    /// A WAL record is written and flushed; its LSN is the floor.
    Floor,
    /// Standby: everything replayed so far will be in the set.
    ReplayFloor,
    /// Standby: pg_control's checkpoint becomes the label.
    FirstControl,
    /// Standby: pg_control is read again; its minRecoveryPoint is the end of the set.
    LastControl,
    /// Standby: it must still be a standby, on the timeline on which the set began.
    CheckRecovery,
    /// Standby: the primary ends its current WAL segment, so that the archive gets the set's last one.
    SwitchPrimary,
    /// pg_backup_stop.
    StopBackup,
    /// The set's own WAL is checked, and copied unless it is frozen.
    TakeWal(WalSource),
    /// pg_control must still say that the cluster is shut down.
    CheckShutDown,
}

/// What a backup will do, and why that is consistent.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Why the set will be consistent.
    pub strategy: Strategy,
    /// Why this strategy was chosen.
    pub chosen_because: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What the owner should know.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// The groups of volumes that are snapshotted together, in order.
    pub fn groups(&self) -> impl Iterator<Item = &[usize]> {
        self.steps.iter().filter_map(|step| match step {
            Step::Snapshot { volumes, .. } => Some(volumes.as_slice()),
            _ => None,
        })
    }
}

/// What a strategy lacks, and what would help.
pub(super) struct Lacking {
    why: String,
    needed: String,
}

pub(super) fn lacking<T>(why: impl Into<String>, needed: impl Into<String>) -> Result<T, Lacking> {
    Err(Lacking { why: why.into(), needed: needed.into() })
}

/// Chooses the strategy and lays out its steps.
///
/// # Errors
/// Why no set can be taken, or none with the requested strategy.
pub fn choose(facts: &Facts, choice: StrategyChoice) -> Result<Plan, Refusal> {
    check_place(facts)?;
    let one = |strategy, because: &str| match possible(facts, strategy) {
        Ok(()) => Ok((strategy, because.to_owned())),
        Err(Lacking { why, needed }) => Err(Refusal::NotPossible { strategy, why, needed }),
    };
    let (strategy, chosen_because) = match choice {
        StrategyChoice::Auto => first_possible(facts)?,
        StrategyChoice::Label => one(Strategy::Label, "it was asked for")?,
        StrategyChoice::Atomic => one(Strategy::Atomic, "it was asked for")?,
        StrategyChoice::Ordered => one(Strategy::Ordered, "it was asked for")?,
        StrategyChoice::Cold => one(Strategy::Cold, "it was asked for")?,
    };
    Ok(Plan {
        strategy,
        chosen_because,
        steps: steps(facts, strategy),
        warnings: warnings::of(facts, strategy, choice),
    })
}

/// The longest name that ZFS gives (ZFS_MAX_DATASET_NAME_LEN in sys/fs/zfs.h, less its end), less what follows the
/// dataset's in that of a set's snapshot.
const LONGEST_DATASET: usize = 255 - "@lockstep-20261123T194512Z-k3fa".len();

/// Checks what every strategy needs.
fn check_place(facts: &Facts) -> Result<(), Refusal> {
    if let Some(unsettled) = &facts.unsettled {
        return Err(unsettled.clone().into());
    }
    for volume in &facts.layout.volumes {
        if let Some(nested) = volume.nested.iter().find(|nested| !nested.harmless) {
            return Err(Refusal::NestedMount {
                point: nested.point.clone(),
                source_name: nested.source.clone(),
                part: nested.part.clone(),
            });
        }
        let length = volume.dataset.as_str().len();
        if length > LONGEST_DATASET {
            return Err(Refusal::NameTooLong {
                dataset: volume.dataset.to_string(),
                length,
                longest: LONGEST_DATASET,
            });
        }
        let needed = facts.space_needed(volume);
        if volume.available < needed {
            return Err(Refusal::NoSpace {
                dataset: volume.dataset.to_string(),
                available: volume.available,
                needed,
            });
        }
        if let Some(Reserved { needed, left }) = volume.lacking {
            return Err(Refusal::Reserved { dataset: volume.dataset.to_string(), needed, left });
        }
    }
    Ok(())
}

fn first_possible(facts: &Facts) -> Result<(Strategy, String), Refusal> {
    let order = [Strategy::Cold, Strategy::Label, Strategy::Atomic, Strategy::Ordered];
    let mut needed = Vec::new();
    for strategy in order {
        match possible(facts, strategy) {
            Ok(()) => {
                let because = match (strategy, &facts.server) {
                    (Strategy::Cold, _) => "the cluster is shut down".into(),
                    (Strategy::Label, _) => {
                        "the server takes a connection and allows the backup API".into()
                    }
                    (_, Ok(_)) => {
                        label(facts).err().map_or_else(String::new, |lacking| lacking.why)
                    }
                    (_, Err(no_server)) => no_server.words(),
                };
                return Ok((strategy, because));
            }
            Err(Lacking { why, needed: wants }) => {
                needed.push(format!("{strategy}: {why} ({wants})"));
            }
        }
    }
    Err(Refusal::NoStrategy { needed })
}

fn possible(facts: &Facts, strategy: Strategy) -> Result<(), Lacking> {
    if facts.is_standby() {
        return standby::possible(facts, strategy);
    }
    match strategy {
        Strategy::Cold => cold(facts),
        Strategy::Label => label(facts),
        Strategy::Atomic => atomic(facts),
        Strategy::Ordered => ordered(facts),
    }
}

pub(super) fn cold(facts: &Facts) -> Result<(), Lacking> {
    if let Some(pid) = facts.postmaster {
        return lacking(
            format!("a server runs (process {pid})"),
            "stop it with pg_ctl stop -m fast",
        );
    }
    if !facts.is_shut_down() {
        return lacking(
            format!(
                "pg_control says \"{}\", not that it was shut down",
                facts.control.state.as_str()
            ),
            "start it and stop it with pg_ctl stop -m fast",
        );
    }
    Ok(())
}

pub(super) fn label(facts: &Facts) -> Result<(), Lacking> {
    match &facts.server {
        Err(no_server) => {
            lacking(no_server.words(), "set host, port and user so that Lockstep can connect")
        }
        // A standby replays what its primary writes, whatever its own wal_level.
        Ok(server) if server.wal_level == "minimal" && !server.in_recovery => {
            lacking("wal_level is minimal", "set wal_level = replica and restart")
        }
        Ok(server) if !server.may_backup => lacking(
            "this user may not call pg_backup_start and pg_backup_stop",
            "GRANT EXECUTE on both functions to the user, as the PostgreSQL manual shows for backups",
        ),
        Ok(_) => Ok(()),
    }
}

fn atomic(facts: &Facts) -> Result<(), Lacking> {
    one_pool(facts)?;
    torn_pages(facts)
}

pub(super) fn one_pool(facts: &Facts) -> Result<(), Lacking> {
    let pools = facts.layout.pools();
    if pools.len() > 1 {
        return lacking(
            format!("the parts lie in several pools ({})", pools.join(", ")),
            "one transaction group can't span pools: use label or ordered",
        );
    }
    Ok(())
}

fn ordered(facts: &Facts) -> Result<(), Lacking> {
    if facts.layout.own_wal_volume().is_none() {
        return lacking(
            "pg_wal shares its dataset with other parts, so it can't be frozen last",
            "move pg_wal to a dataset of its own, or use label",
        );
    }
    if facts.control.wal_level == WalLevel::Minimal {
        return lacking(
            "wal_level is minimal: a bulk load lives in the data files alone, and the late WAL commits it",
            "set wal_level = replica and restart",
        );
    }
    torn_pages(facts)
}

/// Refuses setups in which pages can be torn. Without the backup API nothing forces full page writes, so a page that
/// a snapshot caught half written couldn't be repaired. A ZFS record of 8 KiB or more is written whole (zfs_write in
/// zfs_vnops.c splits a write only at record boundaries).
fn torn_pages(facts: &Facts) -> Result<(), Lacking> {
    let full_page_writes = match &facts.server {
        Ok(server) => server.full_page_writes && facts.control.checkpoint_copy.full_page_writes,
        Err(_) => facts.control.checkpoint_copy.full_page_writes,
    };
    match small_records(facts) {
        Some(volume) if !full_page_writes => lacking(
            format!(
                "full_page_writes is off and dataset \"{}\" has a recordsize of {} bytes, less than a page",
                volume.dataset, volume.recordsize
            ),
            "set full_page_writes = on, or recordsize=8K and rewrite the files",
        ),
        _ => Ok(()),
    }
}

/// Returns a data volume whose records are smaller than a page.
pub(super) fn small_records(facts: &Facts) -> Option<&Volume> {
    let block = u64::from(facts.control.block_size);
    facts.layout.data_volumes().into_iter().find_map(|volume| {
        let volume = &facts.layout.volumes[volume];
        (volume.recordsize < block).then_some(volume)
    })
}

fn steps(facts: &Facts, strategy: Strategy) -> Vec<Step> {
    if facts.is_standby() {
        return standby::steps(facts, strategy);
    }
    let layout = &facts.layout;
    let data = layout.data_volumes();
    let freeze_wal = freeze_wal(facts);
    let connected = facts.server.is_ok();
    let mut steps = Vec::new();
    match strategy {
        Strategy::Cold => return cold_steps(facts),
        Strategy::Label => {
            steps.push(Step::Slot);
            steps.push(Step::StartBackup { fast: facts.checkpoint == CheckpointMode::Fast });
            steps.extend(groups(facts, &data));
            steps.extend([Step::CheckLayout, Step::StopBackup]);
            let source = if freeze_wal.is_some() { WalSource::Frozen } else { WalSource::Live };
            steps.extend(freeze_wal);
            steps.push(Step::TakeWal(source));
        }
        Strategy::Atomic => {
            // This comes before the snapshot: what is flushed by now is in the set. A record written later need not
            // be.
            if connected {
                steps.push(Step::Floor);
            }
            let volumes = (0..layout.volumes.len()).collect();
            steps.push(Step::Snapshot { volumes, one_moment: true });
            steps.push(Step::CheckLayout);
        }
        Strategy::Ordered => {
            if connected {
                steps.push(Step::Slot);
            }
            // PGDATA comes alone and first: recovery starts at its pg_control, so every other volume must be at least
            // as new. It is the layout's first volume.
            let (first, rest) = data.split_at(data.len().min(1));
            steps.push(Step::Snapshot { volumes: first.to_vec(), one_moment: false });
            steps.extend(groups(facts, rest));
            steps.push(Step::CheckLayout);
            if connected {
                steps.push(Step::Floor);
            }
            steps.extend(freeze_wal);
            steps.push(Step::TakeWal(WalSource::Frozen));
        }
    }
    steps
}

/// The steps of `cold`. Nothing runs, so any order will do, on a standby and on a primary.
pub(super) fn cold_steps(facts: &Facts) -> Vec<Step> {
    let mut steps = vec![Step::CheckShutDown];
    steps.extend(groups(facts, &facts.layout.data_volumes()));
    steps.extend(freeze_wal(facts));
    steps.extend([Step::CheckShutDown, Step::CheckLayout]);
    steps
}

/// The snapshot of pg_wal's volume, if it has its own.
pub(super) fn freeze_wal(facts: &Facts) -> Option<Step> {
    let volume = facts.layout.own_wal_volume()?;
    Some(Step::Snapshot { volumes: vec![volume], one_moment: false })
}

/// One step per pool if ZFS takes several snapshots in one command, otherwise one per volume. The order of the
/// volumes is kept.
pub(super) fn groups(facts: &Facts, volumes: &[usize]) -> Vec<Step> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for &volume in volumes {
        let pool = facts.layout.volumes[volume].pool();
        let same = groups
            .iter_mut()
            .find(|group| facts.multi_snapshot && facts.layout.volumes[group[0]].pool() == pool);
        match same {
            Some(group) => group.push(volume),
            None => groups.push(vec![volume]),
        }
    }
    groups.into_iter().map(|volumes| Step::Snapshot { volumes, one_moment: false }).collect()
}

#[cfg(test)]
#[path = "strategy_tests.rs"]
pub(crate) mod tests;
