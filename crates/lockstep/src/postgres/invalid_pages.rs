//! Pages that recovery wants to change but that don't exist, as reported in the server's log.
//!
//! Normally such a page ends recovery. A server that is started with `ignore_invalid_pages` (13 and later) continues
//! and warns of each one (report_invalid_page in xlogutils.c). Where files are holes there may be millions of
//! warnings, so only the folders are kept.

use std::collections::BTreeSet;

/// The name of PostgreSQL's setting.
pub const IGNORE: &str = "ignore_invalid_pages";

/// The folders with files that lacked pages, as PostgreSQL writes them: `base/16384`,
/// `pg_tblspc/16400/PG_17_202406281/16384`.
#[derive(Debug, Default)]
pub struct InvalidPages {
    folders: BTreeSet<String>,
    /// The previous line was one of these; what follows belongs to it.
    was_one: bool,
}

impl InvalidPages {
    /// Whether a log line is about such a page; if so, its folder is noted.
    pub fn takes(&mut self, line: &str) -> bool {
        let belongs = self.was_one && (line.contains("CONTEXT:  ") || line.contains("LOCATION:  "));
        let folder = folder(line);
        let is_one = folder.is_some() || line.contains("WAL contains references to invalid pages");
        self.folders.extend(folder.map(str::to_owned));
        self.was_one = is_one || belongs;
        self.was_one
    }

    /// All folders.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.folders.iter().map(String::as_str)
    }
}

/// The folder in `… WARNING:  page 7 of relation base/16384/16390_vm is uninitialized`.
fn folder(line: &str) -> Option<&str> {
    let (_, words) = line.split_once("WARNING:  ")?;
    let (_, rest) = words.split_once("page ")?.1.split_once(" of relation ")?;
    let relation =
        rest.strip_suffix(" is uninitialized").or_else(|| rest.strip_suffix(" does not exist"))?;
    Some(relation.rsplit_once('/').map_or(relation, |(folder, _)| folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_invalid_pages_are_known_and_their_folders_kept() {
        let mut pages = InvalidPages::default();
        for line in [
            "2026-11-27 10:00:00.1 UTC [7] WARNING:  page 0 of relation base/16384/16390 is uninitialized",
            "2026-11-27 10:00:00.1 UTC [7] CONTEXT:  WAL redo at 0/3000028 for Heap2/VISIBLE: cutoff xid 0 flags 0x01",
            "2026-11-27 10:00:00.1 UTC [7] WARNING:  WAL contains references to invalid pages",
            "2026-11-27 10:00:00.1 UTC [7] CONTEXT:  WAL redo at 0/3000028 for Heap2/VISIBLE: cutoff xid 0 flags 0x01",
            "x WARNING:  01000: page 9 of relation base/16384/16391_vm does not exist",
            "x LOCATION:  report_invalid_page, xlogutils.c:101",
            "x WARNING:  page 1 of relation pg_tblspc/16400/PG_17_202406281/16385/2 is uninitialized",
            "x WARNING:  page 1 of relation global/1262 is uninitialized",
        ] {
            assert!(pages.takes(line), "{line}");
        }
        for line in [
            "x WARNING:  something else",
            "x CONTEXT:  WAL redo at 0/3000028",
            "x LOG:  page 1 of relation base/1/2 is uninitialized",
        ] {
            assert!(!pages.takes(line), "{line}");
        }
        let all: Vec<_> = pages.folders().collect();
        assert_eq!(all, ["base/16384", "global", "pg_tblspc/16400/PG_17_202406281/16385"]);
    }
}
