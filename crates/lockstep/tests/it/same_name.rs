//! Two clusters with the same name in their configurations, and one repository: neither takes the other's sets for
//! its own.

use std::fs;

use crate::support::by_hand::write_as_postgres;
use crate::support::cluster::Stop;
use crate::support::faults::assert_said;
use crate::support::fixture::Fixture;
use crate::support::layout::one_dataset;
use crate::support::lockstep::{Lockstep, exit, json_of, toml_string};
use crate::support::shipping::{NAME, configured, folder, other_host};
use serde_json::{Value, json};

const PRUNE: [&str; 3] = ["prune", "--repository", NAME];

/// The program for a cluster that ships to the first one's repository; `more` are lines of the cluster's table.
fn program(fixture: &Fixture, first: &Fixture, more: &str) -> Lockstep {
    let table = format!("url = \"file://{}\"\ngrace_hours = 0", folder(first).display());
    let retention = "\n[clusters.main.retention]\nrepository = { last = 1 }\n";
    let lockstep = configured(fixture, &[(NAME, table)], retention);
    let path = fixture.root().join("shipping.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let text = text.replace("\nrepositories = [", &format!("\n{more}\nrepositories = ["));
    fs::write(&path, text).expect("it can be written");
    lockstep
}

fn listed(lockstep: &Lockstep) -> Value {
    let listed = lockstep.json(&["list", "--from", "repository"]);
    listed["sets"].as_array().expect("sets").iter().map(|set| set["set"].clone()).collect()
}

fn identifier(fixture: &Fixture) -> String {
    fixture.cluster.value("postgres", "SELECT system_identifier FROM pg_control_system()")
}

#[test]
fn another_clusters_sets_are_neither_mixed_nor_restored_nor_pruned() {
    let (first, other) = (Fixture::new(one_dataset()), Fixture::new(one_dataset()));
    let (here, there) = (program(&first, &first, ""), program(&other, &first, ""));
    here.expect(exit::DONE, &["repo", "init"]);
    let mut sets = Vec::new();
    for _ in 0..2 {
        sets.push(here.backup("label").id);
        // Sets of the same second have no order.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    // It knows nothing yet, and it is clear whose sets are meant.
    there.expect(exit::DONE, &["show", "latest", "--from", "repository"]);
    // But its data directory shows that they aren't its own, so its retention policy doesn't apply to them.
    let left = there.expect(exit::PROBLEMS, &PRUNE);
    assert_said(&left, &["is left: it is of system identifier", &sets[0], &sets[1]]);
    assert_eq!(listed(&here), json!(sets), "none is removed");
    // If that can't be read either, nobody knows.
    let blind = other_host(&other, "blind", &other.root().join("nowhere"));
    for arguments in [&PRUNE[..], &[&PRUNE[..], &["--dry-run"]].concat()] {
        let refused = blind.expect(exit::REFUSED, arguments);
        assert_said(&refused, &["nobody can tell which sets", "pg_control", "hint: ", "formerly"]);
    }
    assert_eq!(listed(&here), json!(sets), "none is removed");
    blind.expect(exit::DONE, &["show", "latest", "--from", "repository"]);

    let refused = there.expect(exit::PROBLEMS, &["--json", "backup"]);
    let shipped = json_of(&refused)["repositories"][0].clone();
    assert_eq!(shipped["complete"], json!(false), "{shipped}");
    for identifier in [identifier(&first), identifier(&other)] {
        assert!(shipped["error"].to_string().contains(&identifier), "{shipped}");
    }
    let formerly = format!("formerly = [\"{}\"]", identifier(&first));
    assert!(shipped["hint"].as_str().expect("a hint").contains(&formerly), "{shipped}");
    let left = there.expect(exit::PROBLEMS, &PRUNE);
    assert_said(&left, &["is left: it is of system identifier", &sets[0]]);
    assert_eq!(listed(&here), json!(sets), "none is removed");
    let target = other.target("latest");
    let target = target.to_str().expect("UTF-8");
    let latest = ["restore", "latest", "--from", "repository", "--as", "files", "--to", target];
    assert_said(&there.expect(exit::USAGE, &latest), &["no set of this host's cluster", &sets[1]]);
    let checked = there.expect(exit::PROBLEMS, &["check"]);
    assert!(
        checked.stdout.contains("2 of its sets are of another cluster"),
        "{}",
        checked.describe()
    );

    // Its owner says that it is the same cluster after pg_upgrade.
    let upgraded = program(&other, &first, &formerly);
    upgraded.expect(exit::DONE, &["ship"]);
    let newest = listed(&here)[2].clone();
    here.expect(exit::PROBLEMS, &["backup"]);
    // Another host, with neither sets nor that line, learns it from the sets.
    upgraded.expect(exit::DONE, &PRUNE);
    assert_eq!(listed(&here), json!([newest]));
}

/// A cluster that had a timeline 2 is upgraded, and starts at timeline 1 again.
#[test]
fn timelines_and_older_restores_of_before_pg_upgrade() {
    let (first, other) = (Fixture::new(one_dataset()), Fixture::new(one_dataset()));
    let here = program(&first, &first, "");
    here.expect(exit::DONE, &["repo", "init"]);
    let cluster = &first.cluster;
    cluster.stop(Stop::Fast);
    write_as_postgres(&cluster.data.join("standby.signal"), "");
    cluster.start();
    cluster.execute(&["SELECT pg_promote()"]);
    let old = here.backup("label").id;
    let shown = here.json(&["show", &old]);
    assert_eq!(shown["postgres"]["timeline"], json!(2), "the test tests nothing: {shown}");
    let to = first.target("warm");
    here.restore(&old, &to, &["--from", "repository", "--as", "files"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let between = jiff::Timestamp::now().to_string();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    cluster.stop(Stop::Fast);

    let formerly = format!(
        "formerly = [\"{}\"]",
        shown["postgres"]["system_identifier"].as_str().expect("it says so")
    );
    let upgraded = program(&other, &first, &formerly);
    // A host that is kept ready to take over.
    let warm = other_host(&other, "warm", &to.join("data"));
    let path = other.root().join("shipping.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let text = text.replace(&toml_string(&other.state), &toml_string(&first.state));
    fs::write(&path, text).expect("it can be written");
    other.cluster.execute(&["CREATE TABLE t AS SELECT 7 AS n"]);
    let new = upgraded.backup("label").id;

    let now = jiff::Timestamp::now().to_string();
    let planned = first.target("planned");
    let planned = planned.to_str().expect("UTF-8");
    for from in [&[][..], &["--from", "repository"]] {
        for (target, value, set) in [
            ("--target-time", &now, &new),
            ("--target-lsn", &"FF/0".to_owned(), &new),
            ("--target-time", &between, &old),
        ] {
            let plan = ["restore", "--to", planned, "--dry-run", target, value];
            let found = upgraded.json(&[&plan[..], from].concat());
            assert_eq!(found["set"], json!(set), "{from:?} {target} {value}");
        }
    }
    let more = ["--from", "repository", "--as", "files", "--delta"];
    let restored = warm.restore_and_start(&new, &to, &more);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM t"), "7");
    restored.server().stop(Stop::Fast);
    // Back to the former cluster: the newest set names it.
    let restored = warm.restore_and_start(&old, &to, &more);
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT to_regclass('t') IS NULL"), "t");
    let back = server.value("postgres", "SELECT system_identifier FROM pg_control_system()");
    assert_eq!(shown["postgres"]["system_identifier"], json!(back));
    server.stop(Stop::Fast);
    cluster.start();
}

/// What check says about a subject: the findings that aren't `ok`.
fn errors(lockstep: &Lockstep, subject: &str) -> Vec<String> {
    let checked = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "check"]));
    let findings = checked["findings"].as_array().expect("a list").iter();
    let errors = findings.filter(|one| one["subject"] == subject && one["severity"] == "error");
    errors.map(|one| one["what"].as_str().unwrap_or_default().to_owned()).collect()
}

/// pg_upgrade or initdb was run and nobody changed the configuration: the existing sets are of the former cluster.
#[test]
fn another_cluster_behind_the_data_directory_is_told() {
    let (first, other) = (Fixture::new(one_dataset()), Fixture::new(one_dataset()));
    let here = program(&first, &first, "");
    here.expect(exit::DONE, &["repo", "init"]);
    let older = here.backup("label").id;
    first.cluster.execute(&["SELECT pg_switch_wal()"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let set = here.backup("label").id;
    here.expect(exit::DONE, &["prune", "--local", "--set", &older]);
    let first_wal = || here.json(&["list", "--first-wal"])["first_wal"].clone();
    let kept_from = first_wal();
    // If something can't be asked completely, there is no answer, only what to do.
    let nothing = |words: &[&str]| {
        let outcome = here.expect(exit::FAILED, &["list", "--first-wal"]);
        assert_eq!(outcome.stdout, "", "{}", outcome.describe());
        assert_said(&outcome, words);
    };
    let manifest = first.state.join("clusters/main/sets").join(&set).join("manifest.json");
    fs::write(&manifest, "{").expect("it can be written");
    nothing(&["hint: ", &format!("lockstep adopt {set}"), "lockstep prune --local --set"]);
    here.expect(exit::DONE, &["adopt", &set]);
    assert_eq!(first_wal(), kept_from);
    let clusters = folder(&first).join("clusters");
    let manifest = clusters.join("main/sets").join(format!("{older}.json"));
    let whole = fs::read(&manifest).expect("it is there");
    fs::write(&manifest, "{").expect("it can be written");
    nothing(&["hint: ", &format!("lockstep prune --repository {NAME} --set {older}")]);
    fs::write(&manifest, whole).expect("it can be written");
    // Its folder is gone, but this host knows that there were sets.
    fs::rename(clusters.join("main"), clusters.join("other")).expect("it can be renamed");
    nothing(&[&format!("and set {set} was shipped to it"), "clusters that are in it: other"]);
    fs::rename(clusters.join("other"), clusters.join("main")).expect("it can be renamed");
    let path = first.root().join("shipping.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let (old, new) = (toml_string(&first.cluster.data), toml_string(&other.cluster.data));
    fs::write(&path, text.replace(&old, &new)).expect("it can be written");
    let (was, is) = (identifier(&first), identifier(&other));
    // As long as they exist, their WAL is needed.
    assert_eq!(first_wal(), kept_from);
    let outcome = here.expect(exit::DONE, &["list", "--first-wal"]);
    assert_said(&outcome, &[&older, "of another cluster than this host's", &was, "formerly"]);
    let said = errors(&here, "sets").join("\n");
    for words in [&*set, &was, &is, "there is no set of it"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let said = errors(&here, &format!("repository {NAME}"));
    assert!(said.iter().any(|what| what.contains("are of another cluster")), "{said:?}");
    assert!(said.iter().all(|what| !what.contains("isn't in it any more")), "{said:?}");
    // A restore needs what was lost.
    let target = first.target("back");
    let latest = ["restore", "latest", "--from", "repository", "--dry-run", "--to"];
    let planned = here.json(&[&latest[..], &[target.to_str().expect("UTF-8")]].concat());
    assert_eq!(planned["set"], json!(set));
}

/// After initdb, or pg_upgrade: the sets of the new cluster remove none of the former one's.
#[test]
fn a_new_cluster_s_sets_push_none_of_the_former_s_out_of_this_host() {
    let (former, new) = (Fixture::new(one_dataset()), Fixture::new(one_dataset()));
    // One state_dir for both: only what is in the data directory is another.
    let configure = |more: &str| {
        let retention = "[clusters.main.retention]\nlocal = { last = 1 }\n";
        let text = former.configuration("label", true);
        fs::write(former.config(), text).expect("it can be written");
        let text = new.configuration("label", true);
        let text = text.replace(&toml_string(&new.state), &toml_string(&former.state));
        fs::write(new.config(), format!("{text}{more}\n{retention}")).expect("it can be written");
    };
    configure("");
    let two = |lockstep: &Lockstep| {
        [(); 2].map(|()| {
            // Sets of the same second have no order.
            std::thread::sleep(std::time::Duration::from_millis(1100));
            lockstep.backup("label").id
        })
    };
    let old = two(&former.lockstep());
    let lockstep = new.lockstep();
    let own = two(&lockstep);
    // Whichever of the two is in the data directory, `latest` is its own, not the other one's.
    let latest = |lockstep: &Lockstep| lockstep.json(&["show", "latest"])["set"].clone();
    assert_eq!(latest(&former.lockstep()), json!(old[1]));
    assert_eq!(latest(&lockstep), json!(own[1]));
    // Nobody is told to count a later cluster's sets as those of the former one, which was put back.
    let shown = former.lockstep().expect(exit::DONE, &["show", "latest"]).stderr;
    assert!(shown.contains(&own[1]) && !shown.contains("formerly"), "{shown}");
    let shown = lockstep.expect(exit::DONE, &["show", "latest"]).stderr;
    assert!(shown.contains(&old[1]) && shown.contains("formerly = ["), "{shown}");
    let checked = former.lockstep().run(&["check"]).stdout;
    let has_set = format!("the newest set of it is {}", old[1]);
    assert!(checked.contains(&has_set) && !checked.contains("formerly = ["), "{checked}");
    let left = format!("it is of system identifier {}", identifier(&former));
    for more in [&["--dry-run"][..], &[]] {
        let outcome = lockstep.expect(exit::PROBLEMS, &[&["prune", "--local"][..], more].concat());
        assert_said(&outcome, &[&left, "formerly = [", &old[0], &old[1]]);
    }
    assert_eq!(lockstep.sets(), [&*old[0], &*old[1], &*own[1]]);
    // Whoever names one gives it up.
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &old[0]]);
    assert_eq!(lockstep.sets(), [&*old[1], &*own[1]]);
    configure(&format!("formerly = [\"{}\"]\n", identifier(&former)));
    lockstep.expect(exit::DONE, &["prune", "--local"]);
    assert_eq!(lockstep.sets(), [&*own[1]]);
}
