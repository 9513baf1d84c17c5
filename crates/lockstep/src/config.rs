//! The TOML configuration: read once and checked completely; every problem is reported with its key.
//!
//! An unknown key is an error: a misspelt `strategi` that is silently ignored means a backup that isn't what its
//! owner thinks.
//!
//! Next to the file there may be a folder of the same name with `.d` in place of `.toml`. It holds more clusters, one
//! file each: `lockstep mirror create` registers a mirror there, so that it never edits what a person wrote. A
//! cluster defined in two files is an error, because it isn't clear which one is meant.

mod repository;
mod retention;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pgfiles::lsn::SystemIdentifier;
use serde::{Deserialize, Deserializer, de::Error as _};

pub use repository::{
    Cloud, EncryptedDatasets, IoClass, Place, RepositoryConfig, parse_bytes, parse_most_bytes,
};
pub use retention::RetentionConfig;
use table::from_tables;

use crate::error::{Error, Result};
use crate::names::{ClusterName, RepositoryName};
use crate::postgres::conninfo::Conninfo;

/// Where the configuration is unless `--config` or `$LOCKSTEP_CONFIG` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/lockstep/lockstep.toml";

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Config {
    /// Where Lockstep keeps its own state: manifests, locks, the set's WAL.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// The cluster to use where none is named.
    pub default_cluster: Option<String>,
    /// The clusters by name.
    #[serde(default)]
    pub clusters: BTreeMap<String, ClusterConfig>,
    /// Where sets are kept beyond this host, by name.
    #[serde(default)]
    pub repositories: BTreeMap<String, RepositoryConfig>,
}

/// One PostgreSQL cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ClusterConfig {
    /// The data directory, as PostgreSQL's own `data_directory`.
    pub data_directory: PathBuf,
    /// As in libpq: a folder with a socket, or a host name. If left out, no connection is tried.
    pub host: Option<String>,
    /// As in libpq.
    #[serde(default = "default_port")]
    pub port: u16,
    /// As in libpq.
    #[serde(default = "default_user")]
    pub user: String,
    /// As in libpq.
    #[serde(default = "default_dbname")]
    pub dbname: String,
    /// A file with the password in its first line.
    pub password_file: Option<PathBuf>,
    /// Where a standby's primary is, as a conninfo string: `host=db1 port=5432 user=lockstep`. Without a password.
    pub primary: Option<String>,
    /// A file with the password for `primary` in its first line.
    pub primary_password_file: Option<PathBuf>,
    /// The user that owns what is restored and runs the servers that Lockstep starts.
    #[serde(default = "default_user")]
    pub os_user: String,
    /// The folder of this cluster's `postgres`; found by version if left out.
    pub bin_dir: Option<PathBuf>,
    /// The strategy of `lockstep backup` without `--strategy`.
    #[serde(default)]
    pub strategy: StrategyChoice,
    /// How pg_backup_start makes its checkpoint.
    #[serde(default)]
    pub checkpoint: CheckpointMode,
    /// The free space in MiB that a volume must have before a snapshot of it is taken.
    #[serde(default = "default_min_free")]
    pub min_free_mib: u64,
    /// `check` warns if the newest set is older than this many hours.
    #[serde(default = "default_max_age")]
    pub max_age_hours: u32,
    /// The repositories that each set is shipped to, by name.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// Which sets `lockstep prune` keeps.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// System identifiers that the cluster had in the past: pg_upgrade makes a new one, and so does restoring a dump.
    #[serde(default, deserialize_with = "identifiers")]
    pub formerly: Vec<SystemIdentifier>,
    /// How `lockstep clone` makes its servers.
    #[serde(default, rename = "clone")]
    pub clones: CloneConfig,
}

impl ClusterConfig {
    /// Returns the free space that a volume must have, in bytes.
    #[must_use]
    pub fn min_free(&self) -> u64 {
        self.min_free_mib.saturating_mul(1 << 20)
    }

    /// Returns its paths with their keys.
    fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let optional = [
            ("password_file", &self.password_file),
            ("primary_password_file", &self.primary_password_file),
            ("bin_dir", &self.bin_dir),
            ("clone.directory", &self.clones.directory),
        ];
        let set = optional.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?)));
        let writable = self.clones.writable.iter().map(|path| ("clone.writable", &**path));
        [("data_directory", &*self.data_directory)].into_iter().chain(set).chain(writable)
    }
}

/// Settings of throwaway servers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct CloneConfig {
    /// Where their folders are made; `STATE_DIR/clusters/CLUSTER/clone-data` if left out.
    pub directory: Option<PathBuf>,
    /// PostgreSQL settings that differ from the cluster's, besides those that a clone has anyway.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Paths outside the clone that its server may write to (for the log or spool of a `restore_command`, say).
    /// Everything else is read-only in its mount namespace.
    #[serde(default)]
    pub writable: Vec<PathBuf>,
}

from_tables!(Config, Fragment, ClusterConfig, CloneConfig);

/// Which strategy a backup is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StrategyChoice {
    /// `label` if a connection is possible, else what is provably consistent, else none.
    #[default]
    Auto,
    /// PostgreSQL's backup API: pg_backup_start, pg_backup_stop.
    Label,
    /// All snapshots in one transaction group of one pool.
    Atomic,
    /// The data directory's snapshot first, pg_wal's last.
    Ordered,
    /// The cluster is shut down.
    Cold,
}

/// `fast` or `spread`, as in pg_basebackup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointMode {
    /// Immediately.
    #[default]
    Fast,
    /// Spread over checkpoint_completion_target of the checkpoint interval.
    Spread,
}

/// Parses system identifiers as PostgreSQL's own tools print them.
fn identifiers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SystemIdentifier>, D::Error> {
    let read = |text: &String| {
        text.parse().map_err(|_| {
            D::Error::custom(format!(
                "\"{text}\" isn't a system identifier: pg_controldata prints it"
            ))
        })
    };
    Vec::<String>::deserialize(from)?.iter().map(read).collect()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/lockstep".into()
}
fn default_port() -> u16 {
    5432
}
fn default_user() -> String {
    "postgres".into()
}
fn default_dbname() -> String {
    "postgres".into()
}
fn default_min_free() -> u64 {
    256
}
fn default_max_age() -> u32 {
    26
}
/// What a clone has unless its settings say otherwise: a second server on a production host must not take the memory of
/// the first.
pub(crate) fn default_clone_settings() -> impl Iterator<Item = (String, String)> {
    [("shared_buffers", "128MB"), ("huge_pages", "off"), ("max_wal_size", "1GB")]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

impl Config {
    /// Reads and checks the file at `path` and those in [`folder_beside`] it.
    ///
    /// # Errors
    /// [`Error::Usage`] for a file that is missing or invalid, and for a cluster that two files define.
    pub fn read(path: &Path) -> Result<Self> {
        let mut config = Self::read_file(path)?;
        let mut named: BTreeMap<String, PathBuf> =
            config.clusters.keys().map(|name| (name.clone(), path.to_path_buf())).collect();
        for file in fragments(&folder_beside(path))? {
            for (name, cluster) in read_fragment(&file)?.clusters {
                if let Some(first) = named.insert(name.clone(), file.clone()) {
                    return Err(Error::usage(
                        format!(
                            "cluster \"{name}\" is named twice: in \"{}\" and in \"{}\"",
                            first.display(),
                            file.display()
                        ),
                        "take it out of one of the two files",
                    ));
                }
                config.clusters.insert(name, cluster);
            }
        }
        config.check_names()?;
        Ok(config)
    }

    fn read_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| {
            Error::usage(
                format!("cannot read the configuration \"{}\": {source}", path.display()),
                "name it with --config FILE or $LOCKSTEP_CONFIG; README.md has an example",
            )
        })?;
        Self::parse(&text).map_err(|why| wrong(path, &why))
    }

    /// Parses and checks the text; the error is a sentence.
    ///
    /// # Errors
    /// The first problem, with its position.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| not_toml(text, &e))?;
        if !config.state_dir.is_absolute() {
            return Err(format!("state_dir \"{}\" isn't absolute", config.state_dir.display()));
        }
        check_clusters(&config.clusters)?;
        for (name, repository) in &config.repositories {
            // It is part of files' names.
            name.parse::<RepositoryName>().map_err(|e| e.to_string())?;
            repository.check().map_err(|why| format!("repositories.{name}.{why}"))?;
        }
        Ok(config)
    }

    /// Checks that every repository that a cluster names is defined, and so is the default cluster.
    fn check_names(&self) -> Result<()> {
        if let Some(name) =
            self.default_cluster.as_ref().filter(|n| !self.clusters.contains_key(*n))
        {
            return Err(Error::usage(
                format!("default_cluster names \"{name}\", which isn't in the configuration"),
                format!("add a table [clusters.{name}], or name another one"),
            ));
        }
        for (cluster, table) in &self.clusters {
            if let Some(name) =
                table.repositories.iter().find(|name| !self.repositories.contains_key(*name))
            {
                return Err(Error::usage(
                    format!(
                        "clusters.{cluster}.repositories names \"{name}\", which isn't in the configuration"
                    ),
                    format!("add a table [repositories.{name}] with its url"),
                ));
            }
            for (at, name) in table.repositories.iter().enumerate() {
                let is_same = |other: &&String| {
                    let both = self.repositories.get(*other).zip(self.repositories.get(name));
                    *other != name && both.is_some_and(|(other, this)| other.is_same_place(this))
                };
                if let Some(other) = table.repositories.iter().take(at).find(is_same) {
                    return Err(Error::usage(
                        format!(
                            "clusters.{cluster}.repositories names \"{other}\" and \"{name}\", which are the same place"
                        ),
                        "a repository is locked on this host by its name: keep only one of the two",
                    ));
                }
            }
            let policies = &table.retention.repositories;
            if let Some(name) = policies.keys().find(|name| !table.repositories.contains(name)) {
                return Err(Error::usage(
                    format!(
                        "clusters.{cluster}.retention.repositories names \"{name}\", which isn't one of this cluster"
                    ),
                    format!("name it in clusters.{cluster}.repositories too, or take it out"),
                ));
            }
        }
        Ok(())
    }

    /// Returns the cluster to use: the named one, `default_cluster`, or the only one.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such cluster, or there are several and none is named.
    pub fn cluster(&self, name: Option<&str>) -> Result<(ClusterName, &ClusterConfig)> {
        let known = || self.clusters.keys().cloned().collect::<Vec<_>>().join(", ");
        let (name, cluster) = match name.or(self.default_cluster.as_deref()) {
            Some(name) => self.clusters.get_key_value(name).ok_or_else(|| {
                Error::usage(
                    format!("no cluster \"{name}\" in the configuration"),
                    format!("it has: {}", known()),
                )
            })?,
            None if self.clusters.len() > 1 => {
                return Err(Error::usage(
                    "the configuration has several clusters",
                    format!(
                        "choose with --cluster NAME, or set default_cluster in the configuration: {}",
                        known()
                    ),
                ));
            }
            None => self.clusters.first_key_value().ok_or_else(|| {
                Error::usage("the configuration has no cluster", "add a table [clusters.NAME]")
            })?,
        };
        let name = name.parse().map_err(|e: crate::names::NameError| {
            Error::usage(e.to_string(), "rename it in the configuration")
        })?;
        Ok((name, cluster))
    }
}

/// A file in the folder beside the configuration.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
struct Fragment {
    #[serde(default)]
    clusters: BTreeMap<String, ClusterConfig>,
}

/// `/etc/lockstep/lockstep.d` for `/etc/lockstep/lockstep.toml`.
#[must_use]
pub fn folder_beside(path: &Path) -> PathBuf {
    path.with_extension("d")
}

/// Lists the `*.toml` files of the folder, by name; none if there is no folder. Names that begin with a dot are
/// skipped: an editor hasn't finished them. A file that [`crate::files::publish`] hasn't finished ends in `.tmp`.
fn fragments(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| unread_fragment(folder, &e))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A file beside the configuration that can't be read.
fn unread_fragment(path: &Path, source: &std::io::Error) -> Error {
    Error::usage(
        format!("cannot read \"{}\", a part of the configuration: {source}", path.display()),
        "mend it, or remove it; a name that doesn't end in .toml isn't read",
    )
}

fn read_fragment(path: &Path) -> Result<Fragment> {
    let text = std::fs::read_to_string(path).map_err(|e| unread_fragment(path, &e))?;
    let fragment: Fragment =
        toml::from_str(&text).map_err(|e| wrong(path, &not_toml(&text, &e)))?;
    check_clusters(&fragment.clusters).map_err(|why| wrong(path, &why))?;
    Ok(fragment)
}

fn check_clusters(clusters: &BTreeMap<String, ClusterConfig>) -> Result<(), String> {
    for (name, cluster) in clusters {
        name.parse::<ClusterName>().map_err(|e| e.to_string())?;
        for (key, path) in cluster.paths() {
            absolute(key, path).map_err(|why| format!("clusters.{name}.{why}"))?;
        }
        let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
        let mut settings = cluster.clones.settings.keys();
        if let Some(odd) = settings.find(|it| it.is_empty() || !it.bytes().all(is_of_a_name)) {
            return Err(format!(
                "clusters.{name}.clone.settings: \"{odd}\" is no name of a setting"
            ));
        }
        if cluster.port == 0 {
            return Err(format!("clusters.{name}.port is 0, and isn't 1 to 65535"));
        }
        if let Some(primary) = &cluster.primary {
            // Reported now, not by the first backup that needs it.
            Conninfo::parse_known(primary)
                .and_then(Conninfo::for_lockstep)
                .map_err(|why| format!("clusters.{name}.primary: {why}"))?;
        }
        cluster.retention.check().map_err(|why| format!("clusters.{name}.retention.{why}"))?;
    }
    Ok(())
}

/// Checks that a path doesn't depend on where the program is started: a timer starts it elsewhere than a shell does.
fn absolute(key: &str, path: &Path) -> Result<(), String> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(format!("{key} \"{}\" isn't absolute", path.display())),
    }
}

/// Why the text isn't understood, and where. The line itself isn't shown: it may hold a secret under an unknown key.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let why = error.message().trim();
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            let key = key_before(before).map(|key| format!(", {key}")).unwrap_or_default();
            format!("line {line}, column {column}{key}: {why}")
        }
        None => why.to_owned(),
    }
}

/// The key of the value that begins after `before`.
fn key_before(before: &str) -> Option<&str> {
    let key = before.trim_end().strip_suffix('=')?.rsplit(['{', ',', '\n']).next()?.trim();
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (!key.is_empty() && key.chars().all(is_bare)).then_some(key)
}

fn wrong(path: &Path, why: &str) -> Error {
    Error::usage(
        format!("the configuration \"{}\" is wrong: {why}", path.display()),
        "docs/configuration.md lists every key",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
        state_dir = "/var/lib/lockstep"
        [clusters.main]
        data_directory = "/srv/pg/data"
        host = "/var/run/postgresql"
        checkpoint = "spread"
        strategy = "ordered"
    "#;

    #[test]
    fn the_example_is_read_with_its_defaults() {
        let config = Config::parse(EXAMPLE).unwrap();
        let (name, cluster) = config.cluster(None).unwrap();
        assert_eq!(name.as_str(), "main");
        assert_eq!((cluster.port, cluster.user.as_str()), (5432, "postgres"));
        assert_eq!(cluster.checkpoint, CheckpointMode::Spread);
        assert_eq!(cluster.strategy, StrategyChoice::Ordered);
        assert!(cluster.clones.settings.is_empty(), "the defaults are a clone's own");
    }

    #[test]
    fn a_part_that_cannot_be_read_is_wrong_configuration() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("lockstep.toml");
        std::fs::write(&file, EXAMPLE).unwrap();
        let folder = folder_beside(&file);
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join("gone.toml")).unwrap();
        let why = Config::read(&file).unwrap_err();
        assert_eq!(why.exit_code(), 2, "{why}");
        assert!(why.to_string().contains("lockstep.d/gone.toml"), "{why}");
        assert!(why.hint().is_some_and(|hint| hint.contains("remove it")));
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let why = Config::parse(&format!("{EXAMPLE}\nstrategi = 'label'")).unwrap_err();
        assert!(why.contains("strategi"), "{why}");
    }

    #[test]
    fn where_it_is_wrong_is_said_without_the_line() {
        let text =
            "state_dir = '/s'\n[clusters.main]\ndata_directory = '/d'\n  password = 'hunter2'\n";
        let why = Config::parse(text).unwrap_err();
        assert!(why.starts_with("line 4, column 3: ") && why.contains("`password`"), "{why}");
        assert!(!why.contains("hunter2"), "{why}");
        let why = format!("{EXAMPLE}\n[clusters.main.retention]\nlocal = {{ within = '7' }}");
        let why = Config::parse(&why).unwrap_err();
        assert!(why.starts_with("line 10, column 20, within: "), "{why}");
        let why = Config::parse("state_dir = '/s'\nsecret = 'hunter2\n").unwrap_err();
        assert!(why.starts_with("line 2") && !why.contains("hunter2"), "{why}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let empty = Config::parse("").unwrap().cluster(None).unwrap_err();
        assert!(empty.to_string().contains("no cluster"), "{empty}");
        let relative = EXAMPLE.replace("/srv/pg/data", "pg/data");
        assert!(Config::parse(&relative).unwrap_err().contains("isn't absolute"));
        for (line, words) in [
            ("port = 0", "clusters.main.port is 0"),
            ("bin_dir = 'pg/bin'", "clusters.main.bin_dir \"pg/bin\" isn't absolute"),
            ("clone.directory = 'c'", "clusters.main.clone.directory \"c\" isn't absolute"),
            // To serde, a date is a table with one odd key.
            ("clone.settings = 1979-05-27", "clusters.main.clone.settings: \"$"),
            (
                "retention = []",
                "line 9, column 13, retention: invalid type: sequence, expected a table",
            ),
            ("retention.local = [1]", "line 9, column 19, retention.local: invalid type: sequence"),
            ("formerly = ['7x']", "line 9, column 12, formerly: \"7x\" isn't a system identifier"),
            (
                "primary = 'host=db1 prot=5432'",
                "clusters.main.primary: it has the keyword \"prot\"",
            ),
            (
                "primary = 'host=db1 password=hunter2'",
                "clusters.main.primary: it has the keyword password",
            ),
            ("primary = 'db1'", "clusters.main.primary: it isn't of the form"),
        ] {
            let why = Config::parse(&format!("{EXAMPLE}\n{line}")).unwrap_err();
            assert!(why.starts_with(words) && !why.contains("hunter2"), "{why}");
        }
        for name in ["../esc", "a/b", "", "."] {
            let odd = format!("{EXAMPLE}\n[repositories.'{name}']\nurl = 'file:///x'");
            let why = Config::parse(&odd).unwrap_err();
            assert!(why.contains(&format!("\"{name}\" is no repository name")), "{why}");
        }
        let odd = EXAMPLE.replace("clusters.main", "clusters.'a b/c'");
        assert!(Config::parse(&odd).unwrap_err().contains("a b/c"));
    }

    #[test]
    fn a_policy_for_nobody_and_one_that_keeps_nothing_are_refused() {
        let wrong = |text: &str| {
            let config = Config::parse(&format!("{EXAMPLE}\n[clusters.main.retention]\n{text}"));
            config.and_then(|config| config.check_names().map_err(|e| e.to_string())).unwrap_err()
        };
        let why = wrong("local = {}");
        assert!(why.contains("clusters.main.retention.local keeps nothing"), "{why}");
        let why = wrong("repositories.far = { last = 1 }");
        assert!(why.contains("retention.repositories names \"far\""), "{why}");
    }

    #[test]
    fn one_place_under_two_names_is_refused() {
        let read = |two: &str| {
            let text = EXAMPLE.replace("host =", "repositories = ['a', 'b']\nhost =");
            let more = "[repositories.a]\nurl = 'file:///x'\n[repositories.b]\nurl";
            Config::parse(&format!("{text}\n{more} = '{two}'")).unwrap().check_names()
        };
        let why = read("file:///x/").unwrap_err();
        let words = why.to_string();
        assert!(words.contains("\"a\" and \"b\"") && why.exit_code() == 2, "{words}");
        assert!(read("file:///y").is_ok());
    }

    #[test]
    fn several_clusters_need_a_name() {
        let two = Config::parse(&format!("{EXAMPLE}\n[clusters.b]\ndata_directory='/b'")).unwrap();
        assert_eq!(two.cluster(None).unwrap_err().exit_code(), 2);
        assert!(two.cluster(Some("b")).is_ok());
        assert!(two.cluster(Some("c")).unwrap_err().hint().unwrap().contains("b, main"));
        let main = Config { default_cluster: Some("main".into()), ..two.clone() };
        assert_eq!(main.cluster(None).unwrap().0.as_str(), "main");
        assert_eq!(main.cluster(Some("b")).unwrap().0.as_str(), "b");
        let nobody = Config { default_cluster: Some("x".into()), ..two };
        assert!(
            nobody.check_names().unwrap_err().to_string().contains("default_cluster names \"x\"")
        );
    }

    #[test]
    fn the_folder_beside_the_file_holds_more_clusters() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("config");
        let (file, folder) = (dir.join("own.toml"), dir.join("own.d"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&file, EXAMPLE).unwrap();
        std::fs::write(folder.join("notes.txt"), "not TOML").unwrap();
        std::fs::write(folder.join(".b.toml"), "half wri").unwrap();
        let fragment = folder.join("b.toml");
        std::fs::write(&fragment, "[clusters.b]\ndata_directory = '/b'\nprimary = 'host=p'")
            .unwrap();
        let config = Config::read(&file).unwrap();
        assert_eq!(config.clusters.keys().collect::<Vec<_>>(), ["b", "main"]);
        assert_eq!(config.clusters["b"].primary.as_deref(), Some("host=p"));

        std::fs::write(&fragment, "[clusters.main]\ndata_directory = '/b'").unwrap();
        let twice = Config::read(&file).unwrap_err().to_string();
        assert!(twice.contains("own.toml") && twice.contains("own.d/b.toml"), "{twice}");
        std::fs::write(&fragment, "state_dir = '/x'").unwrap();
        let other = Config::read(&file).unwrap_err().to_string();
        assert!(other.contains("b.toml") && other.contains("state_dir"), "{other}");
    }
}
