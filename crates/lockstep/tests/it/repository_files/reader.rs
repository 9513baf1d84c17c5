//! Proves the pages that describe the format: a reader in another language that was written from them
//! (scripts/reader/reader.py) restores the same as Lockstep.

use super::{assert_same_tree, folder_of, text};
use crate::support::command::{command, must};
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{LIMIT, Lockstep, Set, Steps, exit};
use crate::support::shipping::{configured, secret_file};
use crate::support::trees::tree_of;
use lockstep::repository::image::image_name;
use lockstep::volume::zfs::DatasetName;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The reader, on a repository.
struct Reader {
    python: String,
    repository: PathBuf,
    key: Option<PathBuf>,
}

impl Reader {
    /// The Python that has its packages. If there is none, the test says so and is skipped, unless LOCKSTEP_ALL is
    /// set.
    fn python() -> Option<String> {
        let python = std::env::var("LOCKSTEP_READER").ok();
        if python.is_none() {
            let all = std::env::var_os("LOCKSTEP_ALL").is_some();
            assert!(!all, "LOCKSTEP_ALL: LOCKSTEP_READER isn't set (scripts/fetch-reader)");
            eprintln!("SKIPPED: LOCKSTEP_READER isn't set (scripts/fetch-reader)");
        }
        python
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/reader/reader.py");
        let mut arguments = vec![text(&script), text(&self.repository), "main"];
        arguments.extend(self.key.as_deref().into_iter().flat_map(|key| ["--key", text(key)]));
        arguments.extend(words);
        must(&mut command(&self.python, arguments))
    }
}

#[test]
fn the_second_reader_restores_what_the_first_version_wrote() {
    let Some(python) = Reader::python() else { return };
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/repositories/v1");
    for (name, key) in [("plain", None), ("sealed", Some(frozen.join("sealed.key")))] {
        let scratch = tempfile::tempdir().expect("a folder can be made");
        let reader = Reader { python: python.clone(), repository: frozen.join(name), key };
        let listed = reader.run(&["list"]);
        assert_eq!(listed.lines().count(), 3, "{listed}");
        assert!(reader.run(&["check"]).starts_with("3 sets, "));
        for line in listed.lines() {
            let mut words = line.split(' ');
            let set = words.next().expect("a set");
            let image = words.find(|delta| !delta.starts_with('@')).expect("a volume");
            let (image, _) = image.split_once(':').expect("an image and a delta");
            let to = scratch.path().join(set);
            reader.run(&["restore", set, text(&to)]);
            let expected = frozen.join("expected").join(format!("{set}.tree"));
            let expected = fs::read_to_string(expected).expect("what was in its snapshot");
            let lines = expected.lines().filter_map(|line| line.split_once('\t'));
            let mut expected: BTreeMap<_, _> =
                lines.map(|(path, rest)| (path.to_owned(), rest.to_owned())).collect();
            assert!(expected.len() > 70, "{}", expected.len());
            // The content of WAL is stored next to the set, not in the image.
            let (read, beside) = (tree_of(&to.join(image)), tree_of(&to.join("@files")));
            let hash = |line: &str| line.rsplit('\t').next().map(str::to_owned);
            for (path, line) in expected.iter_mut().filter(|(path, _)| path.starts_with("wal/")) {
                if let Some(stored) = beside.get(path) {
                    assert_eq!(hash(stored), hash(line), "{path}");
                    line.clone_from(&read[path]);
                }
            }
            assert_same_tree(&expected, &to.join(image));
        }
    }
}

/// In the clear and sealed, with increments, and after a prune that merged them and rewrote packs.
#[test]
fn the_second_reader_restores_what_a_prune_has_left() {
    let Some(python) = Reader::python() else { return };
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let key = secret_file(fixture.root(), "sealed.key", &"k".repeat(32));
    let table = |name: &str, more: &str| {
        let folder = fixture.root().join(name);
        format!("url = \"file://{}\"\ngrace_hours = 0\nrepack_below = 90\n{more}", folder.display())
    };
    let repositories =
        [("open", table("open", "")), ("sealed", table("sealed", &format!("key_file = {key}")))];
    let retention = "\n[clusters.main.retention]\nrepository = { last = 2 }\n";
    let lockstep = configured(&fixture, &repositories, retention);
    for (name, _) in &repositories {
        lockstep.expect(exit::DONE, &["repo", "init", name]);
    }
    let mut sets = Vec::new();
    for round in 2..6 {
        let changes = [
            format!(
                "UPDATE pgbench_accounts SET filler = md5(aid::text || {round}) WHERE aid % 2 = 0"
            ),
            format!("CREATE TABLE t{round} TABLESPACE ts1 AS SELECT generate_series(1, 5000) AS n"),
            format!("DROP TABLE IF EXISTS t{}", round - 2),
            "VACUUM pgbench_accounts".to_owned(),
            "CHECKPOINT".to_owned(),
        ];
        fixture.cluster.execute(&changes.each_ref().map(String::as_str));
        sets.push(lockstep.backup("label"));
    }
    for (name, _) in &repositories {
        let pruned = lockstep.json(&["prune", "--repository", name]);
        let place = &pruned["places"][0];
        let are_done = ["merged", "repacked"].map(|what| place[what].as_u64() > Some(0));
        assert_eq!(are_done, [true; 2], "the test tests nothing: {place}");
        let key = (*name == "sealed").then(|| fixture.root().join("sealed.key"));
        let reader = Reader { python: python.clone(), repository: fixture.root().join(name), key };
        assert!(reader.run(&["check"]).starts_with("2 sets, "));
        for set in &sets[2..] {
            assert_read_alike(&fixture, &lockstep, &reader, name, set);
        }
    }
}

/// Fails unless the reader restores the set's volumes as Lockstep does before it turns them into a cluster.
fn assert_read_alike(
    fixture: &Fixture,
    lockstep: &Lockstep,
    reader: &Reader,
    name: &str,
    set: &Set,
) {
    let (to, theirs) = (fixture.target(&format!("{name}-ours")), fixture.target(name));
    reader.run(&["restore", &set.id, text(&theirs)]);
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("restore.files");
    let from = format!("repository:{name}");
    let arguments = ["restore", &set.id, "--from", &from, "--as", "files", "--to", text(&to)];
    let mut running = lockstep.clone().with_steps(&steps).spawn(&arguments);
    steps.wait_reached("restore.files", &mut running);
    for volume in set.volumes.iter().filter(|volume| volume.parts != ["wal"]) {
        let dataset = DatasetName::new(&volume.dataset).expect("a dataset's name");
        let read = tree_of(&theirs.join(image_name(&dataset)));
        assert!(!read.is_empty(), "{}", volume.dataset);
        assert_same_tree(&read, &folder_of(&to, &volume.parts[0]));
    }
    steps.release("restore.files");
    let outcome = running.wait(LIMIT);
    assert!(outcome.ok(), "{}", outcome.describe());
    for folder in [&to, &theirs] {
        fs::remove_dir_all(folder).expect("it can be removed");
    }
}
