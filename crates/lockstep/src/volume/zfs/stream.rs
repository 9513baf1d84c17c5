//! `zfs send` and `zfs receive`, and what a send can start from.
//!
//! The stream is sent uncompressed: what is compressed or embedded on disk would have to be decoded again. Large
//! blocks (`-L`) are kept if this ZFS knows them: without `-L`, the block size of a file with large blocks changes
//! from stream to stream. A raw stream (`-w`) has everything as on disk.

use std::process::{ChildStdin, ChildStdout};

use super::standing::AT_ONCE;
use super::{DatasetName, SnapshotName, Zfs, parse, said};
use crate::config::IoClass;
use crate::error::{Error, Result};
use crate::process::{Piped, Program};

/// The property that shows that a receive can be resumed.
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

/// A `zfs send`.
#[derive(Debug, Clone)]
pub struct SendSpec<'a> {
    /// What to send.
    pub snapshot: &'a SnapshotName,
    /// The base of an increment: [`Base::name`].
    pub base: Option<&'a str>,
    /// Send it encrypted as on disk, and so also compressed and in blocks as on disk.
    pub raw: bool,
    /// Added to the nice value of `zfs send`.
    pub nice: Option<u8>,
    /// Its I/O class.
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
            // The base is of the same dataset: `@name` or `#name` is enough, and zfs-fuse accepts nothing else.
            let at = base.find(['@', '#']).unwrap_or(0);
            program = program.args(["-i", &base[at..]]);
        }
        let idle = spec.ionice.map(|class| class == IoClass::Idle);
        let program = program.arg(spec.snapshot.to_string()).gently(spec.nice, idle);
        Ok(program.read_from()?)
    }

    /// Starts `zfs receive` of a full stream into a dataset that doesn't exist, or of an increment into one that is
    /// unchanged since its newest snapshot. A new dataset stays unmounted.
    ///
    /// Never with `-F`: zfs-fuse answers that with "I/O error" every third time.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn receive(&self, dataset: &DatasetName) -> Result<Piped<ChildStdin>> {
        // Without -v it prints nothing. What is in the pipe when Lockstep is killed may be all that it still needs.
        let program = Program::new("zfs").args(["receive", "-u", dataset.as_str()]);
        Ok(program.holding(self.held()).write_to()?)
    }

    /// Those of `datasets` that have an interrupted receive that can be resumed (`zfs receive -s`). Until it is
    /// resumed or given up, they accept no other. Pool version 23 doesn't have this.
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

    /// Mounts a dataset; it is no error if it is mounted already. zfs-fuse says for a moment that a dataset is busy
    /// if it was unmounted just now.
    ///
    /// # Errors
    /// When it can't be mounted.
    pub fn mount(&self, dataset: &DatasetName) -> Result<()> {
        if self.value(dataset, "mounted")? == "yes" {
            return Ok(());
        }
        Ok(self.run_while_busy(["mount", dataset.as_str()])?)
    }

    /// Unmounts a dataset; it is no error if it isn't mounted.
    ///
    /// # Errors
    /// When it remains in use.
    pub fn unmount(&self, dataset: &DatasetName) -> Result<()> {
        if self.value(dataset, "mounted")? == "yes" {
            self.run_while_busy(["unmount", dataset.as_str()])?;
        }
        Ok(())
    }

    /// Renames a dataset that isn't mounted.
    ///
    /// # Errors
    /// When the new name exists already, or the old one doesn't.
    pub fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<()> {
        self.run(["rename", from.as_str(), to.as_str()])?;
        Ok(())
    }

    /// Rolls a dataset back to its newest snapshot. OpenZFS says for a moment that a dataset is busy if it was
    /// received raw and mounted for the first time.
    ///
    /// # Errors
    /// When it isn't the newest.
    pub fn rollback(&self, snapshot: &str) -> Result<()> {
        Ok(self.run_while_busy(["rollback", snapshot])?)
    }

    /// Whether `zfs send` knows `-L`, according to the usage that it prints without arguments.
    fn sends_large_blocks(&self) -> bool {
        if let Some(known) = self.memory.large_blocks() {
            return known;
        }
        let usage = match self.run(["send"]) {
            Err(error) => error.stderr().to_owned(),
            Ok(_) => String::new(),
        };
        // A usage that doesn't show option letters isn't remembered.
        let Some(flags) = parse::send_flags(&usage) else { return false };
        let can = flags.contains('L');
        self.memory.learn_large_blocks(can);
        can
    }

    /// The snapshots and, if this ZFS has them, the bookmarks of a dataset.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn bases_of(&self, dataset: &DatasetName) -> Result<Vec<Base>> {
        let names = self.base_names(std::slice::from_ref(dataset))?;
        let names: Vec<_> = names.into_iter().map(|(_, name)| name).collect();
        self.bases(&names)
    }

    /// The snapshots and bookmarks of several datasets, only by name, which is cheap for ZFS.
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

    /// Looks up those of the snapshots and bookmarks with these names that still exist: whoever made them may remove
    /// them at any time. For each, ZFS must look into its pool.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn bases(&self, names: &[String]) -> Result<Vec<Base>> {
        let mut bases = Vec::new();
        for some in names.chunks(AT_ONCE) {
            let all = self.get_of_existing(some, &["guid", "createtxg"])?;
            for name in some {
                let Some(of) = all.get(name) else { continue };
                let number = |property: &str| {
                    parse::number(of.get(property).map_or("", String::as_str), property)
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

    /// Whether a bookmark is one of `zfs redact`: an increment from it also has what was redacted, in an order of its
    /// own (dmu_redact.c). A ZFS that doesn't know the property has no such bookmarks.
    #[must_use]
    pub fn is_redaction(&self, bookmark: &str) -> bool {
        let said = self.run(["get", "-H", "-o", "value", "redact_snaps", bookmark]);
        said.is_ok_and(|said| !["", "-"].contains(&said.stdout.trim()))
    }

    /// Names of snapshots and bookmarks, one per line.
    fn list_bases(&self, datasets: &[DatasetName]) -> Result<String> {
        if datasets.is_empty() {
            return Ok(String::new());
        }
        let list = |kinds: &str| {
            // If sorted by name, OpenZFS reads only the names and looks into no snapshot (`zfs_do_list` in its
            // `zfs_main.c`).
            let words = ["list", "-H", "-t", kinds, "-d", "1", "-o", "name", "-s", "name", "-r"];
            self.run(words.into_iter().chain(datasets.iter().map(DatasetName::as_str)))
        };
        if self.memory.lists_bookmarks() != Some(false) {
            match list("snapshot,bookmark") {
                Ok(out) => {
                    self.memory.learn_lists_bookmarks(true);
                    return Ok(out.stdout);
                }
                // Pool version 23 has no bookmarks.
                Err(error) if said::knows_no_type(&error) => {
                    self.memory.learn_lists_bookmarks(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(list("snapshot")?.stdout)
    }
}

/// Whether a `zfs receive` into an existing dataset may have met its unmounting. zfs-fuse goes on with that after `zfs
/// unmount` has ended, and a receive that ends meanwhile fails with "I/O error", whether or not its snapshot is there
/// (zfs_ioc_recv in zfs_ioctl.c, zfsvfs_teardown in zfs_vfsops.c).
#[must_use]
pub fn met_an_unmount(error: &Error) -> bool {
    matches!(error, Error::Command { error, .. } if said::is_io_error(error))
}
