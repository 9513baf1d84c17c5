//! What ZFS says when it says no: all that is recognized of its words, in one place.
//!
//! Its exit status tells no reason from another, so its words have to. Those of several
//! implementations are recognized side by side; what isn't recognized is an error and is shown as it
//! came. `testdata/zfs-output/` holds what they print, and the tests beside this file go through all
//! of it.

use crate::process::CommandError;

/// The dataset, snapshot, bookmark or pool isn't there. Worded alike in zfs-fuse ("dataset does not
/// exist") and OpenZFS (also "could not find any snapshots to destroy").
pub(super) fn is_absent(error: &CommandError) -> bool {
    let text = error.stderr();
    text.contains("does not exist")
        || text.contains("could not find any snapshots")
        || text.contains("no such pool")
}

/// Something of that name is there already.
pub(super) fn is_taken(error: &CommandError) -> bool {
    error.stderr().contains("exists")
}

/// It takes one snapshot a command and was given several; it has made none then.
pub(super) fn wants_one(error: &CommandError) -> bool {
    error.stderr().contains("too many arguments")
}

/// It is in use, or held: zfs-fuse and OpenZFS say "dataset is busy", both also pass on what umount
/// says ("target is busy").
pub(super) fn is_busy(error: &CommandError) -> bool {
    error.stderr().contains("busy")
}

/// It may not: as root of a mount alone, and then the key that is loaded isn't the dataset's.
pub(super) fn is_denied(error: &CommandError) -> bool {
    error.stderr().contains("ermission denied")
}

/// One of the snapshots carries the hold already. OpenZFS holds none of them then.
pub(super) fn is_held_already(error: &CommandError) -> bool {
    error.stderr().contains("tag already exists")
}

/// A property that was asked for isn't one that it knows.
pub(super) fn knows_no_property(error: &CommandError) -> bool {
    error.stderr().contains("invalid property")
}

/// A kind of dataset that was asked for isn't one that it knows.
pub(super) fn knows_no_type(error: &CommandError) -> bool {
    error.stderr().contains("invalid type")
}

/// The command isn't one that it knows.
pub(super) fn knows_no_command(error: &CommandError) -> bool {
    error.stderr().contains("unrecognized command")
}

#[cfg(test)]
#[path = "said_tests.rs"]
mod tests;
