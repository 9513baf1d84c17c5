//! Complete rounds with servers that speak the stores' protocols: repositories made, shipped to, pruned, checked and
//! restored from. And an S3 bucket whose objects are locked for some days.

use crate::support::checker::Checker;
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{LIMIT, Lockstep, Set, Steps, exit, json_of};
use crate::support::shipping::{configured, s3_table, secret_file};
use crate::support::stores::{azure, gcs, s3};
use serde_json::{Value, json};

const RETENTION: &str = "\n[clusters.main.retention]\nrepository = { last = 1 }\n";

/// Changes a few rows.
fn change(fixture: &Fixture) {
    fixture
        .cluster
        .execute(&["UPDATE pgbench_accounts SET filler = md5(random()::text) WHERE aid % 97 = 0"]);
}

/// Restores the set as files from the repository, starts and checks it.
fn restores(fixture: &Fixture, lockstep: &Lockstep, set: &str, repository: &str) {
    let to = fixture.target(&format!("{repository}-{set}"));
    let from = format!("repository:{repository}");
    let more = ["--from", &from, "--as", "files"];
    let restored = lockstep.restore_and_start(set, &to, &more);
    let checked = Checker::new(1).check_and_stop(restored.server());
    checked.assert_right(&format!("{set} from {repository}"));
    std::fs::remove_dir_all(&to).expect("it can be removed");
}

#[test]
fn a_round_through_every_store() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let root = fixture.root();
    let (amazon, microsoft) = (s3::Server::start(), azure::Server::start());
    let google = gcs::Server::start("sets");
    let account = secret_file(root, "google.json", &google.service_account());
    let mut tables = vec![(
        "google",
        format!(
            "url = \"gs://sets/a/b\"\nendpoint = \"{}\"\nallow_http = true\nsecret_access_key_file = {account}\ngrace_hours = 0",
            google.endpoint()
        ),
    )];
    if let Some(server) = &amazon {
        server.make_bucket("sets");
        tables.push(("amazon", s3_table(root, server.port, "sets", "grace_hours = 0")));
    }
    if let Some(server) = &microsoft {
        server.make_container("sets");
        let (key, endpoint) = (secret_file(root, "azure.key", azure::KEY), &server.endpoint);
        tables.push((
            "microsoft",
            format!(
                "url = \"az://sets/a\"\nendpoint = \"{endpoint}\"\nallow_http = true\naccess_key_id = \"{}\"\nsecret_access_key_file = {key}\ngrace_hours = 0",
                azure::ACCOUNT
            ),
        ));
    }
    let lockstep = configured(&fixture, &tables, RETENTION);
    let made = lockstep.json(&["repo", "init"]);
    let made: Vec<_> = made["repositories"].as_array().expect("all").iter().collect();
    assert!(made.len() == tables.len() && made.iter().all(|one| one["made"] == true), "{made:?}");
    let mut sets = Vec::new();
    for strategy in ["label", "ordered", "label"] {
        let set = lockstep.backup(strategy);
        let there = set.json["repositories"].as_array().expect("all").clone();
        assert!(there.iter().all(|one| one["complete"] == true), "{there:?}");
        sets.push(set.id);
        change(&fixture);
    }
    assert_clean(&fixture);

    let mut arguments = vec!["prune"];
    tables.iter().for_each(|(name, _)| arguments.extend(["--repository", name]));
    let pruned = lockstep.json(&arguments);
    for place in pruned["places"].as_array().expect("places") {
        assert_eq!(place["removed"], json!(sets[..2]), "{place}");
        assert!(
            place["merged"].as_u64() >= Some(6) && place["deleted"].as_u64() > Some(0),
            "{place}"
        );
    }
    lockstep.json(&["repo", "compact", "--live", "100"]);
    let checked = lockstep.json(&["repo", "check", "--read-data"]);
    for one in checked["repositories"].as_array().expect("all") {
        assert_eq!((&one["findings"], &one["counts"]["sets"]), (&json!([]), &json!(1)), "{one}");
        assert!(one["counts"]["frames"].as_u64() > Some(0), "{one}");
    }
    for (name, _) in &tables {
        restores(&fixture, &lockstep, &sets[2], name);
    }
    // What is shipped next is an increment in each of them.
    let next = lockstep.backup("label").json;
    for one in next["repositories"].as_array().expect("all") {
        let volumes = one["volumes"].as_array().expect("volumes");
        assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{one}");
    }
}

/// Keys and version ids of a bucket's versions or delete markers.
fn versions(server: &s3::Server, bucket: &str, kind: &str) -> Vec<(String, String)> {
    let listed = server.ask("GET", &format!("/{bucket}?versions"), "");
    let inside = |text: &str, name: &str| {
        let rest = text.split(&format!("<{name}>")).nth(1).unwrap_or_default();
        rest.split('<').next().unwrap_or_default().to_owned()
    };
    let begin = format!("<{kind}>");
    let entries = listed.split(&begin).skip(1);
    entries.map(|entry| (inside(entry, "Key"), inside(entry, "VersionId"))).collect()
}

/// Until when an object is locked, according to HEAD.
fn until(server: &s3::Server, path: &str) -> String {
    let answer = server.ask("HEAD", path, "");
    let date = answer.split("x-amz-object-lock-retain-until-date: ").nth(1);
    date.and_then(|rest| rest.lines().next()).unwrap_or_default().trim().to_owned()
}

#[test]
fn what_is_locked_stays_and_goes_later() {
    let Some(server) = s3::Server::start() else { return };
    server.make_bucket("locked");
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let with = |more: &str| {
        let more = format!("grace_hours = 0\n{more}");
        let table = s3_table(fixture.root(), server.port, "locked", &more);
        configured(&fixture, &[("amazon", table)], RETENTION)
    };
    let lockstep = with("immutable_days = 1");
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let mut sets = Vec::new();
    for _ in 0..3 {
        sets.push(lockstep.backup("label").id);
        change(&fixture);
    }
    let late = Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    // Even somebody with the right to delete for good can't; temporary objects aren't locked.
    let all = versions(&server, "locked", "Version");
    assert!(all.len() > 20, "{all:?}");
    for (key, version) in &all {
        if key.contains("/leases/") || key.ends_with("doomed.json") || key.ends_with("locks.json") {
            continue;
        }
        let answer = server.ask("DELETE", &format!("/locked/{key}?versionId={version}"), "");
        assert!(answer.starts_with("HTTP/1.1 403"), "{key}: {answer}");
    }

    // Objects that the kept set needs are locked again, because nobody has noted until when they are; the
    // repository's format too.
    let format = "/locked/lockstep/lockstep.json";
    let before = until(&server, format);
    let dry = &lockstep.json(&["prune", "--dry-run", "--repository", "amazon"])["places"][0];
    assert!(dry["locks_until"].is_string() && dry["locks_prolonged"].is_null(), "{dry}");
    assert_eq!(until(&server, format), before, "nothing was done");
    let words = lockstep.expect(exit::DONE, &["prune", "--dry-run"]).stdout;
    assert!(words.contains("would be locked in the store until 2"), "{words}");

    // Nothing fails, nothing is removed, and the output says until when.
    let pruned = &lockstep.json(&["prune", "--repository", "amazon"])["places"][0];
    assert!(pruned["locks_prolonged"].as_u64() > Some(20), "{pruned}");
    assert!(!before.is_empty() && until(&server, format) > before, "{before}");
    let again = &lockstep.json(&["prune", "--repository", "amazon"])["places"][0];
    assert_eq!((&again["locks_prolonged"], &again["locks_until"]), (&json!(0), &Value::Null));
    assert_eq!((&pruned["removed"], &pruned["merged"]), (&json!([]), &json!(0)), "{pruned}");
    for set in &sets[..2] {
        let entries = pruned["sets"].as_array().expect("sets");
        let entry = entries.iter().find(|entry| entry["set"] == **set).expect("it is there");
        assert!(entry["reasons"].to_string().contains("locked in the store until"), "{entry}");
    }
    let named = ["--json", "prune", "--repository", "amazon", "--set", &sets[0]];
    let left = &json_of(&lockstep.expect(exit::PROBLEMS, &named))["places"][0];
    assert!(left["sets"][0]["why"].to_string().contains("locked"), "{left}");
    // Nobody needs what a dead shipment has left, but it stays too.
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.stored");
    let mut dies = lockstep.clone().with_steps(&steps).spawn(&["ship", &late]);
    steps.wait_reached("ship.stored", &mut dies);
    dies.kill();
    dies.wait(LIMIT);
    let pruned = &lockstep.json(&["prune", "--repository", "amazon"])["places"][0];
    assert!(pruned["locked"].as_u64() > Some(0) && pruned["deleted"] == 0, "{pruned}");
    let compacted = &lockstep.json(&["repo", "compact", "--live", "100"])["repositories"][0];
    assert!(compacted["locked"].as_u64() > Some(0) && compacted["deleted"] == 0, "{compacted}");
    let words = lockstep.expect(exit::DONE, &["repo", "compact"]).stdout;
    assert!(words.contains("locked in the store"), "{words}");
    let repaired = &lockstep.json(&["repo", "check", "--repair"])["repositories"][0];
    assert_eq!(repaired["repaired"]["deleted"], json!([]), "{repaired}");
    assert!(!repaired["repaired"]["locked"].as_array().expect("a list").is_empty(), "{repaired}");
    assert_eq!(
        versions(&server, "locked", "DeleteMarker")
            .iter()
            .filter(|(key, _)| !key.contains("/leases/"))
            .count(),
        0
    );
    well(&lockstep, 3);

    // As if the lock had ended: sets are removed, and their deltas are merged over locked descriptors.
    let later = with("");
    let pruned = &later.json(&["prune", "--repository", "amazon"])["places"][0];
    assert_eq!(pruned["removed"], json!(sets[..2]), "{pruned}");
    assert!(
        pruned["merged"].as_u64() >= Some(6) && pruned["deleted"].as_u64() > Some(0),
        "{pruned}"
    );
    well(&later, 1);
    restores(&fixture, &later, &sets[2], "amazon");

    // Somebody who deletes everything has only hidden it: without the delete markers everything is back.
    for (key, _) in versions(&server, "locked", "Version") {
        server.ask("DELETE", &format!("/locked/{key}"), "");
    }
    later.expect(exit::REFUSED, &["repo", "check"]);
    for (key, version) in versions(&server, "locked", "DeleteMarker") {
        let answer = server.ask("DELETE", &format!("/locked/{key}?versionId={version}"), "");
        assert!(answer.starts_with("HTTP/1.1 204"), "{key}: {answer}");
    }
    well(&later, 3);
    restores(&fixture, &later, &sets[0], "amazon");
}

/// Checks that a check, including the data, finds nothing, and this many sets.
#[track_caller]
fn well(lockstep: &Lockstep, sets: u64) -> Value {
    let checked = lockstep.json(&["repo", "check", "--read-data"])["repositories"][0].clone();
    assert_eq!(
        (&checked["harmed"], &checked["counts"]["sets"]),
        (&json!([]), &json!(sets)),
        "{checked}"
    );
    checked
}
