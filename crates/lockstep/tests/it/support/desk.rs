//! A folder with a configuration and a repository in it, for tests that ask no cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use strata::delta::{Change, ImageOptions, ImageWriter};
use strata::manifest::{DeltaId, Manifest};
use strata::store::{ObjectStorage, Store};

use super::command::Outcome;
use super::lockstep::Lockstep;
use super::workspace::Workspace;

/// A folder with a configuration, and the repository `r` in it; no cluster is ever asked.
pub struct Desk {
    workspace: Workspace,
}

impl Desk {
    pub fn new() -> Desk {
        Desk { workspace: Workspace::new() }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.workspace.root.join(name)
    }

    pub fn repository(&self) -> PathBuf {
        self.at("r")
    }

    /// The program with these lines in the repository's table.
    pub fn with(&self, more: &str) -> Lockstep {
        self.configured(
            &format!("[repositories.r]\nurl = \"{}\"\n{more}\n", self.url("r")),
            "\"r\"",
        )
    }

    pub fn url(&self, name: &str) -> String {
        format!("file://{}", self.at(name).display())
    }

    pub fn configured(&self, repositories: &str, names: &str) -> Lockstep {
        let path = self.at("lockstep.toml");
        let text = format!(
            "state_dir = \"{}\"\n[clusters.main]\ndata_directory = \"/nowhere\"\nrepositories = [{names}]\n{repositories}",
            self.at("state").display()
        );
        fs::write(&path, text).expect("a configuration can be written");
        Lockstep::new(&path, Path::new("/nowhere"))
    }

    /// A file that only its owner may read.
    pub fn secret(&self, name: &str, content: &[u8]) -> String {
        let path = self.at(name);
        fs::write(&path, content).expect("a key can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path.to_str().expect("the harness' own paths are UTF-8").to_owned()
    }

    pub fn key(&self, name: &str, byte: u8) -> String {
        self.secret(name, &[byte; 32])
    }
}

#[track_caller]
pub fn says(outcome: &Outcome, words: &[&str]) {
    for word in words {
        assert!(outcome.stderr.contains(word), "{word:?} isn't said: {}", outcome.describe());
    }
}

pub fn keys(lockstep: &Lockstep) -> Vec<Value> {
    let listed = lockstep.json(&["repo", "key", "list"]);
    listed["keys"].as_array().expect("`repo key list --json` has an array \"keys\"").clone()
}

/// Makes sets `a` and `b` with one delta each, and objects that nobody needs.
pub fn fill(desk: &Desk) -> (strata::Repository, Vec<PathBuf>) {
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
