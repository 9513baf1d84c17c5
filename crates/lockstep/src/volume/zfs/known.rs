//! What is known about this machine's ZFS, so that no backup has to find it out again: each command is a process, and
//! a busy core has no time to spare.
//!
//! It was found by trying, never from a version, and is kept in `zfs.json` in state_dir, together with the program
//! file and the kernel module for which it was found. With another program or module, or a day later, it is found out
//! again. What could go wrong: only a library that the program uses is replaced. So nothing that is remembered may
//! make a set wrong: a command that is refused after all is repeated in the form that every ZFS accepts, and a form
//! that wasn't tried only costs time.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{files, process};

/// How long it is valid.
const GOOD_FOR: SignedDuration = SignedDuration::from_hours(24);

/// Where Linux tells which module is loaded.
const MODULE: [&str; 2] = ["/sys/module/zfs/version", "/sys/module/zfs/srcversion"];

/// What was found out; what is missing hasn't been tried yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Known {
    /// It takes several snapshots in one command, in one transaction group.
    multi_snapshot: Option<bool>,
    /// Properties that not every ZFS has.
    #[serde(default)]
    properties: BTreeMap<String, bool>,
    /// `zfs send -L`.
    large_blocks: Option<bool>,
    /// `zfs list -t bookmark`.
    lists_bookmarks: Option<bool>,
    /// Several properties in one `zfs set`.
    sets_several: Option<bool>,
}

/// What it was found for. A file that was replaced or changed has another inode, size or time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FoundOn {
    program: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    module: Vec<String>,
}

/// The contents of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    found_on: FoundOn,
    since: Timestamp,
    known: Known,
}

impl Record {
    /// Whether it is still valid. A clock that was set back makes it no younger.
    fn counts(&self, on: &FoundOn, now: Timestamp) -> bool {
        let age = now.duration_since(self.since);
        self.found_on == *on && (SignedDuration::ZERO..GOOD_FOR).contains(&age)
    }
}

impl FoundOn {
    /// The `zfs` that this process would start; `None` if there is none.
    fn here() -> Option<Self> {
        let program = process::find("zfs".as_ref())?;
        let file = std::fs::metadata(&program).ok()?;
        let module = MODULE.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        Some(Self {
            program,
            device: file.dev(),
            inode: file.ino(),
            bytes: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
            module: module.collect(),
        })
    }
}

/// What is known, and the file that keeps it beyond this process, if there is one.
#[derive(Debug, Default)]
pub(super) struct Memory {
    file: Option<PathBuf>,
    /// With the time of its oldest part; `None` if the file hasn't been read yet.
    known: Mutex<Option<(Timestamp, Known)>>,
}

impl Memory {
    /// Keeps it in `zfs.json` in this folder.
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { file: Some(folder.join("zfs.json")), known: Mutex::default() }
    }

    pub(super) fn multi_snapshot(&self) -> Option<bool> {
        self.known().multi_snapshot
    }

    pub(super) fn learn_multi_snapshot(&self, can: bool) {
        self.learn(|known| known.multi_snapshot = Some(can));
    }

    pub(super) fn property(&self, name: &str) -> Option<bool> {
        self.known().properties.get(name).copied()
    }

    pub(super) fn learn_property(&self, name: &str, has: bool) {
        self.learn(|known| {
            known.properties.insert(name.to_owned(), has);
        });
    }

    pub(super) fn large_blocks(&self) -> Option<bool> {
        self.known().large_blocks
    }

    pub(super) fn learn_large_blocks(&self, can: bool) {
        self.learn(|known| known.large_blocks = Some(can));
    }

    pub(super) fn lists_bookmarks(&self) -> Option<bool> {
        self.known().lists_bookmarks
    }

    pub(super) fn learn_lists_bookmarks(&self, can: bool) {
        self.learn(|known| known.lists_bookmarks = Some(can));
    }

    pub(super) fn sets_several(&self) -> Option<bool> {
        self.known().sets_several
    }

    pub(super) fn learn_sets_several(&self, can: bool) {
        self.learn(|known| known.sets_several = Some(can));
    }

    /// A thread that panicked leaves nothing half done in it, so a poisoned lock is no problem.
    fn held(&self) -> MutexGuard<'_, Option<(Timestamp, Known)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Known {
        self.held().get_or_insert_with(|| self.read()).1.clone()
    }

    fn read(&self) -> (Timestamp, Known) {
        let now = Timestamp::now();
        let kept = || {
            let text = std::fs::read(self.file.as_ref()?).ok()?;
            // A file that is damaged or from another version is ignored.
            let record: Record = serde_json::from_slice(&text).ok()?;
            record.counts(&FoundOn::here()?, now).then_some((record.since, record.known))
        };
        kept().unwrap_or_else(|| (now, Known::default()))
    }

    fn learn(&self, change: impl FnOnce(&mut Known)) {
        let mut held = self.held();
        let (since, known) = held.get_or_insert_with(|| self.read());
        let before = known.clone();
        change(known);
        if *known != before {
            self.write(*since, known);
        }
    }

    /// Writes the file. A process that may not write it finds everything out each time.
    fn write(&self, since: Timestamp, known: &Known) {
        let (Some(file), Some(found_on)) = (&self.file, FoundOn::here()) else { return };
        let record = Record { found_on, since, known: known.clone() };
        let Ok(text) = serde_json::to_vec_pretty(&record) else { return };
        if let Err(error) = files::publish(file, &text) {
            tracing::debug!(error = %error.chain(), "what ZFS can do isn't kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(since: &str) -> Record {
        let found_on = FoundOn {
            program: "/sbin/zfs".into(),
            device: 1,
            inode: 2,
            bytes: 3,
            modified: (4, 5),
            changed: (6, 7),
            module: vec!["2.2.2\n".into()],
        };
        Record { found_on, since: since.parse().unwrap(), known: Known::default() }
    }

    #[test]
    fn it_counts_for_the_same_program_and_module_and_for_a_day() {
        let record = record("2026-11-24T00:00:00Z");
        let at = |now: &str, on: &FoundOn| record.counts(on, now.parse().unwrap());
        let same = record.found_on.clone();
        assert!(at("2026-11-24T00:00:00Z", &same) && at("2026-11-24T23:59:59Z", &same));
        assert!(!at("2026-11-25T00:00:00Z", &same), "a day later");
        assert!(!at("2026-11-23T23:59:59Z", &same), "the clock was put back");
        type Change = fn(&mut FoundOn);
        let changes: [Change; 6] = [
            |on| on.program = "/usr/local/sbin/zfs".into(),
            |on| on.inode = 9,
            |on| on.bytes = 9,
            |on| on.modified.1 = 9,
            |on| on.changed.0 = 9,
            |on| on.module = vec!["2.2.3\n".into()],
        ];
        for change in changes {
            let mut other = same.clone();
            change(&mut other);
            assert!(!at("2026-11-24T00:00:01Z", &other), "{other:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_known() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("known");
        std::fs::create_dir_all(&folder).unwrap();
        for text in ["", "{", "{\"known\": {}}", "\0\0\0"] {
            std::fs::write(folder.join("zfs.json"), text).unwrap();
            assert_eq!(Memory::in_folder(&folder).multi_snapshot(), None, "{text:?}");
        }
        let memory = Memory::in_folder(&folder);
        memory.learn_property("sync", false);
        memory.learn_multi_snapshot(true);
        assert_eq!((memory.property("sync"), memory.multi_snapshot()), (Some(false), Some(true)));
    }
}
