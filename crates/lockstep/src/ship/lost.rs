//! Checks what a host wrote after it had stood still and another host had taken the lease.
//!
//! What could go wrong: the other host collected what nothing referred to yet, and a manifest or descriptor written
//! after that refers to what is gone. Before each of these writes the store is asked whose the lease is, but a
//! virtual machine may be stopped just after the answer. So the store is asked after the last write too.
//!
//! If the lease was lost, everything that the set needs is looked for, and a manifest whose set isn't whole is
//! withdrawn. This happens at once, because the other host may work for long, and this host may not live until then.
//! The other host may be about to remove what is still there, so the lease is taken once more, and everything is
//! looked for again under it. If it can't be taken, the set isn't noted, and the next shipment looks at it.

use super::PATIENCE;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::repository::lease::Held;
use crate::repository::{Repository, Shipped, harm};

/// Checks that a set is whole whose manifest was written when the lease was `lost`.
///
/// # Errors
/// When it isn't whole, and so isn't there any more; or `lost`, if that can't be said for certain.
pub(super) fn published(
    cx: &Context,
    repository: &Repository,
    shipped: &Shipped,
    lost: Error,
) -> Result<()> {
    let look = || surely_not_whole(cx, repository, shipped);
    // A store that fails for now may answer once the wait for the lease is over.
    let Some(why) = look().unwrap_or_default() else {
        let _again = Held::take(cx, repository, PATIENCE).map_err(|_| lost)?;
        return look()?.map_or(Ok(()), |why| take_back(repository, shipped, &why));
    };
    take_back(repository, shipped, &why)
}

fn take_back(repository: &Repository, shipped: &Shipped, why: &str) -> Result<()> {
    repository.withdraw(shipped)?;
    Err(Error::failed(format!(
        "what set {} needs was collected by another host meanwhile ({why}), so its manifest was withdrawn",
        shipped.manifest.set
    )))
}

/// Checks that a set that is there is whole. The host that published it may have been killed before it could look,
/// and the store may have lost something since.
///
/// # Errors
/// When it isn't whole, or the store fails.
pub(super) fn there(cx: &Context, repository: &Repository, there: &Shipped) -> Result<()> {
    let why = surely_not_whole(cx, repository, there)?;
    why.map_or(Ok(()), |why| Err(not_whole(repository, there, "isn't whole", &why)))
}

fn not_whole(repository: &Repository, there: &Shipped, what: &str, why: &str) -> Error {
    let set = &there.manifest.set;
    Error::failed(format!("set {set} in repository \"{}\" {what}: {why}", repository.name))
        .with_hint(format!("run `{} ship --full {set}` again: it repairs the set", lockstep()))
}

/// Returns why replacing the deltas of an existing set didn't finish: `error`, or that they aren't whole now.
pub(super) fn replaced(
    cx: &Context,
    repository: &Repository,
    there: &Shipped,
    error: Error,
) -> Error {
    match surely_not_whole(cx, repository, there) {
        Ok(Some(why)) => not_whole(repository, there, "isn't whole any more", &why).because(error),
        _ => error,
    }
}

/// Returns what is missing of everything that the set needs, if two looks in a row agree.
fn surely_not_whole(
    cx: &Context,
    repository: &Repository,
    set: &Shipped,
) -> Result<Option<String>> {
    let found = harm::surely(repository, &harm::memory(cx, repository), &[set])?;
    Ok(found.into_iter().next().map(|harm| harm.why))
}
