//! What a store may answer: refusals that are reported with what to do, temporary failures, silence, and death after
//! any call. An S3 server, with a proxy before it that spoils its answers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::fixture::{Fixture, assert_clean, free_port};
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{Lockstep, Set, exit, json_of};
use crate::support::shipping::{configured, s3_table};
use crate::support::stores::s3::Server;
use crate::support::stores::spoiled::{Fate, Spoiled};
use crate::support::workspace::Workspace;
use serde_json::json;

/// The program with a repository at this port, and a cluster that is never asked.
fn at(workspace: &Workspace, port: u16, more: &str) -> Lockstep {
    let path = workspace.root.join("lockstep.toml");
    let text = format!(
        "state_dir = \"{}\"\n[clusters.main]\ndata_directory = \"/nowhere\"\nrepositories = [\"amazon\"]\n[repositories.amazon]\n{}\n",
        workspace.root.join("state").display(),
        s3_table(&workspace.root, port, "sets", more)
    );
    fs::write(&path, text).expect("a configuration can be written");
    Lockstep::new(&path, Path::new("/nowhere"))
}

#[test]
fn a_refusal_is_named_with_what_to_do() {
    let Some(server) = Server::start() else { return };
    let workspace = Workspace::new();
    let spoiled = Spoiled::before(server.port);
    let lockstep = at(&workspace, spoiled.port, "");
    // The store's answer; how often it is asked; what the error and its hint say.
    let refusals = [
        (403, "InvalidAccessKeyId", 1, "credentials are missing or wrong", "the access key's id"),
        (
            403,
            "SignatureDoesNotMatch",
            1,
            "credentials are missing or wrong",
            "the access key doesn't match",
        ),
        (400, "ExpiredToken", 1, "credentials are missing or wrong", "get new ones"),
        (403, "RequestTimeTooSkewed", 1, "the store failed", "clock"),
        (403, "AccessDenied", 1, "permission denied", "read, write and delete"),
        (404, "NoSuchBucket", 1, "no such bucket", "is its name right"),
        (503, "SlowDown", 5, "failed for now", "try again later"),
        (500, "InternalError", 5, "failed for now", "try again later"),
    ];
    for (status, code, tries, words, hint) in refusals {
        spoiled.choose(move |_, _| Fate::Refused(status, code));
        for command in [&["repo", "init"][..], &["repo", "check"]] {
            let outcome = lockstep.expect(exit::FAILED, command);
            let said = &outcome.stderr;
            let (error, advice) = said.split_once("hint:").unwrap_or((said, ""));
            assert!(error.contains(words) && error.contains(code), "{}", outcome.describe());
            assert!(error.contains("repository \"amazon\""), "{}", outcome.describe());
            assert!(advice.contains(hint), "{code}: {}", outcome.describe());
            assert!(!said.contains("hunter2"), "{}", outcome.describe());
            if tries == 5 {
                break;
            }
        }
        let asked = if tries == 5 { 5 } else { 2 };
        assert_eq!(spoiled.count(), asked, "{code}: tries");
    }

    // The real server, which doesn't have this bucket: that is never taken for an empty repository.
    spoiled.choose(|_, _| Fate::Passed);
    for command in [&["repo", "init"][..], &["repo", "check"]] {
        let outcome = lockstep.expect(exit::FAILED, command);
        assert!(outcome.stderr.contains("no such bucket"), "{}", outcome.describe());
    }
    // Nothing listens there.
    let outcome = at(&workspace, free_port(), "").expect(exit::FAILED, &["repo", "init"]);
    assert!(outcome.stderr.contains("failed for now"), "{}", outcome.describe());
    assert!(outcome.stderr.contains("Connection refused"), "{}", outcome.describe());
    assert!(outcome.stderr.contains("is the endpoint right"), "{}", outcome.describe());
    // A server that accepts connections but never answers.
    spoiled.choose(|_, _| Fate::Silent);
    let begun = Instant::now();
    let outcome =
        at(&workspace, spoiled.port, "timeout_seconds = 1").expect(exit::FAILED, &["repo", "init"]);
    assert!(outcome.stderr.contains("did not answer in time"), "{}", outcome.describe());
    assert!(outcome.stderr.contains("no answer within 1s"), "{}", outcome.describe());
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

struct Prepared {
    fixture: Fixture,
    spoiled: Spoiled,
    lockstep: Lockstep,
    /// A set that is already shipped.
    first: Set,
    _server: Server,
}

fn prepare() -> Option<Prepared> {
    let server = Server::start()?;
    server.make_bucket("sets");
    let spoiled = Spoiled::before(server.port);
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let more = "timeout_seconds = 1\ngrace_hours = 0\nrepack_below = 100";
    let table = s3_table(fixture.root(), spoiled.port, "sets", more);
    let retention = "\n[clusters.main.retention]\nrepository = { last = 1 }\n";
    let lockstep = configured(&fixture, &[("amazon", table)], retention);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let first = lockstep.backup("label");
    Some(Prepared { fixture, spoiled, lockstep, first, _server: server })
}

impl Prepared {
    fn change(&self) {
        self.fixture.cluster.execute(&[
            "UPDATE pgbench_accounts SET filler = md5(random()::text) WHERE aid % 997 = 0",
        ]);
    }

    /// Nothing that is there is harmed, and there are this many sets.
    #[track_caller]
    fn well(&self, sets: u64, why: &str) {
        let checked = &self.lockstep.json(&["repo", "check", "--read-data"])["repositories"][0];
        assert_eq!(checked["harmed"], json!([]), "{why}: {checked}");
        assert_eq!(checked["counts"]["sets"], json!(sets), "{why}: {checked}");
    }
}

#[test]
fn what_passes_is_borne_and_what_stalls_is_named() {
    let Some(prepared) = prepare() else { return };
    let Prepared { fixture, spoiled, lockstep, first, .. } = &prepared;
    prepared.change();
    // Some answers to writes are lost, and some reads are refused, but none twice: a request that always came third
    // would never succeed.
    let asked = Mutex::new(BTreeSet::new());
    spoiled.choose(move |request, number| {
        let this = (request.method.clone(), request.target.clone());
        let is_first = asked.lock().is_ok_and(|mut asked| asked.insert(this));
        match (request.method.as_str(), number % 3) {
            ("PUT" | "POST" | "DELETE", 0) if is_first => Fate::Lost,
            ("GET", 1) if is_first => Fate::Refused(503, "SlowDown"),
            _ => Fate::Late(Duration::from_millis(20)),
        }
    });
    let second = lockstep.backup("label");
    assert_eq!(second.json["repositories"][0]["complete"], true, "{}", second.json);
    spoiled.choose(|_, _| Fate::Passed);
    prepared.well(2, "after lost answers");

    // No pack is accepted: the set stays on this host, and the error says which call stalled.
    prepared.change();
    spoiled.choose(|request, _| match request.target.contains("/packs/") {
        true => Fate::Silent,
        false => Fate::Passed,
    });
    let said = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup"]));
    let there = &said["repositories"][0];
    let error = there["error"].as_str().unwrap_or_default();
    assert!(error.contains("/packs/") && error.contains("did not answer in time"), "{there}");
    assert_eq!(there["complete"], false, "{there}");
    let id = said["set"].as_str().expect("an id");
    assert!(lockstep.sets().iter().any(|set| set == id));
    spoiled.choose(|_, _| Fate::Passed);
    prepared.well(2, "after a stalled upload");
    let shipped = lockstep.json(&["ship", id]);
    assert_eq!(shipped["repositories"][0]["complete"], true, "{shipped}");
    prepared.well(3, "shipped after all");
    assert_clean(fixture);

    // A restore that can't read data says so, and leaves nothing.
    spoiled.choose(|request, _| match request.target.contains("/packs/") {
        true => Fate::Refused(403, "AccessDenied"),
        false => Fate::Passed,
    });
    let to = fixture.target("refused");
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    let arguments = ["restore", &first.id, "--to", to, "--from", "repository", "--as", "files"];
    let outcome = lockstep.expect(exit::FAILED, &arguments);
    assert!(outcome.stderr.contains("permission denied"), "{}", outcome.describe());
    assert!(!Path::new(to).exists(), "{to} is left");
}

/// Ships, prunes and compacts while the store dies after so many calls, more each time: the contents are whole every
/// time, and in the end everything is done. `LOCKSTEP_CALLS_APART` says how many more (17); with 1 it takes ten
/// minutes.
#[test]
fn dead_after_any_call_and_the_next_goes_on() {
    let apart =
        std::env::var("LOCKSTEP_CALLS_APART").map_or(17, |text| text.parse().expect("a number"));
    let Some(prepared) = prepare() else { return };
    let Prepared { fixture, spoiled, lockstep, .. } = &prepared;
    let again = || {
        prepared.change();
        // Sets of the same second have no order.
        std::thread::sleep(Duration::from_millis(1100));
        Set::of(&lockstep.json(&["backup", "--no-ship"])).id
    };
    let (second, third) = (again(), again());
    for (command, sets) in [
        (&["ship", &second][..], 1..=2),
        (&["ship", &third], 2..=3),
        // It replaces deltas that two sets need.
        (&["ship", "--full", &second], 3..=3),
        (&["prune", "--repository", "amazon"], 1..=3),
        (&["repo", "compact", "--live", "100"], 1..=1),
    ] {
        let mut deaths = 0;
        for calls in (1..).step_by(apart) {
            spoiled.choose(move |_, number| match number < calls {
                true => Fate::Passed,
                // This error isn't retried.
                false => Fate::Refused(400, "Dead"),
            });
            let outcome = lockstep.run(command);
            let asked = spoiled.count();
            spoiled.choose(|_, _| Fate::Passed);
            let checked = &lockstep.json(&["repo", "check"])["repositories"][0];
            let why = format!("{} after {calls} calls: {checked}", command.join(" "));
            // A set appears or disappears as a whole.
            assert_eq!(checked["harmed"], json!([]), "{why}");
            let there = checked["counts"]["sets"].as_u64().expect("a number");
            assert!(sets.contains(&there), "{why}");
            if outcome.ok() && asked <= calls {
                break;
            }
            assert!(calls < 600, "{why}: never done: {}", outcome.describe());
            deaths += 1;
        }
        println!("{}: died {deaths} times", command.join(" "));
        assert!(deaths > 1, "{}", command.join(" "));
        prepared.well(if command[0] == "ship" { *sets.end() } else { 1 }, command[0]);
    }
    let checked = &lockstep.json(&["repo", "check"])["repositories"][0];
    assert_eq!(checked["orphans"], json!([]), "leftovers stay");
    assert_clean(fixture);
}

/// A shipment that was asked to end does so soon, whatever it is waiting for: a dead store, or its own limit.
#[test]
fn an_interruption_waits_for_no_store_and_no_limit() {
    let Some(prepared) = prepare() else { return };
    let Prepared { fixture, spoiled, lockstep, .. } = &prepared;
    prepared.change();
    let late = Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    let ended = |lockstep: &Lockstep| {
        let running = lockstep.spawn(&["ship", &late]);
        std::thread::sleep(Duration::from_secs(3));
        running.signal(rustix::process::Signal::INT);
        let begun = Instant::now();
        let outcome = running.wait(Duration::from_secs(120));
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{:?}: {}",
            begun.elapsed(),
            outcome.describe()
        );
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    };
    // The store dies once the lease is held, so that can't be given back either.
    spoiled.choose(|request, number| match request.target.contains("/packs/") || number > 20 {
        true => Fate::Refused(503, "SlowDown"),
        false => Fate::Passed,
    });
    ended(lockstep);
    spoiled.choose(|_, _| Fate::Passed);

    let more = "rate_limit = \"20KB\"\ngrace_hours = 0";
    let table = s3_table(fixture.root(), spoiled.port, "sets", more);
    ended(&configured(fixture, &[("amazon", table)], ""));
    prepared.well(1, "after interruptions");
    assert_clean(fixture);
}
