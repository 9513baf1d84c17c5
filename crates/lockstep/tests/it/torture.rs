//! Round after round: load of every kind, random delays between the snapshots, each strategy in turn, every set
//! restored, started and checked in full.
//!
//! `LOCKSTEP_TORTURE_ROUNDS` says how many (12, or as many of them as [`Rounds`] lets a slow machine begin),
//! `LOCKSTEP_TORTURE_SEED` which (it is printed). For hundreds:
//! `LOCKSTEP_TORTURE_ROUNDS=300 cargo nextest run --profile torture --features test-hooks --test torture --no-capture`.

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{Layout, one_pool, two_pools_four_datasets};
use crate::support::ledger::{Expected, Ledger, Writers};
use crate::support::load::{Load, Plan, TablespaceChurn};
use crate::support::lockstep::{Set, Steps};
use crate::support::rounds::Rounds;
use std::collections::{BTreeMap, VecDeque};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const SCALE: u32 = 3;
const DEFAULT_ROUNDS: u64 = 12;

/// The strategies, in turn; each test chooses the fixture for a strategy.
const TURNS: [&str; 4] = ["label", "ordered", "atomic", "cold"];

/// Data only grows, and every check reads all of it: a fresh cluster after this many rounds.
const ROUNDS_A_FIXTURE: usize = 40;

/// The number of sets that exist at the same time.
const SETS_KEPT: usize = 2;

#[test]
fn several_pools() {
    torture("two pools", two_pools_four_datasets, &["label", "ordered", "cold"]);
}

#[test]
fn one_transaction_group() {
    torture("one pool", one_pool, &["atomic"]);
}

fn torture(name: &str, layout: fn() -> Layout, strategies: &[&str]) {
    let rounds = Rounds::of(name, DEFAULT_ROUNDS);
    let seed = rounds.seed;
    let turn = |round: u64| TURNS[usize::try_from(round % 4).expect("less than four")];
    let is_mine = |round: &u64| strategies.contains(&turn(*round));
    let mine: Vec<u64> = (0..rounds.count).filter(is_mine).collect();
    let mut statistics = Statistics::default();
    let mut done = 0;
    for batch in mine.chunks(ROUNDS_A_FIXTURE) {
        let mut arena = Arena::new(layout(), seed ^ batch[0]);
        for round in batch {
            if rounds.end_after(done, strategies.len()) {
                break;
            }
            done += 1;
            let mut random = rounds.random(*round);
            println!("round {round}: {}, seed {seed}", turn(*round));
            let figures = arena.round(turn(*round), &mut random);
            println!("round {round}: {figures:.1?}");
            statistics.add(turn(*round), figures);
        }
        arena.finish();
    }
    statistics.print(name);
}

/// A live cluster under load, and the sets taken of it.
struct Arena {
    // Load and writers are stopped before their fixture is dropped.
    load: Option<Load>,
    writers: Option<Writers>,
    passing: TablespaceChurn,
    ledger: Ledger,
    seed: u64,
    kept: VecDeque<Set>,
    fixture: Fixture,
}

/// One round's figures.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    backup: Duration,
    restore: Duration,
    check: Duration,
    retakes: u64,
}

impl Arena {
    fn new(layout: Layout, seed: u64) -> Arena {
        let fixture = Fixture::new(layout.zeros());
        fixture.pgbench_tables(SCALE);
        let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
        // On ts1's dataset: a new tablespace must be on a volume of the set.
        let below = fixture.mnt().join("ts1");
        let passing = TablespaceChurn::new(&fixture.cluster, &below);
        let mut arena = Arena {
            load: None,
            writers: None,
            passing,
            ledger,
            seed,
            kept: VecDeque::new(),
            fixture,
        };
        arena.start_load();
        arena
    }

    fn start_load(&mut self) {
        self.seed = self.seed.wrapping_add(1);
        let cluster = &self.fixture.cluster;
        self.writers = Some(self.ledger.start(cluster));
        self.load =
            Some(Load::start(cluster, &["ts1", "ts2", "pg_default"], &Plan::all(self.seed)));
    }

    fn stop_load(&mut self) {
        if let Some(load) = self.load.take() {
            load.stop();
        }
        self.writers.take();
        let errors = self.ledger.errors();
        assert!(errors.is_empty(), "the ledger's writers failed: {errors:?}");
    }

    fn round(&mut self, strategy: &str, random: &mut fastrand::Rng) -> Figures {
        let attempted = self.ledger.attempted();
        let started = Instant::now();
        let (set, expected) =
            if strategy == "cold" { self.cold_set() } else { self.set(strategy, random) };
        let backup = started.elapsed();
        assert_eq!(set.strategy, strategy, "asked for {strategy}: {}", set.json);

        let load = self.load.as_mut().expect("load runs between rounds");
        load.pause();
        let directory = self.fixture.target(&set.id);
        let started = Instant::now();
        let restored = self.fixture.lockstep().restore_and_start(&set.id, &directory, &[]);
        let restore = started.elapsed();
        let started = Instant::now();
        let checker = Checker::new(SCALE).with_ledger(&self.ledger, expected);
        let verdict = checker.check_and_stop(restored.server());
        let check = started.elapsed();
        verdict.assert_right(&format!("set {} ({strategy})", set.id));
        assert!(verdict.ledger_rows >= attempted.min(2), "an empty ledger proves nothing");

        // Servers next to the live cluster must not have harmed it.
        load.assert_well();
        load.resume();
        self.passing.assert_unharmed();
        self.fixture.discard_restored(&directory, &set.id);
        assert_clean(&self.fixture);
        let figures = Figures { backup, restore, check, retakes: set.tries - 1 };
        self.kept.push_back(set);
        while self.kept.len() > SETS_KEPT {
            let oldest = self.kept.pop_front().expect("it isn't empty");
            self.fixture.discard_set(&oldest.id);
        }
        figures
    }

    /// A set of the running cluster, its snapshots pulled apart by random delays.
    fn set(&mut self, strategy: &str, random: &mut fastrand::Rng) -> (Set, Expected) {
        let steps = Steps::new(self.fixture.root().join("steps"));
        for n in 1..=self.fixture.datasets.len() {
            steps.delay(&format!("backup.before-snapshot-{n}"), delay(random));
        }
        let lockstep = self.fixture.lockstep().with_steps(&steps);
        // At most one change of the layout per backup, so that three tries are always enough.
        let change = (random.u8(..3) == 0).then(|| Duration::from_millis(random.u64(..1500)));
        let passing = &mut self.passing;
        let set = thread::scope(|scope| {
            if let Some(after) = change {
                scope.spawn(move || {
                    thread::sleep(after);
                    passing.toggle();
                });
            }
            lockstep.backup(strategy)
        });
        let attempted = self.ledger.attempted();
        // The last step at which everything committed before it must be in the set.
        let frozen = match strategy {
            "label" => "backup.layout".to_owned(),
            "ordered" => {
                let last = set.in_order().last().map_or(0, |volume| volume.order);
                format!("backup.before-snapshot-{last}")
            }
            _ => "backup.before-snapshot-1".to_owned(),
        };
        let reached = steps.reached(&frozen);
        let by_time =
            Some(reached.unwrap_or_else(|| {
                panic!("step {frozen} wasn't reached: {:?}", steps.all_reached())
            }));
        (set.clone(), Expected { by_time, by_lsn: set.floor_lsn, none_after: Some(attempted) })
    }

    /// A set of the stopped cluster.
    fn cold_set(&mut self) -> (Set, Expected) {
        self.stop_load();
        self.fixture.cluster.stop(Stop::Fast);
        let expected = Expected {
            by_time: Some(SystemTime::now()),
            by_lsn: None,
            none_after: Some(self.ledger.attempted()),
        };
        let set = self.fixture.lockstep().backup("cold");
        self.fixture.cluster.start();
        self.start_load();
        (set, expected)
    }

    fn finish(mut self) {
        self.stop_load();
    }
}

/// 0 to 3 s: mostly short, because a round shouldn't take long; sometimes the maximum.
fn delay(random: &mut fastrand::Rng) -> Duration {
    let limit = match random.u8(..20) {
        0..8 => 1,
        8..15 => 200,
        15..19 => 800,
        _ => 3000,
    };
    Duration::from_millis(random.u64(..limit))
}

#[derive(Debug, Default)]
struct Statistics {
    by_strategy: BTreeMap<String, Vec<Figures>>,
}

impl Statistics {
    fn add(&mut self, strategy: &str, figures: Figures) {
        self.by_strategy.entry(strategy.to_owned()).or_default().push(figures);
    }

    fn print(&self, name: &str) {
        for (strategy, all) in &self.by_strategy {
            let mean = |of: fn(&Figures) -> Duration| {
                all.iter().map(of).sum::<Duration>().as_secs_f64() / all.len() as f64
            };
            let retakes: u64 = all.iter().map(|figures| figures.retakes).sum();
            println!(
                "torture: {name}: {strategy}: {} rounds right, {retakes} sets retaken, mean seconds: backup {:.2}, restore {:.2}, check {:.2}",
                all.len(),
                mean(|figures| figures.backup),
                mean(|figures| figures.restore),
                mean(|figures| figures.check),
            );
        }
    }
}
