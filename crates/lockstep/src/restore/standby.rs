//! A restore that becomes a standby: recovery goes on for ever, so what a restore's own server may do for
//! a while in its mount namespace this one does outside it.
//!
//! What could go wrong: a replayed CREATE TABLESPACE of a time after the restore, on the host of the
//! primary itself, whose folder it would share; a part of a cluster, which can't replay what happens to the rest.

use super::build::Build;
use super::placement::Placement;
use super::{Request, original};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::plan::refusal::Refusal;
use crate::postgres::instance;
use crate::postgres::server::{Outcome, Server};
use crate::set::manifest::Manifest;

/// Refuses what couldn't follow, and what would follow into the original's folders.
///
/// # Errors
/// [`Error::Usage`] for a part of a cluster; [`Refusal::StandbyBesideOriginal`].
pub(super) fn check(
    cx: &Context,
    request: &Request,
    manifest: &Manifest,
    placement: &Placement,
) -> Result<()> {
    if !request.only.is_all() {
        return Err(Error::usage(
            "a standby replays what happens to all of the cluster, and this would have a part of it",
            "leave out --standby, or restore all of the set",
        ));
    }
    for data in original::here(cx, manifest, placement) {
        if let Some(pid) = instance::postmaster(&data)? {
            return Err(Refusal::StandbyBesideOriginal { data, pid }.into());
        }
    }
    Ok(())
}

/// Whether a server that has ended had all that a restore waits for.
fn is_far_enough(server: &Server) -> bool {
    let is_consistent =
        server.said().iter().any(|line| line.contains("consistent recovery state reached"));
    is_consistent && server.lower_setting().is_none()
}

/// Waits until it is consistent and lets readers in. It goes on replaying meanwhile, and may end at what it can't replay
/// in its namespace.
pub(super) fn follow(build: &Build, server: &mut Server) -> Result<Outcome> {
    let waited = server.wait_for_standby(|words| tracing::info!("recovery: {words}"));
    match waited {
        Ok(()) => Ok(Outcome::Follows),
        // What comes after that place it is to replay outside its namespace, where a new tablespace's path is its own.
        Err(Error::Failed { .. }) if is_far_enough(server) => {
            tracing::info!(
                "it was consistent, and ended at what its namespace doesn't let it replay: it goes on outside"
            );
            Ok(Outcome::Follows)
        }
        Err(error) => Err(super::run_server::explain(build, server, error)),
    }
}
