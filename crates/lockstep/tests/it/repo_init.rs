//! Repositories in a local folder: made once, made again when `lockstep.json` is lost, opened only with the right key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::desk::{Desk, fill, keys, says};
use crate::support::fixture::Fixture;
use crate::support::layout::one_dataset;
use crate::support::lockstep::{exit, json_of};
use crate::support::shipping;
use serde_json::Value;

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
    let copied = crate::support::command::command("cp", ["-r"])
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

    // One that is damaged can be removed, too, and only that ends what is said of it.
    let lockstep = desk.with(&new);
    let added = ["repo", "key", "add", "r", "--new-key-file", &desk.key("old", 1)];
    let added = lockstep.json(&added)["added"].clone();
    let third = added.as_str().expect("a key has an id");
    let object = desk.repository().join(format!("keys/{third}.json"));
    let object = fs::OpenOptions::new().write(true).open(object).expect("it is there");
    object.set_len(60).expect("the test may");
    let remove = format!("lockstep repo key remove {third} r");
    says(&lockstep.expect(exit::PROBLEMS, &["repo", "key", "list"]), &["is damaged", &remove]);
    lockstep.expect(exit::DONE, &["repo", "key", "remove", third]);
    lockstep.expect(exit::DONE, &["repo", "key", "list"]);
    assert_eq!(keys(&lockstep).len(), 1);
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

/// The repository's disk isn't mounted, and below its mount point is another one: a set in there would be missed.
#[test]
fn nothing_is_shipped_to_another_repository_in_its_place() {
    let fixture = Fixture::new(one_dataset());
    let lockstep = shipping::with_repository(&fixture);
    let listed = lockstep.json(&["repo", "list"]);
    let id = listed["repositories"][0]["id"].as_str().expect("an id");
    let (there, away) = (shipping::folder(&fixture), fixture.root().join("away"));
    fs::rename(&there, &away).expect("the test may");
    let other = shipping::other_host(&fixture, "other", &fixture.cluster.data);
    other.expect(exit::DONE, &["repo", "init"]);
    let outcome = lockstep.expect(exit::PROBLEMS, &["backup", "--strategy", "label"]);
    says(&outcome, &["isn't at its URL", id, "mounted", "--instead-of"]);
    let listed = other.json(&["list", "--from", "repository"]);
    assert_eq!(listed["sets"].as_array().map(Vec::len), Some(0), "{listed}");
    fs::remove_dir_all(&there).expect("the test may");
    fs::rename(&away, &there).expect("the test may");
    lockstep.expect(exit::DONE, &["ship"]);
}
