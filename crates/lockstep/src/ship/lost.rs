//! What a host wrote that had stood still: the lease was another's by then.
//!
//! What could go wrong: the other one collected what nothing referred to yet, and a manifest or a descriptor that is
//! written then refers to what is gone. Before each of them the store is asked whose the lease is, but a virtual machine
//! may be stopped just behind the answer. So the store is asked behind the last one, too. Where the lease was lost it is
//! taken once more, and under it all is looked for that the set needs; a manifest whose set isn't whole is taken back.

use strata::manifest::DeltaId;

use super::lease::Held;
use super::{PATIENCE, remembered_deltas};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::whole::Wholeness;
use crate::repository::{Repository, Shipped};

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
    let again = Held::take(cx, repository, PATIENCE);
    let Some(why) = why_not_whole(cx, repository, shipped)? else {
        // Without it, somebody may be about to take away more.
        return again.map(drop).map_err(|_| lost);
    };
    repository.withdraw(shipped)?;
    Err(Error::failed(format!(
        "what set {} needs was collected by another host meanwhile ({why}), and its manifest was taken back",
        shipped.manifest.set
    )))
}

/// Why the deltas of a set that is there were replaced without an end: `error`, or that they aren't whole now.
pub(super) fn replaced(
    cx: &Context,
    repository: &Repository,
    there: &Shipped,
    error: Error,
) -> Error {
    match why_not_whole(cx, repository, there) {
        Ok(Some(why)) => {
            let set = &there.manifest.set;
            Error::failed(format!(
                "set {set} in repository \"{}\" isn't whole any more: {why}",
                repository.name
            ))
            .because(error)
            .with_hint(format!("`lockstep ship --full {set}` once more mends it"))
        }
        _ => error,
    }
}

/// What of all that the set needs is gone, or not as it was written.
fn why_not_whole(cx: &Context, repository: &Repository, set: &Shipped) -> Result<Option<String>> {
    let memory = remembered_deltas(cx, repository);
    let wholeness = Wholeness::new(repository, &memory);
    for DeltaId { image, id } in set.deltas() {
        if let Some(why) = wholeness.image(&image)?.why_not_whole(&id)? {
            return Ok(Some(why));
        }
    }
    Ok(None)
}
