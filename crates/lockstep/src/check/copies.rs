//! Repositories that have one id: one was made by copying the other, or both are one (`repository/twice.rs`).
//!
//! What could go wrong: once a repository has another name, this host finds its notes about it by the repository's
//! id, and then can't tell them from a copy's notes.

use std::collections::BTreeMap;

use super::{Finding, warning};
use crate::context::{Context, lockstep};
use crate::repository::seen;

fn hint() -> String {
    format!(
        "as long as both keep their names, what was shipped to each is known; one that gets another name may be taken for the other: begin a second repository with `{0} repo init NAME` and `{0} ship --missing --repository NAME` instead",
        lockstep()
    )
}

/// Returns the cluster's repositories that were copied, as far as they answered: its other checks have asked them.
pub(super) fn find(cx: &Context) -> Vec<Finding> {
    let id = |name: &String| Some((name.clone(), seen::id_of(cx, name)?));
    of_one_id(cx.cluster.repositories.iter().filter_map(id))
}

/// A pure function of names and ids.
fn of_one_id(all: impl Iterator<Item = (String, String)>) -> Vec<Finding> {
    let mut by_id: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, id) in all {
        let names = by_id.entry(id).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let several = by_id.into_iter().filter(|(_, names)| names.len() > 1);
    several
        .map(|(id, names)| {
            let names = names.join(" and ");
            warning(
                "repositories",
                format!("{names} have one id, {id}: one is a copy of the other, or both are one"),
                hint(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_named_with_what_it_was_copied_from() {
        let of = |all: &[(&str, &str)]| {
            let all = all.iter().map(|(name, id)| ((*name).to_owned(), (*id).to_owned()));
            of_one_id(all).into_iter().map(|finding| finding.what).collect::<Vec<_>>()
        };
        assert!(of(&[("near", "a"), ("far", "b"), ("near", "a")]).is_empty());
        let found = of(&[("near", "a"), ("far", "a"), ("other", "b")]);
        assert_eq!(
            found,
            ["near and far have one id, a: one is a copy of the other, or both are one"]
        );
    }
}
