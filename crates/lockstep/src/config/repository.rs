//! `[repositories.NAME]`: where sets are kept beyond this host, and how much that may cost.

use std::path::PathBuf;

use serde::Deserialize;

/// A repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
    pub url: String,
    /// A file with the key that encrypts it: 32 bytes, as they are or in hex.
    pub key_file: Option<PathBuf>,
    /// A file with the passphrase in its first line.
    pub passphrase_file: Option<PathBuf>,
    /// Bytes a second that are sent at most, as `50MB` or `8MiB`; without a limit where left out.
    pub rate_limit: Option<String>,
    /// zstd's level.
    #[serde(default = "default_level")]
    pub compression_level: i32,
    /// Threads that compress; as many as the machine has where left out.
    pub threads: Option<usize>,
    /// Store of a changed record only the pages that differ from the snapshot before.
    #[serde(default = "default_page_delta")]
    pub page_delta: bool,
    /// Added to the priority of shipping and of the `zfs send` that it starts; 0 to 19.
    pub nice: Option<u8>,
    /// The class of their disk accesses.
    pub ionice: Option<IoClass>,
    /// The endpoint of an S3 server that isn't Amazon's.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` where nothing says otherwise.
    pub region: Option<String>,
    /// The access key's id; else that of the usual environment variables.
    pub access_key_id: Option<String>,
    /// A file with the access key itself in its first line.
    pub secret_access_key_file: Option<PathBuf>,
    /// Allow an endpoint without TLS.
    #[serde(default)]
    pub allow_http: bool,
    /// Ask the store to let nobody delete what is written for so many days.
    pub immutable_days: Option<u32>,
    /// What nothing refers to any more is deleted after so many hours; longer than any backup or
    /// restore takes.
    #[serde(default = "default_grace")]
    pub grace_hours: u32,
}

/// As in ionice(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// Only when nobody else wants the disk.
    Idle,
    /// The lowest of the usual.
    BestEffort,
}

fn default_page_delta() -> bool {
    true
}

fn default_level() -> i32 {
    3
}
fn default_grace() -> u32 {
    24
}

impl RepositoryConfig {
    /// Whether the values can be; the error begins with the key's name.
    ///
    /// # Errors
    /// The first that can't, in words.
    pub fn check(&self) -> Result<(), String> {
        let known = ["file:///", "s3://", "gs://", "az://"];
        if !known.iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(format!("url \"{}\" begins with none of {}", self.url, known.join(", ")));
        }
        if self.key_file.is_some() && self.passphrase_file.is_some() {
            return Err("key_file and passphrase_file are both there: which opens it?".into());
        }
        if !(1..=19).contains(&self.compression_level) {
            return Err(format!("compression_level {} isn't 1 to 19", self.compression_level));
        }
        if self.nice.is_some_and(|nice| nice > 19) {
            return Err("nice is more than 19".into());
        }
        self.bytes_per_second().map(|_| ())
    }

    /// The rate limit in bytes a second.
    ///
    /// # Errors
    /// When it is no number of bytes.
    pub fn bytes_per_second(&self) -> Result<Option<u64>, String> {
        let Some(text) = &self.rate_limit else { return Ok(None) };
        let wrong = || format!("rate_limit \"{text}\" is no number of bytes, as 50MB or 8MiB");
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
        bytes.filter(|bytes| *bytes > 0).map(Some).ok_or_else(wrong)
    }
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
    fn what_cannot_be_is_named() {
        assert!(read("url = '/backup'").unwrap_err().contains("file:///"));
        assert!(read("url='file:///x'\nkey_file='/k'\npassphrase_file='/p'").is_err());
        assert!(read("url='file:///x'\ncompression_level=20").is_err());
        assert!(read("url='file:///x'\nurll='y'").unwrap_err().contains("urll"));
    }
}
