//! Sets that aren't whole: they take no place of those that can be restored.

use std::sync::Arc;

use bytes::Bytes;
use jiff::tz::TimeZone;

use strata::store::Storage as _;

use super::tests::{filled, policy, repository, set_id};
use super::*;
use crate::prune::memory_store::Memory;
use crate::repository::check::{self, Severity};
use crate::repository::{Format, damage};

/// Plans for this many sets by these rules; `harmed` returns those that aren't whole.
fn planned(
    count: usize,
    rules: &str,
    harmed: impl Fn(&[&Shipped]) -> Result<Vec<Harm>>,
) -> Result<Plan> {
    let (memory, _) = filled(count);
    let (repository, policy) = (repository(Arc::new(memory)), policy(rules));
    let now = "2026-12-24T00:00:00Z".parse().unwrap();
    let (bases, identity, zone) = (&BTreeSet::new(), &Identity::default(), &TimeZone::UTC);
    Choice { policy: Some(&policy), named: &[], bases, identity, now, zone }
        .plan_beside(&repository, harmed)
}

fn lost_a_pack(set: String) -> Harm {
    Harm { set, why: "a pack is gone".into() }
}

#[test]
fn what_is_not_whole_takes_no_place_and_goes_in_its_time() {
    let plan = planned(6, "last = 2", |sets| {
        assert_eq!(sets.len(), 6);
        Ok([3, 5].map(set_id).map(lost_a_pack).to_vec())
    });
    let plan = plan.unwrap();
    assert_eq!(plan.removed().collect::<Vec<_>>(), [0, 1, 3].map(set_id));
    let kept = |entry: &&Entry| matches!(entry.fate, Fate::Keep(_));
    let kept: Vec<_> = plan.entries.iter().filter(kept).map(|entry| &entry.set).collect();
    assert_eq!(kept, [&set_id(2), &set_id(4)]);
    let left = plan.entries.iter().find(|entry| entry.set == set_id(5)).unwrap();
    let Fate::Left(why) = &left.fate else { panic!("{left:?}") };
    assert!(why.contains("isn't whole") && why.contains("a pack is gone"), "{why}");
    assert!(why.contains("repo check offsite"), "{why}");
    assert!(plan.has_problems());
    assert!(plan.entries.is_sorted_by_key(|entry| entry.set.clone()));
}

#[test]
fn nothing_is_looked_at_where_nothing_goes() {
    let plan = planned(3, "last = 3", |_| panic!("nobody asked"));
    assert!(!plan.unwrap().has_problems());
    let failed = planned(3, "last = 2", |_| Err(Error::failed("the store failed")));
    assert_eq!(failed.unwrap_err().to_string(), "the store failed");
}

/// Otherwise its lock would be extended forever.
#[test]
fn what_only_its_lock_keeps_is_not_left() {
    let set = set_id(0);
    let why = BTreeMap::from([(set.clone(), "a pack is gone".to_owned())]);
    let locked = Reason::LockedUntil(Timestamp::UNIX_EPOCH);
    let fate = |reasons: Vec<Reason>| {
        let fate = Fate::Keep(reasons);
        let mut entry = Entry { set: set.clone(), time: None, fate, bytes: None };
        leave_harmed(&mut entry, &why, "offsite");
        entry.fate
    };
    assert_eq!(fate(vec![locked.clone()]), Fate::Keep(vec![locked.clone()]));
    assert!(matches!(fate(vec![Reason::Last(2), locked]), Fate::Left(_)));
}

/// A repository in which a pack that a set needs is damaged.
struct WithDamage {
    memory: Memory,
    repository: Repository,
    /// Where this host notes what it has found.
    folder: tempfile::TempDir,
    pack: String,
    good: Bytes,
}

impl WithDamage {
    fn new() -> Self {
        let (memory, _) = filled(4);
        let repository = repository(Arc::new(memory.clone()));
        Format::new().unwrap().create(repository.strata.store()).unwrap();
        // Each of them is needed by a set.
        let pack = memory.paths("/packs/").into_iter().min().unwrap();
        let good = memory.get(&pack).unwrap();
        let mut bad = good.to_vec();
        *bad.last_mut().unwrap() ^= 1;
        memory.put(&pack, &[bad.into()]).unwrap();
        Self { memory, repository, folder: tempfile::tempdir().unwrap(), pack, good }
    }

    fn mend(&self) {
        self.memory.put(&self.pack, std::slice::from_ref(&self.good)).unwrap();
    }

    fn noted(&self) -> Vec<String> {
        damage::noted(self.folder.path(), &self.repository.id).into_keys().collect()
    }
}

/// A check that reads a few packs finds it once, and the next one may read others.
#[test]
fn what_a_check_found_damaged_takes_no_place_until_it_is_good_again() {
    let it = WithDamage::new();
    let (repository, folder) = (&it.repository, it.folder.path());
    let errors = |percent| {
        let checked = check::run(repository, percent, folder, &Vec::new, &mut |_, _| true).unwrap();
        checked.findings.iter().filter(|found| found.severity == Severity::Error).count()
    };
    let harmed = || {
        let (sets, _) = repository.sets().unwrap();
        harm::of_sets(repository, folder, &sets.iter().collect::<Vec<_>>()).unwrap()
    };
    assert_eq!((errors(None), errors(Some(0)), harmed().len()), (0, 0, 0), "nobody reads it");
    assert_eq!(errors(Some(100)), 1);
    assert!(!harmed().is_empty() && harmed()[0].why.contains("hash is wrong"), "{:?}", harmed());
    // It is read again, whatever else is.
    assert_eq!((errors(Some(0)), errors(None)), (1, 1));
    assert!(!harmed().is_empty(), "it is still noted");
    it.mend();
    assert_eq!(errors(None), 0);
    assert!(harmed().is_empty() && it.noted().is_empty());
}

/// A timer and somebody at a terminal, while a disk fails: each reads other packs, and finds other ones damaged.
#[test]
fn what_a_check_finds_damaged_stays_noted_when_another_ends_later() {
    let it = WithDamage::new();
    let (repository, folder) = (&it.repository, it.folder.path());
    let own = it.pack.rsplit('/').next().unwrap().to_owned();
    let other = "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned();
    let note = |packs: &[&String]| {
        let packs = packs.iter().map(|pack| ((*pack).clone(), "a hash is wrong".to_owned()));
        damage::note(folder, &repository.id, packs.collect()).unwrap();
    };
    // The other check ends while this one reads.
    let check_beside = |packs: &[&String]| {
        let mut has_begun = false;
        let mut told = |_: u64, _: u64| {
            if !std::mem::replace(&mut has_begun, true) {
                note(packs);
            }
            true
        };
        check::run(repository, Some(100), folder, &Vec::new, &mut told).unwrap();
    };
    check_beside(&[&other]);
    let mut both = vec![own.clone(), other.clone()];
    both.sort();
    assert_eq!(it.noted(), both);
    // What this one finds good again goes, and what only the other one has found stays.
    note(&[&own]);
    it.mend();
    check_beside(&[&own, &other]);
    assert_eq!(it.noted(), [other]);
}
