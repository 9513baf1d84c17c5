//! Where a mirror's programs may write: its datasets, a few usual places, and the folders in `clone.writable` of its
//! cluster.
//!
//! What could go wrong: a tablespace that the primary makes later is replayed at the same path here. On the primary's
//! own host that is the primary's own folder, full of its files, and naming it in `clone.writable` removes what keeps
//! the mirror out of it. So a tablespace in such a folder must already be the mirror's own.

use std::path::{Path, PathBuf};

use super::create::refuse;
use super::record::{Home, Record};
use crate::context::program;
use crate::error::Result;
use crate::isolation::{self, Isolation};
use crate::names::is_number;
use crate::postgres::instance;

/// Where a mirror's server may write besides its own datasets: sockets, the log and spool of a restore_command.
const WRITABLE: [&str; 5] = ["/tmp", "/run", "/var/run", "/var/log", "/var/spool"];

/// How many levels below a writable folder are searched for tablespaces.
const DEPTH: u32 = 2;

/// The mount namespace of a mirror's programs; `None` if this user can't make one.
pub(super) fn isolation(home: &Home, record: &Record) -> Option<Isolation> {
    if !isolation::possible() {
        tracing::warn!(
            "not root: a tablespace made on the primary later would be made at its path here"
        );
        return None;
    }
    let mut own: Vec<_> = record.places.iter().map(|place| place.directory.clone()).collect();
    own.sort();
    let usual = WRITABLE.map(PathBuf::from).into_iter().chain(named(home, record));
    let mut writable: Vec<_> = usual.filter_map(|path| std::fs::canonicalize(path).ok()).collect();
    writable.sort();
    writable.dedup();
    let others = home.records().unwrap_or_default();
    let others = others.iter().filter(|other| other.name != record.name);
    let mut hidden: Vec<_> =
        others.flat_map(|other| other.places.iter().map(|place| place.directory.clone())).collect();
    hidden.sort();
    Some(Isolation { own, writable, hidden, ..Isolation::default() })
}

/// The writable folders of the configuration.
fn named(home: &Home, record: &Record) -> Vec<PathBuf> {
    let config = home.configuration().ok();
    let cluster = config.as_ref().and_then(|config| config.clusters.get(record.name.as_str()));
    cluster.map(|cluster| cluster.clones.writable.clone()).unwrap_or_default()
}

/// Refuses a folder of the configuration that holds a tablespace which isn't the mirror's. With `keeps_links`, the
/// tablespaces to which its pg_tblspc links now count as its own.
///
/// # Errors
/// [`crate::refusal::Refusal::Mirror`] with the folder; when pg_tblspc can't be listed.
pub(super) fn check(home: &Home, record: &Record, keeps_links: bool) -> Result<()> {
    let links = match keeps_links {
        true => instance::tablespace_links(&record.data())?,
        false => Vec::new(),
    };
    let places = record.places.iter().map(|place| place.directory.clone());
    let own = links.into_iter().map(|(_, target)| target).chain(places);
    let own: Vec<_> = own.filter_map(|path| std::fs::canonicalize(path).ok()).collect();
    for path in named(home, record).iter().filter_map(|path| std::fs::canonicalize(path).ok()) {
        if let Some(found) = strange_tablespace(&path, &own, DEPTH) {
            return refuse(
                format!(
                    "clone.writable of cluster \"{}\" lets the mirror write to \"{}\", and \"{}\" there is a tablespace that isn't this mirror's: its replay would write over another cluster's files",
                    record.name,
                    path.display(),
                    found.display()
                ),
                format!(
                    "take that folder out of clone.writable; `{} mirror recreate {}` makes a dataset for a tablespace that was made on the primary. Remove the folder by hand only where no server uses it",
                    program(),
                    record.name
                ),
            );
        }
    }
    Ok(())
}

/// Finds the folder that PostgreSQL makes in a tablespace (`PG_15_202209061`), in one that isn't in `own`. One
/// without files counts too: a primary on this host writes its first file there, as the mirror would.
fn strange_tablespace(folder: &Path, own: &[PathBuf], depth: u32) -> Option<PathBuf> {
    if own.iter().any(|path| path == folder) {
        return None;
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let (versions, others): (Vec<_>, Vec<_>) =
        folders.map(|entry| entry.path()).partition(|path| is_version(path));
    let below = |path: PathBuf| strange_tablespace(&path, own, depth - 1);
    let none = || if depth > 0 { others.into_iter().find_map(below) } else { None };
    versions.into_iter().next().or_else(none)
}

/// `PG_MAJOR_CATALOG` (TABLESPACE_VERSION_DIRECTORY in relpath.h).
fn is_version(path: &Path) -> bool {
    let name =
        path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("PG_"));
    let numbers = name.and_then(|name| name.split_once('_'));
    numbers.is_some_and(|(major, catalog)| is_number(major) && is_number(catalog))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tablespace_of_somebody_else_is_found() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("room");
        let (theirs, ours) = (top.join("a/theirs"), top.join("ours"));
        for folder in [&theirs, &ours] {
            std::fs::create_dir_all(folder.join("PG_15_202209061/5")).unwrap();
        }
        std::fs::create_dir_all(top.join("PG_notes_1")).unwrap();
        let own = [ours.clone()];
        assert_eq!(strange_tablespace(&ours, &own, DEPTH), None);
        let found = Some(theirs.join("PG_15_202209061"));
        assert_eq!(strange_tablespace(&top, &own, DEPTH), found);
        assert_eq!(strange_tablespace(&theirs, &own, 0), found);
        assert_eq!(strange_tablespace(&top, &own, 0), None, "too deep");
        assert_eq!(strange_tablespace(&top.join("nosuch"), &own, DEPTH), None);
    }
}
