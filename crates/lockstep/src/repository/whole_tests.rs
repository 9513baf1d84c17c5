use std::sync::Arc;

use strata::check::{Problem, Report};
use strata::delta::{Change, ImageOptions, ImageWriter, chain};
use strata::fold::{KeepAll, merge};
use strata::store::testing::{Call, Counting};
use strata::store::{Retries, Storage, Store};

use super::*;
use crate::prune::memory_store::Memory;

const IMAGE: &str = "tank=pg";

struct At {
    memory: Memory,
    counting: Counting,
    repository: Repository,
    folder: PathBuf,
}

impl At {
    /// Writes a full delta `1` and increments on top of it, each with a pack of its own.
    fn new(name: &str, deltas: u64) -> Self {
        let memory = Memory::default();
        let counting = Counting::new(Arc::new(memory.clone()));
        let retries = Retries { tries: 1, first_pause: std::time::Duration::ZERO };
        let store = Store::shared(Arc::new(counting.clone()), retries);
        let strata = strata::Repository::new(store, "clusters/main", None).unwrap();
        let config = toml::from_str("url = 'file:///none'").unwrap();
        let repository = Repository { name: "offsite".into(), config, id: "7".into(), strata };
        let folder = format!("lockstep-whole-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let _ = std::fs::remove_dir_all(&folder);
        let at = Self { memory, counting, repository, folder };
        (1..=deltas).for_each(|delta| at.write(delta, (delta > 1).then(|| delta - 1)));
        at
    }

    fn write(&self, delta: u64, base: Option<u64>) {
        let base = base.map(|base| base.to_string());
        let options = ImageOptions::default();
        let (id, strata) = (delta.to_string(), &self.repository.strata);
        let mut writer = ImageWriter::new(strata, IMAGE, &id, base.as_deref(), &options).unwrap();
        let header = Some(vec![1].into());
        writer.changed(Change { object: 1, header, ..Change::default() }).unwrap();
        writer.data(0, &delta.to_le_bytes().repeat(64)).unwrap();
        writer.finish().unwrap();
    }

    /// Returns which of these are whole, and which calls to the store that took.
    fn look(&self, ids: &[u64]) -> (Vec<u64>, Vec<Call>) {
        self.counting.take();
        let wholeness = Wholeness::new(&self.repository, &self.folder);
        let deltas = wholeness.image(IMAGE).unwrap();
        let is_whole = |id: &u64| deltas.whole(&id.to_string()).unwrap().is_some();
        let whole = ids.iter().copied().filter(is_whole).collect();
        (whole, self.counting.take())
    }

    fn whole(&self, ids: &[u64]) -> Vec<u64> {
        self.look(ids).0
    }

    /// The pack that a delta wrote.
    fn pack_of(&self, delta: u64) -> String {
        let strata = &self.repository.strata;
        let descriptor = read_descriptor(strata, IMAGE, &delta.to_string()).unwrap();
        let mut found = String::new();
        packs(strata, &descriptor, |row| {
            found = strata.pack_path(row.pack);
            Ok(())
        })
        .unwrap();
        found
    }
}

impl Drop for At {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What is remembered means that only the newest is read; packs that are many are listed.
#[test]
fn a_long_chain_costs_a_few_requests() {
    let at = At::new("cost", 40);
    assert_eq!(at.whole(&[40]), [40]);
    let (whole, calls) = at.look(&[40]);
    assert_eq!(whole, [40]);
    let verbs: Vec<_> = calls.iter().map(|call| call.verb).collect();
    assert_eq!(verbs, ["list", "list", "get"], "{calls:?}");
    at.write(41, Some(40));
    let (whole, calls) = at.look(&[41]);
    assert_eq!(whole, [41]);
    assert!(calls.len() <= 7, "{calls:?}");
    // If the packs are few, each is asked for.
    let few = At::new("few", 3);
    few.whole(&[3]);
    let (_, calls) = few.look(&[3]);
    assert_eq!(calls.iter().filter(|call| call.path.contains("packs")).count(), 3, "{calls:?}");
}

/// Whatever is gone or cut off harms the delta and those on top of it, but none below, even if it is remembered as
/// being there.
#[test]
fn what_is_gone_or_cut_off_harms_all_that_come_after() {
    type Harm = fn(&At, &str);
    let gone: Harm = |at, path| at.memory.delete(path).unwrap();
    let cut: Harm = |at, path| {
        let bytes = at.memory.get(path).unwrap();
        at.memory.put(path, &[bytes.slice(..bytes.len() / 2)]).unwrap();
    };
    for harm in [gone, cut] {
        for remembered in [false, true] {
            for kind in ["pack", ".json", ".objects.", ".extents.", ".packs."] {
                let at = At::new("harm", 4);
                if remembered {
                    assert_eq!(at.whole(&[4]), [4]);
                }
                let path = match kind {
                    "pack" => at.pack_of(2),
                    kind => {
                        let all = at.memory.paths(kind);
                        let of = |path: &&String| path.contains("tank=pg/2.");
                        all.iter().find(of).unwrap().clone()
                    }
                };
                harm(&at, &path);
                assert_eq!(at.whole(&[4, 3, 2, 1]), [1], "{kind}, remembered: {remembered}");
                // Once stored in full again, it is whole, and so is everything after it.
                at.write(2, None);
                assert_eq!(at.whole(&[4, 3, 2, 1]), [4, 3, 2, 1], "{kind}");
            }
        }
    }
}

/// A merge replaces a delta and removes those below: what is remembered of them is found to be wrong.
#[test]
fn what_a_merge_made_is_whole() {
    let at = At::new("merge", 4);
    assert_eq!(at.whole(&[4]), [4]);
    let strata = &at.repository.strata;
    let run = chain(strata, IMAGE, "3", None).unwrap();
    merge(strata, &run, &KeepAll, 1 << 20, &Default::default(), &|| Ok(())).unwrap();
    for id in ["1", "2"] {
        at.memory.delete(&format!("clusters/main/volumes/{IMAGE}/{id}.json")).unwrap();
    }
    assert_eq!(at.whole(&[4, 3, 2, 1]), [4, 3]);
}

#[test]
fn a_memory_that_is_damaged_or_of_another_repository_is_none() {
    let at = At::new("memory", 3);
    at.whole(&[3]);
    let path = at.folder.join(format!("{IMAGE}.json"));
    let text = std::fs::read_to_string(&path).unwrap();
    for wrong in ["", "{", &text.replace("\"7\"", "\"8\""), &text.replace("\"base\"", "\"bass\"")] {
        std::fs::write(&path, wrong).unwrap();
        assert_eq!(at.whole(&[3]), [3]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is written again");
    }
    // Nor does one that can't be kept.
    std::fs::remove_dir_all(&at.folder).unwrap();
    std::fs::write(&at.folder, "in the way").unwrap();
    assert_eq!(at.whole(&[3]), [3]);
    std::fs::remove_file(&at.folder).unwrap();
}

/// A store that fails isn't a delta that is gone.
#[test]
fn a_store_that_fails_is_an_error() {
    use strata::store::testing::{Fault, Faulty};
    let mut at = At::new("fails", 3);
    let retries = || Retries { tries: 1, first_pause: std::time::Duration::ZERO };
    let calls = { at.look(&[3]).1.len() as u64 };
    let _ = std::fs::remove_dir_all(&at.folder);
    for nth in 0..calls {
        let failing = Faulty::new(Arc::new(at.memory.clone()), nth, Fault::FailOnce);
        let store = Store::shared(Arc::new(failing), retries());
        at.repository.strata = strata::Repository::new(store, "clusters/main", None).unwrap();
        let wholeness = Wholeness::new(&at.repository, &at.folder);
        let found = wholeness.image(IMAGE).and_then(|deltas| deltas.whole("3"));
        assert!(found.is_err(), "call {nth}: {found:?}");
        let _ = std::fs::remove_dir_all(&at.folder);
    }
}

/// The store fails on a delta, or on a manifest: so nobody knows which packs that needs, and they weren't read.
#[test]
fn a_damaged_pack_stays_noted_if_a_check_could_not_look_at_what_may_need_it() {
    let at = At::new("unread", 2);
    let name = at.pack_of(2).rsplit('/').next().unwrap().to_owned();
    let before = Damaged::from([(name, "a hash is wrong".to_owned())]);
    let after = |paths: &[&str]| {
        let problem = |path: &&str| {
            let error = StoreError::new("get", path, StoreErrorKind::Transient).into();
            Problem { set: "s".to_owned(), sets: Vec::new(), error }
        };
        let problems = paths.iter().map(problem).collect();
        damage::after(&at.repository, &Report { problems, ..Report::default() }, &before)
    };
    assert_eq!(after(&["clusters/main/volumes/tank=pg/2.json"]), before);
    assert_eq!(after(&["clusters/main/sets/s.json", &at.pack_of(1)]), before);
    assert_eq!(after(&[&at.pack_of(2)]), before);
    // It was read, and is good.
    assert!(after(&[]).is_empty() && after(&[&at.pack_of(1)]).is_empty());
}

/// Nothing but a check reads content, and the next one may read other packs.
#[test]
fn what_needs_a_pack_that_a_check_found_damaged_is_not_whole() {
    let at = At::new("damaged", 3);
    let pack = at.pack_of(2).rsplit('/').next().unwrap().to_owned();
    assert_eq!(at.whole(&[1, 2, 3]), [1, 2, 3]);
    let found = || Damaged::from([(pack.clone(), "a hash is wrong".to_owned())]);
    damage::note(&at.folder, "7", found()).unwrap();
    assert_eq!(at.whole(&[1, 2, 3]), [1]);
    let wholeness = Wholeness::new(&at.repository, &at.folder);
    let why = wholeness.image(IMAGE).unwrap().why_not_whole("3").unwrap().unwrap();
    assert!(why.contains("a hash is wrong") && why.contains("delta \"2\""), "{why}");
    // It is written again, into another pack.
    at.write(2, Some(1));
    assert_eq!(at.whole(&[1, 2, 3]), [1, 2, 3]);
    // Another repository's note says nothing about this one.
    let pack = at.pack_of(2).rsplit('/').next().unwrap().to_owned();
    let found = Damaged::from([(pack, "a hash is wrong".to_owned())]);
    damage::note(&at.folder, "8", found).unwrap();
    assert_eq!(at.whole(&[1, 2, 3]), [1, 2, 3]);
}
