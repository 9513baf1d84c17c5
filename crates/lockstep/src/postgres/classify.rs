//! What a file of a cluster is to a backup: pages to be checked, something that PostgreSQL never needs again, or
//! neither. Files are told apart by name alone, as PostgreSQL does (`basebackup.c`: excludeDirContents, excludeFiles,
//! unlogged relations; `relpath.c`; `fd.c`: RemovePgTempFiles).
//!
//! What could go wrong: leaving out a file that is needed is a loss that no checksum shows. So every file that isn't
//! known by its place and its name is kept.

use std::collections::BTreeSet;
use std::path::Path;

use crate::names::is_number;
use crate::plan::layout::PartKind;

/// What a regular file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A file of a relation: pages of this segment (0 for `16384`, 3 for `16384.3`).
    Pages(u32),
    /// Its content isn't stored.
    LeftOut(Why),
    /// Anything else.
    Other,
}

/// Why a file's content isn't stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// WAL: the set carries the segments that it needs.
    Wal,
    /// An unlogged relation: recovery recreates it from its init fork.
    Unlogged,
    /// Temporary files and relations: removed at startup.
    Temporary,
    /// State of the running server: recreated at startup, emptied by a restore.
    ServerState,
}

impl Why {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Wal => "pg_wal: the set carries its own segments",
            Self::Unlogged => "unlogged relations: recovery makes them anew",
            Self::Temporary => "temporary files",
            Self::ServerState => "state of the running server",
        }
    }
}

/// Folders of the data directory whose contents PostgreSQL recreates (excludeDirContents in `basebackup.c`): they
/// aren't stored, and a restore empties them.
pub const STATE: [&str; 7] = [
    "pg_replslot",
    "pg_stat_tmp",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];

/// A folder of a part, as far as it matters for the files in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// A database's folder, or `global`.
    Relations,
    /// Everything in and below it is left out.
    LeftOut(Why),
    /// The data directory itself.
    Root,
    /// Anything else.
    Plain,
}

/// Whether this is a name that PostgreSQL gives its folder in a tablespace: `PG_15_202209061`. Everything else in the
/// tablespace isn't PostgreSQL's. (TABLESPACE_VERSION_DIRECTORY of src/include/common/relpath.h)
fn is_version(name: &str) -> bool {
    let parts = name.strip_prefix("PG_").and_then(|rest| rest.split_once('_'));
    parts.is_some_and(|(major, catalog)| {
        is_number(&major.replacen('.', "", 1)) && is_number(catalog)
    })
}

/// What a folder is, by its path inside the part.
#[must_use]
pub fn folder(part: &PartKind, inside: &Path) -> Folder {
    let names: Vec<&str> = inside.iter().map(|name| name.to_str().unwrap_or("?")).collect();
    let of_tablespace = |names: &[&str]| match names {
        [version, temporary, ..] if is_version(version) && temporary.starts_with("pgsql_tmp") => {
            Folder::LeftOut(Why::Temporary)
        }
        [version, database] if is_version(version) && is_number(database) => Folder::Relations,
        _ => Folder::Plain,
    };
    match part {
        PartKind::Wal => Folder::LeftOut(Why::Wal),
        PartKind::Tablespace { .. } => of_tablespace(&names),
        PartKind::Data => match names.as_slice() {
            [] => Folder::Root,
            ["global"] => Folder::Relations,
            ["base", temporary, ..] if temporary.starts_with("pgsql_tmp") => {
                Folder::LeftOut(Why::Temporary)
            }
            ["base", database] if is_number(database) => Folder::Relations,
            // A tablespace of allow_in_place_tablespaces.
            ["pg_tblspc", oid, rest @ ..] if is_number(oid) => of_tablespace(rest),
            [state, ..] if STATE.contains(state) => Folder::LeftOut(Why::ServerState),
            _ => Folder::Plain,
        },
    }
}

/// Classifies the files of a folder, in the given order. `recovers`: the restored cluster goes through recovery,
/// which recreates unlogged relations; after a clean shutdown they keep their rows.
pub fn files<'a>(
    folder: Folder,
    names: &'a [String],
    recovers: bool,
) -> impl Iterator<Item = Class> + use<'a> {
    let unlogged: BTreeSet<&str> = match folder {
        Folder::Relations if recovers => {
            names.iter().filter_map(|name| name.strip_suffix("_init")).collect()
        }
        _ => BTreeSet::new(),
    };
    names.iter().map(move |name| match folder {
        Folder::LeftOut(why) => Class::LeftOut(why),
        Folder::Root if ["postmaster.pid", "postmaster.opts"].contains(&name.as_str()) => {
            Class::LeftOut(Why::ServerState)
        }
        Folder::Relations => relation(name, &unlogged),
        Folder::Root | Folder::Plain => Class::Other,
    })
}

fn relation(name: &str, unlogged: &BTreeSet<&str>) -> Class {
    if name.starts_with("pg_internal.init") {
        return Class::LeftOut(Why::ServerState);
    }
    // t3_16385: the temporary table of a session.
    let temporary = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    if let Some((backend, rest)) = temporary
        && is_number(backend)
        && file(rest).is_some()
    {
        return Class::LeftOut(Why::Temporary);
    }
    match file(name) {
        None => Class::Other,
        Some((number, fork, _)) if fork != "init" && unlogged.contains(number) => {
            Class::LeftOut(Why::Unlogged)
        }
        Some((_, _, segment)) => Class::Pages(segment),
    }
}

/// Splits `16384_vm.2` into 16384, `vm`, 2.
fn file(name: &str) -> Option<(&str, &str, u32)> {
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (number, fork) = name.split_once('_').unwrap_or((name, ""));
    (is_number(number) && ["", "fsm", "vm", "init"].contains(&fork))
        .then_some((number, fork, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(folder: Folder, names: &[&str], recovers: bool) -> Vec<Class> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        files(folder, &names, recovers).collect()
    }

    #[test]
    fn folders_are_known_by_their_place() {
        let data = |path: &str| folder(&PartKind::Data, Path::new(path));
        assert_eq!(data(""), Folder::Root);
        assert_eq!(data("base/5"), Folder::Relations);
        assert_eq!(data("global"), Folder::Relations);
        assert_eq!(data("base/pgsql_tmp/x"), Folder::LeftOut(Why::Temporary));
        assert_eq!(data("pg_replslot/a/b"), Folder::LeftOut(Why::ServerState));
        assert_eq!(data("pg_tblspc/16400/PG_15_202209061/5"), Folder::Relations);
        for kept in ["base", "pg_xact", "pg_multixact/members", "log", "pg_logical", "pg_twophase"]
        {
            assert_eq!(data(kept), Folder::Plain, "{kept}");
        }
        let space = PartKind::Tablespace { oid: 1, name: None };
        let space = |path: &str| folder(&space, Path::new(path));
        assert_eq!(space("PG_15_202209061/5"), Folder::Relations);
        assert_eq!(space("PG_15_202209061/pgsql_tmp"), Folder::LeftOut(Why::Temporary));
        // Somebody's own files next to PostgreSQL's.
        for kept in
            ["global", "PG_/5", "PG_15/5", "PG_dumps_2024/5", "PG_15_/pgsql_tmp", "PG_15_old/5"]
        {
            assert_eq!(space(kept), Folder::Plain, "{kept}");
        }
        assert_eq!(folder(&PartKind::Wal, Path::new("x")), Folder::LeftOut(Why::Wal));
    }

    #[test]
    fn relations_are_known_by_their_names() {
        let names =
            ["16384", "16384.3", "16384_fsm", "16384_vm.1", "PG_VERSION", "pg_filenode.map"];
        assert_eq!(
            classes(Folder::Relations, &names, true),
            [
                Class::Pages(0),
                Class::Pages(3),
                Class::Pages(0),
                Class::Pages(1),
                Class::Other,
                Class::Other
            ]
        );
        let left = |why| Class::LeftOut(why);
        assert_eq!(
            classes(Folder::Relations, &["t3_16385", "t12_7_fsm.1", "pg_internal.init.99"], true),
            [left(Why::Temporary), left(Why::Temporary), left(Why::ServerState)]
        );
        for odd in ["16384_x", "16384.x", "x16384", "t_16385", "tx_1", "16384.1.2", "_fsm", ""] {
            assert_eq!(classes(Folder::Relations, &[odd], true), [Class::Other], "{odd}");
        }
    }

    #[test]
    fn unlogged_relations_are_left_out_but_for_their_init_fork() {
        let names = ["7", "7_init", "7_vm", "7.1", "77"];
        let left = Class::LeftOut(Why::Unlogged);
        assert_eq!(
            classes(Folder::Relations, &names, true),
            [left, Class::Pages(0), left, left, Class::Pages(0)]
        );
        assert!(!classes(Folder::Relations, &names, false).contains(&left));
    }
}
