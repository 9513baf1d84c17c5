//! What os_user, or a superuser of the database, could make root read or write for them.

use super::*;

/// A file of root's with mode 0600, and a check that its owner, mode and content haven't changed.
fn victim(fixture: &Fixture) -> (PathBuf, impl Fn() + use<>) {
    let path = fixture.root().join("victim");
    fs::write(&path, "secret = 'of root'\n").expect("the test may");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let untouched = {
        let path = path.clone();
        move || {
            let found = path.metadata().expect("it is there");
            assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600));
            let text = fs::read_to_string(&path).expect("it is readable");
            assert_eq!(text, "secret = 'of root'\n");
        }
    };
    (path, untouched)
}

fn ln(target: &Path, link: &Path) {
    must(as_postgres("ln", ["-sfn"]).args([target, link]));
}

/// os_user may write to the folder of its restore: a link there mustn't lead root anywhere.
#[test]
fn a_link_in_an_older_restore_leads_root_nowhere() {
    let (fixture, lockstep, set) = live();
    let (victim, untouched) = victim(&fixture);
    let to = fixture.target("r");
    lockstep.restore(&set.id, &to, &FILES[..4]);
    let arguments = restore_arguments(&set.id, &to, &[&FILES[..], &["--start"]].concat());
    let log = to.join("log/server.log");
    for target in [&victim, &fixture.root().join("no such file")] {
        ln(target, &log);
        let outcome = lockstep.expect(exit::FAILED, &arguments);
        assert_said(&outcome, &["log/server.log\" is a symbolic link", "hint: "]);
        untouched();
        assert!(!fixture.root().join("no such file").exists(), "{}", outcome.describe());
    }
    fs::remove_file(&log).expect("it is a link");
    // The same with the folder, which would be given away; it is replaced after the check for links.
    let folder = fixture.root().join("folder");
    fs::create_dir(&folder).expect("the test may");
    let step = "restore.journal";
    let hooks = Hooks::holding(&fixture, step);
    let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(&arguments);
    hooks.steps.wait_reached(step, &mut program);
    must(as_postgres("mv", ["-T"]).args([&to.join("log"), &to.join("log.old")]));
    ln(&folder, &to.join("log"));
    hooks.steps.release(step);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_said(&outcome, &["contains a symbolic link that root hasn't made", "hint: "]);
    let found = folder.metadata().expect("it is there");
    assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o755));
    assert!(entries(&folder).is_empty(), "{}", outcome.describe());
    fs::remove_file(to.join("log")).expect("it is a link");
    fs::rename(to.join("log.old"), to.join("log")).expect("the test may");
    lockstep.expect(exit::DONE, &arguments);
}

/// A superuser of the database can name any file as the cluster's configuration, and os_user can link to any file:
/// what they can't read themselves is neither stored nor restored.
#[test]
fn root_reads_nothing_for_others() {
    let (fixture, lockstep, _) = live();
    let (victim, untouched) = victim(&fixture);
    let data = &fixture.cluster.data;
    let ident = format!("ALTER SYSTEM SET ident_file = '{}'", victim.display());
    fixture.cluster.execute(&[&ident]);
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    let taken = lockstep.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert_said(&taken, &["pg_ident.conf is", "can't read, so it isn't in the set"]);
    let id = json_of(&taken)["set"].as_str().expect("an id").to_owned();
    fs::write(data.join("auto.saved"), fs::read(data.join("postgresql.auto.conf")).expect("there"))
        .expect("the test may");
    ln(&victim, &data.join("postgresql.auto.conf"));
    let linked = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup"]));
    let linked = linked["set"].as_str().expect("an id").to_owned();
    let snapshots: &[&str] = &[];
    for (set, form) in [(&id, snapshots), (&linked, snapshots), (&linked, &FILES[..4])] {
        let to = fixture.target("r");
        let outcome = lockstep.expect(exit::DONE, &restore_arguments(set, &to, form));
        if *set == linked {
            assert_said(&outcome, &["postgresql.auto.conf\" isn't taken over", "symbolic link"]);
        }
        let seen = must(as_postgres("cat", ["--"]).arg(to.join("data/postgresql.auto.conf")));
        assert!(seen.contains("archive_mode") && !seen.contains("secret"), "{seen}");
        for name in ["pg_ident.conf", "pg_hba.conf"] {
            let seen = must(as_postgres("cat", ["--"]).arg(to.join("data").join(name)));
            assert!(!seen.contains("secret"), "{name}: {seen}");
        }
        untouched();
        fixture.discard_restored(&to, set);
    }
}

/// An included file may name the original's data directory: the command that a restore prints must not start that.
/// And settings needn't be UTF-8.
#[test]
fn a_data_directory_in_an_included_file_does_not_count() {
    let (fixture, lockstep, _) = live();
    let data = fixture.cluster.data.clone();
    fs::create_dir(data.join("conf.d")).expect("the test may");
    let line = format!("data_directory = '{}'\n", data.display());
    fs::write(data.join("conf.d/50.conf"), line).expect("the test may");
    for (name, line) in [
        ("postgresql.conf", &b"include_dir = 'conf.d'\n"[..]),
        ("postgresql.auto.conf", b"event_source = '\xe9v\xe9nement'\n"),
    ] {
        let text = fs::read(data.join(name)).expect("it is there");
        fs::write(data.join(name), [&text, line].concat()).expect("the test may");
    }
    must(command("chown", ["-R", "postgres:"]).args([data.join("conf.d")]));
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    assert_eq!(
        fixture.cluster.value("postgres", "SHOW data_directory"),
        data.display().to_string()
    );
    let set = lockstep.backup("label").id;
    // With the original running and without it: then nothing would keep a server out of its files.
    for running in [true, false] {
        let to = fixture.target(if running { "beside" } else { "alone" });
        if !running {
            fixture.cluster.stop(Stop::Fast);
        }
        let before = fs::read(control(&data)).expect("it is there");
        let restored = lockstep.restore_and_start(&set, &to, &[]);
        let asked = restored.server().value("postgres", "SHOW data_directory");
        assert_eq!(asked, restored.data.display().to_string());
        restored.server().stop(Stop::Fast);
        let directory = to.join("data").display().to_string();
        let program = fixture.cluster.bin.join("postgres");
        let says = must(&mut as_postgres(program, ["-D", &directory, "-C", "data_directory"]));
        assert_eq!(says.trim(), restored.data.display().to_string());
        assert!(running || fs::read(control(&data)).expect("it is there") == before);
        let auto = fs::read(restored.data.join("postgresql.auto.conf")).expect("it is there");
        let wanted = b"event_source = '\xe9v\xe9nement'\n";
        assert!(auto.windows(wanted.len()).any(|bytes| bytes == wanted), "{}", auto.escape_ascii());
    }
}
