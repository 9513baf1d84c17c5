//! State under state_dir is found again: by id, by its beginning, as the latest; and damage isn't skipped.

use super::*;
use crate::set::manifest::SetFile;
use crate::set::manifest::tests::manifest;

/// A state_dir that is removed after the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("lockstep-state-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self) -> State {
        State::open(&self.0, &"main".parse().unwrap()).unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const OLD: &str = "20261121T000000Z-aaaa";
const MIDDLE: &str = "20261122T000000Z-bbbb";
const NEW: &str = "20261122T000000Z-cccc";

fn publish(state: &State, id: &str) -> Manifest {
    let manifest = manifest(id, vec![]);
    std::fs::create_dir_all(state.set_directory(&manifest.set)).unwrap();
    state.publish(&manifest).unwrap();
    manifest
}

fn damage(state: &State, id: &str) {
    let path = state.set_directory(&id.parse().unwrap()).join(MANIFEST);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(path, bytes).unwrap();
}

fn found(state: &State, which: &str) -> String {
    state
        .find(which, &[])
        .unwrap_or_else(|error| panic!("{which}: {}", error.chain()))
        .set
        .to_string()
}

#[test]
fn sets_are_found_by_id_beginning_and_latest() {
    let temporary = Temporary::new("find");
    let state = temporary.open();
    let none = state.find("latest", &[]).unwrap_err();
    assert_eq!((none.exit_code(), none.hint().unwrap().contains("lockstep backup")), (2, true));
    // Not in order of time.
    for id in [NEW, OLD, MIDDLE] {
        publish(&state, id);
    }
    let (sets, damaged) = state.sets().unwrap();
    assert_eq!(sets.iter().map(|set| set.set.as_str()).collect::<Vec<_>>(), [OLD, MIDDLE, NEW]);
    assert!(damaged.is_empty());
    assert_eq!(found(&state, "latest"), NEW);
    for id in [OLD, MIDDLE, NEW] {
        assert_eq!(found(&state, id), id);
    }
    assert_eq!(found(&state, "20261121"), OLD);
    let several = state.find("20261122", &[]).unwrap_err();
    assert!(several.exit_code() == 2 && several.to_string().contains("several"), "{several}");
    let hint = several.hint().unwrap();
    assert!(hint.contains(MIDDLE) && hint.contains(NEW) && !hint.contains(OLD), "{hint}");
    let shipping = temporary.open().with_repositories(&["offsite".into()]);
    let hint = shipping.find("2025", &[]).unwrap_err().hint().unwrap();
    assert!(hint.contains("--from repository") && hint.contains("offsite"), "{hint}");
    let unknown = state.find("2025", &[]).unwrap_err();
    assert!(unknown.exit_code() == 2 && unknown.to_string().contains("\"2025\""));
}

#[test]
fn a_damaged_set_is_named_and_not_passed_over() {
    let temporary = Temporary::new("damaged");
    let state = temporary.open();
    for id in [OLD, MIDDLE, NEW] {
        publish(&state, id);
    }
    damage(&state, OLD);
    let (sets, damaged) = state.sets().unwrap();
    assert_eq!((sets.len(), damaged.len()), (2, 1));
    assert_eq!(damaged[0].0.as_str(), OLD);
    // An older one may be of a higher timeline, on which the cluster lives: `latest` must not return another.
    let refused = state.find("latest", &[]).unwrap_err();
    assert!(refused.exit_code() == 4 && refused.to_string().contains(OLD), "{refused}");
    let hint = refused.hint().unwrap();
    assert!(hint.contains(NEW) && hint.contains(&format!("lockstep adopt {OLD}")), "{hint}");
    assert_eq!(state.newest(&[]).unwrap().set.as_str(), NEW);
    // Unless this host has seen it in a repository.
    let member = serde_json::to_value(Member::from(&manifest(OLD, vec![]))).unwrap();
    let seen = serde_json::json!({"version": 2, "repository": "id", "sets": {OLD: member}});
    std::fs::create_dir(state.path("seen")).unwrap();
    std::fs::write(state.path("seen/offsite.json"), seen.to_string()).unwrap();
    assert_eq!(found(&state, "latest"), NEW);
    let refused = state.find(OLD, &[]).unwrap_err();
    assert!(refused.exit_code() == 4 && refused.to_string().contains(OLD), "{refused}");
    damage(&state, NEW);
    let refused = state.find("latest", &[]).unwrap_err();
    assert!(refused.exit_code() == 4 && refused.to_string().contains(NEW), "{refused}");
    assert_eq!(found(&state, MIDDLE), MIDDLE);
}

#[test]
fn a_manifest_in_another_set_s_folder_is_not_that_set() {
    let temporary = Temporary::new("moved");
    let state = temporary.open();
    let manifest = publish(&state, OLD);
    let folder = state.set_directory(&NEW.parse().unwrap());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(state.set_directory(&manifest.set).join(MANIFEST), folder.join(MANIFEST))
        .unwrap();
    let refused = state.find(NEW, &[]).unwrap_err();
    assert!(refused.exit_code() == 4 && refused.to_string().contains(OLD), "{refused}");
}

#[test]
fn what_has_no_manifest_is_no_set() {
    let temporary = Temporary::new("unfinished");
    let state = temporary.open();
    let manifest = publish(&state, OLD);
    for name in [NEW, "not a set", "lost+found"] {
        std::fs::create_dir_all(state.path("sets").join(name)).unwrap();
    }
    let temporary_name = format!("{MANIFEST}.4711.tmp");
    std::fs::write(state.set_directory(&NEW.parse().unwrap()).join(temporary_name), "{}").unwrap();
    assert!(state.is_complete(OLD) && !state.is_complete(NEW));
    assert_eq!(
        state.sets().unwrap().0,
        [Manifest { checksum: state.find(OLD, &[]).unwrap().checksum, ..manifest }]
    );
}

#[test]
fn the_owner_stays() {
    let temporary = Temporary::new("owner");
    let owner = temporary.open().owner().to_owned();
    assert_eq!(owner.len(), 16);
    assert_eq!(temporary.open().owner(), owner);
    // Where nothing has it yet, a file without an id doesn't count.
    for text in ["\n", "cut"] {
        std::fs::write(temporary.0.join("owner"), text).unwrap();
        let new = temporary.open().owner().to_owned();
        assert!(new.len() == 16 && new != owner);
    }
    // With sets it is damaged, and their manifests say what it was; also in another cluster's folder.
    let put = |cluster: &str, set: &str, manifest: &str| {
        let folder = temporary.0.join("clusters").join(cluster).join("sets").join(set);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(MANIFEST), manifest).unwrap();
    };
    let empty = || {
        std::fs::write(temporary.0.join("owner"), "\n").unwrap();
        let error = owner_of(&temporary.0).unwrap_err();
        assert!(error.to_string().contains("owner\" is empty"), "{error}");
        assert_eq!(std::fs::read(temporary.0.join("owner")).unwrap(), b"\n", "it stays");
        error.hint().unwrap().to_string()
    };
    put("other", "20260101T000000Z-aaaa", "cut");
    assert!(empty().contains("lockstep:owner"));
    let [first, second] = ["0123456789abcdef", "fedcba9876543210"];
    put("other", "20260102T000000Z-aaaa", &format!(r#"{{"owner": "{first}"}}"#));
    assert!(empty().contains(&format!("echo {first} > ")), "{}", empty());
    put("main", "20260103T000000Z-aaaa", &format!(r#"{{"owner": "{second}"}}"#));
    assert!(empty().contains(&format!("echo {second} > ")), "{}", empty());
    assert!(empty().contains(&format!("older sets have {first}")), "{}", empty());
    // A damaged file is no id of another state_dir either, nor is one that is missing.
    for (bytes, how) in [
        (&b"0123456789abcde\n"[..], "is damaged: \"0123456789abcde\" is no id"),
        (b"0123456789abcdeX\n", "is damaged"),
        (&[0xff; 80], "is damaged: \"\\xff\\xff"),
    ] {
        std::fs::write(temporary.0.join("owner"), bytes).unwrap();
        let error = owner_of(&temporary.0).unwrap_err();
        assert!(error.to_string().contains(how), "{error}");
        assert!(error.hint().unwrap().contains(&format!("echo {second} > ")), "{error:?}");
        assert_eq!(std::fs::read(temporary.0.join("owner")).unwrap(), bytes, "it stays");
    }
    std::fs::remove_file(temporary.0.join("owner")).unwrap();
    let error = owner_of(&temporary.0).unwrap_err();
    assert!(error.to_string().contains("owner\" is missing"), "{error}");
    assert!(!temporary.0.join("owner").exists(), "none is made");
}

/// The first backups of two clusters, by one timer: with two ids, what one of them took would be another state_dir's.
#[test]
fn first_commands_at_a_time_get_one_id() {
    for _ in 0..20 {
        let temporary = Temporary::new("first");
        std::fs::create_dir_all(&temporary.0).unwrap();
        let ids: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
            let first = || owner_of(&temporary.0).unwrap();
            let all: Vec<_> = (0..4).map(|_| scope.spawn(first)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(ids.len(), 1, "{ids:?}");
        assert!(ids.contains(&owner_of(&temporary.0).unwrap()));
        assert_eq!(std::fs::read_dir(&temporary.0).unwrap().count(), 1, "nothing else is left");
    }
}

/// Somebody keeps the file elsewhere, and that isn't mounted. Without sets no id is lost.
#[test]
fn an_owner_that_leads_nowhere_is_replaced() {
    let temporary = Temporary::new("owner-link");
    std::fs::create_dir_all(&temporary.0).unwrap();
    let path = temporary.0.join("owner");
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    let owner = owner_of(&temporary.0).unwrap();
    assert!(!path.is_symlink());
    assert_eq!(owner_of(&temporary.0).unwrap(), owner);
}

#[test]
fn one_lock_a_cluster() {
    let temporary = Temporary::new("lock");
    let state = temporary.open();
    let held = state.lock("backup").unwrap();
    let refused = temporary.open().lock("backup").unwrap_err();
    assert_eq!(refused.exit_code(), 11);
    assert!(
        refused.to_string().contains(&format!("process {} (lockstep backup)", std::process::id())),
        "{refused}"
    );
    let other = State::open(&temporary.0, &"other".parse().unwrap()).unwrap();
    assert!(other.lock("backup").is_ok(), "another cluster has a lock of its own");
    drop(held);
    assert!(state.lock("backup").is_ok());
}

#[test]
fn files_of_a_set_are_checked_against_its_manifest() {
    let temporary = Temporary::new("files");
    let state = temporary.open();
    let mut manifest = publish(&state, OLD);
    let hash = crate::set::manifest::hash(b"label");
    manifest.files = [("backup_label".to_owned(), SetFile { bytes: 5, blake3: hash })].into();
    let path = state.set_directory(&manifest.set).join("backup_label");
    let why = |name: &str| {
        let error = state.read_set_file(&manifest, name).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        error.to_string()
    };
    assert!(why("backup_label").contains("can't be read"));
    std::fs::write(&path, b"labem").unwrap();
    assert!(why("backup_label").contains("has hash"));
    std::fs::write(&path, b"label").unwrap();
    assert_eq!(state.read_set_file(&manifest, "backup_label").unwrap(), b"label");
    std::fs::write(path.with_file_name("tablespace_map"), b"").unwrap();
    assert!(why("tablespace_map").contains("isn't in the manifest"));
}

/// What shipping notes beside a set is what `list` shows without asking the store.
#[test]
fn the_repositories_of_a_set_are_known_here() {
    use crate::set::notes::{known_in, shipped_to};
    let temporary = Temporary::new("shipped");
    let named = |names: &[&str]| -> Vec<String> { names.iter().map(|&n| n.to_owned()).collect() };
    let state = temporary.open().with_repositories(&named(&["near", "offsite"]));
    let set = publish(&state, OLD).set;
    assert_eq!(shipped_to(&state, &set), []);
    let folder = state.set_directory(&set);
    let note = "{\"shipped_at\":\"2026-11-21T01:00:00Z\"}\n";
    std::fs::write(folder.join("shipped.offsite.json"), note).unwrap();
    std::fs::write(folder.join("shipped.near.json"), "").unwrap();
    let all = shipped_to(&state, &set);
    let names: Vec<_> = all.iter().map(|known| known.repository.as_str()).collect();
    assert_eq!(names, ["near", "offsite"]);
    assert_eq!(all[1].shipped_at, Some("2026-11-21T01:00:00Z".parse().unwrap()));
    // The repository was created again under its name: a later set's note tells.
    let later = publish(&state, NEW).set;
    let note = |set: &SetId, at: &str, id: &str| {
        let text = format!("{{\"shipped_at\":\"{at}\",\"repository\":\"{id}\"}}");
        std::fs::write(state.set_directory(set).join("shipped.offsite.json"), text).unwrap();
    };
    let known = || {
        let known = known_in(&state, &[&set, &later]).unwrap();
        known.iter().map(Vec::len).collect::<Vec<_>>()
    };
    note(&set, "2026-11-21T01:00:00Z", "a");
    assert_eq!(known(), [2, 0]);
    note(&later, "2026-11-22T01:00:00Z", "b");
    assert_eq!(known(), [1, 1]);
    note(&set, "2026-11-22T02:00:00Z", "b");
    assert_eq!(known(), [2, 1]);
    // Another name in the configuration, and "near" is gone from it.
    let state = temporary.open().with_repositories(&named(&["disk"]));
    let names = || {
        let known = known_in(&state, &[&set, &later]).unwrap();
        let names = known.into_iter().map(|all| all.into_iter().map(|known| known.repository));
        names.map(Iterator::collect::<Vec<_>>).collect::<Vec<_>>()
    };
    assert_eq!(names(), [named(&[]), named(&[])], "it isn't known yet which it is");
    let text = "{\"shipped_at\":\"2026-11-23T01:00:00Z\",\"repository\":\"b\"}";
    std::fs::write(state.set_directory(&later).join("shipped.disk.json"), text).unwrap();
    assert_eq!(names(), [named(&["disk"]), named(&["disk"])]);
}

/// A state_dir that isn't writable can be looked at: nothing is changed that is right already.
#[test]
fn what_is_private_already_stays_untouched() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let temporary = Temporary::new("private");
    let state = temporary.open();
    let sets = state.path("sets");
    let changed = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let before = changed(&sets);
    std::thread::sleep(std::time::Duration::from_millis(20));
    temporary.open();
    assert_eq!(changed(&sets), before, "it was changed though it was right");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    for folder in ["sets", "restores", "clones"].map(|name| state.path(name)) {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        temporary.open();
        assert_eq!(mode(&folder), 0o700);
    }
    // But clones are in it.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let state = State::open(&temporary.0.join("new"), &"main".parse().unwrap());
    rustix::process::umask(before);
    let folder = state.unwrap().path("");
    for folder in folder.ancestors().take(3) {
        assert_eq!(mode(folder), 0o755, "{}", folder.display());
    }
}

#[test]
fn a_set_that_is_removed_meanwhile_is_no_damaged_one() {
    let temporary = Temporary::new("removed");
    let state = temporary.open();
    for id in [OLD, MIDDLE, NEW] {
        publish(&state, id);
    }
    damage(&state, NEW);
    let listed = state.complete().unwrap();
    assert_eq!(listed.len(), 3);
    state.withdraw(&OLD.parse().unwrap()).unwrap();
    let names = |ids: Vec<SetId>| {
        let (good, bad) = state.manifests(ids);
        let good: Vec<_> = good.iter().map(|set| set.set.to_string()).collect();
        (good, bad.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(names(listed.clone()), (vec![MIDDLE.into()], vec![NEW.into()]));
    std::fs::remove_dir_all(state.set_directory(&MIDDLE.parse().unwrap())).unwrap();
    assert_eq!(names(listed), (vec![], vec![NEW.into()]));
}

#[test]
fn a_set_of_another_cluster_of_this_state_dir_is_known() {
    let temporary = Temporary::new("clusters");
    let state = temporary.open();
    let other = State::open(&temporary.0, &"other".parse().unwrap()).unwrap();
    publish(&state, OLD);
    publish(&other, MIDDLE);
    std::fs::write(other.path("removals").join(format!("{NEW}.json")), "{}").unwrap();
    let known = |state: &State| [OLD, MIDDLE, NEW].map(|set| state.is_of_another_cluster(set));
    assert_eq!(known(&state), [false, true, true]);
    assert_eq!(known(&other), [true, false, false]);
}

#[test]
fn a_set_that_is_being_taken_or_removed_is_known() {
    let temporary = Temporary::new("known");
    let state = temporary.open();
    publish(&state, OLD);
    let known = || [OLD, MIDDLE, NEW].map(|set| state.is_known(set));
    assert_eq!(known(), [true, false, false]);
    std::fs::write(state.path("unfinished").join(format!("{MIDDLE}.json")), "{}").unwrap();
    std::fs::write(state.path("removals").join(format!("{NEW}.json")), "{}").unwrap();
    assert_eq!(known(), [true; 3]);
}

/// Two clusters that begin in the same millisecond may get the same id.
#[test]
fn an_id_that_another_cluster_has_is_not_taken() {
    let temporary = Temporary::new("id");
    let state = temporary.open();
    let other = State::open(&temporary.0, &"other".parse().unwrap()).unwrap();
    let [one, two] = [OLD, NEW].map(|id| id.parse::<SetId>().unwrap());
    std::fs::write(state.path("unfinished").join(format!("{one}.json")), "{}").unwrap();
    state.assert_own(&one).unwrap();
    assert!(other.assert_own(&one).unwrap_err().hint().is_some());
    other.assert_own(&two).unwrap();
    publish(&state, NEW);
    assert!(other.assert_own(&two).is_err());
}

/// initdb or pg_upgrade was run, a set taken, and the former cluster put back.
#[test]
fn latest_is_of_the_cluster_in_the_data_directory() {
    let temporary = Temporary::new("clusters");
    let state = temporary.open();
    let former = publish(&state, OLD).postgres.system_identifier;
    let mut of_another = manifest(NEW, vec![]);
    let another = SystemIdentifier::new(8);
    of_another.postgres.system_identifier = another;
    std::fs::create_dir_all(state.set_directory(&of_another.set)).unwrap();
    state.publish(&of_another).unwrap();
    let neither = SystemIdentifier::new(9);
    for (own, wanted) in [
        (&[][..], NEW),
        (&[former][..], OLD),
        (&[another][..], NEW),
        // With `formerly` they are one.
        (&[former, another][..], NEW),
        // The data directory is new, and the cluster is lost.
        (&[neither][..], NEW),
    ] {
        assert_eq!(state.find("latest", own).unwrap().set.as_str(), wanted, "{own:?}");
        assert_eq!(state.newest(own).unwrap().set.as_str(), wanted, "{own:?}");
        assert_eq!(state.find(OLD, own).unwrap().set.as_str(), OLD);
    }
}
