//! `[repositories.NAME]`: where sets are stored outside this host, and the resources that may be used for it.

use std::path::PathBuf;

use serde::Deserialize;

use super::absolute;
use super::table::from_tables;

/// A repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RepositoryConfig {
    /// `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
    pub url: String,
    /// A file with the encryption key: 32 bytes, raw or in hex.
    pub key_file: Option<PathBuf>,
    /// A file with the passphrase in its first line.
    pub passphrase_file: Option<PathBuf>,
    /// The most bytes to send per second, such as `50MB` or `8MiB`; unlimited if left out.
    pub rate_limit: Option<String>,
    /// The zstd level.
    #[serde(default = "default_level")]
    pub compression_level: i32,
    /// The number of compression threads; one per CPU of the machine if left out.
    pub threads: Option<usize>,
    /// Of a changed record, store only the pages that differ from the previous snapshot.
    #[serde(default = "on")]
    pub page_delta: bool,
    /// Keep a hash of every page in `state_dir`, so that the previous snapshot needn't be read for that.
    #[serde(default = "on")]
    pub page_hashes: bool,
    /// Added to the nice value of shipping and of the `zfs send` that it starts; 0 to 19.
    pub nice: Option<u8>,
    /// The I/O class of these processes, as in ionice(1).
    pub ionice: Option<IoClass>,
    /// The server, if it isn't Amazon's, Google's or Microsoft's own.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` unless something else says otherwise.
    pub region: Option<String>,
    /// The access key's id, or the account for Azure; if left out, from the usual environment variables.
    pub access_key_id: Option<String>,
    /// A file with the secret access key in its first line; for Google a service account's JSON.
    pub secret_access_key_file: Option<PathBuf>,
    /// Allow an endpoint without TLS.
    #[serde(default)]
    pub allow_http: bool,
    /// Ask the store to protect what is written from deletion for this many days.
    pub immutable_days: Option<u32>,
    /// How datasets with ZFS encryption are sent.
    #[serde(default)]
    pub encrypted_datasets: EncryptedDatasets,
    /// After this many increments of a dataset that is sent raw, send a full stream again.
    #[serde(default = "default_raw_full_every")]
    pub raw_full_every: u32,
    /// How long a call to the store may take, in seconds, plus the time to transfer its data.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
    /// What nothing refers to any more is deleted after this many hours. It must be longer than any backup or restore
    /// takes.
    #[serde(default = "default_grace")]
    pub grace_hours: u32,
    /// `prune` rewrites packs of whose content sets need less than this many percent; 0 means none. The default is
    /// 25, or 0 with `immutable_days`, because the packs that it replaces couldn't be deleted yet.
    pub repack_below: Option<u8>,
}

from_tables!(RepositoryConfig);

/// How datasets with ZFS encryption are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptedDatasets {
    /// Raw to a repository without a key, plain to one with a key.
    #[default]
    Auto,
    /// As they are encrypted on disk, so that nobody can look into them.
    Raw,
    /// In the clear, like all others.
    Plain,
}

/// What a URL means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A local folder.
    Folder(PathBuf),
    /// A bucket or container, and a folder in it.
    Cloud {
        /// The provider.
        cloud: Cloud,
        /// The bucket's name.
        bucket: String,
        /// The folder in it; may be empty.
        prefix: String,
    },
}

/// Stores that aren't local folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// S3 and compatible stores.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

/// As in ionice(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// Only when nobody else wants the disk.
    Idle,
    /// The lowest best-effort priority.
    BestEffort,
}

fn on() -> bool {
    true
}

fn default_level() -> i32 {
    3
}
fn default_grace() -> u32 {
    24
}
fn default_raw_full_every() -> u32 {
    30
}
fn default_timeout() -> u32 {
    60
}

impl RepositoryConfig {
    /// Checks the values; the error begins with the key's name.
    ///
    /// # Errors
    /// The first invalid value, in words.
    pub fn check(&self) -> Result<(), String> {
        let place = self.place()?;
        let files = [
            ("key_file", &self.key_file),
            ("passphrase_file", &self.passphrase_file),
            ("secret_access_key_file", &self.secret_access_key_file),
        ];
        for (key, file) in files {
            file.as_deref().map_or(Ok(()), |file| absolute(key, file))?;
        }
        if self.key_file.is_some() && self.passphrase_file.is_some() {
            return Err(
                "key_file and passphrase_file are both set: keep the one that opens the repository"
                    .into(),
            );
        }
        if !(1..=19).contains(&self.compression_level) {
            return Err(format!("compression_level {} isn't 1 to 19", self.compression_level));
        }
        if self.threads == Some(0) {
            return Err("threads is 0: leave it out to use as many as the machine has".into());
        }
        if self.repack_below.is_some_and(|percent| percent > 100) {
            return Err("repack_below is more than 100".into());
        }
        if self.nice.is_some_and(|nice| nice > 19) {
            return Err("nice is more than 19".into());
        }
        if !(1..=1000).contains(&self.raw_full_every) {
            return Err(format!("raw_full_every {} isn't 1 to 1000", self.raw_full_every));
        }
        if !(1..=3600).contains(&self.timeout_seconds) {
            return Err(format!("timeout_seconds {} isn't 1 to 3600", self.timeout_seconds));
        }
        match (self.immutable_days, place) {
            (None, _) => {}
            (Some(0) | Some(36_501..), _) => return Err("immutable_days must be 1 to 36500".into()),
            (Some(_), Place::Cloud { cloud: Cloud::S3, .. }) => {}
            (Some(_), _) => {
                return Err(format!(
                    "immutable_days is for s3:// alone; use versions or soft delete in the store itself for \"{}\"",
                    self.url
                ));
            }
        }
        self.bytes_per_second().map(|_| ())
    }

    /// What the URL means.
    ///
    /// # Errors
    /// Why the URL is invalid, in words.
    pub fn place(&self) -> Result<Place, String> {
        let url = &self.url;
        if let Some(folder) = url.strip_prefix("file://") {
            return match folder.starts_with('/') {
                true => Ok(Place::Folder(folder.into())),
                false => Err(format!("url \"{url}\" has no absolute path; write file:///folder")),
            };
        }
        let clouds = [("s3://", Cloud::S3), ("gs://", Cloud::Gcs), ("az://", Cloud::Azure)];
        let found =
            clouds.iter().find_map(|(scheme, cloud)| Some((cloud, url.strip_prefix(scheme)?)));
        let Some((&cloud, rest)) = found else {
            return Err(format!("url \"{url}\" begins with none of file:///, s3://, gs://, az://"));
        };
        if let Some(odd) = rest.chars().find(|c| "@:?#%\\".contains(*c) || c.is_whitespace()) {
            // The URL isn't shown, because it may hold an access key.
            return Err(format!(
                "url has '{odd}' in it; write the bucket and a folder, and keys in keys of their own"
            ));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/').to_owned();
        if bucket.is_empty()
            || prefix.split('/').any(|s| s == "." || s == "..")
            || prefix.contains("//")
        {
            return Err(format!("url \"{url}\" is no bucket and folder, as s3://bucket/folder"));
        }
        Ok(Place::Cloud { cloud, bucket: bucket.to_owned(), prefix })
    }

    /// Whether both are the same place as far as their tables show, which makes them one repository.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        let server = |config: &Self| {
            let at = config.endpoint.as_deref().unwrap_or_default();
            let at = at.trim_end_matches('/').to_ascii_lowercase();
            match config.place() {
                Ok(Place::Cloud { cloud: Cloud::Azure, .. }) => (at, config.access_key_id.clone()),
                Ok(Place::Cloud { .. }) => (at, None),
                _ => Default::default(),
            }
        };
        let place = |config: &Self| {
            // Paths are compared by component, so `//`, `/.` and a final `/` don't count.
            config.place().ok().map(|place| match place {
                Place::Folder(folder) => Place::Folder(folder.components().collect()),
                cloud => cloud,
            })
        };
        place(self).is_some() && place(self) == place(other) && server(self) == server(other)
    }

    /// `prune` rewrites a pack if less than this percentage of it is still needed.
    #[must_use]
    pub fn repacks_below(&self) -> u8 {
        self.repack_below.unwrap_or(if self.immutable_days.is_some() { 0 } else { 25 })
    }

    /// The rate limit in bytes a second.
    ///
    /// # Errors
    /// When it isn't a number of bytes.
    pub fn bytes_per_second(&self) -> Result<Option<u64>, String> {
        let Some(text) = &self.rate_limit else { return Ok(None) };
        let bytes = parse_bytes(text).map_err(|why| format!("rate_limit {why}"))?;
        Ok(Some(bytes))
    }
}

/// Parses a number of bytes above 0, such as `50MB` or `8MiB`.
///
/// # Errors
/// Why it isn't one, in words.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_most_bytes(text).and_then(|bytes| match bytes {
        0 => Err(no_bytes(text)),
        bytes => Ok(bytes),
    })
}

fn no_bytes(text: &str) -> String {
    format!("\"{text}\" is no number of bytes, as 50MB or 8MiB")
}

/// The same, but 0 is allowed.
///
/// # Errors
/// Why it isn't a number of bytes, in words.
pub fn parse_most_bytes(text: &str) -> Result<u64, String> {
    let wrong = || no_bytes(text);
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    bytes.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RepositoryConfig, String> {
        let config: RepositoryConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn limits_are_bytes_a_second() {
        for (text, bytes) in [("50MB", 50_000_000), ("8MiB", 8 << 20), ("1000", 1000)] {
            let config = read(&format!("url='file:///x'\nrate_limit='{text}'")).unwrap();
            assert_eq!(config.bytes_per_second(), Ok(Some(bytes)), "{text}");
        }
        for text in ["", "fast", "-1", "5 furlongs", "0MB", "99999999999GB"] {
            assert!(read(&format!("url='file:///x'\nrate_limit='{text}'")).is_err(), "{text}");
        }
    }

    #[test]
    fn the_most_may_be_nothing() {
        for (text, bytes) in [("0", 0), ("0MiB", 0), ("10GiB", 10 << 30)] {
            assert_eq!(parse_most_bytes(text), Ok(bytes), "{text}");
        }
        assert!(parse_most_bytes("much").is_err() && parse_bytes("0").is_err());
    }

    #[test]
    fn urls_are_a_folder_or_a_bucket_and_a_folder_in_it() {
        let place = |url: &str| read(&format!("url = '{url}'")).and_then(|config| config.place());
        assert_eq!(place("file:///backup/x"), Ok(Place::Folder("/backup/x".into())));
        let cloud = |cloud, bucket: &str, prefix: &str| {
            Ok(Place::Cloud { cloud, bucket: bucket.into(), prefix: prefix.into() })
        };
        assert_eq!(place("s3://b"), cloud(Cloud::S3, "b", ""));
        assert_eq!(place("gs://b/"), cloud(Cloud::Gcs, "b", ""));
        assert_eq!(place("az://b/a/b/"), cloud(Cloud::Azure, "b", "a/b"));
        for url in ["file://x", "s3://", "s3:///x", "s3://b//x/y//z", "s3://b/../c", "http://x/y"] {
            assert!(place(url).unwrap_err().contains(url), "{url}");
        }
        let secret = place("s3://AKIA:hunter2@b/x").unwrap_err();
        assert!(!secret.contains("hunter2"), "{secret}");
    }

    #[test]
    fn the_same_place_is_known_however_it_is_written() {
        let same = |a: &str, b: &str| read(a).unwrap().is_same_place(&read(b).unwrap());
        assert!(same("url='file:///x/y'", "url='file:///x//y/'\nrate_limit='1MB'"));
        assert!(!same("url='file:///x/y'", "url='file:///x/z'"));
        assert!(same("url='s3://b/p'", "url='s3://b/p/'"));
        assert!(!same("url='s3://b/p'", "url='gs://b/p'"));
        let at = |server: &str| format!("url='s3://b/p'\nendpoint='https://{server}'");
        assert!(same(&at("one"), &at("ONE/")));
        assert!(!same(&at("one"), &at("other")));
        let of = |account: &str| format!("url='az://b/p'\naccess_key_id='{account}'");
        assert!(!same(&of("one"), &of("other")), "containers are an account's");
    }

    #[test]
    fn immutable_days_are_where_they_can_be_kept() {
        assert!(read("url='s3://b'\nimmutable_days=30").is_ok());
        assert!(read("url='s3://b'\nimmutable_days=0").is_err());
        assert!(read("url='s3://b'\nimmutable_days=99999").is_err());
        let why = read("url='file:///x'\nimmutable_days=30").unwrap_err();
        assert!(why.contains("s3://") && why.contains("file:///x"), "{why}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        assert!(read("url = '/backup'").unwrap_err().contains("file:///"));
        assert!(read("url='file:///x'\nkey_file='/k'\npassphrase_file='/p'").is_err());
        assert!(read("url='file:///x'\ncompression_level=20").is_err());
        assert!(read("url='file:///x'\nthreads=0").unwrap_err().starts_with("threads"));
        for every in [0, 1001] {
            let why = read(&format!("url='file:///x'\nraw_full_every={every}")).unwrap_err();
            assert!(why.contains(&every.to_string()), "{why}");
        }
        assert!(read("url='file:///x'\nencrypted_datasets='open'").unwrap_err().contains("open"));
        assert!(read("url='file:///x'\ntimeout_seconds=0").is_err());
        assert!(read("url='file:///x'\nurll='y'").unwrap_err().contains("urll"));
    }
}
