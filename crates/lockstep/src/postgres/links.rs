//! Symbolic links in a data directory, beside those that PostgreSQL itself makes.
//!
//! pg_wal and the links of pg_tblspc are parts of the cluster, and are frozen with it. Any other link
//! leads to files that are in no snapshot of the set, and in a restored cluster to those of the live
//! one, which it would write to. pg_basebackup passes over such links with a warning (sendDir in
//! basebackup.c); here they are refused.

use std::fs::DirEntry;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ship::classify::STATE;

/// A link that belongs to no part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Where it lies.
    pub path: PathBuf,
    /// What is written in it.
    pub target: PathBuf,
}

/// What a server writes at its start, and removes at its end.
const OF_THE_START: [&str; 3] = ["postmaster.pid", "postmaster.opts", "current_logfiles"];
/// How configuration, keys and certificates, and log_directory are called. A restore looks after the
/// first; the others are the host's.
const OF_THE_HOST: [&str; 9] =
    [".conf", ".d", ".crt", ".key", ".pem", ".crl", ".cer", "log", "logs"];

/// The links in `data_directory`, in its folder of databases, in `global` and in the folders of
/// PostgreSQL's own (`pg_xact`, `pg_multixact`), that lead to something which the cluster needs.
/// The folders of the databases aren't listed: they hold a file for each relation.
///
/// # Errors
/// When a folder can't be listed.
pub fn strays(data_directory: &Path) -> Result<Vec<Link>> {
    let mut found = Vec::new();
    for entry in list(data_directory)? {
        let name = entry.file_name();
        // PostgreSQL's own names are ASCII.
        let name = name.to_str().unwrap_or("?");
        if is_free(name) {
            continue;
        }
        if let Some(link) = link(&entry)? {
            found.push(link);
        } else if name == "base" || name == "global" || name.starts_with("pg_") {
            for inner in list(&entry.path())? {
                // Temporary files may lie on a faster disk, and are removed at each start.
                let is_temporary = inner.file_name().to_string_lossy().starts_with("pgsql_tmp");
                if !is_temporary {
                    found.extend(link(&inner)?);
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What may lead elsewhere: the parts, which discovery follows, and what no restored cluster needs.
fn is_free(name: &str) -> bool {
    let lists: [&[&str]; 3] = [&["pg_wal", "pg_tblspc"], &STATE, &OF_THE_START];
    lists.iter().any(|list| list.contains(&name))
        || OF_THE_HOST.iter().any(|end| name.ends_with(end))
}

/// The entries of a folder; none where it is a file, or went meanwhile.
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
        std::fs::write(dir.join("PG_VERSION"), "15\n").unwrap();
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
            "extension_data",
        ];
        for name in free.iter().chain(&needed) {
            symlink("/fast/elsewhere", dir.join(name)).unwrap();
        }
        // No look into a database.
        symlink("/fast/elsewhere", dir.join("base/5/16390")).unwrap();
        let found = strays(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|link| link.path.strip_prefix(&dir).unwrap().to_str().unwrap())
            .collect();
        let mut expected = needed.to_vec();
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert!(found.iter().all(|link| link.target == Path::new("/fast/elsewhere")));
    }
}
