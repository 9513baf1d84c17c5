//! Symbolic links in a data directory, other than those that PostgreSQL itself makes.
//!
//! pg_wal and the links of pg_tblspc are parts of the cluster and are frozen with it. Any other link leads to files
//! that are in no snapshot of the set, and in a restored cluster it leads to those of the live one. The backup is
//! refused if PostgreSQL itself would write there, because the name is one of its own or because the link leads into
//! a part of the cluster. Other things that people keep in a data directory (`ssl`, `backup.tar`) are of no concern
//! to PostgreSQL; they are only reported. pg_basebackup skips all such links with a warning (sendDir in
//! basebackup.c).

use std::fs::DirEntry;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::classify::STATE;
use crate::error::{Error, Result};

/// A link that belongs to no part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its path.
    pub path: PathBuf,
    /// The target written in it.
    pub target: PathBuf,
}

/// The folder of the tablespaces' links. It isn't a link itself.
const TABLESPACES: &str = "pg_tblspc";
/// Files that a server writes at startup and removes at shutdown.
const OF_THE_START: [&str; 3] = ["postmaster.pid", "postmaster.opts", "current_logfiles"];
/// Ends of the names of configuration files, keys, certificates and log_directory. A restore takes care of the
/// configuration; the others belong to the host.
const OF_THE_HOST: [&str; 9] =
    [".conf", ".d", ".crt", ".key", ".pem", ".crl", ".cer", "log", "logs"];

/// The links of a data directory that belong to no part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links {
    /// The cluster needs their targets, or would write there.
    pub strays: Vec<Link>,
    /// They don't concern PostgreSQL.
    pub others: Vec<Link>,
}

/// The links in `data_directory`, in its folder of databases, in `global`, in PostgreSQL's own folders (`pg_xact`,
/// `pg_multixact`) and in the tablespaces that lead to something the cluster needs. The folders of the databases aren't
/// listed: they have a file for each relation.
///
/// # Errors
/// When a folder can't be listed.
pub fn find(data_directory: &Path) -> Result<Links> {
    let mut found = Links::default();
    let parts = parts(data_directory);
    for entry in list(data_directory)? {
        let name = entry.file_name();
        // PostgreSQL's own names are ASCII.
        let name = name.to_str().unwrap_or("?");
        // A restore turns the links of tablespaces; behind a link they would be the live cluster's.
        let are_elsewhere = name == TABLESPACES && link(&entry)?.is_some();
        if is_free(name) && !are_elsewhere {
            continue;
        }
        if let Some(link) = link(&entry)? {
            match is_own(name) || leads_into(&link, data_directory, &parts) {
                true => found.strays.push(link),
                false => found.others.push(link),
            }
        } else if is_own(name) {
            for inner in list(&entry.path())? {
                if !is_temporary(&inner) {
                    found.strays.extend(link(&inner)?);
                }
            }
        }
    }
    for entry in list(&data_directory.join(TABLESPACES))? {
        if entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()) {
            found.strays.extend(in_tablespace(&entry.path())?);
        }
    }
    found.strays.sort();
    found.others.sort();
    Ok(found)
}

/// The links in the place of a tablespace's folder for a version (TABLESPACE_VERSION_DIRECTORY in relpath.h), or of a
/// database's in it: a copy of the tablespace has them, and would write to the live one's files.
///
/// # Errors
/// When a folder can't be listed.
pub(crate) fn in_tablespace(folder: &Path) -> Result<Vec<Link>> {
    let mut found = Vec::new();
    for version in list(folder)? {
        if !version.file_name().as_encoded_bytes().starts_with(b"PG_") {
            continue;
        }
        if let Some(link) = link(&version)? {
            found.push(link);
            continue;
        }
        for inner in list(&version.path())? {
            if !is_temporary(&inner) {
                found.extend(link(&inner)?);
            }
        }
    }
    Ok(found)
}

/// Temporary files may be on a faster disk; they are removed at each startup.
fn is_temporary(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b"pgsql_tmp")
}

/// A name that PostgreSQL itself makes in a data directory and uses while it runs.
fn is_own(name: &str) -> bool {
    const OWN: [&str; 10] = [
        "base",
        "global",
        "PG_VERSION",
        "backup_label",
        "backup_manifest",
        "tablespace_map",
        "standby.signal",
        "recovery.signal",
        "backup_label.old",
        "tablespace_map.old",
    ];
    OWN.contains(&name) || name.starts_with("pg_")
}

/// Where the cluster writes: its parts, with links resolved.
fn parts(data_directory: &Path) -> Vec<PathBuf> {
    let tablespaces = super::instance::tablespace_links(data_directory).unwrap_or_default();
    let all = [data_directory.to_path_buf(), data_directory.join("pg_wal")].into_iter();
    let all = all.chain(tablespaces.into_iter().map(|(_, path)| path));
    all.filter_map(|path| std::fs::canonicalize(path).ok()).collect()
}

/// Whether it leads into a part of the live cluster, and would from a restored one too. A relative link that stays in
/// the data directory leads to the restored cluster's own files.
fn leads_into(link: &Link, data_directory: &Path, parts: &[PathBuf]) -> bool {
    let Ok(target) = std::fs::canonicalize(&link.path) else { return false };
    let own = std::fs::canonicalize(data_directory);
    let stays = link.target.is_relative() && own.is_ok_and(|own| target.starts_with(own));
    !stays && parts.iter().any(|part| target.starts_with(part))
}

/// Names that may be links: the parts, which discovery follows, and what no restored cluster needs.
fn is_free(name: &str) -> bool {
    let lists: [&[&str]; 3] = [&["pg_wal", TABLESPACES], &STATE, &OF_THE_START];
    lists.iter().any(|list| list.contains(&name))
        || OF_THE_HOST.iter().any(|end| name.ends_with(end))
}

/// The entries of a folder; none if it is a file, or has gone meanwhile.
fn list(folder: &Path) -> Result<Vec<DirEntry>> {
    match std::fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        other => other.and_then(Iterator::collect).map_err(Error::io("list", folder)),
    }
}

fn link(entry: &DirEntry) -> Result<Option<Link>> {
    let path = entry.path();
    match entry.file_type() {
        Ok(kind) if kind.is_symlink() => {}
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("look at", path)(e)),
        _ => return Ok(None),
    }
    let target = std::fs::read_link(&path).map_err(Error::io("read", &path))?;
    Ok(Some(Link { path, target }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_the_cluster_needs_is_told_from_what_it_does_not() {
        let dir = std::env::temp_dir().join(format!("lockstep-links-{}", std::process::id()));
        for folder in ["base/5", "global", "pg_multixact", "pg_replslot", "pg_tblspc"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let free = [
            "pg_wal",
            "pg_tblspc/16400",
            "pg_stat_tmp",
            "pg_notify",
            "pg_replslot/standby",
            "log",
            "pg_log",
            "server logs",
            "postgresql.conf",
            "conf.d",
            "server.crt",
            "server.key",
            "base/pgsql_tmp",
            "postmaster.opts",
        ];
        let needed = [
            "base/16384",
            "global/1262",
            "pg_multixact/members",
            "pg_xact",
            "pg_logical",
            "PG_VERSION",
            "live",
        ];
        // These don't concern PostgreSQL.
        let others = ["backup.tar", "certs", "extension_data", "krb5.keytab", "own", "ssl"];
        let target = |name: &str| match name {
            "live" => dir.join("global"),
            "own" => "global".into(),
            _ => "/fast/elsewhere".into(),
        };
        for name in free.iter().chain(&needed).chain(&others) {
            symlink(target(name), dir.join(name)).unwrap();
        }
        // Databases aren't searched.
        symlink("/fast/elsewhere", dir.join("base/5/16390")).unwrap();
        let found = find(&dir).unwrap();
        // The folder of the tablespaces' links, and not one of them.
        std::fs::rename(dir.join("pg_tblspc"), dir.join("links")).unwrap();
        symlink(dir.join("links"), dir.join("pg_tblspc")).unwrap();
        let moved = find(&dir).unwrap().strays;
        let live = target("live");
        std::fs::remove_dir_all(&dir).unwrap();
        let names = |links: &[Link]| {
            let name = |link: &Link| link.path.strip_prefix(&dir).unwrap().display().to_string();
            links.iter().map(name).collect::<Vec<_>>()
        };
        let mut expected = needed.to_vec();
        expected.sort_unstable();
        assert_eq!(names(&found.strays), expected);
        assert_eq!(names(&found.others), others);
        let leads =
            |link: &Link| link.target == Path::new("/fast/elsewhere") || link.target == live;
        assert!(found.strays.iter().all(leads));
        expected.push("pg_tblspc");
        expected.sort_unstable();
        assert_eq!(names(&moved), expected);
    }

    #[test]
    fn a_link_in_a_tablespace_is_found() {
        let scratch = tempfile::tempdir().unwrap();
        let (data, place) = (scratch.path().join("data"), scratch.path().join("ts"));
        for folder in ["data/pg_tblspc/8/PG_15_202209061", "ts/PG_15_202209061/5", "ts/notes"] {
            std::fs::create_dir_all(scratch.path().join(folder)).unwrap();
        }
        symlink(&place, data.join("pg_tblspc/7")).unwrap();
        // A tablespace that was just dropped.
        symlink(scratch.path().join("gone"), data.join("pg_tblspc/9")).unwrap();
        for free in ["PG_15_202209061/pgsql_tmp", "notes/link"] {
            symlink("/fast/elsewhere", place.join(free)).unwrap();
        }
        assert_eq!(find(&data).unwrap(), Links::default());
        let strays = ["7/PG_15_202209061/6", "7/PG_16_202307071", "8/PG_15_202209061/5"];
        let strays = strays.map(|name| data.join("pg_tblspc").join(name));
        for stray in &strays {
            symlink("/fast/elsewhere", stray).unwrap();
        }
        let found = find(&data).unwrap().strays.into_iter().map(|link| link.path);
        assert_eq!(found.collect::<Vec<_>>(), strays);
    }
}
