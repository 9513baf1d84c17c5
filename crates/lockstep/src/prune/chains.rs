//! Decides which deltas of an image to merge once the sets that named them are gone: a pure function.
//!
//! A delta that no set names any more and that a later one still needs is merged into the next one that a set names.
//! If a chain has branched, it goes into each branch.
//!
//! A merge holds something of each of its deltas in memory, so many deltas are merged in rounds: first neighbours
//! into the last of them, which no set names, and in the end the rest into the delta that a set names. Each merge
//! leaves everything consistent, so pruning may stop after any of them, and the next prune continues.

use std::collections::{BTreeMap, BTreeSet};

/// A delta as far as chains are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// The delta that it changes.
    pub(super) base: Option<String>,
    /// The size of its index, which a merge reads.
    pub(super) bytes: u64,
}

/// Neighbouring deltas to merge into the last of them, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merge {
    /// Their ids.
    pub(super) deltas: Vec<String>,
    /// How many bytes of index the merge reads.
    pub(super) bytes: u64,
}

/// Returns one round of merges of an image whose deltas are `links` and of which sets name `heads`, each of at most
/// `most` deltas. The cheapest come first, and together they read no more than `budget` bytes. After it, another
/// round may follow; the round that finds none is the last.
pub(super) fn merges(
    links: &BTreeMap<String, Link>,
    heads: &BTreeSet<String>,
    most: usize,
    budget: u64,
) -> Vec<Merge> {
    let runs = heads.iter().filter_map(|head| run_into(links, heads, head));
    let mut all: Vec<_> = runs.flat_map(|run| batches(links, &run, most.max(2))).collect();
    all.sort_by(|a, b| (a.bytes, &a.deltas).cmp(&(b.bytes, &b.deltas)));
    // Branches share what is before them.
    all.dedup();
    let mut left = budget;
    all.into_iter()
        .take_while(|merge| {
            let fits = merge.bytes <= left;
            left = left.saturating_sub(merge.bytes);
            fits
        })
        .collect()
}

/// Returns a head and what is merged into it, oldest first.
fn run_into(
    links: &BTreeMap<String, Link>,
    heads: &BTreeSet<String>,
    head: &str,
) -> Option<Vec<String>> {
    let mut deltas = vec![head.to_owned()];
    let mut seen = BTreeSet::from([head]);
    let mut next = links.get(head)?.base.as_ref();
    while let Some(id) = next.filter(|id| !heads.contains(*id) && seen.insert(id)) {
        deltas.push(id.clone());
        next = links.get(id)?.base.as_ref();
    }
    deltas.reverse();
    (deltas.len() > 1).then_some(deltas)
}

/// Returns which deltas of a run are merged in this round.
fn batches(links: &BTreeMap<String, Link>, run: &[String], most: usize) -> Vec<Merge> {
    let merge = |deltas: &[String]| {
        let bytes = deltas.iter().filter_map(|id| links.get(id)).map(|link| link.bytes);
        Merge { deltas: deltas.to_vec(), bytes: bytes.fold(0, u64::saturating_add) }
    };
    match run {
        // The oldest may be the full one, many times as large as the others: it is merged once, at the end.
        [_, younger @ ..] if run.len() > most => {
            let batches = younger.chunks(most).filter(|batch| batch.len() > 1);
            batches.map(merge).collect()
        }
        _ => vec![merge(run)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `"b<a"` means that b changes a; with its size in bytes.
    fn links(all: &[(&str, u64)]) -> BTreeMap<String, Link> {
        let one = |(text, bytes): &(&str, u64)| {
            let (id, base) = text.split_once('<').map_or((*text, None), |(id, of)| (id, Some(of)));
            (id.to_owned(), Link { base: base.map(str::to_owned), bytes: *bytes })
        };
        all.iter().map(one).collect()
    }

    fn merged(all: &[(&str, u64)], heads: &[&str], budget: u64) -> Vec<String> {
        batched(&links(all), heads, 64, budget)
    }

    fn batched(
        links: &BTreeMap<String, Link>,
        heads: &[&str],
        most: usize,
        budget: u64,
    ) -> Vec<String> {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        merges(links, &heads, most, budget).iter().map(|merge| merge.deltas.join("+")).collect()
    }

    const CHAIN: [(&str, u64); 6] =
        [("a", 1000), ("b<a", 10), ("c<b", 20), ("d<c", 30), ("e<d", 40), ("f<e", 50)];

    #[test]
    fn what_no_set_names_goes_into_the_next_that_one_names() {
        assert_eq!(merged(&CHAIN, &["a", "b", "c", "d", "e", "f"], u64::MAX), Vec::<String>::new());
        assert_eq!(merged(&CHAIN, &["a", "d", "f"], u64::MAX), ["b+c+d", "e+f"]);
        // Everything of the first delta is still needed: the next one becomes full.
        assert_eq!(merged(&CHAIN, &["c", "f"], u64::MAX), ["d+e+f", "a+b+c"]);
        // Nothing is based on what comes after the last named one: it is collected.
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
    fn a_long_run_is_merged_in_rounds_and_its_oldest_last() {
        let mut links = links(&CHAIN);
        let round = |links: &_| batched(links, &["f"], 2, u64::MAX);
        assert_eq!(round(&links), ["b+c", "d+e"]);
        // The state that the merges leave.
        links.get_mut("c").unwrap().base = Some("a".into());
        links.get_mut("e").unwrap().base = Some("c".into());
        assert_eq!(round(&links), ["c+e"]);
        links.get_mut("e").unwrap().base = Some("a".into());
        assert_eq!(round(&links), ["e+f"]);
        links.get_mut("f").unwrap().base = Some("a".into());
        assert_eq!(round(&links), ["a+f"]);
        links.get_mut("f").unwrap().base = None;
        assert_eq!(round(&links), Vec::<String>::new());
    }

    #[test]
    fn rounds_grow_with_the_logarithm_and_no_delta_is_read_more_often() {
        let id = |at: u32| format!("{at:05}");
        let base = |at: u32| at.checked_sub(1).map(id);
        let mut links: BTreeMap<_, _> =
            (0..8760).map(|at| (id(at), Link { base: base(at), bytes: 10 })).collect();
        links.get_mut(&id(0)).unwrap().bytes = 1_000_000;
        let heads = BTreeSet::from([id(8759)]);
        let mut reads = Vec::new();
        loop {
            let round = merges(&links, &heads, 64, u64::MAX);
            if round.is_empty() {
                break;
            }
            reads.push(round.iter().map(|merge| merge.bytes).sum::<u64>());
            for merge in round {
                assert!((2..=64).contains(&merge.deltas.len()));
                let base = links[&merge.deltas[0]].base.clone();
                let into = links.get_mut(merge.deltas.last().unwrap()).unwrap();
                // At worst, as large as all of them.
                (into.base, into.bytes) = (base, merge.bytes);
            }
        }
        assert_eq!(reads, [87_590, 87_590, 1_087_590]);
    }

    #[test]
    fn branches_share_the_rounds_of_what_is_before_them() {
        let tree = [("a", 1), ("b<a", 1), ("c<b", 1), ("d<c", 1), ("e<d", 1), ("f<d", 1)];
        let merged = batched(&links(&tree), &["e", "f"], 2, u64::MAX);
        assert_eq!(merged, ["b+c", "d+e", "d+f"]);
    }

    #[test]
    fn a_chain_that_is_none_is_left_alone() {
        assert_eq!(merged(&[("b<a", 1), ("c<b", 1)], &["c"], u64::MAX), Vec::<String>::new());
        assert_eq!(merged(&[("a<b", 1), ("b<a", 1)], &["b"], u64::MAX), ["a+b"]);
    }
}
