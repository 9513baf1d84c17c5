//! Refuses to destroy what is on a pool that isn't there: its datasets would come back with the pool, and nobody would
//! know them any more.

use crate::error::{Error, Result};
use crate::volume::zfs::{Away, DatasetName, Zfs};

/// Refuses it, unless each such pool is said to be gone for good. A suspended one is only out of reach, so nothing on
/// it can be given up. `what` is named for people; `give_up` is the command that says it of a pool.
///
/// # Errors
/// When a pool isn't imported or is suspended, or ZFS fails.
pub(crate) fn refuse<'a>(
    zfs: &Zfs,
    datasets: impl IntoIterator<Item = &'a DatasetName>,
    what: &str,
    give_up: &str,
    is_lost: bool,
) -> Result<()> {
    for (pool, away) in zfs.all_away(datasets.into_iter().map(DatasetName::pool))? {
        let state = away.state();
        let or_else = match away {
            Away::NotImported if is_lost => {
                tracing::warn!(
                    "pool \"{pool}\" {state}: if it comes back, it still has what {what} has there"
                );
                continue;
            }
            Away::NotImported => format!("; if the pool is gone for good: {give_up}"),
            Away::Suspended => String::new(),
        };
        let refused = format!("{what} can't be destroyed: pool \"{pool}\" {state}");
        return Err(Error::failed(refused).with_hint(format!(
            "{}, and then run it again: nothing was changed{or_else}",
            away.command(&pool)
        )));
    }
    Ok(())
}
