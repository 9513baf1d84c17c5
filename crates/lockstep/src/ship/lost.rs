//! What a host wrote that had stood still: the lease was another's by then.
//!
//! What could go wrong: the other one collected what nothing referred to yet, and a manifest or a descriptor that is
//! written then refers to what is gone. Before each of them the store is asked whose the lease is, but a virtual machine
//! may be stopped just behind the answer. So the store is asked behind the last one, too. Where the lease was lost all is
//! looked for that the set needs, and a manifest whose set isn't whole is taken back: at once, for the other one may go on
//! for long, and this host may not live until then. What is there so far the other one may be about to take away; so
//! the lease is taken once more, and it is looked again under it. Where that can't be, the set isn't noted, and the next
//! shipment looks at it.
//!
//! And what is read while another one writes may look gone: a merge replaces a descriptor between the listing of its folder
//! and its reading. What two looks say alike is so: what a descriptor names was there before it, and never comes back.

use strata::manifest::DeltaId;

use super::{PATIENCE, remembered_deltas};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::lease::Held;
use crate::repository::whole::Wholeness;
use crate::repository::{Repository, Shipped};

/// Looks in a row, at most. While another host collects, each may find something else gone; the first delta that is gone
/// stays the first.
const LOOKS: u32 = 5;

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

/// Looks whether a set is whole that is there, and of which this host doesn't know that it ever was: the one that published
/// it may have been killed before it could look.
///
/// # Errors
/// That it isn't, or when the store fails.
pub(super) fn unknown(cx: &Context, repository: &Repository, there: &Shipped) -> Result<()> {
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

/// The same as [`why_not_whole`], where two looks in a row say so.
fn surely_not_whole(
    cx: &Context,
    repository: &Repository,
    set: &Shipped,
) -> Result<Option<String>> {
    agreed(|| why_not_whole(cx, repository, set))
}

/// What is wrong, once two looks in a row agree; nothing where a look finds nothing wrong, or they never do.
fn agreed(mut look: impl FnMut() -> Result<Option<String>>) -> Result<Option<String>> {
    let mut before = None;
    for _ in 0..LOOKS {
        let found = look()?;
        if found.is_none() || found == before {
            return Ok(found);
        }
        before = found;
    }
    Ok(None)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_is_what_two_looks_in_a_row_find_gone() {
        for (looks, expected) in [
            (&[None][..], None),
            // A merge between a listing and a read.
            (&[Some("x"), None], None),
            (&[Some("x"), Some("x")], Some("x")),
            (&[Some("x"), Some("y"), Some("y")], Some("y")),
            (&[Some("x"), Some("y"), Some("x"), Some("y"), Some("x")], None),
        ] {
            let mut said = looks.iter();
            let look = || Ok(said.next().expect("no more looks").map(str::to_owned));
            assert_eq!(agreed(look).unwrap().as_deref(), expected, "{looks:?}");
            assert_eq!(said.len(), 0, "{looks:?}");
        }
    }
}
