//! Removes journals of shipments that nobody will resume: those of sets that are gone from this host.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::set::journal::{self, RemovalJournal};
use crate::volume::zfs::Guid;

/// Removes the journals of snapshots that no set of this host has. If any set's manifest can't be read, nobody knows
/// which journals are its, and all stay.
///
/// # Errors
/// When the sets can't be read, or a journal can't be removed.
pub(super) fn sweep(cx: &Context) -> Result<()> {
    let folder = cx.state.path("shipping");
    let listed = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        listed => listed.map_err(Error::io("list", &folder))?,
    };
    // Listed before the sets: a set that is taken and shipped elsewhere meanwhile gets its journal after its
    // manifest.
    let listed: Vec<_> =
        listed.collect::<std::io::Result<_>>().map_err(Error::io("list", &folder))?;
    if listed.is_empty() {
        return Ok(());
    }
    let (sets, damaged) = cx.state.sets()?;
    if !damaged.is_empty() {
        return Ok(());
    }
    // A set that is being removed may be put back.
    let leaving = journal::read_all::<RemovalJournal>(&cx.state.path("removals"))?;
    let leaving = leaving.into_iter().flat_map(|(_, entry)| entry.snapshots);
    let here = sets.into_iter().flat_map(|set| set.volumes).map(|volume| volume.guid);
    let known: BTreeSet<Guid> = here.chain(leaving.map(|(_, guid)| guid)).collect();
    for entry in listed {
        let name = entry.file_name();
        let guid = name.to_str().and_then(guid_in);
        if guid.is_some_and(|guid| !known.contains(&guid)) {
            files::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Returns the GUID in a journal's name, or in the name of the journal that preceded it.
fn guid_in(name: &str) -> Option<Guid> {
    let (_, end) = name.rsplit_once('-')?;
    let (guid, rest) = end.split_once('.')?;
    guid.parse().ok().filter(|_| rest.starts_with("jsonl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_s_name_says_of_which_snapshot_it_is() {
        for (name, expected) in [
            ("off-site-tank=pg-data.1-17.jsonl", Some(17)),
            ("offsite-tank=pg@raw-18446744073709551615.jsonl.old", Some(u64::MAX)),
            ("offsite-tank-17.json", None),
            ("offsite-tank-x7.jsonl", None),
            ("offsite-.jsonl", None),
            ("17.jsonl", None),
        ] {
            assert_eq!(guid_in(name), expected.map(Guid::new), "{name}");
        }
    }
}
