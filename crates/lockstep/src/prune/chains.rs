//! Which deltas of an image are merged once the sets that named them are gone: a pure function.
//!
//! A delta that no set names any more and that a later one still needs goes into the next one that a
//! set names. Where a chain has branched, it goes into each branch.

use std::collections::{BTreeMap, BTreeSet};

/// A delta as far as chains are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// What it changes.
    pub(super) base: Option<String>,
    /// Bytes of its index, which a merge reads.
    pub(super) bytes: u64,
}

/// Deltas to be merged into their last: neighbours, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merge {
    /// Their ids.
    pub(super) deltas: Vec<String>,
    /// Bytes of index that are read for it.
    pub(super) bytes: u64,
}

/// The merges of an image whose deltas are `links`, where sets name `heads`. The cheapest come first,
/// and none that makes all together read more than `budget` bytes.
pub(super) fn merges(
    links: &BTreeMap<String, Link>,
    heads: &BTreeSet<String>,
    budget: u64,
) -> Vec<Merge> {
    let mut all: Vec<_> = heads.iter().filter_map(|head| merge_into(links, heads, head)).collect();
    all.sort_by(|a, b| (a.bytes, &a.deltas).cmp(&(b.bytes, &b.deltas)));
    let mut left = budget;
    all.into_iter()
        .take_while(|merge| {
            let fits = merge.bytes <= left;
            left = left.saturating_sub(merge.bytes);
            fits
        })
        .collect()
}

fn merge_into(
    links: &BTreeMap<String, Link>,
    heads: &BTreeSet<String>,
    head: &str,
) -> Option<Merge> {
    let newest = links.get(head)?;
    let (mut deltas, mut bytes) = (vec![head.to_owned()], newest.bytes);
    let mut next = newest.base.as_ref();
    while let Some(id) = next.filter(|id| !heads.contains(*id) && !deltas.contains(id)) {
        let link = links.get(id)?;
        deltas.push(id.clone());
        bytes = bytes.saturating_add(link.bytes);
        next = link.base.as_ref();
    }
    deltas.reverse();
    (deltas.len() > 1).then_some(Merge { deltas, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `"b<a"`: b changes a; of so many bytes.
    fn links(all: &[(&str, u64)]) -> BTreeMap<String, Link> {
        let one = |(text, bytes): &(&str, u64)| {
            let (id, base) = text.split_once('<').map_or((*text, None), |(id, of)| (id, Some(of)));
            (id.to_owned(), Link { base: base.map(str::to_owned), bytes: *bytes })
        };
        all.iter().map(one).collect()
    }

    fn merged(all: &[(&str, u64)], heads: &[&str], budget: u64) -> Vec<String> {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        merges(&links(all), &heads, budget).iter().map(|merge| merge.deltas.join("+")).collect()
    }

    const CHAIN: [(&str, u64); 6] =
        [("a", 1000), ("b<a", 10), ("c<b", 20), ("d<c", 30), ("e<d", 40), ("f<e", 50)];

    #[test]
    fn what_no_set_names_goes_into_the_next_that_one_names() {
        assert_eq!(merged(&CHAIN, &["a", "b", "c", "d", "e", "f"], u64::MAX), Vec::<String>::new());
        assert_eq!(merged(&CHAIN, &["a", "d", "f"], u64::MAX), ["b+c+d", "e+f"]);
        // Of the first delta all is left: the next becomes whole.
        assert_eq!(merged(&CHAIN, &["c", "f"], u64::MAX), ["d+e+f", "a+b+c"]);
        // What comes after the last named one is nobody's base: it is collected.
        assert_eq!(merged(&CHAIN, &["a", "b"], u64::MAX), Vec::<String>::new());
        assert_eq!(merged(&CHAIN, &[], u64::MAX), Vec::<String>::new());
    }

    #[test]
    fn a_branch_takes_what_it_needs_from_before_it() {
        let tree = [("a", 1), ("b<a", 1), ("c<b", 1), ("d<c", 1), ("e<c", 1)];
        assert_eq!(merged(&tree, &["a", "d", "e"], u64::MAX), ["b+c+d", "b+c+e"]);
    }

    #[test]
    fn the_budget_takes_the_cheapest() {
        assert_eq!(merged(&CHAIN, &["c", "f"], 200), ["d+e+f"]);
        assert_eq!(merged(&CHAIN, &["c", "f"], 100), Vec::<String>::new());
    }

    #[test]
    fn a_chain_that_is_none_is_left_alone() {
        assert_eq!(merged(&[("b<a", 1), ("c<b", 1)], &["c"], u64::MAX), Vec::<String>::new());
        assert_eq!(merged(&[("a<b", 1), ("b<a", 1)], &["b"], u64::MAX), ["a+b"]);
    }
}
