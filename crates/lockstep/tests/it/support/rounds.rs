//! How many rounds a torture test runs, and with which choices.
//!
//! What could go wrong: on a slow machine the default takes as long as all other tests together. So after a minute and a
//! half no further round begins, unless their number was given.

use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);

/// The rounds of a test.
pub struct Rounds {
    /// Their number.
    pub count: u64,
    /// What the random choices begin with.
    pub seed: u64,
    was_given: bool,
    since: Instant,
}

impl Rounds {
    /// `LOCKSTEP_TORTURE_ROUNDS` says how many, `LOCKSTEP_TORTURE_SEED` which. Both are printed.
    pub fn of(name: &str, default: u64) -> Self {
        let given = from_environment("LOCKSTEP_TORTURE_ROUNDS");
        let count = given.unwrap_or(default);
        let seed =
            from_environment("LOCKSTEP_TORTURE_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
        println!("{name}: LOCKSTEP_TORTURE_SEED={seed} LOCKSTEP_TORTURE_ROUNDS={count}");
        Self { count, seed, was_given: given.is_some(), since: Instant::now() }
    }

    /// Whether no further round begins after `done`, of which the first `least` always run.
    pub fn end_after(&self, done: usize, least: usize) -> bool {
        let ends = !self.was_given && done >= least && self.since.elapsed() > LIMIT;
        if ends {
            println!("{done} rounds on a machine as slow as this");
        }
        ends
    }

    /// A round makes the same choices whatever ran before it.
    pub fn random(&self, round: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(1_000_003).wrapping_add(round))
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, and is {text:?}")))
}
