//! Repositories as such, on a local folder: made, opened with the right key alone, checked, tidied.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::command::Outcome;
use support::lockstep::{Lockstep, exit, json_of};
use support::workspace::Workspace;

/// A folder with a configuration, and the repository `r` that it names; no cluster is ever asked.
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
    let early = lockstep.expect(exit::FAILED, &["repo", "key", "list"]);
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
    // The same key in hex.
    let hex = format!(
        "key_file = \"{}\"",
        desk.secret("hex", format!("{}\n", "01".repeat(32)).as_bytes())
    );
    desk.with(&hex).expect(exit::DONE, &["repo", "init"]);

    let wrong = format!("key_file = \"{}\"", desk.key("wrong", 2));
    let outcome = desk.with(&wrong).expect(exit::FAILED, &["repo", "init"]);
    says(&outcome, &["wrong\" opens no key of repository \"r\"", "hint:"]);
    let phrase = format!("passphrase_file = \"{}\"", desk.secret("phrase", b"no\n"));
    says(&desk.with(&phrase).expect(exit::FAILED, &["repo", "init"]), &["opens no key"]);
    let without = desk.with("").expect(exit::USAGE, &["repo", "init"]);
    says(&without, &["repository \"r\" is encrypted", "key_file or passphrase_file"]);

    let short = format!("key_file = \"{}\"", desk.secret("short", b"abc"));
    says(&desk.with(&short).expect(exit::USAGE, &["repo", "init"]), &["short", "3 bytes"]);
    fs::set_permissions(desk.at("right"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let open = desk.with(&right).expect(exit::USAGE, &["repo", "init"]);
    says(&open, &["may be read by others", "chmod 600"]);
    // Nothing anywhere says the key.
    assert!(!open.stderr.contains("0101"), "{}", open.describe());

    fs::remove_dir_all(desk.repository()).expect("the test may");
    desk.with("").expect(exit::DONE, &["repo", "init"]);
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
    // Not the one that stands in the configuration.
    let used = lockstep.expect(exit::USAGE, &["repo", "key", "remove", &first, "r"]);
    says(&used, &["is the one that the configuration opens", "[repositories.r]"]);
    says(&lockstep.expect(exit::USAGE, &["repo", "key", "remove", "nosuch"]), &[&first, &second]);

    let lockstep = desk.with(&new);
    lockstep.expect(exit::DONE, &["repo", "key", "remove", &first]);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    desk.with(&old).expect(exit::FAILED, &["repo", "init"]);
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

    // A newer version's.
    let newer = r#"{"version":2,"id":"x","more":true}"#;
    let hash = blake3::hash(newer.as_bytes()).to_hex();
    fs::write(&format, format!("{{\"body\":{newer},\"blake3\":\"{hash}\"}}")).expect("it may");
    says(&lockstep.expect(exit::FAILED, &["repo", "init"]), &["has format 2", "newer one"]);
}
