//! What others have made meanwhile of the folders of a killed restore.
//!
//! What could go wrong: a restore is killed, and somebody gives up on it, removes its folder and makes a cluster there;
//! or a folder that was meant for a tablespace becomes that of another cluster. Lockstep's next command would remove
//! what they hold. So what is in DIR is only removed while the restore's marker is there, and outside DIR nothing is
//! but empty folders: a restore writes into those only once the data directory is there, and then all of it stays
//! for `--delta`.

use std::path::{Path, PathBuf};

use super::marker::Marker;
use super::{gone_on, tree};
use crate::error::Result;
use crate::set::journal::RestoreJournal;

/// Whether the restore's marker is in DIR, or isn't needed: a restore from snapshots writes none, and one that makes
/// neither datasets nor folders removes little.
pub(super) fn are_away(entry: &RestoreJournal) -> bool {
    let needs_none = entry.received.is_empty() && entry.filled.is_empty();
    let is_its = |marker: Marker| marker.restore == entry.id;
    needs_none || gone_on::directory(entry).and_then(Marker::read).is_some_and(is_its)
}

/// Returns the folders in DIR that it has written files into, if it has begun with that.
pub(super) fn written(entry: &RestoreJournal) -> impl Iterator<Item = &PathBuf> {
    let directory = gone_on::directory(entry);
    let is_inside = move |path: &Path| directory.is_some_and(|it| path.starts_with(it));
    entry.filled.iter().filter(move |path| entry.keeps_files && is_inside(path))
}

/// Whether a restore of files has lost its marker, and there is something in its folders.
pub(super) fn have_made_something(entry: &RestoreJournal) -> Result<bool> {
    if are_away(entry) {
        return Ok(false);
    }
    for path in written(entry) {
        if !tree::list(path)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
