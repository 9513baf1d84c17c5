//! Snapshots and restores made only with `zfs` and a text editor, as the reference for the program's own.

use super::cluster::Cluster;
use super::command::give_to_postgres;
use super::fixture::{Fixture, free_port};
use super::layout::Wal;
use super::pools::{destroy, try_zfs, zfs};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The snapshots of one name on a fixture's datasets, and the clones made from them.
#[derive(Debug)]
pub struct ByHand<'a> {
    fixture: &'a Fixture,
    name: String,
    clones: Vec<String>,
}

impl<'a> ByHand<'a> {
    /// Nothing is taken yet.
    pub fn new(fixture: &'a Fixture, name: &str) -> ByHand<'a> {
        ByHand { fixture, name: name.to_owned(), clones: Vec::new() }
    }

    /// Freezes the dataset that is mounted at `mount` (spelled as in the layout).
    #[track_caller]
    pub fn snapshot(&self, mount: &str) {
        let place = self.fixture.layout.datasets.iter().position(|dataset| dataset.mount == mount);
        let place =
            place.unwrap_or_else(|| panic!("nothing is mounted at {mount:?} in this layout"));
        zfs(&["snapshot", &format!("{}@{}", self.fixture.datasets[place], self.name)]);
    }

    /// Makes a cluster from clones of all snapshots: links rewritten, with its own port, not started. Its pg_wal must
    /// be a link, because this is written for such a layout.
    #[track_caller]
    pub fn assemble(&mut self) -> Cluster {
        let live = &self.fixture.cluster;
        let root = self.fixture.target(&self.name);
        for (n, spec) in self.fixture.layout.datasets.iter().enumerate() {
            let dataset = &self.fixture.datasets[n];
            let pool = &self.fixture.pools[spec.pool].name;
            let clone = format!("{pool}/{}-{n}", self.name);
            let mountpoint = format!("mountpoint={}", root.join(&spec.mount).display());
            zfs(&["clone", "-o", &mountpoint, &format!("{dataset}@{}", self.name), &clone]);
            self.clones.push(clone);
        }
        let data = root.join(&self.fixture.layout.data);
        let Wal::Linked(wal) = &self.fixture.layout.wal else {
            panic!("written for a linked pg_wal")
        };
        relink(&data.join("pg_wal"), &root.join(wal));
        for entry in
            fs::read_dir(data.join("pg_tblspc")).expect("a data directory has pg_tblspc").flatten()
        {
            let old = fs::read_link(entry.path()).expect("pg_tblspc holds links");
            let inside = old
                .strip_prefix(self.fixture.mnt())
                .expect("the fixture's tablespaces lie in its mnt");
            relink(&entry.path(), &root.join(inside));
        }
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let port = free_port();
        let conf = OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"));
        let conf = conf.and_then(|mut conf| writeln!(conf, "port = {port}\narchive_mode = off"));
        conf.expect("postgresql.auto.conf can be written");
        let log = self.fixture.root().join("log").join(format!("{}.log", self.name));
        Cluster { bin: live.bin.clone(), data, socket: live.socket.clone(), port, log }
    }

    /// Destroys clones and snapshots. The server must be stopped.
    #[track_caller]
    pub fn discard(self) {
        for clone in self.clones.iter().rev() {
            destroy(clone);
        }
        for dataset in &self.fixture.datasets {
            let _ = try_zfs(&["destroy", &format!("{dataset}@{}", self.name)]);
        }
    }
}

/// Writes a file of the data directory that the server must be able to read and rename.
#[track_caller]
pub fn write_as_postgres(path: &Path, content: &str) {
    fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {path:?}: {error}"));
    give_to_postgres(path);
}

#[track_caller]
fn relink(link: &Path, to: &PathBuf) {
    fs::remove_file(link)
        .unwrap_or_else(|error| panic!("cannot remove the link {link:?}: {error}"));
    symlink(to, link).unwrap_or_else(|error| panic!("cannot link {link:?}: {error}"));
}
