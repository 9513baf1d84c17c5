//! Opens the store that a repository's URL stands for.
//!
//! What could go wrong: a folder is on a disk that isn't mounted, and would be created on the disk below (so only
//! `repo init` creates one); or credentials were never set, in which case a cloud's machines ask their own metadata
//! address and all others wait in vain.

use std::path::{Path, PathBuf};

use strata::store::{Ending, ObjectStorage, Paced, Store};

use super::of_store;
use crate::config::{Cloud, Place, RepositoryConfig};
use crate::context::lockstep;
use crate::error::{Error, Result};
use crate::steps;

/// Returns the store of an existing repository; `name` is its name in the configuration.
///
/// # Errors
/// When it can't be opened, or its folder isn't there.
pub fn store(config: &RepositoryConfig, name: &str) -> Result<Store> {
    if let Some(folder) = missing_folder(config)? {
        return Err(Error::usage(
            format!("the repository's folder \"{}\" isn't there", folder.display()),
            format!(
                "is its file system mounted? a new one is made with `{} repo init {name}`",
                lockstep()
            ),
        ));
    }
    create(config)
}

/// Returns the folder that the URL stands for, if it is missing.
pub(super) fn missing_folder(config: &RepositoryConfig) -> Result<Option<PathBuf>> {
    match place(config)? {
        Place::Folder(folder) if !folder.is_dir() => Ok(Some(folder)),
        _ => Ok(None),
    }
}

/// Returns the store of a repository; a missing local folder is created.
///
/// # Errors
/// When it can't be opened or created.
pub fn create(config: &RepositoryConfig) -> Result<Store> {
    let storage = match place(config)? {
        Place::Folder(folder) => folder_storage(&folder)?,
        Place::Cloud { cloud, bucket, prefix } => cloud_storage(config, cloud, bucket, prefix)?,
    };
    // The configuration was checked when it was read.
    match config.bytes_per_second().map_err(|why| Error::usage(why, "see docs/configuration.md"))? {
        Some(limit) => Ok(Store::new(Paced::new(storage, limit).until(ending())).until(ending())),
        None => Ok(Store::new(storage).until(ending())),
    }
}

/// After a request to stop, nobody waits for a server that is gone.
fn ending() -> Ending {
    Ending::when(steps::interrupted)
}

fn place(config: &RepositoryConfig) -> Result<Place> {
    config.place().map_err(|why| Error::usage(why, "see docs/configuration.md"))
}

fn folder_storage(folder: &Path) -> Result<ObjectStorage> {
    ObjectStorage::folder(folder).map_err(of_store)
}

#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
fn cloud_storage(
    config: &RepositoryConfig,
    cloud: Cloud,
    bucket: String,
    prefix: String,
) -> Result<ObjectStorage> {
    use strata::store::{CloudOptions, Secret, Timeouts};

    let secret = match (&config.secret_access_key_file, cloud) {
        (None, _) => None,
        // A service account's key is a JSON document.
        (Some(path), Cloud::Gcs) => Some(super::secret::read(path, "service account file")?),
        (Some(path), _) => Some(super::secret::read_line(path, "access key file")?),
    };
    let secret = match secret.map(String::from_utf8) {
        None => None,
        Some(Ok(text)) => Some(Secret::new(text)),
        // The conversion's own error would show the bytes.
        Some(Err(_)) => {
            return Err(Error::usage("the access key isn't text", "is it the right file?"));
        }
    };
    if cloud == Cloud::S3 && !somebody_asks(config, |name| std::env::var_os(name).is_some()) {
        return Err(Error::usage(
            format!("there are no credentials for \"{}\"", config.url),
            "set access_key_id and secret_access_key_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ));
    }
    let options = CloudOptions {
        bucket,
        prefix,
        endpoint: config.endpoint.clone(),
        region: config.region.clone(),
        access_key_id: config.access_key_id.clone(),
        secret,
        allow_http: config.allow_http,
        immutable_days: config.immutable_days,
        timeouts: Timeouts {
            call: std::time::Duration::from_secs(config.timeout_seconds.into()),
            ..Timeouts::default()
        },
    };
    #[allow(unreachable_patterns, reason = "what isn't built in")]
    match cloud {
        #[cfg(feature = "aws")]
        Cloud::S3 => ObjectStorage::s3(&options).map_err(of_store),
        #[cfg(feature = "gcp")]
        Cloud::Gcs => ObjectStorage::gcs(&options).map_err(of_store),
        #[cfg(feature = "azure")]
        Cloud::Azure => ObjectStorage::azure(&options).map_err(of_store),
        _ => Err(not_built_in(config)),
    }
}

#[cfg(not(any(feature = "aws", feature = "gcp", feature = "azure")))]
fn cloud_storage(
    config: &RepositoryConfig,
    _: Cloud,
    _: String,
    _: String,
) -> Result<ObjectStorage> {
    Err(not_built_in(config))
}

#[allow(dead_code, reason = "with all stores built in, none isn't")]
fn not_built_in(config: &RepositoryConfig) -> Error {
    Error::usage(
        format!("repository URL \"{}\": this kind isn't built in", config.url),
        "build lockstep with its feature aws, gcp or azure",
    )
}

/// Checks whether anything says who asks S3. On one of Amazon's own machines nothing needs to.
#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
fn somebody_asks(config: &RepositoryConfig, is_set: impl Fn(&str) -> bool) -> bool {
    let servers = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let is_amazon = config.endpoint.is_none() && !servers.into_iter().any(&is_set);
    let ways = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    ];
    is_amazon || config.access_key_id.is_some() || ways.into_iter().any(is_set)
}

#[cfg(all(test, feature = "aws"))]
mod tests {
    use super::*;

    fn config(text: &str) -> RepositoryConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn who_asks_is_known_before_anybody_is_asked() {
        let minio = config("url = 's3://b'\nendpoint = 'http://127.0.0.1:9000'");
        assert!(!somebody_asks(&minio, |_| false));
        assert!(somebody_asks(&minio, |name| name == "AWS_ACCESS_KEY_ID"));
        assert!(somebody_asks(
            &config("url='s3://b'\nendpoint='http://x'\naccess_key_id='k'"),
            |_| false
        ));
        let amazon = config("url = 's3://b'");
        assert!(somebody_asks(&amazon, |_| false), "a machine of Amazon's has a role");
        assert!(!somebody_asks(&amazon, |name| name == "AWS_ENDPOINT_URL"));
        assert!(!somebody_asks(&amazon, |name| name == "AWS_ENDPOINT_URL_S3"));
    }

    #[test]
    fn a_folder_is_made_by_init_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("stores");
        let config = config(&format!("url = 'file://{}/r'", dir.display()));
        let error = store(&config, "r").err().unwrap();
        assert!(error.hint().unwrap().contains("mounted"), "{error}");
        assert!(!dir.exists());
        create(&config).unwrap();
        assert!(store(&config, "r").is_ok());
    }
}
