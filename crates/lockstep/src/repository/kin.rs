//! Which sets in a cluster's part of a repository belong to one cluster, by PostgreSQL's system identifier.
//!
//! What could go wrong: two clusters have the same name in their configurations and ship to the same place. Then one
//! restores the other's data and prunes its sets. So a set is shipped only onto sets with its own identifier, and
//! whatever removes or chooses sets by itself looks at these alone. A cluster's identifier changes with pg_upgrade
//! and with a dump and restore; the configuration says so (`formerly`), and so does each set that is shipped from
//! then on.

use std::collections::BTreeSet;

use pgfiles::lsn::SystemIdentifier;

use super::{Repository, Shipped};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::refusal::Refusal;
use crate::set::manifest::Manifest;

/// What this host knows about which cluster it has.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The identifier in the pg_control of `data_directory`; none if that can't be read. It counts more than older
    /// sets, because the cluster may be another one by now.
    pub live: Option<SystemIdentifier>,
    /// The identifier of its newest set; none if it has no set.
    pub of_sets: Option<SystemIdentifier>,
    /// The identifiers that the cluster had before, according to the configuration.
    pub formerly: Vec<SystemIdentifier>,
}

impl Identity {
    /// Returns the identity of the context's cluster.
    ///
    /// # Errors
    /// When this host's sets can't be listed.
    pub fn here(cx: &Context) -> Result<Self> {
        cx.state.sets().map(|(sets, _)| Self::of(cx, &sets))
    }

    /// The same, from this host's sets, oldest first.
    #[must_use]
    pub fn of(cx: &Context, sets: &[Manifest]) -> Self {
        let control = cx.control().ok();
        Self {
            live: control.map(|control| control.system_identifier),
            of_sets: sets.last().map(|newest| newest.postgres.system_identifier),
            formerly: cx.cluster.formerly.clone(),
        }
    }

    /// Checks that anything tells which cluster it is.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.now().is_some() || !self.formerly.is_empty()
    }

    fn now(&self) -> Option<SystemIdentifier> {
        self.live.or(self.of_sets)
    }
}

/// The identifiers of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kin(BTreeSet<SystemIdentifier>);

impl Kin {
    /// Returns the cluster whose sets are meant if none is named: this host's, or the newest set's if this host knows
    /// none.
    #[must_use]
    pub fn of(identity: &Identity, sets: &[Shipped]) -> Self {
        let newest = || sets.last().map(id_of);
        let now = if identity.is_known() { identity.now() } else { newest() };
        Self::around(now, &identity.formerly, sets)
    }

    fn around(
        now: Option<SystemIdentifier>,
        formerly: &[SystemIdentifier],
        sets: &[Shipped],
    ) -> Self {
        let known: BTreeSet<_> = now.into_iter().chain(formerly.iter().copied()).collect();
        let mut all = known.clone();
        for family in families(sets).into_iter().filter(|family| !family.is_disjoint(&known)) {
            all.extend(family);
        }
        Self(all)
    }

    /// Returns the cluster of one set, with every identifier that the configuration or another set names together
    /// with its own. A pure function.
    #[must_use]
    pub fn of_set(set: &Shipped, identity: &Identity, others: &[Shipped]) -> Self {
        let configured = identity.now().into_iter().chain(identity.formerly.iter().copied());
        let known = others.iter().chain([set]).map(identifiers).chain([configured.collect()]);
        let all = grouped(known).into_iter().find(|one| one.contains(&id_of(set)));
        Self(all.unwrap_or_default())
    }

    /// Checks that a set belongs to the cluster.
    #[must_use]
    pub fn has(&self, set: &Shipped) -> bool {
        self.has_identifier(id_of(set))
    }

    /// The same for a set's system identifier.
    #[must_use]
    pub fn has_identifier(&self, identifier: SystemIdentifier) -> bool {
        self.0.contains(&identifier)
    }

    /// Returns all of them.
    pub fn identifiers(&self) -> impl Iterator<Item = SystemIdentifier> {
        self.0.iter().copied()
    }
}

fn id_of(set: &Shipped) -> SystemIdentifier {
    set.manifest.postgres.system_identifier
}

/// Groups the identifiers that occur, those of one cluster together.
fn families(sets: &[Shipped]) -> Vec<BTreeSet<SystemIdentifier>> {
    grouped(sets.iter().map(identifiers))
}

/// Returns a set's identifiers, the former ones too.
fn identifiers(set: &Shipped) -> BTreeSet<SystemIdentifier> {
    set.formerly.iter().copied().chain([id_of(set)]).collect()
}

/// Unites those that have an identifier in common.
fn grouped(
    known: impl Iterator<Item = BTreeSet<SystemIdentifier>>,
) -> Vec<BTreeSet<SystemIdentifier>> {
    let mut all: Vec<BTreeSet<SystemIdentifier>> = Vec::new();
    for mut one in known {
        all.retain(|other| {
            let is_another = other.is_disjoint(&one);
            if !is_another {
                one.extend(other);
            }
            is_another
        });
        all.push(one);
    }
    all
}

/// Returns the former identifiers to record in a set that is about to be shipped, if it may come after the newest one
/// there. A pure function.
///
/// # Errors
/// [`Refusal::AnotherCluster`] when the newest set belongs to another cluster.
pub fn formerly(
    manifest: &Manifest,
    newest: Option<&Shipped>,
    configured: &[SystemIdentifier],
    repository: &str,
) -> Result<Vec<SystemIdentifier>> {
    let Some(newest) = newest else { return Ok(Vec::new()) };
    let (own, found) = (manifest.postgres.system_identifier, id_of(newest));
    // An older set that arrives late is part of the cluster's history. A newer one would belong to a cluster that was
    // given up.
    let is_late = newest.formerly.contains(&own) && manifest.set < newest.manifest.set;
    if own != found && !is_late && !configured.contains(&found) {
        return Err(Refusal::AnotherCluster {
            cluster: manifest.cluster.to_string(),
            repository: repository.to_owned(),
            set: newest.manifest.set.to_string(),
            found,
            own,
        }
        .into());
    }
    let all: BTreeSet<_> = newest.formerly.iter().copied().chain([found]).collect();
    Ok(all.into_iter().filter(|before| *before != own).collect())
}

/// The refusal to remove sets by a policy when nobody can tell whose they are.
pub fn nobodys(cx: &Context, repository: &str) -> Error {
    let control = cx.control();
    let why = control.err().map_or_else(String::new, |error| error.chain());
    let (cluster, repository) = (cx.name.to_string(), repository.to_owned());
    Refusal::WhoseSets { cluster, repository, why }.into()
}

/// What to do about sets of another cluster.
#[must_use]
pub fn hint(cluster: &str, found: SystemIdentifier) -> String {
    format!(
        "another cluster is called \"{cluster}\" in this repository: give one of the two another name in its configuration, or another url; `{} prune --repository NAME --set ID` removes sets that are no longer wanted. If it is this cluster, from before pg_upgrade or a dump and restore: formerly = [\"{found}\"] in [clusters.{cluster}]",
        lockstep()
    )
}

impl Repository {
    /// Returns the cluster whose sets are meant if none is named.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are no sets of it, or it isn't clear which cluster is meant; when the store fails.
    pub fn kin(&self, cx: &Context) -> Result<Kin> {
        let identity = Identity::here(cx)?;
        if let Some(newest) = self.newest_if_of(&identity) {
            return Ok(Kin::of(&identity, &[newest]));
        }
        let (sets, _) = self.sets()?;
        meant(&identity, &sets, &self.name)
    }

    /// Returns the cluster of a set. The newest set names all identifiers that the cluster had before.
    ///
    /// # Errors
    /// When this host's sets can't be listed.
    pub fn kin_of(&self, cx: &Context, set: &Shipped) -> Result<Kin> {
        // If the newest can't be read, what the set itself and the configuration say has to do.
        let newest = self.newest().ok().flatten();
        Ok(Kin::of_set(set, &Identity::here(cx)?, newest.as_slice()))
    }

    /// Returns the newest set if it can be read and belongs to this host's cluster. Nearly always it does: then it
    /// says everything there is to say, and the others needn't be read.
    pub(super) fn newest_if_of(&self, identity: &Identity) -> Option<Shipped> {
        let newest = self.newest().ok()??;
        (identity.now() == Some(id_of(&newest))).then_some(newest)
    }
}

pub(crate) fn meant(identity: &Identity, sets: &[Shipped], repository: &str) -> Result<Kin> {
    let families = families(sets);
    // The data directory may be new because the cluster was lost, or because a package was installed.
    let (live, of_sets) = (identity.live, identity.of_sets);
    for now in [live, of_sets] {
        let kin = Kin::around(now, &identity.formerly, sets);
        if sets.iter().any(|set| kin.has(set)) {
            return Ok(kin);
        }
    }
    let has_none = of_sets.is_none() && identity.formerly.is_empty();
    if let ([only], true) = (&families[..], has_none) {
        if let Some(live) = live {
            tracing::warn!(
                "the sets of repository \"{repository}\" are of another cluster than what is in data_directory, whose system identifier is {live}"
            );
        }
        return Ok(Kin(only.clone()));
    }
    if sets.is_empty() {
        return Ok(Kin::of(identity, sets));
    }
    let newest = families.iter().filter_map(|family| {
        let set = sets.iter().rev().find(|set| family.contains(&id_of(set)))?;
        Some(format!("{} (system identifier {})", set.manifest.set, id_of(set)))
    });
    let newest: Vec<_> = newest.collect();
    let what = match identity.now() {
        Some(now) => format!(
            "repository \"{repository}\" has no set of this host's cluster, whose system identifier is {now}"
        ),
        None => format!("repository \"{repository}\" has sets of {} clusters", families.len()),
    };
    Err(Error::usage(
        what,
        format!("name the set; the newest of each cluster: {}", newest.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::manifest;

    fn id(text: &str) -> SystemIdentifier {
        text.parse().unwrap()
    }

    fn set(day: u32, identifier: &str, formerly: &[&str]) -> Shipped {
        let mut manifest = manifest(&format!("202611{day:02}T000000Z-aaaa"), vec![]);
        manifest.postgres.system_identifier = id(identifier);
        let formerly = formerly.iter().copied().map(id).collect();
        Shipped { formerly, ..Shipped::new(manifest, vec![]) }
    }

    fn identity(of_sets: Option<&str>, formerly: &[&str]) -> Identity {
        let formerly = formerly.iter().copied().map(id).collect();
        Identity { live: None, of_sets: of_sets.map(id), formerly }
    }

    #[test]
    fn a_set_comes_after_its_own_cluster_s_alone() {
        let ship = |set: &Shipped, newest: &Shipped, configured: &[&str]| {
            let configured: Vec<_> = configured.iter().copied().map(id).collect();
            let told = formerly(&set.manifest, Some(newest), &configured, "offsite");
            told.map(|ids| ids.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let old = set(3, "1", &[]);
        assert_eq!(ship(&set(4, "1", &[]), &old, &[]).unwrap(), [""; 0]);
        let error = ship(&set(4, "2", &[]), &old, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.hint().unwrap().contains("formerly = [\"1\"]"), "{:?}", error.hint());
        // pg_upgrade, which the configuration names; and each later set says so.
        assert_eq!(ship(&set(4, "2", &[]), &old, &["1"]).unwrap(), ["1"]);
        let upgraded = set(4, "2", &["1"]);
        assert_eq!(ship(&set(5, "2", &[]), &upgraded, &[]).unwrap(), ["1"]);
        assert_eq!(ship(&set(5, "3", &[]), &upgraded, &["2"]).unwrap(), ["1", "2"]);
        // A set from before that arrives late is accepted; one of a cluster that still runs next to it isn't, unless
        // configured.
        assert_eq!(ship(&old, &upgraded, &[]).unwrap(), ["2"]);
        ship(&set(5, "1", &[]), &upgraded, &[]).unwrap_err();
        assert_eq!(ship(&set(5, "1", &[]), &upgraded, &["2"]).unwrap(), ["2"]);
    }

    #[test]
    fn what_is_meant_is_this_host_s_cluster_or_the_only_one() {
        let two = [set(1, "1", &[]), set(2, "9", &[]), set(3, "2", &["1"]), set(4, "9", &[])];
        let days = |kin: &Kin| -> Vec<usize> {
            (1..=two.len()).filter(|day| kin.has(&two[day - 1])).collect()
        };
        assert_eq!(days(&meant(&identity(Some("2"), &[]), &two, "r").unwrap()), [1, 3]);
        assert_eq!(days(&meant(&identity(Some("9"), &[]), &two, "r").unwrap()), [2, 4]);
        assert_eq!(days(&meant(&identity(Some("3"), &["2"]), &two, "r").unwrap()), [1, 3]);
        for unclear in [identity(None, &[]), identity(Some("3"), &[])] {
            let error = meant(&unclear, &two, "r").unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            let hint = error.hint().unwrap();
            for set in &two[2..] {
                assert!(hint.contains(set.manifest.set.as_str()), "{hint}");
            }
        }
        let one = [set(1, "1", &[]), set(3, "2", &["1"])];
        assert!(meant(&identity(None, &[]), &one, "r").unwrap().has(&one[0]));
        meant(&identity(Some("9"), &[]), &one, "r").unwrap_err();
        meant(&identity(None, &[]), &[], "r").unwrap();
    }

    #[test]
    fn what_is_in_the_data_directory_counts_more_than_older_sets() {
        let live = |live: &str, of_sets: Option<&str>, formerly: &[&str]| Identity {
            live: Some(id(live)),
            ..identity(of_sets, formerly)
        };
        let two = [set(1, "1", &[]), set(2, "9", &[]), set(3, "2", &["1"])];
        let days = |kin: &Kin| -> Vec<usize> {
            (1..=two.len()).filter(|day| kin.has(&two[day - 1])).collect()
        };
        // On a host without a set, a policy applies to its own cluster only.
        assert_eq!(days(&Kin::of(&live("9", None, &[]), &two)), [2]);
        assert_eq!(days(&Kin::of(&live("5", None, &[]), &two)), [0; 0]);
        assert_eq!(days(&Kin::of(&live("5", Some("9"), &[]), &two)), [0; 0]);
        assert_eq!(days(&Kin::of(&live("5", Some("9"), &["2"]), &two)), [1, 3]);
        assert_eq!(days(&Kin::of(&identity(None, &[]), &two)), [1, 3], "nothing is known");
        assert!(!identity(None, &[]).is_known() && live("5", None, &[]).is_known());
        // But a new cluster created where the old one was lost isn't what a restore is looking for.
        assert_eq!(days(&meant(&live("9", None, &[]), &two, "r").unwrap()), [2]);
        assert_eq!(days(&meant(&live("5", Some("9"), &[]), &two, "r").unwrap()), [2]);
        let error = meant(&live("5", None, &[]), &two, "r").unwrap_err();
        assert!(error.chain().contains("whose system identifier is 5"), "{error}");
        let one = [set(1, "1", &[]), set(3, "2", &["1"])];
        assert!(meant(&live("5", None, &[]), &one, "r").unwrap().has(&one[0]));
        meant(&live("5", Some("6"), &[]), &one, "r").unwrap_err();
    }

    #[test]
    fn a_set_of_before_pg_upgrade_is_kin_to_what_came_later() {
        let (old, new) = (set(1, "1", &[]), set(2, "2", &["1"]));
        let kin = |set: &Shipped, identity: &Identity, others: &[Shipped]| {
            let kin = Kin::of_set(set, identity, others);
            [1, 2, 3].map(|n| kin.has_identifier(id(&n.to_string())))
        };
        let nothing = identity(None, &[]);
        assert_eq!(kin(&old, &nothing, &[]), [true, false, false]);
        assert_eq!(kin(&new, &nothing, &[]), [true, true, false]);
        assert_eq!(kin(&old, &nothing, std::slice::from_ref(&new)), [true, true, false]);
        // The next upgrade: the newest set names both.
        assert_eq!(kin(&old, &nothing, &[set(3, "3", &["1", "2"])]), [true; 3]);
        assert_eq!(kin(&old, &identity(Some("2"), &["1"]), &[]), [true, true, false]);
        // Another cluster that has this name is no kin, nor is this host's if nothing says so.
        assert_eq!(kin(&old, &identity(Some("3"), &[]), &[set(2, "2", &[])]), [true, false, false]);
        assert_eq!(kin(&old, &identity(Some("3"), &["2"]), &[]), [true, false, false]);
    }
}
