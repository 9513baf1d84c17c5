//! What belongs to others by now: another restore's tablespace, another cluster in the folder, and what was made where
//! a restore was killed. None of it is changed or removed.

use super::*;

const TO_FILES: [&str; 4] = ["--from", "repository", "--as", "files"];

/// Copies a data directory without its server's traces, as somebody would who makes a cluster there.
fn copy_of_a_cluster(fixture: &Fixture, data: &Path) {
    fs::create_dir_all(data.parent().expect("it is below a folder")).expect("it can be made");
    must(command("cp", ["-a"]).args([&fixture.cluster.data, data]));
    fs::remove_file(data.join("postmaster.pid")).expect("it was copied");
}

/// Kills a restore as files at this step.
#[track_caller]
fn kill(fixture: &Fixture, lockstep: &Lockstep, step: &str, arguments: &[&str]) {
    let hooks = Hooks::holding(fixture, step);
    let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(arguments);
    hooks.steps.wait_reached(step, &mut program);
    program.kill();
    program.wait(LIMIT);
}

/// `--delta` to a new folder, with the tablespace of another restore by mistake.
#[test]
fn a_tablespace_of_another_restore_is_left_alone() {
    let (fixture, lockstep, set) = live();
    let place = fixture.owned("place");
    let at = format!("ts1={}", place.display());
    let (one, two) = (fixture.target("one"), fixture.target("two"));
    let to = |form: &[&'static str]| -> Vec<String> {
        form.iter()
            .map(|word| (*word).to_owned())
            .chain(["--tablespace".into(), at.clone()])
            .collect()
    };
    let (plain, delta) = (to(&TO_FILES), to(&FILES));
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    let delta: Vec<&str> = delta.iter().map(String::as_str).collect();
    let restored = lockstep.restore_and_start(&set.id, &one, &plain);
    let server = Cluster { log: fixture.root().join("log/one.log"), ..restored.server().clone() };
    server.execute(&["CREATE TABLE mine TABLESPACE ts1 AS SELECT 8 AS n", "CHECKPOINT"]);
    let before = walk(&place);
    let outcome = lockstep.run(&restore_arguments(&set.id, &two, &delta));
    assert_refused(&outcome, &["would fill", "of the server in", &one.display().to_string()]);
    server.stop(Stop::Fast);
    let stopped = walk(&place);
    let dry = [&delta[..], &["--dry-run"]].concat();
    for form in [&delta, &dry] {
        let outcome = lockstep.run(&restore_arguments(&set.id, &two, form));
        assert_refused(&outcome, &["no older restore in DIR has its tablespace there"]);
    }
    assert!(!before.is_empty() && walk(&place) == stopped, "it was changed");
    assert!(!two.exists(), "{} was made", two.display());
    server.start();
    assert_eq!(server.value("postgres", "SELECT n FROM mine"), "8");
    server.stop(Stop::Fast);
    // The restore that has it there may; also one of an earlier version, whose marker doesn't name it.
    let marker = one.join(".lockstep-restore");
    for names_it in [true, false] {
        let mut text: serde_json::Value =
            serde_json::from_slice(&fs::read(&marker).expect("it is there")).expect("it is JSON");
        let named = text.as_object_mut().expect("an object").remove("tablespaces");
        assert_eq!(named, Some(serde_json::json!([place])));
        if !names_it {
            fs::write(&marker, text.to_string()).expect("the test may");
        }
        lockstep.restore(&set.id, &one, &delta);
    }
    fs::remove_dir_all(&one).expect("the test may");
    assert_lives_on(&fixture);
}

/// Its data directory lies elsewhere in its volume than the set's: its server runs all the same, and it may be of
/// another cluster.
#[test]
fn an_older_restore_with_its_data_directory_elsewhere_is_seen() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label");
    let to = fixture.target("r");
    lockstep.restore(&set.id, &to, &TO_FILES);
    let (was, now) = (to.join("volumes/data/pg"), to.join("volumes/data/other"));
    fs::rename(&was, &now).expect("the test may");
    fs::remove_file(to.join("data")).expect("it is a link");
    symlink(&now, to.join("data")).expect("the test may");
    let server = server_by_hand(&fixture, &now);
    server.start();
    let over = restore_arguments(&set.id, &to, &FILES);
    let outcome = lockstep.expect(exit::USAGE, &over);
    assert_said(&outcome, &["a server runs in", &now.display().to_string(), "stop it first"]);
    assert_eq!(server.value("postgres", "SELECT 1"), "1");
    server.stop(Stop::Fast);

    let marker = to.join(".lockstep-restore");
    let text = fs::read_to_string(&marker).expect("it is there");
    let mut other: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    other["system_identifier"] = serde_json::json!("7");
    other["cluster"] = serde_json::json!("another");
    fs::write(&marker, other.to_string()).expect("the test may");
    let outcome = lockstep.run(&over);
    assert_refused(&outcome, &["a restore of cluster \"another\""]);
    assert!(now.join("PG_VERSION").exists());
    fs::write(&marker, text).expect("the test may");
    lockstep.restore(&set.id, &to, &FILES);
    fs::remove_dir_all(&to).expect("the test may");
}

/// Somebody gives up on a killed restore, and uses its folders for something else.
#[test]
fn what_was_made_where_a_restore_was_killed_stays() {
    let (fixture, lockstep, set) = live();
    let next = || lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
    let journals = || {
        let all = entries(&fixture.state.join("clusters/main/restores"));
        all.into_iter().filter(|path| path.extension().is_some_and(|it| it == "json")).collect()
    };

    // A folder for a tablespace, in which nothing was written yet, whether it existed or not.
    for (name, step) in
        [("there", "restore.fetched"), ("new", "restore.fetched"), ("used", "restore.files-folder")]
    {
        let place = fixture.root().join(name);
        if name != "new" {
            fixture.owned(name);
        }
        let to = fixture.target(name);
        let at = format!("ts1={}", place.display());
        let more = [&TO_FILES[..], &["--tablespace", &at]].concat();
        kill(&fixture, &lockstep, step, &restore_arguments(&set.id, &to, &more));
        assert!(!to.join("data/global").exists(), "then this test proves nothing");
        if !place.exists() {
            fixture.owned(name);
        }
        fixture.cluster.execute(&[
            &format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display()),
            &format!("CREATE TABLE in_{name} TABLESPACE {name} AS SELECT 9 AS n"),
            "CHECKPOINT",
        ]);
        next();
        let left: Vec<PathBuf> = journals();
        assert!(left.is_empty(), "{left:?}");
        fixture.cluster.stop(Stop::Fast);
        fixture.cluster.start();
        assert_eq!(fixture.cluster.value("postgres", &format!("SELECT n FROM in_{name}")), "9");
        assert!(!to.exists(), "{} is left", to.display());
    }

    // A cluster in DIR itself: before the restore had its marker there, and after DIR was removed.
    for (name, step) in [("early", "restore.journal"), ("late", "restore.files-filled")] {
        let to = fixture.target(name);
        fs::create_dir_all(&to).expect("it can be made");
        kill(&fixture, &lockstep, step, &restore_arguments(&set.id, &to, &TO_FILES));
        if name == "late" {
            fs::remove_dir_all(&to).expect("the test may");
        }
        let data = to.join("data");
        copy_of_a_cluster(&fixture, &data);
        let before = walk(&data);
        let said = next();
        assert!(walk(&data) == before, "{name}: {}", said.describe());
        let left: Vec<PathBuf> = journals();
        assert!(left.is_empty(), "{name}: {left:?}");
        fs::remove_dir_all(&to).expect("the test may");
    }
    assert_lives_on(&fixture);

    // It hasn't changed the older restore yet: that is complete, and nobody's to continue with.
    let to = fixture.target("older");
    let data = lockstep.restore(&set.id, &to, &TO_FILES).data;
    let before = walk(&data);
    kill(&fixture, &lockstep, "restore.journal", &restore_arguments(&set.id, &to, &FILES));
    let checked = lockstep.run(&["check"]).stdout;
    assert!(checked.contains("removes what it left"), "{checked}");
    let said = next();
    assert!(!said.stderr.contains("another restore"), "{}", said.describe());
    assert!(walk(&data) == before, "{}", said.describe());
    lockstep.restore_and_start(&set.id, &to, &FILES).server().stop(Stop::Fast);
    assert_lives_on(&fixture);
}

/// The journals of restores on this host.
fn journals(fixture: &Fixture) -> Vec<PathBuf> {
    let mut all = entries(&fixture.state.join("clusters/main/restores"));
    all.retain(|path| path.extension().is_some_and(|end| end == "json"));
    all
}

/// A restore from snapshots that was killed and given up: by then another has the same links in its folder.
#[test]
fn a_restore_s_links_are_not_those_of_one_that_was_given_up() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.execute(&["CREATE TABLE later TABLESPACE ts1 AS SELECT 7 AS n"]);
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label");
    let next = || lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
    let to = fixture.target("r");
    let aside = fixture.root().join("journal");
    for (form, step) in
        [(&[][..], "restore.journal"), (&TO_FILES, "restore.journal"), (&[], "restore.prepared")]
    {
        kill(&fixture, &lockstep, step, &restore_arguments(&set.id, &to, form));
        let [journal] = &journals(&fixture)[..] else { panic!("{step}") };
        fs::rename(journal, &aside).expect("the test may");
        fixture.discard_restored(&to, &set.id);
        assert!(!to.exists());
        // Another cluster's restore doesn't know the journal.
        lockstep.restore(&set.id, &to, &[]);
        assert!(to.join("data").is_symlink() && to.join("wal").is_symlink());
        fs::write(to.join("log/mine"), "kept").expect("it can be written");
        let before = walk(&to);
        fs::rename(&aside, journal).expect("the test may");
        let checked = lockstep.run(&["check"]);
        assert!(!checked.stdout.contains("start no server"), "{}", checked.describe());
        let said = next();
        assert!(journals(&fixture).is_empty(), "{step}: {}", said.describe());
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{step}: {changed:?}: {}", said.describe());
        let server = server_by_hand(&fixture, &fs::canonicalize(to.join("data")).expect("a link"));
        server.start();
        assert_eq!(server.value("postgres", "SELECT n FROM later"), "7", "{step}");
        server.stop(Stop::Fast);
        fixture.discard_restored(&to, &set.id);
    }

    // Somebody's link in its folder, from before it had its marker there.
    kill(&fixture, &lockstep, "restore.journal", &restore_arguments(&set.id, &to, &TO_FILES));
    fs::remove_dir_all(&to).expect("the test may");
    fs::create_dir(&to).expect("the test may");
    symlink(fixture.owned("mine"), to.join("data")).expect("the test may");
    let said = next();
    assert!(to.join("data").is_symlink(), "{}", said.describe());
    fs::remove_dir_all(&to).expect("the test may");
    assert_nothing_remains(&fixture, &[], "nothing of Lockstep's is left");
    assert_lives_on(&fixture);
}

/// Somebody gives up on a killed restore as its hint says, and makes a cluster in its folder, which isn't running.
#[test]
fn a_cluster_starts_where_a_restore_to_datasets_was_given_up() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    let to = fixture.target("r");
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    for is_over_older in [false, true] {
        if is_over_older {
            lockstep.restore(&set.id, &to, &zfs_form);
        }
        let delta = [&zfs_form[..], &["--delta"]].concat();
        kill(&fixture, &lockstep, "restore.prepared", &restore_arguments(&set.id, &to, &delta));
        assert_eq!(journals(&fixture).len(), 1);
        discard(&fixture, &to, &parent);
        let data = to.join("data");
        copy_of_a_cluster(&fixture, &data);
        let before = walk(&to);
        let checked = lockstep.run(&["check"]);
        let said = lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
        assert!(journals(&fixture).is_empty(), "{}", said.describe());
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{changed:?}: {}", said.describe());
        for wrong in ["rm -r", "start no server", "no server starts"] {
            assert!(!checked.stdout.contains(wrong), "{wrong}: {}", checked.describe());
            assert!(!said.stderr.contains(wrong), "{wrong}: {}", said.describe());
        }
        fs::remove_dir_all(&to).expect("the test may");
    }
    assert_lives_on(&fixture);
}

/// Somebody gives up on a killed restore, and makes datasets of the same names at the same places. His cluster isn't
/// running; it is a copy of the set's cluster, and the restore's folder may still be there.
#[test]
fn datasets_of_the_same_names_are_somebody_else_s() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    let own = format!("{parent}/data");
    let to = fixture.target("r");
    let data = to.join("data");
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let delta = [&zfs_form[..], &["--delta"]].concat();
    let destroy = || {
        wait_until("they can be destroyed", LIMIT, || {
            run(&mut command("zfs", ["destroy", "-r", &parent])).ok()
        });
    };
    for (is_over_older, step, folder_stays, is_of_an_older_version) in [
        (true, "restore.received-1", false, false),
        (true, "restore.received-1", true, false),
        (true, "restore.received-1", false, true),
        (false, "restore.prepared", true, false),
    ] {
        let case = format!("{is_over_older} {folder_stays} {is_of_an_older_version}");
        if is_over_older {
            lockstep.restore(&set.id, &to, &zfs_form);
        }
        kill(&fixture, &lockstep, step, &restore_arguments(&set.id, &to, &delta));
        if is_of_an_older_version {
            forget_fields(&journals(&fixture)[0]);
        }
        destroy();
        if !folder_stays {
            fs::remove_dir_all(&to).expect("the test may");
        }
        zfs(&["create", "-o", "mountpoint=none", &parent]);
        zfs(&["create", "-o", &format!("mountpoint={}", data.display()), &own]);
        must(command("cp", ["-aT"]).args([&fixture.cluster.data, &data]));
        fs::remove_file(data.join("postmaster.pid")).expect("it was copied");
        zfs(&["snapshot", &format!("{own}@mine")]);
        let before = walk(&data);
        let checked = lockstep.run(&["check"]);
        let said = lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
        assert!(journals(&fixture).is_empty(), "{case}: {}", said.describe());
        let changed = differences(&before, &walk(&data));
        assert!(changed.is_empty(), "{case}: {changed:?}: {}", said.describe());
        for wrong in ["rm -r", "start no server", "no server starts", "zfs destroy", "@mine"] {
            assert!(!checked.stdout.contains(wrong), "{case}: {wrong}: {}", checked.describe());
            assert!(!said.stderr.contains(wrong), "{case}: {wrong}: {}", said.describe());
        }
        destroy();
        let _ = fs::remove_dir_all(&to);
    }

    // His isn't mounted at the moment: nothing of the restore's is waited for.
    lockstep.restore(&set.id, &to, &zfs_form);
    kill(&fixture, &lockstep, "restore.received-1", &restore_arguments(&set.id, &to, &delta));
    destroy();
    zfs(&["create", "-o", "mountpoint=none", &parent]);
    zfs(&["create", "-o", "mountpoint=none", &own]);
    let said = lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
    assert!(journals(&fixture).is_empty(), "{}", said.describe());
    assert!(!said.stderr.contains("can't be seen"), "{}", said.describe());
    destroy();
    let _ = fs::remove_dir_all(&to);
    assert_lives_on(&fixture);
}

/// Removes from a journal what older versions don't record.
fn forget_fields(journal: &Path) {
    let text = fs::read(journal).expect("it is there");
    let mut entry: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    for field in ["data_guid", "identifiers"] {
        let had = entry.as_object_mut().expect("an object").remove(field);
        assert!(had.is_some(), "{field}");
    }
    fs::write(journal, entry.to_string()).expect("the test may");
}

/// The datasets are the restore's, whatever version wrote its journal; but somebody may have made a cluster in one of
/// them, or a dataset below.
#[test]
fn what_is_made_in_a_killed_restore_s_datasets_stays() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    let to = fixture.target("r");
    let data = to.join("data");
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let delta = [&zfs_form[..], &["--delta"]].concat();
    let over = restore_arguments(&set.id, &to, &delta);
    let next = || lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
    let rests = ["a restore was cut off", "--delta continues with it"];

    // Twice: the datasets carry the mark of the first.
    for _ in 0..2 {
        lockstep.restore(&set.id, &to, &delta);
    }
    for is_of_an_older_version in [false, true] {
        kill(&fixture, &lockstep, "restore.received-1", &over);
        if is_of_an_older_version {
            forget_fields(&journals(&fixture)[0]);
        }
        fs::rename(data.join("global/pg_control.lockstep"), control(&data)).expect("it is held");
        let checked = lockstep.run(&["check"]).stdout;
        assert!(checked.contains("start no server in"), "{checked}");
        assert_said(&next(), &rests);
        assert!(journals(&fixture).is_empty() && !control(&data).exists());
    }
    lockstep.restore_and_start(&set.id, &to, &delta).server().stop(Stop::Fast);
    discard(&fixture, &to, &parent);

    // Somebody else's dataset below would be destroyed with the rest.
    kill(&fixture, &lockstep, "restore.prepared", &restore_arguments(&set.id, &to, &zfs_form));
    let hint = format!("zfs destroy -r {parent}; rm -r");
    assert!(lockstep.run(&["check"]).stdout.contains(&hint), "then this test proves nothing");
    let mine = format!("{parent}/mine");
    zfs(&["create", "-o", "mountpoint=none", &mine]);
    let checked = lockstep.run(&["check"]).stdout;
    assert!(checked.contains(rests[1]) && !checked.contains("zfs destroy"), "{checked}");
    zfs(&["destroy", &mine]);

    // A new cluster in the restore's own dataset, with the restore's marker or without.
    for has_marker in [true, false] {
        if !has_marker {
            kill(
                &fixture,
                &lockstep,
                "restore.prepared",
                &restore_arguments(&set.id, &to, &zfs_form),
            );
            fs::remove_file(to.join(".lockstep-restore")).expect("it is there");
        }
        let inside = data.display().to_string();
        must(&mut command("find", [&inside, "-mindepth", "1", "-delete"]));
        let initdb = ["-A", "trust", "--no-sync", "-U", "postgres", "-D", &inside];
        must(&mut as_postgres(fixture.cluster.bin.join("initdb"), initdb));
        let before = walk(&data);
        let said = next();
        assert_said(&said, &["is a cluster of its own by now"]);
        let changed = differences(&before, &walk(&data));
        assert!(changed.is_empty(), "{changed:?}: {}", said.describe());
        assert!(journals(&fixture).is_empty() && !said.stderr.contains("zfs destroy"));
        discard(&fixture, &to, &parent);
    }
    assert_lives_on(&fixture);
}

/// Over an older restore's datasets, as files. After a reboot they may not be mounted.
#[test]
fn files_on_datasets_that_are_not_mounted_are_not_forgotten() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    let to = fixture.target("r");
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    lockstep.restore(&set.id, &to, &zfs_form);
    kill(&fixture, &lockstep, "restore.files-filled", &restore_arguments(&set.id, &to, &FILES));
    let data = format!("{parent}/data");
    zfs(&["unmount", &data]);
    let next = || lockstep.expect(exit::USAGE, &["prune", "--local", "--set", "no-such"]);
    let unseen = format!("nothing is mounted on \"{}\"", to.join("data").display());
    assert_said(&next(), &["can't be seen", &unseen]);
    assert!(lockstep.run(&["check"]).stdout.contains(&unseen));
    zfs(&["mount", &data]);
    assert_said(&next(), &["a restore was cut off", "--delta continues with it"]);
    lockstep.restore_and_start(&set.id, &to, &FILES).server().stop(Stop::Fast);
    assert_lives_on(&fixture);
}
