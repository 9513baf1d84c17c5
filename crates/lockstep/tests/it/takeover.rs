//! A host that is kept ready to take over: its configuration names the restored cluster, and `--delta` brings that to
//! newer sets in place. And restores of which only recovery failed: what was received from the repository stays.

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{as_postgres, command, must, run, wait_until};
use crate::support::commands::pretending;
use crate::support::faults::{Hooks, assert_said, entries, restore_arguments};
use crate::support::fixture::Fixture;
use crate::support::layout::{Layout, one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, exit, toml_string};
use crate::support::pools::{destroy, property, zfs};
use crate::support::shipping::{NAME, other_host, with_options, with_repository};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const FILES: [&str; 4] = ["--from", "repository", "--as", "files"];

fn text(path: &Path) -> &str {
    path.to_str().expect("the harness' own paths are UTF-8")
}

/// A cluster with a row, and a repository.
fn prepare(layout: Layout) -> (Fixture, Lockstep) {
    let fixture = Fixture::new(layout);
    fixture.row_in_each_tablespace();
    let lockstep = with_repository(&fixture);
    (fixture, lockstep)
}

const ROWS: &str = "SELECT (SELECT sum(n) FROM one) || ' ' || (SELECT sum(n) FROM two)";

fn journals(fixture: &Fixture, state: &str) -> usize {
    let folder = fixture.root().join(state).join("clusters/main/restores");
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|end| end == "json")).count()
}

/// Updated in place, interrupted and continued, as files and as datasets; what wasn't made by a restore is refused.
#[test]
fn a_host_is_kept_up_in_place() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets());
    let first = lockstep.backup("label").id;
    fixture.cluster.execute(&["INSERT INTO one VALUES (10)"]);
    let second = lockstep.backup("label").id;
    fixture.cluster.execute(&["INSERT INTO two VALUES (20)"]);
    let third = lockstep.backup("label").id;
    let parent = format!("{}/standby", fixture.pools[0].name);
    for form in ["files", "zfs"] {
        let to = fixture.target(form);
        let host = other_host(&fixture, form, &to.join("data"));
        let mut more = vec!["--from", "repository", "--as", form];
        if form == "zfs" {
            more.extend(["--dataset", &parent]);
        }
        host.restore(&first, &to, &more);
        more.push("--delta");
        // Interrupted, twice, and then in one go.
        for step in ["restore.received-1", "restore.prepared"] {
            let hooks = Hooks::holding(&fixture, step);
            let mut program = host
                .clone()
                .with_steps(&hooks.steps)
                .spawn(&restore_arguments(&second, &to, &more));
            hooks.steps.wait_reached(step, &mut program);
            program.kill();
            program.wait(LIMIT);
        }
        host.restore(&second, &to, &more);
        let restored = host.restore_and_start(&third, &to, &more);
        assert_eq!(restored.server().value("postgres", ROWS), "11 22", "{form}");
        // The original is on this host too, whatever the configuration names.
        assert_eq!(restored.json["subscriptions_held"], true, "{form}");
        // While it is running, nobody may write over it.
        let refused = host.expect(exit::USAGE, &restore_arguments(&first, &to, &more));
        assert_said(&refused, &["a server runs in"]);
        restored.server().stop(Stop::Fast);
        // Nor if it was started after the restore had looked.
        let hooks = Hooks::holding(&fixture, "restore.fetched");
        let hooked = host.clone().with_steps(&hooks.steps);
        let mut program = hooked.spawn(&restore_arguments(&third, &to, &more));
        hooks.steps.wait_reached("restore.fetched", &mut program);
        restored.server().start();
        hooks.steps.release("restore.fetched");
        let refused = program.wait(LIMIT);
        assert_eq!(refused.code, Some(exit::USAGE), "{form}: {}", refused.describe());
        assert_said(&refused, &["a server runs in"]);
        assert_eq!(restored.server().value("postgres", ROWS), "11 22", "{form}");
        restored.server().stop(Stop::Fast);
        // Without the marks it may be the original itself.
        let unmarked = restore_arguments(&first, &to, &more);
        if form == "files" {
            fs::remove_file(to.join(".lockstep-restore")).expect("the marker is there");
        } else {
            must(&mut command("zfs", ["inherit", "lockstep:restore", &format!("{parent}/data")]));
        }
        let refused = host.expect(exit::REFUSED, &unmarked);
        assert_said(&refused, &["would fill", "of cluster \"main\"", "hint: "]);
    }
    assert_eq!(fixture.cluster.value("postgres", ROWS), "11 22");
}

/// Stops the server of a cluster that doesn't belong to postgres.
fn stop(server: &Cluster) {
    let pid = server.postmaster().expect("it runs").to_string();
    must(&mut command("kill", ["-INT", &pid]));
    wait_until("the server has stopped", LIMIT, || !server.is_running());
}

/// On a host where os_user has other ids than on the original, what is restored belongs to it all the same.
#[test]
fn another_user_s_cluster_becomes_os_user_s() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets());
    // Like /var/run/postgresql, which each host has for its own user.
    fs::set_permissions(&fixture.cluster.socket, fs::Permissions::from_mode(0o1777))
        .expect("it is ours");
    let key = fixture.cluster.data.join("server.key");
    let mine = fixture.tablespace("ts1").join("mine");
    for (path, owner) in [(&key, "root:postgres"), (&mine, "games:games")] {
        fs::write(path, "x").expect("it can be written");
        must(&mut command("chown", [owner, text(path)]));
    }
    let first = lockstep.backup("label").id;
    fixture.cluster.execute(&["INSERT INTO one VALUES (10)"]);
    let second = lockstep.backup("label").id;
    let other_user = |path: &Path| {
        let known = fs::read_to_string(path).expect("the configuration");
        let other = known.replace("os_user = \"postgres\"", "os_user = \"daemon\"");
        assert_ne!(known, other);
        let path = path.with_extension("daemon.toml");
        fs::write(&path, other).expect("it can be written");
        Lockstep::new(&path, &fixture.cluster.bin)
    };
    let assert_theirs = |to: &Path, data: &Path, tablespace: &Path| {
        let find = |more: &[&str]| {
            must(&mut command("find", [text(to)].iter().chain(more))).lines().count()
        };
        assert_eq!(find(&["-user", "postgres"]), 0, "{to:?}");
        assert_eq!(find(&["-group", "postgres"]), 0, "{to:?}");
        assert!(find(&["-user", "daemon", "-group", "daemon"]) > 900, "{to:?}");
        let owner = |path: &Path| must(&mut command("stat", ["-c", "%U:%G", text(path)]));
        assert_eq!(owner(&data.join("server.key")).trim(), "root:daemon");
        assert_eq!(owner(&tablespace.join("mine")).trim(), "games:games");
    };
    let one =
        fixture.cluster.value("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'ts1'");
    let parent = format!("{}/theirs", fixture.pools[0].name);
    for form in ["files", "zfs"] {
        let to = fixture.target(form);
        other_host(&fixture, form, &to.join("data"));
        let host = other_user(&fixture.root().join(format!("{form}.toml")));
        let mut more = vec!["--from", "repository", "--as", form];
        if form == "zfs" {
            more.extend(["--dataset", &parent]);
        }
        let check = || {
            let real = |name: &str| fs::canonicalize(to.join(name)).expect("it is there");
            assert_theirs(&to, &real("data"), &real(&format!("tablespaces/{one}")));
        };
        let outcome = host.run(&restore_arguments(&first, &to, &more));
        assert!(outcome.ok(), "{}", outcome.describe());
        assert_said(&outcome, &["become those of daemon"]);
        assert_eq!(outcome.stderr.matches("become those of").count(), 1, "{}", outcome.describe());
        check();
        more.push("--delta");
        // Killed half way, and continued.
        let step = if form == "zfs" { "restore.owners" } else { "restore.files-attributes" };
        let hooks = Hooks::holding(&fixture, step);
        let arguments = restore_arguments(&second, &to, &more);
        let mut program = host.clone().with_steps(&hooks.steps).spawn(&arguments);
        hooks.steps.wait_reached(step, &mut program);
        program.kill();
        program.wait(LIMIT);
        // A rollback brings the set's ids back, also to the same set.
        for set in [&second, &second] {
            let restored = host.restore_and_start(set, &to, &more);
            assert_eq!(restored.server().value("postgres", ROWS), "11 2", "{form}");
            stop(restored.server());
            check();
        }
    }
    // As clones of this host's snapshots.
    let to = fixture.target("clones");
    let restored = other_user(&fixture.config()).restore_and_start(&second, &to, &[]);
    assert_eq!(restored.server().value("postgres", ROWS), "11 2");
    stop(restored.server());
    assert!(must(&mut command("find", [text(&to), "-user", "postgres"])).is_empty());
    // If it is the same user, nothing is said or changed.
    let same = fixture.target("same");
    let outcome = lockstep.run(&restore_arguments(&second, &same, &FILES));
    assert!(outcome.ok() && !outcome.stderr.contains("become"), "{}", outcome.describe());
}

/// A umask and closed folders: the server's user can reach what is restored, or nothing is made.
#[test]
fn the_server_s_user_comes_to_where_it_is_restored() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets());
    let set = lockstep.backup("label").id;
    let parent = format!("{}/back", fixture.pools[0].name);
    let config = fixture.root().join("shipping.toml");
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    for (form, more) in [("clones", &[][..]), ("files", &FILES), ("zfs", &zfs)] {
        let top = fixture.root().join(form);
        let (to, place) = (top.join("deep/r"), top.join("else/where/ts"));
        let place = format!("ts2={}", place.display());
        let mut program = command("sh", ["-c", "umask 077; exec \"$0\" \"$@\""]);
        program.arg(env!("CARGO_BIN_EXE_lockstep")).arg("--config").arg(&config).arg("--json");
        let arguments = restore_arguments(&set, &to, more).into_iter();
        let outcome = run(program.args(arguments).args(["--start", "--tablespace", &place]));
        assert!(outcome.ok(), "{}", outcome.describe());
        let json: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
        let restored = lockstep.restored(&json);
        assert_eq!(restored.server().value("postgres", ROWS), "1 2", "{form}");
        restored.server().stop(Stop::Fast);
        for folder in ["", "deep", "else", "else/where"] {
            let mode = fs::metadata(top.join(folder)).expect("it is there").mode();
            assert_eq!(mode & 0o7777, 0o755, "{form}: {folder:?}");
        }
    }
    let closed = fixture.root().join("closed");
    fs::create_dir_all(closed.join("in")).expect("folders can be made");
    for folder in [&closed, &closed.join("in")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("it is ours");
    }
    let open = fixture.target("open");
    let place = format!("ts2={}", closed.join("in/ts").display());
    for form in [&[][..], &FILES, &["--dry-run"]] {
        for (to, more) in
            [(closed.join("in/r"), vec![]), (open.clone(), vec!["--tablespace", &place])]
        {
            let more = [form, &more].concat();
            let outcome = lockstep.expect(exit::USAGE, &restore_arguments(&set, &to, &more));
            let hint = format!("hint: chmod o+x {0} {0}/in, or", closed.display());
            assert_said(&outcome, &["postgres can't enter it", text(&closed), &hint]);
            assert!(!to.exists(), "{}", outcome.describe());
        }
    }
    assert_eq!(entries(&closed.join("in")), Vec::<std::path::PathBuf>::new());
}

/// The data directory's dataset is lost, and its mount point still exists.
#[test]
fn a_data_directory_that_is_empty_keeps_nobody_from_restoring() {
    let (fixture, lockstep) = prepare(one_pool());
    let set = lockstep.backup("label").id;
    let empty = fixture.owned("lost");
    let host = other_host(&fixture, "lost", &empty);
    let restored = host.restore_and_start(&set, &fixture.target("r"), &FILES);
    assert_eq!(restored.server().value("postgres", ROWS), "1 2");
    restored.server().stop(Stop::Fast);
    // It still counts as a place of the cluster.
    let inside = empty.join("in");
    host.expect(exit::REFUSED, &restore_arguments(&set, &inside, &FILES));
}

/// Datasets that already exist: reported before anything is made, and they stay.
#[test]
fn datasets_that_exist_are_refused_and_stay() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets());
    let set = lockstep.backup("label").id;
    let parent = format!("{}/good", fixture.pools[0].name);
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let good = fixture.target("good");
    lockstep.restore(&set, &good, &more);
    for to in [fixture.target("again"), good.clone()] {
        let refused = lockstep.expect(exit::REFUSED, &restore_arguments(&set, &to, &more));
        assert_said(&refused, &[&format!("dataset \"{parent}/data\" exists already"), "--delta"]);
    }
    assert_eq!(journals(&fixture, "state"), 0);
    // Somebody makes one between the journal and the restore's own: the restore must not remove it.
    let other = format!("{}/other", fixture.pools[0].name);
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &other];
    let hooks = Hooks::holding(&fixture, "restore.fetched");
    let hooked = lockstep.clone().with_steps(&hooks.steps);
    let raced = fixture.target("raced");
    let mut program = hooked.spawn(&restore_arguments(&set, &raced, &more));
    hooks.steps.wait_reached("restore.fetched", &mut program);
    for dataset in [other.clone(), format!("{other}/data")] {
        must(&mut command("zfs", ["create", "-o", "mountpoint=none", &dataset]));
    }
    hooks.steps.release("restore.fetched");
    let failed = program.wait(LIMIT);
    assert_eq!(failed.code, Some(exit::FAILED), "{}", failed.describe());
    assert!(!failed.stderr.contains("asked to stop"), "{}", failed.describe());
    assert_said(&failed, &["exists"]);
    assert_eq!(journals(&fixture, "state"), 0, "{}", failed.describe());
    for dataset in [format!("{parent}/data"), format!("{other}/data")] {
        assert!(run(&mut command("zfs", ["list", &dataset])).ok(), "{dataset} is gone");
    }
    let next = lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert!(!next.stderr.contains("unfinished"), "{}", next.describe());
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent, "--delta"];
    let restored = lockstep.restore_and_start(&set, &good, &more);
    assert_eq!(restored.server().value("postgres", ROWS), "1 2");
    restored.server().stop(Stop::Fast);
}

/// A wrong target doesn't cost a second download; nobody's server starts on the tree that waits for the right one.
#[test]
fn what_only_could_not_recover_stays_for_another_target() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets().archive());
    let set = lockstep.backup("label").id;
    fixture.cluster.execute(&["INSERT INTO one VALUES (10)"]);
    fixture.cluster.value("postgres", "SELECT pg_create_restore_point('before')");
    fixture.cluster.execute(&["INSERT INTO one VALUES (100)"]);
    let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    crate::support::command::wait_until("the segment is archived", LIMIT, || {
        fixture.archive.join(&segment).exists()
    });
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let parent = format!("{}/back", fixture.pools[0].name);
    for form in ["files", "zfs"] {
        let to = fixture.target(form);
        let mut more =
            vec!["--from", "repository", "--as", form, "--start", "--restore-command", &archive];
        if form == "zfs" {
            more.extend(["--dataset", &parent]);
        }
        let arguments = |more: &[&'static str], base: &[&str]| -> Vec<String> {
            let all = base.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>();
            restore_arguments(&set, &to, &all).into_iter().map(str::to_owned).collect()
        };
        let expect = |code: i32, more: &[&'static str], base: &[&str]| {
            let all = arguments(more, base);
            lockstep.expect(code, &all.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let failed = expect(exit::FAILED, &["--target-name", "befor"], &more);
        assert_said(
            &failed,
            &[
                "recovery ended before configured",
                "hint: recovery came to LSN ",
                "--delta",
                text(&to),
            ],
        );
        assert!(!failed.stderr.contains("give --restore-command"), "{}", failed.describe());
        assert_eq!(journals(&fixture, "state"), 0, "{form}: {}", failed.describe());
        assert!(to.join("log/server.log").exists(), "{form}: the log is kept");
        let data = fs::canonicalize(to.join("data")).expect("it is kept");
        assert!(!data.join("global/pg_control").exists(), "{form}: a server would start");
        assert!(data.join("global/pg_control.lockstep").exists(), "{form}");
        // The next command removes nothing, and running the same one again says how to continue.
        lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
        assert!(data.join("PG_VERSION").exists(), "{form}");
        let again = expect(exit::REFUSED, &["--target-name", "before"], &more);
        assert_said(&again, &["hint: ", "--delta"]);
        if form == "files" {
            assert_said(&again, &[&format!("an unfinished restore of set {set}")]);
        }
        let outcome = expect(exit::DONE, &["--json", "--delta", "--target-name", "before"], &more);
        let json: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
        let restored = lockstep.restored(&json);
        assert_eq!(restored.server().value("postgres", ROWS), "11 2", "{form}");
        restored.server().stop(Stop::Fast);
    }
}

/// A tablespace's folder that is given through a link: the datasets are where they were requested.
#[test]
fn a_folder_that_is_named_over_a_link_is_the_same_folder() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets());
    let set = lockstep.backup("label").id;
    let link = fixture.root().join("fast");
    std::os::unix::fs::symlink(fixture.owned("disk"), &link).expect("a link can be made");
    let place = format!("ts2={}/ts", link.display());
    let parent = format!("{}/back", fixture.pools[0].name);
    let to = fixture.target("r");
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let mut more = [&zfs[..], &["--tablespace", &place]].concat();
    lockstep.restore(&set, &to, &more);
    more.push("--delta");
    let restored = lockstep.restore_and_start(&set, &to, &more);
    assert_eq!(restored.server().value("postgres", ROWS), "1 2");
    restored.server().stop(Stop::Fast);
    // Registered as a cluster of the configuration, it is the one that was requested, with its tablespace.
    let path = fixture.root().join("shipping.toml");
    let config = fs::read_to_string(&path).expect("the configuration");
    let data = toml_string(&fs::canonicalize(to.join("data")).expect("it is there"));
    fs::write(&path, format!("{config}\n[clusters.old]\ndata_directory = {data}\n"))
        .expect("it can be written");
    let more = [&["--cluster", "main", "restore", &set, "--to", text(&to)][..], &more].concat();
    lockstep.expect(exit::DONE, &more);
    // But not what merely is there: it may be a standby.
    must(&mut command("zfs", ["inherit", "lockstep:restore", &format!("{parent}/wal")]));
    let refused = lockstep.expect(exit::REFUSED, &more);
    assert_said(&refused, &["of cluster \"old\""]);
}

/// The state of two hosts, one folder: whoever comes second is told who is working there, and in the end one set is
/// there.
#[test]
fn two_restores_to_one_folder_are_never_at_once() {
    let (fixture, lockstep) = prepare(one_pool());
    let first = lockstep.backup("label").id;
    fixture.cluster.execute(&["INSERT INTO one VALUES (10)"]);
    let second = lockstep.backup("label").id;
    let parent = format!("{}/standby", fixture.pools[0].name);
    for form in ["files", "zfs"] {
        let to = fixture.target(form);
        let other = other_host(&fixture, &format!("other-{form}"), &fixture.root().join("lost"));
        let mut more = vec!["--from", "repository", "--as", form];
        if form == "zfs" {
            more.extend(["--dataset", &parent]);
        }
        lockstep.restore(&first, &to, &more);
        more.push("--delta");
        let hooks = Hooks::holding(&fixture, "restore.received-1");
        let mut program = lockstep
            .clone()
            .with_steps(&hooks.steps)
            .spawn(&restore_arguments(&second, &to, &more));
        hooks.steps.wait_reached("restore.received-1", &mut program);
        for host in [&lockstep, &other] {
            let refused = host.expect(exit::LOCKED, &restore_arguments(&first, &to, &more));
            assert_said(&refused, &["error: another restore works on", "process ", "hint: wait"]);
            assert!(
                refused.stderr.contains(text(&to)) || refused.stderr.contains(&parent),
                "{}",
                refused.describe()
            );
        }
        if form == "zfs" {
            // To another folder, and as if it were empty: only the first restore knows the datasets.
            let elsewhere = fixture.target("elsewhere");
            more.pop();
            let refused = other.expect(exit::LOCKED, &restore_arguments(&first, &elsewhere, &more));
            assert_said(&refused, &["another restore works on dataset", &parent, "cluster"]);
            assert!(!elsewhere.exists(), "{}", refused.describe());
            more.push("--delta");
        }
        hooks.steps.release("restore.received-1");
        let done = program.wait(LIMIT);
        assert_eq!(done.code, Some(exit::DONE), "{}", done.describe());
        let restored = lockstep.restore_and_start(&second, &to, &more);
        assert_eq!(restored.server().value("postgres", ROWS), "11 2", "{form}");
        restored.server().stop(Stop::Fast);
    }
}

/// Two restores want to make the same folder: it belongs to the one that makes it, and the other undoes nothing in
/// it.
#[test]
fn a_folder_that_another_restore_made_meanwhile_is_that_one_s() {
    let (fixture, lockstep) = prepare(one_pool());
    let set = lockstep.backup("label").id;
    let other = other_host(&fixture, "other", &fixture.root().join("lost"));
    let to = fixture.target("deep").join("in");
    let hooks = Hooks::holding(&fixture, "restore.checked");
    let mut late =
        lockstep.clone().with_steps(&hooks.steps).spawn(&restore_arguments(&set, &to, &FILES));
    hooks.steps.wait_reached("restore.checked", &mut late);
    let restored = other.restore_and_start(&set, &to, &FILES);
    hooks.steps.release("restore.checked");
    let refused = late.wait(LIMIT);
    assert_eq!(refused.code, Some(exit::REFUSED), "{}", refused.describe());
    assert_said(&refused, &["exists and isn't empty"]);
    assert_eq!(journals(&fixture, "state"), 0, "{}", refused.describe());
    assert_eq!(restored.server().value("postgres", ROWS), "1 2");
    restored.server().stop(Stop::Fast);

    // A killed restore that another has continued isn't undone, neither while that one works nor afterwards.
    let to = fixture.target("killed");
    let hooks = Hooks::holding(&fixture, "restore.received-1");
    let mut killed =
        lockstep.clone().with_steps(&hooks.steps).spawn(&restore_arguments(&set, &to, &FILES));
    hooks.steps.wait_reached("restore.received-1", &mut killed);
    killed.kill();
    killed.wait(LIMIT);
    assert_eq!(journals(&fixture, "state"), 1);
    let delta = [&FILES[..], &["--delta"]].concat();
    let hooks = Hooks::holding(&fixture, "restore.prepared");
    let mut program =
        other.clone().with_steps(&hooks.steps).spawn(&restore_arguments(&set, &to, &delta));
    hooks.steps.wait_reached("restore.prepared", &mut program);
    let next = lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert_said(&next, &["another restore works where an unfinished one left something"]);
    hooks.steps.release("restore.prepared");
    let done = program.wait(LIMIT);
    assert_eq!(done.code, Some(exit::DONE), "{}", done.describe());
    let next = lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert_said(&next, &["another restore has continued with"]);
    assert_eq!(journals(&fixture, "state"), 0);
    let restored = other.restore_and_start(&set, &to, &delta);
    assert_eq!(restored.server().value("postgres", ROWS), "1 2");
    restored.server().stop(Stop::Fast);
}

/// What is in a folder of a restore, by name.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = entries(folder)
        .iter()
        .map(|path| path.file_name().expect("it has one").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Changes a restore to one that an older Lockstep made, which named the volumes' folders by number.
fn number_volumes(to: &Path, parent: Option<&str>, parts: &[(&str, &str, &str)]) {
    for (part, number, inside) in parts {
        let folder = to.join("volumes").join(number);
        match parent {
            Some(parent) => {
                let place = format!("mountpoint={}", folder.display());
                let dataset = format!("{parent}/{part}");
                // zfs-fuse sets it and may find the old mount point busy for a moment.
                let _ = run(&mut command("zfs", ["set", &place, &dataset]));
                wait_until("the dataset is mounted there", LIMIT, || {
                    let is_mounted = property(&dataset, "mounted") == "yes";
                    is_mounted || run(&mut command("zfs", ["mount", &dataset])).ok()
                });
                assert_eq!(property(&dataset, "mountpoint"), folder.display().to_string());
                fs::remove_dir(to.join("volumes").join(part)).expect("nothing is mounted there");
            }
            None => fs::rename(to.join("volumes").join(part), &folder).expect("it can be renamed"),
        }
        let link = match part.strip_prefix("tablespace-") {
            Some(oid) => to.join("tablespaces").join(oid),
            None => to.join(part),
        };
        fs::remove_file(&link).expect("a link");
        symlink(folder.join(inside), &link).expect("a link can be made");
    }
}

/// As files and as datasets, also over a restore of an older Lockstep: tablespaces that are folders of their
/// datasets, or whole datasets, are dropped and made.
#[test]
fn a_host_is_kept_up_while_tablespaces_come_and_go() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets());
    let oid = |name: &str| {
        let query = format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'");
        fixture.cluster.value("postgres", &query)
    };
    let (one, two) = (oid("ts1"), oid("ts2"));
    let first = lockstep.backup("label").id;
    fixture.cluster.execute(&["ALTER TABLE one SET TABLESPACE ts2", "DROP TABLESPACE ts1"]);
    let second = lockstep.backup("label").id;
    let again = fixture.mnt().join("ts1/again");
    must(&mut as_postgres("mkdir", [text(&again)]));
    fixture.cluster.execute(&[
        &format!("CREATE TABLESPACE ts3 LOCATION '{}'", again.display()),
        "ALTER TABLE one SET TABLESPACE ts3",
        "ALTER TABLE two SET TABLESPACE ts3",
        "DROP TABLESPACE ts2",
    ]);
    let three = oid("ts3");
    let third = lockstep.backup("label").id;
    let parent = format!("{}/standby", fixture.pools[0].name);
    for (form, is_numbered) in [("files", false), ("files", true), ("zfs", true)] {
        let to = fixture.target(&format!("{form}-{is_numbered}"));
        let host = other_host(&fixture, &format!("{form}-{is_numbered}"), &to.join("data"));
        let is_files = form == "files";
        let mut more = vec!["--from", "repository", "--as", form];
        if !is_files {
            more.extend(["--dataset", &parent]);
        }
        let json = host.json(&restore_arguments(&first, &to, &more));
        let whole = json["bytes_written"].as_u64();
        let first_part = format!("tablespace-{one}");
        let mut volumes = vec!["data".to_owned(), first_part.clone(), "wal".to_owned()];
        assert_eq!(names(&to.join("volumes")), volumes);
        if is_numbered {
            let parts = [("data", "1", "pg"), (&*first_part, "2", "files"), ("wal", "4", "pg_wal")];
            number_volumes(&to, (!is_files).then_some(&*parent), &parts);
            volumes = ["1", "2", "4"].map(str::to_owned).to_vec();
        }
        more.push("--delta");
        // Interrupted before and after what is gone is removed.
        for step in ["restore.received-2", "restore.surplus"] {
            let hooks = Hooks::holding(&fixture, step);
            let arguments = restore_arguments(&second, &to, &more);
            let mut program = host.clone().with_steps(&hooks.steps).spawn(&arguments);
            hooks.steps.wait_reached(step, &mut program);
            program.kill();
            program.wait(LIMIT);
        }
        let outcome = host.run(&restore_arguments(&second, &to, &more));
        assert!(outcome.ok(), "{}", outcome.describe());
        assert_eq!(names(&to.join("tablespaces")), [two.as_str()], "{form}");
        let dropped = format!("{parent}/{first_part}");
        if is_files {
            volumes.remove(1);
        } else {
            // Only its owner may destroy it, and it stays where it is.
            assert_said(&outcome, &[&format!("dataset \"{dropped}\" is of an older set")]);
            assert!(to.join("volumes/2/files").exists());
        }
        assert_eq!(names(&to.join("volumes")), volumes, "{form}");
        let json = host.json(&restore_arguments(&second, &to, &more));
        let written = json["bytes_written"].as_u64();
        assert!(!is_files || written.zip(whole).is_some_and(|(it, all)| it < all / 10), "{json}");

        more.push("--keep-archiving");
        let restored = host.restore_and_start(&third, &to, &more);
        assert_eq!(restored.server().value("postgres", ROWS), "1 2", "{form}");
        restored.server().stop(Stop::Fast);
        volumes.push(format!("tablespace-{three}"));
        volumes.sort();
        assert_eq!(names(&to.join("volumes")), volumes, "{form}");
        // A folder goes with everything in it; one where a dataset is mounted doesn't.
        let mut tablespaces = vec![three.clone()];
        tablespaces.extend((!is_files).then(|| two.clone()));
        tablespaces.sort();
        assert_eq!(names(&to.join("tablespaces")), tablespaces, "{form}");
        let link = fs::read_link(to.join("tablespaces").join(&three)).expect("a link");
        assert_eq!(link, to.join(format!("volumes/tablespace-{three}/again")), "{form}");
    }
}

/// Somebody's own files next to PostgreSQL's in a tablespace are restored, so they are no reason to refuse the next
/// restore. Files in a folder outside DIR that no set has had are.
#[test]
fn somebody_s_own_files_in_a_tablespace_are_an_older_restore_s() {
    let (fixture, lockstep) = prepare(two_pools_four_datasets());
    let folders = ["ts1", "ts2"].map(|name| fixture.tablespace(name));
    for folder in &folders {
        fs::write(folder.join("own"), "of the first").expect("it can be written");
    }
    let first = lockstep.backup("label").id;
    for folder in &folders {
        fs::remove_file(folder.join("own")).expect("it can be removed");
        fs::write(folder.join("newer"), "of the second").expect("it can be written");
    }
    let second = lockstep.backup("label").id;
    let fast = fixture.root().join("fast");
    let place = format!("ts2={}", fast.display());
    let to = fixture.target("r");
    let mut more = FILES.to_vec();
    more.extend(["--tablespace", &place]);
    let killed = |name: &str, set: &str, more: &[&str]| {
        let hooks = Hooks::holding(&fixture, "restore.surplus");
        let host = other_host(&fixture, name, &fixture.root().join("no data"));
        let mut program = host.with_steps(&hooks.steps).spawn(&restore_arguments(set, &to, more));
        hooks.steps.wait_reached("restore.surplus", &mut program);
        program.kill();
        program.wait(LIMIT);
    };
    // A fresh one is continued by a host that knows nothing about it, and so is one to another set and back.
    killed("one", &first, &more);
    more.push("--delta");
    let at = |name: &str| fast.join(name).exists();
    lockstep.restore(&first, &to, &more);
    assert!(at("own") && !at("newer"));
    killed("two", &second, &more);
    fs::write(fast.join("own"), "as if it hadn't come so far").expect("it can be written");
    lockstep.restore(&second, &to, &more);
    assert!(!at("own") && at("newer"));
    killed("three", &second, &more);
    lockstep.restore(&first, &to, &more);
    assert!(at("own") && !at("newer"));

    let refused = |folder: &Path| {
        let outcome = lockstep.run(&restore_arguments(&first, &to, &more));
        assert_eq!(outcome.code, Some(exit::REFUSED), "{}", outcome.describe());
        assert_said(&outcome, &["isn't an older restore", "holds \"thesis.tex\"", text(folder)]);
        fs::remove_file(folder.join("thesis.tex")).expect("it is there");
    };
    fs::write(fast.join("thesis.tex"), "all of it").expect("it can be written");
    refused(&fast);
    // In DIR, the marker says whose everything is.
    let inside = fs::canonicalize(to.join("tablespaces")).expect("it is there");
    let inside = fs::canonicalize(&entries(&inside)[0]).expect("it is there");
    fs::write(inside.join("thesis.tex"), "all of it").expect("it can be written");
    lockstep.restore(&first, &to, &more);
    assert!(!inside.join("thesis.tex").exists() && inside.join("own").exists());
    fs::write(inside.join("thesis.tex"), "all of it").expect("it can be written");
    fs::remove_file(to.join(".lockstep-restore")).expect("it is there");
    refused(&inside);
}

/// Of what was received, the newest is what the next `--delta` starts from, and earlier ones are removed. If a
/// restore is killed before that, the next one does it, even if the repository no longer has them; what somebody
/// needs stays.
#[test]
fn a_host_that_is_kept_has_the_newest_snapshot_alone() {
    let (fixture, _) = prepare(one_pool());
    let retention = "grace_hours = 0\n\n[clusters.main.retention]\nrepository = { last = 2 }\n";
    let lockstep = with_options(&fixture, retention);
    let backup = || {
        fixture.cluster.execute(&["INSERT INTO one VALUES (1)", "INSERT INTO two VALUES (2)"]);
        lockstep.backup("label").id
    };
    let parent = format!("{}/standby", fixture.pools[0].name);
    let to = fixture.target("kept");
    let host = other_host(&fixture, "kept", &to.join("data"));
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    // Sets by dataset, the data directory's first, in the order in which they were received.
    let there = || {
        let list = |kind| zfs(&["list", "-H", "-t", kind, "-o", "name", "-r", &parent]);
        let snapshots = list("snapshot");
        let of = |dataset: &str| -> Vec<String> {
            let start = format!("{dataset}@lockstep-");
            snapshots
                .lines()
                .filter_map(|name| name.strip_prefix(&start))
                .map(str::to_owned)
                .collect()
        };
        let datasets = list("filesystem");
        let datasets =
            datasets.lines().filter(|name| name.contains("/data") || name.contains("/tab"));
        datasets.map(of).collect::<Vec<_>>()
    };
    let first = backup();
    host.restore(&first, &to, &more);
    more.push("--delta");
    let second = backup();
    host.restore(&second, &to, &more);
    let everywhere = |sets: &[&String]| {
        let sets: Vec<_> = sets.iter().map(|&set| set.clone()).collect();
        vec![sets.clone(), sets.clone(), sets]
    };
    assert_eq!(there(), everywhere(&[&second]));

    // Held by somebody, cloned, and, according to its marks, taken here.
    let of = |part: &str, set: &str| {
        let datasets = zfs(&["list", "-H", "-o", "name", "-r", &parent]);
        let mut datasets = datasets.lines().filter(|name| name.contains(part));
        format!("{}@lockstep-{set}", datasets.next().expect("it has that"))
    };
    let (held, cloned) = (of("/data", &second), of("/tablespace", &second));
    zfs(&["hold", "mine", &held]);
    let clone = format!("{}/mine", fixture.pools[0].name);
    zfs(&["clone", "-o", "mountpoint=none", &cloned, &clone]);
    let third = backup();
    host.restore(&third, &to, &more);
    let with = vec![second.clone(), third.clone()];
    assert_eq!(there(), [with.clone(), with, vec![third.clone()]]);
    zfs(&["release", "mine", &held]);
    destroy(&clone);

    // Killed when everything is there; then the repository no longer has the earlier ones.
    let fourth = backup();
    let hooks = Hooks::holding(&fixture, "restore.done");
    let hooked = host.clone().with_steps(&hooks.steps);
    let mut program = hooked.spawn(&restore_arguments(&fourth, &to, &more));
    hooks.steps.wait_reached("restore.done", &mut program);
    program.kill();
    program.wait(LIMIT);
    assert!(there()[2].contains(&third), "{:?}", there());
    let fifth = backup();
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME]);
    host.restore(&fifth, &to, &more);
    assert_eq!(there(), everywhere(&[&fifth]));

    // Received by an older Lockstep, which left no marks; and one that looks as if a backup had taken it.
    for part in ["/data", "/tablespace"] {
        zfs(&["inherit", "lockstep:received", &of(part, &fifth)]);
    }
    zfs(&["set", "lockstep:owner=somebody", &of("/tablespace", &fifth)]);
    let sixth = backup();
    host.restore(&sixth, &to, &more);
    let with = vec![fifth.clone(), sixth.clone()];
    assert_eq!(there(), [vec![sixth.clone()], with, vec![sixth.clone()]]);

    // By a state_dir that has the set itself.
    let seventh = backup();
    lockstep.restore(&seventh, &to, &more);
    assert!(there().iter().all(|sets| sets.contains(&sixth)), "{:?}", there());
    let restored = host.restore_and_start(&seventh, &to, &more);
    assert_eq!(restored.server().value("postgres", ROWS), "8 16");
    restored.server().stop(Stop::Fast);
    assert_eq!(there()[0], [seventh]);
}

/// What zfs-fuse says of a dataset that it is still unmounting when everything has come: it may have received it all
/// the same, or may have given it up.
#[test]
fn a_receive_that_meets_an_unmount_is_done_or_repeated() {
    let (fixture, lockstep) = prepare(one_pool());
    let parent = format!("{}/standby", fixture.pools[0].name);
    let to = fixture.target("unmounting");
    let host = other_host(&fixture, "unmounting", &to.join("data"));
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    host.restore(&lockstep.backup("label").id, &to, &more);
    more.push("--delta");
    fixture.cluster.execute(&["INSERT INTO one VALUES (1)", "INSERT INTO two VALUES (2)"]);
    let newer = lockstep.backup("label").id;
    let given_up = fixture.root().join("given-up");
    let says = "echo 'cannot receive incremental stream: I/O error' >&2; exit 1;;";
    let cases = format!(
        "\"receive -u {parent}/data\") zfs \"$@\"; {says}\n\
         \"receive -u {parent}/tablespace\"*) [ ! -e '{0}' ] || exec zfs \"$@\"; touch '{0}'; cat >/dev/null; {says}",
        given_up.display()
    );
    let hasty = pretending(&fixture, &host, "unmounting-bin", &cases);
    hasty.expect(exit::DONE, &restore_arguments(&newer, &to, &more));
    assert!(given_up.exists(), "nothing was given up");
    let restored = host.restore_and_start(&newer, &to, &more);
    assert_eq!(restored.server().value("postgres", ROWS), "2 4");
    restored.server().stop(Stop::Fast);

    // Disks that can't be read say the same, again and again.
    fixture.cluster.execute(&["INSERT INTO one VALUES (1)"]);
    let newest = lockstep.backup("label").id;
    let cases = format!("\"receive -u {parent}/data\") cat >/dev/null; {says}");
    let broken = pretending(&fixture, &host, "broken-bin", &cases);
    let failed = broken.expect(exit::FAILED, &restore_arguments(&newest, &to, &more));
    assert_said(&failed, &["I/O error", "zpool status -v", "--delta continues with it"]);
    host.restore(&newest, &to, &more);
}
