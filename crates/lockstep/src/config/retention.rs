//! `[clusters.NAME.retention]`: which sets `prune` keeps, on this host and in each repository.
//!
//! What could go wrong: a policy that is empty by mistake would mean "delete everything". So no policy at all means
//! that `prune` touches nothing there, and one that keeps nothing is refused.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::Deserialize;

use super::table::from_tables;
use crate::context::lockstep;
use crate::retention::Policy;

/// Which sets are kept where.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RetentionConfig {
    /// For the snapshots on this host.
    pub local: Option<Policy>,
    /// For every repository that isn't in `repositories`.
    pub repository: Option<Policy>,
    /// For single repositories by name, instead of `repository`.
    #[serde(default)]
    pub repositories: BTreeMap<String, Policy>,
    /// The time zone of hours, days, weeks, months and years, such as `Europe/Berlin`; UTC if left out.
    pub timezone: Option<String>,
}

from_tables!(RetentionConfig);

impl RetentionConfig {
    /// The policy of a repository.
    #[must_use]
    pub fn of_repository(&self, name: &str) -> Option<&Policy> {
        self.repositories.get(name).or(self.repository.as_ref())
    }

    /// What to do where a cluster has no policy for the places of this key.
    #[must_use]
    pub fn hint(cluster: impl std::fmt::Display, key: &str) -> String {
        format!(
            "say what is kept, such as clusters.{cluster}.retention.{key} = {}: `{} prune --dry-run` shows what would go",
            Self::example(key),
            lockstep()
        )
    }

    /// A policy for the places of this key. It is typed as it is, where sets of a year may have piled up: so it goes by
    /// days, whatever the interval between two backups.
    fn example(key: &str) -> &'static str {
        match key {
            "local" => "{ within = '3d', daily = 7 }",
            _ => "{ within = '7d', daily = 14, monthly = 12 }",
        }
    }

    /// The time zone of calendar periods.
    ///
    /// # Errors
    /// When this machine doesn't know it.
    pub fn time_zone(&self) -> Result<TimeZone, String> {
        match &self.timezone {
            None => Ok(TimeZone::UTC),
            Some(name) => TimeZone::get(name).map_err(|e| format!("timezone \"{name}\": {e}")),
        }
    }

    /// Checks the values; the error begins with the key's name.
    ///
    /// # Errors
    /// The first invalid value, in words.
    pub fn check(&self) -> Result<(), String> {
        let of = |name: String, policy: &Policy| match (
            policy.keeps_nothing(),
            policy.keep.is_empty(),
        ) {
            (true, true) => Err(format!("{name} keeps nothing: every set would be removed")),
            (true, false) => Err(format!(
                "{name} keeps only the sets that match keep, and no newest one: add last = 1"
            )),
            (false, _) => Ok(()),
        };
        self.local.iter().try_for_each(|policy| of("local".into(), policy))?;
        self.repository.iter().try_for_each(|policy| of("repository".into(), policy))?;
        for (name, policy) in &self.repositories {
            of(format!("repositories.{name}"), policy)?;
        }
        self.time_zone().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RetentionConfig, String> {
        let config: RetentionConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn a_repository_of_its_own_comes_before_all() {
        let config = read(
            "local = { last = 6, within = '36h' }\nrepository = { daily = 14 }\n\
             repositories.far = { monthly = 3 }\ntimezone = 'Europe/Berlin'",
        )
        .unwrap();
        assert_eq!(config.of_repository("near").unwrap().daily, 14);
        assert_eq!(config.of_repository("far").unwrap().monthly, 3);
        assert_eq!(config.local.unwrap().within.unwrap().to_string(), "36h");
        assert!(read("").unwrap().of_repository("near").is_none());
    }

    #[test]
    fn examples_are_good_and_keep_no_mere_number_of_sets() {
        for key in ["local", "repository"] {
            let config = read(&format!("{key} = {}", RetentionConfig::example(key))).unwrap();
            let policy = config.local.or(config.repository).unwrap();
            assert!(policy.last == 0 && policy.within.is_some() && policy.daily >= 7, "{key}");
        }
    }

    #[test]
    fn what_keeps_nothing_and_what_is_not_known_is_refused() {
        for (text, word) in [
            ("local = {}", "local keeps nothing"),
            ("repository = { last = 0, daily = 0 }", "repository keeps nothing"),
            ("repositories.far = { yearly = 0 }", "repositories.far keeps nothing"),
            ("local = { keep = ['before-*'] }", "add last = 1"),
            ("local = { lst = 6 }", "lst"),
            ("locl = { last = 6 }", "locl"),
            ("local = [1]", "invalid type: sequence, expected a table"),
            ("local = []", "expected a table"),
            ("repositories.far = [1]", "expected a table"),
            ("repository = 7", "expected a table"),
            ("local = { last = -1 }", "-1"),
            ("local = { within = '0d' }", "0d"),
            ("local = { within = 'a week' }", "a week"),
            ("local = { within = '7' }", "7"),
            ("timezone = 'Mars/Olympus'", "Mars/Olympus"),
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
