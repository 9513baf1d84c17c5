//! The first full shipment takes longer than the time between two interruptions: newer sets must not make it start
//! from scratch each time, and `prune` must not remove what it continues from, on either side.

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::wait_until;
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{LIMIT, Lockstep, Set, Steps, exit, json_of};
use crate::support::shipping::{folder, packs, with_options};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use strata::check::{self, Begun, Doomed, Run, Terms};
use strata::lease::HELD;
use strata::pack::PackWriter;
use strata::store::{ObjectStorage, Store};

const SCALE: u32 = 1;

/// The program, and the set whose first full shipment was killed.
fn killed_in_the_first_full(fixture: &Fixture) -> (Lockstep, String) {
    // More than a few packs; this can't be compressed to less than half.
    let row = "(SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 60) i)";
    fixture.cluster.execute(&[
        &format!("CREATE TABLE large TABLESPACE ts1 AS SELECT n, {row} AS t FROM generate_series(1, 60000) n"),
        "CHECKPOINT",
    ]);
    // What nobody needs is removed at once.
    let keeps = "local = { last = 1 }\nrepository = { last = 1 }";
    let options = format!("grace_hours = 0\n\n[clusters.main.retention]\n{keeps}\n");
    let lockstep = with_options(fixture, &options);
    let steps = Steps::new(fixture.root().join("steps"));
    let hooked = lockstep.clone().with_steps(&steps);
    steps.delay("ship.progress", Duration::from_millis(30));
    let mut program = hooked.spawn(&["--json", "backup", "--strategy", "label"]);
    wait_until("a pack of the large volume is stored", LIMIT, || {
        assert!(program.is_running(), "it ended before it could be killed");
        packs(fixture)
            .iter()
            .any(|(path, size)| *size > 20 << 20 && !path.to_string_lossy().contains('#'))
    });
    program.kill();
    program.wait(LIMIT);
    let begun = lockstep.sets().pop().expect("the set is there");
    (lockstep, begun)
}

/// Pages that haven't changed since aren't seen again, so nothing else would report them.
#[test]
fn damaged_pages_of_what_is_finished_first_are_told() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.execute(&[
        "CREATE TABLE rotten TABLESPACE ts1 AS SELECT n, repeat('x', 500) FROM generate_series(1, 500) n",
        "CHECKPOINT",
    ]);
    let path = fixture.cluster.value("postgres", "SELECT pg_relation_filepath('rotten')");
    fixture.cluster.stop(Stop::Fast);
    let file = fs::OpenOptions::new().write(true).open(fixture.cluster.data.join(path));
    file.and_then(|file| file.write_all_at(b"rot", 3 * 8192 + 4000)).expect("it can be damaged");
    fixture.cluster.start();
    let (lockstep, begun) = killed_in_the_first_full(&fixture);
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup"]));
    let there = &said["repositories"][0];
    let first = &there["finished_first"];
    assert_eq!((&first["set"], &first["bad_pages"]), (&(&*begun).into(), &1.into()), "{there}");
    assert_eq!((&there["complete"], &there["bad_pages"]), (&true.into(), &0.into()), "{there}");
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    let words = format!("set {begun} has 1 damaged pages");
    assert!(checked.stdout.contains(&words), "{}", checked.describe());
}

#[test]
fn a_full_that_was_begun_is_finished_before_a_newer_set() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(SCALE);
    let (lockstep, begun) = killed_in_the_first_full(&fixture);
    let stored = packs(&fixture);
    fixture.cluster.execute(&["CREATE TABLE later AS SELECT 7 AS n"]);
    a_note_that_was_left_is_in_nobody_s_way(&fixture, &lockstep, &begun);

    // A night in which nothing is shipped, and what cron runs then.
    lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    for tidying in [
        &["prune", "--json"][..],
        &["repo", "compact"],
        &["repo", "check", "--repair"],
        &["prune", "--json"],
    ] {
        let outcome = lockstep.expect(exit::DONE, tidying);
        let what = outcome.describe();
        assert!(tidying[0] == "repo" || what.contains("half shipped to repository"), "{what}");
        let left = packs(&fixture);
        // Except for those that were being sent.
        let gone = stored.keys().filter(|pack| !left.contains_key(*pack)).count();
        assert!(gone <= 2 && left.len() + 2 >= stored.len(), "{gone} went: {what}");
        assert!(lockstep.sets().contains(&begun), "{what}");
    }
    let stored = packs(&fixture);

    let newer = lockstep.backup("label");
    let there = lockstep.json(&["list", "--from", "repository"]);
    let there: Vec<_> =
        there["sets"].as_array().expect("sets").iter().map(|set| &set["set"]).collect();
    assert_eq!(there, [begun.as_str(), newer.id.as_str()], "{}", newer.json);
    let after = packs(&fixture);
    assert!(stored.keys().all(|pack| after.contains_key(pack)), "what was stored was used");
    let volumes = newer.json["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| !volume["base"].is_null()), "{volumes:?}");
    let stored: u64 = volumes.iter().filter_map(|volume| volume["stored_bytes"].as_u64()).sum();
    assert!(stored < 10 << 20, "the newer set is an increment: {volumes:?}");

    for set in [&begun, &newer.id] {
        let to = fixture.target(set);
        let more = ["--from", "repository", "--as", "files"];
        let restored = lockstep.restore_and_start(set, &to, &more);
        assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM large"), "60000");
        Checker::new(SCALE).check_and_stop(restored.server()).assert_right(set);
    }
}

/// The killed shipment's note exists: looking at it takes no lock, and the note has no effect on another's.
fn a_note_that_was_left_is_in_nobody_s_way(fixture: &Fixture, lockstep: &Lockstep, begun: &str) {
    let state = fixture.state.join("clusters/main");
    let (note, lock) = (state.join("ship-offsite.sets"), state.join("ship-offsite.lock"));
    let noted = || fs::read_to_string(&note).unwrap_or_default();
    let holder = || fs::read_to_string(&lock).expect("the shipment has made it");
    let before = holder();
    assert!(noted().contains(begun), "{}", noted());
    let look = ["prune", "--local", "--dry-run"];
    let looked = lockstep.expect(exit::DONE, &look);
    assert_eq!(holder(), before, "a lock that is only looked at: {}", looked.describe());
    assert!(!looked.stdout.contains("being shipped"), "{}", looked.describe());
    let steps = Steps::new(fixture.root().join("steps-of-prune"));
    steps.hold("prune.leased");
    let prune = ["prune", "--repository", "offsite"];
    let mut pruning = lockstep.clone().with_steps(&steps).spawn(&prune);
    steps.wait_reached("prune.leased", &mut pruning);
    let looked = lockstep.expect(exit::DONE, &look);
    assert!(!looked.stdout.contains("being shipped"), "{}", looked.describe());
    steps.release("prune.leased");
    let outcome = pruning.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
}

/// As with `ship --missing`: nothing keeps what was stored of such a set, but if it is still there, it is used.
#[test]
fn what_an_older_set_goes_on_from_is_struck_out_of_the_note() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_options(&fixture, "");
    lockstep.backup("label");
    fixture.cluster.execute(&[
        "CREATE TABLE more TABLESPACE ts1 AS SELECT n FROM generate_series(1, 1000) n",
        "CHECKPOINT",
    ]);
    let older = lockstep.json(&["backup", "--no-ship"])["set"].as_str().expect("an id").to_owned();
    let journals = || {
        let listed = fs::read_dir(fixture.state.join("clusters/main/shipping"));
        listed.into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let named = || -> BTreeSet<_> {
        let journals = journals().into_iter();
        journals.flat_map(|at| PackWriter::stored_before(&at).expect("a journal")).collect()
    };
    // All packs of a volume are stored before its delta.
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.replacing");
    let mut program = lockstep.clone().with_steps(&steps).spawn(&["ship", &older]);
    wait_until("a journal names a pack", LIMIT, || {
        assert!(program.is_running(), "it ended before it could be killed");
        !named().is_empty()
    });
    program.kill();
    program.wait(LIMIT);
    lockstep.backup("label");

    let storage = ObjectStorage::folder(&folder(&fixture)).expect("a folder");
    let repository = strata::Repository::new(Store::new(storage), "clusters/main", None);
    let repository = repository.expect("a repository");
    let now = u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970");
    let terms = Terms::at(3600, now + 10_000);
    check::collect(&repository, &Begun::default(), terms, Run::Real, HELD).expect("collected");
    let is_noted = |path: &String| {
        let noted = Doomed::read(&repository).expect("a note");
        noted.since(path).is_some()
    };
    let stored: Vec<_> = named().into_iter().map(|pack| repository.pack_path(pack)).collect();
    assert!(!stored.is_empty() && stored.iter().all(is_noted), "{stored:?}");
    lockstep.expect(exit::DONE, &["ship", &older]);
    assert!(!stored.iter().any(is_noted), "{stored:?}");
}

/// But if a manifest can't be read, nobody knows whose they are.
#[test]
fn journals_of_sets_that_are_gone_go() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let (lockstep, begun) = killed_in_the_first_full(&fixture);
    let state = fixture.state.join("clusters/main");
    let journals = || {
        let listed = fs::read_dir(state.join("shipping")).expect("it is there").flatten();
        listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let abandoned = journals();
    assert!(!abandoned.is_empty());
    let other = lockstep.json(&["backup", "--no-ship"])["set"].as_str().expect("an id").to_owned();
    let manifest = state.join("sets").join(&other).join("manifest.json");
    let whole = fs::read(&manifest).expect("it is there");
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &begun]);
    assert_eq!(journals(), abandoned);

    fs::write(&manifest, "{").expect("it can be damaged");
    lockstep.backup("label");
    let left = journals();
    assert!(abandoned.iter().all(|journal| left.contains(journal)), "{abandoned:?}, left {left:?}");
    fs::write(&manifest, whole).expect("it can be mended");
    lockstep.backup("label");
    assert_eq!(journals(), [] as [String; 0]);
}

/// On zfs-fuse the shipment looks into clones, but not before it has begun.
#[test]
fn a_set_that_is_being_shipped_stays_here_meanwhile() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let retention = "[clusters.main.retention]\nlocal = { last = 1 }";
    let lockstep = with_options(&fixture, &format!("\n{retention}\n"));
    let steps = Steps::new(fixture.root().join("steps"));
    let hooked = lockstep.clone().with_steps(&steps);
    let text = fs::read_to_string(fixture.root().join("shipping.toml")).expect("the configuration");
    let path = fixture.root().join("without.toml");
    let names = "repositories = [\"offsite\"]";
    assert!(text.contains(names), "{text}");
    fs::write(&path, text.replace(names, "repositories = []")).expect("it can be written");
    let elsewhere = Lockstep::new(&path, &fixture.cluster.bin);
    for step in ["ship.leased", "ship.stored"] {
        let before = lockstep.sets();
        steps.hold(step);
        let mut program = hooked.spawn(&["--json", "backup", "--strategy", "label"]);
        steps.wait_reached(step, &mut program);
        let mut sets = lockstep.sets();
        sets.retain(|set| !before.contains(set));
        let set = sets.pop().expect("the set is there");
        lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
        let pruned = lockstep.expect(exit::DONE, &["prune", "--local", "--json"]);
        let what = pruned.describe();
        assert!(what.contains("being shipped to repository offsite"), "{step}: {what}");
        // Even if the repository is no longer one of the cluster's.
        let removed = elsewhere.expect(exit::DONE, &["prune", "--local", "--dry-run"]);
        let what = removed.describe();
        assert!(what.contains("being shipped to repository offsite"), "{step}: {what}");
        let named = lockstep.expect(exit::PROBLEMS, &["prune", "--local", "--set", &set]);
        assert!(named.describe().contains("being shipped"), "{step}: {}", named.describe());
        assert!(lockstep.sets().contains(&set), "{step}: {what}");
        if step == "ship.stored" {
            // It can't be noted that the set is there, but it is.
            let note = fixture.state.join("clusters/main/sets").join(&set);
            let note = note.join("shipped.offsite.json/in-the-way");
            std::fs::create_dir_all(note).expect("a folder can be made");
        }
        steps.release(step);
        let outcome = program.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::DONE), "{step}: {}", outcome.describe());
        let there = lockstep.json(&["list", "--from", "repository"]).to_string();
        assert!(there.contains(&set), "{step}: {there}");
    }
}

/// After a first shipment no other set is in common: the next one would be sent in full again.
#[test]
fn a_set_whose_first_shipment_ends_during_a_prune_stays() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let retention = "[clusters.main.retention]\nlocal = { last = 1 }";
    let lockstep = with_options(&fixture, &format!("\n{retention}\n"));
    let taken = || Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    // While the repositories are asked, and while others are removed.
    for step in ["prune.asked", "prune.set"] {
        let [first, _newest] = [(); 2].map(|()| taken());
        let steps = Steps::new(fixture.root().join(step));
        steps.hold(step);
        let mut pruning = lockstep.clone().with_steps(&steps).spawn(&["prune", "--local"]);
        steps.wait_reached(step, &mut pruning);
        lockstep.expect(exit::DONE, &["ship", &first]);
        steps.release(step);
        let outcome = pruning.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::DONE), "{step}: {}", outcome.describe());
        assert!(lockstep.sets().contains(&first), "{step}: {}", outcome.describe());
        lockstep.expect(exit::DONE, &["prune", "--local"]);
        assert_eq!(lockstep.sets().len(), 2, "{step}: the newest, and the newest in common");
    }
}
