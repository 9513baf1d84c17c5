//! Sets out of a repository as plain files.

mod look;
mod only;
mod reader;
mod whole;

use crate::support::fixture::Fixture;
use crate::support::layout::Layout;
use crate::support::lockstep::{Lockstep, Set, Steps, json_of};
use crate::support::shipping::{may_be_left_out, tree, with_repository};
use crate::support::trees::tree_of;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SCALE: u32 = 1;
const FILES: [&str; 4] = ["--from", "repository", "--as", "files"];

struct Prepared {
    fixture: Fixture,
    lockstep: Lockstep,
}

fn prepare(layout: Layout) -> Prepared {
    let fixture = Fixture::new(layout);
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    Prepared { fixture, lockstep }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the harness' own paths are UTF-8")
}

impl Prepared {
    /// Restores, stops before anything in the files is changed, calls `look`, and continues.
    fn restore_and_look(&self, set: &Set, to: &Path, more: &[&str], look: impl FnOnce()) -> Value {
        let steps = Steps::new(self.fixture.root().join("steps"));
        steps.hold("restore.files");
        let arguments = ["--json", "restore", &set.id, "--to", text(to)];
        let arguments: Vec<&str> =
            arguments.into_iter().chain(FILES).chain(more.iter().copied()).collect();
        let mut running = self.lockstep.clone().with_steps(&steps).spawn(&arguments);
        steps.wait_reached("restore.files", &mut running);
        let memory = most_memory(running.id());
        assert!(memory < 128 << 20, "{memory} bytes of memory");
        look();
        steps.release("restore.files");
        let outcome = running.wait(crate::support::lockstep::LIMIT);
        assert!(outcome.ok(), "{}", outcome.describe());
        json_of(&outcome)
    }

    /// Fails unless the folders of a restore have the contents of the set's snapshots.
    #[track_caller]
    fn assert_same(&self, set: &Set, to: &Path) {
        for volume in &set.volumes {
            if volume.parts != ["wal"] {
                let folder = folder_of(to, &volume.parts[0]);
                assert_same_tree(&tree(&self.fixture, &volume.snapshot), &folder);
            }
        }
    }
}

/// The most memory that a process has used at once.
#[track_caller]
fn most_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of it");
    let kilobytes: u64 = most.trim().trim_end_matches(" kB").parse().expect("a number");
    eprintln!("{} MB of memory at most", kilobytes >> 10);
    kilobytes << 10
}

/// The folder of a restored volume, by the first part on it.
fn folder_of(to: &Path, part: &str) -> PathBuf {
    let own = to.join("volumes").join(part);
    match part {
        _ if own.exists() => own,
        "data" | "wal" => to.join(part),
        other => to.join("tablespaces").join(other.trim_start_matches("tablespace-")),
    }
}

#[track_caller]
fn assert_same_tree(theirs: &BTreeMap<String, String>, folder: &Path) {
    let mut ours = tree_of(folder);
    // It gets its real name last of all.
    let control = ours.keys().find(|path| path.ends_with("global/pg_control.lockstep")).cloned();
    if let Some(name) = control {
        let line = ours.remove(&name).expect("it was there");
        ours.insert(name.trim_end_matches(".lockstep").to_owned(), line);
    }
    for (path, line) in theirs {
        if path.starts_with("# path") {
            continue;
        }
        let found = ours.get(path).map_or("nothing", String::as_str);
        let unlogged = {
            let stem = path.split_once('_').map_or(path.as_str(), |(stem, _)| stem);
            let stem = stem.split('.').next().unwrap_or(stem);
            theirs.contains_key(&format!("{stem}_init"))
        };
        let without_hash = |line: &str| line.rsplit_once('\t').map(|(rest, _)| rest.to_owned());
        let same = if may_be_left_out(path) || unlogged {
            without_hash(found) == without_hash(line)
        } else {
            found == line
        };
        assert!(same, "{}: {path}: {found:?}, the snapshot has {line:?}", folder.display());
    }
    let more: Vec<_> = ours.keys().filter(|path| !theirs.contains_key(*path)).collect();
    assert!(more.is_empty(), "{}: more than the snapshot has: {more:?}", folder.display());
}

fn index_of(set: &Set, part: &str) -> usize {
    let at = set.volumes.iter().position(|volume| volume.parts[0] == part);
    at.unwrap_or_else(|| panic!("no volume of {part}"))
}
