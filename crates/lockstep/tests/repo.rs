//! Repositories as such, in a local folder: made, opened only with the right key, checked, compacted.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use strata::delta::{Change, ImageOptions, ImageWriter};
use strata::lease::Lease;
use strata::manifest::{DeltaId, Manifest};
use strata::store::{ObjectStorage, Store};
use support::command::Outcome;
use support::fixture::Fixture;
use support::layout::{one_dataset, two_pools_four_datasets};
use support::lockstep::{Lockstep, Steps, exit, json_of};
use support::shipping;
use support::workspace::Workspace;

/// A folder with a configuration, and the repository `r` in it; no cluster is ever asked.
struct Desk {
    workspace: Workspace,
}

impl Desk {
    fn new() -> Desk {
        Desk { workspace: Workspace::new() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.workspace.root.join(name)
    }

    fn repository(&self) -> PathBuf {
        self.at("r")
    }

    /// The program with these lines in the repository's table.
    fn with(&self, more: &str) -> Lockstep {
        self.configured(
            &format!("[repositories.r]\nurl = \"{}\"\n{more}\n", self.url("r")),
            "\"r\"",
        )
    }

    fn url(&self, name: &str) -> String {
        format!("file://{}", self.at(name).display())
    }

    fn configured(&self, repositories: &str, names: &str) -> Lockstep {
        let path = self.at("lockstep.toml");
        let text = format!(
            "state_dir = \"{}\"\n[clusters.main]\ndata_directory = \"/nowhere\"\nrepositories = [{names}]\n{repositories}",
            self.at("state").display()
        );
        fs::write(&path, text).expect("a configuration can be written");
        Lockstep::new(&path, Path::new("/nowhere"))
    }

    /// A file that only its owner may read.
    fn secret(&self, name: &str, content: &[u8]) -> String {
        let path = self.at(name);
        fs::write(&path, content).expect("a key can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path.to_str().expect("the harness' own paths are UTF-8").to_owned()
    }

    fn key(&self, name: &str, byte: u8) -> String {
        self.secret(name, &[byte; 32])
    }
}

#[track_caller]
fn says(outcome: &Outcome, words: &[&str]) {
    for word in words {
        assert!(outcome.stderr.contains(word), "{word:?} isn't said: {}", outcome.describe());
    }
}

fn keys(lockstep: &Lockstep) -> Vec<Value> {
    let listed = lockstep.json(&["repo", "key", "list"]);
    listed["keys"].as_array().expect("`repo key list --json` has an array \"keys\"").clone()
}

#[test]
fn a_repository_is_made_once() {
    let desk = Desk::new();
    let lockstep = desk.with("");
    let early = lockstep.expect(exit::USAGE, &["repo", "key", "list"]);
    says(&early, &["isn't there", "is its file system mounted?"]);
    assert!(!desk.repository().exists(), "only `repo init` makes a folder");

    let made = lockstep.json(&["repo", "init", "r"]);
    let made = &made["repositories"][0];
    assert_eq!((&made["made"], &made["encrypted"]), (&Value::Bool(true), &Value::Bool(false)));
    let before = fs::read(desk.repository().join("lockstep.json")).expect("it was written");
    let again = lockstep.json(&["repo", "init"]);
    let again = &again["repositories"][0];
    assert_eq!((&again["made"], &again["id"]), (&Value::Bool(false), &made["id"]));
    let said = lockstep.expect(exit::DONE, &["repo", "init"]);
    assert!(said.stdout.contains("there already"), "{}", said.describe());
    assert_eq!(fs::read(desk.repository().join("lockstep.json")).ok(), Some(before));

    says(&lockstep.expect(exit::USAGE, &["repo", "init", "nosuch"]), &["nosuch", "it has: r"]);
    says(&desk.configured("", "").expect(exit::USAGE, &["repo", "init"]), &["has no repository"]);
}

/// The repository's disk isn't mounted, or another one is.
#[test]
fn a_repository_that_is_away_is_not_made_anew() {
    let desk = Desk::new();
    let lockstep = desk.with("");
    let id = |json: Value| json["repositories"][0]["id"].as_str().expect("an id").to_owned();
    let first = id(lockstep.json(&["repo", "init"]));
    fill(&desk);
    let (place, away) = (desk.repository(), desk.at("away"));
    fs::rename(&place, &away).expect("the test may");
    let refused = |arguments: &[&str]| {
        let outcome = lockstep.expect(exit::REFUSED, arguments);
        says(&outcome, &["isn't at its URL", &first, "mounted", "--instead-of"]);
    };
    refused(&["repo", "init"]);
    assert!(!place.exists(), "not even its place is made");
    fs::create_dir(&place).expect("the test may");
    for arguments in [&["repo", "init"][..], &["repo", "list"], &["list", "--from", "repository"]] {
        refused(arguments);
    }
    refused(&["repo", "init", "r", "--instead-of", "another"]);
    assert_eq!(fs::read_dir(&place).expect("it is there").count(), 0);

    let about_it = || {
        let found = json_of(&lockstep.run(&["--json", "check"]));
        let found = found["findings"].as_array().expect("findings").clone();
        found.iter().any(|finding| finding["what"].to_string().contains("isn't at its URL"))
    };
    let second = id(lockstep.json(&["repo", "init", "r", "--instead-of", &first]));
    assert!(second != first && !about_it());
    lockstep.expect(exit::DONE, &["repo", "init"]);
    // The other way round: the repository found there is another one.
    fs::rename(&place, desk.at("second")).expect("the test may");
    fs::rename(&away, &place).expect("the test may");
    let outcome = lockstep.expect(exit::REFUSED, &["repo", "init"]);
    says(&outcome, &["what is there has the id", &first, &second]);
    assert!(about_it());
    assert_eq!(id(lockstep.json(&["repo", "init", "r", "--instead-of", &second])), first);
    assert!(!about_it());
    // The repository of a mistyped cluster name isn't an empty one.
    let path = desk.at("lockstep.toml");
    let text = fs::read_to_string(&path).expect("it was written");
    fs::write(&path, text.replace("clusters.main", "clusters.mian")).expect("it may");
    says(&lockstep.expect(exit::DONE, &["repo", "list"]), &["clusters that are in it: main"]);
}

/// For a repository without keys, a readable manifest is the proof.
#[test]
fn lockstep_json_is_made_again_and_never_anew() {
    let desk = Desk::new();
    let lockstep = desk.with("");
    let made = lockstep.json(&["repo", "init"]);
    let id = made["repositories"][0]["id"].as_str().expect("an id");
    fill(&desk);
    let (format, state) = (desk.repository().join("lockstep.json"), desk.at("state"));
    let before = fs::read(&format).expect("it is there");
    let lose = || fs::remove_file(&format).expect("the test may");
    lose();
    for arguments in [&["repo", "init"][..], &["repo", "list"], &["list", "--from", "repository"]] {
        let outcome = lockstep.expect(exit::REFUSED, arguments);
        says(&outcome, &["lockstep.json", "is gone", "main", "from a copy", "repo init r --again"]);
    }
    let again = lockstep.json(&["repo", "init", "r", "--again"]);
    assert_eq!(again["repositories"][0]["made_again"], true, "{again}");
    assert_eq!(fs::read(&format).expect("it is there again"), before);
    // Nothing here proves the id, so a wrong one isn't believed where it is known.
    lose();
    let wrong = ["repo", "init", "r", "--again", "--id", "zzzzzzzzzzzzzzzz"];
    says(&lockstep.expect(exit::REFUSED, &wrong), &[id, "zzzzzzzzzzzzzzzz", "leave --id out"]);
    assert!(!format.exists());
    // A damaged one is like a lost one.
    let mut flipped = before.clone();
    flipped[before.len() / 2] ^= 1;
    for damaged in [&b""[..], &flipped] {
        fs::write(&format, damaged).expect("the test may");
        for arguments in [&["repo", "init"][..], &["repo", "list"]] {
            let outcome = lockstep.expect(exit::FAILED, arguments);
            says(&outcome, &["is damaged", "from a copy", "repo init r --again"]);
        }
        lockstep.expect(exit::REFUSED, &wrong);
        assert_eq!(fs::read(&format).expect("it stays"), damaged);
        let again = lockstep.json(&["repo", "init", "r", "--again"]);
        assert_eq!(again["repositories"][0]["made_again"], true, "{again}");
        assert_eq!(fs::read(&format).expect("it is whole again"), before);
    }
    // One of a newer version isn't.
    let newer = r#"{"version":2,"id":"x","more":true}"#;
    let hash = blake3::hash(newer.as_bytes()).to_hex();
    fs::write(&format, format!("{{\"body\":{newer},\"blake3\":\"{hash}\"}}")).expect("it may");
    says(&lockstep.expect(exit::FAILED, &["repo", "init", "r", "--again"]), &["has form 2"]);
    // A host that knows nothing about it.
    let forget = || fs::remove_dir_all(&state).expect("the test may");
    lose();
    forget();
    says(&lockstep.expect(exit::REFUSED, &["repo", "init"]), &["is gone"]);
    lockstep.expect(exit::DONE, &["repo", "init", "r", "--again", "--id", id]);
    assert_eq!(fs::read(&format).expect("it is there again"), before);
    // Without keys nothing depends on the id.
    lose();
    forget();
    let again = lockstep.expect(exit::DONE, &["repo", "init", "r", "--again"]);
    says(&again, &["a new one", "--instead-of"]);
    assert_ne!(fs::read(&format).expect("it is there again"), before);
    assert_eq!(lockstep.json(&["repo", "list"])["repositories"][0]["sets"], 2);
    // Nothing proves it.
    lose();
    for set in ["a", "b"] {
        let set = desk.repository().join(format!("clusters/main/sets/{set}.json"));
        fs::write(set, "{").expect("the test may");
    }
    says(&lockstep.expect(exit::FAILED, &["repo", "init", "r", "--again"]), &["unproven"]);
    assert!(!format.exists());
}

/// The host is gone, and of the repository `lockstep.json`: the key file is enough.
#[test]
fn a_key_alone_makes_lockstep_json_again() {
    let desk = Desk::new();
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/repositories/v1");
    let copied = support::command::command("cp", ["-r"])
        .args([frozen.join("sealed"), desk.repository()])
        .status();
    assert!(copied.expect("cp is there").success());
    let key = fs::read(frozen.join("sealed.key")).expect("it is there");
    let old = format!("key_file = \"{}\"", desk.secret("old", &key));
    let (format, state) = (desk.repository().join("lockstep.json"), desk.at("state"));
    let before = fs::read(&format).expect("it is there");
    let text = String::from_utf8(before.clone()).expect("it is JSON");
    let id = text.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let id = id.expect("it has an id");
    let lose = || {
        fs::remove_file(&format).expect("the test may");
        let _ = fs::remove_dir_all(&state);
    };
    let again = ["repo", "init", "r", "--again"];
    let with_id = |id| [&again[..], &["--id", id]].concat();
    // The keys of before don't say the repository's id.
    let lockstep = desk.with(&old);
    lose();
    says(&lockstep.expect(exit::USAGE, &again), &["doesn't know the id", "--id"]);
    let wrong = lockstep.expect(exit::USAGE, &with_id("aaaabbbbccccdddd"));
    says(&wrong, &["opens no key", "aaaabbbbccccdddd"]);
    let made = lockstep.expect(exit::DONE, &with_id(id));
    assert!(made.stdout.contains(&format!("its id is {id}: keep it")), "{}", made.describe());
    assert_eq!(fs::read(&format).expect("it is there again"), before);
    // One that is added does, for the others too.
    let new = desk.key("new", 1);
    let added = lockstep.expect(exit::DONE, &["repo", "key", "add", "r", "--new-key-file", &new]);
    assert!(added.stdout.contains(&format!("id is {id}: keep it")), "{}", added.describe());
    for key in [&old, &format!("key_file = \"{new}\"")] {
        lose();
        desk.with(key).expect(exit::DONE, &again);
        assert_eq!(fs::read(&format).expect("it is there again"), before, "{key}");
    }
    lose();
    let other = desk.with(&format!("key_file = \"{}\"", desk.key("other", 2)));
    says(&other.expect(exit::USAGE, &again), &["opens no key", id]);
    says(&other.expect(exit::USAGE, &with_id("aaaabbbbccccdddd")), &["the keys there name", id]);
    let lockstep = desk.with(&old);
    lockstep.expect(exit::DONE, &again);

    // All keys are gone, with lockstep.json and without it.
    fs::rename(desk.repository().join("keys"), desk.at("keys")).expect("the test may");
    let gone = ["wrapped keys are gone", "put keys/ back"];
    says(&lockstep.expect(exit::PROBLEMS, &["repo", "key", "list"]), &gone);
    for arguments in [&["repo", "list"][..], &["repo", "init"], &["list", "--from", "repository"]] {
        says(&lockstep.expect(exit::FAILED, arguments), &gone);
    }
    lose();
    for arguments in [&again[..], &with_id(id)] {
        says(&lockstep.expect(exit::FAILED, arguments), &gone);
    }
    fs::rename(desk.at("keys"), desk.repository().join("keys")).expect("the test may");
    lockstep.expect(exit::DONE, &again);
    lockstep.expect(exit::DONE, &["repo", "key", "list"]);

    // Another repository's lockstep.json is in its place, and the keys say whose they are.
    let new = format!("key_file = \"{new}\"");
    let (lockstep, slots) = (desk.with(&new), keys(&lockstep));
    let old = slots.iter().filter_map(|slot| slot["id"].as_str()).find(|slot| !slot.contains(id));
    lockstep.expect(exit::DONE, &["repo", "key", "remove", old.expect("it is there")]);
    let other = format!("[repositories.o]\nurl = \"{}\"\n{new}\n", desk.url("o"));
    desk.configured(&other, "\"o\"").expect(exit::DONE, &["repo", "init"]);
    let lockstep = desk.with(&new);
    for forgets in [false, true] {
        lose();
        if !forgets {
            lockstep.expect(exit::DONE, &again);
        }
        fs::copy(desk.at("o/lockstep.json"), &format).expect("the test may");
        let told = ["are of the repository", id, "repo init r --again"];
        says(&lockstep.expect(exit::FAILED, &["repo", "list"]), &told);
        says(&lockstep.expect(exit::FAILED, &["repo", "init"]), &told);
        says(&lockstep.expect(exit::PROBLEMS, &["repo", "key", "list"]), &told);
        lockstep.expect(exit::DONE, &again);
        assert_eq!(fs::read(&format).expect("it is there again"), before, "{forgets}");
    }
    // Or the keys are another repository's: they open no set, so what is there stays.
    fs::remove_dir_all(desk.repository().join("keys")).expect("the test may");
    fs::rename(desk.at("o/keys"), desk.repository().join("keys")).expect("the test may");
    fs::remove_dir_all(&state).expect("the test may");
    says(&lockstep.expect(exit::FAILED, &again), &["unproven"]);
    assert_eq!(fs::read(&format).expect("it is there"), before);
}

/// Makes sets `a` and `b` with one delta each, and objects that nobody needs.
fn fill(desk: &Desk) -> (strata::Repository, Vec<PathBuf>) {
    let storage = ObjectStorage::folder(&desk.repository()).expect("the folder is there");
    let repository = strata::Repository::new(Store::new(storage), "clusters/main", None);
    let repository = repository.expect("a repository");
    for set in ["a", "b"] {
        let options = ImageOptions::default();
        let writer = ImageWriter::new(&repository, "tank", set, None, &options);
        let mut writer = writer.expect("a delta can be begun");
        let header = Some("header".into());
        writer.changed(Change { object: 1, header, ..Change::default() }).expect("an object");
        writer.data(0, set.repeat(9000).as_bytes()).expect("its content");
        writer.finish().expect("the delta is written");
        let delta = DeltaId { image: "tank".to_owned(), id: set.to_owned() };
        let manifest = Manifest::new(set, 1, vec![delta], Value::Null);
        manifest.write(&repository).expect("the manifest is written");
    }
    let packs = desk.repository().join("clusters/main/packs");
    let orphans = ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAW"];
    let orphans = orphans.map(|name| packs.join(name)).to_vec();
    orphans.iter().for_each(|path| fs::write(path, "x").expect("a pack can be written"));
    (repository, orphans)
}

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
fn only_the_right_key_opens_it() {
    let desk = Desk::new();
    let right = format!("key_file = \"{}\"", desk.key("right", 1));
    let made = desk.with(&right).json(&["repo", "init"]);
    assert_eq!(made["repositories"][0]["encrypted"], true);
    desk.with(&right).expect(exit::DONE, &["repo", "init"]);
    // The same key, in hex.
    let hex = format!(
        "key_file = \"{}\"",
        desk.secret("hex", format!("{}\n", "01".repeat(32)).as_bytes())
    );
    desk.with(&hex).expect(exit::DONE, &["repo", "init"]);

    let wrong = format!("key_file = \"{}\"", desk.key("wrong", 2));
    let outcome = desk.with(&wrong).expect(exit::USAGE, &["repo", "init"]);
    says(&outcome, &["wrong\" opens no key of repository \"r\"", "hint:"]);
    let phrase = format!("passphrase_file = \"{}\"", desk.secret("phrase", b"no\n"));
    says(&desk.with(&phrase).expect(exit::USAGE, &["repo", "init"]), &["opens no key"]);
    let nowhere = format!("key_file = \"{}\"", desk.at("nowhere.key").display());
    let absent = desk.with(&nowhere).expect(exit::USAGE, &["repo", "init"]);
    says(&absent, &["nowhere.key", "isn't there", "hint:"]);
    let without = desk.with("").expect(exit::USAGE, &["repo", "init"]);
    says(&without, &["repository \"r\" is encrypted", "key_file or passphrase_file"]);

    let short = format!("key_file = \"{}\"", desk.secret("short", b"abc"));
    says(&desk.with(&short).expect(exit::USAGE, &["repo", "init"]), &["short", "3 bytes"]);
    fs::set_permissions(desk.at("right"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let open = desk.with(&right).expect(exit::USAGE, &["repo", "init"]);
    says(&open, &["may be read by others", "chmod 600"]);
    // The key isn't printed anywhere.
    assert!(!open.stderr.contains("0101"), "{}", open.describe());

    fs::remove_dir_all(desk.repository()).expect("the test may");
    let id = made["repositories"][0]["id"].as_str().expect("a repository has an id");
    desk.with("").expect(exit::DONE, &["repo", "init", "r", "--instead-of", id]);
    let needless = desk.with(&wrong).expect(exit::USAGE, &["repo", "init"]);
    says(&needless, &["isn't encrypted"]);
    says(&desk.with("").expect(exit::USAGE, &["repo", "key", "list"]), &["isn't encrypted"]);
}

#[test]
fn keys_are_rotated_and_the_last_one_stays() {
    let desk = Desk::new();
    let old = format!("key_file = \"{}\"", desk.key("old", 1));
    let phrase_file = desk.secret("phrase", "träumerei am kamin\n".as_bytes());
    let new = format!("passphrase_file = \"{phrase_file}\"");
    let lockstep = desk.with(&old);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let first = keys(&lockstep)[0]["id"].as_str().expect("a key has an id").to_owned();
    let last = lockstep.expect(exit::USAGE, &["repo", "key", "remove", &first]);
    says(&last, &["is the last one", "repo key add r"]);

    let added = lockstep.json(&[
        "repo",
        "key",
        "add",
        "r",
        "--new-passphrase-file",
        &phrase_file,
        "--label",
        "2027",
    ]);
    let second = added["added"].as_str().expect("a key has an id").to_owned();
    let listed = keys(&lockstep);
    assert_eq!(listed.len(), 2);
    assert_eq!(
        (&listed[0]["kind"], &listed[1]["kind"]),
        (&"key file".into(), &"passphrase".into())
    );
    assert_eq!(listed[1]["label"], "2027");
    let table = lockstep.expect(exit::DONE, &["repo", "key", "list"]);
    assert!(table.stdout.contains(&second), "{}", table.describe());
    // Not the key that is in the configuration.
    let used = lockstep.expect(exit::USAGE, &["repo", "key", "remove", &first, "r"]);
    says(&used, &["is the one that the configuration opens", "[repositories.r]"]);
    says(&lockstep.expect(exit::USAGE, &["repo", "key", "remove", "nosuch"]), &[&first, &second]);

    let lockstep = desk.with(&new);
    lockstep.expect(exit::DONE, &["repo", "key", "remove", &first]);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    desk.with(&old).expect(exit::USAGE, &["repo", "init"]);
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

/// If somebody made another repository over it, the old one can be put back: the key that opens the sets stays.
#[test]
fn a_key_that_may_open_something_is_not_useless() {
    let fixture = Fixture::new(one_dataset());
    let key = fixture.root().join("key");
    fs::write(&key, [3; 32]).expect("a key can be written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let options = format!("key_file = {key:?}\ngrace_hours = 0");
    let lockstep = shipping::with_options(&fixture, &options);
    let set = lockstep.backup("label").id;
    let folder = shipping::folder(&fixture);
    let (format, ours) = (folder.join("lockstep.json"), keys(&lockstep)[0]["id"].clone());
    let ours = ours.as_str().expect("a key has an id");
    let before = fs::read(&format).expect("it is there");

    // It is lost and made again with the same key, identified only by its own id.
    fs::remove_file(&format).expect("the test may");
    says(&lockstep.expect(exit::REFUSED, &["repo", "init"]), &["is gone", "--again"]);
    let init = ["repo", "init", shipping::NAME, "--again"];
    let wrong = [&init[..], &["--id", "aaaabbbbccccdddd"]].concat();
    says(&lockstep.expect(exit::REFUSED, &wrong), &["this host knows", "aaaabbbbccccdddd"]);
    lockstep.expect(exit::DONE, &init);
    assert_eq!(fs::read(&format).expect("it is there again"), before);

    // An older version made another one over it.
    let aside = fixture.root().join("aside");
    fs::rename(&folder, &aside).expect("the test may");
    let listed = &lockstep.run(&["repo", "init", shipping::NAME]).stderr;
    let id = listed.split("--instead-of ").nth(1).and_then(|rest| rest.split('`').next());
    let id = id.expect("the id is named");
    lockstep.expect(exit::DONE, &["repo", "init", shipping::NAME, "--instead-of", id]);
    let other = fs::read(folder.join("lockstep.json")).expect("it was made");
    let slots = fs::read_dir(folder.join("keys")).expect("it has keys").flatten();
    for slot in slots {
        fs::copy(slot.path(), aside.join("keys").join(slot.file_name())).expect("the test may");
    }
    fs::remove_dir_all(&folder).expect("the test may");
    fs::rename(&aside, &folder).expect("the test may");
    fs::write(&format, other).expect("the test may");
    let checked = lockstep.expect(exit::PROBLEMS, &["repo", "check"]);
    let said = |what: &str| checked.stdout.lines().any(|line| line.contains(what));
    assert!(said(&format!("key \"{ours}\" opens another data key")), "{}", checked.describe());
    assert!(!said("of no use"), "{}", checked.describe());
    let removed = lockstep.expect(exit::USAGE, &["repo", "key", "remove", ours]);
    says(&removed, &["opens another data key", "put the old lockstep.json back"]);
    // Even once the set is given up, as long as one of its descriptors exists.
    lockstep.run(&["repo", "check", "--repair"]);
    let manifest = folder.join(format!("clusters/main/sets/{set}.json"));
    let kept = fs::read(&manifest).expect("it is there");
    fs::remove_file(&manifest).expect("the test may");
    lockstep.run(&["repo", "check", "--repair"]);
    assert!(folder.join(format!("keys/{ours}.json")).exists(), "it was deleted");

    fs::write(&manifest, kept).expect("the test may");
    fs::write(&format, before).expect("the test may");
    let listed = lockstep.json(&["list", "--from", "repository"]);
    assert_eq!(listed["sets"][0]["set"], *set, "{listed}");
    fixture.discard_set(&set);
}
