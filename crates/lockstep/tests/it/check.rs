//! `check` for a monitor that relies on the exit code: backups that have stopped, an archive that receives nothing,
//! programs that don't exist. Each problem is reported once, and isn't also reported as well.

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{as_postgres, command, must, wait_until};
use crate::support::faults::{Hooks, assert_said};
use crate::support::fixture::Fixture;
use crate::support::layout::{one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Steps, exit, json_of};
use crate::support::pools::{patiently, property, release_and_destroy, try_zfs, zfs};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The program with a configuration that differs in one place.
fn with(fixture: &Fixture, from: &str, to: &str) -> Lockstep {
    let text = fixture.configuration("auto", true);
    assert!(text.contains(from), "{text}");
    let path = fixture.root().join("changed.toml");
    fs::write(&path, text.replace(from, to)).expect("a configuration can be written");
    Lockstep::new(&path, &fixture.cluster.bin)
}

/// The findings about a subject; checks the exit code.
#[track_caller]
fn about(lockstep: &Lockstep, code: i32, subject: &str) -> Vec<Value> {
    let checked = json_of(&lockstep.expect(code, &["--json", "check"]));
    let findings = checked["findings"].as_array().expect("a list").clone();
    findings.into_iter().filter(|finding| finding["subject"] == subject).collect()
}

#[test]
fn what_a_monitor_has_to_notice() {
    let layout = two_pools_four_datasets().setting("archive_mode", "on");
    let fixture = Fixture::new(layout.setting("archive_command", "true"));
    let lockstep = fixture.lockstep();
    let older = lockstep.backup("label");
    lockstep.backup("label");
    assert_eq!(about(&lockstep, exit::DONE, "sets")[0]["severity"], "ok");
    assert_eq!(about(&lockstep, exit::DONE, "bin_dir")[0]["severity"], "ok");

    // A pool that is filling up: more than min_free_mib is left, but little of its size.
    let pool = &fixture.pools[1].name;
    let left = 300 << 20;
    let reserved = property(pool, "available").parse::<u64>().expect("a number of bytes") - left;
    let fill = format!("{pool}/fill");
    zfs(&["create", "-o", &format!("reservation={reserved}"), &fill]);
    let found = about(&lockstep, exit::DONE, "space");
    zfs(&["destroy", &fill]);
    let said = |words: &str| {
        found.iter().any(|finding| {
            finding["severity"] == "warning" && finding["what"].to_string().contains(words)
        })
    };
    assert!(said("has only") && said(" % of it"), "{found:?}");

    // The nightly backup has stopped working.
    let strict = with(&fixture, "os_user", "max_age_hours = 0\nos_user");
    let found = about(&strict, exit::PROBLEMS, "sets");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &"error".into()), "{found:?}");
    assert!(found[0]["what"].as_str().is_some_and(|what| what.contains("hours old")), "{found:?}");

    // Programs that don't exist, and those of another version.
    let bin = fixture.cluster.bin.display().to_string();
    for (other, words) in [
        ("/nosuch", "has no postgres"),
        (&*crate::support::cluster::bin_of(17).display().to_string(), "is of PostgreSQL 15"),
    ] {
        let changed = with(&fixture, &bin, other);
        let found = about(&changed, exit::PROBLEMS, "bin_dir");
        let what = found[0]["what"].as_str().unwrap_or_default();
        assert!(found[0]["severity"] == "error" && what.contains(words), "{found:?}");
    }

    // A set whose manifest is lost: one line for all of its snapshots, and no error.
    let folder = fixture.state.join("clusters/main/sets").join(&older.id);
    fs::rename(folder.join("manifest.json"), folder.join("aside")).expect("the test may rename");
    let found = about(&lockstep, exit::DONE, "snapshots");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &"warning".into()), "{found:?}");
    for volume in &older.volumes {
        assert!(found[0]["what"].to_string().contains(&volume.snapshot), "{found:?}");
    }
    fs::rename(folder.join("aside"), folder.join("manifest.json")).expect("the test may rename");

    // An archive that receives nothing.
    fixture.cluster.execute(&[
        "ALTER SYSTEM SET archive_command = 'false'",
        "SELECT pg_reload_conf()",
        "CREATE TABLE more (n int)",
    ]);
    let failed = "SELECT count(*) FROM pg_stat_archiver WHERE last_failed_time > last_archived_time OR last_archived_time IS NULL AND failed_count > 0";
    wait_until("archiving has failed", Duration::from_secs(120), || {
        // The archiver may still have archived the previous segment with the old command.
        fixture.cluster.execute(&["INSERT INTO more VALUES (1)", "SELECT pg_switch_wal()"]);
        std::thread::sleep(Duration::from_millis(500));
        fixture.cluster.value("postgres", failed) == "1"
    });
    let found = about(&lockstep, exit::PROBLEMS, "archiving");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &"error".into()), "{found:?}");
}

/// A command that ends as ssh does if it reaches nobody ends the archiver too, and PostgreSQL counts no failure.
#[test]
fn an_archive_that_receives_nothing_although_nothing_fails() {
    let layout = two_pools_four_datasets().setting("archive_mode", "on");
    let fixture = Fixture::new(layout.setting("archive_command", "exit 255"));
    let lockstep = fixture.lockstep();
    // This begins a new segment.
    lockstep.backup("label");
    let status = fixture.cluster.data.join("pg_wal/archive_status");
    let ready = || {
        let all =
            fs::read_dir(&status).expect("it can be listed").flatten().map(|entry| entry.path());
        all.filter(|path| path.extension().is_some_and(|end| end == "ready")).collect::<Vec<_>>()
    };
    wait_until("a segment waits", LIMIT, || !ready().is_empty());
    assert_eq!(about(&lockstep, exit::DONE, "archiving")[0]["severity"], "ok");

    // As if it had waited since this morning.
    let old = std::time::SystemTime::now() - Duration::from_secs(3 * 3600);
    for path in ready() {
        let file = fs::File::options().write(true).open(path).expect("it still waits");
        file.set_modified(old).expect("root may write everywhere");
    }
    let failed = "SELECT failed_count FROM pg_stat_archiver";
    assert_eq!(fixture.cluster.value("postgres", failed), "0");
    let found = about(&lockstep, exit::PROBLEMS, "archiving");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &"error".into()), "{found:?}");
    let what = found[0]["what"].as_str().unwrap_or_default();
    assert!(what.contains("not archived yet") && what.ends_with("for 3 hours"), "{found:?}");
}

/// pg_upgrade leaves behind a data directory that is cleanly shut down, and so does moving a cluster by hand. Its
/// sets are whole for ever, so `check` here, the repository, and the backup itself must report that their data is
/// old.
#[test]
fn a_data_directory_that_nobody_uses_any_more() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = crate::support::shipping::with_repository(&fixture);
    fixture.cluster.stop(Stop::Fast);
    // Stopped for this backup, so it is no problem.
    let set = lockstep.backup("auto");
    assert_eq!(set.json["strategy"], "cold", "{}", set.json);
    let time = |name: &str| -> Option<jiff::Timestamp> { set.json[name].as_str()?.parse().ok() };
    assert!(time("data_at").is_some() && time("data_at") <= time("started_at"), "{}", set.json);
    assert!(about(&lockstep, exit::DONE, "connection")[0]["severity"] == "ok");
    assert!(lockstep.expect(exit::DONE, &["show", "latest"]).stdout.contains("last checkpoint"));

    let elsewhere = fixture.owned("elsewhere").join("data");
    let initdb = [elsewhere.as_os_str(), "-A".as_ref(), "trust".as_ref(), "--no-sync".as_ref()];
    must(&mut as_postgres(fixture.cluster.bin.join("initdb"), initdb));
    let settings = "postgresql.auto.conf";
    fs::copy(fixture.cluster.data.join(settings), elsewhere.join(settings)).expect("it is there");
    let moved = Cluster { data: elsewhere.clone(), ..fixture.cluster.clone() };
    moved.start();
    let found = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup"]));
    let problem = &found["warnings"][0];
    let what = problem["what"].as_str().unwrap_or_default();
    assert!(problem["problem"] == true && what.contains("another server answers"), "{found}");
    let found = about(&lockstep, exit::PROBLEMS, "connection");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &"error".into()), "{found:?}");
    // It was requested.
    lockstep.backup("cold");
    moved.stop(Stop::Fast);
}

/// Every problem is reported with what to do.
#[test]
fn sets_that_are_not_whole_and_a_pool_that_is_away() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let sets = [(); 2].map(|()| lockstep.backup("label"));
    for set in &sets {
        release_and_destroy(&set.volumes[0].snapshot);
    }
    let found = about(&lockstep, exit::PROBLEMS, "sets");
    let what = found[0]["what"].as_str().unwrap_or_default();
    assert!(found.len() == 1 && what.contains("none of the 2 sets"), "{found:?}");
    for set in &sets {
        let words = format!("lockstep prune --local --set {}", set.id);
        let found = about(&lockstep, exit::PROBLEMS, &format!("set {}", set.id));
        assert!(found[0]["hint"].to_string().contains(&words), "{found:?}");
        let listed = lockstep.expect(exit::PROBLEMS, &["list"]);
        assert!(listed.stderr.contains(&words), "{}", listed.describe());
    }
    let whole = lockstep.backup("label");
    let found = about(&lockstep, exit::PROBLEMS, "sets");
    let what = found[0]["what"].as_str().unwrap_or_default();
    let words = format!("3 sets, 2 of them not whole, the newest that is whole is {}", whole.id);
    assert_eq!(what, words, "{found:?}");

    fixture.cluster.stop(Stop::Fast);
    let pool = &fixture.pools[1].name;
    patiently("zpool", &["export", pool], || ()).expect("it is idle");
    for command in ["plan", "backup"] {
        let failed = lockstep.expect(exit::FAILED, &[command]);
        assert!(failed.stderr.contains(&format!("zpool import {pool}")), "{}", failed.describe());
    }
    let images = fixture.root().join("images");
    must(command("zpool", ["import", "-d"]).args([images.as_os_str(), pool.as_ref()]));
}

/// These nights used to be silent: everything that is looked at can be read, but the backup can't write anywhere.
#[test]
fn state_that_can_only_be_read_or_is_full() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let found = about(&lockstep, exit::DONE, "state");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &"ok".into()), "{found:?}");
    let state = fixture.state.as_os_str();
    // A rescue system, or a backup of it: it can be inspected.
    must(&mut command("mount", ["--bind".as_ref(), state, state]));
    must(&mut command("mount", ["-o".as_ref(), "remount,ro,bind".as_ref(), state]));
    let outcomes = [&["list"][..], &["show", "latest"]].map(|words| lockstep.run(words));
    let checked = lockstep.run(&["check"]);
    must(&mut command("umount", [state]));
    for outcome in outcomes {
        assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
        assert!(outcome.stdout.contains(&set), "{}", outcome.describe());
    }
    assert_eq!(checked.code, Some(exit::PROBLEMS), "{}", checked.describe());
    for words in ["ERROR    state: cannot ", "Read-only file system"] {
        assert!(checked.stdout.contains(words), "{}", checked.describe());
    }

    let small = fixture.root().join("small");
    fs::create_dir(&small).expect("the test may write there");
    let size = ["-t", "tmpfs", "-o", "size=4m", "small"].map(std::ffi::OsStr::new);
    must(command("mount", size).arg(&small));
    let from = fixture.state.display().to_string();
    let elsewhere = with(&fixture, &from, &small.display().to_string());
    let little = about(&elsewhere, exit::PROBLEMS, "state");
    let _ = fs::write(small.join("ballast"), vec![0; 8 << 20]);
    let full = about(&elsewhere, exit::PROBLEMS, "state");
    fs::remove_file(small.join("ballast")).expect("it is there");
    must(&mut command("umount", [small.as_os_str()]));
    for (found, words) in [(little, "has only"), (full, "No space left")] {
        assert!(found[0]["severity"] == "error", "{found:?}");
        assert!(found[0]["what"].as_str().is_some_and(|what| what.contains(words)), "{found:?}");
        assert!(found[0]["hint"].as_str().is_some_and(|hint| hint.contains("room")), "{found:?}");
    }
}

/// A repository whose file system was mounted read-only, and one whose first set is being shipped.
#[test]
fn a_repository_that_can_only_be_read_and_a_first_set_on_its_way() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = crate::support::shipping::with_repository(&fixture);
    let subject = format!("repository {}", crate::support::shipping::NAME);
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.leased");
    let mut running = lockstep.clone().with_steps(&steps).spawn(&["--json", "backup"]);
    steps.wait_reached("ship.leased", &mut running);
    let under_way = about(&lockstep, exit::DONE, &subject);
    running.kill();
    running.wait(LIMIT);
    assert_eq!((under_way.len(), &under_way[0]["severity"]), (1, &"ok".into()), "{under_way:?}");
    let what = under_way[0]["what"].as_str().unwrap_or_default();
    let set = lockstep.sets().pop().expect("the set is there");
    assert!(what.contains(&format!("{set} is being shipped since 20")), "{what}");
    let found = about(&lockstep, exit::PROBLEMS, &subject);
    assert!(found[0]["what"] == "no set is in it yet", "{found:?}");

    lockstep.expect(exit::DONE, &["ship"]);
    assert_eq!(about(&lockstep, exit::DONE, &subject)[0]["severity"], "ok");
    let folder = crate::support::shipping::folder(&fixture);
    let before = crate::support::shipping::objects(&fixture);
    let on = folder.as_os_str();
    must(&mut command("mount", ["--bind".as_ref(), on, on]));
    must(&mut command("mount", ["-o".as_ref(), "remount,ro,bind".as_ref(), on]));
    let checked = lockstep.run(&["--json", "check"]);
    must(&mut command("umount", [on]));
    assert_eq!(checked.code, Some(exit::PROBLEMS), "{}", checked.describe());
    assert!(checked.stdout.contains("Read-only file system"), "{}", checked.describe());
    assert_eq!(crate::support::shipping::objects(&fixture), before, "a look leaves nothing there");
}

/// The timers of both may well meet.
#[test]
fn a_set_that_arrives_during_a_check_is_not_called_lost() {
    let fixture = Fixture::new(one_pool());
    let lockstep = crate::support::shipping::with_repository(&fixture);
    lockstep.backup("label");
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("check.noted");
    let mut running = lockstep.clone().with_steps(&steps).spawn(&["--json", "check"]);
    steps.wait_reached("check.noted", &mut running);
    lockstep.backup("label");
    steps.release("check.noted");
    let checked = running.wait(LIMIT);
    assert_eq!(checked.code, Some(exit::DONE), "{}", checked.describe());
}

/// Whoever reads that its snapshots are of no use may destroy them later, when it is the newest set.
#[test]
fn a_set_that_is_begun_during_a_check_is_not_called_of_no_use() {
    let fixture = Fixture::new(one_pool());
    let lockstep = fixture.lockstep();
    lockstep.backup("label");
    let (at_work, taken) = ("check.at-work", "backup.after-snapshot-1");
    let [checks, backups] = [at_work, taken].map(|step| Hooks::holding(&fixture, step));
    let check = checks.run_to(at_work, &["--json", "check"]);
    let backup = backups.run_to(taken, &["backup"]);
    checks.steps.release(at_work);
    let checked = check.wait(LIMIT);
    backups.steps.release(taken);
    assert_eq!(backup.wait(LIMIT).code, Some(exit::DONE));
    assert!(!checked.stdout.contains("never complete"), "{}", checked.describe());
    assert_eq!(checked.code, Some(exit::DONE), "{}", checked.describe());
}

#[test]
fn what_is_undone_during_a_check_is_not_called_cut_off() {
    let fixture = Fixture::new(one_pool());
    let lockstep = fixture.lockstep();
    lockstep.backup("label");
    let (made, read) = ("restore.journal", "check.journals");
    let [clones, checks] = [made, read].map(|step| Hooks::holding(&fixture, step));
    let creating = clones.run_to(made, &["clone", "create", "dev"]);
    let check = checks.run_to(read, &["--json", "check"]);
    creating.signal(rustix::process::Signal::INT);
    let undone = creating.wait(LIMIT);
    assert_ne!(undone.code, Some(exit::DONE), "{}", undone.describe());
    checks.steps.release(read);
    let checked = check.wait(LIMIT);
    assert!(!checked.stdout.contains("was cut off"), "{}", checked.describe());
    assert_eq!(checked.code, Some(exit::DONE), "{}", checked.describe());
}

/// For cron, which mails what is printed.
#[test]
fn quiet_prints_what_is_not_well_alone() {
    let layout = two_pools_four_datasets().setting("archive_mode", "on");
    let fixture = Fixture::new(layout.setting("archive_command", "true"));
    let lockstep = with(&fixture, "os_user", "retention.local = { last = 1 }\nos_user");
    let loud = lockstep.expect(exit::PROBLEMS, &["check"]);
    let quiet = lockstep.expect(exit::PROBLEMS, &["check", "--quiet"]);
    let not_ok: Vec<_> = loud.stdout.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert_eq!(quiet.stdout.lines().collect::<Vec<_>>(), not_ok);
    assert!(not_ok[0].contains("no set yet") && not_ok.len() < loud.stdout.lines().count());
    let both = ["--json", "check", "--quiet"];
    assert!(lockstep.expect(exit::PROBLEMS, &both).stdout.contains("\"ok\""));
    lockstep.backup("label");
    let quiet = lockstep.expect(exit::DONE, &["check", "-q"]);
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{}", quiet.describe());
    // The whole PATH of a cron job, unless its file sets another; it doesn't include zfs.
    let of_cron = lockstep.with_environment("PATH", std::path::Path::new("/usr/bin:/bin"));
    let quiet = of_cron.expect(exit::DONE, &["check", "-q"]);
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{}", quiet.describe());
}

/// Its sets hold their snapshots, and no command for the new name sees them.
#[test]
fn a_cluster_that_has_lost_its_name_in_the_configuration() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.lockstep().backup("label");
    let renamed = with(&fixture, "[clusters.main]", "[clusters.prod]");
    renamed.backup("label");
    let said = "state_dir has 1 sets of cluster \"main\", which isn't in the configuration";
    let found = about(&renamed, exit::DONE, "sets");
    let found = found.iter().find(|finding| finding["severity"] == "warning");
    assert!(found.is_some_and(|f| f["what"].as_str().is_some_and(|what| what.starts_with(said))));
    let named = about(&fixture.lockstep(), exit::DONE, "sets");
    let names = |finding: &Value| finding["hint"].to_string().contains("[clusters.prod]");
    assert!(named.iter().any(names), "{named:?}");
}

/// A role that may not see what it needs is told what to grant.
#[test]
fn a_role_without_rights_is_told_which() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.execute(&["CREATE ROLE weak LOGIN"]);
    let weak = with(&fixture, "\nuser = \"postgres\"", "\nuser = \"weak\"");
    let outcome = weak.expect(exit::FAILED, &["backup"]);
    assert!(
        outcome.stderr.contains("hint: GRANT pg_read_all_settings TO"),
        "{}",
        outcome.describe()
    );
    fixture.cluster.execute(&["GRANT pg_read_all_settings TO weak"]);
    let found = about(&weak, exit::PROBLEMS, "rights");
    let hint = found[0]["hint"].as_str().unwrap_or_default();
    let function =
        "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean)";
    assert!(hint.contains(function), "{found:?}");
}

/// A snapshot takes its dataset's data out of the reservation, which must then be reserved again. `available` shows
/// plenty, and yet every backup would fail.
#[test]
fn a_reservation_that_no_snapshot_fits_beside_is_told() {
    let fixture = Fixture::new(one_pool());
    let dataset =
        fixture.datasets.iter().find(|name| name.ends_with("/pg/data")).expect("a dataset");
    let bytes = |name: &str| property(dataset, name).parse::<u64>().expect("a number of bytes");
    let (own, left) = (bytes("usedbydataset"), bytes("available"));
    zfs(&["set", &format!("refreservation={}", own + left - own / 2), dataset]);
    let lockstep = with(&fixture, "os_user", "min_free_mib = 1\nos_user");
    let said = format!("dataset \"{dataset}\" has a refreservation");
    for command in ["plan", "backup"] {
        let refused = lockstep.expect(exit::REFUSED, &[command]);
        assert_said(&refused, &[&said, &format!("zfs set refreservation=none {dataset}")]);
    }
    let found = about(&lockstep, exit::PROBLEMS, "space");
    let what = found[0]["what"].as_str().unwrap_or_default();
    assert!(found[0]["severity"] == "error" && what.contains(&said), "{found:?}");
    let itself = try_zfs(&["snapshot", &format!("{dataset}@mine")]);
    assert!(itself.is_err_and(|error| error.contains("out of space")), "it was no use to refuse");
    zfs(&["set", "refreservation=none", dataset]);
    lockstep.backup("label");
    // Data that is already in a snapshot isn't reserved again.
    let ballast = std::path::Path::new(&property(dataset, "mountpoint")).join("ballast");
    std::fs::write(&ballast, vec![7; 200 << 20]).expect("a file can be written");
    lockstep.backup("label");
    let (own, left) = (bytes("usedbydataset"), bytes("available"));
    zfs(&["set", &format!("refreservation={}", left - own / 4 * 3), dataset]);
    lockstep.backup("label");
}

/// If a repository has a set that isn't whole here, restoring it from there is the first hint: the cluster may be
/// down.
#[test]
fn sets_that_are_whole_in_a_repository_alone() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = crate::support::shipping::with_repository(&fixture);
    let set = lockstep.backup("label");
    release_and_destroy(&set.volumes[0].snapshot);
    // What is printed works as it is printed, whichever configuration was named.
    let config = fixture.root().join("shipping.toml");
    let mut named = command(env!("CARGO_BIN_EXE_lockstep"), ["--config"]);
    let named = crate::support::command::run(named.arg(&config).args(["check", "--quiet"]));
    let way = format!("lockstep --config {} restore {}", config.display(), set.id);
    assert!(named.stdout.contains(&way), "{}", named.describe());
    fixture.cluster.stop(Stop::Fast);
    let way =
        format!("lockstep restore {} --from repository:{}", set.id, crate::support::shipping::NAME);
    let found = about(&lockstep, exit::PROBLEMS, "sets");
    let hint = found[0]["hint"].as_str().unwrap_or_default();
    assert!(hint.contains(&way), "{found:?}");
    let to = fixture.target("gone");
    let to = to.to_str().expect("UTF-8");
    let refused = lockstep.expect(exit::REFUSED, &["restore", "latest", "--to", to]);
    let (_, hint) = refused.stderr.split_once("hint: ").expect("a hint");
    let (first, second) = (hint.find(&way), hint.find("prune --local --set"));
    assert!(first.is_some() && first < second, "{}", refused.describe());
}

/// A timer that doesn't run is reported. If somebody prunes now and then by hand, or there is nothing to remove,
/// nothing is.
#[test]
fn sets_that_should_be_gone_for_long() {
    let fixture = Fixture::new(crate::support::layout::one_dataset());
    let sets: Vec<_> = (0..4).map(|_| fixture.lockstep().backup("label").id).collect();
    let text = fs::read_to_string(fixture.config()).expect("the configuration");
    let keep = |retention: &str| {
        let text = format!("{text}\n[clusters.main.retention]\n{retention}\n");
        fs::write(fixture.config(), text).expect("it can be written");
        about(&fixture.lockstep(), exit::DONE, "retention")
    };
    for (set, days) in sets.iter().zip([40, 30, 20, 10]) {
        let path = fixture.state.join("clusters/main/sets").join(set).join("manifest.json");
        let bytes = fs::read(&path).expect("a manifest");
        let mut manifest = lockstep::set::manifest::Manifest::parse(&bytes).expect("a good one");
        manifest.started_at -= jiff::SignedDuration::from_hours(days * 24);
        fs::write(&path, manifest.to_bytes().expect("a manifest")).expect("it can be written");
    }
    // max_age_hours makes the newest set too old, which is another finding.
    fixture.lockstep().backup("label");
    assert!(keep("local = { last = 4 }").is_empty(), "the fourth is due, and hasn't been for long");
    let found = keep("local = { last = 2 }");
    let what = found[0]["what"].as_str().unwrap_or_default();
    let mut oldest = sets[..2].to_vec();
    oldest.sort();
    assert!(found.len() == 1 && found[0]["severity"] == "warning", "{found:?}");
    assert!(what.contains("2 sets could have been removed"), "{found:?}");
    assert!(oldest.iter().any(|set| what.contains(set)), "{found:?}");
}

/// A disk gives back other bytes than were written, and there is no second copy.
#[test]
fn a_pool_that_has_lost_data_is_told() {
    let fixture = Fixture::new(one_pool());
    let lockstep = crate::support::shipping::with_repository(&fixture);
    lockstep.backup("label");
    assert!(about(&lockstep, exit::DONE, "pool").is_empty());
    let block: Vec<u8> = (0..1024_u64).flat_map(|n| (n * n + 4711).to_le_bytes()).collect();
    let odd = fixture.cluster.data.join("odd");
    fs::write(&odd, &block).expect("a file can be written");
    fixture.cluster.stop(Stop::Fast);
    let pool = &fixture.pools[0];
    patiently("zpool", &["export", &pool.name], || ()).expect("it is idle");
    harm(&pool.image, &block);
    let images = pool.image.parent().and_then(|folder| folder.to_str()).expect("UTF-8");
    patiently("zpool", &["import", "-d", images, &pool.name], || ()).expect("it is there");
    fixture.cluster.start();

    let backup = lockstep.expect(exit::PROBLEMS, &["backup"]);
    assert_said(&backup, &["zfs send", "`zpool status -v` names"]);
    let found = about(&lockstep, exit::PROBLEMS, "pool");
    let (what, hint) = (found[0]["what"].to_string(), found[0]["hint"].to_string());
    assert!(what.contains("has lost data: 1 data errors"), "{found:?}");
    assert!(hint.contains(&format!("zpool status -v {}", pool.name)), "{found:?}");
    // Once nothing has the file, a scrub forgets it.
    fs::remove_file(&odd).expect("the test may");
    let set = lockstep.json(&["list"])["sets"][1]["set"].as_str().expect("a set").to_owned();
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &set]);
    lockstep.backup("label");
}

/// Overwrites a block of a file in the image of the pool's disk.
#[track_caller]
fn harm(image: &std::path::Path, block: &[u8]) {
    let disk = fs::File::options().read(true).write(true).open(image).expect("it is ours");
    let mut buffer = vec![0; 1 << 20];
    let mut harmed = 0;
    for start in (0..disk.metadata().expect("it is there").len()).step_by(buffer.len()) {
        let read = disk.read_at(&mut buffer, start).expect("it can be read");
        let sectors = buffer[..read].chunks(512).enumerate();
        for (at, _) in sectors.filter(|(_, sector)| block.starts_with(sector)) {
            disk.write_all_at(&[0; 512], start + at as u64 * 512).expect("it can be written");
            harmed += 1;
        }
    }
    assert_eq!(harmed, 1, "the file isn't on the disk as it is");
}

/// Each set would have to store what the one before has stored.
#[test]
fn a_repository_on_a_volume_of_the_cluster_is_told() {
    let fixture = Fixture::new(one_pool());
    let within = fixture.tablespace("ts1").join("repository");
    let table = |folder: &std::path::Path| format!("url = \"file://{}\"", folder.display());
    let tables = [("far", table(&fixture.root().join("far"))), ("near", table(&within))];
    let lockstep = crate::support::shipping::configured(&fixture, &tables, "");
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let volume = fixture.datasets.iter().find(|name| name.ends_with("/pg/ts1")).expect("a dataset");
    let said = format!("repository \"near\" is on \"{volume}\", which is backed up into it");
    // There is no set yet, which is a problem of its own.
    let found = about(&lockstep, exit::PROBLEMS, "plan");
    let whats: Vec<_> = found.iter().filter_map(|it| it["what"].as_str()).collect();
    let about_it: Vec<_> = whats.into_iter().filter(|what| what.contains("repository")).collect();
    assert_eq!(about_it, [said.as_str()], "{found:?}");
    let planned = lockstep.expect(exit::DONE, &["plan"]);
    assert!(planned.stdout.contains(&said), "{}", planned.describe());
}
