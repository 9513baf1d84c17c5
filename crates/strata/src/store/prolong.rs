//! Prolongs locks: the one call of S3 that `object_store` doesn't have.
//!
//! The call is made as that crate makes its own: to the same address, with the same credentials, signed by the crate.
//! The server's answers are worded like the crate's errors, so that one place distinguishes all errors.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use md5::{Digest, Md5};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, ReqwestConnector};
use object_store::path::Path;
use object_store::signer::{Method, Signer};
use object_store::{ClientOptions, Error, HeaderValue, Result};

/// Returns a time in the only form that S3 accepts; `None` if it is no date.
pub(super) fn date(seconds: u64) -> Option<String> {
    let date = DateTime::<Utc>::from_timestamp(seconds.try_into().ok()?, 0)?;
    Some(date.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Prolongs the locks of a bucket's objects.
pub(super) struct Prolonger {
    store: Arc<AmazonS3>,
    http: HttpClient,
    region: String,
    requester_pays: bool,
}

impl Prolonger {
    /// Makes one for the bucket of `store`, which `builder` made.
    pub(super) fn new(
        store: Arc<AmazonS3>,
        builder: &AmazonS3Builder,
        options: &ClientOptions,
    ) -> Result<Prolonger> {
        let value = |key| builder.get_config_value(&key).unwrap_or_default();
        Ok(Prolonger {
            store,
            http: ReqwestConnector::default().connect(options)?,
            region: value(AmazonS3ConfigKey::Region),
            requester_pays: value(AmazonS3ConfigKey::RequestPayer) == "true",
        })
    }

    /// Locks an existing object until `until` (Unix time) in compliance mode, unless its lock lasts longer.
    pub(super) async fn prolong(&self, path: &Path, until: u64) -> Result<()> {
        let date = date(until).ok_or_else(|| generic(format!("second {until} is no date")))?;
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>COMPLIANCE</Mode><RetainUntilDate>{date}</RetainUntilDate></Retention>"
        );
        match self.ask(Method::PUT, path, body).await {
            Err(refused) if may_be_shortening(&refused) => match self.locked_until(path).await {
                Some(there) if there >= until => Ok(()),
                _ => Err(refused),
            },
            result => result.map(|_| ()),
        }
    }

    /// Returns the end of its lock, if that is known.
    async fn locked_until(&self, path: &Path) -> Option<u64> {
        let answer = self.ask(Method::GET, path, String::new()).await.ok()?;
        let date = answer.split("<RetainUntilDate>").nth(1)?.split('<').next()?;
        DateTime::parse_from_rfc3339(date.trim()).ok()?.timestamp().try_into().ok()
    }

    /// Makes the call and returns the answer's text.
    async fn ask(&self, method: Method, path: &Path, body: String) -> Result<String> {
        // The crate doesn't publish the address; a signed one without its query is the address of any request.
        let second = std::time::Duration::from_secs(1);
        let mut address = self.store.signed_url(method.clone(), path, second).await?;
        address.set_query(Some("retention"));
        let sum = BASE64_STANDARD.encode(Md5::digest(body.as_bytes()));
        let has_body = !body.is_empty();
        let mut request = HttpRequest::new(body.into());
        *request.method_mut() = method.clone();
        *request.uri_mut() = address.as_str().parse().map_err(generic)?;
        if has_body {
            let headers = request.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/xml"));
            headers.insert("content-md5", HeaderValue::try_from(sum).map_err(generic)?);
        }
        let credential = self.store.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .with_request_payer(self.requester_pays)
            .try_authorize(&mut request, None)?;
        let answer = self.http.execute(request).await.map_err(generic)?;
        let status = answer.status();
        let text = answer.into_body().bytes().await.map_err(generic)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        let kind = if status.is_redirection() { "redirect" } else { "non-2xx" };
        let source = format!(
            "Error performing {method} {address} - Server returned {kind} status code: {status}: {text}"
        );
        let (path, source) = (path.to_string(), source.into());
        Err(match status.as_u16() {
            401 => Error::Unauthenticated { path, source },
            403 => Error::PermissionDenied { path, source },
            404 => Error::NotFound { path, source },
            _ => Error::Generic { store: "S3", source },
        })
    }
}

/// Whether the error is one of those with which servers refuse to shorten a lock.
fn may_be_shortening(error: &Error) -> bool {
    matches!(error, Error::PermissionDenied { .. })
        || error.to_string().contains("status code: 400 ")
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "S3", source: source.into() }
}
