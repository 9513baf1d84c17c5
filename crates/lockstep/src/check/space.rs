//! Checks the pools: what makes a backup refuse and what deserves a warning before that, and what their disks have
//! lost.

use std::collections::BTreeSet;

use super::{Finding, failure, warning, wrong};
use crate::context::{Context, lockstep};
use crate::error::Result;
use crate::plan::facts::Facts;
use crate::process::quote;
use crate::volume::zfs::DatasetName;
use crate::words::bytes;

pub(super) const SUBJECT: &str = "space";
const POOL: &str = "pool";
/// In percent of a pool's size: with less left, ZFS itself gets slow.
const LITTLE_PERCENT: u128 = 10;

/// Checks what the pools of a cluster have left.
pub(super) fn of_pools(cx: &Context, facts: &Facts) -> Vec<Finding> {
    let pools: BTreeSet<_> = facts.layout.volumes.iter().map(|volume| volume.pool()).collect();
    let of_one = |pool| {
        let space = match sizes(cx, pool) {
            Ok((used, left)) => little(pool, used, left),
            Err(error) => Some(failure(SUBJECT, &error)),
        };
        let damage = match cx.zfs.data_errors(pool) {
            Ok(said) => said.map(|said| damaged(pool, &said)),
            Err(error) => Some(failure(POOL, &error)),
        };
        let read_only = cx.zfs.is_read_only(pool).then(|| read_only(pool));
        space.into_iter().chain(damage).chain(read_only)
    };
    pools.into_iter().flat_map(of_one).collect()
}

fn read_only(pool: &str) -> Finding {
    let pool = quote(pool);
    wrong(
        POOL,
        format!(
            "pool {pool} is imported read-only: no set can be taken, and none restored from snapshots"
        ),
        format!("`zpool export {pool}`, then `zpool import {pool}`"),
    )
}

/// Tells of blocks that no disk of a pool can give back; `said` are ZFS's own words.
fn damaged(pool: &str, said: &str) -> Finding {
    let pool = quote(pool);
    wrong(
        POOL,
        format!("pool {pool} has lost data: {said}"),
        format!(
            "`zpool status -v {pool}` names the files and snapshots: a set that has one of them can't be shipped; restore the cluster's files from a set before, and then `zpool scrub {pool}` forgets them"
        ),
    )
}

fn sizes(cx: &Context, pool: &str) -> Result<(u64, u64)> {
    let root = DatasetName::new(pool).map_err(crate::error::Error::failed)?;
    Ok((cx.zfs.bytes(&root, "used")?, cx.zfs.bytes(&root, "available")?))
}

fn little(pool: &str, used: u64, left: u64) -> Option<Finding> {
    let size = u128::from(used) + u128::from(left);
    let percent = (u128::from(left) * 100).checked_div(size)?;
    (percent < LITTLE_PERCENT).then(|| {
        warning(
            SUBJECT,
            format!("pool \"{pool}\" has {} left, {percent} % of it", bytes(left)),
            format!(
                "snapshots keep what is overwritten: keep fewer (`{} prune`), or give it more; a full pool makes PostgreSQL PANIC",
                lockstep()
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_which_little_is_left_is_told() {
        assert_eq!(little("tank", 90, 10), None);
        assert!(little("tank", 91, 9).unwrap().what.contains("9 % of it"));
        assert!(little("tank", u64::MAX, 0).is_some());
        assert_eq!(little("tank", 0, 0), None);
    }
}
