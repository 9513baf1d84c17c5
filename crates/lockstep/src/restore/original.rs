//! The cluster that a set is of, if it is on this host. A restored one next to it must not take its changes, nor
//! replay into its folders.
//!
//! What could go wrong: for a drill, a configuration on the original's host whose data_directory names the restore's
//! target. So the original is also looked for where the set was taken.

use std::path::{Path, PathBuf};

use super::placement::Placement;
use crate::context::Context;
use crate::postgres::instance;
use crate::set::manifest::Manifest;

/// Returns the data directories in which it may be, except the restored one: the configuration's, and the one that
/// the set was taken from, if that still belongs to the same cluster. One on a suspended pool is taken for it, and
/// mustn't be touched.
pub(super) fn here(cx: &Context, manifest: &Manifest, placement: &Placement) -> Vec<PathBuf> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let target = real(&placement.data);
    let is_suspended = |data: &Path| cx.zfs.suspended_at(data).is_some();
    let is_there = |data: &Path| {
        is_suspended(data)
            || data.join("PG_VERSION").exists() && (target.is_none() || real(data) != target)
    };
    let postgres = &manifest.postgres;
    let is_same = |data: &Path| {
        let control = || instance::read_control(data);
        is_suspended(data)
            || control().is_ok_and(|it| it.system_identifier == postgres.system_identifier)
    };
    let configured = Some(&cx.cluster.data_directory).filter(|data| is_there(data));
    let taken_from = Some(&postgres.data_directory).filter(|data| is_there(data) && is_same(data));
    let mut all: Vec<_> = configured.into_iter().chain(taken_from).cloned().collect();
    all.dedup();
    all
}
