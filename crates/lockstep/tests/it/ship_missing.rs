//! `ship --missing`: what a repository lacks is shipped, whatever is wrong with other sets, and wherever it belongs
//! among the existing ones.

use std::fs;

use crate::support::cluster::Stop;
use crate::support::command::{command, must};
use crate::support::fixture::Fixture;
use crate::support::layout::{one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Set, Steps, exit, json_of, toml_string};
use crate::support::pools::{patiently, zfs};
use crate::support::shipping::{NAME, configured, folder, with_repository};
use lockstep::set::manifest::Manifest;
use rustix::process::Signal;
use serde_json::Value;

const MISSING: [&str; 3] = ["--json", "ship", "--missing"];
const NOTHING: &str = "each of this host's sets is there, or was and is pruned";

/// A set that isn't shipped, with `rows` rows.
fn kept_here(fixture: &Fixture, lockstep: &Lockstep, rows: u32) -> Set {
    fixture.cluster.execute(&[
        "CREATE TABLE IF NOT EXISTS counted (n int)",
        "TRUNCATE counted",
        &format!("INSERT INTO counted SELECT generate_series(1, {rows})"),
        "CHECKPOINT",
    ]);
    Set::of(&lockstep.json(&["backup", "--strategy", "label", "--no-ship"]))
}

/// A set's id, and why it wasn't shipped.
type Told<'a> = (&'a str, Option<&'a str>);

/// The sets in a command's output.
fn told(said: &Value) -> Vec<Told<'_>> {
    let sets = said["sets"].as_array().expect("a list").iter();
    sets.map(|set| {
        let there = &set["repositories"][0];
        assert_eq!(there["complete"].as_bool(), Some(there["error"].is_null()), "{there}");
        (set["set"].as_str().expect("an id"), there["error"].as_str())
    })
    .collect()
}

/// Fails unless exactly these sets are reported; those with words weren't shipped for that reason.
#[track_caller]
fn assert_told(said: &Value, expected: &[Told<'_>]) {
    let told = told(said);
    let is_right = |(found, expected): (&Told<'_>, &Told<'_>)| {
        found.0 == expected.0
            && match (found.1, expected.1) {
                (Some(why), Some(words)) => why.contains(words),
                (None, None) => true,
                _ => false,
            }
    };
    let are_right = told.len() == expected.len() && told.iter().zip(expected).all(is_right);
    assert!(are_right, "expected {expected:?}, told was {told:?}");
}

#[test]
fn sets_that_are_damaged_keep_no_other_away() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    lockstep.backup("label");
    let [gone, unread, good] = [10, 20, 30].map(|rows| kept_here(&fixture, &lockstep, rows));
    zfs(&["release", "lockstep", &gone.volumes[1].snapshot]);
    zfs(&["destroy", &gone.volumes[1].snapshot]);
    let manifest = fixture.state.join("clusters/main/sets").join(&unread.id).join("manifest.json");
    fs::write(&manifest, "{").expect("it can be damaged");

    let incomplete = format!("is incomplete: snapshot \"{}\" is gone", gone.volumes[1].snapshot);
    let damaged = format!("set {} is damaged", unread.id);
    let bad = [(&*gone.id, Some(&*incomplete)), (&*unread.id, Some(&*damaged))];
    let first = lockstep.expect(exit::PROBLEMS, &MISSING);
    let said = json_of(&first);
    assert_told(&said, &[bad[0], bad[1], (&good.id, None)]);
    for (set, hint) in bad.iter().zip(said["sets"].as_array().expect("a list")) {
        let hint = &hint["repositories"][0]["hint"];
        let words = format!("prune --local --set {}", set.0);
        assert!(hint.as_str().is_some_and(|hint| hint.contains(&words)), "{hint}");
    }
    // It is reported each time, and never that nothing is missing.
    let again = lockstep.expect(exit::PROBLEMS, &["ship", "--missing"]);
    assert!(!again.stdout.contains(NOTHING), "{}", again.describe());
    assert!(again.stderr.contains(&incomplete) && again.stderr.contains(&damaged));

    // Older than the newest set in the repository, and never stored there itself.
    let between = kept_here(&fixture, &lockstep, 40);
    let newest = lockstep.backup("label");
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &MISSING));
    assert_told(&said, &[bad[0], bad[1], (&between.id, None)]);
    for (set, rows) in [(&good, "30"), (&between, "40"), (&newest, "40")] {
        let to = fixture.target(&set.id);
        let more = ["--from", "repository", "--as", "files"];
        let restored = lockstep.restore_and_start(&set.id, &to, &more);
        let found = restored.server().value("postgres", "SELECT count(*) FROM counted");
        assert_eq!(found, rows, "{}", set.id);
        restored.server().stop(Stop::Fast);
        fs::remove_dir_all(&to).expect("it can be removed");
    }

    for set in [&gone, &unread] {
        lockstep.expect(exit::DONE, &["prune", "--local", "--set", &set.id]);
    }
    // A set that was there isn't shipped again, whoever pruned it.
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &between.id]);
    let nothing = lockstep.expect(exit::DONE, &["ship", "--missing"]);
    assert!(nothing.stdout.contains(NOTHING), "{}", nothing.describe());
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
    // Nor is one that was shipped when that couldn't be noted.
    let note = |set: &Set| {
        let folder = fixture.state.join("clusters/main/sets").join(&set.id);
        folder.join(format!("shipped.{NAME}.json"))
    };
    fs::remove_file(note(&good)).expect("it was noted");
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &good.id]);
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
}

/// Not even the newest, which a prune by policy would have kept.
#[test]
fn the_newest_that_was_pruned_by_name_is_not_brought_back() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    lockstep.backup("label");
    let newest = lockstep.backup("label");
    // It is needed as the base of the next increment, unless this host can't start from it.
    zfs(&["release", "lockstep", &newest.volumes[0].snapshot]);
    zfs(&["destroy", &newest.volumes[0].snapshot]);
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &newest.id]);
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
}

/// Another host made the same id for a set of its own: this one never got there.
#[test]
fn a_set_whose_id_another_host_s_set_has_is_missing() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label").id;
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
    // As if what is there were of other snapshots, and nobody here had seen it.
    let sets = fixture.state.join("clusters/main/sets").join(&set);
    let path = sets.join("manifest.json");
    let text = fs::read_to_string(&path).expect("a manifest");
    let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
    manifest["volumes"][0]["guid"] = "7".into();
    // Its checksum is computed again.
    manifest["checksum"] = "".into();
    let manifest: Manifest = serde_json::from_value(manifest).expect("a manifest");
    fs::write(&path, manifest.to_bytes().expect("a manifest")).expect("it can be written");
    fs::remove_file(sets.join(format!("shipped.{NAME}.json"))).expect("it was noted");
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &MISSING));
    assert_told(&said, &[(set.as_str(), Some("another host's set"))]);
}

/// Its snapshots are there under another name, and the set is good: nobody is told how to be rid of it.
#[test]
fn a_set_whose_dataset_was_renamed_waits_for_its_name() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let set = kept_here(&fixture, &lockstep, 10);
    let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == "ts2");
    let dataset = &fixture.datasets[place.expect("it has ts2")];
    let renamed = format!("{dataset}-renamed");
    fixture.cluster.stop(Stop::Fast);
    patiently("zfs", &["rename", dataset, &renamed], || ()).expect("nobody uses it");
    let refused = lockstep.run(&["ship", &set.id]).describe();
    let way_back = format!("it is \"{renamed}@lockstep-{}\" now", set.id);
    assert!(refused.contains(&way_back), "{refused}");
    assert!(!refused.contains("prune --local"), "{refused}");
    patiently("zfs", &["rename", &renamed, dataset], || ()).expect("nobody uses it");
    lockstep.expect(exit::DONE, &["ship", &set.id]);
}

/// If a repository fails, the next set isn't tried.
#[test]
fn a_repository_that_goes_away_ends_it() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let sets = [1, 2].map(|rows| kept_here(&fixture, &lockstep, rows));
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.views");
    let mut program = lockstep.clone().with_steps(&steps).spawn(&MISSING);
    steps.wait_reached("ship.views", &mut program);
    let away = fixture.root().join("away");
    fs::rename(folder(&fixture), &away).expect("it can be moved");
    steps.release("ship.views");
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::PROBLEMS), "{}", outcome.describe());
    assert_told(&json_of(&outcome), &[(&sets[0].id, Some("repository"))]);
    // What was written meanwhile has made folders again.
    let _ = fs::remove_dir_all(folder(&fixture));
    fs::rename(&away, folder(&fixture)).expect("it can be moved");
    assert_told(&lockstep.json(&MISSING[1..]), &[(&sets[0].id, None), (&sets[1].id, None)]);
}

/// What was shipped before the signal is reported, and that it isn't everything.
#[test]
fn what_was_done_before_an_interruption_is_told() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let sets = [1, 2].map(|rows| kept_here(&fixture, &lockstep, rows));
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.published");
    let mut program = lockstep.clone().with_steps(&steps).spawn(&MISSING);
    steps.wait_reached("ship.published", &mut program);
    steps.hold("ship.leased");
    steps.release("ship.published");
    steps.wait_reached("ship.leased", &mut program);
    program.signal(Signal::INT);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    let said = json_of(&outcome);
    assert_told(&said, &[(&sets[0].id, None)]);
    assert_eq!(said["partial"], true, "{said}");
    let rest = lockstep.json(&MISSING[1..]);
    assert_told(&rest, &[(&sets[1].id, None)]);
    assert_eq!(rest["partial"], false, "{rest}");
}

/// Notes are about the repository itself: one that was made again under the same name has none of them.
#[test]
fn a_repository_that_was_made_anew_gets_what_the_former_one_had() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let [first, second] = [(); 2].map(|()| lockstep.backup("label").id);
    let id = &lockstep.json(&["repo", "list"])["repositories"][0]["id"];
    let id = id.as_str().expect("a repository has an id").to_owned();
    fs::remove_dir_all(folder(&fixture)).expect("it can be lost");
    lockstep.expect(exit::DONE, &["repo", "init", NAME, "--instead-of", &id]);
    let third = lockstep.backup("label").id;
    let listed = lockstep.json(&["list"]);
    for set in listed["sets"].as_array().expect("a list") {
        let expected = usize::from(set["set"] == *third);
        let found = set["in_repositories"].as_array().map(Vec::len);
        assert_eq!(found, Some(expected), "{listed}");
    }
    assert_told(&lockstep.json(&MISSING[1..]), &[(&first, None), (&second, None)]);
    let listed = lockstep.json(&["list"]);
    assert!(!listed.to_string().contains("\"in_repositories\":[]"), "{listed}");
    // So are the marks of pruned sets.
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &first]);
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
}

/// An empty list of sets would read as if nothing were missing.
#[test]
fn a_repository_that_can_t_be_asked_is_named() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    kept_here(&fixture, &lockstep, 1);
    let away = fixture.root().join("away");
    fs::rename(folder(&fixture), &away).expect("it can be moved");
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &MISSING));
    assert_told(&said, &[]);
    let failed = said["failed"].as_array().expect("a list");
    assert_eq!(failed.len(), 1, "{said}");
    assert_eq!(failed[0]["repository"], NAME, "{said}");
    assert!(failed[0]["error"].is_string() && failed[0]["hint"].is_string(), "{said}");
    fs::rename(&away, folder(&fixture)).expect("it can be moved");
    assert_eq!(lockstep.json(&MISSING[1..])["failed"], serde_json::json!([]));
}

/// A second repository that was made by copying the first has the same id: notes about one don't apply to the other.
#[test]
fn a_repository_that_was_copied_from_another_has_notes_of_its_own() {
    let fixture = Fixture::new(one_pool());
    let table = |name: &'static str| {
        let url = format!("file://{}", fixture.root().join(name).display());
        let url = toml_string(std::path::Path::new(&url));
        (name, format!("url = {url}\ngrace_hours = 0"))
    };
    let fixture = &fixture;
    let keeping = |local: u32| {
        format!(
            "\n[clusters.main.retention]\nlocal = {{ last = {local} }}\nrepositories.near = {{ last = 1 }}\n"
        )
    };
    let lockstep = configured(fixture, &[table("near")], &keeping(20));
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let backup = |lockstep: &Lockstep| {
        fixture
            .cluster
            .execute(&["CREATE TABLE IF NOT EXISTS t (n int)", "INSERT INTO t VALUES (1)"]);
        let taken = lockstep.run(&["--json", "backup", "--strategy", "label"]);
        Set::of(&json_of(&taken)).id
    };
    let seeded = backup(&lockstep);
    let [near, far, away] = ["near", "far", "away"].map(|name| fixture.root().join(name));
    let paths = [&near, &far].map(|path| path.to_str().expect("UTF-8"));
    must(&mut command("cp", ["-a", paths[0], paths[1]]));
    let both = [table("near"), table("far")];
    let lockstep = configured(fixture, &both, &keeping(20));
    let common = backup(&lockstep);
    let checked = lockstep.run(&["check"]);
    assert!(checked.stdout.contains("near and far have one id"), "{}", checked.describe());

    let come_back = || {
        // What was written meanwhile has made folders again.
        let _ = fs::remove_dir_all(&far);
        fs::rename(&away, &far).expect("it can be moved");
    };
    fs::rename(&far, &away).expect("it can be moved");
    let [third, fourth] = [(); 2].map(|()| backup(&lockstep));
    lockstep.expect(exit::DONE, &["prune", "--repository", "near"]);
    let listed = lockstep.json(&["list"]);
    let names: Vec<Vec<&str>> = listed["sets"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|set| {
            let all = set["in_repositories"].as_array().expect("a list").iter();
            all.map(|one| one["repository"].as_str().expect("a name")).collect()
        })
        .collect();
    assert_eq!(names, [&[][..], &["far"], &[], &["near"]], "{listed}");
    // The newest set that the unreachable repository has stays, whatever the other one has.
    let few = configured(fixture, &both, &keeping(1));
    few.expect(exit::PROBLEMS, &["prune", "--local"]);
    assert_eq!(few.sets(), [common.as_str(), fourth.as_str()]);
    come_back();
    let said = lockstep.json(&MISSING[1..]);
    let told = |set: &Value| set["set"].as_str().map(str::to_owned);
    let told: Vec<_> = said["sets"].as_array().expect("a list").iter().filter_map(told).collect();
    assert_eq!(told, [fourth.as_str()], "{said}");
    let there = lockstep.json(&["list", "--from", "repository:far"]).to_string();
    assert!([&seeded, &common, &fourth].iter().all(|set| there.contains(*set)), "{there}");
    assert!(!there.contains(&third), "it is gone from here too: {there}");
}

/// Its id shows that it is the same: sets that it had aren't shipped again, and messages don't use the former name.
#[test]
fn a_repository_has_what_it_had_under_another_name() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let sets = [(); 3].map(|()| lockstep.backup("label").id);
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &sets[0]]);
    // Another host's prune leaves the note here.
    let note = |set: &str, name: &str| {
        fixture.state.join("clusters/main/sets").join(set).join(format!("shipped.{name}.json"))
    };
    let noted = fs::read(note(&sets[1], NAME)).expect("it was noted");
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &sets[1]]);
    let mark = fixture.state.join("clusters/main/sets").join(&sets[1]);
    fs::remove_file(mark.join(format!("pruned.{NAME}"))).expect("it was marked");
    fs::write(note(&sets[1], NAME), noted).expect("it can be written");

    let url = format!("file://{}", folder(&fixture).display());
    let table = format!("url = {}", toml_string(std::path::Path::new(&url)));
    let lockstep = configured(&fixture, &[("disk", table)], "");
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
    let in_repositories = || -> Vec<String> {
        let listed = lockstep.json(&["list"]);
        let of = |set: &Value| set["in_repositories"][0]["repository"].to_string();
        listed["sets"].as_array().expect("a list").iter().map(of).collect()
    };
    assert_eq!(in_repositories(), ["null"; 3], "nothing says yet what it is called now");
    let newest = lockstep.backup("label").id;
    assert_eq!(in_repositories()[2..], ["\"disk\"", "\"disk\""]);
    // What is marked under the new name is no longer noted under the old one.
    lockstep.expect(exit::DONE, &["prune", "--repository", "disk", "--set", &sets[2]]);
    assert!(!note(&sets[2], NAME).exists() && note(&newest, "disk").exists());
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
}

/// Puts a copy of a repository's folder in its place.
fn go_back(fixture: &Fixture, copy: &std::path::Path) {
    fs::remove_dir_all(folder(fixture)).expect("it can be removed");
    fs::rename(copy, folder(fixture)).expect("it can be moved");
}

/// A copy of a repository's folder as it is now.
fn copied(fixture: &Fixture, name: &str) -> std::path::PathBuf {
    let copy = fixture.root().join(name);
    let paths = [&folder(fixture), &copy].map(|path| path.to_str().expect("UTF-8").to_owned());
    must(&mut command("cp", ["-a", paths[0].as_str(), &paths[1]]));
    copy
}

/// The sets that a backup or a shipment says its repository lost.
fn lost(said: &Value) -> Vec<&str> {
    let all = said["repositories"][0]["went_back"]["lost"].as_array();
    all.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What is left is whole, and the next increment starts from it; but what came after it is named until it is back.
#[test]
fn what_a_storage_lost_when_it_went_back_is_told_until_it_is_there_again() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let backup = |code: i32, rows: u32| {
        fixture.cluster.execute(&[
            "CREATE TABLE IF NOT EXISTS counted (n int)",
            "TRUNCATE counted",
            &format!("INSERT INTO counted SELECT generate_series(1, {rows})"),
            "CHECKPOINT",
        ]);
        let outcome = lockstep.expect(code, &["--json", "backup", "--strategy", "label"]);
        let said = json_of(&outcome);
        (Set::of(&said).id, said, outcome)
    };
    let (first, ..) = backup(exit::DONE, 10);
    let old = copied(&fixture, "old");
    let (second, ..) = backup(exit::DONE, 20);
    let (third, ..) = backup(exit::DONE, 30);
    go_back(&fixture, &old);

    let (fourth, said, outcome) = backup(exit::PROBLEMS, 40);
    assert_eq!(lost(&said), [second.as_str(), &third], "{said}");
    assert_eq!(said["repositories"][0]["complete"], true, "{said}");
    let words = "its storage went back to an older state";
    assert!(outcome.stderr.contains(words), "{}", outcome.describe());
    let in_repositories = || -> Vec<usize> {
        let listed = lockstep.json(&["list"]);
        let sets = listed["sets"].as_array().expect("a list").iter();
        sets.map(|set| set["in_repositories"].as_array().map_or(0, Vec::len)).collect()
    };
    assert_eq!(in_repositories(), [1, 0, 0, 1]);
    // The shipments that follow don't make it forgotten.
    let (fifth, said, _) = backup(exit::PROBLEMS, 50);
    assert_eq!(lost(&said), [second.as_str(), &third], "{said}");
    let again = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "ship", &fifth]));
    assert_eq!(lost(&again), [second.as_str(), &third], "{again}");
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains(words), "{}", checked.describe());

    let missing = lockstep.expect(exit::DONE, &MISSING);
    assert_told(&json_of(&missing), &[(&second, None), (&third, None)]);
    let checked = lockstep.run(&["check"]);
    assert!(!checked.stdout.contains(words), "{}", checked.describe());
    assert_eq!(in_repositories(), [1; 5]);
    for (set, rows) in
        [(&first, "10"), (&second, "20"), (&third, "30"), (&fourth, "40"), (&fifth, "50")]
    {
        let to = fixture.target(set);
        let more = ["--from", "repository", "--as", "files"];
        let restored = lockstep.restore_and_start(set, &to, &more);
        let found = restored.server().value("postgres", "SELECT count(*) FROM counted");
        assert_eq!(found, rows, "{set}");
        restored.server().stop(Stop::Fast);
        fs::remove_dir_all(&to).expect("it can be removed");
    }

    // A process that is killed before it notes what it published makes nothing look lost.
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.published");
    let mut program = lockstep.clone().with_steps(&steps).spawn(&["backup"]);
    steps.wait_reached("ship.published", &mut program);
    program.signal(Signal::KILL);
    program.wait(LIMIT);
    let (_, said, _) = backup(exit::DONE, 60);
    assert_eq!(lost(&said), [""; 0], "{said}");
}

/// Sets that only the repository had can't come back: that is said until somebody ships what can. It is found under
/// another name too, and by `check`.
#[test]
fn what_a_storage_lost_for_good_is_told_until_the_rest_is_shipped() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    lockstep.backup("label");
    let old = copied(&fixture, "old");
    let [second, third] = [(); 2].map(|()| lockstep.backup("label").id);
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &second]);

    let url = format!("file://{}", old.display());
    let table = format!("url = {}", toml_string(std::path::Path::new(&url)));
    let lockstep = configured(&fixture, &[("disk", table)], "");
    let words = "its storage went back to an older state: 2 sets";
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains(words), "{}", checked.describe());
    assert!(checked.stdout.contains("brings back the 1 of 2"), "{}", checked.describe());
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &MISSING));
    assert_told(&said, &[(&third, None)]);
    assert_eq!(said["went_back"][0]["lost"], serde_json::json!([second]), "{said}");
    assert_told(&lockstep.json(&MISSING[1..]), &[]);
    let checked = lockstep.run(&["check"]);
    assert!(!checked.stdout.contains("went back"), "{}", checked.describe());
    lockstep.backup("label");
}

/// The later state is found and put back: what was shipped to the older one in between is lost in turn.
#[test]
fn a_later_state_that_is_put_back_lacks_what_was_shipped_meanwhile() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    lockstep.backup("label");
    let old = copied(&fixture, "old");
    let second = lockstep.backup("label").id;
    lockstep.backup("label");
    let later = copied(&fixture, "later");
    go_back(&fixture, &old);
    let backup = ["--json", "backup", "--strategy", "label"];
    let outcome = lockstep.expect(exit::PROBLEMS, &backup);
    let said = json_of(&outcome);
    assert_eq!(lost(&said).first(), Some(&second.as_str()), "{said}");
    let meanwhile = Set::of(&said).id;
    go_back(&fixture, &later);
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &backup));
    assert_eq!(lost(&said), [meanwhile.as_str()], "{said}");
    assert_told(&lockstep.json(&MISSING[1..]), &[(&meanwhile, None)]);
    lockstep.backup("label");
}

/// The later state is put back once nothing was noted as lost any more. Its generation is the higher one, and the
/// leases that this host took show that it is another copy.
#[test]
fn a_later_state_that_is_put_back_after_all_was_shipped_lacks_it_too() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let first = lockstep.backup("label").id;
    let old = copied(&fixture, "old");
    for _ in 0..4 {
        lockstep.backup("label");
    }
    let local: Vec<_> = lockstep.sets();
    for set in local.iter().filter(|set| **set != local[local.len() - 1]) {
        lockstep.expect(exit::DONE, &["prune", "--local", "--set", set]);
    }
    let later = copied(&fixture, "later");
    go_back(&fixture, &old);
    let backup = ["--json", "backup", "--strategy", "label"];
    let meanwhile = Set::of(&json_of(&lockstep.expect(exit::PROBLEMS, &backup))).id;
    // The one that is still here is shipped, and the others are given up.
    lockstep.expect(exit::PROBLEMS, &MISSING);
    let (after, said) = {
        let said = json_of(&lockstep.expect(exit::DONE, &backup));
        (Set::of(&said).id, said)
    };
    assert_eq!(lost(&said), [""; 0], "{said}");

    go_back(&fixture, &later);
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &backup));
    assert_eq!(lost(&said), [meanwhile.as_str(), &after], "{said}");
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains("went back to an older state"), "{}", checked.describe());
    assert_told(&lockstep.json(&MISSING[1..]), &[(&meanwhile, None), (&after, None)]);
    let there = lockstep.json(&["list", "--from", "repository"]).to_string();
    assert!([&first, &meanwhile, &after].iter().all(|set| there.contains(*set)), "{there}");
    let checked = lockstep.run(&["check"]);
    assert!(!checked.stdout.contains("went back"), "{}", checked.describe());
}

/// Neither here nor in the repository: nothing but what was seen there says that these sets were there.
#[test]
fn what_was_pruned_here_and_there_is_not_called_lost() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let sets = [(); 4].map(|()| lockstep.backup("label"));
    // The newest is needed as the base of the next increment, unless this host can't start from it.
    zfs(&["release", "lockstep", &sets[3].volumes[0].snapshot]);
    zfs(&["destroy", &sets[3].volumes[0].snapshot]);
    for set in [&sets[0], &sets[1], &sets[3]] {
        lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &set.id]);
        lockstep.expect(exit::DONE, &["prune", "--local", "--set", &set.id]);
    }
    let leases = folder(&fixture).join("clusters/main/leases");
    let remove_leases = || fs::remove_dir_all(&leases).expect("they can be removed");
    remove_leases();
    let checked = lockstep.run(&["check"]);
    assert!(!checked.stdout.contains("went back"), "{}", checked.describe());
    let newest = lockstep.backup("label").id;
    // What is really lost is named, and nothing else.
    let manifest = folder(&fixture).join(format!("clusters/main/sets/{newest}.json"));
    fs::remove_file(manifest).expect("it can be removed");
    remove_leases();
    let said =
        json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup", "--strategy", "label"]));
    assert_eq!(lost(&said), [newest.as_str()], "{said}");
}
