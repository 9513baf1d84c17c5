//! Stores reached by HTTP: S3 and compatible servers, Google Cloud Storage, Azure Blob Storage.
//!
//! What the options leave out comes from the usual environment variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
//! `object_store` itself is set to retry nothing and to limit no call's time: [`super::Store`] retries and
//! [`ObjectStorage`] sets time limits; if both layers did both, a failing call would take an hour.

use std::fmt;
#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
use std::{sync::Arc, time::Duration};

#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::Timeouts;
#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
use super::{ObjectStorage, StoreError, StoreErrorKind, StoreResult, translate::translated};

/// A secret that must not be shown: an access key or the key of a service account.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    #[cfg_attr(not(any(feature = "aws", feature = "gcp", feature = "azure")), expect(dead_code))]
    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where a store is, and with which credentials to use it.
#[derive(Clone, Debug, Default)]
pub struct CloudOptions {
    /// The bucket or container.
    pub bucket: String,
    /// The prefix of all paths; may be empty.
    pub prefix: String,
    /// The server, if it isn't the usual one.
    pub endpoint: Option<String>,
    /// The region (S3).
    pub region: Option<String>,
    /// The access key's id (S3), the account (Azure).
    pub access_key_id: Option<String>,
    /// The access key (S3, Azure), the service account's JSON (Google).
    pub secret: Option<Secret>,
    /// Allow a server without TLS.
    pub allow_http: bool,
    /// For this many days nobody may delete what is written (S3): each object's retention in compliance mode.
    pub immutable_days: Option<u32>,
    /// How long a call may take.
    pub timeouts: Timeouts,
}

/// Disables retries below [`super::Store`].
#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
fn no_retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: Duration::from_secs(180),
    }
}

/// Returns the HTTP client's settings.
#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
fn client(options: &CloudOptions) -> ClientOptions {
    // This is per process; an existing provider is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client =
        ClientOptions::new().with_timeout_disabled().with_connect_timeout(Duration::from_secs(15));
    if options.allow_http { client.with_allow_http(true) } else { client }
}

/// Makes the error of a store that couldn't be opened. No request was sent, so trying again wouldn't help.
#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
fn not_opened(options: &CloudOptions, error: object_store::Error) -> StoreError {
    let mut error = translated("open", &options.bucket, error);
    if error.kind == StoreErrorKind::Transient {
        error.kind = StoreErrorKind::Other;
    }
    error
}

/// Returns the environment variables with this prefix, named as `object_store` knows them. The options' own server and
/// credentials take precedence over the environment's, so the callers leave out what would come along with the latter,
/// or go before the former.
#[cfg(any(feature = "aws", feature = "gcp", feature = "azure"))]
fn environment(beginning: &str) -> Vec<(String, String)> {
    let all = std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        name.starts_with(beginning).then(|| (name.to_ascii_lowercase(), value))
    });
    all.collect()
}

#[cfg(any(feature = "gcp", feature = "azure"))]
fn opened(
    built: object_store::Result<impl ObjectStore>,
    options: &CloudOptions,
) -> StoreResult<ObjectStorage> {
    let store = built.map_err(|error| not_opened(options, error))?;
    ObjectStorage::on(Arc::new(store), &options.prefix, options.timeouts)
}

#[cfg(feature = "gcp")]
impl ObjectStorage {
    /// Google Cloud Storage.
    pub fn gcs(options: &CloudOptions) -> StoreResult<ObjectStorage> {
        use object_store::gcp::{GoogleCloudStorageBuilder as Builder, GoogleConfigKey as Key};
        let mut builder = Builder::new();
        for (name, value) in environment("GOOGLE_") {
            let Ok(key) = name.parse::<Key>() else { continue };
            // An account in the environment and another one in the options would be an error.
            let asks = matches!(
                key,
                Key::ServiceAccount
                    | Key::ServiceAccountKey
                    | Key::BearerToken
                    | Key::SkipSignature
            );
            if !(asks && options.secret.is_some()) {
                builder = builder.with_config(key, value);
            }
        }
        builder = builder
            .with_client_options(client(options))
            .with_retry(no_retries())
            .with_bucket_name(&options.bucket);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_base_url(endpoint);
        }
        if let Some(secret) = &options.secret {
            builder = builder.with_service_account_key(secret.reveal());
        }
        opened(builder.build(), options)
    }
}

#[cfg(feature = "azure")]
impl ObjectStorage {
    /// Azure Blob Storage.
    pub fn azure(options: &CloudOptions) -> StoreResult<ObjectStorage> {
        use object_store::azure::{AzureConfigKey as Key, MicrosoftAzureBuilder as Builder};
        let mut builder = Builder::new();
        for (name, value) in environment("AZURE_") {
            let Ok(key) = name.parse::<Key>() else { continue };
            // Otherwise a token would be used instead of the options' own key, or none.
            let asks = matches!(
                key,
                Key::AccessKey
                    | Key::Token
                    | Key::SasKey
                    | Key::SkipSignature
                    | Key::CredentialType
            );
            // An emulator goes before any endpoint.
            let leads = matches!(key, Key::UseEmulator) && options.endpoint.is_some();
            if !(leads || (asks && options.secret.is_some())) {
                builder = builder.with_config(key, value);
            }
        }
        // The address from which an Azure machine gets its identity.
        if let Ok(place) = std::env::var("IDENTITY_ENDPOINT") {
            builder = builder.with_msi_endpoint(place);
        }
        builder = builder
            .with_client_options(client(options))
            .with_retry(no_retries())
            .with_container_name(&options.bucket);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if options.allow_http {
            builder = builder.with_allow_http(true);
        }
        if let Some(account) = &options.access_key_id {
            builder = builder.with_account(account);
        }
        if let Some(secret) = &options.secret {
            builder = builder.with_access_key(secret.reveal());
        }
        opened(builder.build(), options)
    }
}

#[cfg(feature = "aws")]
pub(super) mod s3 {
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::{Duration, SystemTime};

    use futures_util::future::BoxFuture;
    use object_store::aws::{
        AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut,
    };
    use object_store::multipart::MultipartStore;
    use object_store::path::Path;
    use object_store::{HeaderMap, HeaderValue, ObjectStore, Result};

    use super::{CloudOptions, client, environment, no_retries, not_opened};
    use crate::store::prolong::{Prolonger, date};
    use crate::store::upload::Locking;
    use crate::store::{ObjectStorage, StoreResult};

    /// A client's headers contain a date, so a client is used for this long only, and the date is that much later.
    const FRESH: Duration = Duration::from_secs(3600);

    impl ObjectStorage {
        /// Opens a bucket of S3 or of a compatible server.
        pub fn s3(options: &CloudOptions) -> StoreResult<ObjectStorage> {
            let failed = |error| not_opened(options, error);
            let builder = builder(options, HeaderMap::new());
            let store = Arc::new(builder.clone().build().map_err(failed)?);
            let storage = ObjectStorage::on(store.clone(), &options.prefix, options.timeouts)?;
            let Some(days) = options.immutable_days else { return Ok(storage) };
            let prolonger = Prolonger::new(store.clone(), &builder, &client(options));
            Ok(storage.with_locking(Arc::new(Retention {
                options: options.clone(),
                days,
                plain: store,
                locking: Mutex::new(None),
                prolonger: prolonger.map_err(failed)?,
            })))
        }
    }

    /// Returns the environment's settings, without its credentials if the options have others: a session token from the
    /// environment would make the options' own key invalid, and so would its wish to sign nothing. Nor its server, if
    /// the options have one: `AWS_ENDPOINT_URL_S3` would go before that.
    fn from_environment(
        options: &CloudOptions,
        environment: Vec<(String, String)>,
    ) -> AmazonS3Builder {
        use AmazonS3ConfigKey::{
            AccessKeyId, Endpoint, S3Endpoint, SecretAccessKey, SkipSignature, Token,
        };
        let (has_key, has_server) = (options.access_key_id.is_some(), options.endpoint.is_some());
        let mut builder = AmazonS3Builder::new();
        for (name, value) in environment {
            let Ok(key) = name.parse::<AmazonS3ConfigKey>() else { continue };
            let is_replaced = match key {
                AccessKeyId | SecretAccessKey | Token | SkipSignature => has_key,
                Endpoint | S3Endpoint => has_server,
                _ => false,
            };
            if !is_replaced {
                builder = builder.with_config(key, value);
            }
        }
        builder
    }

    fn builder(options: &CloudOptions, headers: HeaderMap) -> AmazonS3Builder {
        let mut builder = from_environment(options, environment("AWS_"));
        let is_amazon = options.endpoint.is_none()
            && builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_none()
            && builder.get_config_value(&AmazonS3ConfigKey::S3Endpoint).is_none();
        if builder.get_config_value(&AmazonS3ConfigKey::Region).is_none() {
            builder = builder.with_region("us-east-1");
        }
        builder = builder
            .with_client_options(client(options).with_default_headers(headers))
            .with_retry(no_retries())
            .with_bucket_name(&options.bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Deletes one object at a time: not every server has the bulk call, and its errors say less.
            .with_disable_bulk_delete(true)
            // Only Amazon supports virtual-hosted names for all buckets; its certificate covers names without a dot.
            .with_virtual_hosted_style_request(is_amazon && !options.bucket.contains('.'));
        if options.immutable_days.is_some() {
            // S3 accepts a locked object only with a checksum.
            builder = builder.with_checksum_algorithm(Checksum::SHA256);
        }
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if options.allow_http {
            builder = builder.with_allow_http(true);
        }
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        if let Some(id) = &options.access_key_id {
            builder = builder.with_access_key_id(id);
        }
        if let Some(secret) = &options.secret {
            builder = builder.with_secret_access_key(secret.reveal());
        }
        builder
    }

    /// Locks objects for `days` days from the hour in which they are written.
    struct Retention {
        options: CloudOptions,
        days: u32,
        plain: Arc<AmazonS3>,
        locking: Mutex<Option<(SystemTime, Arc<AmazonS3>)>>,
        prolonger: Prolonger,
    }

    impl Retention {
        fn client(&self) -> Result<Arc<AmazonS3>> {
            let mut locking = self.locking.lock().unwrap_or_else(PoisonError::into_inner);
            let now = SystemTime::now();
            if let Some((made, client)) = &*locking
                && is_fresh(*made, now)
            {
                return Ok(client.clone());
            }
            let until = until(now, self.days).ok_or_else(|| {
                let source = format!("{} days from now is no date", self.days).into();
                object_store::Error::Generic { store: "S3", source }
            })?;
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-object-lock-mode", HeaderValue::from_static("COMPLIANCE"));
            headers.insert("x-amz-object-lock-retain-until-date", until);
            // S3 requires that a request with a lock names the checksum, which is sent anyway.
            headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
            let client = Arc::new(builder(&self.options, headers).build()?);
            *locking = Some((now, client.clone()));
            Ok(client)
        }
    }

    /// Whether a client's date is still late enough. The time for which the machine slept counts too, and a clock that
    /// was set back leaves no date that nobody asked for.
    fn is_fresh(made: SystemTime, now: SystemTime) -> bool {
        now.duration_since(made).is_ok_and(|age| age < FRESH)
    }

    /// Returns the date that a client made now sends.
    fn until(now: SystemTime, days: u32) -> Option<HeaderValue> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let until = now + Duration::from_secs(u64::from(days) * 86_400) + FRESH;
        HeaderValue::try_from(date(until.as_secs())?).ok()
    }

    impl Locking for Retention {
        fn seconds(&self) -> u64 {
            u64::from(self.days) * 86_400 + FRESH.as_secs()
        }

        fn writer(&self) -> Result<Arc<dyn ObjectStore>> {
            Ok(self.client()?)
        }

        fn beginner(&self) -> Result<Arc<dyn MultipartStore>> {
            Ok(self.client()?)
        }

        fn parts(&self) -> Arc<dyn MultipartStore> {
            self.plain.clone()
        }

        fn prolong<'a>(&'a self, path: &'a Path, until: u64) -> BoxFuture<'a, Result<()>> {
            Box::pin(self.prolonger.prolong(path, until))
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_options_server_and_key_go_before_the_environments() {
            use AmazonS3ConfigKey::{AccessKeyId, Endpoint, S3Endpoint, SkipSignature};
            let variables = [
                ("aws_access_key_id", "theirs"),
                ("aws_secret_access_key", "theirs"),
                ("aws_skip_signature", "true"),
                ("aws_endpoint_url", "https://a.example"),
                ("aws_endpoint_url_s3", "https://b.example"),
            ];
            let built = |options: &CloudOptions| {
                let variables = variables.iter();
                let variables =
                    variables.map(|(name, value)| (name.to_string(), value.to_string()));
                from_environment(options, variables.collect())
            };
            let found = |builder: &AmazonS3Builder| {
                [AccessKeyId, Endpoint, S3Endpoint]
                    .map(|key| builder.get_config_value(&key).is_some())
            };
            let theirs = built(&CloudOptions::default());
            assert_eq!(found(&theirs), [true; 3]);
            assert_eq!(theirs.get_config_value(&SkipSignature).as_deref(), Some("true"));
            let ours = built(&CloudOptions {
                endpoint: Some("https://c.example".into()),
                access_key_id: Some("ours".into()),
                ..CloudOptions::default()
            });
            assert_eq!(found(&ours), [false; 3], "`S3Endpoint` would go before the options' own");
            assert_ne!(ours.get_config_value(&SkipSignature).as_deref(), Some("true"));
        }

        #[test]
        fn a_lock_outlives_the_days_that_were_asked_for() {
            let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(until(at(0), 1).unwrap(), "1970-01-02T01:00:00Z");
            assert_eq!(until(at(1_800_000_000), 30).unwrap(), "2027-02-14T09:00:00Z");
            assert!(until(at(0), u32::MAX).is_none(), "no date");
            assert!(is_fresh(at(5000), at(5000)) && is_fresh(at(5000), at(8599)));
            assert!(!is_fresh(at(5000), at(8600)), "what it writes would be locked for too short");
            assert!(!is_fresh(at(5000), at(4999)), "the clock was wrong");
        }
    }
}
