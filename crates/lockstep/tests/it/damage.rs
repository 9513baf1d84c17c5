//! Every kind of object in a repository is deleted, truncated, flipped in one bit, or swapped with another. `repo
//! check` must name it, no set that needs it may be restored, and the others are restored unchanged.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::command::{Outcome, command, must};
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{Lockstep, exit, json_of};
use crate::support::shipping::{folder, objects, secret_file, with_options};
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Deleted,
    Truncated,
    Flipped,
    Swapped,
}

const ALL: [Damage; 4] = [Damage::Deleted, Damage::Truncated, Damage::Flipped, Damage::Swapped];

struct Damaged {
    fixture: Fixture,
    lockstep: Lockstep,
    sets: [String; 2],
    /// The result of restoring each set.
    wholes: [PathBuf; 2],
}

impl Damage {
    /// Damages the object, together with another of its kind if that needs two; returns what undoes it.
    fn to(self, path: &Path, other: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let read = |path: &Path| (path.to_owned(), fs::read(path).expect("it is there"));
        let good = read(path);
        let write = |bytes: &[u8]| fs::write(path, bytes).expect("the test may write there");
        match self {
            Damage::Deleted => fs::remove_file(path).expect("the test may delete it"),
            Damage::Truncated => write(&good.1[..good.1.len() / 2]),
            Damage::Flipped => {
                let mut bad = good.1.clone();
                bad[good.1.len() / 2] ^= 4;
                write(&bad);
            }
            Damage::Swapped => {
                let theirs = read(other);
                assert_ne!(theirs.1, good.1, "{path:?} and {other:?}");
                write(&theirs.1);
                fs::write(other, &good.1).expect("the test may write there");
                return vec![good, theirs];
            }
        }
        vec![good]
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("names are ASCII")
}

/// What kind of object it is.
fn kind(path: &Path) -> &'static str {
    let text = path.to_str().expect("names are ASCII");
    if text.contains("/@files/") {
        // Objects of the same kinds in the other image are damaged there.
        return if text.ends_with(".json") { "@files" } else { "none" };
    }
    let kinds = ["/packs/", "/sets/", ".objects.", ".extents.", ".packs.", "/volumes/"];
    kinds.into_iter().find(|kind| text.contains(kind)).unwrap_or("none")
}

impl Damaged {
    fn new(options: &str) -> Damaged {
        let fixture = Fixture::new(two_pools_four_datasets());
        fixture
            .cluster
            .execute(&["CREATE TABLE t TABLESPACE ts1 AS SELECT generate_series(1, 50000) n"]);
        let options = options.replace("KEY", &secret_file(fixture.root(), "key", &"07".repeat(32)));
        let lockstep = with_options(&fixture, &options);
        let first = lockstep.backup("label").id;
        fixture.cluster.execute(&["UPDATE t SET n = n + 1 WHERE n % 100 = 0"]);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let second = lockstep.backup("label").id;
        let wholes = [fixture.root().join("whole-0"), fixture.root().join("whole-1")];
        let damaged = Damaged { fixture, lockstep, sets: [first, second], wholes };
        for (set, whole) in damaged.sets.iter().zip(&damaged.wholes) {
            assert!(damaged.restore(set).ok());
            fs::rename(damaged.target(), whole).expect("it can be moved");
        }
        damaged
    }

    fn target(&self) -> PathBuf {
        self.fixture.root().join("back")
    }

    /// Always restores to the same path, because links contain it.
    fn restore(&self, set: &str) -> Outcome {
        let to = self.target();
        let to = to.to_str().expect("the harness' own paths are UTF-8");
        self.lockstep.run(&["restore", set, "--from", "repository", "--as", "files", "--to", to])
    }

    /// Fails unless the set restores as before, or is refused and leaves nothing that could be started; returns
    /// whether it was restored.
    #[track_caller]
    fn restores(&self, at: usize, why: &str) -> bool {
        let outcome = self.restore(&self.sets[at]);
        let target = self.target();
        if !outcome.ok() {
            assert!(outcome.stderr.contains("error: "), "{why}: {}", outcome.describe());
            // What was written before the damage was found stays, but isn't a cluster.
            if target.exists() {
                assert!(
                    outcome.stderr.contains("--delta continues"),
                    "{why}: {}",
                    outcome.describe()
                );
                let found = must(&mut command(
                    "find",
                    [target.as_os_str(), "-name".as_ref(), "pg_control".as_ref()],
                ));
                assert_eq!(found, "", "{why}: {}", outcome.describe());
                fs::remove_dir_all(target).expect("it can be removed");
            }
            return false;
        }
        let whole = self.wholes[at].as_os_str();
        must(&mut command(
            "diff",
            [
                "-r".as_ref(),
                "--no-dereference".as_ref(),
                // It contains the time at which the restore began.
                "--exclude=.lockstep-restore".as_ref(),
                whole,
                target.as_os_str(),
            ],
        ));
        fs::remove_dir_all(target).expect("it can be removed");
        true
    }

    fn check(&self) -> (Outcome, Value) {
        let outcome = self.lockstep.run(&["--json", "repo", "check", "--read-data"]);
        let found = match outcome.stdout.is_empty() {
            true => Value::Null,
            false => json_of(&outcome)["repositories"][0].clone(),
        };
        (outcome, found)
    }

    /// Damages one object in all ways. `other` is another of its kind that the first set needs.
    fn deal(&self, path: &Path, other: &Path) {
        for damage in ALL {
            let why = format!("{damage:?}: {}", path.display());
            let undo = damage.to(path, other);
            let (outcome, found) = self.check();
            let is_gone = damage == Damage::Deleted && kind(path) == "/sets/";
            if is_gone {
                // Nothing else shows that this set existed; what only it needed is left over.
                assert_eq!(found["counts"]["sets"], 1, "{why}: {found}");
                assert_ne!(found["orphans"], json!([]), "{why}: {found}");
            } else {
                assert_eq!(outcome.code, Some(exit::PROBLEMS), "{why}: {}", outcome.describe());
                assert!(found["findings"].to_string().contains(name(path)), "{why}: {found}");
                let harmed = found["harmed"].as_array().expect("a list");
                assert!(harmed.contains(&json!(self.sets[1])), "{why}: {found}");
                let both = damage == Damage::Swapped;
                assert_eq!(harmed.len() == 2, both, "{why}: {found}");
            }
            // Only commands that clean up ask which packs exist.
            let needs_it = kind(path) != ".packs.";
            assert_eq!(!self.restores(1, &why), needs_it, "{why}");
            // The other set only needs the object that it was swapped with.
            if damage == Damage::Swapped || (damage == Damage::Deleted && kind(path) == "/packs/") {
                let is_harmed = damage == Damage::Swapped && needs_it;
                assert_eq!(!self.restores(0, &why), is_harmed, "{why}");
            }
            undo.iter().for_each(|(path, good)| fs::write(path, good).expect("it may"));
        }
    }
}

#[test]
fn every_kind_of_object_damaged_in_every_way() {
    let damaged = Damaged::new("key_file = KEY");
    let sets = &damaged.sets;
    // What only the second set needs: its own delta and what depends on it, its files, its manifest.
    let all: Vec<PathBuf> = objects(&damaged.fixture).into_keys().collect();
    let age = |path: &PathBuf| fs::metadata(path).and_then(|of| of.modified()).expect("a time");
    let first = all.iter().find(|path| name(path) == format!("{}.json", sets[0])).expect("a set");
    let end = age(first);
    let (old, new): (Vec<_>, Vec<_>) = all.iter().partition(|path| age(path) <= end);
    let mut kinds = BTreeSet::new();
    for path in new {
        if kind(path) != "none" && kinds.insert(kind(path)) {
            let other = old.iter().find(|other| kind(other) == kind(path));
            damaged.deal(path, other.expect("the first set has one too"));
        }
    }
    assert_eq!(kinds.len(), 7, "{kinds:?}");
    let (outcome, found) = damaged.check();
    assert!(outcome.ok() && found["harmed"] == json!([]), "all is undone: {found}");
    assert!(damaged.restores(0, "all is undone") && damaged.restores(1, "all is undone"));
}

/// The two kinds of object that don't belong to a cluster: without them nothing can be opened, and the error names
/// the problem.
#[test]
fn what_opens_a_repository_damaged_in_every_way() {
    let damaged = Damaged::new("key_file = KEY");
    let (lockstep, root) = (&damaged.lockstep, damaged.fixture.root());
    let phrase = secret_file(root, "phrase", "another key\n");
    lockstep.json(&["repo", "key", "add", "--new-passphrase-file", phrase.trim_matches('"')]);
    let listed = lockstep.json(&["repo", "key", "list"])["keys"].clone();
    let id = |kind: &str| {
        let keys = listed.as_array().expect("keys");
        let found = keys.iter().find(|key| key["kind"] == kind).expect("there is one");
        found["id"].as_str().expect("an id").to_owned()
    };
    let keys = folder(&damaged.fixture).join("keys");
    let (ours, other) = (
        keys.join(format!("{}.json", id("key file"))),
        keys.join(format!("{}.json", id("passphrase"))),
    );
    let format = folder(&damaged.fixture).join("lockstep.json");
    // From another repository.
    let foreign = root.join("foreign.json");
    let made = fs::read_to_string(&format).expect("it is there");
    let body = made.split("\"body\":").nth(1).and_then(|rest| rest.split(",\"blake3\"").next());
    let body = body.expect("a document").replacen("\"id\":\"", "\"id\":\"0", 1);
    let hash = blake3::hash(body.as_bytes()).to_hex();
    fs::write(&foreign, format!("{{\"body\":{body},\"blake3\":\"{hash}\"}}")).expect("it may");
    for (path, other) in [(&format, &foreign), (&ours, &other)] {
        for damage in ALL {
            let why = format!("{damage:?}: {}", path.display());
            let undo = damage.to(path, other);
            let (outcome, _) = damaged.check();
            let is_open = outcome.code == Some(exit::PROBLEMS);
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            let words = match (path == &format, damage) {
                (true, Damage::Deleted) => "lockstep.json of repository",
                (true, Damage::Swapped) => "opens no key",
                (true, _) => "lockstep.json",
                (false, Damage::Deleted) => "opens no key",
                (false, _) => name(path).trim_end_matches(".json"),
            };
            assert!(said.contains(words), "{why}: {}", outcome.describe());
            // A key that opens nothing may simply be the wrong file. Without the file, a new key would be made.
            let code = match words {
                "opens no key" => exit::USAGE,
                "lockstep.json of repository" => exit::REFUSED,
                _ => exit::FAILED,
            };
            assert!(is_open || outcome.code == Some(code), "{why}: {}", outcome.describe());
            assert_eq!(damaged.restores(1, &why), is_open, "{why}");
            undo.iter().for_each(|(path, good)| fs::write(path, good).expect("it may"));
        }
    }
    // Somebody else's damaged key is no reason not to open the repository; it is reported.
    for damage in [Damage::Truncated, Damage::Flipped] {
        let undo = damage.to(&other, &ours);
        let (outcome, found) = damaged.check();
        assert_eq!(outcome.code, Some(exit::PROBLEMS), "{}", outcome.describe());
        assert!(
            found["findings"].to_string().contains(name(&other).trim_end_matches(".json")),
            "{found}"
        );
        assert_eq!(found["harmed"], json!([]));
        undo.iter().for_each(|(path, good)| fs::write(path, good).expect("it may"));
    }
    assert!(damaged.restores(1, "all is undone"));
}
