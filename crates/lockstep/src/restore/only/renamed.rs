//! Databases that got the name of a wanted one after the set's checkpoint: `--only-database` goes by the names that the
//! set has, and recovery may go on for days.
//!
//! What could go wrong: a new copy of a database is filled under another name, and takes the old one's place with ALTER
//! DATABASE … RENAME. At the end of recovery what was restored has another name, or is dropped; what has the name is
//! holes; and what is said to be not restored has other names by then.

use std::collections::BTreeSet;
use std::path::Path;

use pgfiles::RelationMap;
use pgfiles::database_catalog::{DatabaseRow, FIRST_NORMAL_OID, PG_DATABASE, databases};

use super::MAP;
use crate::files;
use crate::process::Credentials;
use crate::restore::{Problem, Request, Restored, What};

/// Returns a problem if a database of a wanted name isn't restored. The end of recovery has written pg_database to disk.
pub(in crate::restore) fn problem(request: &Request, restored: &Restored) -> Option<Problem> {
    let wanted = match &request.what {
        What::Clones { .. } => return None,
        What::Datasets { only, .. } | What::Files { only, .. } => &only.databases,
    };
    if wanted.is_empty() || !request.start {
        return None;
    }
    // One whose own tablespace isn't restored is named already.
    let is_told = |name: &&String| restored.not_restored.databases.contains(*name);
    let wanted: Vec<&str> =
        wanted.iter().filter(|name| !is_told(name)).map(String::as_str).collect();
    let data = &restored.placement.data;
    let cluster = Cluster { data, reader: files::reader_of(data).ok()? };
    let lost = lost(&wanted, &cluster.rows()?, |oid| cluster.has_hole(oid));
    if lost.is_empty() {
        return None;
    }
    let names = |all: &BTreeSet<String>| {
        all.iter().map(|name| format!("\"{}\"", name.escape_debug())).collect::<Vec<_>>().join(", ")
    };
    let what = lost.iter().map(|(name, before)| {
        let before = match before.is_empty() {
            true => String::new(),
            false => format!(" (before: {})", names(before)),
        };
        format!("database \"{name}\"{before} isn't restored")
    });
    Some(Problem {
        what: format!(
            "{}: it got this name after the set's checkpoint, by whose names --only-database goes",
            what.collect::<Vec<_>>().join(", ")
        ),
        hint: "restore again with --only-database for the names before as well, or without --only-database. Names have changed: look into pg_database before you drop what isn't restored".into(),
    })
}

/// Returns each wanted name that a database without content has, and the other names of that. A pure function.
fn lost(
    wanted: &[&str],
    rows: &BTreeSet<DatabaseRow>,
    has_hole: impl Fn(u32) -> bool,
) -> Vec<(String, BTreeSet<String>)> {
    let text = |row: &DatabaseRow| String::from_utf8_lossy(&row.name).into_owned();
    let is_wanted = |row: &&DatabaseRow| {
        row.oid >= FIRST_NORMAL_OID && wanted.iter().any(|name| name.as_bytes() == &row.name[..])
    };
    let found = rows.iter().filter(is_wanted).filter(|row| has_hole(row.oid));
    let with_others = found.map(|row| {
        let others = rows.iter().filter(|other| other.oid == row.oid && other.name != row.name);
        (text(row), others.map(text).collect())
    });
    with_others.collect()
}

/// A restored cluster's files, read with the rights of their owner.
struct Cluster<'a> {
    data: &'a Path,
    reader: Option<Credentials>,
}

impl Cluster<'_> {
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        files::read_as(path, self.reader).ok().flatten()
    }

    /// Returns the versions of the rows in its pg_database; `None` if that can't be read.
    fn rows(&self) -> Option<BTreeSet<DatabaseRow>> {
        let global = self.data.join("global");
        let map = RelationMap::parse(&self.read(&global.join(MAP))?).ok()?;
        let file = map.file_of(PG_DATABASE)?.to_string();
        databases(&self.read(&global.join(file))?).ok()
    }

    /// Whether a database is there, and nobody can connect to it: its own pg_filenode.map is a hole, or was copied from
    /// one.
    fn has_hole(&self, oid: u32) -> bool {
        let mut folders = vec![self.data.join("base")];
        for tablespace in files::list(&self.data.join("pg_tblspc")).unwrap_or_default() {
            folders.extend(files::list(&tablespace).unwrap_or_default());
        }
        let mut maps = folders.iter().map(|folder| folder.join(oid.to_string()).join(MAP));
        maps.any(|map| self.read(&map).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_got_a_wanted_name_and_is_a_hole_is_lost() {
        let row = |oid, name: &str| DatabaseRow { oid, name: name.into() };
        let rows = BTreeSet::from([
            row(5, "postgres"),
            row(16_384, "shop"),
            row(16_385, "shop_new"),
            row(16_385, "shop"),
            row(16_386, "crm"),
        ]);
        let of = |wanted: &[&str], holes: &[u32]| lost(wanted, &rows, |oid| holes.contains(&oid));
        let before = BTreeSet::from(["shop_new".to_owned()]);
        assert_eq!(of(&["shop", "postgres"], &[16_385, 16_386]), [("shop".to_owned(), before)]);
        // It was renamed before the set: then it is restored.
        assert_eq!(of(&["shop"], &[16_386]), []);
    }

    #[test]
    fn a_hole_is_known_by_its_map() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path();
        let reader = files::reader_of(data).unwrap();
        let cluster = Cluster { data, reader };
        for (folder, bytes) in [
            ("base/16384", [1_u8; 512]),
            ("base/16385", [0; 512]),
            ("pg_tblspc/16400/PG_17_202406281/16386", [0; 512]),
        ] {
            std::fs::create_dir_all(data.join(folder)).unwrap();
            std::fs::write(data.join(folder).join(MAP), bytes).unwrap();
        }
        let holes: Vec<u32> = (16_384..16_388).filter(|oid| cluster.has_hole(*oid)).collect();
        assert_eq!(holes, [16_385, 16_386]);
        assert_eq!(cluster.rows(), None);
    }
}
