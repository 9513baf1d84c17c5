//! What a host wrote that had stood still: the lease was another's by then.
//!
//! What could go wrong: the other one collected what nothing referred to yet, and a manifest or a descriptor that is
//! written then refers to what is gone. Before each of them the store is asked whose the lease is, but a virtual machine
//! may be stopped just behind the answer. So the store is asked behind the last one, too. Where the lease was lost all is
//! looked for that the set needs, and a manifest whose set isn't whole is taken back: at once, for the other one may go on
//! for long, and this host may not live until then. What is there so far the other one may be about to take away; so
//! the lease is taken once more, and it is looked again under it. Where that can't be, the set isn't noted, and the next
//! shipment looks at it.

use super::PATIENCE;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::lease::Held;
use crate::repository::{Repository, Shipped, harm};

/// Looks whether a set is whole whose manifest was written when the lease was `lost`.
///
/// # Errors
/// That it isn't, and so isn't there any more; or `lost`, where that can't be told for good.
pub(super) fn published(
    cx: &Context,
    repository: &Repository,
    shipped: &Shipped,
    lost: Error,
) -> Result<()> {
    let look = || surely_not_whole(cx, repository, shipped);
    // A store that fails for now may answer once the lease was waited for.
    let Some(why) = look().unwrap_or_default() else {
        let _again = Held::take(cx, repository, PATIENCE).map_err(|_| lost)?;
        return look()?.map_or(Ok(()), |why| take_back(repository, shipped, &why));
    };
    take_back(repository, shipped, &why)
}

fn take_back(repository: &Repository, shipped: &Shipped, why: &str) -> Result<()> {
    repository.withdraw(shipped)?;
    Err(Error::failed(format!(
        "what set {} needs was collected by another host meanwhile ({why}), and its manifest was taken back",
        shipped.manifest.set
    )))
}

/// Looks whether a set is whole that is there. The one that published it may have been killed before it could look; and what
/// was there once the store may have lost.
///
/// # Errors
/// That it isn't, or when the store fails.
pub(super) fn there(cx: &Context, repository: &Repository, there: &Shipped) -> Result<()> {
    let why = surely_not_whole(cx, repository, there)?;
    why.map_or(Ok(()), |why| Err(not_whole(repository, there, "isn't whole", &why)))
}

fn not_whole(repository: &Repository, there: &Shipped, what: &str, why: &str) -> Error {
    let set = &there.manifest.set;
    Error::failed(format!("set {set} in repository \"{}\" {what}: {why}", repository.name))
        .with_hint(format!("`lockstep ship --full {set}` once more mends it"))
}

/// Why the deltas of a set that is there were replaced without an end: `error`, or that they aren't whole now.
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

/// What of all that the set needs is gone, where two looks in a row say so.
fn surely_not_whole(
    cx: &Context,
    repository: &Repository,
    set: &Shipped,
) -> Result<Option<String>> {
    let found = harm::surely(repository, &harm::memory(cx, repository), &[set])?;
    Ok(found.into_iter().next().map(|harm| harm.why))
}
