//! Whether the WAL that is replayed brings whole pages where a restore of a part has holes.
//!
//! What could go wrong: with full_page_writes off the first change to a page behind a checkpoint is in the
//! WAL alone, not the page. Replayed into a hole it finds none, and recovery ends with "WAL contains
//! references to invalid pages", after all was fetched.

use pgfiles::control_file::ControlFile;

use super::only::Global;
use crate::error::Result;
use crate::plan::refusal::Refusal;
use crate::plan::strategy::Strategy;
use crate::postgres::target::{Recovery, Target};
use crate::repository::{Repository, Shipped};

/// pg_control has 8 KiB.
const MOST_OF_CONTROL: u64 = 64 << 10;

/// Refuses a set whose own WAL needs pages that would be holes, and warns where only what comes behind it
/// may.
pub(super) fn check(repository: &Repository, shipped: &Shipped, recovery: &Recovery) -> Result<()> {
    let mut global = Global::open(repository, shipped)?;
    let bytes = global.read("pg_control", MOST_OF_CONTROL)?;
    let control = ControlFile::parse(&bytes)
        .map_err(|e| global.strange("pg_control", "pg_control").because(e))?;
    let manifest = &shipped.manifest;
    match replayed(control.checkpoint_copy.full_page_writes, manifest.strategy, recovery) {
        Replayed::Whole => {}
        Replayed::WholeAtFirst => tracing::warn!(
            set = %manifest.set,
            "full_page_writes was off: where WAL from --restore-command changes what isn't restored, recovery ends"
        ),
        Replayed::Changes => {
            return Err(Refusal::PagesNotWhole { set: manifest.set.to_string() }.into());
        }
    }
    Ok(())
}

/// What recovery replays onto a page that is a hole.
#[derive(Debug, PartialEq, Eq)]
enum Replayed {
    /// The whole page first, or nothing.
    Whole,
    /// That is so of the set's own WAL.
    WholeAtFirst,
    /// A change to what was there.
    Changes,
}

fn replayed(full_page_writes: bool, strategy: Strategy, recovery: &Recovery) -> Replayed {
    if full_page_writes {
        return Replayed::Whole;
    }
    // pg_backup_start has whole pages written until pg_backup_stop, whatever the setting (xlog.c); behind a
    // clean shutdown there is no WAL.
    let own = strategy == Strategy::Label || recovery.set_is_shut_down;
    let goes_on = recovery.restore_command.is_some() && recovery.target != Target::Immediate;
    match (own, goes_on) {
        (false, _) => Replayed::Changes,
        (true, true) => Replayed::WholeAtFirst,
        (true, false) => Replayed::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_label_or_a_clean_shutdown_does_without_full_page_writes() {
        let own = Recovery::default();
        let archive = Recovery { restore_command: Some("cp".into()), ..Recovery::default() };
        let shut_down = Recovery { set_is_shut_down: true, ..Recovery::default() };
        let at_once = Recovery { target: Target::Immediate, ..archive.clone() };
        for strategy in [Strategy::Label, Strategy::Atomic, Strategy::Ordered, Strategy::Cold] {
            assert_eq!(replayed(true, strategy, &archive), Replayed::Whole);
        }
        for strategy in [Strategy::Atomic, Strategy::Ordered, Strategy::Cold] {
            assert_eq!(replayed(false, strategy, &own), Replayed::Changes, "{strategy}");
        }
        assert_eq!(replayed(false, Strategy::Cold, &shut_down), Replayed::Whole);
        assert_eq!(replayed(false, Strategy::Label, &own), Replayed::Whole);
        assert_eq!(replayed(false, Strategy::Label, &at_once), Replayed::Whole);
        assert_eq!(replayed(false, Strategy::Label, &archive), Replayed::WholeAtFirst);
    }
}
