//! Makes data directories. `initdb` on ZFS takes a good part of a short test, so the first cluster of each test is a copy
//! of one that was made before. The others are made anew: no two clusters that meet have one system identifier.

use super::command::{as_postgres, command, give_to_postgres, must, postgres_ids};
use super::fixture::{owned_directory, text};
use super::workspace::Workspace;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes a cluster in `data`, with its pg_wal in `wal` if one is named, by the programs in `bin`.
#[track_caller]
pub fn initdb(workspace: &Workspace, bin: &Path, data: &Path, wal: Option<&Path>) {
    static FIRST: AtomicBool = AtomicBool::new(true);
    [Some(data), wal].into_iter().flatten().for_each(owned_directory);
    if !FIRST.swap(false, Ordering::Relaxed) {
        return run(bin, data, wal);
    }
    let made = template(workspace, bin);
    let entries = fs::read_dir(&made).expect("the template can be read");
    let entries = entries.map(|entry| entry.expect("the template can be read").path());
    let (wals, others): (Vec<_>, Vec<_>) = entries.partition(|path| path.ends_with("pg_wal"));
    must(command("cp", ["-a", "-t"]).arg(data).args(others));
    let inside = data.join("pg_wal");
    must(command("cp", ["-aT"]).args(wals).arg(wal.unwrap_or(&inside)));
    if let Some(wal) = wal {
        symlink(wal, &inside).expect("a new data directory has no pg_wal");
        let (uid, gid) = postgres_ids();
        lchown(&inside, Some(uid), Some(gid)).expect("a link can be given away");
    }
}

#[track_caller]
fn run(bin: &Path, data: &Path, wal: Option<&Path>) {
    let mut arguments = vec!["-D".to_owned(), text(data), "-A".to_owned(), "trust".to_owned()];
    arguments.extend(
        ["--data-checksums", "--no-sync", "-U", "postgres", "-E", "UTF8", "--locale=C"]
            .map(str::to_owned),
    );
    arguments.extend(wal.map(|wal| format!("--waldir={}", text(wal))));
    must(&mut as_postgres(bin.join("initdb"), arguments));
}

/// The template of this version, made by the first test that wants it.
#[track_caller]
fn template(workspace: &Workspace, bin: &Path) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("initdb");
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("cannot create {folder:?}: {error}"));
    let lock = File::create(folder.join("lock")).expect("the lock of the templates can be made");
    flock(&lock, FlockOperation::LockExclusive)
        .expect("the lock of the templates can be waited for");
    // Another minor version may have another catalog while it is a beta.
    let version = must(&mut command(bin.join("postgres"), ["--version"]));
    let version: String =
        version.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
    let made = folder.join(version);
    if !made.exists() {
        // The user postgres can't enter the folder of the templates.
        let fresh = workspace.directory("initdb").join("data");
        give_to_postgres(fresh.parent().expect("it was joined"));
        run(bin, &fresh, None);
        let half = folder.join("half");
        let _ = fs::remove_dir_all(&half);
        must(command("cp", ["-aT"]).args([&fresh, &half]));
        fs::rename(&half, &made).expect("a template that is whole can be named");
        fs::remove_dir_all(fresh.parent().expect("it was joined"))
            .expect("a copied directory can be removed");
    }
    made
}
