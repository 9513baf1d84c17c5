//! Other places where a cluster's parts may lie: one dataset for all, pg_wal mounted inside the data directory,
//! eight datasets. Which strategies they allow, in which order their datasets are frozen, and that it restores.

mod support;

use support::checker::Checker;
use support::cluster::Stop;
use support::fixture::{Fixture, assert_clean};
use support::layout::{
    Layout, eight_datasets, nested_wal, one_dataset, one_pool, two_pools_four_datasets,
};
use support::ledger::Ledger;
use support::lockstep::{Set, exit, json_of};
use support::pools::property;

const SCALE: u32 = 1;

struct Prepared {
    fixture: Fixture,
    ledger: Ledger,
}

fn prepare(layout: Layout) -> Prepared {
    let fixture = Fixture::new(layout);
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    Prepared { fixture, ledger }
}

impl Prepared {
    /// Takes a set while rows are written, restores it, checks it, and removes what was restored.
    fn proves(&self, strategy: &str) -> Set {
        let writers = self.ledger.start(&self.fixture.cluster);
        let lockstep = self.fixture.lockstep();
        let set = lockstep.backup(strategy);
        let expected = self.ledger.expected(set.floor_lsn);
        writers.stop();
        let directory = self.fixture.target(strategy);
        let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
        let verdict = Checker::new(SCALE)
            .with_ledger(&self.ledger, expected)
            .check_and_stop(restored.server());
        verdict.assert_right(strategy);
        assert!(verdict.ledger_rows > 2, "the ledger had hardly any rows");
        self.fixture.discard_restored(&directory, &set.id);
        assert_clean(&self.fixture);
        set
    }

    fn dataset(&self, mount: &str) -> &str {
        let place = self.fixture.layout.datasets.iter().position(|dataset| dataset.mount == mount);
        &self.fixture.datasets[place.unwrap_or_else(|| panic!("nothing is mounted at {mount:?}"))]
    }
}

fn order(set: &Set) -> Vec<&str> {
    set.in_order().iter().map(|volume| volume.dataset.as_str()).collect()
}

#[test]
fn one_dataset_holds_all() {
    let prepared = prepare(one_dataset());
    let set = prepared.proves("atomic");
    assert_eq!(order(&set), [prepared.dataset("all")]);
    assert!(
        set.volumes[0].parts.len() >= 4,
        "data directory, pg_wal and two tablespaces: {:?}",
        set.volumes[0].parts
    );
    let set = prepared.proves("label");
    assert_labelled(&set, prepared.dataset("all"));
}

/// This dataset's snapshot, and no other of the set, carries the label, for whoever restores by hand.
#[track_caller]
fn assert_labelled(set: &Set, dataset: &str) {
    for volume in &set.volumes {
        let label = property(&volume.snapshot, "lockstep:backup_label");
        assert_eq!(label != "-", volume.dataset == dataset, "{}: {label:?}", volume.snapshot);
    }
}

#[test]
fn one_pool_is_one_transaction_group() {
    let prepared = prepare(one_pool());
    let set = prepared.proves("atomic");
    let groups: Vec<u64> = set.volumes.iter().map(|volume| volume.createtxg).collect();
    assert_eq!(groups.len(), 4, "{}", set.json);
    assert!(
        groups.iter().all(|group| *group == groups[0]),
        "several transaction groups: {groups:?}"
    );
    // The common parent holds no part; `-r` on it may be how they are frozen, but it isn't of the set.
    let strays: Vec<_> =
        prepared.fixture.snapshots().into_iter().filter(|name| name.contains("/pg@")).collect();
    assert!(strays.is_empty(), "snapshots that belong to no volume: {strays:?}");
    let set = prepared.proves("label");
    assert_eq!(order(&set).last(), Some(&prepared.dataset("wal")), "pg_wal last");
    assert_labelled(&set, prepared.dataset("wal"));
}

#[test]
fn two_pools_allow_no_atomic_set() {
    let prepared = prepare(two_pools_four_datasets());
    let refused =
        prepared.fixture.lockstep().expect(exit::REFUSED, &["backup", "--strategy", "atomic"]);
    assert!(
        refused.stderr.contains("pool") && refused.stderr.contains("hint: "),
        "{}",
        refused.describe()
    );
    let refused =
        prepared.fixture.lockstep().expect(exit::REFUSED, &["backup", "--strategy", "cold"]);
    assert!(
        refused.stderr.contains("error: ") && refused.stderr.contains("hint: "),
        "{}",
        refused.describe()
    );
    assert_clean(&prepared.fixture);
    assert_eq!(
        prepared.fixture.snapshots(),
        Vec::<String>::new(),
        "a refused backup leaves no snapshot"
    );
}

#[test]
fn wal_mounted_inside_the_data_directory() {
    let prepared = prepare(nested_wal());
    let wal = prepared.fixture.datasets.last().expect("pg_wal's dataset comes last").clone();
    for strategy in ["label", "ordered"] {
        let set = prepared.proves(strategy);
        assert_eq!(order(&set).last(), Some(&wal.as_str()), "pg_wal last in {strategy}");
    }
}

#[test]
fn eight_datasets_in_two_pools() {
    let prepared = prepare(eight_datasets());
    let set = prepared.proves("label");
    assert_eq!(order(&set).len(), 8);
    assert_eq!(order(&set).last(), Some(&prepared.dataset("wal")), "pg_wal last");
    let set = prepared.proves("ordered");
    assert_eq!(order(&set).first(), Some(&prepared.dataset("data")), "the data directory first");
    assert_eq!(order(&set).last(), Some(&prepared.dataset("wal")), "pg_wal last");
}

/// A folder that PostgreSQL makes anew may be a link to a RAM disk: what is restored must not empty the live server's.
#[test]
fn a_link_out_of_the_data_directory_is_not_followed() {
    let prepared = prepare(two_pools_four_datasets());
    let cluster = &prepared.fixture.cluster;
    cluster.stop(Stop::Fast);
    let outside = prepared.fixture.owned("stat_tmp");
    let (link, settings) =
        (cluster.data.join("pg_stat_tmp"), cluster.data.join("postgresql.auto.conf"));
    std::fs::remove_dir_all(&link).expect("the folder can be removed");
    std::os::unix::fs::symlink(&outside, &link).expect("a link can be made");
    let kept = outside.join("kept");
    std::fs::write(&kept, "the live server's").expect("it is writable");
    // Somebody's tool keeps this file elsewhere.
    let moved = outside.join("auto.conf");
    std::fs::copy(&settings, &moved).expect("it can be copied");
    std::fs::set_permissions(&moved, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("its mode can be changed");
    std::fs::remove_file(&settings).expect("it can be removed");
    std::os::unix::fs::symlink(&moved, &settings).expect("a link can be made");
    let before = std::fs::read(&moved).expect("it can be read");
    cluster.start();
    prepared.proves("label");
    assert!(kept.exists(), "the restore has emptied the live server's folder");
    assert!(
        std::fs::read(&moved).expect("it is there") == before,
        "the live server's settings were changed"
    );
}

/// A user who may connect and not take backups: the set is consistent, by another strategy, and somebody is told.
#[test]
fn a_user_without_the_right_to_take_backups() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture
        .cluster
        .execute(&["CREATE ROLE backup LOGIN REPLICATION", "GRANT pg_read_all_settings TO backup"]);
    let text = fixture.configuration("auto", true);
    let changed = text.replace("user = \"postgres\"", "user = \"backup\"");
    assert_ne!(text, changed);
    std::fs::write(fixture.config(), changed).expect("it can be written");
    let lockstep = fixture.lockstep();
    let taken = lockstep.expect(exit::PROBLEMS, &["backup", "--json"]);
    for words in
        ["may not call pg_backup_start", "taken with strategy ordered instead", "GRANT EXECUTE"]
    {
        assert!(taken.stderr.contains(words), "{words}: {}", taken.describe());
    }
    assert_eq!(json_of(&taken)["strategy"], "ordered", "{}", taken.describe());
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains("may not call"), "{}", checked.describe());
    // Who asks for it by name needs no such words.
    lockstep.expect(exit::DONE, &["backup", "--strategy", "ordered"]);
    fixture.cluster.execute(&[
        "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO backup",
    ]);
    assert_eq!(lockstep.backup("auto").strategy, "label");
    assert_clean(&fixture);
}

/// Of a pg_hba.conf outside the data directory the set has all: what it includes, and its files of names. The restored
/// server's host has nothing of it.
#[test]
fn what_pg_hba_conf_includes_is_in_the_set() {
    let prepared = prepare(two_pools_four_datasets().major(18));
    let (fixture, cluster) = (&prepared.fixture, &prepared.fixture.cluster);
    let etc = fixture.owned("etc");
    let write = |name: &str, text: &str| {
        let path = etc.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the test may");
        std::fs::write(&path, text).expect("the test may");
    };
    write("pg_hba.conf", "include_dir conf.d\ninclude_if_exists none\ninclude \"the rest\"\n");
    write("conf.d/a.conf", "local @names postgres trust\n");
    write("conf.d/names", "postgres # the first\ntemplate1\n");
    write("the rest", "local all all trust\n");
    write("pg_ident.conf", "include maps\n");
    write("maps", "m root postgres\n");
    cluster.execute(&[
        &format!("ALTER SYSTEM SET hba_file = '{}'", etc.join("pg_hba.conf").display()),
        &format!("ALTER SYSTEM SET ident_file = '{}'", etc.join("pg_ident.conf").display()),
    ]);
    cluster.stop(Stop::Fast);
    cluster.start();
    let rules = "SELECT type || ' ' || database::text || ' ' || user_name::text FROM pg_hba_file_rules \
                 UNION ALL SELECT map_name || pg_username FROM pg_ident_file_mappings";
    let wanted = cluster.column("postgres", rules);
    assert_eq!(wanted.len(), 3, "{wanted:?}");
    let set = fixture.lockstep().backup("label").id;
    std::fs::rename(&etc, etc.with_extension("away")).expect("the test may");
    let to = fixture.target("r");
    let restored = fixture.lockstep().restore_and_start(&set, &to, &[]);
    assert_eq!(restored.server().column("postgres", rules), wanted);
    restored.server().stop(Stop::Fast);
    std::fs::rename(etc.with_extension("away"), &etc).expect("the test may");
    std::fs::remove_file(etc.join("maps")).expect("the test may");
    let taken = fixture.lockstep().expect(exit::PROBLEMS, &["backup", "--json"]);
    let words = ["pg_ident.conf is", "so it isn't in the set", "which", "includes, isn't there"];
    assert!(words.iter().all(|words| taken.stderr.contains(words)), "{}", taken.describe());
    fixture.discard_restored(&to, &set);
}
