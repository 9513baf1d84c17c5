//! Repositories as such, in a local folder: checked, repaired, compacted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::desk::{Desk, fill, says};
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{Steps, exit, json_of};
use crate::support::shipping;
use rustix::process::Signal;
use serde_json::{Value, json};
use strata::lease::Lease;

#[test]
fn a_signal_ends_a_check_and_what_was_found_is_said() {
    let desk = Desk::new();
    let steps = Steps::new(desk.at("steps"));
    let lockstep = desk.with("grace_hours = 0").with_steps(&steps);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    fill(&desk);
    let manifest = desk.repository().join("clusters/main/sets/a.json");
    fs::write(manifest, "{").expect("it is damaged");
    steps.delay("check.read", Duration::from_secs(1));
    for arguments in [&["repo", "check", "--read-data"][..], &["repo", "check", "--json"]] {
        let _ = fs::remove_file(desk.at("steps").join("check.read"));
        let mut program = lockstep.spawn(arguments);
        steps.wait_reached("check.read", &mut program);
        // When this step is reached the second time, the first set has been checked.
        fs::remove_file(desk.at("steps").join("check.read")).expect("it was reached");
        steps.wait_reached("check.read", &mut program);
        program.signal(Signal::INT);
        let ended = program.wait(Duration::from_secs(60));
        assert_eq!(ended.code, Some(130), "{}", ended.describe());
        assert!(ended.stdout.contains("sets/a.json"), "{}", ended.describe());
        says(&ended, &["interrupted", "starts from the beginning"]);
        match arguments.contains(&"--json") {
            true => assert_eq!(json_of(&ended)["repositories"][0]["partial"], true),
            false => assert!(ended.stdout.contains("partial"), "{}", ended.describe()),
        }
    }
}

/// Reading takes hours: whoever can't repair is told before it. If somebody else takes the lease meanwhile, the
/// findings aren't lost.
#[test]
fn what_a_check_found_is_said_where_it_cannot_repair() {
    let desk = Desk::new();
    let steps = Steps::new(desk.at("steps"));
    let lockstep = desk.with("grace_hours = 0").with_steps(&steps);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let (repository, orphans) = fill(&desk);
    let manifest = desk.repository().join("clusters/main/sets/a.json");
    fs::write(manifest, "{").expect("it is damaged");
    let now = || u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970");
    let take = || Lease::acquire(&repository, "write", "another host", 600, now());
    let arguments = ["repo", "check", "--read-data", "--repair"];
    let lease = take().expect("it is free");
    let early = lockstep.expect(exit::LOCKED, &arguments);
    says(&early, &["another host"]);
    assert!(!steps.all_reached().contains(&"check.read".to_owned()), "nothing was read");
    lease.release(now()).expect("it is given back");
    for more in [&[][..], &["--json"]] {
        let _ = fs::remove_file(desk.at("steps").join("check.tried"));
        steps.hold("check.tried");
        let mut program = lockstep.spawn(&[&arguments[..], more].concat());
        steps.wait_reached("check.tried", &mut program);
        // It gives back the lease that it tried: shipments continue while it reads.
        let lease = take().expect("it was given back");
        steps.release("check.tried");
        let ended = program.wait(Duration::from_secs(60));
        assert_eq!(ended.code, Some(exit::LOCKED), "{}", ended.describe());
        assert!(ended.stdout.contains("sets/a.json"), "{}", ended.describe());
        says(&ended, &["is locked by another host"]);
        if !more.is_empty() {
            let told = &json_of(&ended)["repositories"][0];
            assert!(told["error"].as_str().is_some_and(|why| why.contains("locked")), "{told}");
            assert_eq!((&told["partial"], &told["repaired"]), (&json!(false), &Value::Null));
        }
        lease.release(now()).expect("it is given back");
    }
    // What was found says how to repair it; that nothing can be deleted until then is no failure of its own.
    let refused = |more: &[&str], object: &str| {
        let told = lockstep.expect(exit::PROBLEMS, &[&arguments[..], more].concat());
        assert!(told.stdout.contains(object), "{}", told.describe());
        assert!(!told.stderr.contains("error: "), "{}", told.describe());
        told
    };
    let words = "nothing is deleted while these sets are harmed";
    assert!(refused(&[], "sets/a.json").stdout.contains(words));
    fs::remove_file(desk.repository().join("clusters/main/sets/a.json")).expect("the test may");
    let descriptor = desk.repository().join("clusters/main/volumes/tank/b.json");
    fs::remove_file(descriptor).expect("the test may");
    assert!(refused(&[], "tank/b.json").stdout.contains(words));
    let told = &json_of(&refused(&["--json"], "tank/b.json"))["repositories"][0];
    assert!(told["error"].as_str().is_some_and(|why| why.contains("tank/b.json")), "{told}");
    assert_eq!(told["repaired"], Value::Null);
    let compacted = lockstep.expect(exit::FAILED, &["repo", "compact"]);
    says(&compacted, &["tank/b.json", "`lockstep repo check r` says what is missing and how"]);
    assert!(orphans.iter().all(|path| path.exists()), "nothing was repaired");
}

#[test]
fn a_signal_ends_what_deletes_and_writes_anew() {
    let desk = Desk::new();
    let steps = Steps::new(desk.at("steps"));
    let lockstep = desk.with("grace_hours = 0").with_steps(&steps);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let (repository, orphans) = fill(&desk);
    for (step, arguments) in [
        ("repair.still", &["repo", "check", "--repair"][..]),
        ("compact.still", &["repo", "compact"]),
    ] {
        steps.hold(step);
        let mut program = lockstep.spawn(arguments);
        steps.wait_reached(step, &mut program);
        program.signal(Signal::TERM);
        let ended = program.wait(Duration::from_secs(60));
        assert_eq!(ended.code, Some(130), "{}", ended.describe());
        assert!(orphans.iter().all(|path| path.exists()), "{}", ended.describe());
        // The lease was given back.
        let now = u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970");
        let lease = Lease::acquire(&repository, "write", "test", 60, now).expect("it is free");
        lease.release(now).expect("it is given back");
        steps.release(step);
    }
    lockstep.expect(exit::DONE, &["repo", "compact"]);
    assert!(!orphans.iter().any(|path| path.exists()));
}

#[test]
fn one_repository_that_fails_does_not_stop_the_other() {
    let desk = Desk::new();
    fs::write(desk.at("file"), "").expect("the test may write there");
    let tables = format!(
        "[repositories.bad]\nurl = \"{}\"\n[repositories.good]\nurl = \"{}\"\n",
        desk.url("file"),
        desk.url("good")
    );
    let lockstep = desk.configured(&tables, "\"bad\", \"good\"");
    let outcome = lockstep.expect(exit::PROBLEMS, &["repo", "init", "--json"]);
    let all = json_of(&outcome);
    assert!(all["repositories"][0]["error"].is_string(), "{all}");
    assert_eq!(all["repositories"][1]["made"], true, "{all}");
    says(&lockstep.expect(exit::FAILED, &["repo", "init", "bad"]), &["file"]);
}

#[test]
fn what_is_damaged_is_named() {
    let desk = Desk::new();
    let key = format!("key_file = \"{}\"", desk.key("key", 1));
    let lockstep = desk.with(&key);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let damage = |path: &Path| {
        let good = fs::read(path).expect("it is there");
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(path, bad).expect("the test may write there");
        good
    };
    let format = desk.repository().join("lockstep.json");
    let good = damage(&format);
    let outcome = lockstep.expect(exit::FAILED, &["repo", "init"]);
    says(&outcome, &["lockstep.json of repository \"r\" is damaged"]);
    fs::write(&format, good).expect("the test may write there");

    let slot = fs::read_dir(desk.repository().join("keys")).expect("it has keys").next();
    let slot = slot.expect("it has one").expect("it can be listed").path();
    let good = damage(&slot);
    let name = slot.file_name().and_then(|name| name.to_str()).expect("it is an id");
    says(&lockstep.expect(exit::FAILED, &["repo", "init"]), &["opens no key", name]);
    says(&lockstep.expect(exit::PROBLEMS, &["repo", "key", "list"]), &[name]);
    fs::write(&slot, good).expect("the test may write there");
    lockstep.expect(exit::DONE, &["repo", "init"]);

    // From a newer version.
    let newer = r#"{"version":2,"id":"x","more":true}"#;
    let hash = blake3::hash(newer.as_bytes()).to_hex();
    fs::write(&format, format!("{{\"body\":{newer},\"blake3\":\"{hash}\"}}")).expect("it may");
    says(&lockstep.expect(exit::FAILED, &["repo", "init"]), &["has form 2", "newer one"]);
}

/// Nobody knows who holds a lease that is damaged: it is reported, and taken over after five minutes.
#[test]
fn a_damaged_lease_is_reported() {
    let desk = Desk::new();
    let lockstep = desk.with("");
    lockstep.expect(exit::DONE, &["repo", "init"]);
    lockstep.expect(exit::DONE, &["repo", "check", "--repair"]);
    let leases = desk.repository().join("clusters/main/leases/write");
    let all = fs::read_dir(leases).expect("there is a lease").flatten();
    let lease = all.map(|entry| entry.path()).max().expect("it has a generation");
    let good = fs::read(&lease).expect("it can be read");
    let about_it = || {
        let checked = json_of(&lockstep.run(&["--json", "check"]));
        let found = checked["findings"].as_array().expect("findings").clone();
        found.iter().any(|finding| finding["what"].to_string().contains("who holds the lease"))
    };
    for bytes in [&b""[..], &[&good[..], b"x"].concat()] {
        fs::write(&lease, bytes).expect("the test may");
        let checked = lockstep.expect(exit::PROBLEMS, &["repo", "check", "--read-data"]);
        for words in ["warning", "leases/write/", "who holds the lease", "five minutes"] {
            assert!(checked.stdout.contains(words), "{words}: {}", checked.describe());
        }
        assert!(about_it());
    }
    fs::write(&lease, good).expect("the test may");
    lockstep.expect(exit::DONE, &["repo", "check"]);
}

#[test]
fn an_empty_repository_is_well() {
    let desk = Desk::new();
    let lockstep = desk.with("");
    // Neither is a failure: the configuration names something that doesn't exist.
    let list = ["list", "--from", "repository"];
    says(&lockstep.expect(exit::USAGE, &list), &["isn't there", "mounted"]);
    says(&lockstep.expect(exit::USAGE, &["repo", "check"]), &["isn't there"]);
    fs::create_dir(desk.repository()).expect("the test may write there");
    for words in [&list[..], &["repo", "check"]] {
        says(&lockstep.expect(exit::USAGE, words), &["was never made", "repo init r"]);
    }
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let checked = lockstep.expect(exit::DONE, &["repo", "check", "--read-data"]);
    assert!(checked.stdout.contains("ok       r: 0 sets, 0 deltas"), "{}", checked.describe());
    let checked = &lockstep.json(&["repo", "check"])["repositories"][0];
    assert_eq!((&checked["findings"], &checked["harmed"]), (&json!([]), &json!([])));
    let dry = &lockstep.json(&["repo", "compact", "--dry-run"])["repositories"][0];
    assert_eq!((&dry["packs"], &dry["deleted"]), (&json!(0), &json!(0)));
    lockstep.expect(exit::DONE, &["repo", "compact", "--max-bytes", "1MiB"]);
    lockstep.expect(exit::DONE, &["repo", "compact", "--max-bytes", "0"]);
    lockstep.expect(exit::USAGE, &["repo", "compact", "--max-bytes", "much"]);
    lockstep.expect(exit::USAGE, &["repo", "check", "--read-data=0"]);
    let percent = lockstep.expect(exit::USAGE, &["repo", "check", "--read-data", "10"]);
    says(&percent, &["no repository \"10\"", "--read-data=10"]);
    says(&lockstep.expect(exit::USAGE, &["ship", "--repository", "nope"]), &["nope", "it has: r"]);
    // In the configuration, but not one of the cluster's: nothing there would keep the base of the next increment.
    let table = |name: &str| format!("[repositories.{name}]\nurl = \"{}\"\n", desk.url(name));
    let several = format!(
        "{}{}{}[clusters.main.retention]\nrepository = {{ last = 1 }}\n",
        table("r"),
        table("s"),
        table("other")
    );
    let several = desk.configured(&several, "\"r\", \"s\"");
    for command in ["ship", "prune"] {
        let refused = several.expect(exit::USAGE, &[command, "--repository", "other"]);
        let hint = "name it in clusters.main.repositories too; it has: r, s";
        says(&refused, &["cluster \"main\" has no repository \"other\"", hint]);
    }
    several.expect(exit::DONE, &["repo", "init"]);
    let twice =
        ["prune", "--dry-run", "--repository", "s", "--repository", "r", "--repository", "s"];
    let pruned = several.json(&twice);
    let places = pruned["places"].as_array().expect("places").iter();
    let places: Vec<_> = places.map(|place| &place["repository"]).collect();
    assert_eq!(places, ["s", "r"], "each once, in this order");
    let lockstep = desk.with("");
    let unknown = ["prune", "--repository", "r", "--set", "20200101T000000Z-aaaa"];
    says(&lockstep.expect(exit::USAGE, &unknown), &["has no set", "list --from repository:r"]);
    let listed = &lockstep.json(&["repo", "list"])["repositories"][0];
    assert_eq!((&listed["sets"], &listed["encrypted"]), (&json!(0), &json!(false)));
    let table = lockstep.expect(exit::DONE, &["repo", "list"]);
    assert!(table.stdout.contains(&desk.url("r")), "{}", table.describe());
}

#[test]
fn what_no_set_needs_goes_after_its_grace_time() {
    let desk = Desk::new();
    let later = desk.with("");
    later.expect(exit::DONE, &["repo", "init"]);
    let folder = desk.repository().join("clusters/main");
    for (path, text) in [
        ("packs/01ARZ3NDEKTSV4RRFFQ69G5FAV", "left over"),
        ("packs/holiday.jpg", "foreign"),
        ("wal/00000001/000000010000000000000001.zst", "known"),
    ] {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("it may");
        fs::write(path, text).expect("it may");
    }
    let left_over = folder.join("packs/01ARZ3NDEKTSV4RRFFQ69G5FAV");
    let outcome = later.expect(exit::PROBLEMS, &["repo", "check", "--repair"]);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].starts_with("warning  r: ") && lines[0].contains("holiday.jpg"), "{lines:?}");
    let note = "note     r: 1 object that no set needs, of which 0 wait for their grace time";
    assert!(lines[1].starts_with(note), "{lines:?}");
    // It may belong to a backup that is being written.
    assert!(lines[2].starts_with("repair   r: 0 objects deleted, 0 wait"), "{lines:?}");
    let file = fs::File::options().write(true).open(&left_over).expect("it is ours");
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(90_000);
    file.set_modified(before).expect("it is ours");
    let outcome = later.expect(exit::PROBLEMS, &["repo", "check", "--repair"]);
    assert!(outcome.stdout.contains("repair   r: 0 objects deleted, 1 waits"), "{outcome:?}");
    assert!(left_over.exists());
    // Objects that a collection has noted are distinguished from those that are too young for it.
    let again = later.expect(exit::PROBLEMS, &["repo", "check"]).stdout;
    assert!(again.contains("1 object that no set needs, of which 1 waits for"), "{again}");
    let now = desk.with("grace_hours = 0");
    let dry = &now.json(&["repo", "compact", "--dry-run"])["repositories"][0];
    assert_eq!(dry["deleted"], 1);
    assert!(left_over.exists());
    let outcome = now.expect(exit::PROBLEMS, &["repo", "check", "--repair", "--json"]);
    let repaired = &json_of(&outcome)["repositories"][0]["repaired"];
    assert_eq!(repaired["deleted"].as_array().map(Vec::len), Some(1), "{repaired}");
    assert!(!left_over.exists() && folder.join("packs/holiday.jpg").exists());
}

/// What shipping has written, encrypted: all damage is found, with the sets that it harms.
#[test]
fn damage_is_found_with_the_sets_that_it_harms() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let key = fixture.root().join("key");
    fs::write(&key, [3; 32]).expect("a key can be written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let lockstep = shipping::with_options(&fixture, &format!("key_file = {key:?}"));
    let sets = [lockstep.backup("label").id, lockstep.backup("label").id];
    let listed = &lockstep.json(&["repo", "list"])["repositories"][0];
    assert_eq!((&listed["sets"], &listed["encrypted"]), (&json!(2), &json!(true)));
    let check = |code, more: &[&str]| {
        let arguments: Vec<_> = ["--json", "repo", "check"].iter().chain(more).copied().collect();
        json_of(&lockstep.expect(code, &arguments))["repositories"][0].clone()
    };
    let well = check(exit::DONE, &["--read-data"]);
    assert!(well["counts"]["frames"].as_u64() > Some(0), "{well}");
    assert_eq!(well["findings"], json!([]));
    let sampled = check(exit::DONE, &["--read-data=1"]);
    assert!(sampled["counts"]["frames"].as_u64() < well["counts"]["frames"].as_u64(), "{sampled}");

    // The largest of the first set's packs, with PGDATA in it: both sets need it.
    let packs = shipping::packs(&fixture);
    let (pack, _) = packs.iter().max_by_key(|(_, size)| **size).expect("there are packs");
    let good = fs::read(pack).expect("it is readable");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(pack, bad).expect("the test may write there");
    check(exit::DONE, &[]);
    let found = check(exit::PROBLEMS, &["--read-data"]);
    assert_eq!(found["harmed"], json!(sets), "{found}");
    let name = pack.file_name().and_then(|name| name.to_str()).expect("it is a ULID");
    assert!(found["findings"][0]["what"].as_str().is_some_and(|what| what.contains(name)));
    let said = lockstep.expect(exit::PROBLEMS, &["repo", "check", "--read-data"]).stdout;
    assert!(said.starts_with("error ") && said.contains("don't restore"), "{said}");
    // The finding says what repairs it; that is done at the end.
    assert!(
        said.contains(&format!("lockstep ship --full --repository offsite {}`", sets[0])),
        "{said}"
    );
    fs::remove_file(pack).expect("the test may");
    assert_eq!(check(exit::PROBLEMS, &[])["harmed"], json!(sets));
    fs::write(pack, good).expect("the test may write there");

    // A manifest: it only harms its own set.
    let manifest = shipping::folder(&fixture).join(format!("clusters/main/sets/{}.json", sets[1]));
    let good = fs::read(&manifest).expect("it is there");
    fs::write(&manifest, &good[1..]).expect("the test may write there");
    let found = check(exit::PROBLEMS, &[]);
    assert_eq!(found["harmed"], json!([sets[1]]));
    let hint = found["findings"][0]["hint"].as_str().unwrap_or_default();
    assert!(hint.contains(&format!("prune --repository offsite --set {}", sets[1])), "{hint}");
    // Nobody knows what that set needs: nothing is deleted.
    says(&lockstep.expect(exit::FAILED, &["repo", "compact"]), &[&sets[1]]);
    fs::write(&manifest, good).expect("the test may write there");

    // Only the second set is left; its data is moved out of packs in which little else is still needed.
    let dry = &lockstep.json(&["repo", "compact", "--dry-run", "--live", "100"])["repositories"][0];
    let done = &lockstep.json(&["repo", "compact", "--live", "100"])["repositories"][0];
    assert_eq!(dry["packs"], done["packs"]);
    assert_eq!(check(exit::DONE, &["--read-data"])["harmed"], json!([]));
    let to = fixture.target("r");
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    lockstep.expect(
        exit::DONE,
        &["restore", &sets[1], "--from", "repository", "--as", "files", "--to", to],
    );
    // The column of a repository isn't what a prune frees.
    let plan = lockstep
        .expect(exit::DONE, &["prune", "--repository", "offsite", "--set", &sets[0], "--dry-run"]);
    assert!(plan.stdout.contains("STORED FOR IT"), "{}", plan.describe());
    // Do what the hint says.
    for pack in shipping::packs(&fixture).keys() {
        fs::remove_file(pack).expect("the test may");
    }
    assert_eq!(check(exit::PROBLEMS, &[])["harmed"], json!(sets));
    let hinted = |found: &Value, set: &str| {
        let hint = format!("lockstep ship --full --repository offsite {set}`");
        found["findings"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|one| one["hint"].to_string().contains(&hint))
    };
    for set in &sets {
        assert!(hinted(&check(exit::PROBLEMS, &[]), set), "{set}");
        lockstep.expect(exit::DONE, &["ship", "--full", "--repository", "offsite", set]);
    }
    assert_eq!(check(exit::DONE, &["--read-data"])["harmed"], json!([]));
    for set in &sets {
        fixture.discard_set(set);
    }
}
