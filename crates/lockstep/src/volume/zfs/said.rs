//! What ZFS prints when it refuses: everything that is recognized in its messages, in one place.
//!
//! Its exit status doesn't distinguish reasons, so its messages must. Those of several implementations are recognized
//! side by side. A message that isn't recognized is an error and is shown as it is. `testdata/zfs-output/` has what
//! they print, and the tests next to this file go through all of it.

use crate::process::CommandError;

/// The dataset, snapshot, bookmark or pool doesn't exist. zfs-fuse and OpenZFS both say "dataset does not exist";
/// OpenZFS also says "could not find any snapshots to destroy".
pub(super) fn is_absent(error: &CommandError) -> bool {
    let text = error.stderr();
    text.contains("does not exist")
        || text.contains("could not find any snapshots")
        || text.contains("no such pool")
}

/// The pool is suspended: its disks are gone.
pub(super) fn is_suspended(error: &CommandError) -> bool {
    error.stderr().contains("pool I/O is currently suspended")
}

/// Something with that name exists already.
pub(super) fn is_taken(error: &CommandError) -> bool {
    error.stderr().contains("exists")
}

/// It takes one snapshot per command but was given several; then it has made none.
pub(super) fn wants_one(error: &CommandError) -> bool {
    error.stderr().contains("too many arguments")
}

/// It is in use, or held: zfs-fuse and OpenZFS say "dataset is busy", and both pass on umount's message ("target is
/// busy").
pub(super) fn is_busy(error: &CommandError) -> bool {
    error.stderr().contains("busy")
}

/// Something couldn't be read or written. zfs-fuse says it, too, where a file system is being unmounted.
pub(super) fn is_io_error(error: &CommandError) -> bool {
    error.stderr().contains("I/O error")
}

/// It isn't permitted. For root only a mount is ever refused like that, because the loaded key isn't the dataset's.
pub(super) fn is_denied(error: &CommandError) -> bool {
    error.stderr().contains("ermission denied")
}

/// One of the snapshots has the hold already. OpenZFS then holds none of them.
pub(super) fn is_held_already(error: &CommandError) -> bool {
    error.stderr().contains("tag already exists")
}

/// It doesn't know one of the properties.
pub(super) fn knows_no_property(error: &CommandError) -> bool {
    error.stderr().contains("invalid property")
}

/// It doesn't know one of the kinds of datasets.
pub(super) fn knows_no_type(error: &CommandError) -> bool {
    error.stderr().contains("invalid type")
}

/// It doesn't know the command.
pub(super) fn knows_no_command(error: &CommandError) -> bool {
    error.stderr().contains("unrecognized command")
}

#[cfg(test)]
#[path = "said_tests.rs"]
mod tests;
