//! A backup, from the lock to the manifest.
//!
//! The plan's steps run in its order. Whatever goes wrong, what this attempt made is undone, the server leaves backup
//! mode when the connection closes, and older sets stay as they were.

mod attempt;
mod certify;
mod database_copies;
mod standby;

use std::time::{Duration, Instant};

use crate::config::StrategyChoice;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::plan::strategy::{self, Plan};
use crate::refusal::Refusal;
use crate::set::manifest::Manifest;
use crate::set::unfinished;
use crate::{steps, survey};

use attempt::Attempt;

/// How many times a set is attempted if the layout or the WAL changes meanwhile.
const TRIES: u32 = 3;

/// How many times it is attempted again if a standby's replay ended a statement, and the pause before each. A standby
/// that lags more than max_standby_streaming_delay immediately ends every statement that is in its way.
const CONFLICTS: u32 = 10;
const CONFLICT_PAUSE: Duration = Duration::from_secs(2);

/// What a backup is asked to do.
#[derive(Debug, Clone)]
pub struct Request {
    /// The strategy.
    pub strategy: StrategyChoice,
    /// The user's words for the set.
    pub label: Option<String>,
}

/// Takes one backup set.
///
/// # Errors
/// When it can't be consistent, another process holds the lock, or anything fails on the way.
pub fn run(cx: &Context, request: &Request) -> Result<Manifest> {
    let _lock = cx.lock_before_prune("backup")?;
    steps::reached("backup.locked")?;
    unfinished::remove(cx)?;
    let (mut tries, mut races, mut conflicts) = (1, 1, 0);
    loop {
        match run_once(cx, request, tries) {
            Err(Error::Refused(refusal)) if refusal.worth_another_try() && races < TRIES => {
                tracing::warn!(%refusal, tries, "taking the set again");
                races += 1;
                tries += 1;
            }
            Err(error) if error.is_recovery_conflict() && conflicts < CONFLICTS => {
                conflicts += 1;
                tracing::warn!(error = %error.chain(), conflicts, "taking the set again");
                tries += 1;
                std::thread::sleep(CONFLICT_PAUSE);
                steps::reached("backup.conflict")?;
            }
            Err(Error::Refused(refusal)) => return Err(last_words(*refusal, races).into()),
            other => return other,
        }
    }
}

/// Returns what `backup` would do; changes nothing.
///
/// # Errors
/// As the backup would.
pub fn plan(cx: &Context, choice: StrategyChoice) -> Result<(Plan, survey::Survey)> {
    let survey = survey::take(cx)?;
    let plan = strategy::choose(&survey.facts, choice)?;
    Ok((plan, survey))
}

fn run_once(cx: &Context, request: &Request, tries: u32) -> Result<Manifest> {
    let began = Instant::now();
    let (plan, survey) = plan(cx, request.strategy)?;
    for warning in &plan.warnings {
        match warning.problem {
            true => tracing::error!("{}: {}", warning.what, warning.hint),
            false => tracing::warn!("{}: {}", warning.what, warning.hint),
        }
    }
    steps::reached("backup.planned")?;
    let mut attempt = Attempt::begin(cx, request, plan, survey, tries, began)?;
    match attempt.run() {
        Ok(manifest) => Ok(manifest),
        Err(error) => {
            attempt.undo();
            Err(error)
        }
    }
}

fn last_words(refusal: Refusal, made: u32) -> Refusal {
    match refusal {
        Refusal::LayoutChanged { difference } => {
            let difference = format!("{made} times in a row; the last time {difference}");
            Refusal::LayoutChanged { difference }
        }
        other => other,
    }
}
