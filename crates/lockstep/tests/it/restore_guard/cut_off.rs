//! A restore that is killed while its recovery runs: the links that recovery made lead into the original. Nothing
//! starts on it, whether Lockstep has run again or not, and what can't be seen meanwhile isn't forgotten.

use super::*;
use crate::support::command::give_to_postgres;
use crate::support::pools::{Pool, patiently};
use crate::support::workspace::processes_of;
use std::time::Duration;

/// A cluster with a set in a repository, and a tablespace that was made later, in the archive.
struct Later {
    fixture: Fixture,
    lockstep: Lockstep,
    set: String,
    path: PathBuf,
    command: String,
}

impl Later {
    fn new(layout: Layout) -> Later {
        let fixture = Fixture::new(layout.archive().setting("autovacuum", "off"));
        let lockstep = with_repository(&fixture);
        let set = lockstep.backup("label").id;
        let path = fixture.root().join("later");
        fixture.pools[0].dataset("later", &path, &[]);
        give_to_postgres(&path);
        fixture.cluster.execute(&[
            &format!("CREATE TABLESPACE later LOCATION '{}'", path.display()),
            "CREATE TABLE later TABLESPACE later AS SELECT 7 AS n",
        ]);
        let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        wait_until("it is archived", LIMIT, || fixture.archive.join(&segment).exists());
        let command = format!("cp {}/%f %p", fixture.archive.display());
        Later { fixture, lockstep, set, path, command }
    }

    /// Kills a restore at this step; with `reboots`, its server too.
    #[track_caller]
    fn kill_at(&self, step: &str, to: &Path, more: &[&str], reboots: bool) {
        let hooks = Hooks::holding(&self.fixture, step);
        let start = ["--start", "--restore-command", &self.command];
        let more = [more, &start[..]].concat();
        let arguments = restore_arguments(&self.set, to, &more);
        let mut program = self.lockstep.clone().with_steps(&hooks.steps).spawn(&arguments);
        hooks.steps.wait_reached(step, &mut program);
        program.kill();
        program.wait(LIMIT);
        if reboots {
            wait_until("its server is gone", LIMIT, || {
                let left = processes_of(to);
                for pid in &left {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                        let _ = rustix::process::kill_process(pid, Signal::KILL);
                    }
                }
                left.is_empty()
            });
        }
    }

    /// Whether a link of the restored cluster leads into the original's tablespace.
    fn leads_there(&self, data: &Path) -> bool {
        let links = fs::read_dir(data.join("pg_tblspc")).expect("it is there").flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| target == self.path)
    }

    /// Whether the host's state still has a journal of a restore.
    fn has_journal(&self) -> bool {
        let all = entries(&self.fixture.state.join("clusters/main/restores"));
        all.iter().any(|path| path.extension().is_some_and(|end| end == "json"))
    }

    /// Runs the next command, which must say this.
    #[track_caller]
    fn next_says(&self, words: &[&str]) {
        let next = self.lockstep.expect(exit::DONE, &["--json", "backup"]);
        assert_said(&next, words);
    }

    #[track_caller]
    fn check_says(&self, words: &str) {
        let checked = self.lockstep.run(&["check"]);
        assert!(checked.stdout.contains(words), "{words}: {}", checked.describe());
    }

    /// `is_in_order`: Lockstep has run since it was killed.
    #[track_caller]
    fn assert_starts_nothing(&self, data: &Path, is_in_order: bool, when: &str) {
        match control(data).metadata() {
            Ok(found) if is_in_order || found.len() > 0 => panic!("{when}: pg_control is there"),
            _ => {}
        }
        let server = Cluster { data: data.to_owned(), ..self.fixture.cluster.clone() };
        assert!(!server.try_start().ok(), "{when}: a server starts");
    }
}

/// All datasets of the older restore are there, and none is new.
#[test]
fn an_older_restore_that_was_being_changed_does_not_start() {
    let later = Later::new(one_pool());
    let parent = format!("{}/back", later.fixture.pools[0].name);
    let to = later.fixture.target("r");
    let data = to.join("data");
    let form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    later.lockstep.restore(&later.set, &to, &form);
    let delta = [&form[..], &["--delta"]].concat();
    let dry = [&delta[..], &["--dry-run"]].concat();
    for step in ["restore.rolled-back", "restore.received-1", "restore.recovered"] {
        later.kill_at(step, &to, &delta, true);
        if step == "restore.recovered" {
            assert!(later.leads_there(&data), "then this test proves nothing");
            later.assert_starts_nothing(&data, false, "before the next command");
        }
        later.check_says("cut off");
        assert!(later.has_journal());
        later.next_says(&["a restore was cut off", "--delta continues with it"]);
        later.assert_starts_nothing(&data, true, step);
        assert!(!later.has_journal());
        let dry = [&["--json"], &restore_arguments(&later.set, &to, &dry)[..]].concat();
        let planned = json_of(&later.lockstep.expect(exit::DONE, &dry));
        assert_eq!(planned["goes_on"].as_str(), Some(&*later.set), "{step}: {planned}");
    }
    let start = [&delta[..], &["--restore-command", &later.command]].concat();
    let restored = later.lockstep.restore_and_start(&later.set, &to, &start);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM later"), "7");
    restored.server().stop(Stop::Fast);
    assert!(!later.leads_there(&data));
    assert_lives_on(&later.fixture);
}

/// After a reboot its pool isn't imported, or its datasets aren't mounted.
#[test]
fn what_can_not_be_seen_is_not_forgotten() {
    let later = Later::new(one_pool());
    let fixture = &later.fixture;
    let name = format!("{}-away", fixture.pools[0].name);
    let pool = Pool::create(&name, &fixture.root().join("away.img"), 1 << 30);
    let files = fixture.root().join("disk");
    pool.dataset("disk", &files, &[]);
    let parent = format!("{name}/back");
    let to = fixture.target("r");
    let form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let to_files = files.join("r");
    let away = format!("pool \"{name}\" isn't imported");
    let nothing = format!("nothing is mounted on \"{}\"", files.display());
    let images = fixture.root().to_str().expect("UTF-8");
    let forms = [(&to, &form[..], &away), (&to_files, &FILES[..4], &nothing)];
    for (to, form, unseen) in forms {
        let data = to.join("data");
        later.kill_at("restore.recovered", to, form, true);
        assert!(later.leads_there(&data), "then this test proves nothing");
        patiently("zpool", &["export", &name], || ()).expect("it is idle");
        later.check_says(unseen);
        later.next_says(&["can't be seen", unseen]);
        assert!(later.has_journal());
        must(&mut command("zpool", ["import", "-d", images, &name]));
        later.assert_starts_nothing(&data, false, "imported");
        later.check_says("--delta continues with it");
        later.next_says(&["a restore was cut off", "--delta continues with it"]);
        later.assert_starts_nothing(&data, true, "imported, and Lockstep has run");
        assert!(!later.has_journal());
    }

    // Its key may not be loaded: it isn't mounted.
    let delta = [&form[..], &["--delta"]].concat();
    later.kill_at("restore.recovered", &to, &delta, true);
    let children = zfs(&["list", "-H", "-r", "-o", "name", &parent]);
    let below: Vec<_> = children.lines().filter(|name| *name != parent).collect();
    for dataset in below.iter().rev() {
        patiently("zfs", &["unmount", dataset], || ()).expect("it is idle");
    }
    let unmounted = format!("dataset \"{parent}/data\" isn't mounted");
    later.check_says(&unmounted);
    later.next_says(&[&unmounted]);
    assert!(later.has_journal());
    for dataset in &below {
        zfs(&["mount", dataset]);
    }
    later.next_says(&["a restore was cut off", "--delta continues with it"]);
    later.assert_starts_nothing(&to.join("data"), true, "mounted");
    let start = [&delta[..], &["--restore-command", &later.command]].concat();
    let restored = later.lockstep.restore_and_start(&later.set, &to, &start);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM later"), "7");
    restored.server().stop(Stop::Fast);
    assert_lives_on(fixture);
}

/// The clones of a killed restore come back with their pool.
#[test]
fn clones_in_a_pool_that_is_away_are_not_forgotten() {
    let later = Later::new(one_pool());
    let fixture = &later.fixture;
    let to = fixture.target("r");
    later.kill_at("restore.recovered", &to, &[], true);
    let pool = &fixture.pools[0].name;
    fixture.cluster.stop(Stop::Fast);
    patiently("zpool", &["export", pool], || ()).expect("it is idle");
    let next = later.lockstep.run(&["prune", "--local", "--set", "no-such"]);
    assert_said(&next, &["can't be seen", &format!("pool \"{pool}\" isn't imported")]);
    assert!(later.has_journal());
    let image = fixture.pools[0].image.parent().expect("a folder").to_str().expect("UTF-8");
    must(&mut command("zpool", ["import", "-d", image, pool]));
    fixture.cluster.start();
    later.next_says(&["removing what an unfinished restore left: dataset "]);
    assert!(!later.has_journal() && !to.exists());
    let clones = fixture.clones();
    assert!(clones.is_empty(), "{clones:?}");
    assert_lives_on(fixture);
}

/// Its server was handed over when it was killed: nobody is told to destroy it.
#[test]
fn a_cluster_in_use_is_not_named_as_a_remainder() {
    let later = Later::new(one_pool());
    let parent = format!("{}/back", later.fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    for (name, form) in [("zfs", &zfs[..]), ("files", &FILES[..4]), ("clones", &[])] {
        let to = later.fixture.target(name);
        later.kill_at("restore.started", &to, form, false);
        let checked = later.lockstep.run(&["check"]);
        let text = &checked.stdout;
        assert!(text.contains("is a cluster of its own by now"), "{name}: {text}");
        for wrong in ["zfs destroy", "rm -r", "removes what it left", "no server starts"] {
            assert!(!text.contains(wrong), "{name}: {text}");
        }
        later.next_says(&["is a cluster of its own by now"]);
        let data = fs::canonicalize(to.join("data")).expect("it stays");
        let log = to.join("log/server.log");
        let server = Cluster::running_in(&data, &later.fixture.cluster.bin, &log);
        assert_eq!(server.value("postgres", "SELECT n FROM later"), "7");
        server.stop(Stop::Fast);
    }
    later.fixture.discard_restored(&later.fixture.target("clones"), &later.set);
    assert_lives_on(&later.fixture);
}

/// A set that doesn't fit on what was received, and what another state_dir's restore left half received.
#[test]
fn what_is_in_the_way_is_named_with_its_way_out() {
    let mut later = Later::new(one_pool());
    let older = later.set;
    later.set = later.lockstep.backup("label").id;
    let parent = format!("{}/back", later.fixture.pools[0].name);
    let to = later.fixture.target("r");
    let form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let delta = [&form[..], &["--delta"]].concat();
    later.kill_at("restore.received-2", &to, &form, false);
    let outcome = later.lockstep.run(&restore_arguments(&older, &to, &delta));
    let way_out = format!("; rm -r {}`", to.display());
    let words = ["can't be brought to set", "is an unfinished restore; to remove it", &way_out];
    assert_refused(&outcome, &words);
    assert_said(&outcome, &[&format!("`zfs destroy -r {parent}/")]);
    later.lockstep.restore(&later.set, &to, &delta);
    let outcome = later.lockstep.run(&restore_arguments(&older, &to, &delta));
    assert_refused(&outcome, &["can't be brought to set"]);
    assert!(!outcome.stderr.contains("unfinished"), "{}", outcome.describe());
    // Nor is it one where its pg_control isn't to be seen.
    let data = format!("{parent}/data");
    patiently("zfs", &["unmount", &data], || ()).expect("nobody is in it");
    let outcome = later.lockstep.run(&restore_arguments(&older, &to, &delta));
    assert_refused(&outcome, &["can't be brought to set"]);
    assert!(!outcome.stderr.contains("unfinished"), "{}", outcome.describe());
    zfs(&["mount", &data]);
    discard(&later.fixture, &to, &parent);

    later.kill_at("restore.receiving-1", &to, &form, false);
    let is_half = |name: &&str| name.contains("/lockstep-receiving-");
    let listed = || zfs(&["list", "-H", "-r", "-o", "name", &parent]);
    wait_until("something is received", LIMIT, || listed().lines().any(|name| is_half(&name)));
    // The host's state doesn't know it.
    fs::remove_dir_all(later.fixture.state.join("clusters/main/restores")).expect("it is there");
    let again = later.lockstep.expect(exit::DONE, &restore_arguments(&later.set, &to, &delta));
    let text = listed();
    let half = text.lines().find(is_half).expect("it stays");
    assert_said(&again, &[&format!("`zfs destroy -r {half}`")]);
    assert_lives_on(&later.fixture);
}

/// It has made names, and nothing has come from the repository: then nothing stays.
#[test]
fn files_without_content_do_not_stay() {
    let (fixture, lockstep, set) = live();
    let to = fixture.target("r");
    for signal in [Signal::INT, Signal::TERM] {
        let hooks = Hooks::new(&fixture);
        hooks.steps.delay("restore.files-folder", Duration::from_millis(100));
        let form = &FILES[..4];
        let mut program =
            lockstep.clone().with_steps(&hooks.steps).spawn(&restore_arguments(&set.id, &to, form));
        wait_until("it has made names", LIMIT, || {
            assert!(program.is_running());
            !entries(&to.join("data/base")).is_empty()
        });
        program.signal(signal);
        let outcome = program.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
        assert!(!to.exists(), "{signal:?}: {:?}", entries(&to));
        assert_nothing_remains(&fixture, &[], "interrupted before anything came");
    }
    assert_lives_on(&fixture);
}

/// The configuration may name its data directory already. And if it is removed there, another cluster isn't taken for
/// it.
#[test]
fn an_unfinished_restore_is_neither_called_damaged_nor_mistaken() {
    let (fixture, lockstep, set) = live();
    let to = fixture.target("r");
    let data = to.join("data");
    let hooks = Hooks::holding(&fixture, "restore.prepared");
    let arguments = restore_arguments(&set.id, &to, &FILES[..4]);
    let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(&arguments);
    hooks.steps.wait_reached("restore.prepared", &mut program);
    program.kill();
    program.wait(LIMIT);

    let path = fixture.root().join("shipping.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let more = format!("{text}\n[clusters.again]\ndata_directory = {}\n", toml_string(&data));
    fs::write(&path, &more).expect("it can be written");
    let outcome = lockstep.expect(exit::USAGE, &["--cluster", "again", "plan"]);
    assert_said(&outcome, &["is a restore that hasn't ended", "pg_control.lockstep", "--delta"]);
    fs::write(&path, text).expect("it can be written");

    fs::remove_dir_all(&data).expect("the test may");
    give_to_postgres(&to);
    let initdb = ["-A", "trust", "--no-sync", "-U", "postgres", "-D"];
    let at = data.to_str().expect("the harness' own paths are UTF-8");
    let bin = fixture.cluster.bin.join("initdb");
    must(&mut as_postgres(bin, initdb.iter().chain([&at])));
    let before = walk(&data);
    let said = lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
    let changed = differences(&before, &walk(&data));
    assert!(changed.is_empty(), "{changed:?}: {}", said.describe());
    assert!(!said.stderr.contains("rm -r"), "{}", said.describe());
    let left = entries(&fixture.state.join("clusters/main/restores"));
    assert!(left.iter().all(|path| path.extension().is_none_or(|end| end != "json")), "{left:?}");
    assert_lives_on(&fixture);
}
