//! `zfs send` and `zfs receive`, and what a send can start from.
//!
//! The stream is sent as it is in memory: what is compressed or embedded on disk would have to be
//! taken apart again. Large blocks (`-L`) are kept, where this ZFS knows them: without it a file of
//! large blocks changes its block size with every other stream. A raw stream (`-w`) is all as on disk.

use std::process::{ChildStdin, ChildStdout};

use super::standing::AT_ONCE;
use super::{DatasetName, SnapshotName, Zfs, parse, said};
use crate::config::IoClass;
use crate::error::{Error, Result};
use crate::process::{Piped, Program};

/// The property that says where a receive can be gone on with.
const RESUME_TOKEN: &str = "receive_resume_token";

/// What an incremental send can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// `pool/dataset@snapshot` or `pool/dataset#bookmark`.
    pub name: String,
    /// The snapshot's GUID; a bookmark keeps it.
    pub guid: u64,
    /// Its transaction group.
    pub createtxg: u64,
}

/// A send.
#[derive(Debug, Clone)]
pub struct SendSpec<'a> {
    /// What is sent.
    pub snapshot: &'a SnapshotName,
    /// What it is an increment to: [`Base::name`].
    pub base: Option<&'a str>,
    /// As it is encrypted on disk; then also compressed and in blocks as there.
    pub raw: bool,
    /// Added to the priority of `zfs send`.
    pub nice: Option<u8>,
    /// The class of its disk accesses.
    pub ionice: Option<IoClass>,
}

impl Zfs {
    /// Starts `zfs send`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn send(&self, spec: &SendSpec<'_>) -> Result<Piped<ChildStdout>> {
        let mut program = Program::new("zfs").arg("send");
        if spec.raw {
            program = program.arg("-w");
        } else if self.sends_large_blocks() {
            program = program.arg("-L");
        }
        if let Some(base) = spec.base {
            // Of the same dataset: `@name` or `#name` is enough, and zfs-fuse takes nothing else.
            let at = base.find(['@', '#']).unwrap_or(0);
            program = program.args(["-i", &base[at..]]);
        }
        let idle = spec.ionice.map(|class| class == IoClass::Idle);
        let program = program.arg(spec.snapshot.to_string()).gently(spec.nice, idle);
        Ok(program.read_from()?)
    }

    /// Starts `zfs receive`: of a full stream into a dataset that isn't there, of an increment into
    /// one that is as its newest snapshot. What is new stays unmounted.
    ///
    /// Never with `-F`: zfs-fuse answers it with "I/O error" every third time.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn receive(&self, dataset: &DatasetName) -> Result<Piped<ChildStdin>> {
        Ok(Program::new("zfs").args(["receive", "-u", dataset.as_str()]).write_to()?)
    }

    /// Those of `datasets` that a receive was begun into which can be gone on with (`zfs receive -s`): until then, or
    /// until it is given up, they take no other. Pool version 23 has no such thing.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn begun_receives(&self, datasets: &[DatasetName]) -> Result<Vec<DatasetName>> {
        if datasets.is_empty() || self.memory.property(RESUME_TOKEN) == Some(false) {
            return Ok(Vec::new());
        }
        let names: Vec<_> = datasets.iter().map(DatasetName::to_string).collect();
        let found = match self.get(&names, &[RESUME_TOKEN]) {
            Err(Error::Command { error, .. }) if said::knows_no_property(&error) => {
                self.memory.learn_property(RESUME_TOKEN, false);
                return Ok(Vec::new());
            }
            other => other?,
        };
        self.memory.learn_property(RESUME_TOKEN, true);
        let has_one = |dataset: &&DatasetName| {
            let token = found.get(dataset.as_str()).and_then(|of| of.get(RESUME_TOKEN));
            token.is_some_and(|token| token != "-")
        };
        Ok(datasets.iter().filter(has_one).cloned().collect())
    }

    /// Mounts a dataset; one that is mounted is fine. zfs-fuse finds one busy for a moment that was
    /// unmounted just now.
    ///
    /// # Errors
    /// When it can't be mounted.
    pub fn mount(&self, dataset: &DatasetName) -> Result<()> {
        if self.value(dataset, "mounted")? == "yes" {
            return Ok(());
        }
        Ok(self.run_while_busy(["mount", dataset.as_str()])?)
    }

    /// Unmounts a dataset; one that isn't mounted is fine.
    ///
    /// # Errors
    /// When it stays in use.
    pub fn unmount(&self, dataset: &DatasetName) -> Result<()> {
        if self.value(dataset, "mounted")? == "yes" {
            self.run_while_busy(["unmount", dataset.as_str()])?;
        }
        Ok(())
    }

    /// Renames a dataset that isn't mounted.
    ///
    /// # Errors
    /// When there is one of the new name, or none of the old.
    pub fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<()> {
        self.run(["rename", from.as_str(), to.as_str()])?;
        Ok(())
    }

    /// Takes a dataset back to its newest snapshot. OpenZFS finds one busy for a moment that was
    /// received raw and mounted for the first time.
    ///
    /// # Errors
    /// When it isn't the newest.
    pub fn rollback(&self, snapshot: &str) -> Result<()> {
        Ok(self.run_while_busy(["rollback", snapshot])?)
    }

    /// Whether `zfs send` knows `-L`, by what it prints when it is given nothing.
    fn sends_large_blocks(&self) -> bool {
        if let Some(known) = self.memory.large_blocks() {
            return known;
        }
        let usage = match self.run(["send"]) {
            Err(error) => error.stderr().to_owned(),
            Ok(_) => String::new(),
        };
        // A usage that says nothing of flags is none to remember.
        let Some(flags) = parse::send_flags(&usage) else { return false };
        let can = flags.contains('L');
        self.memory.learn_large_blocks(can);
        can
    }

    /// The snapshots and, where this ZFS has them, bookmarks of a dataset.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn bases_of(&self, dataset: &DatasetName) -> Result<Vec<Base>> {
        let names = self.base_names(std::slice::from_ref(dataset))?;
        let names: Vec<_> = names.into_iter().map(|(_, name)| name).collect();
        self.bases(&names)
    }

    /// The snapshots and bookmarks of several datasets by name alone, which ZFS has at hand.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn base_names(&self, datasets: &[DatasetName]) -> Result<Vec<(DatasetName, String)>> {
        let listed = self.list_bases(datasets)?;
        let names = listed.lines().filter_map(|name| {
            let (of, _) = name.split_once(['@', '#'])?;
            let dataset = datasets.iter().find(|dataset| dataset.as_str() == of)?;
            Some((dataset.clone(), name.to_owned()))
        });
        Ok(names.collect())
    }

    /// What the snapshots and bookmarks of these names are; each costs ZFS a look into its pool.
    ///
    /// # Errors
    /// When one isn't there, or ZFS fails.
    pub fn bases(&self, names: &[String]) -> Result<Vec<Base>> {
        let mut bases = Vec::new();
        for some in names.chunks(AT_ONCE) {
            let all = self.get(some, &["guid", "createtxg"])?;
            for name in some {
                let number = |property: &str| {
                    let text = all.get(name).and_then(|of| of.get(property));
                    parse::number(text.map_or("", String::as_str), property)
                };
                bases.push(Base {
                    name: name.clone(),
                    guid: number("guid")?,
                    createtxg: number("createtxg")?,
                });
            }
        }
        Ok(bases)
    }

    /// Names of snapshots and bookmarks, a line each.
    fn list_bases(&self, datasets: &[DatasetName]) -> Result<String> {
        if datasets.is_empty() {
            return Ok(String::new());
        }
        let list = |kinds: &str| {
            // Sorted by name OpenZFS takes the names alone, and looks into no snapshot
            // (`zfs_do_list` in its `zfs_main.c`).
            let words = ["list", "-H", "-t", kinds, "-d", "1", "-o", "name", "-s", "name", "-r"];
            self.run(words.into_iter().chain(datasets.iter().map(DatasetName::as_str)))
        };
        if self.memory.lists_bookmarks() != Some(false) {
            match list("snapshot,bookmark") {
                Ok(out) => {
                    self.memory.learn_lists_bookmarks(true);
                    return Ok(out.stdout);
                }
                // pool version 23 knows no bookmarks.
                Err(error) if said::knows_no_type(&error) => {
                    self.memory.learn_lists_bookmarks(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(list("snapshot")?.stdout)
    }
}
