//! The torture test over a streaming standby: load on the primary, sets of the standby with random delays between the
//! snapshots and restartpoints forced in the gaps, every set restored, started and checked in full.
//!
//! `LOCKSTEP_TORTURE_ROUNDS` says how many (by default 9, each way with each end, or as many of them as [`Rounds`] lets a
//! slow machine begin), `LOCKSTEP_TORTURE_SEED` which (it is printed).

use crate::support::checker::Checker;
use crate::support::command::run;
use crate::support::fixture::assert_clean;
use crate::support::layout::{Layout, one_pool, two_pools_four_datasets};
use crate::support::ledger::{Expected, Ledger, Writers};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{Lockstep, Set, Steps, exit, json_of};
use crate::support::rounds::Rounds;
use crate::support::standby::Standby;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const SCALE: u32 = 3;
const DEFAULT_ROUNDS: u64 = 9;
/// Data only grows, and every check reads all of it.
const ROUNDS_A_FIXTURE: u64 = 40;

/// The ways to take a set of a standby: strategy, whether the standby can be asked.
const TURNS: [(&str, bool); 3] = [("label", true), ("ordered", true), ("ordered", false)];

/// How far the restored cluster replays.
const ENDS: [&str; 3] = ["immediate", "own WAL", "archive"];

#[test]
fn several_pools_of_a_standby() {
    torture("two pools", two_pools_four_datasets, &TURNS, 1);
}

#[test]
fn one_transaction_group_of_a_standby() {
    torture("one pool", one_pool, &[("atomic", true), ("atomic", false)], 4);
}

/// Runs one in `share` of the rounds. The first three are each way and each end once.
fn torture(name: &str, layout: fn() -> Layout, turns: &[(&str, bool)], share: u64) {
    let rounds = Rounds::of(name, DEFAULT_ROUNDS);
    let seed = rounds.seed;
    let mut done: BTreeMap<String, u32> = BTreeMap::new();
    let mut arena = None;
    for round in 0..rounds.count.div_ceil(share) {
        let place = usize::try_from(round).expect("few rounds");
        if rounds.end_after(place, ENDS.len()) {
            break;
        }
        if round % ROUNDS_A_FIXTURE == 0 {
            drop(arena.take());
        }
        let arena = arena.get_or_insert_with(|| Arena::new(layout(), seed ^ round));
        let mut random = rounds.random(round);
        let (strategy, asks) = turns[place % turns.len()];
        let end = ENDS[(place + place / ENDS.len()) % ENDS.len()];
        let what = format!("{strategy}{}, to {end}", if asks { "" } else { " without connection" });
        println!("round {round}: {what}, seed {seed}");
        arena.round(strategy, asks, end, &mut random);
        *done.entry(what).or_default() += 1;
    }
    for (what, count) in done {
        println!("torture of a standby: {name}: {what}: {count} rounds right");
    }
}

/// A primary under load, with its standby.
struct Arena {
    // Load and writers are stopped before their servers.
    load: Load,
    _writers: Writers,
    ledger: Ledger,
    standby: Standby,
}

impl Arena {
    fn new(layout: Layout, seed: u64) -> Arena {
        // Without a connection, no slot keeps WAL across restartpoints.
        let standby = Standby::new(layout.setting("wal_keep_size", "1GB"));
        let names = &standby.fixture.layout.tablespaces;
        standby.primary.pgbench_tables(SCALE, &names[0].0, &names[1].0);
        let ledger = Ledger::create(&standby.primary, "ts1", "ts2");
        let writers = ledger.start(&standby.primary);
        let load = Load::start(
            &standby.primary,
            &["ts1", "ts2", "pg_default"],
            &Plan::to_be_followed(seed),
        );
        ledger.wait_for(60);
        standby.catch_up();
        Arena { load, _writers: writers, ledger, standby }
    }

    fn round(&mut self, strategy: &str, asks: bool, end: &str, random: &mut fastrand::Rng) {
        let fixture = &self.standby.fixture;
        let steps = Steps::new(fixture.root().join("steps"));
        for n in 1..=fixture.datasets.len() {
            let limit = [1, 200, 800][random.usize(..3)];
            let delay = Duration::from_millis(random.u64(..limit));
            steps.delay(&format!("backup.before-snapshot-{n}"), delay);
        }
        let lockstep = if asks { fixture.lockstep() } else { self.standby.silent() };
        let lockstep = lockstep.with_steps(&steps);
        let stop = AtomicBool::new(false);
        let pause = Duration::from_millis(random.u64(20..400));
        let set = thread::scope(|scope| {
            scope.spawn(|| self.force_restartpoints(&stop, pause));
            let _stops = Stops(&stop);
            self.take(&lockstep, strategy)
        });
        assert_eq!(set.strategy, strategy, "{}", set.json);
        assert!(set.floor_lsn.is_some(), "a standby's set always knows its end: {}", set.json);

        self.load.pause();
        // Everything that was written is in the archive or isn't; the ledger knows no more than that.
        let attempted = self.ledger.attempted();
        let directory = fixture.target(&set.id);
        let copy = format!("cp {}/%f %p", fixture.archive.display());
        let more: &[&str] = match end {
            "immediate" => &["--target-immediate"],
            "archive" => &["--restore-command", &copy],
            _ => &[],
        };
        let restored = fixture.lockstep().restore_and_start(&set.id, &directory, more);
        let expected = Expected {
            by_time: None,
            by_lsn: set.floor_lsn,
            none_after: (end != "archive").then_some(attempted),
        };
        let verdict = Checker::new(SCALE)
            .with_ledger(&self.ledger, expected)
            .check_and_stop(restored.server());
        verdict.assert_right(&format!("set {} ({strategy}, to {end})", set.id));
        assert!(verdict.ledger_rows > 10, "an empty ledger proves nothing");
        self.load.assert_well();
        self.load.resume();
        fixture.discard_restored(&directory, &set.id);
        assert_clean(fixture);
        fixture.discard_set(&set.id);
        self.standby.catch_up();
    }

    /// Takes a set. If the template of a copied database was written to, a refusal is right; on slow machines that has
    /// been seen, although nobody connects to it. Then this prints what was written, and takes the set again.
    fn take(&self, lockstep: &Lockstep, strategy: &str) -> Set {
        for _ in 0..3 {
            let outcome = lockstep.run(&["--json", "backup", "--strategy", strategy]);
            if outcome.ok() {
                return Set::of(&json_of(&outcome));
            }
            let is_copied = outcome.stderr.contains("which was written to after that");
            assert!(outcome.code == Some(exit::REFUSED) && is_copied, "{}", outcome.describe());
            println!("refused: {}\n{}", outcome.stderr, self.writes_to_the_template());
        }
        panic!("the template of the copies is written to all the time");
    }

    /// The last records in the primary's pg_wal that are about the template's relations, as pg_waldump shows them.
    fn writes_to_the_template(&self) -> String {
        let primary = &self.standby.primary;
        let oid = "SELECT oid FROM pg_database WHERE datname = 'churn_template'";
        let of_template = format!("/{}/", primary.value("postgres", oid));
        let mut entries: Vec<_> =
            fs::read_dir(primary.data.join("pg_wal")).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut found = Vec::new();
        for entry in entries {
            // The newest segment ends early, and those that wait to be used have other content: both are errors to it.
            let dump = run(&mut primary.tool("pg_waldump", [entry.path()])).stdout;
            found
                .extend(dump.lines().filter(|line| line.contains(&of_template)).map(str::to_owned));
        }
        found.split_off(found.len().saturating_sub(20)).join("\n")
    }

    /// Checkpoints on the primary, each followed by a restartpoint on the standby.
    fn force_restartpoints(&self, stop: &AtomicBool, pause: Duration) {
        while !stop.load(Ordering::Relaxed) {
            self.standby.restartpoint();
            thread::sleep(pause);
        }
    }
}

/// Ends the restartpoints, also when the backup fails: the scope waits for their thread before the test can say why.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
